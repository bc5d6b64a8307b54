"""`tag2mask evaluate`: score a segmentation checkpoint, or a folder of predicted masks, on a split with masks."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from upath import UPath

from datamodules.base_datamodule import BaseDataModule
from datamodules.class_names import IGNORE, VOC_CLASSES, mask_lut, read_classes, require_same_classes
from datamodules.errors import InputError, UnreadableError
from datamodules.files import AnyPath, check_output_folder, file_sha256, write_atomically, write_csv, write_json
from datamodules.images import any_size, as_rgb, read_image
from datamodules.masks import find_masks, mask_png, read_class_mask, read_mask, require_same_size
from datamodules.open_data import datamodule_from_settings
from datamodules.progress import print_message, track
from datamodules.sample import Sample
from datamodules.samplers import evenly_spaced
from datamodules.seed_cache import SeedCache
from datamodules.tar_files import write_tar
from datamodules.transforms import resize_nearest
from datamodules.unreadable_images import MAX_UNREADABLE, UnreadableImages, readable
from seeds.precision import Precision
from seeds.tiles import Tiling, reduce_image
from training import inference
from training.evaluation.evaluation_table import compute_metrics, metrics_rows, print_metrics
from training.evaluation.metrics import SegmentationCounts
from training.inference import PREVIEW, TEST_CRF, Prediction, TrainedNetwork, Views, load_trained
from training.photos import forbid_replacing
from training.reports.evaluation_report import render_page
from training.reports.example_selection import Example, ExampleSelector, Section
from training.runs.provenance_record import forbid_folder_of_run

TRAINING_IMAGES = 8  # with their cues, on the page
SUBMISSION = "results/VOC2012/Segmentation"  # folder of the masks, as VOC's server wants it


def evaluate(
    checkpoint: UPath | None = None,
    *,
    output: Path,
    predictions: UPath | None = None,
    root: str | None = None,
    split: str | None = None,
    masks: str | None = None,
    classes: list[str] | None = None,
    crf: bool = True,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    tile: int | None = None,
    overlap: float = 0.25,
    submission: bool = False,
    cues: UPath | None = None,
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
    All metrics are fractions: ``miou``, ``iou`` (by class, background included; a class that is neither in the masks
    nor predicted is left out), ``background_iou``, ``images``, and the others of
    `training.evaluation.evaluation_table.compute_metrics`. With the CRF, ``without_crf`` contains the same metrics of
    the network alone. ``provenance`` is how the checkpoint was made
    (`training.runs.provenance_record.RunRecord`), null where it is not recorded. An image without a mask is shown on
    the page and not scored: ``images_with_mask`` of the ``images`` are scored.

    Args:
        checkpoint: a segmentation checkpoint of ``tag2mask fit``.
        output: folder for the results; created if necessary.
        predictions: instead of a checkpoint, a folder of masks ``<id>.png`` or ``<id>.tif`` (palette or gray, read by
            index). The classes are those of ``classes.txt`` in the folder, or else those of the data. The options
            about the network, from crf to overlap and from eval_size to num_workers, are ignored then.
        root: folder of the data; by default that of the training. The layout of another folder decides the kind of
            data: VOC, COCO, or a folder of images with their tags, whose split ``val`` then is a tenth of the images
            (the default ``val_fraction``). Required with predictions.
        split: split to score; by default the test split of the training (``val`` with predictions).
        masks: folder of masks, in the folder of the data or an absolute path; by default that of the training.
        classes: with predictions, the classes to score; by default all classes of the predictions.
        crf: smooth predictions with the dense CRF.
        scales: factors on the side of images; the softmax is averaged over them.
        flip: average over each image and its mirror image, too.
        tile: height and width in pixels above which an image is cut into overlapping tiles of this size, as in
            ``predict``; by default images of any size are resized as a whole.
        overlap: fraction of a tile's side that neighbouring tiles share.
        submission: write ``submission.tar``, the archive for VOC's server, and its files into ``results``.
        cues: seed cache whose cues the page shows; by default that of the training.
        num_images: number of images of the split on the page.
        eval_size: side to which images are resized for the network; by default that of the training.
        precision: precision of the network's computation: auto, 32-true or bf16-mixed. auto is bf16-mixed where the
            processor computes bfloat16 natively, else 32-true (see `seeds.precision`).
        batch_size: images per batch; by default that of the training.
        num_workers: processes that read images; by default that of the training.
        max_unreadable: share of the images that may be unreadable: they are left out, and listed on the terminal and
            in ``metrics.json`` under ``unreadable``. With more of them nothing is written.
        strict: allow no unreadable image; always the case with submission.

    Returns:
        The content of ``metrics.json``.

    Raises:
        InputError: the checkpoint, the data, a mask or a prediction is not usable; nothing is written then.
    """
    check_output_folder(output)  # minutes pass before the page is written
    forbid_folder_of_run(output)
    limits: dict[str, Any] = {"max_unreadable": max_unreadable, "strict": strict or submission}
    trained: TrainedNetwork | None = None
    tiling = None if tile is None else Tiling(tile, overlap)
    if checkpoint is not None and predictions is None:
        if classes is not None:
            raise InputError("classes are for --predictions: a checkpoint has its own")
        trained = load_trained(checkpoint, precision)
        data = datamodule_from_settings(
            trained.data, classes=list(trained.classes), root=root, test_split=split, masks=masks, eval_size=eval_size,
            batch_size=batch_size, num_workers=num_workers, **limits,
        )  # fmt: skip
        with nullcontext() if tiling is None else any_size():
            samples = readable(data.samples(data.hparams["test_split"], tags=False), data.unreadable)
        views = Views(tuple(scales), flip)
        loader = data.eval_loader(samples, largest=tile)
        scores = partial(trained.scores, views=views)
        stream = inference.predictions(scores, loader, data.unreadable, crf=crf, tiling=tiling)
        source = {
            "crf": dict(TEST_CRF) if crf else None, "scales": list(views.scales), "flip": flip,
            **({} if tiling is None else {"tile": tile, "overlap": overlap}), "compute_precision": trained.precision,
            "checkpoint": {"path": str(checkpoint), "sha256": file_sha256(checkpoint)},
            "provenance": trained.provenance,
        }  # fmt: skip
    elif predictions is not None and checkpoint is None:
        if root is None:
            raise InputError("the images and masks are not given: give --root as well as --predictions")
        wanted = {"masks": masks, "test_split": split or "val", **limits}
        data, samples, stream = _open_predictions(predictions, root, classes, wanted)
        source, crf = {"crf": None, "predictions": {"path": str(predictions)}}, False
    else:
        raise InputError("give either --checkpoint, a network to score, or --predictions, a folder of masks to score")
    forbid_replacing(samples, [output / "index.html"])
    if submission and data.classes != VOC_CLASSES:
        raise InputError(f"a submission needs VOC's 20 classes in their order, not {', '.join(data.classes)}")
    cache, cues_folder = None, cues or (trained.data.get("cues") if trained else None)
    if cues_folder:
        with nullcontext() if cues else suppress(InputError):  # the cache of the training may be gone
            found = SeedCache(cues_folder)
            require_same_classes(f"the seed cache {cues_folder}", found.classes, data.classes)
            cache = found

    class_names = ("background", *data.classes)
    final, plain = SegmentationCounts(class_names), SegmentationCounts(class_names)
    selector, images, label_maps = ExampleSelector(len(samples), num_images), 0, dict[str, NDArray[np.uint8]]()
    for each in track(stream, "scoring", len(samples)):
        images += 1
        if crf and each.truth is not None and each.plain is not None:
            plain.update(each.plain, each.truth)
        selector.offer(_example(each, final, cache))
        if submission:
            label_maps[each.id] = each.final
    metrics = compute_metrics(final) | ({"without_crf": compute_metrics(plain)} if crf else {})
    metrics |= {
        "images": images, "images_with_mask": len(final.per_image), "unreadable": data.unreadable.reasons,
        "split": data.hparams["test_split"], **source,
        "data": {
            key: data.hparams[key] for key in ("class_path", "root", "masks", *(["eval_size"] if trained else []))
            if key in data.hparams
        },
        "classes": list(data.classes),
    }  # fmt: skip
    sections = selector.sections()
    if trained is not None and cache is not None:
        sections += _training_images(scores, data, cache, tiling, crf=crf)
    page = render_page(metrics, sections).encode()
    if metrics["iou"]:
        write_csv(output / "metrics.csv", metrics_rows(metrics))
    else:
        (output / "metrics.csv").unlink(missing_ok=True)  # of an earlier evaluation
    write_json(output / "metrics.json", metrics, allow_nan=False)
    _write_submission(output, metrics["split"], label_maps)
    write_atomically(output / "index.html", page)  # last: where the disk is full, no page shows other figures
    print_metrics(metrics)
    return metrics


