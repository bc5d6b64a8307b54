"""A page of images by stages: what each seed cache says of them, one after the other, a network, and the truth."""

import base64
import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from datamodules.datamodule import TagDataModule, covered
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.images import read_image
from datamodules.masks import read_class_mask
from datamodules.photos import PhotoSet
from datamodules.progress import track
from datamodules.seed_cache import NO_CUE, SeedCache
from datamodules.transforms import resize_nearest
from datamodules.unreadable import UnreadableImages
from seeds.data import data_settings
from seeds.evaluation.confusion_matrix import ConfusionMatrix
from training.drawings import heat_picture
from training.image_overlays import cue_picture, jpeg, label_picture, shrink
from training.inference import Trained, data_module, load_trained, predictions
from training.reports.charts import css_colour
from training.reports.example_selection import Gallery, Row, Section

__all__ = ["show_seeds"]

LONGEST = 200  # pixels of a panel's longer side
JPEG_QUALITY = 82
STYLE = """main { max-width: 1560px; }
.steps { display: grid; gap: 16px; }
.steps .row { display: flex; flex-wrap: wrap; gap: 10px; }
.steps figure { margin: 0; }
@media (min-width: 1000px) { .steps .row { flex-wrap: nowrap; } .steps figure { min-width: 0; } }
.steps img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
.steps figcaption { color: var(--soft); font-size: 13px; margin-top: 4px; }
"""

Image = NDArray[np.uint8]


class Panel(NamedTuple):
    """An image uint8 (h, w, 3) and the line under it."""

    image: Image
    caption: str


def show_seeds(
    *caches: Path,
    output: Path,
    root: str | None = None,
    split: str | None = None,
    masks: str | None = None,
    checkpoint: Path | None = None,
    num_images: int = 24,
) -> None:
    """Write ``index.html``: a row an image, with the first cache's maps, each cache's cues, a prediction, the truth.

    A third of the images are those of which the last cache is most right, a third those of which it is least, by the
    mean IoU of its cues over the image's classes; the others are drawn by a fixed seed. Without masks all are.

    Args:
        caches: seed caches in the order they were made in, each with the IoU of its cues under them.
        output: folder for the page; made if need be.
        root: folder of the images and masks; as recorded in the first cache if not given.
        split: which list of images, all of them in every cache; as recorded if not given.
        masks: name of the folder of masks; as recorded if not given.
        checkpoint: a segmentation network's, to show what it predicts of the images; with the dense CRF.
        num_images: how many to show.

    Raises:
        InputError: caches of different classes, images that one of them lacks, or a checkpoint of other
            classes.
    """
    if num_images < 1:
        raise InputError(f"num_images {num_images} is not a positive number")
    opened = [SeedCache(path) for path in caches]
    settings = data_settings(opened[0].inputs.get("data"), opened[0].classes, root=root, train_split=split, masks=masks)
    data = TagDataModule(**settings)
    photos = data.photos(data.hparams["train_split"], labels=False)
    for cache in opened:
        photos = covered(cache, photos)
    trained = None if checkpoint is None else load_trained(checkpoint)
    if trained is not None and tuple(trained.classes) != photos.classes:
        raise InputError(f"{checkpoint} knows other classes than the seed caches: {', '.join(trained.classes)}")
    gallery = Gallery(len(photos), num_images)
    for row in track(_rows(opened[-1], photos), "choosing images", len(photos)):
        gallery.offer(row)
    sections = gallery.sections()
    chosen = [photos.ids.index(row.name) for section in sections for row in section.rows]
    seen = {} if trained is None else _predicted(trained, photos.subset(chosen), root)
    body = "\n".join(_section(section, caches, opened, photos, seen) for section in sections)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "index.html", _page(body, photos.classes, caches).encode())


def _rows(cache: SeedCache, photos: PhotoSet) -> Iterator[Row]:
    """Each image with a cache's cues, and how right they are."""
    for index, name in enumerate(photos.ids):
        cues, truth = cache.cues(name), _truth(photos, index)
        blank = np.zeros((0, 0, 3), np.uint8)  # read when it is shown
        yield Row(name, blank, cues, truth, cues, None if truth is None else _iou(cues, truth, photos.classes))


def _truth(photos: PhotoSet, index: int) -> NDArray[np.uint8] | None:
    path = photos.masks[index] if photos.masks else None
    return None if path is None or photos.lut is None else read_class_mask(path, photos.lut)


