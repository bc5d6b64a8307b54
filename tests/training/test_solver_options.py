"""The options of the three tasks take effect: solver, schedule, weights, losses."""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch
import torchvision

from datamodules.errors import InputError
from seeds.affinity.affinity_task import AffinityTask
from seeds.classifier import ClassifierTask
from tests.training.conftest import TINY
from training.losses import balanced_cross_entropy, expand_loss, sec_probabilities, seed_loss
from training.segmentation_task import SegmentationTask

STEPS = 100
SMALL = {"backbone": "mobilenet_v2", "depth": 3, "output_stride": 8}
TASKS = {
    "classifier": lambda **given: ClassifierTask(["a", "b"], **SMALL, **given),
    "affinity": lambda **given: AffinityTask(["a", "b"], **SMALL, **given),
    "segmentation": lambda **given: SegmentationTask(["a", "b"], **TINY, **given),
}


@pytest.fixture
def solver_of(monkeypatch):
    """The optimizer and the schedule of a task in a training of a hundred steps."""

    def solver(task):
        monkeypatch.setattr(type(task), "trainer", SimpleNamespace(estimated_stepping_batches=STEPS))
        made = task.configure_optimizers()
        assert made["lr_scheduler"]["interval"] == "step"
        return made["optimizer"], made["lr_scheduler"]["scheduler"]

    return solver


def factors(solver, steps):
    """The factors on the rates after so many steps."""
    optimizer, scheduler = solver
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
    return [group["lr"] / group["initial_lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("name", TASKS)
def test_rates_decay_and_momentum(name, solver_of):
    given = {"optimizer": "sgd", "lr": 0.03, "momentum": 0.7, "weight_decay": 0.02, "schedule": "constant"}
    given |= {"head_lr_scale": 5.0, "bias_lr_scale": 3.0}
    optimizer, _ = solver_of(TASKS[name](**given))
    assert isinstance(optimizer, torch.optim.SGD)
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {group["momentum"] for group in groups.values()} == {0.7}
    for key, group in groups.items():
        rate = given["lr"] * (5 if key.startswith("head") else 1) * (3 if key.endswith("bias") else 1)
        assert group["initial_lr"] == pytest.approx(rate)
        assert group["weight_decay"] == (0.02 if key.endswith("weight") else 0)
    assert isinstance(solver_of(TASKS[name](**given | {"optimizer": "adamw"}))[0], torch.optim.AdamW)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("schedule", "half"), [("poly", 0.5**0.9), ("cosine", 0.5), ("constant", 1.0)])
def test_schedules(name, schedule, half, solver_of):
    """The factor after half of the steps, and of the first of four over which it rises."""
    given = {"lr": 0.1, "optimizer": "sgd", "schedule": schedule}
    for factor in factors(solver_of(TASKS[name](**given)), STEPS // 2):
        assert factor == pytest.approx(half)
    for factor in factors(solver_of(TASKS[name](**given, warmup_steps=4)), 0):
        assert factor == pytest.approx(0.2)


@pytest.mark.parametrize("name", TASKS)
def test_numbers_of_the_step_schedule(name, solver_of):
    task = TASKS[name](schedule="step", step_size=10, step_gamma=0.5)
    assert set(factors(solver_of(task), 20)) == {0.25}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("option", "value"), [
    ("lr", -1.0), ("lr", float("nan")), ("weight_decay", -1.0), ("head_lr_scale", -1.0), ("bias_lr_scale", -1.0),
    ("momentum", -0.1), ("momentum", 1.0), ("step_size", 0), ("step_gamma", -0.1), ("warmup_steps", -1),
])  # fmt: skip
def test_numbers_out_of_range(name, option, value):
    """A negative learning rate would train uphill without a word."""
    with pytest.raises(InputError, match=f"{option} {value}"):
        TASKS[name](**{option: value})


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("option", "value"), [("optimizer", "adam"), ("schedule", "linear")])
def test_unknown_choices(name, option, value):
    """From Python nothing else refuses them."""
    with pytest.raises(InputError, match=f"{option} is '{value}', and must be .* or "):
        TASKS[name](**{option: value})


