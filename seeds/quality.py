"""How good seeds are: a cache compared with masks."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from datamodules.cache import NO_CUE, SeedCache
from datamodules.datamodule import TagDataModule, covered
from datamodules.errors import InputError
from datamodules.masks import read_class_mask
from datamodules.transforms import resize_nearest
from seeds.confusion import IGNORE, iou_of, mean_iou
from seeds.data import data_settings

GRID_STEP = 0.01  # of the oracle's thresholds: 0.00, 0.01, … 0.99
METRICS = "metrics.json"


def evaluate_seeds(
    cache: Path,
    *,
    root: str | None = None,
    split: str | None = None,
    masks: str | None = None,
    threshold: float | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Score a seed cache against masks and write ``metrics.json``.

    Two things are scored. The *maps*, as a segmentation: each divided by its own maximum and brought bilinearly to
    the mask's size, the background a constant score, the highest score wins; one confusion matrix over all pictures.
    That constant is ``threshold`` for ``miou_fixed``; ``miou_oracle`` takes the best of 0.00, 0.01, … 0.99 *by
    looking at the masks*, and so bounds what a threshold can do rather than being reachable without masks. And the
    *cues*: ``precision`` (cued pixels that are right), ``recall`` (pixels that are cued, and right), ``coverage``
    (cells with any cue), over all pixels, and apart for the background and each class; and ``miou_cues``, the cues
    taken as a segmentation, in which pixels without a cue count as background. All are fractions. A cache of cues
    without maps (an imported one) has null for what only maps can tell.

    Args:
        cache: a seed cache.
        root: folder of the pictures and masks; as recorded in the cache if not given.
        split: which list of pictures, all of them in the cache; as recorded if not given.
        masks: name of the folder of masks; as recorded if not given.
        threshold: the fixed background score; the cache's own foreground threshold if not given.
        output: where to write: a file ending in .json, or a folder for metrics.json; the cache's folder if not given.

    Returns:
        What was written.

    Raises:
        InputError: no such cache, a cache that lacks pictures of the split, a split without masks.
    """
    seeds = SeedCache(cache)
    settings = data_settings(seeds.manifest.get("data"), seeds.classes, root=root, train_split=split, masks=masks)
    data = TagDataModule(**settings)
    split = data.hparams["train_split"]
    photos = covered(seeds, data.photos(split, labels=False))
    if photos.masks is None or photos.lut is None:
        raise InputError(f"the split {split!r} of {data.root} has no masks; seeds are scored against masks")
    fixed = float(seeds.manifest.get("fg_threshold", 0.2) if threshold is None else threshold)
    sweep, score = Sweep(len(seeds.classes) + 1, fixed), CueScore(len(seeds.classes) + 1)
    for name, path in zip(photos.ids, photos.masks, strict=True):
        truth = read_class_mask(path, photos.lut)
        sweep.update(*seeds.maps(name), truth)
        score.update(seeds.cues(name), truth)
    names = ("background", *seeds.classes)
    metrics = {"images": len(photos), "split": split} | sweep.result(names) | score.result(names)
    write_json(_target(output or cache), metrics)
    print_seeds(metrics)
    return metrics


