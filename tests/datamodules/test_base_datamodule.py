import hashlib
import pickle
import shutil
import sys
from typing import ClassVar

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.cli import LightningArgumentParser

from datamodules.base_datamodule import BaseDataModule, covered_samples, report_untagged_cues
from datamodules.class_names import VOC_CLASSES
from datamodules.errors import InputError
from datamodules.masks import write_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.sample import Sample, file_samples, multi_hot
from datamodules.seed_cache import SeedCache
from datamodules.transforms import Augment
from datamodules.voc import VOCDataModule
from tests.seed_caches import CacheWriter


def data_of(root, **settings):
    return VOCDataModule(
        str(root), **{"train_split": "train", "size": 32, "batch_size": 2, "num_workers": 0, **settings}
    )


def cache_of(path, ids, classes=("ant", "bat", "cow"), **settings):
    with CacheWriter(path, list(classes), settings, inputs=settings) as writer:
        for name in ids:
            writer.add(name, np.ones((4, 4), np.uint8))
    return str(path)


def epoch(loader):
    return [(batch["id"], batch["image"].clone()) for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_seed_everything_makes_batches_reproducible(voc, workers):
    runs = []
    for seed in (3, 3, 4):
        pl.seed_everything(seed, workers=True, verbose=False)
        data = data_of(voc, augment=Augment(), num_workers=workers)
        data.setup("fit")
        loader = data.train_dataloader()
        runs.append([*epoch(loader), *epoch(loader)])
    assert len(runs[0]) == 6
    for (ids, images), (again, same) in zip(runs[0], runs[1], strict=True):
        assert ids == again
        assert torch.equal(images, same)
    assert any(not torch.equal(a[1], b[1]) for a, b in zip(runs[0], runs[2], strict=True))


def test_workers_and_epochs_do_not_repeat_each_other(voc):
    for name in range(1, 6):  # six times the same image: only the augmentation tells them apart
        shutil.copyfile(voc / "JPEGImages/p0.jpg", voc / f"JPEGImages/p{name}.jpg")
    data = data_of(voc, augment=Augment(), num_workers=2, batch_size=1)
    data.setup("fit")
    loader = data.train_dataloader()
    images = [image for _ in range(2) for _, image in epoch(loader)]
    assert len(images) == 12
    assert all(not torch.equal(images[a], images[b]) for a in range(12) for b in range(a))


def test_loaders(voc):
    data = data_of(voc, test_split="train", batch_size=4)
    data.setup("fit")
    data.setup("test")
    train, val, test = (list(loader()) for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader))
    assert [len(b["id"]) for b in train] == [4]  # the last two of six wait for another epoch
    assert [b["id"] for b in val] == [["p6", "p7"]]
    assert [len(b["id"]) for b in test] == [4, 2]
    assert "mask" not in train[0]
    assert val[0]["mask"].shape == (2, 76, 64)


def test_fewer_images_than_a_batch_are_a_batch(voc):
    data = data_of(voc, batch_size=50)
    data.setup("fit")
    assert [len(b["id"]) for b in data.train_dataloader()] == [6]


def test_an_epoch_of_few_images_repeats_them(voc):
    data = data_of(voc, batch_size=5, min_images_per_epoch=17)
    data.setup("fit")
    batches = [b["id"] for b in data.train_dataloader()]
    assert [len(names) for names in batches] == [5, 5, 5]
    drawn = [name for names in batches for name in names]
    assert {drawn.count(f"p{i}") for i in range(6)} == {2, 3}
    assert "min_images_per_epoch" not in data.settings


def test_targets(voc, tmp_path):
    cues = cache_of(tmp_path / "cache", [f"p{i}" for i in range(6)])
    for targets, key in (("masks", "mask"), ("cues", "cues")):
        data = data_of(voc, targets=targets, cues=cues, augment=Augment())
        data.setup("fit")
        assert key in next(iter(data.train_dataloader()))
        batch = next(iter(data.val_dataloader()))
        assert "cues" not in batch
        assert batch["mask"].shape == (2, 76, 64)


def test_masks_alone_are_enough_to_train_on_masks(voc):
    shutil.rmtree(voc / "ImageSets/Main")
    data = data_of(voc, targets="masks", labels=None)
    data.setup()
    assert next(iter(data.train_dataloader()))["mask"].any()


