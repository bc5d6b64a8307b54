"""COCO 2014 and 2017, and any folder of images with a JSON of COCO's instances."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from pycocotools import mask as coco_mask

from datamodules.base_datamodule import BaseDataModule
from datamodules.class_names import IGNORE, MAX_CLASSES
from datamodules.errors import InputError
from datamodules.files import AnyPath, is_uri, read_bytes
from datamodules.masks import RleMask
from datamodules.sample import Sample, image_id, in_split

LAYOUTS = (
    "annotations/instances_{split}.json",  # COCO; CVAT with subsets
    "{split}/_annotations.coco.json",  # Roboflow
    "annotations/instances_default.json",  # CVAT without subsets
    "result.json",  # Label Studio
)
"""Usual places of the annotations in a folder; a file without ``{split}`` in its name lists all images."""


class COCODataModule(BaseDataModule):
    """COCO, or a folder of images with a JSON of COCO's instances, as annotation tools export it.

    Each split has a JSON; or one JSON lists all images, and the splits are ``train``, ``val`` (chosen by a hash of the
    id, see `datamodules.sample.in_split`) and ``all``. The images of a split are in the first of the folders
    ``<split>``, ``images/<split>``, ``images``, the root and the JSON's own that contains the first image; those of one
    JSON for all images are in ``images``, ``images/default``, the root or the JSON's folder. A ``file_name`` that is a
    URI is used as it is.

    The classes are the categories in the order of their ids. A category 0 that no annotation uses and that another
    category names as its supercategory is left out (Roboflow adds one). The tags of an image are the categories of its
    instances, crowds included. Its mask is rendered from the instances: a smaller one covers a larger one, and crowds,
    which all others cover, are 255. An image without instances is background; an image with an instance that has no
    segmentation has no mask.

    Args:
        root: The folder.
        annotations: Path of the JSON, relative to ``root``, with ``{split}`` for the split's name where each split has
            its own; ``auto`` for the first of `LAYOUTS` that exists.
        val_fraction: Fraction of the images in ``val`` where one JSON lists all images.
        **common: Arguments of `BaseDataModule`.
    """

    def __init__(self, root: str, *, annotations: str = "auto", val_fraction: float = 0.1, **common: Any) -> None:
        self.layouts = LAYOUTS if annotations == "auto" else (annotations,)
        self.categories: dict[int, str] = {}  # names by id, in the order of the classes
        self._samples: dict[AnyPath, tuple[list[Sample], bool]] = {}  # by JSON; and whether with masks
        given = [value for name, value in common.items() if name.endswith("_split") and value]
        self._splits = [*reversed(given), "val", "train"]
        super().__init__(root, **common)  # passed on as it is: jsonargparse finds the common options this way
        self.save_hyperparameters({"annotations": annotations, "val_fraction": val_fraction})

    def known_classes(self) -> tuple[str, ...]:
        """Return the categories of the first split that has a JSON.

        Raises:
            InputError: There is none, or it is invalid.
        """
        self._load(next(filter(self._find, self._splits), self._splits[0]), masks=False)
        return tuple(self.categories.values())

    def read_samples(self, split: str, *, tags: bool = True, masks: bool = True) -> list[Sample]:
        """Return the samples of a split, in the order of its JSON."""
        samples, whole = self._load(split, masks=masks)
        if whole:
            if split not in ("train", "val", "all"):
                raise InputError(f"there is no split {split!r}: the images of {self.root} have train, val and all.")
            total = len(samples)
            samples = [each for each in samples if in_split(each.id, split, self.hparams["val_fraction"])]
            if total and not samples:
                raise InputError(f"none of {total} images of {self.root} is in {split!r}: change val_fraction.")
        return [replace(each, tags=each.tags if tags else None, mask=each.mask if masks else None) for each in samples]

    def _find(self, split: str) -> tuple[AnyPath, bool] | None:
        """Return the JSON of a split, and whether it lists all images; None where there is none."""
        for layout in self.layouts:
            path = self.root / layout.replace("{split}", split)
            if path.is_file():
                return path, "{split}" not in layout
        return None

    def _load(self, split: str, *, masks: bool) -> tuple[list[Sample], bool]:
        """Return all samples of a split's JSON, and whether it lists all images.

        It is read once, or again where masks are wanted later: those of COCO's training images take time and memory.
        """
        if (found := self._find(split)) is None:
            if not self.root.is_dir():
                raise InputError(f"folder {self.root} does not exist: give the folder of images and annotations.")
            names = {path.stem.removeprefix("instances_") for path in self.root.glob("annotations/instances_*.json")}
            names |= {path.parent.name for path in self.root.glob("*/_annotations.coco.json")}
            looked = " or ".join(layout.replace("{split}", split) for layout in self.layouts)
            existing = ", ".join(sorted(names)) or "none"
            raise InputError(f"there is no {looked} in {self.root}; the existing splits are: {existing}.")
        path, whole = found
        masks = masks or whole
        if path not in self._samples or masks > self._samples[path][1]:
            usual = ("images", "images/default") if whole else (split, f"images/{split}", "images")
            folders = [*(self.root / name for name in usual), self.root, path.parent]
            self._samples[path] = self._read(path, folders, masks=masks), masks
        return self._samples[path][0], whole

    def _read(self, path: AnyPath, folders: list[AnyPath], *, masks: bool) -> list[Sample]:
        """Return the samples of a JSON, whose images are in one of the folders; set the categories if there are none.

        Raises:
            InputError: The JSON is invalid, or its categories differ from those of an earlier one.
        """
        content = read_instances(path)
        own = category_names(content, path)
        self.categories = self.categories or own
        for key, name in own.items():
            if self.categories.get(key, name) != name:
                raise InputError(f"{path}: category {key} is {name!r}, and {self.categories[key]!r} in another split.")
        indices = {key: index for index, key in enumerate(self.categories, start=1)}
        annotations: dict[int | str, list[dict[str, Any]]] = {}  # by image
        for image in content["images"]:
            if not isinstance(number := image.get("id"), int | str) or number in annotations:
                raise InputError(f"{path}: the id {number!r} of an image is missing, or occurs twice.")
            annotations[number] = []
        for each in content["annotations"]:
            for what, known in (("image_id", annotations), ("category_id", indices)):
                if not isinstance(each.get(what), int | str) or each[what] not in known:
                    problem = f"annotation {each.get('id')} has the {what} {each.get(what)!r}"
                    raise InputError(f"{path}: {problem}, and there is no such {what.removesuffix('_id')}.")
            annotations[each["image_id"]].append(each)
        files = [str(image.get("file_name") or image.get("coco_url") or "") for image in content["images"]]
        if "" in files:
            raise InputError(f"{path}: image {content['images'][files.index('')]['id']} has no file_name.")
        first = next((file for file in files if not is_uri(file)), "")
        folder = next((each for each in folders if first and (each / first).is_file()), folders[0])
        samples = []
        for file, image in zip(files, content["images"], strict=True):
            instances = annotations[image["id"]]
            tags = frozenset(self.categories[each["category_id"]] for each in instances)
            mask = instance_mask(image, instances, indices, path) if masks else None
            samples.append(Sample(image_id(file), file if is_uri(file) else str(folder / file), tags, mask))
        return samples


def read_instances(path: AnyPath) -> dict[str, list[dict[str, Any]]]:
    """Return the content of a JSON of COCO's instances.

    Raises:
        InputError: It cannot be read, or lacks a list of images, annotations or categories.
    """
    try:
        content = json.loads(read_bytes(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}.") from error
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise InputError(f"{path} is not a JSON of COCO's instances: it has no list of {key}.")
    return dict(content)


def category_names(content: dict[str, list[dict[str, Any]]], path: AnyPath) -> dict[int, str]:
    """Return the names of categories by their ids, in the order of the ids.

    A category 0 that no annotation uses and that another one names as its supercategory is left out.

    Raises:
        InputError: A category has no id or name, an id or a name occurs twice, or there are none or too many.
    """
    names: dict[int, str] = {}
    used = {each.get("category_id") for each in content["annotations"]}
    for each in content["categories"]:
        key, name = each.get("id"), each.get("name")
        if not isinstance(key, int) or not isinstance(name, str) or key in names:
            raise InputError(f"{path}: the category {each} has no id or name, its id is no integer or occurs twice.")
        others = [other for other in content["categories"] if other is not each]
        if key != 0 or key in used or all(other.get("supercategory") != name for other in others):
            names[key] = name
    if twice := next((name for name, times in Counter(names.values()).items() if times > 1), None):
        raise InputError(f"{path}: two categories have the name {twice!r}.")
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InputError(f"{path} has {len(names)} categories, and an 8-bit mask has 1 to {MAX_CLASSES} classes.")
    return dict(sorted(names.items()))


def instance_mask(
    image: dict[str, Any], annotations: list[dict[str, Any]], indices: dict[int, int], path: AnyPath
) -> RleMask | None:
    """Return the mask of an image; None where an instance has no segmentation.

    Args:
        image: The image in the JSON.
        annotations: Its instances.
        indices: Index in the mask by category.
        path: The JSON, for messages.

    Raises:
        InputError: The image's size is missing, or a segmentation is invalid.
    """
    size = image.get("height"), image.get("width")
    height, width = size
    if not isinstance(height, int) or not isinstance(width, int) or min(height, width) < 1:
        raise InputError(f"{path}: image {image['id']} has no height or width, or they are no integers above 0.")
    instances: list[tuple[bool, int, int, bytes]] = []
    for each in annotations:
        try:
            rle = instance_rle(each.get("segmentation"), height, width)
        except ValueError as error:
            raise InputError(f"{path}: annotation {each.get('id')} {error}.") from error
        if rle is None:
            return None
        crowd = bool(each.get("iscrowd"))
        index = IGNORE if crowd else indices[each["category_id"]]
        instances.append((not crowd, -int(coco_mask.area(rle)), index, rle["counts"]))
    instances.sort(key=lambda instance: instance[:2])  # crowds, then by area
    painted = bytes(index for _, _, index, _ in instances)
    counts = tuple(counts for *_, counts in instances)
    return RleMask(f"of image {image['id']} in {path.name}", (height, width), painted, counts)


def instance_rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Return the pixels of an instance as pycocotools' compressed run lengths.

    Args:
        segmentation: A list of polygons [x, y, x, y, …], whose union counts; or run lengths ``counts`` of ``size``
            (H, W), a list or a compressed text. pycocotools does not check them.
        height: Height of the image.
        width: Width of the image.

    Returns:
        ``size`` and ``counts``; None for an empty segmentation.

    Raises:
        ValueError: The segmentation is invalid; the message is the end of a sentence.
    """
    if not segmentation:
        return None
    runs: Any = [height * width]
    if isinstance(segmentation, list):
        far = 10 * max(height, width)
        try:  # nan and inf are not below any limit; pycocotools would take memory for points far away
            valid = all(len(each) % 2 == 0 and sum(map(abs, each)) <= far * len(each) for each in segmentation)
        except TypeError:
            valid = False
        if not valid:
            raise ValueError("has a segmentation that is not a list of polygons [x, y, x, y, ...] in its image")
        # fewer points have no area, and pycocotools reads two of them as a box
        if polygons := [each for each in segmentation if len(each) >= 6]:
            return dict(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    else:
        size, counts = (segmentation.get(key) if isinstance(segmentation, dict) else None for key in ("size", "counts"))
        if size != [height, width]:
            raise ValueError(f"has run lengths of the size {size}, and its image is {[height, width]} (height, width)")
        runs = decompress_runs(counts) if isinstance(counts, str) else counts
        valid = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
        if not valid or sum(runs) != height * width:
            raise ValueError(f"has run lengths that do not sum up to the {height * width} pixels of its image")
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width))


def decompress_runs(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed text; those of any text are integers, and may be negative.

    A number is written in groups of five bits, the lowest first, as characters from ``0`` on; 32 is added to each group
    but the last, whose bit 16 is the sign. From the fourth number on, it is the difference to the last but one.
    """
    runs: list[int] = []
    number = shift = 0
    for group in (ord(character) - 48 for character in text):
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            number -= (group & 16) << (shift - 4)
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
