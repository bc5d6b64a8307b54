"""Masks of `tag2mask predict`."""

import csv
import errno
import json
import os
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from upath import UPath

from datamodules import dataset
from datamodules.class_names import voc_palette
from datamodules.errors import InputError
from datamodules.files import write_atomically
from datamodules.folder import FolderDataModule
from datamodules.images import read_image
from datamodules.masks import read_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.unreadable_images import UnreadableImages
from tests.datamodules.test_annotation_export import FILES, annotate
from tests.tars import tar_bytes
from training import photos as photos_module
from training.cli import main
from training.image_overlays import encode_image, label_overlay
from training.inference import load_trained, predictions
from training.predict import predict

PYTHON_PAGE = Path(__file__).parents[2] / "docs/pages/reference/python.md"


@pytest.fixture
def photos(voc, tmp_path):
    """A folder with two photos, one of them turned by its EXIF orientation, and two files that are none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    files = sorted((voc / "JPEGImages").iterdir())[:2]
    Image.open(files[0]).save(folder / "a.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(files[1]).resize((80, 50)).save(folder / "b.jpeg", exif=exif)
    (folder / "notes.txt").write_text("no photo")
    (folder / "._a.jpg").write_bytes(b"\0\5\x16\7")  # macOS writes such files beside images on other file systems
    return folder


@pytest.mark.parametrize("crf", [False, True])
def test_predict_writes_palette_masks_of_the_photos_size(checkpoint, photos, tmp_path, crf):
    out = tmp_path / "out"
    written = predict(checkpoint, [photos], out, crf=crf, overlay=True, num_workers=0)
    assert [path.name for path in written] == ["a.png", "b.png"]
    assert {path.name for path in out.iterdir()} == {"a.png", "a_overlay.jpg", "b.png", "b_overlay.jpg", "classes.txt"}
    for name, photo in (("a", "a.jpg"), ("b", "b.jpeg")):
        with Image.open(out / f"{name}.png") as mask:
            assert mask.mode == "P"
            assert mask.getpalette()[:63] == voc_palette().ravel().tolist()[:63]
        assert read_mask(out / f"{name}.png").shape == read_image(photos / photo).shape[:2]
        overlay = label_overlay(read_image(photos / photo), read_mask(out / f"{name}.png"))
        assert (out / f"{name}_overlay.jpg").read_bytes() == encode_image(overlay, "jpeg", quality=90)
    assert read_mask(out / "b.png").shape == (80, 50)  # upright


def test_the_example_of_the_docs_computes_the_mask_of_predict(checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/photos_recipe/network").mkdir(parents=True)
    shutil.copy(checkpoint, "runs/photos_recipe/network/last.ckpt")
    shutil.copy(photos / "b.jpeg", "photo.jpg")
    names: dict[str, Any] = {}
    exec(re.search(r"test_predict.py -->\n```python\n(.*?)```", PYTHON_PAGE.read_text(), re.DOTALL)[1], names)
    (path,) = predict(checkpoint, [Path("photo.jpg")], tmp_path / "masks", num_workers=0)
    np.testing.assert_array_equal(names["mask"].numpy(), read_mask(path))
    assert names["probabilities"].sum(0).numpy() == pytest.approx(1, abs=1e-5)


def test_the_script_of_the_python_page(voc, tmp_path, monkeypatch):
    """Tags to masks by Lightning's Trainer and the functions of the commands."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    files = sorted((voc / "JPEGImages").iterdir())[:6]
    for index, file in enumerate(files):
        shutil.copy(file, f"photos/{index}.jpg")
    rows = "".join(f"{index}.jpg,{('cat', 'dog')[index % 2]}\n" for index in range(len(files)))
    Path("photos/tags.csv").write_text(f"file,tags\n{rows}")
    script = PYTHON_PAGE.read_text().rpartition("test_predict.py -->\n```python\n")[2].partition("```")[0]
    tiny = {'"imagenet"': '"none"', "size=320, batch_size=16": "size=64, batch_size=2, num_workers=0, val_fraction=0"}
    tiny |= {"Trainer(": "Trainer(max_steps=1, logger=False, ", '"new-photos"': '"photos"'}
    for words, other in tiny.items():
        assert words in script
        script = script.replace(words, other)
    exec(script, {})
    assert len(list(Path("masks").glob("*.png"))) == len(files)