def test_samples_and_loaders_of_any_split(voc):
    data = data_of(voc, classes=["cow", "bat"])
    labels = multi_hot(data.samples("train"), data.classes)
    assert labels.tolist() == [[0, 0], [0, 1], [0, 1], [1, 0], [1, 0], [1, 1]]
    batches = list(data.eval_loader(data.samples("train", masks=False)))
    assert [name for b in batches for name in b["id"]] == [f"p{i}" for i in range(6)]
    loose = file_samples([voc / "JPEGImages/p3.jpg"])
    batch = next(iter(data_of(voc, classes=["cow", "bat"], eval_size=48).eval_loader(loose)))
    assert batch["labels"].tolist() == [[0, 0]]
    assert batch["image"].shape == (1, 3, 48, 48)
    assert batch["original"][0].shape == (60, 64, 3)


def test_a_class_without_a_training_image_is_named(voc, capsys):
    """Only where a classifier learns it, and only then."""
    for source, named in (("ant", False), ("zebra", True)):
        (voc / "classes.txt").write_text(f"{source}\nbat\ncow\n")
        data = data_of(voc, labels="xml", val_split=None)
        data.setup("fit")
        message = "warning: classes without a training image cannot be learned: zebra"
        assert (message in capsys.readouterr().err) == named


def test_classes_are_known_at_once(voc, tmp_path):
    assert data_of(voc).classes == ("ant", "bat", "cow")
    assert data_of(voc, classes=["cow"]).classes == ("cow",)
    assert data_of(tmp_path / "later").classes == VOC_CLASSES
    with pytest.raises(InputError, match="did you mean 'bat'"):
        data_of(voc, classes=["batt"])


class Task(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 1)

    def training_step(self, batch):
        return (self.layer(batch["image"]).mean((2, 3)) - batch["labels"]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_checkpoint_with_the_settings_loads_with_weights_only(voc, tmp_path):
    data = data_of(voc, classes=["cow", "ant", "bat"], augment=Augment(crop=(0.5, 1.0)))
    trainer = pl.Trainer(default_root_dir=tmp_path, max_steps=1, accelerator="cpu", logger=False,
                         enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Task(), data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    settings = torch.load(tmp_path / "a.ckpt", weights_only=True)["datamodule_hyper_parameters"]
    assert settings["augment"] == {"crop": [0.5, 1.0], "flip": True, "color": 0.3}
    settings |= {"class_path": "datamodules.voc.VOCDataModule"}
    again = VOCDataModule(**{key: value for key, value in settings.items() if key != "class_path"})
    assert again.classes == data.classes
    assert again.augment == data.augment
    assert dict(again.hparams) == settings


def test_settings_are_plain_whatever_was_given(voc):
    data = VOCDataModule(voc, classes=("cow",), labels="xml")  # a Path and a tuple
    assert pickle.loads(pickle.dumps(dict(data.hparams)))["root"] == str(voc)
    assert type(data.hparams["root"]) is str
    assert type(data.hparams["classes"]) is list


def _wrong_size(root):
    write_mask(root / "SegmentationClass/p7.png", np.zeros((5, 6)))


def _no_train_mask(root):
    (root / "SegmentationClass/p3.png").unlink()


def _no_masks(root):
    shutil.rmtree(root / "SegmentationClass")


def _no_tags(root):
    for path in (root / "Annotations").iterdir():
        path.write_text("<annotation/>")


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (_wrong_size, {}, r"p7\.png is 6x5, and its image"),
        (_no_train_mask, {"targets": "masks"}, "1 of 6 masks are missing, first that of p3; targets: masks needs"),
        (_no_masks, {"targets": "masks"}, "6 of 6 masks are missing, first that of p0; targets: masks needs"),
        (_no_tags, {"labels": "xml"}, r"labels of all 6 images are zero: .*VOC \(labels: xml\) gives no image"),
        (None, {"train_split": "trainaug"}, "no list"),
    ],
)
def test_setup_names_what_is_wrong(voc, spoil, settings, message):
    if spoil is not None:
        spoil(voc)
    data = data_of(voc, **settings)
    with pytest.raises(InputError, match=message):
        data.setup("fit")


@pytest.mark.parametrize("targets", ["tags", "masks"])
def test_masks_of_a_part_of_the_validation_images(voc, capsys, targets):
    """They are scored, the others are not; how many is printed."""
    (voc / "SegmentationClass/p7.png").unlink()
    data = data_of(voc, targets=targets)
    data.setup("fit")
    assert "1 of 2 val images have a mask; the others are not scored" in capsys.readouterr().err
    masks = torch.cat([batch["mask"].flatten(1).amin(1) for batch in data.val_dataloader()])
    assert masks.tolist() == [0, 255]


