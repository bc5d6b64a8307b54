"""The page of an evaluation: its content, and its behaviour in a browser."""

import json
import re
from typing import Any

import cv2
import numpy as np
import pytest

from tests.training.html_pages import HOSTILE, PageReader, check_page, run_chromium
from training.evaluation.evaluation_table import compute_metrics
from training.evaluation.metrics import SegmentationCounts
from training.reports.evaluation_report import render_page
from training.reports.example_selection import Example, Section

CLASSES = ["<cat>", "dog", HOSTILE, *(f"creature number {i}" for i in range(15))]


def example(
    name: str, index: int, *, cues: bool = False, size: tuple[int, int] = (40, 60), iou: float | None = 0.5
) -> Example:
    """An image with a square of class ``index``."""
    labels = np.zeros(size, np.uint8)
    labels[10:30, 10:30] = index
    truth = labels.copy()
    truth[:5] = 255
    noise = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
    return Example(name, noise, labels, truth, np.full((8, 8), index, np.uint8) if cues else None, iou)


@pytest.fixture(scope="module")
def metrics() -> dict[str, Any]:
    """Figures of 19 classes, with names that need escaping."""
    names, generator = ("background", *CLASSES), np.random.default_rng(0)
    pixels = generator.integers(0, 100, (19, 19)) + 2000 * np.eye(19, dtype=int)
    by_class = {
        key: dict(zip(names, generator.random(19).tolist(), strict=True))
        for key in ("iou", "precision", "recall", "boundary_iou")
    }
    figures = {
        **by_class, "miou": 0.5, "background_iou": 0.9, "boundary_miou": 0.4, "pixel_accuracy": 0.8,
        "miou_interval": {"low": 0.4, "high": 0.6, "level": 0.95, "resamples": 1000, "seed": 0},
        "confusion": {"classes": list(names), "pixels": pixels.tolist()},
        "confused": [{"truth": "<cat>", "predicted": HOSTILE, "pixels": 99, "share": 0.03}],
    }  # fmt: skip
    without_crf = {"miou": 0.3, "background_iou": 0.7, "iou": dict(zip(names, generator.random(19), strict=True))}
    return {
        **figures, "without_crf": figures | without_crf,
        "images": 3, "images_with_mask": 3, "unreadable": {}, "split": "v<al",
        "checkpoint": {"path": "a&b.ckpt", "sha256": "0" * 64}, "data": {"root": "x" * 200, "eval_size": 64},
        "classes": CLASSES, "crf": {"scale": 1.0}, "scales": [1.0], "flip": False, "compute_precision": "32-true",
    }  # fmt: skip


@pytest.fixture(scope="module")
def page(metrics) -> str:
    """The page with a few images, whose names need escaping, too."""
    best = [example("p<1>", 1, iou=0.25), example("tall", 2, size=(80, 40), iou=None)]
    best.append(example("an-id-without-any-space-" * 5, 2))
    sections = [Section("Best images", "Good.", best), Section("Taught", "Cues.", [example(HOSTILE, 1, cues=True)])]
    return render_page(metrics, sections)


def test_the_page_is_well_formed_and_links_nowhere(page):
    check_page(page)


def test_figures_stand_at_their_names(page, metrics):
    cards = dict(re.findall(r"<dt>(.*?)</dt><dd>([\d.]+)", page))
    assert cards | {
        "Mean IoU with CRF": "50.0", "Mean IoU without CRF": "30.0", "Background IoU": "90.0", "Boundary IoU": "40.0",
        "Pixel accuracy": "80.0", "Images": "3",
    } == cards  # fmt: skip
    assert "95 % interval: 40.0 to 60.0" in page
    head, *rows = page.split('<table class="by-class">')[1].split("</table>")[0].split('<tr><th scope="row"')
    assert re.findall('<th scope="col">(.*?)</th>', head) == ["class", "IoU", "precision", "recall", "boundary IoU"]
    assert len(rows) == 19
    for name, row in zip(("background", *CLASSES), rows, strict=True):
        wanted = [f"{100 * metrics[key][name]:.1f}" for key in ("iou", "precision", "recall", "boundary_iou")]
        assert re.findall(r"<td>([\d.]+)</td>", row) == wanted
        mark = f"{100 * metrics['without_crf']['iou'][name]:.1f}"
        assert re.findall(r"(width|left):([\d.]+)%", row) == [("width", wanted[0]), ("left", mark)]


def test_an_image_has_its_iou(page):
    articles = re.findall("<article.*?</article>", page, re.DOTALL)
    assert [re.findall(r"IoU \d+ %", each) for each in articles] == [["IoU 25 %"], [], ["IoU 50 %"], ["IoU 50 %"]]


def test_names_are_escaped(page):
    for unsafe in ("<cat>", "v<al", "p<1>", "a&b", "<script>window", "<img src=x"):
        assert unsafe not in page
    text = " ".join(PageReader(page).text)
    for shown in ("<cat>", "v<al", "p<1>", "a&b", HOSTILE):
        assert shown in text


def test_images_and_controls_have_names_for_readers_who_do_not_see_them(page):
    read = PageReader(page)
    bases = [attrs for attrs in read.of("img") if attrs.get("alt")]
    assert len(bases) == 4
    assert bases[0]["alt"] == "p<1>; prediction: <cat>; truth: <cat>"
    assert all(attrs.get("aria-label") for attrs in read.of("input") if attrs["type"] == "range")
    groups = [attrs for attrs in read.of("div") if attrs.get("role") in ("radiogroup", "group", "region")]
    assert all(attrs["aria-label"] for attrs in groups)
    radios = [attrs for attrs in read.of("input") if attrs["type"] == "radio"]
    names = {attrs["name"] for attrs in radios}
    assert len(names) == 1 + 4  # all images, and each
    assert sum("checked" in attrs for attrs in radios) == len(names)


