"""`tag2mask plan`: what the next hours of annotation are expected to give, by what was measured on VOC animals."""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from upath import UPath

from datamodules.errors import InputError
from datamodules.open_data import datamodule_from_settings
from datamodules.progress import percent, print_result
from datamodules.sample import Sample
from seeds.checkpoints import read_checkpoint
from training.runs.provenance_record import read_provenance
from training.segmentation_task import SegmentationTask

CURVES = Path(__file__).with_name("annotation_curves.csv")
"""mIoU on VOC animals' ``val``, by kind of annotation, share of the training images that have it, and random seed.

``tags`` are tags alone, of all images; ``masks``, ``points`` and ``scribbles`` are drawn into a share of the images,
which all have tags; ``masks alone`` is a training on these masks without tags. Fewer tags have not been measured with
three random seeds. The table in ``docs/pages/experiments.md`` has the commands and the revision.
"""

DRAWN = ("points", "scribbles", "masks")


class Curve(NamedTuple):
    """What was measured for one kind of annotation.

    Attributes:
        shares: annotated shares of the training images, 0..1, ascending, (n,).
        miou: for each random seed and share, (seeds, n).
    """

    shares: NDArray[np.float64]
    miou: NDArray[np.float64]

    def gain(self, before: float, after: float) -> tuple[float, float] | None:
        """Return mean and standard deviation, over the random seeds, of the gain in mIoU from one share to another.

        Between two measured shares the mIoU of each seed is interpolated; None where a share lies outside of them.
        """
        if before < self.shares[0] or after > self.shares[-1]:
            return None
        first, last = (np.array([np.interp(share, self.shares, row) for row in self.miou]) for share in (before, after))
        return float((last - first).mean()), float((last - first).std(ddof=1))


def read_curves() -> dict[str, Curve]:
    """Return the curve of each kind; those of `DRAWN` begin with tags alone at share 0."""
    measured: dict[str, dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    with CURVES.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            measured[row["kind"]][float(row["share"])][int(row["seed"])] = float(row["miou_crf"])
    for kind in DRAWN:
        measured[kind][0.0] = measured["tags"][1.0]
    curves = {}
    for kind, by_share in measured.items():
        shares, seeds = sorted(by_share), sorted(set.intersection(*(set(by_seed) for by_seed in by_share.values())))
        curves[kind] = Curve(np.array(shares), np.array([[by_share[each][seed] for each in shares] for seed in seeds]))
    return curves


def plan(
    checkpoint: UPath,
    *,
    root: str | None = None,
    hours: float = 1.0,
    tag_seconds: float = 20.0,
    point_seconds: float = 22.0,
    scribble_seconds: float = 35.0,
    mask_seconds: float = 240.0,
) -> None:
    """Print what some hours of tags, points, scribbles or masks are expected to give, after a finished run.

    The number of images that can be annotated follows from the seconds per image. The gain in mIoU is the one that was
    measured on VOC animals where the same share of the training images was annotated, with its standard deviation over
    three random seeds. Nothing is printed for more than was measured: for more tags there is the number of images
    alone. For a network trained on masks without tags, the gain is that of masks alone.

    Args:
        checkpoint: the segmentation network of the run; it records the data set and its annotations.
        root: folder of the images; by default that of the training.
        hours: time to annotate.
        tag_seconds: to tag an image. This and the next three are the times of Bearman et al. (*What's the point*, ECCV
            2016) for images of VOC.
        point_seconds: to tag an image and click a point on each class.
        scribble_seconds: to tag an image and draw a line through each class.
        mask_seconds: to draw the mask of an image.

    Raises:
        InputError: the checkpoint or its data set cannot be read, or a number is out of range.
    """
    seconds = {"points": point_seconds, "scribbles": scribble_seconds, "masks": mask_seconds}
    if not (0 < hours < math.inf and 0 < tag_seconds < math.inf):
        raise InputError(f"hours {hours} and tag_seconds {tag_seconds} must be positive and finite")
    for kind, each in seconds.items():
        if not tag_seconds < each < math.inf:
            raise InputError(
                f"{kind[:-1]}_seconds {each} must be more than tag_seconds {tag_seconds}: they include tags"
            )
    content = read_checkpoint(checkpoint, SegmentationTask.task_name)
    stored = content.get("datamodule_hyper_parameters") or {}
    data = datamodule_from_settings(stored, root=root)
    split = data.hparams["train_split"]
    is_masks = stored.get("targets") == "masks"
    samples = data.annotated(data.samples(split, masks=is_masks), split)
    annotated = count_annotated(samples)
    figure = (read_provenance(content) or {}).get("figures", {}).get("val/miou")
    drawn = ", ".join(f"{count:,} with {kind}" for kind, count in annotated.items() if count) or "none annotated"
    reached = "" if figure is None else f"; mIoU of the run on its validation images: {percent(figure)} without the CRF"
    print_result(f"{len(samples):,} images in the split {split!r} of {data.source}, {drawn}{reached}")
    rows = expected_gains(
        len(samples), annotated, 3600 * hours, tag_seconds, seconds, read_curves(), masks_alone=is_masks
    )
    table = Table("annotation", "images", "hours", "gain in mIoU, points")
    for row in rows:
        table.add_row(*row)
    print_result(table)
    print_result(
        "Gains on VOC animals (1,252 images, six classes; MobileNetV2 with FPN; val, with the dense CRF): mean ± "
        "standard deviation of three random seeds, interpolated between measured shares of the images. Other data sets "
        "can gain more or less."
    )


def count_annotated(samples: list[Sample]) -> dict[str, int]:
    """Return the number of images with points, scribbles, masks and boxes."""
    drawn = {name: sum(bool(getattr(sample, name)) for sample in samples) for name in ("points", "scribbles", "boxes")}
    return {**drawn, "masks": sum(sample.mask is not None for sample in samples)}


def expected_gains(
    images: int, annotated: Mapping[str, int], time: float, tag_seconds: float, seconds: Mapping[str, float],
    curves: Mapping[str, Curve], *, masks_alone: bool = False,
) -> list[tuple[str, ...]]:  # fmt: skip
    """Return for each kind of annotation its name, the number of images in the time, the time, and the measured gain.

    Args:
        images: number of training images, which all have tags.
        annotated: number of them with masks, points, scribbles and boxes.
        time: seconds to annotate.
        tag_seconds: to tag an image.
        seconds: to annotate an image in another way, with its tags.
        curves: what was measured.
        masks_alone: whether the training uses masks and no tags; the only row is then that of masks.
    """

    def row(kind: str, new: int, number: str, each: float, gain: tuple[float, float] | None) -> tuple[str, ...]:
        measured = "not measured" if gain is None else f"{percent(gain[0])} ± {percent(gain[1])}"
        return kind, number, f"{new * each / 3600:.1f}", measured if new else "no image"

    rows = []
    if not masks_alone:
        more = int(time / tag_seconds + 1e-9)
        gain = None if any(annotated.values()) else curves["tags"].gain(images / (images + more), 1)
        rows.append(row("tags", more, f"{more:,} more", tag_seconds, gain))
    for kind in ("masks",) if masks_alone else DRAWN:
        before, each = annotated[kind], seconds[kind] - (0 if masks_alone else tag_seconds)
        new = min(images - before, int(time / each + 1e-9))
        others = sum(annotated.values()) - before
        curve = curves["masks alone" if masks_alone else kind]
        gain = None if others else curve.gain(before / images, (before + new) / images)
        rows.append(row(kind, new, f"{new:,} ({percent(new / images)} %)", each, gain))
    return rows
