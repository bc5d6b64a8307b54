"""The CAM methods by name, for the command line and for tables.

To add a method, write a subclass of `seeds.cam_methods.base.LayerMethod` in the file of its family and register
it here. All that is registered works in ``explain``, ``seeds generate --method`` and the evaluation.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol

from torch import Tensor

from datamodules.errors import unknown_name
from seeds.cam_methods import class_activation_maps as cams
from seeds.cam_methods import excitation_backprop, input_gradients
from seeds.cam_methods.clip_es import ClipES
from seeds.cam_methods.targets import Target
from seeds.gradcam import Counterfactual, GradCAM


class Method(Protocol):
    """A CAM method that is bound to a network and a layer.

    Attributes:
        position_power: see `seeds.cam_methods.base.LayerMethod`.
    """

    position_power: ClassVar[int]

    def __call__(self, images: Tensor, labels: Target) -> Tensor:
        """Return maps (B, C, h, w), or (B, C, in_channels, H, W) at the resolution of the image."""


METHODS: dict[str, Callable[..., Method]] = {
    "gradcam": GradCAM, "counterfactual": Counterfactual,
    "cam": cams.CAM, "gradcam++": cams.GradCAMPlusPlus, "layercam": cams.LayerCAM, "hirescam": cams.HiResCAM,
    "gradient": input_gradients.InputGradient, "guided-backprop": input_gradients.GuidedBackprop,
    "deconvolution": input_gradients.Deconvolution, "guided-gradcam": input_gradients.GuidedGradCAM,
    "deconvolution-gradcam": input_gradients.DeconvolutionGradCAM,
    "mwp": excitation_backprop.MWP, "c-mwp": excitation_backprop.ContrastiveMWP, "clip": ClipES,
}  # fmt: skip
"""``METHODS[name](model, layer)`` builds a method."""


def method_class(name: str) -> Callable[..., Method]:
    """Return the class of the method of that name.

    Raises:
        InputError: there is none; the message names the nearest.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
