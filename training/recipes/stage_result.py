"""What a stage of a recipe wrote, from what, and whether it is complete.

In the recipe's output, ``STAGE`` is the folder that a stage writes, and ``stages`` contains for each stage

==============  ======================================================================================================
``STAGE.yaml``  its options: ``tag2mask COMMAND --config STAGE.yaml`` runs the same stage by hand
``STAGE.json``  its record. While it runs: its key, and the record of the earlier result. Afterwards also all that
                the key is computed from, names and sizes of the files written, seconds, figures, and those of
                the earlier result. A record with ``files`` and ``old`` is of a result that is being moved: it is in
                ``.STAGE.old`` while that exists, and in ``STAGE`` otherwise
``.STAGE.old``  the result of other settings, until the new one is complete
==============  ======================================================================================================
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from datamodules.files import file_sizes, read_json_or_empty, write_json
from training.recipes.recipe import STAGES, Stage


class StageResult:
    """Folder and record of a stage, from which its state is known after a kill at any moment.

    Args:
        output: the recipe's folder.
        stage: the stage.
    """

    def __init__(self, output: Path, stage: Stage) -> None:
        self.stage, self.folder, self.old = stage, output / stage.name, output / STAGES / f".{stage.name}.old"
        self.record_path = output / STAGES / f"{stage.name}.json"

    def find(self, key: str) -> tuple[dict[str, Any], Path] | None:
        """Return the record and the folder of a complete result of this key, which may be ``old``; or None."""
        last = read_json_or_empty(self.record_path)
        record, folder = (last, self._folder_of(last)) if "files" in last else (last.get("old") or {}, self.old)
        if record.get("key") != key or not record["files"].items() <= file_sizes(folder).items():
            return None  # more files are no change: a user may have added them
        return {name: value for name, value in record.items() if name != "old"}, folder

    def _folder_of(self, record: Mapping[str, Any]) -> Path:
        """Return the folder of a complete result. Files of two results may have the same names and sizes."""
        return self.old if "old" in record and self.old.exists() else self.folder

    def keep(self, key: str) -> dict[str, Any] | None:
        """Return the record of a complete result of this key, or None; an earlier result of this key is put back."""
        if (found := self.find(key)) is None:
            return None
        record, folder = found
        if folder == self.old:
            write_json(self.record_path, {**record, "old": record})
            remove(self.folder)
            self.old.rename(self.folder)
        return record

    def begin(self, key: str) -> list[str] | None:
        """Prepare the folder for a result of this key; a complete result of another key is set aside until then.

        Returns:
            Words of the command line with which the stage resumes, or None where it starts anew in an empty folder.
        """
        record = read_json_or_empty(self.record_path)
        if record.get("key") == key and "files" not in record:
            if self.stage.options.get("random_seeds"):  # it resumes by itself
                return []
            if self.stage.command == "fit" and is_zipfile(self.folder / "last.ckpt"):  # else it is damaged
                return ["--ckpt_path=last"]
            # shards of the same settings are kept, others replaced; the weights of an export are no shard
            if self.stage.command != "export" and any(self.folder.glob("*.safetensors")):
                return ["--overwrite=true"]
        old = record.get("old")
        if "files" in record:
            old = {name: value for name, value in record.items() if name != "old"}
            if self._folder_of(record) == self.folder and self.folder.exists():
                remove(self.old)
                write_json(self.record_path, {**old, "old": old})
                self.folder.rename(self.old)
        write_json(self.record_path, {"key": "", "old": old})  # a folder that is partly removed is no result to resume
        remove(self.folder)
        write_json(self.record_path, {"key": key, "old": old})
        return None


def read_figures(folder: Path) -> dict[str, float]:
    """Return the main figures that a stage wrote, as fractions.

    These are the mean IoUs of an evaluation (``metrics.json``), or the last ``val/map`` or ``val/miou`` of a training.
    """
    metrics = read_json_or_empty(folder / "metrics.json")
    training = read_json_or_empty(folder / "provenance.json").get("figures", {})
    figures = {**metrics, **training, "miou without CRF": (metrics.get("without_crf") or {}).get("miou")}
    main = ("miou", "val/map", "val/miou")
    return {name: value for name, value in figures.items() if name.startswith(main) and isinstance(value, int | float)}


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
