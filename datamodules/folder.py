"""A folder of images with a table of tags (CSV, metadata.csv, metadata.jsonl), or one folder a tag."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.base_datamodule import BaseDataModule, data_folder
from datamodules.class_names import check_classes, normalize_name, read_classes
from datamodules.errors import InputError, did_you_mean
from datamodules.files import AnyPath, file_sha256, is_uri, join_path, list_folder
from datamodules.image_ids import forward_slashes, image_id, unicode_forms
from datamodules.images import IMAGE_SUFFIXES, image_names, list_images, report_unread
from datamodules.masks import find_masks, mask_folder
from datamodules.progress import print_message
from datamodules.sample import Sample, split_samples
from datamodules.tables import read_rows

TABLES_OF_TAGS = ("tags.csv", "metadata.csv", "metadata.jsonl")
"""Tables of tags that are found in a folder."""

NO_TAGS = frozenset({
    "image", "images", "img", "imgs", "photos", "train", "training", "val", "valid", "validation", "test", "labels",
    "annotations", "jpegimages",
})  # fmt: skip
"""Names of folders by which data sets are divided, in lower case: folders of these names alone are no tags."""

TAG_COLUMNS = ("tags", "labels", "label")
"""Columns of a table that may contain the tags; the first that exists does."""


class FolderDataModule(BaseDataModule):
    """A folder of images with a table of tags, or one folder a tag.

    Images of the split ``val`` are chosen by a hash of the id alone, so that an image stays in its split when others
    are added. The splits are ``train``, ``val`` and ``all``. The classes are those of ``classes.txt`` in the folder,
    or all tags, sorted.

    Args:
        root: the folder.
        tags: source of the tags: the name of a CSV with the columns ``file,tags``; ``metadata.csv`` or
            ``metadata.jsonl`` of Hugging Face's ImageFolder (see `read_table`); ``folders`` for one folder a tag (see
            `read_folders`); ``auto`` for the first of ``tags.csv``, ``metadata.csv``, ``metadata.jsonl`` that exists,
            else ``folders``.
        masks: folder of masks ``<id>.png`` or ``<id>.tif``, in ``root`` or an absolute path, in which index i is the
            i-th class; ``auto`` for ``masks`` if there is one; None for no masks.
        val_fraction: fraction of the images in ``val``; 0 for no validation.
        **common: arguments of `BaseDataModule`.

    Raises:
        InputError: the folder does not exist or has no image, a table is invalid, or as `BaseDataModule`.
    """

    class_advice = "; if no image here shows it, write all classes into a file classes.txt in the folder"

    def __init__(
        self, root: str, *, tags: str = "auto", masks: str | None = "auto", val_fraction: float = 0.1, **common: Any
    ) -> None:
        folder = data_folder(root)
        if not folder.is_dir():
            problem = "is a file" if not is_uri(folder) and folder.is_file() else "does not exist"
            raise InputError(f"folder {folder} {problem}: give the folder that contains the images")
        source = tags
        if tags == "auto":
            source = next((name for name in TABLES_OF_TAGS if (folder / name).is_file()), "folders")
        self.table = None if source == "folders" else join_path(folder, source)
        self.masks = mask_folder(folder, masks, ("masks",))
        self.images = read_folders(folder, self.masks) if self.table is None else read_table(self.table)
        if not self.images:
            raise InputError(
                _no_image(folder) if self.table is None else f"{self.table} contains no image: it has no rows"
            )
        self.all_ids = {image.id for image in self.images}
        if val_fraction == 0:
            common["val_split"] = None
        self.source = str(self.table or folder)
        super().__init__(root, **common)  # passed on as it is: jsonargparse finds the common options this way
        self.save_hyperparameters({"tags": tags, "masks": masks, "val_fraction": val_fraction})

    def known_classes(self) -> tuple[str, ...]:
        """Return the classes of ``classes.txt`` if it is there, else all tags, sorted.

        Raises:
            InputError: a tag is not in ``classes.txt``, or there are neither classes nor tags.
        """
        tags = sorted(set().union(*(sample.tags or () for sample in self.images)))
        path = self.root / "classes.txt"
        if not tags and not path.is_file():
            raise InputError(f"{self.source} gives no image any tag")
        known = tuple(map(normalize_name, read_classes(path) if path.is_file() else tags))
        if tags:
            check_classes(tags, known, f"in {path if path.is_file() else self.source}")
        return known

    def read_samples(self, split: str, *, tags: bool = True, masks: bool = True) -> list[Sample]:
        """Return the samples of ``train``, ``val`` or ``all``."""
        chosen = split_samples(self.images, split, self.hparams["val_fraction"], self.root)
        found = find_masks(self.masks if masks else None, [image.id for image in chosen])
        paired = zip(chosen, found, strict=True)
        return [replace(image, tags=image.tags if tags else None, mask=mask) for image, mask in paired]


def read_table(path: AnyPath) -> list[Sample]:
    """Return images and tags from a CSV with a header, or from JSON lines.

    A row has the image's path below the table's folder, or a URI, in the column ``file`` or ``file_name`` (Hugging
    Face's ImageFolder), and tags in ``tags``, ``labels`` or ``label``. Tags are a JSON list, or a text for
    `split_tags`; a tag may contain spaces; no tag means that the image shows none of the classes. In JSON lines, null
    means that the tags are not known, and a row without the key has no tag. Other columns are ignored.

    Raises:
        InputError: the table is missing or malformed, or lacks an image that lies beside its images.
    """
    header, rows = read_rows(path)
    file_column = next((name for name in ("file", "file_name") if name in header), None)
    tag_column = next((name for name in TAG_COLUMNS if name in header), None)
    if file_column is None or tag_column is None:
        columns = f"'file,tags', or have file_name and one of {', '.join(TAG_COLUMNS)}"
        raise InputError(f"{path} must start with the line {columns}, not {','.join(header)!r}")
    if more := next((name for name in header if re.fullmatch(r"(tag|label)s?[ _]?\d+", name)), None):
        raise InputError(f"{path} has the column {more!r}: put all tags of an image into {tag_column!r}, as in cat;dog")
    samples = []
    folders, lines = dict[AnyPath, AnyPath](), dict[AnyPath, str]()  # by resolved path: .. or a link may lead to one
    names_in = dict[AnyPath, dict[str, None]]()  # of the images on disk, in order
    for where, row in rows:
        name, tags = row.get(file_column), row.get(tag_column)
        if not isinstance(name, str):
            raise InputError(f"{where} has no {file_column}")
        names = split_tags(tags or "", where) if isinstance(tags, str | None) else tags
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise InputError(f"{where}: the tags {tags!r} are neither text nor a list of names")
        found = frozenset(filter(None, map(normalize_name, names)))
        if name := name.strip():
            if not is_uri(image := name):
                file = join_path(path.parent, forward_slashes(name))
                if (folder := folders.get(file.parent)) is None:
                    folder = folders[file.parent] = file.parent.resolve()
                    with suppress(FileNotFoundError, NotADirectoryError):  # missing images are found when they are read
                        names_in[folder] = dict.fromkeys(list_images(folder))
                on_disk = names_in.get(folder, {})
                found_name = next((form for form in unicode_forms(file.name) if form in on_disk), file.name)
                lines[folder / found_name] = where
                image = str(file.with_name(found_name))
            unknown = tag_column in row and tags is None and path.suffix.lower() == ".jsonl"
            samples.append(Sample(image_id(name), image, None if unknown else found))
        elif found:
            raise InputError(f"{where} has the tags {', '.join(sorted(found))} and no {file_column}")
    _require_rows(path, lines, names_in)
    return samples


def _require_rows(path: AnyPath, lines: Mapping[AnyPath, str], names_in: Mapping[AnyPath, Iterable[str]]) -> None:
    """Raise an InputError for an image on disk without a row; the message suggests a row that is misspelt.

    Args:
        path: the table.
        lines: location of the row of each image.
        names_in: names of the images in each folder.
    """
    listed = dict.fromkeys(folder / name for folder in sorted(names_in, key=str) for name in names_in[folder])
    untagged = [file.name for file in listed if file not in lines]
    missing = next((file for file in lines if file not in listed and not file.is_file()), None) if untagged else None
    if missing is not None:  # a misspelt name?
        stems = {PurePosixPath(name).stem.casefold(): name for name in untagged}
        same = stems.get(missing.stem.casefold())
        if hint := f"did you mean {same!r}?" if same else did_you_mean(missing.name, untagged):
            raise InputError(f"{lines[missing]}: there is no image {missing.name}; {hint}")
    if untagged:
        problem = f"no row for {len(untagged)} images beside its images, first {untagged[0]}"
        raise InputError(f"{path} has {problem}: give each a row, with empty tags if it shows none of the classes")


def split_tags(text: str, where: str) -> list[Any]:
    """Return the tags in a text, a JSON list or names that ``;``, ``|``, ``,`` or line breaks separate.

    Names keep the spaces around them, and may be empty.

    Raises:
        InputError: the text begins with ``[``, and is no JSON; the message begins with ``where``.
    """
    if not text.strip().startswith("["):
        return re.split(r"[;|,\n]", text)
    try:
        return list(json.loads(text))
    except (ValueError, RecursionError) as error:
        advice = 'write ["cat", "dog"] or cat;dog'
        raise InputError(f"{where}: the tags {text!r} are not a JSON list: {error}; {advice}") from error


def read_folders(root: AnyPath, masks: AnyPath | None = None) -> list[Sample]:
    """Return images whose tag is the name of their folder.

    An image with two tags may lie in both folders: files of one name and the same bytes are one image with both tags;
    its id is the first of them. Messages count the images directly in ``root`` and those in folders of folders, and
    images in formats that are not read.

    Args:
        root: the folder of folders; hidden folders and folders without an image are skipped.
        masks: a folder in ``root`` that is not a tag.

    Raises:
        InputError: all folders with images have names of `NO_TAGS`.
    """
    images = list[AnyPath]()
    folders, files = list_folder(root)
    left_out, listed = image_names(files), files
    for folder in folders:
        if folder.startswith(".") or root / folder == masks:
            continue
        below, files = list_folder(root / folder)
        for each in below:
            if not each.startswith("."):
                left_out += [f"{folder}/{each}/{name}" for name in list_images(root / folder / each)]
        listed += [f"{folder}/{name}" for name in files]
        images += [root / folder / name for name in image_names(files)]
    report_unread(root, listed)
    tags, firsts = dict[AnyPath, set[str]](), dict[tuple[Any, ...], AnyPath]()
    sizes = [each.stat().st_size if isinstance(each, Path) and each.is_file() else 0 for each in images]
    keys = [(image.name, size) for image, size in zip(images, sizes, strict=True)]
    times = Counter(keys)
    for image, key in zip(images, keys, strict=True):  # bytes are read of files of one name and size, each once
        first = firsts.setdefault((*key, file_sha256(image)) if times[key] > 1 else key, image)
        tags.setdefault(first, set()).add(normalize_name(image.parent.name))
    names = set().union(*tags.values())
    if names and {name.lower() for name in names} <= NO_TAGS:
        given = f"there is no {' and no '.join(TABLES_OF_TAGS)} in {root}"
        raise InputError(f"{given}, and its folders are no tags: {', '.join(sorted(names))}")
    if left_out:
        problem = f"are left out because they are not directly in a folder of {root}, which would be their tag"
        print_message(f"{len(left_out)} images {problem}; first {left_out[0]}")
    return [Sample(f"{each.parent.name}/{each.stem}", str(each), frozenset(names)) for each, names in tags.items()]


def _no_image(folder: AnyPath) -> str:
    """Return the sentence about a folder without a table in which no folder of a tag has an image."""
    files = list_folder(folder)[1]
    images = len(image_names(files))
    if not images:
        return f"{folder} contains no image ({', '.join(IMAGE_SUFFIXES)})"
    given = f"{folder} has {images} images without a tag: it has no {' and no '.join(TABLES_OF_TAGS)}"
    tables = [name for name in files if PurePosixPath(name).suffix.lower() in (".csv", ".jsonl", ".txt", ".xlsx")]
    return f"{given}, only {', '.join(tables[:3])}" if tables else f"{given}, and no folder for each tag"
