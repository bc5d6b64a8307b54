"""The segmentation task: its losses on a batch, training, scoring, checkpoints."""

import json
import shutil

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F  # noqa: N812

from datamodules.errors import InputError
from datamodules.images import normalize, to_uint8
from datamodules.masks import read_mask, write_mask
from seeds.checkpoints import load_task, read_checkpoint
from seeds.crf import dense_crf
from seeds.score_maps import label_map, resize_images, resize_maps
from tests.training.conftest import TINY, data_of, trainer_of
from training import segmentation_task as task_module
from training.losses import (
    balanced_cross_entropy,
    box_loss,
    constrain_loss,
    expand_loss,
    lovasz_loss,
    sec_probabilities,
    seed_loss,
)
from training.segmentation_task import SegmentationTask

CLASSES = ["a", "b", "c"]


def batch_of(grid=8, images=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 64, 64), generator=generator).to(torch.uint8)
    cues = torch.zeros(images, 4, grid, grid, dtype=torch.bool)
    cues[:, 0, :2] = cues[:, 1, 4:6] = True
    labels = torch.zeros(images, 3)
    labels[:, 0] = 1
    return {"image": normalize(pixels), "labels": labels, "cues": cues, "id": ["x"] * images}


def test_the_loss_is_seed_plus_expand_plus_constrain():
    torch.manual_seed(0)
    task = SegmentationTask(CLASSES, **TINY).eval()  # eval: no dropout, so that twice gives the same
    batch = batch_of()
    losses = task.losses(batch)
    with torch.no_grad():
        logits = F.interpolate(task.network(batch["image"]), (8, 8), mode="bilinear", align_corners=False)
    probs = sec_probabilities(logits)
    smoothed = dense_crf(resize_images(to_uint8(batch["image"]), (8, 8)), logits, iterations=10, scale=12.0)
    assert losses["seed"].item() == pytest.approx(seed_loss(probs, batch["cues"]).item(), rel=1e-5)
    assert losses["expand"].item() == pytest.approx(expand_loss(probs, batch["labels"]).item(), rel=1e-5)
    assert losses["constrain"].item() == pytest.approx(constrain_loss(probs, smoothed).item(), rel=1e-4)


def test_the_crf_sees_logits_and_the_images_own_colours(monkeypatch):
    """Not probabilities, not a mean-subtracted image cast to uint8 (which wraps), and no gradient."""
    seen = {}

    def spy(image, logits, **settings):
        seen.update(image=image, logits=logits, settings=settings)
        return logits.softmax(1)

    monkeypatch.setattr(task_module, "dense_crf", spy)
    task = SegmentationTask(CLASSES, **TINY, crf={"bilateral_weight": 7.0}).eval()
    batch = batch_of()
    flat = torch.tensor([250, 128, 3], dtype=torch.uint8)[None, :, None, None].expand(2, 3, 64, 64)
    batch["image"] = normalize(flat)
    task.losses(batch)
    assert seen["image"].dtype == torch.uint8
    assert seen["image"].shape == (2, 3, 8, 8)
    assert seen["image"][0, :, 3, 3].tolist() == [250, 128, 3]
    expected = resize_maps(task(batch["image"]).detach(), (8, 8))
    torch.testing.assert_close(seen["logits"], expected)
    assert not seen["logits"].requires_grad
    assert seen["settings"] == {"iterations": 10, "scale": 12.0, "bilateral_weight": 7.0}


@pytest.mark.parametrize("grid", [5, 8, 16, 41])
def test_any_grid_of_cues(grid):
    task = SegmentationTask(CLASSES, **TINY)
    losses = task.losses(batch_of(grid))
    assert set(losses) == {"seed", "expand", "constrain"}
    assert all(torch.isfinite(value) for value in losses.values())


