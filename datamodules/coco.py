"""COCO 2014 and 2017, and any folder of images with a JSON of COCO's instances."""

from dataclasses import replace
from typing import Any

from datamodules.annotations.coco_instances import (
    brush_masks_as_instances,
    category_names,
    check_instances,
    images_with_instances,
    instance_mask,
)
from datamodules.base_datamodule import BaseDataModule
from datamodules.errors import InputError
from datamodules.files import AnyPath, is_uri, join_path, read_json
from datamodules.image_ids import forward_slashes, image_id, names_on_disk, unicode_forms
from datamodules.sample import Sample, split_samples

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
    id, see `datamodules.sample.split_samples`) and ``all``. The images of a split are in the first of the folders
    ``<split>``, ``images/<split>``, ``images``, the root and the JSON's own that contains the first image; those of one
    JSON for all images are in ``images``, ``images/default``, the root or the JSON's folder. A ``file_name`` that is a
    URI is used as it is.

    The classes are the categories in the order of their ids. A category 0 that no annotation uses and that another
    category names as its supercategory is left out (Roboflow adds one). The tags of an image are the categories of its
    instances, crowds included. Its mask is rendered from the instances: a smaller one covers a larger one, and crowds,
    which all others cover, are 255. An image without instances is background; an image with an instance that has no
    segmentation has no mask.

    Args:
        root: the folder.
        instances: path of the JSON, relative to ``root``, with ``{split}`` for the split's name where each split has
            its own; ``auto`` for the first of `LAYOUTS` that exists.
        val_fraction: fraction of the images in ``val`` where one JSON lists all images.
        **common: arguments of `BaseDataModule`.
    """

    def __init__(self, root: str, *, instances: str = "auto", val_fraction: float = 0.1, **common: Any) -> None:
        self.layouts = LAYOUTS if instances == "auto" else (instances,)
        self.categories: dict[int, str] = {}  # names by id, in the order of the classes
        self._samples: dict[AnyPath, tuple[list[Sample], bool]] = {}  # by JSON; and whether with masks
        given = (common.get(f"{name}_split") for name in ("val", "test", "train"))  # the JSON of COCO's val is small
        self._splits = [*filter(None, given), "val", "train"]
        super().__init__(root, **common)  # passed on as it is: jsonargparse finds the common options this way
        self.save_hyperparameters({"instances": instances, "val_fraction": val_fraction})

    def known_classes(self) -> tuple[str, ...]:
        """Return the categories of the first split that has a JSON.

        Raises:
            InputError: there is none, or it is invalid.
        """
        self._load(next(filter(self._find, self._splits), self._splits[0]), masks=False)
        return tuple(self.categories.values())

    def read_samples(self, split: str, *, tags: bool = True, masks: bool = True) -> list[Sample]:
        """Return the samples of a split, in the order of its JSON."""
        samples, whole = self._load(split, masks=masks)
        if whole:
            self.all_ids = {each.id for each in samples}
            samples = split_samples(samples, split, self.hparams["val_fraction"], self.root)
        return [replace(each, tags=each.tags if tags else None, mask=each.mask if masks else None) for each in samples]

    def _find(self, split: str) -> tuple[AnyPath, bool] | None:
        """Return the JSON of a split, and whether it lists all images; None where there is none."""
        for layout in self.layouts:
            path = join_path(self.root, layout.replace("{split}", split))
            if path.is_file():
                return path, "{split}" not in layout
        return None

    def _load(self, split: str, *, masks: bool) -> tuple[list[Sample], bool]:
        """Return all samples of a split's JSON, and whether it lists all images.

        It is read once, or again where masks are wanted later: those of COCO's training images take time and memory.
        """
        if (found := self._find(split)) is None:
            if not self.root.is_dir():
                raise InputError(f"folder {self.root} does not exist: give the folder of images and annotations")
            names = {path.stem.removeprefix("instances_") for path in self.root.glob("annotations/instances_*.json")}
            names |= {path.parent.name for path in self.root.glob("*/_annotations.coco.json")}
            looked = " or ".join(layout.replace("{split}", split) for layout in self.layouts)
            existing = ", ".join(sorted(names)) or "none"
            raise InputError(f"there is no {looked} in {self.root}; the existing splits are: {existing}")
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
            InputError: the JSON is invalid, or its categories differ from those of an earlier one.
        """
        content = read_json(path)
        check_instances(content, path)
        own = category_names(content, path)
        self.categories = self.categories or own
        used = {str(each.get("category_id")) for each in content["annotations"]}
        for key, name in own.items():
            if key not in self.categories and str(key) in used:
                have = ", ".join(self.categories.values())
                raise InputError(f"{path}: category {key} is {name!r}, and another split's JSON has only {have}")
            if self.categories.get(key, name) != name:
                raise InputError(f"{path}: category {key} is {name!r}, and {self.categories[key]!r} in another split")
        indices = {key: index for index, key in enumerate(self.categories, start=1)}
        images = images_with_instances(brush_masks_as_instances(content), self.categories, path)
        files = [forward_slashes(file) for file, _, _ in images]
        local = [file for file in files if not is_uri(file)]
        forms = unicode_forms(local[0]) if local else []
        found = (each for each in folders if any(join_path(each, form).is_file() for form in forms))
        folder = next(found, folders[0])
        on_disk = dict(zip(local, names_on_disk(folder, local), strict=True))
        samples = []
        for file, (_, image, instances) in zip(files, images, strict=True):
            tags = frozenset(self.categories[each["category_id"]] for each in instances)
            mask = instance_mask(image, instances, indices, path) if masks else None
            location = str(join_path(folder, on_disk[file])) if file in on_disk else file
            samples.append(Sample(image_id(file), location, tags, mask))
        return samples
