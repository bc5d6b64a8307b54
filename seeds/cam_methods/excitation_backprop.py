"""Excitation backpropagation (Zhang et al., ECCV 2016): marginal winning probabilities, plain and contrastive.

A probability of 1 at a class's score is passed down the network. Each unit gets a share of the probability of the unit
above it, proportional to (its activation) · (its weight, if positive). Averages and sums share in the same way, a
maximum passes the probability to the winner, a ReLU passes it unchanged; a batch norm behind a convolution is part of
the convolution's weights. Probability is lost only at units that no unit below excites.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from datamodules.errors import InputError
from seeds.activations import MAP_DIMS
from seeds.cam_methods.base import LayerMethod
from seeds.cam_methods.input_gradients import RECTIFIERS, replace_values
from seeds.cam_methods.targets import TargetScores
from seeds.gradcam import single_parent

WEIGHTED = {"linear", "conv2d"}
AVERAGING = {"adaptive_avg_pool2d", "avg_pool2d", "mean"}
ADDING = {"add", "add_", "__add__", "__iadd__", "__radd__"}
MULTIPLYING = {"mul", "mul_", "__mul__", "__imul__", "__rmul__", "div", "div_", "__truediv__"}
MONOTONE = {function.__name__ for function in RECTIFIERS} | {"hardtanh", "sigmoid", "hardsigmoid", "tanh"}
WITH_RULE = WEIGHTED | AVERAGING | ADDING | MULTIPLYING | MONOTONE | {"batch_norm"}
# functions that move values without changing them; a maximum's own derivative leads to the winner
MOVING = {
    "flatten", "view", "reshape", "permute", "transpose", "contiguous", "clone", "cat", "concat", "unsqueeze",
    "squeeze", "unflatten", "__getitem__", "chunk", "split", "max_pool2d", "adaptive_max_pool2d", "amax", "to", "float",
    "type", "dropout", "dropout2d", "pad", "channel_shuffle", "requires_grad_",
}  # fmt: skip


class _Share(torch.autograd.Function):
    """A function that is linear in its inputs; with the weights' positive part, it shares a unit's probability."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, spread: Any, weight: Tensor | None, *values: Tensor) -> Tensor:
        """Return the output computed before; ``spread(*values, weight)`` is the function without its bias."""
        ctx.save_for_backward(*values)
        ctx.spread, ctx.weight, ctx.contrast = spread, weight, False
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *probabilities: Tensor) -> tuple[Tensor | None, ...]:
        """Return the shares, in the inputs' shapes."""

        def shares(weight: Tensor | None) -> list[Tensor]:
            with torch.enable_grad():
                excitations = [value.detach().clamp(min=0).requires_grad_() for value in ctx.saved_tensors]
                total = ctx.spread(*excitations, weight)
                part = torch.where(total > 0, probabilities[0].to(total.dtype) / total, 0).detach()
                gradients = torch.autograd.grad(total, excitations, part)
            return [(x.detach() * slope).to(x.dtype) for x, slope in zip(excitations, gradients, strict=True)]

        inputs = shares(None if ctx.weight is None else ctx.weight.clamp(min=0))
        if ctx.contrast:
            inputs = [one - other for one, other in zip(inputs, shares(ctx.weight.neg().clamp_(min=0)), strict=True)]
        return None, None, None, *inputs


class _Excitation(TorchFunctionMode):
    """Make derivatives shares of probability; functions of inputs that need no gradient run unchanged."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch with the rule for its kind.

        Raises:
            InputError: there is no rule for it.
        """
        named, name, rest = dict(kwargs or {}), func.__name__, args[1:]
        value = args[0] if args else named.pop("input", None)
        inputs = [each for each in (value, *rest[:1]) if isinstance(each, Tensor) and each.requires_grad]
        if name not in WITH_RULE or not inputs:
            output = func(*args, **(kwargs or {}))
            if isinstance(output, Tensor) and output.requires_grad and name not in MOVING:
                raise InputError(f"excitation backpropagation has no rule for {name}, only for convolutions, ReLUs, …")
            return output
        with torch.no_grad():  # functions that work in place get a copy
            output = func(value.clone() if isinstance(value, Tensor) else value, *rest, **named)
        if name in WEIGHTED:
            weight = rest[0] if rest else named.pop("weight")
            named.pop("bias", None)  # it excites nothing
            return _Share.apply(output, lambda x, w: func(x, w, None, *rest[2:], **named), weight, value)
        if name in AVERAGING:
            return _Share.apply(output, lambda x, _weight: func(x, *rest, **named), None, value)
        if name in ADDING and len(inputs) == 2 and inputs[0].shape == inputs[1].shape:
            return _Share.apply(output, lambda x, y, _weight: x + y, None, *inputs)
        node: Any = value.grad_fn if name == "batch_norm" else None
        if getattr(node, "weight", None) is not None and output.dim() == MAP_DIMS:  # a part of the convolution before
            with torch.no_grad():
                one = value.new_ones(1, value.shape[1], 1, 1)
                factor = func(one, *rest, **named) - func(torch.zeros_like(one), *rest, **named)
            (source,) = node.saved_tensors
            return _Share.apply(output, node.spread, node.weight * factor.view(-1, 1, 1, 1), source)
        main = max(inputs, key=Tensor.numel)  # of a product, the factor that the other one scales
        if main.shape != output.shape or (name in ADDING and len(inputs) == 2):
            raise InputError("excitation backpropagation has no rule for sums and products of different shapes")
        return replace_values(main, output)


class MWP(LayerMethod):
    """Marginal winning probability of each position, not negative; a map's sum is at most 1.

    For networks of convolutions, linear layers, batch norms, ReLUs (smooth ones count as ReLUs), pooling, sums and
    concatenations. Activations are the excitations; negative ones excite nothing.
    """

    forward_context = _Excitation
    contrastive = False
    batched = False

    def maps(self, targets: TargetScores, activation: Tensor, name: str) -> Tensor:
        """Return the maps, as `seeds.cam_methods.base.LayerMethod.maps`.

        Raises:
            InputError: also for a target that is a function, and for scores that no linear layer gives (c-MWP).
        """
        if targets.output is None:
            raise InputError("MWP explains class scores: give labels or class indices, not a function")
        if self.contrastive:
            node: Any = targets.output.grad_fn
            while node is not None and getattr(node, "weight", None) is None:
                node = single_parent(node)
            if node is None:
                raise InputError("c-MWP needs class scores that come from one linear layer or convolution")
            node.contrast = True
        return super().maps(targets, activation, name)

    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:  # noqa: ARG002
        """Return the maps, as `seeds.cam_methods.base.LayerMethod.combine`; the gradients are probabilities."""
        summed = gradients.sum(dim=1)  # (n, h, w)
        return summed.relu_() if self.contrastive else summed


class ContrastiveMWP(MWP):
    """c-MWP: the class's winning probability minus that of its dual, whose last weights are negated; rectified."""

    contrastive = True
