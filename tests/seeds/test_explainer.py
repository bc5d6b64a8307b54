"""The size of images in an explainer."""

import pytest
import pytorch_lightning as pl
import torch

from datamodules.errors import InputError
from seeds.classifier import ClassifierTask
from seeds.explainer import Explainer


def test_images_have_the_size_of_the_validation(tmp_path):
    task = ClassifierTask(["a"], backbone="mobilenet_v2", depth=3, output_stride=8)
    trainer, path = pl.Trainer(accelerator="cpu", logger=False), tmp_path / "classifier.ckpt"
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    for known, size in (({}, 320), ({"size": 48, "eval_size": 80}, 80)):
        torch.save(content | {"datamodule_hyper_parameters": known}, path)
        assert Explainer(path, ["gradcam"]).size == size
        assert Explainer(path, ["gradcam"], size=96).size == 96
        with pytest.raises(InputError, match="size 0"):
            Explainer(path, ["gradcam"], size=0)
