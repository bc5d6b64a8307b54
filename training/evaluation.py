"""Scoring a segmentation checkpoint: figures, and a page of pictures."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from datamodules.cache import SeedCache
from datamodules.datamodule import TagDataModule
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.photos import PhotoSet, check_sizes
from seeds.confusion import Confusion
from training.files import progress_bar, write_whole
from training.inference import TEST_CRF, Predicted, Trained, data_module, load_trained, predictions
from training.report import Row, render_page

__all__ = ["evaluate"]

TAUGHT_PICTURES = 8  # training pictures with cues on the page


def evaluate(
    checkpoint: Path,
    output: Path,
    *,
    root: str | None = None,
    split: str | None = None,
    masks: str | None = None,
    crf: bool = True,
    cues: Path | None = None,
    pictures: int = 24,
    eval_size: int | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Score a segmentation checkpoint on a split at the masks' own size, with and without the dense CRF.

    Writes ``metrics.json`` and ``index.html`` (picture, cues, prediction, truth) into a folder, and prints a table. The
    figures of ``metrics.json`` are fractions: ``miou``, ``iou`` (class to figure, background included; a class that is
    neither in the masks nor predicted is left out), ``background_iou`` and ``images``; with the CRF, ``without_crf``
    holds the same for the network alone. Pictures without masks get a page and no figures.

    Args:
        checkpoint: a checkpoint of ``tag2mask fit`` with a segmentation task.
        output: folder for ``metrics.json`` and ``index.html``; made if need be.
        root: folder of the data, where it is not the one of the training.
        split: list to score, where it is not the training's test split.
        masks: name of the folder of masks, where it is not the training's.
        crf: smooth predictions with the dense CRF.
        cues: seed cache to show cues from, where it is not the training's.
        pictures: how many pictures of the split the page shows.
        eval_size: side to which pictures are warped for the network, where it is not the training's.
        batch_size: pictures at a time through the network, where it is not the training's.
        num_workers: processes that read pictures, where it is not the training's.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: the checkpoint, the data or a mask is not usable; nothing is written then.
    """
    trained = load_trained(checkpoint)
    given = {"root": root, "test_split": split, "masks": masks, "eval_size": eval_size}
    data = data_module(trained, **given, batch_size=batch_size, num_workers=num_workers)
    split = str(data.hparams["test_split"])
    photos = data.photos(split, labels=False)
    if not photos.ids:
        raise InputError(f"the split {split!r} of {data.root} has no pictures")
    check_sizes(photos)
    cache = _cache(trained, cues)
    stream = progress_bar(predictions(trained, data, photos, crf=crf), "Scoring", len(photos))
    counts, rows = _score(stream, len(photos.classes) + 1, evenly(len(photos), pictures).tolist(), cache)
    metrics = {
        **_scores(counts, photos, crf=crf),
        "images": len(photos),
        "split": split,
        "crf": dict(TEST_CRF) if crf else None,
        "checkpoint": {"path": str(checkpoint), "sha256": file_sha256(checkpoint)},
        "data": {key: data.hparams[key] for key in ("root", "layout", "masks", "eval_size")},
        "classes": list(photos.classes),
    }
    taught = _taught(trained, data, cache, crf=crf) if cache else []
    _write(output, render_page(metrics, photos.classes, rows, taught), metrics)
    Console().print(_table(metrics))
    return metrics


