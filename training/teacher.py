"""An averaged teacher: what the mean of a network's recent weights says of a picture, for the network to say likewise.

Tarvainen & Valpola, *Mean teachers are better role models*, NeurIPS 2017; the student sees its pictures strongly
changed in colour, as in Sohn et al., *FixMatch*, NeurIPS 2020. That classes without a tag are left out of what the
teacher says is what tags can add.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from datamodules.errors import InputError
from datamodules.images import normalize, to_uint8
from training.grids import resize
from training.losses import sec_probabilities

__all__ = ["Teacher", "consistency_loss", "strongly_changed"]

STRONG = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hue=0.25)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([v2.GaussianBlur(kernel_size=9, sigma=(0.1, 2.0))], p=0.5),
    ]
)
"""Changes of colour and sharpness, as in Yang et al., *ST++*, CVPR 2022; shapes stay where they are."""


class Teacher(nn.Module):
    """A copy of a network that follows it.

    Args:
        network: the student's, at the start of its training.
        momentum: the share of the old mean in the new one, once as many steps have been made as that needs.

    Raises:
        InputError: a momentum outside 0..1.
    """

    def __init__(self, network: nn.Module, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise InputError(f"teacher_momentum {momentum} is not from 0 up and below 1")
        self.network = deepcopy(network).requires_grad_(False).eval()
        self.momentum = momentum

    def train(self, mode: bool = True) -> "Teacher":  # noqa: ARG002  it learns nothing by itself
        """Stays in eval mode."""
        return super().train(mode=False)

    @torch.no_grad()
    def follow(self, network: nn.Module, step: int) -> None:
        """Take a step's weights into the mean: with ``momentum``, or as a plain mean over all of few steps.

        Args:
            network: the student's.
            step: number of the steps made, from 1 on.
        """
        share = 1 - min(self.momentum, 1 - 1 / step)
        for mean, own in zip(self.network.parameters(), network.parameters(), strict=True):
            mean.lerp_(own, share)
        for kept, new in zip(self.network.buffers(), network.buffers(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, share)
            else:
                kept.copy_(new)

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor, size: tuple[int, ...]) -> Tensor:
        """Probabilities (B, C+1, h, w) of background and of each picture's own classes.

        Args:
            images: normalised pictures (B, 3, H, W).
            labels: multi-hot (B, C), without background.
            size: h and w.
        """
        absent = nn.functional.pad(labels == 0, (1, 0), value=False)[:, :, None, None]
        scores = resize(self.network(images).float(), size).masked_fill(absent, -torch.inf)
        probs: Tensor = scores.softmax(dim=1)
        return probs


def consistency_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a student's class scores (B, K, h, w) against a teacher's probabilities: mean over all cells."""
    return -(target * sec_probabilities(logits).log()).sum(dim=1).mean()


def strongly_changed(images: Tensor) -> Tensor:
    """Normalised pictures (B, 3, H, W), each strongly changed in colour and sharpness, by torch's generator."""
    return normalize(torch.stack([STRONG(image) for image in to_uint8(images)]))
