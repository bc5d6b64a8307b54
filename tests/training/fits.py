"""Training by the command line, tiny."""

import json
import os
import signal
import sys
from pathlib import Path

import torch

from tests.processes import child, exit_status
from training.cli import main
from training.segmentation_task import SegmentationTask

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def run(*words) -> int:
    """Run a command in this process; the exit status."""
    return main([str(word) for word in words])


def fit(voc, cues, folder, *words, command="fit"):
    """Train SEC on nine images of 64 pixels, an epoch of three steps, in this process; the exit status."""
    return main([*fit_arguments(voc, cues, folder, command), *words])


def fit_in_a_process(voc, cues, folder, log, *words, dies_at=-1):
    """Train as `fit` does in its own process, on one thread; it kills itself before the step ``dies_at``.

    What it prints goes to the file ``log``.

    Returns:
        Its exit status, as of `tests.processes.exit_status`.
    """

    def train():
        step = SegmentationTask.training_step

        def dying(task, batch, index):
            if task.trainer.global_step == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(task, batch, index)

        SegmentationTask.training_step = dying
        torch.set_num_threads(1)
        sys.exit(fit(voc, cues, folder, *words))

    return exit_status(child(train, log))


def fit_arguments(voc, cues, folder, command="fit"):
    """Return the command line of `fit`."""
    return [
        *(command, f"--config={CONFIGS / 'sec_demo.yaml'}", f"--output={folder}", "--model.weights=none"),
        *(f"--data.root={voc}", f"--data.cues={cues}", "--data.cues_checkpoint=null", "--data.size=64"),
        *("--data.train=9", "--data.val=4", "--data.image_size=96"),  # as the fixture `voc` writes it
        *("--data.cue_stride=8", "--data.batch_size=3", "--data.num_workers=0", "--trainer.max_epochs=1"),
        *("--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
        "--trainer.enable_model_summary=false",
    ]


def read_record(folder):
    """Return the record in a run's folder."""
    return json.loads((folder / "provenance.json").read_text())
