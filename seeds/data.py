"""Finding again the data that a checkpoint or a cache was made with."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from datamodules.datamodule import TagDataModule
from datamodules.errors import InputError

TRAINING_ONLY = ("augment", "cues", "cues_made_by", "download", "targets")


def data_settings(stored: Mapping[str, Any] | None, classes: Sequence[str], **given: Any) -> dict[str, Any]:
    """The arguments of a data module for looking at images: those stored, then those given that are not None.

    Args:
        stored: a data module's settings out of a checkpoint or a manifest; None where it has none.
        classes: the names of the classes.
        **given: settings that override them.

    Raises:
        InputError: nobody said where the images are.
    """
    known = inspect.signature(TagDataModule).parameters
    settings = {key: value for key, value in (stored or {}).items() if key in known and key not in TRAINING_ONLY}
    settings |= {"classes": list(classes)} | {key: value for key, value in given.items() if value is not None}
    if not settings.get("root"):
        raise InputError("it is not recorded where the images are; say so with 'root'")
    return settings
