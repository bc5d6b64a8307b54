"""The page of an evaluation: one HTML file that holds everything it shows."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.image_overlays import cue_layer, jpeg, label_layer, layer_png, shrink
from training.reports.charts import class_figures, confusion_matrix, css_colour, summary
from training.reports.example_selection import Row, Section
from training.runs.provenance_record import provenance_lines

__all__ = ["render_page"]

LONGEST = 420  # pixels of an image's longer side on the page
JPEG_QUALITY = 82
NONE = 255
STAGE = 4 / 3  # a card's width to its height


def render_page(metrics: Mapping[str, Any], classes: Sequence[str], sections: Sequence[Section]) -> str:
    """Write the page.

    Args:
        metrics: as in ``metrics.json``, see `training.evaluation.evaluate.evaluate`.
        classes: class names without background.
        sections: images, see `training.reports.example_selection.Gallery`.

    Returns:
        HTML without any link to elsewhere; images, style and script are embedded.
    """
    style, script = (
        files("training.reports").joinpath(f"report.{end}").read_text(encoding="utf-8") for end in ("css", "js")
    )
    rows = [row for section in sections for row in section.rows]
    parts = [
        summary(metrics),
        class_figures(metrics, classes),
        confusion_matrix(metrics),
        _toolbar(classes, rows) if rows else "",
        *(_section(section, classes, number) for number, section in enumerate(sections)),
        _foot(metrics),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>tag2mask: {escape(str(metrics['split']))}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _toolbar(classes: Sequence[str], rows: Sequence[Row]) -> str:
    """What the colours mean, each a button that leaves the class's images only; and the overlay of all images."""
    seen = {index for row in rows for index in _classes(row)}
    chips = [
        f"<button type=button class=chip aria-pressed=false data-class={i}><i style='background:{css_colour(i)}'></i>"
        f"{escape(name)}</button>"
        for i, name in enumerate(classes, start=1)
        if i in seen
    ]
    if any(row.cues is not None and (row.cues == 0).any() for row in rows):
        chips.append(f"<span class=chip><i style='background:{css_colour(0)}'></i>background cue</span>")
    if any(row.truth is not None and (row.truth == NONE).any() for row in rows):
        chips.append("<span class='chip pale'><i></i>not scored</span>")
    kinds = [kind for kind in ("prediction", "truth", "cues") if any(kind in _layers(row) for row in rows)]
    return (
        "<div class=toolbar role=group aria-label='All images'>"
        f"<div class=chips role=group aria-label='Only images with'>{''.join(chips)}</div>"
        f"<div class=controls>{_choice('all', kinds, 'Overlay of all images')}</div>"
        "<p class=count role=status aria-live=polite></p></div>"
    )


def _section(section: Section, classes: Sequence[str], number: int) -> str:
    cards = "\n".join(_card(row, classes, f"{number}-{index}") for index, row in enumerate(section.rows))
    return (
        f"<section class=images>\n<h2>{escape(section.title)}</h2>\n<p class=note>{escape(section.about)}</p>\n"
        f"<p class=none hidden>None of them shows this class.</p>\n<div class=grid>\n{cards}\n</div>\n</section>"
    )


def _card(row: Row, classes: Sequence[str], key: str) -> str:
    image = shrink(row.image, LONGEST)
    height, width = image.shape[:2]
    name = escape(row.name, quote=True)
    layers = "".join(
        f"<img class='layer {kind}' src='{_data_uri(png, 'png')}' alt='' loading=lazy>"
        for kind, png in _layers(row, (width, height)).items()
    )
    fit = "wide" if width >= STAGE * height else "tall"
    score = f"<span class=score>IoU {100 * row.iou:.0f}</span>" if row.iou is not None else ""
    return (
        f"<article data-classes='{' '.join(map(str, _classes(row)))}'><h3><span>{name}</span>{score}</h3>"
        f"<div class=stage><div class='frame {fit}' style='aspect-ratio:{width}/{height}'>"
        f"<img src='{_data_uri(jpeg(image, quality=JPEG_QUALITY), 'jpeg')}' width={width} height={height} loading=lazy "
        f"alt='{escape(_described(row, classes), quote=True)}'>{layers}</div></div>"
        f"<div class=controls>{_choice(key, list(_layers(row)), f'Overlay of {row.name}')}</div></article>"
    )


