"""Pictures of any shape: which are looked at together, at what sizes, and what comes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from datamodules.cache import SeedCache
from datamodules.cache.check import verify_cache
from datamodules.errors import InputError
from datamodules.images import image_size, normalize, read_image
from datamodules.irn import read_irn
from seeds.checkpoint import load_task
from seeds.classifier import ClassifierTask
from seeds.exporting import export_seeds
from seeds.generate import generate_seeds
from seeds.gradcam import GradCAM
from seeds.making.frames import Frame, Framing
from seeds.making.packs import Batches, PackLoader, warped
from seeds.scoring.quality import evaluate_seeds
from tests.seeds.conftest import IDS, data_of

WILD = ("strip", "large", "gray", "cmyk", "turned", "upright")
LAYERS = {"layer": "features", "saliency_layer": "features.encoder.layer2.1"}


@pytest.mark.parametrize(
    ("sides", "keep_aspect", "grid", "views"),
    [((375, 500), False, (40, 40), [(320, 320), (480, 480)]),
     # sqrt(3/4) · 320 = 277.1 and 320 / sqrt(3/4) = 369.5 are 8.7 and 11.5 times 32: 9 to 12, which is 3 to 4 again;
     # so 35 x 47 cells of 8 pixels
     ((375, 500), True, (35, 47), [(288, 384), (416, 544)]),
     ((500, 375), True, (47, 35), [(384, 288), (544, 416)]),
     ((7, 7), True, (40, 40), [(320, 320), (480, 480)]),
     # as 1:3: 184.8 and 554.3 are 6 to 17: 190.1 and 538.6, and half as much again 285.2 and 807.9
     ((1, 500), True, (24, 68), [(192, 544), (288, 800)]),
     ((4000, 10), True, (68, 24), [(544, 192), (800, 288)])],
)  # fmt: skip
def test_frames_by_hand(sides, keep_aspect, grid, views):
    assert Framing(320, (1.0, 1.5), 8, keep_aspect).of(*sides) == Frame(grid, tuple(views))


@settings(max_examples=100, deadline=None)
@given(*(st.integers(1, 9000),) * 2, st.integers(128, 700), st.sampled_from([0.5, 1.0, 1.3]), st.integers(1, 40))
def test_a_frame_has_the_area_asked_for_and_almost_the_pictures_proportions(height, width, size, scale, stride):
    framing = Framing(size, (scale,), stride, keep_aspect=True)
    (grid, ((h, w),)) = framing.of(height, width)
    assert framing.of(width, height) == Frame(grid[::-1], ((w, h),))
    assert (h % 32, w % 32) == (0, 0)
    root = min(max(height / width, 1 / 3), 3) ** 0.5
    least, most = (((size * root + d) / (size / root - d)) ** 0.5 for d in (-16, 16))  # of the root, once rounded
    assert size * scale * least - 16 <= h <= size * scale * most + 16
    assert size * scale / most - 16 <= w <= size * scale / least + 16
    assert size * least / stride - 0.5 <= grid[0] <= size * most / stride + 1.5
    assert size / most / stride - 0.5 <= grid[1] <= size / least / stride + 1.5


def test_batches_are_of_one_frame_and_follow_from_the_shard_alone(voc):
    photos, framing = data_of(voc).photos("train"), Framing(128, (1.0,), 8, keep_aspect=True)
    frames = [framing.read(path) for path in photos.images]
    assert len(set(frames)) > 1
    both, last = (list(Batches(photos, shards, 4, 3, framing)) for shards in ((0, 1), (1,)))
    assert [batch for batch in both if batch.shard == 1] == last
    assert sorted(place for batch in both for place in batch.places) == list(range(6))
    for batch in both:
        assert {place // 4 for place in batch.places} == {batch.shard}
        assert {frames[place] for place in batch.places} == {batch.frame}
        assert batch.places == sorted(batch.places)
        assert len(batch.places) <= 3
    square = Batches(photos, (0, 1), 4, 3, Framing(64, (1.0,), 4, keep_aspect=False))
    assert [batch.places for batch in square] == [[0, 1, 2], [3], [4, 5]]


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """A VOC folder of a strip 1x500, a picture of 3000x4000, gray, CMYK, one to be turned by its EXIF, a tall one."""
    root = tmp_path_factory.mktemp("wild") / "VOC"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    generator = np.random.default_rng(0)

    def picture(height, width):
        coarse = generator.integers(0, 256, (-(-height // 40), -(-width // 40), 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)

    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees
    pictures = {
        "strip": (picture(1, 500), {}), "large": (picture(3000, 4000), {}), "gray": (picture(40, 100).convert("L"), {}),
        "cmyk": (picture(90, 60).convert("CMYK"), {}), "turned": (picture(50, 100), {"exif": turned}),
        "upright": (picture(100, 50), {}),
    }  # fmt: skip
    for name, (image, extra) in pictures.items():
        path = root / f"JPEGImages/{name}.jpg"
        image.save(path, **extra)
        Image.fromarray(np.ones(image_size(path), np.uint8)).save(root / f"SegmentationClass/{name}.png")
    (root / "classes.txt").write_text("red\nblue\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{name}\n" for name in WILD))
    for label in ("red", "blue"):
        (root / f"ImageSets/Main/{label}_train.txt").write_text("".join(f"{name} 1\n" for name in WILD))
    return root


def to_grid(maps, frame):
    return functional.interpolate(maps, frame.grid, mode="bilinear")


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_pictures_of_wildly_different_sizes(wild, checkpoint, tmp_path, capsys, keep_aspect):
    """None is lost, and each has the maps that it has when asked about alone."""
    given = {"scales": (1.0, 1.5), "flip": True, "keep_aspect": keep_aspect, "size": 128}
    generate_seeds(checkpoint, tmp_path / "c", root=str(wild), batch_size=4, **given, **LAYERS)
    assert "left out" not in capsys.readouterr().err
    verify_cache(tmp_path / "c")
    cache, model = SeedCache(tmp_path / "c"), load_task(checkpoint, ClassifierTask).model
    assert cache.manifest["keep_aspect"] is keep_aspect
    assert cache.manifest["grid"] == (None if keep_aspect else [16, 16])
    framing = Framing(128, (1.0, 1.5), 8, keep_aspect)
    method, shapes = GradCAM(model, "features"), set()
    for name in WILD:
        path = wild / f"JPEGImages/{name}.jpg"
        frame = framing.of(*image_size(path))
        wanted, found = torch.ones(1, 2), []
        for view in frame.views:
            image = normalize(warped(read_image(path), view)[None])
            found += [to_grid(method(image, wanted), frame), to_grid(method(image.flip(3), wanted).flip(3), frame)]
        expected = torch.stack(found).mean(0)[0].numpy()
        np.testing.assert_allclose(cache.maps(name)[1], expected, rtol=1e-2, atol=2e-3 * expected.max())
        assert cache.cues(name).shape == cache.saliency(name).shape == frame.grid
        assert set(np.unique(cache.cues(name))) & {1, 2}
        shapes.add(frame.grid)
    assert len(shapes) == (5 if keep_aspect else 1)  # the turned picture is as the upright one
    assert framing.of(*image_size(wild / "JPEGImages/turned.jpg")) == framing.of(100, 50)


def test_readers_of_a_cache_of_many_shapes(voc, checkpoint, tmp_path):
    """Scoring, exporting and training: none expects one shape."""
    generate_seeds(checkpoint, tmp_path / "c", keep_aspect=True, size=128)
    cache = SeedCache(tmp_path / "c")
    assert len({cache.cues(name).shape for name in IDS}) > 1
    assert evaluate_seeds(tmp_path / "c")["images"] == len(IDS)
    export_seeds(tmp_path / "c", tmp_path / "irn", "irn")
    for name in IDS:
        height, width = image_size(voc / f"JPEGImages/{name}.jpg")
        assert read_irn(tmp_path / f"irn/{name}.npy", 2)[1].shape[1:] == (-(-height // 4), -(-width // 4))
    with pytest.raises(InputError, match=r"cues of [2-6] different sizes, and SEC's file holds but one"):
        export_seeds(tmp_path / "c", tmp_path / "sec", "sec")
    data = data_of(voc, targets="cues", cues=str(tmp_path / "c"))
    data.setup("fit")
    assert [batch["cues"].shape for batch in data.train_dataloader()] == [(4, 3, 8, 8)]


def test_refined_cues_of_each_shape(wild, checkpoint, tmp_path):
    generate_seeds(checkpoint, tmp_path / "c", root=str(wild), refine="crf", size=128, keep_aspect=True, **LAYERS)
    cache = SeedCache(tmp_path / "c")
    for name in WILD:
        assert cache.cues(name).shape == cache.maps(name)[1].shape[1:]


def test_another_choice_is_refused_on_the_same_folder(checkpoint, tmp_path):
    generate_seeds(checkpoint, tmp_path / "c", keep_aspect=True)
    with pytest.raises(InputError, match="made with keep_aspect True, not False"):
        generate_seeds(checkpoint, tmp_path / "c")
    assert json.loads((tmp_path / "c/manifest.json").read_text())["keep_aspect"] is True


def test_a_picture_without_a_readable_header_is_left_out_by_name(voc, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    photos = data_of(voc).photos("train")
    photos = replace(photos, images=(*photos.images[:2], tmp_path / "broken.jpg", *photos.images[3:]))
    batches = Batches(photos, [0], 6, 6, Framing(64, (1.0,), 8, keep_aspect=True))
    packs = list(PackLoader(batches, 0, lambda: False))
    assert sum(len(pack.names) for pack in packs) == 5
    assert [*{name: why for pack in packs for name, why in pack.left_out.items()}] == ["p2"]
