"""WebDataset: tar files whose members of one key are an image and its tags."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from datamodules.base_datamodule import BaseDataModule
from datamodules.class_names import check_classes, normalize_name, read_classes
from datamodules.errors import InputError
from datamodules.files import AnyPath
from datamodules.folder import TAG_COLUMNS, split_tags
from datamodules.image_ids import is_valid_id
from datamodules.images import IMAGE_SUFFIXES
from datamodules.progress import print_message
from datamodules.sample import Sample
from datamodules.sample_blocks import SampleBlocks
from datamodules.seed_cache.shard import MAX_IMAGES
from datamodules.tar_files import MAX_TEXT, find_tars, read_tar

TAG_SUFFIXES = (".json", ".cls", ".txt")
"""Suffixes of the members that contain tags; of several, the first in this order that contains any counts."""


class WebDatasetDataModule(BaseDataModule):
    """A folder of tar files in WebDataset's format.

    The members ``KEY.jpg`` and ``KEY.json``, ``KEY.txt`` or ``KEY.cls`` are an image and its tags, where ``KEY`` is the
    member's path up to the first dot of its name. It is the id of the image.

    A split is a pattern of file names in the folder: ``train-*.tar``, ``train-{000..099}.tar``; a name without
    ``.tar``, such as ``train``, stands for ``train*.tar``. The classes are those of ``classes.txt`` in the folder, or
    ``classes``, or all tags of the training split, sorted.

    A seed cache of a split has one shard for each tar file, with the same name, and a tar file is read when its
    shard is written.

    Args:
        root: folder or URI of the tar files.
        **common: arguments of `BaseDataModule`.
    """

    def __init__(self, root: str, **common: Any) -> None:
        given: Sequence[str] | None = common.get("classes")
        self._given = None if given is None else tuple(map(normalize_name, given))
        self._split = str(common.get("train_split", "train"))
        self._known: tuple[str, ...] | None = None
        self._listed: dict[tuple[str, bool], list[Sample]] = {}  # by tar file; and whether with tags
        super().__init__(root, **common)  # passed on as it is: jsonargparse finds the common options this way

    def known_classes(self) -> tuple[str, ...]:
        """Return the classes of ``classes.txt`` if it is there, else those given, else all tags, sorted.

        Raises:
            InputError: there are neither classes nor tags, or a tar file cannot be read.
        """
        path = self.root / "classes.txt"
        if path.is_file():
            self._known = tuple(map(normalize_name, read_classes(path)))
            return self._known
        if self._given is not None:
            return self._given
        found = sorted(set[str]().union(*(sample.tags or () for sample in self.read_samples(self._split))))
        if not found:
            raise InputError(f"no tar file {self._split!r} of {self.root} gives an image any tag")
        return check_classes(found, found, f"in the tar files {self._split!r} of {self.root}")

    def tars(self, split: str) -> dict[str, int]:
        """Return the names and sizes in bytes of a split's tar files."""
        return find_tars(self.root, split if split.endswith(".tar") else f"{split}*.tar")

    def read_samples(self, split: str, *, tags: bool = True, masks: bool = True) -> list[Sample]:  # noqa: ARG002
        """Return the samples of all tar files of a split; each is read once."""
        keys = [(name, tags) for name in self.tars(split)]
        self._listed |= {key: self._samples(key[0], tags=tags) for key in keys if key not in self._listed}
        return [sample for key in keys for sample in self._listed[key]]

    def blocks(self, split: str, size: int) -> SampleBlocks:  # noqa: ARG002
        """Return one block for each tar file, which is not opened before its block is read.

        Raises:
            InputError: there are annotations, which tar files cannot have, or a tar file is missing or named
                ``index.tar``. Reading a block raises it where a tar file cannot be read or gives no image tags.
        """
        if self.annotation_sources:
            hint = "unpack them, or name them as images, which leaves the annotations out"
            raise InputError(f"labels of the tar files in {self.root} cannot follow annotations: {hint}")
        tars = self.tars(split)
        names = list(tars)
        if "index.tar" in tars:
            raise InputError(f"{self.root}/index.tar cannot be a shard: index is the name of a seed cache's index")
        listed = "".join(f"{name}\0{length}\n" for name, length in tars.items()) + "\n".join(self._known or ())

        def read(number: int) -> list[Sample]:
            name = names[number]
            samples = self._samples(name)
            if len(samples) > MAX_IMAGES:
                raise InputError(f"{self.root}/{name} has more than {MAX_IMAGES} images: make several")
            if all(sample.tags is None for sample in samples):
                raise InputError(f"{self.root}/{name} gives no image tags ({', '.join(TAG_SUFFIXES)})")
            tags = frozenset[str]().union(*(sample.tags or () for sample in samples))
            if tags and tags.isdisjoint(self.classes):
                unknown = f"none of the tags is a class, such as {min(tags)!r}"
                print_message(f"{self.root}/{name}: {unknown}; the classes are {', '.join(self.classes)}")
            return samples

        shards = [f"{name.removesuffix('.tar')}.safetensors" for name in names]
        digest = hashlib.sha256(listed.encode()).hexdigest()
        return SampleBlocks(shards, read, files_sha256=digest, files=[self.root / name for name in names])

    def _samples(self, name: str, *, tags: bool = True) -> list[Sample]:
        classes = self._known or self._given
        samples = tar_samples(self.root / name, classes, tags=tags)
        for sample in samples:
            if self._known and (unknown := (sample.tags or frozenset()).difference(self._known)):
                raise InputError(f"{self.root}/{name}: {sample.id} has the tag {min(unknown)!r}, not in classes.txt")
        return samples