def _iou(cues: NDArray[np.integer], truth: NDArray[np.integer], classes: Sequence[str]) -> float | None:
    """Mean IoU of an image's cues over its classes; cells without a cue count as background."""
    labels = resize_nearest(np.where(cues == NO_CUE, 0, cues).astype(np.uint8), *truth.shape).astype(np.int64)
    confusion = ConfusionMatrix(len(classes) + 1)
    confusion.update(torch.from_numpy(labels), torch.from_numpy(truth.astype(np.int64)))
    miou = confusion.miou()
    return None if math.isnan(miou) else miou


def _predicted(trained: Trained, photos: PhotoSet, root: str | None) -> dict[str, NDArray[np.uint8]]:
    """What the network predicts of images, by their ids: label maps (H, W)."""
    hp = data_module(trained, root=root).hparams
    stream = predictions(
        trained, photos, size=hp["eval_size"], batch_size=hp["batch_size"], num_workers=hp["num_workers"], crf=True,
        unreadable=UnreadableImages(1.0),
    )  # fmt: skip
    return {each.name: each.final.numpy().astype(np.uint8) for each in stream}


def _section(
    section: Section,
    paths: Sequence[Path],
    caches: Sequence[SeedCache],
    photos: PhotoSet,
    seen: dict[str, NDArray[np.uint8]],
) -> str:
    rows = "\n".join(_row(row, paths, caches, photos, seen.get(row.name)) for row in section.rows)
    return (
        f"<section>\n<h2>{escape(section.title)}</h2>\n<p class=note>{escape(section.about)}</p>\n"
        f"<div class=steps>\n{rows}\n</div>\n</section>"
    )


def _row(
    row: Row,
    paths: Sequence[Path],
    caches: Sequence[SeedCache],
    photos: PhotoSet,
    prediction: NDArray[np.uint8] | None,
) -> str:
    image = shrink(read_image(photos.images[photos.ids.index(row.name)]), LONGEST)
    panels = [Panel(image, row.name), *_heats(image, caches[0], row.name)]
    for path, cache in zip(paths, caches, strict=True):
        cues = cache.cues(row.name)
        iou = None if row.truth is None else _iou(cues, row.truth, photos.classes)
        panels.append(Panel(cue_picture(image, cues), path.name + _said(iou)))
    for labels, caption in ((prediction, "prediction"), (row.truth, "truth")):
        if labels is not None:
            panels.append(Panel(label_picture(image, resize_nearest(labels, *image.shape[:2])), caption))
    return f"<article><div class=row>{''.join(map(_figure, panels))}</div></article>"


def _heats(image: Image, cache: SeedCache, name: str) -> Iterator[Panel]:
    """The maps of a cache over the image, a panel a class."""
    classes, maps = cache.maps(name)
    if not len(maps):
        return
    large = functional.interpolate(torch.from_numpy(maps.astype(np.float32))[None], image.shape[:2], mode="bilinear")[0]
    for index, heat in zip(classes, large.numpy(), strict=True):
        yield Panel(heat_picture(image, heat), f"map of {cache.classes[index]}")


def _said(iou: float | None) -> str:
    return "" if iou is None else f", IoU {100 * iou:.0f}"


def _figure(panel: Panel) -> str:
    source = base64.b64encode(jpeg(panel.image, quality=JPEG_QUALITY)).decode("ascii")
    height, width = panel.image.shape[:2]
    caption = escape(panel.caption, quote=True)
    return (
        f"<figure><img src='data:image/jpeg;base64,{source}' width={width} height={height} loading=lazy "
        f"alt='{caption}'><figcaption>{caption}</figcaption></figure>"
    )


def _page(body: str, classes: Sequence[str], caches: Sequence[Path]) -> str:
    style = files("training.reports").joinpath("report.css").read_text(encoding="utf-8")
    chips = "".join(
        f"<span class=chip><i style='background:{css_colour(index)}'></i>{escape(name)}</span>"
        for index, name in enumerate(("background cue", *classes))
    )
    made = "".join(f"<div><dt>cache</dt><dd>{escape(str(path))}</dd></div>" for path in caches)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>tag2mask: stages</title>\n<style>\n{style}{STYLE}'
        "</style>\n</head>\n<body>\n<main>\n<header>\n<p class=brand>tag2mask</p>\n<h1>What each stage says</h1>\n"
        f"<div class=chips>{chips}</div>\n</header>\n{body}\n<footer><dl>{made}</dl></footer>\n"
        "</main>\n</body>\n</html>\n"
    )
