"""The data module of a folder, of a checkpoint, or of a seed cache."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.base_datamodule import TRAINING_ONLY, BaseDataModule, data_folder
from datamodules.coco import LAYOUTS
from datamodules.errors import InputError
from datamodules.folder import TABLES_OF_TAGS

VOC, COCO = "datamodules.voc.VOCDataModule", "datamodules.coco.COCODataModule"
FOLDER = "datamodules.folder.FolderDataModule"
OF_ANY_DATA_SET = (
    "classes", "in_channels", "size", "eval_size", "cue_stride", "batch_size", "num_workers", "max_unreadable",
    "strict",
)  # fmt: skip
"""Settings of a data module that do not depend on the kind of its data set."""


def kinds_by_layout(root: str) -> list[str]:
    """Return the classes of the data modules that can read a folder, as files in it show."""
    folder = data_folder(root)
    signs = {
        VOC: (folder / "ImageSets").is_dir(),
        COCO: any(next(folder.glob(layout.replace("{split}", "*")), None) for layout in LAYOUTS),
        FOLDER: any((folder / name).is_file() for name in TABLES_OF_TAGS),
    }
    return [kind for kind, is_there in signs.items() if is_there]


def datamodule_from_settings(settings: Mapping[str, Any] | None, **overrides: Any) -> BaseDataModule:
    """Return the data module of a checkpoint or of a seed cache, for looking at its images.

    Settings that only a training uses (`TRAINING_ONLY`) are left out. Where no class is recorded, as in seeds of
    another tool, the layout of the folder ``root`` decides the data module. It does so, too, where ``root`` is another
    folder than the recorded one and of another kind: a network trained on VOC can be applied to photos with a table of
    tags. Of the recorded settings only `OF_ANY_DATA_SET` are then used.

    Args:
        settings: ``datamodule_hyper_parameters`` of a checkpoint or the data settings of a cache, whose
            ``class_path`` names the class; None where there are none.
        **overrides: settings that replace recorded ones; None does not count.

    Raises:
        InputError: the class is unknown, an override is not a setting of the class, no root is given, or the recorded
            one does not exist.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    stored = dict(settings or {})
    root = given.get("root") or stored.get("root")
    if not root:
        raise InputError("the folder of the images is not recorded: give it as 'root'")
    folder = data_folder(root)
    if "root" not in given and isinstance(folder, Path) and not folder.exists():
        recorded_root = f"The training has recorded {root}; give 'root' where it is elsewhere now"
        raise InputError(f"folder {folder} does not exist. {recorded_root}")
    recorded = stored.get("class_path")
    if recorded is None or (recorded in (VOC, COCO, FOLDER) and root != stored.get("root")):
        kinds = kinds_by_layout(root) or [recorded or FOLDER]
        if recorded not in kinds:
            kept = stored if recorded is None else {key: stored[key] for key in OF_ANY_DATA_SET if key in stored}
            stored = {"class_path": kinds[0], "labels": "auto"} | kept  # labels: of VOC alone
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
    usable = {key: value for key, value in stored.items() if key in known and key not in TRAINING_ONLY}
    return found(**usable | given)
