"""The losses: tables worked by hand, an independent float64 numpy version, gradients, edge cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.losses import (
    balanced_cross_entropy,
    box_loss,
    constrain_loss,
    expand_loss,
    lovasz_loss,
    partial_cross_entropy,
    ranked_weights,
    sec_probabilities,
    seed_loss,
)

CPU = torch.device("cpu")


def probabilities(*positions):
    """Each position a list over classes -> (1, K, 1, n)."""
    return torch.tensor(positions, dtype=torch.float64).T[None, :, None, :]


def random_case(seed, images=3, classes=4, height=5, width=7):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (images, classes + 1, height, width))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probs = (probs + 1e-4) / (1 + 1e-4 * (classes + 1))
    labels = (rng.random((images, classes)) < 0.5).astype(float)
    label_map = rng.integers(0, classes + 2, (images, height, width))  # classes + 1 stands for no cue
    cues = label_map[:, None] == np.arange(classes + 1)[:, None, None]
    q = rng.dirichlet(np.full(classes + 1, 0.1), (images, height, width)).transpose(0, 3, 1, 2)
    return logits, probs, labels, cues, q


# --- an independent version: loops over images and classes, float64


def numpy_seed(probs, cues):
    total = 0.0
    for p, c in zip(probs, cues, strict=True):
        if c.sum():
            total -= np.log(p[c]).sum() / c.sum()
    return total / len(probs)


def numpy_pool(positions, decay):
    n = positions.size
    weights = [decay ** (1681.0 / n * (n - rank)) for rank in range(1, n + 1)]  # ascending: q^(n-1) … q^0
    return float(np.dot(np.sort(positions.ravel()), weights) / np.sum(weights))


def numpy_expand(probs, labels, decay_fg=0.996, decay_bg=0.999):
    total = 0.0
    for p, label in zip(probs, labels, strict=True):
        present, absent = np.flatnonzero(label), np.flatnonzero(label == 0)
        if len(present):
            total -= np.mean([math.log(numpy_pool(p[c + 1], decay_fg)) for c in present])
        if len(absent):
            total -= np.mean([math.log(1 - p[c + 1].max()) for c in absent])
        total -= math.log(numpy_pool(p[0], decay_bg))
    return total / len(probs)


def numpy_constrain(probs, q):
    total = 0.0
    for p, target in zip(probs, q, strict=True):
        floored = np.maximum(target, 1e-4)
        floored = floored / floored.sum(0)
        total += (floored * np.log(floored / p)).sum() / p[0].size
    return total / len(probs)


# --- tables worked by hand


def test_sec_probabilities_table():
    # softmax of (0, 0) is (1/2, 1/2); of (ln 3, 0) it is (3/4, 1/4); then + 1e-4, / (1 + 2e-4)
    logits = probabilities([0.0, 0.0], [math.log(3), 0.0])
    got = sec_probabilities(logits)[0, :, 0].T
    expected = [[0.5, 0.5], [(0.75 + 1e-4) / 1.0002, (0.25 + 1e-4) / 1.0002]]
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_seed_table():
    # positions (background, one class): (1/2, 1/2) cued background, (1/8, 7/8) cued class, (1/4, 3/4) not cued
    probs = probabilities([0.5, 0.5], [0.125, 0.875], [0.25, 0.75])
    cues = torch.zeros_like(probs, dtype=torch.bool)
    cues[0, 0, 0, 0] = cues[0, 1, 0, 1] = True
    assert seed_loss(probs, cues).item() == pytest.approx((math.log(2) + math.log(8 / 7)) / 2, abs=1e-12)


def test_balanced_cross_entropy_table():
    # background cues at 1/2, 1/4 and 1/8, one class cue at 7/8: the mean of (1, 2, 3) ln 2, plus ln 8/7
    probs = probabilities([0.5, 0.5], [0.25, 0.75], [0.125, 0.875], [0.125, 0.875])
    cues = torch.zeros_like(probs, dtype=torch.bool)
    cues[0, 0, 0, :3] = cues[0, 1, 0, 3] = True
    assert balanced_cross_entropy(probs, cues).item() == pytest.approx(2 * math.log(2) + math.log(8 / 7), abs=1e-12)
    cues[0, 1] = False  # without class cues: the background's part alone
    assert balanced_cross_entropy(probs, cues).item() == pytest.approx(2 * math.log(2), abs=1e-12)
    assert balanced_cross_entropy(probs, cues & False).item() == 0


def test_an_image_without_a_cue_adds_nothing_and_counts():
    probs = probabilities([0.5, 0.5], [0.25, 0.75]).expand(2, -1, -1, -1)
    cues = torch.zeros_like(probs, dtype=torch.bool)
    cues[1, 0] = True  # the second image: -(ln 1/2 + ln 1/4) / 2 = 1.5 ln 2; the first: 0
    assert seed_loss(probs, cues).item() == pytest.approx(1.5 * math.log(2) / 2, abs=1e-12)


def test_ranked_weights_table():
    # 1681 positions: q as given; two positions: q^(1681/2)
    weights = ranked_weights(1681, 0.996, device=CPU, dtype=torch.float64)
    norm = (1 - 0.996**1681) / (1 - 0.996)
    assert weights[0].item() == pytest.approx(1 / norm, rel=1e-12)
    assert weights[1680].item() == pytest.approx(0.996**1680 / norm, rel=1e-9)
    half = 0.999 ** (1681 / 2)
    pair = ranked_weights(2, 0.999, device=CPU, dtype=torch.float64)
    assert pair.tolist() == pytest.approx([1 / (1 + half), half / (1 + half)], abs=1e-12)
    assert ranked_weights(4, 1.0, device=CPU, dtype=torch.float64).tolist() == [0.25] * 4  # the mean
    assert ranked_weights(4, 0.0, device=CPU, dtype=torch.float64).tolist() == [1.0, 0.0, 0.0, 0.0]  # the maximum


def test_the_same_fraction_of_a_grid_weighs_the_same_at_any_size():
    paper = ranked_weights(1681, 0.996, device=CPU, dtype=torch.float64)
    small = ranked_weights(100, 0.996, device=CPU, dtype=torch.float64)
    assert paper[: round(1681 * 0.2)].sum().item() == pytest.approx(small[:20].sum().item(), abs=2e-3)


def test_expand_table():
    # two positions, classes (background, a, b), a present; decays chosen so that at 2 positions q is 1/3 and 1/2
    fg, bg = (1 / 3) ** (2 / 1681), (1 / 2) ** (2 / 1681)
    probs = probabilities([0.6, 0.3, 0.1], [0.3, 0.5, 0.2])
    present = (0.5 + 0.3 / 3) / (4 / 3)  # 0.45
    absent = 1 - 0.2
    background = (0.6 + 0.3 / 2) / 1.5  # 0.5
    expected = -math.log(present) - math.log(absent) - math.log(background)
    labels = torch.tensor([[1.0, 0.0]])
    assert expand_loss(probs, labels, decay_fg=fg, decay_bg=bg).item() == pytest.approx(expected, abs=1e-9)
    # both present: the mean over the two, and no absent term
    second = (0.2 + 0.1 / 3) / (4 / 3)
    both = -(math.log(present) + math.log(second)) / 2 - math.log(background)
    assert expand_loss(probs, torch.ones(1, 2), decay_fg=fg, decay_bg=bg).item() == pytest.approx(both, abs=1e-9)
    # none present: only the absent and the background terms
    none = -(math.log(1 - 0.5) + math.log(0.8)) / 2 - math.log(background)
    assert expand_loss(probs, torch.zeros(1, 2), decay_fg=fg, decay_bg=bg).item() == pytest.approx(none, abs=1e-9)


def test_expand_counts_an_image_without_labels_in_the_mean():
    probs = torch.from_numpy(random_case(0, images=2)[1])
    labels = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    each = [expand_loss(probs[i : i + 1], labels[i : i + 1]) for i in range(2)]
    assert expand_loss(probs, labels).item() == pytest.approx(sum(x.item() for x in each) / 2, rel=1e-12)


def test_constrain_table():
    # KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 ln 3/2 + 1/4 ln 1/2; the second position agrees: 0; mean over 2 positions
    q, p = probabilities([0.75, 0.25], [0.5, 0.5]), probabilities([0.5, 0.5], [0.5, 0.5])
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    assert constrain_loss(p, q).item() == pytest.approx(expected, abs=1e-12)
    # a confident CRF: (1, 0) is floored to (1, 1e-4) / 1.0001
    q, p = probabilities([1.0, 0.0]), probabilities([0.5, 0.5])
    a, b = 1 / 1.0001, 1e-4 / 1.0001
    assert constrain_loss(p, q).item() == pytest.approx(a * math.log(2 * a) + b * math.log(2 * b), abs=1e-12)


# --- agreement


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agreement_with_an_independent_version(seed, dtype):
    _, probs, labels, cues, q = random_case(seed, images=4, classes=6, height=9, width=11)
    p, y = torch.from_numpy(probs).to(dtype), torch.from_numpy(labels)
    given_probs = p.double().numpy()  # what the function was given, at full precision
    assert seed_loss(p, torch.from_numpy(cues)).item() == pytest.approx(numpy_seed(given_probs, cues), abs=1e-6)
    assert expand_loss(p, y).item() == pytest.approx(numpy_expand(given_probs, labels), abs=1e-6)
    assert constrain_loss(p, torch.from_numpy(q)).item() == pytest.approx(numpy_constrain(given_probs, q), abs=1e-6)


def test_agreement_on_the_papers_grid():
    _, probs, labels, cues, q = random_case(9, images=2, classes=20, height=41, width=41)
    p = torch.from_numpy(probs).float()
    exact = p.double().numpy()
    assert expand_loss(p, torch.from_numpy(labels)).item() == pytest.approx(numpy_expand(exact, labels), abs=1e-6)
    assert seed_loss(p, torch.from_numpy(cues)).item() == pytest.approx(numpy_seed(exact, cues), abs=1e-6)
    assert constrain_loss(p, torch.from_numpy(q)).item() == pytest.approx(numpy_constrain(exact, q), abs=1e-6)


def test_gradcheck():
    logits, _, labels, cues, q = random_case(3, images=2, classes=2, height=3, width=3)
    x = torch.from_numpy(logits).requires_grad_()
    y, c, crf = torch.from_numpy(labels), torch.from_numpy(cues), torch.from_numpy(q)
    assert torch.autograd.gradcheck(lambda z: seed_loss(sec_probabilities(z), c), x)
    assert torch.autograd.gradcheck(lambda z: expand_loss(sec_probabilities(z), y), x)
    assert torch.autograd.gradcheck(lambda z: constrain_loss(sec_probabilities(z), crf), x)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_gradcheck_at_the_edges(label):
    """No label or all of them, no cue, and a CRF that is confident."""
    logits, _, _, _, q = random_case(4, images=1, classes=2, height=3, width=3)
    x = torch.from_numpy(logits).requires_grad_()
    crf = torch.from_numpy((q == q.max(1, keepdims=True)).astype(float))
    none = torch.zeros(1, 3, 3, 3, dtype=torch.bool)

    def total(z):
        p = sec_probabilities(z)
        return seed_loss(p, none) + expand_loss(p, torch.full((1, 2), label)) + constrain_loss(p, crf)

    assert torch.autograd.gradcheck(total, x)


def test_no_gradient_through_the_crf():
    _, probs, _, _, q = random_case(1)
    p, crf = torch.from_numpy(probs).requires_grad_(), torch.from_numpy(q).requires_grad_()
    constrain_loss(p, crf).backward()
    assert crf.grad is None
    assert p.grad.abs().sum() > 0


# --- properties


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_images_classes_and_positions_does_not_matter(seed):
    _, probs, labels, cues, q = random_case(seed)
    p, y, c, crf = (torch.from_numpy(a) for a in (probs, labels, cues, q))
    rng = torch.Generator().manual_seed(seed)
    images = torch.randperm(len(p), generator=rng)
    positions = torch.randperm(35, generator=rng)
    classes = torch.randperm(4, generator=rng)
    channels = torch.cat([torch.zeros(1, dtype=torch.long), classes + 1])  # the background stays

    def moved(a):
        return a[images][:, channels].flatten(2)[:, :, positions].view_as(a)

    assert seed_loss(moved(p), moved(c)).item() == pytest.approx(seed_loss(p, c).item(), rel=1e-9)
    assert expand_loss(moved(p), y[images][:, classes]).item() == pytest.approx(expand_loss(p, y).item(), rel=1e-9)
    assert constrain_loss(moved(p), moved(crf)).item() == pytest.approx(constrain_loss(p, crf).item(), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_better_prediction_has_the_lower_loss(seed):
    logits, probs, labels, cues, q = random_case(seed)
    p, y, c, crf = (torch.from_numpy(a) for a in (probs, labels, cues, q))
    cued = sec_probabilities(torch.from_numpy(logits) + 2.0 * c)
    assert not c.any() or seed_loss(cued, c) < seed_loss(p, c)
    tagged = torch.cat([torch.zeros(len(y), 1), 2.0 * y - 1.0], dim=1)[..., None, None]
    absent_only = torch.from_numpy(logits) + tagged * (tagged < 0)
    if (y == 0).any():
        assert expand_loss(sec_probabilities(absent_only), y) < expand_loss(p, y)
    floored = crf.clamp_min(1e-4) / crf.clamp_min(1e-4).sum(1, keepdim=True)
    assert constrain_loss(0.5 * p + 0.5 * floored, crf) < constrain_loss(p, crf)
    assert constrain_loss(floored, crf).item() == pytest.approx(0.0, abs=1e-12)
    assert constrain_loss(p, crf) >= 0


def test_a_batch_is_the_mean_of_its_images():
    _, probs, labels, cues, q = random_case(5)
    p, y, c, crf = (torch.from_numpy(a) for a in (probs, labels, cues, q))
    for loss, other in ((seed_loss, c), (expand_loss, y), (constrain_loss, crf)):
        each = [loss(p[i : i + 1], other[i : i + 1]).item() for i in range(len(p))]
        assert loss(p, other).item() == pytest.approx(sum(each) / len(each), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_a_finer_grid_of_the_same_has_the_same_loss(seed, times):
    """Every position split into several: no loss depends on the number of positions, ranked pooling but by its ends."""
    _, probs, labels, cues, q = random_case(seed)
    coarse = [torch.from_numpy(a) for a in (probs, cues, q)]
    fine = [a.repeat_interleave(times, 2).repeat_interleave(times, 3) for a in coarse]
    y = torch.from_numpy(labels)
    for loss, other in ((seed_loss, 1), (constrain_loss, 2)):
        assert loss(fine[0], fine[other]).item() == pytest.approx(loss(coarse[0], coarse[other]).item(), rel=1e-9)
    for decay in (0.0, 1.0):  # the maximum and the mean
        ends = {"decay_fg": decay, "decay_bg": decay}
        expected = expand_loss(coarse[0], y, **ends).item()
        assert expand_loss(fine[0], y, **ends).item() == pytest.approx(expected, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-50, 50))
def test_a_constant_on_all_scores_changes_nothing(seed, shift):
    logits = torch.from_numpy(random_case(seed)[0])
    torch.testing.assert_close(sec_probabilities(logits + shift), sec_probabilities(logits), rtol=1e-9, atol=1e-12)


def test_double_cues_weigh_the_same_as_one_cue_each():
    """Normalised by the number of cues: an image of many cues weighs no more than one of few."""
    probs = torch.full((1, 3, 4, 4), 0.2, dtype=torch.float64)
    one, many = torch.zeros(1, 3, 4, 4, dtype=torch.bool), torch.zeros(1, 3, 4, 4, dtype=torch.bool)
    one[0, 1, 0, 0] = True
    many[0, 1] = True
    assert seed_loss(probs, one).item() == pytest.approx(seed_loss(probs, many).item(), rel=1e-12)


# --- edge cases of real data


@pytest.mark.parametrize("label", ["none", "all"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_edges_are_finite(label, scale):
    logits = (torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    labels = torch.zeros(2, 3) if label == "none" else torch.ones(2, 3)
    cues = torch.zeros(2, 4, 3, 5, dtype=torch.bool)
    crf = torch.zeros(2, 4, 3, 5)
    crf[:, 0] = 1.0
    probs = sec_probabilities(logits)
    loss = seed_loss(probs, cues) + expand_loss(probs, labels) + constrain_loss(probs, crf)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert seed_loss(probs, cues) == 0


def test_probabilities_of_zero_and_one_are_finite():
    """What others call the losses with: probabilities not from `sec_probabilities`."""
    probs = torch.zeros(1, 3, 2, 2)
    probs[:, 1] = 1.0
    probs.requires_grad_()
    cues = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    cues[:, 0] = True
    labels = torch.tensor([[0.0, 1.0]])
    loss = seed_loss(probs, cues) + expand_loss(probs, labels) + constrain_loss(probs, cues.float())
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 50
    assert torch.isfinite(probs.grad).all()


def test_validation_does_not_spoil_training():
    """Weights first made in inference mode serve autograd afterwards."""
    probs = torch.rand(1, 3, 1, 13)
    with torch.inference_mode():
        expand_loss(probs, torch.ones(1, 2), decay_fg=0.99123)
    probs.requires_grad_()
    expand_loss(probs, torch.ones(1, 2), decay_fg=0.99123).backward()
    assert torch.isfinite(probs.grad).all()


def test_float32_under_autocast():
    logits, _, labels, cues, q = random_case(2)
    x = torch.from_numpy(logits).float()
    y, c, crf = torch.from_numpy(labels), torch.from_numpy(cues), torch.from_numpy(q).float()

    def total(z):
        p = sec_probabilities(z)
        return seed_loss(p, c) + expand_loss(p, y) + constrain_loss(p, crf)

    expected = total(x.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = total(x.bfloat16())
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: seed_loss(torch.rand(2, 3, 4, 4), torch.zeros(2, 3, 4, 5).bool()), ["(2, 3, 4, 5)", "(2, 3, 4, 4)"]),
        (lambda: seed_loss(torch.rand(3, 4, 4), torch.zeros(3, 4, 4).bool()), ["(3, 4, 4)"]),
        (
            lambda: balanced_cross_entropy(torch.rand(2, 3, 4, 4), torch.zeros(3, 4, 4).bool()),
            ["(3, 4, 4)", "balanced"],
        ),
        (lambda: expand_loss(torch.rand(2, 3, 4, 4), torch.zeros(2, 3)), ["(2, 3)", "(2, 2)", "(2, 3, 4, 4)"]),
        (lambda: expand_loss(torch.rand(2, 3, 4, 0), torch.zeros(2, 2)), ["(2, 3, 4, 0)"]),
        (lambda: expand_loss(torch.rand(2, 3, 4, 4), torch.zeros(2, 2), decay_fg=1.01), ["not 1.01"]),
        (lambda: expand_loss(torch.rand(2, 3, 4, 4), torch.zeros(2, 2), decay_bg=-0.01), ["not -0.01"]),
        (lambda: constrain_loss(torch.rand(2, 3, 4, 4), torch.rand(1, 3, 4, 4)), ["(1, 3, 4, 4)", "(2, 3, 4, 4)"]),
        (lambda: constrain_loss(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)), ["(2, 1, 4, 4)"]),
        (lambda: sec_probabilities(torch.rand(3, 4, 4)), ["sec_probabilities: logits", "(3, 4, 4)"]),
        (
            lambda: partial_cross_entropy(torch.rand(2, 3, 4, 4), torch.zeros(2, 8, 8, dtype=torch.int64)),
            ["partial_cross_entropy", "(2, 8, 8)", "(2, 4, 4)", "(2, 3, 4, 4)"],
        ),
        (lambda: box_loss(torch.rand(2, 3, 4, 4), [torch.zeros(0, 5)]), ["boxes of 1 images", "(2, 3, 4, 4)"]),
        (lambda: box_loss(torch.rand(2, 4, 4), [torch.zeros(0, 5)] * 2), ["box_loss: probs", "(2, 4, 4)"]),
        (lambda: box_loss(torch.rand(1, 3, 4, 4), [torch.ones(2, 5) * 3]), ["classes [3]", "(1, 3, 4, 4)", "1..C"]),
        (lambda: box_loss(torch.rand(1, 3, 4, 4), [torch.zeros(1, 5)]), ["classes [0]", "(1, 3, 4, 4)", "1..C"]),
    ],
)
def test_wrong_shapes_and_decays_are_quoted(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(part in str(caught.value) for part in words)


def test_partial_cross_entropy_is_the_mean_over_all_pixels_of_which_undrawn_ones_add_nothing():
    logits = torch.tensor([[[[2.0, 0.0, 1.0]], [[0.0, 0.0, 3.0]]]] * 3, dtype=torch.float64)  # (3, 2, 1, 3)
    mask = torch.tensor([[[0, 255, 1]], [[255, 0, 255]], [[255, 255, 255]]])
    first = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-2))) / 3  # of 3 pixels, 2 are drawn
    assert partial_cross_entropy(logits, mask).item() == pytest.approx((first + math.log(2) / 3 + 0) / 3, rel=1e-6)
    assert partial_cross_entropy(logits, mask, 0.5).item() == pytest.approx((first + math.log(2) / 2 + 0) / 3, rel=1e-6)
    assert partial_cross_entropy(logits, mask, 1.0).item() == pytest.approx(
        (1.5 * first + math.log(2) + 0) / 3, rel=1e-6
    )


def test_partial_cross_entropy_of_whole_masks_is_torchs_cross_entropy_and_unknown_pixels_have_no_gradient():
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 5, 6, requires_grad=True)
    mask = torch.randint(0, 3, (4, 5, 6))
    wanted = torch.nn.functional.cross_entropy(logits, mask)
    assert partial_cross_entropy(logits, mask).item() == pytest.approx(wanted.item(), rel=1e-6)
    mask[torch.rand(mask.shape) < 0.7] = 255
    partial_cross_entropy(logits, mask.byte()).backward()  # uint8, as in files
    undrawn = (mask == 255)[:, None].expand_as(logits)
    assert (logits.grad[undrawn] == 0).all()
    assert (logits.grad[~undrawn] != 0).all()


def slow_lovasz(probs, labels):
    """Lovász extension of 1 - IoU, mean over the present classes, by its definition; probs (n, K), labels (n,)."""
    total, classes = 0.0, sorted(set(labels))
    for label in classes:
        pairs = [(1 - p[label], 1) if own == label else (p[label], 0) for p, own in zip(probs, labels, strict=True)]
        errors = sorted(pairs, key=lambda pair: -pair[0])
        count = sum(inside for _, inside in errors)
        before = 0.0
        for number in range(1, len(errors) + 1):
            wrong = errors[:number]  # pixels that are wrong first
            missed = sum(inside for _, inside in wrong)
            jaccard = 1 - (count - missed) / (count + number - missed)
            total += errors[number - 1][0] * (jaccard - before)
            before = jaccard
    return total / len(classes)


def test_lovasz_loss_is_its_definition_at_drawn_pixels():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([0, 1, 2, 255]).repeat(6).view(2, 3, 4)
    mask[0, 0, 0] = 255
    drawn = mask.flatten() != 255
    probs = logits.detach().softmax(1).permute(0, 2, 3, 1).reshape(-1, 3)[drawn].tolist()
    expected = slow_lovasz(probs, mask.flatten()[drawn].tolist())
    found = lovasz_loss(logits, mask)
    assert found.item() == pytest.approx(17 / 24 * expected, rel=1e-5)
    found.backward()
    assert (logits.grad.abs().sum(1).flatten()[~drawn] == 0).all()
    larger = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)  # the centre of each position counts
    assert lovasz_loss(logits, larger).item() == pytest.approx(found.item(), rel=1e-6)
    assert lovasz_loss(logits, torch.full((2, 6, 8), 255)).item() == 0
    perfect = 100 * torch.nn.functional.one_hot(torch.tensor([[[0, 1, 2, 1]]]), 3).permute(0, 3, 1, 2).double()
    assert lovasz_loss(perfect, torch.tensor([[[0, 1, 2, 1]]])).item() == pytest.approx(0, abs=1e-6)


def slow_box_loss(probs, boxes):
    """Loops over everything, in float64."""
    total = 0.0
    for image, own in zip(probs.double().tolist(), boxes, strict=True):
        terms = []
        for label in {int(box[0]) for box in own.tolist()}:
            p = image[label]
            h, w = len(p), len(p[0])
            rectangles = [box[1:] for box in own.tolist() if box[0] == label]

            def covered(first, last, count):  # centres between the sides, or else the position of the box's own centre
                inside = [i for i in range(count) if first <= (i + 0.5) / count < last]
                return inside or [math.floor((first + last) / 2 * count)]

            def within(y, x, box, h=h, w=w):
                left, top, right, bottom = box
                return x in covered(left, right, w) and y in covered(top, bottom, h)

            outside = [
                -math.log(1 - p[y][x]) for y in range(h) for x in range(w)
                if not any(within(y, x, box) for box in rectangles)
            ]  # fmt: skip
            lines = []
            for box in rectangles:
                left, top, right, bottom = box
                inside = [(y, x) for y in range(h) for x in range(w) if within(y, x, box)]
                if left >= 0 and right <= 1:
                    lines += [-math.log(max(p[y][x] for y, x in inside if y == row)) for row in {y for y, _ in inside}]
                if top >= 0 and bottom <= 1:
                    lines += [-math.log(max(p[y][x] for y, x in inside if x == col)) for col in {x for _, x in inside}]
            terms.append((sum(outside) / max(1, len(outside))) + (sum(lines) / max(1, len(lines))))
        total += sum(terms) / max(1, len(terms))
    return total / len(probs)


BOXES = [
    torch.tensor([[1, 0.1, 0.2, 0.6, 0.7]]),
    torch.tensor([
        [1, -0.3, 0.0, 0.5, 0.5], [2, 0.25, 0.5, 1.0, 1.2], [1, 0.4, 0.4, 0.95, 0.8], [2, 0.41, 0.41, 0.42, 0.42],
    ]),
    torch.zeros(0, 5),
]  # fmt: skip


def test_box_loss_equals_a_slow_loop():
    torch.manual_seed(1)
    probs = torch.randn(3, 3, 7, 9, dtype=torch.float64).softmax(dim=1)
    assert box_loss(probs, BOXES).item() == pytest.approx(slow_box_loss(probs, BOXES), rel=1e-6)
    shuffled = [own[torch.randperm(len(own))] for own in BOXES]
    assert box_loss(probs, shuffled).item() == pytest.approx(box_loss(probs, BOXES).item(), rel=1e-6)
    assert box_loss(probs[2:], BOXES[2:]).item() == 0


@pytest.mark.parametrize(("side", "edge", "outward"), [(1, 0, -1), (2, 0, -1), (3, 1, 1), (4, 1, 1)])
def test_box_loss_of_a_box_whose_side_is_rounded(side, edge, outward):
    """A side a little beyond the image, as files with six decimals have it, is at the image's edge."""
    probs = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    box, losses = torch.tensor([[1, 0.25, 0.25, 0.75, 0.75]]), []
    for distance in (0, 5e-7, 0.002, 0.1):  # 0.002 is a pixel of VOC's 500
        box[0, side] = edge + outward * distance
        losses.append(box_loss(probs, [box]))
    exact, rounded, by_a_pixel, beyond = losses
    assert rounded == pytest.approx(float(exact), rel=1e-6)
    assert by_a_pixel == pytest.approx(float(beyond), rel=1e-6)
    assert beyond != pytest.approx(float(exact), rel=1e-3)