def _choice(key: str, kinds: Sequence[str], label: str) -> str:
    """Which layer lies over the image, and how strongly."""
    said = escape(label, quote=True)
    options = "".join(
        f"<label><input type=radio name='layer-{key}' value={kind}{' checked' if kind == kinds[0] else ''}>"
        f"<span>{kind}</span></label>"
        for kind in kinds
    )
    return (
        f"<div class=choice role=radiogroup aria-label='{said}'>{options}</div>"
        f"<label class=fade><span>image</span><input type=range min=0 max=100 value=100 "
        f"aria-label='{said}: strength'><span>overlay</span></label>"
    )


def _layers(row: Row, size: tuple[int, int] | None = None) -> dict[str, bytes]:
    """Each layer of an image as a PNG of ``size`` (width, height); empty files where no size is asked for."""
    maps = {"prediction": row.prediction, "truth": row.truth, "cues": row.cues}
    there = {kind: labels for kind, labels in maps.items() if labels is not None}
    if size is None:
        return dict.fromkeys(there, b"")
    return {
        kind: layer_png(cue_layer(labels) if kind == "cues" else label_layer(_resized(labels, size)))
        for kind, labels in there.items()
    }


def _resized(labels: NDArray[np.integer], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(labels.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


def _classes(row: Row) -> list[int]:
    """The classes predicted or true in an image."""
    maps = [labels for labels in (row.prediction, row.truth) if labels is not None]
    return sorted({int(index) for labels in maps for index in np.unique(labels)} - {0, NONE})


def _described(row: Row, classes: Sequence[str]) -> str:
    said = [row.name]
    for kind, labels in (("predicted", row.prediction), ("true", row.truth)):
        if labels is not None:
            found = [classes[int(i) - 1] for i in np.unique(labels) if 0 < i <= len(classes)]
            said.append(f"{kind}: {', '.join(found) or 'nothing but background'}")
    return "; ".join(said)


def _foot(metrics: Mapping[str, Any]) -> str:
    data = metrics.get("data") or {}
    warped = f", images warped to {data['eval_size']} pixels" if "eval_size" in data else ""
    facts = {"data": f"{data.get('root', '')}, split {metrics['split']}{warped}"}
    with_mask, unreadable = metrics.get("images_with_mask", metrics["images"]), metrics.get("unreadable", {})
    if with_mask < metrics["images"] or unreadable:
        facts["images"] = f"{with_mask} of {metrics['images']} have a mask; {len(unreadable)} more cannot be read"
    if checkpoint := metrics.get("checkpoint"):
        facts["checkpoint"] = f"{checkpoint['path']} (SHA-256 {checkpoint['sha256'][:12]}…)"
        facts["CRF"] = ", ".join(f"{k} {v}" for k, v in metrics["crf"].items()) if metrics.get("crf") else "none"
        facts["computed in"] = metrics.get("compute_precision", "not recorded")
        facts["views"] = f"scales {metrics.get('scales', [1.0])}, flip {'yes' if metrics.get('flip') else 'no'}"
    if predictions := metrics.get("predictions"):
        facts["predictions"] = str(predictions["path"])
    if span := metrics.get("miou_interval"):
        facts["interval"] = f"bootstrap over images: {span['resamples']} draws, seed {span['seed']}"
    facts |= dict(provenance_lines(record)) if (record := metrics.get("provenance")) else {}
    lines = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<footer><dl>{lines}</dl></footer>"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