def _cut_header(path):
    path.write_bytes(b"nothing of an image")


def _cut_pixels(path):
    path.write_bytes(path.read_bytes()[:-60])


def test_images_without_a_readable_header_are_left_out_at_the_start(voc, capsys):
    _cut_header(voc / "JPEGImages/p1.jpg")
    _cut_header(voc / "JPEGImages/p7.jpg")
    data = data_of(voc, max_unreadable=0.3)
    data.setup("fit")
    assert [sample.id for sample in data.train_dataloader().dataset.samples] == ["p0", "p2", "p3", "p4", "p5"]
    assert [name for batch in data.val_dataloader() for name in batch["id"]] == ["p6"]
    printed = capsys.readouterr().err
    assert "left out: p1: image" in printed
    assert "left out: p7: image" in printed
    assert list(data.unreadable.reasons) == ["p1", "p7"]
    for settings in ({}, {"max_unreadable": 0.15}, {"max_unreadable": 0.5, "strict": True}):
        with pytest.raises(InputError, match=r"1 of 6 images cannot be read, and max_unreadable .*p1\.jpg"):
            data_of(voc, **settings).setup("fit")
    with pytest.raises(InputError, match=r"max_unreadable is 1\.5"):
        data_of(voc, max_unreadable=1.5)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_is_cut_short_does_not_end_a_training(voc, tmp_path, capsys, workers):
    """Its header is whole: it is found when it is read, printed once, and another image takes its place."""
    for name in ("p1", "p3"):
        _cut_pixels(voc / f"JPEGImages/{name}.jpg")
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"default_root_dir": tmp_path, "enable_checkpointing": False, "accelerator": "cpu"}

    def train(**settings):
        data = data_of(voc, num_workers=workers, **settings)
        pl.Trainer(max_epochs=2, **quiet).fit(Task(), data)
        return data

    assert set(train(max_unreadable=0.3).unreadable.reasons) == {"p1", "p3"}
    printed = capsys.readouterr().err
    assert (printed.count("left out: p1"), printed.count("left out: p3")) == (1, 1)
    with pytest.raises(InputError, match=r"of 8 images cannot be read, and max_unreadable allows a share of 0\.01"):
        train()


def test_whole_images_may_be_larger_than_crops(voc):
    data = data_of(voc, size=32, eval_size=48, masks="SegmentationClass", test_split="train", val_split="train")
    data.setup()
    assert next(iter(data.train_dataloader()))["image"].shape[-2:] == (32, 32)
    loaders = [data.val_dataloader(), data.test_dataloader(), data.eval_loader(data.samples("train"))]
    for loader in loaders:
        batch = next(iter(loader))
        assert batch["image"].shape[-2:] == (48, 48)
        assert batch["mask"].shape[-2:] == tuple(batch["size"].max(dim=0).values.tolist())
    assert data_of(voc, size=32).hparams["eval_size"] == 32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "cues"}, "no seed cache is given"),
        ({"targets": "mask"}, "targets is 'mask', and must be tags or cues or masks"),
        ({"size": 0}, "size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_size": 0}, "eval_size is 0"),
        ({"cue_stride": 0}, "cue_stride is 0"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"mask_sampling_rate": 0}, "mask_sampling_rate is 0"),
        ({"num_workers": -1}, "num_workers is -1, and must be at least 0"),
        ({"min_images_per_epoch": -1}, "min_images_per_epoch is -1"),
    ],
)
def test_bad_settings(voc, settings, message):
    with pytest.raises(InputError, match=message):
        data_of(voc, **settings)


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        data_of(tmp_path / "nowhere").setup("fit")
    with pytest.raises(InputError, match="nowhere does not exist"):
        data_of(tmp_path / "nowhere", classes=["bee"])
    with pytest.raises(InputError, match="nowhere does not exist"):
        data_of(tmp_path / "nowhere", download=True).setup("fit")


