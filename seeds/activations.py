"""Recording of layer activations in a forward pass as maps (B, K, h, w), ready to be differentiated.

Layers may give channels first, channels last, or a transformer's tokens.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError, first_line, unknown_name

MAP_DIMS = 4  # (B, K, h, w)
TOKEN_DIMS = 3  # (B, N, K)
MAX_PREFIX_TOKENS = 9  # a class token, a distillation token and registers stand before the image's tokens

Model = nn.Module | partial[Any]
"""A network, or ``functools.partial`` of a network that fixes inputs besides the images."""


def module_of(model: Model) -> nn.Module:
    """Return the network behind a ``functools.partial`` and behind ``torch.compile``.

    Raises:
        InputError: neither a network nor a partial of one.
    """
    module = model.func if isinstance(model, partial) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"a network (nn.Module, or functools.partial of one) is needed, not a {type(module).__name__}")
    original = getattr(module, "_orig_mod", module)  # torch.compile keeps the network there
    return original if isinstance(original, nn.Module) else module


def find_layer(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    """Return the submodule of that name, or check that the given submodule belongs to the model.

    Raises:
        InputError: the model has no such layer; the message names the nearest ones.
    """
    modules = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules()}
    if isinstance(layer, nn.Module):
        wanted = module_of(layer)
        if not any(wanted is module for module in modules.values()):
            raise InputError(f"the given {type(layer).__name__} is not a layer of the {type(model).__name__}")
        return wanted
    if layer and layer in modules:
        return module_of(modules[layer])
    raise unknown_name("layer", layer, filter(None, modules))


@contextmanager
def forward_hooks(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Register ``hook(module, inputs, output)`` on the forward pass of modules, and remove it on exit."""
    with ExitStack() as handles:
        for module in modules:
            handles.enter_context(module.register_forward_hook(hook))
        yield


class Activations:
    """The activations of some layers in one forward pass, indexed in the order of the layers."""

    def __init__(self, model: Model, layers: Sequence[str | nn.Module]) -> None:
        self.module = module_of(model)
        self._args, self._keywords = (model.args, model.keywords) if isinstance(model, partial) else ((), {})
        self.layers = [find_layer(self.module, layer) for layer in layers]
        self.names = [layer if isinstance(layer, str) else type(layer).__name__ for layer in layers]
        self.recorded: dict[nn.Module, Tensor] = {}
        self._images = torch.Size()

    def run(self, images: Tensor) -> Any:
        """Return the model's output for images (B, in_channels, H, W), and record the activations.

        Raises:
            InputError: images of another shape, or images that the model cannot take: another number of channels,
                another size, too small, too large for the memory, of another dtype or device.
        """
        if not isinstance(images, Tensor) or images.dim() != MAP_DIMS:
            what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images must have shape (B, in_channels, H, W), not {what}")
        self._images = images.shape
        # a tensor made in inference mode must not be changed in place outside of it
        images = images.clone() if images.is_inference() else images
        images = images if images.is_leaf and images.requires_grad else images.detach()
        try:
            return self.module(*self._args, images, **self._keywords)
        except (RuntimeError, AssertionError) as error:  # torch's checks, and those of networks for one image size
            given = f"images of shape {tuple(images.shape)}, {images.dtype} on {images.device}"
            raise InputError(f"the {type(self.module).__name__} cannot take {given}: {first_line(error)}") from error

    def __getitem__(self, index: int) -> Tensor:
        """Return the activation (B, K, h, w) of a layer; scores can be differentiated with respect to it.

        Raises:
            InputError: the layer takes no part in the forward pass.
        """
        if self.layers[index] not in self.recorded:
            raise InputError(f"layer {self.names[index]} takes no part in the forward pass")
        return self.recorded[self.layers[index]]

    def record(self, layer: nn.Module, _inputs: object, output: object) -> Tensor:
        """Record a layer's output and return a copy, which later layers may change in place (a forward hook)."""
        name, activation = self.names[self.layers.index(layer)], as_map(output, self._images)
        if activation is None or not isinstance(output, Tensor):
            what = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"layer {name} gives no map (B, K, h, w) but an output {what}; choose a layer before it")
        if layer in self.recorded:
            raise InputError(f"layer {name} runs more than once a forward pass; choose one that runs once")
        # the first recorded layer cuts the graph: nothing below it needs a gradient
        self.recorded[layer] = activation if output.requires_grad else activation.detach().requires_grad_()
        return restore_layout(self.recorded[layer], output)