@pytest.mark.parametrize("name", TASKS)
def test_all_options_are_hyperparameters(name):
    """Plain values, those of all tasks and the task's own, with their defaults."""
    task = TASKS[name](lr=0.5)
    json.dumps(dict(task.hparams))
    solver = {
        "optimizer": "sgd", "lr": 0.5, "momentum": 0.9, "weight_decay": 5e-4, "head_lr_scale": 10.0,
        "bias_lr_scale": 2.0, "schedule": "step", "step_size": 2000, "step_gamma": 0.1, "warmup_steps": 0,
        "compile": False, "in_channels": 3,
    }  # fmt: skip
    assert solver.items() <= dict(task.hparams).items()
    known = set(inspect.signature(type(task)).parameters) - {"kwargs"}
    assert set(task.hparams) == known | set(solver)


@pytest.mark.parametrize("name", TASKS)
def test_initial_weights_are_those_of_the_file(name, tmp_path):
    torch.manual_seed(5)
    weights = torchvision.models.mobilenet_v2(weights=None).state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    torch.manual_seed(0)
    task = TASKS[name](weights=str(tmp_path / "weights.pth"))
    stem = {key: value for key, value in task.state_dict().items() if key.endswith("features.0.0.weight")}
    assert len(stem) == 1
    assert torch.equal(next(iter(stem.values())), weights["features.0.0.weight"])


def test_losses_and_decays():
    """The network is replaced by the images' mean colours."""
    mean_colours = torch.nn.AvgPool2d(8)
    mean_colours.head_layers = []
    generator = torch.Generator().manual_seed(1)
    cues = torch.zeros(2, 3, 8, 8, dtype=torch.bool)
    cues[:, 0, :5] = cues[:, 1, 6:, :3] = True
    images = 8 * torch.randn(2, 3, 64, 64, generator=generator)
    batch = {"image": images, "labels": torch.tensor([[1.0, 0.0], [1.0, 0.0]]), "cues": cues}
    task = TASKS["segmentation"](constrain_weight=0, decay_fg=0.9, decay_bg=0.95).eval()
    task.network = mean_colours
    probs, losses = sec_probabilities(task(images)), task.losses(batch)
    assert losses["seed"].item() == pytest.approx(seed_loss(probs, cues).item(), rel=1e-5)
    wanted = expand_loss(probs, batch["labels"], decay_fg=0.9, decay_bg=0.95)
    assert losses["expand"].item() == pytest.approx(wanted.item(), rel=1e-5)
    assert losses["expand"].item() != pytest.approx(expand_loss(probs, batch["labels"]).item(), rel=1e-3)
    task = TASKS["segmentation"](loss="cross_entropy").eval()
    task.network = mean_colours
    balanced = balanced_cross_entropy(probs, cues).item()
    assert task.losses(batch)["cross_entropy"].item() == pytest.approx(balanced, rel=1e-5)
    assert seed_loss(probs, cues).item() != pytest.approx(balanced, rel=1e-3)


@pytest.mark.parametrize(
    ("given", "words"),
    [({"seed_weight": -1.0}, "seed_weight -1.0"), ({"expand_weight": float("nan")}, "expand_weight nan")],
)  # fmt: skip
def test_weights_out_of_range(given, words):
    with pytest.raises(InputError, match=words):
        SegmentationTask(["a"], **given)


def test_boundaries_need_pairs_and_cues():
    with pytest.raises(InputError, match="radius must be at least 2, not 1"):
        TASKS["affinity"](radius=1)
    with pytest.raises(InputError, match="affinities are learned from cues"):
        TASKS["affinity"]().training_step({"image": torch.zeros(1, 3, 64, 64)}, 0)
