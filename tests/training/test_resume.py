"""A run that is killed and resumed ends with the same bits as an uninterrupted one."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
BATCHES = 3  # an epoch: nine images, three a batch
EPOCHS = 3
PROGRAM = """
import os, signal, sys
from training.cli import main
from training.segmentation_task import SegmentationTask
at, step = int(sys.argv[1]), SegmentationTask.training_step
def dying(task, batch, index):
    if task.trainer.global_step == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(task, batch, index)
SegmentationTask.training_step = dying
sys.exit(main(sys.argv[2:]))
"""


def train(voc, cues, folder, *words, dies_at=-1):
    """Train three epochs of SEC in its own process, on one thread; dropout and augmentation are on."""
    arguments = [
        *("fit", f"--config={CONFIGS / 'sec_demo.yaml'}", f"--output={folder}", "--model.weights=none"),
        *(
            f"--data.root={voc}",
            f"--data.cues={cues}",
            "--data.cues_checkpoint=null",
            "--data.size=64",
            "--data.cue_stride=8",
        ),
        *("--data.train=9", "--data.val=4", "--data.image_size=96"),  # as the fixture `voc` writes it
        *("--data.batch_size=3", "--data.num_workers=2", f"--trainer.max_epochs={EPOCHS}", "--trainer.accelerator=cpu"),
        *("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
        "--trainer.enable_model_summary=false",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, str(dies_at), *arguments, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


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
