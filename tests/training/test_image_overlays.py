"""Label maps, cues, heat maps and gradients over images; figures; encoded images."""

import cv2
import numpy as np
import pytest
from PIL import ImageFont

from training import image_overlays
from training.image_overlays import (
    BACKGROUND_COLOUR,
    class_colour,
    cue_overlay,
    encode_image,
    figure_grid,
    gradient_image,
    heat_overlay,
    label_layer,
    label_overlay,
    shrink,
    side_by_side,
)

GRAY = np.full((24, 30, 3), 100, np.uint8)


def test_labels_in_colour():
    labels = np.zeros((24, 30), np.uint8)
    labels[8:16, 8:20] = 2
    labels[20:] = 255
    shown = label_overlay(GRAY, labels)
    assert shown[2, 2].tolist() == [50] * 3  # background: darkened
    assert np.allclose(shown[12, 12], [0.38 * 100 + 0.62 * c for c in class_colour(2)], atol=0.5)
    assert shown[22, 3].tolist() == [168] * 3  # not scored: light
    assert shown[8, 12].mean() > shown[12, 12].mean()  # outline
    assert shown[7, 12].tolist() == [50] * 3  # within the object only


def test_cues_in_colour_position_by_position():
    cues = np.array([[0, 255], [1, 1]], np.uint8)
    shown = cue_overlay(GRAY, cues)
    assert np.allclose(shown[5, 5], 30 + 0.7 * np.array(BACKGROUND_COLOUR), atol=0.5)
    assert np.allclose(shown[18, 20], 30 + 0.7 * np.array(class_colour(1)), atol=0.5)
    assert shown[5, 25].min() > 150  # no cue: pale
    assert (shown[12:, :] == shown[18, 20]).all()


def test_eighty_classes_have_eighty_colours():
    colours = np.array([BACKGROUND_COLOUR, *(class_colour(i) for i in range(1, 81))])
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert apart[~np.eye(81, dtype=bool)].min() > 20
    assert class_colour(81) == class_colour(1)


def test_a_layer_as_png_over_the_image_is_the_overlay():
    """A browser shows the layers of a page as `label_overlay` does, except for rounding."""
    labels = np.zeros((24, 30), np.uint8)
    labels[8:16, 8:20], labels[20:] = 2, 255
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    read = cv2.imdecode(
        np.frombuffer(encode_image((label_layer(labels) * (1, 1, 1, 255)).round().astype(np.uint8), "png"), np.uint8),
        cv2.IMREAD_UNCHANGED,
    ).astype(float)
    opacity = read[..., 3:] / 255
    shown = (1 - opacity) * image + opacity * read[..., 2::-1]
    assert np.abs(shown - label_overlay(image, labels)).max() < 2


def test_shrink_and_side_by_side():
    assert shrink(GRAY, 15).shape == (12, 15, 3)
    assert shrink(GRAY, 100) is GRAY
    joined = side_by_side([GRAY, GRAY, GRAY])
    assert joined.shape == (24, 98, 3)
    assert (joined[:, 30:34] == 255).all()


def test_jpeg_keeps_red_red():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    read = cv2.imdecode(np.frombuffer(encode_image(red, "jpeg", quality=90), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(read[8, 8].astype(int) - [250, 0, 0]).max() < 8


def test_heat_is_where_the_map_is():
    image = np.full((20, 30, 3), 128, np.uint8)
    heat = np.zeros((20, 30), np.float32)
    heat[5:10, 5:10] = 2.0
    shown = heat_overlay(image, heat).astype(int)
    changed = np.argwhere(abs(shown - 128).max(axis=2) > 20)
    assert changed.tolist() == [[y, x] for y in range(5, 10) for x in range(5, 10)]
    assert (heat_overlay(image, np.zeros((20, 30))) == 128).all()


def test_gradients_around_gray():
    gradient = np.zeros((3, 10, 10))
    gradient[0, 2, 2], gradient[1, 4, 4] = 1.0, -1.0
    shown = gradient_image(gradient, 10, 10)
    assert shown[0, 0].tolist() == [128, 128, 128]
    assert shown[2, 2].tolist() == [255, 128, 128]
    assert shown[4, 4].tolist() == [128, 0, 128]
    assert (gradient_image(np.zeros((3, 4, 4)), 8, 6) == 128).all()


def test_a_grid_holds_its_panels():
    panels = [[np.full((20, 30, 3), 10 * (2 * r + c), np.uint8) for c in range(2)] for r in range(2)]
    page = figure_grid(["a", "b"], ["one", "two\np 0.5"], panels, "title")
    for row in panels:
        for each in row:
            assert ((page == each[0, 0]).all(axis=2)).sum() >= 600
    assert side_by_side(panels[0]).shape == (20, 64, 3)


@pytest.mark.parametrize("shape", [(8, 300), (300, 8), (60, 80)])
def test_texts_of_a_grid_keep_their_places(shape):
    """Captions are larger than flat and narrow images: without the last column or row, nothing else changes."""
    columns, rows = ["photo", "guided-gradcam", "counterfactual"], ["hot dog stand with umbrella\np 0.50\nscore 1"] * 2
    panels = [[np.full((*shape, 3), 100, np.uint8)] * 3] * 2
    page = figure_grid(columns, rows, panels, "Größe")
    height, width = figure_grid(columns[:2], rows[:1], [panels[0][:2]], "Größe").shape[:2]
    for less in (figure_grid(columns[:2], rows, [row[:2] for row in panels], "Größe"),
                 figure_grid(columns, rows[:1], panels[:1], "Größe")):  # fmt: skip
        assert np.array_equal(less[: height - 6, : width - 6], page[: height - 6, : width - 6])
    assert (page[:, : width - 6] == 255).all(axis=2)[:, -4:].all()  # no caption reaches the next column
    assert (page[height - 4 : height] == 255).all()


def test_the_font_has_all_characters_of_the_figure(monkeypatch):
    """Chinese names of classes would be boxes in the first font. DejaVu Sans has a snowman."""
    fonts = ("LiberationSans-Regular.ttf", "DejaVuSans.ttf")
    try:
        first, second = (ImageFont.truetype(name, 14).getname() for name in fonts)
    except OSError:
        pytest.skip("Liberation Sans and DejaVu Sans are not installed")
    monkeypatch.setattr(image_overlays, "FONTS", ("none.ttf", *fonts))
    for text, expected in (("Größe 1", first), ("☃ Größe", second), ("\U0010ffff", first)):
        assert image_overlays._font(14, text).getname() == expected
