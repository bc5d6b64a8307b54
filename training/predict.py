# ruff: noqa: A002  format is the name of an option
"""`tag2mask predict`: masks of any images."""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from upath import UPath

from datamodules.annotations.exports import AnnotationFormat, LabelledImage, write_annotations
from datamodules.class_names import class_list
from datamodules.dataset import ImageDataset, image_loader
from datamodules.errors import InputError
from datamodules.files import AnyPath, check_output_folder, file_sha256, new_folder, read_lines, write_atomically
from datamodules.geotiff import Georeference, mask_geotiff, read_georeference
from datamodules.images import is_turned
from datamodules.masks import mask_png
from datamodules.progress import print_message, track
from datamodules.sample import Sample
from datamodules.setting_differences import first_difference
from datamodules.source_revision import ALL_PACKAGES, source_revision
from datamodules.tar_files import find_tars, write_tar
from datamodules.transforms import resize_nearest
from datamodules.unreadable_images import UnreadableImages
from datamodules.webdataset import tar_samples
from seeds.checkpoints import refuse_folder_of_run
from seeds.distributed import local_rank, read_partition, require_one_process
from seeds.precision import Precision
from seeds.provenance import package_versions
from seeds.tiles import Tiling
from training.exported_network import ExportedNetwork, load_exported
from training.image_overlays import encode_image, label_overlay
from training.inference import Prediction, TrainedNetwork, load_trained, predictions
from training.photos import forbid_replacing, photo_samples, report_skipped

