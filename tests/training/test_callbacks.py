"""A bad loss ends the run before it changes a weight; dropout is reproducible; the effective batch size is printed."""

import re
from types import SimpleNamespace

import pytest
import torch

from datamodules.errors import InputError
from datamodules.sample import multi_hot
from tests.training.conftest import TINY, data_of, trainer_of
from tests.training.fits import fit
from training.runs.callbacks import (
    BestCheckpoint,
    CheckpointIO,
    FoundTags,
    LogProgress,
    LossGuard,
    StepSeed,
    checkpoint_callbacks,
    epoch_of,
)
from training.segmentation_task import SegmentationTask


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    """The earlier file is intact, for any folder of temporary files that the system has."""
    path, full = tmp_path / "run/last.ckpt", OSError(28, "No space left on device")
    CheckpointIO().save_checkpoint({"epoch": 1}, path)
    before = path.read_bytes()
    monkeypatch.setattr("datamodules.files.os.fsync", lambda _: (_ for _ in ()).throw(full))
    with pytest.raises(InputError, match=r"^the checkpoint .*last\.ckpt cannot be written: No space left on device$"):
        CheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("size", [0, 300])
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, size):
    path = tmp_path / "last.ckpt"
    CheckpointIO().save_checkpoint({"epoch": 1, "state_dict": {"a": torch.zeros(1000)}}, path)
    assert CheckpointIO().load_checkpoint(path)["epoch"] == 1
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"^the checkpoint .*last\.ckpt is damaged \(.*\): remove it to train anew$"):
        CheckpointIO().load_checkpoint(path)


class Spoiling(SegmentationTask):
    """A task whose loss is bad in the third step of the second epoch."""

    def __init__(self, classes, value, **settings):
        super().__init__(classes, **settings)
        self.value = value

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.value if self.trainer.global_step == 5 else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(voc, cues, tmp_path, value):
    data = data_of(voc, targets="cues", cues=str(cues))
    task = Spoiling(list(data.classes), value, **TINY)
    trainer = trainer_of(tmp_path, max_steps=9, callbacks=[LossGuard()], num_sanity_val_steps=0, limit_val_batches=0)
    with pytest.raises(InputError) as stopped:
        trainer.fit(task, data)
    message = str(stopped.value)
    assert message.startswith(f"the loss of step 5 (epoch 1) is {value}; its images: ")
    known = {sample.id for sample in data.samples("train")}
    named = re.search(r"images: (.*?)\. The run", message).group(1).split(", ")
    assert len(named) == 3
    assert set(named) <= known
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())


def test_dropout_is_a_function_of_seed_epoch_batch_and_process(monkeypatch):
    def drawn(epoch, batch, rank, seed=0):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        StepSeed().on_train_batch_start(trainer, None, None, batch)
        return torch.rand(4).tolist()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0, 1)]
    first = [drawn(*place) for place in places]
    assert len({tuple(values) for values in first}) == len(places)
    assert [drawn(*place) for place in places] == first


# --- classes that are not found


class Finding(SegmentationTask):
    """Scores that name the first class everywhere, and the second one at a position of every image tagged with it."""

    def training_step(self, batch, batch_idx):
        self.tags = batch["labels"]
        return super().training_step(batch, batch_idx)

    def forward(self, images):
        scores = 0 * super().forward(images)
        first, second = torch.zeros_like(scores), torch.zeros_like(scores)
        first[:, 1], second[:, 2, 1, 1] = 1, 2
        return scores + first + second * self.tags[:, 1, None, None, None]


@pytest.mark.parametrize("end", [{"max_steps": -1, "max_epochs": 2}, {"max_steps": 6, "max_epochs": None}])
def test_classes_that_a_network_does_not_find_are_reported_once(voc, cues, tmp_path, capsys, end):
    data = data_of(voc, targets="cues", cues=str(cues))
    task = Finding(list(data.classes), **TINY)
    trainer = trainer_of(tmp_path, callbacks=[FoundTags()], num_sanity_val_steps=0, limit_val_batches=0, **end)
    trainer.fit(task, data)
    assert trainer.global_step == 6
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning: the network finds" in line]
    tags = multi_hot(data.samples("train"), data.classes).sum(axis=0).astype(int).tolist()
    others = ", ".join(f"{name} in 0 of {n} images" for name, n in list(zip(data.classes, tags, strict=True))[2:] if n)
    assert len(lines) == 1
    assert f"fewer than half of the tags of some classes: {others}. Later stages" in lines[0]
    assert not task._forward_hooks


def report_found_tags(task, *batches):
    """Let `FoundTags` see all batches of a training: what the network takes, and the labels."""
    steps = dict.fromkeys(("num_training_batches", "estimated_stepping_batches"), len(batches))
    trainer = SimpleNamespace(**steps, global_step=0, accumulate_grad_batches=1, is_global_zero=True)
    callback = FoundTags()
    callback.on_train_batch_start(trainer, task)
    for images, batch in batches:
        task(images)
        callback.on_train_batch_end(trainer, task, None, batch, 0)
    callback.on_train_end(trainer, task)


