"""How good seeds are: a cache compared with masks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from datamodules.cache import NO_CUE, SeedCache
from datamodules.datamodule import TagDataModule, covered
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.masks import read_class_mask
from datamodules.progress import print_message
from datamodules.photos import all_masks
from datamodules.progress import track
from datamodules.sampling import evenly
from datamodules.transforms import resize_nearest
from seeds.data import data_settings
from seeds.evaluation.compare_cam_methods import try_methods
from seeds.evaluation.confusion_matrix import IGNORE, mean_iou
from seeds.evaluation.threshold_sweep import Sweep, by_name, number_or_none
from seeds.explainer import Explainer, names_of

METRICS = "metrics.json"


def evaluate_seeds(
    cache: Path,
    *,
    root: str | None = None,
    split: str | None = None,
    masks: str | None = None,
    threshold: float | None = None,
    output: Path | None = None,
    faithfulness: str | list[str] = "",
    checkpoint: Path | None = None,
    num_images: int | None = None,
) -> dict[str, Any]:
    """Score a seed cache against masks and write ``metrics.json``.

    Two things are scored. The *maps*, as a segmentation: each divided by its own maximum and brought bilinearly to
    the mask's size, the background a constant score, the highest score wins; one confusion matrix over all images.
    That constant is ``threshold`` for ``miou_fixed``, and for ``miou_otsu`` the one that Otsu's method finds in the
    maps alone; ``miou_oracle`` takes the best of 0.00, 0.01, … 0.99 *by looking at the masks*, and so bounds what a
    threshold can do rather than being reachable without masks. And the *cues*: ``precision`` (cued pixels that are
    right), ``recall`` (pixels that are cued, and right), ``coverage`` (cells with any cue), over all pixels, and apart
    for the background and each class; and ``miou_cues``, the cues taken as a segmentation, in which pixels without a
    cue count as background. All are fractions. A cache of cues without maps (an imported one) has null for what only
    maps can tell.

    With ``faithfulness`` the classifier is asked again by each of these methods, and ``metrics.json`` holds under
    that name each one's IoU, pointing game, localization error, rank correlation with occlusion, deletion and
    insertion, and energy inside the mask; see `compare_cam_methods`. That takes some hundred forward passes a
    image.

    Args:
        cache: a seed cache.
        root: folder of the images and masks; as recorded in the cache if not given.
        split: which list of images, all of them in the cache; as recorded if not given.
        masks: name of the folder of masks; as recorded if not given.
        threshold: the fixed background score; the cache's own foreground threshold if not given.
        output: where to write: a file ending in .json, or a folder for metrics.json; the cache's folder if not given.
        faithfulness: methods to be put to the test, as ``gradcam,c-mwp``; names as for ``tag2mask explain``.
        checkpoint: the classifier's, for ``faithfulness``; the one the cache was made with if not given.
        num_images: how many images ``faithfulness`` looks at, evenly spread over the split; all if not given.

    Returns:
        What was written.

    Raises:
        InputError: no such cache, a cache that lacks images of the split, a split without masks, or with none that
            scores a pixel.
    """
    seeds = SeedCache(cache)
    settings = data_settings(seeds.manifest.get("data"), seeds.classes, root=root, train_split=split, masks=masks)
    data = TagDataModule(**settings)
    split = data.hparams["train_split"]
    photos = covered(seeds, data.photos(split, labels=False))
    if photos.masks is None or photos.lut is None:
        raise InputError(f"the split {split!r} of {data.root} has no masks; seeds are scored against masks")
    lut, listed, photos = photos.lut, len(photos), photos.with_masks()
    if len(photos) < listed:
        print_message(f"{len(photos)} of {listed} images of {split!r} have a mask; the others are not scored")
    fixed = float(seeds.manifest.get("fg_threshold", 0.2) if threshold is None else threshold)
    if num_images is not None and num_images < 1:
        raise InputError(f"num_images {num_images} is not a positive number")
    explainer = _explainer(seeds, checkpoint, names_of(faithfulness)) if faithfulness else None
    sweep, score = Sweep(len(seeds.classes) + 1, fixed), CueScore(len(seeds.classes) + 1)
    masked = list(zip(photos.ids, all_masks(photos, "a score"), strict=True))
    for name, path in track(masked, "scoring seeds"):
        truth = read_class_mask(path, lut)
        sweep.update(*seeds.maps(name), truth)
        score.update(seeds.cues(name), truth)
    if not score.true.any():
        raise InputError(f"the masks of split {split!r} score no pixel: all of them are {IGNORE}")
    names = ("background", *seeds.classes)
    metrics: dict[str, Any] = {"images": len(photos), "split": split} | sweep.result(names) | score.result(names)
    if explainer is not None:
        chosen = evenly(len(photos), len(photos) if num_images is None else num_images)
        found = try_methods(explainer, photos, fixed, chosen)
        metrics["faithfulness"] = {"images": len(chosen), "size": explainer.size, "methods": found}
    write_json(_target(output or cache), metrics)
    print_seeds(metrics)
    if explainer is not None:
        print_trials(metrics["faithfulness"])
    return metrics


def _explainer(seeds: SeedCache, checkpoint: Path | None, methods: list[str]) -> Explainer:
    """The classifier a cache was made with, or another of the same classes."""
    path = checkpoint or seeds.manifest.get("checkpoint")
    if path is None:
        raise InputError(f"{seeds.path} does not say which classifier made it; give a checkpoint")
    explainer = Explainer(Path(path), methods)
    if tuple(explainer.classes) != seeds.classes:
        raise InputError(f"{path} knows the classes {', '.join(explainer.classes)}, not those of {seeds.path}")
    return explainer


class CueScore:
    """Counts of how the cues agree with the masks: the cells of label maps, spread over the pixels beneath them."""

    def __init__(self, num_classes: int) -> None:
        """Start from zero; ``num_classes`` counts the background."""
        self.right, self.cued, self.true = (np.zeros(num_classes, np.int64) for _ in range(3))
        self.cells = np.zeros(num_classes, np.int64)
        self.all_cells = 0
        self.blank = self.blank_background = 0  # pixels without a cue, and those of them that are background

    def update(self, cues: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count an image's label map (h, w) against its mask (H, W)."""
        num = len(self.right)
        self.cells += np.bincount(cues[cues != NO_CUE], minlength=num)
        self.all_cells += cues.size
        spread = resize_nearest(cues, *truth.shape)[truth != IGNORE]
        truth = truth[truth != IGNORE]
        blank = spread == NO_CUE
        self.blank += int(blank.sum())
        self.blank_background += int((truth[blank] == 0).sum())
        self.true += np.bincount(truth, minlength=num)
        self.cued += np.bincount(spread[spread != NO_CUE], minlength=num)
        self.right += np.bincount(truth[spread == truth], minlength=num)

    def result(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Precision, recall and coverage: over all, over the classes without background, and of each by name."""
        groups = {"": slice(None), "background": slice(0, 1), "foreground": slice(1, None)}
        figures = {group: self._figures(part) for group, part in groups.items()}
        each = {name: self._figures(slice(i, i + 1)) for i, name in enumerate(names) if i}
        iou = self.iou()
        overlap = {"miou_cues": number_or_none(mean_iou(iou)), "iou_cues": by_name(names, iou)}
        return figures.pop("") | overlap | {"cues": figures, "cues_by_class": each}

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class if pixels without a cue were cued background, float64 (classes,)."""
        right, cued = self.right.copy(), self.cued.copy()
        right[0] += self.blank_background
        cued[0] += self.blank
        union = cued + self.true - right
        iou: NDArray[np.float64] = np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)
        return iou

    def _figures(self, part: slice) -> dict[str, float | None]:
        right, cued, true = (int(count[part].sum()) for count in (self.right, self.cued, self.true))
        return {
            "precision": right / cued if cued else None,
            "recall": right / true if true else None,
            "coverage": int(self.cells[part].sum()) / self.all_cells if self.all_cells else None,
        }


