"""The data module of a folder, of a checkpoint, or of a seed cache."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from datamodules.base_datamodule import TRAINING_ONLY, BaseDataModule, data_folder
from datamodules.coco import LAYOUTS
from datamodules.errors import InputError


def open_data(root: str, **settings: Any) -> BaseDataModule:
    """Return the data module of a folder, which its layout decides."""
    folder = data_folder(root)
    class_path = "datamodules.folder.FolderDataModule"
    if (folder / "ImageSets").is_dir():
        class_path, settings = "datamodules.voc.VOCDataModule", {"labels": "auto", **settings}
    elif any(next(folder.glob(layout.replace("{split}", "*")), None) for layout in LAYOUTS):
        class_path = "datamodules.coco.COCODataModule"
    return datamodule_from_settings({"class_path": class_path}, root=root, **settings)


def datamodule_from_settings(settings: Mapping[str, Any] | None, **overrides: Any) -> BaseDataModule:
    """Return the data module of a checkpoint or of a seed cache, for looking at its images.

    Settings that only a training uses (`TRAINING_ONLY`) are left out.

    Args:
        settings: ``datamodule_hyper_parameters`` of a checkpoint or the data settings of a cache; None where there
            are none. ``class_path`` names the class, by default `datamodules.voc.VOCDataModule`.
        **overrides: settings that replace recorded ones; None does not count.

    Raises:
        InputError: the class is unknown, an override is not a setting of the class, or no root is given.
    """
    stored = dict(settings or {})
    given = {key: value for key, value in overrides.items() if value is not None}
    class_path = str(stored.get("class_path", "datamodules.voc.VOCDataModule"))
    module, _, class_name = class_path.rpartition(".")
    if module.startswith("datamodules."):  # a file must not decide what else is imported
        with suppress(ImportError):
            importlib.import_module(module)
    found = getattr(sys.modules.get(module), class_name, None)
    if not (isinstance(found, type) and issubclass(found, BaseDataModule)):
        raise InputError(f"the data module {class_path} is not known: put its file into the package datamodules")
    ancestors = [each for each in found.__mro__ if issubclass(each, BaseDataModule)]
    known = {name for each in ancestors for name in inspect.signature(each).parameters}
    if unknown := given.keys() - known:
        raise InputError(f"{found.__name__} has no setting {min(unknown)!r}")
    merged = {key: value for key, value in stored.items() if key in known and key not in TRAINING_ONLY} | given
    if not merged.get("root"):
        raise InputError("the folder of the images is not recorded: give it as 'root'")
    return found(**merged)


def recorded_data(recorded: Mapping[str, Any] | None, *, root: str | None, **settings: Any) -> BaseDataModule:
    """Return the data module of a seed cache: by the settings that it records, or else by the layout of ``root``."""
    if recorded or root is None:
        return datamodule_from_settings(recorded, root=root, **settings)
    return open_data(root, **settings)
