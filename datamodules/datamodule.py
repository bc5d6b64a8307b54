"""The one data module of the command line."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from datamodules.class_names import check_classes
from datamodules.dataset import TagDataset, collate, one_thread
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.folder_listing import MASK_FOLDER, Listing, listing_classes, listing_photos, read_csv, read_tag_folders
from datamodules.photos import PhotoSet, all_masks, check_labels
from datamodules.progress import print_message
from datamodules.sampling import EvalSampler, TrainSampler, run_seed
from datamodules.seed_cache import SeedCache
from datamodules.transforms import Augment
from datamodules.unreadable import MAX_UNREADABLE, UnreadableImages, leave_out_unreadable
from datamodules.voc import require_voc, voc_classes, voc_photos
from datamodules.voc_download import download_voc

if TYPE_CHECKING:
    from collections.abc import Mapping

Batches = DataLoader[dict[str, Any]]


class TagDataModule(pl.LightningDataModule):
    """Images with image-level tags, and whichever of cues and masks a training asks for.

    Training batches hold ``image`` float32 (B, 3, S, S), ``labels`` float32 (B, C), ``id``, ``size`` int64 (B, 2) and,
    by ``targets``, ``cues`` bool (B, C+1, h, w) or ``mask`` int64 (B, S, S). Those of the other loaders are not
    augmented: ``image`` (B, 3, E, E) for ``eval_size`` E and, where the split has masks, ``mask`` int64 (B, Hmax, Wmax)
    at the masks' own size, padded with 255.

    Args:
        root: The folder: of VOC layout (with JPEGImages in it), or with one's own photos.
        layout: ``voc``; ``csv`` for photos with one CSV of ``file,tags``; ``folders`` for one folder a tag.
        classes: The classes in their order; others count as none in labels and as 255 in masks. None: those of
            ``classes.txt`` in the folder, else VOC's 20 (``voc``) or all tags (``csv``, ``folders``).
        labels: Where labels come from. ``voc``: ``xml``, ``imagesets``, ``masks``, a path to ``cls_labels.npy``, or
            null for none; ``csv``: the CSV's name, if it is not ``tags.csv``; not looked at for ``folders``.
        train_split: The list to train on. Own photos have ``train`` (or ``trainaug``), ``val`` (or ``test``), ``all``.
        val_split: The list to validate on.
        test_split: The list to test and predict on.
        masks: Name of the folder of masks; ``auto`` takes SegmentationClassAug, else SegmentationClass (``voc``) or
            ``masks`` (own photos) if it is there; null leaves masks alone.
        val_fraction: Part of one's own photos (``csv``, ``folders``) kept for validation.
        targets: What is trained on: ``tags``, ``cues`` (of a seed cache) or ``masks``.
        cues: The seed cache's folder, for ``targets: cues``.
        cues_made_by: The classifier's checkpoint that the cues must be from; the cache's record of it is compared.
        cue_stride: Pixels to a cell of the cues: a side of the grid has ⌈size / cue_stride⌉ cells.
        size: Side S in pixels to which images are warped.
        eval_size: The same for validation, test and prediction, where images are whole: a network trained on random
            crops has seen things larger than they are in whole images, and is right more often a size up
            (Touvron et al., "Fixing the train-test resolution discrepancy", NeurIPS 2019). None: as ``size``.
        augment: Random changes of training images; null for none.
        batch_size: Images in a batch of one process.
        num_workers: Processes that read images.
        max_unreadable: The share of images that may be unreadable: they are left out and listed, and in training
            others take their places. With more of them, the run ends.
        strict: Accept no unreadable image.
        download: Fetch VOC 2012 and SBD into ``root`` (which must end in VOCdevkit/VOC2012) if it is not there.

    Raises:
        InputError: A setting does not fit; `setup` raises it for what is wrong on disk.
    """

    def __init__(
        self,
        root: str,
        *,
        layout: Literal["voc", "csv", "folders"] = "voc",
        classes: list[str] | None = None,
        labels: str | None = "imagesets",
        train_split: str = "trainaug",
        val_split: str = "val",
        test_split: str = "val",
        masks: str | None = "auto",
        val_fraction: float = 0.1,
        targets: Literal["tags", "cues", "masks"] = "tags",
        cues: str | None = None,
        cues_made_by: str | None = None,
        cue_stride: int = 8,
        size: int = 320,
        eval_size: int | None = None,
        augment: Augment | None = None,
        batch_size: int = 16,
        num_workers: int = 2,
        max_unreadable: float = MAX_UNREADABLE,
        strict: bool = False,
        download: bool = False,
    ) -> None:
        super().__init__()
        self.augment = _augment(augment)
        self.unreadable = UnreadableImages(max_unreadable, strict=strict)
        """Images that cannot be read, of all splits that were set up."""
        if targets == "cues" and cues is None:
            raise InputError("targets is cues, and no seed cache is given: set cues to its folder.")
        sizes = {"size": size, "eval_size": size if eval_size is None else eval_size, "cue_stride": cue_stride}
        for name, value in (sizes | {"batch_size": batch_size}).items():
            if value < 1:
                raise InputError(f"{name} is {value}, and must be at least 1.")
        if num_workers < 0:
            raise InputError(f"num_workers is {num_workers}, and must be at least 0.")
        self.root = Path(root).expanduser()
        self.listing = None if layout == "voc" else _listing(layout, self.root, labels, masks)
        """All images of one's own; None for ``voc``."""
        if self.listing is None and classes is not None and not download:
            require_voc(self.root)  # else a class of a missing folder's classes.txt would be called unknown
        source = voc_classes(self.root) if self.listing is None else listing_classes(self.listing, self.root)
        where = f"of {self.root if self.listing is None else self.listing.source}"
        self.classes: tuple[str, ...] = source if classes is None else check_classes(classes, source, where)
        self.save_hyperparameters(
            # plain types only: checkpoints that hold them load with weights_only. The classes' names themselves: a
            # checkpoint then says what its channels are, and Lightning finds the same in the task's settings
            {
                "root": str(root), "layout": layout, "classes": list(self.classes),
                "labels": None if labels is None else str(labels), "train_split": train_split, "val_split": val_split,
                "test_split": test_split, "masks": masks, "val_fraction": val_fraction, "targets": targets,
                "cues": None if cues is None else str(cues),
                "cues_made_by": None if cues_made_by is None else str(cues_made_by), **sizes,
                "augment": None if self.augment is None else _plain(asdict(self.augment)),
                "batch_size": batch_size, "num_workers": num_workers,
                "max_unreadable": max_unreadable, "strict": strict, "download": download,
            },
            # left to look for it, Lightning makes a cycle of frames, which holds the locals of every caller, loaders
            # among them, until the garbage collector runs; and a loader collected by that waits 5 s for each worker
            frame=inspect.currentframe(),
        )  # fmt: skip
        self._datasets: dict[str, TagDataset] = {}
        self._epoch = 0  # in which training begins

    def photos(self, split: str, *, labels: bool = True, masks: bool = True) -> PhotoSet:
        """What is on disk for a split, by the name of its list.

        Args:
            split: As ``train_split``.
            labels: Whether to read labels; all zero if not.
            masks: Whether to look for masks.

        Raises:
            InputError: Something is missing or malformed.
        """
        hp = self.hparams
        if self.listing is None:
            # labels may come from masks, so these are looked for all the same
            find = hp["masks"] if masks or (labels and hp["labels"] == "masks") else None
            found = voc_photos(self.root, split, self.classes, hp["labels"] if labels else None, find)
            return found if masks else found.without_masks()
        find = hp["masks"] if masks else None
        found = listing_photos(
            self.listing, self.root, split, self.classes, masks=find, val_fraction=hp["val_fraction"]
        )
        return found if labels else PhotoSet(**{**vars(found), "labels": np.zeros_like(found.labels)})

    def prepare_data(self) -> None:
        """Downloads VOC if asked to."""
        if self.hparams["download"]:
            download_voc(self.root)

    def setup(self, stage: str | None = None) -> None:
        """Finds and checks the images of a stage (fit, validate, test or predict).

        Raises:
            InputError: A folder, list, image, label or mask is missing or does not fit; the labels of a split are
                all zero; the seed cache lacks images or has other classes.
        """
        hp = self.hparams
        if stage in (None, "fit") and "train" not in self._datasets:
            self._datasets["train"] = self._training()
        wanted = {"fit": ["val"], "validate": ["val"], "test": ["test"], "predict": ["test"]}.get(
            stage or "", ["val", "test"]
        )
        for name in wanted:
            if name not in self._datasets and not (name == "val" and self._no_val):
                photos = leave_out_unreadable(self.photos(hp[f"{name}_split"]), self.unreadable)
                if photos.masks is not None and None in photos.masks:
                    scored = len(photos.with_masks())
                    print_message(f"{scored} of {len(photos)} {name} images have a mask; the others are not scored")
                if hp["targets"] == "tags" and hp["labels"] is not None:
                    check_labels(photos, self._label_source)
                self._datasets[name] = TagDataset(photos, hp["eval_size"])

    @property
    def _no_val(self) -> bool:
        return self.listing is not None and bool(self.hparams["val_fraction"] == 0)

    @property
    def _label_source(self) -> str:
        return f"labels: {self.hparams['labels']} of {self.root}" if self.listing is None else str(self.listing.source)

    def _training(self) -> TagDataset:
        hp = self.hparams
        with_masks = hp["targets"] == "masks"
        photos = self.photos(hp["train_split"], masks=with_masks)
        if with_masks and photos.masks is None:
            raise InputError(f"targets is masks, and the split {hp['train_split']!r} of {self.root} has none.")
        if with_masks:
            all_masks(photos, "targets: masks")
        cues = None
        if hp["targets"] == "cues":
            cues = SeedCache(hp["cues"])
            photos = covered(cues, photos)
            check_maker(cues, hp["cues_made_by"])
        photos = leave_out_unreadable(photos, self.unreadable)
        if not with_masks:
            check_labels(photos, self._label_source)
        return TagDataset(
            photos, hp["size"], training=True, augment=self.augment, cues=cues, cue_stride=hp["cue_stride"]
        )

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:  # noqa: ARG002
        """Takes note of the images of a batch that could not be read; raises an InputError if there are too many."""
        for name, reason in batch.pop("unreadable", ()):
            self.unreadable.add(name, reason)
        return batch

    def train_dataloader(self) -> Batches:
        """Shuffled, augmented; what does not fill a last step of the optimizer is left out, or is the only batch."""
        data = self._datasets["train"]
        accumulate = self.trainer.accumulate_grad_batches if self.trainer else 1
        sampler = TrainSampler(len(data), self.hparams["batch_size"], run_seed(), accumulate)
        sampler.set_epoch(self._epoch)
        return self._loader(data, sampler, keep=True)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the epoch to go on with."""
        done: Any = self.trainer.fit_loop.epoch_progress.current if self.trainer else None
        return {"epoch": done.processed if done else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the epoch up again: Lightning tells it to samplers only when workers have begun to fetch."""
        self._epoch = int(state_dict["epoch"])

    def val_dataloader(self) -> Batches | list[Any]:
        """The validation split, or nothing where ``val_fraction`` is 0."""
        return [] if self._no_val else self._eval_loader(self._datasets["val"], keep=True)

    def test_dataloader(self) -> Batches:
        """The test split."""
        return self._eval_loader(self._datasets["test"])

    def predict_dataloader(self) -> Batches:
        """The test split, too."""
        return self._eval_loader(self._datasets["test"])

    def eval_loader(self, photos: PhotoSet) -> Batches:
        """Batches of any images in their order, not augmented; see `photos` and `datamodules.photos.file_photos`."""
        return self._eval_loader(TagDataset(photos, self.hparams["eval_size"]))

    def _eval_loader(self, data: TagDataset, *, keep: bool = False) -> Batches:
        return self._loader(data, EvalSampler(len(data)), keep=keep)

    def _loader(self, data: TagDataset, sampler: TrainSampler | EvalSampler, *, keep: bool) -> Batches:
        workers = self.hparams["num_workers"]
        return DataLoader(
            data,
            batch_size=self.hparams["batch_size"],
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=one_thread,
            persistent_workers=keep and workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def covered(cache: SeedCache, photos: PhotoSet) -> PhotoSet:
    """The images of ``photos`` that ``cache`` holds; those that it says were left out are told on the terminal.

    Raises:
        InputError: ``cache`` was made for other classes, lacks an image and says nothing of it, or lacks all.
    """
    if tuple(cache.classes) != photos.classes:
        raise InputError(
            f"the seed cache was made for the classes {', '.join(cache.classes)}, not {', '.join(photos.classes)}: "
            "name the same, in the same order, or make the seeds anew."
        )
    there = np.array([name in cache for name in photos.ids])
    lacking = [photos.ids[i] for i in np.flatnonzero(~there)]
    unknown = [name for name in lacking if name not in cache.left_out]
    if unknown or not there.any():
        name = (unknown or lacking)[0]
        raise InputError(
            f"the seed cache lacks {len(unknown or lacking)} of the {len(photos)} images, first {name}: "
            "make seeds of this split."
        )
    if lacking:
        print_message(
            f"{len(lacking)} of {len(photos)} images are left out, of which the seed cache has no cues; first "
            f"{lacking[0]}: {cache.left_out[lacking[0]]}"
        )
    return photos.subset(np.flatnonzero(there))


def check_maker(cache: SeedCache, checkpoint: str | None) -> None:
    """Raises an InputError if ``checkpoint`` is given and is not the file that ``cache`` was made with."""
    if checkpoint is None:
        return
    try:
        digest = file_sha256(checkpoint)
    except OSError as error:
        raise InputError(f"cues_made_by: {checkpoint} cannot be read: {error.strerror}.") from error
    if cache.settings.get("checkpoint_sha256") != digest:
        raise InputError(
            f"the seed cache was made by another checkpoint ({cache.inputs.get('checkpoint', 'not recorded')}) than "
            f"{checkpoint} as it is now: make the seeds anew, or leave cues_made_by out."
        )


def _listing(layout: str, root: Path, labels: str | None, masks: str | None) -> Listing:
    if layout == "csv":
        return read_csv(root, "tags.csv" if labels in (None, "imagesets") else str(labels))
    return read_tag_folders(root, MASK_FOLDER if masks == "auto" else masks)


def _augment(given: Any) -> Augment | None:
    """The settings as an `Augment`; a checkpoint holds them as a dictionary."""
    if given is None or isinstance(given, Augment):
        return given
    return Augment(**dict(given))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
