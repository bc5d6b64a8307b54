"""``fit``, ``validate`` and ``test``: Lightning's command line for the project's tasks and data modules."""

import json
import re
import sys
import warnings
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, RichProgressBar
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
from pytorch_lightning.plugins.layer_sync import LayerSync
from rich.console import Console
from timm.layers.norm_act import convert_sync_batchnorm
from torch import nn
from upath import UPath

from datamodules.base_datamodule import BaseDataModule
from datamodules.coco import COCODataModule
from datamodules.errors import InputError, UsageError, unknown_name
from datamodules.files import check_output_folder, read_json_or_empty
from datamodules.folder import FolderDataModule
from datamodules.synthetic import SyntheticDataModule
from datamodules.transforms import Augment
from datamodules.voc import VOCDataModule
from datamodules.webdataset import WebDatasetDataModule
from seeds.affinity.affinity_task import AffinityTask
from seeds.base_task import BaseTask, batch_norm_errors
from seeds.checkpoints import read_checkpoint, require_classes
from seeds.classifier import ClassifierTask
from seeds.distributed import check_process_count, exit_reason, launched_devices, require_one_process
from seeds.precision import resolve_precision
from training.parsers import OneSentenceErrors
from training.runs.callbacks import (
    CheckpointIO,
    FoundTags,
    LogProgress,
    LossGuard,
    StepSeed,
    TrainingSize,
    checkpoint_callbacks,
)
from training.runs.image_panels import ImagePanels
from training.runs.loggers import ResumableCSVLogger, ResumableWandbLogger
from training.runs.provenance_record import PROVENANCE_FILE, RunRecord
from training.runs.repeated_runs import fit_repeatedly, seed_list
from training.segmentation_task import SegmentationTask

# imported, so that a YAML can name them without their modules
TASKS = (ClassifierTask, AffinityTask, SegmentationTask)
DATA_MODULES = (VOCDataModule, COCODataModule, FolderDataModule, WebDatasetDataModule, SyntheticDataModule)
_YAML_CLASSES = (BaseTask, *TASKS, BaseDataModule, *DATA_MODULES, Augment)  # whose arguments a YAML can name


KEPT_OPTIONS = ("optimizer", "lr", "momentum", "weight_decay", "head_lr_scale", "bias_lr_scale")
"""Options of tasks that are part of the optimizer's state, which a resumed training takes from its checkpoint."""


