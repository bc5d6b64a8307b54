"""Draw mIoU against hours of annotation, print the table: ``python -m tests.experiments.plot_annotations OUTPUT.png``.

The figures are those of ``training/annotation_curves.csv``; the hours follow from the times per image that ``tag2mask
plan`` has by default.
"""

import csv
import inspect
import sys
from collections import defaultdict
from statistics import fmean, stdev

import matplotlib as mpl
from matplotlib import pyplot as plt
from rich.console import Console

from training.annotation_plan import CURVES, plan

IMAGES = 1252
STYLES = {
    "tags": ("tags", "o", "tab:blue"),
    "points": ("tags + a point for each class", "^", "tab:green"),
    "scribbles": ("tags + a scribble for each class", "s", "tab:olive"),
    "masks": ("tags + masks", "o", "tab:red"),
    "masks alone": ("masks alone", "o--", "0.4"),
}


def hours(kind: str, share: float) -> float:
    """Return the hours that annotation takes: the tags of all images, and more for a share of them."""
    defaults = inspect.signature(plan).parameters
    tag, point, scribble, mask = (defaults[f"{name}_seconds"].default for name in ("tag", "point", "scribble", "mask"))
    drawn = {"points": point - tag, "scribbles": scribble - tag, "masks": mask - tag}
    seconds = {"tags": share * tag, "masks alone": share * mask}
    return IMAGES * (seconds[kind] if kind in seconds else tag + share * drawn[kind]) / 3600


def main() -> None:
    found: dict[tuple[str, float], list[tuple[float, float]]] = defaultdict(list)
    with CURVES.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["kind"], float(row["share"])].append((float(row["miou"]), float(row["miou_crf"])))
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    lines = ["| annotations | of the images | hours | without CRF | with CRF |", "|---|---|---|---|---|"]
    for kind, (label, style, color) in STYLES.items():
        points = []
        for share in sorted(share for name, share in found if name == kind):
            columns = list(zip(*found[kind, share], strict=True))
            means = [(100 * fmean(values), 100 * stdev(values)) for values in columns]
            points.append((hours(kind, share), *max(means)))
            texts = " | ".join(f"{mean:.1f} ± {std:.1f}" for mean, std in means)
            lines.append(f"| {label} | {100 * share:g} % | {hours(kind, share):.1f} | {texts} |")
        if points:
            axes.errorbar(*zip(*points, strict=True), fmt=style, color=color, label=label, capsize=2, markersize=5)
    full = max(fmean(values) for values in zip(*found["masks alone", 1.0], strict=True))
    axes.axhline(100 * full, color="0.7", linewidth=1, zorder=0)
    axes.text(4.2, 100 * full + 0.15, "masks for all images", color="0.4", fontsize=8)
    axes.set_xscale("log")
    ticks = [3, 5, 7, 10, 15, 20, 30, 50, 80]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("hours of annotation (logarithmic), 1,252 images")
    axes.set_ylabel("best mIoU on val in %, with or without CRF")
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    figure.savefig(sys.argv[1], dpi=150)
    Console(soft_wrap=True, highlight=False).print("\n".join(lines), markup=False)


if __name__ == "__main__":
    main()
