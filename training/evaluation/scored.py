"""What `evaluate` scores: a network's predictions, or a folder of masks that somebody else predicted."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.class_names import IGNORE, mask_lut, read_classes
from datamodules.datamodule import TagDataModule
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.images import read_image
from datamodules.masks import read_class_mask
from datamodules.photos import PhotoSet, all_masks
from datamodules.unreadable import UnreadableImages, leave_out_unreadable
from datamodules.voc import voc_classes
from seeds.precision import Precision
from training.inference import TEST_CRF, Predicted, Trained, data_module, load_trained, predictions
from training.inference import Views

__all__ = ["Scored", "scored_folder", "scored_network"]


@dataclass(frozen=True)
class Scored:
    """Predictions of a split, and where they are from.

    Attributes:
        split: the list's name.
        photos: its images.
        stream: their predictions, in the same order.
        crf: whether ``final`` of these differs from ``plain``.
        origin: what ``metrics.json`` says of them.
        data: the data module the images are of.
        unreadable: the images that cannot be read; more may come while the stream is read.
        trained: the network, where there is one.
    """

    split: str
    photos: PhotoSet
    stream: Iterable[Predicted]
    crf: bool
    origin: dict[str, Any]
    data: TagDataModule
    unreadable: UnreadableImages
    trained: Trained | None = None


def scored_network(checkpoint: Path, *, crf: bool, views: Views, precision: Precision, **given: Any) -> Scored:
    """The predictions of a checkpoint.

    Args:
        checkpoint: of ``tag2mask fit`` with a segmentation task.
        crf: smooth predictions with the dense CRF.
        views: how images are shown to the network.
        precision: what it computes in.
        **given: settings of the data module that override the training's where they are not None.

    Raises:
        InputError: the checkpoint or the data are not usable.
    """
    trained = load_trained(checkpoint, precision)
    data = data_module(trained, **given)
    split, photos = _photos(data)
    hp = data.hparams
    origin = {
        "crf": dict(TEST_CRF) if crf else None,
        "scales": list(views.scales),
        "flip": views.flip,
        "compute_precision": trained.precision,
        "checkpoint": {"path": str(checkpoint), "sha256": file_sha256(checkpoint)},
        "data": {key: data.hparams[key] for key in ("root", "layout", "masks", "eval_size")},
        "provenance": trained.provenance,
    }
    stream = predictions(
        trained, photos, size=hp["eval_size"], batch_size=hp["batch_size"], num_workers=hp["num_workers"], crf=crf,
        views=views, unreadable=data.unreadable,
    )  # fmt: skip
    return Scored(split, photos, stream, crf, origin, data, data.unreadable, trained)


def scored_folder(
    folder: Path, *, root: str | None, split: str | None, masks: str | None, classes: list[str] | None, **given: Any
) -> Scored:
    """A folder of predicted masks, ``<id>.png`` each, palette or gray, read by index.

    The indices are those of the ``classes.txt`` in the folder (as ``tag2mask predict`` writes it), or else those of
    the data's own masks.

    Args:
        folder: of the predictions.
        root: folder of the data, of VOC layout.
        split: list to score; None: ``val``.
        masks: name of the folder of true masks; None: the first that is there.
        classes: classes to score, the others are left out of the masks; None: all the folder's indices stand for.
        **given: further settings of the data module.

    Raises:
        InputError: the data have no masks, or a prediction is missing.
    """
    if root is None:
        raise InputError("it is not said where the images and their masks are: give --root as well as --predictions")
    if not folder.is_dir():
        raise InputError(f"there is no folder of predictions {folder}")
    listed = folder / "classes.txt"
    source = read_classes(listed) if listed.is_file() else voc_classes(Path(root).expanduser())
    given |= {key: value for key, value in {"test_split": split, "masks": masks}.items() if value is not None}
    data = TagDataModule(root, classes=list(classes or source), labels=None, **given)
    split, photos = _photos(data)
    if photos.masks is None:
        raise InputError(f"the split {split!r} of {root} has no masks to score {folder} against")
    photos = photos.with_masks()
    files = [folder / f"{name}.png" for name in photos.ids]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise InputError(f"{len(missing)} of {len(files)} predictions are missing in {folder}, first {missing[0].name}")
    origin = {
        "crf": None,
        "predictions": {"path": str(folder)},
        "data": {key: data.hparams[key] for key in ("root", "layout", "masks")},
    }
    stream = _read(files, photos, source)
    return Scored(split, photos, stream, crf=False, origin=origin, data=data, unreadable=data.unreadable)


def _photos(data: TagDataModule) -> tuple[str, PhotoSet]:
    split = str(data.hparams["test_split"])
    photos = data.photos(split, labels=False)
    if not photos.ids:
        raise InputError(f"the split {split!r} of {data.root} has no images")
    return split, leave_out_unreadable(photos, data.unreadable)


def _read(files: list[Path], photos: PhotoSet, source: tuple[str, ...]) -> Iterator[Predicted]:
    lut = mask_lut(source, photos.classes)
    masks = all_masks(photos, "a score")
    assert photos.lut is not None
    for index, path in enumerate(files):
        guess = read_class_mask(path, lut)
        truth = read_class_mask(masks[index], photos.lut)
        if guess.shape != truth.shape:
            raise InputError(
                f"prediction {path} is {guess.shape[1]}x{guess.shape[0]}, and the mask {masks[index]} is "
                f"{truth.shape[1]}x{truth.shape[0]}"
            )
        if (guess == IGNORE).any():
            raise InputError(
                f"prediction {path} holds 255 or a class that is not scored; each pixel needs one of background, "
                f"{', '.join(photos.classes)}"
            )
        final = torch.from_numpy(guess.astype(np.int64))
        image = read_image(photos.images[index])
        yield Predicted(photos.ids[index], image, final, final, torch.from_numpy(truth.astype(np.int64)))
