"""Order and randomness of training images."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules import samplers
from datamodules.errors import InputError
from datamodules.samplers import Draw, EvalSampler, TrainSampler, evenly_spaced


def shares(monkeypatch, replicas, make):
    """Return the share of each of several processes."""
    found = []
    for rank in range(replicas):
        group = {"is_available": True, "is_initialized": True, "get_world_size": replicas, "get_rank": rank}
        stub = SimpleNamespace(**{name: lambda value=value: value for name, value in group.items()})
        monkeypatch.setattr(samplers, "distributed", stub)
        found.append(make())
    return found


@given(length=st.integers(1, 50), batch=st.integers(1, 20), seed=st.integers(0, 2**64 - 1))
def test_each_image_once_in_whole_batches(length, batch, seed):
    draws = list(TrainSampler(length, batch, seed))
    assert len(draws) == (length // batch * batch or length)
    assert len({draw.number for draw in draws}) == len(draws)
    assert all(0 <= draw.number < length for draw in draws)


@given(length=st.integers(1, 50), batch=st.integers(1, 20), least=st.integers(0, 200))
def test_an_epoch_of_few_images_repeats_them(length, batch, least):
    draws = list(TrainSampler(length, batch, seed=3, min_images=least))
    images = max(length, least)
    assert len(draws) == (images // batch * batch or images)
    counts = np.bincount([draw.number for draw in draws], minlength=length)
    assert counts.max() - counts.min() <= 1
    for start in range(0, len(draws), length):  # each time through, no image twice
        assert len({draw.number for draw in draws[start : start + length]}) == len(draws[start : start + length])
    assert len({draw.seed for draw in draws}) == len(draws)
    if least <= length:
        assert draws == list(TrainSampler(length, batch, seed=3))


def test_each_time_through_the_images_has_its_own_order():
    draws = list(TrainSampler(20, 10, seed=3, min_images=60))
    orders = [[draw.number for draw in draws[start : start + 20]] for start in (0, 20, 40)]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_the_draws_of_a_seed():
    """They stay those of earlier runs, which can be resumed and repeated."""
    assert list(TrainSampler(3, 2, seed=7, repeats=[1, 3, 1], min_images=6)) == [
        (1, 3577218852397956696), (0, 1038584849328933328), (2, 1384272659328390225),
        (1, 1284011502497223841), (1, 1175378513906880444), (0, 2052552176972312932),
    ]  # fmt: skip


def test_images_that_are_all_repeated_take_part_once():
    """How often an image is drawn is relative to the others."""
    assert list(TrainSampler(5, 5, seed=7, repeats=[4] * 5)) == list(TrainSampler(5, 5, seed=7))
    assert list(TrainSampler(3, 3, seed=7, repeats=[6, 2, 4])) == list(TrainSampler(3, 3, seed=7, repeats=[3, 1, 2]))


def test_processes_share_an_epoch_of_few_images(monkeypatch):
    whole = list(TrainSampler(7, 8, seed=1, min_images=50))
    parts = shares(monkeypatch, 2, lambda: list(TrainSampler(7, 4, seed=1, min_images=50)))
    assert [draw for pair in zip(*parts, strict=True) for draw in pair] == whole
    assert len(whole) == 48
    parts = shares(monkeypatch, 3, lambda: list(TrainSampler(7, 4, seed=1, min_images=50)))
    monkeypatch.undo()
    whole = list(TrainSampler(7, 12, seed=1, min_images=50))
    assert [draw for three in zip(*parts, strict=True) for draw in three] == whole


def test_epochs_differ_and_come_back():
    sampler = TrainSampler(30, 4, seed=5)
    first, second = list(sampler), list(sampler)
    assert {draw.number for draw in first} <= set(range(30))
    assert first != second
    assert not {draw.seed for draw in first} & {draw.seed for draw in second}
    sampler.set_epoch(0)
    assert list(sampler) == first
    other = TrainSampler(30, 4, seed=5)
    other.set_epoch(1)
    assert list(other) == second
    assert list(TrainSampler(30, 4, seed=6)) != first


@pytest.mark.parametrize("replicas", [2, 3])
def test_processes_share_the_batches_of_one_with_larger_ones(monkeypatch, replicas):
    whole = list(TrainSampler(41, 4 * replicas, seed=1))
    parts = shares(monkeypatch, replicas, lambda: list(TrainSampler(41, 4, seed=1)))
    assert {len(part) for part in parts} == {len(whole) // replicas}
    for start in range(0, len(parts[0]), 4):
        together = {draw for part in parts for draw in part[start : start + 4]}
        assert together == set(whole[start * replicas : (start + 4) * replicas])


def test_batches_of_one_step_are_a_larger_batch(monkeypatch):
    """The order is that of one process with the large batch; images that fill no whole step are left out."""
    whole = list(TrainSampler(41, 12, seed=1))
    assert list(TrainSampler(41, 4, seed=1, accumulate=3)) == whole
    parts = shares(monkeypatch, 2, lambda: list(TrainSampler(41, 2, seed=1, accumulate=3)))
    assert [draw for pair in zip(*parts, strict=True) for draw in pair] == whole
    with pytest.raises(InputError, match=r"11 images do not fill one step of 3 batches .* of 2 images"):
        TrainSampler(11, 2, seed=0, accumulate=3)


def test_evaluation_takes_every_image_once(monkeypatch):
    parts = shares(monkeypatch, 3, lambda: EvalSampler(7))
    assert [list(part) for part in parts] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [len(part) for part in parts] == [3, 2, 2]
    monkeypatch.undo()
    assert list(EvalSampler(3)) == [0, 1, 2]


def test_fewer_images_than_a_batch_or_than_processes(monkeypatch):
    assert len(list(TrainSampler(3, 8, seed=0))) == 3
    parts = shares(monkeypatch, 2, lambda: list(TrainSampler(5, 8, seed=0)))
    assert [len(part) for part in parts] == [2, 2]
    with pytest.raises(InputError, match="1 images cannot be distributed over 2"):
        TrainSampler(1, 8, seed=0)
    with pytest.raises(InputError, match="1 images cannot be distributed over 2"):
        EvalSampler(1)


def test_the_seed_of_the_run(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    assert samplers.run_seed() == 12
    assert Draw(3, 4).number == 3


@pytest.mark.parametrize(
    ("count", "wanted", "found"),
    [(10, 3, [0, 4, 9]), (10, 4, [0, 3, 6, 9]), (3, 8, [0, 1, 2]), (5, 1, [0]), (5, 0, []), (0, 5, [])],
)
def test_evenly_spaced(count, wanted, found):
    assert evenly_spaced(count, wanted) == found
