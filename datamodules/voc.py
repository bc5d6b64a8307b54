"""A folder laid out as PASCAL VOC: JPEGImages, SegmentationClass, ImageSets, Annotations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from upath import UPath

from datamodules.base_datamodule import BaseDataModule
from datamodules.class_names import voc_classes
from datamodules.errors import InputError
from datamodules.files import existing_files, list_folder
from datamodules.image_ids import names_on_disk, read_ids
from datamodules.masks import find_masks, mask_folder
from datamodules.sample import Sample, require_masks
from datamodules.voc_download import download_voc
from datamodules.voc_tags import list_tags, mask_tags, npy_tags, xml_tags

MASK_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
"""Folders of masks; the first that exists is read."""


class VOCDataModule(BaseDataModule):
    """A folder of PASCAL VOC's layout: JPEGImages, ImageSets, SegmentationClass, Annotations.

    A split is a list ``ImageSets/Segmentation/<split>.txt``. The classes are those of ``classes.txt`` in the folder, or
    VOC's 20.

    Args:
        root: the folder that contains JPEGImages, for VOC itself ``…/VOCdevkit/VOC2012``.
        labels: source of the tags: ``xml`` (Annotations), ``imagesets`` (ImageSets/Main), ``masks``, the path of a
            ``cls_labels.npy``; ``auto`` for ``xml`` where Annotations has a file of each image, else ``imagesets``;
            None for no tags. See `datamodules.voc_tags`.
        masks: folder of masks, in ``root`` or an absolute path; ``auto`` for SegmentationClassAug or else
            SegmentationClass; None for no masks.
        download: download VOC 2012 and SBD into ``root`` (which must end in VOCdevkit/VOC2012) if they are not there.
        **common: arguments of `BaseDataModule`.
    """

    def __init__(
        self, root: str, *, labels: str | None = "imagesets", masks: str | None = "auto", download: bool = False,
        **common: Any,
    ) -> None:  # fmt: skip
        super().__init__(root, **common)
        self.source = f"{self.root} (labels: {labels})"
        self.save_hyperparameters({"labels": labels, "masks": masks, "download": download})

    def known_classes(self) -> tuple[str, ...]:
        """Return the classes of ``classes.txt`` if it is there, else VOC's 20."""
        return voc_classes(self.root)

    def prepare_data(self) -> None:
        """Download VOC where ``download`` is set.

        Raises:
            InputError: ``root`` is a URI, or as `download_voc`.
        """
        if self.hparams["download"]:
            if not isinstance(self.root, Path):
                raise InputError(f"VOC is downloaded into a local folder: root cannot be {self.root}")
            download_voc(self.root)

    def read_samples(self, split: str, *, tags: bool = True, masks: bool = True) -> list[Sample]:
        """Return the samples of a list, in its order.

        Raises:
            InputError: the folder, list or source of tags does not exist or is invalid.
        """
        hp, root = self.hparams, self.root
        if not (root / "JPEGImages").is_dir():
            problem = "contains no JPEGImages" if root.is_dir() else "does not exist"
            raise InputError(f"folder {root} {problem}: give the folder of JPEGImages, ImageSets and the masks")
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not path.is_file():
            lists = list_folder(path.parent)[1] if path.parent.is_dir() else []
            existing = ", ".join(name.removesuffix(".txt") for name in lists if name.endswith(".txt")) or "none"
            raise InputError(f"there is no list {path}; the existing splits are: {existing}")
        ids = read_ids(path)
        labels = hp["labels"] if tags else None
        folder = mask_folder(root, hp["masks"], MASK_FOLDERS) if masks or labels == "masks" else None
        images = root / "JPEGImages"
        files = names_on_disk(images, [f"{name}.jpg" for name in ids])
        paired = zip(ids, files, find_masks(folder, ids), strict=True)
        samples = [Sample(name, str(images / file), mask=mask) for name, file, mask in paired]
        found: list[frozenset[str]] | list[None] = [None] * len(ids)
        if labels == "auto":  # VOC's own lists do not contain all images of trainaug
            files = [f"{name}.xml" for name in ids]
            labels = "xml" if len(existing_files(root / "Annotations", files)) == len(ids) else "imagesets"
        if labels == "xml":
            found = xml_tags(root, ids, self.mask_classes)
        elif labels == "imagesets":
            found = list_tags(root, split, ids, self.classes)
        elif labels == "masks":
            found = mask_tags(require_masks(samples, "labels: masks"), self.mask_lut, self.classes)
        elif labels is not None and UPath(labels).suffix == ".npy":
            found = npy_tags(UPath(labels), ids, self.mask_classes)
        elif labels is not None:
            known = "auto, xml, imagesets, masks or the path of a .npy file"
            raise InputError(f"labels is {labels!r}, and must be {known}")
        return [
            replace(each, tags=own, mask=each.mask if masks else None) for each, own in zip(samples, found, strict=True)
        ]