@contextmanager
def record_activations(model: Model, layers: Sequence[str | nn.Module]) -> Iterator[Activations]:
    """Record the activations of ``layers`` in a forward pass by `Activations.run` inside this context.

    Inside, the model is in eval mode and its parameters need no gradient, so the forward pass builds a graph only
    from the first of the layers on. Gradients are enabled, also within ``no_grad`` or ``inference_mode``. A compiled
    model runs eagerly, because a compiled graph has no layers. On exit, also after an error, each submodule's mode,
    each parameter's ``requires_grad``, the hooks and the gradient mode are restored, and the activations are released.

    Args:
        model: the network.
        layers: submodules or their names; an empty sequence leaves the graph uncut.

    Raises:
        InputError: as `module_of` and `find_layer`; and in the forward pass, a layer whose output is no map, or that
            runs more than once.
    """
    activations = Activations(model, layers)
    module = activations.module
    compiled = (hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in module.modules())
    with ExitStack() as contexts:
        contexts.callback(activations.recorded.clear)  # and so release the graph
        contexts.enter_context(forward_hooks(dict.fromkeys(activations.layers), activations.record))
        if any(compiled):
            contexts.enter_context(torch.compiler.set_stance("force_eager"))
        contexts.enter_context(torch.inference_mode(False))
        contexts.enter_context(torch.enable_grad())
        for each in module.modules():
            contexts.callback(setattr, each, "training", each.training)
        module.eval()
        for parameter in module.parameters():
            contexts.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(False)
        yield activations


def gradient(scores: Tensor, weights: Tensor, activation: Tensor, name: str, keep_graph: bool = False) -> Tensor:
    """Return d(weighted sum of scores)/d(activation) for N weighted sums, of one backward pass.

    Args:
        scores: of any shape.
        weights: (N, *scores' shape), of the scores' dtype.
        activation: from `Activations`.
        name: the layer's name, for the error.
        keep_graph: whether the graph is needed again.

    Returns:
        (N, *activation's shape), in the activation's dtype.

    Raises:
        InputError: the scores do not depend on the layer.
    """
    gradients, is_one = None, len(weights) == 1
    if scores.requires_grad:
        options: dict[str, Any] = {"retain_graph": keep_graph, "allow_unused": True, "is_grads_batched": not is_one}
        (gradients,) = torch.autograd.grad(scores, activation, weights[0] if is_one else weights, **options)
    if gradients is None:
        raise InputError(f"no score of the model depends on layer {name}")
    return gradients[None] if is_one else gradients


def as_map(output: object, images: Sequence[int]) -> Tensor | None:
    """Return a layer's output as a map (B, K, h, w), a view; None if it is no map.

    Four dimensions are (B, K, h, w) unless only the second and third have the image's proportions, as in Swin's
    (B, h, w, K). Three dimensions are tokens (B, N, K). The last h * w tokens must form a grid with the image's
    proportions that divides the image into whole patches; the shortest prefix that allows this is left out.

    Args:
        output: the layer's output.
        images: shape of the images, (B, in_channels, H, W).
    """
    if not isinstance(output, Tensor) or len(images) != MAP_DIMS or output.shape[:1] != tuple(images[:1]):
        return None
    _, _, height, width = images
    if output.dim() == MAP_DIMS:
        grids = output.shape[1:3], output.shape[2:]  # equal proportions, up to the rounding of one position
        is_last, is_first = (abs(h * width - w * height) <= max(height, width) for h, w in grids)
        return output.permute(0, 3, 1, 2) if is_last and not is_first else output
    if output.dim() != TOKEN_DIMS:
        return None
    for prefix in range(min(MAX_PREFIX_TOKENS, output.shape[1] - 1) + 1):
        count = output.shape[1] - prefix
        h = math.isqrt(count * height // width)
        w = count // h if h else 0
        if h and h * w == count and h * width == w * height and height % h == 0 and width % w == 0:
            return output[:, prefix:].transpose(1, 2).reshape(len(output), -1, h, w)
    return None


def restore_layout(activation: Tensor, output: Tensor) -> Tensor:
    """Return a copy of a layer's output in its own layout, with the values of its map (B, K, h, w)."""
    if output.dim() == TOKEN_DIMS:
        tokens = activation.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : -tokens.shape[1]], tokens], dim=1)
    return (activation if activation.shape == output.shape else activation.permute(0, 2, 3, 1)).clone()
