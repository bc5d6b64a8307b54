"""Images of any size: how they are resized and batched, and the maps and cues that follow."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from datamodules.errors import InputError
from datamodules.images import image_size, normalize, read_image
from datamodules.irn_maps import read_irn
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache_check import verify_cache
from datamodules.transforms import resize_nearest
from seeds.checkpoints import load_task
from seeds.classifier import ClassifierTask
from seeds.evaluation.evaluate_seeds import evaluate_seeds
from seeds.export_seeds import export_seeds
from seeds.generate import generate_seeds
from seeds.gradcam import GradCAM
from seeds.making.batches import Batches, BatchLoader, resized
from seeds.making.resize import ResizePolicy
from tests.seed_caches import CacheWriter
from tests.seeds.conftest import IDS, data_of

WILD = ("strip", "large", "gray", "cmyk", "turned", "upright")
LAYERS = {"layer": "features", "saliency_layer": "features.encoder.layer2.1"}


@pytest.mark.parametrize(
    ("policy", "grid", "sides"),
    [((320, (1.0, 1.5), 8), (40, 40), [320, 480]), ((321, (1.0,), 8), (41, 41), [321]),
     ((100, (0.77, 1.3), 3), (34, 34), [77, 130]), ((4, (0.1,), 8), (1, 1), [1])],
)  # fmt: skip
def test_sizes_by_hand(policy, grid, sides):
    assert (ResizePolicy(*policy).grid, ResizePolicy(*policy).sides) == (grid, sides)


def test_batches_follow_from_the_shard_alone(voc):
    photos, policy = data_of(voc).photos("train"), ResizePolicy(64, (1.0,), 4)
    both, last = (list(Batches(photos, shards, 4, 3, policy)) for shards in ((0, 1), (1,)))
    assert [batch for batch in both if batch.shard == 1] == last
    assert sorted(index for batch in both for index in batch.indices) == list(range(6))
    for batch in both:
        assert {index // 4 for index in batch.indices} == {batch.shard}
        assert batch.indices == sorted(batch.indices)
        assert len(batch.indices) <= 3
    assert [batch.indices for batch in both] == [[0, 1, 2], [3], [4, 5]]


@pytest.fixture(scope="module")
def wild(tmp_path_factory):
    """A VOC folder of a strip 1x500, an image of 3000x4000, gray, CMYK, one to be turned by its EXIF, a tall one."""
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


def to_grid(maps, grid):
    return functional.interpolate(maps, grid, mode="bilinear")


def test_pictures_of_wildly_different_sizes(wild, checkpoint, tmp_path, capsys):
    """None is lost, and each has the maps that it has when asked about alone."""
    given = {"scales": (1.0, 1.5), "flip": True, "size": 128}
    generate_seeds(checkpoint, tmp_path / "c", root=str(wild), batch_size=4, **given, **LAYERS)
    assert "left out" not in capsys.readouterr().err
    verify_cache(tmp_path / "c")
    cache, model = SeedCache(tmp_path / "c"), load_task(checkpoint, ClassifierTask).model
    assert cache.settings["grid"] == [16, 16]
    method = GradCAM(model, "features")
    for name in WILD:
        wanted, found = torch.ones(1, 2), []
        for side in (128, 192):
            image = normalize(resized(read_image(wild / f"JPEGImages/{name}.jpg"), side)[None])
            found += [
                to_grid(method(image, wanted), (16, 16)),
                to_grid(method(image.flip(3), wanted).flip(3), (16, 16)),
            ]
        expected = torch.stack(found).mean(0)[0].numpy()
        np.testing.assert_allclose(cache.maps(name)[1], expected, rtol=1e-2, atol=2e-3 * expected.max())
        assert cache.cues(name).shape == cache.saliency(name).shape == (16, 16)
        assert set(np.unique(cache.cues(name))) & {1, 2}


def of_many_shapes(old, path):
    """A cache as another, each image on a grid of its own: caches that are imported or written from Python may be."""
    with CacheWriter(path, old.classes, old.settings) as writer:
        for number, name in enumerate(old.ids):
            grid, (classes, maps) = (16 - number, 14 + number), old.maps(name)
            larger = to_grid(torch.from_numpy(maps)[None], grid)[0].numpy()
            saliency = to_grid(torch.from_numpy(old.saliency(name))[None, None], grid)[0, 0].numpy()
            cues = resize_nearest(old.cues(name), *grid)
            writer.add(name, cues, map_classes=classes, maps=larger, saliency=saliency)


def test_readers_of_a_cache_of_many_shapes(voc, checkpoint, tmp_path):
    """Scoring, exporting and training: none expects one shape."""
    generate_seeds(checkpoint, tmp_path / "square", size=128)
    of_many_shapes(SeedCache(tmp_path / "square"), tmp_path / "c")
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


def test_refined_cues_have_the_shape_of_the_maps(wild, checkpoint, tmp_path):
    generate_seeds(checkpoint, tmp_path / "c", root=str(wild), refine="crf", size=128, **LAYERS)
    cache = SeedCache(tmp_path / "c")
    for name in WILD:
        assert cache.cues(name).shape == cache.maps(name)[1].shape[1:]


def test_a_picture_without_a_readable_header_is_left_out_by_name(voc, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    photos = data_of(voc).photos("train")
    photos = replace(photos, images=(*photos.images[:2], tmp_path / "broken.jpg", *photos.images[3:]))
    loader = BatchLoader(Batches(photos, [0], 6, 6, ResizePolicy(64, (1.0,), 8)), 0, lambda: False)
    batches = list(loader)
    assert sum(len(batch.names) for batch in batches) == 5
    assert [*{name: why for batch in batches for name, why in batch.left_out.items()}] == ["p2"]
