"""Inference with a segmentation network: loading, averaging over scales and flips, label maps, dense CRF."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.errors import InputError, UnreadableError
from datamodules.files import AnyPath
from datamodules.images import any_size, as_rgb, open_windows
from datamodules.masks import mask_size, read_class_mask, require_same_size
from datamodules.unreadable_images import UnreadableImages
from seeds.checkpoints import load_task
from seeds.crf import dense_crf
from seeds.precision import Precision, ResolvedPrecision, resolve_precision
from seeds.score_maps import highest_class, label_map, resize_images, resize_maps
from seeds.tiles import Tiling, WindowedImage, blended_rows, reduce_image, sample_grid
from training.runs.provenance_record import read_provenance
from training.segmentation_task import CrfSettings, SegmentationTask

TEST_CRF: CrfSettings = {"iterations": 10, "scale": 1.0}  # SEC's at test time
TEST_FLOOR = 1e-5  # under the logarithm, SEC's at test time
CRF_PIXELS = 1_000_000  # larger images are smoothed at this number of pixels: VOC's have 187,500, phones' 12 million
WINDOW, MARGIN = 704, 160  # pixels of an image in tiles that are labelled together, and around them for the CRF
PREVIEW = 2048  # pixels of the longer side of an image in tiles that is shown


@dataclass(frozen=True)
class Views:
    """Scales and flips of an image whose class probabilities are averaged (test-time augmentation).

    Attributes:
        scales: factors on the side to which whole images are resized, ``eval_size``.
        flip: whether the mirrored image is added at each scale.

    Raises:
        InputError: there is no scale, or one is not above 0.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise InputError(f"scales are {list(self.scales)}, and must be one or more numbers above 0, such as 0.75")


SINGLE_VIEW = Views()


