"""The paper's configuration: every number of the recipe stands in YAML, and its first steps run."""

import importlib
import inspect
import json

import numpy as np
import pytest
import torch
import yaml

from datamodules.synthetic import write_synthetic_voc
from datamodules.voc import VOCDataModule
from seeds.refine_seeds import refine_seeds
from tests.seed_caches import CacheWriter
from tests.training.fits import CONFIGS, fit, read_record
from training.cli import FUNCTIONS, main


def test_every_number_of_the_recipe_is_in_yaml():
    """SEC's table of numbers, by key."""
    sec = yaml.safe_load((CONFIGS / "sec_voc12_vgg16.yaml").read_text())
    model, data, trainer = sec["model"]["init_args"], sec["data"]["init_args"], sec["trainer"]
    expected = {
        "architecture": "LargeFOV", "loss": "sec", "seed_weight": 1, "expand_weight": 1, "constrain_weight": 1,
        "decay_fg": 0.996, "decay_bg": 0.999, "optimizer": "sgd", "lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4,
        "bias_lr_scale": 2, "head_lr_scale": 10, "schedule": "step", "step_size": 2000, "step_gamma": 0.1,
    }  # fmt: skip
    assert {key: model[key] for key in expected} == expected
    assert model["crf"] == {
        "iterations": 10, "scale": 12, "bilateral_weight": 10, "bilateral_sxy": 80, "bilateral_srgb": 13,
        "gaussian_weight": 3, "gaussian_sxy": 3,
    }  # fmt: skip
    assert (data["size"], data["batch_size"], data["augment"], trainer["max_steps"]) == (321, 15, None, 8000)
    seeds = yaml.safe_load((CONFIGS / "seeds_voc12_vgg16.yaml").read_text())
    assert (seeds["fg_threshold"], seeds["bg_fraction"], seeds["size"], seeds["scales"]) == (0.2, 0.1, 321, [1.0])


def test_the_recommended_recipe():
    """Its numbers, which are irn's and those of SEC's runs; who learns from whom; the same for photos and COCO."""
    read = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("*.yaml")}
    walk = {key: read["refine_voc_animals"][key] for key in ("radius", "beta", "steps", "fg_threshold", "crf")}
    assert walk == {"radius": 5, "beta": 10, "steps": 256, "fg_threshold": 0.25, "crf": True}
    assert walk == {key: inspect.signature(refine_seeds).parameters[key].default for key in walk}
    thresholds = {
        name: read[name]["stages"]["walk"]["options"].get("fg_threshold") for name in ("photos", "voc_animals")
    }
    assert thresholds == {"photos": "auto", "voc_animals": None}
    affinity, labels = (read[f"{name}_voc_animals"]["model"]["init_args"] for name in ("affinity", "labels"))
    assert (affinity["radius"], affinity["lr"], affinity["weight_decay"]) == (10, 0.1, 1e-4)
    assert (affinity["bias_lr_scale"], labels["loss"]) == (1, "cross_entropy")
    assert {key: read["pseudo_labels_voc_animals"][key] for key in ("flip", "crf", "min_confidence")} == {
        "flip": True, "crf": True, "min_confidence": 0,
    }  # fmt: skip
    for name in ("voc_animals", "photos", "coco"):
        stages = {key: stage["options"] for key, stage in read[name]["stages"].items()}
        made = [key for key in stages if "quality" not in key and key not in ("first-val", "page")]
        assert made == ["classifier", "seeds", "affinity", "walk", "first-network", "labels", "network", "val"]
        assert stages["seeds"]["refine"] == "crf"
        learned = [stages[key]["data"]["init_args"]["cues"] for key in ("affinity", "first-network", "network")]
        assert learned == ["{seeds}", "{walk}", "{labels}"]
        assert (stages["walk"]["cache"], stages["labels"]["consensus"]) == ("{seeds}", "{walk}")
        assert stages["val"]["checkpoint"] == "{network}/last.ckpt"
        for key in ("classifier", "affinity", "first-network", "network"):
            assert stages[key]["seed_everything"] == "{seed}"


@pytest.mark.parametrize("stage", ["affinity", "labels", "sec"])
def test_masks_of_all_training_images_may_be_used(real_data, stage):
    """SegmentationClass has masks of a third of them; those of `val` are the same in both folders."""
    settings = yaml.safe_load((CONFIGS / f"{stage}_voc_animals.yaml").read_text())["data"]["init_args"]
    settings |= {"root": str(real_data / "VOCdevkit/VOC2012"), "annotations": "masks"}
    data = VOCDataModule(**settings)
    samples = data.annotated(data.samples("trainaug"), "trainaug")
    assert len(samples) == 1252
    assert all(sample.mask for sample in samples)