OVERLAY_QUALITY = 90
SKIPPED = "skipped"  # key in the comment of a tar file of masks, a JSON: the images that could not be read


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
    ``pip install -c constraints.txt '.[geotiff]'``. One with an orientation other than upright has a PNG.

    Index 0 is background, 1, 2, ... are the classes in the order of the ``classes.txt`` written beside the masks. Each
    image is read once, and each mask is written immediately. An image that cannot be read is skipped: the terminal and
    ``skipped.csv`` list it with the reason, and the exit status is 1.

    Other formats than PNG are those of annotation tools and libraries, for correction there: see
    `datamodules.annotations.exports.write_annotations`. They contain the names of the classes themselves.

    The masks of a tar file are a tar file of the same name with a member ``KEY.png`` for each image, see
    `datamodules.webdataset.WebDatasetDataModule`. One that exists with the same settings is kept. A tar file that
    cannot be read is skipped like an image.

    Args:
        checkpoint: a segmentation checkpoint of ``tag2mask fit``, named ``*.ckpt``, or else a network written by
            ``tag2mask export``.
        images: an image, a folder of images, or a list of both, as in '[a.jpg, folder]'. A URI whose name has no suffix
            of an image is a folder. A folder may contain a folder of images for each tag instead; masks are then in
            folders of these names. Or a table (``.csv``, ``.jsonl``) with the columns ``image`` and, if masks are not
            named like the images, ``id``: such as the ``review.csv`` of ``tag2mask review``; paths are relative to its
            folder. Or tar files, such as ``shards/x-{000..099}.tar`` or ``shards/*.tar``.
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
        InputError: there is no image, two have the same name, tar files are given beside others, the output is a
            folder of the images, the folder of their masks, of other classes or no folder, a tar file exists with masks
            of other settings, the format excludes another option, or images were skipped.
    """
    check_output_folder(output)
    part, parts = read_partition(partition)
    if parts == 1:
        require_one_process("predict")
    elif torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    if batch_size < 1 or num_workers < 0:
        raise InputError(f"batch_size {batch_size} must be at least 1, and num_workers {num_workers} at least 0")
    refuse_folder_of_run(checkpoint)
    network = load_trained(checkpoint, precision) if checkpoint.suffix == ".ckpt" else load_exported(checkpoint)
    tiling = None if tile is None else Tiling(tile, overlap)
    predictor = Predictor(network, crf, overlay, tiling, batch_size, num_workers)
    paths = images if isinstance(images, list) else [images]
    tars = [path for path in paths if path.suffix == ".tar"]
    if 0 < len(tars) < len(paths):
        raise InputError(f"images: {tars[0]} is a tar file, and others are none: predict tar files by themselves")
    in_tars = bool(tars)
    if format != "png" and (in_tars or overlay or parts > 1):
        raise InputError(f"the format {format} is written by one job, without overlays, and not from tar files")
    if format != "png":
        problems, written = _predict_annotations(predictor, paths, output, format)
    elif in_tars:
        digest = network.checkpoint_sha256 if isinstance(network, ExportedNetwork) else file_sha256(checkpoint)
        settings = {
            "checkpoint_sha256": digest, "crf": crf, "overlay": overlay, "batch_size": batch_size,
            "tile": tile, "overlap": overlap if tile else None, "precision": network.precision,
            "packages": package_versions(), "source": source_revision(ALL_PACKAGES),
        }  # fmt: skip
        problems, written = _predict_tars(predictor, paths, output, settings, part, parts)
    else:
        problems, written = _predict_images(predictor, paths, output, part, parts)
    report_skipped(output, problems, "" if parts == 1 else f"-{part}-of-{parts}")
    return written


@dataclass(frozen=True)
class Predictor:
    """A network and how images are predicted with it; see `predict` for crf, overlay, batch_size and num_workers.

    Attributes:
        network: the network.
        tiling: tiles of larger images; None: images of any size are resized as a whole.
        skipped: images that could not be read so far.
    """

    network: TrainedNetwork | ExportedNetwork
    crf: bool
    overlay: bool
    tiling: Tiling | None
    batch_size: int
    num_workers: int
    skipped: UnreadableImages = field(default_factory=lambda: UnreadableImages(1.0))

    def label_maps(self, samples: Sequence[Sample], title: str) -> Iterator[Prediction]:
        """Yield the label map of each readable image, and report progress under a title."""
        network, largest = self.network, None if self.tiling is None else self.tiling.side
        dataset = ImageDataset(
            samples, network.classes, network.size, with_originals=True, channels=network.in_channels, largest=largest
        )
        loader = image_loader(dataset, batch_size=self.batch_size, num_workers=self.num_workers)
        stream = predictions(network.scores, loader, self.skipped, crf=self.crf, tiling=self.tiling)
        yield from track(stream, title, len(samples))

    def files(
        self, samples: Sequence[Sample], title: str, georeferences: Mapping[str, Georeference | None]
    ) -> Iterator[tuple[str, bytes]]:
        """Yield name and content of the mask of each image, and of its overlay.

        Args:
            samples: the images.
            title: of the progress.
            georeferences: those of GeoTIFFs by id; their masks are GeoTIFFs.
        """
        for each in self.label_maps(samples, title):
            georeference = georeferences.get(each.id)
            mask = mask_geotiff(each.final, georeference) if georeference else mask_png(each.final)
            yield f"{each.id}{'.tif' if georeference else '.png'}", mask
            if self.overlay:
                labels = resize_nearest(each.final, *each.image.shape[:2])  # an image in tiles is reduced
                blended = encode_image(label_overlay(each.image, labels), "jpeg", quality=OVERLAY_QUALITY)
                yield f"{each.id}_overlay.jpg", blended


def _predict_annotations(
    predictor: Predictor, paths: Sequence[AnyPath], output: Path, format: AnnotationFormat
) -> tuple[dict[str, str], list[Path]]:
    """Write the masks of images in the format of an annotation tool; return why each was skipped, and the files."""
    samples = photo_samples(paths)
    images = {sample.id: sample.image for sample in samples}
    stream = predictor.label_maps(samples, "predicting")
    with new_folder(output) as folder:
        masks = (LabelledImage(each.id, images[each.id], each.final) for each in stream)
        write_annotations(format, folder, predictor.network.classes, masks)
    return predictor.skipped.problems(samples), sorted(path for path in output.rglob("*") if path.is_file())


def _predict_images(
    predictor: Predictor, paths: Sequence[AnyPath], output: Path, part: int, parts: int
) -> tuple[dict[str, str], list[Path]]:
    """Write the masks of a part of the images, a file each; return why each was skipped, and the masks."""
    listed, samples, step = photo_samples(paths), list[Sample](), predictor.batch_size
    for first in range(part * step, len(listed), parts * step):  # whole batches: masks have the bits of one process
        samples += listed[first : first + step]
    georeferences = {sample.id: _georeference(sample.image) for sample in samples}
    written = [output / f"{name}{'.tif' if found else '.png'}" for name, found in georeferences.items()]
    named, classes = output / "classes.txt", predictor.network.classes
    forbid_replacing(listed, [*written, named], paths)
    if named.is_file() and tuple(read_lines(named)) != classes:  # other masks there would get another meaning
        raise InputError(f"{named} lists other classes than those of the checkpoint: choose another output folder")
    write_atomically(named, class_list(classes))
    for name, content in predictor.files(samples, "predicting", georeferences):
        write_atomically(output / name, content)
    return predictor.skipped.problems(samples), written


def _predict_tars(
    predictor: Predictor, paths: Sequence[AnyPath], output: Path, settings: Mapping[str, Any], part: int, parts: int
) -> tuple[dict[str, str], list[Path]]:
    """Write the masks of a part of the tar files of images, a tar file each; return as `_predict_images`.

    ``settings`` are what the masks depend on. A tar file of masks that exists with these settings is kept.
    """
    problems, written = dict[str, str](), list[Path]()
    tars = [(path.parent, *tar) for path in paths for tar in find_tars(path.parent, path.name).items()]
    if len({name for _, name, _ in tars}) < len(tars):
        raise InputError("two of the tar files have the same name, and so would their tar files of masks")
    for parent, name, size in tars[part::parts]:
        header = {**settings, "input": name, "input_bytes": size}
        problems |= _predict_tar(predictor, parent / name, output / name, header)
        if (output / name).exists():
            written.append(output / name)
    return problems, written


def _predict_tar(predictor: Predictor, source: AnyPath, tar: Path, header: dict[str, Any]) -> dict[str, str]:
    """Write the masks of a tar file of images as a tar file, unless it exists; return `UnreadableImages.problems`.

    A tar file that cannot be read is skipped like an image.

    Args:
        predictor: predicts them.
        source: the images.
        tar: the masks.
        header: what the masks depend on.
    """
    predictor = replace(predictor, skipped=UnreadableImages(1.0))  # tar files may have equal keys
    if (earlier := _read_predicted(tar, header)) is not None:
        print_message(f"{tar} is there already, made with these settings")
        unreadable = f"could not be read when {tar} was written: remove it to try again"
        return {f"{key} in {source}": "" if readable else f"{key} {unreadable}" for key, readable in earlier.items()}
    try:
        samples = sorted(tar_samples(source, tags=False), key=lambda sample: sample.id)
    except InputError as error:
        print_message(f"left out: {error}")
        return {str(source): str(error)}
    masks = dict(predictor.files(samples, f"predicting {tar.name}", {}))
    lacking = [sample.id for sample in samples if sample.id in predictor.skipped.reasons]
    comment = json.dumps(header | {SKIPPED: lacking}, sort_keys=True)
    write_tar(tar, {"classes.txt": class_list(predictor.network.classes), **masks}, comment)
    return predictor.skipped.problems(samples)


def _read_predicted(tar: Path, header: Mapping[str, Any]) -> dict[str, bool] | None:
    """Return the images of a tar file of masks, and whether each was readable; None where there is no such file.

    Raises:
        InputError: it has another header, or is no tar file of masks.
    """
    if not tar.exists():
        return None
    try:
        with tarfile.open(tar) as archive:
            found = json.loads(archive.pax_headers["comment"])
            lacking = found.pop(SKIPPED)
            images = [name.removesuffix(".png") for name in archive.getnames() if name.endswith(".png")]
    except (tarfile.TarError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{tar} exists already, and is no tar file of masks: choose another output") from error
    if what := first_difference(found, header):
        raise InputError(f"{tar} exists already, made with {what}: remove it, or choose another output")
    return dict.fromkeys(images, True) | dict.fromkeys(lacking, False)


def _georeference(image: str) -> Georeference | None:
    """Return the georeference of an upright GeoTIFF; that of a turned one is of its stored pixels."""
    found = read_georeference(image)
    return None if found is None or is_turned(image) else found
