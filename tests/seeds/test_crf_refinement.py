import numpy as np
import pytest
import torch

from datamodules.seed_cache import SeedCache
from seeds import crf_refinement
from seeds.crf_refinement import PIXELS_PER_POSITION, crf_settings, refined_cues
from seeds.generate_seeds import generate_seeds

GREY = torch.full((3, 16, 16), 128, dtype=torch.uint8)


def test_confident_and_open_positions_by_hand(monkeypatch):
    """Without a CRF: 0.30 and above is the class, 0.05 and below background, the rest open; of two the higher."""
    monkeypatch.setattr(crf_refinement, "dense_crf", lambda _image, logits, **_numbers: logits.softmax(dim=1))
    monkeypatch.setattr(crf_refinement, "PIXELS_PER_POSITION", 1)
    first = np.array([[10, 3.1, 2.9, 0.6, 0.4, 0]], np.float32)
    second = np.array([[0, 0.35, 0.29, 0.04, 0.06, 1]], np.float32)
    positions = refined_cues(np.array([4, 1]), np.stack([first, second]), GREY)
    assert positions.tolist() == [[5, 2, 255, 255, 255, 2]]
    assert refined_cues(np.array([4]), first[None], GREY).tolist() == [[5, 5, 255, 255, 0, 0]]
    assert refined_cues(np.array([4]), first[None], GREY, conf_fg=0.28, conf_bg=0.07).tolist() == [[5, 5, 5, 0, 0, 0]]


@pytest.mark.parametrize(("number", "others"), [(1, [0.3]), (2, [0.15, 0.15]), (3, [0.1, 0.1, 0.1])])
def test_what_the_crf_is_told(monkeypatch, number, others):
    """A winner is right by 0.7, and the others share the rest; maps are enlarged bilinearly, four pixels a position."""
    seen = {}

    def spy(photo, logits, **numbers):
        seen.update(photo=photo, probs=logits.double().exp().numpy()[0], numbers=numbers)
        return logits.softmax(dim=1)

    monkeypatch.setattr(crf_refinement, "dense_crf", spy)
    maps = np.zeros((number, 1, 2), np.float32)
    maps[-1] = [0, 2]
    assert refined_cues(np.arange(number), maps, GREY, 0.5, 0.5).tolist() == [[0, number]]
    assert seen["photo"].shape == (1, 3, 4, 8)
    winners = seen["probs"][:, 0].argmax(0)
    assert winners.tolist() == [0] * 4 + [number] * 4  # values 0 0 1/8 3/8 | 5/8 7/8 1 1
    assert refined_cues(np.arange(number), maps, GREY, 0.3, 0.3).tolist() == [[0, number]]
    assert seen["probs"][:, 0].argmax(0).tolist() == [0] * 3 + [number] * 5
    for pixel in seen["probs"][:, 0].T:
        np.testing.assert_allclose(np.sort(pixel), [*others, 0.7], rtol=1e-5)


def test_an_image_without_maps_or_with_empty_ones():
    assert (refined_cues(np.zeros(0, np.int64), np.zeros((0, 3, 4), np.float32), GREY) == 255).all()
    assert (refined_cues(np.array([0]), np.zeros((1, 3, 4), np.float32), GREY) == 0).all()


