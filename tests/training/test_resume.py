"""A run that is killed and resumed ends with the same bits as an uninterrupted one."""

import csv
import signal

import pytest
import torch

from tests.training.fits import fit_in_a_process

BATCHES = 3  # an epoch: nine images, three a batch
EPOCHS = 3


def train(voc, cues, folder, *words, dies_at=-1):
    """Train three epochs of SEC in its own process, on one thread; dropout and augmentation are on."""
    more = ("--data.num_workers=2", f"--trainer.max_epochs={EPOCHS}")
    return fit_in_a_process(voc, cues, folder, *more, *words, dies_at=dies_at)


@pytest.fixture(scope="module")
def uninterrupted(voc, cues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = train(voc, cues, folder)
    assert done.returncode == 0, done.stderr
    return folder


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("dies_at", [BATCHES, 2 * BATCHES + 1], ids=["after an epoch", "within an epoch"])
def test_killed_and_resumed(voc, cues, uninterrupted, tmp_path, dies_at):
    folder = tmp_path / "run"
    assert train(voc, cues, folder, dies_at=dies_at).returncode == -signal.SIGKILL
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == dies_at // BATCHES * BATCHES
    done = train(voc, cues, folder, "--ckpt_path=last")
    assert done.returncode == 0, done.stderr
    here, there = (torch.load(path / "last.ckpt", weights_only=True) for path in (folder, uninterrupted))
    assert here["global_step"] == there["global_step"] == EPOCHS * BATCHES
    assert here["lr_schedulers"] == there["lr_schedulers"]
    for name, value in there["state_dict"].items():
        assert torch.equal(here["state_dict"][name], value), name
    for number, state in there["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            mine = here["optimizer_states"][0]["state"][number][name]
            assert torch.equal(torch.as_tensor(mine), torch.as_tensor(value)), name
    assert rows(folder) == rows(uninterrupted)
