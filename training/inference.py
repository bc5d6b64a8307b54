"""A trained network at work: loading it with its data settings, and the label map of an image."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.datamodule import TagDataModule
from datamodules.dataset import TagDataset, collate, one_thread
from datamodules.errors import InputError
from datamodules.photos import PhotoSet
from datamodules.unreadable import UnreadableImages
from seeds.checkpoints import load_task, read_checkpoint
from seeds.crf import dense_crf
from seeds.data import data_settings
from seeds.precision import Chosen, Precision, resolve_precision
from training.grids import label_map, resize_maps
from training.runs.provenance_record import read_provenance
from training.segmentation_task import CrfSettings, SegmentationTask
from training.views import Views, view_scores

__all__ = ["TEST_CRF", "Predicted", "Trained", "crf_label_map", "data_module", "load_trained", "predictions"]

TEST_CRF: CrfSettings = {"iterations": 10, "scale": 1.0}  # SEC's at test time
PROBABILITY_FLOOR = 1e-5  # under the logarithm, SEC's at test time
PLAIN = Views()
CRF_PIXELS = 1_000_000  # larger photos are smoothed at this many pixels: VOC's have 187,500, phones' 12 million


@dataclass(frozen=True)
class Trained:
    """A trained network and what its checkpoint says of its data.

    Attributes:
        task: the task in eval mode, on ``device``.
        data: settings of the data module it was trained with.
        device: a GPU where there is one.
        precision: what the network computes in: ``32-true`` or ``bf16-mixed``.
        provenance: what it says of its making, see `provenance_record.RunRecord`; None where there is none.
    """

    task: SegmentationTask
    data: dict[str, Any]
    device: torch.device
    precision: Chosen
    provenance: dict[str, Any] | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes, without background."""
        return self.task.classes

    @property
    def size(self) -> int:
        """Side in pixels to which whole images are warped."""
        return int(self.data.get("eval_size") or self.data["size"])  # earlier checkpoints have the one size

    @torch.inference_mode()
    def scores(self, images: Tensor, views: Views = PLAIN) -> Tensor:
        """Class scores float32 (B, C+1, h, w), on the network's grid, of normalised images (B, 3, S, S)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            return view_scores(self.task, images.to(self.device), views, multiple=self.task.network.multiple)


class Network(Protocol):
    """What `predictions` needs of a network: a checkpoint's `Trained`, or `training.exported.Exported`."""

    def scores(self, images: Tensor, views: Views = ...) -> Tensor:
        """Class scores float32 (B, C+1, h, w) of normalised images (B, 3, S, S)."""


@dataclass(frozen=True)
class Predicted:
    """What the network says of one image, at the image's own size.

    Attributes:
        name: the image's id.
        image: uint8 (H, W, 3).
        plain: label map int64 (H, W) of the network alone.
        final: the same after the CRF, or ``plain`` where there is none.
        truth: the mask int64 (H, W), where there is one.
    """

    name: str
    image: NDArray[np.uint8]
    plain: Tensor
    final: Tensor
    truth: Tensor | None


def load_trained(checkpoint: Path, precision: Precision = "32-true") -> Trained:
    """Read a segmentation checkpoint; nothing that it may carry is run.

    Args:
        checkpoint: of ``tag2mask fit`` with a segmentation task.
        precision: what the network is to compute in; see `seeds.precision`.

    Raises:
        InputError: as `seeds.checkpoints.load_task`; or it was not trained with this project's data module.
    """
    task = load_task(checkpoint, SegmentationTask)
    content = read_checkpoint(checkpoint, SegmentationTask.task_name)
    data = content.get("datamodule_hyper_parameters")
    if not isinstance(data, dict) or "size" not in data:
        raise InputError(f"{checkpoint} says nothing of the data it was trained on, such as the size of images")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Trained(task.to(device), data, device, resolve_precision(precision), read_provenance(content))


def data_module(trained: Trained, **given: Any) -> TagDataModule:
    """The data module a network was trained with, less its targets; ``given`` overrides what is not None there."""
    return TagDataModule(**data_settings(trained.data, trained.task.classes, **given))


def predictions(
    network: Network,
    photos: PhotoSet,
    *,
    size: int,
    batch_size: int,
    num_workers: int,
    crf: bool,
    views: Views = PLAIN,
    unreadable: UnreadableImages,
) -> Iterator[Predicted]:
    """Predict images in their order; each is read once.

    Args:
        network: a checkpoint's, or an exported one.
        photos: the images.
        size: side in pixels to which they are resized for the network.
        batch_size: images at a time through the network.
        num_workers: processes that read images.
        crf: smooth predictions with the dense CRF.
        views: how images are shown to the network.
        unreadable: receives the images that cannot be read, for which there is no prediction.

    Raises:
        InputError: a mask cannot be used, or ``unreadable`` refuses that many.
    """
    masks = dict(zip(photos.ids, photos.masks or (), strict=False))
    loader: DataLoader[Any] = DataLoader(
        TagDataset(photos, size, originals=True),
        batch_size=batch_size,
        num_workers=min(num_workers, len(photos)),
        collate_fn=collate,
        worker_init_fn=one_thread,
    )
    for batch in loader:
        for name, reason in batch.get("unreadable", ()):
            unreadable.add(name, reason)
        if not batch["id"]:
            continue
        scores = network.scores(batch["image"], views)
        for index, name in enumerate(batch["id"]):
            image = batch["original"][index]
            height, width = image.shape[:2]
            plain = label_map(scores[index], (height, width)).cpu()
            final = crf_label_map(scores[index], image).cpu() if crf else plain
            truth = batch["mask"][index, :height, :width] if masks.get(name) else None
            yield Predicted(name, image, plain, final, truth)


def crf_label_map(scores: Tensor, image: NDArray[np.uint8]) -> Tensor:
    """The most likely class of every pixel after the dense CRF, as SEC does at test time.

    Softmax, bilinear to the image's own size, floor 1e-5, logarithm, ten iterations of the CRF at scale 1.

    Args:
        scores: class scores (K, h, w).
        image: the image, uint8 (H, W, 3).

    Returns:
        int64 (H, W).
    """
    height, width = image.shape[:2]
    shrink = min(1.0, (CRF_PIXELS / (height * width)) ** 0.5)
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    picture = torch.from_numpy(image).permute(2, 0, 1)[None].to(scores.device)  # (1, 3, H, W)
    if size != (height, width):
        picture = resize_maps(picture.float(), size, antialias=True).round().clamp(0, 255).to(torch.uint8)
    probs = resize_maps(scores.float().softmax(dim=0)[None], size)  # (1, K, h', w')
    smoothed = dense_crf(picture.contiguous(), probs.clamp_min(PROBABILITY_FLOOR).log(), **TEST_CRF)
    return label_map(smoothed[0], (height, width))
