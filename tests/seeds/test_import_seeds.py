"""Seeds from the files of others and back."""

import gzip
import hashlib
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from datamodules.class_names import VOC_CLASSES
from datamodules.errors import InputError
from datamodules.masks import read_mask, write_mask
from datamodules.seed_cache import SeedCache
from seeds.evaluation.evaluate_seeds import evaluate_seeds
from seeds.export_seeds import enlarge_labels, export_seeds
from seeds.import_seeds import import_seeds
from tests.seed_caches import CacheWriter
from tests.seeds.conftest import IDS

NAMES = ("ant", "bat", "cow")


def same(one: SeedCache, other: SeedCache) -> None:
    assert one.ids == other.ids
    assert one.classes == other.classes
    for name in one.ids:
        np.testing.assert_array_equal(one.cues(name), other.cues(name))


@pytest.fixture
def cache(tmp_path):
    """Random cues on 5 x 5 positions of three classes; the last image has none."""
    generator = np.random.default_rng(0)
    with CacheWriter(tmp_path / "cache", NAMES, {}) as writer:
        for name in "abc":
            writer.add(name, generator.choice([0, 1, 3, 255], (5, 5)).astype(np.uint8))
        writer.add("d", np.full((5, 5), 255, np.uint8))
    return SeedCache(tmp_path / "cache")


