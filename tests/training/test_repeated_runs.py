"""The same seed gives the same network; several seeds by one command, and how much their figures differ."""

import csv
import json

import numpy as np
import pytest
import torch

from datamodules.errors import InputError
from datamodules.files import write_json
from tests.training.fits import fit, read_record
from training.cli import main
from training.runs import repeated_runs
from training.runs.repeated_runs import seed_list
from training.segmentation_task import SegmentationTask

STEPS = 6  # two epochs of three
TWO = "--trainer.max_epochs=2"


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class Processes:
    """Stands for the processes that are started: runs each in this one, some as if the machine had failed."""

    def __init__(self):
        self.started = []
        self.fails = {}  # place in the order of starting: what to run instead

    def __call__(self, words, _title):
        self.started.append(list(words))
        return self.fails.get(len(self.started), main)(list(words))


@pytest.fixture
def processes(monkeypatch):
    found = Processes()
    monkeypatch.setattr(repeated_runs, "run_process", found)
    return found


def dies_in_the_second_epoch(words):
    step = SegmentationTask.training_step

    def dying(task, batch, index):
        if task.trainer.global_step == STEPS - 1:
            raise InputError("the machine failed")
        return step(task, batch, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmentationTask, "training_step", dying)
        return main(words)


def test_the_same_seed_gives_the_same_weights(voc, cues, tmp_path):
    """To the bit, on one thread, augmentation and dropout on; another seed gives others, in every layer."""
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        assert fit(voc, cues, tmp_path / name, f"--seed_everything={seed}") == 0
    one, again, other = (weights(tmp_path / name) for name in ("one", "again", "other"))
    assert same(one, again)
    learned = [name for name, value in one.items() if value.ndim == 4]
    assert learned
    assert not any(torch.equal(one[name], other[name]) for name in learned)


def test_fewer_validations_change_no_weight(voc, cues, tmp_path):
    for every in (1, 2):
        assert fit(voc, cues, tmp_path / str(every), TWO, f"--trainer.check_val_every_n_epoch={every}") == 0
    assert same(weights(tmp_path / "1"), weights(tmp_path / "2"))
    validated = [
        [row["step"] for row in csv.DictReader((tmp_path / every / "metrics.csv").open()) if row["val/miou"]]
        for every in "12"
    ]
    assert validated == [["2", "5"], ["5"]]


