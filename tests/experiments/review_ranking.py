"""How many of the wrong pixels of labels are in the images that ``tag2mask review`` lists first.

    python -m tests.experiments.review_ranking --review review/review.csv --cache runs/recipe/seed-0/labels

Prints, for 5 and 10 % of the images, the share of all wrong pixels that they contain: ranked by all reasons, by each
reason alone, at random, and at best; then the same for pixels with a wrong label or none. The masks are those of the
data set of the seed cache, or ``--masks FOLDER``.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from rich.console import Console
from upath import UPath

from datamodules.class_names import IGNORE
from datamodules.masks import find_masks, read_class_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.shard import NO_CUE
from datamodules.transforms import resize_nearest
from training.doubtful_labels import REASONS

SHARES = (0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--review", type=Path, required=True)
    parser.add_argument("--cache", type=UPath, required=True)
    parser.add_argument("--masks", type=UPath)
    options = parser.parse_args()
    with options.review.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cache, ids = SeedCache(options.cache), [row["id"] for row in rows]
    data = datamodule_from_settings(cache.inputs["data"])
    if options.masks is None:
        found = {sample.id: sample.mask for sample in data.samples(data.hparams["train_split"], tags=False)}
    else:
        found = dict(zip(ids, find_masks(options.masks, ids), strict=True))
    wrong, lacking, scored = np.zeros((3, len(ids)))
    for index, name in enumerate(ids):
        mask = read_class_mask(found[name], data.mask_lut)
        labels = resize_nearest(cache.cues(name), *mask.shape)
        known = mask != IGNORE
        scored[index], lacking[index] = known.sum(), (known & (labels == NO_CUE)).sum()
        wrong[index] = (known & (labels != NO_CUE) & (labels != mask)).sum()
    console = Console(highlight=False, soft_wrap=True)
    scores = {name: np.array([float(row[name]) for row in rows]) for name in ("doubt", *REASONS)}
    scores["random"] = np.random.default_rng(0).random(len(ids))
    for what, pixels in (("a wrong label", wrong), ("a wrong label or none", wrong + lacking)):
        console.print(f"{len(ids)} images, {100 * pixels.sum() / scored.sum():.1f} % of the pixels have {what}")
        for name, values in (scores | {"best": pixels / scored.clip(1)}).items():
            order = np.argsort(-values, kind="stable")
            shares = [pixels[order[: round(share * len(ids))]].sum() / pixels.sum() for share in SHARES]
            console.print(f"{name:10}", *(f"{100 * each:5.1f} %" for each in shares))


if __name__ == "__main__":
    main()