@pytest.mark.parametrize("form", ["sec", "png"])
def test_there_and_back(cache, form, tmp_path):
    export_seeds(cache.path, tmp_path / "out", form)
    source = tmp_path / "out" / "localization_cues.pickle" if form == "sec" else tmp_path / "out"
    import_seeds(source, tmp_path / "back", form, grid=5)
    back = SeedCache(tmp_path / "back")
    same(cache, back)
    export_seeds(back.path, tmp_path / "again", form)
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    settings = back.settings
    assert (settings["method"], settings["source_format"]) == ("imported", form)
    assert back.inputs["seeds"] == str(source)
    assert settings["packages"]["numpy"] == np.__version__
    assert settings["ids_sha256"] == hashlib.sha256(b"a\nb\nc\nd").hexdigest()
    if form == "sec":
        assert settings["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()


def test_labels_of_sec_are_the_classes_of_maps_and_of_cues(tmp_path):
    """An image has a map of bat (2) without a cue, and a cue of cow (3) without a map."""
    with CacheWriter(tmp_path / "cache", NAMES, {}) as writer:
        cues = np.array([[0, 3], [255, 255]], np.uint8)
        writer.add("a", cues, map_classes=np.array([1]), maps=np.ones((1, 2, 2), np.float32))
    export_seeds(tmp_path / "cache", tmp_path / "out", "sec")
    content = pickle.loads((tmp_path / "out/localization_cues.pickle").read_bytes(), encoding="latin1")
    assert content["0_labels"].tolist() == [2, 3]


def sec_file(folder, cues, labels=(1, 2, 3)):
    (folder / "classes.txt").write_text("ant\nbat\ncow\n")
    (folder / "input_list.txt").write_text("x.jpg 0\n")
    path = folder / "cues.pickle.gz"
    content = {"0_labels": np.array(labels), "0_cues": np.array(cues).T}
    path.write_bytes(gzip.compress(pickle.dumps(content, 2)))
    return path


def test_overlaps_go_to_the_smaller_class_and_from_the_background(tmp_path):
    positions = [(0, 0, 0), (1, 0, 0), (1, 0, 1), (1, 1, 1), (2, 0, 1), (2, 1, 0), (0, 1, 1)]
    import_seeds(sec_file(tmp_path, positions), tmp_path / "cache", "sec", grid=2)
    # ant has 3 positions, bat 2: bat takes (0, 1); ant takes (0, 0) and (1, 1) from the background
    assert SeedCache(tmp_path / "cache").cues("x").tolist() == [[1, 2], [2, 1]]


def test_what_numbers_and_indices_mean_belongs_to_the_settings(tmp_path):
    """A corrected list of images, or of the classes of the source, does not leave the earlier cues in place."""
    source, cache = sec_file(tmp_path, [(1, 0, 0)]), tmp_path / "cache"
    import_seeds(source, cache, "sec", grid=1, classes=["ant"])
    (tmp_path / "input_list.txt").write_text("x.jpg 1\n")
    with pytest.raises(InputError, match=r"exists already, made with numbers_sha256"):
        import_seeds(source, cache, "sec", grid=1, classes=["ant"])
    (tmp_path / "input_list.txt").write_text("x.jpg 0\n")
    (tmp_path / "classes.txt").write_text("bat\nant\ncow\n")
    with pytest.raises(InputError, match=r"exists already, made with source_classes \['ant', 'bat', 'cow'\]"):
        import_seeds(source, cache, "sec", grid=1, classes=["ant"])


def test_a_choice_of_classes_in_another_order(tmp_path):
    positions = [(0, 0, 0), (1, 0, 1), (3, 1, 0), (2, 1, 1)]
    import_seeds(sec_file(tmp_path, positions), tmp_path / "cache", "sec", grid=2, classes=["cow", "ant"])
    cache = SeedCache(tmp_path / "cache")
    assert cache.classes == ("cow", "ant")
    assert cache.cues("x").tolist() == [[0, 2], [1, 255]]


def irn_folder(folder):
    """Classes a row of positions each: ant falls from left to right, cow the other way and twice as high."""
    maps = np.stack([np.tile([8.0, 6, 1, 0], (4, 1)), np.tile([0, 0.1, 1, 16.0], (4, 1))]).astype(np.float32)
    (folder / "npy").mkdir()
    np.save(folder / "npy/x.npy", {"keys": torch.tensor([0, 2]), "cam": torch.from_numpy(maps), "high_res": maps})
    np.save(folder / "npy/y.npy", {0: maps[0], 2: maps[1]})
    (folder / "npy/classes.txt").write_text("ant\nbat\ncow\n")
    return folder / "npy", maps


def test_irn_by_hand(tmp_path):
    folder, maps = irn_folder(tmp_path)
    import_seeds(folder, tmp_path / "cache", "irn", grid=4, fg_threshold=0.2, bg_threshold=0.13)
    cache = SeedCache(tmp_path / "cache")
    for name in "xy":
        # above 0.2 of the map's maximum: ant in columns 0, 1, cow in 3; column 2 holds 0.125 and 0.0625: background
        assert cache.cues(name).tolist() == [[1, 1, 0, 3]] * 4
        classes, found = cache.maps(name)
        assert classes.tolist() == [0, 2]
        np.testing.assert_allclose(found, maps, rtol=1e-3)
    import_seeds(folder, tmp_path / "less", "irn", grid=4, bg_threshold=0.05)
    assert SeedCache(tmp_path / "less").cues("x").tolist() == [[1, 1, 255, 3]] * 4
    import_seeds(folder, tmp_path / "cow", "irn", grid=2, classes=["bat", "cow"], fg_threshold=0.5, bg_threshold=0.0)
    only = SeedCache(tmp_path / "cow")
    assert only.cues("x").tolist() == [[255, 2]] * 2  # the ant's positions are no cue, and no background either
    classes, found = only.maps("x")
    assert classes.tolist() == [1]
    np.testing.assert_allclose(found, maps[1:], rtol=1e-3)


def test_maps_of_irn_are_resized_bilinearly_to_the_grid(tmp_path):
    """Two positions, 0 and 1, to four: 0, 0.25, 0.75 and 1."""
    (tmp_path / "npy").mkdir()
    maps = np.float32([[[0, 1], [0, 1]]])
    np.save(tmp_path / "npy/x.npy", {"keys": np.array([0]), "cam": maps}, allow_pickle=True)
    for threshold, row in ((0.2, [0, 1, 1, 1]), (0.3, [0, 255, 1, 1]), (0.8, [0, 255, 255, 1])):
        import_seeds(tmp_path / "npy", tmp_path / f"{threshold}", "irn", grid=4, fg_threshold=threshold)
        assert SeedCache(tmp_path / f"{threshold}").cues("x").tolist() == [row] * 4


def test_the_thresholds_of_irn(tmp_path):
    """By default 0.2 and 0.05 of the maximum; a cache of others is another one."""
    folder, _ = irn_folder(tmp_path)
    import_seeds(folder, tmp_path / "cache", "irn")
    settings = SeedCache(tmp_path / "cache").settings
    assert (settings["fg_threshold"], settings["bg_threshold"]) == (0.2, 0.05)
    with pytest.raises(InputError, match=r"made with bg_threshold 0\.05, not 0\.1"):
        import_seeds(folder, tmp_path / "cache", "irn", bg_threshold=0.1)


def test_irn_without_any_class_gives_no_cue(tmp_path):
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy/x.npy", {"keys": np.zeros(0, int), "cam": np.zeros((0, 3, 3), np.float32)})
    import_seeds(tmp_path / "npy", tmp_path / "cache", "irn", grid=3)
    assert (SeedCache(tmp_path / "cache").cues("x") == 255).all()


def test_to_irn_and_back(voc, tmp_path):
    generator = np.random.default_rng(0)
    settings = {"root": str(voc), "train_split": "train", "num_workers": 0}
    with CacheWriter(tmp_path / "cache", ("red", "blue"), {}, inputs={"data": settings}) as writer:
        for name in IDS:
            maps = generator.random((2, 6, 6), np.float32)
            writer.add(name, np.zeros((6, 6), np.uint8), map_classes=np.array([0, 1]), maps=maps)
    export_seeds(tmp_path / "cache", tmp_path / "npy", "irn")
    assert {path.stem for path in (tmp_path / "npy").glob("*.npy")} == set(IDS)
    size = read_mask(voc / "SegmentationClass/p0.png").shape
    assert np.load(tmp_path / "npy/p0.npy", allow_pickle=True).item()["high_res"].shape == (2, *size)
    import_seeds(tmp_path / "npy", tmp_path / "back", "irn", grid=6)
    back = SeedCache(tmp_path / "back")
    assert back.classes == ("red", "blue")
    metrics = evaluate_seeds(back.path, root=str(voc), split="train")
    assert metrics["miou_fixed"] <= metrics["miou_oracle"]
    with pytest.raises(InputError, match="give it as 'root'"):
        export_seeds(back.path, tmp_path / "more", "irn")
    assert not (tmp_path / "more").exists()


def test_cues_without_maps_are_scored(voc, tmp_path, capsys):
    (tmp_path / "png").mkdir()
    (tmp_path / "png/classes.txt").write_text("red\nblue\n")
    for name in IDS:
        mask = read_mask(voc / f"SegmentationClass/{name}.png")
        mask[mask == 0] = 255  # the background is left without a cue
        write_mask(tmp_path / f"png/{name}.png", mask)
    import_seeds(tmp_path / "png", tmp_path / "cache", "png")
    metrics = evaluate_seeds(tmp_path / "cache", root=str(voc), split="train")
    assert "cues without maps" in capsys.readouterr().out
    assert json.loads((tmp_path / "cache/metrics.json").read_text()) == metrics
    for key in ("miou_fixed", "threshold_fixed", "miou_oracle", "threshold_oracle"):
        assert metrics[key] is None
    assert metrics["precision"] == metrics["miou_cues"] == 1
    assert metrics["iou_cues"] == {"background": 1, "red": 1, "blue": 1}
    assert metrics["cues"]["background"] == {"precision": None, "recall": 0, "coverage": 0}


def test_hidden_files_are_none(cache, tmp_path):
    """macOS writes ``._a.png`` beside ``a.png`` to other file systems."""
    export_seeds(cache.path, tmp_path / "png", "png")
    (tmp_path / "png/._a.png").write_bytes(b"no PNG")
    (tmp_path / "png/.cache").mkdir()
    (tmp_path / "png/.cache/z.png").write_bytes((tmp_path / "png/a.png").read_bytes())
    import_seeds(tmp_path / "png", tmp_path / "back", "png")
    assert SeedCache(tmp_path / "back").ids == tuple(sorted(cache.ids))


def test_a_list_of_images(cache, tmp_path):
    export_seeds(cache.path, tmp_path / "png", "png")
    (tmp_path / "some.txt").write_text("c\n\n/JPEGImages/a.jpg /SegmentationClass/a.png\n")
    import_seeds(tmp_path / "png", tmp_path / "some", "png", ids=tmp_path / "some.txt")
    assert SeedCache(tmp_path / "some").ids == ("c", "a")
    (tmp_path / "some.txt").write_text("a\ne\nf\n")
    with pytest.raises(InputError, match=r"lacks 2 of the 3 images of .*some\.txt, first e"):
        import_seeds(tmp_path / "png", tmp_path / "more", "png", ids=tmp_path / "some.txt")
    (tmp_path / "some.txt").write_text("a\nJPEGImages/a.jpg\n")
    with pytest.raises(InputError, match=r"the list .*some\.txt contains a more than once"):
        import_seeds(tmp_path / "png", tmp_path / "more", "png", ids=tmp_path / "some.txt")
    assert not (tmp_path / "more").exists()


MISTAKES = {
    "no such file": ({"source": "nothing.pickle"}, "nothing.pickle|input_list"),
    "a folder for sec": ({"source": "."}, "Is a directory"),
    "a file for png": ({"format": "png"}, "no folder"),
    "an empty folder": ({"source": ".", "format": "irn"}, r"no folder that contains \.npy"),
    "an unknown class": ({"classes": ["aunt"]}, "did you mean 'ant'"),
    "another grid": ({"grid": 1}, "a grid of 1x1"),
    "no grid": ({"grid": 0}, "grid 0 must be positive"),
    "thresholds": ({"bg_threshold": 0.5}, "bg_threshold 0.5 <= fg_threshold 0.2"),
    "an empty list": ({"format": "png", "source": "masks", "ids": "empty.txt"}, r"the list .*empty\.txt contains no"),
    "no list": ({"ids": "nothing.txt"}, r"nothing\.txt cannot be read"),
    "another output": ({"output": "."}, "exists already"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"source": sec_file(tmp_path, [(1, 1, 1)]).name, "output": "cache", "format": "sec", "grid": 2}
    given |= MISTAKES[name][0]
    given |= {key: tmp_path / given[key] for key in ("source", "output", "ids") if key in given}
    (tmp_path / "empty.txt").touch()
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / "masks/a.png", np.zeros((2, 2), np.uint8))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=MISTAKES[name][1]):
        import_seeds(**given)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("form", "suffix"), [("png", "png"), ("irn", "npy")])
