"""Schedules of the learning rate."""

import math

import pytest

from seeds.optim import rate_factor


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
