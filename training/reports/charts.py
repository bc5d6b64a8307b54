"""The figures on an evaluation's page, as HTML: the summary, each class's figures, the confusion matrix."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from training.evaluation.tables import COLUMNS, TITLES, shown_classes
from training.image_overlays import BACKGROUND_COLOUR, class_colour

__all__ = ["class_figures", "confusion_matrix", "css_colour", "summary"]

HIT, MISS = (46, 140, 100), (214, 72, 50)  # colours of the matrix: on its diagonal, off it
LEAST = 0.005  # shares below are left empty
DARK = 0.6  # shares above have white figures


def summary(metrics: Mapping[str, Any]) -> str:
    """The header: what was scored, and the few figures that sum it up."""
    cards = [_card(*card) for card in _cards(metrics)]
    return (
        f"<header>\n<p class=brand>tag2mask</p>\n<h1>Segmentation of <b>{escape(str(metrics['split']))}</b></h1>\n"
        f"<dl class=cards>{''.join(cards)}</dl>\n</header>"
    )


def _cards(metrics: Mapping[str, Any]) -> list[tuple[str, float | int | None, str]]:
    plain = metrics.get("without_crf")
    cards: list[tuple[str, float | int | None, str]] = []
    if metrics.get("miou") is not None:
        span = metrics.get("miou_interval")
        sure = (
            f"{100 * span['level']:.0f} % interval {_percent(span['low'])} to {_percent(span['high'])}" if span else ""
        )
        cards.append(("Mean IoU" + (" with CRF" if plain else ""), metrics["miou"], sure))
        if plain:
            cards.append(("Without CRF", plain["miou"], ""))
        cards += [
            ("Background IoU", metrics.get("background_iou"), ""),
            ("Boundary IoU", metrics.get("boundary_miou"), "mean over classes"),
            ("Pixel accuracy", metrics.get("pixel_accuracy"), ""),
        ]
    cards.append(("Images", int(metrics["images"]), ""))
    return [card for card in cards if card[1] is not None]


def _card(name: str, value: float | None, note: str) -> str:
    shown = str(value) if isinstance(value, int) else f"{_percent(value)}<small>%</small>"
    small = f"<dd class=sure>{escape(note)}</dd>" if note else ""
    return f"<div><dt>{escape(name)}</dt><dd>{shown}</dd>{small}</div>"


def class_figures(metrics: Mapping[str, Any], classes: Sequence[str]) -> str:
    """A table: each class's IoU as a bar and a figure, precision, recall, boundary IoU."""
    if not metrics.get("iou"):
        return ""
    plain = (metrics.get("without_crf") or {}).get("iou", {})
    names = ("background", *classes)
    rows = []
    for name in shown_classes({**metrics, "classes": classes}):
        iou, colour = metrics["iou"][name], css_colour(names.index(name))
        mark = f'<s style="left:{100 * plain[name]:.1f}%"></s>' if name in plain else ""
        cells = "".join(f"<td>{_percent(metrics[column].get(name))}</td>" for column in COLUMNS)
        rows.append(
            f"<tr><th scope=row><i style='background:{colour}'></i>{escape(name)}</th><td class=bar><span>"
            f'<b style="width:{100 * iou:.1f}%;background:{colour}"></b>{mark}</span></td>{cells}</tr>'
        )
    heads = "".join(f"<th scope=col>{TITLES[column]}</th>" for column in COLUMNS)
    note = " The mark on a bar is the IoU without the CRF." if plain else ""
    return (
        f"<section>\n<h2>Each class</h2>\n<p class=note>In per cent.{note}</p>\n<table class=figures><thead><tr>"
        f"<th scope=col>class</th><td class=bar></td>{heads}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table>\n"
        "</section>"
    )


def confusion_matrix(metrics: Mapping[str, Any]) -> str:
    """A heat table: of the pixels of a class (a row), how many per cent are called what; and the worst pairs."""
    confusion = metrics.get("confusion")
    if not confusion:
        return ""
    names, pixels = confusion["classes"], confusion["pixels"]
    seen = [i for i in range(len(names)) if any(pixels[i]) or any(row[i] for row in pixels)]
    heads = "".join(f"<th scope=col><span>{escape(names[i])}</span></th>" for i in seen)
    rows = "".join(
        f"<tr><th scope=row>{escape(names[i])}</th>{''.join(_cell(names, pixels, i, j) for j in seen)}</tr>"
        for i in seen
    )
    pairs = "".join(
        f"<li><b>{_percent(pair['share'])} %</b> of {escape(pair['truth'])} is called {escape(pair['predicted'])}</li>"
        for pair in metrics["confused"][:5]
    )
    return (
        "<section>\n<h2>Confusions</h2>\n<p class=note>Per cent of the pixels of a class (a row) that are called what "
        "(a column).</p>\n<div class=beside><div class=wide tabindex=0 role=region aria-label='Confusion matrix'>"
        f"<table class=matrix><thead><tr><td></td>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
        f"{f'<ol class=pairs>{pairs}</ol>' if pairs else ''}</div>\n</section>"
    )


def _cell(names: Sequence[str], pixels: Sequence[Sequence[int]], i: int, j: int) -> str:
    total = sum(pixels[i])
    share = pixels[i][j] / total if total else 0.0
    title = escape(f"{names[i]} called {names[j]}: {pixels[i][j]:,} pixels, {_percent(share)} %", quote=True)
    red, green, blue = HIT if i == j else MISS
    dark = ";color:#fff" if share > DARK else ""
    shown = f"{100 * share:.0f}" if share >= LEAST else ""
    return f'<td title="{title}" style="background:rgba({red},{green},{blue},{share:.2f}){dark}">{shown}</td>'


def css_colour(index: int) -> str:
    """A class's colour as CSS; 0 is the background."""
    red, green, blue = class_colour(index) if index else BACKGROUND_COLOUR
    return f"rgb({red},{green},{blue})"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
