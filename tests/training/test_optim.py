"""Rates by layer, schedules."""

import math

import pytest
import torch

from training.largefov import LargeFOV
from training.networks import build_network
from training.optim import build_optimizer, build_schedule, parameter_groups, rate_factor

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


def test_the_papers_steps_never_fire_at_iteration_0():
    table = {0: 1.0, 1: 1.0, 1999: 1.0, 2000: 0.1, 3999: 0.1, 4000: 0.01, 7999: 1e-3}
    for iteration, factor in table.items():
        assert rate_factor(iteration, "step", total=8000) == pytest.approx(factor, rel=1e-12)


def test_poly_and_warmup():
    assert rate_factor(0, "poly", total=100) == 1.0
    assert rate_factor(50, "poly", total=100) == pytest.approx(0.5**0.9)
    assert rate_factor(100, "poly", total=100) == 0.0
    assert rate_factor(120, "poly", total=100) == 0.0
    assert rate_factor(7, "constant", total=math.inf) == 1.0
    assert [rate_factor(i, "constant", total=9, warmup=4) for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


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
