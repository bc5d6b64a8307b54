"""`tag2mask explain`: figures of photos, and the page of evidence for a class."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from seeds.classifier import ClassifierTask
from tests.training.html_pages import HOSTILE, check_page, run_chromium
from training.cli import main


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.ckpt"
    task = ClassifierTask(["red", "blue", HOSTILE], backbone="mobilenet_v2", depth=3, output_stride=8)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i, size in enumerate([(40, 60), (64, 48), (50, 50)]):
        Image.fromarray(generator.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"p{i}.jpg")
    return folder


def test_a_figure_a_photo(classifier, photos, tmp_path):
    out = tmp_path / "out"
    words = [str(photos / "p0.jpg"), str(photos / "p1.jpg"), "--checkpoint", str(classifier), "--output", str(out)]
    assert (
        main(["explain", *words, "--methods", "gradcam,guided-gradcam", "--classes", "red,blue", "--size", "64"]) == 0
    )
    assert sorted(path.name for path in out.iterdir()) == ["p0.png", "p1.png"]
    shape = np.asarray(Image.open(out / "p0.png")).shape
    assert shape[0] > 2 * 40
    assert shape[1] > 3 * 60


@pytest.mark.parametrize("place", [0, 2, 3])
def test_images_before_between_and_after_options(classifier, photos, tmp_path, place):
    out = tmp_path / "out"
    words = [["--methods", "gradcam"], ["--checkpoint", str(classifier)], [f"--output={out}", "--size", "64"]]
    words.insert(place, [str(photos / f"p{i}.jpg") for i in range(3)])
    assert main(["explain", *(word for group in words for word in group)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["p0.png", "p1.png", "p2.png"]


def test_a_folder_and_its_page(classifier, photos, tmp_path):
    out = tmp_path / "out"
    words = ["explain", str(photos), "--checkpoint", str(classifier), "--output", str(out), "--size", "64"]
    assert main([*words, "--page", "red", "--strongest", "2"]) == 0
    text = (out / "red.html").read_text()
    assert [path.name for path in out.iterdir()] == ["red.html"]
    shown = re.findall(r'<span>(p\d.jpg)</span><span class="score">(for|against) ([\d.]+)', text)
    assert [side for _, side, _ in shown] == ["for", "against"] * 2
    for side in ("for", "against"):
        values = [float(value) for _, own, value in shown if own == side]
        assert values == sorted(values, reverse=True)
    assert main([*words, "--page", "red", "--strongest", "0"]) == 1
    assert text.count("data:image/jpeg;base64,") == 4
    check_page(text)


def test_names_of_files_and_classes_run_no_code(classifier, photos, tmp_path):
    photo = photos / (HOSTILE.replace("/", "") + ".jpg")
    (photos / "p0.jpg").rename(photo)
    words = ["explain", str(photo), "--checkpoint", str(classifier), "--output", str(tmp_path / "out"), "--size", "64"]
    assert main([*words, "--page", HOSTILE]) == 0
    page = tmp_path / "out" / (HOSTILE.replace("/", "_") + ".html")
    text = " ".join(check_page(page.read_text()).text)
    assert HOSTILE in text
    assert photo.name in text
    page.with_name("page.html").write_text(page.read_text().replace("</body>", INJECTED + "</body>"))
    document = run_chromium(str(page.with_name("page.html")), folder=tmp_path)
    assert re.search("<title>(.*?)</title>", document).group(1) == "not injected"


INJECTED = """<script>addEventListener("load", () => {
  document.title = window.injected ? "injected" : "not injected";
});</script>"""
PLACES = """<script>addEventListener("load", () => {
  const box = (card) => { const r = card.getBoundingClientRect(); return [r.left, r.top, r.right]; };
  document.title = JSON.stringify([...document.querySelectorAll(".pair")].map((pair) => [...pair.children].map(box)));
});</script>"""


def test_for_and_against_stand_side_by_side(classifier, photos, tmp_path):
    words = ["explain", str(photos), "--checkpoint", str(classifier), "--output", str(tmp_path), "--size", "64"]
    assert main([*words, "--page", "red"]) == 0
    page = tmp_path / "red.html"
    page.write_text(page.read_text().replace("</body>", PLACES + "</body>"))
    dom = run_chromium(str(page), folder=tmp_path)
    pairs = json.loads(re.search("<title>(.*?)</title>", dom).group(1))
    assert len(pairs) == 3
    for (_, top, right), (left, other, _) in pairs:
        assert (right < left, top) == (True, other)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [(["{photos}/p0.jpg", "--methods", "gradcan"], 1, "no method 'gradcan'; did you mean 'gradcam'"),
     (["{photos}/p0.jpg", "--classes", "green"], 1, "of the classifier: did you mean 'red'"),
     (["{photos}/p0.jpg", "--page", "green"], 1, "class 'green' does not exist"),
     (["{photos}/p0.jpg", "--page", "red", "--classes", "red"], 1, "page names the one class of its page"),
     (["{photos}/p0.jpg", "--page", "red", "--methods", "gradcam"], 1, "and its methods are fixed: leave methods out"),
     (["{photos}/p0.jpg", "--layer", "featurs"], 1, "no layer 'featurs'; did you mean 'features'"),
     (["{photos}/nothing.jpg"], 1, "nothing.jpg"), ([], 2, ""),
     (["{photos}/p0.jpg", "--method", "gradcam"], 2, "method")],
)  # fmt: skip
def test_mistakes(classifier, photos, tmp_path, capsys, words, status, message):
    words = [word.format(photos=photos) for word in words]
    out = tmp_path / "out"
    assert main(["explain", *words, "--checkpoint", str(classifier), "--output", str(out)]) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not out.exists()


def test_a_figure_never_replaces_a_photo(classifier, photos, capsys):
    Image.new("RGB", (30, 30)).save(photos / "p9.png")
    before = (photos / "p9.png").read_bytes()
    assert main(["explain", str(photos / "p9.png"), "--checkpoint", str(classifier), "--output", str(photos)]) == 1
    assert "would replace an image" in capsys.readouterr().err
    assert (photos / "p9.png").read_bytes() == before
