"""Progress of a training in a log file."""

import re
from types import SimpleNamespace

import pytest

from tests.training.fits import fit
from training.runs.progress import LogProgress

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
    report = LogProgress()
    trainer = SimpleNamespace(is_global_zero=False, estimated_stepping_batches=9, global_step=0, max_epochs=1)
    trainer.current_epoch = 0
    report.setup(trainer, None, "fit")
    report.on_train_start(trainer, None)
    report.on_train_end(trainer, None)
    assert capsys.readouterr().err == ""
