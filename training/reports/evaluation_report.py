"""The HTML page of an evaluation: metrics, results by class, confusion matrix, images with overlays."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datamodules.transforms import resize_nearest
from training.evaluation.evaluation_table import COLUMNS, absent_classes
from training.image_overlays import cue_layer, label_layer, shrink
from training.reports.example_selection import Example, Section
from training.reports.pages import LONGEST, class_legend, embed, embed_layers, render
from training.runs.provenance_record import provenance_lines


def render_page(metrics: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """Return the page of an evaluation.

    Args:
        metrics: content of ``metrics.json``, see `training.evaluation.evaluate.evaluate`.
        sections: images to show, see `training.reports.example_selection.ExampleSelector`.

    Returns:
        HTML without any link to another file; images, style and script are embedded.
    """
    names = ("background", *metrics["classes"])
    cards = [(each.title, each.about, [_card(example, names) for example in each.examples]) for each in sections]
    shown = [card for *_, own in cards for card in own]
    return render(
        "evaluation.html", metrics=metrics, names=names,
        columns={key: column.title for key, column in COLUMNS.items()},
        scored=[(index, name) for index, name in enumerate(names) if name in metrics["iou"]], sections=cards,
        legend=class_legend(names, shown),
        kinds=list(dict.fromkeys(kind for card in shown for kind in card["layers"])), facts=_facts(metrics),
    )  # fmt: skip


def _card(example: Example, names: Sequence[str]) -> dict[str, Any]:
    """Return what the template needs of an image: the image, a layer for each label map, and the classes in it."""
    small = shrink(example.image, LONGEST)
    layers, text, contained = {}, example.id, set[int]()
    for kind, labels in (("prediction", example.prediction), ("truth", example.truth)):
        if labels is not None:
            layers[kind] = label_layer(resize_nearest(labels, *small.shape[:2]))
            found = [int(index) for index in np.unique(labels) if 0 < index < len(names)]
            contained.update(found)
            text += f"; {kind}: {', '.join(names[index] for index in found) or 'only background'}"
    if example.cues is not None:
        layers["cues"] = cue_layer(example.cues)
    return {
        "id": example.id, "iou": example.iou, "image": embed(small, text),
        "layers": embed_layers(layers),
        "classes": sorted(contained),
    }  # fmt: skip


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the results depend on, as names and values: data, checkpoint, options, training."""
    data, unreadable = metrics["data"], metrics["unreadable"]
    resized = f", images resized to {data['eval_size']} pixels" if "eval_size" in data else ""
    facts = [("data", f"{data['root']}, split {metrics['split']}{resized}")]
    if metrics["images_with_mask"] < metrics["images"] or unreadable:
        counts = f"{metrics['images_with_mask']} of {metrics['images']} have a mask"
        facts.append(("images", f"{counts}; {len(unreadable)} more cannot be read"))
    if "predictions" in metrics:
        facts.append(("predictions", metrics["predictions"]["path"]))
    else:
        checkpoint, crf = metrics["checkpoint"], metrics["crf"] or {"none": ""}
        facts += [
            ("checkpoint", f"{checkpoint['path']} (SHA-256 {checkpoint['sha256'][:12]}…)"),
            ("CRF", ", ".join(f"{name} {value}" for name, value in crf.items())),
            ("precision", metrics["compute_precision"]),
            ("views", f"scales {metrics['scales']}, flip {'yes' if metrics['flip'] else 'no'}"),
            *([("tiles", f"{metrics['tile']} pixels, overlap {metrics['overlap']}")] if "tile" in metrics else []),
        ]
    if absent := absent_classes(metrics):
        facts.append(("classes", absent))
    if interval := metrics["miou_interval"]:
        facts.append(("interval", f"bootstrap over images: {interval['resamples']} draws, seed {interval['seed']}"))
    return facts + (list(provenance_lines(record)) if (record := metrics.get("provenance")) else [])
