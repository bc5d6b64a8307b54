"""Signs of life of a training without a terminal: its log, and `metrics.csv` while it is going on."""

import csv
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.training.fits import CONFIGS, fit
from training.runs.csv_logger import RunLog
from training.runs.progress import TrainingProgress

LOUD = "--trainer.enable_progress_bar=true"
STEP = r"epoch (\d)/2, step (\d)/3, loss \d+(\.\d+)?, \d+\.\d images/s"


@pytest.fixture(autouse=True)
def interval(monkeypatch):
    monkeypatch.setattr("datamodules.progress.INTERVAL", 0.01)


def test_a_training_reports_epoch_step_loss_speed_and_time_left(voc, cues, tmp_path, capsys):
    assert fit(voc, cues, tmp_path / "run", LOUD, "--trainer.max_epochs=2") == 0
    lines = capsys.readouterr().err.splitlines()
    training = [line for line in lines if line.startswith("training: ")]
    assert training[0] == "training: 0/6 steps, epoch 1/2"
    assert re.fullmatch(r"training: 6/6 steps in \d+ s, \d+(\.\d+)? steps/s", training[-1])
    pattern = rf"training: (\d)/6 steps, \d+(\.\d+)? steps/s, about \d+ s left, {STEP}"
    found = [match for line in training if (match := re.fullmatch(pattern, line))]
    assert {match[3] for match in found} == {"1", "2"}
    assert all(int(match[1]) == 3 * int(match[3]) - 3 + int(match[4]) for match in found)
    assert any(re.search(r"epoch 1/2, validation batch \d/2$", line) for line in training)
    trials = [line for line in lines if line.startswith("trying the validation: ")]
    assert trials[0] == "trying the validation: 0/2 batches"
    assert lines.index(trials[-1]) < lines.index(training[0])
    size = "training on 9 images, effective batch size 3: 6 updates of the weights"
    assert lines.index(size) < lines.index(training[0])


def test_a_resumed_training_reports_all_of_it(voc, cues, tmp_path, capsys):
    assert fit(voc, cues, tmp_path / "run") == 0
    assert capsys.readouterr().err.count("training: ") == 0  # enable_progress_bar=false
    assert fit(voc, cues, tmp_path / "run", LOUD, "--trainer.max_epochs=2", "--ckpt_path=last") == 0
    training = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    assert training[0] == "training: 3/6 steps, epoch 2/2"
    assert re.fullmatch(r"training: 6/6 steps in \d+ s, \d+(\.\d+)? steps/s", training[-1])


@pytest.mark.parametrize(("command", "name"), [("validate", "validating"), ("test", "testing")])
def test_a_validation_reports_its_batches(voc, cues, tmp_path, capsys, command, name):
    assert fit(voc, cues, tmp_path / "run", LOUD, command=command) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(name)]
    assert lines[0] == f"{name}: 0/2 batches"
    assert re.match(rf"{name}: 2/2 batches in \d+ s, ", lines[-1])


def test_an_error_ends_the_report(voc, cues, tmp_path, capsys):
    words = ["--model.lr=1e30", "--trainer.max_epochs=9"]
    assert fit(voc, cues, tmp_path / "run", LOUD, *words) == 1
    *_, last, complaint = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training: \d+/27 steps done, stopped after \d+ s(, \d+(\.\d+)? steps/s)?", last)
    assert complaint.startswith("tag2mask: ")


def test_other_processes_report_nothing(capsys):
    report = TrainingProgress()
    trainer = SimpleNamespace(is_global_zero=False, estimated_stepping_batches=9, global_step=0, max_epochs=1)
    trainer.current_epoch = 0
    report.setup(trainer, None, "fit")
    report.on_train_start(trainer, None)
    report.on_train_end(trainer, None)
    assert capsys.readouterr().err == ""


# --- metrics.csv

DYING = """
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


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_when_a_training_is_killed(voc, cues, tmp_path):
    """In the middle of its second epoch: the rows of all steps before are there; and still are when it dies again."""
    words = [
        *("fit", f"--config={CONFIGS / 'demo_sec.yaml'}", f"--output={tmp_path / 'run'}", "--model.weights=none"),
        *(f"--data.root={voc}", f"--data.cues={cues}", "--data.cues_made_by=null", "--data.size=64"),
        *("--data.batch_size=3", "--data.num_workers=0", "--trainer.max_epochs=3", "--trainer.accelerator=cpu"),
        *("--trainer.log_every_n_steps=1", "--trainer.enable_model_summary=false"),
    ]

    def train(dies_at, *more):
        command = [sys.executable, "-c", DYING, str(dies_at), *words, *more]
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        return done.stderr

    assert "training: 0/9 steps, epoch 1/3\n" in train(5)
    steps = [int(row["step"]) for row in rows(tmp_path / "run") if row["train/loss"]]
    assert steps == [0, 1, 2, 3, 4]
    train(3, "--ckpt_path=last")  # in its first step: the run resumes from step 3
    assert [int(row["step"]) for row in rows(tmp_path / "run") if row["train/loss"]] == [0, 1, 2]
    assert rows(tmp_path / "run")[-1]["step"] == "3"  # of the learning rate


def test_a_row_is_appended(tmp_path, monkeypatch):
    """The file is written anew only for a new column, and when a run resumes."""
    log = RunLog(tmp_path)
    log.log_metrics({"a": 1.0}, 0)
    first = (tmp_path / "metrics.csv").read_text()
    anew = []
    monkeypatch.setattr(type(log.experiment), "_rewrite_with_new_header", lambda *given: anew.append(given))
    for step in range(1, 50):
        log.log_metrics({"a": 1.0}, step)
        assert (tmp_path / "metrics.csv").read_text().startswith(first)
        assert len(rows(tmp_path)) == step + 1
    assert not anew


def test_a_resumed_log_keeps_its_rows(tmp_path):
    log = RunLog(tmp_path)
    for step in range(5):
        log.log_metrics({"a": float(step)}, step)
    before = (tmp_path / "metrics.csv").read_text()
    resumed = RunLog(tmp_path)
    resumed.log_hyperparams({"lr": 0.1})  # as a trainer does long before its first row
    assert (tmp_path / "metrics.csv").read_text() == before
    resumed.log_metrics({"a": 7.0, "b": 1.0}, 3)
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("0", "0.0", ""), ("1", "1.0", ""), ("2", "2.0", ""), ("3", "7.0", "1.0"),
    ]  # fmt: skip
    resumed.log_metrics({"a": 8.0}, 4)
    assert [row["a"] for row in rows(tmp_path)] == ["0.0", "1.0", "2.0", "7.0", "8.0"]
