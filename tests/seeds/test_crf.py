"""Test the dense CRF: both engines against a float64 mean field, pydensecrf2, and each other."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seeds.crf import dense_crf
from seeds.crf import lattice_mean_field as lattice_module
from seeds.crf.gaussian_kernels import Kernels
from seeds.crf.lattice_mean_field import lattice_mean_field
from seeds.crf.torch_lattice_mean_field import torch_lattice_mean_field

ENGINES = ("exact", "lattice")
SEC = {"scale": 12.0}


def example(b: int = 2, k: int = 5, h: int = 13, w: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An image of two noisy halves, and logits that lean to one label in each."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 40, (b, 3, h, w), generator=generator)
    image[..., w // 2 :] += 120
    logits = torch.randn(b, k, h, w, generator=generator)
    logits[:, 0, :, : w // 2] += 1
    logits[:, -1, :, w // 2 :] += 1
    return image.to(torch.uint8), logits


def mean_field_float64(image: np.ndarray, logits: np.ndarray, kernels: Kernels, iterations: int) -> np.ndarray:
    """Equation 4 of Krähenbühl & Koltun with explicit sums over pairs: image (3, H, W), logits (K, H, W)."""
    k, h, w = logits.shape
    ys, xs = np.mgrid[:h, :w].reshape(2, -1).astype(np.float64)
    colors = image.reshape(3, -1).T.astype(np.float64)
    unary = logits.reshape(k, -1).T.astype(np.float64)
    square = (xs[:, None] - xs) ** 2 + (ys[:, None] - ys) ** 2
    color = ((colors[:, None] - colors[None]) ** 2).sum(2)
    near = np.exp(-square / (2 * kernels.bilateral_sxy**2) - color / (2 * kernels.bilateral_srgb**2))
    smooth = np.exp(-square / (2 * kernels.gaussian_sxy**2))
    message = np.zeros_like(near)
    for weight, kernel in ((kernels.bilateral_weight, near), (kernels.gaussian_weight, smooth)):
        norm = 1 / np.sqrt(kernel.sum(1))
        message += weight * norm[:, None] * kernel * norm
    scores = unary
    for _ in range(iterations + 1):
        q = np.exp(scores - scores.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        scores = unary + message @ q
    return q.T.reshape(k, h, w)


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_exact_is_the_mean_field(scale: float) -> None:
    image, logits = example()
    probs = dense_crf(image, logits, scale=scale, engine="exact")
    for i in range(2):
        kernels = Kernels(10.0, 80 / scale, 13.0, 3.0, 3 / scale)
        expected = mean_field_float64(image[i].numpy(), logits[i].numpy(), kernels, 10)
        assert np.abs(probs[i].numpy() - expected).max() <= 1e-5


def test_other_kernels_than_those_of_sec() -> None:
    image, logits = example(b=1)
    numbers = {"bilateral_weight": 2.0, "bilateral_sxy": 6.0, "bilateral_srgb": 60.0, "gaussian_weight": 1.5}
    kernels = Kernels(2.0, 3.0, 60.0, 1.5, 2.5)  # positions at half the scale
    expected = mean_field_float64(image[0].numpy(), logits[0].numpy(), kernels, 3)
    exact, lattice = (
        dense_crf(image, logits, iterations=3, scale=2.0, gaussian_sxy=5.0, engine=engine, **numbers)
        for engine in ENGINES
    )
    assert np.abs(exact[0].numpy() - expected).max() <= 1e-5
    assert torch.equal(lattice, lattice_mean_field(image, logits, kernels, 3))
    assert (exact - lattice).abs().mean() < 0.02


def test_lattice_is_near_the_mean_field() -> None:
    image, logits = example()
    exact = dense_crf(image, logits, scale=4.0, engine="exact")
    probs = dense_crf(image, logits, scale=4.0, engine="lattice")
    assert (exact - probs).abs().mean() < 0.02
    assert (exact.argmax(1) == probs.argmax(1)).float().mean() > 0.97


def real_example(root: Path, size: tuple[int, int], count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images at the size, and logits like a network's: the mask, blurred, under smooth noise."""
    voc = root / "VOCdevkit" / "VOC2012"
    names = (voc / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:count]
    generator = torch.Generator().manual_seed(seed)
    h, w = size
    images, logits = [], []
    for name in names:
        image = Image.open(voc / "JPEGImages" / f"{name}.jpg").convert("RGB").resize((w, h), Image.Resampling.BILINEAR)
        palette = Image.open(voc / "SegmentationClassAug" / f"{name}.png").resize((w, h), Image.Resampling.NEAREST)
        mask = torch.from_numpy(np.array(palette)).long()
        mask[mask == 255] = 0
        score = torch.nn.functional.one_hot(mask, 21).permute(2, 0, 1)[None] * 3.0
        margin = max(1, h // 24)
        score = torch.nn.functional.avg_pool2d(score, 2 * margin + 1, 1, margin, count_include_pad=False)
        noise = torch.randn(1, 21, max(2, h // 8), max(2, w // 8), generator=generator)
        logits.append(score[0] + torch.nn.functional.interpolate(noise, (h, w), mode="bilinear")[0])
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(images), torch.stack(logits)


def densecrf(image: torch.Tensor, logits: torch.Tensor, scale: float, iterations: int = 10) -> torch.Tensor:
    """The reference, image by image."""
    peer = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (extra: peers)")
    kind = {"kernel": peer.DIAG_KERNEL, "normalization": peer.NORMALIZE_SYMMETRIC}
    probs = []
    for pixels, scores in zip(image.numpy(), logits.numpy(), strict=True):
        k, h, w = scores.shape
        crf = peer.DenseCRF2D(w, h, k)
        crf.setUnaryEnergy(np.ascontiguousarray(-scores.reshape(k, -1)))
        crf.addPairwiseGaussian(sxy=3 / scale, compat=3, **kind)
        rgb = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        crf.addPairwiseBilateral(sxy=80 / scale, srgb=13, rgbim=rgb, compat=10, **kind)
        probs.append(np.array(crf.inference(iterations)).reshape(k, h, w))
    return torch.from_numpy(np.stack(probs))


@pytest.mark.parametrize(("size", "scale"), [((41, 41), 12.0), ((41, 41), 1.0), ((40, 40), 6.0), ((150, 121), 1.0)])
@pytest.mark.parametrize("mean_field", [lattice_mean_field, torch_lattice_mean_field])
def test_lattices_agree_with_densecrf_on_real_images(
    real_data: Path, size: tuple[int, int], scale: float, mean_field: Callable[..., torch.Tensor]
) -> None:
    image, logits = real_example(real_data, size, 3, seed=1)
    probs = mean_field(image, logits, Kernels(10.0, 80 / scale, 13.0, 3.0, 3 / scale), 10)
    expected = densecrf(image, logits, scale)
    assert (probs.argmax(1) == expected.argmax(1)).float().mean() >= 0.995
    assert (probs - expected).abs().mean() <= 1e-4


def test_lattice_agrees_with_densecrf_on_noise() -> None:
    image, logits = example(b=2, k=3, h=24, w=31)
    image = torch.randint(0, 256, image.shape, generator=torch.Generator().manual_seed(5)).to(torch.uint8)
    probs = dense_crf(image, logits, scale=3.0)
    assert (probs - densecrf(image, logits, 3.0)).abs().max() <= 1e-3


@pytest.mark.parametrize("scale", [1.0, 3.0, 5.0, 12.0])
def test_compiled_and_torch_lattice_agree(scale: float) -> None:
    kernels = Kernels(10.0, 80 / scale, 13.0, 3.0, 3 / scale)
    for h, w in ((17, 23), (1, 1), (1, 2), (3, 1), (2, 3)):
        image, logits = example(b=3, k=9, h=h, w=w)
        one, two = (run(image, logits, kernels, 5) for run in (lattice_mean_field, torch_lattice_mean_field))
        assert (one - two).abs().max() <= 1e-4


def test_a_lattice_of_many_vertices() -> None:
    """Noise of all colours: nearly every pixel has its own six vertices."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(0, 256, (1, 3, 60, 70), generator=generator).to(torch.uint8)
    logits, kernels = torch.randn(1, 3, 60, 70, generator=generator), Kernels(10.0, 80 / 12, 13.0, 3.0, 3 / 12)
    one, two = (run(image, logits, kernels, 2) for run in (lattice_mean_field, torch_lattice_mean_field))
    assert (one - two).abs().max() <= 1e-4


def test_result_is_the_same_when_threads_divide_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    image, logits = example(b=2, k=9, h=30, w=41)
    for scale in (1.0, 12.0):
        alone = dense_crf(image, logits, scale=scale)
        monkeypatch.setattr(lattice_module, "SPLIT_PIXELS", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        assert (dense_crf(image, logits, scale=scale) - alone).abs().max() <= 1e-4
        monkeypatch.undo()


@pytest.mark.parametrize("scale", [1.0, 12.0])
def test_improbable_labels_keep_their_probabilities(scale: float) -> None:
    """Most labels have the floor of 1e-4 that SEC adds to the softmax."""
    image, logits = example(b=2, k=21, h=19, w=22)
    logits[:, 2:20] = -math.inf
    logits[:, 5, 3, 4], logits[:, 6] = 0.5, -3.0
    probs = torch.softmax(logits, 1) + 1e-4
    logits = (probs / probs.sum(1, keepdim=True)).log()
    result = dense_crf(image, logits, scale=scale)
    expected = torch_lattice_mean_field(image, logits, Kernels(10.0, 80 / scale, 13.0, 3.0, 3 / scale), 10)
    assert (result - expected).abs().max() <= 1e-4
    assert torch.allclose(result.sum(1), torch.ones(2, 19, 22), atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_iterations_is_the_softmax(engine: str) -> None:
    image, logits = example(h=9, w=10)
    assert torch.allclose(dense_crf(image, 8 * logits, iterations=0, engine=engine), (8 * logits).softmax(1), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    b=st.integers(1, 3),
    k=st.integers(1, 18),
    h=st.integers(1, 12),
    w=st.integers(1, 12),
    seed=st.integers(0, 99),
    scale=st.sampled_from([0.5, 1.0, 4.0, 12.0]),
    engine=st.sampled_from(ENGINES),
)
def test_properties(b: int, k: int, h: int, w: int, seed: int, scale: float, engine: str) -> None:
    image, logits = example(b, k, h, w, seed)
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, image.shape, generator=generator).to(torch.uint8)
    before = image.clone(), logits.clone()
    run = {
        "scale": scale,
        "engine": engine,
        "iterations": 2,
    }  # on noise each makes the last bit of a score count for more
    probs = dense_crf(image, logits, **run)
    assert probs.shape == logits.shape
    assert probs.dtype == torch.float32
    assert torch.isfinite(probs).all()
    assert torch.allclose(probs.sum(1), torch.ones(b, h, w), atol=1e-5)
    assert torch.equal(image, before[0])
    assert torch.equal(logits, before[1])
    order = torch.randperm(k, generator=generator)
    assert torch.allclose(dense_crf(image, logits[:, order], **run), probs[:, order], atol=1e-4)
    assert torch.allclose(dense_crf(image, logits + 7.5, **run), probs, atol=1e-4)
    singles = [dense_crf(image[i : i + 1], logits[i : i + 1], **run) for i in range(b)]
    assert torch.allclose(torch.cat(singles), probs, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_constant_image_and_certain_labels(engine: str) -> None:
    image = torch.full((1, 3, 12, 12), 200, dtype=torch.uint8)
    logits = torch.zeros(1, 3, 12, 12)
    assert torch.allclose(dense_crf(image, logits, engine=engine), torch.full((1, 3, 12, 12), 1 / 3), atol=1e-5)
    logits[:, 1] = 1e6
    assert torch.allclose(dense_crf(image, logits, engine=engine)[:, 1], torch.ones(1, 12, 12), atol=1e-5)
    logits[:, 1, 5, 5] = -1.0
    assert (dense_crf(image, logits / 1e5, engine=engine).argmax(1) == 1).all()  # the neighbours outvote one pixel


@pytest.mark.parametrize("engine", ENGINES)
def test_no_gradient_in_any_mode(engine: str) -> None:
    image, logits = example(h=8, w=9)
    plain = dense_crf(image, logits, engine=engine, **SEC)
    assert not dense_crf(image, logits.clone().requires_grad_(), engine=engine, **SEC).requires_grad
    with torch.inference_mode():
        assert torch.equal(dense_crf(image, logits, engine=engine, **SEC), plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dense_crf(image, logits, engine=engine, **SEC), plain)
    flipped = dense_crf(image.flip(3), logits.flip(3), engine="exact", **SEC)  # strided input
    assert torch.allclose(flipped.flip(3), dense_crf(image, logits, engine="exact", **SEC), atol=1e-5)
    for dtype in (torch.float16, torch.float64):
        assert torch.allclose(dense_crf(image, logits.to(dtype), engine=engine, **SEC), plain, atol=2e-2)


def test_strided_input_on_the_lattice() -> None:
    image, logits = example(h=8, w=9)
    turned = dense_crf(image.transpose(2, 3), logits.transpose(2, 3))
    copied = dense_crf(image.transpose(2, 3).contiguous(), logits.transpose(2, 3).contiguous())
    assert torch.equal(turned, copied)


def test_weights_of_zero_leave_the_softmax() -> None:
    image, logits = example(h=8, w=9)
    for engine in ENGINES:
        probs = dense_crf(image, logits, bilateral_weight=0.0, gaussian_weight=0.0, engine=engine)
        assert torch.allclose(probs, logits.softmax(1), atol=1e-6)


def change(**changes: object) -> dict[str, object]:
    image, logits = example(h=6, w=7)
    return {"image": image, "logits": logits, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": torch.full((2, 5, 6, 7), math.nan)}, r"NaN.*\(2, 5, 6, 7\)"),
        ({"logits": torch.full((2, 5, 6, 7), -math.inf)}, r"infinity.*\(2, 5, 6, 7\)"),
        ({"logits": torch.zeros(2, 5, 7, 6)}, r"same batch size.*\(2, 3, 6, 7\).*\(2, 5, 7, 6\)"),
        ({"logits": torch.zeros(1, 5, 6, 7)}, "same batch size"),
        ({"logits": torch.zeros(2, 5, 6, 7, dtype=torch.int64)}, "floating point.*int64"),
        ({"image": torch.zeros(2, 3, 6, 7)}, "uint8.*float32"),
        ({"logits": np.zeros((2, 5, 6, 7), np.float32)}, "takes tensors"),
        ({"image": np.zeros((2, 3, 6, 7), np.uint8)}, "takes tensors"),
        ({"image": torch.zeros(2, 6, 7, 3, dtype=torch.uint8)}, r"\(B, 3, H, W\).*\(2, 6, 7, 3\)"),
        ({"image": torch.zeros(3, 6, 7, dtype=torch.uint8)}, r"\(3, 6, 7\)"),
        ({"image": torch.zeros(0, 3, 6, 7, dtype=torch.uint8), "logits": torch.zeros(0, 5, 6, 7)}, "empty"),
        ({"image": torch.zeros(2, 3, 0, 7, dtype=torch.uint8), "logits": torch.zeros(2, 5, 0, 7)}, "empty"),
        ({"logits": torch.zeros(2, 0, 6, 7)}, "empty"),
        ({"iterations": -1}, "iterations.*-1"),
        ({"scale": 0.0}, "scale.*0.0"),
        ({"scale": -12.0}, "scale.*-12.0"),
        ({"bilateral_srgb": math.nan}, "bilateral_srgb.*nan"),
        ({"gaussian_weight": -1.0}, "gaussian_weight.*-1.0"),
        ({"bilateral_sxy": math.inf}, "bilateral_sxy.*finite.*inf"),
        ({"bilateral_weight": math.inf}, "bilateral_weight.*finite.*inf"),
        ({"engine": "fast"}, "fast"),
        ({"scale": 1e7}, "too narrow"),
        ({"scale": 1e9, "engine": "exact"}, "too narrow"),
        ({"bilateral_srgb": 1e-30, "engine": "exact"}, "too narrow"),
        ({"bilateral_sxy": 1e-30, "engine": "exact"}, "too narrow"),
        ({"gaussian_sxy": 1e-30, "engine": "exact"}, "too narrow"),
        ({"bilateral_srgb": 1e-30}, "too narrow"),
        ({"logits": torch.full((2, 5, 6, 7), 1e39, dtype=torch.float64)}, "infinity in float32"),
        ({"bilateral_srgb": 0.001, "engine": "lattice"}, "too narrow"),
    ],
)
def test_bad_input_is_one_value_error(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dense_crf(**change(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_logit_that_is_not_finite_is_an_error(engine: str, value: float) -> None:
    image, logits = example(h=6, w=7)
    logits[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        dense_crf(image, logits, engine=engine)


@pytest.mark.parametrize("kernels", [(80.0, 0.001, 3.0), (80.0, 1e-6, 3.0), (8e-6, 13.0, 3e-7), (80.0, 13.0, 1e-12)])
def test_torch_lattice_refuses_kernels_too_narrow(kernels: tuple[float, float, float]) -> None:
    image, logits = example(h=6, w=50)
    bilateral_sxy, bilateral_srgb, gaussian_sxy = kernels
    with pytest.raises(ValueError, match="too narrow"):
        torch_lattice_mean_field(image, logits, Kernels(10.0, bilateral_sxy, bilateral_srgb, 3.0, gaussian_sxy), 1)


def test_positions_beyond_float32_are_refused() -> None:
    """Quotients of 2^22 and more are rounded: the compiled lattice would write beside its arrays."""
    image, logits = example(h=3, w=3000)
    with pytest.raises(ValueError, match="too narrow"):
        dense_crf(image, logits, engine="lattice", gaussian_sxy=1e-5, bilateral_weight=0.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_can_use_threads_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    image, logits = example(b=4)
    expected = dense_crf(image, logits)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(dense_crf(image, logits), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("size", [41, 90])
def test_gpu_agrees_with_cpu(size: int) -> None:
    image, logits = example(b=2, k=6, h=size, w=size)
    probs = dense_crf(image.cuda(), logits.cuda(), **SEC)
    engine = "exact" if size == 41 else "lattice"
    assert (probs.cpu() - dense_crf(image, logits, engine=engine, **SEC)).abs().mean() <= 1e-4


def test_the_exact_engine_in_parts(monkeypatch):
    """A memory of one byte: image by image."""
    image, logits = example(b=3)
    whole = dense_crf(image, logits, scale=12.0, engine="exact")
    monkeypatch.setattr("seeds.crf.exact_mean_field.CHUNK_BYTES", 1)
    torch.testing.assert_close(dense_crf(image, logits, scale=12.0, engine="exact"), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("value", [3e37, -3e37])
def test_finite_logits_whose_sum_is_not(engine, value):
    image, logits = torch.full((1, 3, 8, 9), 7, dtype=torch.uint8), torch.full((1, 2, 8, 9), value)
    torch.testing.assert_close(dense_crf(image, logits, engine=engine), torch.full_like(logits, 0.5))
