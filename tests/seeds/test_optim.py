"""Rates and decays of a network's parameters, and schedules of the learning rate."""

import math

import pytest
from torch import nn

from seeds.optimizers import parameter_groups, rate_factor


def test_the_papers_steps_never_fire_at_iteration_0():
    table = {0: 1.0, 1: 1.0, 1999: 1.0, 2000: 0.1, 3999: 0.1, 4000: 0.01, 7999: 1e-3}
    for iteration, factor in table.items():
        assert rate_factor(iteration, "step", total=8000) == pytest.approx(factor, rel=1e-12)


def test_poly_and_warmup():
    assert rate_factor(0, "poly", total=100) == 1.0
    assert rate_factor(50, "poly", total=100) == pytest.approx(0.5**0.9)
    assert rate_factor(100, "poly", total=100) == 0.0
    assert rate_factor(120, "poly", total=100) == 0.0
    assert rate_factor(10**6, "poly", total=math.inf) == 1.0
    assert rate_factor(25, "cosine", total=100) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert rate_factor(100, "cosine", total=100) == pytest.approx(0)
    assert rate_factor(7, "constant", total=math.inf) == 1.0
    assert [rate_factor(i, "constant", total=9, warmup=4) for i in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm([4, 2, 2])])
def test_normalisation_has_no_decay_and_its_shift_no_rate_of_biases(norm):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norm, nn.Conv2d(4, 2, 1))
    rates = {"lr": 0.1, "weight_decay": 0.01, "head_lr_scale": 10.0, "bias_lr_scale": 2.0}
    groups = parameter_groups(network, [network[2]], **rates)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    expected = {
        network[0].weight: (0.1, 0.01), network[0].bias: (0.2, 0), norm.weight: (0.1, None), norm.bias: (0.1, None),
        network[2].weight: (1.0, 0.01), network[2].bias: (2.0, 0),
    }  # fmt: skip
    assert len(found) == len(expected)
    for parameter, (rate, decay) in expected.items():
        assert found[id(parameter)] == (pytest.approx(rate), pytest.approx(decay or 0))
