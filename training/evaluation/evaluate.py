"""Scoring a segmentation checkpoint, or a folder of masks: figures, and a page of images."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from datamodules.datamodule import TagDataModule
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.photos import PhotoSet
from datamodules.progress import track
from datamodules.sampling import evenly
from datamodules.seed_cache import SeedCache
from datamodules.unreadable import MAX_UNREADABLE, UnreadableImages
from seeds.precision import Precision
from training.evaluation.metrics import Tally, figures
from training.evaluation.scored import Scored, scored_folder, scored_network
from training.evaluation.tables import class_csv, class_table, confused_table, facts_table, summary_lines
from training.evaluation.voc_submission import check_voc_classes, write_submission
from training.inference import Predicted, predictions
from training.reports.evaluation_report import render_page
from training.reports.example_selection import Gallery, Row, Section
from training.runs.provenance_record import provenance_lines
from training.inference import Views

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["evaluate"]

TAUGHT_PICTURES = 8  # training images with cues on the page


def evaluate(
    checkpoint: Path | None = None,
    *,
    output: Path,
    predictions: Path | None = None,
    root: str | None = None,
    split: str | None = None,
    masks: str | None = None,
    classes: list[str] | None = None,
    crf: bool = True,
    scales: list[float] | None = None,
    flip: bool = False,
    submission: bool = False,
    cues: Path | None = None,
    num_images: int = 24,
    eval_size: int | None = None,
    precision: Precision = "auto",
    batch_size: int | None = None,
    num_workers: int | None = None,
    max_unreadable: float = MAX_UNREADABLE,
    strict: bool = False,
) -> dict[str, Any]:
    """Score a segmentation checkpoint, or a folder of predicted masks, on a split at the masks' own size.

    Writes ``metrics.json``, ``metrics.csv`` and ``index.html`` (a page of images) into a folder, and prints tables.
    The figures of ``metrics.json`` are fractions: ``miou``, ``iou`` (class to figure, background included; a class that
    is neither in the masks nor predicted is left out), ``background_iou``, ``images``, and those of
    `training.evaluation.metrics.figures`; with the CRF, ``without_crf`` holds the same for the network alone.
    ``provenance`` is what the checkpoint says of its making (`RunRecord`), null where it says
    nothing. An image without a mask is shown on the page and not scored: ``images_with_mask`` of the ``images`` are.

    Args:
        checkpoint: a checkpoint of ``tag2mask fit`` with a segmentation task.
        output: folder for what is written; made if need be.
        predictions: in place of a checkpoint, a folder of masks ``<id>.png`` (palette or gray, read by index; their
            classes are those of the ``classes.txt`` in it, or else of the data's masks), for data of VOC layout. The
            options on the CRF, scales, flip, batches and workers are not looked at then.
        root: folder of the data, where it is not the one of the training; needed with predictions.
        split: list to score, where it is not the training's test split (``val`` with predictions).
        masks: name of the folder of masks, where it is not the training's.
        classes: with predictions, the classes to score, where these are not all that the predictions may hold.
        crf: smooth predictions with the dense CRF.
        scales: factors on the side of images at which the network looks at each; the softmax is averaged. 1 alone
            if not given.
        flip: average over each image and its mirror image, too.
        submission: write ``submission.tar``, the archive for VOC's server, and its files into ``results``.
        cues: seed cache to show cues from, where it is not the training's.
        num_images: how many images of the split the page shows.
        eval_size: side to which images are warped for the network, where it is not the training's.
        precision: what the network computes in: auto, 32-true or bf16-mixed. auto takes bf16-mixed where the
            processor computes bfloat16 natively, else 32-true (see `seeds.precision`).
        batch_size: images at a time through the network, where it is not the training's.
        num_workers: processes that read images, where it is not the training's.
        max_unreadable: the share of images that may be unreadable: they are left out, listed on the terminal and
            named in ``metrics.json`` under ``unreadable``. With more of them nothing is written.
        strict: accept no unreadable image; so it is with submission.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: the checkpoint, the data, a mask or a prediction is not usable; nothing is written then.
    """
    reading: dict[str, Any] = {"max_unreadable": max_unreadable, "strict": strict or submission}
    if checkpoint is not None and predictions is None:
        if classes is not None:
            raise InputError("classes are for --predictions: a checkpoint knows its own")
        views = Views(tuple(scales) if scales is not None else (1.0,), flip)
        given = {
            "root": root, "test_split": split, "masks": masks, "eval_size": eval_size, "batch_size": batch_size,
            "num_workers": num_workers, **reading,
        }  # fmt: skip
        scored = scored_network(checkpoint, crf=crf, views=views, precision=precision, **given)
    elif predictions is not None and checkpoint is None:
        scored = scored_folder(predictions, root=root, split=split, masks=masks, classes=classes, **reading)
    else:
        raise InputError("give either --checkpoint, a network to score, or --predictions, a folder of masks to score")
    if submission:
        check_voc_classes(scored.photos.classes)
    return _evaluate(scored, output, _cache(scored, cues), num_images=num_images, submission=submission)


def _evaluate(
    scored: Scored, output: Path, cache: SeedCache | None, *, num_images: int, submission: bool
) -> dict[str, Any]:
    """Go through the predictions once, and write everything at the end."""
    photos = scored.photos
    names = ("background", *photos.classes)
    tallies = {"plain": Tally(names), "final": Tally(names)} if scored.crf else {"final": Tally(names)}
    kept: dict[str, NDArray[np.uint8]] | None = {} if submission else None
    gallery, images, with_mask = Gallery(len(photos), num_images), 0, 0
    for predicted, row in track(_score(scored.stream, tallies, cache), "scoring", len(photos)):
        gallery.offer(row)
        images, with_mask = images + 1, with_mask + (predicted.truth is not None)
        if kept is not None:
            kept[predicted.name] = predicted.final.numpy().astype(np.uint8)
    metrics = {
        **_figures(tallies, masks=photos.masks is not None),
        "images": images,
        "images_with_mask": with_mask,
        "unreadable": scored.unreadable.found,
        "split": scored.split,
        **scored.origin,
        "classes": list(photos.classes),
    }
    sections = [*gallery.sections(), *_taught(scored, cache)]
    _write(output, render_page(metrics, photos.classes, sections), metrics)
    if kept is not None:
        write_submission(output, scored.split, kept)
    _print(metrics)
    return metrics


def _write(output: Path, page: str, metrics: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "index.html", page.encode())
    if metrics["iou"]:
        write_atomically(output / "metrics.csv", class_csv(metrics).encode())
    write_atomically(output / "metrics.json", (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode())


def _print(metrics: dict[str, Any]) -> None:
    console = Console()
    if not metrics["iou"]:
        console.print(f"{metrics['split']}: {metrics['images']} images without masks, so no figures")
        return
    if metrics["images_with_mask"] < metrics["images"]:
        console.print(f"{metrics['images_with_mask']} of {metrics['images']} images have a mask, and are scored")
    console.print(class_table(metrics))
    console.print(confused_table(metrics))
    for line in summary_lines(metrics):
        console.print(line, highlight=False)
    if record := metrics.get("provenance"):
        console.print(facts_table(provenance_lines(record)))


def _figures(tallies: dict[str, Tally], *, masks: bool) -> dict[str, Any]:
    if not masks:
        return {"miou": None, "iou": {}, "background_iou": None}
    plain = {"without_crf": figures(tallies["plain"])} if "plain" in tallies else {}
    return {**figures(tallies["final"]), **plain}


def _score(
    stream: Iterable[Predicted], tallies: dict[str, Tally], cache: SeedCache | None
) -> Iterator[tuple[Predicted, Row]]:
    """Count images into ``tallies`` (by the name of the label map) as they come, and pass them on."""
    for predicted in stream:
        iou = None
        if predicted.truth is not None:
            for which, tally in tallies.items():
                iou = tally.add(getattr(predicted, which), predicted.truth)
        yield predicted, _row(predicted, iou, cache)


def _row(predicted: Predicted, iou: float | None, cache: SeedCache | None) -> Row:
    return Row(
        predicted.name,
        predicted.image,
        predicted.final.numpy().astype(np.uint8),
        None if predicted.truth is None else predicted.truth.numpy().astype(np.uint8),
        cache.cues(predicted.name) if cache and predicted.name in cache else None,
        iou,
    )


def _taught(scored: Scored, cache: SeedCache | None) -> list[Section]:
    """Some training images with their cues; none where the training's data are not here."""
    if cache is None or scored.trained is None:
        return []
    photos = _training_photos(scored.data)
    if photos is None:
        return []
    cued = [index for index, name in enumerate(photos.ids) if name in cache]
    chosen = photos.subset([cued[i] for i in evenly(len(cued), TAUGHT_PICTURES)])
    stream = predictions(
        scored.trained, chosen, size=scored.data.hparams["eval_size"], batch_size=len(chosen), num_workers=0,
        crf=scored.crf, unreadable=UnreadableImages(1.0),
    )  # fmt: skip
    rows = [row for _, row in _score(stream, {"final": Tally(("background", *photos.classes))}, cache)]
    title, about = "What it learned from", "Training images, with the cues made from their tags."
    return [Section(title, about, rows)] if rows else []


def _training_photos(data: TagDataModule) -> PhotoSet | None:
    """The training's images, where they are here: with masks if all have one, as need not be, or else without."""
    for masks in (True, False):
        with suppress(InputError):
            return data.photos(str(data.hparams["train_split"]), labels=False, masks=masks)
    return None


def _cache(scored: Scored, cues: Path | None) -> SeedCache | None:
    """The cache that was asked for, or the training's if it is still there."""
    classes = scored.photos.classes
    if cues is not None:
        cache = SeedCache(cues)
        if tuple(cache.classes) != classes:
            raise InputError(
                f"the seed cache {cues} is of the classes {', '.join(cache.classes)}, not {', '.join(classes)}"
            )
        return cache
    stored = scored.trained.data.get("cues") if scored.trained else None
    if stored is None:
        return None
    try:
        cache = SeedCache(stored)
    except InputError:
        return None
    return cache if tuple(cache.classes) == classes else None
