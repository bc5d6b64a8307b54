"""Methods whose answer is of the image's own resolution: gradients of the input, plain or through changed ReLUs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from seeds.activations import Model, answer, check_images, gradient, probing
from seeds.cam_targets import Target, ask, check_target
from seeds.gradcam import GradCAM

RECTIFIERS = (
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu, functional.silu,
    functional.hardswish, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
)  # fmt: skip


class PixelMethod:
    """The gradient of a score with respect to the image, (B, C, 3, H, W), signed; see :func:`heat` for maps.

    Plain it is the gradient saliency of Simonyan et al. (2013). Each rank of labels takes one backward pass through
    the whole network.
    """

    rule: Literal["plain", "guided", "deconvolution"] = "plain"

    def __init__(self, model: Model, layer: str | nn.Module | None = None) -> None:
        """Bind a model.

        Args:
            model: takes images (B, 3, H, W); ``functools.partial`` of it where it takes more.
            layer: of no effect: the image itself is asked. It is here so that all methods are made alike.
        """
        self.model, self.layer = model, layer

    def __call__(self, images: Tensor, targets: Target) -> Tensor:
        """Gradients float32 (B, C, 3, H, W), 0 where nothing was asked; else as :class:`seeds.gradcam.GradCAM`."""
        check_images(images)
        check_target(targets, len(images))
        with probing(self.model, []), self._changed():
            leaf = images.detach().clone().requires_grad_()
            asked = ask(answer(self.model, leaf), targets, len(images))
            maps = torch.zeros(*asked.wanted.shape, *images.shape[1:], device=images.device)
            ranks = list(asked.ranks())
            for r, (image, column, score) in enumerate(ranks, start=1):
                slope = gradient(score.float().sum(), leaf, "'' (the image)", keep=r < len(ranks))
                maps[image, column] = slope.detach().float()[image]
        return maps

    def _changed(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.rule == "plain" else _Rectifiers(self.rule)


class GuidedBackprop(PixelMethod):
    """Guided backpropagation (Springenberg et al. 2015): negative gradients are stopped at every ReLU."""

    rule = "guided"


class Deconvolution(PixelMethod):
    """Deconvolution (Zeiler & Fergus 2014): a ReLU passes the positive gradients, whatever its own input was."""

    rule = "deconvolution"


class GuidedGradCAM:
    """Guided Grad-CAM: guided backpropagation times the Grad-CAM map, brought bilinearly to the image's size.

    (B, C, 3, H, W), signed as guided backpropagation is.
    """

    fine: type[PixelMethod] = GuidedBackprop

    def __init__(
        self, model: Model, layer: str | nn.Module | None = None, *, grid: tuple[int, int] | None = None
    ) -> None:
        """Bind a model to the layer of the Grad-CAM maps; arguments as of :class:`seeds.gradcam.GradCAM`."""
        self.coarse = GradCAM(model, layer, grid=grid)
        self.pixels = self.fine(model)

    def __call__(self, images: Tensor, targets: Target) -> Tensor:
        """The product float32 (B, C, 3, H, W), 0 where nothing was asked; else as :class:`GradCAM`."""
        maps = self.coarse(images, targets)
        large = functional.interpolate(maps, images.shape[2:], mode="bilinear")
        return self.pixels(images, targets).mul_(large.unsqueeze(2))


class DeconvolutionGradCAM(GuidedGradCAM):
    """Deconvolution Grad-CAM: as :class:`GuidedGradCAM`, with deconvolution in place of guided backpropagation."""

    fine = Deconvolution


def heat(maps: Tensor) -> Tensor:
    """Maps (B, C, h, w) of any method: those of three channels a pixel by the greatest absolute value among them."""
    return maps.abs().amax(dim=2) if maps.dim() == 5 else maps


class _Rectifiers(TorchFunctionMode):
    """Within it every ReLU-like function, module or not, in place or not, has another gradient.

    Guided: (its own gradient) · ReLU(what comes from above). Deconvolution: ReLU(what comes from above).
    """

    def __init__(self, rule: Literal["guided", "deconvolution"]) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function of torch's, or its replacement."""
        named = dict(kwargs or {})
        given = args[0] if args else named.get("input")
        is_relu6 = func is functional.hardtanh and (*args[1:2], named.get("min_val"))[0] == 0
        if not (func in RECTIFIERS or is_relu6) or not (isinstance(given, Tensor) and given.requires_grad):
            return func(*args, **named)
        named.pop("inplace", None)
        in_place = func in (torch.relu_, Tensor.relu_)
        if self.rule == "deconvolution":
            output = _PassPositive.apply(given, functional.relu if in_place else func, args[1:], named)
        else:
            output = functional.relu(given) if in_place else func(*args, **named)
            output.register_hook(_positive)
        return output


def _positive(slope: Tensor) -> Tensor:
    return slope.clamp(min=0)


class _PassPositive(torch.autograd.Function):
    """Any function; backwards a ReLU of what comes from above."""

    @staticmethod
    def forward(_ctx: Any, given: Tensor, func: Callable[..., Tensor], rest: tuple[Any, ...], named: Any) -> Tensor:
        """The function's value."""
        return func(given, *rest, **named)

    @staticmethod
    def backward(_ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        """What is positive."""
        return slopes[0].clamp(min=0), None, None, None
