"""`tag2mask seeds show`: a page of images with the maps and cues of seed caches, a prediction and the mask."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from upath import UPath

from datamodules.base_datamodule import BaseDataModule, covered_samples
from datamodules.class_names import require_same_classes
from datamodules.files import check_output_folder, write_atomically
from datamodules.images import any_size, as_rgb, read_image
from datamodules.masks import read_class_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.progress import track
from datamodules.sample import Sample
from datamodules.seed_cache import SeedCache
from datamodules.transforms import resize_nearest
from datamodules.unreadable_images import UnreadableImages
from seeds.evaluation.confusion_matrix import mean_iou, none_if_nan
from seeds.evaluation.evaluate_seeds import CueMetrics
from seeds.score_maps import resize_maps
from training.image_overlays import cue_overlay, heat_overlay, label_overlay, shrink
from training.inference import load_trained, predictions
from training.photos import forbid_replacing
from training.reports.example_selection import Example, ExampleSelector
from training.reports.pages import embed, render

_LONGEST = 200  # pixels of an image's longer side on the page
NOT_READ = np.zeros((0, 0, 3), np.uint8)


def show_seeds(
    *caches: UPath,
    output: Path,
    root: str | None = None,
    split: str | None = None,
    masks: str | None = None,
    checkpoint: UPath | None = None,
    num_images: int = 24,
) -> None:
    """Write ``index.html``: for each image the first cache's maps, each cache's cues, a prediction and the mask.

    A third of the images have the highest mean IoU of the last cache's cues, over the classes in the cues or the
    mask, a third the lowest; the others are drawn with a fixed seed. Without masks all are drawn.

    Args:
        caches: seed caches, in the order in which they were made; the page contains the IoU of each cache's cues.
        output: folder for the page; created if necessary.
        root: folder of the images and masks. Default: as recorded in the first cache.
        split: split of the data set; every cache contains all of its images. Default: as recorded.
        masks: folder of masks, in the folder of the data or an absolute path. Default: as recorded.
        checkpoint: checkpoint of a segmentation network; the page contains its predictions after the dense CRF.
        num_images: number of images on the page.

    Raises:
        InputError: the caches or the checkpoint have different classes, or a cache lacks images.
    """
    check_output_folder(output)
    opened = [SeedCache(path) for path in caches]
    classes = list(opened[0].classes)
    trained = None if checkpoint is None else load_trained(checkpoint, "auto")
    if trained is not None:
        require_same_classes(str(checkpoint), trained.classes, classes)
    data = datamodule_from_settings(
        opened[0].inputs.get("data"), classes=classes, root=root, train_split=split, masks=masks,
        eval_size=trained.size if trained else None,
    )  # fmt: skip
    samples = data.samples(data.hparams["train_split"], tags=False)
    forbid_replacing(samples, [output / "index.html"])
    for cache in opened:
        samples = covered_samples(cache, samples, classes)

    selector = ExampleSelector(len(samples), num_images)
    for sample in track(samples, "selecting images"):
        cues = opened[-1].cues(sample.id)
        with any_size():
            truth = None if sample.mask is None else read_class_mask(sample.mask, data.mask_lut)
        selector.offer(Example(sample.id, NOT_READ, cues, truth, cues, _cue_iou(cues, truth, len(classes))))
    sections = selector.sections()
    truths = {each.id: each.truth for section in sections for each in section.examples}
    chosen = [sample for sample in samples if sample.id in truths]
    predicted: dict[str, NDArray[np.uint8]] = {}
    if trained is not None:
        loader = data.eval_loader(chosen)
        found = predictions(trained.scores, loader, UnreadableImages(1.0), crf=True)
        predicted = {each.id: each.final for each in found}
    content = render(
        "seeds.html", names=("background cue", *classes), checkpoint=checkpoint, sections=sections,
        stages={each.id: _stages(each, data, opened, truths[each.id], predicted.get(each.id)) for each in chosen},
        facts=[("seed cache", path) for path in caches] + [("checkpoint", checkpoint)] * (trained is not None),
    )  # fmt: skip
    write_atomically(output / "index.html", content.encode())


def _cue_iou(cues: NDArray[np.uint8], truth: NDArray[np.uint8] | None, num_classes: int) -> float | None:
    """Return the mean IoU of an image's cues (h, w) over its classes, positions without a cue taken as background.

    Args:
        cues: label map (h, w), 255 = no cue.
        truth: mask (H, W), 255 = not scored; None where there is none.
        num_classes: number of classes without background.

    Returns:
        Mean IoU; None where no pixel is scored.
    """
    metrics = CueMetrics(num_classes + 1)
    if truth is not None:
        metrics.update(cues, truth)
    return none_if_nan(mean_iou(metrics.iou()))


def _stages(
    sample: Sample,
    data: BaseDataModule,
    caches: Sequence[SeedCache],
    truth: NDArray[np.uint8] | None,
    predicted: NDArray[np.uint8] | None,
) -> list[dict[str, Any]]:
    """Return one image's row of the page: the image, maps, cues of each cache, prediction, mask."""
    with any_size():
        image = shrink(as_rgb(read_image(sample.image, data.in_channels)), _LONGEST)
    shape = image.shape[:2]
    shown = [embed(image, sample.id)]
    classes, maps = caches[0].maps(sample.id)
    for index, cam in zip(classes, resize_maps(torch.from_numpy(maps)[None], shape)[0].numpy(), strict=True):
        shown.append(embed(heat_overlay(image, cam), f"map of {caches[0].classes[index]}"))
    for cache in caches:
        cues = cache.cues(sample.id)
        iou = _cue_iou(cues, truth, len(cache.classes))
        caption = cache.path.name if iou is None else f"{cache.path.name}, IoU {100 * iou:.0f} %"
        shown.append(embed(cue_overlay(image, cues), caption))
    for labels, caption in ((predicted, "prediction"), (truth, "truth")):
        if labels is not None:
            shown.append(embed(label_overlay(image, resize_nearest(labels, *shape)), caption))
    return shown