def _open_predictions(
    predictions: AnyPath, root: str, classes: list[str] | None, settings: Mapping[str, Any]
) -> tuple[BaseDataModule, list[Sample], Iterator[Prediction]]:
    """Return the data of a folder of predictions, its images with masks, and the predictions for these.

    Args:
        predictions: as for `evaluate`, and so are root and classes.
        root: folder of the data.
        classes: the classes to score.
        settings: of the data module.
    """
    named = predictions / "classes.txt"
    predicted_classes = list(read_classes(named)) if named.is_file() else None
    data = datamodule_from_settings(None, root=root, classes=classes or predicted_classes, **settings)
    with any_size():  # `predict --tile` writes masks of any size
        listed = readable(data.samples(data.hparams["test_split"], tags=False), data.unreadable)
    samples = [sample for sample in listed if sample.mask is not None]
    return data, samples, _read_predictions(predictions, predicted_classes or data.mask_classes, samples, data)


def _read_predictions(
    folder: AnyPath, classes: Sequence[str], samples: Sequence[Sample], data: BaseDataModule
) -> Iterator[Prediction]:
    """Yield the predicted masks ``<id>.png`` or ``<id>.tif`` of a folder, beside the true masks.

    Args:
        folder: the predictions.
        classes: classes of their indices 1, 2, …; classes that are not scored must not occur.
        samples: images with masks.
        data: their data module, with the classes to score.

    Raises:
        InputError: there is no sample, or a prediction is missing, of the wrong size or of a class that is not scored.
    """
    if not samples:
        split = data.hparams["test_split"]
        raise InputError(f"the split {split!r} of {data.root} has no masks to score {folder} against")
    paths = find_masks(folder, [sample.id for sample in samples])
    if missing := [f"{sample.id}.png" for sample, path in zip(samples, paths, strict=True) if path is None]:
        raise InputError(f"{len(missing)} of {len(samples)} predictions are missing in {folder}, first {missing[0]}")
    lut = mask_lut(classes, data.classes)
    for sample, path in zip(samples, paths, strict=True):
        assert path is not None
        assert sample.mask is not None
        with any_size():
            labels, truth = read_class_mask(path, lut), read_class_mask(sample.mask, data.mask_lut)
            require_same_size(f"prediction {path}", labels.shape, f"its mask {sample.mask}", truth.shape)
            if (labels == IGNORE).any():
                indices = set(np.unique(read_mask(path)).tolist()) - {IGNORE}
                others = [classes[index - 1] for index in indices if index and lut[index] == IGNORE]
                found = "pixels of 255, which are no prediction"
                if others:
                    found = f"class {others[0]!r}, which is not scored"
                raise InputError(f"prediction {path} contains {found}")
            try:
                image = as_rgb(read_image(sample.image, data.in_channels))
            except UnreadableError as error:
                data.unreadable.add(sample.id, str(error))
                continue
        yield Prediction(sample.id, image, labels, labels, truth)


