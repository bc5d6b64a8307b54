"""Render the templates in ``templates``; an HTML page is one file with its images, style and script."""

import base64
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from numpy.typing import NDArray

from datamodules.progress import percent
from training.image_overlays import Layer, class_colour, encode_image

JPEG_QUALITY = 82
LONGEST = 420  # pixels of an image's longer side on the page of an evaluation or review

ENVIRONMENT = Environment(  # autoescape: names of files and classes never become markup
    loader=PackageLoader("training.reports"), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
ENVIRONMENT.filters["percent"] = percent
ENVIRONMENT.filters["markdown"] = lambda text: escape(text, quote=False).replace("|", "&#124;")  # no markup, one column
ENVIRONMENT.filters["css_colour"] = lambda index: "rgb({},{},{})".format(*class_colour(index))


def data_uri(image: NDArray[np.uint8], kind: Literal["jpeg", "png"], **options: Any) -> str:
    """Return an image uint8 (H, W, 3 or 4) as a data URI; ``options`` are Pillow's."""
    return f"data:image/{kind};base64," + base64.b64encode(encode_image(image, kind, **options)).decode("ascii")


def embed(image: NDArray[np.uint8], text: str) -> dict[str, Any]:
    """Return an image uint8 (H, W, 3) for a template: ``source`` (a JPEG as data URI), ``width``, ``height``, ``text``.

    ``text`` is the caption, and the description for readers who do not see the image.
    """
    source = data_uri(image, "jpeg", quality=JPEG_QUALITY)
    return {"source": source, "width": image.shape[1], "height": image.shape[0], "text": text}


def embed_layers(layers: Mapping[str, Layer]) -> dict[str, str]:
    """Return layers over an image, see `training.image_overlays`, as PNGs in data URIs."""
    pixels = {kind: (layer * (1, 1, 1, 255)).round().astype(np.uint8) for kind, layer in layers.items()}
    return {kind: data_uri(each, "png", optimize=True) for kind, each in pixels.items()}


def class_legend(names: Sequence[str], cards: Collection[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Return index and name of the classes that are in ``classes`` of one of the cards."""
    return [(index, name) for index, name in enumerate(names) if any(index in card["classes"] for card in cards)]


def render(template: str, **context: Any) -> str:
    """Return the text of a template, such as ``evaluation.html``; a page contains no link to another file."""
    return ENVIRONMENT.get_template(template).render(context)
