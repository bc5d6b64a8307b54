"""Recipes for data that is not here, two steps a training: VOC's layout, COCO's, and that of an annotation tool."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools import mask as coco_mask

from datamodules.seed_cache import SeedCache
from datamodules.synthetic import write_synthetic_voc
from datamodules.synthetic_scenes import CLASSES, draw_scene
from training.cli import main
from training.recipes import recipe as recipe_file
from training.recipes import runner as runner_module

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZE = 64  # a multiple of 32, as FPN needs
TRAINER = {
    "max_steps": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0, "log_every_n_steps": 1,
    "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
SMALL = {  # by command
    "fit": {
        "data": {"init_args": {"size": SIZE, "eval_size": SIZE, "batch_size": 4, "num_workers": 0}},
        "trainer": TRAINER,
    },
    "seeds generate": {"size": SIZE, "scales": [1.0], "num_workers": 0},
    "seeds evaluate": {},
    "seeds refine": {"num_workers": 0},
    "pseudo-label": {"num_workers": 0},
    "evaluate": {"num_workers": 0},
}


def write_split(images: Path, annotations: Path, seed: int, total: int) -> None:
    """Draw scenes, and write their masks as instances in compressed run lengths; ids of categories with gaps."""
    images.mkdir(parents=True, exist_ok=True)
    annotations.parent.mkdir(parents=True, exist_ok=True)
    listed, instances = [], []
    for number in range(total):
        image, mask = draw_scene((seed, number), 2 * SIZE)
        Image.fromarray(image).save(images / f"{number:06d}.jpg")
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        listed.append({"id": number, "file_name": f"{number:06d}.jpg", **size})
        for index in np.unique(mask[mask > 0]).tolist():
            rle = coco_mask.encode(np.asfortranarray(mask == index).astype(np.uint8))
            rle["counts"] = rle["counts"].decode()
            instances.append({"id": len(instances), "image_id": number, "category_id": 10 * index, "segmentation": rle})
    categories = [{"id": 10 * index, "name": name} for index, name in enumerate(CLASSES, start=1)]
    annotations.write_text(json.dumps({"images": listed, "annotations": instances, "categories": categories}))


def run_recipe(tmp_path: Path, monkeypatch, root: Path, *words: str, name: str = "coco", **data) -> Path:
    """Run a shipped recipe, made small, in this process; return its output."""
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for stage in content["stages"].values():
        stage["options"] = recipe_file._merge(stage["options"], SMALL[stage["command"]])
        if stage["command"] == "fit":
            stage["options"]["data"]["init_args"] |= data
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setattr(runner_module, "run_process", lambda arguments, _title: main(list(arguments)))
    settings = ["--weights=none", "--accelerator=cpu", "--precision=32-true", f"--output={tmp_path / 'out'}"]
    assert main(["run", f"--config={path}", f"--root={root}", *settings, *words]) == 0
    return tmp_path / "out"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_images_with_masks_are_drawn_more_often_for_the_networks_alone(path):
    stages = yaml.safe_load(path.read_text()).get("stages", {})
    fits = {name: stage for name, stage in stages.items() if stage["command"] == "fit"}
    rates = {}
    for name, stage in fits.items():
        config = yaml.safe_load((CONFIGS / stage["config"]).read_text()) if "config" in stage else {}
        shared = config.get("data", {}).get("init_args", {})
        same_class = "class_path" not in stage["options"]["data"]
        given = stage["options"]["data"]["init_args"]
        rates[name] = given.get("mask_sampling_rate", shared.get("mask_sampling_rate", 1) if same_class else 1)
    expected = {name: 4 if name in ("first-network", "network") else 1 for name in fits}
    assert rates == expected


@pytest.mark.slow
def test_cocos_layout(tmp_path, monkeypatch):
    """50 images: every stage runs, the seeds are those of the training images, and the masks of val are scored."""
    root = tmp_path / "coco"
    for seed, (split, total) in enumerate({"train2014": 40, "val2014": 10}.items()):
        write_split(root / split, root / f"annotations/instances_{split}.json", seed, total)
    words = ["--train_split=train2014", "--val_split=val2014", "--instances=annotations/instances_{split}.json"]
    output = run_recipe(tmp_path, monkeypatch, root, *words)
    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["images"], metrics["images_with_mask"], metrics["split"]) == (10, 10, "val2014")
    assert metrics["classes"] == list(CLASSES)
    assert metrics["iou"].keys() == {"background", *CLASSES}
    assert metrics["data"]["class_path"] == "datamodules.coco.COCODataModule"
    assert len(SeedCache(output / "labels").ids) == 40
    score = ["seeds", "evaluate", f"--cache={output / 'walk'}", f"--output={tmp_path / 'walk.json'}"]
    assert main(score) == 0
    assert json.loads((tmp_path / "walk.json").read_text())["images"] == 40


@pytest.mark.slow
def test_an_own_export(tmp_path, monkeypatch):
    """One JSON for all images, with any name: the same YAML, with splits by a hash and two of the categories."""
    write_split(tmp_path / "export/photos", tmp_path / "export/labels.json", 7, 40)
    words = ["--instances=../labels.json", "--train_split=train", "--val_split=val", "--classes=[fish, bee]"]
    output = run_recipe(tmp_path, monkeypatch, tmp_path / "export/photos", *words)
    metrics = json.loads((output / "metrics.json").read_text())
    assert 0 < metrics["images_with_mask"] < 12
    assert metrics["classes"] == ["fish", "bee"]
    assert len(SeedCache(output / "seeds").ids) == 40 - metrics["images"]


def fit_masks(name: str, root: Path, output: Path, *words: str) -> None:
    """Train a shipped network on masks, made small, in this process."""
    small = SMALL["fit"]["data"]["init_args"] | {"root": root}
    given = [f"--data.init_args.{key}={value}" for key, value in small.items()]
    given += [f"--trainer.{key}={value}" for key, value in {**TRAINER, "accelerator": "cpu"}.items()]
    words = ("--model.init_args.weights=none", f"--output={output}", *words)
    assert main(["fit", f"--config={CONFIGS / name}", *given, *words]) == 0
    assert torch.load(output / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
def test_coco_with_a_resnet(tmp_path, monkeypatch):
    root = tmp_path / "coco"
    for seed, (split, total) in enumerate({"train2014": 12, "val2014": 4}.items()):
        write_split(root / split, root / f"annotations/instances_{split}.json", seed, total)
    output = run_recipe(tmp_path, monkeypatch, root, name="coco14")
    assert json.loads((output / "metrics.json").read_text())["images"] == 4
    assert SeedCache(output / "seeds").settings["scales"] == [1.0]  # made small here
    assert len(SeedCache(output / "labels").ids) == 12
    fit_masks("masks_coco14.yaml", root, tmp_path / "masks")


@pytest.mark.slow
def test_voc_with_a_resnet(tmp_path, monkeypatch):
    root = tmp_path / "voc"
    write_synthetic_voc(root, train=12, val=4, size=2 * SIZE)
    for path in (root / "ImageSets").rglob("*train.txt"):
        path.with_name(path.name.replace("train", "trainaug")).write_text(path.read_text())
    output = run_recipe(tmp_path, monkeypatch, root, name="voc12", labels="imagesets")
    assert json.loads((output / "metrics.json").read_text())["images"] == 4
    figures = json.loads((output / "labels-quality/metrics.json").read_text())
    assert figures["images"] == 12
    network = torch.load(output / "network/last.ckpt", weights_only=True)
    assert network["global_step"] == 2
    assert network["hyper_parameters"]["encoder"] == "resnet50"
    fit_masks("masks_voc12.yaml", root, tmp_path / "masks", "--data.init_args.labels=imagesets")