@pytest.mark.slow
def test_two_steps_of_the_papers_configuration(tmp_path):
    """The YAML as it is, but for weights and data: two iterations train, and a checkpoint is left."""
    classes = ["bee", "fish", "kite", "ladybird", "starfish"]
    write_synthetic_voc(tmp_path / "data", train=4, val=2, size=64)
    with CacheWriter(tmp_path / "seeds", classes, {}) as cache:
        for index in range(4):
            cues = np.full((41, 41), 255, np.uint8)
            cues[:20, :20], cues[30:, 30:] = 1 + index, 0
            cache.add(f"train_{index:05d}", cues)
    words = ["fit", f"--config={CONFIGS / 'sec_voc12_vgg16.yaml'}", f"--output={tmp_path / 'run'}"]
    words += ["--model.init_args.weights=none", f"--data.root={tmp_path / 'data'}", f"--data.cues={tmp_path / 'seeds'}"]
    words += [
        "--data.cues_checkpoint=null",
        "--data.labels=imagesets",
        "--data.train_split=train",
        "--data.batch_size=2",
    ]
    words += [
        "--data.num_workers=0",
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
        "--trainer.limit_val_batches=1",
    ]
    words += [
        "--trainer.enable_progress_bar=false",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.log_every_n_steps=1",
    ]
    assert main(words) == 0
    checkpoint = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    rates = [group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]]
    assert sorted(set(rates)) == pytest.approx([1e-3, 2e-3, 1e-2, 2e-2])
    logged = (tmp_path / "run/metrics.csv").read_text()
    assert all(name in logged for name in ("train/seed", "train/expand", "train/constrain", "val/miou"))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_precision_and_processes_of_every_configuration(path):
    """The processor decides the precision; a training takes one process, and so the batch size that it states."""
    content = yaml.safe_load(path.read_text())
    if "trainer" in content:
        assert (content["trainer"]["precision"], content["trainer"]["devices"]) == ("auto", 1)
    elif "stages" not in content and path.stem != "zero_shot_voc12":  # which reads no image
        assert content["precision"] == "auto"
    for stage in content.get("stages", {}).values():
        given = stage.get("options", {})
        assert given.get("precision", "{precision}") == "{precision}"
        assert given.get("trainer", {}).get("precision", "{precision}") == "{precision}"
    assert content.get("settings", {}).get("precision", "auto") == "auto"


def test_precision_is_auto_in_every_command():
    defaults = {}
    for name, (target, _) in FUNCTIONS.items():
        module, function = target.split(":")
        parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
        if "job" in parameters:
            defaults[name] = parameters["job"].default.precision
        elif "precision" in parameters:
            defaults[name] = parameters["precision"].default
    commands = ("seeds generate", "seeds refine", "pseudo-label", "review", "evaluate", "predict")
    assert defaults == dict.fromkeys(commands, "auto")


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_training_takes_the_precision_of_the_processor(voc, cues, tmp_path, monkeypatch, capsys, native, expected):
    """Printed, recorded, and overridden by an option; so for the evaluation of its checkpoint."""
    monkeypatch.setattr("seeds.precision.computes_bfloat16", lambda _accelerator: native)
    assert fit(voc, cues, tmp_path / "run") == 0
    assert f"precision: {expected}" in capsys.readouterr().err
    assert read_record(tmp_path / "run")["attempts"][0]["precision"] == expected
    assert fit(voc, cues, tmp_path / "other", "--trainer.precision=32-true") == 0
    assert read_record(tmp_path / "other")["attempts"][0]["precision"] == "32-true"
    words = ["evaluate", f"--checkpoint={tmp_path / 'run/last.ckpt'}", f"--root={voc}", "--crf=false"]
    assert main([*words, f"--output={tmp_path / 'val'}"]) == 0
    assert json.loads((tmp_path / "val/metrics.json").read_text())["compute_precision"] == expected
    assert main([*words, f"--output={tmp_path / 'val'}", "--precision=32-true"]) == 0
    assert json.loads((tmp_path / "val/metrics.json").read_text())["compute_precision"] == "32-true"
