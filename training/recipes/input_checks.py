"""Checks before the first stage of a recipe: inputs that a later stage would refuse after hours."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from pytorch_lightning.accelerators import AcceleratorRegistry

from datamodules.base_datamodule import BaseDataModule
from datamodules.check_data import name_problems, tag_problems
from datamodules.errors import InputError, UnreadableError, errors_at, unknown_name
from datamodules.files import is_uri
from datamodules.masks import read_class_mask
from datamodules.progress import print_message
from datamodules.sample import Sample, require_tags
from datamodules.samplers import evenly_spaced
from datamodules.synthetic import SyntheticDataModule
from datamodules.unreadable_images import UnreadableImages, readable, too_many
from seeds.base_task import BaseTask
from training.lightning_cli import DATA_MODULES, TASKS, require_values
from training.recipes.recipe import REFERENCE, Stage, leaves
from training.segmentation_task import SegmentationTask

RESULTS = ("cues", "cues_checkpoint")  # options of data modules that name results of earlier stages
CHECKED_MASKS = 1500  # masks of a validation split that are read, evenly chosen, in some seconds


def open_training_data(options: Mapping[str, Any]) -> BaseDataModule:
    """Return the data module of a training; seed caches and other results of earlier stages need not exist.

    Args:
        options: options of ``tag2mask fit``.

    Raises:
        InputError: the data do not exist, or an option is invalid.
    """
    given = options.get("data") or {}
    arguments = {name: value for name, value in (given.get("init_args") or {}).items() if name not in RESULTS}
    sources = arguments.get("annotations") or []
    later = any("{" in source for source in ([sources] if isinstance(sources, str) else sources))  # of an earlier stage
    if later:
        del arguments["annotations"]
    if later or arguments.get("targets") == "cues":
        arguments["targets"] = "tags"  # all images that have tags
    cls = _find(given.get("class_path"), DATA_MODULES)
    require_values("data", cls, arguments)
    data: BaseDataModule = cls(**arguments)
    return data


def build_task(options: Mapping[str, Any], data: BaseDataModule) -> BaseTask:
    """Return the task of a training, with its initial weights where they are a local file, else with random ones.

    Args:
        options: options of ``tag2mask fit``.
        data: data module of the training.

    Raises:
        InputError: the weights do not exist or do not fit, or an option is invalid.
    """
    model = options.get("model") or {}
    given, cls = dict(model.get("init_args") or {}), _find(model.get("class_path"), TASKS)
    require_values("model", cls, given)
    arguments = {name: value for name, value in given.items() if name != "weights"}
    if (file := weight_file(model)) is not None:
        if not Path(file).is_file():
            raise InputError(f"there are no weights {file}")
        arguments["weights"] = file
    arguments |= {"classes": list(data.classes), "in_channels": data.in_channels}
    task: BaseTask = cls(**arguments)
    if isinstance(task, SegmentationTask):
        task.check_targets((options["data"].get("init_args") or {}).get("targets", data.hparams["targets"]))
    return task


def weight_file(model: Mapping[str, Any]) -> str | None:
    """Return the local file of initial weights that the options of a task name, or None."""
    weights = str((model.get("init_args") or {}).get("weights") or "none")
    return None if weights in ("none", "imagenet") or "{" in weights or is_uri(weights) else weights


def _check_masks(samples: Sequence[Sample], data: BaseDataModule) -> None:
    """Check the indices in the local masks of a validation split; masks that cannot be read are left out later."""
    masks = [each.mask for each in samples if isinstance(each.mask, str) and not is_uri(each.mask)]

    def check(mask: str) -> None:
        with suppress(UnreadableError):
            read_class_mask(mask, data.mask_lut)

    with ThreadPoolExecutor() as pool:
        list(pool.map(check, [masks[number] for number in evenly_spaced(len(masks), CHECKED_MASKS)]))


class InputChecks:
    """Checks of the inputs of a recipe's stages; what several stages share is checked once."""

    def __init__(self) -> None:
        self._images: set[Any] = set()
        self._tasks: set[str] = set()
        self._tags: set[Any] = set()
        self.timed_steps: dict[str, tuple[float, int, int]] = {}  # see `training.recipes.estimate.estimate_training`

    def check_existing(self, waiting: Sequence[Stage], stages: Sequence[Stage]) -> None:
        """Check the inputs of stages that exist already; an earlier stage may write or download others.

        Args:
            waiting: the stages that will run.
            stages: all stages.

        Raises:
            InputError: a stage would refuse an input; the message names the stage.
        """
        for stage in waiting:
            with errors_at(f"stage '{stage.name}'"):
                check_options(stage, stages)
                if stage.command == "fit" and needs_data(stage, stages) and not is_downloaded(stage, waiting):
                    data = open_training_data(stage.options)
                    self.check_images(data)
                    self._check_task(stage.options, data)

    def check_images(self, data: BaseDataModule) -> int:
        """Check tags, annotations and images as a training does when it starts; return the number of training images.

        Findings of `tag2mask check` about the names of classes and their numbers of images are printed. At most
        `CHECKED_MASKS` local masks of the validation split are read, evenly chosen.

        Raises:
            InputError: a split is empty, an image is missing, too many have no readable header, or tags, annotations or
                masks are invalid, such as a mask with an unknown index.
        """
        if isinstance(data, SyntheticDataModule):  # written by the first stage that reads it
            return int(data.hparams["train"])
        train, split, share = data.training_samples(), data.hparams["val_split"], data.unreadable.share
        if data.hparams["targets"] == "tags":
            require_tags(train, data.classes, data.source)
            tags = data.source, data.hparams["train_split"], data.classes
            if tags not in self._tags:
                for finding in (*name_problems(data.classes), *tag_problems(train, data.classes)):
                    print_message(f"warning: {finding.sentence}")
            self._tags.add(tags)
        splits = [train] if split is None else [train, data.samples(split)]
        names = (tuple((each.image, str(each.mask)) for each in samples) for samples in splits)
        files = (share, data.mask_lut.tobytes(), *names)
        if files not in self._images:
            for sample in train if data.hparams["annotations"] else ():
                if isinstance(sample.mask, str) and not is_uri(sample.mask):
                    read_class_mask(sample.mask, data.mask_lut)
            found, problem = UnreadableImages(1.0), ""  # all of them are counted
            for samples in splits:
                readable(samples, found)
                problem = too_many(found.reasons, found.total, share) or problem
            if problem:
                raise InputError(problem)
            for samples in splits[1:]:
                _check_masks(samples, data)
            self._images.add(files)
        return len(train)

    def _check_task(self, options: Mapping[str, Any], data: BaseDataModule) -> None:
        """Build the networks of a training; load their weights where they are a local file."""
        model = options["model"]
        targets = (options["data"].get("init_args") or {}).get("targets")
        key = json.dumps([model, targets, data.classes, data.in_channels], sort_keys=True, default=str)
        if key not in self._tasks:
            build_task(options, data)
        self._tasks.add(key)


