import os
import re
import signal

import numpy as np
import pytest
import torch

from datamodules.dataset import ImageDataset, collate, image_loader
from datamodules.errors import InputError
from datamodules.images import normalize
from datamodules.masks import write_mask
from datamodules.samplers import Draw
from datamodules.seed_cache import SeedCache
from datamodules.transforms import Augment
from datamodules.voc import VOCDataModule
from tests.datamodules.conftest import COLOURS, IDS, PRESENT
from tests.seed_caches import CacheWriter


@pytest.fixture
def cache(voc, tmp_path):
    """Cues of the six training images on a 4x4 grid: class of the tags left, background right, none below."""
    with CacheWriter(tmp_path / "cache", ["ant", "bat", "cow"], {}) as writer:
        for i in range(6):
            cues = np.zeros((4, 4), np.uint8)
            cues[:, :2] = i % 3 + 1
            cues[3] = 255
            writer.add(f"p{i}", cues)
    return SeedCache(tmp_path / "cache")


def dataset_of(voc, split, size, *, masks=True, **settings):
    data = VOCDataModule(voc, labels="xml")
    lut = data.mask_lut if masks else None
    return ImageDataset(data.samples(split, masks=masks), data.classes, size, mask_lut=lut, **settings)


def batch_of(dataset, indices):
    return collate([dataset[i] for i in indices])


def test_training_batch_with_masks(voc):
    batch = batch_of(dataset_of(voc, "train", 32, training=True, augment=Augment(color=0)), [2, 4, 5])
    assert sorted(batch) == ["id", "image", "labels", "mask", "size"]
    assert batch["image"].shape == (3, 3, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].is_contiguous()
    assert batch["labels"].tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 1]]
    assert batch["labels"].dtype == torch.float32
    assert batch["mask"].shape == (3, 32, 32)
    assert batch["mask"].dtype == torch.int64
    assert batch["id"] == ["p2", "p4", "p5"]
    assert batch["size"].tolist() == [[56, 64], [64, 64], [68, 64]]
    assert batch["size"].dtype == torch.int64
    for k, image in enumerate((2, 4, 5)):
        assert set(batch["mask"][k].unique().tolist()) <= {0, 255, *(np.flatnonzero(PRESENT[image]) + 1)}


def test_colours_and_mask_agree(voc):
    batch = batch_of(dataset_of(voc, "train", 64, training=True, augment=Augment(color=0)), range(6))
    expected = normalize(torch.from_numpy(COLOURS).T[None, :, :, None])[0, :, :, 0].T  # (4, 3)
    shown = (batch["image"][:, None] - expected[None, :, :, None, None]).abs().sum(2).argmin(1)
    known = batch["mask"] != 255
    assert (shown == batch["mask"])[known].float().mean() > 0.93


def test_evaluation_keeps_masks_as_they_are(voc):
    batch = batch_of(dataset_of(voc, "val", 32), [0, 1])
    assert batch["image"].shape == (2, 3, 32, 32)
    assert batch["mask"].shape == (2, 76, 64)
    assert batch["size"].tolist() == [[72, 64], [76, 64]]
    assert (batch["mask"][0, 72:] == 255).all()
    assert (batch["mask"][0, 8:40, 16:32] == 2).all()
    assert set(batch["mask"][1].unique().tolist()) == {0, 255}
    assert "mask" not in batch_of(dataset_of(voc, "val", 32, masks=False), [0])


def test_masks_of_several_sizes_are_padded():
    masks = [np.array([[1, 2]], np.uint8), np.array([[3], [4]], np.uint8)]
    image, labels = np.zeros((2, 2, 3), np.uint8), np.zeros(1, np.float32)
    items = [{"image": image, "labels": labels, "id": "a", "size": (2, 2), "unreadable": [], "mask": m} for m in masks]
    assert collate(items)["mask"].tolist() == [[[1, 2], [255, 255]], [[3, 255], [4, 255]]]


def test_cues_are_one_hot_where_a_position_has_a_cue(voc, cache):
    batch = batch_of(dataset_of(voc, "train", 32, masks=False, training=True, cues=cache, cue_stride=8), [0, 4])
    assert sorted(batch) == ["cues", "id", "image", "labels", "size"]
    assert batch["cues"].shape == (2, 4, 4, 4)
    assert batch["cues"].dtype == torch.bool
    for k, own in enumerate((1, 2)):
        expected = torch.zeros(4, 4, 4, dtype=torch.bool)
        expected[own, :3, :2] = True
        expected[0, :3, 2:] = True
        assert torch.equal(batch["cues"][k], expected)


@pytest.mark.parametrize(("size", "stride", "side"), [(321, 8, 41), (320, 8, 40), (64, 16, 4), (65, 16, 5)])
def test_the_grid_follows_from_size_and_stride(voc, cache, size, stride, side):
    dataset = dataset_of(voc, "train", size, training=True, cues=cache, cue_stride=stride)
    assert dataset[0]["cues"].shape == (side, side)


def test_cues_follow_the_augmentation(voc, cache):
    dataset = dataset_of(voc, "train", 64, training=True, augment=Augment(color=0), cues=cache)
    turned = set()
    for _ in range(30):
        batch = batch_of(dataset, [0])
        left, right = batch["cues"][0, 1, 0, 0], batch["cues"][0, 1, 0, -1]  # class 1 lies left in the image
        turned.add((bool(left), bool(right)))
    assert (True, False) in turned
    assert (False, True) in turned


