"""The base class of all data modules: loaders, sampling, checks and the common options.

A new data set is one file with a subclass of `BaseDataModule` that implements `known_classes` and `read_samples`.
"""

import inspect
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import pytorch_lightning as pl
from torch.utils.data import DataLoader
from upath import UPath

from datamodules.annotations.sources import add_annotations, check_source
from datamodules.class_names import check_classes, class_name, mask_lut, require_same_classes
from datamodules.dataset import ImageDataset, image_loader
from datamodules.errors import InputError, os_errors, require_choice
from datamodules.files import AnyPath, existing_files, expand_home, file_sha256, is_uri, list_folder, storage_errors
from datamodules.image_ids import INVALID_ID, is_valid_id
from datamodules.progress import first_few, print_message
from datamodules.sample import Sample, SplitSamples, any_tagged, require_masks, require_tags
from datamodules.sample_blocks import SampleBlocks, consecutive_blocks
from datamodules.samplers import TrainSampler, evenly_spaced, run_seed
from datamodules.seed_cache import SeedCache
from datamodules.transforms import Augment
from datamodules.unreadable_images import MAX_UNREADABLE, UnreadableImages, readable

Targets = Literal["tags", "cues", "masks"]
TRAINING_ONLY = (
    "augment", "cues", "cues_checkpoint", "download", "mask_sampling_rate", "min_images_per_epoch", "targets",
)  # fmt: skip
"""Settings that only a training uses; `BaseDataModule.settings` and `datamodules.open_data` leave them out."""

CHECKED_SHARDS = 256
"""Shards of a seed cache whose classes are compared with the tags, in a second or two."""