def test_ids_that_are_paths(form, suffix, tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(tmp_path / "images/train/a.png")
    (tmp_path / "images/tags.csv").write_text("file,tags\ntrain/a.png,red\n")
    data = {"class_path": "datamodules.folder.FolderDataModule", "root": str(tmp_path / "images"), "train_split": "all"}
    with CacheWriter(tmp_path / "cache", ("red",), {}, inputs={"data": data}) as writer:
        writer.add("train/a", np.zeros((2, 2), np.uint8), map_classes=[0], maps=np.ones((1, 2, 2), np.float32))
    export_seeds(tmp_path / "cache", tmp_path / "out", form)
    assert (tmp_path / f"out/train/a.{suffix}").is_file()
    np.savetxt(tmp_path / "out/classes.txt", ["red"], "%s")
    shutil.copy(tmp_path / f"out/train/a.{suffix}", tmp_path / f"out/b.v1.{suffix}")
    import_seeds(tmp_path / "out", tmp_path / "back", form)
    assert SeedCache(tmp_path / "back").ids == ("b.v1", "train/a")
    (tmp_path / "ids.txt").write_text("b.v1\ntrain/a.jpg\n")
    import_seeds(tmp_path / "out", tmp_path / "listed", form, ids=tmp_path / "ids.txt")
    assert SeedCache(tmp_path / "listed").ids == ("b.v1", "train/a")


def test_label_maps_for_annotation_tools(tmp_path):
    """2 x 2 positions in an image of 4 x 4 pixels: each pixel has the label of a position."""
    (tmp_path / "images/train").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "images/train/a.png")
    (tmp_path / "images/tags.csv").write_text("file,tags\ntrain/a.png,red\n")
    data = {"class_path": "datamodules.folder.FolderDataModule", "root": str(tmp_path / "images"), "train_split": "all"}
    with CacheWriter(tmp_path / "cache", ("red",), {}, inputs={"data": data}) as writer:
        writer.add("train/a", np.array([[1, 0], [255, 1]], np.uint8))
    export_seeds(tmp_path / "cache", tmp_path / "out", "coco")
    coco = COCO(str(tmp_path / "out/instances.json"))
    assert coco.loadImgs(1)[0]["file_name"] == "train/a.png"
    assert [each["name"] for each in coco.loadCats([1, 2])] == ["red", "unknown"]
    red, unknown = (coco.annToMask(each) for each in coco.loadAnns([1, 2]))
    assert red[0].tolist() == [1, 1, 0, 0]
    assert red[3].tolist() == [0, 0, 1, 1]
    assert (unknown == 1)[2:, :2].sum() >= 3
    assert not (unknown * red).any()


