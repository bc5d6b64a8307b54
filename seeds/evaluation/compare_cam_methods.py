"""CAM methods compared by segmentation, pointing game, localization, occlusion, deletion and insertion."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from datamodules.annotations.bounding_boxes import ground_truth_boxes
from datamodules.annotations.shapes import Box
from datamodules.class_names import IGNORE
from datamodules.errors import InputError
from datamodules.images import read_image
from datamodules.masks import read_class_mask, require_same_size
from datamodules.progress import track
from datamodules.sample import Sample
from seeds.evaluation import cam_metrics
from seeds.evaluation.threshold_sweep import ThresholdSweep
from seeds.explainer import Explainer, resized_maps

TOP = 5  # classes with the highest scores whose boxes are scored, as for ImageNet
POINTING = ("pointing", "pointing_difficult")  # the pointing game on all images, on difficult images
SMALL_SHARE = 0.25  # of the image: a class below it is difficult if another is present, too (pointing game)


class MethodMetrics:
    """The metrics of one CAM method, accumulated over images."""

    def __init__(self, method: str, explainer: Explainer, threshold: float) -> None:
        """Start from zero; ``threshold`` is the fixed background threshold of the maps as a segmentation."""
        self.method, self.explainer = method, explainer
        self.sweep = ThresholdSweep(len(explainer.classes) + 1, threshold)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.hits: dict[str, dict[int, list[bool]]] = {name: defaultdict(list) for name in POINTING}

    def update(self, image: Tensor, truth: np.ndarray, boxes: list[Box], ranked: list[int], occlusion: Tensor) -> None:
        """Compute the method's maps of an image and count them.

        Args:
            image: the network's input (in_channels, S, S).
            truth: mask uint8 (H, W) with at least one class.
            boxes: the true boxes.
            ranked: the classes with the highest scores, in descending order.
            occlusion: (C, P, P), the drops of scores when a patch is gray.
        """
        present = (np.setdiff1d(truth, (0, IGNORE)).astype(int) - 1).tolist()
        found: dict[int, NDArray[np.float32]] = {}
        # a map of CLIP-ES depends on the other classes of the call: as for seeds, those in the image
        for classes in (present, [c for c in ranked if c not in present]):
            if classes:
                maps = self.explainer.maps(self.method, image, classes)
                found |= zip(classes, resized_maps(maps, truth.shape), strict=True)
        names = self.explainer.classes
        own_boxes = {c: cam_metrics.box_from_map(cam, names[c]) for c, cam in found.items()}
        correct = {c: cam_metrics.is_correct(box, boxes) for c, box in own_boxes.items()}
        self.values["localization_error_top1"].append(not correct[ranked[0]])
        self.values["localization_error_top5"].append(not any(correct[c] for c in ranked))
        self.sweep.update(np.array(present), np.stack([found[c] for c in present]), truth)
        for c in present:
            cam, region = found[c], truth == c + 1
            hit = cam_metrics.points_at(cam, region)
            self.hits["pointing"][c].append(hit)
            if region.mean() < SMALL_SHARE and len(present) > 1:
                self.hits["pointing_difficult"][c].append(hit)
            self.values["energy_inside"].append(cam_metrics.energy_inside(cam, region))
            self.values["localization_error_given"].append(not correct[c])
            batched = torch.from_numpy(cam)[None, None]
            patches = functional.interpolate(batched, occlusion.shape[1:], mode="area")[0, 0].numpy()
            correlation = cam_metrics.rank_correlation(patches, occlusion[c].numpy())
            self.values["occlusion_rank_correlation"].append(correlation)
            resized = functional.interpolate(batched, image.shape[1:], mode="bilinear")[0, 0]
            deletion, insertion = cam_metrics.deletion_insertion(self.explainer.scores, c, image, resized)
            self.values["deletion"].append(deletion)
            self.values["insertion"].append(insertion)

    def compute(self) -> dict[str, Any]:
        """Return the metrics: fractions, except for the rank correlation.

        Low is good for ``deletion`` and where a name has ``error``. The pointing game on difficult images is None where
        there is none.
        """
        names = self.explainer.classes
        segmentation = self.sweep.compute(("background", *names))
        pointing = {  # the mean over classes of each class's rate, as the pointing game defines it
            key: float(np.mean([np.mean(own) for own in hits.values()])) if hits else None
            for key, hits in self.hits.items()
        }
        return {
            **{key: segmentation[key] for key in ("miou_fixed", "threshold_fixed", "miou_oracle", "threshold_oracle")},
            **pointing,
            "pointing_by_class": {names[c]: float(np.mean(hits)) for c, hits in sorted(self.hits["pointing"].items())},
            "pairs": sum(map(len, self.hits["pointing"].values())),
            **{name: float(np.mean(values)) for name, values in self.values.items()},
        }


def compare_cam_methods(
    explainer: Explainer, samples: Sequence[Sample], mask_lut: NDArray[np.uint8], threshold: float
) -> dict[str, Any]:
    """Compute the metrics of each of an explainer's methods.

    Args:
        explainer: a classifier and its methods.
        samples: images, each with a mask; those that show none of the classes are skipped.
        mask_lut: index in a mask file to class index, uint8 (256,).
        threshold: the fixed background threshold of the maps as a segmentation.

    Returns:
        For each method, the result of `MethodMetrics.compute`.

    Raises:
        InputError: a method does not fit the classifier, an image or mask cannot be read, or no image shows any class.
    """
    metrics = [MethodMetrics(method, explainer, threshold) for method in explainer.methods]
    scored = 0
    for sample in track(samples, "comparing methods"):
        assert sample.mask is not None
        truth = read_class_mask(sample.mask, mask_lut)
        if np.isin(truth, (0, IGNORE)).all():
            continue
        scored += 1
        pixels = read_image(sample.image, explainer.in_channels)
        require_same_size(f"mask {sample.mask}", truth.shape, f"its image {sample.image}", pixels.shape)
        image = explainer.preprocess(pixels)
        ranked = explainer.scores(image[None])[0].argsort(descending=True)[:TOP].tolist()
        occlusion = cam_metrics.occlusion_maps(explainer.scores, image)
        boxes = ground_truth_boxes(sample.image, truth, explainer.classes)
        for each in metrics:
            each.update(image, truth, boxes, ranked, occlusion)
    if not scored:
        raise InputError("none of the images shows any of the classes, so the methods cannot be compared")
    return {each.method: each.compute() for each in metrics}