def test_without_images_or_masks_the_page_has_no_controls():
    bare = compute_metrics(SegmentationCounts(("background", "cat"))) | {
        "images": 2, "images_with_mask": 0, "unreadable": {}, "split": "test", "crf": None, "classes": ["cat"],
        "predictions": {"path": "p"}, "data": {"root": "r"},
    }  # fmt: skip
    read = PageReader(render_page(bare, []))
    assert not read.of("table")
    assert not read.of("button")
    assert not read.of("input")


def test_the_settings_of_a_prediction_are_on_the_page(metrics):
    """Without tiles and mirrored images, and with both; and how many images cannot be read."""
    text = " ".join(PageReader(render_page(metrics, [])).text)
    assert "scales [1.0], flip no" in text
    assert "tiles" not in text
    assert "have a mask" not in text
    more = {"scales": [0.5, 1.0], "flip": True, "tile": 512, "overlap": 64, "unreadable": {"a": "it is cut short"}}
    text = " ".join(PageReader(render_page(metrics | more, [])).text)
    assert "scales [0.5, 1.0], flip yes" in text
    assert "512 pixels, overlap 64" in text
    assert "3 of 3 have a mask; 1 more cannot be read" in text


# --- in a browser

PROBE = """
<script>
const errors = [], seen = {};
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => {
  const get = (selector) => document.querySelector(selector);
  const opacity = (selector) => Number(getComputedStyle(get(selector)).opacity);
  const cards = [...document.querySelectorAll("article")];
  const visible = () => cards.filter((card) => card.checkVisibility()).length;
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.width = innerWidth;
  seen.start = [opacity("article .prediction"), opacity("article .truth")];
  get("article input[value=truth]").click();
  seen.one = [opacity("article .prediction"), opacity("article .truth"), opacity("article + article .truth")];
  get(".toolbar input[value=truth]").click();
  seen.all = opacity("article + article .truth");
  const range = get(".toolbar input[type=range]");
  range.value = 25;
  range.dispatchEvent(new Event("input"));
  seen.faded = opacity("article .truth");
  get(".toolbar input[value=cues]").click();
  seen.cues = [opacity("section:last-of-type .cues"), opacity("article .truth")];
  const chip = get("button[data-class='2']");
  chip.focus();
  seen.focused = document.activeElement === chip;
  chip.click();
  seen.filtered = [visible(), chip.getAttribute("aria-pressed"), get(".count").textContent];
  seen.empty = get("section:last-of-type .none").checkVisibility();
  get("button[data-class='1']").click();
  seen.other = [visible(), chip.getAttribute("aria-pressed")];
  get("button[data-class='1']").click();
  seen.unfiltered = [visible(), get(".count").textContent];
  const [base, layer] = document.querySelectorAll("article + article .frame img");
  const [a, b] = [base.getBoundingClientRect(), layer.getBoundingClientRect()];
  seen.aligned = [a.width === b.width && a.height === b.height, Math.round(100 * a.width / a.height)];
  seen.errors = errors;
  seen.injected = window.injected ?? null;
  scrollTo(0, 0);
  parent.postMessage(seen, "*");
});
</script>
"""
WIDTHS = (1280, 375)  # a desk's, a phone's; Chromium's own window is never narrower than 500 pixels, a frame may be
FRAMES = """
<!doctype html><body style="margin: 0; background: #fff"><script>
const all = {};
addEventListener("message", ({data}) => { all[data.width] = data; document.title = JSON.stringify(all); });
</script>
"""


@pytest.fixture(scope="module")
def probed(page, tmp_path_factory):
    """What the probe finds on the page at each width, and a screenshot of both."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "probe.html").write_text(page.replace("<body>", "<body>" + PROBE))
    frames = "".join(f'<iframe src="probe.html" style="border: 0" width={w} height=1400></iframe>' for w in WIDTHS)
    (folder / "frames.html").write_text(FRAMES + frames)
    options = ("--window-size=1655,1400", "--virtual-time-budget=2000", f"--screenshot={folder / 'page.png'}")
    document = run_chromium(*options, str(folder / "frames.html"), folder=folder)
    title = re.search(r"<title>(.*?)</title>", document, re.DOTALL).group(1)
    return json.loads(title), cv2.imread(str(folder / "page.png"))


def test_screenshots_show_something(probed):
    shown = probed[1]
    assert shown.shape[1] == sum(WIDTHS)
    for part in np.split(shown, [WIDTHS[0]], axis=1):
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 200  # bars, a matrix, letters: not a blank


@pytest.mark.parametrize("width", WIDTHS)
def test_it_works_in_a_browser(probed, width):
    seen = probed[0][str(width)]
    assert seen["errors"] == []
    assert seen["injected"] is None  # no name became markup
    assert seen["overflow"] <= 0  # no scrolling to the side
    assert seen["start"] == [1, 0]
    assert seen["one"] == [0, 1, 0]
    assert seen["all"] == 1
    assert seen["faded"] == 0.25
    assert seen["cues"] == [0.25, 0.25]  # images without cues keep the layer they had
    assert seen["focused"]
    assert seen["filtered"] == [2, "true", "2 of 4 images"]
    assert seen["empty"]
    assert seen["other"] == [2, "false"]
    assert seen["unfiltered"] == [4, ""]
    assert seen["aligned"] == [True, 50]