def test_box_loss_of_a_box_smaller_than_a_position():
    """The class is present at the position of the box's centre, and absent elsewhere.

    A box beyond the image, or without width at the edge of the image, contains no position: the class is absent.
    """
    p = torch.linspace(0.1, 0.9, 8, dtype=torch.float64).reshape(2, 4)
    probs = torch.stack([1 - p, p])[None]
    inside = box_loss(probs, [torch.tensor([[1, 0.3, 0.3, 0.36, 0.4]])])  # at row 0, column 1
    outside = p.flatten()[[0, *range(2, 8)]]
    assert inside.item() == pytest.approx((-(1 - outside).log().mean() - p[0, 1].log()).item())
    for box in ([1, 0.3, -0.4, 0.36, -0.3], [1, 1.0, 0.0, 1.0, 1.0]):
        nowhere = box_loss(probs, [torch.tensor([box])])
        assert nowhere.item() == pytest.approx(-(1 - p).log().mean().item())


def test_box_loss_moves_a_class_into_its_box():
    logits = torch.zeros(1, 2, 8, 8, requires_grad=True)
    box_loss(logits.softmax(dim=1), [torch.tensor([[1, 0.25, 0.25, 0.75, 0.75]])]).backward()
    push = -logits.grad[0, 1]
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 2:6] = True
    assert (push[~inside] < 0).all()
    assert push[inside].sum() > 0
    perfect = torch.where(inside, 1.0, 0.0)
    assert (
        box_loss(torch.stack([1 - perfect, perfect])[None], [torch.tensor([[1, 0.25, 0.25, 0.75, 0.75]])]).item() < 1e-5
    )