def test_a_network_that_never_finds_the_background_is_reported(capsys):
    """The first class has the highest score at every position: it is found wherever it is tagged."""
    task = Finding(["a", "b"], **TINY)
    labels = task.tags = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    cues = torch.zeros(4, 3, 8, 8, dtype=torch.bool)
    cues[:2, 0, 3, 3] = True
    mask = torch.full((4, 64, 64), 255)
    mask[2, 5, 5] = 0  # an image that is known to have no background is not among them
    batch = {"labels": labels, "id": [*"abcd"], "cues": cues, "mask": mask}
    report_found_tags(task, (torch.zeros(4, 3, 64, 64), batch))
    where = "in the network's predictions of its training images"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {where} there is background in 0 of 3 images. Later stages")


def test_a_classifier_that_finds_a_class_everywhere_is_reported(capsys):
    task = torch.nn.Identity()
    task.hparams = {"classes": ["a", "b", "c"]}
    scores = torch.tensor([[3.0, 2.0, 1.0]] * 6 + [[3.0, -2.0, 1.0]] * 8)
    labels = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], *[[0.0, 0.0, 1.0]] * 11, [0.0, 0.0, 0.0]])
    report_found_tags(task, (scores, {"labels": labels}))
    what = "some classes in most images without that tag: a in 12 of 12 images. Later stages"
    (line,) = capsys.readouterr().err.splitlines()
    assert what in line


@pytest.mark.parametrize(
    ("scores", "found"), [([3.0, -3.0], "b in 0 of 2 images"), ([-3.0, 3.0], "a in 0 of 4 images")]
)
def test_classes_that_a_classifier_does_not_find(capsys, scores, found):
    task = torch.nn.Identity()
    task.hparams = {"classes": ["a", "b"]}
    batch = torch.tensor([scores, scores]), {"labels": torch.tensor([[1.0, 1.0], [1.0, 0.0]])}
    report_found_tags(task, batch, batch)
    assert f"some classes: {found}" in capsys.readouterr().err


# --- progress in a log file

LOUD = "--trainer.enable_progress_bar=true"
STEP = r"epoch (\d)/2, step (\d)/3, loss \d+(\.\d+)?"


@pytest.fixture(autouse=True)
def interval(monkeypatch):
    monkeypatch.setattr("datamodules.progress.INTERVAL", 0.01)


def test_a_training_reports_epoch_step_loss_speed_and_time_left(voc, cues, tmp_path, capsys):
    assert fit(voc, cues, tmp_path / "run", LOUD, "--trainer.max_epochs=2") == 0
    lines = capsys.readouterr().err.splitlines()
    training = [line for line in lines if line.startswith("training: ")]
    assert training[0] == "training: 0/6 steps, epoch 1/2"
    assert re.fullmatch(r"training: 6/6 steps in \d:\d\d:\d\d, \d+(\.\d+)? steps/s", training[-1])
    pattern = rf"training: (\d)/6 steps, \d+(\.\d+)? steps/s, \d:\d\d:\d\d left, {STEP}"
    found = [match for line in training if (match := re.fullmatch(pattern, line))]
    assert {match[3] for match in found} == {"1", "2"}
    assert all(int(match[1]) == 3 * int(match[3]) - 3 + int(match[4]) for match in found)
    assert any(re.search(r"epoch 1/2, validation batch \d/2$", line) for line in training)
    size = "training on 9 images, effective batch size 3: 6 updates of the weights"
    assert lines.index(size) < lines.index(training[0])
    task = SegmentationTask.load_from_checkpoint(tmp_path / "run/last.ckpt", weights="none")
    sizes = {each: parameter.numel() for each, parameter in task.named_parameters()}
    trained = sum(sizes[each] for each, parameter in task.named_parameters() if parameter.requires_grad)
    assert 0 < trained < sum(sizes.values())
    assert f"the network has {sum(sizes.values()):,} parameters, and {trained:,} of them are trained" in lines


def test_the_reported_loss_is_that_of_a_batch_also_where_gradients_are_accumulated(voc, cues, tmp_path, capsys):
    """Lightning divides the loss by the number of batches of a step."""
    losses = []
    for accumulate in (1, 3):
        words = (LOUD, f"--trainer.accumulate_grad_batches={accumulate}")
        assert fit(voc, cues, tmp_path / str(accumulate), *words) == 0
        losses.append(re.search(r"step 1/3, loss (\S+)", capsys.readouterr().err)[1])
    assert losses[0] == losses[1]


def test_a_resumed_training_reports_all_of_it(voc, cues, tmp_path, capsys):
    assert fit(voc, cues, tmp_path / "run") == 0
    assert capsys.readouterr().err.count("training: ") == 0  # enable_progress_bar=false
    assert fit(voc, cues, tmp_path / "run", LOUD, "--trainer.max_epochs=2", "--ckpt_path=last") == 0
    training = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training: ")]
    assert training[0] == "training: 3/6 steps, epoch 2/2"
    assert re.fullmatch(r"training: 6/6 steps in \d:\d\d:\d\d, \d+(\.\d+)? steps/s", training[-1])