def view_scores(
    network: Callable[[Tensor], Tensor], images: Tensor, views: Views, *, multiple: int = 1,
    grid: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """Return class scores averaged over views.

    For the single plain view these are the network's scores. Otherwise the softmax of each view is flipped back and
    resized bilinearly to one grid; the result is the logarithm of the mean, so that its softmax is the mean.

    Args:
        network: scores (B, K, h, w) of normalised images (B, in_channels, S, S).
        images: float32 (B, in_channels, S, S).
        views: scales and flips.
        multiple: scaled sides are rounded to multiples of this number.
        grid: height and width of the averaged maps; by default those of the finest. Not used for the single plain view.

    Returns:
        float32 (B, K, h, w).

    Raises:
        InputError: the network accepts no other image size than that of its training.
    """
    images = images.contiguous(memory_format=torch.channels_last)  # convolutions are faster on a CPU
    if views == SINGLE_VIEW:
        return network(images).float()
    maps = []
    for scale in views.scales:
        side = images.shape[-1] if scale == 1 else max(1, round(scale * images.shape[-1] / multiple)) * multiple
        resized = resize_maps(images, (side, side), antialias=True)
        try:
            maps.append(network(resized).float().softmax(dim=1))
            if views.flip:
                maps.append(network(resized.flip(-1)).float().softmax(dim=1).flip(-1))
        except AssertionError as error:  # raised by timm's transformers
            raise InputError(f"this network accepts no {side}x{side} images: leave scale {scale} out") from error
    finest = grid or max((tuple(probs.shape[-2:]) for probs in maps), key=math.prod)
    mean = torch.stack([resize_maps(probs, finest) for probs in maps]).mean(dim=0)
    return mean.clamp_min(torch.finfo(torch.float32).tiny).log()


def crf_probabilities(images: Tensor, probs: Tensor) -> Tensor:
    """Return class probabilities after the dense CRF, with SEC's numbers at test time.

    Args:
        images: uint8 (B, 3, H, W).
        probs: class probabilities (B, K, H, W); their logarithms, at least log 1e-5, are the CRF's unary scores.

    Returns:
        float32 (B, K, H, W).
    """
    return dense_crf(images.contiguous(), probs.clamp_min(TEST_FLOOR).log(), **TEST_CRF)


def crf_label_map(scores: Tensor, image: NDArray[np.uint8]) -> Tensor:
    """Return the most likely class of every pixel after the dense CRF, as SEC does at test time.

    Softmax, bilinear to the image's own size, floor 1e-5, logarithm, ten iterations of the CRF at scale 1. Images of
    more than a million pixels are reduced to that number for the CRF, and its probabilities are resized to the image.

    Args:
        scores: class scores (K, h, w).
        image: uint8 (H, W, 3).

    Returns:
        int64 (H, W).
    """
    height, width = image.shape[:2]
    shrink = min(1.0, (CRF_PIXELS / (height * width)) ** 0.5)
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    pixels = resize_images(torch.from_numpy(image).permute(2, 0, 1)[None].to(scores.device), size)  # (1, 3, h', w')
    probs = resize_maps(scores.float().softmax(dim=0)[None], size)  # (1, K, h', w')
    return label_map(crf_probabilities(pixels, probs)[0], (height, width))


@dataclass(frozen=True)
class TrainedNetwork:
    """A segmentation network from a checkpoint, with the data settings of its training.

    Attributes:
        task: the task in eval mode, on the GPU if there is one.
        data: settings of the data module of the training.
        precision: precision of the computation: ``32-true`` or ``bf16-mixed``.
        provenance: how the checkpoint was made, see `training.runs.provenance_record.RunRecord`; None if not recorded.
    """

    task: SegmentationTask
    data: dict[str, Any]
    precision: ResolvedPrecision
    provenance: dict[str, Any] | None

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes without background."""
        return self.task.classes

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return int(self.task.hparams["in_channels"])

    @property
    def size(self) -> int:
        """Side in pixels to which whole images are resized."""
        return int(self.data["eval_size"])

    @torch.inference_mode()
    def scores(self, images: Tensor, views: Views = SINGLE_VIEW) -> Tensor:
        """Return class scores float32 (B, C+1, h, w), not upsampled, of normalised images (B, in_channels, S, S).

        Raises:
            InputError: the images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise InputError(f"images must have shape (B, {self.in_channels}, H, W), not {tuple(images.shape)}")
        device = self.task.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            return view_scores(self.task, images.to(device), views, multiple=self.task.network.multiple)


def load_trained(checkpoint: AnyPath, precision: Precision = "32-true") -> TrainedNetwork:
    """Load the network of a segmentation checkpoint without running code from the file.

    Args:
        checkpoint: a segmentation checkpoint of ``tag2mask fit``.
        precision: precision of the computation, see `seeds.precision`.

    Raises:
        InputError: as `seeds.checkpoints.load_task`, or the checkpoint lacks the settings of its data.
    """
    task, content = load_task(checkpoint, SegmentationTask)
    data = content.get("datamodule_hyper_parameters")
    if not isinstance(data, dict) or "eval_size" not in data:
        raise InputError(f"{checkpoint} does not record the data of its training, such as the size of the images")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainedNetwork(task.to(device), data, resolve_precision(precision), read_provenance(content))


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image, at the image's own size.

    Attributes:
        id: id of the image.
        image: uint8 (H, W, 3); where the prediction was made in tiles, it is reduced to at most `PREVIEW` pixels on a
            side.
        plain: label map uint8 (H, W) without the CRF; None where the CRF is on and there is no mask to score it with.
        final: label map uint8 (H, W) after the CRF; ``plain`` if the CRF is off.
        truth: mask uint8 (H, W); None for an image without a mask.
    """

    id: str
    image: NDArray[np.uint8]
    plain: NDArray[np.uint8] | None
    final: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None


def predictions(
    network: Callable[[Tensor], Tensor], loader: DataLoader[Any], unreadable: UnreadableImages, *, crf: bool,
    tiling: Tiling | None = None,
) -> Iterator[Prediction]:  # fmt: skip
    """Predict the images of a loader in their order; in a batch, those in tiles come first.

    Args:
        network: class scores float32 (B, C+1, h, w) of normalised images (B, in_channels, S, S), such as
            `TrainedNetwork.scores`.
        loader: batches of a `datamodules.dataset.ImageDataset` with ``with_originals``, and ``largest`` a tile's side.
        unreadable: receives the images that cannot be read, for which there is no prediction.
        crf: smooth predictions with the dense CRF.
        tiling: how larger images are cut into tiles.

    Raises:
        InputError: a mask is not usable, more images are unreadable than allowed, or scores are nan.
    """
    samples = loader.dataset.samples  # type: ignore[attr-defined]  # of an ImageDataset
    with_mask = {sample.id for sample in samples if sample.mask is not None}
    grid: tuple[int, ...] = ()  # of a tile
    for batch in loader:
        for name, reason in batch.get("unreadable", ()):
            unreadable.add(name, reason)
        for large in batch.get("large", ()):
            assert tiling is not None
            if not grid:
                side = loader.dataset.size  # type: ignore[attr-defined]
                grid = network(torch.zeros(1, large["channels"], side, side)).shape[-2:]
            try:
                yield _predict_tiles(network, large, loader, tiling, grid, crf=crf)
            except UnreadableError as error:
                unreadable.add(large["id"], str(error))
        if not batch["id"]:
            continue
        scores = network(batch["image"])
        for index, (name, image) in enumerate(zip(batch["id"], batch["original"], strict=True)):
            _require_no_nan(scores[index], name)
            height, width = image.shape[:2]
            truth = batch["mask"][index, :height, :width].numpy().astype(np.uint8) if name in with_mask else None
            found = crf_label_map(scores[index], image) if crf else label_map(scores[index], (height, width))
            final = found.cpu().numpy().astype(np.uint8)
            plain = None if crf else final
            if crf and truth is not None:
                plain = label_map(scores[index], (height, width)).cpu().numpy().astype(np.uint8)
            yield Prediction(name, image, plain, final, truth)


def _require_no_nan(scores: Tensor, name: str) -> Tensor:
    """Return the scores of an image; an InputError where some are nan, whose maximum would be background."""
    if scores.isnan().any():
        raise InputError(f"the network's scores of image {name} are not a number: its training has failed")
    return scores


def _predict_tiles(
    network: Callable[[Tensor], Tensor], large: Mapping[str, Any], loader: DataLoader[Any], tiling: Tiling,
    grid: tuple[int, ...], *, crf: bool,
) -> Prediction:  # fmt: skip
    """Predict an image in tiles, as `predictions`; ``large`` is its entry in the batch.

    Raises:
        UnreadableError: the image cannot be read.
        InputError: the mask is not usable.
    """
    dataset: Any = loader.dataset
    scored = large["mask"] is not None and dataset.mask_lut is not None
    with open_windows(large["image"], large["channels"]) as image:
        if scored:
            name, size = f"mask {large['mask']}", mask_size(large["mask"])
            require_same_size(name, size, f"its image {large['image']}", image.shape)
        plain, final = tiled_label_maps(
            image,
            lambda tiles: _require_no_nan(network(tiles), large["id"]),
            tiling,
            size=dataset.size,
            grid=grid,
            batch_size=loader.batch_size or 1,
            crf=crf,
            with_plain=scored,
        )
        preview = reduce_image(image, PREVIEW)
        del image
    with any_size():
        truth = read_class_mask(large["mask"], dataset.mask_lut) if scored else None
    return Prediction(large["id"], preview, plain, final, truth)


def tiled_label_maps(
    image: WindowedImage, network: Callable[[Tensor], Tensor], tiling: Tiling, *, size: int, grid: tuple[int, ...],
    batch_size: int, crf: bool, with_plain: bool = True,
) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8]]:  # fmt: skip
    """Return the label maps of an image in tiles, uint8 (H, W), without and with the CRF.

    The class probabilities of the tiles are blended. As for an image that is not cut, their logarithms are resized
    bilinearly to pixels for the first label map, and they themselves for the CRF. Both are done window by window; the
    CRF sees a margin around each window, and pixels of the image's own size.

    Args:
        image: the image.
        network: class scores float32 (B, C+1, h, w) of normalised images (B, in_channels, size, size).
        tiling: the tiles.
        size: side in pixels to which tiles are resized.
        grid: h and w.
        batch_size: tiles per batch.
        crf: smooth with the dense CRF; otherwise the second label map is the first.
        with_plain: whether the first label map is wanted as well where there is a second; None otherwise.
    """
    (height, width), side, (h, w) = image.shape[:2], tiling.side, grid
    blended = blended_rows(
        image, lambda tiles: network(tiles).softmax(dim=1), tiling, size=size, grid=(h, w), batch_size=batch_size
    )
    final = np.zeros((height, width), np.uint8)
    plain = final if not crf else np.zeros_like(final) if with_plain else None
    margin, rows, first = MARGIN if crf else 0, next(blended), 0  # rows of the grid, from number `first`
    for y in range(0, height, WINDOW):
        top, bottom = max(0, y - margin), min(height, y + WINDOW + margin)
        ys = (torch.arange(top, bottom) + 0.5) * h / side
        while first + rows.shape[1] <= ys[-1] + 0.5 and (more := next(blended, None)) is not None:
            rows = torch.cat([rows, more], dim=1)
        above = max(0, math.floor(float(ys[0]) - 0.5) - first)
        rows, first = rows[:, above:], first + above
        scores = rows.clamp_min(torch.finfo(torch.float32).tiny).log() if plain is not None else rows
        for x in range(0, width, WINDOW):
            left, right = max(0, x - margin), min(width, x + WINDOW + margin)
            xs = (torch.arange(left, right) + 0.5) * w / side
            inside = slice(y - top, y - top + WINDOW), slice(x - left, x - left + WINDOW)
            place = slice(y, y + WINDOW), slice(x, x + WINDOW)
            if plain is not None:
                plain[place] = highest_class(sample_grid(scores, ys - first, xs))[inside].cpu().numpy()
            if crf:
                window = np.ascontiguousarray(as_rgb(image[top:bottom, left:right]))
                pixels = torch.from_numpy(window).permute(2, 0, 1)[None]
                probs = sample_grid(rows, ys - first, xs)[None]
                smoothed = crf_probabilities(pixels.to(probs.device), probs)[0]
                final[place] = highest_class(smoothed)[inside].cpu().numpy()
    return plain, final
