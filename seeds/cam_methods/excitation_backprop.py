"""Excitation backpropagation (Zhang et al., ECCV 2016): marginal winning probabilities, plain and contrastive.

A probability of 1 at a class's score is passed down the network. Each unit gets a share of the probability of the unit
above it, proportional to (its activation) · (its weight, if positive). Averages and sums share in the same way, a
maximum passes the probability to the winner, a ReLU passes it unchanged; a batch norm behind a convolution is part of
the convolution's weights. Probability is lost only at units that no unit below excites.
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
from seeds.cam_methods.base import LayerMethod, score_gradients
from seeds.cam_methods.input_gradients import RECTIFIERS
from seeds.cam_methods.targets import Target, TargetScores

WEIGHTED = {"linear", "conv2d"}
AVERAGING = {"adaptive_avg_pool2d", "avg_pool2d", "mean"}
ADDING = {"add", "add_", "__add__", "__iadd__", "__radd__"}
MULTIPLYING = {"mul", "mul_", "__mul__", "__imul__", "__rmul__", "div", "div_", "__truediv__"}
MONOTONE = {function.__name__ for function in RECTIFIERS} | {"hardtanh", "sigmoid", "hardsigmoid", "tanh"}
# functions that move values without changing them; a maximum's own derivative leads to the winner
MOVING = {
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "clone", "cat", "concat", "unsqueeze",
    "squeeze", "unflatten", "__getitem__", "chunk", "split", "max_pool2d", "adaptive_max_pool2d", "amax", "to", "float",
    "type", "dropout", "dropout2d", "pad", "channel_shuffle",
}  # fmt: skip


class MWP(LayerMethod):
    """Marginal winning probability of each position, not negative; a map's sum is at most 1.

    For networks of convolutions, linear layers, batch norms, ReLUs (smooth ones count as ReLUs), pooling, sums and
    concatenations. Activations are the excitations; negative ones excite nothing.
    """

    contrastive = False

    def __call__(self, images: Tensor, targets: Target) -> Tensor:
        """Return the maps, as :class:`seeds.cam_methods.base.LayerMethod`.

        Raises:
            InputError: also for a target that is a function, and for a network with a layer that has no rule.
        """
        if not isinstance(targets, Tensor):
            raise InputError("MWP explains class scores: give labels or class indices, not a function")
        return super().__call__(images, targets)

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context in which derivatives are shares of probability."""
        return _Excitation()

    def maps(self, targets: TargetScores, activation: Tensor, name: str) -> Tensor:
        """Return the maps, as :meth:`seeds.cam_methods.base.LayerMethod.maps`."""
        if self.contrastive and targets.output is not None:
            node: Any = targets.output.grad_fn
            while node is not None and not getattr(node, "weighted", False):
                parents = [parent for parent, _ in node.next_functions if parent is not None]
                node = parents[0] if len(parents) == 1 else None
            if node is None:
                raise InputError("c-MWP needs class scores that come from one linear layer or convolution")
            node.contrast = True
        maps = torch.zeros(*targets.selected.shape, *activation.shape[2:], device=activation.device)
        for image, column, probability in score_gradients(targets, activation, name, batched=False):
            summed = probability[image].sum(dim=1)  # (n, h, w)
            maps[image, column] = summed.relu_() if self.contrastive else summed
        return maps


class ContrastiveMWP(MWP):
    """c-MWP: the class's winning probability minus that of its dual, whose last weights are negated; rectified."""

    contrastive = True


class _Excitation(TorchFunctionMode):
    """Make derivatives shares of probability; functions of inputs that need no gradient run unchanged."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch with the rule for its kind.

        Raises:
            InputError: there is no rule for it.
        """
        named = dict(kwargs or {})
        value = args[0] if args else named.pop("input", None)
        rest, name = args[1:], func.__name__
        if not _needs_gradient(value) and not any(_needs_gradient(other) for other in rest):
            return func(*args, **(kwargs or {}))
        if name in WEIGHTED:
            weight = rest[0] if rest else named["weight"]
            settings = {key: setting for key, setting in named.items() if key not in ("weight", "bias")}
            without_bias = partial(_weighted_sum, func, rest[2:], settings)
            return _Share.apply(value, weight, _compute(func, value, rest, named), without_bias)
        if name == "batch_norm":
            return _batch_norm(func, value, rest, named)
        if name in AVERAGING:
            return _Share.apply(value, None, _compute(func, value, rest, named), partial(_average, func, rest, named))
        if name in ADDING or name in MULTIPLYING:
            return _combine(func, value, rest[0], adding=name in ADDING)
        if name in MONOTONE:
            named.pop("inplace", None)
            return _Pass.apply(value, _compute(func, value.clone(), rest, named))
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor) and output.requires_grad and name not in MOVING:
            raise InputError(
                f"excitation backpropagation has no rule for {name}: it is for networks of convolutions, "
                "linear layers, ReLUs and pooling"
            )
        return output


