"""The page of `tag2mask explain`: photos with the strongest evidence for a class beside those against it."""

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodules.images import read_image
from seeds.explainer import Explainer
from training.drawings import LONGEST, heat_picture
from training.image_overlays import jpeg, shrink

FOR, AGAINST = "gradcam", "counterfactual"  # what the page is made of
JPEG_QUALITY = 85
PAIRS = """.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 32px; margin-bottom: 16px; }
.pair > * { min-width: 0; }
.pair img { max-width: 100%; height: auto; border-radius: 8px; }
@media (max-width: 720px) { .pair { gap: 12px; } .pair h3 { flex-direction: column; gap: 0; } }
"""

Image = NDArray[np.uint8]


class Evidence(NamedTuple):
    """What a photo holds for and against a class.

    Attributes:
        path: the photo.
        probability: of the class.
        sides: the sums of the map for it and of the map against it. As this project's classifiers end in average
            pooling and a linear layer, the score is the first less the second, and the class's bias.
        pictures: the photo under either map, uint8 (h, w, 3).
    """

    path: Path
    probability: float
    sides: tuple[float, float]
    pictures: tuple[Image, Image]


def weigh(explainer: Explainer, path: Path, label: int) -> Evidence:
    """The evidence of one photo."""
    image = read_image(path)
    seen, small = explainer.preprocess(image), shrink(image, LONGEST)
    probability = float(explainer.scores(seen[None])[0, label].sigmoid())
    sums, pictures = [], []
    for method in (FOR, AGAINST):
        sums.append(float(explainer.maps(method, seen, [label]).sum()))
        heats = explainer.cams(method, seen, [label], (small.shape[0], small.shape[1]))
        pictures.append(heat_picture(small, heats[0]))
    return Evidence(path, probability, (sums[0], sums[1]), (pictures[0], pictures[1]))


def evidence_page(name: str, evidence: Sequence[Evidence], strongest: int, made_by: str) -> str:
    """One HTML file that holds everything it shows: the strongest evidence for a class, beside that against it."""
    style = files("training.reports").joinpath("report.css").read_text(encoding="utf-8")
    title = escape(name)
    sides = [sorted(evidence, key=lambda each: -each.sides[side])[:strongest] for side in (0, 1)]
    rows = "\n".join(
        f"<article class=pair>{_card(one, 0, name)}{_card(other, 1, name)}</article>"
        for one, other in zip(*sides, strict=True)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>tag2mask: evidence for {title}</title>\n'
        f"<style>\n{style}{PAIRS}</style>\n</head>\n<body>\n<main>\n<header>\n"
        f"<p class=brand>tag2mask</p>\n<h1>Evidence for and against <b>{title}</b></h1>\n</header>\n<section>\n"
        f"<p class=note>Of {len(evidence)} photos, left those with the strongest evidence for {title}, right those "
        "with the strongest against it: the sums of the Grad-CAM map and of its counterfactual. What is lit in many of "
        f"them, and is no {title}, is what the classifier goes by.</p>\n{rows}\n</section>\n"
        f"<footer><dl><div><dt>checkpoint</dt><dd>{escape(made_by)}</dd></div></dl></footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def _card(evidence: Evidence, side: int, name: str) -> str:
    picture = evidence.pictures[side]
    data = base64.b64encode(jpeg(picture, quality=JPEG_QUALITY)).decode("ascii")
    what = "for" if side == 0 else "against"
    photo = escape(evidence.path.name, quote=True)
    return (
        f"<div><h3><span>{photo}</span><span class=score>{what} {evidence.sides[side]:.1f}, "
        f"p {evidence.probability:.2f}</span></h3><figure><img src='data:image/jpeg;base64,{data}' "
        f"width={picture.shape[1]} height={picture.shape[0]} loading=lazy "
        f"alt='{photo}: evidence {what} {escape(name, quote=True)}'></figure></div>"
    )
