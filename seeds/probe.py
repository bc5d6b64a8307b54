"""Looking at layers inside a network: their activations, ready to be differentiated, at the least possible cost."""

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from datamodules.errors import InputError

MAP_DIMS = 4  # (B, K, h, w)


def find_layer(model: nn.Module, layer: str | nn.Module) -> nn.Module:
    """The submodule of that name, or the submodule itself.

    Raises:
        InputError: the model has no such layer; the nearest names are offered.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if isinstance(layer, nn.Module):
        if not any(layer is module for module in modules.values()):
            raise InputError(f"the given {type(layer).__name__} is not a layer of the {type(model).__name__}")
        return layer
    if layer and layer in modules:
        return modules[layer]
    near = difflib.get_close_matches(layer, [name for name in modules if name], n=3, cutoff=0.3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"the {type(model).__name__} has no layer {layer!r}{hint}")


class Taps:
    """The activations seen at some layers in one forward pass; index it with the layer's position."""

    def __init__(self, layers: Sequence[nn.Module], names: Sequence[str]) -> None:
        self._layers, self._names = layers, names
        self._seen: dict[nn.Module, Tensor] = {}

    def __getitem__(self, index: int) -> Tensor:
        """The activation (B, K, h, w) at a layer; scores can be differentiated with respect to it.

        Raises:
            InputError: the layer did not take part in the forward pass.
        """
        if self._layers[index] not in self._seen:
            raise InputError(f"layer {self._names[index]} takes no part in the forward pass")
        return self._seen[self._layers[index]]

    def hook(self, layer: nn.Module, _inputs: object, output: object) -> Tensor:
        """Keep a layer's output and hand on a copy, on which later layers may work in place."""
        name = self._names[list(self._layers).index(layer)]
        if not isinstance(output, Tensor) or output.dim() != MAP_DIMS:
            what = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"layer {name} gives no map (B, K, h, w) but an output {what}; choose a layer before it")
        if layer in self._seen:
            raise InputError(f"layer {name} runs more than once a forward pass; choose one that runs once")
        # the first layer reached cuts the graph: nothing below it needs a gradient
        activation = output if output.requires_grad else output.detach().requires_grad_()
        self._seen[layer] = activation
        return activation.clone()

    def clear(self) -> None:
        """Let go of the activations, and with them of the graph."""
        self._seen.clear()


@contextmanager
def probing(model: nn.Module, layers: Sequence[str | nn.Module]) -> Iterator[Taps]:
    """Run a model in this context to differentiate its scores with respect to the activations of ``layers``.

    Inside, the model is in eval mode and its parameters need no gradient, so that the forward pass builds a graph
    from the first of the layers on and nothing before; gradients are on even within ``no_grad`` or
    ``inference_mode``. However the context is left, each submodule's mode, each parameter's ``requires_grad``, the
    hooks and the gradient mode are again what they were, and no activation is kept.

    Raises:
        InputError: as :func:`find_layer`; and from the model's forward pass, a layer that gives no map.
    """
    modules = [find_layer(model, layer) for layer in layers]
    names = [layer if isinstance(layer, str) else type(layer).__name__ for layer in layers]
    taps = Taps(modules, names)
    modes = [(module, module.training) for module in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handles = [module.register_forward_hook(taps.hook) for module in dict.fromkeys(modules)]
    try:
        model.eval()
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield taps
    finally:
        taps.clear()
        for handle in handles:
            handle.remove()
        for parameter in learning:
            parameter.requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def scores_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The model's class scores (B, C), checked against the labels (B, C) that ask for maps.

    Raises:
        InputError: images, labels or scores of other shapes.
    """
    if images.dim() != MAP_DIMS:
        raise InputError(f"images must have shape (B, 3, H, W), not {tuple(images.shape)}")
    if labels.dim() != 2 or len(labels) != len(images):  # noqa: PLR2004
        raise InputError(f"labels must have shape ({len(images)}, C), a row an image, not {tuple(labels.shape)}")
    # a tensor made in inference mode may not be worked on in place outside of it
    scores = model(images.clone() if images.is_inference() else images.detach())
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
