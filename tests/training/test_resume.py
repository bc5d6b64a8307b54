"""A run that is killed and resumed ends with the same bits as an uninterrupted one."""

import csv
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from pytorch_lightning.strategies import SingleDeviceStrategy

from datamodules.synthetic_scenes import CLASSES
from tests.training.fits import fit, fit_in_a_process
from training.runs.callbacks import BestCheckpoint, checkpoint_callbacks

BATCHES = 3  # an epoch: nine images, three a batch
EPOCHS = 3


def train(voc, cues, folder, *words, dies_at=-1):
    """Train three epochs of SEC in its own process, on one thread; dropout and augmentation are on."""
    more = ("--data.num_workers=2", f"--trainer.max_epochs={EPOCHS}")
    return fit_in_a_process(voc, cues, folder, folder.with_suffix(".log"), *more, *words, dies_at=dies_at)


@pytest.fixture(scope="module")
def uninterrupted(voc, cues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(voc, cues, folder) == 0
    return folder


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("option", ["lr=0.5", "weight_decay=0.3", "optimizer=sgd"])
def test_options_that_the_checkpoint_would_override_are_refused(voc, cues, uninterrupted, tmp_path, capsys, option):
    shutil.copytree(uninterrupted, tmp_path / "run")
    name, _, value = option.partition("=")
    assert fit(voc, cues, tmp_path / "run", "--ckpt_path=last", f"--model.{option}") == 1
    error = capsys.readouterr().err
    assert f"a resumed training keeps the {name} of its checkpoint, " in error
    assert f", not {value}: give it, or begin anew" in error


def test_an_epoch_of_a_schedule_keeps_its_updates(voc, cues, tmp_path, capsys):
    """With twice the batch the rate would be 0 from the second half on; more epochs are allowed."""

    def train(folder, *words):
        return fit(voc, cues, tmp_path / folder, *words)

    assert train("poly", "--trainer.max_epochs=2") == 0
    more = ("--ckpt_path=last", "--trainer.max_epochs=3")
    assert train("poly", *more, "--data.batch_size=9") == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    kept = "an epoch of the checkpoint has 3 updates, not 1, and the poly schedule counts them"
    advice = "resume with its images, and its product of devices, batch_size and accumulate_grad_batches"
    assert line == f"tag2mask: {kept}: {advice}"
    assert train("poly", *more) == 0
    assert torch.load(tmp_path / "poly/last.ckpt", weights_only=True)["global_step"] == 9
    assert train("constant", "--model.schedule=constant") == 0
    assert train("constant", *more, "--model.schedule=constant", "--data.batch_size=9") == 0


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_classes_in_another_order(voc, cues, uninterrupted, tmp_path, capsys, command):
    """Its head would give the scores of one class to another."""
    names = list(CLASSES)
    words = (
        f"--data.classes=[{','.join(names[::-1])}]",
        "--data.cues=null",
        "--data.targets=masks",
        f"--ckpt_path={uninterrupted / 'last.ckpt'}",
    )
    assert fit(voc, cues, tmp_path / "run", *words, command=command) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.endswith(f"last.ckpt is of the classes {', '.join(names)}, not {', '.join(names[::-1])}")


def test_one_process_trains_into_a_folder(voc, cues, tmp_path, capsys):
    """The figures of two would be mixed in one table; after a training, or its failure, the folder is free."""
    with FileLock(tmp_path / ".lock"):
        assert fit(voc, cues, tmp_path) == 1
    message = f"another process trains into {tmp_path}: wait for it, or choose another --output"
    assert capsys.readouterr().err.strip().splitlines()[-1] == f"tag2mask: {message}"
    assert fit(voc, cues, tmp_path, "--trainer.val_check_interval=1000") == 1
    assert "val_check_interval" in capsys.readouterr().err.strip().splitlines()[-1]
    assert fit(voc, cues, tmp_path) == 0
    with FileLock(tmp_path / ".lock", blocking=False):
        pass


def test_the_best_checkpoint_stays_the_best_where_the_folder_was_moved(tmp_path):
    def callback(folder):
        (best,) = [each for each in checkpoint_callbacks(folder, "segmentation") if isinstance(each, BestCheckpoint)]
        return best

    before, path = callback(tmp_path / "a"), str(tmp_path / "a/best.ckpt")
    before.best_model_path = before.kth_best_model_path = path
    before.best_model_score = before.kth_value = torch.tensor(0.7)
    before.best_k_models = {path: before.best_model_score}
    (tmp_path / "a").mkdir()
    (tmp_path / "a/best.ckpt").touch()
    (tmp_path / "a").rename(tmp_path / "b")
    after = callback(tmp_path / "b")
    after.load_state_dict(before.state_dict())
    assert (after.best_model_score, after.best_model_path) == (0.7, str(tmp_path / "b/best.ckpt"))
    assert not after.check_monitor_top_k(SimpleNamespace(strategy=SingleDeviceStrategy()), torch.tensor(0.6))
    (tmp_path / "b/best.ckpt").unlink()  # nothing to keep
    alone = callback(tmp_path / "b")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        alone.load_state_dict(before.state_dict())
    assert alone.best_model_score is None


def test_what_does_not_change_a_resumed_training_may_differ(voc, cues, uninterrupted, tmp_path):
    """AdamW has no momentum, and the last checkpoint may be named by its path."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    path = tmp_path / "run/last.ckpt"
    words = (f"--ckpt_path={path}", f"--trainer.max_epochs={EPOCHS}", "--model.momentum=0.5")
    assert fit(voc, cues, tmp_path / "run", *words) == 0
    assert torch.load(path, weights_only=True)["global_step"] == EPOCHS * BATCHES


@pytest.mark.parametrize("dies_at", [BATCHES, 2 * BATCHES + 1], ids=["after an epoch", "within an epoch"])
def test_killed_and_resumed(voc, cues, uninterrupted, tmp_path, dies_at):
    folder = tmp_path / "run"
    assert train(voc, cues, folder, dies_at=dies_at) == -signal.SIGKILL
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == dies_at // BATCHES * BATCHES
    assert train(voc, cues, folder, "--ckpt_path=last") == 0
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
