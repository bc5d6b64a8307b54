import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from datamodules.errors import InputError
from seeds.backbones import build_backbone
from seeds.classifier import AveragePrecision, Classifier, ClassifierTask
from tests.seeds.conftest import data_of


def test_scores_are_float32_under_autocast():
    model = Classifier(build_backbone("resnet18", 16), 3).eval()
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.features(image).dtype == torch.bfloat16
        assert model(image).dtype == torch.float32


def test_loss_is_the_mean_cross_entropy():
    task = ClassifierTask(["a", "b", "c"], backbone="resnet18")
    scores = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -30.0]])
    labels = np.array([[1, 0, 0], [1, 1, 0]])
    p = 1 / (1 + np.exp(-scores))
    expected = -np.where(labels, np.log(p), np.log1p(-p)).mean()
    got = task.loss(torch.tensor(scores, dtype=torch.float32), torch.tensor(labels))
    assert got.item() == pytest.approx(expected, rel=1e-6)


def test_the_validation_loss_is_the_mean_over_images(voc, tmp_path):
    """Not over batches: the last of four and two counts half as much as the first."""
    torch.manual_seed(0)
    task, data = ClassifierTask(["red", "blue"], backbone="resnet18"), data_of(voc, val_split="train")
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    found = trainer.validate(task, data, verbose=False)[0]["val/loss"]
    losses = []
    task.eval()
    with torch.no_grad():
        for batch in data.val_dataloader():
            pairs = zip(task(batch["image"]), batch["labels"], strict=True)
            losses += [task.loss(scores[None], labels[None]).item() for scores, labels in pairs]
    assert len(losses) == 6
    assert found == pytest.approx(np.mean(losses), rel=1e-5)


def test_one_class_is_enough(voc, tmp_path):
    """A defect or none: val/map is the average precision of the class."""
    torch.manual_seed(0)
    task, data = ClassifierTask(["red"], backbone="resnet18"), data_of(voc, val_split="train", classes=["red"])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
    found = trainer.validate(task, data, verbose=False)[0]
    assert 0 < found["val/ap/red"] == found["val/map"] <= 1


def test_the_average_precision_of_large_scores(monkeypatch):
    """In float32 the sigmoid of scores above 17 is 1, and their order would be lost."""
    task = ClassifierTask(["red"], backbone="resnet18")
    scores, logged = torch.tensor([[30.0], [25], [20], [-3]]), {}
    monkeypatch.setattr(ClassifierTask, "forward", lambda _self, _images: scores)
    monkeypatch.setattr(ClassifierTask, "stage", "val")
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    task.validation_step({"image": torch.zeros(4, 3, 8, 8), "labels": torch.tensor([[1.0], [1], [0], [0]])}, 0)
    task.on_validation_epoch_end()
    assert logged["val/ap/red"] == 1


def test_labels_of_other_classes():
    with pytest.raises(InputError, match=r"labels \(2, 4\) .* the 3 of the classifier"):
        ClassifierTask(["a", "b", "c"], backbone="resnet18").loss(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize("classes", [[], ["a", "a"]])
def test_classes_must_be_names(classes):
    with pytest.raises(InputError, match="classes"):
        ClassifierTask(classes)


def test_average_precision_by_hand():
    metric = AveragePrecision(3, average="none", validate_args=False)
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.2, 0.4], [0.7, 0.3, 0.3], [0.6, 0.4, 0.2]])
    labels = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]])
    metric.update(scores[:3], labels[:3])
    metric.update(scores[3:], labels[3:])
    # first: hits at ranks 1 and 3: (1 + 2/3) / 2; second: one hit at rank 4; third: no image
    assert metric.compute().tolist() == pytest.approx([5 / 6, 1 / 4, float("nan")], nan_ok=True)
    assert metric.compute().nanmean().item() == pytest.approx((5 / 6 + 1 / 4) / 2)


@pytest.mark.parametrize(("optimizer", "precision"), [("adamw", "bf16-mixed"), ("sgd", "32-true")])
def test_training_learns_logs_and_leaves_the_frozen_alone(voc, optimizer, precision):
    pl.seed_everything(0)
    task = ClassifierTask(
        ["red", "blue"], backbone="resnet18", optimizer=optimizer, lr=1e-3, freeze_stride=4, schedule="cosine"
    )
    frozen = {k: v.clone() for k, v in task.model.features.encoder.layer1.state_dict().items()}
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision=precision, num_sanity_val_steps=0, check_val_every_n_epoch=6,
    )  # fmt: skip
    data = data_of(voc, val_split="train")
    first = trainer.validate(task, data, verbose=False)[0]
    trainer.fit(task, data)
    logged = set(trainer.callback_metrics)
    last = trainer.validate(task, data, verbose=False)[0]
    assert set(last) == {"val/loss", "val/map", "val/ap/red", "val/ap/blue"}
    assert logged == {"train/loss", *last}
    assert last["val/loss"] < first["val/loss"]
    assert 0 <= last["val/map"] <= 1
    assert last["val/map"] == pytest.approx((last["val/ap/red"] + last["val/ap/blue"]) / 2)
    tested = trainer.test(task, data_of(voc, test_split="train"), verbose=False)[0]
    assert tested == {name.replace("val/", "test/"): pytest.approx(value) for name, value in last.items()}
    after = task.model.features.encoder.layer1.state_dict()
    assert all(torch.equal(after[key], value) for key, value in frozen.items())