def test_seeds_by_one_command(voc, cues, tmp_path, processes, capsys, monkeypatch):
    """The second training fails midway; the same command again keeps the first one and resumes the second one."""
    folder, words = tmp_path / "runs", ["--random_seeds=0,1", TWO]
    processes.fails = {2: dies_in_the_second_epoch}
    assert fit(voc, cues, folder, *words) == 1
    assert "the training with seed 1 ended with status 1" in capsys.readouterr().err
    assert not (folder / "repeated_runs.json").exists()
    assert [read_record(folder / f"seed-{seed}")["finished"] for seed in (0, 1)] == [True, False]
    capsys.readouterr()
    assert fit(voc, cues, folder, "--random_seeds=1", TWO, "--data.batch_size=2") == 1
    assert "seed-1 holds a run with data.init_args.batch_size 3, not 2" in capsys.readouterr().err
    assert len(processes.started) == 2

    assert fit(voc, cues, folder, *words) == 0
    assert len(processes.started) == 3
    assert "--ckpt_path=last" in processes.started[2]
    assert [attempt["from_step"] for attempt in read_record(folder / "seed-1")["attempts"]] == [0, STEPS // 2]
    assert "seed 0: finished already" in capsys.readouterr().out

    # the same seed by itself: the same weights, to the bit, and so for the run that was stopped; another seed: others
    assert fit(voc, cues, tmp_path / "alone", "--seed_everything=1", TWO) == 0
    assert same(weights(tmp_path / "alone"), weights(folder / "seed-1"))
    assert not same(weights(folder / "seed-0"), weights(folder / "seed-1"))
    check_figures(folder)

    # nothing is left to do, also after the folder was moved; other settings are not mixed in
    folder = folder.rename(tmp_path / "moved")
    assert fit(voc, cues, folder, *words) == 0
    assert fit(voc, cues, folder, *words, "--model.lr=0.5") == 1
    assert "seed-0 holds a finished run with model.init_args.lr 0.001, not 0.5" in capsys.readouterr().err
    assert fit(voc, cues, folder, "--random_seeds=0,1", "--trainer.max_epochs=3") == 1
    assert "seed-0 holds a finished run with trainer.max_epochs 2, not 3" in capsys.readouterr().err
    monkeypatch.setattr(repeated_runs, "source_revision", lambda packages: dict.fromkeys(packages, "another"))
    assert fit(voc, cues, folder, *words) == 1
    assert "seed-0 holds a finished run with revision.datamodules" in capsys.readouterr().err
    assert len(processes.started) == 3


def test_a_training_that_is_killed(voc, cues, tmp_path, processes, capsys):
    processes.fails = {1: lambda _words: 128 + 9}
    assert fit(voc, cues, tmp_path / "runs", "--random_seeds=3,4") == 1
    assert "the training with seed 3 was ended by signal 9; the same command" in capsys.readouterr().err
    assert len(processes.started) == 1


def check_figures(folder):
    """Mean and standard deviation are numpy's of the figures in the runs' logs."""
    finals = []
    for seed in (0, 1):
        with (folder / f"seed-{seed}/metrics.csv").open(newline="") as file:
            finals.append([float(row["val/miou"]) for row in csv.DictReader(file) if row["val/miou"]][-1])
    found = json.loads((folder / "repeated_runs.json").read_text())
    assert found["random_seeds"] == [0, 1]
    np.testing.assert_allclose(found["figures"]["val/miou"]["mean"], np.mean(finals), rtol=1e-6)
    np.testing.assert_allclose(found["figures"]["val/miou"]["std"], np.std(finals, ddof=1), rtol=1e-4)
    np.testing.assert_allclose([found["runs"][seed]["val/miou"] for seed in ("0", "1")], finals, rtol=1e-6)


def test_figures_that_not_every_run_has_have_no_mean(tmp_path, capsys):
    repeated_runs.write_figures(tmp_path, {4: {"val/a": 0.5, "val/b": 1.0}, 7: {"val/a": 0.25}})
    found = json.loads((tmp_path / "repeated_runs.json").read_text())
    assert found["figures"] == {"val/a": {"mean": 0.375, "std": pytest.approx(0.25 / 2**0.5)}}
    assert "val/b" not in capsys.readouterr().out
    repeated_runs.write_figures(tmp_path, {4: {"val/a": 0.5}})
    assert json.loads((tmp_path / "repeated_runs.json").read_text())["figures"]["val/a"] == {
        "mean": 0.5,
        "std": None,
    }
    repeated_runs.write_figures(tmp_path, {4: {}})
    assert "no figures" in capsys.readouterr().out


def test_a_checkpoint_of_unknown_origin(voc, cues, tmp_path, processes, capsys):
    (tmp_path / "runs/seed-1").mkdir(parents=True)
    (tmp_path / "runs/seed-1/last.ckpt").write_bytes(b"")
    assert fit(voc, cues, tmp_path / "runs", "--random_seeds=1") == 1
    assert "seed-1 holds a checkpoint and no provenance.json of its run: move or remove it" in capsys.readouterr().err
    assert processes.started == []


def test_seeds_as_written():
    assert seed_list("0,1,2") == seed_list([0, 1, 2]) == [0, 1, 2]
    assert seed_list("7") == [7]
    assert seed_list(None) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--random_seeds=1,1"], "different numbers"),
        (["--random_seeds=-1,2"], "different numbers"),
        (["--random_seeds=99999999999"], "from 0 to 4294967295"),
        (["--random_seeds=a"], "whole numbers"),
        (["--random_seeds=1,2", "--ckpt_path=last"], "leave ckpt_path out"),
    ],
)
def test_seeds_that_cannot_be(voc, cues, tmp_path, processes, capsys, words, message):
    assert fit(voc, cues, tmp_path / "runs", *words) in (1, 2)
    assert message in capsys.readouterr().err
    assert processes.started == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("change", "refused"), [
    ({"trainer": {"devices": 2}}, ""), ({"data": {"init_args": {"num_workers": 9}}}, ""), ({"wandb": "online"}, ""),
    ({"model": {"lr": 0.5}}, "seed-3 holds a run with model.lr 0.1, not 0.5"),
    ({"seed_everything": 7}, ""),  # each run has its own
])  # fmt: skip
def test_a_stopped_run_may_be_resumed_on_another_machine(tmp_path, processes, change, refused):
    """Whose devices and processors do not change the result."""
    config = {
        "output": str(tmp_path), "ckpt_path": None, "wandb": "disabled", "seed_everything": 3, "model": {"lr": 0.1},
        "trainer": {"devices": 1}, "data": {"init_args": {"num_workers": 2}},
    }  # fmt: skip
    attempt = {"config": config, "source": repeated_runs.source_revision(repeated_runs.ALL_PACKAGES)}
    write_json(tmp_path / "seed-3/provenance.json", {"attempts": [attempt], "finished": False})
    (tmp_path / "seed-3/last.ckpt").touch()
    processes.fails = {1: lambda _words: 1}
    with pytest.raises(InputError, match=refused or "the training with seed 3 ended with status 1"):
        repeated_runs.fit_repeatedly(["fit"], config | change, [3])
    assert len(processes.started) == (not refused)
