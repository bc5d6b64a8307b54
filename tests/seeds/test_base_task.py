"""Memory layout and compilation change neither a network's results nor the names of its weights."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

from datamodules.errors import InputError
from seeds.backbones import build_backbone
from seeds.base_task import BaseTask
from seeds.checkpoints import load_task
from seeds.classifier import ClassifierTask
from seeds.gradcam import GradCAM
from tests.seeds.conftest import data_of


class Task(BaseTask):
    """A task of any network."""

    task_name = "test"

    def __init__(self, network, **options):
        super().__init__(**options)
        self.network = network
        self.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))

    trainer = None

    def network_and_head(self):
        return self.network, []


def images_of(dtype=torch.float32):
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=dtype)


def scores_and_gradients(network):
    """Return the scores of a batch in training, and the gradients."""
    scores = network(images_of(next(network.parameters()).dtype))
    scores.square().sum().backward()
    return scores.detach(), {name: each.grad for name, each in network.named_parameters() if each.requires_grad}


def assert_same(one, other):
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-5)
    assert one[1].keys() == other[1].keys()
    largest = max(gradient.abs().max().item() for gradient in one[1].values())
    for name, gradient in one[1].items():
        torch.testing.assert_close(other[1][name], gradient, rtol=1e-4, atol=1e-6 * largest)


def test_channels_last():
    torch.manual_seed(0)
    plain = build_backbone("mobilenet_v2", 16).train().double()  # batch norms of two images magnify rounding
    other = copy.deepcopy(plain)
    Task(plain).setup("fit")
    Task(other, channels_last=True).setup("fit")
    assert_same(scores_and_gradients(plain), scores_and_gradients(other))
    Task(plain, channels_last=True).setup("validate")  # the layout belongs to the training alone
    assert not plain(images_of(torch.float64)).is_contiguous(memory_format=torch.channels_last)
    maps = other(images_of(torch.float64))  # of images whose channels are not last
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert not maps.is_contiguous()


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 62 * 62, 2))


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++, which is not here")
def test_compiled():
    plain, other = small(), small()
    Task(other, compile=True).setup("fit")
    assert list(other.state_dict()) == list(plain.state_dict())
    assert_same(scores_and_gradients(plain), scores_and_gradients(other))


def test_no_compiler():
    torch.compiler.reset()
    refusal = pytest.raises(InputError, match=r"^compile: torch cannot compile for cpu on this machine \(.*no-such")
    with fresh_cache(), inductor.patch({"cpp.cxx": ("no-such-compiler",)}), refusal:
        Task(small(), compile=True).setup("fit")
    torch.compiler.reset()


def test_checkpoints_have_neither_layout_nor_compilation(voc, tmp_path, monkeypatch):
    """Grad-CAM of the loaded network equals Grad-CAM of the trained one."""
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled(module, backend="eager"))
    monkeypatch.setattr("seeds.base_task.check_compiler", lambda _: None)
    torch.manual_seed(0)
    task = ClassifierTask(
        ["red", "blue"], "resnet18", output_stride=8, depth=3, schedule="constant", channels_last=True, compile=True
    )
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data_of(voc))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    loaded = load_task(tmp_path / "c.ckpt", ClassifierTask)
    assert task.model._compiled_call_impl is not None
    assert loaded.model._compiled_call_impl is None
    assert loaded.model.features.encoder.conv1.weight.is_contiguous()
    assert loaded.hparams["compile"] is True
    images, labels = images_of(), torch.ones(2, 2)
    expected = GradCAM(task.model, "features")(images, labels)
    assert expected.max() > 0
    torch.testing.assert_close(GradCAM(loaded.model, "features")(images, labels), expected, rtol=1e-4, atol=1e-5)
