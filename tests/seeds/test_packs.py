"""Batches for the generator: by shard, by shape, of pictures as people have them."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from datamodules.cache import SeedCache
from datamodules.images import normalize, read_image
from datamodules.transforms import Transform
from seeds.checkpoint import load_task
from seeds.classifier import ClassifierTask
from seeds.generate import generate_seeds
from seeds.gradcam import GradCAM
from seeds.packs import Packs, shape_like
from tests.seeds.conftest import IDS, data_of


@pytest.mark.parametrize(
    ("own", "size", "shape"),
    [
        ((300, 300), 320, (320, 320)),
        ((375, 500), 320, (288, 384)),  # 277 by 370
        ((500, 375), 480, (416, 544)[::-1]),  # 554 by 416
        ((1, 500), 320, (224, 448)),  # 1:2 at most: 226 by 453
        ((4000, 10), 320, (448, 224)),
        ((300, 300), 20, (32, 32)),
    ],
)
def test_shapes_by_hand(own, size, shape):
    assert shape_like(own, size) == shape


@pytest.fixture
def odd(voc, tmp_path):
    """The six pictures in sizes and kinds of all sorts."""
    root = tmp_path / "odd"
    shutil.copytree(voc, root)
    pictures = {name: root / f"JPEGImages/{name}.jpg" for name in IDS}
    image = Image.open(pictures["p0"]).convert("RGB")
    image.resize((500, 1)).save(pictures["p0"])
    image.resize((1500, 1000)).save(pictures["p1"])
    image.convert("L").resize((75, 50)).save(pictures["p2"])
    image.convert("CMYK").resize((50, 75)).save(pictures["p3"])
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by a quarter: 75 high when seen
    image.resize((75, 50)).save(pictures["p4"], exif=turned)
    pictures["p5"].write_bytes(b"nothing")
    return root


def test_pictures_of_a_shape_go_together(odd):
    packs = Packs(data_of(odd).photos("train"), [0], 6, 2, [64, 128], keep_aspect=True)
    found = [
        (pack.names, [tuple(images.shape[2:]) for images in pack.images])
        for pack in map(packs.__getitem__, range(len(packs)))
    ]
    assert found == [
        (["p0"], [(32, 96), (96, 192)]),
        (["p1", "p2"], [(64, 64), (96, 160)]),
        (["p3", "p4"], [(64, 64), (160, 96)]),
        ([], []),
    ]
    assert packs.pictures == 6
    assert "p5" in packs[3].left_out
    square = Packs(data_of(odd).photos("train"), [0], 6, 2, [64])
    assert [square[i].names for i in range(len(square))] == [["p0", "p1"], ["p2", "p3"], ["p4"]]


def test_seeds_of_pictures_that_keep_their_proportions(odd, checkpoint, tmp_path):
    settings = {"root": str(odd), "size": 128, "scales": [1.0, 0.5], "flip": True, "keep_aspect": True}
    generate_seeds(checkpoint, tmp_path / "cache", **settings, shard_size=4, batch_size=2)
    generate_seeds(checkpoint, tmp_path / "alone", **settings, shard_size=4, batch_size=1)
    cache, alone = SeedCache(tmp_path / "cache"), SeedCache(tmp_path / "alone")
    assert list(cache.left_out) == ["p5"]
    assert cache.manifest["keep_aspect"] is True
    model = load_task(checkpoint, ClassifierTask).model
    method = GradCAM(model, "features")
    for name, labels in {"p0": [0], "p2": [0, 1], "p4": [1]}.items():
        picture = read_image(odd / f"JPEGImages/{name}.jpg")
        wanted = torch.zeros(1, 2)
        wanted[0, labels] = 1
        views = []
        for size in (128, 64):
            warped = Transform(shape_like(picture.shape[:2], size))(picture)["image"]
            image = normalize(torch.from_numpy(warped).permute(2, 0, 1)[None])
            views += [method(image, wanted), method(image.flip(3), wanted).flip(3)]
        maps = [functional.interpolate(view, (16, 16), mode="bilinear") for view in views]
        expected = torch.stack(maps).mean(0)[0, labels].numpy()
        classes, found = cache.maps(name)
        assert classes.tolist() == labels
        np.testing.assert_allclose(found, expected, rtol=1e-2, atol=2e-3 * expected.max())
        np.testing.assert_allclose(alone.maps(name)[1], expected, rtol=1e-2, atol=2e-3 * expected.max())
