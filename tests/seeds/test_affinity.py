"""Affinities from boundaries, their loss, and the random walk along them, against plain formulas in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from datamodules.errors import InputError
from seeds.affinity.affinity_loss import affinity_loss, tensor_loss
from seeds.affinity.affinity_task import AffinityTask, BoundaryNetwork
from seeds.affinity.pair_affinities import affinities, pair_offsets, path_between
from seeds.affinity.random_walk import TOLERANCE, chebyshev_of_power, random_walk
from seeds.backbones import build_backbone
from seeds.score_maps import cue_labels, resize_labels
from tests.seeds.conftest import data_of


def affinity_of(boundary, a, b):
    """1 - the highest boundary at the positions within distance 1 of the line from a to b, as irn's ``PathIndex``."""
    (y0, x0), (y1, x1) = a, b
    down, right = y1 - y0, x1 - x0
    between = [
        boundary[y, x]
        for y in range(min(y0, y1), max(y0, y1) + 1)
        for x in range(min(x0, x1), max(x0, x1) + 1)
        if (down * (x - x0) - right * (y - y0)) ** 2 / (down**2 + right**2) < 1
    ]
    return 1 - max(between)


def pairs_of(shape, radius):
    positions = [(y, x) for y in range(shape[0]) for x in range(shape[1])]
    return [
        (a, b) for a in positions for b in positions if a < b and (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < radius**2
    ]


def test_offsets_and_paths_by_hand():
    assert pair_offsets(2) == ((0, 1), (1, -1), (1, 0), (1, 1))
    assert len(pair_offsets(5)) == 34  # psa's number of pairs of radius 5
    assert path_between((0, 2)) == ((0, 0), (0, 1), (0, 2))
    assert path_between((1, -1)) == ((0, -1), (0, 0), (1, -1), (1, 0))  # both corners are nearer than 1 to the line
    assert set(path_between((2, 2))) == {(0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)}
    assert (0, 2) not in path_between((4, 2))  # 8 / √20 positions from the line
    assert {(2, 3), (1, 2)} < set(path_between((3, 4)))
    assert (1, 3) not in path_between((3, 4))  # 5 / 5 positions from the line


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_affinities_of_all_pairs(radius, height, width, seed):
    boundary = np.random.default_rng(seed).random((height, width))
    found = affinities(torch.from_numpy(boundary)[None], radius)[0].numpy()
    seen = 0
    for a, b in pairs_of((height, width), radius):
        index = pair_offsets(radius).index((b[0] - a[0], b[1] - a[1]))
        assert found[index][a] == affinity_of(boundary, a, b)
        seen += 1
    assert np.count_nonzero(found) == seen  # no pair leads out of the map


@pytest.mark.parametrize("loss", [affinity_loss, tensor_loss])
def test_the_loss_by_a_plain_sum(loss):
    generator = np.random.default_rng(0)
    radius, shape = 3, (4, 5)
    boundary = generator.random((2, *shape))
    labels = generator.choice([0, 0, 1, 2, 255], (2, *shape))
    terms = {"bg": [], "fg": [], "apart": []}
    for edge, own in zip(boundary, labels, strict=True):
        for a, b in pairs_of(shape, radius):
            one, other, alike = own[a], own[b], affinity_of(edge, a, b)
            if 255 in (one, other):
                continue
            kind = "apart" if one != other else "fg" if one else "bg"
            terms[kind].append(-np.log((1 - alike if one != other else alike) + 1e-5))
    wanted = np.mean(terms["bg"]) / 2 + np.mean(terms["fg"]) / 2 + np.mean(terms["apart"])
    found = loss(torch.from_numpy(boundary), torch.from_numpy(labels), radius)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss(torch.from_numpy(boundary).float(), torch.from_numpy(labels), radius)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", [affinity_loss, tensor_loss])
def test_nothing_known_costs_nothing_and_its_gradient_is_none(loss):
    boundary = torch.full((1, 4, 4), 0.5, requires_grad=True)
    found = loss(boundary, torch.full((1, 4, 4), 255), 3)
    found.backward()
    assert found.item() == 0
    assert not boundary.grad.any()


@pytest.mark.parametrize("loss", [affinity_loss, tensor_loss])
def test_a_boundary_that_is_no_number_has_a_loss_that_is_none(loss):
    """The training then stops with a message; the compiled loss would read beyond its arrays."""
    boundary = torch.rand(1, 20, 20)
    boundary[0, 3, 4] = torch.nan
    assert loss(boundary.requires_grad_(), torch.randint(0, 3, (1, 20, 20)), 5).isnan()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"labels \(1, 5, 4\) must be as boundary \(1, 4, 4\)"):
        affinity_loss(torch.rand(1, 4, 4), torch.zeros(1, 5, 4), 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 10), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_compiled_loss_and_its_gradient_are_autograds(radius, images, height, width, seed):
    """All boundaries differ, because autograd shares the gradient of equal ones; 0 and 1 are among them."""
    generator = torch.Generator().manual_seed(seed)
    size = images * height * width
    boundary = (torch.randperm(size, generator=generator) / max(1, size - 1)).view(images, height, width)
    values = torch.tensor([0, 0, 1, 2, 254, 255])
    labels = values[torch.randint(0, len(values), boundary.shape, generator=generator)]
    results = []
    for loss, dtype in ((affinity_loss, torch.float32), (tensor_loss, torch.float64)):
        leaf = boundary.to(dtype).detach().clone().requires_grad_()
        value = loss(leaf, labels, radius)
        (3 * value).backward()
        results.append((value.detach().double(), leaf.grad.double()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_loss_on_a_gpu():
    boundary, labels = torch.rand(2, 20, 20), torch.randint(0, 3, (2, 20, 20))
    found = affinity_loss(boundary.cuda(), labels.cuda(), 5)
    torch.testing.assert_close(found.cpu(), affinity_loss(boundary, labels, 5), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "radius", "steps"),
    [((5, 6), 3, 1), ((5, 6), 3, 2), ((5, 6), 3, 16), ((5, 6), 3, 256), ((2, 15), 9, 2), ((1, 1), 5, 2)],
)
def test_the_walk_is_irns_matrix_squared(shape, radius, steps):
    """As irn: affinity^beta, columns of sum 1, the matrix squared ``exp_times`` times, and x · (1 - edge) @ T."""
    generator = np.random.default_rng(1)
    boundary = generator.random(shape).astype(np.float32)
    maps = generator.random((2, *shape)).astype(np.float32)
    positions = maps[0].size
    whole = np.eye(positions)
    for a, b in pairs_of(shape, radius):
        i, j = a[0] * shape[1] + a[1], b[0] * shape[1] + b[1]
        whole[i, j] = whole[j, i] = affinity_of(boundary.astype(float), a, b) ** 10
    matrix = whole / whole.sum(axis=0, keepdims=True)
    for _ in range(steps.bit_length() - 1):
        matrix = matrix @ matrix
    wanted = (maps * (1 - boundary)).reshape(2, positions) @ matrix
    found = random_walk(maps, boundary, radius=radius, beta=10, steps=steps)
    np.testing.assert_allclose(found.reshape(2, positions), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("power", "wanted"), [(0, [1]), (1, [0, 1]), (2, [0.5, 0, 0.5]), (3, [0, 0.75, 0, 0.25])])
def test_chebyshev_coefficients_by_hand(power, wanted):
    np.testing.assert_allclose(chebyshev_of_power(power), wanted, rtol=1e-6)


@pytest.mark.parametrize("power", [16, 255, 256, 2000])
def test_a_power_is_its_chebyshev_series(power):
    x = np.cos(np.linspace(0, np.pi, 1001))
    found = np.polynomial.chebyshev.chebval(x, chebyshev_of_power(power).astype(float))
    np.testing.assert_allclose(found, x**power, rtol=0, atol=3e-6)
    assert len(chebyshev_of_power(power)) <= 2 + np.sqrt(2 * power * np.log(2 / TOLERANCE))


def test_a_wall_holds_the_walk_up():
    boundary = np.zeros((9, 12), np.float32)
    boundary[:, 6] = 1
    maps = np.zeros((1, 9, 12), np.float32)
    maps[0, 4, 1] = 1
    found = random_walk(maps, boundary, radius=5, steps=2000)[0]
    assert (found[:, 6:] == 0).all()
    inside = found[:, :6]  # the walk reaches all of it; a symmetric walk ends proportional to the positions' weights
    assert inside.min() > 0.5 * inside.max() > 0
    assert not random_walk(np.zeros((0, 9, 12), np.float32), boundary).size
    by_default = random_walk(maps, boundary)
    np.testing.assert_array_equal(by_default, random_walk(maps, boundary, radius=5, beta=10, steps=256))
    assert by_default.min() == 0  # and not below
    # the shares of a position and its neighbours sum to 1: a map of ones without boundaries stays as it is
    ones = np.ones((1, 9, 12), np.float32)
    np.testing.assert_allclose(random_walk(ones, 0 * boundary, radius=5, beta=10, steps=1), ones, rtol=1e-5)


@pytest.mark.parametrize(("name", "ends"), [("resnet18", 4), ("mobilenet_v2", 4), ("vgg16", 4)])
def test_networks_of_several_kinds_see_boundaries(name, ends):
    backbone = build_backbone(name, 16)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    network = BoundaryNetwork(backbone)
    assert len(network.stages) == ends
    network.train()
    scores = network(torch.rand(2, 3, 63, 97))
    assert scores.shape == (2, 16, 25)  # rounded up
    scores.sum().backward()
    assert all(p.grad is not None for p in (*network.looks.parameters(), *network.head.parameters()))
    assert all(p.grad is None for p in network.features.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.features.state_dict().items())
    with torch.autocast("cpu", torch.bfloat16):
        assert network(torch.rand(1, 3, 32, 32)).dtype == torch.float32


@pytest.mark.parametrize("name", ["tu-vit_tiny_patch16_224", "tu-vit_small_patch14_dinov2"])
def test_a_network_without_maps_sees_no_boundaries(name):
    with pytest.raises(InputError, match="needs a backbone of convolutions, whose stages give maps"):
        BoundaryNetwork(build_backbone(name, 16))


def test_every_stage_is_resized_to_stride_4():
    """The maps of all stages, resized bilinearly with aligned centres, are concatenated before the head."""
    network = BoundaryNetwork(build_backbone("resnet18", 16)).eval()
    images, encoder = torch.randn(1, 3, 64, 96), network.features.encoder
    with torch.no_grad():
        maps, x = [], encoder.maxpool(encoder.relu(encoder.bn1(encoder.conv1(images))))
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            x = stage(x)
            maps.append(x)
        seen = [
            functional.interpolate(look(each), (16, 24), mode="bilinear", align_corners=False)
            for look, each in zip(network.looks, maps, strict=True)
        ]
        torch.testing.assert_close(network(images), network.head(torch.cat(seen, 1))[:, 0])


def test_cues_on_another_grid():
    cues = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    cues[0, 0, 0, 0] = cues[0, 2, 1, 1] = True
    assert resize_labels(cue_labels(cues), torch.Size((4, 4)))[0].tolist() == [
        [0, 0, 255, 255], [0, 0, 255, 255], [255, 255, 2, 2], [255, 255, 2, 2],
    ]  # fmt: skip


def test_cues_on_a_coarser_grid():
    """Each position has the cue under its centre: of three positions, the first and the last."""
    cues = torch.zeros(1, 4, 1, 3, dtype=torch.bool)
    cues[0, 1, 0, 0] = cues[0, 2, 0, 1] = cues[0, 3, 0, 2] = True
    assert resize_labels(cue_labels(cues), torch.Size((1, 2))).tolist() == [[[1, 3]]]


def test_a_step_of_training_finds_the_edges(voc):
    """Rectangles on gray: after a few steps the boundaries are where the labels change."""
    torch.manual_seed(0)
    data = data_of(voc, targets="masks")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    mask = batch["mask"]
    cues = torch.stack([mask == index for index in range(3)], dim=1)
    task = AffinityTask(["red", "blue"], backbone="resnet18", radius=5)
    solver = torch.optim.Adam(task.network.parameters(), lr=0.01)
    task.log = lambda *_args, **_more: None
    losses = []
    for step in range(40):
        loss = task.training_step({"image": batch["image"], "cues": cues}, step)
        solver.zero_grad()
        loss.backward()
        solver.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    boundary = task(batch["image"])
    labels = resize_labels(cue_labels(cues), boundary.shape[-2:])
    change = torch.zeros_like(labels, dtype=torch.bool)
    for axis in (1, 2):
        edge = labels.diff(dim=axis) != 0
        pad = torch.zeros_like(labels[:, :1] if axis == 1 else labels[:, :, :1], dtype=torch.bool)
        change |= torch.cat([edge, pad], dim=axis) | torch.cat([pad, edge], dim=axis)
    assert boundary[change].mean() > 2 * boundary[~change].mean()


@pytest.mark.parametrize(("options", "radius"), [({"radius": 2}, 2), ({"radius": 4}, 4), ({}, 10)])
def test_the_loss_of_a_training_step_has_the_radius_of_the_task(options, radius):
    torch.manual_seed(0)
    task = AffinityTask(["a"], backbone="resnet18", **options)
    task.log = lambda *_args, **_more: None
    images, cues = torch.randn(2, 3, 64, 64), torch.zeros(2, 2, 16, 16, dtype=torch.bool)
    cues[:, 0, :, :7] = cues[:, 1, :, 9:] = True
    wanted = affinity_loss(task(images), cue_labels(cues), radius)
    torch.testing.assert_close(task.training_step({"image": images, "cues": cues}, 0), wanted)


def test_a_boundary_above_one_by_its_rounding():
    """No power of a negative number: the walk stays where it is."""
    maps = np.random.default_rng(0).random((1, 8, 8), dtype=np.float32)
    found = random_walk(maps, np.full((8, 8), 1 + 1.2e-7, np.float32), beta=2.5)
    np.testing.assert_allclose(found, 0, atol=1e-5)


def test_fixed_positions_keep_their_values():
    """By the matrix of irn, whose columns at fixed positions are those of the identity."""
    generator = np.random.default_rng(5)
    shape, radius, steps = (5, 6), 3, 12
    maps, boundary = generator.random((2, *shape), dtype=np.float32), generator.random(shape, dtype=np.float32) * 0.6
    fixed = np.zeros(shape, bool)
    fixed[1, 2] = fixed[4, 5] = True
    matrix = np.eye(30)
    for a, b in pairs_of(shape, radius):
        i, j = a[0] * 6 + a[1], b[0] * 6 + b[1]
        matrix[i, j] = matrix[j, i] = affinity_of(boundary.astype(float), a, b) ** 10
    matrix /= matrix.sum(axis=0, keepdims=True)
    matrix[:, fixed.ravel()] = np.eye(30)[:, fixed.ravel()]
    start = np.where(fixed, maps, maps * (1 - boundary)).reshape(2, -1)
    wanted = (start @ np.linalg.matrix_power(matrix, steps)).reshape(2, *shape)
    found = random_walk(maps, boundary, radius=radius, steps=steps, fixed=fixed)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[:, fixed], maps[:, fixed])
