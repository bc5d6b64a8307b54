"""Looking at layers inside a network: their activations, ready to be differentiated, at the least possible cost."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from seeds.activation_layout import MAP_DIMS, Layout, layout_of

Model = nn.Module | partial[Any]
"""A network, or ``functools.partial`` of one that fixes inputs besides the images (a question, a sentence)."""


def module_of(model: Model) -> nn.Module:
    """The network itself: behind a ``functools.partial``, and as it was before ``torch.compile``.

    Raises:
        InputError: neither a network nor a partial of one.
    """
    module = model.func if isinstance(model, partial) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"a network (nn.Module, or functools.partial of one) is needed, not a {type(module).__name__}")
    original = getattr(module, "_orig_mod", module)  # where torch.compile keeps it
    return original if isinstance(original, nn.Module) else module


def find_layer(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    """The submodule of that name, or the submodule itself.

    Raises:
        InputError: the model has no such layer; the nearest names are offered.
    """
    modules = {name.replace("_orig_mod.", ""): module for name, module in model.named_modules()}
    if isinstance(layer, nn.Module):
        wanted = module_of(layer)
        if not any(wanted is module for module in modules.values()):
            raise InputError(f"the given {type(layer).__name__} is not a layer of the {type(model).__name__}")
        return wanted
    if layer and layer in modules:
        return module_of(modules[layer])
    near = difflib.get_close_matches(layer, [name for name in modules if name], n=3, cutoff=0.3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"the {type(model).__name__} has no layer {layer!r}{hint}")


def layer_name(layer: str | nn.Module) -> str:
    """What an error calls a layer."""
    return layer if isinstance(layer, str) else type(layer).__name__


class Taps:
    """The activations seen at some layers in one forward pass; index it with the layer's position."""

    def __init__(self, layers: Sequence[nn.Module], names: Sequence[str], grid: tuple[int, int] | None = None) -> None:
        self._layers, self._names, self._grid = layers, names, grid
        self._seen: dict[nn.Module, Tensor] = {}
        self._images: tuple[int, int, int] | None = None  # their number, height and width

    def __getitem__(self, index: int) -> Tensor:
        """The activation (B, K, h, w) at a layer; scores can be differentiated with respect to it.

        Raises:
            InputError: the layer did not take part in the forward pass.
        """
        if self._layers[index] not in self._seen:
            raise InputError(f"layer {self._names[index]} takes no part in the forward pass")
        return self._seen[self._layers[index]]

    def note_images(self, _model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Remember the size of the images, which tells a map from other outputs."""
        for given in (*inputs, *named.values()):
            if isinstance(given, Tensor) and given.dim() == MAP_DIMS:
                self._images = (given.shape[0], given.shape[2], given.shape[3])
                return

    def hook(self, layer: nn.Module, _inputs: object, output: object) -> Tensor:
        """Keep a layer's output and hand on a copy, on which later layers may work in place."""
        name = self._names[list(self._layers).index(layer)]
        layout = self._layout(output)
        if layout is None or not isinstance(output, Tensor):
            what = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"layer {name} gives no map (B, K, h, w) but an output {what}; choose a layer before it")
        if layer in self._seen:
            raise InputError(f"layer {name} runs more than once a forward pass; choose one that runs once")
        # the first layer reached cuts the graph: nothing below it needs a gradient
        output = output if output.requires_grad else output.detach()
        activation = layout.to_map(output)
        self._seen[layer] = activation if activation.requires_grad else activation.requires_grad_()
        return layout.from_map(self._seen[layer], output)

    def _layout(self, output: object) -> Layout | None:
        if isinstance(output, Tensor) and self._images is not None and len(output) != self._images[0]:
            return None
        return layout_of(output, None if self._images is None else self._images[1:], self._grid)

    def clear(self) -> None:
        """Let go of the activations, and with them of the graph."""
        self._seen.clear()