def test_bad_files_are_named(voc):
    path = voc / "JPEGImages/p1.jpg"
    path.write_bytes(path.read_bytes()[:400])
    write_mask(voc / "SegmentationClass/p2.png", np.zeros((5, 6)))
    write_mask(voc / "SegmentationClass/p3.png", np.full((60, 64), 4))
    dataset = dataset_of(voc, "train", 32)
    assert [name for name, _ in dataset[1]["unreadable"]] == ["p1"]
    assert re.search(r"p1\.jpg cannot be read", dataset[1]["unreadable"][0][1])
    for index, message in ((2, r"p2\.png is 6x5, and its image .* is 64x56"), (3, "index 4")):
        with pytest.raises(InputError, match=message):
            dataset[index]


def test_a_worker_s_error_stays_one_sentence(voc):
    write_mask(voc / "SegmentationClass/p1.png", np.zeros((5, 6)))
    batches = iter(image_loader(dataset_of(voc, "train", 32), batch_size=1, num_workers=1))
    with pytest.raises(InputError, match=r"^mask .*p1\.png is 6x5, and its image \S+ is \d+x\d+$") as caught:
        list(batches)
    assert "\n" not in str(caught.value)
    batches._shutdown_workers()  # the traceback keeps them in a cycle, and collecting it would wait 5 s


def test_a_worker_leaves_control_c_to_the_main_process(voc):
    """A terminal sends it to both; a worker that ends by itself makes the main process wait."""
    dataset = dataset_of(voc, "train", 32)
    batches = iter(image_loader(dataset, batch_size=1, num_workers=1))
    found = [next(batches)]
    os.kill(batches._workers[0].pid, signal.SIGINT)
    assert len([*found, *batches]) == len(dataset)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_are_named_in_their_batch(voc, workers):
    """Left out of a batch; in training the next image takes the place, with the random changes of the place."""
    for name in ("p1", "p2", "p5"):
        path = voc / f"JPEGImages/{name}.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    data = dataset_of(voc, "train", 32)
    batches = list(image_loader(data, batch_size=2, num_workers=workers))
    assert [batch["id"] for batch in batches] == [["p0"], ["p3"], ["p4"]]
    assert [[name for name, _ in batch.get("unreadable", ())] for batch in batches] == [["p1"], ["p2"], ["p5"]]
    only = next(iter(image_loader(data, batch_size=2, num_workers=0, sampler=[1, 2])))
    assert (only["id"], len(only["image"]), len(only["unreadable"])) == ([], 0, 2)
    trained = dataset_of(voc, "train", 32, training=True, augment=Augment())
    batch = collate([trained[Draw(1, 7)], trained[Draw(5, 8)], trained[Draw(4, 9)]])
    assert batch["id"] == ["p3", "p0", "p4"]
    assert [name for name, _ in batch["unreadable"]] == ["p1", "p2", "p5"]
    assert torch.equal(batch["image"][0], collate([trained[Draw(3, 7)]])["image"][0])
    for name in IDS:
        (voc / f"JPEGImages/{name}.jpg").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^6 images in a row cannot be read, first: image .*p2\.jpg"):
        trained[Draw(2, 7)]


def test_an_image_without_a_mask_has_one_of_unknown_pixels(voc):
    (voc / "SegmentationClass/p1.png").unlink()
    batch = collate([dataset_of(voc, "train", 32)[i] for i in (0, 1)])
    assert (batch["mask"][1] == 255).all()
    assert not (batch["mask"][0, :48] == 255).all()


def test_originals_and_batches_of_given_indices(voc):
    data = dataset_of(voc, "train", 32, with_originals=True)
    batches = list(image_loader(data, batch_size=1, num_workers=0, batch_sampler=[[4, 0], [2]]))
    assert [batch["id"] for batch in batches] == [["p4", "p0"], ["p2"]]
    assert [image.shape for image in batches[0]["original"]] == [(64, 64, 3), (48, 64, 3)]


def test_images_of_more_pixels_on_a_side_are_not_read(voc):
    """They are listed with their place among the readable images; p4 has 64x64 pixels, and p5 64x68."""
    (voc / "JPEGImages/p1.jpg").write_bytes(b"no image")
    data = dataset_of(voc, "train", 32, largest=64)
    batch = batch_of(data, [0, 1, 5, 4])
    assert (batch["id"], [name for name, _ in batch["unreadable"]]) == (["p0", "p4"], ["p1"])
    (large,) = batch["large"]
    assert large.pop("labels").tolist() == [0, 1, 1]
    image, mask = str(voc / "JPEGImages/p5.jpg"), str(voc / "SegmentationClass/p5.png")
    assert large == {"id": "p5", "image": image, "mask": mask, "channels": 3, "position": 1}
    alone = batch_of(data, [5])
    assert (alone["id"], len(alone["image"]), alone["large"][0]["position"]) == ([], 0, 0)
    assert dataset_of(voc, "train", 32, largest=63, channels=4)[4]["large"]["channels"] == 4