def check_options(stage: Stage, stages: Sequence[Stage]) -> None:
    """Check the classes of a training, and the accelerator, small classes and weights of CLIP that a stage names.

    Args:
        stage: the stage.
        stages: all stages.

    Raises:
        InputError: one is invalid.
    """
    for name in ("data", "model") if stage.command == "fit" else ():
        if not isinstance(group := stage.options.get(name), Mapping) or not group.get("class_path"):
            raise InputError(f"{name} needs a class_path")
    check_accelerator(stage.options)
    check_small_classes(stage, stages)
    weights = stage.options.get("weights") if stage.command == "zero-shot" else None
    if isinstance(weights, str) and weights != "download" and not is_uri(weights) and not Path(weights).is_file():
        raise InputError(f"there are no weights {weights}")


def check_accelerator(options: Mapping[str, Any]) -> None:
    """Check that this machine has the accelerator that the options of a command name.

    Raises:
        InputError: it has not, or there is no accelerator of this name.
    """
    given = dict(leaves(options))
    name = given.get("trainer.accelerator") or given.get("accelerator")
    if not isinstance(name, str) or name == "auto":
        return
    known = sorted(AcceleratorRegistry.available_accelerators())
    if name not in (*known, "gpu"):
        raise unknown_name("accelerator", name, ("auto", "gpu", *known))
    kinds = ("cuda", "mps") if name == "gpu" else (name,)
    if not any(AcceleratorRegistry[kind]["accelerator"].is_available() for kind in kinds):
        raise InputError(f"accelerator is {name}, and this machine has none: choose auto or cpu")


