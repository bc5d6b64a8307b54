"""Seeded region growing, against a plain flood fill."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.errors import InputError
from tests.training.conftest import data_of
from tests.training.fits import fit
from training.growing import grow
from training.losses import sec_probabilities, seed_loss
from training.task import SegmentationTask


def flood(cues, probs, labels, fg, bg):
    """One picture's cues (C+1, h, w) grown cell by cell."""
    grown = cues.copy()
    allowed = [0, *(np.flatnonzero(labels) + 1)]
    _, h, w = cues.shape
    queue = list(zip(*np.nonzero(cues), strict=True))
    while queue:
        k, y, x = queue.pop()
        for v in range(max(0, y - 1), min(h, y + 2)):
            for u in range(max(0, x - 1), min(w, x + 2)):
                best = max(allowed, key=lambda c: probs[c, v, u])
                sure = probs[k, v, u] > (bg if k == 0 else fg)
                if not cues[:, v, u].any() and not grown[k, v, u] and best == k and sure:
                    grown[k, v, u] = True
                    queue.append((k, v, u))
    return grown


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
def test_grown_cues_are_those_of_a_flood_fill(seed, classes, height, width):
    generator = np.random.default_rng(seed)
    place = generator.choice(classes + 5, (2, height, width))  # most cells have no cue
    labels = np.zeros((2, classes))
    cues = np.stack([place == k for k in range(classes + 1)], axis=1)
    labels[:] = cues[:, 1:].any(axis=(2, 3))
    probs = generator.dirichlet(np.full(classes + 1, 0.3), (2, height, width)).transpose(0, 3, 1, 2)
    found = grow(torch.from_numpy(cues), torch.from_numpy(probs), torch.from_numpy(labels), fg=0.6, bg=0.8).numpy()
    for row in range(2):
        assert np.array_equal(found[row], flood(cues[row], probs[row], labels[row], 0.6, 0.8))


def test_by_hand():
    """A chain of sure cells is followed aslant; an unsure cell ends it; another class and another picture are not."""
    cues = torch.zeros(2, 3, 2, 4, dtype=torch.bool)
    cues[0, 1, 0, 0] = cues[1, 0, 0, 0] = True
    probs = torch.zeros(2, 3, 2, 4)
    probs[0, 1] = torch.tensor([[0.0, 0.1, 0.9, 0.9], [0.1, 0.9, 0.5, 0.1]])
    probs[0, 2] = 1 - probs[0, 1]  # not tagged: what it is likelier of does not count
    probs[1, 0] = 0.985  # not sure enough of background
    grown = grow(cues, probs, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert grown[0, 1].int().tolist() == [[1, 0, 1, 1], [0, 1, 0, 0]]
    assert not grown[0, 2].any()
    assert torch.equal(grown[1], cues[1])
    assert grow(cues, probs, torch.ones(2, 2), bg=0.98)[1, 0].all()


def test_the_seed_loss_is_of_grown_cues(voc, cues):
    data = data_of(voc, targets="cues", cues=str(cues))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    task = SegmentationTask(list(data.classes), growing={"fg": 0.1, "bg": 0.1}, expand_weight=0, constrain_weight=0)
    task.eval()
    with torch.no_grad():
        scores = torch.nn.functional.interpolate(task(batch["image"]), batch["cues"].shape[-2:], mode="bilinear")
        probs = sec_probabilities(scores)
        grown = grow(batch["cues"], probs, batch["labels"], fg=0.1, bg=0.1)
        assert task.sec_losses(batch)["seed"] == seed_loss(probs, grown)
    assert grown.sum() > batch["cues"].sum()


def test_by_the_command_line(voc, cues, tmp_path, capsys):
    assert fit(voc, cues, tmp_path / "run", "--model.growing={fg: 0.9}", "--model.seed_balance=true") == 0
    assert "0.9" in (tmp_path / "run/config.yaml").read_text()
    assert fit(voc, cues, tmp_path / "other", "--model.growing={high: 0.9}") == 2
    assert "growing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "says"),
    [({"growing": {"fg": 85}}, "growing: fg 85"), ({"growing": {"bg": -0.1}}, "growing: bg -0.1"),
     ({"seed_weight": -1.0}, "seed_weight -1.0"), ({"expand_weight": float("nan")}, "expand_weight nan"),
     ({"supervision": "masks", "growing": {}}, "masks leave nothing to grow")],
)  # fmt: skip
def test_numbers_out_of_range(given, says):
    with pytest.raises(InputError, match=says):
        SegmentationTask(["a"], **given)
