import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from upath import UPath

from datamodules import files
from datamodules.errors import InputError
from datamodules.folder import FolderDataModule, read_folders, read_table
from datamodules.images import read_image
from datamodules.masks import write_mask
from datamodules.open_data import datamodule_from_settings
from datamodules.sample import multi_hot

CSV = 'File, tags ,note\na.jpg,cat;dog,x\nsub/b.png,"dog, traffic light",\nc.JPG,,\nd.jpg, cat | cat ,\n'
TAGS = {"a": {"cat", "dog"}, "sub/b": {"dog", "traffic light"}, "c": set(), "d": {"cat"}}


def write_image(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 12, 3), value, np.uint8)).save(path, format="PNG")


@pytest.fixture
def album(tmp_path):
    """Four images with a table of tags."""
    for name in ("a.jpg", "sub/b.png", "c.JPG", "d.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "tags.csv").write_text(CSV, encoding="utf-8-sig")
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    """Four images in one folder a tag; one of them lies in two folders."""
    for i, name in enumerate(("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/3.jpg", ".trash/4.jpg")):
        write_image(tmp_path / name, i)
    shutil.copyfile(tmp_path / "cat/2.jpg", tmp_path / "dog/2.jpg")
    (tmp_path / "notes").mkdir()
    return tmp_path


def tags_of(samples):
    return {sample.id: sample.tags for sample in samples}


def test_a_validation_split_without_any_tag(tmp_path, capsys):
    """A training has no figures; a validation is refused."""
    rows = ["file,tags"]
    for index in range(10):
        write_image(tmp_path / f"{index}.jpg")
        rows.append(f"{index}.jpg,cat")
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    (name,) = (sample.id for sample in FolderDataModule(str(tmp_path)).samples("val"))
    (tmp_path / "tags.csv").write_text("\n".join(rows).replace(f"{name}.jpg,cat", f"{name}.jpg,"))
    data = FolderDataModule(str(tmp_path), num_workers=0, size=32)
    data.setup("fit")
    assert "no val image has a tag" in capsys.readouterr().err
    assert [len(batch["id"]) for batch in data.val_dataloader()] == [1]
    with pytest.raises(InputError, match="the labels of all 1 images are zero"):
        FolderDataModule(str(tmp_path)).setup("validate")


def test_names_that_are_not_printable(tmp_path):
    """A line break, and Latin-1 from an old archive: one sentence with the name, before anything is computed."""
    for name in (b"new\nline.jpg", b"caf\xe9.jpg"):
        folder = tmp_path / f"photos-{len(name)}"
        (folder / "cat").mkdir(parents=True)
        write_image(folder / "cat/a.jpg")
        os.link(folder / "cat/a.jpg", os.fsencode(folder / "cat") + b"/" + name)
        with pytest.raises(
            InputError, match=r"the id 'cat/(new\\nline|caf\\udce9)', which is no relative path .* rename"
        ):
            FolderDataModule(str(folder)).samples("train")


def test_csv(album):
    data = FolderDataModule(album, classes=["dog", "cat"])
    samples = data.samples("all")
    assert tags_of(samples) == TAGS
    assert multi_hot(samples, data.classes).tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]
    assert samples[1].image == str(album / "sub/b.png")
    assert [sample.mask for sample in samples] == [None] * 4
    assert FolderDataModule(album).classes == ("cat", "dog", "traffic light")
    assert all(sample.tags is None for sample in data.samples("all", tags=False))


FILES = {"a.jpg": "a", "sub/b.png": "sub/b", "c.JPG": "c", "d.jpg": "d"}
METADATA_CSV = """file_name,text,label
a.jpg,x,"[""cat"", ""dog""]"
sub/b.png,,dog|traffic light
c.JPG,,
d.jpg,,cat
"""
METADATA_JSONL = """{"file_name": "a.jpg", "tags": ["cat", "dog"], "text": "x"}

{"file_name": "sub/b.png", "tags": "dog; traffic light"}
{"file_name": "c.JPG"}
{"file_name": "d.jpg", "tags": "[\\"cat\\"]"}
"""
LABELS_JSONL = "".join(
    json.dumps({"file_name": file, "labels": sorted(TAGS[name])}) + "\n" for file, name in FILES.items()
)


