"""`tag2mask predict`: masks of any images."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from upath import UPath

from datamodules.dataset import ImageDataset, image_loader
from datamodules.errors import InputError
from datamodules.files import AnyPath, is_uri, list_folder, write_atomically
from datamodules.geotiff import mask_geotiff, read_georeference
from datamodules.images import IMAGE_SUFFIXES
from datamodules.masks import mask_png
from datamodules.progress import track
from datamodules.sample import Sample, file_samples
from datamodules.transforms import resize_nearest
from datamodules.unreadable_images import UnreadableImages
from seeds.precision import Precision
from seeds.tiles import Tiling
from training.export import load_exported
from training.image_overlays import encode_image, label_overlay
from training.inference import load_trained, predictions

OVERLAY_QUALITY = 90


def predict(
    checkpoint: UPath,
    images: UPath | list[UPath],
    output: Path,
    *,
    crf: bool = True,
    overlay: bool = False,
    tile: int | None = None,
    overlap: float = 0.25,
    precision: Precision = "auto",
    batch_size: int = 8,
    num_workers: int = 2,
) -> list[Path]:
    """Write the mask of each image: a palette PNG of the image's own size (upright), named like the image.

    The mask of a GeoTIFF is a GeoTIFF of one band, ``<name>.tif``, with the CRS and transform of the image; it needs
    ``pip install 'tag2mask[geotiff]'``.

    Index 0 is background, 1, 2, ... are the classes in the order of the ``classes.txt`` written beside the masks. Each
    image is read once, and each mask is written immediately. An image that cannot be read is skipped: the terminal and
    ``skipped.csv`` list it with the reason, and the exit status is 1.

    Args:
        checkpoint: a segmentation checkpoint of ``tag2mask fit``, named ``*.ckpt``, or else a network written by
            ``tag2mask export``.
        images: an image, a folder of images, or a list of both; a URI whose name has no suffix of an image is a folder.
        output: folder for the masks; created if necessary.
        crf: smooth predictions with the dense CRF.
        overlay: also write ``<name>_overlay.jpg``, the mask in colour over the image (of an image in tiles, reduced to
            at most 2,048 pixels on a side).
        tile: height and width in pixels above which an image is cut into overlapping tiles of this size, whose class
            probabilities are blended; by default images of any size are resized as a whole.
        overlap: fraction of a tile's side that neighbouring tiles share.
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
    tiling = None if tile is None else Tiling(tile, overlap)
    network = load_trained(checkpoint, precision) if checkpoint.suffix == ".ckpt" else load_exported(checkpoint)
    samples = photo_samples(images if isinstance(images, list) else [images])
    places = {sample.id: read_georeference(sample.image) for sample in samples}
    masks = {name: output / f"{name}{'.tif' if place else '.png'}" for name, place in places.items()}
    forbid_replacing(samples, masks.values())
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "classes.txt", "".join(f"{name}\n" for name in network.classes).encode())
    skipped = UnreadableImages(1.0)
    dataset = ImageDataset(
        samples, network.classes, network.size, originals=True, channels=network.in_channels, largest=tile
    )
    loader = image_loader(dataset, batch_size=batch_size, num_workers=num_workers)
    stream = predictions(network.scores, loader, skipped, crf=crf, tiling=tiling)
    for each in track(stream, "predicting", len(samples)):
        place = places[each.name]
        write_atomically(masks[each.name], mask_geotiff(each.final, place) if place else mask_png(each.final))
        if overlay:
            labels = resize_nearest(each.final, *each.image.shape[:2])  # an image in tiles is reduced
            blended = encode_image(label_overlay(each.image, labels), "jpeg", quality=OVERLAY_QUALITY)
            write_atomically(output / f"{each.name}_overlay.jpg", blended)
    report_skipped(output, samples, skipped.found)
    return list(masks.values())


def forbid_replacing(samples: Sequence[Sample], targets: Iterable[Path]) -> None:
    """Raise an InputError if one of the files to write is one of the images."""
    originals = {Path(sample.image).resolve() for sample in samples if not is_uri(sample.image)}
    for target in targets:
        if target.resolve() in originals:
            raise InputError(f"{target} would replace an image: choose another output folder")


def report_skipped(output: Path, samples: Sequence[Sample], skipped: Mapping[str, str]) -> None:
    """Write ``skipped.csv``, the images that cannot be read with the reasons; without any, remove an earlier one.

    Args:
        output: the folder for the file.
        samples: all images.
        skipped: the reason for each skipped image by id.

    Raises:
        InputError: images were skipped; the command then ends with status 1.
    """
    table = output / "skipped.csv"
    if not skipped:
        table.unlink(missing_ok=True)
        return
    rows = [(sample.image, skipped[sample.id]) for sample in samples if sample.id in skipped]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("file", "reason"), *rows])
    write_atomically(table, text.getvalue().encode())
    count = f"{len(rows)} of {len(samples)} images were skipped"
    raise InputError(f"{count}, {table} lists them; the first: {rows[0][1]}")


def photo_samples(paths: Sequence[AnyPath]) -> list[Sample]:
    """Return samples of the given images and of the images in the given folders, those of a folder by name.

    Raises:
        InputError: an image does not exist, a folder contains none, none is given, or two have the same name.
    """
    files = []
    for path in paths:
        found = [path]
        if path.suffix.lower() not in IMAGE_SUFFIXES if is_uri(path) else path.is_dir():
            names = list_folder(path)[1]
            found = [path / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise InputError(f"there is no image in {path} ({', '.join(IMAGE_SUFFIXES)})")
        files += found
    if not files:
        raise InputError("no image is given: name images or a folder of them")
    return file_samples(files)
