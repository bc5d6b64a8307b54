"""The quality of seeds: a seed cache compared with masks."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from upath import UPath

from datamodules.base_datamodule import covered_samples
from datamodules.class_names import IGNORE, require_same_classes
from datamodules.errors import InputError
from datamodules.files import check_output_folder, write_json
from datamodules.images import any_size
from datamodules.masks import read_class_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.progress import percent, print_message, print_result, track
from datamodules.samplers import evenly_spaced
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.shard import NO_CUE
from datamodules.transforms import resize_nearest
from datamodules.unreadable_images import readable
from seeds.evaluation.compare_cam_methods import compare_cam_methods
from seeds.evaluation.confusion_matrix import ConfusionMatrix, by_name, class_iou, mean_iou, none_if_nan, ratio
from seeds.evaluation.threshold_sweep import ThresholdSweep
from seeds.explainer import Explainer


def evaluate_seeds(
    cache: UPath,
    *,
    root: str | None = None,
    split: str | None = None,
    masks: str | None = None,
    threshold: float | None = None,
    output: Path | None = None,
    faithfulness: list[str] | None = None,
    checkpoint: UPath | None = None,
    num_images: int | None = None,
) -> dict[str, Any]:
    """Score a seed cache against masks and write ``metrics.json``.

    The *maps* are scored as a segmentation: each map is divided by its maximum and resized bilinearly to the mask's
    size, the background has a constant score, and the highest score wins; one confusion matrix counts all images. The
    constant is ``threshold`` for ``miou_fixed``, and the threshold that Otsu's method finds in the maps alone for
    ``miou_otsu``. ``miou_oracle`` is the best of the thresholds 0.00, 0.01, … 0.99, chosen *with the masks*: an upper
    bound, not reachable without masks.

    The *cues* are scored by ``precision`` (share of the pixels with a cue whose cue is right), ``recall`` (share of all
    pixels that have the right cue) and ``coverage`` (share of the positions that have a cue), over all pixels, and for
    the background and each class. ``miou_cues`` is the IoU of the cues as a segmentation, where pixels without a cue
    count as background. All are fractions. A cache of cues without maps (an imported one) has null for the maps'.

    ``faithfulness`` compares CAM methods: the classifier computes its maps again by each, and ``metrics.json`` holds
    each one's IoU, pointing game, localization error, rank correlation with occlusion, deletion, insertion and energy
    inside the mask; see `compare_cam_methods`. That takes several hundred forward passes per image.

    Args:
        cache: a seed cache.
        root: folder of the images and masks; by default as recorded in the cache.
        split: list of images, all of them in the cache; by default as recorded.
        masks: folder of masks, in the folder of the data or an absolute path; by default as recorded.
        threshold: the fixed background threshold; by default the cache's foreground threshold, or else 0.2.
        output: a file ending in .json, or a folder for ``metrics.json``; by default the cache's folder.
        faithfulness: CAM methods to compare, such as ``gradcam,c-mwp``; names as for ``tag2mask explain``.
        checkpoint: the classifier for ``faithfulness``; by default the one that made the cache.
        num_images: number of images for ``faithfulness``, evenly spread over the split; all by default.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: no such cache, the cache lacks images of the split, the split has no masks, a mask has another
            size than its image, or all pixels are 255.
    """
    if num_images is not None and num_images < 1:
        raise InputError(f"num_images {num_images} must be at least 1")
    seeds, target = SeedCache(cache), output or cache
    target = target if target.suffix == ".json" else target / "metrics.json"
    if isinstance(target, Path):
        check_output_folder(target.parent)  # minutes pass before the file is written
    data = datamodule_from_settings(
        seeds.inputs.get("data"), classes=list(seeds.classes), root=root, train_split=split, masks=masks
    )
    split = data.hparams["train_split"]
    listed = covered_samples(seeds, data.samples(split, tags=False), seeds.classes)
    samples = [sample for sample in listed if sample.mask is not None]
    if not samples:
        raise InputError(f"the split {split!r} of {data.root} has no masks; seeds are scored against masks")
    if len(samples) < len(listed):
        print_message(f"{len(samples)} of {len(listed)} images of {split!r} have a mask; the others are not scored")
    size_limit = any_size if "tile" in seeds.settings else nullcontext
    with size_limit():
        samples = readable(samples, data.unreadable)
    fixed = float(seeds.settings.get("fg_threshold", 0.2) if threshold is None else threshold)
    explainer = None
    if faithfulness:
        path = checkpoint or seeds.inputs.get("checkpoint")
        if path is None:
            raise InputError(f"{cache} does not record which classifier made it: give --checkpoint")
        explainer = Explainer(UPath(path), faithfulness)
        require_same_classes(str(path), explainer.classes, seeds.classes)

    names = ("background", *seeds.classes)
    sweep, cue_metrics = ThresholdSweep(len(names), fixed), CueMetrics(len(names))
    with size_limit():
        for sample in track(samples, "scoring seeds"):
            assert sample.mask is not None
            truth = read_class_mask(sample.mask, data.mask_lut)
            sweep.update(*seeds.maps(sample.id), truth)
            cue_metrics.update(seeds.cues(sample.id), truth)
    if not cue_metrics.confusion.matrix.any():
        raise InputError(f"the masks of split {split!r} score no pixel: all of them are {IGNORE}")
    metrics: dict[str, Any] = {"images": len(samples), "split": split}
    metrics |= sweep.compute(names) | cue_metrics.compute(names)
    if explainer is not None:
        chosen = [samples[i] for i in evenly_spaced(len(samples), len(samples) if num_images is None else num_images)]
        with size_limit():
            compared = compare_cam_methods(explainer, chosen, data.mask_lut, fixed)
        metrics["faithfulness"] = {"images": len(chosen), "size": explainer.size, "methods": compared}
    write_json(target, metrics)
    print_seed_metrics(metrics)
    return metrics


class CueMetrics:
    """Precision, recall, coverage and IoU of cues; each cue covers the pixels of its grid position.

    Attributes:
        confusion: pixels by true class and cue; the last index of cues counts pixels without a cue.
        positions: int64 (K+1,), positions of the cue grid by their cue, the last without one.
    """

    def __init__(self, num_classes: int) -> None:
        """Start from zero; ``num_classes`` includes the background."""
        self.confusion = ConfusionMatrix(num_classes + 1)
        self.positions = np.zeros(num_classes + 1, np.int64)

    def update(self, cues: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count one image: cues as a label map (h, w), and its mask (H, W)."""
        none = len(self.positions) - 1
        labels = np.where(cues == NO_CUE, none, cues).astype(np.uint8)
        self.positions += np.bincount(labels.ravel(), minlength=none + 1)
        self.confusion.update(resize_nearest(labels, *truth.shape), truth)

    def iou(self) -> NDArray[np.float64]:
        """Return the IoU of each class if pixels without a cue count as background, float64 (K,)."""
        pixels = self.confusion.matrix.numpy()[:-1]  # (K, K+1)
        segmentation = pixels[:, :-1].copy()
        segmentation[:, 0] += pixels[:, -1]
        return class_iou(segmentation)

    def compute(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the metrics over all pixels, of background and foreground, and by class; None where undefined."""
        pixels, iou = self.confusion.matrix.numpy()[:-1], self.iou()  # (K, K+1), (K,)
        right, cued, true = pixels.diagonal(), pixels.sum(0)[:-1], pixels.sum(1)

        def metrics(classes: slice) -> dict[str, float | None]:
            hits, covered = right[classes].sum(), self.positions[:-1][classes].sum()
            totals = {"precision": cued[classes].sum(), "recall": true[classes].sum()}
            quotients = {name: none_if_nan(float(ratio(hits, total))) for name, total in totals.items()}
            return quotients | {"coverage": none_if_nan(float(ratio(covered, self.positions.sum())))}

        return {
            **metrics(slice(None)), "miou_cues": none_if_nan(mean_iou(iou)), "iou_cues": by_name(names, iou),
            "cues": {"background": metrics(slice(1)), "foreground": metrics(slice(1, None))},
            "cues_by_class": {name: metrics(slice(c, c + 1)) for c, name in enumerate(names) if c},
        }  # fmt: skip


def print_seed_metrics(metrics: Mapping[str, Any]) -> None:
    """Print the metrics of seeds, and of CAM methods where they were compared, as tables in per cent."""
    table = Table(title=f"seeds of {metrics['images']} images of {metrics['split']}, per cent")
    table.add_column("class", no_wrap=True)
    for column in ("IoU, fixed", "IoU, oracle*", "IoU, cues", "precision", "recall", "coverage"):
        table.add_column(column.replace(", ", ",\n"), justify="right", no_wrap=True)
    kinds, cue_keys = ("fixed", "oracle", "cues"), ("precision", "recall", "coverage")
    by_class = {"background": metrics["cues"]["background"]} | metrics["cues_by_class"]
    for name, cues in by_class.items():
        table.add_row(name, *(percent(metrics[f"iou_{kind}"][name]) for kind in kinds), *map(percent, cues.values()))
    table.add_section()
    table.add_row("all", *(percent(metrics[key]) for key in (*(f"miou_{kind}" for kind in kinds), *cue_keys)))
    print_result(table)
    print_result("precision, recall, coverage: of the cues")
    if metrics["threshold_fixed"] is None:
        print_result("the cache holds cues without maps, so there is no IoU at a threshold")
    else:
        print_result(
            f"fixed: background threshold {metrics['threshold_fixed']:.2f}; *oracle: {metrics['threshold_oracle']:.2f},"
            f" chosen by looking at the masks; Otsu's, from the maps alone: {metrics['threshold_otsu']:.2f}, mean IoU "
            f"{percent(metrics['miou_otsu'])}"
        )
    if "faithfulness" in metrics:
        compared = metrics["faithfulness"]
        table = Table("metric", title=f"CAM methods on {compared['images']} images, per cent")
        for method in compared["methods"]:
            table.add_column(method, justify="right")
        methods = list(compared["methods"].values())
        for key in (key for key, value in methods[0].items() if value is None or isinstance(value, float)):
            table.add_row(key, *(percent(found[key]) for found in methods))
        print_result(table)
        print_result("low is better for deletion and the localization error; oracle: chosen by looking at the masks")
