"""``tag2mask zero-shot``: a classifier of texts by CLIP, with random weights, from the command line to seeds."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import IMAGENET_MEAN, IMAGENET_STD
from datamodules.seed_cache import SeedCache
from seeds import zero_shot as module
from seeds.checkpoints import load_task, read_checkpoint
from seeds.classifier import ClassifierTask
from seeds.zero_shot import zero_shot
from tests.seeds.conftest import IDS
from training.cli import main

BACKBONE = "tu-vit_base_patch32_clip_quickgelu_224.openai"
WORDS = {"blue": "deep blue"}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A network of open_clip, and its file with weights of 16 bits, as OpenAI's."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    network = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False).half().float().eval()
    path = tmp_path_factory.mktemp("clip") / "clip.pt"
    torch.save({key: value.half() for key, value in network.state_dict().items()}, path)
    return network, path


def test_scores_and_seeds(clip, voc, tmp_path, capsys):
    network, path = clip
    words = ["--root", str(voc), "--weights", str(path), "--backbone", BACKBONE, "--template", "one {} thing"]
    words += ["--class_words", json.dumps(WORDS), "--background_words", "[sky, grass]"]
    assert main(["zero-shot", *words, "--output", str(tmp_path / "classifier")]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"{tmp_path / 'classifier' / 'last.ckpt'}: 2 classes and 2 texts of the background"
    ]
    assert main(["zero-shot", *words, "--output", str(tmp_path / "classifier")]) == 1
    assert "exists already" in capsys.readouterr().err
    task = load_task(tmp_path / "classifier" / "last.ckpt", ClassifierTask)[0]
    assert task.classes == ("red", "blue")
    texts = ["one red thing", "one deep blue thing", "one sky thing", "one grass thing"]
    record = json.loads((tmp_path / "classifier" / "provenance.json").read_text())
    assert task.hparams["texts"] == record["texts"] == texts

    import open_clip

    pixels = torch.rand(2, 3, 224, 224)
    mean, std = (torch.tensor(each)[:, None, None] for each in (IMAGENET_MEAN, IMAGENET_STD))
    visual = network.visual
    visual.output_tokens = True
    with torch.no_grad():
        vectors = functional.normalize(network.encode_text(open_clip.tokenize(texts)), dim=1)
        own_mean, own_std = (torch.tensor(each)[:, None, None] for each in (visual.image_mean, visual.image_std))
        _, tokens = visual((pixels - own_mean) / own_std)
        features = functional.normalize(tokens.mean(1) @ visual.proj, dim=1)
        logits = network.logit_scale.exp() * features @ vectors.T
        expected = logits[:, :2] - logits[:, 2:].logsumexp(1, keepdim=True)
        found = task((pixels - mean) / std)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    checkpoint = ["--checkpoint", str(tmp_path / "classifier" / "last.ckpt")]
    options = ["--method", "clip", "--size", "96", "--cue_stride", "16", "--flip", "true", "--accelerator", "cpu"]
    assert main(["seeds", "generate", *checkpoint, *options, "--output", str(tmp_path / "seeds")]) == 0
    cache = SeedCache(tmp_path / "seeds")
    assert cache.settings["layer"] == "features.encoder.blocks.11.norm1"
    classes, maps = cache.maps(IDS[2])[:2]
    assert list(classes) == [0, 1]
    assert maps.shape == (2, 6, 6)
    assert (maps.max(axis=(1, 2)) > 0).all()
    photo = next((voc / "JPEGImages").iterdir())
    assert main(["explain", str(photo), *checkpoint, "--methods", "clip,gradcam", "--size", "96",
                 "--output", str(tmp_path / "figures")]) == 0  # fmt: skip
    assert list((tmp_path / "figures").glob("*.png"))


def test_photos_and_downloaded_weights(clip, tmp_path, monkeypatch):
    """Photos in folders by class; the file is found by the name of timm's repository."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("RGB", (64, 64), (40 * number, 90, 60)).save(tmp_path / "photos" / name / f"{name}{number}.png")
    requested = []

    def download(*names):
        requested.append(names)
        return str(clip[1])

    monkeypatch.setattr(module, "hf_hub_download", download)
    zero_shot(str(tmp_path / "photos"), tmp_path / "out", backbone=BACKBONE)
    assert requested == [("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")]
    content = read_checkpoint(tmp_path / "out" / "last.ckpt", "classifier")
    assert content["hyper_parameters"]["texts"][:3] == [
        "a clean origami cat.", "a clean origami dog.", "a clean origami ground.",
    ]  # fmt: skip
    assert content["datamodule_hyper_parameters"]["class_path"] == "datamodules.folder.FolderDataModule"


