"""Simulate annotations of a VOC folder from its masks, to measure what they are worth.

    python -m tests.benchmarks.simulate_annotations --root VOC2012 --kind masks --share 0.1 --output masks-10.txt

``masks`` writes a list of images whose masks may be used, ``points`` a table with one point for each class in an image,
a random pixel of it, ``scribbles`` a table with the skeleton of each class and of the background as a partial mask.
Tables and lists of one seed grow: a larger share contains the images of a smaller one.
"""

import argparse
import csv
import json
from pathlib import Path

import cv2
import numpy as np

from datamodules.class_names import IGNORE
from datamodules.masks import read_class_mask, write_mask
from datamodules.sample import Sample, multi_hot
from datamodules.voc import VOCDataModule


def random_order(samples: list[Sample], rng: np.random.Generator) -> list[int]:
    """Return a random order of the samples."""
    return [int(index) for index in rng.permutation(len(samples))]


def stratified_order(samples: list[Sample], classes: tuple[str, ...], rng: np.random.Generator) -> list[int]:
    """Return an order in which the next sample always has a tag of the class that has occurred in the fewest so far."""
    labels = multi_hot(samples, classes)  # (N, C)
    waiting, counts, order = random_order(samples, rng), np.zeros(len(classes)), list[int]()
    while waiting:
        for label in np.argsort(counts, kind="stable"):
            found = next((index for index in waiting if labels[index, label]), None)
            if found is not None:
                break
        index = waiting[0] if found is None else found
        waiting.remove(index)
        counts += labels[index]
        order.append(index)
    return order


def skeleton(region: np.ndarray) -> np.ndarray:
    """Return the skeleton of a region, bool (H, W): the centres of its maximal discs.

    Lantuejoul's formula (Serra, *Image Analysis and Mathematical Morphology*, 1982): the union over n of what the
    opening removes from the n-fold erosion.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    found, rest = np.zeros(region.shape, bool), region.astype(np.uint8)
    while rest.any():
        smaller = cv2.erode(rest, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
        found |= (rest > 0) & (cv2.dilate(smaller, cross) == 0)
        rest = smaller
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--split", default="trainaug")
    parser.add_argument("--classes", default="cat,cow,dog,horse,sheep,person")
    parser.add_argument("--kind", choices=("masks", "points", "scribbles"), required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the images")
    parser.add_argument("--stratified", action="store_true", help="as many images of each class as possible")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="a .txt for masks, a .csv otherwise")
    options = parser.parse_args()
    data = VOCDataModule(options.root, classes=options.classes.split(","))
    samples, rng = data.samples(options.split), np.random.default_rng(options.seed)
    order = stratified_order(samples, data.classes, rng) if options.stratified else random_order(samples, rng)
    chosen = [samples[index] for index in order[: round(options.share * len(samples))]]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if options.kind == "masks":
        options.output.write_text("".join(f"{sample.id}\n" for sample in chosen), encoding="utf-8")
        return
    rows = []
    for sample in chosen:
        rng = np.random.default_rng([options.seed, *sample.id.encode()])
        mask = read_class_mask(sample.mask, data.mask_lut)
        drawn = np.setdiff1d(mask, (0, IGNORE))
        if options.kind == "points":
            pixels = {label: rng.choice(np.argwhere(mask == label)) for label in drawn.tolist()}
            points = [[data.classes[label - 1], x + 0.5, y + 0.5] for label, (y, x) in pixels.items()]
            rows.append({"id": sample.id, "points": json.dumps(points)})
        else:
            scribbles = np.full(mask.shape, IGNORE, np.uint8)
            for label in (0, *drawn.tolist()):
                index = data.known_classes().index(data.classes[label - 1]) + 1 if label else 0  # of the masks on disk
                scribbles[skeleton(mask == label)] = index
            folder = options.output.with_suffix("")
            folder.mkdir(exist_ok=True)
            write_mask(folder / f"{sample.id}.png", scribbles)
            rows.append({"id": sample.id, "mask": f"{folder.name}/{sample.id}.png"})
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
