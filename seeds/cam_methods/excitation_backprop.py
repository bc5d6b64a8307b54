"""Excitation backpropagation (Zhang et al., ECCV 2016): marginal winning probabilities, plain and contrastive.

A probability 1 at a class's score goes down the network: of a unit's probability each unit below gets a share
proportional to (its activation) · (its weight, where positive). What goes down an average or a sum is shared in the
same way, through a maximum it goes to the winner, through a ReLU unchanged; a batch norm behind a convolution is part
of its weights. Nothing is lost on the way but at units that no unit below excites.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from datamodules.errors import InputError
from seeds.activation_layout import MAP_DIMS
from seeds.cam_methods.base import LayerMethod, slopes
from seeds.cam_methods.input_gradients import RECTIFIERS
from seeds.cam_targets import Asked, Target

WEIGHTED = {"linear", "conv2d"}
AVERAGING = {"adaptive_avg_pool2d", "avg_pool2d", "mean"}
ADDING = {"add", "add_", "__add__", "__iadd__", "__radd__"}
MULTIPLYING = {"mul", "mul_", "__mul__", "__imul__", "__rmul__", "div", "div_", "__truediv__"}
MONOTONE = {function.__name__ for function in RECTIFIERS} | {"hardtanh", "sigmoid", "hardsigmoid", "tanh"}
# what moves numbers and does not change them; of a maximum, autograd's own derivative leads to the winner
MOVING = {
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "clone", "cat", "concat", "unsqueeze",
    "squeeze", "unflatten", "__getitem__", "chunk", "split", "max_pool2d", "adaptive_max_pool2d", "amax", "to", "float",
    "type", "dropout", "dropout2d", "pad", "channel_shuffle",
}  # fmt: skip


class MWP(LayerMethod):
    """Marginal winning probability of each cell, not negative; its sum is at most 1.

    For networks of convolutions, linear layers, batch norms, ReLUs (smooth ones are taken for ReLUs), pooling, sums
    and concatenations. Activations are taken as excitations: what is negative excites nothing.
    """

    contrastive = False

    def __call__(self, images: Tensor, targets: Target) -> Tensor:
        """As :class:`seeds.cam_methods.base.LayerMethod`.

        Raises:
            InputError: also a target that is a function, and a network of which a layer has no rule.
        """
        if not isinstance(targets, Tensor):
            raise InputError("MWP explains class scores: give labels or class indices, not a function")
        return super().__call__(images, targets)

    def rules(self) -> AbstractContextManager[Any]:
        """As :meth:`LayerMethod.rules`."""
        return _Excitation()

    def maps(self, asked: Asked, activation: Tensor, name: str) -> Tensor:
        """As :meth:`LayerMethod.maps`."""
        if self.contrastive and asked.output is not None:
            _top(asked.output).contrast = True
        found = torch.zeros(*asked.wanted.shape, *activation.shape[2:], device=activation.device)
        for image, column, probability in slopes(asked, activation, name, together=False):
            cells = probability[image].sum(dim=1)  # (n, h, w)
            found[image, column] = cells.relu_() if self.contrastive else cells
        return found


class ContrastiveMWP(MWP):
    """c-MWP: the class's winning probability less that of its dual, whose last weights are the negatives; rectified."""

    contrastive = True


def _top(scores: Tensor) -> Any:
    """The node of the last layer with weights, from which the scores come."""
    node: Any = scores.grad_fn
    while node is not None and not getattr(node, "weighted", False):
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        node = parents[0] if len(parents) == 1 else None
    if node is None:
        raise InputError("c-MWP needs class scores that come from one linear layer or convolution")
    return node


class _Excitation(TorchFunctionMode):
    """Within it, derivatives are shares of probability; functions that depend on nothing asked run as they are."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch's with the rule for its kind.

        Raises:
            InputError: there is no rule for it.
        """
        named = dict(kwargs or {})
        given = args[0] if args else named.pop("input", None)
        if not _asked(given) and not any(_asked(other) for other in args[1:]):
            return func(*args, **(kwargs or {}))
        output = _by_rule(func, given, args[1:], named)
        if output is None:
            output = func(*args, **(kwargs or {}))
            if isinstance(output, Tensor) and output.requires_grad and func.__name__ not in MOVING:
                raise InputError(
                    f"excitation backpropagation has no rule for {func.__name__}: it is for networks of convolutions, "
                    "linear layers, ReLUs and pooling"
                )
        return output


def _by_rule(func: Callable[..., Any], given: Any, rest: Sequence[Any], named: dict[str, Any]) -> Tensor | None:
    """A function's value, its derivative replaced by the rule for its kind; None where it has none."""
    name = func.__name__
    output: Tensor | None = None
    if name in WEIGHTED:
        output = _weighted(func, given, rest, named)
    elif name == "batch_norm":
        output = _normed(func, given, rest, named)
    elif name in AVERAGING:
        output = _Share.apply(given, None, _value(func, given, rest, named), partial(_averaged, func, rest, named))
    elif name in ADDING or name in MULTIPLYING:
        output = _joined(func, given, rest[0], adding=name in ADDING)
    elif name in MONOTONE:
        named.pop("inplace", None)
        output = _Pass.apply(given, _value(func, given.clone(), rest, named))
    return output


