"""Simulate annotations of a VOC folder from its masks, to measure what they are worth.

    python -m tests.experiments.simulate_annotations --root VOC2012 --kind masks --share 0.1 --output masks-10.txt

``masks`` writes a list of images whose masks may be used, ``points`` a table with one point for each class in an image,
a random pixel of it, ``scribbles`` a table with one line for each class in an image, through the middle of its largest
part. Tables and lists of one seed grow: a larger share contains the images of a smaller one.
"""

import argparse
import csv
import json
from pathlib import Path

import cv2
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from datamodules.class_names import IGNORE
from datamodules.masks import read_class_mask
from datamodules.sample import Sample, multi_hot
from datamodules.voc import VOCDataModule

GRID = 4  # pixels between the places through which a line may lead


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


def stroke(region: np.ndarray) -> list[list[float]]:
    """Return the vertices [x, y] of a line through the middle of a region's largest part.

    The rule of the scribbles of the DAVIS challenge (Caelles et al., arXiv:1803.00557, 2018): the longest path along
    the medial axis. Here it connects the two pixels that are furthest from each other inside the region, and a step is
    cheaper the further it is from the region's border.

    Args:
        region: bool (H, W), not empty.
    """
    _, parts, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=8)
    largest = parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    depth = cv2.distanceTransform(np.pad(largest, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    grid = depth[GRID // 2 :: GRID, GRID // 2 :: GRID]
    if not grid.any():
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        return [[float(x) + 0.5, float(y) + 0.5]]
    index, starts, ends = np.arange(grid.size).reshape(grid.shape), [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows, columns = slice(0, grid.shape[0] - down), slice(max(0, -right), grid.shape[1] - max(0, right))
        first = index[rows, columns].ravel()
        second = first + down * grid.shape[1] + right
        inside = (grid.flat[first] > 0) & (grid.flat[second] > 0)
        starts.append(first[inside])
        ends.append(second[inside])
    start, end = np.concatenate(starts), np.concatenate(ends)
    length = np.hypot(*np.array(np.unravel_index(start, grid.shape)) - np.unravel_index(end, grid.shape))

    def paths(cost: np.ndarray, source: int) -> tuple[np.ndarray, np.ndarray]:
        graph = coo_array((cost, (start, end)), shape=(grid.size, grid.size)).tocsr()
        costs, before = dijkstra(graph, directed=False, indices=source, return_predecessors=True)
        return np.where(np.isfinite(costs), costs, -1), before

    one = int(paths(length, int(grid.argmax()))[0].argmax())
    other = int(paths(length, one)[0].argmax())
    before, path = paths(length * (2 / (grid.flat[start] + grid.flat[end])) ** 2, one)[1], [other]
    while path[-1] != one:
        path.append(int(before[path[-1]]))
    rows, columns = np.unravel_index(path, grid.shape)
    line = np.stack([columns, rows], axis=1).astype(np.int32) * GRID + GRID // 2
    return [[x + 0.5, y + 0.5] for [[x, y]] in cv2.approxPolyDP(line, epsilon=GRID / 2, closed=False).tolist()]


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
            row = [[data.classes[label - 1], x + 0.5, y + 0.5] for label, (y, x) in pixels.items()]
        else:
            row = [[data.classes[label - 1], stroke(mask == label)] for label in drawn.tolist()]
        rows.append({"id": sample.id, options.kind: json.dumps(row)})
    with options.output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