def test_predict_agrees_with_evaluate(voc, checkpoint, tmp_path):
    trained = load_trained(checkpoint)
    data = datamodule_from_settings(trained.data, num_workers=0)
    samples = data.samples("val", tags=False)
    loader = data.eval_loader(samples)
    for crf in (False, True):
        predict(checkpoint, [Path(sample.image) for sample in samples], tmp_path / str(crf), crf=crf, num_workers=0)
    evaluated = list(predictions(trained.scores, loader, UnreadableImages(0.0), crf=True))
    assert len(evaluated) == len(samples)
    for found in evaluated:
        assert (read_mask(tmp_path / f"False/{found.id}.png") == found.plain).mean() > 0.999
        assert (read_mask(tmp_path / f"True/{found.id}.png") == found.final).mean() > 0.999


@pytest.mark.parametrize("content", ["header", "pixels"])
def test_photos_that_cannot_be_read_are_skipped_and_listed(checkpoint, photos, tmp_path, capsys, content):
    """All others get their masks, the same as without the broken ones; exit status 1; the next run clears the list."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = ["predict", f"--checkpoint={checkpoint}", f"--images={photos}", "--num_workers=0", "--batch_size=2"]
    assert main([*words, f"--output={whole}"]) == 0
    for name in ("a1", "z"):
        broken = b"not a photo" if content == "header" else (photos / "a.jpg").read_bytes()[:-200]
        (photos / f"{name}.jpg").write_bytes(broken)
    assert main([*words, f"--output={out}"]) == 1
    printed = capsys.readouterr().err
    assert "2 of 4 images were skipped" in printed.splitlines()[-1]
    assert "left out: z: image" in printed
    with (out / "skipped.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["a1.jpg", "z.jpg"]
    assert all("cannot be read" in row["reason"] for row in rows)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()} | {"skipped.csv"}
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()
    for name in ("a1", "z"):
        (photos / f"{name}.jpg").unlink()
    assert main([*words, f"--output={out}"]) == 0
    assert not (out / "skipped.csv").exists()


def test_pillow_does_not_warn_of_images_that_are_read(checkpoint, photos, tmp_path, monkeypatch, recwarn):
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x05\0"  # a block of five entries that ends before the first
    Image.open(photos / "a.jpg").resize((40, 40)).save(photos / "a.jpg", exif=damaged)
    Image.open(photos / "b.jpeg").convert("P").save(photos / "c.png", transparency=bytes(range(256)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # b.jpeg has 4,000; above 6,000 is an error
    words = [f"--checkpoint={checkpoint}", f"--images={photos}", "--crf=false", "--num_workers=0"]
    assert main(["predict", *words, f"--output={tmp_path / 'out'}"]) == 0
    assert [each.message for each in recwarn if each.category in (UserWarning, Image.DecompressionBombWarning)] == []


def test_each_mask_is_written_as_it_is_done_and_each_photo_read_once(checkpoint, photos, tmp_path, monkeypatch):
    read, out = [], tmp_path / "out"
    read_image = dataset.read_image

    def counted(path, *channels):
        read.append((Path(path).name, len(list(out.glob("*.png")))))
        return read_image(path, *channels)

    monkeypatch.setattr(dataset, "read_image", counted)
    predict(checkpoint, [photos], out, num_workers=0, batch_size=1, overlay=True)
    assert read == [("a.jpg", 0), ("b.jpeg", 1)]


def test_a_full_disk_leaves_the_earlier_mask(checkpoint, photos, tmp_path, monkeypatch):
    out, synced = tmp_path / "out", []
    out.mkdir()
    (out / "a.png").write_bytes(b"earlier")

    def full(handle):
        synced.append(handle)
        if len(synced) > 2:  # classes.txt and its folder
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a\.png cannot be written: No space left on device"):
        predict(checkpoint, photos, out, crf=False, num_workers=0)
    assert {path.name for path in out.iterdir()} == {"a.png", "classes.txt"}
    assert (out / "a.png").read_bytes() == b"earlier"


def test_photos_that_cannot_be_used(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    shutil.copy(photos / "a.jpg", photos / "a.png")
    with pytest.raises(InputError, match=r"a\.jpg and .*a\.png"):
        predict(checkpoint, [photos], out)
    (tmp_path / "empty" / ".thumbnails").mkdir(parents=True)
    shutil.copy(photos / "a.jpg", tmp_path / "empty" / ".thumbnails")
    with pytest.raises(InputError, match="no image"):
        predict(checkpoint, [tmp_path / "photos" / ".." / "empty"], out)
    with pytest.raises(InputError, match=r"nowhere\.jpg"):
        predict(checkpoint, [tmp_path / "nowhere.jpg"], out)
    with pytest.raises(InputError, match="batch_size 0"):
        predict(checkpoint, [photos], out, batch_size=0)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["coco", "yolo", "label-studio", "cvat", "huggingface"])
def test_masks_for_annotation_tools(checkpoint, photos, tmp_path, kind):
    """What a data module reads from the file are the masks that `predict` writes as PNGs."""
    if kind == "huggingface":
        pytest.importorskip("datasets")
    predict(checkpoint, [photos], tmp_path / "png", num_workers=0)
    (written, *_) = predict(checkpoint, photos, tmp_path / "out", format=kind, num_workers=0)
    assert written.is_file()
    source = tmp_path / "out" / FILES[kind]
    if kind == "label-studio":
        annotate(source)
    (photos / "tags.csv").write_text("file,tags\na.jpg,\nb.jpeg,\n")
    (photos / "classes.txt").write_text((tmp_path / "png/classes.txt").read_text())
    data = FolderDataModule(str(photos), annotations=str(source), num_workers=0)
    for sample in data.annotated(data.samples("all"), "all"):
        np.testing.assert_array_equal(read_mask(sample.mask), read_mask(tmp_path / "png" / f"{sample.id}.png"))


def test_a_folder_for_each_tag(checkpoint, photos, tmp_path):
    """Two photos of one name are two images; masks have the folders of the photos."""
    for tag in ("cat", "dog"):
        (tmp_path / "tags" / tag).mkdir(parents=True)
        shutil.copy(photos / "a.jpg", tmp_path / "tags" / tag / "1.jpg")
    predict(checkpoint, [tmp_path / "tags"], tmp_path / "out", num_workers=0)
    assert (tmp_path / "out/cat/1.png").read_bytes() == (tmp_path / "out/dog/1.png").read_bytes()
    with pytest.raises(InputError, match="is a folder of the images"):
        predict(checkpoint, [tmp_path / "tags"], tmp_path / "tags", num_workers=0)


def test_masks_of_a_data_set_are_no_images(voc, checkpoint, tmp_path, capsys):
    """The root of VOC has a folder of images and one of masks; ``masks`` may be a tag, so a message names it."""
    for name in ("cat", "masks"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        shutil.copy(min((voc / "JPEGImages").iterdir()), tmp_path / "photos" / name / "1.jpg")
    assert [each.id for each in photos_module.photo_samples([tmp_path / "photos"])] == ["cat/1"]
    assert "photos/masks is left out as a folder of masks: name it, too, if" in capsys.readouterr().err
    assert (voc / "SegmentationClass").is_dir()
    predict(checkpoint, [voc], tmp_path / "out", num_workers=0, crf=False)
    names = {f"{path.stem}.png" for path in (voc / "JPEGImages").iterdir()}
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png")} == {
        f"JPEGImages/{name}" for name in names
    }


def test_what_a_folder_contains_beside_its_photos_is_reported(checkpoint, photos, tmp_path, capsys, monkeypatch):
    (photos / "more").mkdir()
    shutil.copyfile(next(photos.glob("*.jpg")), photos / "more/a.jpg")
    (photos / "b.HEIC").write_bytes(b"0")
    (photos / "closed").mkdir()
    listed = photos_module.list_images

    def list_but_one(folder):
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(photos_module, "list_images", list_but_one)
    arguments = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "out"), "--crf", "false"]
    assert main(["predict", *arguments, "--images", str(photos)]) == 0
    err = capsys.readouterr().err
    assert f"1 images in folders of {photos} are left out: name these folders, too" in err
    assert f"1 files of {photos} are not read, first b.HEIC: convert them to JPEG" in err


def test_what_folders_of_tags_contain_beside_their_photos(checkpoint, photos, tmp_path, capsys):
    """The ids have the name of the tag; hidden files are left out, and formats that are not read are counted."""
    root = tmp_path / "root"
    (root / "cat").mkdir(parents=True)
    for name in ("x.y.jpg", "._x.jpg"):
        shutil.copyfile(photos / "a.jpg", root / "cat" / name)
    for name in ("b.HEIC", "._b.HEIC"):
        (root / "cat" / name).touch()
    written = predict(checkpoint, UPath(root), tmp_path / "out", crf=False, num_workers=0)
    assert [path.relative_to(tmp_path / "out").as_posix() for path in written] == ["cat/x.y.png"]
    assert f"1 files of {root} are not read, first cat/b.HEIC: convert them to JPEG" in capsys.readouterr().err


def test_images_of_a_table(checkpoint, photos, tmp_path):
    """Such as the first rows of a review: in their order."""
    table = tmp_path / "review.csv"
    table.write_text(f"id,image\nb,{photos / 'b.jpeg'}\na,{photos / 'a.jpg'}\n")
    predict(checkpoint, UPath(table), tmp_path / "out", format="coco", num_workers=0)
    content = json.loads((tmp_path / "out/instances.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["b.jpeg", "a.jpg"]
    relative = photos / "some.csv"
    relative.write_text("image\nb.jpeg\n")  # below the table's folder, as in all tables
    assert [path.name for path in predict(checkpoint, UPath(relative), tmp_path / "some", num_workers=0)] == ["b.png"]
    table.write_text(f"id,image\ncat/x,{photos / 'b.jpeg'}\n")  # ids of a folder for each tag
    predict(checkpoint, UPath(table), tmp_path / "png", num_workers=0)
    assert (tmp_path / "png/cat/x.png").is_file()
    table.write_text(f"id,image\n../x,{photos / 'b.jpeg'}\n")
    with pytest.raises(InputError, match=r"the id '\.\./x' of .*b\.jpeg is no relative path without"):
        predict(checkpoint, UPath(table), tmp_path / "none")
    table.write_text(f"image\n{photos / 'a.jpg'}\n{photos / 'a.jpg'}\n")
    with pytest.raises(InputError, match=r"review\.csv, line 3: the image .*a\.jpg is given twice"):
        predict(checkpoint, UPath(table), tmp_path / "none")
    table.write_text("id\na\n")
    with pytest.raises(InputError, match=r"review\.csv has no column image"):
        predict(checkpoint, UPath(table), tmp_path / "none")


def test_ids_of_json_lines_may_be_numbers(checkpoint, photos, tmp_path):
    table = tmp_path / "photos.jsonl"
    rows = [{"id": number, "image": str(photos / name)} for number, name in enumerate(("a.jpg", "b.jpeg"))]
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    written = predict(checkpoint, UPath(table), tmp_path / "out", crf=False, num_workers=0)
    assert [path.name for path in written] == ["0.png", "1.png"]


def test_formats_of_annotation_tools_exclude_options(checkpoint, photos, tmp_path):
    for options in ({"overlay": True}, {"partition": "0/2"}):
        with pytest.raises(InputError, match="the format coco is written by one job, without overlays"):
            predict(checkpoint, photos, tmp_path / "out", format="coco", **options)
    predict(checkpoint, photos, tmp_path / "out", format="coco", num_workers=0)
    with pytest.raises(InputError, match="out"):
        predict(checkpoint, photos, tmp_path / "out", format="coco", num_workers=0)
    (photos / "c.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 3 images were skipped"):
        predict(checkpoint, photos, tmp_path / "two", format="coco", num_workers=0)
    assert len(json.loads((tmp_path / "two/instances.json").read_text())["images"]) == 2


def test_masks_are_not_written_among_the_photos(checkpoint, photos):
    """They would be taken for photos, and replace files of the same name."""
    (photos / "classes.txt").write_text("mine")
    before = sorted(photos.iterdir())
    with pytest.raises(InputError, match=r"photos is a folder of the images: choose another output folder"):
        predict(checkpoint, [photos / "a.jpg"], photos, num_workers=0)
    assert sorted(photos.iterdir()) == before
    assert (photos / "classes.txt").read_text() == "mine"


def test_a_photo_is_never_overwritten(checkpoint, photos):
    (photos / "a.jpg").unlink()
    Image.new("RGB", (40, 40)).save(photos / "a.png")
    before = (photos / "a.png").read_bytes()
    with pytest.raises(InputError, match="would replace"):
        predict(checkpoint, [photos], photos)
    assert (photos / "a.png").read_bytes() == before


def test_masks_of_other_classes_keep_their_list(checkpoint, photos, tmp_path):
    out = tmp_path / "out"
    (written,) = predict(checkpoint, [photos / "a.jpg"], out, crf=False, num_workers=0)
    (out / "classes.txt").write_bytes(b"".join(f"{name}\r\n".encode() for name in load_trained(checkpoint).classes))
    assert predict(checkpoint, [photos / "a.jpg"], out, crf=False, num_workers=0) == [written]
    (out / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match=r"classes\.txt lists other classes than those of the checkpoint"):
        predict(checkpoint, [photos / "b.jpeg"], out, crf=False, num_workers=0)
    assert (out / "classes.txt").read_text() == "cat\ndog\n"
    assert not (out / "b.png").exists()


def test_the_mask_of_a_geotiff_is_one_of_the_same_place(checkpoint, photos, tmp_path, capsys):
    """Its indices are those of the same pixels in a PNG; a TIFF without a place gets a PNG; nothing is replaced."""
    rasterio = pytest.importorskip("rasterio")
    pixels, folder, out = read_image(photos / "a.jpg"), tmp_path / "scenes", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(pixels).save(folder / "png.png")
    Image.fromarray(pixels).save(folder / "plain.tif")
    height, width, _ = pixels.shape
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 600_000, 0, -0.5, 5_400_000)}
    settings = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8"}
    with rasterio.open(folder / "scene.tif", "w", **settings, **place) as file:
        file.write(pixels.transpose(2, 0, 1))
    written = predict(checkpoint, folder, out, num_workers=0)
    assert {path.name for path in written} == {"png.png", "plain.png", "scene.tif"}
    with rasterio.open(out / "scene.tif") as file:
        assert (file.crs, file.transform, file.shape) == (*map(place.get, ("crs", "transform")), (height, width))
        indices = file.read(1)
    assert len(np.unique(indices)) > 1
    for name in ("png.png", "plain.png"):
        assert np.array_equal(read_mask(out / name), indices)
    with pytest.raises(InputError, match=r"scene\.tif would replace an image"):
        predict(checkpoint, folder / "scene.tif", folder)
    with rasterio.open(folder / "float.tif", "w", **settings | {"dtype": "float32"}, **place) as file:
        file.write(pixels.transpose(2, 0, 1).astype("float32"))
    words = ["predict", f"--checkpoint={checkpoint}", f"--images={folder}", f"--output={out}", "--num_workers=0"]
    assert main(words) == 1
    assert "float.tif has float32 values, not 8 bits" in capsys.readouterr().err.splitlines()[-1]


def test_the_mask_of_a_turned_geotiff_has_no_place(checkpoint, photos, tmp_path, monkeypatch):
    """Its transform is that of the stored pixels, and the mask is upright."""
    rasterio = pytest.importorskip("rasterio")
    place = {"crs": "EPSG:32632", "transform": rasterio.Affine(0.5, 0, 600_000, 0, -0.5, 5_400_000)}
    settings = {"driver": "GTiff", "height": 30, "width": 40, "count": 3, "dtype": "uint8"}
    with rasterio.open(tmp_path / "scene.tif", "w", **settings, **place) as file:
        file.write(np.zeros((3, 30, 40), np.uint8))
    monkeypatch.setattr("training.predict.is_turned", lambda _: True)
    (written,) = predict(checkpoint, tmp_path / "scene.tif", tmp_path / "out", num_workers=0)
    assert written.name == "scene.png"


def test_large_photos_in_tiles(checkpoint, photos, tmp_path, capsys):
    """Photos up to a tile have the masks of a run without tiles; the overlay of a photo in tiles fits its mask."""
    Image.open(photos / "a.jpg").resize((300, 260)).save(photos / "large.png")
    words = ["predict", f"--checkpoint={checkpoint}", f"--images={photos}", "--num_workers=0"]
    whole, tiled = tmp_path / "whole", tmp_path / "tiled"
    assert main([*words, f"--output={whole}"]) == 0
    assert main([*words, f"--output={tiled}", "--tile=100", "--overlap=0.5", "--overlay=true"]) == 0
    assert read_mask(tiled / "large.png").shape == (260, 300)
    for name in ("a.png", "b.png"):
        assert (tiled / name).read_bytes() == (whole / name).read_bytes()
    assert read_image(tiled / "large_overlay.jpg").shape == (260, 300, 3)
    capsys.readouterr()
    for option in ("--tile=8", "--overlap=1"):
        assert main([*words, f"--output={tmp_path / 'none'}", "--tile=100", option]) == 1
        assert "a tile has at least 32 pixels on a side" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_photos_beyond_pillows_limit(checkpoint, photos, tmp_path, monkeypatch, capsys):
    """Without tiles they are skipped, and the message names the option; in tiles they are predicted."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    (photos / "b.jpeg").unlink()
    Image.open(photos / "a.jpg").resize((150, 140)).save(photos / "large.png")
    words = ["predict", f"--checkpoint={checkpoint}", f"--images={photos}", "--num_workers=0"]
    assert main([*words, f"--output={tmp_path / 'whole'}"]) == 1
    assert "large.png has more than 20,000 pixels" in (printed := capsys.readouterr().err)
    assert "--tile" in printed
    assert main([*words, f"--output={tmp_path / 'tiled'}", "--tile=100"]) == 0
    monkeypatch.undo()
    assert read_mask(tmp_path / "tiled/large.png").shape == (140, 150)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_partitions_predict_what_one_process_predicts(voc, checkpoint, tmp_path):
    """In any order and twice; each has whole batches and its own list of skipped images."""
    (tmp_path / "photos").mkdir()
    for path in sorted((voc / "JPEGImages").iterdir())[:5]:
        shutil.copy(path, tmp_path / "photos")
    how = {"num_workers": 0, "batch_size": 2}
    predict(checkpoint, UPath(tmp_path / "photos"), tmp_path / "whole", **how)
    counts = {}
    for part in (2, 0, 0, 1):
        found = predict(checkpoint, UPath(tmp_path / "photos"), tmp_path / "parts", partition=f"{part}/3", **how)
        counts[part] = len(found)
    assert counts == {0: 2, 1: 2, 2: 1}
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert predict(checkpoint, UPath(tmp_path / "photos"), tmp_path / "parts", partition="3/4", **how) == []
    (tmp_path / "photos" / "zz.jpg").write_bytes(b"no photo")
    with pytest.raises(InputError, match=r"1 of 2 images were skipped, .*skipped-2-of-3\.csv lists them"):
        predict(checkpoint, UPath(tmp_path / "photos"), tmp_path / "parts", partition="2/3", **how)
    with pytest.raises(InputError, match="partition must be i/N with i from 0 to N-1"):
        predict(checkpoint, UPath(tmp_path / "photos"), tmp_path / "none", partition="3/3")


