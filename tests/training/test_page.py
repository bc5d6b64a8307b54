"""The page of an evaluation: what it holds, which images it chooses, and how it behaves in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch

from training.evaluation.metrics import Tally, figures
from training.reports.evaluation_report import render_page
from training.reports.example_selection import Gallery, Row, Section

CLASSES = ["<cat>", "dog", *(f"creature number {i}" for i in range(16))]
VOID = ("area", "base", "br", "col", "hr", "img", "input", "link", "meta")


def row(name: str, index: int, *, cues: bool = False, size: tuple[int, int] = (40, 60), iou: float | None = 0.5) -> Row:
    """An image with a square of class ``index``."""
    labels = np.zeros(size, np.uint8)
    labels[10:30, 10:30] = index
    truth = labels.copy()
    truth[:5] = 255
    noise = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
    return Row(name, noise, labels, truth, np.full((8, 8), index, np.uint8) if cues else None, iou)


@pytest.fixture(scope="module")
def page() -> str:
    """A page of 19 classes and a few images, with names that need escaping."""
    tally = Tally(("background", *CLASSES))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        pred, truth = torch.randint(0, 19, (2, 40, 50), generator=generator)
        tally.add(torch.where(torch.rand(40, 50, generator=generator) < 0.6, truth, pred), truth)
    metrics = {
        **figures(tally), "without_crf": figures(tally), "images": 3, "split": "v<al", "crf": {"scale": 1.0},
        "checkpoint": {"path": "a&b.ckpt", "sha256": "0" * 64}, "data": {"root": "x" * 200, "eval_size": 64},
        "classes": CLASSES,
    }  # fmt: skip
    best = [row("p<1>", 1), row("tall", 2, size=(80, 40)), row("an-id-without-any-space-" * 5, 2)]
    sections = [Section("Best images", "Good.", best), Section("Taught", "Cues.", [row("'\"q", 1, cues=True)])]
    return render_page(metrics, CLASSES, sections)


class Reader(HTMLParser):
    """Elements with their attributes; complains of tags that do not close in order."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open, self.text = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.found if name == tag]


def test_the_page_is_well_formed_and_links_nowhere(page):
    read = Reader(page)
    for tag, attrs in read.found:
        assert tag not in ("link", "iframe", "base", "object")
        assert not {"href", "srcset", "action", "onclick"} & attrs.keys()
        assert attrs.get("src", "data:image/").startswith("data:image/")
    rest = re.sub(r"data:image/\w+;base64,[\w+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", rest)


def test_names_are_escaped(page):
    for unsafe in ("<cat>", "v<al", "p<1>", "a&b"):
        assert unsafe not in page
    text = " ".join(Reader(page).text)
    for shown in ("<cat>", "v<al", "p<1>", "a&b", "'\"q"):
        assert shown in text


def test_everything_has_a_name_for_those_who_do_not_see_it(page):
    read = Reader(page)
    bases = [attrs for attrs in read.of("img") if attrs.get("alt")]
    assert len(bases) == 4
    assert bases[0]["alt"] == "p<1>; predicted: <cat>; true: <cat>"
    assert all(attrs.get("aria-label") for attrs in read.of("input") if attrs["type"] == "range")
    groups = [attrs for attrs in read.of("div") if attrs.get("role") in ("radiogroup", "group", "region")]
    assert all(attrs["aria-label"] for attrs in groups)
    radios = [attrs for attrs in read.of("input") if attrs["type"] == "radio"]
    names = {attrs["name"] for attrs in radios}
    assert len(names) == 1 + 4  # all images, and each
    assert sum("checked" in attrs for attrs in radios) == len(names)


def test_without_pictures_or_masks_there_is_nothing_to_choose():
    bare = {"miou": None, "iou": {}, "images": 2, "split": "test", "crf": None, "predictions": {"path": "p"}}
    read = Reader(render_page(bare, ["cat"], []))
    assert not read.of("table")
    assert not read.of("button")
    assert not read.of("input")


# --- which images


def test_a_gallery_shows_best_worst_and_others_once():
    gallery = Gallery(60, 12)
    scores = np.random.default_rng(1).permutation(60) / 60
    for index, score in enumerate(scores):
        gallery.offer(row(str(index), 1, iou=float(score)))
    best, worst, chance = gallery.sections()
    assert [r.iou for r in best.rows] == [59 / 60, 58 / 60, 57 / 60, 56 / 60]
    assert [r.iou for r in worst.rows] == [0, 1 / 60, 2 / 60, 3 / 60]
    assert len(chance.rows) == 4
    assert len({r.name for section in (best, worst, chance) for r in section.rows}) == 12


@pytest.mark.parametrize(("total", "wanted"), [(4, 24), (3, 3), (5, 0), (1, 1), (7, 5)])
def test_a_gallery_shows_as_many_as_wanted(total, wanted):
    for iou in (0.5, None):
        gallery = Gallery(total, wanted)
        for index in range(total):
            gallery.offer(row(str(index), 1, iou=iou))  # all equal
        names = [r.name for section in gallery.sections() for r in section.rows]
        assert len(names) == len(set(names)) == min(total, wanted)


def test_a_gallery_draws_the_same_again_and_not_the_first_ones():
    def drawn():
        gallery = Gallery(100, 9)
        for index in range(100):
            gallery.offer(row(str(index), 1, iou=None))
        return [r.name for section in gallery.sections() for r in section.rows]

    assert drawn() == drawn() != [str(i) for i in range(9)]


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
    """What the probe saw on the page at each width, and a screenshot of both."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    folder = tmp_path_factory.mktemp("page")
    (folder / "probe.html").write_text(page.replace("<body>", "<body>" + PROBE))
    frames = "".join(f'<iframe src="probe.html" style="border: 0" width={w} height=1400></iframe>' for w in WIDTHS)
    (folder / "frames.html").write_text(FRAMES + frames)
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
    words += ["--window-size=1655,1400", "--virtual-time-budget=2000", f"--screenshot={folder / 'page.png'}"]
    words += ["--dump-dom", str(folder / "frames.html")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL).group(1)
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