def test_labels_of_another_size():
    """A straight boundary stays in its place; a diagonal one has no steps of whole positions."""
    halves = np.repeat(np.array([[2, 0, 255]], np.uint8), 3, axis=0)
    np.testing.assert_array_equal(enlarge_labels(halves, 9, 12), np.repeat(halves[:1], 9, axis=0).repeat(4, axis=1))
    np.testing.assert_array_equal(enlarge_labels(halves, 3, 3), halves)
    diagonal = np.tril(np.ones((8, 8), np.uint8))
    fine = np.tril(np.ones((64, 64), np.uint8), k=4)
    assert (enlarge_labels(diagonal, 64, 64) != fine).sum() < 0.6 * (diagonal.repeat(8, 0).repeat(8, 1) != fine).sum()


@pytest.mark.parametrize(("form", "words"), [("sec", "cues of 2 different sizes"), ("irn", "has cues without maps")])
def test_what_cannot_be_exported(voc, form, words, tmp_path):
    with CacheWriter(tmp_path / "cache", ("red", "blue"), {}) as writer:
        for i, name in enumerate(IDS):
            writer.add(name, np.zeros((2, 2 + i % 2), np.uint8))
    with pytest.raises(InputError, match=words):
        export_seeds(tmp_path / "cache", tmp_path / "out", form, root=str(voc), split="train")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_nothing_is_written_outside_or_over(cache, tmp_path):
    with pytest.raises(InputError, match="not a valid id"), CacheWriter(tmp_path / "evil", NAMES, {}) as writer:
        writer.add("../outside", np.zeros((2, 2), np.uint8))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").touch()
    with pytest.raises(InputError, match="exists already"):
        export_seeds(cache.path, tmp_path / "there", "png")
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "there"}
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["precious"]