class LightningParser(OneSentenceErrors, LightningArgumentParser):
    """Lightning's parser, whose errors are one sentence."""

    class_keys = frozenset({"class_path", "init_args"}).union(*(signature(known).parameters for known in _YAML_CLASSES))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a `UsageError`, which names the nearest class where a ``class_path`` is none."""
        if found := re.search(r"dot import path string: (\w+)", message):
            raise UsageError(str(unknown_name("class", found[1], [known.__name__ for known in _YAML_CLASSES]))) from ex
        super().error(message, ex)


class SynchronizedBatchNorms(LayerSync):
    """Replaces batch norms by synchronized ones for several GPUs, and keeps the activations in those of timm.

    torch's function, which Lightning calls, replaces timm's ``BatchNormAct2d``, a batch norm and an activation, by a
    batch norm alone.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model with synchronized batch norms."""
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            return model  # of an earlier training; timm's function would remove their activations
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted

    def revert(self, model: nn.Module) -> nn.Module:
        """Return the model as it is: outside of a training, a synchronized batch norm is one on any device."""
        return model


class AutoPrecisionTrainer(pl.Trainer):
    """Lightning's Trainer, whose default precision is the one that suits the processor.

    Args:
        accelerator: as of Lightning's Trainer.
        precision: as of Lightning's Trainer, or ``auto``: bf16-mixed where the processor computes bfloat16 natively,
            else 32-true; see `seeds.precision`.
        sync_batchnorm: compute the statistics of batch norms over the batches of all GPUs.
        **kwargs: as of Lightning's Trainer.

    Raises:
        InputError: options that torch does not support, or that would spoil a training unnoticed.
    """

    def __init__(
        self,
        accelerator: str | Accelerator = "auto",
        precision: str | int = "auto",
        sync_batchnorm: bool = False,
        **kwargs: Any,
    ) -> None:
        for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
            if kwargs.get(name) == 0:
                raise InputError(f"trainer.{name} is 0, and must be positive")
        if (kwargs.get("gradient_clip_val") or 0) < 0:
            raise InputError(f"trainer.gradient_clip_val is {kwargs['gradient_clip_val']}, and must not be negative")
        if sync_batchnorm:
            kwargs["plugins"] = [*_as_list(kwargs.get("plugins")), SynchronizedBatchNorms()]
        chosen: Any = resolve_precision("auto", str(accelerator)) if precision == "auto" else precision
        try:
            super().__init__(accelerator=accelerator, precision=chosen, **kwargs)
        except (ValueError, ImportError) as error:  # an unknown precision, a device that needs another library, …
            raise InputError(f"trainer: {error}") from error
        check_process_count(self)
        if sync_batchnorm and self.world_size > 1 and self.strategy.root_device.type == "cpu":
            raise InputError("sync_batchnorm is for GPUs: torch has no SyncBatchNorm for the CPU; leave it out")
        if str(self.precision) in ("16-true", "bf16-true"):  # weights and images are rounded to 16 bits
            raise InputError(f"precision {self.precision} spoils the colours that the CRF sees: choose bf16-mixed")
        if str(self.precision) == "64-true":
            raise InputError("precision 64-true is not supported, as images are float32: choose 32-true")


def _as_list(given: Any) -> list[Any]:
    """Return what is given for an option that takes one object, a list of them, or None."""
    return list(given) if isinstance(given, list | tuple) else [] if given is None else [given]


def require_values(group: str, cls: type | None, arguments: Mapping[str, Any]) -> None:
    """Raise a UsageError for an argument that is null, or an empty line of a YAML, and needs a value.

    Args:
        group: ``data`` or ``model``.
        cls: a class of this program; of others only the arguments of their base class are known.
        arguments: arguments of the class.
    """
    base = BaseDataModule if group == "data" else BaseTask
    parameters = {**signature(base).parameters, **(signature(cls).parameters if cls in _YAML_CLASSES else {})}
    for name, value in arguments.items():
        parameter = parameters.get(name) if value is None else None
        if parameter and parameter.default is not None and "None" not in str(parameter.annotation):
            raise UsageError(f"{group}.init_args.{name} is empty (null), and needs a value")


class TagToMaskCLI(LightningCLI):
    """Lightning's CLI with the folder of the run, its loggers and repeated runs as one option each.

    The classes and the channels of the data are linked to the model, so that they are given once.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's methods that are commands, each with the arguments that the CLI itself provides."""
        return {name: given for name, given in LightningCLI.subcommands().items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run itself, and link the data's classes to the model's."""
        text = "folder of the run: config.yaml, provenance.json (what made the run), metrics.csv, best.ckpt, last.ckpt"
        parser.add_argument("--output", type=Path, default="runs/latest", help=text)
        text = "log to Weights & Biases as well, with images: disabled, offline (no account needed) or online"
        parser.add_argument("--wandb", type=Literal["disabled", "offline", "online"], default="disabled", help=text)
        text = "fit: train once for each seed, as in 0,1,2, in output/seed-0 and so on, and print mean and std"
        parser.add_argument("--random_seeds", type=list[int] | str | None, default=None, help=text)
        parser.link_arguments("data.classes", "model.init_args.classes", apply_on="instantiate", compute_fn=list)
        parser.link_arguments("data.in_channels", "model.init_args.in_channels", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the given words only (Lightning warns when it is called from Python), and run repeated trainings."""
        words = cast("list[str]", args)
        for name in ("classes", "in_channels"):  # the parser would ignore them
            if any(re.match(rf"--model\.(init_args\.)?{name}(=|$)", word) for word in words):
                raise UsageError(f"--model.init_args.{name} follows from the data: give --data.init_args.{name}")
        self.config = parser.parse_args(words)
        self.subcommand = self.config["subcommand"]
        if isinstance(trainer := self._get(self.config, "trainer"), str | int | float | list):
            raise UsageError(f"trainer: {trainer!r} is not a mapping of the Trainer's options to values")
        if self.subcommand != "fit":
            return
        check_output_folder(Path(self._get(self.config, "output")))
        if self._get(self.config, "seed_everything") is False:  # each process would shuffle the images differently
            raise UsageError("seed_everything is false: give a number, or true for a random one")
        if seeds := seed_list(self._get(self.config, "random_seeds")):  # each in its own process
            require_one_process("fit --random_seeds")
            fit_repeatedly(words, self.plain_config(), seeds)
            sys.exit()

    def instantiate_classes(self) -> None:
        """Instantiate data module, model and trainer.

        Raises:
            UsageError: an argument of this program's classes is null, or an empty line of a YAML, and needs a value.
        """
        for group in ("data", "model"):
            given = self._get(self.config, group)
            cls = next((each for each in _YAML_CLASSES if each.__name__ == given.class_path.rpartition(".")[2]), None)
            linked = ("classes", "in_channels") if group == "model" else ()  # to those of the data
            values = {name: value for name, value in vars(given.init_args).items() if name not in linked}
            require_values(group, cls, values)
        if self.subcommand != "fit" and "weights" in (given := self._get(self.config, "model").init_args):
            given.weights = "none"  # the checkpoint has all of them
        super().instantiate_classes()

    def _parse_ckpt_path(self) -> None:
        """Do nothing: the YAML describes the model; a checkpoint's hyperparameters are not merged over it."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Return the Trainer, which keeps the run in the folder ``output`` unless options of the Trainer differ."""
        folder, given = Path(self._get(self.config, "output")), self._get(self.config_init, "trainer")
        fits = self.subcommand == "fit" and not given.fast_dev_run
        logger, wandb = given.logger if given.logger is not None else fits, self._get(self.config, "wandb")
        if fits and logger is not True and wandb != "disabled":
            raise UsageError(f"wandb is {wandb}, and trainer.logger replaces it: leave one of them out")
        if logger is True:
            logger = [ResumableCSVLogger(folder)]
            logger += [] if wandb == "disabled" else [ResumableWandbLogger(folder, offline=wandb == "offline")]
        callbacks: list[Callback] = _as_list(given.callbacks)
        if fits:
            callbacks += [StepSeed(), LossGuard(), RunRecord(folder, self.plain_config()), TrainingSize(), FoundTags()]
            callbacks += [LearningRateMonitor("epoch"), ImagePanels()] if logger else []
            if given.enable_checkpointing is not False:
                callbacks += checkpoint_callbacks(folder, str(self.model.task_name))
        else:
            self.save_config_callback = None  # config.yaml is the training's
            kwargs["enable_checkpointing"] = False  # Lightning's own callback would warn about the training's
        if given.enable_progress_bar is not False:  # last: after what other callbacks print before a training
            terminal = Console().is_terminal
            kwargs["enable_progress_bar"] = terminal
            callbacks.append(RichProgressBar(leave=False) if terminal else LogProgress())
        if given.enable_model_summary is None:  # Lightning's table has no FLOPs and only one row
            kwargs["enable_model_summary"] = False
        devices, num_nodes = launched_devices(given.devices, given.num_nodes)
        kwargs |= {
            "default_root_dir": given.default_root_dir or str(folder), "logger": logger, "callbacks": callbacks,
            "devices": devices, "num_nodes": num_nodes, "plugins": [CheckpointIO(), *_as_list(given.plugins)],
        }  # fmt: skip
        return super().instantiate_trainer(**kwargs)

    def plain_config(self) -> dict[str, Any]:
        """Return the whole configuration of the command, in plain JSON values."""
        command = str(self.subcommand)
        return dict(json.loads(self._parser(command).dump(self.config[command], format="json", skip_none=False)))

    def before_fit(self) -> None:
        """Refuse a training without a step, or over an earlier run, whose figures and checkpoints would be lost."""
        if 0 in (self.trainer.max_epochs, self.trainer.max_steps, self.trainer.limit_train_batches):
            raise InputError("the training has no step: max_epochs, max_steps or limit_train_batches is 0")
        folder = Path(self._get(self.config, "output"))
        finished = read_json_or_empty(folder / PROVENANCE_FILE).get("finished")  # perhaps without checkpoints
        path = self._get(self.config, "ckpt_path")
        resumes = path in ("last", "best") or (path and UPath(path).resolve().parent == UPath(folder).resolve())
        if (finished or any(folder.glob("*.ckpt"))) and not resumes:
            raise InputError(f"{folder} already holds a run: remove it, choose another --output, or --ckpt_path last")
        self._check_checkpoint()

    def before_validate(self) -> None:
        """Check the checkpoint to score: without one, newly initialised layers would be scored."""
        if not self._get(self.config, "ckpt_path"):
            raise InputError(f"--ckpt_path is missing: the checkpoint to {self.subcommand}")
        if self.subcommand == "validate" and self.datamodule.hparams["val_split"] is None:
            raise InputError("val_split is null: give the split to validate on by --data.val_split")
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
        self._check_checkpoint()

    def _check_checkpoint(self) -> None:
        """Check that a given checkpoint is of this task, and carries no code; ``last`` and ``best`` are of the run.

        Lightning would look for them only among those of this process, and go on without any. ``fit`` starts anew where
        there is no last checkpoint: the run was stopped in its first epoch.
        """
        path = self._get(self.config, "ckpt_path")
        if path in ("last", "best"):
            of_run = Path(self._get(self.config, "output"), f"{path}.ckpt")
            path = None if self.subcommand == "fit" and path == "last" and not of_run.exists() else str(of_run)
            self.config_init[str(self.subcommand)]["ckpt_path"] = path
        if path:
            content = read_checkpoint(path, str(self.model.task_name))
            require_classes(content, self.model.classes, f"{path} is")
            stored = content.get("hyper_parameters", {})
            for name in KEPT_OPTIONS if self.subcommand == "fit" else ():
                has_effect = name != "momentum" or stored.get("optimizer") == "sgd"
                if has_effect and name in stored and stored[name] != self.model.hparams[name]:
                    kept = f"a resumed training keeps the {name} of its checkpoint, {stored[name]}"
                    raise InputError(f"{kept}, not {self.model.hparams[name]}: give it, or begin anew")

    before_test = before_validate


def run_lightning(words: list[str], about: Mapping[str, str]) -> None:
    """Run ``fit``, ``validate`` or ``test``.

    Args:
        words: command line from the command's name on.
        about: for each command its line of help.

    Raises:
        InputError: unusable input; a `UsageError` for a mistake on the command line or in a YAML.
    """
    descriptions = {name: {"description": f"{line[0].upper()}{line[1:]}."} for name, line in about.items()}
    try:
        with batch_norm_errors():
            TagToMaskCLI(
                model_class=pl.LightningModule,
                datamodule_class=BaseDataModule,
                trainer_class=AutoPrecisionTrainer,
                subclass_mode_model=True,
                subclass_mode_data=True,
                parser_class=LightningParser,
                seed_everything_default=0,
                auto_configure_optimizers=False,  # the task has its own
                save_config_kwargs={"overwrite": True},  # before_fit has checked already
                load_from_checkpoint_support=False,  # tasks save plain arguments, which load with weights_only
                parser_kwargs={"prog": "tag2mask"} | descriptions,
                args=words,
            )
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except SystemExit as leave:
        raise exit_reason(leave) from None
    except ValueError as error:
        if not re.search(r"^\s*`val_check_interval`|is not in bounds, numpy", str(error)):  # Lightning's sentences
            raise
        raise InputError(str(error)) from error
    except RuntimeError as error:
        if "parameters that were not used" in str(error):
            advice = "train in one process, or give --trainer.strategy ddp_find_unused_parameters_true"
            raise InputError(f"the scores of this network do not depend on all of its weights: {advice}") from error
        if "Early stopping conditioned on metric" in str(error):  # Lightning's sentence
            raise InputError(str(error)) from error
        if "state_dict" not in str(error):
            raise
        raise InputError(f"the checkpoint is of another network than the YAML describes: {str(error)[:300]}") from error
