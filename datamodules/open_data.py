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


def settings_by_layout(root: str) -> dict[str, str]:
    """Return the class of the data module of a folder, which its layout decides, and settings beside it."""
    folder = data_folder(root)
    if (folder / "ImageSets").is_dir():
        return {"class_path": "datamodules.voc.VOCDataModule", "labels": "auto"}
    if any(next(folder.glob(layout.replace("{split}", "*")), None) for layout in LAYOUTS):
        return {"class_path": "datamodules.coco.COCODataModule"}
    return {"class_path": "datamodules.folder.FolderDataModule"}


def datamodule_from_settings(settings: Mapping[str, Any] | None, **overrides: Any) -> BaseDataModule:
    """Return the data module of a checkpoint or of a seed cache, for looking at its images.

    Settings that only a training uses (`TRAINING_ONLY`) are left out. Where no class is recorded, as in seeds of
    another tool, the layout of the folder ``root`` decides the data module.

    Args:
        settings: ``datamodule_hyper_parameters`` of a checkpoint or the data settings of a cache, whose
            ``class_path`` names the class; None where there are none.
        **overrides: settings that replace recorded ones; None does not count.

    Raises:
        InputError: the class is unknown, an override is not a setting of the class, or no root is given.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    stored = dict(settings or {})
    root = given.get("root") or stored.get("root")
    if not root:
        raise InputError("the folder of the images is not recorded: give it as 'root'")
    if "class_path" not in stored:
        stored = settings_by_layout(root) | stored
    class_path = str(stored["class_path"])
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
    recorded = {key: value for key, value in stored.items() if key in known and key not in TRAINING_ONLY}
    return found(**recorded | given)
