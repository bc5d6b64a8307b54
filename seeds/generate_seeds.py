"""``seeds generate``: write the class activation maps, background saliency and cues of a split as a seed cache."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from upath import UPath

from datamodules.errors import InputError, UnreadableError, require_below_one, require_choice, unknown_name
from datamodules.images import open_windows, to_uint8
from datamodules.seed_cache.cache import SMALL_CLASSES
from datamodules.seed_cache.shard import as_stored
from seeds.activations import find_layer, record_activations
from seeds.background_saliency import background_saliency, check_saliency, saliency_map
from seeds.cache_job import JobSource, Seed, SeedModule, write_seed_cache
from seeds.cam_methods.input_gradients import channel_maximum
from seeds.cam_methods.registry import Method, method_class
from seeds.cam_methods.targets import select_scores
from seeds.classifier import Classifier, ClassifierTask
from seeds.crf_refinement import PIXELS_PER_POSITION, crf_settings, refined_cues
from seeds.cues import threshold_cues
from seeds.gradcam import weighted_maps
from seeds.job_options import JobOptions
from seeds.score_maps import resize_maps
from seeds.tiles import Tiling, blended_rows, reduce_image, sample_grid

Refinement = Literal["none", "crf"]


def generate_seeds(
    checkpoint: UPath,
    output: UPath,
    *,
    root: str | None = None,
    split: str | None = None,
    images: str | None = None,
    method: str = "gradcam",
    layer: str | None = None,
    saliency_layer: str | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    small_classes: list[str] | None = None,
    tile: int | None = None,
    overlap: float = 0.25,
    size: int | None = None,
    cue_stride: int = 8,
    fg_threshold: float = 0.2,
    bg_fraction: float = 0.1,
    refine: Refinement = "none",
    conf_fg: float = 0.30,
    conf_bg: float = 0.05,
    job: JobOptions = JobOptions(),
) -> None:
    """Write the seeds of all images of a split, for the tags of each image, as a seed cache.

    Every bit of the result follows from the settings; the number of processes does not matter. The same command
    resumes a job that was stopped: finished shards are kept.

    Args:
        checkpoint: checkpoint of a classifier.
        output: folder of the cache: a new folder, or a cache of the same settings to resume.
        root: folder of the images; by default that of the training.
        split: the images; by default the split that the classifier was trained on.
        images: tar files of images and tags in place of ``root`` and ``split``, by path or URI: a folder, or a pattern
            such as ``shards/train-{000..099}.tar`` or ``shards/*.tar``. The cache gets a shard for each tar file, of
            the same name.
        method: CAM method, a name in `seeds.cam_methods.registry.METHODS`; ``tag2mask explain --help`` lists them.
        layer: layer of the network whose maps are computed; by default the last feature map, of a classifier of texts
            that of CLIP-ES.
        saliency_layer: layer of the network for background saliency; by default the last layer of stride 8 (of a
            network that ends there, the last layer of the stage before).
        scales: sizes of the image relative to ``size``; the maps of all scales are averaged before any normalisation.
            Each scale has the same weight, as in irn: Grad-CAM divides by the number of positions, so its maps are
            multiplied by the square of the scale.
        flip: average the maps with those of the mirrored image.
        small_classes: classes whose objects are smaller than a position of ``layer``, such as holes and scratches:
            their maps are those of guided Grad-CAM. ``seeds refine`` and ``pseudo-label`` read these classes from the
            cache, and neither spread nor smooth their labels.
        tile: height and width in pixels above which an image is cut into overlapping tiles of this size. The maps and
            the saliency of the tiles are computed for all tags of the image, and blended before any normalisation; the
            cue grid grows with the image. By default images of any size are resized as a whole.
        overlap: fraction of a tile's side that neighbouring tiles share.
        size: side in pixels to which images are resized at scale 1; by default the classifier's training ``size``.
        cue_stride: pixels per position of the cue grid, which has ⌈size / cue_stride⌉ positions on a side.
        fg_threshold: foreground cues are the positions where a map exceeds this fraction of its maximum.
        bg_fraction: background cues are this fraction of the positions, those of the lowest saliency.
        refine: crf: make the cues by the dense CRF instead of the two thresholds, as irn does (Ahn et al., CVPR
            2019): confident foreground, confident background, and no cue elsewhere. The maps stay as they are.
        conf_fg: crf: score of the background in a first run, as a fraction of the maxima of the maps: positions where a
            class wins are foreground cues (irn's conf_fg_thres).
        conf_bg: crf: score of the background in a second run: positions where it wins are background cues (irn's
            conf_bg_thres).
        job: how the job reads images, shares the work and writes shards.

    Raises:
        InputError: a checkpoint, folder, layer or number is not usable, the maps are not finite, or the disk is full.
            Finished shards stay.
    """
    require_choice("refine", refine, get_args(Refinement))
    require_below_one(fg_threshold=fg_threshold, bg_fraction=bg_fraction, conf_fg=conf_fg, conf_bg=conf_bg)
    if conf_bg > conf_fg:
        raise InputError(f"conf_bg {conf_bg} must not exceed conf_fg {conf_fg}")
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise InputError(f"scales {list(scales)} must be positive, at least one")
    source = JobSource.load(checkpoint, ClassifierTask, job, images, root=root, train_split=split, size=size)
    for name in small_classes or ():
        if name not in source.task.classes:
            raise unknown_name("class", name, source.task.classes)
    task, crf = source.task, {"method": "crf", "conf_fg": conf_fg, "conf_bg": conf_bg, **crf_settings()}
    settings = {
        "method": method, "layer": layer or task.model.default_layer, "size": source.data.hparams["size"], "flip": flip,
        "saliency_layer": saliency_layer or task.model.saliency_layer, "scales": list(scales), "cue_stride": cue_stride,
        "fg_threshold": fg_threshold, "bg_fraction": bg_fraction, "refinement": crf if refine == "crf" else None,
        "backbone": task.hparams["backbone"], "output_stride": task.hparams["output_stride"],
        **({} if tile is None else {"tile": tile, "overlap": overlap}),
        **({SMALL_CLASSES: small_classes} if small_classes else {}),
    }  # fmt: skip
    small = [task.classes.index(name) for name in small_classes or ()]
    module = CamModule(task.model, settings, source.data.hparams["batch_size"], small)
    write_seed_cache(output, module, source, job)


class CamModule(SeedModule):
    """Computes class activation maps and background saliency, and makes cues by SEC's rule or by the dense CRF."""

    def __init__(
        self, network: Classifier, settings: Mapping[str, Any], batch_size: int = 1, small: Sequence[int] = ()
    ) -> None:
        """Prepare; raise an InputError where the network lacks a layer or the method does not exist.

        Args:
            network: the classifier.
            settings: as `generate_seeds` records them.
            batch_size: tiles per batch.
            small: columns of the labels of the small classes.
        """
        super().__init__(network, settings)
        self.batch_size = batch_size
        self.tiling = Tiling(settings["tile"], settings["overlap"]) if "tile" in settings else None
        self.sides = [max(1, round(settings["size"] * scale)) for scale in settings["scales"]]  # one for each scale
        self.image_size = max(self.sides)
        self.layers = settings["layer"], settings["saliency_layer"]
        self.method = method_class(settings["method"])(network, self.layers[0])
        self.small_method = method_class("guided-gradcam")(network, self.layers[0])
        self.small = list(small)
        for layer in self.layers:
            find_layer(network, layer)
        if settings["bg_fraction"] and not settings["refinement"]:
            check_saliency(network, self.layers[1], network.head.out_features, network.features.in_channels)

    def predict_seeds(self, batch: dict[str, Any]) -> list[Seed]:
        """Return maps averaged over scales and mirror images, and the saliency of the image at the first scale."""
        seeds, unreadable = [], 0
        if batch["id"]:
            images, labels = batch["image"], batch["labels"]  # (B, in_channels, S, S) at the largest scale, (B, C)
            all_maps, all_saliency = self._localize(images, labels)
            pixels = to_uint8(images).cpu() if self.settings["refinement"] else [None] * len(images)
            rows, classes = (part.cpu().numpy() for part in (labels != 0).nonzero(as_tuple=True))
            for row, name in enumerate(batch["id"]):
                own = rows == row
                seeds.append(_seed(name, classes[own], all_maps[own], all_saliency[row], pixels[row]))
        for large in batch.get("large", ()):
            try:
                seeds.insert(large["position"] - unreadable, self._predict_tiles(large))
            except UnreadableError as error:
                batch.setdefault("unreadable", []).append((large["id"], str(error)))
                unreadable += 1
        return seeds

    def _localize(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps (n, h, w) of the n labels of a batch, and its saliency (B, h, w), on the cue grid.

        Images of the smaller scales are resized from those of the largest, so that each image is read once.
        """
        images = images.contiguous(memory_format=torch.channels_last)  # convolutions are faster on a CPU
        views = [resize_maps(images, (side, side), antialias=True) for side in self.sides]
        flipped = [view.flip(-1) for view in views] if self.settings["flip"] else []
        if self.settings["method"] == "gradcam":  # one forward pass gives the first maps and the saliency
            with record_activations(self.network, self.layers) as activations:
                targets = select_scores(activations.run(views[0]), labels, len(images))
                first = weighted_maps(targets, activations[0], self.layers[0], keep_graph=True).relu()[labels != 0]
                saliency = saliency_map(targets.scores, activations[1], labels, self.layers[1])
        else:
            first = self._maps(self.method, views[0], labels)
            saliency = background_saliency(self.network, self.layers[1], views[0], labels)
        maps = self._mean_maps(self.method, views[1:], flipped, labels, [first])
        small = torch.zeros_like(labels)
        small[:, self.small] = labels[:, self.small]
        if (own := small.any(dim=1)).any():
            own_views, own_flipped = ([view[own] for view in each] for each in (views, flipped))
            maps[small[labels != 0] != 0] = self._mean_maps(self.small_method, own_views, own_flipped, small[own])
        return maps.cpu(), resize_maps(saliency[None], self.grid)[0].cpu()

    def _predict_tiles(self, large: Mapping[str, Any]) -> Seed:
        """Return the seed of an image in tiles, an entry of ``large`` of a batch.

        The blended maps are sampled on the grid of ⌈size / cue_stride⌉ positions for the side of a tile, rounded so
        that it ends with the image.

        Raises:
            UnreadableError: the image cannot be read.
        """
        assert self.tiling is not None
        labels, side = torch.from_numpy(large["labels"]).to(self.device), self.tiling.side
        classes = np.flatnonzero(large["labels"])

        def localize(tiles: Tensor) -> Tensor:
            maps, saliency = self._localize(tiles.to(self.device), labels.expand(len(tiles), -1))
            return torch.cat([maps.reshape(len(tiles), len(classes), *self.grid), saliency[:, None]], dim=1)

        with open_windows(large["image"], large["channels"]) as image:
            rows = blended_rows(
                image, localize, self.tiling, size=self.image_size, grid=self.grid, batch_size=self.batch_size
            )
            blended = torch.cat(list(rows), dim=1)  # (k + 1, h, w), the saliency last
            ends = [pixels * self.grid[0] / side for pixels in image.shape[:2]]  # of the image on this grid
            y, x = ((torch.arange(n) + 0.5) * end / n for end in ends for n in [max(1, round(end))])
            values = sample_grid(blended, y, x)
            longer = PIXELS_PER_POSITION * max(len(y), len(x))
            small = reduce_image(image, longer) if self.settings["refinement"] else None
        pixels = None if small is None else torch.from_numpy(small).permute(2, 0, 1)
        return _seed(large["id"], classes, values[:-1], values[-1], pixels)

    def _mean_maps(
        self, method: Method, views: list[Tensor], flipped: list[Tensor], labels: Tensor, first: Sequence[Tensor] = ()
    ) -> Tensor:
        """Return maps (n, h, w) of the n labels of a batch on the cue grid: the mean over views and maps ``first``."""
        maps = [*first, *(self._maps(method, view, labels) for view in views)]
        maps += [self._maps(method, view, labels).flip(-1) for view in flipped]
        # antialiased, because maps of pixels, as those of guided Grad-CAM, are larger than the grid
        return torch.cat([resize_maps(each[None], self.grid, antialias=True) for each in maps]).mean(dim=0)

    def _maps(self, method: Method, images: Tensor, labels: Tensor) -> Tensor:
        """Return maps (n, h, w) of the n labels of a batch, not negative, and comparable between scales."""
        with torch.enable_grad():  # Lightning predicts without gradients
            maps = channel_maximum(method(images, labels)).detach()[labels != 0].clamp(min=0)
        return maps.mul_((images.shape[-1] / self.sides[0]) ** (2 * method.position_power))

    def cues(self, seed: Seed) -> NDArray[np.uint8]:
        """Return the cues of an image, made of its maps as the cache returns them."""
        settings, maps, crf = self.settings, as_stored(seed.maps), self.settings["refinement"]
        if crf:
            assert seed.image is not None
            return refined_cues(seed.classes, maps, seed.image, crf["conf_fg"], crf["conf_bg"], grid=self.grid)
        assert seed.saliency is not None
        saliency = as_stored(seed.saliency[None])[0]
        return threshold_cues(seed.classes, maps, saliency, settings["fg_threshold"], settings["bg_fraction"])


def _seed(name: str, classes: NDArray[np.int64], maps: Tensor, saliency: Tensor, image: Tensor | None) -> Seed:
    """Return the seed of an image; raise an InputError if its maps are not finite."""
    if not (maps.isfinite().all() and saliency.isfinite().all()):
        raise InputError(f"the classifier's maps of image {name} are not finite; train it again")
    return Seed(name, classes, maps.numpy(), saliency.numpy(), image)