def test_the_configuration_of_voc_with_some_of_the_classes(clip, voc, tmp_path):
    """VOC as it is published: its lists of tags lack images of the split, Annotations has all."""
    root = tmp_path / "VOC"
    shutil.copytree(voc, root)
    (root / "classes.txt").unlink()
    shutil.rmtree(root / "ImageSets" / "Main")
    (root / "Annotations").mkdir()
    for path in (root / "JPEGImages").iterdir():
        objects = "".join(f"<object><name>{name}</name></object>" for name in ("bird", "dog"))
        (root / "Annotations" / f"{path.stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    shutil.copy(root / "ImageSets/Segmentation/train.txt", root / "ImageSets/Segmentation/trainaug.txt")
    config = Path(__file__).resolve().parents[2] / "configs"
    words = ["--root", str(root), "--weights", str(clip[1]), "--backbone", BACKBONE, "--classes", "[bird, dog]"]
    assert main(["zero-shot", "--config", str(config / "zero_shot_voc12.yaml"), *words,
                 "--output", str(tmp_path / "out")]) == 0  # fmt: skip
    task = load_task(tmp_path / "out" / "last.ckpt", ClassifierTask)[0]
    assert task.hparams["texts"][:2] == ["a clean origami bird avian.", "a clean origami dog."]
    options = ["--checkpoint", str(tmp_path / "out" / "last.ckpt"), "--root", str(root), "--size", "64"]
    assert main(["seeds", "generate", "--config", str(config / "seeds_clip_voc12.yaml"), *options,
                 "--num_workers", "0", "--output", str(tmp_path / "seeds")]) == 0  # fmt: skip
    assert len(SeedCache(tmp_path / "seeds").ids) == 6


def test_a_text_network_is_needed(clip, voc, tmp_path):
    _, path = clip
    state = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in state.items() if key.startswith("visual.")}, tmp_path / "image.pt")
    with pytest.raises(InputError, match=r"image\.pt contains no image and text network of CLIP .*: no text_"):
        zero_shot(str(voc), tmp_path / "out", weights=str(tmp_path / "image.pt"), backbone=BACKBONE)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt contains no image and text network of CLIP"):
        zero_shot(str(voc), tmp_path / "out", weights=str(tmp_path / "other.pt"), backbone=BACKBONE)
    with pytest.raises(InputError, match=r"clip\.pt is not of open_clip's ViT-B-16-quickgelu: .*size mismatch"):
        zero_shot(str(voc), tmp_path / "out", weights=str(path))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"template": "a photo"}, r"template 'a photo' must contain \{\} once"),
     ({"class_words": {"bleu": "blue"}}, "there is no class 'bleu'; did you mean 'blue'"),
     ({"background_words": []}, "background_words must name something"),
     ({"backbone": "tu-vit_base_patch16_clip_quickgelu_224"}, r"did you mean .*quickgelu_224\.openai"),
     ({"backbone": "resnet50"}, "there is no image network of CLIP 'resnet50'"),
     ({"backbone": "tu-vit_base_patch32_clip_quickgelu_224.opnai"}, r"did you mean .*quickgelu_224\.openai"),
     ({"background_words": ["sky", "red"]}, "background_words contains 'red', which is a class"),
     ({"background_words": ["sky", "Red"]}, "background_words contains 'Red', which is a class"),
     ({"background_words": ["sky", "rose"], "class_words": {"red": "rose"}}, "contains 'rose', which is a class"),
     ({"background_words": ["sky", "red"], "class_words": {"red": "rose"}}, "contains 'red', which is a class"),
     ({"weights": "none.safetensors"}, "there is no file of weights none.safetensors"),
     ({"weights": "imagenet"}, "weights imagenet are not those of CLIP: give a file"),
     ({"root": "nowhere"}, "folder nowhere does not exist")],
)  # fmt: skip
def test_mistakes(voc, tmp_path, options, words):
    pytest.importorskip("open_clip")
    given = {"root": str(voc), "backbone": BACKBONE, "weights": "none.pt"} | options
    with pytest.raises(InputError, match=words):
        zero_shot(given.pop("root"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_class_among_the_usual_words_of_the_background(tmp_path):
    """It is none of the background then: nothing is wrong but the file."""
    pytest.importorskip("open_clip")
    for name in ("Sky", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / f"{name}.png")
    with pytest.raises(InputError, match=r"there is no file of weights none\.pt"):
        zero_shot(str(tmp_path / "photos"), tmp_path / "out", weights="none.pt", backbone=BACKBONE)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError, Exception], ids=["Hugging Face", "HTTP"])
def test_without_network_and_without_open_clip(voc, tmp_path, monkeypatch, error):
    pytest.importorskip("open_clip")

    def offline(*_):
        raise error("no connection")

    monkeypatch.setattr(module, "hf_hub_download", offline)
    words = r"timm/vit_base_patch32_clip_224.openai cannot be downloaded \(no connection\): give 'weights' a file"
    with pytest.raises(InputError, match=f"open_clip_model.safetensors of {words}"):
        zero_shot(str(voc), tmp_path / "out", backbone=BACKBONE)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    needed = r"zero-shot needs the package open_clip: pip install -c constraints.txt '\.\[clip\]'"
    with pytest.raises(InputError, match=needed):
        zero_shot(str(voc), tmp_path / "out", backbone=BACKBONE)


def test_a_classifier_of_texts_is_not_trained(voc, tmp_path, capsys):
    words = ["--model", "ClassifierTask", "--model.backbone", BACKBONE, "--model.output_stride", "32"]
    words += ["--model.texts", "[red, blue, sky]", "--data", "VOCDataModule", "--data.root", str(voc)]
    words += ["--data.train_split", "train", "--data.size", "64", "--data.num_workers", "0"]
    assert main(["fit", *words, "--trainer.accelerator", "cpu", "--output", str(tmp_path / "run")]) == 1
    assert "a classifier of texts is not trained: it is written by tag2mask zero-shot" in capsys.readouterr().err


def test_names_of_open_clip():
    """Each network of CLIP of timm that the command takes has a network of open_clip of the same size."""
    open_clip = pytest.importorskip("open_clip")
    taken = 0
    for name in timm.list_pretrained("vit_*_clip_*"):
        if module.open_clip_name(f"tu-{name}"):
            taken += 1
            config = open_clip.get_model_config(module.open_clip_name(f"tu-{name}"))
            assert config["embed_dim"] == timm.get_pretrained_cfg(name).num_classes, name
    assert taken > 20
