"""What a map explains: labels, a class index, or any function of a network's output that gives a number."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.errors import InputError

Target = Tensor | Callable[[Any], Tensor]
"""Labels (B, C), not 0 for the classes to explain; or one class index an image, int64 (B,); or a function of the
network's output, of any type, that returns one number an image (B,)."""
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class TargetScores(NamedTuple):
    """The scores to explain: for each image, the selected ones among C numbers.

    Attributes:
        scores: (B, C), with a graph; C is 1 for class indices and for functions.
        selected: bool (B, C).
        classes: the column of the network's output behind each score, int64 (B, C); None for a function.
        output: the network's class scores (B, C'); None for a function.
    """

    scores: Tensor
    selected: Tensor
    classes: Tensor | None
    output: Tensor | None

    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """Return (image, column) indices, int64 (n,): the first selected score of every image, then the second, ….

        A group has at most one score of each image, so that one backward pass serves all images.
        """
        order = self.selected.cumsum(1) * self.selected  # of a score among the image's selected ones, from 1
        depth = int(order.max()) if order.numel() else 0
        indices = ((order == rank).nonzero(as_tuple=True) for rank in range(1, depth + 1))
        return [(image, column) for image, column in indices]


def select_scores(output: Any, target: Target, count: int) -> TargetScores:
    """Select the scores that a target names in a network's output.

    Args:
        output: the network's output for the images; scores (B, C) for labels and class indices.
        target: as `Target`.
        count: number of images, B.

    Raises:
        InputError: an output that is no scores, labels of another shape, an index out of range, or a function that
            does not return one number an image.
    """
    if not isinstance(target, Tensor):
        if not callable(target):
            raise InputError(f"a target is labels, class indices or a function, not a {type(target).__name__}")
        value = target(output)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape not in ((count,), (count, 1)):
            what = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(f"a target function must give one real number an image, shape ({count},), not {what}")
        scores = value.reshape(count, 1)
        return TargetScores(scores, torch.ones_like(scores, dtype=torch.bool), None, None)
    shape, are_indices = tuple(target.shape), target.dim() == 1 and target.dtype in INTEGERS
    if not (are_indices or target.dim() == 2) or len(target) != count:
        what = f"{shape} of {target.dtype}"
        raise InputError(f"labels must have shape ({count}, C) or be {count} integer class indices, not {what}")
    is_scores = isinstance(output, Tensor) and output.dim() == 2 and len(output) == count
    if not is_scores or not (are_indices or output.shape == target.shape):
        what = f"scores {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise InputError(f"labels of shape {shape} do not fit the model, which gives {what}")
    if not are_indices:
        classes = torch.arange(output.shape[1], device=output.device).expand(output.shape)
        return TargetScores(output, target.to(output.device) != 0, classes, output)
    classes = target.to(output.device).long().unsqueeze(1)
    wrong = classes[(classes < 0) | (classes >= output.shape[1])]
    if len(wrong):
        raise InputError(f"class index {int(wrong[0])} is out of range: the model gives {output.shape[1]} scores")
    return TargetScores(output.gather(1, classes), torch.ones_like(classes, dtype=torch.bool), classes, output)
