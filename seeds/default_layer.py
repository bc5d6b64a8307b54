"""Choice of the layer for the maps when none is named."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.activation_layout import Layout, layout_of, same_proportions
from seeds.activations import Model, forward_hooks, module_of, record_activations, run_model

POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def default_layer(model: Model, image: Tensor) -> str:
    """Return the name of the last layer that gives a map on which the output depends.

    A network may name the layer by an attribute ``default_layer``. Otherwise one forward and backward pass of one
    image finds it: from the last layer to the first, the outermost layer that has parameters, whose map has more than
    one position, and on whose positions the output depends. (In a transformer with a class token the output does not
    depend on the last block's patch tokens, so the layer is that block's first norm. In a VGG it is the last ReLU
    before the last pool.)

    Args:
        model: the network.
        image: one image, (1, 3, H, W).

    Raises:
        InputError: there is no such layer.
    """
    module = module_of(model)
    named = getattr(module, "default_layer", None)
    if isinstance(named, str):
        return named
    names: dict[nn.Module, str] = {each: name.replace("_orig_mod.", "") for name, each in module.named_modules()}
    # some transformers are built with a head of zeros, through which no dependence can be seen
    for weights in (nullcontext(), _zero_weights_randomized(module)):
        with weights:
            layer = _last_layer_with_influence(model, image)
        if layer is not None:
            while isinstance(layer, nn.Sequential) and isinstance(layer[-1], POOLING):
                layer = next(each for each in reversed(layer) if not isinstance(each, POOLING))
            return names[layer]
    raise InputError(
        f"no layer of the {type(module).__name__} gives a map (B, K, h, w) on which its output depends; name one"
    )


def _last_layer_with_influence(model: Model, image: Tensor) -> nn.Module | None:
    module = module_of(model)
    size = (image.shape[2], image.shape[3])
    candidates: list[tuple[nn.Module, Tensor, Layout]] = []

    def note_candidate(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        layout = layout_of(output, size)
        if layout is None or layer is module or isinstance(layer, nn.Linear):  # Linear: a projection within attention
            return
        grid = (layout.height, layout.width)
        if next(layer.parameters(), None) is not None and min(grid) > 1 and same_proportions(grid, size):
            candidates.append((layer, output, layout))

    with record_activations(model, []):
        with forward_hooks(module.modules(), note_candidate):
            peak = _maximum(run_model(model, image.detach().clone().requires_grad_()))
        for layer, output, layout in reversed(candidates):
            if peak is None or len(output) != len(image) or not output.requires_grad:
                continue
            (gradient,) = torch.autograd.grad(peak, output, retain_graph=True, allow_unused=True)
            if gradient is not None and layout.to_map(gradient).any():
                return layer
    return None


def _maximum(output: Any) -> Tensor | None:
    """Return the maximum of the first differentiable tensor in an output; None if there is none."""
    if isinstance(output, Tensor):
        return output.float().max() if output.requires_grad else None
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return next((peak for part in parts if (peak := _maximum(part)) is not None), None)


@contextmanager
def _zero_weights_randomized(module: nn.Module) -> Iterator[None]:
    """Replace weight matrices that are all zero by random numbers within this context."""
    generator = torch.Generator().manual_seed(0)
    zeros = [each.data for each in module.parameters() if each.dim() > 1 and not each.any()]
    try:
        for weight in zeros:
            weight.copy_(torch.randn(weight.shape, generator=generator))
        yield
    finally:
        for weight in zeros:
            weight.zero_()