@pytest.mark.parametrize(
    ("name", "text"),
    [("metadata.csv", METADATA_CSV), ("metadata.jsonl", METADATA_JSONL), ("metadata.jsonl", LABELS_JSONL)],
)
def test_metadata_of_an_imagefolder(album, name, text):
    (album / "tags.csv").unlink()
    (album / name).write_text(text)
    data = FolderDataModule(album)
    assert tags_of(data.samples("all")) == TAGS
    assert data.source == str(album / name)


def test_null_in_json_lines_is_not_known(album):
    (album / "tags.csv").unlink()
    rows = [{"file_name": file, "tags": None if name == "a" else sorted(TAGS[name])} for file, name in FILES.items()]
    (album / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tags_of(FolderDataModule(album, classes=["cat", "dog"]).samples("all"))
    assert found == TAGS | {"a": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.jpg", "tags": "cat"}\nnonsense\n', "is not a UTF-8 JSONL"),
        ('{"file_name": "a.jpg", "tags": {"cat": 1}}\n', r"line 1: the tags .* are neither text nor a list of names"),
        ('{"file_name": "a.jpg", "tags": [1]}\n', r"line 1: the tags \[1\] are neither text nor a list of names"),
        ('{"file_name": "a.jpg", "tags": "[cat"}\n', r"line 1: the tags '\[cat' are not a JSON list"),
        ('{"file_name": "a.jpg", "tags": "' + "[" * 100_000 + '"}\n', "are not a JSON list: maximum recursion depth"),
        ('{"file_name": "a.jpg", "tags": ' + "1" * 5000 + "}\n", "is not a UTF-8 JSONL: Exceeds the limit"),
        ('{"file_name": "a.jpg", "tags": "[' + "1" * 5000 + ']"}\n', "are not a JSON list: Exceeds the limit"),
        ('{"file_name": "a.jpg", "text": "cat"}\n', "file_name and one of tags, labels, label, not 'file_name,text'"),
        ('{"file_name": "a.jpg", "tags": "cat"}\n{"tags": "cat"}\n', "line 2 has no file_name"),
        ('{"file_name": "a.jpg", "tags": "cat"}\n[1]\n', "line 2 is not a JSON object"),
        ('{"file_name": "a.jpg", "tags": "cat"}\n', r"no row for 2 images beside its images, first c\.JPG"),
    ],
)
def test_bad_metadata(album, text, message):
    (album / "metadata.jsonl").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        FolderDataModule(album, tags="metadata.jsonl")
    assert "metadata.jsonl" in str(caught.value)


def test_the_suffix_of_a_table_in_capitals(album):
    """And columns without a name, as spreadsheets write them, may be several."""
    (album / "M.JSONL").write_text(METADATA_JSONL)
    (album / "T.CSV").write_text("file,tags,,\na.jpg,cat;dog,,\nc.JPG,,,\nd.jpg,cat,,\nsub/b.png,dog;traffic light,,\n")
    for name in ("M.JSONL", "T.CSV"):
        assert tags_of(FolderDataModule(album, tags=name).samples("all")) == TAGS