@contextmanager
def probing(model: Model, layers: Sequence[str | nn.Module], grid: tuple[int, int] | None = None) -> Iterator[Taps]:
    """Run a model in this context to differentiate its scores with respect to the activations of ``layers``.

    Inside, the model is in eval mode and its parameters need no gradient, so that the forward pass builds a graph
    from the first of the layers on and nothing before; gradients are on even within ``no_grad`` or
    ``inference_mode``; a compiled model runs as it was written, for a compiled graph has no layers. However the
    context is left, each submodule's mode, each parameter's ``requires_grad``, the hooks and the gradient mode are
    again what they were, and no activation is kept.

    Args:
        model: the network.
        layers: submodules or their names; without any, nothing is cut.
        grid: height and width of the layers' maps, where their shape does not tell (tokens of an image that is not
            square and whose sides the patches do not divide).

    Raises:
        InputError: as :func:`find_layer`; and from the model's forward pass, a layer that gives no map.
    """
    module = module_of(model)
    modules = [find_layer(module, layer) for layer in layers]
    taps = Taps(modules, [layer_name(layer) for layer in layers], grid)
    modes = [(each, each.training) for each in module.modules()]
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    handles = [each.register_forward_hook(taps.hook) for each in dict.fromkeys(modules)]
    handles.append(module.register_forward_pre_hook(taps.note_images, with_kwargs=True))
    try:
        module.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        with ExitStack() as contexts:
            if any(is_compiled(each) for each in module.modules()):
                contexts.enter_context(torch.compiler.set_stance("force_eager"))
            contexts.enter_context(torch.inference_mode(False))
            contexts.enter_context(torch.enable_grad())
            yield taps
    finally:
        taps.clear()
        for handle in handles:
            handle.remove()
        for parameter in learning:
            parameter.requires_grad_(True)
        for each, mode in modes:
            each.training = mode


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled, by ``torch.compile(module)`` or by ``module.compile()``."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def check_images(images: Tensor) -> None:
    """Raises an InputError unless images have the shape (B, 3, H, W)."""
    if not isinstance(images, Tensor) or images.dim() != MAP_DIMS:
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(f"images must have shape (B, 3, H, W), not {what}")


def answer(model: Model, images: Tensor) -> Any:
    """The model's output for images (B, 3, H, W), whatever it is; to be called within :func:`probing`.

    Raises:
        InputError: images of another shape, or that the model refuses: of another number of channels, another size,
            too small, of another dtype or device.
    """
    check_images(images)
    # a tensor made in inference mode may not be worked on in place outside of it
    given = images.clone() if images.is_inference() else images
    given = given if given.is_leaf and given.requires_grad else given.detach()
    module = module_of(model)
    try:
        return module(*model.args, given, **model.keywords) if isinstance(model, partial) else module(given)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:  # torch's own checks, and those of networks of one size
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        given_as = f"images of shape {tuple(images.shape)}, {images.dtype} on {images.device}"
        raise InputError(f"the {type(module).__name__} cannot take {given_as}: {reason}") from error


def scores_of(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """The model's class scores (B, C), checked against the labels (B, C) that ask for maps.

    Raises:
        InputError: images, labels or scores of other shapes.
    """
    check_images(images)
    if labels.dim() != 2 or len(labels) != len(images):
        raise InputError(f"labels must have shape ({len(images)}, C), a row an image, not {tuple(labels.shape)}")
    scores = answer(model, images)
    if not isinstance(scores, Tensor) or scores.shape != labels.shape:
        got = f"a {type(scores).__name__}" if not isinstance(scores, Tensor) else f"scores {tuple(scores.shape)}"
        raise InputError(f"labels of shape {tuple(labels.shape)} do not fit the model, which gives {got}")
    return scores


def gradient(score: Tensor, activation: Tensor, name: str, *, keep: bool) -> Tensor:
    """d(score)/d(activation) of a scalar score, in the activation's shape and dtype.

    Args:
        score: a scalar.
        activation: from :class:`Taps`.
        name: the layer's, for the error.
        keep: whether the graph is needed once more.

    Raises:
        InputError: the score does not depend on the layer.
    """
    found = None
    if score.requires_grad:
        (found,) = torch.autograd.grad(score, activation, retain_graph=keep, allow_unused=True)
    if found is None:
        raise InputError(f"no score of the model depends on layer {name}")
    return found
