import shutil

import numpy as np
import pytest
from PIL import Image

from datamodules.errors import InputError
from datamodules.folder_listing import listing_classes, listing_photos, read_csv, read_tag_folders
from datamodules.masks import write_mask
from datamodules.photos import all_masks

CSV = 'File, tags ,note\na.jpg,cat;dog,x\nsub/b.png,"dog, traffic light",\nc.JPG,,\nd.jpg, cat | cat ,\n'


def picture(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 12, 3), value, np.uint8)).save(path, format="PNG")


@pytest.fixture
def album(tmp_path):
    for name in ("a.jpg", "sub/b.png", "c.JPG", "d.jpg"):
        picture(tmp_path / name)
    (tmp_path / "tags.csv").write_text(CSV, encoding="utf-8-sig")
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    for i, name in enumerate(("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/3.jpg", ".trash/4.jpg")):
        picture(tmp_path / name, i)
    shutil.copyfile(tmp_path / "cat/2.jpg", tmp_path / "dog/2.jpg")
    (tmp_path / "notes").mkdir()
    return tmp_path


def test_csv(album):
    listing = read_csv(album)
    assert listing.ids == ("a", "sub/b", "c", "d")
    assert listing.tags == ({"cat", "dog"}, {"dog", "traffic light"}, set(), {"cat"})
    assert listing_classes(listing, album) == ("cat", "dog", "traffic light")
    photos = listing_photos(listing, album, "all", ["dog", "cat"])
    assert photos.labels.dtype == np.float32
    assert photos.labels.tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]
    assert photos.images[1] == album / "sub/b.png"
    assert photos.masks is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.jpg,cat\n", r"must start with the line 'file,tags', not 'a\.jpg,cat'"),
        ("file,tags\na.jpg,cat\nnone.jpg,dog\n", r"names none\.jpg, and there is no such image"),
        ("file,tags\na.jpg,cat\n", r"no row for 2 images beside those it names, first c\.JPG"),
        ("file,tags\na.jpg,cat\nc.JPG,\nd.jpg,\na.jpg,dog\n", "two images are called 'a'"),
        ("file,tags\n", "holds no image"),
        ("", "must start with"),
        ('file,tags\n"a.jpg,cat\n', "is not a UTF-8 CSV"),
        ("file,tags\nc.JPG,\na.jpg,cat,dog\n", "line 3: 'dog' is beyond the columns of the header"),
    ],
)
def test_bad_csv(album, text, said):
    (album / "tags.csv").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_csv(album)
    assert "tags.csv" in str(caught.value)


def test_empty_cells_at_the_end_of_a_row_lose_nothing(album):
    (album / "tags.csv").write_text("file,tags\na.jpg,cat,,\nc.JPG, , \nd.jpg\nsub/b.png,dog\n")
    assert read_csv(album).tags == ({"cat"}, set(), set(), {"dog"})


def test_csv_missing(album, tmp_path):
    with pytest.raises(InputError, match=r"labels\.csv cannot be read"):
        read_csv(album, "labels.csv")
    with pytest.raises(InputError, match="nowhere does not exist"):
        read_csv(tmp_path / "nowhere")
    (album / "tags.csv").write_bytes("file,tags\na.jpg,Käse\n".encode("latin1"))
    with pytest.raises(InputError, match="is not a UTF-8 CSV"):
        read_csv(album)


def test_csv_without_any_tag(album):
    (album / "tags.csv").write_text("file,tags\na.jpg,\nc.JPG,\nd.jpg,\n")
    with pytest.raises(InputError, match="gives no image any tag"):
        listing_classes(read_csv(album), album)


def test_classes_txt_finds_misspelt_tags(album):
    (album / "classes.txt").write_text("dog\ncat\ntraffic light\n")
    assert listing_classes(read_csv(album), album) == ("dog", "cat", "traffic light")
    (album / "classes.txt").write_text("dog\nccat\ntraffic light\n")
    with pytest.raises(InputError, match=r"'cat' does not exist .* did you mean 'ccat'"):
        listing_classes(read_csv(album), album)


def test_one_folder_a_tag(folders):
    listing = read_tag_folders(folders)
    assert listing.ids == ("cat/1", "cat/2", "dog/1", "dog/3")
    assert listing.tags == ({"cat"}, {"cat", "dog"}, {"dog"}, {"dog"})
    assert listing_classes(listing, folders) == ("cat", "dog")


def test_no_picture_in_any_folder(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="holds no image"):
        read_tag_folders(tmp_path)


def test_masks_of_one_s_own(folders):
    for name in ("cat/1", "cat/2", "dog/1", "dog/3"):
        (folders / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        write_mask(folders / "masks" / f"{name}.png", np.ones((8, 12)))
    listing = read_tag_folders(folders, "masks")
    assert listing_classes(listing, folders) == ("cat", "dog")
    photos = listing_photos(listing, folders, "all", ["dog"])
    assert photos.masks is not None
    assert photos.masks[2] == folders / "masks/dog/1.png"
    assert photos.lut is not None
    assert photos.lut[:3].tolist() == [0, 255, 1]
    assert listing_photos(listing, folders, "all", masks=None).masks is None
    (folders / "masks/dog/1.png").unlink()
    masks = listing_photos(listing, folders, "all").masks
    assert [mask and mask.name for mask in masks] == ["1.png", "2.png", None, "3.png"]
    with pytest.raises(InputError, match=r"1 of 4 masks are missing .* first dog/1\.png; a score needs"):
        all_masks(listing_photos(listing, folders, "all"), "a score")
    with pytest.raises(InputError, match=r"no folder of masks .*annotations"):
        listing_photos(listing, folders, "all", masks="annotations")


def test_the_split_is_a_partition_that_new_pictures_do_not_change(tmp_path):
    for i in range(60):
        picture(tmp_path / f"cat/{i}.jpg", i)
    parts = {s: listing_photos(read_tag_folders(tmp_path), tmp_path, s, val_fraction=0.3).ids for s in ("train", "val")}
    assert sorted(parts["train"] + parts["val"]) == sorted(f"cat/{i}" for i in range(60))
    assert 8 <= len(parts["val"]) <= 28  # 18 ± 3 standard deviations
    for i in range(60, 80):
        picture(tmp_path / f"cat/{i}.jpg", i)
    later = listing_photos(read_tag_folders(tmp_path), tmp_path, "val", val_fraction=0.3).ids
    assert set(parts["val"]) <= set(later)
    assert not set(parts["train"]) & set(later)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": "tset"}, "no split 'tset'"),
        ({"split": "val", "val_fraction": 0.0}, "none of the 4 images .* falls to 'val'"),
        ({"split": "all", "classes": ["dgo"]}, "'dgo' does not exist .* did you mean 'dog'"),
    ],
)
def test_bad_settings(folders, settings, said):
    with pytest.raises(InputError, match=said):
        listing_photos(read_tag_folders(folders), folders, **settings)
