"""`metrics.csv` during a run, after a kill and after resuming."""

import csv
import signal

import pytest

from tests.training.fits import fit_in_a_process
from training.runs.loggers import ResumableCSVLogger


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_when_a_training_is_killed(voc, cues, tmp_path):
    """Killed in its second epoch: the rows of all steps before are on disk, and still are after a second kill."""

    def train(dies_at, *more):
        words, log = ("--trainer.max_epochs=3", "--trainer.enable_progress_bar=true", *more), tmp_path / "log"
        assert fit_in_a_process(voc, cues, tmp_path / "run", log, *words, dies_at=dies_at) == -signal.SIGKILL
        return log.read_text()

    assert "training: 0/9 steps, epoch 1/3\n" in train(5)
    steps = [int(row["step"]) for row in rows(tmp_path / "run") if row["train/loss"]]
    assert steps == [0, 1, 2, 3, 4]
    train(3, "--ckpt_path=last")  # in its first step: the run resumes from step 3
    assert [int(row["step"]) for row in rows(tmp_path / "run") if row["train/loss"]] == [0, 1, 2]
    assert rows(tmp_path / "run")[-1]["step"] == "3"  # of the learning rate


def test_a_row_is_appended(tmp_path, monkeypatch):
    """The file is rewritten only for a new column, and when a run resumes."""
    log = ResumableCSVLogger(tmp_path)
    log.log_metrics({"a": 1.0}, 0)
    first = (tmp_path / "metrics.csv").read_text()
    rewritten = []
    monkeypatch.setattr(type(log.experiment), "_rewrite_with_new_header", lambda *given: rewritten.append(given))
    for step in range(1, 50):
        log.log_metrics({"a": 1.0}, step)
        assert (tmp_path / "metrics.csv").read_text().startswith(first)
        assert len(rows(tmp_path)) == step + 1
    assert not rewritten


def test_a_resumed_log_keeps_its_rows(tmp_path):
    log = ResumableCSVLogger(tmp_path)
    for step in range(5):
        log.log_metrics({"a": float(step)}, step)
    before = (tmp_path / "metrics.csv").read_text()
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_hyperparams({"lr": 0.1})  # as a trainer does long before its first row
    assert (tmp_path / "metrics.csv").read_text() == before
    resumed.log_metrics({"a": 7.0, "b": 1.0}, 3)
    assert [(row["step"], row["a"], row["b"]) for row in rows(tmp_path)] == [
        ("0", "0.0", ""), ("1", "1.0", ""), ("2", "2.0", ""), ("3", "7.0", "1.0"),
    ]  # fmt: skip
    resumed.log_metrics({"a": 8.0}, 4)
    assert [row["a"] for row in rows(tmp_path)] == ["0.0", "1.0", "2.0", "7.0", "8.0"]


@pytest.mark.parametrize("torn", ["1.5,", "1.5,2", "1", "\ufffd"])
def test_a_row_that_was_cut_short_is_left_out(tmp_path, torn):
    """A kill while the row is written; without its step, or without its last column."""
    log = ResumableCSVLogger(tmp_path)
    for step in range(2):
        log.log_metrics({"a": float(step)}, step)
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes() + torn.encode())
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_metrics({"a": 7.0}, 2)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
    assert [row["a"] for row in rows(tmp_path)] == ["0.0", "1.0", "7.0"]


def test_a_file_whose_header_was_cut_short(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,st")
    log = ResumableCSVLogger(tmp_path)
    log.log_metrics({"a": 7.0}, 0)
    assert rows(tmp_path) == [{"a": "7.0", "step": "0"}]


def test_earlier_rows_are_on_disk_at_each_moment(tmp_path, monkeypatch):
    """The file is replaced as a whole: a kill while it is rewritten leaves the earlier one."""
    log = ResumableCSVLogger(tmp_path)
    log.log_metrics({"a": 1.0}, 0)
    before = (tmp_path / "metrics.csv").read_bytes()
    resumed = ResumableCSVLogger(tmp_path)
    resumed.log_hyperparams({"lr": 0.1})
    monkeypatch.setattr("datamodules.files.os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        resumed.log_metrics({"a": 7.0}, 0)
    assert (tmp_path / "metrics.csv").read_bytes() == before