def _example(predicted: Prediction, counts: SegmentationCounts, cache: SeedCache | None) -> Example:
    """Count a prediction where there is a mask, and return the image as the page shows it."""
    name, image, final, truth = predicted.id, reduce_image(predicted.image, PREVIEW), predicted.final, predicted.truth
    cues = cache.cues(name) if cache and name in cache else None
    iou = None if truth is None else counts.update(final, truth)
    size = image.shape[:2]  # a large image is reduced
    shown = None if truth is None else resize_nearest(truth, *size)
    return Example(name, image, resize_nearest(final, *size), shown, cues, iou)


def _training_images(
    scores: Callable[[Tensor], Tensor], data: BaseDataModule, cache: SeedCache, tiling: Tiling | None, *, crf: bool
) -> list[Section]:
    """Return some training images with their cues; none, with a message, where the training data are not usable."""
    counts, shown = SegmentationCounts(("background", *data.classes)), list[Example]()
    try:
        samples = [each for each in data.samples(data.hparams["train_split"], tags=False) if each.id in cache]
        chosen = [samples[index] for index in evenly_spaced(len(samples), TRAINING_IMAGES)]
        loader = data.eval_loader(chosen, largest=tiling.side if tiling else None)
        stream = inference.predictions(scores, loader, UnreadableImages(1.0), crf=crf, tiling=tiling)
        shown = [_example(each, counts, cache) for each in stream]
    except InputError as error:  # about a mask, perhaps, which a training on cues does not read
        print_message(f"the page shows no training images: {error}")
    return [Section("Training images", "Training images, with the cues made from their tags.", shown)] if shown else []


def _write_submission(output: Path, split: str, masks: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write ``submission.tar``, and the same files as a folder ``results``, in place of those of an earlier evaluation.

    Both contain ``results/VOC2012/Segmentation/comp6_<split>_cls/<id>.png``, a palette PNG of the image's own size;
    comp6 is the server's name for training with data other than VOC's own, such as ImageNet weights.

    Args:
        output: the folder of the evaluation.
        split: name of the split, ``test`` for the server.
        masks: label map (H, W) of each image by its id; nothing is written without any.
    """
    archive = output / "submission.tar"
    if archive.exists():
        archive.unlink()
        shutil.rmtree(output / SUBMISSION, ignore_errors=True)
    if not masks:
        return
    folder = f"{SUBMISSION}/comp6_{split}_cls"
    files = {f"{folder}/{name}.png": mask_png(mask, f"the mask of {name}") for name, mask in masks.items()}
    for name, content in files.items():
        write_atomically(output / name, content)
    write_tar(archive, files)