class BaseDataModule(pl.LightningDataModule):
    """Images with image-level tags and, depending on ``targets``, seed cues or masks.

    Training batches contain ``image`` float32 (B, in_channels, S, S), ``labels`` float32 (B, C), ``id``, ``size`` int64
    (B, 2) and, depending on ``targets``, ``cues`` bool (B, C+1, h, w) or ``mask`` int64 (B, S, S). Batches of the other
    loaders are not augmented: ``image`` (B, in_channels, E, E) with E = ``eval_size`` and, where the split has masks,
    ``mask`` int64 (B, Hmax, Wmax) at the masks' own size, padded with 255.

    Args:
        root: folder of the data set: a path, or a URI such as ``s3://bucket/photos``.
        classes: the classes in their order. Other classes are ignored in tags and become 255 in masks. None: all
            classes of the data set.
        train_split: split to train on.
        val_split: split to validate on; None for no validation.
        test_split: split to test and predict on.
        annotations: source, or list of sources, of masks, points, scribbles and boxes of some images: ``masks`` for the
            data set's own masks; ``xml`` for the boxes of ``Annotations/<id>.xml`` in a VOC folder; the path of a list
            of ids (``.txt``) for the data set's own masks of these images; the path of a table (``.csv``, ``.jsonl``)
            with the columns ``mask``, ``points``, ``scribbles``, ``boxes``; or a file of an annotation tool: a JSON of
            COCO's instances or of Label Studio's tasks (``.json``), masks of CVAT (``.zip``), the ``data.yaml`` of YOLO
            (``.yaml``), a Hugging Face data set (``.parquet``). None: there are only tags. With ``targets: cues`` or
            ``masks``, the annotations of a training image are training targets, see
            `training.segmentation_task.SegmentationTask.losses`; with ``masks``, images without a mask, point or
            scribble are left out.
        mask_sampling_rate: how often an image with a mask among its annotations is drawn, relative to other images. The
            number of images in an epoch stays the same.
        min_images_per_epoch: least number of images in an epoch, those that fill no last step included: an epoch of a
            smaller data set repeats the images, so that a schedule in epochs has enough steps for few images, too.
        targets: training targets: ``tags``, ``cues`` (of a seed cache) or ``masks``.
        cues: folder of the seed cache, for ``targets: cues``.
        cues_checkpoint: checkpoint that the seed cache must come from; compared with the cache's metadata.
        cue_stride: pixels per position of the cue grid: the grid has ⌈size / cue_stride⌉ positions on a side.
        size: side S in pixels to which training images are resized.
        eval_size: side E in pixels to which whole images are resized for validation, test and prediction. Objects
            look larger in random crops than in whole images, therefore a larger side is often more accurate
            (Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019). None: ``size``.
        augment: random changes of training images; None for no changes.
        in_channels: channels of the images. 3: RGB, to which gray images and others are converted. Another number:
            every image must have as many bands, see `datamodules.images.read_image`.
        batch_size: images per batch and process.
        num_workers: processes that read images.
        max_unreadable: share of the images that may be unreadable. Unreadable images are left out and listed; in
            training the next image takes the place. More unreadable images end the run.
        strict: allow no unreadable image.

    Attributes:
        classes: names of the chosen classes.
        in_channels: channels of the images.
        mask_classes: all classes of the data set, in the order of the indices in its masks.
        mask_lut: uint8 (256,): index in a mask file -> class index, see `datamodules.class_names.mask_lut`.
        source: name of the file or folder that lists images and tags, for messages; a subclass may set it.
        unreadable: unreadable images of all splits that were set up.

    Raises:
        InputError: a setting is invalid. `setup` raises it for invalid files.
    """

    source = ""
    class_advice = ""  # end of the message about an unknown class
    all_ids: Collection[str] = frozenset()  # of all splits; a subclass sets it where ids are paths, which can end alike

    def __init__(
        self,
        root: str,
        *,
        classes: list[str] | None = None,
        train_split: str = "train",
        val_split: str | None = "val",
        test_split: str = "val",
        annotations: str | list[str] | None = None,
        mask_sampling_rate: int = 1,
        min_images_per_epoch: int = 0,
        targets: Targets = "tags",
        cues: str | None = None,
        cues_checkpoint: str | None = None,
        cue_stride: int = 8,
        size: int = 320,
        eval_size: int | None = None,
        augment: Augment | None = None,
        in_channels: int = 3,
        batch_size: int = 16,
        num_workers: int = 2,
        max_unreadable: float = MAX_UNREADABLE,
        strict: bool = False,
    ) -> None:
        # all arguments by name; what follows makes them plain
        settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        # a checkpoint stores the augmentation as a dictionary
        self.augment = Augment(**augment) if isinstance(augment, dict) else augment
        self.unreadable = UnreadableImages(max_unreadable, strict=strict)
        require_choice("targets", targets, get_args(Targets))
        if targets == "cues" and cues is None:
            raise InputError("targets is cues, and no seed cache is given: set cues to its folder")
        settings["eval_size"] = size if eval_size is None else eval_size
        positive = ("size", "eval_size", "cue_stride", "in_channels", "batch_size", "mask_sampling_rate")
        for name, least in (*((name, 1) for name in positive), ("num_workers", 0), ("min_images_per_epoch", 0)):
            if settings[name] < least:
                raise InputError(f"{name} is {settings[name]}, and must be at least {least}")
        listed = [annotations] if isinstance(annotations, str) else annotations or ()
        self.annotation_sources = [expand_home(str(source)) for source in listed]
        for source in self.annotation_sources:
            check_source(source)
        settings["annotations"] = self.annotation_sources or None
        self.in_channels = in_channels
        self.root = data_folder(root)
        self.source = self.source or str(self.root)
        known = self.known_classes()
        where = f"of {self.source}" if self.root.is_dir() else f"of {self.source} (folder {self.root} does not exist)"
        chosen = known if classes is None else [class_name(name, known) for name in classes]
        self.classes: tuple[str, ...] = check_classes(chosen, known, where, self.class_advice)
        for name in self.classes:
            # a line of classes.txt, a key in metrics
            if name.strip("_").casefold() == "background" or name.splitlines() != [name]:
                rule = "a class is one line of text other than background; choose the others with classes"
                rule += ", and images without any of them are background"
                raise InputError(f"{name!r} cannot be one of the classes {where}: {rule}")
        self.mask_classes, self.mask_lut = known, mask_lut(known, self.classes)
        # plain values only: checkpoints load with weights_only. The names of the classes: a checkpoint then records the
        # meaning of its channels, and Lightning finds the same value in the task's settings
        paths = ("root", "cues", "cues_checkpoint")
        settings |= {name: expand_home(str(settings[name])) for name in paths if settings[name]}
        settings["classes"] = list(self.classes)
        settings["augment"] = None if self.augment is None else json.loads(json.dumps(asdict(self.augment)))
        settings["class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        self.save_hyperparameters(settings)
        self._datasets: dict[str, ImageDataset] = {}
        self._loader = partial(image_loader, batch_size=batch_size, num_workers=num_workers)
        self._epoch = 0  # the epoch in which training starts

    def known_classes(self) -> tuple[str, ...]:
        """Return all classes of the data set, in the order of the indices in its masks.

        Called by ``__init__`` once ``root`` is set: a subclass sets the attributes it needs before
        ``super().__init__``. The data set may not be downloaded yet.
        """
        raise NotImplementedError

    def read_samples(self, split: str, *, tags: bool = True, masks: bool = True) -> list[Sample]:
        """Return the samples of a split in a fixed order, without reading a pixel; `samples` does the checks.

        Args:
            split: name of the split.
            tags: whether tags are needed; they may be None otherwise.
            masks: whether masks are needed; they may be None otherwise.
        """
        raise NotImplementedError

    @property
    def settings(self) -> dict[str, Any]:
        """The plain settings from which `datamodules.open_data` makes this data module again, without targets."""
        return {key: value for key, value in self.hparams.items() if key not in TRAINING_ONLY}

    def save_hyperparameters(self, *args: Any, **kwargs: Any) -> None:
        """Save settings as Lightning does, but without a cycle of frames.

        Lightning searches the frames of the callers, and the search leaves a cycle that keeps the local variables of
        every caller alive until the garbage collector runs. A loader that is collected this way waits 5 s for each
        worker.
        """
        super().save_hyperparameters(*args, **{"frame": inspect.currentframe()} | kwargs)

    def samples(self, split: str, *, tags: bool = True, masks: bool = True) -> list[Sample]:
        """Return the checked samples of a split; headers are not read, see `datamodules.unreadable_images.readable`.

        Args:
            split: name of the split.
            tags: whether to read tags; None otherwise.
            masks: whether to look for masks; None otherwise.

        Raises:
            InputError: the split does not exist or is empty, an id is invalid or occurs twice, or an image does not
                exist.
        """
        samples = self.read_samples(split, tags=tags, masks=masks)
        if not samples:
            raise InputError(f"the split {split!r} of {self.source} contains no image")
        where, seen = f"the split {split!r} of {self.source} contains", dict[str, str]()  # image by id
        missing = self._missing(samples)
        for sample in samples:
            if sample.id in seen:
                same = seen[sample.id] == sample.image
                advice = "write all its tags into one row, as in cat;dog" if same else "rename or remove one of them"
                raise InputError(f"{where} two images with the id {sample.id!r}: {advice}")
            if sample.image in missing:
                raise InputError(f"{where} {sample.id}, and there is no image {sample.image}")
            if not is_valid_id(sample.id):
                raise InputError(f"{where} the id {sample.id!r}, which is {INVALID_ID}: rename the image")
            seen[sample.id] = sample.image
        return samples

    def annotated(self, samples: Sequence[Sample], split: str) -> list[Sample]:
        """Return samples with the masks, points, scribbles and boxes of ``annotations``; without it, as they are.

        Masks of images that no source contains become None. Tags that are not known become the classes of the
        annotations.

        Args:
            samples: all samples of the split, with tags where they are known.
            split: name of the split.

        Raises:
            InputError: a source is missing or invalid, contains no image of the split, or contradicts the tags of an
                image.
        """
        if not self.annotation_sources:
            return list(samples)

        def masks() -> dict[str, Any]:
            return {sample.id: sample.mask for sample in self.read_samples(split, tags=False)}

        title, other_ids = f"the split {split!r} of {self.source}", set(self.all_ids) - {each.id for each in samples}
        return add_annotations(
            SplitSamples(samples, title, other_ids), self.annotation_sources, root=self.root,
            mask_classes=self.mask_classes, classes=self.classes, masks=masks,
        )  # fmt: skip

    def blocks(self, split: str, size: int) -> SampleBlocks:
        """Return the samples of a split with tags in blocks, one for each shard of a seed cache.

        Args:
            split: name of the split.
            size: images per block, where the data set itself has no blocks.

        Raises:
            InputError: as `samples`, or no image has a tag.
        """
        samples = self.annotated(self.samples(split, masks=False), split)
        require_tags(samples, self.classes, self.source)
        return consecutive_blocks(samples, size)

    def _missing(self, samples: Sequence[Sample]) -> set[str]:
        """Return the images that do not exist; of those named by URI, only those in ``root`` are looked up."""
        local = {sample.image for sample in samples if not is_uri(sample.image) and not Path(sample.image).is_file()}
        if isinstance(self.root, Path):
            return local
        start = f"{self.root}/"
        below = {image.removeprefix(start) for sample in samples if (image := sample.image).startswith(start)}
        return local | {start + name for name in below - existing_files(self.root, sorted(below))}

    def setup(self, stage: str | None = None) -> None:
        """Find and check the images of a stage (fit, validate, test or predict).

        Raises:
            InputError: a folder, list, image, tag file or mask is missing or invalid; no image of a split has a tag;
                the seed cache lacks images, has other classes or comes from another checkpoint.
        """
        hp = self.hparams
        if stage in (None, "fit") and "train" not in self._datasets:
            self._datasets["train"] = self._training_dataset()
        names = {"fit": ("val",), "validate": ("val",), "test": ("test",), "predict": ("test",)}
        for name in names.get(stage or "", ("val", "test")):
            split = hp[f"{name}_split"]
            if name in self._datasets or split is None:
                continue
            samples = readable(self.samples(split), self.unreadable)
            scored = sum(sample.mask is not None for sample in samples)
            if 0 < scored < len(samples):
                print_message(f"{scored} of {len(samples)} {name} images have a mask; the others are not scored")
            if hp["targets"] == "tags" and any(sample.tags is not None for sample in samples):
                if stage == "fit" and not any_tagged(samples, self.classes):
                    print_message(f"no {name} image has a tag, so there are no figures: {len(samples)} images")
                else:
                    require_tags(samples, self.classes, self.source)
                samples = with_tags(samples, name)
            self._datasets[name] = self._eval_dataset(samples)

    def training_samples(self) -> list[Sample]:
        """Return the samples of the training with tags and annotations; neither headers nor cues are read.

        Raises:
            InputError: masks are missing, or as `samples` and `annotated`.
        """
        with_masks, split = self.hparams["targets"] == "masks", self.hparams["train_split"]
        samples = self.annotated(self.samples(split, masks=with_masks), split)
        if with_masks and self.annotation_sources:
            samples = [sample for sample in samples if sample.mask or sample.points or sample.scribbles]
            if not samples:
                sources = ", ".join(self.annotation_sources)
                raise InputError(f"targets: masks, and no training image has a mask, point or scribble in {sources}")
            print_message(f"{len(samples)} training images have a mask, point or scribble; the others are left out")
        elif with_masks:
            require_masks(samples, "targets: masks")
        return samples

    def _training_dataset(self) -> ImageDataset:
        hp, samples, cues = self.hparams, self.training_samples(), None
        with_masks = hp["targets"] == "masks"
        with_annotations = bool(self.annotation_sources) and hp["targets"] != "tags"
        if hp["targets"] == "cues":
            cues = SeedCache(hp["cues"])
            samples = covered_samples(cues, samples, self.classes)
            report_untagged_cues(cues, samples)
            checkpoint = hp["cues_checkpoint"]
            with os_errors(f"cues_checkpoint: {checkpoint} cannot be read"):
                digest = file_sha256(checkpoint) if checkpoint else None
            if digest and digest != cues.settings.get("checkpoint_sha256"):
                recorded = cues.inputs.get("checkpoint", "not recorded")
                raise InputError(f"the seed cache was made by another checkpoint ({recorded}) than {checkpoint}")
        samples = readable(samples, self.unreadable)
        if not with_masks:
            require_tags(samples, self.classes, self.source)
            samples = with_tags(samples, "training")
        if hp["targets"] == "tags" and (absent := set(self.classes).difference(*(each.tags or () for each in samples))):
            print_message(f"warning: classes without a training image cannot be learned: {first_few(sorted(absent))}")
        return ImageDataset(
            samples, self.classes, hp["size"], mask_lut=self.mask_lut if with_masks or with_annotations else None,
            training=True, augment=self.augment, cues=cues, cue_stride=hp["cue_stride"], channels=self.in_channels,
            with_annotations=with_annotations,
        )  # fmt: skip

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """Record the unreadable images of a batch; raise an InputError if there are too many."""
        for name, reason in batch.pop("unreadable", ()):
            self.unreadable.add(name, reason)
        return batch

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return shuffled and augmented batches; images that do not fill a last optimizer step are left out."""
        data = self._datasets["train"]
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        rate = self.hparams["mask_sampling_rate"] if data.with_annotations else 1
        repeats = [rate if sample.mask else 1 for sample in data.samples]
        sampler = TrainSampler(
            len(data), self.hparams["batch_size"], run_seed(), accumulate, repeats, self.hparams["min_images_per_epoch"]
        )
        sampler.set_epoch(self._epoch)
        return self._loader(data, sampler=sampler, persistent=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Return batches of the validation split; none where ``val_split`` is None."""
        if self.hparams["val_split"] is None:
            return []
        return self._loader(self._datasets["val"], persistent=True)

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return batches of the test split."""
        return self._loader(self._datasets["test"])

    predict_dataloader = test_dataloader

    def eval_loader(self, samples: Sequence[Sample], *, largest: int | None = None) -> DataLoader[dict[str, Any]]:
        """Return batches of any samples in their order, not augmented, with ``original``, the images as on disk.

        Args:
            samples: samples of this data set (see `samples`) or of files (`datamodules.sample.file_samples`).
            largest: height and width in pixels up to which images are read, see `ImageDataset`; None for any.
        """
        return self._loader(self._eval_dataset(samples, with_originals=True, largest=largest))

    def _eval_dataset(
        self, samples: Sequence[Sample], *, with_originals: bool = False, largest: int | None = None
    ) -> ImageDataset:
        return ImageDataset(
            samples, self.classes, self.hparams["eval_size"], mask_lut=self.mask_lut, channels=self.in_channels,
            with_originals=with_originals, largest=largest,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the number of finished epochs."""
        progress: Any = self.trainer.fit_loop.epoch_progress.current if self.trainer else None
        return {"epoch": progress.processed if progress else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epoch: Lightning passes it to samplers only after workers have started to read."""
        self._epoch = int(state_dict["epoch"])


def data_folder(root: str) -> AnyPath:
    """Return the folder of a data set by path or URI; only one behind a URI is looked up.

    Raises:
        InputError: the URI cannot be read: there is no such bucket or folder, or the credentials are wrong.
    """
    with storage_errors(f"folder {root}"):
        folder = UPath(root).expanduser()
    if not is_uri(folder):
        return Path(str(folder))  # joining names to a UPath takes three times as long
    with os_errors(f"folder {folder} cannot be read"):
        list_folder(folder)
    return folder


def with_tags(samples: Sequence[Sample], what: str) -> list[Sample]:
    """Return the samples whose tags are known; print how many are left out: they would count as without any class.

    Args:
        samples: samples of a split.
        what: what the images are for, in the message.
    """
    unknown = [sample.id for sample in samples if sample.tags is None]
    if unknown:
        problem = f"{len(unknown)} of {len(samples)} {what} images are left out because their tags are not known"
        print_message(f"{problem}; first {unknown[0]}")
    return [sample for sample in samples if sample.tags is not None]


def covered_samples(cache: SeedCache, samples: Sequence[Sample], classes: Sequence[str]) -> list[Sample]:
    """Return the samples with cues in a seed cache; print how many the cache has left out.

    Raises:
        InputError: the cache has other classes, lacks an image without recording it as left out, or lacks all.
    """
    require_same_classes("the seed cache", cache.classes, classes)
    covered = [sample for sample in samples if sample.id in cache]
    lacking = [sample.id for sample in samples if sample.id not in cache]
    missing = [name for name in lacking if name not in cache.left_out] or ([] if covered else lacking)
    if missing:
        raise InputError(f"the seed cache lacks {len(missing)} of the {len(samples)} images, first {missing[0]}")
    if lacking:
        problem = f"{len(lacking)} of {len(samples)} images are left out because the seed cache has no cues of them"
        print_message(f"{problem}; first {lacking[0]}: {cache.left_out[lacking[0]]}")
    return covered


def report_untagged_cues(cache: SeedCache, samples: Sequence[Sample]) -> None:
    """Print how many samples have cues of classes that are not among their tags: tags changed since the cache was made.

    The classes are those of the maps in the headers of at most `CHECKED_SHARDS` shards, evenly chosen. Samples whose
    tags are not known do not count, nor does a cache of cues alone, or one behind a URI: each header is a request.

    Args:
        cache: a seed cache.
        samples: samples with cues in it.

    Raises:
        InputError: a shard is missing or damaged.
    """
    if is_uri(cache.path):
        return
    names = dict[str, set[str]]()  # of the classes, by id
    for number in evenly_spaced(cache.num_shards, CHECKED_SHARDS):
        shard = cache.shard(number)
        names |= {name: {cache.classes[index] for index in shard.map_classes(name)} for name in shard.ids}
    checked = [(each.id, each.tags) for each in samples if each.tags is not None and each.id in names]
    untagged = {name: names[name] - tags for name, tags in checked if names[name] - tags}
    if untagged:
        cues = "cues of classes that are not among their tags"
        some = first_few([f"{name} ({', '.join(sorted(classes))})" for name, classes in untagged.items()])
        print_message(f"warning: {len(untagged)} of {len(checked)} images have {cues}: {some}; make the cache again")
