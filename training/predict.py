"""`tag2mask predict`: masks of any images."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from datamodules.dataset import ImageDataset, image_loader
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.images import IMAGE_SUFFIXES
from datamodules.masks import write_mask
from datamodules.progress import track
from datamodules.sample import file_samples
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

    Index 0 is background, 1, 2, ... are the classes in the order of the ``classes.txt`` written beside the masks. Each
    image is read once, and each mask is written immediately. An image that cannot be read is skipped: the terminal and
    ``skipped.csv`` list it with the reason, and the exit status is 1.

    Args:
        checkpoint: a segmentation checkpoint of ``tag2mask fit``, or a network written by ``tag2mask export``.
        images: an image, a folder of images, or a list of both.
        output: folder for the masks; created if necessary.
        crf: smooth predictions with the dense CRF.
        overlay: also write ``<name>_overlay.jpg``, the mask in colour over the image.
        precision: precision in which a checkpoint's network computes: auto, 32-true or bf16-mixed. auto is bf16-mixed
            where the processor computes bfloat16 natively, else 32-true (see `seeds.precision`). An exported network
            computes in float32.
        batch_size: images per batch.
        num_workers: processes that read images.

    Returns:
        The paths of the masks.

    Raises:
        InputError: there is no image, two have the same name, a mask would replace an image, or images were skipped.
    """
    if batch_size < 1 or num_workers < 0:
        raise InputError(f"batch_size {batch_size} must be at least 1, and num_workers {num_workers} at least 0")
    network = load_exported(checkpoint) if is_exported(checkpoint) else load_trained(checkpoint, precision)
    samples = file_samples(list(photo_files([images] if isinstance(images, Path) else images)))
    files = {sample.id: Path(sample.image) for sample in samples}
    masks = {name: output / f"{name}.png" for name in files}
    originals = {path.resolve() for path in files.values()}
    for path in masks.values():
        if path.resolve() in originals:
            raise InputError(f"the mask {path} would replace an image: choose another output folder")
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "classes.txt", "".join(f"{name}\n" for name in network.classes).encode())
    skipped = UnreadableImages(1.0)
    dataset = ImageDataset(samples, network.classes, network.size, originals=True)
    loader = image_loader(dataset, batch_size=batch_size, num_workers=num_workers)
    try:
        for each in track(predictions(network, loader, crf=crf, unreadable=skipped), "predicting", len(samples)):
            mask = each.final.numpy().astype(np.uint8)
            write_mask(masks[each.name], mask)
            if overlay:
                blended = encode_image(label_overlay(each.image, mask), "jpeg", quality=OVERLAY_QUALITY)
                write_atomically(output / f"{each.name}_overlay.jpg", blended)
    finally:
        write_skipped(output, {files[name]: reason for name, reason in skipped.found.items()})
    check_skipped(output, list(skipped.found.values()), len(samples))
    return list(masks.values())


def write_skipped(output: Path, skipped: Mapping[Path, str]) -> None:
    """Write ``skipped.csv``, the images that cannot be read with the reasons; without any, remove an earlier one."""
    if not skipped:
        (output / SKIPPED).unlink(missing_ok=True)
        return
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows([("file", "reason"), *((str(path), reason) for path, reason in skipped.items())])
    write_atomically(output / SKIPPED, file.getvalue().encode())


def check_skipped(output: Path, reasons: Sequence[str], total: int) -> None:
    """Raise an InputError if images were skipped, so that the command ends with status 1."""
    if reasons:
        raise InputError(
            f"{len(reasons)} of {total} images were skipped, {output / SKIPPED} lists them; the first: {reasons[0]}"
        )


def photo_files(images: Sequence[Path]) -> Iterator[Path]:
    """Yield the given images, and the images in given folders by name.

    Raises:
        InputError: no image is given, or a folder contains none.
    """
    if not images:
        raise InputError("no image is given: name images or a folder of them")
    for path in images:
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise InputError(f"there is no image in {path} ({', '.join(IMAGE_SUFFIXES)})")
        yield from found
