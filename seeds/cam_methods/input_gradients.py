"""Methods with maps at the image's resolution: gradients of the input, plain or through changed ReLUs."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from datamodules.errors import InputError
from seeds.activations import Model, record_activations
from seeds.cam_methods.base import score_gradients
from seeds.cam_methods.targets import Target, select_scores
from seeds.gradcam import GradCAM

RECTIFIERS = (
    functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.gelu, functional.silu,
    functional.hardswish, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_,
)  # fmt: skip
Rule = Literal["plain", "guided", "deconvolution"]


class InputGradient:
    """The gradient of a score with respect to the image, signed (B, C, in_channels, H, W).

    `channel_maximum` makes maps of it. Without a rule for the ReLUs it is the gradient saliency of Simonyan et al.
    (2013). Each group of scores takes one backward pass through the whole network. The layer is not used.
    """

    rule: Rule = "plain"
    position_power: ClassVar[int] = 1

    def __init__(self, model: Model, _layer: object = None) -> None:
        self.model = model

    def __call__(self, images: Tensor, labels: Target) -> Tensor:
        """Return gradients float32 (B, C, in_channels, H, W), 0 where no score is selected; as `GradCAM` otherwise.

        Raises:
            InputError: as `GradCAM`, or the images are no tensor of floating point.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            what = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"images must be a tensor of floating point, not {what}")
        with record_activations(self.model, []) as activations, _RectifierRule(self.rule):
            leaf = images.detach().clone().requires_grad_()
            scores = select_scores(activations.run(leaf), labels, len(images))
        maps = torch.zeros(*scores.selected.shape, *images.shape[1:], device=images.device)
        for image, column, gradients in score_gradients(scores, leaf, "'' (the image)", batched=False):
            maps[image, column] = gradients[image]
        return maps


class GuidedBackprop(InputGradient):
    """Guided backpropagation (Springenberg et al. 2015): every ReLU stops negative gradients."""

    rule = "guided"


class Deconvolution(InputGradient):
    """Deconvolution (Zeiler & Fergus 2014): a ReLU passes the positive gradients, independent of its input."""

    rule = "deconvolution"


class GuidedGradCAM:
    """Guided Grad-CAM: guided backpropagation times the Grad-CAM map resized bilinearly to the image's size.

    (B, C, in_channels, H, W), signed like guided backpropagation.
    """

    pixel_method: type[InputGradient] = GuidedBackprop
    position_power: ClassVar[int] = 2  # a gradient times a Grad-CAM map

    def __init__(self, model: Model, layer: str | nn.Module) -> None:
        """Bind a model to the layer of the Grad-CAM maps; arguments as for `seeds.gradcam.GradCAM`."""
        self.gradcam, self.gradients = GradCAM(model, layer), self.pixel_method(model)

    def __call__(self, images: Tensor, labels: Target) -> Tensor:
        """Return the product float32 (B, C, in_channels, H, W), 0 where no score is selected; else as `GradCAM`."""
        maps = functional.interpolate(self.gradcam(images, labels), images.shape[2:], mode="bilinear")
        return self.gradients(images, labels).mul_(maps.unsqueeze(2))


class DeconvolutionGradCAM(GuidedGradCAM):
    """Deconvolution Grad-CAM: as `GuidedGradCAM`, with deconvolution in place of guided backpropagation."""

    pixel_method = Deconvolution


def channel_maximum(maps: Tensor) -> Tensor:
    """Return maps (B, C, h, w) of any method; the channels of a pixel are reduced by the greatest absolute value."""
    return maps.abs().amax(dim=2) if maps.dim() == 5 else maps


class _RectifierRule(TorchFunctionMode):
    """Replace the gradient of every ReLU-like function, module or not, in place or not, within this context.

    Plain: no change. Guided: (the function's gradient) · ReLU(incoming gradient). Deconvolution: ReLU(incoming
    gradient).
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch, or its replacement."""
        named = dict(kwargs or {})
        value = args[0] if args else named.get("input")
        is_relu6 = func is functional.hardtanh and (*args[1:2], named.get("min_val"))[0] == 0
        is_ruled = self.rule != "plain" and (func in RECTIFIERS or is_relu6)
        if not is_ruled or not isinstance(value, Tensor) or not value.requires_grad:
            return func(*args, **named)
        named.pop("inplace", None)
        output = (functional.relu if func in (torch.relu_, Tensor.relu_) else func)(*args, **named)
        if self.rule == "deconvolution":
            output = replace_values(value, output)
        output.register_hook(lambda gradients: gradients.clamp(min=0))
        return output


def replace_values(value: Tensor, output: Tensor) -> Tensor:
    """Return the values of ``output`` with the derivative of ``value``: as if the function between them were linear."""
    return output.detach() + (value - value.detach()).to(output.dtype)  # the second term is 0