def _asked(given: object) -> bool:
    if isinstance(given, list | tuple):
        return any(_asked(each) for each in given)
    return isinstance(given, Tensor) and given.requires_grad


def _value(func: Callable[..., Tensor], given: Tensor, rest: Sequence[Any], named: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return func(given, *rest, **named)


def _averaged(
    func: Callable[..., Tensor], rest: Sequence[Any], named: dict[str, Any], given: Tensor, _weight: Tensor | None
) -> Tensor:
    return func(given, *rest, **named)


def _weighted(func: Callable[..., Tensor], given: Tensor, rest: Sequence[Any], named: dict[str, Any]) -> Tensor:
    """A convolution or linear layer, whose bias excites nothing."""
    weight = rest[0] if rest else named["weight"]
    how = {key: value for key, value in named.items() if key not in ("weight", "bias")}
    output: Tensor = _Share.apply(
        given, weight, _value(func, given, rest, named), partial(_without_bias, func, rest[2:], how)
    )
    return output


def _without_bias(
    func: Callable[..., Tensor], rest: Sequence[Any], how: dict[str, Any], given: Tensor, weight: Tensor
) -> Tensor:
    return func(given, weight, None, *rest, **how)


def _normed(func: Callable[..., Tensor], given: Tensor, rest: Sequence[Any], named: dict[str, Any]) -> Tensor:
    """A batch norm: as part of the convolution before it, else a function of each number."""
    value, node = _value(func, given, rest, named), given.grad_fn
    if not getattr(node, "weighted", False) or value.dim() != MAP_DIMS:
        passed: Tensor = _Pass.apply(given, value)
        return passed
    source, weight = node.saved_tensors  # type: ignore[union-attr]
    zero, one = (torch.full((1, given.shape[1], 1, 1), number, device=given.device) for number in (0.0, 1.0))
    factor = (_value(func, one, rest, named) - _value(func, zero, rest, named)).view(-1, 1, 1, 1)  # of each channel
    folded: Tensor = _Share.apply(source, weight * factor, value, node.spread)  # type: ignore[union-attr]
    return folded


def _joined(func: Callable[..., Tensor], one: Any, other: Any, *, adding: bool) -> Tensor:
    """A sum is shared by the summands' excitations; of a product the probability goes to what is gated, or scaled."""
    with torch.no_grad():
        output = func(one.clone() if isinstance(one, Tensor) else one, other)
    if adding and _asked(one) and _asked(other) and one.shape == other.shape:
        shared: Tensor = _Split.apply(one, other, output)
        return shared
    main = one if _asked(one) and not (_asked(other) and other.numel() > one.numel()) else other
    if main.shape != output.shape or (adding and _asked(one) and _asked(other)):
        raise InputError("excitation backpropagation has no rule for sums of different shapes")
    passed: Tensor = _Pass.apply(main, output)
    return passed


class _Share(torch.autograd.Function):
    """A function that is linear in what it is given, with positive weights: a unit's probability is shared below it."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor | None, value: Tensor, spread: Callable[..., Tensor]) -> Tensor:
        """The value, as computed before; ``spread(given, weight)`` is the function without its bias."""
        ctx.save_for_backward(given, weight)
        ctx.spread, ctx.weighted, ctx.contrast = spread, weight is not None, False
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *probabilities: Tensor) -> tuple[Tensor, None, None, None]:
        """The shares, in the shape of what was given."""
        given, weight = ctx.saved_tensors
        shares = _shares(ctx.spread, given, None if weight is None else weight.clamp(min=0), probabilities[0])
        if ctx.contrast:
            shares = shares - _shares(ctx.spread, given, weight.neg().clamp_(min=0), probabilities[0])
        return shares, None, None, None


def _shares(spread: Callable[..., Tensor], given: Tensor, weight: Tensor | None, probability: Tensor) -> Tensor:
    with torch.enable_grad():
        excitation = given.detach().clamp(min=0).requires_grad_()
        total = spread(excitation, weight)
        part = torch.where(total > 0, probability.to(total.dtype) / total, 0).detach()
        (back,) = torch.autograd.grad(total, excitation, part)
    return (excitation.detach() * back).to(given.dtype)


class _Split(torch.autograd.Function):
    """A sum of two: the probability is shared by their positive parts, evenly where both have none."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, value: Tensor) -> Tensor:
        """The sum, as computed before."""
        ctx.save_for_backward(one, other)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *probabilities: Tensor) -> tuple[Tensor, Tensor, None]:
        """Both shares."""
        one, other = (summand.clamp(min=0) for summand in ctx.saved_tensors)
        total = one + other
        share = torch.where(total > 0, one / total, 0.5) * probabilities[0]
        return share, probabilities[0] - share, None


class _Pass(torch.autograd.Function):
    """A function of each number by itself: the probability goes through."""

    @staticmethod
    def forward(_ctx: Any, _given: Tensor, value: Tensor) -> Tensor:
        """The value, as computed before."""
        return value.clone()

    @staticmethod
    def backward(_ctx: Any, *probabilities: Tensor) -> tuple[Tensor, None]:
        """The same probability."""
        return probabilities[0], None