def check_small_classes(stage: Stage, stages: Sequence[Stage]) -> None:
    """Check that ``small_classes`` of a stage are among the classes of the classifier that an earlier stage trains.

    Args:
        stage: the stage.
        stages: all stages.

    Raises:
        InputError: they are not.
    """
    small, needed = stage.options.get("small_classes"), REFERENCE.findall(str(stage.options.get("checkpoint")))
    trained = [each for each in stages if each.name in needed and each.command == "fit" and needs_data(each, stages)]
    if not isinstance(small, list) or not small or not trained:
        return
    classes = open_training_data(trained[0].options).classes
    for name in small:
        if name not in classes:
            raise InputError(f"small_classes: {unknown_name('class', str(name), classes)}")


def unavailable_data(waiting: Sequence[Stage], stages: Sequence[Stage]) -> dict[str, str]:
    """Return why trainings cannot read their data before the recipe runs, by the names of their stages.

    Args:
        waiting: the stages that will run.
        stages: all stages.
    """
    reasons = {}
    for stage in (each for each in waiting if each.command == "fit"):
        root = str(_data_arguments(stage).get("root") or ".")
        if is_downloaded(stage, stages) and not Path(root).is_dir():
            reasons[stage.name] = f"the images of {root} are not downloaded yet"
        elif not is_uri(root) and not needs_data(stage, stages) and _data_module(stage) is not SyntheticDataModule:
            reasons[stage.name] = "its images are written when the recipe runs"
    return reasons


def downloads_weights(stage: Stage) -> bool:
    """Return whether a stage downloads initial weights, if they are not on this machine."""
    if stage.command == "zero-shot":
        return bool(stage.options.get("weights", "download") == "download")
    return bool(dict(leaves(stage.options)).get("model.init_args.weights") == "imagenet")


def needs_data(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Return whether the data of a training must exist before the first stage.

    An earlier stage may write or download the folder, and a data module of others in its ``prepare_data``. Data behind
    a URI count where they have annotations, which may be invalid.
    """
    arguments = _data_arguments(stage)
    root = str(arguments.get("root") or ".")
    if is_uri(root):
        return bool(arguments.get("annotations"))
    if Path(root).is_dir():
        return True
    cls = _data_module(stage)
    own = set(DATA_MODULES) - {SyntheticDataModule}
    writes = cls not in own and cls.prepare_data is not BaseDataModule.prepare_data
    return not (writes or is_downloaded(stage, stages) or REFERENCE.search(root))


def is_downloaded(stage: Stage, stages: Sequence[Stage]) -> bool:
    """Return whether one of ``stages`` downloads the folder of a stage's data; it may exist and be incomplete."""
    downloads = [Path(str(given.get("root"))) for given in map(_data_arguments, stages) if given.get("download")]
    return Path(str(_data_arguments(stage).get("root"))) in downloads


def _data_module(stage: Stage) -> Any:
    return _find(stage.options["data"]["class_path"], DATA_MODULES)


def _data_arguments(stage: Stage) -> dict[str, Any]:
    """Return the arguments of the data module of a training; none for other commands."""
    data = stage.options.get("data")
    return dict((data if isinstance(data, Mapping) else {}).get("init_args") or {})


def _find(path: Any, known: tuple[type, ...]) -> Any:
    """Return the class that a YAML names: one of ``known``, or one of an importable module."""
    module, _, name = str(path).rpartition(".")
    found = next((each for each in known if each.__name__ == str(path)), None)
    try:
        return found or getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no class {path}") from error
