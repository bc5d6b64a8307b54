"""What every segmentation network here can tell a solver: its fresh layers, and stages that can be frozen."""

from collections.abc import Sequence

from torch import nn

from datamodules.errors import InputError
from seeds.backbones import frozen_blocks

__all__ = ["SegmentationNetwork"]


class SegmentationNetwork(nn.Module):
    """Base of the networks: images (B, 3, H, W) in, class scores (B, K, h, w) on the network's own grid out.

    Attributes:
        strides: name of each pretrained block, in the order of execution, with its stride in the network as published
            (dilation changes where a block computes, not which stage it belongs to).
        fresh: the layers that no ImageNet file initialises, which a solver may give a higher rate.
        multiple: sides of images must be multiples of this.
    """

    strides: dict[str, int]
    fresh: Sequence[nn.Module]
    multiple: int = 1

    def __init__(self) -> None:
        super().__init__()
        self._frozen: tuple[str, ...] = ()

    def freeze(self, stride: int) -> None:
        """Freeze every pretrained block up to and including ``stride``; 0 freezes nothing.

        Their parameters get no gradient, their batch-norm statistics stay as they are (after ``.train()`` too), and,
        images needing no gradient either, they run without an autograd graph.

        Raises:
            InputError: ``stride`` is neither 0 nor a power of two, or the encoder has no stages.
        """
        if stride < 0 or stride & (stride - 1):
            raise InputError(f"freeze_stride {stride} is neither 0 nor a power of two")
        if stride and len(set(self.strides.values())) <= 1:  # transformers; some of timm's, in one piece
            raise InputError(f"freeze_stride {stride} is not possible: this encoder has no stages to tell apart")
        self._frozen = frozen_blocks(self.strides, stride)
        for name in self._frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "SegmentationNetwork":
        """As ``nn.Module.train``, but frozen blocks stay in eval mode."""
        super().train(mode)
        for name in self._frozen:
            self.get_submodule(name).eval()
        return self
