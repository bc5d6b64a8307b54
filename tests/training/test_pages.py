"""Rendering of templates and embedded images."""

import base64
from html import unescape

import cv2
import numpy as np
import pytest
from jinja2 import UndefinedError

from tests.training.html_pages import HOSTILE, check_page
from training.reports.pages import data_uri, embed, render


def test_values_are_escaped_and_never_evaluated_as_templates():
    page = render("evidence.html", label=HOSTILE, pairs=[], total=0, facts=[(HOSTILE, HOSTILE)])
    text = " ".join(check_page(page).text)
    assert text.count(HOSTILE) >= 4
    assert "49" not in text
    assert HOSTILE not in page
    assert HOSTILE in unescape(page)


def test_a_missing_value_is_an_error():
    with pytest.raises(UndefinedError, match="pairs"):
        render("evidence.html", label="cat", total=0, facts=[])


def test_an_embedded_image_is_a_jpeg_of_the_same_size():
    image = np.full((8, 12, 3), (250, 0, 0), np.uint8)
    embedded = embed(image, "red")
    kind, _, content = embedded["source"].partition(",")
    assert kind == "data:image/jpeg;base64"
    read = cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), cv2.IMREAD_COLOR)
    assert (embedded["height"], embedded["width"]) == read.shape[:2] == (8, 12)
    assert np.abs(read[4, 4, ::-1].astype(int) - [250, 0, 0]).max() < 8
    assert data_uri(image, "png").startswith("data:image/png;base64,")
