"""Rates and decays of a network's parameters, schedules of the learning rate, memory layout and compilation.

Layout and compilation change neither a network's results nor the names of its weights.
"""

import copy
import math
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
from seeds.base_task import BaseTask, parameter_groups, rate_factor
from seeds.checkpoints import load_task
from seeds.classifier import ClassifierTask
from seeds.gradcam import GradCAM
from tests.seeds.conftest import data_of
from training.largefov import LargeFOV
from training.networks import build_network

PAPER = {"lr": 1e-3, "weight_decay": 5e-4, "head_lr_scale": 10.0, "bias_lr_scale": 2.0}


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
    Task(other).setup("fit")
    assert_same(scores_and_gradients(plain), scores_and_gradients(other))
    Task(plain).setup("validate")  # the layout belongs to the training alone
    assert not plain(images_of(torch.float64)).is_contiguous(memory_format=torch.channels_last)
    maps = other(images_of(torch.float64))  # of images whose channels are not last
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert not maps.is_contiguous()


@pytest.mark.parametrize("name", ["classifier", "FPN"])
def test_batch_norms_and_their_gradients_have_one_layout(name):
    """On a CPU the backward pass of a batch norm takes several times as long where the two layouts differ."""
    if name == "FPN":
        network = build_network("FPN", 3, "mobilenet_v2").train()
    else:
        network = ClassifierTask(["red", "blue"], "mobilenet_v2", output_stride=16).model.train()
    Task(network).setup("fit")
    layouts = []

    def record(_module, _images, maps):
        layouts.append(maps.is_contiguous(memory_format=torch.channels_last))
        maps.register_hook(lambda slope: layouts.append(slope.is_contiguous(memory_format=torch.channels_last)))

    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(record)
        elif isinstance(module, nn.ReLU6):
            module.inplace = False
    network(torch.randn(2, 3, 128, 128)).square().sum().backward()
    assert len(layouts) == 2 * 52
    assert all(layouts)


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
    task = ClassifierTask(["red", "blue"], "resnet18", output_stride=8, depth=3, schedule="constant", compile=True)
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(task, data_of(voc))
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    loaded = load_task(tmp_path / "c.ckpt", ClassifierTask)[0]
    assert task.model._compiled_call_impl is not None
    assert loaded.model._compiled_call_impl is None
    assert loaded.model.features.encoder.conv1.weight.is_contiguous()
    assert loaded.hparams["compile"] is True
    images, labels = images_of(), torch.ones(2, 2)
    expected = GradCAM(task.model, "features")(images, labels)
    assert expected.max() > 0
    torch.testing.assert_close(GradCAM(loaded.model, "features")(images, labels), expected, rtol=1e-4, atol=1e-5)


# --- rates and schedules


def factor_at(iteration, schedule, total, warmup_steps=0):
    return rate_factor(iteration, schedule, total, step_size=2000, step_gamma=0.1, warmup_steps=warmup_steps)


def test_the_papers_steps_never_fire_at_iteration_0():
    table = {0: 1.0, 1: 1.0, 1999: 1.0, 2000: 0.1, 3999: 0.1, 4000: 0.01, 7999: 1e-3}
    for iteration, factor in table.items():
        assert factor_at(iteration, "step", total=8000) == pytest.approx(factor, rel=1e-12)


def test_poly_and_warmup():
    assert factor_at(0, "poly", total=100) == 1.0
    assert factor_at(50, "poly", total=100) == pytest.approx(0.5**0.9)
    assert factor_at(100, "poly", total=100) == 0.0
    assert factor_at(120, "poly", total=100) == 0.0
    assert factor_at(10**6, "poly", total=math.inf) == 1.0
    assert factor_at(25, "cosine", total=100) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert factor_at(100, "cosine", total=100) == pytest.approx(0)
    assert factor_at(7, "constant", total=math.inf) == 1.0
    assert [factor_at(i, "constant", total=9, warmup_steps=4) for i in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2])])
def test_normalisation_has_no_decay_and_its_shift_no_rate_of_biases(norm):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 2, 1))
    rates = {"lr": 0.1, "weight_decay": 0.01, "head_lr_scale": 10.0, "bias_lr_scale": 2.0}
    groups = parameter_groups(network, [network[2]], rates)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    expected = {
        network[0].weight: (0.1, 0.01), network[0].bias: (0.2, 0), norm.weight: (0.1, None), norm.bias: (0.1, None),
        network[2].weight: (1.0, 0.01), network[2].bias: (2.0, 0),
    }  # fmt: skip
    assert len(found) == len(expected)
    for parameter, (rate, decay) in expected.items():
        assert found[id(parameter)] == (pytest.approx(rate), pytest.approx(decay or 0))


def test_the_papers_rates():
    network = LargeFOV(21)
    groups = {group["name"]: group for group in parameter_groups(network, network.head_layers, PAPER)}
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "body.weight": (1e-3, 5e-4),
        "body.bias": (2e-3, 0.0),
        "head.weight": (1e-2, 5e-4),
        "head.bias": (2e-2, 0.0),
    }
    assert groups["head.weight"]["params"] == [network.fc8.weight]
    assert groups["head.bias"]["params"] == [network.fc8.bias]
    assert len(groups["body.weight"]["params"]) == len(groups["body.bias"]["params"]) == 15


def test_every_trained_parameter_is_in_one_group():
    network = build_network("DeepLabV3Plus", 3, output_stride=16, network_args={"decoder_channels": 16})
    network.freeze(4)
    groups = parameter_groups(network, network.head_layers, PAPER)
    given = [id(p) for group in groups for p in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in network.parameters() if p.requires_grad}
    head = {id(p) for p in [*network.model.decoder.parameters(), *network.model.segmentation_head.parameters()]}
    for group in groups:
        assert {id(p) in head for p in group["params"]} == {group["name"].startswith("head")}
        assert (group["weight_decay"] > 0) == all(p.ndim > 1 for p in group["params"])


def test_the_classifiers_head_learns_faster():
    task = ClassifierTask(["a"], backbone="resnet18", freeze_stride=8)
    rates = {"lr": 0.1, "weight_decay": 0.3, "head_lr_scale": 5.0, "bias_lr_scale": 1.0}
    groups = {group["name"]: group for group in parameter_groups(task.model, [task.model.head], rates)}
    assert groups["head.weight"]["params"] == [task.model.head.weight]
    assert groups["head.bias"]["params"] == [task.model.head.bias]
    assert {name: (pytest.approx(g["lr"]), g["weight_decay"]) for name, g in groups.items()} == {
        "body.weight": (0.1, 0.3), "body.norm": (0.1, 0.0), "head.weight": (0.5, 0.3), "head.bias": (0.5, 0.0)
    }  # fmt: skip