def test_masks_of_tar_files(voc, checkpoint, tmp_path, capsys):
    """A tar file of masks for each tar file of images: the masks of the images, the same bytes again, in partitions."""
    images = sorted((voc / "JPEGImages").iterdir())[:4]
    (tmp_path / "in").mkdir()
    for number, two in enumerate((images[:2], images[2:])):
        members = {path.name: path.read_bytes() for path in reversed(two)} | {f"{two[0].stem}.txt": "cat"}
        (tmp_path / "in" / f"x-{number}.tar").write_bytes(tar_bytes(members))
    pattern, how = UPath(tmp_path / "in" / "x-{0..1}.tar"), {"num_workers": 0, "batch_size": 2}
    predict(checkpoint, UPath(voc / "JPEGImages"), tmp_path / "plain", **how)
    written = predict(checkpoint, pattern, tmp_path / "masks", **how)
    assert [path.name for path in written] == ["x-0.tar", "x-1.tar"]
    for path, two in zip(written, (images[:2], images[2:]), strict=True):
        with tarfile.open(path) as archive:
            assert archive.getnames() == ["classes.txt", *(f"{each.stem}.png" for each in two)]
            for each in two:
                name = f"{each.stem}.png"
                assert archive.extractfile(name).read() == (tmp_path / "plain" / name).read_bytes()
    whole = content(tmp_path / "masks")
    for part in (1, 0):
        predict(checkpoint, pattern, tmp_path / "parts", partition=f"{part}/2", **how)
    assert content(tmp_path / "parts") == whole
    before = [path.stat().st_mtime_ns for path in written]
    predict(checkpoint, pattern, tmp_path / "masks", **how)
    assert [path.stat().st_mtime_ns for path in written] == before
    assert "x-1.tar is there already, made with these settings" in capsys.readouterr().err
    for path in (tmp_path / "in").iterdir():
        write_atomically(UPath(f"memory://predict/{path.name}"), path.read_bytes())
    for uri in ("memory://predict/*.tar", "memory://predict/x-{0..1}.tar"):
        predict(checkpoint, UPath(uri), tmp_path / "remote", **how)
    assert content(tmp_path / "remote") == whole
    with pytest.raises(InputError, match=r"x-0\.tar exists already, made with crf True, not False: remove it"):
        predict(checkpoint, pattern, tmp_path / "masks", crf=False, **how)
    with pytest.raises(InputError, match=r"x-0\.tar exists already, and is no tar file of masks"):
        predict(checkpoint, pattern, tmp_path / "in", **how)
    (tmp_path / "in/x-0.tar").write_bytes((tmp_path / "in/x-0.tar").read_bytes()[:3000])
    message = r"1 of 3 images were skipped, .*skipped\.csv lists them; the first: tar file .*x-0\.tar is truncated in"
    with pytest.raises(InputError, match=message):  # and the next one is predicted
        predict(checkpoint, pattern, tmp_path / "torn", **how)
    torn = content(tmp_path / "torn")
    assert f"{tmp_path / 'in/x-0.tar'},tar file".encode() in torn.pop("skipped.csv")
    assert torn == {"x-1.tar": whole["x-1.tar"]}