def test_caches_that_do_not_fit(voc, tmp_path):
    ids = [f"p{i}" for i in range(6)]
    checkpoint = tmp_path / "classifier.ckpt"
    checkpoint.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    good = cache_of(tmp_path / "good", ids, checkpoint="classifier.ckpt", checkpoint_sha256=digest)
    data_of(voc, targets="cues", cues=good, cues_checkpoint=str(checkpoint)).setup("fit")
    cases = [
        (cache_of(tmp_path / "few", ids[:4]), None, "lacks 2 of the 6 images, first p4"),
        (cache_of(tmp_path / "other", ids, ("ant", "cow", "bat")), None, "classes ant, cow, bat, not ant, bat, cow"),
        (str(tmp_path / "none"), None, "none"),
        (good, str(tmp_path / "lost.ckpt"), r"lost\.ckpt cannot be read"),
    ]
    for cues, maker, message in cases:
        with pytest.raises(InputError, match=message):
            data_of(voc, targets="cues", cues=cues, cues_checkpoint=maker).setup("fit")
    checkpoint.write_bytes(b"other weights")
    with pytest.raises(InputError, match=r"made by another checkpoint \(classifier\.ckpt\)"):
        data_of(voc, targets="cues", cues=good, cues_checkpoint=str(checkpoint)).setup("fit")


