"""Masks for any images."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.images import IMAGE_SUFFIXES
from datamodules.masks import write_mask
from datamodules.photos import file_photos
from datamodules.progress import track
from datamodules.unreadable import UnreadableImages
from seeds.precision import Precision
from training.exported import is_exported, load_exported
from training.image_overlays import encode_image, label_overlay
from training.inference import load_trained, predictions

__all__ = ["check_skipped", "photo_files", "predict", "write_skipped"]

OVERLAY_QUALITY = 90
SKIPPED = "skipped.csv"


def predict(
    checkpoint: Path,
    images: Path | list[Path],
    output: Path,
    *,
    crf: bool = True,
    overlay: bool = False,
    precision: Precision = "auto",
    batch_size: int = 8,
    num_workers: int = 2,
) -> list[Path]:
    """Write the mask of each image: a palette PNG of the image's own size (upright), named like the image.

    Index 0 is background, 1, 2, ... are the classes in the order of the ``classes.txt`` written beside them. Each image
    is read once, and each mask is written as soon as it is known. An image that cannot be read is skipped: it is named
    on the terminal and in ``skipped.csv`` with the reason, and the exit status is 1.

    Args:
        checkpoint: a checkpoint of ``tag2mask fit`` with a segmentation task, or what ``tag2mask export`` wrote.
        images: an image, a folder of images, or several of either as a list.
        output: folder for the masks; made if need be.
        crf: smooth predictions with the dense CRF.
        overlay: write ``<name>_overlay.jpg`` too, the mask in colour over the image.
        precision: what the network of a checkpoint computes in: auto, 32-true or bf16-mixed. auto takes bf16-mixed
            where the processor computes bfloat16 natively, else 32-true (see `seeds.precision`). An exported network
            computes in float32.
        batch_size: images at a time through the network.
        num_workers: processes that read images.

    Returns:
        The masks' paths.

    Raises:
        InputError: there is no image, two have the same name, a mask would replace an image, or images were skipped.
    """
    if batch_size < 1 or num_workers < 0:
        raise InputError(f"batch_size {batch_size} must be at least 1, and num_workers {num_workers} at least 0")
    trained = load_exported(checkpoint) if is_exported(checkpoint) else load_trained(checkpoint, precision)
    photos = file_photos(list(photo_files([images] if isinstance(images, Path) else images)), trained.classes)
    targets = {name: output / f"{name}.png" for name in photos.ids}
    originals = {path.resolve() for path in photos.images}
    for target in targets.values():
        if target.resolve() in originals:
            raise InputError(f"the mask {target} would replace a photo: choose another output folder")
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "classes.txt", "".join(f"{name}\n" for name in trained.classes).encode())
    skipped = UnreadableImages(1.0)
    stream = predictions(
        trained, photos, size=trained.size, batch_size=batch_size, num_workers=num_workers, crf=crf, unreadable=skipped
    )
    try:
        for each in track(stream, "predicting", len(photos)):
            mask = each.final.numpy().astype(np.uint8)
            write_mask(targets[each.name], mask)
            if overlay:
                picture = encode_image(label_overlay(each.image, mask), "jpeg", quality=OVERLAY_QUALITY)
                write_atomically(output / f"{each.name}_overlay.jpg", picture)
    finally:
        files = dict(zip(photos.ids, photos.images, strict=True))
        write_skipped(output, {files[name]: reason for name, reason in skipped.found.items()})
    check_skipped(output, list(skipped.found.values()), len(photos))
    return list(targets.values())


def write_skipped(output: Path, skipped: Mapping[Path, str]) -> None:
    """Write ``skipped.csv``: the images that cannot be read, and why. Without any, remove that of an earlier run."""
    if not skipped:
        (output / SKIPPED).unlink(missing_ok=True)
        return
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "reason"])
    writer.writerows([str(path), reason] for path, reason in skipped.items())
    write_atomically(output / SKIPPED, file.getvalue().encode())


def check_skipped(output: Path, reasons: Sequence[str], total: int) -> None:
    """Raise an InputError if images were skipped, so that the command ends with status 1."""
    if reasons:
        raise InputError(
            f"{len(reasons)} of {total} images were skipped, {output / SKIPPED} lists them; the first: {reasons[0]}"
        )


def photo_files(images: Sequence[Path]) -> Iterator[Path]:
    """Photos as given, and those in folders by name.

    Raises:
        InputError: no photo is given, or a folder holds none.
    """
    if not images:
        raise InputError("no photo is given: name photos or a folder of them")
    for path in images:
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise InputError(f"there is no photo in {path} ({', '.join(IMAGE_SUFFIXES)})")
        yield from found
