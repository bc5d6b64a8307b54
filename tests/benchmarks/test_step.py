"""The benchmarks of step and loader run, and their sums come out."""

import numpy as np
import pytest
import torch

from tests.benchmarks import bench_loader, bench_step
from tests.benchmarks.bench_step import PARTS, available_data, measure, words_of
from tests.benchmarks.measure import read_config
from tests.benchmarks.stopwatch import Stopwatch

SMALL = {"size": 64, "batch_size": 3}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """Of the SEC configuration's data, on fifteen small embedded images, three a step."""
    return available_data(read_config("sec_voc_animals"), tmp_path_factory.mktemp("bench"), 15, embedded=True) | SMALL


def test_a_step_is_split(settings, tmp_path):
    words = [*words_of(settings), "--data.cue_stride=2", "--data.num_workers=1"]
    measured = measure("sec_voc_animals", words, tmp_path / "run", steps=2, warm=1)
    seconds = dict(zip(PARTS, measured.parts[:, 0], strict=True))
    assert all(seconds[part] > 0 for part in PARTS), seconds
    assert seconds["forward"] + seconds["backward"] > 0.3 * sum(seconds.values())
    assert measured.network[0] == pytest.approx(seconds["forward"] + seconds["backward"] + seconds["optimizer"])
    assert measured.workers >= 0
    assert all(0 < share < 1 for share in measured.rest)
    assert measured.batch == 3
    assert "the loader's workers" in bench_step.split_table("", measured).columns[0]._cells


def test_the_innermost_part_is_at_work(monkeypatch):
    """Two steps by a clock that ticks once a look: every tick is some part's, and of one part."""
    ticks = iter(range(100))
    monkeypatch.setattr("tests.benchmarks.stopwatch.time.perf_counter", lambda: next(ticks))
    watch = Stopwatch()
    for _ in range(3):
        watch.start("[_TrainingEpochLoop].train_dataloader_next")
        watch.stop("[_TrainingEpochLoop].train_dataloader_next")
        watch.start("[LightningModule]Task.optimizer_step")
        watch.start("[Strategy]SingleDeviceStrategy.training_step")
        with watch.part("forward"):
            pass
        watch.stop("[Strategy]SingleDeviceStrategy.training_step")
        watch.start("[Strategy]SingleDeviceStrategy.backward")
        watch._arrived(torch.zeros(()))
        watch.stop("[Strategy]SingleDeviceStrategy.backward")
        watch.stop("[LightningModule]Task.optimizer_step")
    walls = [{part: wall for part, (wall, _) in step.items() if wall} for step in watch.steps]
    each = {"data": 1, "forward": 1, "losses": 3, "backward": 1, "optimizer": 3, "loop": 3}
    assert walls == [each, each]


def test_loader_beside_network(settings):
    table = bench_loader.feeding(read_config("sec_voc_animals")["data"]["init_args"] | settings, 1, 3)
    assert table.row_count == 1 + len(bench_loader.WORKERS)
    assert all(float(position) > 0 for column in table.columns[1:] for position in list(column._cells)[1:])


def test_inside_the_loader(settings):
    data = read_config("sec_voc_animals")["data"]["init_args"] | settings
    assert bench_loader.inside(data, 1, 6).row_count == 5
    same = bench_loader.decoders(data, 1, 6).columns[0]._cells
    assert same[0] == "OpenCV (same pixels: 6 of 6)"
    assert "same pixels: 0" in same[-1]


def test_costs_are_per_image(monkeypatch):
    ticks = iter(np.cumsum([0, 3, 0, 5, 0, 4]).tolist())
    monkeypatch.setattr("tests.benchmarks.bench_loader.time.process_time", lambda: next(ticks))
    table = bench_loader.costs("", {"part": lambda: None}, 3, 1000)
    assert [column._cells[0] for column in table.columns] == ["part", "4.00", "3.00"]
