"""Render the templates in ``templates``; an HTML page is one file with its images, style and script."""

import base64
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from numpy.typing import NDArray

from datamodules.progress import percent
from training.image_overlays import class_colour, encode_image

JPEG_QUALITY = 82

ENVIRONMENT = Environment(  # autoescape: names of files and classes never become markup
    loader=PackageLoader("training.reports"), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
ENVIRONMENT.filters["percent"] = percent
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


def render(template: str, **context: Any) -> str:
    """Return the text of a template, such as ``evaluation.html``; a page contains no link to another file."""
    return ENVIRONMENT.get_template(template).render(context)
