"""What is to be explained: a class index, labels, or any function of a network's output that gives a number."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.errors import InputError

Target = Tensor | Callable[[Any], Tensor]
"""Labels (B, C), not 0 for the classes that are explained; or one class index an image, int64 (B,); or a function of
the network's output, whatever that is, to one number an image (B,)."""


class Rank(NamedTuple):
    """At most one number of each image: those that are differentiated together.

    Attributes:
        image: whose, int64 (n,).
        column: where its map goes among the image's C maps, int64 (n,).
        score: the numbers, float (n,), with a graph.
    """

    image: Tensor
    column: Tensor
    score: Tensor


class Asked(NamedTuple):
    """The numbers to explain, some of the C numbers of each image.

    Attributes:
        scores: (B, C), with a graph; C is 1 for class indices and for functions.
        wanted: bool (B, C).
        classes: the column of the network's own scores behind each number, int64 (B, C); None for a function.
        output: the network's own scores (B, C'); None for a function.
    """

    scores: Tensor
    wanted: Tensor
    classes: Tensor | None
    output: Tensor | None

    @property
    def depth(self) -> int:
        """How many ranks there are: as many as the image with most of the wanted numbers has."""
        return int(self.wanted.sum(1).max()) if self.wanted.numel() else 0

    def ranks(self) -> Iterator[Rank]:
        """The first wanted number of every image, then the second, …."""
        order = self.wanted.cumsum(1)  # (B, C): an image's r-th wanted number has r
        for r in range(1, self.depth + 1):
            image, column = (self.wanted & (order == r)).nonzero(as_tuple=True)
            yield Rank(image, column, self.scores[image, column])


def of_labels(scores: Tensor, labels: Tensor) -> Asked:
    """The scores (B, C) of which the labels (B, C) are not 0; shapes are not looked at."""
    wanted = labels.to(scores.device) != 0
    classes = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
    return Asked(scores, wanted, classes, scores)


def check_target(target: Target, count: int) -> None:
    """Look at a target before the network runs.

    Raises:
        InputError: a tensor that is neither labels nor class indices of ``count`` images, or no target at all.
    """
    if not isinstance(target, Tensor):
        if not callable(target):
            raise InputError(
                "a target is labels (B, C), class indices (B,) or a function of the output, "
                f"not a {type(target).__name__}"
            )
        return
    is_indices = target.dim() == 1 and not target.is_floating_point() and target.dtype != torch.bool
    if not (is_indices or target.dim() == 2) or len(target) != count:
        raise InputError(
            f"labels must have shape ({count}, C), a row an image, or be {count} integer class indices, "
            f"not {tuple(target.shape)} of {target.dtype}"
        )


def ask(output: Any, target: Target, count: int) -> Asked:
    """The numbers that a target names in a network's output.

    Args:
        output: what the network gave for the images; scores (B, C) for labels and class indices.
        target: as :data:`Target`, checked by :func:`check_target`.
        count: number of images, B.

    Raises:
        InputError: an output that is no scores, labels of another number of classes, an index out of range, or a
            function that does not give one number an image.
    """
    if not isinstance(target, Tensor):
        return _of_function(output, target, count)
    what = f"labels of shape {tuple(target.shape)}" if target.dim() > 1 else "class indices"
    if not isinstance(output, Tensor):
        raise InputError(f"{what} do not fit the model, which gives a {type(output).__name__}")
    if output.dim() != 2 or len(output) != count or (target.dim() > 1 and output.shape != target.shape):
        raise InputError(f"{what} do not fit the model, which gives scores {tuple(output.shape)}")
    if target.dim() > 1:
        return of_labels(output, target)
    indices = target.to(output.device).long()
    wrong = indices[(indices < 0) | (indices >= output.shape[1])]
    if len(wrong):
        raise InputError(f"class index {int(wrong[0])} is out of range: the model gives {output.shape[1]} scores")
    classes = indices.unsqueeze(1)
    return Asked(output.gather(1, classes), torch.ones_like(classes, dtype=torch.bool), classes, output)


def _of_function(output: Any, function: Callable[[Any], Tensor], count: int) -> Asked:
    number = function(output)
    if not isinstance(number, Tensor) or number.shape not in ((count,), (count, 1)):
        shape = tuple(number.shape) if isinstance(number, Tensor) else f"a {type(number).__name__}"
        raise InputError(f"a target must give one number an image, shape ({count},), not {shape}")
    if not number.is_floating_point():
        raise InputError(f"a target must give real numbers, not {number.dtype}")
    scores = number.reshape(count, 1)
    return Asked(scores, torch.ones_like(scores, dtype=torch.bool), None, None)
