"""Recording of layer activations in a forward pass, ready to be differentiated."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError, first_line, unknown_name
from seeds.activation_layout import MAP_DIMS, as_map, restore_layout

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
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Activations:
    """The activations of some layers in one forward pass, indexed in the order of the layers."""

    def __init__(self, model: nn.Module, layers: Sequence[str | nn.Module]) -> None:
        self.layers = [find_layer(model, layer) for layer in layers]
        self._names = [layer if isinstance(layer, str) else type(layer).__name__ for layer in layers]
        self.recorded: dict[nn.Module, Tensor] = {}
        self._images = torch.Size()

    def __getitem__(self, index: int) -> Tensor:
        """Return the activation (B, K, h, w) of a layer; scores can be differentiated with respect to it.

        Raises:
            InputError: the layer takes no part in the forward pass.
        """
        if self.layers[index] not in self.recorded:
            raise InputError(f"layer {self._names[index]} takes no part in the forward pass")
        return self.recorded[self.layers[index]]

    def record_image_shape(self, _model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Record the shape of the images, from which the layout of an output is inferred (a forward pre-hook)."""
        shapes = (value.shape for value in (*inputs, *named.values()) if isinstance(value, Tensor))
        self._images = next((shape for shape in shapes if len(shape) == MAP_DIMS), self._images)

    def record(self, layer: nn.Module, _inputs: object, output: object) -> Tensor:
        """Record a layer's output and return a copy, which later layers may change in place (a forward hook)."""
        name = self._names[self.layers.index(layer)]
        # the first recorded layer cuts the graph: nothing below it needs a gradient
        values = output.detach() if isinstance(output, Tensor) and not output.requires_grad else output
        activation = as_map(values, self._images)
        if activation is None or not isinstance(output, Tensor):
            what = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"layer {name} gives no map (B, K, h, w) but an output {what}; choose a layer before it")
        if layer in self.recorded:
            raise InputError(f"layer {name} runs more than once a forward pass; choose one that runs once")
        self.recorded[layer] = activation if activation.requires_grad else activation.requires_grad_()
        return restore_layout(self.recorded[layer], output)


@contextmanager
def record_activations(model: Model, layers: Sequence[str | nn.Module]) -> Iterator[Activations]:
    """Record the activations of ``layers`` in a forward pass run inside this context.

    Inside, the model is in eval mode and its parameters need no gradient, so the forward pass builds a graph only
    from the first of the layers on. Gradients are enabled, also within ``no_grad`` or ``inference_mode``. A compiled
    model runs eagerly, because a compiled graph has no layers. On exit, also after an error, each submodule's mode,
    each parameter's ``requires_grad``, the hooks and the gradient mode are restored, and the activations are released.

    Args:
        model: the network.
        layers: submodules or their names; an empty sequence leaves the graph uncut.

    Raises:
        InputError: as :func:`find_layer`; and in the forward pass, a layer whose output is no map.
    """
    module = module_of(model)
    activations = Activations(module, layers)
    modes = [(each, each.training) for each in module.modules()]
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    compiled = (hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) for m in module.modules())
    with ExitStack() as contexts:
        contexts.callback(activations.recorded.clear)  # and so release the graph
        contexts.enter_context(forward_hooks(dict.fromkeys(activations.layers), activations.record))
        shape_hook = module.register_forward_pre_hook(activations.record_image_shape, with_kwargs=True)
        contexts.callback(shape_hook.remove)
        if any(compiled):
            contexts.enter_context(torch.compiler.set_stance("force_eager"))
        contexts.enter_context(torch.inference_mode(False))
        contexts.enter_context(torch.enable_grad())
        try:
            module.eval()
            for parameter in learning:
                parameter.requires_grad_(False)
            yield activations
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
            for each, mode in modes:
                each.training = mode


def run_model(model: Model, images: Tensor) -> Any:
    """Return the model's output for images (B, 3, H, W); to be called within :func:`record_activations`.

    Raises:
        InputError: images of another shape, or images that the model cannot take: another number of channels, another
            size, too small, of another dtype or device.
    """
    if not isinstance(images, Tensor) or images.dim() != MAP_DIMS:
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must have shape (B, 3, H, W), not {what}")
    # a tensor made in inference mode must not be changed in place outside of it
    images = images.clone() if images.is_inference() else images
    images = images if images.is_leaf and images.requires_grad else images.detach()
    module = module_of(model)
    try:
        return module(*model.args, images, **model.keywords) if isinstance(model, partial) else module(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # torch's checks, and those of networks for one image size
        given = f"images of shape {tuple(images.shape)}, {images.dtype} on {images.device}"
        raise InputError(f"the {type(module).__name__} cannot take {given}: {first_line(error)}") from error


def gradient(
    score: Tensor, activation: Tensor, name: str, *, keep_graph: bool, weights: Tensor | None = None
) -> Tensor:
    """Return d(score)/d(activation).

    Args:
        score: a scalar, or a tensor of any shape if ``weights`` are given.
        activation: from :class:`Activations`.
        name: the layer's name, for the error.
        keep_graph: whether the graph is needed again.
        weights: (N, *score's shape): N weighted sums of ``score`` are differentiated in one backward pass.

    Returns:
        The activation's shape and dtype; with ``weights``, (N, *activation's shape).

    Raises:
        InputError: the score does not depend on the layer.
    """
    found = None
    if score.requires_grad:
        (found,) = torch.autograd.grad(
            score, activation, weights, retain_graph=keep_graph, allow_unused=True, is_grads_batched=weights is not None
        )
    if found is None:
        raise InputError(f"no score of the model depends on layer {name}")
    return found
