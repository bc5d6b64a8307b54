"""Class re-activation: a softmax beside the classifier's sigmoids makes its maps keep the classes apart (ReCAM).

Chen, Wang, Wu, Hua, Zhang & Sun, *Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation*, CVPR 2022. A
sigmoid may score a class by what another class shows, too; a softmax may not. Where the paper trains so for some more
epochs, here it is a part of the loss from the first step on, and it takes the maps of the classifier's own head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Reactivation"]


class Reactivation(nn.Module):
    """The softmax head, needed in training alone: what asks for maps afterwards meets a plain classifier.

    Args:
        channels: K of the feature map.
        num_classes: C.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(channels, num_classes, bias=False)

    def forward(self, features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """The softmax's cross-entropy, a scalar: mean over a picture's classes, then over the pictures that have any.

        Each class of a picture is to be told from all others by the features under its own map alone (CAM, rectified,
        of maximum 1).

        Args:
            features: the last feature map (B, K, h, w).
            weight: the classifier's head (C, K).
            labels: multi-hot (B, C).
        """
        with torch.autocast(features.device.type, enabled=False):
            flat = features.float().flatten(2)  # (B, K, hw)
            maps = (weight @ flat).relu()  # (B, C, hw)
            maps = maps / maps.amax(dim=2, keepdim=True).clamp_min(1e-5)
            under = maps @ flat.transpose(1, 2) / flat.shape[2]  # (B, C, K)
            picture, column = labels.nonzero(as_tuple=True)
            each = functional.cross_entropy(self.head(under[picture, column]), column, reduction="none")
            count = (labels != 0).sum(dim=1)
            return (each / count[picture]).sum() / (count > 0).sum().clamp_min(1)
