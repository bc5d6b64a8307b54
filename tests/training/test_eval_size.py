"""Networks look at whole images at the size they were validated at, which need not be that of the crops."""

import pytest
import torch

from datamodules.errors import InputError
from datamodules.seed_cache import SeedCache
from seeds.classifier import ClassifierTask
from seeds.explainer import Explainer
from seeds.refine import refine_seeds
from tests.training.conftest import SIZE, trainer_of
from training.inference import data_module, load_trained
from training.pseudo_labels import pseudo_label

LARGER = SIZE + 32


def of_eval_size(checkpoint, folder):
    """The checkpoint as one of a training that validated at a larger size."""
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["eval_size"] = LARGER
    torch.save(content, folder / "larger.ckpt")
    return folder / "larger.ckpt"


def test_evaluation_and_prediction(checkpoint, tmp_path):
    trained = load_trained(of_eval_size(checkpoint, tmp_path))
    assert trained.size == LARGER
    data = data_module(trained)
    assert next(iter(data.eval_loader(data.photos("val"))))["image"].shape[-2:] == (LARGER, LARGER)


def test_labels_of_a_network(checkpoint, tmp_path):
    larger = of_eval_size(checkpoint, tmp_path)
    for given, size in (({}, LARGER), ({"size": SIZE}, SIZE)):
        pseudo_label(larger, tmp_path / str(size), **given, crf=False, num_workers=0, accelerator="cpu")
        assert SeedCache(tmp_path / str(size)).settings["size"] == size


def test_labels_of_a_walk(cues, boundaries, tmp_path):
    larger = of_eval_size(boundaries, tmp_path)
    for given, size in (({}, LARGER), ({"size": SIZE}, SIZE)):
        options = {"crf": False, "steps": 1, "num_workers": 0, "accelerator": "cpu"}
        refine_seeds(cues, larger, tmp_path / str(size), **given, **options)
        assert SeedCache(tmp_path / str(size)).settings["size"] == size


def test_explanations(tmp_path):
    task = ClassifierTask(["a"], backbone="mobilenet_v2", depth=3, output_stride=8)
    trainer, path = trainer_of(tmp_path), tmp_path / "classifier.ckpt"
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    for known, size in (({}, 320), ({"size": 48}, 48), ({"size": 48, "eval_size": 80}, 80)):
        torch.save(content | {"datamodule_hyper_parameters": known}, path)
        assert Explainer(path, ["gradcam"]).size == size
        assert Explainer(path, ["gradcam"], size=96).size == 96
        with pytest.raises(InputError, match="size 0"):
            Explainer(path, ["gradcam"], size=0)
