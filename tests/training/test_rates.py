"""Rates by layer, of segmentation networks and of the classifier."""

import pytest
import torch

from seeds.classifier import ClassifierTask
from seeds.optimizers import build_optimizer, build_schedule, parameter_groups
from training.largefov import LargeFOV
from training.networks import build_network

PAPER = {"lr": 1e-3, "weight_decay": 5e-4, "head_lr_scale": 10.0, "bias_lr_scale": 2.0}


def test_the_papers_rates():
    network = LargeFOV(21)
    groups = {group["name"]: group for group in parameter_groups(network, network.fresh, **PAPER)}
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
    groups = parameter_groups(network, network.fresh, **PAPER)
    given = [id(p) for group in groups for p in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in network.parameters() if p.requires_grad}
    head = {id(p) for p in [*network.model.decoder.parameters(), *network.model.segmentation_head.parameters()]}
    for group in groups:
        assert {id(p) in head for p in group["params"]} == {group["name"].startswith("head")}
        assert (group["weight_decay"] > 0) == all(p.ndim > 1 for p in group["params"])


def test_batch_norm_is_neither_decayed_nor_doubled():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    groups = {group["name"]: group for group in parameter_groups(network, [], **PAPER)}
    assert groups["body.norm"]["params"] == [network[1].weight, network[1].bias]
    assert (groups["body.norm"]["lr"], groups["body.norm"]["weight_decay"]) == (1e-3, 0.0)


def test_the_classifiers_head_learns_faster():
    task = ClassifierTask(["a"], backbone="resnet18", freeze_stride=8)
    rates = {"lr": 0.1, "weight_decay": 0.3, "head_lr_scale": 5.0, "bias_lr_scale": 1.0}
    groups = {group["name"]: group for group in parameter_groups(task.model, [task.model.head], **rates)}
    assert groups["head.weight"]["params"] == [task.model.head.weight]
    assert groups["head.bias"]["params"] == [task.model.head.bias]
    assert {name: (pytest.approx(g["lr"]), g["weight_decay"]) for name, g in groups.items()} == {
        "body.weight": (0.1, 0.3), "body.norm": (0.1, 0.0), "head.weight": (0.5, 0.3), "head.bias": (0.5, 0.0)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_rates_as_they_are_used(name):
    network = LargeFOV(2)
    optimizer = build_optimizer(parameter_groups(network, network.fresh, **PAPER), name, momentum=0.9)
    scheduler = build_schedule(optimizer, "step", total=0, step_size=2, step_gamma=0.1)
    seen = []
    for _ in range(5):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    base = [1e-3, 2e-3, 1e-2, 2e-2]
    for rates, factor in zip(seen, [1, 1, 0.1, 0.1, 0.01], strict=True):
        assert rates == pytest.approx([rate * factor for rate in base])
    if name == "sgd":
        assert {group["momentum"] for group in optimizer.param_groups} == {0.9}
