"""The methods by name, for the command line and for tables."""

import difflib
from collections.abc import Callable

from torch import Tensor

from datamodules.errors import InputError
from seeds.cam_methods.class_activation_maps import CAM, GradCAMPlusPlus, HiResCAM, LayerCAM
from seeds.cam_methods.excitation_backprop import MWP, ContrastiveMWP
from seeds.cam_methods.input_gradients import (
    Deconvolution,
    DeconvolutionGradCAM,
    GuidedBackprop,
    GuidedGradCAM,
    PixelMethod,
)
from seeds.cam_targets import Target
from seeds.gradcam import Counterfactual, GradCAM

Method = Callable[[Tensor, Target], Tensor]
"""``method(images, targets)``: maps (B, C, h, w), or (B, C, 3, H, W) of a method of the image's own resolution."""

METHODS: dict[str, Callable[..., Method]] = {
    "gradcam": GradCAM,
    "cam": CAM,
    "counterfactual": Counterfactual,
    "gradcam++": GradCAMPlusPlus,
    "layercam": LayerCAM,
    "hirescam": HiResCAM,
    "guided-backprop": GuidedBackprop,
    "deconvolution": Deconvolution,
    "guided-gradcam": GuidedGradCAM,
    "deconvolution-gradcam": DeconvolutionGradCAM,
    "gradient": PixelMethod,
    "mwp": MWP,
    "c-mwp": ContrastiveMWP,
}
"""``METHODS[name](model, layer)`` makes a method."""


def method_of(name: str) -> Callable[..., Method]:
    """The maker of the method of that name.

    Raises:
        InputError: there is none; the nearest is offered.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(METHODS)}"
    raise InputError(f"there is no method {name!r}: {hint}")