def _needs_gradient(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(_needs_gradient(each) for each in value)
    return isinstance(value, Tensor) and value.requires_grad


@torch.no_grad()
def _compute(func: Callable[..., Tensor], value: Tensor, rest: Sequence[Any], named: dict[str, Any]) -> Tensor:
    return func(value, *rest, **named)


def _weighted_sum(
    func: Callable[..., Tensor], rest: Sequence[Any], settings: dict[str, Any], value: Tensor, weight: Tensor
) -> Tensor:
    """Compute a convolution or linear layer without its bias, which excites nothing."""
    return func(value, weight, None, *rest, **settings)


def _average(
    func: Callable[..., Tensor], rest: Sequence[Any], named: dict[str, Any], value: Tensor, _weight: Tensor | None
) -> Tensor:
    return func(value, *rest, **named)


def _batch_norm(func: Callable[..., Tensor], value: Tensor, rest: Sequence[Any], named: dict[str, Any]) -> Any:
    """Compute a batch norm: as part of the convolution before it, or else as a function of each number."""
    output, node = _compute(func, value, rest, named), value.grad_fn
    if not getattr(node, "weighted", False) or output.dim() != MAP_DIMS:
        return _Pass.apply(value, output)
    source, weight = node.saved_tensors  # type: ignore[union-attr]
    zero, one = (torch.full((1, value.shape[1], 1, 1), number, device=value.device) for number in (0.0, 1.0))
    factor = (_compute(func, one, rest, named) - _compute(func, zero, rest, named)).view(-1, 1, 1, 1)  # of each channel
    return _Share.apply(source, weight * factor, output, node.spread)  # type: ignore[union-attr]


def _combine(func: Callable[..., Tensor], one: Any, other: Any, *, adding: bool) -> Any:
    """Compute a sum, shared by the summands' excitations, or a product, whose probability the gated factor gets."""
    output = _compute(func, one.clone() if isinstance(one, Tensor) else one, (other,), {})
    both = _needs_gradient(one) and _needs_gradient(other)
    if adding and both and one.shape == other.shape:
        return _Split.apply(one, other, output)
    main = one if _needs_gradient(one) and not (both and other.numel() > one.numel()) else other
    if main.shape != output.shape or (adding and both):
        raise InputError("excitation backpropagation has no rule for sums of different shapes")
    return _Pass.apply(main, output)


class _Share(torch.autograd.Function):
    """A function that is linear in its input; with the weights' positive part, it shares a unit's probability."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, weight: Tensor | None, output: Tensor, spread: Callable[..., Tensor]
    ) -> Tensor:
        """Return the output computed before; ``spread(value, weight)`` is the function without its bias."""
        ctx.save_for_backward(value, weight)
        ctx.spread, ctx.weighted, ctx.contrast = spread, weight is not None, False
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *probabilities: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the shares, in the input's shape."""
        value, weight = ctx.saved_tensors

        def shares(positive: Tensor | None) -> Tensor:
            with torch.enable_grad():
                excitation = value.detach().clamp(min=0).requires_grad_()
                total = ctx.spread(excitation, positive)
                part = torch.where(total > 0, probabilities[0].to(total.dtype) / total, 0).detach()
                (back,) = torch.autograd.grad(total, excitation, part)
            found: Tensor = (excitation.detach() * back).to(value.dtype)
            return found

        total = shares(None if weight is None else weight.clamp(min=0))
        if ctx.contrast:
            total = total - shares(weight.neg().clamp_(min=0))
        return total, None, None, None


class _Split(torch.autograd.Function):
    """A sum of two: their positive parts share the probability, evenly if both are 0."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, other: Tensor, output: Tensor) -> Tensor:
        """Return the sum computed before."""
        ctx.save_for_backward(one, other)
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *probabilities: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return both shares."""
        one, other = (summand.clamp(min=0) for summand in ctx.saved_tensors)
        total = one + other
        share = torch.where(total > 0, one / total, 0.5) * probabilities[0]
        return share, probabilities[0] - share, None


class _Pass(torch.autograd.Function):
    """A function of each number by itself: the probability passes unchanged."""

    @staticmethod
    def forward(_ctx: Any, _value: Tensor, output: Tensor) -> Tensor:
        """Return the output computed before."""
        return output.clone()

    @staticmethod
    def backward(_ctx: Any, *probabilities: Tensor) -> tuple[Tensor, None]:
        """Return the same probability."""
        return probabilities[0], None