def test_rows_may_name_images_in_several_ways(album):
    names = sorted(path.name for path in album.glob("*.[jJ][pP][gG]"))
    ways = [names[0], f"../{album.name}/{names[1]}", str(album / names[2]), *(f"./{name}" for name in names[3:])]
    (album / "other.csv").write_text("file,tags\n" + "".join(f"{way},cat\n" for way in ways))
    data = FolderDataModule(album, tags="other.csv")
    assert sorted(Path(sample.image).name for sample in data.samples("all")) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,cat\n", r"must start with the line 'file,tags'.* not 'a\.jpg,cat'"),
        ("file,tags\na.jpg,cat\nnone.jpg,dog\nc.JPG,\nd.jpg,\n", r"contains none, and there is no image .*none\.jpg"),
        ("file,tags\na.jpg,cat\n", r"no row for 2 images beside its images, first c\.JPG"),
        ("file,tags\na.jpg,cat\n,dog\n", r"line 3 has the tags dog and no file"),
        ("file,tags\na.jpg,cat\nc.JPG,\nd.jpg,\na.jpg,dog\n", "'all' of .* contains two images with the id 'a'"),
        ("file,tags\n", "contains no image"),
        ("", "must start with"),
        ('file,tags\n"a.jpg,cat\n', "is not a UTF-8 CSV"),
        ("file,tags, Tags,note,note\na.jpg,cat,dog,,\n", r"has 2 columns 'tags': rename or remove one$"),
        ("file,tags\nc.JPG,\na.jpg,cat,dog\n", "line 3: 'dog' is beyond the columns of the header"),
    ],
)
def test_bad_csv(album, text, message):
    (album / "tags.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        FolderDataModule(album).samples("all")
    assert "tags.csv" in str(caught.value)


def test_empty_cells_at_the_end_of_a_row_lose_nothing(album):
    (album / "tags.csv").write_text("file,tags\na.jpg,cat,,\nc.JPG, , \nd.jpg\nsub/b.png,dog\n")
    assert tags_of(read_table(album / "tags.csv")) == {"a": {"cat"}, "c": set(), "d": set(), "sub/b": {"dog"}}


@pytest.mark.parametrize("end", ["\r\n", "\r"])
@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_may_be_separated_as_spreadsheets_do(album, separator, end):
    rows = (("File", "Tags"), ("a.jpg", "cat|dog"), ("c.JPG", ""), ("d.jpg", '"cat,dog"'), ("sub/b.png", "dog"))
    (album / "tags.csv").write_text(end.join(map(separator.join, rows)))
    pair = frozenset({"cat", "dog"})
    found = tags_of(FolderDataModule(str(album)).images)
    assert found == {"a": pair, "c": frozenset(), "d": pair, "sub/b": frozenset({"dog"})}
    (album / "tags.csv").write_text(separator.join(("file", "tags")) + "\n" + separator.join(("a.jpg", "cat", "dog")))
    with pytest.raises(InputError, match=r"line 2: 'dog' is beyond the columns of the header; separate tags by '\|'$"):
        FolderDataModule(str(album))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,tags,\na.jpg,cat,dog\n", "line 2: 'dog' is beyond the columns of the header; separate tags by ';'"),
        (
            "file,tags,tags2\na.jpg,cat,dog\n",
            "has the column 'tags2': put all tags of an image into 'tags', as in",
        ),
        ("file,label_1,label,label_2\na.jpg,cat,dog,\n", "has the column 'label_1': put all tags .* into 'label'"),
        ("file,tags\na.JPG,cat\nc.JPG,\nd.jpg,\nsub/b.png,\n", "line 2: there is no image a.JPG; did you mean 'a.j"),
        ("file,tags\na,cat\nc.JPG,\nd.jpg,\nsub/b.png,\n", "line 2: there is no image a; did you mean 'a.jpg'"),
        (
            "file,tags\na.jpg,cat\na.jpg,dog\nc.JPG,\nd.jpg,\n",
            "two images with the id 'a': write all its tags into",
        ),
    ],
)
def test_tables_that_would_lose_tags(album, text, message):
    (album / "tags.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        FolderDataModule(str(album), classes=["cat"]).samples("all")
    assert len(str(error.value).splitlines()) == 1


def test_the_line_of_a_misspelt_name(album):
    """Not that of a longer name with the same end, nor that of an image that is there, with any suffix."""
    Image.new("RGB", (8, 8)).save(album / "e.gif")
    write_image(album / "xa.png", 0)
    (album / "tags.csv").write_text("file,tags\ne.gif,cat\nxa.png,\na.png,cat\nc.JPG,\nd.jpg,\nsub/b.png,\n")
    with pytest.raises(InputError, match=r"line 4: there is no image a\.png; did you mean 'a\.jpg'\?$"):
        FolderDataModule(str(album))


def test_spellings_of_a_tag_that_look_the_same(album):
    words = ("Käfer", unicodedata.normalize("NFD", "Käfer"), " hot  dog ", "hot\u200b dog")
    rows = zip(("a.jpg", "c.JPG", "d.jpg", "sub/b.png"), words, strict=True)
    (album / "tags.csv").write_text("file,tags\n" + "".join(f"{name},{tag}\n" for name, tag in rows))
    assert FolderDataModule(str(album)).classes == ("Käfer", "hot dog")


def test_spellings_of_a_class_that_look_the_same(album):
    """As file systems of a Mac write accents."""
    (album / "classes.txt").write_text(unicodedata.normalize("NFD", "Käfer\nhot  dog\n"), encoding="utf-8")
    rows = zip(("a.jpg", "c.JPG", "d.jpg", "sub/b.png"), ("Käfer", "hot dog", "", ""), strict=True)
    (album / "tags.csv").write_text("file,tags\n" + "".join(f"{name},{tag}\n" for name, tag in rows))
    assert FolderDataModule(str(album)).classes == ("Käfer", "hot dog")


def test_an_excel_file_and_a_table_as_root(album):
    (album / "tags.csv").write_bytes(b"PK\x03\x04\xff\xff")
    with pytest.raises(InputError, match=r"tags\.csv is not a UTF-8 CSV: it is an Excel file; save it as 'CSV UTF-8'"):
        FolderDataModule(str(album))
    with pytest.raises(InputError, match=r"tags\.csv is a file: give the folder that contains the images"):
        FolderDataModule(str(album / "tags.csv"))


def test_a_recorded_folder_that_does_not_exist():
    settings = {"class_path": "datamodules.folder.FolderDataModule", "root": "no/photos"}
    with pytest.raises(InputError, match=r"no/photos does not exist.*The training has recorded no/photos; give 'root'"):
        datamodule_from_settings(settings)
    with pytest.raises(InputError, match=r"elsewhere does not exist: give the folder that contains the images$"):
        datamodule_from_settings(settings, root="no/elsewhere")


def test_images_without_a_table_and_without_folders(album, tmp_path):
    (album / "tags.csv").rename(album / "labels.csv")
    shutil.rmtree(album / "sub")
    with pytest.raises(InputError, match=r"has 3 images without a tag: it has no tags\.csv and .*, only labels\.csv$"):
        FolderDataModule(str(album))
    (album / "images").mkdir()
    write_image(album / "images/1.jpg", 1)
    with pytest.raises(InputError, match=r"no tags\.csv and .*, and its folders are no tags: images$"):
        FolderDataModule(str(album))
    (album / "cat").mkdir()
    write_image(album / "cat/2.jpg", 1)
    assert FolderDataModule(str(album)).classes == ("cat", "images")


@pytest.mark.parametrize("name", ["background", "Background", "__background__"])
def test_background_is_no_class(album, name):
    (album / "classes.txt").write_text(f"{name}\ncat\ndog\ntraffic light\n")
    with pytest.raises(InputError, match=f"'{name}' cannot be one of the classes .* other than background"):
        FolderDataModule(str(album))


def test_images_by_uri(album):
    """An image may lie in object storage; its id is the path without the suffix."""
    (album / "remote.csv").write_text(f"file,tags\nfile://{album}/a.jpg,cat\nmemory://bucket/x/y.png,dog\n")
    samples = read_table(album / "remote.csv")
    assert [sample.id for sample in samples] == [f"{album}/a"[1:], "x/y"]
    data = FolderDataModule(album, tags="remote.csv", size=8, num_workers=0, val_fraction=0)
    batch = next(iter(data.eval_loader(data.samples("all")[:1])))
    assert batch["size"].tolist() == [[8, 12]]


def test_csv_missing(album, tmp_path):
    with pytest.raises(InputError, match=r"labels\.csv cannot be read"):
        FolderDataModule(album, tags="labels.csv")
    with pytest.raises(InputError, match="nowhere does not exist"):
        FolderDataModule(tmp_path / "nowhere")
    (album / "tags.csv").write_bytes("file,tags\na.jpg,Käse\n".encode("latin1"))
    with pytest.raises(InputError, match="is not a UTF-8 CSV"):
        FolderDataModule(album)


def test_csv_without_any_tag(album):
    (album / "tags.csv").write_text("file,tags\na.jpg,\nc.JPG,\nd.jpg,\n")
    with pytest.raises(InputError, match="gives no image any tag"):
        FolderDataModule(album)


def test_classes_txt_finds_misspelt_tags(album):
    (album / "classes.txt").write_text("dog\ncat\ntraffic light\n")
    assert FolderDataModule(album).classes == ("dog", "cat", "traffic light")
    (album / "classes.txt").write_text("dog\nccat\ntraffic light\n")
    with pytest.raises(InputError, match=r"'cat' does not exist .* did you mean 'ccat'"):
        FolderDataModule(album)


def test_one_folder_a_tag(folders):
    expected = {"cat/1": {"cat"}, "cat/2": {"cat", "dog"}, "dog/1": {"dog"}, "dog/3": {"dog"}}
    assert tags_of(read_folders(folders)) == expected
    data = FolderDataModule(folders)
    assert data.classes == ("cat", "dog")


def test_recorded_settings_read_a_folder_of_another_layout(folders, tmp_path_factory):
    """``auto`` is recorded as given: ``evaluate --root`` finds the tags of another folder by itself."""
    table = tmp_path_factory.mktemp("table")
    for name in ("a.jpg", "b.jpg"):
        write_image(table / name)
    (table / "tags.csv").write_text("file,tags\na.jpg,cat;dog\nb.jpg,dog\n")
    for root, other in ((table, folders), (folders, table)):
        data = datamodule_from_settings(FolderDataModule(str(root)).settings, root=str(other))
        assert tags_of(data.samples("all")) == tags_of(FolderDataModule(str(other)).samples("all"))


def test_a_class_of_the_training_that_no_image_of_another_folder_shows(folders):
    """The message names the remedy: the indices of masks depend on all classes."""
    with pytest.raises(InputError, match=r"class 'bird' does not exist .*write all classes into a file classes\.txt"):
        FolderDataModule(str(folders), classes=["bird", "cat", "dog"])
    (folders / "classes.txt").write_text("bird\ncat\ndog\n")
    assert FolderDataModule(str(folders), classes=["bird", "cat", "dog"]).classes == ("bird", "cat", "dog")


def test_images_beside_the_folders_of_tags_are_reported(folders, capsys):
    FolderDataModule(folders, masks=None)
    assert capsys.readouterr().err == ""
    for name in ("5.jpg", "cat/old/6.jpg", "cat/.trash/7.jpg", "masks/old/8.jpg"):
        write_image(folders / name)
    data = FolderDataModule(folders)
    problem = f"2 images are left out because they are not directly in a folder of {folders}, which would be their tag"
    assert capsys.readouterr().err == f"{problem}; first 5.jpg\n"
    assert data.classes == ("cat", "dog")
    (folders / "5.jpg").unlink()
    assert [image.id for image in read_folders(folders, folders / "masks")] == ["cat/1", "cat/2", "dog/1", "dog/3"]
    assert "1 images are left out" in (message := capsys.readouterr().err)
    assert message.endswith("first cat/old/6.jpg\n")


def test_images_in_formats_that_are_not_read_are_reported(folders, capsys):
    """Photos of telephones, which would otherwise be missing from a training unnoticed."""
    for name in (
        "cat/6.HEIC",
        "dog/7.avif",
        "8.gif",
        "dog/._9.heic",
        "cat/notes.txt",
        "masks/1.heic",
        "cat/old/1.heic",
    ):
        (folders / name).parent.mkdir(exist_ok=True)
        (folders / name).touch()
    assert FolderDataModule(folders).classes == ("cat", "dog")
    assert capsys.readouterr().err == f"3 files of {folders} are not read, first 8.gif: convert them to JPEG\n"


def test_no_image_in_any_folder(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError, match="contains no image"):
        FolderDataModule(tmp_path)


def test_masks_beside_the_images(folders):
    for name in ("cat/1", "cat/2", "dog/3"):
        (folders / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        write_mask(folders / "masks" / f"{name}.png", np.ones((8, 12)))
    data = FolderDataModule(folders, classes=["dog"])
    assert data.known_classes() == ("cat", "dog")
    assert data.mask_lut[:3].tolist() == [0, 255, 1]
    masks = [sample.mask for sample in data.samples("all")]
    assert masks == [str(folders / f"masks/{name}.png") for name in ("cat/1", "cat/2")] + [
        None, str(folders / "masks/dog/3.png"),
    ]  # fmt: skip
    assert all(sample.mask is None for sample in data.samples("all", masks=False))
    assert all(sample.mask is None for sample in FolderDataModule(folders, masks=None).samples("all"))
    with pytest.raises(InputError, match=r"no folder of masks .*annotations"):
        FolderDataModule(folders, masks="annotations")


def test_the_split_is_a_partition_that_new_images_do_not_change(tmp_path):
    for i in range(60):
        write_image(tmp_path / f"cat/{i}.jpg", i)

    def ids(split):
        return {sample.id for sample in FolderDataModule(tmp_path, val_fraction=0.3).samples(split)}

    train, val = ids("train"), ids("val")
    assert train | val == {f"cat/{i}" for i in range(60)}
    assert not train & val
    assert 8 <= len(val) <= 28  # 18 ± 3 standard deviations
    for i in range(60, 80):
        write_image(tmp_path / f"cat/{i}.jpg", i)
    assert val <= ids("val")
    assert not train & ids("val")


def test_loaders_of_both_splits(folders):
    for i in range(20):
        write_image(folders / f"dog/more{i}.jpg", i)
    data = FolderDataModule(folders, val_fraction=0.4, size=32, batch_size=2, num_workers=0)
    data.setup("fit")
    train, val = ({name for batch in loader for name in batch["id"]} for loader in
                  (data.train_dataloader(), data.val_dataloader()))  # fmt: skip
    assert train
    assert not train & val
    batch = next(iter(data.val_dataloader()))
    assert "mask" not in batch
    assert (batch["labels"].sum(1) >= 1).all()


def test_no_validation(album):
    data = FolderDataModule(album, val_fraction=0, num_workers=0)
    data.setup("fit")
    assert data.val_dataloader() == []
    assert len(data.samples("train")) == 4


@pytest.mark.parametrize(
    ("split", "settings", "message"),
    [
        ("tset", {}, "no split 'tset'"),
        ("val", {"val_fraction": 0.0}, "none of .* images of .* is in 'val': change val_fraction"),
        ("all", {"classes": ["dgo"]}, "'dgo' does not exist .* did you mean 'dog'"),
    ],
)
def test_bad_settings(folders, split, settings, message):
    with pytest.raises(InputError, match=message):
        FolderDataModule(folders, **settings).samples(split)


def test_files_of_one_name_size_and_time_are_compared_by_their_bytes(folders):
    """Archives may give all files one time, and bitmaps of one shape have one size."""
    for place, value in (("cat", 1), ("dog", 2)):
        Image.fromarray(np.full((8, 12, 3), value, np.uint8)).save(folders / place / "9.bmp")
        os.utime(folders / place / "9.bmp", (0, 0))
    tags = tags_of(read_folders(folders))
    assert (tags["cat/9"], tags["dog/9"]) == ({"cat"}, {"dog"})


def test_a_broken_link_of_a_name_in_two_folders(folders):
    """The data module names it, as any image that does not exist."""
    (folders / "cat/3.jpg").symlink_to(folders / "none.jpg")
    with pytest.raises(InputError, match=r"contains cat/3, and there is no image .*3\.jpg"):
        FolderDataModule(folders).samples("all")


def test_files_of_one_name_are_read_once_from_a_storage(monkeypatch):
    root = UPath("memory://photos-of-one-name")
    for tag in "abcd":
        (root / tag).mkdir(parents=True)
        (root / tag / "1.png").write_bytes(b"of a and b" if tag in "ab" else tag.encode())
    read = []
    monkeypatch.setattr(files, "read_bytes", lambda path: read.append(str(path)) or UPath(path).read_bytes())
    assert tags_of(read_folders(root)) == {"a/1": {"a", "b"}, "c/1": {"c"}, "d/1": {"d"}}
    assert len(read) == 4


def test_hidden_files_are_no_images(album, folders):
    """macOS writes a file ``._NAME`` beside each file on other disks."""
    for name in ("._a.jpg", "cat/._1.jpg"):
        (album / name).write_bytes(b"of macOS")
    assert tags_of(read_table(album / "tags.csv")) == TAGS
    assert {sample.id for sample in read_folders(folders)} == {"cat/1", "cat/2", "dog/1", "dog/3", "sub/b"}


@pytest.mark.parametrize("suffix", [".jpeg", ".webp", ".bmp", ".tiff"])
def test_kinds_of_images(folders, suffix):
    Image.fromarray(np.full((8, 12, 3), 200, np.uint8)).save(folders / f"dog/7{suffix}")
    (sample,) = (each for each in read_folders(folders) if each.id == "dog/7")
    assert (abs(read_image(sample.image).astype(int) - 200) < 9).all()
