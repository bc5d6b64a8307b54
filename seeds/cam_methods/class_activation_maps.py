"""Class activation maps other than Grad-CAM: CAM, Grad-CAM++, LayerCAM, HiResCAM."""

import torch
from torch import Tensor

from datamodules.errors import InputError
from seeds.cam_methods.base import LayerMethod
from seeds.cam_methods.targets import TargetScores
from seeds.gradcam import linear_head, weighted_maps


class CAM(LayerMethod):
    """Class activation maps (Zhou et al., CVPR 2016): sum of the head's weight · activation, signed.

    Only for a network that ends in global average pooling and one linear layer, at the layer before these.
    """

    position_power = 0  # the head's weights are not gradients

    def maps(self, targets: TargetScores, activation: Tensor, name: str) -> Tensor:
        """Return the maps, as `seeds.cam_methods.base.LayerMethod.maps`.

        Raises:
            InputError: the head is another, or the target is a function.
        """
        if targets.output is None or linear_head(targets.output, activation) is None:
            raise InputError(f"CAM needs scores that are global average pooling and one linear layer of layer {name}")
        # Grad-CAM's weights are the head's, divided by the number of positions
        return weighted_maps(targets, activation, name).mul_(activation[0, 0].numel())


class GradCAMPlusPlus(LayerMethod):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018): weights are sums of positive gradients, each times alpha.

    alpha = g² / (2 g² + g³ · sum of the channel's activation), as in the paper for a score behind an exponential; a
    negative sum counts as 0. (The library grad-cam adds 1e-6 to the denominator, which outweighs g² on fine grids.)
    """

    position_power = 0  # the weights are sums over the positions

    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Return the maps, as `seeds.cam_methods.base.LayerMethod.combine`."""
        positive = gradients.relu()  # alpha of the other positions is multiplied by 0
        total = features.sum(dim=(2, 3), keepdim=True).relu()
        weights = (positive / (2 + total * positive)).sum(dim=(2, 3))
        return torch.einsum("nk,nkhw->nhw", weights, features).relu_()


class LayerCAM(LayerMethod):
    """LayerCAM (Jiang et al., TIP 2021): sum of ReLU(gradient) · activation at each position, rectified."""

    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Return the maps, as `seeds.cam_methods.base.LayerMethod.combine`."""
        return (gradients.relu() * features).sum(dim=1).relu_()


class HiResCAM(LayerMethod):
    """HiResCAM (Draelos & Carin, 2020): sum of gradient · activation at each position, rectified."""

    def combine(self, features: Tensor, gradients: Tensor) -> Tensor:
        """Return the maps, as `seeds.cam_methods.base.LayerMethod.combine`."""
        return (gradients * features).sum(dim=1).relu_()
