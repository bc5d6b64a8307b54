"""Paste cut-out objects on photos: a data set with tags and exact masks, to test a recipe on another kind of images.

    python -m tests.experiments.paste_objects --objects objects --photos photos --output pasted

``objects`` has a folder for each class with images that are transparent around the object. ``pasted/train`` and
``pasted/test`` have images, ``tags.csv``, ``classes.txt`` and ``masks``. No object and no photo is in both.
"""

import argparse
import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.images import IMAGE_SUFFIXES
from datamodules.masks import write_mask

SIZES = ((500, 375), (375, 500), (480, 480), (500, 333))  # width and height of an image in pixels
OBJECTS = (1, 1, 1, 2, 2, 3)  # numbers of objects in an image, each as likely
LONGER_SIDE = (0.12, 0.6)  # of an object, relative to the shorter side of its image
TRAIN = 0.7  # share of the objects of each class and of the photos
OPAQUE = 127  # alpha above which a pixel shows the object


def read_photos(folder: Path) -> list[Image.Image]:
    """Return the photos with at least 600 pixels on the shorter side, which is reduced to 900."""
    photos = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            photo = Image.open(path).convert("RGB")
            if min(photo.size) >= 600:
                scale = 900 / min(photo.size)
                photos.append(photo.resize((round(photo.width * scale), round(photo.height * scale))))
    return photos


def paste(image: Image.Image, mask: np.ndarray, path: Path, label: int, rng: random.Random) -> None:
    """Paste an object at a random place, size and side into an image, and its label into the mask (H, W)."""
    cut_out = Image.open(path).convert("RGBA")
    cut_out = cut_out.crop(cut_out.getchannel("A").point(lambda alpha: 255 * (alpha > OPAQUE)).getbbox())
    scale = rng.uniform(*LONGER_SIDE) * min(image.size) / max(cut_out.size)
    cut_out = cut_out.resize((max(1, round(cut_out.width * scale)), max(1, round(cut_out.height * scale))))
    if rng.random() < 0.5:
        cut_out = cut_out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    x, y = (rng.randrange(whole - part + 1) for whole, part in zip(image.size, cut_out.size, strict=True))
    image.paste(cut_out, (x, y), cut_out)
    opaque = np.array(cut_out.getchannel("A")) > OPAQUE
    mask[y : y + cut_out.height, x : x + cut_out.width][opaque] = label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=int, default=400, help="number of training images")
    parser.add_argument("--test", type=int, default=150, help="number of test images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    classes = sorted(path.name for path in options.objects.iterdir() if path.is_dir())
    objects = [sorted((options.objects / name).rglob("*.png")) for name in classes]
    photos = read_photos(options.photos)
    pools = {"train": list[list[Any]](), "test": list[list[Any]]()}  # the photos, then the objects of each class
    for name, each in zip(("the photos", *classes), (photos, *objects), strict=True):
        end = round(TRAIN * len(each))
        if end == len(each):
            parser.error(f"{name}: {len(each)} images cannot be divided into those for training and for the test")
        rng.shuffle(each)
        pools["train"].append(each[:end])
        pools["test"].append(each[end:])
    for split, number in (("train", options.train), ("test", options.test)):
        own, folder = pools[split], options.output / split
        (folder / "masks").mkdir(parents=True)
        rows = [("file", "tags")]
        for index in range(number):
            width, height = rng.choice(SIZES)
            photo = rng.choice(own[0])
            x, y = rng.randrange(photo.width - width), rng.randrange(photo.height - height)
            image, mask = photo.crop((x, y, x + width, y + height)), np.zeros((height, width), np.uint8)
            for label in rng.sample(range(len(classes)), min(rng.choice(OBJECTS), len(classes))):
                paste(image, mask, rng.choice(own[label + 1]), label + 1, rng)
            image.save(folder / f"{index:04}.jpg", quality=92)
            write_mask(folder / "masks" / f"{index:04}.png", mask)
            rows.append((f"{index:04}.jpg", ";".join(classes[label - 1] for label in np.unique(mask) if label)))
        with (folder / "tags.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        (folder / "classes.txt").write_text("\n".join(classes) + "\n")


if __name__ == "__main__":
    main()