def test_a_loss_of_weight_zero_is_not_computed(monkeypatch):
    monkeypatch.setattr(task_module, "dense_crf", None)
    task = SegmentationTask(CLASSES, **TINY, constrain_weight=0.0, expand_weight=0.0)
    assert set(task.losses(batch_of())) == {"seed"}
    with pytest.raises(InputError, match="all 0: loss 'sec' needs one"):
        SegmentationTask(CLASSES, **TINY, seed_weight=0, expand_weight=0, constrain_weight=0).losses(batch_of())


def test_weights_of_the_losses(monkeypatch):
    task = SegmentationTask(CLASSES, **TINY, seed_weight=2.0, expand_weight=3.0, constrain_weight=5.0)
    parts = {"seed": torch.tensor(1.0), "expand": torch.tensor(10.0), "constrain": torch.tensor(100.0)}
    parts["mask"] = torch.tensor(1000.0)  # has no weight
    monkeypatch.setattr(task, "losses", lambda _batch: parts)
    logged = {}
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: value}))
    assert task.training_step(batch_of(), 0).item() == 2 + 30 + 500 + 1000
    assert {name: value.item() for name, value in logged.items()} == {
        "train/seed": 1.0,
        "train/expand": 10.0,
        "train/constrain": 100.0,
        "train/mask": 1000.0,
        "train/loss": 1532.0,
    }


def test_cross_entropy_ignores_255():
    task = SegmentationTask(CLASSES, **TINY, loss="cross_entropy").eval()
    image = batch_of()["image"]
    mask = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    mask[:, :, 40:] = 255
    with torch.no_grad():
        log_probs = resize_maps(task(image), (64, 64)).log_softmax(1)
    picked = log_probs.gather(1, mask.clamp_max(3)[:, None])[:, 0]
    expected = -picked[mask != 255].mean()
    assert task.losses({"image": image, "mask": mask})["cross_entropy"].item() == pytest.approx(
        expected.item(), rel=1e-5
    )
    assert task.losses({"image": image, "mask": torch.full_like(mask, 255)})["cross_entropy"].item() == 0


def gradients_of(task, batch):
    losses = task.losses(batch)
    task.zero_grad()
    sum(task.loss_weights.get(name, 1.0) * value for name, value in losses.items()).backward()
    return losses, {name: each.grad.clone() for name, each in task.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("loss", ["sec", "cross_entropy"])
def test_images_drawn_as_a_whole_train_exactly_as_with_their_masks(loss):
    torch.manual_seed(0)
    task = SegmentationTask(CLASSES, **TINY, loss=loss, lovasz_weight=1).eval()  # eval: no dropout
    supervised = SegmentationTask(CLASSES, **TINY, loss="cross_entropy", lovasz_weight=1).eval()
    supervised.load_state_dict(task.state_dict())
    batch = batch_of()
    mask = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    drawn, own = gradients_of(task, {**batch, "mask": mask, "boxes": [torch.zeros(0, 5)] * 2})
    wanted, gradients = gradients_of(supervised, {"image": batch["image"], "mask": mask})
    assert drawn["mask"].item() == pytest.approx(wanted["cross_entropy"].item(), rel=1e-6)
    assert drawn["lovasz"].item() == pytest.approx(wanted["lovasz"].item(), rel=1e-6)
    assert all(value == 0 for name, value in drawn.items() if name not in ("mask", "lovasz"))
    assert own.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-6)