def photo(side):
    """A red disc on green, and a map that is a blur to its right, as uint8 (3, S, S) and float32 (1, S/8, S/8)."""
    y, x = np.mgrid[:side, :side] / side
    disc = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.3**2
    image = np.where(disc, np.array([200, 40, 40])[:, None, None], np.array([40, 160, 60])[:, None, None])
    h = side // 8
    v, u = (np.mgrid[:h, :h] + 0.5) / h
    blob = np.exp(-((u - 0.58) ** 2 + (v - 0.5) ** 2) / (2 * 0.18**2)).astype(np.float32)
    return torch.from_numpy(image.astype(np.uint8)), blob[None], (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.3**2


def test_labels_follow_the_image():
    """A blur beside the object becomes the object; what stays open lies about its edge."""
    image, maps, truth = photo(128)
    positions = refined_cues(np.array([2]), maps, image)
    plain = maps[0] > 0.3
    assert ((positions == 3) & ~truth).sum() < (plain & ~truth).sum() / 3
    assert ((positions == 3) & truth).sum() > 0.9 * truth.sum()
    assert (truth[positions == 0]).sum() == 0
    assert (positions == 0).sum() > 0.3 * positions.size


def test_as_irn_does_with_pydensecrf():
    """The same steps with pydensecrf2, at the same size."""
    library = pytest.importorskip("pydensecrf.densecrf")
    image, maps, _ = photo(128)
    side, found = 16 * PIXELS_PER_POSITION, []
    share = torch.nn.functional.interpolate(torch.from_numpy(maps / maps.max())[None], (side, side), mode="bilinear")
    small = np.ascontiguousarray(image.numpy().reshape(3, side, 2, side, 2).mean((2, 4)).round().transpose(1, 2, 0))
    for threshold in (0.30, 0.05):
        label = (share[0, 0].numpy() > threshold).astype(int)
        crf = library.DenseCRF2D(side, side, 2)
        energy = -np.log(np.where(np.arange(2)[:, None] == label.ravel(), 0.7, 0.3)).astype(np.float32)
        crf.setUnaryEnergy(np.ascontiguousarray(energy))
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=50 * side / 433, srgb=5, rgbim=small.astype(np.uint8), compat=10)
        found.append(np.array(crf.inference(10)).reshape(2, side, side).argmax(0))
    labels = np.where(found[0] > 0, 1, np.where(found[1] == 0, 0, 255))
    centres = np.s_[PIXELS_PER_POSITION // 2 :: PIXELS_PER_POSITION]
    assert (refined_cues(np.array([0]), maps, image) == labels[centres, centres]).mean() > 0.97


def test_in_the_generator(checkpoint, tmp_path):
    """The refined labels are the cues, the raw maps beside them what they are without; the manifest has the numbers."""
    generate_seeds(checkpoint, tmp_path / "plain")
    generate_seeds(checkpoint, tmp_path / "crf", refine="crf", conf_fg=0.4)
    plain, crf = SeedCache(tmp_path / "plain"), SeedCache(tmp_path / "crf")
    recorded = crf.settings["refinement"]
    expected = {"method": "crf", "conf_fg": 0.4, "conf_bg": 0.05, "bilateral_srgb": 5}
    assert {key: recorded[key] for key in expected} == expected
    assert plain.settings["refinement"] is None
    for name in plain.ids:
        for one, other in zip(plain.maps(name), crf.maps(name), strict=True):
            np.testing.assert_array_equal(one, other)
        assert set(np.unique(crf.cues(name))) <= {0, 255, *(crf.maps(name)[0] + 1)}
    assert any((plain.cues(name) != crf.cues(name)).any() for name in plain.ids)


def test_the_manifest_holds_the_numbers_of_the_call(monkeypatch):
    """What is recorded is what the CRF is called with: one table of numbers for both."""
    calls = []

    def crf(image, logits, **numbers):
        calls.append(numbers)
        return logits

    monkeypatch.setattr(crf_refinement, "dense_crf", crf)
    maps = np.zeros((1, 8, 16), np.float32)
    maps[0, :4] = 1
    refined_cues(np.array([0]), maps, torch.zeros(3, 32, 64, dtype=torch.uint8), 0.25, 0.25)
    recorded = crf_settings()
    expected = {
        key: value for key, value in recorded.items() if key not in ("certainty", "pixels_per_position", "side")
    }
    expected["bilateral_sxy"] *= (32 * 64) ** 0.5 / recorded["side"]
    assert calls == [pytest.approx(expected)]
    for grid, side in (((8, 16), (32, 64)), ((4, 4), (16, 16))):  # of a tile, objects in which have a tile's size
        refined_cues(np.array([0]), maps, torch.zeros(3, 32, 64, dtype=torch.uint8), 0.25, 0.25, grid=grid)
        assert calls[-1]["bilateral_sxy"] == pytest.approx(recorded["bilateral_sxy"] * np.prod(side) ** 0.5 / 433)
    monkeypatch.setattr(crf_refinement, "CRF", {**crf_refinement.CRF, "iterations": 3})
    refined_cues(np.array([0]), maps, torch.zeros(3, 32, 64, dtype=torch.uint8), 0.25, 0.25)
    assert (crf_settings()["iterations"], calls[-1]["iterations"]) == (3, 3)


def test_the_crf_sees_the_mean_of_the_pixels_that_its_own_stand_for(monkeypatch):
    """Stripes of one bright column in four, reduced by four, are gray."""
    seen = {}

    def spy(image, logits, **_numbers):
        seen["image"] = image
        return logits.softmax(dim=1)

    monkeypatch.setattr(crf_refinement, "dense_crf", spy)
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)
    image[:, :, ::4] = 200
    refined_cues(np.array([0]), np.ones((1, 2, 4), np.float32), image)
    assert seen["image"].shape == (1, 3, 8, 16)
    assert (seen["image"] == 50).all()
