"""The HTML page of `tag2mask review`: images with doubtful labels or tags, the worst first."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from datamodules.transforms import resize_nearest
from training.doubtful_labels import REASONS, ImageScores, ReviewedImage
from training.image_overlays import cue_layer, label_layer, shrink
from training.reports.pages import LONGEST, class_legend, embed, embed_layers, render

KINDS = ("doubt", "labels", "prediction")  # overlays
DOUBT = np.array((255, 0, 255, 0.7), np.float32)  # red, green, blue, opacity; of no class


def render_review(
    sections: Mapping[str, Sequence[ImageScores]], drawn: Iterable[ReviewedImage], classes: Sequence[str],
    facts: Sequence[tuple[str, Any]],
) -> str:  # fmt: skip
    """Return the page.

    Args:
        sections: images with doubtful labels (``labels``) and with doubtful tags (``tags``).
        drawn: the network's predictions for each of these images; only one of them is held in memory at its own size.
        classes: names of the classes 1..C.
        facts: lines for the foot of the page.
    """
    names = ("background", *classes)
    scores = {ranked.id: ranked for images in sections.values() for ranked in images}
    cards = {each.sample.id: _card(scores[each.sample.id], each, names) for each in drawn}
    return render(
        "review.html", sections={title: [cards[each.id] for each in images] for title, images in sections.items()},
        legend=class_legend(names, cards.values()), kinds=KINDS, reasons=REASONS, facts=facts,
    )  # fmt: skip


def _card(ranked: ImageScores, reviewed: ReviewedImage, names: Sequence[str]) -> dict[str, Any]:
    """Return what the template needs of an image."""
    small = shrink(reviewed.image, LONGEST)
    doubtful = np.logical_or.reduce(list(reviewed.doubtful.values()))
    layers = {
        "doubt": np.where(doubtful[..., None], DOUBT, np.array((0, 0, 0, 0.35), np.float32)),
        "labels": cue_layer(reviewed.labels),
        "prediction": label_layer(resize_nearest(reviewed.prediction, *small.shape[:2])),
    }
    tags = reviewed.sample.tags or frozenset()
    found = {*np.unique(reviewed.labels).tolist(), *np.unique(reviewed.prediction).tolist()}
    found |= {names.index(name) for name in (*tags.intersection(names), *ranked.tags_to_add)}
    return {
        "name": ranked.id, "doubt": ranked.doubt, "shares": ranked.shares, "identical": ranked.identical,
        "reason": max(ranked.shares, key=lambda reason: ranked.shares[reason]),
        "tags": [name for name in names if name in tags],
        "tags_to_add": ranked.tags_to_add, "tags_to_remove": ranked.tags_to_remove,
        "image": embed(small, f"{ranked.id}, tags: {', '.join(sorted(tags)) or 'none'}"),
        "layers": embed_layers(layers),
        "classes": sorted(index for index in found if 0 < index < len(names)),
    }  # fmt: skip
