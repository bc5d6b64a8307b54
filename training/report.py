"""The page of an evaluation: one HTML file that holds everything it shows."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.pictures import BACKGROUND_COLOUR, class_colour, cue_picture, jpeg, label_picture, shrink

__all__ = ["Row", "render_page"]

LONGEST = 360  # pixels of a picture's longer side on the page
JPEG_QUALITY = 82
NONE = 255


@dataclass(frozen=True)
class Row:
    """What is shown of one picture.

    Attributes:
        name: its id.
        image: uint8 (H, W, 3).
        prediction: label map (H, W).
        truth: label map (H, W), where known.
        cues: label map (h, w), where there are any.
        iou: mean IoU over the classes in this picture, where the truth is known.
    """

    name: str
    image: NDArray[np.uint8]
    prediction: NDArray[np.integer]
    truth: NDArray[np.integer] | None = None
    cues: NDArray[np.integer] | None = None
    iou: float | None = None


def render_page(
    metrics: Mapping[str, Any], classes: Sequence[str], rows: Sequence[Row], taught: Sequence[Row] = ()
) -> str:
    """Write the page.

    Args:
        metrics: as in ``metrics.json``, see `training.evaluation.evaluate`.
        classes: class names without background.
        rows: pictures of the evaluated split.
        taught: pictures that the network was trained on, with their cues.

    Returns:
        HTML without any link to elsewhere; pictures are embedded.
    """
    style = files("training").joinpath("report.css").read_text(encoding="utf-8")
    split = escape(str(metrics["split"]))
    parts = [
        _head(metrics, split),
        _bars(metrics, classes),
        _legend(classes, [*rows, *taught]),
        _section(f"Pictures of {split}", "Chosen evenly from the whole split, not by their score.", rows, classes),
        _section("What it learned from", "Training pictures, with the cues made from their tags.", taught, classes),
        _foot(metrics),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>tag2mask: {split}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _head(metrics: Mapping[str, Any], split: str) -> str:
    cards = []
    plain = metrics.get("without_crf")
    if metrics.get("miou") is not None:
        cards.append(("Mean IoU" + (" with CRF" if plain else ""), _percent(metrics["miou"])))
        if plain:
            cards.append(("Without CRF", _percent(plain["miou"])))
        if metrics.get("background_iou") is not None:
            cards.append(("Background IoU", _percent(metrics["background_iou"])))
    cards.append(("Pictures", str(metrics["images"])))
    figures = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in cards)
    return (
        f"<header>\n<p class=brand>tag2mask</p>\n<h1>Segmentation of <b>{split}</b></h1>\n"
        f"<dl class=cards>{figures}</dl>\n</header>"
    )


def _bars(metrics: Mapping[str, Any], classes: Sequence[str]) -> str:
    iou = metrics.get("iou") or {}
    if not iou:
        return ""
    plain = (metrics.get("without_crf") or {}).get("iou", {})
    lines = []
    for index, name in enumerate(("background", *classes)):
        if name not in iou:
            continue
        before = f'<i style="left:{100 * plain[name]:.1f}%"></i>' if name in plain else ""
        lines.append(
            f"<li><span class=name>{escape(name)}</span>"
            f'<span class=bar><b style="width:{100 * iou[name]:.1f}%;background:{_css(index)}"></b>{before}</span>'
            f"<span class=figure>{100 * iou[name]:.1f}</span></li>"
        )
    note = "<p class=note>The mark on a bar is the figure without the CRF.</p>" if plain else ""
    return f"<section>\n<h2>IoU of each class</h2>\n<ul class=bars>{''.join(lines)}</ul>{note}\n</section>"


def _legend(classes: Sequence[str], rows: Sequence[Row]) -> str:
    maps = [labels for row in rows for labels in (row.prediction, row.truth, row.cues) if labels is not None]
    seen = {int(index) for labels in maps for index in np.unique(labels)}
    chips = [_chip(name, _css(i)) for i, name in enumerate(classes, start=1) if i in seen]
    if any(row.cues is not None and (row.cues == 0).any() for row in rows):
        chips.append(_chip("background cue", _css(0)))
    if any(row.truth is not None and (row.truth == NONE).any() for row in rows):
        chips.append('<span class="chip pale"><i></i>not scored</span>')
    return f"<nav class=legend aria-label=Colours>{''.join(chips)}</nav>" if chips else ""


def _section(title: str, about: str, rows: Sequence[Row], classes: Sequence[str]) -> str:
    if not rows:
        return ""
    return f"<section>\n<h2>{title}</h2>\n<p class=note>{about}</p>\n" + "\n".join(
        _article(row, classes) for row in rows
    ) + "\n</section>"  # fmt: skip


def _article(row: Row, classes: Sequence[str]) -> str:
    image = shrink(row.image, LONGEST)
    height, width = image.shape[:2]
    shown = [("picture", image)]
    if row.cues is not None:
        shown.append(("cues", cue_picture(image, row.cues)))
    shown.append(("prediction", label_picture(image, _shrunk(row.prediction, height, width))))
    if row.truth is not None:
        shown.append(("truth", label_picture(image, _shrunk(row.truth, height, width))))
    found = [int(i) for i in np.unique(row.prediction) if 0 < i <= len(classes)]
    alt = ", ".join(classes[i - 1] for i in found) or "nothing but background"
    figures = "".join(
        f"<figure><img src='{_data_uri(picture)}' width={width} height={height} loading=lazy "
        f"alt='{escape(f'{name} of {row.name}' + (f': {alt}' if name == 'prediction' else ''), quote=True)}'>"
        f"<figcaption>{name}</figcaption></figure>"
        for name, picture in shown
    )
    score = f"<span class=score>IoU {100 * row.iou:.0f}</span>" if row.iou is not None else ""
    title = f"<h3><span>{escape(row.name)}</span>{score}</h3>"
    return f"<article>{title}<div class='row n{len(shown)}'>{figures}</div></article>"


def _foot(metrics: Mapping[str, Any]) -> str:
    checkpoint = metrics.get("checkpoint") or {}
    data = metrics.get("data") or {}
    facts = {
        "checkpoint": f"{checkpoint.get('path', '')} (SHA-256 {str(checkpoint.get('sha256', ''))[:12]}…)",
        "data": f"{data.get('root', '')}, split {metrics['split']}, pictures warped to {data.get('eval_size', '')} px",
        "CRF": ", ".join(f"{k} {v}" for k, v in metrics["crf"].items()) if metrics.get("crf") else "none",
    }
    lines = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<footer><dl>{lines}</dl></footer>"


def _chip(name: str, colour: str) -> str:
    return f'<span class=chip><i style="background:{colour}"></i>{escape(name)}</span>'


def _css(index: int) -> str:
    red, green, blue = class_colour(index) if index else BACKGROUND_COLOUR
    return f"rgb({red},{green},{blue})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}<small>%</small>"


def _shrunk(labels: NDArray[np.integer], height: int, width: int) -> NDArray[np.integer]:
    small = cv2.resize(labels.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(small, dtype=np.uint8)


def _data_uri(image: NDArray[np.uint8]) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image, quality=JPEG_QUALITY)).decode("ascii")
