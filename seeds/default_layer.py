"""Choice of the layer for the maps when none is named."""

from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.activation_layout import as_map, has_proportions
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
        model: the network; not one whose head is all zeros, as some transformers are initialised.
        image: one image, (1, 3, H, W).

    Raises:
        InputError: there is no such layer.
    """
    module = module_of(model)
    named = getattr(module, "default_layer", None)
    if isinstance(named, str):
        return named
    names: dict[nn.Module, str] = {each: name.replace("_orig_mod.", "") for name, each in module.named_modules()}
    candidates: list[tuple[nn.Module, Tensor]] = []

    def note_candidate(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        activation = as_map(output, image.shape)
        is_projection = isinstance(layer, nn.Linear)  # within attention
        if activation is None or layer is module or is_projection or next(layer.parameters(), None) is None:
            return
        grid = activation.shape[2:]
        if output.requires_grad and min(grid) > 1 and has_proportions(grid, image.shape):
            candidates.append((layer, output))

    with record_activations(model, []):
        with forward_hooks(module.modules(), note_candidate):
            peak = _maximum(run_model(model, image.detach().clone().requires_grad_()))
        for layer, output in reversed(candidates):
            if peak is None:
                break
            (gradient,) = torch.autograd.grad(peak, output, retain_graph=True, allow_unused=True)
            found = as_map(gradient, image.shape)
            if found is not None and found.any():
                chosen = layer
                while isinstance(chosen, nn.Sequential) and isinstance(chosen[-1], POOLING):
                    chosen = next(each for each in reversed(chosen) if not isinstance(each, POOLING))
                return names[chosen]
    raise InputError(
        f"no layer of the {type(module).__name__} gives a map (B, K, h, w) on which its output depends; name one"
    )


def _maximum(output: Any) -> Tensor | None:
    """Return the maximum of the first differentiable tensor in an output; None if there is none."""
    if isinstance(output, Tensor):
        return output.float().max() if output.requires_grad else None
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return next((peak for part in parts if (peak := _maximum(part)) is not None), None)