@pytest.mark.parametrize(("command", "name"), [("validate", "validating"), ("test", "testing")])
def test_a_validation_reports_its_batches(voc, cues, tmp_path, capsys, command, name):
    assert fit(voc, cues, tmp_path / "run") == 0
    words = (f"--ckpt_path={tmp_path / 'run/last.ckpt'}", "--model.weights=gone.pth")  # it has all weights
    capsys.readouterr()
    assert fit(voc, cues, tmp_path / "run", LOUD, *words, command=command) == 0
    printed = capsys.readouterr().err.splitlines()
    assert not any("dirpath" in line for line in printed)  # of Lightning's own checkpoints
    lines = [line for line in printed if line.startswith(name)]
    assert lines[0] == f"{name}: 0/2 batches"
    assert re.match(rf"{name}: 2/2 batches in \d:\d\d:\d\d, ", lines[-1])


def test_a_validation_without_images(voc, cues, tmp_path, capsys):
    """A training without a validation split has this YAML."""
    assert fit(voc, cues, tmp_path / "run", "--data.val_split=null") == 0
    assert "across ranks is zero" not in capsys.readouterr().err
    words = (f"--ckpt_path={tmp_path / 'run/last.ckpt'}", "--data.val_split=null")
    assert fit(voc, cues, tmp_path / "run", *words, command="validate") == 1
    assert "val_split is null: give the split to validate on" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_an_untrained_network_is_not_scored(voc, cues, tmp_path, capsys, command):
    assert fit(voc, cues, tmp_path / "run", command=command) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"tag2mask: --ckpt_path is missing: the checkpoint to {command}"


@pytest.mark.parametrize("command", ["validate", "test"])
def test_last_and_best_are_checkpoints_of_the_run(voc, cues, tmp_path, capsys, command):
    """Lightning alone would score an untrained network for ``last``, and knows no ``best`` of another process."""
    assert fit(voc, cues, tmp_path / "run", "--trainer.max_epochs=2") == 0
    for name in ("last", "best"):
        tables = []
        for given in (name, tmp_path / f"run/{name}.ckpt"):
            capsys.readouterr()
            assert fit(voc, cues, tmp_path / "run", f"--ckpt_path={given}", command=command) == 0
            tables.append(capsys.readouterr().out)
        assert "miou" in tables[0]
        assert tables[0] == tables[1]
    (tmp_path / "run/best.ckpt").unlink()
    capsys.readouterr()
    assert fit(voc, cues, tmp_path / "run", "--ckpt_path=best", command=command) == 1
    assert "best.ckpt" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_anew(voc, cues, tmp_path):
    assert fit(voc, cues, tmp_path / "run", "--ckpt_path=last") == 0
    assert (tmp_path / "run/last.ckpt").is_file()


def test_an_error_ends_the_report(voc, cues, tmp_path, capsys):
    words = ["--model.lr=1e30", "--trainer.max_epochs=9"]
    assert fit(voc, cues, tmp_path / "run", LOUD, *words) == 1
    *_, last, complaint = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"training: \d+/27 steps done, stopped after \d:\d\d:\d\d(, \d+(\.\d+)? steps/s)?", last)
    assert complaint.startswith("tag2mask: ")


def test_other_processes_report_nothing(capsys, monkeypatch):
    monkeypatch.setattr("datamodules.progress.rank_zero_only.rank", 1)
    report = LogProgress()
    trainer = SimpleNamespace(estimated_stepping_batches=9, global_step=0, max_epochs=1)
    trainer.current_epoch = 0
    report.setup(trainer, None, "fit")
    report.on_train_start(trainer, None)
    report.on_train_end(trainer, None)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("figures", [{}, {"val/miou": torch.tensor(float("nan"))}])
def test_an_epoch_without_a_figure_is_not_the_best(tmp_path, figures):
    """For example where no image of the validation has a mask."""
    best = next(each for each in checkpoint_callbacks(tmp_path, "segmentation") if isinstance(each, BestCheckpoint))
    best.on_validation_end(SimpleNamespace(callback_metrics=figures), None)
    assert (best.best_model_path, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize(("epochs", "shown"), [(8, "epoch 3/8"), (-1, "epoch 3"), (None, "epoch 3")])
def test_the_number_of_epochs_is_shown_if_there_is_one(epochs, shown):
    """A training may end by its number of steps alone."""
    assert epoch_of(SimpleNamespace(current_epoch=2, max_epochs=epochs)) == shown


def test_a_training_that_keeps_no_checkpoint(voc, cues, tmp_path):
    """Because nobody wants one, or because one batch is tried."""
    assert fit(voc, cues, tmp_path / "run", "--trainer.enable_checkpointing=false") == 0
    assert (tmp_path / "run/metrics.csv").is_file()
    assert fit(voc, cues, tmp_path / "trial", "--trainer.fast_dev_run=true") == 0
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not (tmp_path / "trial/provenance.json").exists()
