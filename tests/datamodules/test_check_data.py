"""What is wrong with images and tags, before any training."""

import json
import re
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image

from datamodules.check_data import MIN_IMAGES, name_problems, tag_problems
from datamodules.coco import COCODataModule
from datamodules.errors import InputError
from datamodules.folder import FolderDataModule
from datamodules.masks import write_mask
from datamodules.near_duplicates import Fingerprint, near_groups
from datamodules.open_data import datamodule_from_settings
from datamodules.sample import Sample
from datamodules.voc import VOCDataModule
from training.cli import main


def random_image(seed, height=96, width=128):
    """Return an image of random blocks; those of two seeds have nothing in common."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def photos(tmp_path):
    """Forty images of two classes. Again image 0, smaller and compressed, and image 1, darker and of another class."""
    root = tmp_path / "photos"
    root.mkdir()
    rows = ["file,tags"]
    for index in range(40):
        cv2.imwrite(str(root / f"{index}.png"), random_image(index))
        rows.append(f"{index}.png,{'cat' if index < 20 else 'dog'}")
    cv2.imwrite(str(root / "small.jpg"), cv2.resize(random_image(0), (64, 48)), [cv2.IMWRITE_JPEG_QUALITY, 50])
    cv2.imwrite(str(root / "dark.png"), random_image(1) // 2)
    cv2.imwrite(str(root / "mirrored.png"), random_image(2)[:, ::-1])
    (root / "tags.csv").write_text("\n".join([*rows, "small.jpg,cat", "dark.png,dog", "mirrored.png,"]))
    return root


def check(root, output, *words):
    """Return the exit status and the findings of the command."""
    status = main(["check", f"--root={root}", "--split=all", f"--output={output}", *words])
    return status, json.loads(output.read_text())["findings"] if output.exists() else None


def test_nearly_identical_images_and_their_tags(photos, tmp_path, capsys):
    status, findings = check(photos, tmp_path / "check.json")
    assert status == 0
    first, second = (finding for finding in findings if finding["kind"] == "identical")
    assert sorted(map(sorted, first["images"])) == [["0", "small"], ["1", "dark"]]
    assert second["images"] == [["1", "dark"]]
    assert "1 (cat), dark (dog)" in second["sentence"]
    assert "1 (cat), dark (dog)" in capsys.readouterr().out


def test_identical_images_in_both_splits(photos, tmp_path):
    """A table lists copies of all images: some of the copies are in the validation split, by their names."""
    table = photos / "tags.csv"
    rows = table.read_text().splitlines()[:41]
    for row in rows[1:]:
        (photos / f"copy-{row.split(',')[0]}").write_bytes((photos / row.split(",")[0]).read_bytes())
    for name in ("small.jpg", "dark.png", "mirrored.png"):
        (photos / name).unlink()
    table.write_text("\n".join([*rows, *(f"copy-{row}" for row in rows[1:])]))
    assert main(["check", f"--root={photos}", f"--output={tmp_path / 'new/check.json'}"]) == 0
    written = json.loads((tmp_path / "new/check.json").read_text())
    first, both = written["findings"][:2]
    assert len(first["images"]) == 40
    validation = {sample.id for sample in FolderDataModule(str(photos)).samples("val")}
    assert set(written["validation"]) == validation
    assert 0 < len(both["images"]) == sum(len(validation & {name, f"copy-{name}"}) == 1 for name in map(str, range(40)))
    train = FolderDataModule(str(photos)).samples("train")
    assert (written["split"], written["images"]) == ("train", len(train))
    assert written["images_by_class"] == Counter(tag for sample in train for tag in sample.tags)


def test_a_class_of_validation_images_alone(photos, tmp_path):
    """It is one without a training image. Masks of both splits are read."""
    name = FolderDataModule(str(photos)).samples("val")[0].id
    table = photos / "tags.csv"
    table.write_text(re.sub(rf"(?m)^{name}(\.\w+),.*$", rf"{name}\1,bird", table.read_text()))
    (photos / "masks").mkdir()
    write_mask(photos / f"masks/{name}.png", np.zeros((5, 6), np.uint8))
    assert main(["check", f"--root={photos}", f"--output={tmp_path / 'check.json'}"]) == 0
    findings = json.loads((tmp_path / "check.json").read_text())["findings"]
    (absent,) = (each for each in findings if "cannot be learned" in each["sentence"])
    assert absent["classes"] == ["bird"]
    (masks,) = (each for each in findings if each["kind"] == "masks")
    assert masks["sentence"].startswith(f"1 of 1 masks cannot be used: {name}. ")


def test_a_sound_data_set(photos, tmp_path, capsys):
    for name in ("small.jpg", "dark.png"):
        (photos / name).unlink()
    table = photos / "tags.csv"
    table.write_text("\n".join(row for row in table.read_text().splitlines() if not row.startswith(("small", "dark"))))
    assert check(photos, tmp_path / "check.json") == (0, [])
    printed = capsys.readouterr().out
    assert "cat 20, dog 20" in printed
    assert "nothing to correct" in printed


def test_unreadable_images(photos, tmp_path):
    for name in ("3.png", "4.png"):
        (photos / name).write_bytes((photos / name).read_bytes()[:200])
    _, findings = check(photos, tmp_path / "check.json")
    assert findings[0]["kind"] == "unreadable"
    assert findings[0]["images"] == ["3", "4"]
    assert findings[0]["sentence"].startswith("2 of 43 images cannot be read")


def test_large_images(photos, tmp_path):
    """A position of 4 of 32 pixels is 16 of 128."""
    _, findings = check(photos, tmp_path / "check.json", "--size=32")
    (finding,) = (finding for finding in findings if finding["kind"] == "small")
    assert "16 pixels of the photo" in finding["sentence"]
    assert not [each for each in check(photos, tmp_path / "b.json", "--size=64")[1] if each["kind"] == "small"]
    _, findings = check(photos, tmp_path / "c.json", "--size=32", "--cue_stride=8")
    assert "a position of the cue grid is 32 pixels of the photo" in findings[-1]["sentence"]


def test_numbers_of_images_of_classes():
    def samples(number, *tags):
        return [Sample(f"{tags}{index}", "", frozenset(tags)) for index in range(number)]

    classes = ("cat", "dog", "road")
    found = tag_problems([*samples(MIN_IMAGES - 1, "cat"), *samples(MIN_IMAGES, "dog")], ("cat", "dog"))
    assert [(each.kind, each.classes) for each in found] == [("few", ["cat"])]
    found = tag_problems([*samples(MIN_IMAGES, "cat", "road"), *samples(MIN_IMAGES, "dog", "road")], classes)
    assert [(each.kind, each.classes) for each in found] == [("everywhere", ["road"])]
    found = tag_problems(
        [*samples(18, "cat", "road"), *samples(2, "cat"), *samples(30, "dog"), *samples(30, "road")], classes
    )
    assert [(each.kind, each.classes) for each in found] == [("together", ["cat", "road"])]
    assert "18 of 20 images of cat show road" in found[0].sentence
    found = tag_problems(
        [*samples(17, "cat", "road"), *samples(3, "cat"), *samples(30, "dog"), *samples(30, "road")], classes
    )
    assert not found
    assert [each.kind for each in tag_problems([Sample("a", "", None)], classes)] == ["untagged"]
    absent, few = tag_problems([*samples(1, "cat"), *samples(30, "dog")], classes)
    assert absent.classes == ["road"]
    assert absent.sentence.startswith("classes without an image in this split cannot be learned")
    assert few.classes == ["cat"]


def test_bad_input_is_one_sentence(photos, tmp_path, capsys):
    for words, problem in (([f"--root={tmp_path / 'none'}"], "none"), ([f"--root={photos}", "--size=0"], "size 0"),
                           ([f"--root={photos}", "--split=test"], "'test'"),
                           ([f"--root={photos}", "--classes=[cow]"], "cow")):  # fmt: skip
        assert main(["check", *words]) == 1
        error = capsys.readouterr().err
        assert problem in error.splitlines()[-1]
        assert "Traceback" not in error


def test_the_layout_decides_the_data_module(voc, photos, tmp_path, capsys):
    """A folder of VOC, of photos, and of COCO, whose splits have the names of COCO 2017."""
    shutil.rmtree(voc / "ImageSets/Main")  # the tags are those of Annotations
    found = datamodule_from_settings(None, root=str(voc))
    assert type(found) is VOCDataModule
    assert found.samples("train")[0].tags == {"ant"}
    assert type(datamodule_from_settings(None, root=str(photos))) is FolderDataModule
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).mkdir()
        cv2.imwrite(str(root / split / f"{split}.png"), random_image(0))
        image = {"id": 1, "file_name": f"{split}.png", "width": 128, "height": 96}
        instance = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}
        content = {"images": [image], "annotations": [instance], "categories": [{"id": 1, "name": "cat"}]}
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    splits = {"train_split": "train2017", "val_split": "val2017"}
    assert type(datamodule_from_settings(None, root=str(root), **splits)) is COCODataModule
    assert main(["check", f"--root={root}", "--split=train2017", "--validation=val2017"]) == 0
    printed = capsys.readouterr().out
    assert "1 images in the split 'train2017'" in printed
    assert "1 of these groups are in the training and in the validation split" in printed


def test_an_image_in_both_lists(voc, tmp_path):
    """It is a copy of itself."""
    lists = voc / "ImageSets/Segmentation"
    shared = (lists / "train.txt").read_text().split()[0]
    with (lists / "val.txt").open("a") as file:
        file.write(f"{shared}\n")
    assert main(["check", f"--root={voc}", f"--output={tmp_path / 'check.json'}"]) == 0
    written = json.loads((tmp_path / "check.json").read_text())
    (found,) = (each for each in written["findings"] if each["kind"] == "shared")
    assert found["images"] == [shared]
    assert found["sentence"].startswith("1 images are in the training and in the validation split")
    assert shared not in written["validation"]
    assert main(["check", f"--root={voc}", "--split=val", f"--output={tmp_path / 'val.json'}"]) == 0
    assert not [
        each for each in json.loads((tmp_path / "val.json").read_text())["findings"] if each["kind"] == "shared"
    ]


def test_splits_that_number_their_images_alike(tmp_path):
    """Images of both splits are read; those of the validation split have its name before theirs."""
    for split, seeds in (("train", (0, 1)), ("val", (1, 2))):
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / split).mkdir()
        images = [{"id": i, "file_name": f"{i}.png", "width": 128, "height": 96} for i in (1, 2, 3)]
        for each, seed in zip(images, seeds, strict=False):
            cv2.imwrite(str(tmp_path / split / each["file_name"]), random_image(seed))
        (tmp_path / split / "3.png").write_bytes(cv2.imencode(".png", random_image(3))[1] if split == "train" else b"")
        instance = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}
        content = {"images": images, "annotations": [instance], "categories": [{"id": 1, "name": "cat"}]}
        (tmp_path / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    output = tmp_path / "check.json"
    assert main(["check", f"--root={tmp_path}", "--split=train", "--validation=val", f"--output={output}"]) == 0
    written = json.loads(output.read_text())
    assert written["validation"] == ["val/1", "val/2", "val/3"]
    found = {each["kind"]: each["images"] for each in written["findings"]}
    assert found["unreadable"] == ["val/3"]
    assert found["identical"] == [["2", "val/1"]]
    assert "shared" not in found


def test_a_data_set_without_a_validation_split(voc, tmp_path, capsys):
    """One that is not named is left out; one that is named must exist."""
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    output = tmp_path / "check.json"
    assert main(["check", f"--root={voc}", f"--output={output}"]) == 0
    printed = capsys.readouterr()
    assert "6 images in the split 'train'" in printed.out
    assert "no validation images are checked: there is no list " in printed.err
    assert json.loads(output.read_text())["validation"] == []
    assert main(["check", f"--root={voc}", "--validation=val"]) == 1
    assert "there is no list " in capsys.readouterr().err


def test_tags_of_classes_that_are_left_out_do_not_count(photos, tmp_path):
    """Image 1 is a cat, and its darker copy a dog."""
    table = photos / "tags.csv"
    table.write_text(table.read_text().replace("dark.png,dog", "dark.png,cat;dog"))
    differ = "different tags"
    assert any(differ in each["sentence"] for each in check(photos, tmp_path / "a.json")[1])
    assert not any(differ in each["sentence"] for each in check(photos, tmp_path / "b.json", "--classes=[cat]")[1])


def test_a_cache_without_recorded_data_has_that_of_its_layout(photos):
    """Seeds of other tools record no data module; photos with a table are no VOC."""
    assert type(datamodule_from_settings(None, root=str(photos), classes=["cat", "dog"])) is FolderDataModule
    recorded = {"class_path": "datamodules.voc.VOCDataModule", "root": str(photos)}
    assert type(datamodule_from_settings(recorded, root=str(photos))) is VOCDataModule
    with pytest.raises(InputError, match="not recorded"):
        datamodule_from_settings(None, root=None)


def test_a_data_set_of_another_kind_than_that_of_the_training(voc, photos, tmp_path):
    """A network of VOC is applied to photos with a table, and the reverse: only what it needs of its images is kept."""
    trained = VOCDataModule(
        str(voc),
        classes=["cow", "ant"],
        labels="xml",
        train_split="trainaug",
        eval_size=48,
        size=32,
        max_unreadable=0.5,
    ).settings
    (photos / "classes.txt").write_text("ant\ncat\ncow\ndog\n")
    data = datamodule_from_settings(trained, root=str(photos), test_split="all")
    assert type(data) is FolderDataModule
    assert (data.classes, data.unreadable.share) == (("cow", "ant"), 0.5)
    expected = {"eval_size": 48, "size": 32, "train_split": "train", "test_split": "all", "masks": "auto"}
    assert {name: data.hparams[name] for name in expected} == expected
    shutil.rmtree(voc / "ImageSets/Main")  # the tags are those of Annotations
    back = datamodule_from_settings(
        FolderDataModule(str(photos), classes=["ant"], tags="tags.csv").settings, root=str(voc)
    )
    assert type(back) is VOCDataModule
    assert back.samples("train")[0].tags == {"ant"}
    (photos / "tags.csv").unlink()  # nothing shows what kind of data set this is
    assert type(datamodule_from_settings(trained, root=str(photos))) is VOCDataModule
    (voc / "tags.csv").write_text("file,tags\n")  # this folder may be either
    assert type(datamodule_from_settings(trained | {"root": "there"}, root=str(voc))) is VOCDataModule


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("cat", "cat dog", "dog", "hot dog"), [("composed", ["cat dog"])]),
        (("cat", "cat and dog", "cat/dog", "dog"), [("composed", ["cat and dog", "cat/dog"])]),
        (("Cat", "bus", "cat", "cat.", "cats", "dog"), [("spelling", ["Cat", "cat", "cat.", "cats"])]),
        (("NaN", "cat", "none"), [("empty", ["NaN", "none"])]),
        (("0", "1"), [("numbers", ("0", "1"))]),
        (("0.0", "1", "cat"), []),
        (("bus", "traffic light", "glass"), []),
    ],
)
def test_names_that_are_no_classes(classes, expected):
    assert [(each.kind, each.classes) for each in name_problems(classes)] == expected


def test_masks_and_tags(photos, tmp_path):
    (photos / "masks").mkdir()
    indices = np.zeros((96, 128), np.uint8)
    indices[:20] = 255
    for name in ("0", "30", "mirrored"):
        write_mask(photos / f"masks/{name}.png", indices)
    sentence = next(each for each in check(photos, tmp_path / "a.json")[1] if each["kind"] == "masks")["sentence"]
    assert sentence.startswith(
        "no mask shows a class: 0 is background, 255 is not known, and objects have the index 1 "
    )
    indices[50:] = 1
    for name in ("0", "30"):
        write_mask(photos / f"masks/{name}.png", indices)
    cv2.imwrite(str(photos / "masks/mirrored.png"), np.zeros((96, 128, 3), np.uint8))
    found = [each for each in check(photos, tmp_path / "b.json")[1] if each["kind"] == "masks"]
    assert [each["images"] for each in found] == [["mirrored"], ["30"]]
    assert "contains RGB values, not class indices" in found[0]["sentence"]
    assert "30 has the tags dog, and its mask shows cat" in found[1]["sentence"]


def test_classes_that_are_small_in_half_of_their_masks(photos, tmp_path):
    """Of 96 x 128 pixels 1 % are 122.88; cats have 100, 120 and 6,144 pixels, a dog 130."""
    (photos / "masks").mkdir()
    for name, label, pixels in (("0", 1, 100), ("30", 1, 120), ("mirrored", 1, 6144), ("3", 2, 130)):
        indices = np.zeros(96 * 128, np.uint8)
        indices[:pixels] = label
        write_mask(photos / f"masks/{name}.png", indices.reshape(96, 128))
    (found,) = (each for each in check(photos, tmp_path / "a.json")[1] if each["kind"] == "small")
    assert found["classes"] == ["cat"]
    assert found["sentence"].endswith("a setting of photos.yaml and coco.yaml: cat (0.98 %)")


def test_masks_whose_names_fit_no_image(photos, tmp_path):
    (photos / "masks").mkdir()
    write_mask(photos / "masks/0_mask.png", np.ones((96, 128), np.uint8))
    (found,) = (each for each in check(photos, tmp_path / "a.json")[1] if each["kind"] == "masks")
    problem = f"1 of 1 files in {photos}/masks are not the mask of an image, first 0_mask.png"
    assert found["sentence"] == f"{problem}: a mask has the name of its image, as 0.png"
    (photos / "masks/.hidden").mkdir()
    write_mask(photos / "masks/30.png", np.ones((96, 128), np.uint8))
    write_mask(photos / "masks/note.txt", np.ones((96, 128), np.uint8))
    sentences = [each["sentence"] for each in check(photos, tmp_path / "b.json")[1] if each["kind"] == "masks"]
    assert sentences[-1].startswith(f"1 of 2 files in {photos}/masks are not the mask of an image, first 0_mask.png")
    (photos / "masks/0_mask.png").unlink()
    sentences = [each["sentence"] for each in check(photos, tmp_path / "c.json")[1] if each["kind"] == "masks"]
    assert not any("are not the mask" in each for each in sentences)


def test_masks_of_a_kind_that_is_not_read(photos, tmp_path):
    (photos / "masks").mkdir()
    np.save(photos / "masks/0.npy", np.ones((96, 128), np.uint8))
    (found,) = (each for each in check(photos, tmp_path / "a.json")[1] if each["kind"] == "masks")
    assert found["sentence"].startswith(f"1 of 1 files in {photos}/masks are not the mask of an image, first 0.npy")


def test_masks_of_another_size_than_their_images(photos, tmp_path):
    (photos / "masks").mkdir()
    write_mask(photos / "masks/0.png", np.ones((96, 128), np.uint8))
    write_mask(photos / "masks/30.png", np.ones((128, 96), np.uint8))
    found = [each for each in check(photos, tmp_path / "a.json")[1] if each["kind"] == "masks"]
    assert found[0]["images"] == ["30"]
    assert found[0]["sentence"].startswith("1 of 2 masks cannot be used: 30. The first: mask ")
    assert "30.png is 96x128, and its image " in found[0]["sentence"]
    assert found[0]["sentence"].endswith(" is 128x96")


def test_scans_of_12_bits_in_16_bit_pngs(tmp_path):
    """Their high bytes have 16 levels."""
    random = np.random.default_rng(0)
    for number in range(4):
        scan = random.integers(0, 4096, (60, 60), dtype=np.uint16)
        Image.fromarray(scan).save(tmp_path / f"{number}.png")
    (tmp_path / "tags.csv").write_text("file,tags\n0.png,a\n1.png,\n2.png,a\n3.png,\n")
    (found,) = [each for each in check(tmp_path, tmp_path / "check.json")[1] if each["kind"] == "dark"]
    assert found["images"] == ["0", "1", "2", "3"]
    assert found["sentence"].startswith("4 of 4 images have fewer than 32 levels between their darkest and brightest ")
    for number in range(3):
        Image.fromarray(random.integers(0, 65536, (60, 60), dtype=np.uint16)).save(tmp_path / f"{number}.png")
        dark = [each["images"] for each in check(tmp_path, tmp_path / "check.json")[1] if each["kind"] == "dark"]
        assert dark == [[["1", "2", "3"]], [["2", "3"]], []][number]  # at least half of the images


def test_images_whose_grids_are_alike_and_whose_grays_are_not_are_no_copies():
    """The same signs of differences; correlations 1, 0.96 and 0.94."""
    bits, one = np.zeros(4, np.uint64), np.eye(1024, dtype=np.float32)

    def fingerprint(correlation):
        small = np.float32(correlation) * one[0] + np.float32((1 - correlation**2) ** 0.5) * one[1]
        return Fingerprint(8, 8, bits, small, 255)

    images = {
        "a": fingerprint(1),
        "b": fingerprint(0.94),
        "c": Fingerprint(8, 8, bits, fingerprint(0.96).small * [1, -1, *[1] * 1022], 255),
    }
    assert near_groups(images) == [["a", "c"]]


@pytest.mark.parametrize(("different", "groups"), [(16, [["a", "b"]]), (17, [])])
def test_copies_differ_in_at_most_16_signs(different, groups):
    bits = np.packbits(np.arange(256) < different).view(np.uint64)
    small = np.eye(1024, dtype=np.float32)[0]
    images = {"a": Fingerprint(8, 8, np.zeros(4, np.uint64), small, 255), "b": Fingerprint(8, 8, bits, small, 255)}
    assert near_groups(images) == groups
