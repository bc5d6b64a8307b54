"""Finding the layer to ask when none is named."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.activation_layout import Layout, alike, layout_of
from seeds.activations import Model, answer, module_of, probing

POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def default_layer(model: Model, image: Tensor) -> str:
    """Name of the last layer that gives a map on which the output depends.

    A network may name it by an attribute ``default_layer``. Else it is looked for with one image, forward and
    backward: from the last layer to the first, the outermost that has parameters, gives a map of more than one cell,
    and in which the output depends on the cells. (In a transformer with a class token it does not depend on the last
    block's patch tokens: the last layer is that block's first norm. In a VGG, the last ReLU before the last pool.)

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
    for state in (nullcontext(), _no_zero_weights(module)):
        with state:
            layer = _last_that_matters(model, image)
        if layer is not None:
            return names[_before_pooling(layer)]
    raise InputError(
        f"no layer of the {type(module).__name__} gives a map (B, K, h, w) on which its output depends; name one"
    )


def _last_that_matters(model: Model, image: Tensor) -> nn.Module | None:
    """The last layer that gives a map on which the output depends; None where there is none."""
    module = module_of(model)
    size = (image.shape[2], image.shape[3])
    seen: list[tuple[nn.Module, Tensor, Layout]] = []

    def note(layer: nn.Module, _inputs: object, output: object) -> None:
        layout = layout_of(output, size)
        if layout is not None and layer is not module and _may_be(layer, layout, size):
            assert isinstance(output, Tensor)
            seen.append((layer, output, layout))

    with probing(model, []):
        handles = [each.register_forward_hook(note) for each in module.modules()]
        try:
            peak = _peak(answer(model, image.detach().clone().requires_grad_()))
        finally:
            for handle in handles:
                handle.remove()
        for layer, output, layout in reversed(seen):
            if len(output) == len(image) and _depends(peak, output, layout):
                return layer
    return None


@contextmanager
def _no_zero_weights(module: nn.Module) -> Iterator[None]:
    """Random numbers for weights that are 0 throughout, for a while.

    Transformers are made with such a head, through which nothing can be seen to depend on anything.
    """
    generator = torch.Generator().manual_seed(0)
    blank = [each.data for each in module.parameters() if each.dim() > 1 and not each.any()]
    try:
        for weight in blank:
            weight.copy_(torch.randn(weight.shape, generator=generator))
        yield
    finally:
        for weight in blank:
            weight.zero_()


def _may_be(layer: nn.Module, layout: Layout, size: tuple[int, int]) -> bool:
    """Whether a layer can be meant: it learned something, has cells, and is not one projection within attention."""
    cells = (layout.height, layout.width)
    is_projection = isinstance(layer, nn.Linear)
    learned = next(layer.parameters(), None) is not None
    return learned and not is_projection and min(cells) > 1 and alike(cells, size)


def _peak(output: Any) -> Tensor | None:
    """The greatest number of the first differentiable tensor in an output; None where there is none."""
    if isinstance(output, Tensor):
        return output.float().max() if output.requires_grad else None
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return next((peak for part in parts if (peak := _peak(part)) is not None), None)


def _depends(peak: Tensor | None, output: Tensor, layout: Layout) -> bool:
    """Whether a number depends on the cells of a layer's output, and not only on tokens of no place."""
    if peak is None or not output.requires_grad:
        return False
    (slope,) = torch.autograd.grad(peak, output, retain_graph=True, allow_unused=True)
    return slope is not None and bool(layout.to_map(slope).any())


def _before_pooling(layer: nn.Module) -> nn.Module:
    """Of a sequence that ends in pooling the last layer before that; else the layer itself."""
    while isinstance(layer, nn.Sequential) and isinstance(layer[-1], POOLING):
        layer = next(each for each in reversed(layer) if not isinstance(each, POOLING))
    return layer
