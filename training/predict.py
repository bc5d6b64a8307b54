# ruff: noqa: A002  format is the name of an option
"""`tag2mask predict`: masks of any images."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from upath import UPath

from datamodules.annotation_export import AnnotationFormat, LabelledImage, write_annotations
from datamodules.dataset import ImageDataset, image_loader
from datamodules.errors import InputError
from datamodules.files import (
    AnyPath,
    differences,
    file_sha256,
    is_uri,
    list_folder,
    new_folder,
    open_atomically,
    require_folder,
    write_atomically,
)
from datamodules.geotiff import Georeference, mask_geotiff, read_georeference
from datamodules.images import IMAGE_SUFFIXES, is_turned
from datamodules.masks import mask_png
from datamodules.progress import print_message, track
from datamodules.sample import Sample, file_samples
from datamodules.source_revision import ALL_PACKAGES, source_revision
from datamodules.tables import TABLES, read_rows
from datamodules.tar_files import find_tars
from datamodules.transforms import resize_nearest
from datamodules.unreadable_images import UnreadableImages
from datamodules.webdataset import tar_samples
from seeds.distributed import local_rank, read_partition, require_one_process
from seeds.precision import Precision
from seeds.provenance import package_versions
from seeds.tiles import Tiling
from training.export import Exported, load_exported
from training.image_overlays import encode_image, label_overlay
from training.inference import Predicted, load_trained, predictions

OVERLAY_QUALITY = 90
PAX_KEY = "comment"  # of the PAX header of a tar file of masks: what the masks depend on, as JSON
SKIPPED = "skipped"  # key of that JSON: the images that could not be read


def predict(
    checkpoint: UPath,
    images: UPath | list[UPath],
    output: Path,
    *,
    format: Literal["png", AnnotationFormat] = "png",
    crf: bool = True,
    overlay: bool = False,
    tile: int | None = None,
    overlap: float = 0.25,
    partition: str = "0/1",
    precision: Precision = "auto",
    batch_size: int = 8,
    num_workers: int = 2,
) -> list[Path]:
    """Write the mask of each image: a palette PNG of the image's own size (upright), named like the image.

    The mask of a GeoTIFF is a GeoTIFF of one band, ``<name>.tif``, with the CRS and transform of the image; it needs
    ``pip install 'tag2mask[geotiff]'``. One with an orientation other than upright has a PNG.

    Index 0 is background, 1, 2, ... are the classes in the order of the ``classes.txt`` written beside the masks. Each
    image is read once, and each mask is written immediately. An image that cannot be read is skipped: the terminal and
    ``skipped.csv`` list it with the reason, and the exit status is 1.

    Other formats than PNG are those of annotation tools and libraries, for correction there: see
    `datamodules.annotation_export.write_annotations`. They contain the names of the classes themselves.

    The masks of a tar file are a tar file of the same name with a member ``KEY.png`` for each image, see
    `datamodules.webdataset.WebDatasetDataModule`. One that exists with the same settings is kept.

    Args:
        checkpoint: a segmentation checkpoint of ``tag2mask fit``, named ``*.ckpt``, or else a network written by
            ``tag2mask export``.
        images: an image, a folder of images, or a list of both; a URI whose name has no suffix of an image is a folder.
            Or a table (``.csv``, ``.jsonl``) with the columns ``image`` and, if masks are not named like the images,
            ``id``: such as the ``review.csv`` of ``tag2mask review``. Or tar files, such as
            ``shards/x-{000..099}.tar`` or ``shards/*.tar``.
        output: folder for the masks; created if necessary.
        format: png, or coco, yolo, label-studio, cvat or huggingface; ``output`` must then be new or empty.
        crf: smooth predictions with the dense CRF.
        overlay: also write ``<name>_overlay.jpg``, the mask in colour over the image (of an image in tiles, reduced to
            at most 2,048 pixels on a side).
        tile: height and width in pixels above which an image is cut into overlapping tiles of this size, whose class
            probabilities are blended; by default images of any size are resized as a whole.
        overlap: fraction of a tile's side that neighbouring tiles share.
        partition: i/N, with i from 0 to N-1: predict only the batches (of tar files: the files) i, i + N, i + 2 N, …;
            N independent jobs predict all. The list of skipped images is then ``skipped-i-of-N.csv``.
        precision: precision in which a checkpoint's network computes: auto, 32-true or bf16-mixed. auto is bf16-mixed
            where the processor computes bfloat16 natively, else 32-true (see `seeds.precision`). An exported network
            computes in float32.
        batch_size: images per batch.
        num_workers: processes that read images.

    Returns:
        The paths of the masks.

    Raises:
        InputError: there is no image, two have the same name, the output is a folder of the images or no folder, a tar
            file exists with masks of other settings, the format excludes another option, or images were skipped.
    """
    require_folder(output)
    part, parts = read_partition(partition)
    if parts == 1:
        require_one_process("predict")
    elif torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    if batch_size < 1 or num_workers < 0:
        raise InputError(f"batch_size {batch_size} must be at least 1, and num_workers {num_workers} at least 0")
    tiling = None if tile is None else Tiling(tile, overlap)
    network = load_trained(checkpoint, precision) if checkpoint.suffix == ".ckpt" else load_exported(checkpoint)
    paths = images if isinstance(images, list) else [images]
    skipped = UnreadableImages(1.0)

    def predicted(chosen: Sequence[Sample], title: str) -> Iterator[Predicted]:
        dataset = ImageDataset(
            chosen, network.classes, network.size, originals=True, channels=network.in_channels, largest=tile
        )
        loader = image_loader(dataset, batch_size=batch_size, num_workers=num_workers)
        yield from track(predictions(network.scores, loader, skipped, crf=crf, tiling=tiling), title, len(chosen))

    def files(chosen: Sequence[Sample], title: str, places: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of the files of each image."""
        for each in predicted(chosen, title):
            place = places.get(each.name)
            mask = mask_geotiff(each.final, place) if place else mask_png(each.final)
            yield f"{each.name}{'.tif' if place else '.png'}", mask
            if overlay:
                labels = resize_nearest(each.final, *each.image.shape[:2])  # an image in tiles is reduced
                blended = encode_image(label_overlay(each.image, labels), "jpeg", quality=OVERLAY_QUALITY)
                yield f"{each.name}_overlay.jpg", blended

    samples, written = list[Sample](), list[Path]()
    classes = "".join(f"{name}\n" for name in network.classes).encode()
    in_tars = bool(paths) and all(path.suffix == ".tar" for path in paths)
    if format != "png" and (in_tars or overlay or parts > 1):
        raise InputError(f"the format {format} is written by one job, without overlays, and not from tar files")
    if format != "png":
        samples = photo_samples(paths)
        images_by_id = {sample.id: sample.image for sample in samples}
        masks = (
            LabelledImage(each.name, images_by_id[each.name], each.final) for each in predicted(samples, "predicting")
        )
        with new_folder(output) as folder:
            write_annotations(format, folder, network.classes, masks)
        written = sorted(path for path in output.rglob("*") if path.is_file())
    elif in_tars:
        digest = network.checkpoint_sha256 if isinstance(network, Exported) else file_sha256(checkpoint)
        settings = {
            "checkpoint_sha256": digest, "crf": crf, "overlay": overlay, "batch_size": batch_size,
            "tile": tile, "overlap": overlap if tile else None, "precision": getattr(network, "precision", "32-true"),
            "packages": package_versions(), "source": source_revision(ALL_PACKAGES),
        }  # fmt: skip
        tars = [(path.parent, *tar) for path in paths for tar in find_tars(path.parent, path.name).items()]
        if len({name for _, name, _ in tars}) < len(tars):
            raise InputError("two of the tar files have the same name, and so would their tar files of masks")
        for parent, name, size in tars[part::parts]:
            written.append(output / name)
            header = settings | {"input": name, "input_bytes": size}
            samples += _predict_tar(parent / name, written[-1], header, classes, files, skipped)
    else:
        listed = photo_samples(paths)  # a job has whole batches, so that masks have the bits of one process
        for first in range(part * batch_size, len(listed), parts * batch_size):
            samples += listed[first : first + batch_size]
        places = {sample.id: _place(sample.image) for sample in samples}
        written = [output / f"{name}{'.tif' if place else '.png'}" for name, place in places.items()]
        forbid_replacing(listed, [*written, output / "classes.txt"])
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "classes.txt", classes)
        for name, content in files(samples, "predicting", places):
            (output / name).parent.mkdir(parents=True, exist_ok=True)  # an id in a table may be a path
            write_atomically(output / name, content)
    report_skipped(output, samples, skipped.reasons, "" if parts == 1 else f"-{part}-of-{parts}")
    return written


def _predict_tar(
    source: AnyPath, tar: Path, header: dict[str, Any], classes: bytes,
    files: Callable[[Sequence[Sample], str, Mapping[str, Any]], Iterator[tuple[str, bytes]]], skipped: UnreadableImages,
) -> list[Sample]:  # fmt: skip
    """Write the masks of a tar file of images as a tar file, unless it exists; return the samples of the images.

    Args:
        source: the images.
        tar: the masks.
        header: what the masks depend on.
        classes: content of ``classes.txt``.
        files: returns name and content of the files of images.
        skipped: images that could not be read are added.
    """
    if (earlier := _read_predicted(tar, header)) is not None:
        print_message(f"{tar} is there already, made with these settings")
        for key in (key for key, readable in earlier.items() if not readable):
            skipped.reasons[key] = f"{key} could not be read when {tar} was written: remove it to try again"
        return [Sample(key, f"{key} in {source}") for key in earlier]
    samples = sorted(tar_samples(source, tags=False), key=lambda sample: sample.id)
    masks = dict(files(samples, f"predicting {tar.name}", {}))
    tar.parent.mkdir(parents=True, exist_ok=True)
    lacking = [sample.id for sample in samples if sample.id in skipped.reasons]
    _write_tar(tar, header | {SKIPPED: lacking}, {"classes.txt": classes, **masks})
    return samples


def _read_predicted(tar: Path, header: Mapping[str, Any]) -> dict[str, bool] | None:
    """Return the images of a tar file of masks, and whether each was readable; None where there is no such file.

    Raises:
        InputError: it has another header, or is no tar file of masks.
    """
    if not tar.exists():
        return None
    try:
        with tarfile.open(tar) as archive:
            found = json.loads(archive.pax_headers[PAX_KEY])
            lacking = found.pop(SKIPPED)
            images = [name.removesuffix(".png") for name in archive.getnames() if name.endswith(".png")]
    except (tarfile.TarError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{tar} exists already, and is no tar file of masks: choose another output") from error
    for key, one, other in differences(found, header):
        package = key.removeprefix("source.")
        what = f"{key} {one!r}, not {other!r}" if package == key else f"another revision of the code in {package}/"
        raise InputError(f"{tar} exists already, made with {what}: remove it, or choose another output")
    return dict.fromkeys(images, True) | dict.fromkeys(lacking, False)


def _write_tar(tar: Path, header: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write a tar file whose bytes follow from its members alone: the header, and files without date and owner."""
    text = json.dumps(header, sort_keys=True)
    with (
        open_atomically(tar) as file,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={PAX_KEY: text}) as archive,
    ):
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _place(image: str) -> Georeference | None:
    """Return the place of an upright GeoTIFF, whose mask has it, too; that of a turned one is of its stored pixels."""
    place = read_georeference(image)
    return None if place is None or is_turned(image) else place


def forbid_replacing(samples: Sequence[Sample], targets: Iterable[Path]) -> None:
    """Raise an InputError if a file to write is one of the images, or if it would be in a folder of the images.

    Masks among the images would be taken for images by the next command, and replace files beside the images.
    """
    local = [Path(sample.image) for sample in samples if not is_uri(sample.image)]
    originals = {path.resolve() for path in local}
    folders = {path.parent for path in originals}
    folders |= {folder.resolve() for folder in {path.parent for path in local}}  # of links
    for target in targets:
        resolved = target.resolve()
        if resolved in originals:
            raise InputError(f"{target} would replace an image: choose another output folder")
        if resolved.parent in folders:
            raise InputError(f"{target.parent} is a folder of the images: choose another output folder")


def report_skipped(output: Path, samples: Sequence[Sample], skipped: Mapping[str, str], part: str = "") -> None:
    """Write ``skipped.csv``, the images that cannot be read with the reasons; without any, remove an earlier one.

    Args:
        output: the folder for the file.
        samples: all images.
        skipped: the reason for each skipped image by id.
        part: end of the file's name, of the job that predicts a part of the images.

    Raises:
        InputError: images were skipped; the command then ends with status 1.
    """
    table = output / f"skipped{part}.csv"
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
    """Return samples of the given images, of those in the given folders, by name, and of those in the given tables.

    Raises:
        InputError: an image does not exist, a folder contains none, none is given, or two have the same name.
    """
    files, ids = [], dict[str, str]()
    for path in paths:
        found = [path]
        if path.suffix.lower() in TABLES:
            header, rows = read_rows(path)
            if "image" not in header:
                raise InputError(f"{path} has no column image with the path of each image")
            given = [(UPath(image), row.get("id")) for _, row in rows if (image := str(row.get("image") or "").strip())]
            found = [image for image, _ in given]
            ids |= {str(image): str(name) for image, name in given if name}
        elif path.suffix.lower() not in IMAGE_SUFFIXES if is_uri(path) else path.is_dir():
            names = list_folder(path)[1]
            found = [path / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
        if not found:
            raise InputError(f"there is no image in {path} ({', '.join(IMAGE_SUFFIXES)})")
        files += found
    if not files:
        raise InputError("no image is given: name images or a folder of them")
    return file_samples(files, ids)