def test_tar_files_beside_a_folder(checkpoint, photos, tmp_path):
    """A tar file is not an image."""
    (tmp_path / "x.tar").write_bytes(tar_bytes({"a.jpg": (photos / "a.jpg").read_bytes()}))
    with pytest.raises(InputError, match=r"images: .*x\.tar is a tar file, and others are none"):
        predict(checkpoint, [UPath(photos), UPath(tmp_path / "x.tar")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_of_a_tar_file_with_other_settings_are_not_kept(voc, checkpoint, tmp_path):
    (tmp_path / "x.tar").write_bytes(tar_bytes({"a.jpg": min((voc / "JPEGImages").iterdir()).read_bytes()}))
    given = {"crf": False, "batch_size": 2, "tile": 64, "overlap": 0.5, "num_workers": 0}
    predict(checkpoint, UPath(tmp_path / "x.tar"), tmp_path / "out", **given)
    for change, words in (
        ({"overlay": True}, "overlay False, not True"), ({"batch_size": 1}, "batch_size 2, not 1"),
        ({"tile": 96}, "tile 64, not 96"), ({"overlap": 0.25}, r"overlap 0\.5, not 0\.25"),
        ({"precision": "bf16-mixed"}, "precision '?32-true'?, not '?bf16-mixed'?"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"x\.tar exists already, made with {words}: remove it"):
            predict(checkpoint, UPath(tmp_path / "x.tar"), tmp_path / "out", **given | change)


def test_masks_of_a_tar_file_by_another_network_or_of_another_tar_file_are_not_kept(
    voc, checkpoint, tmp_path, monkeypatch
):
    """Nor those by other code: all of these change masks."""
    first, second = sorted((voc / "JPEGImages").iterdir())[:2]
    (tmp_path / "x.tar").write_bytes(tar_bytes({"a.jpg": first.read_bytes()}))
    source, given = UPath(tmp_path / "x.tar"), {"crf": False, "num_workers": 0}
    predict(checkpoint, source, tmp_path / "out", **given)
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["network.model.segmentation_head.0.bias"][0] += 1
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"x\.tar exists already, made with checkpoint_sha256"):
        predict(tmp_path / "other.ckpt", source, tmp_path / "out", **given)
    with monkeypatch.context() as patch:
        patch.setattr("training.predict.source_revision", lambda packages: dict.fromkeys(packages, "another"))
        with pytest.raises(InputError, match=r"x\.tar exists already, made with another revision of the code"):
            predict(checkpoint, source, tmp_path / "out", **given)
    (tmp_path / "x.tar").write_bytes(tar_bytes({"a.jpg": first.read_bytes(), "b.jpg": second.read_bytes()}))
    with pytest.raises(InputError, match=r"x\.tar exists already, made with input_bytes"):
        predict(checkpoint, source, tmp_path / "out", **given)


def test_images_of_a_tar_that_cannot_be_read_are_skipped(voc, checkpoint, tmp_path, capsys):
    path = min((voc / "JPEGImages").iterdir())
    members = {"a.jpg": path.read_bytes(), "b.jpg": b"not an image"}
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    words = ["predict", f"--checkpoint={checkpoint}", f"--images={tmp_path}/x.tar", f"--output={tmp_path}/out"]
    assert main([*words, "--num_workers=0"]) == 1
    assert "b.jpg::" in (tmp_path / "out/skipped.csv").read_text()
    with tarfile.open(tmp_path / "out/x.tar") as archive:
        assert archive.getnames() == ["a.png", "classes.txt"]
    assert main([*words, "--num_workers=0"]) == 1  # the file of masks is kept, and b is still missing
    assert "x.tar was written: remove it to try again" in capsys.readouterr().err.splitlines()[-1]
    assert (tmp_path / "out/skipped.csv").read_text().splitlines()[1].startswith(f"b in {tmp_path / 'x.tar'},")


def test_equal_keys_in_several_tars_are_several_images(voc, checkpoint, tmp_path):
    good = min((voc / "JPEGImages").iterdir()).read_bytes()
    for name, members in (("x", {"a.jpg": b"no image"}), ("y", {"a.jpg": good}), ("z", {"a.jpg": good[:300]})):
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes(members))
    words = ["predict", f"--checkpoint={checkpoint}", f"--images={tmp_path}/*.tar", f"--output={tmp_path}/out"]
    assert main([*words, "--num_workers=0"]) == 1
    rows = (tmp_path / "out/skipped.csv").read_text().splitlines()[1:]
    assert [Path(row.partition("::")[2].partition("#")[0]).name for row in rows] == ["x.tar", "z.tar"]
    assert "x.tar" in rows[0].partition(",")[2]
    assert "z.tar" in rows[1].partition(",")[2]
    with tarfile.open(tmp_path / "out/y.tar") as archive:
        assert archive.getnames() == ["a.png", "classes.txt"]
        assert json.loads(archive.pax_headers["comment"])["skipped"] == []


def test_processes_of_torchrun_predict_partitions_alone(voc, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    photo = UPath(min((voc / "JPEGImages").iterdir()))
    with pytest.raises(InputError, match="predict works in one process, and 2 were started"):
        predict(checkpoint, photo, tmp_path / "out", num_workers=0)
    assert predict(checkpoint, photo, tmp_path / "out", num_workers=0, partition="1/2") == []
    assert len(predict(checkpoint, photo, tmp_path / "out", num_workers=0, partition="0/2")) == 1


@pytest.mark.parametrize(
    ("images", "masks", "exists", "refused"),
    [
        ("photos", "photos/masks", False, True), ("photos", "photos/masks", True, True),
        ("photos/a.jpg", "photos/masks", False, False), ("photos/a.jpg", "photos/masks", True, True),
        ("tags", "tags/masks", False, True), ("tags/cat", "tags/masks/cat", True, True),
        ("photos", "photos/masks/predicted", True, False), ("photos", "masks", True, False),
        ("voc/JPEGImages", "voc/SegmentationClass", False, True),
        ("voc/JPEGImages/a.jpg", "voc/SegmentationClass", True, True),
    ],
)  # fmt: skip
def test_a_folder_of_own_masks_is_not_written_into(checkpoint, tmp_path, capsys, images, masks, exists, refused):
    """What people have drawn would be replaced, or predictions be scored as the truth."""
    for name in ("photos/a.jpg", "tags/cat/a.jpg", "voc/JPEGImages/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / name)
    if exists:
        (tmp_path / masks).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    words = ["predict", "--checkpoint", str(checkpoint), "--num_workers", "0", "--output", str(tmp_path / masks)]
    assert main([*words, "--images", str(tmp_path / images)]) == refused
    if refused:
        assert "masks: choose another output folder" in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before
    else:
        assert main([*words, "--images", str(tmp_path / images)]) == 0  # once more


def test_folders_that_are_named_are_not_reported_as_left_out(tmp_path, capsys):
    for name in ("a.jpg", "one/b.jpg", "two/c.jpg", "two/d.jpg", ".thumbnails/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / name)
    photos_module.photo_samples([tmp_path, tmp_path / "one"])
    assert capsys.readouterr().err.startswith(f"2 images in folders of {tmp_path} are left out")
    photos_module.photo_samples([tmp_path, tmp_path / "one", tmp_path / "two"])
    assert capsys.readouterr().err == ""


def test_images_two_folders_deep_are_reported(tmp_path, capsys):
    for name in ("cat/a.jpg", "cat/more/b.jpg", "cat/other/c.jpg", "cat/.hidden/d.jpg", "cat/masks/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [sample.id for sample in photos_module.photo_samples([tmp_path])] == ["cat/a"]
    problem = f"2 images are left out because they are not directly in a folder of {tmp_path}"
    first = f"first {tmp_path / 'cat/more/b.jpg'}: name their folders, too"
    assert f"{problem}, {first}" in capsys.readouterr().err.replace("\n", "")
    photos_module.photo_samples([tmp_path, tmp_path / "cat/more", tmp_path / "cat/other"])
    assert capsys.readouterr().err == ""
