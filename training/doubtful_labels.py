"""How doubtful the labels and tags of training images are, by a network that was trained on them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from datamodules.base_datamodule import BaseDataModule
from datamodules.images import to_uint8
from datamodules.sample import Sample
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.shard import NO_CUE
from datamodules.transforms import resize_nearest
from seeds.score_maps import highest_class, resize_maps
from training.inference import TrainedNetwork, crf_probabilities

REASONS = {
    "labels": "the network predicts another class than the label, or the label was dropped as doubtful",
    "views": "the network predicts another class in the mirrored image",
    "CRF": "the dense CRF changes the prediction",
}
"""Why a position is doubtful."""

WINDOWS_PER_SIDE = 8
"""A class is found where its mean probability in a square of 1/8 of the image's side is high."""

SUSPECT = 0.25
"""Probability of a mistake from which a tag is listed as doubtful."""


class ReviewedImage(NamedTuple):
    """Predictions of a network for one training image, on the grid of its labels.

    Attributes:
        sample: the image's id and tags.
        image: uint8 (H, W, 3), as it is on disk.
        labels: uint8 (h, w), 0..C; 255 without a label.
        prediction: uint8 (h, w), 0 or a tag of the image, after the CRF.
        doubtful: for each of `REASONS`, the positions, bool (h, w).
        class_probability: float32 (C,), how sure the network is that each class is in the image, 0..1, independent of
            the tags.
    """

    sample: Sample
    image: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    doubtful: Mapping[str, NDArray[np.bool_]]
    class_probability: NDArray[np.float32]

    @property
    def doubt(self) -> float:
        """The share of doubtful positions, of any reason."""
        return float(np.logical_or.reduce(list(self.doubtful.values())).mean())

    def shares(self) -> dict[str, float]:
        """Return the share of positions that are doubtful for each reason."""
        return {reason: float(where.mean()) for reason, where in self.doubtful.items()}


class ImageScores(NamedTuple):
    """The scores of one training image.

    Attributes:
        id: the image.
        doubt: share of doubtful positions.
        shares: the same for each of `REASONS`.
        tags_to_add: probability of each class that is not among the tags and seems to be in the image.
        tags_to_remove: for each tag that seems not to be in the image, 1 - its probability.
        identical: ids of nearly identical images.
        image: path or URI of the image.
        wrong_tags: expected number of mistakes among the tags: the sum over classes of the probability that the tag is
            wrong or lacks. Of 5 % wrong tags put in on purpose, it finds more than the highest of these probabilities.
    """

    id: str
    doubt: float
    shares: Mapping[str, float]
    tags_to_add: Mapping[str, float]
    tags_to_remove: Mapping[str, float]
    identical: Sequence[str]
    image: str
    wrong_tags: float


@torch.inference_mode()
def review_images(
    trained: TrainedNetwork, data: BaseDataModule, samples: Sequence[Sample], cache: SeedCache
) -> Iterator[ReviewedImage]:
    """Yield the network's predictions for each readable image.

    Raises:
        InputError: more images are unreadable than the data module allows.
    """
    by_id = {sample.id: sample for sample in samples}
    for batch in data.eval_loader(samples):
        for name, reason in batch.get("unreadable", ()):
            data.unreadable.add(name, reason)
        if not batch["id"]:
            continue
        images = batch["image"]
        views = torch.stack([trained.scores(images).cpu(), trained.scores(images.flip(-1)).flip(-1).cpu()])
        probs = views.softmax(dim=2).mean(dim=0)[:, 1:]  # (B, C, h, w)
        window = max(1, probs.shape[-1] // WINDOWS_PER_SIDE)
        class_probability = nn.functional.avg_pool2d(probs, window, stride=1).amax(dim=(2, 3)).numpy()
        pixels, tagged = to_uint8(images), batch["labels"] != 0
        for index, (name, image) in enumerate(zip(batch["id"], batch["original"], strict=True)):
            classes = nn.functional.pad(tagged[index], (1, 0), value=True).nonzero()[:, 0]  # 0 and the tags
            both = resize_maps(views[:, index, classes].softmax(dim=1), pixels.shape[2:])  # (2, k+1, H, W)
            mean = both.mean(dim=0, keepdim=True)
            smoothed = crf_probabilities(pixels[index : index + 1], mean)
            plain, mirrored, before, after = (
                classes[highest_class(each)].numpy().astype(np.uint8) for each in (*both, mean[0], smoothed[0])
            )
            labels = cache.cues(name)
            labelled = (labels != NO_CUE) | ("consensus" in cache.settings)  # which drops labels that are doubtful
            prediction = resize_nearest(after, *labels.shape)
            doubtful = {
                "labels": labelled & (labels != prediction),
                "views": resize_nearest((plain != mirrored).astype(np.uint8), *labels.shape) > 0,
                "CRF": resize_nearest((before != after).astype(np.uint8), *labels.shape) > 0,
            }
            yield ReviewedImage(by_id[name], image, labels, prediction, doubtful, class_probability[index])


def score_image(reviewed: ReviewedImage, classes: Sequence[str], identical: Sequence[str]) -> ImageScores:
    """Return the scores of an image, see `ImageScores`."""
    tags = reviewed.sample.tags or frozenset()
    predicted = zip(classes, reviewed.class_probability.tolist(), strict=True)
    wrong = {name: 1 - value if name in tags else value for name, value in predicted}  # probability of a mistake
    tags_to_add = {name: value for name, value in wrong.items() if name not in tags and value >= SUSPECT}
    tags_to_remove = {name: value for name, value in wrong.items() if name in tags and value >= SUSPECT}
    return ImageScores(
        reviewed.sample.id,
        reviewed.doubt,
        reviewed.shares(),
        tags_to_add,
        tags_to_remove,
        identical,
        reviewed.sample.image,
        sum(wrong.values()),
    )