def test_boxes_beside_partial_masks():
    """Without cues the loss of boxes counts, too: here on the network's own grid."""
    torch.manual_seed(0)
    task, batch = SegmentationTask(CLASSES, **TINY, loss="cross_entropy").eval(), batch_of()
    mask, boxes = torch.full((2, 64, 64), 255), [torch.tensor([[2, 0.1, 0.2, 0.6, 0.7]]), torch.zeros(0, 5)]
    mask[0, :8] = 0
    losses = task.losses({"image": batch["image"], "mask": mask, "boxes": boxes})
    assert losses.keys() == {"cross_entropy", "box"}
    expected = box_loss(sec_probabilities(task(batch["image"])), boxes)
    assert losses["box"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses["box"] > 0.1
    task = SegmentationTask(CLASSES, **TINY, loss="cross_entropy", box_weight=0).eval()
    assert task.losses({"image": batch["image"], "mask": mask, "boxes": boxes}).keys() == {"cross_entropy"}


@pytest.mark.parametrize("loss", ["sec", "cross_entropy"])
def test_images_without_annotation_train_exactly_as_with_their_cues(loss):
    torch.manual_seed(0)
    task, batch = SegmentationTask(CLASSES, **TINY, loss=loss, lovasz_weight=1).eval(), batch_of()
    plain = task.losses(batch)
    assert plain["lovasz"] > 0
    nothing = {"mask": torch.full((2, 64, 64), 255), "boxes": [torch.zeros(0, 5)] * 2}
    annotated = task.losses(batch | nothing)
    assert annotated["mask"] == annotated["box"] == 0
    for name, value in plain.items():
        torch.testing.assert_close(annotated[name], value)


def test_the_lovasz_loss_is_that_of_drawn_pixels_and_of_cues_elsewhere():
    torch.manual_seed(0)
    task, batch = SegmentationTask(CLASSES, **TINY, loss="cross_entropy", lovasz_weight=1).eval(), batch_of()
    mask = torch.full((2, 64, 64), 255)
    mask[0] = torch.randint(0, 4, (64, 64))
    mask[1, :16] = 2
    cues = torch.zeros(2, 4, 8, 8, dtype=torch.bool)
    cues[:, 3, 4:] = True
    cues[:, 0, :3] = True  # none in the row between
    merged = torch.full((2, 64, 64), 255)
    merged[:, 32:], merged[:, :24] = 3, 0
    merged[0], merged[1, :16] = mask[0], 2
    found = task.losses({**batch, "cues": cues, "mask": mask})["lovasz"]
    torch.testing.assert_close(found, lovasz_loss(task(batch["image"]).float(), merged))


@pytest.mark.parametrize(("min_weight", "weight"), [(0.0, 0.25), (0.6, 0.6), (1.0, 1.0)])
def test_masks_and_partly_drawn_images_in_one_batch(min_weight, weight):
    """The loss is the mean over images: cues with the share that is not drawn, drawn pixels with theirs or more."""
    torch.manual_seed(0)
    task = SegmentationTask(CLASSES, **TINY, loss="cross_entropy", min_drawn_weight=min_weight).eval()
    batch, mask = batch_of(images=3), torch.full((3, 64, 64), 255)
    mask[0] = torch.randint(0, 4, (64, 64))
    mask[1, :16] = 2  # the upper quarter, where the cues are background
    losses = task.losses(batch | {"mask": mask})
    with torch.no_grad():
        logits = resize_maps(task(batch["image"]), (64, 64))
        probs = sec_probabilities(resize_maps(task(batch["image"]), (8, 8)))
    parts = [F.cross_entropy(logits[i : i + 1], mask[i : i + 1], ignore_index=255).item() for i in (0, 1)]
    assert losses["mask"].item() == pytest.approx((parts[0] + weight * parts[1]) / 3, rel=1e-5)
    cues = batch["cues"][1:].clone()
    cues[0, :, :2] = False
    each = [balanced_cross_entropy(probs[i : i + 1], cues[i - 1 : i]).item() for i in (1, 2)]
    assert losses["cross_entropy"].item() == pytest.approx((0.75 * each[0] + each[1]) / 3, rel=1e-5)
    assert "mask" not in task.loss_weights


def test_losses_of_bfloat16_scores_are_computed_in_float32(monkeypatch):
    """Resized, too."""
    task, batch = SegmentationTask(CLASSES, **TINY, constrain_weight=0), batch_of()
    scores = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    monkeypatch.setattr(task, "forward", lambda _images: scores)
    probs = sec_probabilities(resize_maps(scores.float(), (8, 8)))
    losses = task.losses(batch)
    torch.testing.assert_close(losses["seed"], seed_loss(probs, batch["cues"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(losses["expand"], expand_loss(probs, batch["labels"]), rtol=1e-6, atol=0)
    task.hparams["loss"] = "cross_entropy"
    mask = torch.randint(0, 4, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    found = task.losses({"image": batch["image"], "mask": mask})["cross_entropy"]
    torch.testing.assert_close(found, F.cross_entropy(resize_maps(scores.float(), (64, 64)), mask), rtol=1e-5, atol=0)


def test_a_point_has_the_weight_of_a_pixel_by_default(monkeypatch):
    task, batch = SegmentationTask(CLASSES, **TINY, loss="cross_entropy"), batch_of()
    monkeypatch.setattr(task, "forward", lambda _images: torch.zeros(2, 4, 16, 16))
    mask = torch.full((2, 64, 64), 255)
    mask[0, 5, 7] = 1
    assert task.losses(batch | {"mask": mask})["mask"].item() == pytest.approx(np.log(4) / 64**2 / 2, rel=1e-5)


def test_an_unknown_loss():
    with pytest.raises(InputError, match="loss is 'SEC', and must be sec or cross_entropy"):
        SegmentationTask(CLASSES, **TINY, loss="SEC")


@pytest.mark.parametrize("name", ["min_drawn_weight", "decay_fg", "decay_bg"])
def test_a_weight_out_of_range(name):
    with pytest.raises(InputError, match=rf"{name} 2 is outside 0\.\.1"):
        SegmentationTask(CLASSES, **TINY, **{name: 2})


@pytest.mark.parametrize("loss", ["sec", "cross_entropy"])
def test_gradients_are_zero_at_unknown_pixels(loss, monkeypatch):
    """Of the loss at drawn pixels; the cues of unknown pixels have their own."""
    task, batch = SegmentationTask(CLASSES, **TINY, loss=loss), batch_of()
    scores = torch.randn(2, 4, 64, 64, requires_grad=True)
    monkeypatch.setattr(task, "forward", lambda _images: scores)
    mask = torch.full((2, 64, 64), 255)
    mask[0, 3, 5], mask[1, 60:] = 1, 0
    task.losses(batch | {"mask": mask})["mask"].backward()
    undrawn = (mask == 255)[:, None].expand_as(scores)
    assert (scores.grad[undrawn] == 0).all()
    assert (scores.grad[~undrawn] != 0).all()


@pytest.mark.parametrize(("loss", "needed"), [("sec", "cues"), ("cross_entropy", "masks")])
def test_data_of_another_kind_is_one_sentence(loss, needed):
    task = SegmentationTask(CLASSES, **TINY, loss=loss)
    batch = {"image": batch_of()["image"], "labels": batch_of()["labels"]}
    with pytest.raises(InputError, match=f"targets: {needed}"):
        task.training_step(batch, 0)


def test_label_map_is_bilinear_at_the_images_own_size():
    scores = torch.tensor([[[0.0, 0.0]], [[-1.0, 3.0]]])  # (2, 1, 2): class 1 from where the line crosses 0 on
    # centres of 8 pixels over 2 positions lie at -0.375, -0.125, …; the difference -1 + 4 t is above 0 for t > 1/4
    assert label_map(scores, (2, 8)).tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]] * 2


def test_small_images_show_the_mean_of_what_they_stand_for():
    """Stripes of one bright column in four: shrunk four times they are gray, whichever columns centres fall on."""
    stripes = torch.zeros(1, 3, 16, 64, dtype=torch.uint8)
    stripes[..., ::4] = 200
    shrunk = resize_images(stripes, (4, 16))
    assert shrunk.dtype == torch.uint8
    assert (shrunk[..., 2:-2].int() - 50).abs().max() <= 2
    assert resize_images(torch.tensor([[[[1, 2], [2, 2]]]], dtype=torch.uint8), (1, 1)).item() == 2  # the mean is 1.75


# --- with a trainer


def test_a_run_leaves_a_checkpoint_that_loads(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    assert content["tag2mask"] == {"task": "segmentation", "version": 1}
    assert read_checkpoint(checkpoint, "segmentation")["global_step"] == 2
    task = load_task(checkpoint, SegmentationTask)[0]
    assert not task.training
    assert task.hparams["network_args"] == {"decoder_channels": 16}
    json.dumps(dict(task.hparams))  # plain


def test_training_logs_each_loss_and_validation_the_iou(voc, cues, tmp_path):
    data = data_of(voc, targets="cues", cues=str(cues))
    task = SegmentationTask(list(data.classes), **TINY, lr=1e-4)
    trainer = trainer_of(tmp_path, max_steps=3)  # one epoch
    trainer.fit(task, data)
    metrics = trainer.callback_metrics
    assert {"train/seed", "train/expand", "train/constrain", "train/loss", "val/miou"} <= set(metrics)
    parts = sum(metrics[f"train/{name}"] for name in ("seed", "expand", "constrain"))
    assert metrics["train/loss"].item() == pytest.approx(parts.item(), rel=1e-5)
    present = [value.item() for name, value in metrics.items() if name.startswith("val/iou/")]
    assert metrics["val/miou"].item() == pytest.approx(np.mean(present), rel=1e-5)


def test_a_validation_does_not_count_the_images_of_the_one_before(voc, checkpoint, tmp_path):
    other, trainer = data_of(voc, val_split="train"), trainer_of(tmp_path)
    task, fresh = (load_task(checkpoint, SegmentationTask)[0] for _ in range(2))
    trainer.validate(task, data_of(voc), verbose=False)
    assert trainer.validate(task, other, verbose=False) == trainer.validate(fresh, other, verbose=False)


def test_masks_without_a_known_pixel_have_no_iou(voc, checkpoint, tmp_path):
    """Nothing is logged: not a number that is none."""
    root = shutil.copytree(voc, tmp_path / "voc")
    for path in (root / "SegmentationClass").iterdir():
        write_mask(path, np.full_like(read_mask(path), 255))
    task = load_task(checkpoint, SegmentationTask)[0]
    assert trainer_of(tmp_path).validate(task, data_of(root), verbose=False) == [{}]


def test_sec_learns_its_cues(voc, cues, tmp_path):
    """Forty steps on three images: the seed loss falls to a fraction."""
    pl.seed_everything(0)
    data = data_of(voc, targets="cues", cues=str(cues))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    task = SegmentationTask(list(data.classes), **TINY, optimizer="adamw", lr=1e-3, schedule="constant")
    trainer = trainer_of(tmp_path, max_steps=40, limit_val_batches=0)
    trainer.fit(task, torch.utils.data.DataLoader([batch] * 40, batch_size=None))
    start = SegmentationTask(list(data.classes), **TINY).losses(batch)["seed"].item()
    assert trainer.callback_metrics["train/seed"].item() < 0.4 * start


def test_supervised_runs(voc, tmp_path):
    data = data_of(voc, targets="masks")
    task = SegmentationTask(list(data.classes), **TINY, loss="cross_entropy", lr=1e-4, freeze_stride=4)
    frozen = task.network.model.encoder.features[1].conv[0][1].running_mean.clone()
    trainer = trainer_of(tmp_path, max_steps=3)  # one epoch
    trainer.fit(task, data)
    assert {"train/cross_entropy", "val/miou"} <= set(trainer.callback_metrics)
    assert torch.equal(task.network.model.encoder.features[1].conv[0][1].running_mean, frozen)


def test_poly_needs_an_end(voc, tmp_path):
    task = SegmentationTask(["a"], **TINY, schedule="poly")
    with pytest.raises(InputError, match="max_steps"):
        trainer_of(tmp_path, max_steps=-1, max_epochs=-1).fit(task, data_of(voc, targets="masks", classes=None))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_count_what_one_counts(voc, checkpoint, tmp_path):
    """The confusion counts are summed, not the IoUs averaged."""
    data = data_of(voc, batch_size=1)
    task = load_task(checkpoint, SegmentationTask)[0]
    one = trainer_of(tmp_path).validate(task, data, verbose=False)[0]
    two = trainer_of(tmp_path, devices=2, strategy="ddp_fork").validate(task, data, verbose=False)[0]
    assert two["val/miou"] == pytest.approx(one["val/miou"], rel=1e-6)
    assert two == pytest.approx(one, rel=1e-6)


def test_the_papers_configuration_trains_two_steps(tmp_path):
    """VGG-16 LargeFOV, SGD with its four rates; smaller images, random weights."""
    task = SegmentationTask(CLASSES, "LargeFOV")
    batch = batch_of(grid=9)
    batch["image"] = F.interpolate(batch["image"], (65, 65))
    trainer = trainer_of(tmp_path, limit_val_batches=0)
    before = task.network.fc8.weight.clone()
    trainer.fit(task, torch.utils.data.DataLoader([batch] * 2, batch_size=None))
    assert sorted(group["lr"] for group in trainer.optimizers[0].param_groups) == [1e-3, 2e-3, 1e-2, 2e-2]
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert not torch.equal(task.network.fc8.weight, before)


def test_a_training_may_start_from_a_whole_network(checkpoint, tmp_path):
    first = load_task(checkpoint, SegmentationTask)[0]
    again = SegmentationTask(list(first.classes), **TINY, weights=str(checkpoint))
    assert all(
        torch.equal(value, first.network.state_dict()[name]) for name, value in again.network.state_dict().items()
    )
    with pytest.raises(InputError, match=r"sec\.ckpt are of another network: .*size mismatch"):
        SegmentationTask(["a", "b"], **TINY, weights=str(checkpoint))
    renamed = [*first.classes[:0:-1], first.classes[0]]  # its head would give the scores of one class to another
    with pytest.raises(InputError, match=rf"sec\.ckpt are of the classes {', '.join(first.classes)}, not"):
        SegmentationTask(renamed, **TINY, weights=str(checkpoint))
    with pytest.raises(InputError, match=r"sec\.ckpt are of another network"):
        SegmentationTask(list(first.classes), "LargeFOV", weights=str(checkpoint))
    torch.save({"tag2mask": 3}, tmp_path / "odd.ckpt")
    with pytest.raises(InputError, match=r"odd\.ckpt was not written by tag2mask"):
        SegmentationTask(list(first.classes), **TINY, weights=str(tmp_path / "odd.ckpt"))


def test_a_training_on_four_channels_may_start_from_a_whole_network(tmp_path):
    first = SegmentationTask(CLASSES, **TINY, in_channels=4)
    trainer = trainer_of(tmp_path)
    trainer.strategy.connect(first)
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    again = SegmentationTask(CLASSES, **TINY, in_channels=4, weights=str(tmp_path / "four.ckpt"))
    for name, value in first.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)


@pytest.mark.parametrize(("first", "kept"), [(0, True), (4, False)])
def test_cues_count_where_the_pixel_at_the_centre_of_their_position_is_not_drawn(first, kept):
    """Positions of 8 pixels; the fifth in both directions is at the centre, and it alone decides."""
    torch.manual_seed(0)
    task, batch = SegmentationTask(CLASSES, **TINY, loss="cross_entropy").eval(), batch_of()
    mask = torch.full((2, 64, 64), 255)
    mask[:, first::8, first::8] = 1
    found = task.losses(batch | {"mask": mask})["cross_entropy"].item()
    probs = sec_probabilities(resize_maps(task(batch["image"]), (8, 8)))
    wanted = 63 / 64 * balanced_cross_entropy(probs, batch["cues"]).item() if kept else 0
    assert found == pytest.approx(wanted, rel=1e-5)