def test_image_weights():
    torch.manual_seed(2)
    probs, crf_probs = (torch.randn(3, 4, 5, 5).softmax(dim=1) for _ in range(2))
    cues = torch.rand(3, 4, 5, 5) < 0.3
    labels = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    weights = torch.tensor([0.0, 0.25, 1.0])
    for loss, other in (
        (seed_loss, cues), (balanced_cross_entropy, cues), (expand_loss, labels), (constrain_loss, crf_probs),
    ):  # fmt: skip
        each = torch.stack([loss(probs[i : i + 1], other[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(loss(probs, other, image_weights=weights), (each * weights).mean())
        torch.testing.assert_close(loss(probs, other, image_weights=torch.ones(3)), loss(probs, other))


def test_losses_of_bfloat16_probabilities_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    probs, crf_probs = (torch.randn(2, 3, 4, 4, generator=generator).softmax(1).bfloat16() for _ in range(2))
    cues = torch.rand(2, 3, 4, 4, generator=generator) < 0.5
    boxes = [torch.tensor([[1, 0.1, 0.2, 0.6, 0.7]]), torch.tensor([[2, 0.3, 0.3, 1.0, 1.0]])]
    for loss, other, exact in (
        (seed_loss, cues, cues), (balanced_cross_entropy, cues, cues), (expand_loss, *[torch.ones(2, 2)] * 2),
        (constrain_loss, crf_probs, crf_probs.float()), (box_loss, boxes, boxes),
    ):  # fmt: skip
        found = loss(probs, other)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(loss(probs.float(), exact).item(), rel=1e-6)


def test_losses_of_bfloat16_scores_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 6, 6, generator=generator).bfloat16()
    mask = torch.randint(0, 3, (2, 6, 6), generator=generator)
    for loss in (partial_cross_entropy, lovasz_loss):
        found = loss(logits, mask)
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(loss(logits.float(), mask).item(), rel=1e-6)
