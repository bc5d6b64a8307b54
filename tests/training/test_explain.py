"""`tag2mask explain`: figures of photos, and the page of a folder."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from seeds.classifier import ClassifierTask
from training.cli import main
from training.image_overlays import gradient_image, heat_overlay, side_by_side, figure_grid


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.ckpt"
    task = ClassifierTask(["red", "blue"], backbone="mobilenet_v2", depth=3, output_stride=8)
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


def test_photos_may_stand_anywhere(classifier, photos, tmp_path):
    out = tmp_path / "out"
    one, two, three = (str(photos / f"p{i}.jpg") for i in range(3))
    words = [one, "--checkpoint", str(classifier), two, f"--output={out}", "--size", "64", "--", three]
    assert main(["explain", "--methods", "gradcam", *words]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["p0.png", "p1.png", "p2.png"]


def test_a_folder_and_its_page(classifier, photos, tmp_path):
    out = tmp_path / "out"
    words = ["explain", str(photos), "--checkpoint", str(classifier), "--output", str(out), "--size", "64"]
    assert main([*words, "--page", "red", "--strongest", "2"]) == 0
    text = (out / "red.html").read_text()
    assert [path.name for path in out.iterdir()] == ["red.html"]
    shown = re.findall(r"<span>(p\d.jpg)</span><span class=score>(for|against) ([\d.]+)", text)
    assert [side for _, side, _ in shown] == ["for", "against"] * 2
    for side in ("for", "against"):
        values = [float(value) for _, own, value in shown if own == side]
        assert values == sorted(values, reverse=True)
    assert text.count("data:image/jpeg;base64,") == 4
    assert not re.search(r"(src|href)=(?![\"']?data:)", text)


PLACES = """<script>addEventListener("load", () => {
  const box = (card) => { const r = card.getBoundingClientRect(); return [r.left, r.top, r.right]; };
  document.title = JSON.stringify([...document.querySelectorAll(".pair")].map((pair) => [...pair.children].map(box)));
});</script>"""


def test_for_and_against_stand_side_by_side(classifier, photos, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium here")
    words = ["explain", str(photos), "--checkpoint", str(classifier), "--output", str(tmp_path), "--size", "64"]
    assert main([*words, "--page", "red"]) == 0
    page = tmp_path / "red.html"
    page.write_text(page.read_text().replace("</body>", PLACES + "</body>"))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    dom = subprocess.run([*command, str(page)], capture_output=True, text=True, timeout=180, check=True).stdout
    pairs = json.loads(re.search("<title>(.*?)</title>", dom).group(1))
    assert len(pairs) == 3
    for (_, top, right), (left, other, _) in pairs:
        assert (right < left, top) == (True, other)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [(["{photos}/p0.jpg", "--methods", "gradcan"], 1, "no method 'gradcan': did you mean 'gradcam'"),
     (["{photos}/p0.jpg", "--classes", "green"], 1, "no class 'green'; it knows red, blue"),
     (["{photos}/p0.jpg", "--page", "green"], 1, "no class 'green'"),
     (["{photos}/p0.jpg", "--layer", "featurs"], 1, "no layer 'featurs'; did you mean features"),
     (["{photos}/nothing.jpg"], 1, "nothing.jpg"), ([], 2, ""),
     (["{photos}/p0.jpg", "--method", "gradcam"], 2, "method")],
)  # fmt: skip
def test_mistakes(classifier, photos, tmp_path, capsys, words, status, said):
    words = [word.format(photos=photos) for word in words]
    out = tmp_path / "out"
    assert main(["explain", *words, "--checkpoint", str(classifier), "--output", str(out)]) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not out.exists()


def test_a_figure_never_replaces_a_photo(classifier, photos, capsys):
    Image.new("RGB", (30, 30)).save(photos / "p9.png")
    before = (photos / "p9.png").read_bytes()
    assert main(["explain", str(photos / "p9.png"), "--checkpoint", str(classifier), "--output", str(photos)]) == 1
    assert "would replace a photo" in capsys.readouterr().err
    assert (photos / "p9.png").read_bytes() == before


def test_heat_is_where_the_map_is():
    image = np.full((20, 30, 3), 128, np.uint8)
    heat = np.zeros((20, 30), np.float32)
    heat[5:10, 5:10] = 2.0
    shown = heat_picture(image, heat).astype(int)
    assert (abs(shown - 128).max(axis=2) > 20).sum() == 25
    assert (heat_picture(image, np.zeros((20, 30))) == 128).all()


def test_gradients_around_gray():
    gradient = np.zeros((3, 10, 10))
    gradient[0, 2, 2], gradient[1, 4, 4] = 1.0, -1.0
    shown = gradient_picture(gradient, 10, 10)
    assert shown[0, 0].tolist() == [128, 128, 128]
    assert shown[2, 2].tolist() == [255, 128, 128]
    assert shown[4, 4].tolist() == [128, 0, 128]
    assert (gradient_picture(np.zeros((3, 4, 4)), 8, 6) == 128).all()


def test_a_grid_holds_its_panels():
    panels = [[np.full((20, 30, 3), 10 * (2 * r + c), np.uint8) for c in range(2)] for r in range(2)]
    page = grid(["a", "b"], [("one",), ("two", "p 0.5")], panels, "title")
    for row in panels:
        for each in row:
            assert ((page == each[0, 0]).all(axis=2)).sum() >= 600
    assert panel(panels[0]).shape == (20, 64, 3)
