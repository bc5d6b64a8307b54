import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules.errors import InputError
from seeds.checkpoint import load_task
from seeds.classifier import ClassifierTask
from seeds.gradcam import GradCAM
from seeds.recam import Reactivation
from tests.seeds.conftest import data_of

CLASSES = ["red", "blue"]


def test_the_loss_by_another_way():
    """Picture by picture and class by class in float64; the third picture has no class."""
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(3, 4, 2, 3)).clip(0), rng.normal(size=(5, 4))
    labels = np.zeros((3, 5), int)
    labels[0, [1, 3]] = labels[1, 4] = 1
    head = Reactivation(4, 5)
    pictures = []
    for x, own in zip(features[:2], ([1, 3], [4]), strict=True):
        losses = []
        for c in own:
            cam = np.maximum(np.einsum("k,khw->hw", weight[c], x), 0)
            under = (x * cam / max(cam.max(), 1e-5)).mean(axis=(1, 2))
            scores = head.head.weight.detach().double().numpy() @ under
            losses.append(np.log(np.exp(scores).sum()) - scores[c])
        pictures.append(np.mean(losses))
    given = torch.tensor(features, dtype=torch.float32), torch.tensor(weight, dtype=torch.float32)
    assert head(*given, torch.tensor(labels)).item() == pytest.approx(np.mean(pictures), rel=1e-5)
    assert head(*given, torch.zeros(3, 5)).item() == 0


def test_it_keeps_classes_apart():
    """Two classes always side by side, as a horse and its rider: the sigmoids may share what they see, this not."""
    features = torch.zeros(1, 2, 1, 4)
    features[0, 0, 0, :2] = features[0, 1, 0, 2:] = 1  # one channel shows the left half, the other the right
    labels, head = torch.ones(1, 2), Reactivation(2, 2)
    torch.nn.init.eye_(head.head.weight)
    apart = head(features, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), labels)
    shared = head(features, torch.tensor([[1.0, 1.0], [1.0, 1.0]]), labels)
    assert apart < shared


def test_a_classifier_trained_with_it_is_a_plain_one_afterwards(voc, tmp_path):
    pl.seed_everything(0)
    task = ClassifierTask(CLASSES, backbone="resnet18", lr=1e-3, reactivation_weight=0.5)
    before = task.reactivation.head.weight.detach().clone()
    trainer = pl.Trainer(
        max_epochs=4, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        precision="bf16-mixed", num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, data_of(voc))
    assert not torch.equal(task.reactivation.head.weight, before)
    rates = {group["name"]: group["initial_lr"] for group in trainer.optimizers[0].param_groups}
    assert rates["head.weight"] == pytest.approx(1e-2)  # its head's, too: a group has one rate
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    loaded = load_task(tmp_path / "it.ckpt", ClassifierTask).model
    maps = GradCAM(loaded, "features")(torch.randn(1, 3, 64, 64), torch.ones(1, 2))
    assert maps.shape[:2] == (1, 2)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"reactivation_weight": -1.0}, "reactivation_weight -1.0"), ({"reactivation_weight": float("nan")}, "nan"),
     ({"reactivation_weight": 1.0, "compile": True}, "cannot be compiled")],
)  # fmt: skip
def test_weights_it_does_not_take(given, words):
    with pytest.raises(InputError, match=words):
        ClassifierTask(CLASSES, backbone="resnet18", **given)
