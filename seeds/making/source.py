"""Where a cache comes from: a checkpoint, the images of a split with their labels, and perhaps another cache."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from datamodules.datamodule import TagDataModule, covered
from datamodules.files import file_sha256
from datamodules.photos import PhotoSet, check_labels
from datamodules.seed_cache import SeedCache
from datamodules.source_revision import SEED_PACKAGES, source_revision
from seeds.checkpoints import read_checkpoint
from seeds.data import data_settings
from seeds.provenance import ids_sha256, provenance


@dataclass(frozen=True)
class Source:
    """A trained network's checkpoint, and the images it is asked about.

    Attributes:
        checkpoint: the network's.
        data: the data module.
        photos: the images with their labels.
    """

    checkpoint: Path
    data: TagDataModule
    photos: PhotoSet

    @classmethod
    def of(cls, checkpoint: Path, task: str, classes: Sequence[str], **given: Any) -> Self:
        """Find the images that a network was trained on, or others.

        Args:
            checkpoint: the network's.
            task: what it is of, as its task signs its checkpoints.
            classes: the names of its classes.
            **given: settings of the data module that override those of the training, where they are not None.

        Raises:
            InputError: the checkpoint, the images or their labels are not usable.
        """
        stored = read_checkpoint(checkpoint, task).get("datamodule_hyper_parameters")
        data = TagDataModule(**data_settings(stored, classes, **given))
        photos = data.photos(data.hparams["train_split"], masks=False)
        check_labels(photos, f"labels: {data.hparams['labels']} of {data.root}")
        return cls(checkpoint, data, photos)

    def left_out_of(self, cache: SeedCache) -> dict[str, str]:
        """The images that another cache has left out, with its reasons.

        Raises:
            InputError: the cache is of other classes, or lacks an image and says nothing of it.
        """
        covered(cache, self.photos)
        return {name: cache.left_out[name] for name in self.photos.ids if name not in cache}

    def provenance(self) -> dict[str, Any]:
        """What a cache remembers of where it came from."""
        hp, photos = self.data.hparams, self.photos
        return {
            "checkpoint": str(self.checkpoint), "checkpoint_sha256": file_sha256(self.checkpoint),
            "classes": list(photos.classes), "data": data_settings(hp, photos.classes),
            "label_source": hp["labels"], "labels_sha256": hashlib.sha256(photos.labels.tobytes()).hexdigest(),
            "split": hp["train_split"], "images_sha256": ids_sha256(photos.ids), **provenance(),
            "source": source_revision(SEED_PACKAGES),
        }  # fmt: skip