class Sweep:
    """The confusion matrices of every background threshold in one pass over the pictures.

    Which class's map is highest at a pixel does not depend on the threshold; only whether it beats the background
    does. So a count by (true class, winning class, thresholds beaten) holds them all, exactly.
    """

    def __init__(self, num_classes: int, fixed: float) -> None:
        """Start from zero, with ``num_classes`` counting the background and ``fixed`` among the thresholds."""
        if not 0 <= fixed <= 1:
            raise InputError(f"threshold {fixed} is outside 0..1")
        grid = np.arange(round(1 / GRID_STEP)) * GRID_STEP
        self.fixed, self.grid = fixed, grid
        self.thresholds = np.unique(np.append(grid, fixed).astype(np.float32))
        self.counts = np.zeros((num_classes, num_classes, len(self.thresholds) + 1), np.int64)
        self.maps = 0

    def update(self, classes: NDArray[np.int64], maps: NDArray[np.float32], truth: NDArray[np.uint8]) -> None:
        """Count a picture.

        Args:
            classes: the maps' classes 0..C-1, (k,).
            maps: (k, h, w), not normalised.
            truth: mask (H, W): 0 = background, 1..C, 255 = not counted.
        """
        self.maps += len(maps)
        winner, beaten = np.zeros(truth.shape, np.int64), np.zeros(truth.shape, np.int64)
        if len(maps):
            peak = maps.max(axis=(1, 2), keepdims=True)
            share = torch.from_numpy(maps / np.where(peak > 0, peak, 1))[None]
            scores, place = functional.interpolate(share, truth.shape, mode="bilinear")[0].max(dim=0)  # (H, W)
            winner = classes[place.numpy()] + 1
            beaten = torch.bucketize(scores, torch.from_numpy(self.thresholds)).numpy()  # thresholds below the score
        kept = truth != IGNORE
        shape = self.counts.shape
        flat = np.ravel_multi_index((truth[kept].astype(np.int64), winner[kept], beaten[kept]), shape)
        self.counts += np.bincount(flat, minlength=self.counts.size).reshape(shape)

    def matrices(self) -> NDArray[np.int64]:
        """The confusion matrix of each threshold, int64 (thresholds, classes, classes)."""
        below = self.counts.cumsum(axis=2)[:, :, :-1]  # pixels whose score does not exceed each threshold
        matrices: NDArray[np.int64] = np.moveaxis(self.counts.sum(axis=2, keepdims=True) - below, 2, 0)
        matrices[:, :, 0] += below.sum(axis=1).T
        return matrices

    def result(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Mean and per-class IoU at the fixed threshold and at the best of the grid; None where there was no map."""
        if not self.maps:
            nothing = _named(names, np.full(len(names), np.nan))
            keys = ("miou_fixed", "threshold_fixed", "miou_oracle", "threshold_oracle")
            return dict.fromkeys(keys) | {"iou_fixed": nothing, "iou_oracle": nothing}
        ious = iou_of(self.matrices())  # (thresholds, classes)
        means = np.array([mean_iou(iou) for iou in ious])
        fixed = int(np.searchsorted(self.thresholds, np.float32(self.fixed)))
        on_grid = np.isin(self.thresholds, self.grid.astype(np.float32))
        best = int(np.argmax(np.where(on_grid, np.nan_to_num(means, nan=-1.0), -2.0)))
        return {
            "miou_fixed": _number(means[fixed]), "threshold_fixed": self.fixed,
            "miou_oracle": _number(means[best]), "threshold_oracle": round(float(self.thresholds[best]), 2),
            "iou_fixed": _named(names, ious[fixed]), "iou_oracle": _named(names, ious[best]),
        }  # fmt: skip


class CueScore:
    """Counts of how the cues agree with the masks: the cells of label maps, spread over the pixels beneath them."""

    def __init__(self, num_classes: int) -> None:
        """Start from zero; ``num_classes`` counts the background."""
        self.right, self.cued, self.true = (np.zeros(num_classes, np.int64) for _ in range(3))
        self.cells = np.zeros(num_classes, np.int64)
        self.all_cells = 0
        self.blank = self.blank_background = 0  # pixels without a cue, and those of them that are background

    def update(self, cues: NDArray[np.uint8], truth: NDArray[np.uint8]) -> None:
        """Count a picture's label map (h, w) against its mask (H, W)."""
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
        overlap = {"miou_cues": _number(mean_iou(iou)), "iou_cues": _named(names, iou)}
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


def _number(value: float) -> float | None:
    """The figure, or None (JSON's null) for one that nothing was counted for."""
    return None if math.isnan(value) else float(value)


def _named(names: tuple[str, ...], values: NDArray[np.float64]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values, strict=True)}


def _target(place: Path) -> Path:
    return place if place.suffix == ".json" else place / METRICS


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def print_seeds(metrics: dict[str, Any]) -> None:
    """Show the figures as a table in the terminal, in per cent."""
    table = Table(title=f"seeds of {metrics['images']} pictures of {metrics['split']}, per cent")
    columns = ("IoU, fixed", "IoU, oracle*", "IoU, cues", "precision", "recall", "coverage")
    for column in ("class", *columns):
        table.add_column(column, justify="left" if column == "class" else "right")
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
        "chosen by looking at the masks"
    )


def _cells(*values: float | None) -> Iterator[str]:
    for value in values:
        yield "-" if value is None else f"{100 * value:.1f}"