@pytest.fixture(scope="module")
def released(real_data, tmp_path_factory):
    """The authors' file as Python's own pickle reads it, and the cache made of it."""
    source = real_data / "sec-release/localization_cues.pickle.gz"
    if not source.is_file():
        pytest.skip(f"the cues that the SEC authors released are not here ({source})")
    folder = tmp_path_factory.mktemp("release")
    import_seeds(source, folder / "cache", "sec")
    with gzip.open(source) as file:
        return pickle.load(file, encoding="latin1"), folder / "cache", source.with_name("input_list.txt")


def test_the_released_cues(released):
    entries, path, listed = released
    cache = SeedCache(path)
    assert cache.classes == VOC_CLASSES
    assert cache.ids == tuple(line.split(".")[0] for line in listed.read_text().splitlines())
    assert len(cache) == 10_582 == len(entries) / 2
    positions = 0
    for number, name in enumerate(cache.ids):
        cues, theirs = cache.cues(name), entries[f"{number}_cues"]
        cued = cues != 255
        positions += cued.sum()
        assert cued.sum() == theirs.shape[1]  # no position is cued twice
        assert (cues[theirs[1], theirs[2]] == theirs[0]).all()
    assert positions / len(cache) == pytest.approx(403.53, abs=0.01)


def test_the_released_cues_go_back(released, tmp_path):
    entries, path, listed = released
    export_seeds(path, tmp_path / "out", "sec")
    assert (tmp_path / "out/input_list.txt").read_bytes() == listed.read_bytes()
    found = pickle.loads((tmp_path / "out/localization_cues.pickle").read_bytes(), encoding="latin1")
    assert found.keys() == entries.keys()
    for key, value in entries.items():
        assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
        assert (found[key] == value).all()


def test_the_released_cues_of_the_animals(real_data, tmp_path):
    lists = real_data / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    source = real_data / "sec-release/localization_cues.pickle.gz"
    if not source.is_file() or not lists.is_dir():
        pytest.skip("the cues that the SEC authors released, or the lists of VOC animals, are not here")
    animals = ["cat", "cow", "dog", "horse", "sheep", "person"]
    import_seeds(source, tmp_path / "cache", "sec", classes=animals, ids=lists / "train.txt")
    cache = SeedCache(tmp_path / "cache")
    assert len(cache) == 437
    assert set(np.unique(np.stack([cache.cues(name) for name in cache.ids]))) == {0, 1, 2, 3, 4, 5, 6, 255}