def _target(place: Path) -> Path:
    return place if place.suffix == ".json" else place / METRICS


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        InputError: it cannot be written.
        OSError: nor can its folder be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def print_seeds(metrics: dict[str, Any]) -> None:
    """Show the figures as a table in the terminal, in per cent."""
    table = Table(title=f"seeds of {metrics['images']} images of {metrics['split']}, per cent")
    columns = ("IoU, fixed", "IoU, oracle*", "IoU, cues", "precision", "recall", "coverage")
    table.add_column("class", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", min_width=max(map(len, column.split())))
    cues = {"background": metrics["cues"]["background"]} | metrics["cues_by_class"]
    for name, figures in cues.items():
        ious = (metrics[key][name] for key in ("iou_fixed", "iou_oracle", "iou_cues"))
        table.add_row(name, *_cells(*ious, *figures.values()))
    table.add_section()
    total = [metrics[key] for key in ("miou_fixed", "miou_oracle", "miou_cues", "precision", "recall", "coverage")]
    table.add_row("all", *_cells(*total))
    console = Console()
    console.print(table)
    console.print("precision, recall, coverage: of the cues")
    if metrics["threshold_fixed"] is None:
        console.print("the cache holds cues without maps, so there is no threshold to score them at")
        return
    console.print(
        f"fixed: background threshold {metrics['threshold_fixed']:.2f}; *oracle: {metrics['threshold_oracle']:.2f}, "
        f"chosen by looking at the masks; Otsu's, from the maps alone: {metrics['threshold_otsu']:.2f}, mean IoU "
        f"{100 * metrics['miou_otsu']:.1f}"
    )


TRIED = {  # heads so short that a terminal of 80 columns shows the table whole; what each means
    "fix": ("miou_fixed", "mIoU at the fixed threshold"),
    "orac": ("miou_oracle", "mIoU at the best threshold by the masks"),
    "pnt": ("pointing", "pointing game, hits"),
    "diff": ("pointing_difficult", "the same of difficult images"),
    "top1": ("localization_error_top1", "localization error, top 1"),
    "giv": ("localization_error_given", "the same, class given"),
    "del": ("deletion", "area under deletion, less is better"),
    "ins": ("insertion", "area under insertion"),
    "occ": ("occlusion_rank_correlation", "rank correlation with occlusion, times 100"),
    "ener": ("energy_inside", "part of the map on the object"),
}


def print_trials(found: dict[str, Any]) -> None:
    """Show methods and their figures as a table in the terminal, in per cent."""
    table = Table(title=f"methods on {found['images']} images, per cent", box=None, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for head in TRIED:
        table.add_column(head, justify="right", no_wrap=True)
    for method, figures in found["methods"].items():
        table.add_row(method, *_cells(*(figures[key] for key, _ in TRIED.values())))
    console = Console()
    console.print(table)
    console.print("; ".join(f"{head}: {meaning}" for head, (_, meaning) in TRIED.items()))


def _cells(*values: float | None) -> Iterator[str]:
    for value in values:
        yield "-" if value is None else f"{100 * value:.1f}"
