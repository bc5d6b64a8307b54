"""Put wrong tags into a VOC folder's, and count how many of them ``tag2mask review`` finds.

    python -m tests.experiments.wrong_tags --root VOC2012 --share 0.05 --output wrong.npy
    tag2mask run --config configs/voc_animals.yaml ... (with labels: wrong.npy in each stage)
    python -m tests.experiments.wrong_tags --root VOC2012 --share 0.05 --output wrong.npy --review review/review.csv

Of a random share of the images, one third has a class in place of another one, one third lacks one of several tags
(images with a single tag are of the other two thirds), and one third has one class too many. ``--review`` ranks images
by their expected number of wrong tags, and prints how many of the wrong images are among the first 10 %, and among all
with a doubtful tag.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from rich.console import Console

from datamodules.class_names import VOC_CLASSES
from datamodules.sample import multi_hot
from datamodules.voc import VOCDataModule

CLASSES = ("cat", "cow", "dog", "horse", "sheep", "person")
KINDS = ("replaced", "missing", "added")


def wrong_rows(labels: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, dict[int, str]]:
    """Return labels (N, C) with wrong tags in a share of the rows, and the kind of the mistake by row."""
    wrong, kinds = labels.copy(), dict[int, str]()
    for number, row in enumerate(rng.permutation(len(labels))[: round(share * len(labels))].tolist()):
        kind = KINDS[number % len(KINDS)]
        present, absent = np.flatnonzero(labels[row]), np.flatnonzero(labels[row] == 0)
        if kind == "missing" and len(present) < 2:
            kind = ("replaced", "added")[number // len(KINDS) % 2]
        if kind != "added":
            wrong[row, rng.choice(present)] = 0
        if kind != "missing":
            wrong[row, rng.choice(absent)] = 1
        kinds[row] = kind
    return wrong, kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--split", default="trainaug")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--review", type=Path)
    options = parser.parse_args()
    data = VOCDataModule(options.root, classes=list(CLASSES), num_workers=0)
    samples = data.samples(options.split, masks=False)
    labels, kinds = wrong_rows(multi_hot(samples, CLASSES), options.share, np.random.default_rng(options.seed))
    console = Console(highlight=False, soft_wrap=True)
    wrong = {samples[row].id: kind for row, kind in kinds.items()}
    counts = {kind: list(wrong.values()).count(kind) for kind in KINDS}
    console.print(f"{len(samples)} images, {len(wrong)} with a wrong tag: {counts}")
    if options.review is None:
        columns = [VOC_CLASSES.index(name) for name in CLASSES]
        others = data.samples("val", masks=False)
        ids = [sample.id for sample in (*samples, *others)]
        rows = np.zeros((len(ids), len(VOC_CLASSES)), np.float32)
        rows[:, columns] = np.concatenate([labels, multi_hot(others, CLASSES)])
        with options.output.open("wb") as file:
            np.save(file, dict(zip(ids, rows, strict=True)), allow_pickle=True)
        return
    with options.review.open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: -float(row["wrong_tags"]))
    order, doubtful = (
        [row["id"] for row in chosen] for chosen in (rows, [r for r in rows if r["tags_to_add"] + r["tags_to_remove"]])
    )
    for title, first in (("10 %", order[: round(0.1 * len(order))]), ("doubtful", doubtful)):
        found = {kind: sum(wrong.get(name) == kind for name in first) for kind in KINDS}
        total = sum(found.values())
        console.print(
            f"among {title} ({len(first)} images): {total} of {len(wrong)}, {100 * total / len(wrong):.0f} %: {found}"
        )


if __name__ == "__main__":
    main()