def tar_samples(tar: AnyPath, classes: Sequence[str] | None = None, *, tags: bool = True) -> list[Sample]:
    """Return the samples of a tar file in the order of its images.

    Args:
        tar: path or URI.
        classes: meaning of tags that are numbers 0..C-1.
        tags: whether tags are read; None otherwise.

    Raises:
        InputError: the archive cannot be read or is truncated, it contains no image, a key has two images or tags
            without an image, or tags are malformed.
    """
    content = read_tar(tar, TAG_SUFFIXES if tags else ())
    images, texts = dict[str, str](), dict[str, dict[str, str]]()
    others = dict[str, str]()  # keys of images whose names have several dots
    for name, uri in content.members.items():
        path = PurePosixPath(name)
        stem, _, extension = path.name.partition(".")
        if not stem:
            continue
        key, suffix = path.with_name(stem).as_posix(), f".{extension.lower()}"
        if suffix in IMAGE_SUFFIXES:
            if not is_valid_id(key):  # a mask of this name would be outside its folder
                raise InputError(f"tar file {tar} contains the image {name[:80]!r}, which is no path inside a folder")
            if key in images:
                raise InputError(f"tar file {tar} contains two images of the key {key!r}: rename or remove one")
            images[key] = uri
        elif suffix in TAG_SUFFIXES and tags:
            texts.setdefault(key, {})[suffix] = name
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            others[name] = key
    if lacking := [key for key in texts if key not in images]:
        raise InputError(f"tar file {tar} contains tags of {lacking[0]!r} and no image ({', '.join(IMAGE_SUFFIXES)})")
    left_out = [name for name, key in others.items() if key not in images]  # else they belong to the image
    dots = "are left out because their names have several dots"
    problem = f"{len(left_out)} images {dots}, first {left_out[0]}" if left_out else ""
    if not images:
        reason = f": {problem}" if problem else f" ({', '.join(IMAGE_SUFFIXES)})"
        raise InputError(f"tar file {tar} contains no image{reason}")
    if problem:
        print_message(f"tar file {tar}: {problem}")
    samples = []
    for key, uri in images.items():
        found: frozenset[str] | None = None
        for suffix in TAG_SUFFIXES:
            if found is None and (name := texts.get(key, {}).get(suffix, "")):
                found = _tags(content.texts.get(name), suffix, f"{name} in tar file {tar}", classes)
        samples.append(Sample(key, uri, found))
    return samples


def _tags(text: bytes | None, suffix: str, where: str, classes: Sequence[str] | None) -> frozenset[str] | None:
    """Return the tags of a member; None where a JSON object has no key for them, or null. ``text`` None: too large."""
    if text is None:
        raise InputError(f"{where} is larger than {MAX_TEXT >> 20} MiB and cannot be read as tags")
    try:
        value: Any = json.loads(text) if suffix == ".json" else text.decode("utf-8-sig").strip()
        if suffix == ".cls" and re.fullmatch(r"\d+", value):
            value = int(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as tags: {error}") from error
    if isinstance(value, dict):
        value = next((value[name] for name in TAG_COLUMNS if name in value), None)
    if value is None:
        return None
    if isinstance(value, str):
        value = split_tags(value, where)
    names = value if isinstance(value, list) else [value]
    tags = set[str]()
    for name in names:
        if isinstance(name, int) and not isinstance(name, bool):
            if classes is None or not 0 <= name < len(classes):
                known = "no classes are listed" if classes is None else f"there are {len(classes)} classes"
                raise InputError(f"{where} contains the class {name}, and {known}: write classes.txt beside the tar")
            tags.add(classes[name])
        elif isinstance(name, str):
            tags |= {normalize_name(name)} - {""}
        else:
            raise InputError(f"{where} contains {str(value)[:80]!r}, which is neither names nor classes")
    return frozenset(tags)
