"""Masks for any photos."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from datamodules.dataset import TagDataset, collate
from datamodules.errors import InputError
from datamodules.files import write_whole
from datamodules.images import IMAGE_SUFFIXES, read_image
from datamodules.masks import write_mask
from datamodules.photos import PhotoSet, file_photos
from seeds.precision import Precision
from training.exported import is_exported, load_exported
from training.grids import label_map
from training.inference import crf_label_map, load_trained
from training.pictures import jpeg, label_picture
from training.progress import progress_bar

__all__ = ["photo_files", "predict"]

OVERLAY_QUALITY = 90


def predict(
    checkpoint: Path,
    images: Path | list[Path],
    output: Path,
    *,
    crf: bool = True,
    overlay: bool = False,
    precision: Precision = "auto",
    num_workers: int = 2,
) -> list[Path]:
    """Write the mask of each photo: a palette PNG of the photo's own size (upright), named like the photo.

    Index 0 is background, 1, 2, ... are the classes in the order of the ``classes.txt`` written beside them. All
    photos are read first, and nothing is written if one of them cannot be used.

    Args:
        checkpoint: a checkpoint of ``tag2mask fit`` with a segmentation task, or what ``tag2mask export`` wrote.
        images: a photo, a folder of photos, or several of either as a list.
        output: folder for the masks; made if need be.
        crf: smooth predictions with the dense CRF.
        overlay: write ``<name>_overlay.jpg`` too, the mask in colour over the photo.
        precision: what the network of a checkpoint computes in: auto, 32-true or bf16-mixed. auto takes bf16-mixed
            where the processor computes bfloat16 natively, else 32-true (see `seeds.precision`). An exported network
            computes in float32.
        num_workers: processes that read photos.

    Returns:
        The masks' paths.

    Raises:
        InputError: there is no photo, one is not readable, two have the same name, or a mask would replace a photo.
    """
    trained = load_exported(checkpoint) if is_exported(checkpoint) else load_trained(checkpoint, precision)
    photos = file_photos(list(photo_files([images] if isinstance(images, Path) else images)), trained.classes)
    targets = [output / f"{name}.png" for name in photos.ids]
    _check(photos, targets)
    output.mkdir(parents=True, exist_ok=True)
    dataset = TagDataset(photos, trained.size)
    loader = DataLoader(dataset, batch_size=1, num_workers=min(num_workers, len(photos)), collate_fn=collate)
    for index, batch in enumerate(progress_bar(loader, "Predicting", len(photos))):
        scores = trained.scores(batch["image"])[0]
        image = read_image(photos.images[index])
        labels = crf_label_map(scores, image) if crf else label_map(scores, (image.shape[0], image.shape[1]))
        mask = labels.cpu().numpy().astype(np.uint8)
        write_mask(targets[index], mask)
        if overlay:
            write_whole(
                output / f"{photos.ids[index]}_overlay.jpg", jpeg(label_picture(image, mask), quality=OVERLAY_QUALITY)
            )
    write_whole(output / "classes.txt", "".join(f"{name}\n" for name in trained.classes).encode())
    return targets


def photo_files(images: Sequence[Path]) -> Iterator[Path]:
    """Photos as given, and those in folders by name.

    Raises:
        InputError: no photo is given, or a folder holds none.
    """
    if not images:
        raise InputError("no photo is given: name photos or a folder of them")
    for path in images:
        if not path.is_dir():
            yield path
            continue
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise InputError(f"there is no photo in {path} ({', '.join(IMAGE_SUFFIXES)})")
        yield from found


def _check(photos: PhotoSet, targets: Sequence[Path]) -> None:
    """Read every photo, and see that none would be overwritten.

    Reading all of them beforehand costs some per cent of what the network and the CRF will; a folder half done more.
    """
    originals = {path.resolve() for path in photos.images}
    for photo, target in zip(photos.images, targets, strict=True):
        read_image(photo)
        if target.resolve() in originals:
            raise InputError(f"the mask {target} would replace a photo: choose another output folder")
