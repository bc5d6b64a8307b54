"""Class activation maps other than Grad-CAM: CAM itself, and what came after."""

import torch
from torch import Tensor

from datamodules.errors import InputError
from seeds.cam_methods.base import Combined, LayerMethod
from seeds.cam_methods.linear_head import linear_head
from seeds.cam_targets import Asked


class CAM(LayerMethod):
    """Class activation maps (Zhou et al., CVPR 2016): sum of the head's weight · activation, signed.

    Only for a network that ends in global average pooling and one linear layer, at the layer before these.
    """

    def maps(self, asked: Asked, activation: Tensor, name: str) -> Tensor:
        """As :meth:`seeds.cam_methods.base.LayerMethod.maps`.

        Raises:
            InputError: the head is another, or the target is a function.
        """
        head = None if asked.output is None else linear_head(asked.output, activation)
        if head is None or asked.classes is None:
            raise InputError(
                f"CAM needs class scores that are global average pooling and one linear layer of layer {name}; "
                "elsewhere use Grad-CAM, which is the same there"
            )
        maps = torch.zeros(*asked.wanted.shape, *activation.shape[2:], device=activation.device)
        features = activation.detach().float()
        with torch.autocast(activation.device.type, enabled=False):
            for image, column, _ in asked.ranks():
                weights = head.float()[asked.classes[image, column]]  # (n, K)
                maps[image, column] = torch.einsum("nk,nkhw->nhw", weights, features[image])
        return maps


class GradCAMPlusPlus(Combined):
    """Grad-CAM++ (Chattopadhay et al., WACV 2018): weights are sums of positive gradients, each weighed by alpha.

    alpha = g² / (2 g² + g³ · sum of the channel's activation), which is the paper's for a score behind an exponential.
    """

    epsilon = 1e-6  # grad-cam's

    def combine(self, features: Tensor, slope: Tensor) -> Tensor:
        """As :meth:`seeds.cam_methods.base.Combined.combine`."""
        squared = slope.square()
        total = features.sum(dim=(2, 3), keepdim=True)
        alpha = squared / (2 * squared + total * squared * slope + self.epsilon)
        weights = (slope.relu() * alpha.where(slope != 0, 0)).sum(dim=(2, 3))
        return torch.einsum("nk,nkhw->nhw", weights, features).relu_()


class LayerCAM(Combined):
    """LayerCAM (Jiang et al., TIP 2021): sum of ReLU(gradient) · activation, cell by cell, rectified."""

    def combine(self, features: Tensor, slope: Tensor) -> Tensor:
        """As :meth:`seeds.cam_methods.base.Combined.combine`."""
        return (slope.relu() * features).sum(dim=1).relu_()


class HiResCAM(Combined):
    """HiResCAM (Draelos & Carin, 2020): sum of gradient · activation, cell by cell, rectified."""

    def combine(self, features: Tensor, slope: Tensor) -> Tensor:
        """As :meth:`seeds.cam_methods.base.Combined.combine`."""
        return (slope * features).sum(dim=1).relu_()