def test_paths_in_the_home_folder(voc, tmp_path, monkeypatch):
    """In a YAML, where no shell replaces ``~``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    cache_of(tmp_path / "cache", [f"p{i}" for i in range(6)], checkpoint_sha256=digest)
    data = data_of("~/VOC", targets="cues", cues="~/cache", cues_checkpoint="~/a.ckpt")
    data.setup("fit")
    assert data.samples("train")[0].image == str(voc / "JPEGImages/p0.jpg")
    assert [data.hparams[name] for name in ("root", "cues")] == [str(voc), str(tmp_path / "cache")]


class StubCache(dict):
    classes = ("ant", "bat", "cow")
    left_out: ClassVar = {"p1": "image p1 is cut short"}


def test_images_that_a_cache_has_left_out(voc, capsys):
    data = data_of(voc)
    cache = StubCache(dict.fromkeys(("p0", "p2", "p3", "p4", "p5")))
    covered = covered_samples(cache, data.samples("train"), data.classes)
    assert [sample.id for sample in covered] == ["p0", "p2", "p3", "p4", "p5"]
    message = "1 of 6 images are left out because the seed cache has no cues of them; first p1: image p1 is cut short"
    assert message in capsys.readouterr().err
    nothing = StubCache()
    nothing.left_out = {f"p{i}": f"image p{i} is cut short" for i in range(6)}
    with pytest.raises(InputError, match="the seed cache lacks 6 of the 6 images, first p0"):
        covered_samples(nothing, data.samples("train"), data.classes)


def test_cues_of_classes_that_are_no_tags(voc, tmp_path, capsys):
    """Such as those of a cache that is older than the tags; images whose tags are not known do not count."""
    tags = {sample.id: sample.tags & {"ant", "bat", "cow"} for sample in data_of(voc).samples("train")}
    classes = ["ant", "bat", "cow"]

    def cache(name, more):
        with CacheWriter(tmp_path / name, classes, {}, shard_size=2) as writer:
            for image, own in tags.items():
                found = [classes.index(each) for each in sorted(own | more.get(image, set()))]
                writer.add(image, np.ones((4, 4), np.uint8), map_classes=found, maps=np.ones((len(found), 2, 2)))
        return str(tmp_path / name)

    data_of(voc, targets="cues", cues=cache("same", {})).setup("fit")
    assert "warning" not in capsys.readouterr().err
    lacking = {name: set(classes) - own for name, own in tags.items() if name in ("p1", "p4")}
    assert all(lacking.values())
    data_of(voc, targets="cues", cues=cache("older", lacking)).setup("fit")
    some = ", ".join(f"{name} ({', '.join(sorted(more))})" for name, more in lacking.items())
    message = f"warning: 2 of 6 images have cues of classes that are not among their tags: {some}; make the cache again"
    assert message in capsys.readouterr().err
    samples = [Sample(name, "", None) for name in tags]
    report_untagged_cues(SeedCache(tmp_path / "older"), samples)
    assert capsys.readouterr().err == ""


PLUG_IN = '''
from datamodules.base_datamodule import BaseDataModule
from datamodules.sample import Sample


class SquaresDataModule(BaseDataModule):
    """A data set of one file."""

    def known_classes(self):
        return ("bat", "cow")

    def read_samples(self, split, *, tags=True, masks=True):
        numbers = {"train": (1, 3), "val": (5,)}[split]
        return [
            Sample(f"p{i}", str(self.root / f"JPEGImages/p{i}.jpg"), frozenset({"cow"} if i > 1 else {"bat"}))
            for i in numbers
        ]
'''


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """The module `squares` on the path, not imported yet."""
    (tmp_path / "plug_in").mkdir()
    (tmp_path / "plug_in/squares.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(tmp_path / "plug_in")
    yield
    sys.modules.pop("squares", None)


def test_a_data_set_of_one_file_is_chosen_by_class_path(voc, plug_in, tmp_path):
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(BaseDataModule, "data", subclass_mode=True)
    words = ["--data=squares.SquaresDataModule", f"--data.root={voc}", "--data.size=32", "--data.batch_size=2"]
    data = parser.instantiate_classes(parser.parse_args([*words, "--data.num_workers=0", "--data.classes=[cow]"])).data
    data.setup("fit")
    assert data.classes == ("cow",)
    batch = next(iter(data.train_dataloader()))
    assert sorted(zip(batch["id"], batch["labels"].tolist(), strict=True)) == [("p1", [0.0]), ("p3", [1.0])]
    assert [batch["id"] for batch in data.val_dataloader()] == [["p5"]]
    again = datamodule_from_settings(data.hparams, root=None)
    assert type(again) is type(data)
    assert again.settings == data.settings
    elsewhere = shutil.copytree(voc, tmp_path / "elsewhere")  # it looks like VOC, and the plug-in reads it all the same
    assert type(datamodule_from_settings(data.hparams, root=str(elsewhere))) is type(data)


def test_a_data_module_from_settings(voc, tmp_path):
    cues = cache_of(tmp_path / "cache", ["p0"])
    data = data_of(voc, classes=["cow", "ant"], labels="xml", targets="cues", cues=cues, augment=Augment())
    settings = dict(data.hparams)
    again = datamodule_from_settings(settings, root=None, masks=None, size=48)
    assert (again.classes, again.hparams["labels"], again.hparams["size"]) == (("cow", "ant"), "xml", 48)
    assert (again.hparams["targets"], again.hparams["cues"], again.augment) == ("tags", None, None)
    assert again.hparams["eval_size"] == 32
    assert datamodule_from_settings(None, root=str(voc)).classes == ("ant", "bat", "cow")
    assert "augment" not in data.settings
    with pytest.raises(InputError, match="give it as 'root'"):
        datamodule_from_settings(None)
    with pytest.raises(InputError, match="VOCDataModule has no setting 'tags'"):
        datamodule_from_settings(settings, tags="folders")


@pytest.mark.parametrize(
    "class_path",
    ["squares.SquaresDataModule", "os.system", "datamodules.nowhere.X", "datamodules.voc.Path", "VOCDataModule", ""],
)
def test_settings_do_not_decide_what_is_imported(voc, plug_in, class_path):
    with pytest.raises(InputError, match=f"the data module {class_path} "):
        datamodule_from_settings({"class_path": class_path, "root": str(voc)})
    assert "squares" not in sys.modules


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "the split 'train' of .* contains no image"),
        ([Sample("p1", "JPEGImages/p1.jpg"), Sample("p1", "JPEGImages/p2.jpg")], "two images with the id 'p1'"),
        ([Sample("p9", "JPEGImages/p9.jpg")], r"contains p9, and there is no image JPEGImages/p9\.jpg"),
    ],
)
def test_samples_of_a_plug_in_are_checked(voc, monkeypatch, samples, message):
    monkeypatch.chdir(voc)
    data = data_of(voc)
    monkeypatch.setattr(data, "read_samples", lambda *_, **__: samples)
    with pytest.raises(InputError, match=message):
        data.samples("train")


def test_an_epoch_has_each_mask_once_where_all_images_have_one(voc):
    """Without annotations there are no images to draw more often than others."""
    data = VOCDataModule(str(voc), labels="xml", targets="masks", mask_sampling_rate=3, batch_size=2, num_workers=0)
    data.setup("fit")
    assert sorted(draw.number for draw in data.train_dataloader().sampler) == list(range(6))


def test_images_without_any_tag_are_read_for_a_prediction(voc):
    data = data_of(voc, labels=None, test_split="train", batch_size=6)
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert batch["id"] == [f"p{i}" for i in range(6)]