def _write(output: Path, page: str, metrics: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "index.html", page.encode())
    write_whole(output / "metrics.json", (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())


def evenly(total: int, wanted: int) -> NDArray[np.int64]:
    """At most ``wanted`` indices below ``total``, evenly spread."""
    return np.unique(np.linspace(0, total - 1, max(0, min(total, wanted))).round().astype(np.int64))


def _score(
    predictions: Iterable[Predicted], num_classes: int, shown: Sequence[int], cache: SeedCache | None
) -> tuple[dict[bool, Confusion], list[Row]]:
    """Confusions without (False) and with (True) the CRF, and the rows of the page."""
    counts = {False: Confusion(num_classes), True: Confusion(num_classes)}
    rows = []
    for index, predicted in enumerate(predictions):
        if predicted.truth is not None:
            counts[False].update(predicted.plain, predicted.truth)
            counts[True].update(predicted.final, predicted.truth)
        if index in shown:
            rows.append(_row(predicted, num_classes, cache))
    return counts, rows


def _row(predicted: Predicted, num_classes: int, cache: SeedCache | None) -> Row:
    truth, iou = predicted.truth, None
    if truth is not None:
        own = Confusion(num_classes)
        own.update(predicted.final, truth)
        iou = None if math.isnan(own.miou()) else own.miou()
    return Row(
        predicted.name,
        predicted.image,
        predicted.final.numpy().astype(np.uint8),
        None if truth is None else truth.numpy().astype(np.uint8),
        cache.cues(predicted.name) if cache and predicted.name in cache else None,
        iou,
    )


def _taught(trained: Trained, data: TagDataModule, cache: SeedCache, *, crf: bool) -> list[Row]:
    """Some training pictures with their cues; none where the training's data are not here."""
    try:
        photos = data.photos(str(data.hparams["train_split"]), labels=False)
    except InputError:
        return []
    cued = [index for index, name in enumerate(photos.ids) if name in cache]
    chosen = photos.subset([cued[i] for i in evenly(len(cued), TAUGHT_PICTURES)])
    everything = range(len(chosen))
    return _score(predictions(trained, data, chosen, crf=crf), len(photos.classes) + 1, everything, cache)[1]


def _cache(trained: Trained, cues: Path | None) -> SeedCache | None:
    """The cache that was asked for, or the training's if it is still there."""
    classes = trained.task.classes
    if cues is not None:
        cache = SeedCache(cues)
        if tuple(cache.classes) != classes:
            raise InputError(
                f"the seed cache {cues} is of the classes {', '.join(cache.classes)}, not {', '.join(classes)}"
            )
        return cache
    if trained.data.get("cues") is None:
        return None
    try:
        cache = SeedCache(trained.data["cues"])
    except InputError:
        return None
    return cache if tuple(cache.classes) == classes else None


def _scores(counts: dict[bool, Confusion], photos: PhotoSet, *, crf: bool) -> dict[str, Any]:
    if photos.masks is None:
        return {"miou": None, "iou": {}, "background_iou": None}
    final = _figures(counts[True], photos.classes)
    return {**final, "without_crf": _figures(counts[False], photos.classes)} if crf else final


def _figures(confusion: Confusion, classes: Sequence[str]) -> dict[str, Any]:
    per_class = dict(zip(("background", *classes), confusion.iou().tolist(), strict=True))
    iou = {name: value for name, value in per_class.items() if not math.isnan(value)}
    miou = confusion.miou()
    return {"miou": None if math.isnan(miou) else miou, "iou": iou, "background_iou": iou.get("background")}


def _table(metrics: dict[str, Any]) -> Table:
    plain = metrics.get("without_crf")
    table = Table(title=f"IoU on {metrics['split']}, {metrics['images']} pictures")
    table.add_column("class")
    if plain:
        table.add_column("without CRF", justify="right")
    table.add_column("with CRF" if metrics["crf"] else "IoU", justify="right")

    def add(name: str, style: str | None, before: float | None, after: float | None) -> None:
        cells = [before, after] if plain else [after]
        table.add_row(name, *("" if value is None else f"{100 * value:.1f}" for value in cells), style=style)

    names = [name for name in ("background", *metrics["classes"]) if name in metrics["iou"]]
    for name in names:
        add(name, None, plain["iou"].get(name) if plain else None, metrics["iou"][name])
    table.add_section()
    add("mean", "bold", plain["miou"] if plain else None, metrics["miou"])
    return table
