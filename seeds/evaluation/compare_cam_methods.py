"""Methods put to the test on images with masks: every figure of :mod:`faithfulness` and :mod:`localization` here."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.bounding_boxes import Box, true_boxes
from datamodules.errors import InputError
from datamodules.images import read_image
from datamodules.masks import read_class_mask
from datamodules.photos import PhotoSet
from datamodules.progress import track
from seeds.evaluation.faithfulness import (
    PATCHES,
    curves,
    energy_inside,
    is_difficult,
    occlusion_maps,
    points_at,
    rank_correlation,
)
from seeds.evaluation.localization import box_of, is_right, localization_error
from seeds.evaluation.threshold_sweep import Sweep
from seeds.explainer import Explainer

MOST_GUESSES = 5  # classes of which boxes are looked at: ImageNet's top 5


class Case(NamedTuple):
    """An image with what is known of it.

    Attributes:
        image: (3, S, S), as the network takes it.
        truth: mask uint8 (H, W).
        boxes: its true boxes.
        present: its classes, 0..C-1.
        ranked: the classes of the highest scores, the highest first.
        occlusion: (C, P, P), how much scores drop when a patch is hidden.
    """

    image: Tensor
    truth: NDArray[np.uint8]
    boxes: list[Box]
    present: list[int]
    ranked: list[int]
    occlusion: NDArray[np.float32]


class Trial:
    """One method's figures, summed over images."""

    def __init__(self, method: str, explainer: Explainer, threshold: float) -> None:
        """Start from zero; ``threshold`` is the fixed one of the maps as a segmentation."""
        self.method, self.explainer = method, explainer
        self.sweep = Sweep(len(explainer.classes) + 1, threshold)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.hits: dict[int, list[bool]] = defaultdict(list)
        self.hard_hits: dict[int, list[bool]] = defaultdict(list)
        self.guesses: list[list[Box | None]] = []
        self.truths: list[list[Box]] = []

    def add(self, case: Case) -> None:
        """Count an image."""
        asked = sorted({*case.present, *case.ranked})
        found = self.explainer.heats(self.method, case.image, asked, (case.truth.shape[0], case.truth.shape[1]))
        heats = dict(zip(asked, found, strict=True))
        self.guesses.append([box_of(heats[c], c) for c in case.ranked])
        self.truths.append(case.boxes)
        own = np.stack([heats[c] for c in case.present])
        self.sweep.update(np.array(case.present), own, case.truth)
        for c in case.present:
            self._add_class(case, c, heats[c])

    def _add_class(self, case: Case, c: int, heat: NDArray[np.float32]) -> None:
        region = case.truth == c + 1
        others = (case.truth != 0) & (case.truth != 255) & ~region
        hit = points_at(heat, region)
        self.hits[c].append(hit)
        if is_difficult(region, others):
            self.hard_hits[c].append(hit)
        self.values["energy_inside"].append(energy_inside(heat, region))
        self.values["localization_given"].append(not is_right(box_of(heat, c), case.boxes))
        spread = torch.from_numpy(heat)[None, None]
        cells = functional.interpolate(spread, (PATCHES, PATCHES), mode="area")[0, 0].numpy()
        self.values["occlusion_rank_correlation"].append(rank_correlation(cells, case.occlusion[c]))
        seen = functional.interpolate(spread, case.image.shape[1:], mode="bilinear")[0, 0]
        areas = curves(lambda images: self.explainer.scores(images)[:, c].sigmoid(), case.image, seen)
        for name, area in zip(("deletion", "insertion"), areas, strict=True):
            self.values[name].append(area)

    def result(self) -> dict[str, Any]:
        """The figures, all fractions but the rank correlation; errors are called so."""
        names = self.explainer.classes
        errors = localization_error(self.guesses, self.truths)
        segmentation = self.sweep.result(("background", *names))
        means = {name: float(np.mean(values)) for name, values in self.values.items()}
        return {
            "miou_fixed": segmentation["miou_fixed"], "threshold_fixed": segmentation["threshold_fixed"],
            "miou_oracle": segmentation["miou_oracle"], "threshold_oracle": segmentation["threshold_oracle"],
            "pointing": _class_mean(self.hits), "pointing_difficult": _class_mean(self.hard_hits),
            "pointing_by_class": {names[c]: float(np.mean(hits)) for c, hits in sorted(self.hits.items())},
            "localization_error_top1": errors.top1, "localization_error_top5": errors.top5,
            "localization_error_given": means.pop("localization_given", None),
            "pairs": sum(len(hits) for hits in self.hits.values()),
        } | means  # fmt: skip


def _class_mean(hits: dict[int, list[bool]]) -> float | None:
    """Mean over classes of each one's rate, as the pointing game has it; None where there is none."""
    return float(np.mean([np.mean(each) for each in hits.values()])) if hits else None


def try_methods(explainer: Explainer, photos: PhotoSet, threshold: float, order: Sequence[int]) -> dict[str, Any]:
    """The figures of each of an explainer's methods.

    Args:
        explainer: a classifier and its methods.
        photos: images with masks; those without any of the classes are passed over.
        threshold: the fixed threshold of the maps as a segmentation.
        order: which images.

    Returns:
        By method, what :meth:`Trial.result` gives.

    Raises:
        InputError: a method that the classifier does not allow, an image or mask that cannot be read, or no image
            with any of the classes.
    """
    trials = [Trial(method, explainer, threshold) for method in explainer.methods]
    for index in track(order, "testing methods"):
        case = _case(explainer, photos, index)
        if case is None:
            continue
        for trial in trials:
            trial.add(case)
    if not trials or not trials[0].truths:
        raise InputError("none of the images shows any of the classes, and so no method can be tried")
    return {trial.method: trial.result() for trial in trials}


def _case(explainer: Explainer, photos: PhotoSet, index: int) -> Case | None:
    path = photos.masks[index] if photos.masks else None
    assert path is not None
    assert photos.lut is not None
    truth = read_class_mask(path, photos.lut)
    present = [int(value) - 1 for value in np.unique(truth) if value not in (0, 255)]
    if not present:
        return None
    image = explainer.see(read_image(photos.images[index]))
    scores = explainer.scores(image[None])[0]
    ranked = scores.argsort(descending=True)[:MOST_GUESSES].tolist()
    hidden = occlusion_maps(explainer.scores, image).numpy()
    return Case(image, truth, true_boxes(photos.images[index], truth, photos.classes), present, ranked, hidden)
