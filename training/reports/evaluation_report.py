"""The HTML page of an evaluation: metrics, results by class, confusion matrix, images with overlays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datamodules.class_names import IGNORE
from datamodules.transforms import resize_nearest
from training.evaluation.evaluation_table import COLUMNS, shown_classes
from training.image_overlays import cue_layer, label_layer, layer_pixels, shrink
from training.reports.example_selection import Example, Section
from training.reports.pages import data_uri, embed, render
from training.runs.provenance_record import provenance_lines

__all__ = ["render_page"]

LONGEST = 420  # pixels of an image's longer side on the page


def render_page(metrics: Mapping[str, Any], classes: Sequence[str], sections: Sequence[Section]) -> str:
    """Return the page of an evaluation.

    Args:
        metrics: Content of ``metrics.json``, see `training.evaluation.evaluate.evaluate`.
        classes: Class names without background.
        sections: Images to show, see `training.reports.example_selection.ExampleSelector`.

    Returns:
        HTML without any link to another file; images, style and script are embedded.
    """
    examples = [example for section in sections for example in section.examples]
    cards = [(each.title, each.about, [_card(example, classes) for example in each.examples]) for each in sections]
    shown = [card for *_, own in cards for card in own]
    contained = {index for card in shown for index in card["classes"]}
    pixels = (metrics.get("confusion") or {}).get("pixels", [])
    return render(
        "evaluation.html",
        metrics=metrics,
        names=("background", *classes),
        columns={key: column.title for key, column in COLUMNS.items()},
        scored_classes=shown_classes({**metrics, "classes": classes}),
        confusion_classes=[i for i, row in enumerate(pixels) if any(row) or any(other[i] for other in pixels)],
        sections=cards,
        legend=[(index, name) for index, name in enumerate(classes, start=1) if index in contained],
        has_background_cues=any(each.cues is not None and (each.cues == 0).any() for each in examples),
        has_unscored=any(each.truth is not None and (each.truth == IGNORE).any() for each in examples),
        kinds=list(dict.fromkeys(kind for card in shown for kind in card["layers"])),
        facts=_facts(metrics),
    )


def _card(example: Example, classes: Sequence[str]) -> dict[str, Any]:
    """Return what the template needs of an image: the image, a layer for each label map, and the classes in it."""
    small = shrink(example.image, LONGEST)
    layers, text, contained = {}, example.name, set[int]()
    for kind, labels in (("prediction", example.prediction), ("truth", example.truth)):
        if labels is not None:
            resized = resize_nearest(labels.astype(np.uint8), *small.shape[:2])
            layers[kind] = data_uri(layer_pixels(label_layer(resized)), "png", optimize=True)
            found = [int(index) for index in np.unique(labels) if 0 < index <= len(classes)]
            contained.update(found)
            text += f"; {kind}: {', '.join(classes[index - 1] for index in found) or 'only background'}"
    if example.cues is not None:
        layers["cues"] = data_uri(layer_pixels(cue_layer(example.cues)), "png", optimize=True)
    return {
        "name": example.name,
        "iou": example.iou,
        "image": embed(small, text),
        "layers": layers,
        "classes": sorted(contained),
    }


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the results depend on, as names and values: data, checkpoint, options, training."""
    data = metrics.get("data") or {}
    resized = f", images resized to {data['eval_size']} pixels" if "eval_size" in data else ""
    facts = [("data", f"{data.get('root', '')}, split {metrics['split']}{resized}")]
    with_mask, unreadable = metrics.get("images_with_mask", metrics["images"]), metrics.get("unreadable", {})
    if with_mask < metrics["images"] or unreadable:
        counts = f"{with_mask} of {metrics['images']} have a mask; {len(unreadable)} more cannot be read"
        facts.append(("images", counts))
    if checkpoint := metrics.get("checkpoint"):
        crf = metrics.get("crf") or {"none": ""}
        facts += [
            ("checkpoint", f"{checkpoint['path']} (SHA-256 {checkpoint['sha256'][:12]}…)"),
            ("CRF", ", ".join(f"{name} {value}" for name, value in crf.items())),
            ("precision", metrics.get("compute_precision", "not recorded")),
            ("views", f"scales {metrics.get('scales', [1.0])}, flip {'yes' if metrics.get('flip') else 'no'}"),
        ]
    if predictions := metrics.get("predictions"):
        facts.append(("predictions", str(predictions["path"])))
    if interval := metrics.get("miou_interval"):
        facts.append(("interval", f"bootstrap over images: {interval['resamples']} draws, seed {interval['seed']}"))
    return facts + (list(provenance_lines(record)) if (record := metrics.get("provenance")) else [])
