"""`tag2mask explain`: figures of photos, and the page of evidence for a class."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from datamodules.images import read_image
from seeds.classifier import ClassifierTask
from seeds.explainer import Explainer, resized_maps
from tests.training.html_pages import HOSTILE, check_page, run_chromium
from training.cli import main
from training.explain import explain_image, find_evidence
from training.image_overlays import figure_grid, gradient_image, heat_overlay
from training.reports.pages import embed


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.ckpt"
    task = ClassifierTask(["red", "blue", HOSTILE], backbone="mobilenet_v2", depth=3, output_stride=8)
    torch.nn.init.normal_(task.model.head.weight, std=1000)  # an untrained network has small features
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


@pytest.fixture
def figures(monkeypatch) -> list[tuple]:
    """What is given to `figure_grid`, and its result, for each figure."""
    made = []

    def recorded(*given):
        made.append((*given, figure_grid(*given)))
        return made[-1][-1]

    monkeypatch.setattr("training.explain.figure_grid", recorded)
    return made


def test_a_figure_a_photo(classifier, photos, tmp_path, figures):
    out = tmp_path / "out"
    words = [str(photos / "p0.jpg"), str(photos / "p1.jpg"), "--checkpoint", str(classifier), "--output", str(out)]
    assert (
        main(["explain", *words, "--methods", "gradcam,guided-gradcam", "--classes", "red,blue", "--size", "64"]) == 0
    )
    assert sorted(path.name for path in out.iterdir()) == ["p0.png", "p1.png"]
    explainer = Explainer(classifier, ["gradcam", "guided-gradcam"], size=64)
    for name, (columns, captions, rows, title, page) in zip(("p0", "p1"), figures, strict=True):
        assert (columns, title) == (["photo", "gradcam", "guided-gradcam"], f"{name}.jpg")
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"{name}.png")), page)
        image = read_image(photos / f"{name}.jpg")
        pixels = explainer.preprocess(image)
        for c, (caption, shown) in enumerate(zip(captions, rows, strict=True)):
            assert caption.splitlines()[0] == ("red", "blue")[c]
            (heat,) = resized_maps(explainer.maps("gradcam", pixels, [c]), image.shape[:2])
            (gradient,) = explainer.maps("guided-gradcam", pixels, [c])
            wanted = [image, heat_overlay(image, heat), gradient_image(gradient.numpy(), *image.shape[:2])]
            for each, other in zip(shown, wanted, strict=True):
                np.testing.assert_array_equal(each, other)


@pytest.mark.parametrize(
    ("scores", "captions"),
    [
        ([0, -3, 2], {2: "c\np 0.88\nscore +2.0", 0: "a\np 0.50\nscore +0.0"}),
        ([-2, -1, -3], {1: "b\np 0.27\nscore -1.0"}),  # no class has probability 0.5: the most probable one
    ],
)
def test_the_classes_of_a_figure(figures, scores, captions):
    heat = torch.eye(3)[:, None].expand(3, 3, 3)  # of class c: column c
    explainer = SimpleNamespace(
        classes=("a", "b", "c"), methods=["cam"], preprocess=torch.from_numpy,
        scores=lambda _: torch.tensor([scores], dtype=torch.float32), maps=lambda *given: heat[list(given[2])],
    )  # fmt: skip
    image = np.full((3, 3, 3), 90, np.uint8)
    explain_image(explainer, image, "title", [])
    ((columns, shown, rows, *_),) = figures
    assert (columns, shown) == (["photo", "cam"], list(captions.values()))
    for c, row in zip(captions, rows, strict=True):
        np.testing.assert_array_equal(row, [image, heat_overlay(image, heat[c].numpy())])


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
    explainer = Explainer(classifier, ["gradcam", "counterfactual"], size=64)
    names = ["p0.jpg", "p1.jpg", "p2.jpg"]
    found = [each for name in names for each in find_evidence(explainer, read_image(photos / name), name, 0)]
    found.sort(key=lambda each: -each["strength"])
    for side in ("for", "against"):
        strongest = [(each["name"], side, f"{each['strength']:.1f}") for each in found if each["kind"] == side][:2]
        assert [each for each in shown if each[1] == side] == strongest
    assert main([*words, "--page", "red", "--strongest", "0"]) == 1
    assert text.count("data:image/jpeg;base64,") == 4
    check_page(text)


def test_the_score_is_the_evidence_for_the_class_minus_that_against_it(classifier, photos):
    explainer, image = Explainer(classifier, ["gradcam", "counterfactual"], size=64), read_image(photos / "p0.jpg")
    network, pixels = explainer.network, explainer.preprocess(image)[None]
    with torch.no_grad():
        score = network(pixels)[0, 1].item()
        products = network.head.weight[1, :, None, None] * network.features(pixels)[0]  # (K, h, w)
    evidence = products.sum(0) / products[0].numel()  # at each position
    wanted = {"for": evidence.clamp(min=0).sum().item(), "against": -evidence.clamp(max=0).sum().item()}
    found = find_evidence(explainer, image, "p0.jpg", 1)
    assert {each["kind"]: each["strength"] for each in found} == pytest.approx(wanted, rel=1e-4)
    assert wanted["for"] - wanted["against"] + network.head.bias[1].item() == pytest.approx(score, rel=1e-4)
    assert [each["probability"] for each in found] == pytest.approx([1 / (1 + np.exp(-score))] * 2)


def test_the_strongest_photos_are_kept(classifier, photos, tmp_path, monkeypatch):
    strengths = {"p0.jpg": (3, 1), "p1.jpg": (1, 3), "p2.jpg": (2, 2)}

    def evidence(_explainer, image, name, _label):
        shown = {"name": name, "probability": 0.5, "image": embed(image, name)}
        sides = zip(("for", "against"), strengths[name], strict=True)
        return [{"kind": kind, "strength": strength, **shown} for kind, strength in sides]

    monkeypatch.setattr("training.explain.find_evidence", evidence)
    words = ["explain", str(photos), "--checkpoint", str(classifier), "--output", str(tmp_path), "--size", "64"]
    assert main([*words, "--page", "red", "--strongest", "2"]) == 0
    text = (tmp_path / "red.html").read_text()
    shown = re.findall(r'<span>p(\d).jpg</span><span class="score">(\w+ \d.0), p 0.50', text)
    assert shown == [("0", "for 3.0"), ("1", "against 3.0"), ("2", "for 2.0"), ("2", "against 2.0")]
    assert "2 of 3 photos" in text


@pytest.mark.parametrize("options", [[], ["--page", "red"]])
def test_a_photo_that_cannot_be_read_is_skipped_and_listed(classifier, photos, tmp_path, options):
    (photos / "p1.jpg").write_bytes(b"no photo")
    out = tmp_path / "out"
    words = ["explain", str(photos), "--checkpoint", str(classifier), "--output", str(out), "--size", "64"]
    assert main([*words, *options]) == 1
    written = ["red.html"] if options else ["p0.png", "p2.png"]
    assert sorted(path.name for path in out.iterdir()) == [*written, "skipped.csv"]
    (row,) = (out / "skipped.csv").read_text().splitlines()[1:]
    assert row.startswith(f"{photos / 'p1.jpg'},")
    assert not options or "2 of 2 photos" in (out / "red.html").read_text()


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
