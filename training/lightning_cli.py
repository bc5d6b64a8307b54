"""`fit`, `validate` and `test`: Lightning's command line over the project's tasks and data modules."""

import json
from inspect import signature
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from lightning_fabric.connector import _PRECISION_INPUT  # type: ignore[attr-defined]
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI

from datamodules.base_datamodule import BaseDataModule
from datamodules.errors import InputError
from datamodules.folder import FolderDataModule
from datamodules.synthetic import SyntheticDataModule
from datamodules.transforms import Augment
from datamodules.voc import VOCDataModule
from seeds.affinity.affinity_task import AffinityTask
from seeds.base_task import BaseTask
from seeds.checkpoints import read_checkpoint
from seeds.classifier import ClassifierTask
from seeds.distributed import check_process_count, launched_devices, require_one_process
from seeds.precision import Precision, resolve_precision
from training.parsers import OneSentenceErrors
from training.runs.progress import progress_bar
from training.runs.repeated_runs import fit_repeatedly, seed_list
from training.runs.run_folder import CheckpointFiles, Wandb, run_callbacks, run_loggers
from training.segmentation_task import SegmentationTask

# imported, so that a YAML may name them without their modules
TASKS = (ClassifierTask, AffinityTask, SegmentationTask)
DATA_MODULES = (VOCDataModule, FolderDataModule, SyntheticDataModule)


class LightningParser(OneSentenceErrors, LightningArgumentParser):
    """Lightning's parser."""

    def known_keys(self) -> set[str]:
        """As of the other parsers (`lr` of `model.init_args.lr`).

        Arguments of classes named in a YAML are not actions of the parser, so those are read off the classes.
        """
        parsers = [self, *getattr(self._subcommands_action, "_name_parser_map", {}).values()]
        keys = {action.dest.split(".")[-1] for each in parsers for action in each._actions if action.dest}  # noqa: SLF001
        named = (BaseTask, *TASKS, *DATA_MODULES, BaseDataModule, Augment)
        return keys.union(*(signature(known).parameters for known in named))


class AutoPrecisionTrainer(pl.Trainer):
    """Lightning's Trainer, whose precision is by default the one that suits the processor.

    Args:
        accelerator: Lightning's.
        precision: Lightning's, or ``auto``: bf16-mixed where the processor computes bfloat16 natively, else 32-true;
            see `seeds.precision`.
        **kwargs: as of Lightning's Trainer.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: Precision | _PRECISION_INPUT = "auto",
        **kwargs: Any,
    ) -> None:
        if precision == "auto":
            precision = resolve_precision("auto", str(accelerator))
        super().__init__(accelerator=accelerator, precision=precision, **kwargs)


class TagToMaskCLI(LightningCLI):
    """Lightning's CLI with the run's folder and its loggers as one line of YAML each.

    The names of the classes go from the data to the model, so that they are written once.
    """

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods that are commands, each with the arguments the CLI itself provides."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of the run itself, and link the data's classes to the model's."""
        parser.add_argument(
            "--output",
            type=str,
            default="runs/latest",
            help="folder of the run: config.yaml, provenance.json (what made it), metrics.csv, best.ckpt (by the "
            "validation's figure), last.ckpt",
        )
        parser.add_argument(
            "--wandb",
            type=Wandb,
            default="disabled",
            help="log to Weights & Biases as well, with images: disabled, offline (no account needed) or online",
        )
        parser.add_argument(
            "--random_seeds",
            type=list[int] | str | None,
            default=None,
            help="fit: train once for each of these seeds, as in 0,1,2, in output/seed-0 and so on, and print mean and "
            "standard deviation; the same command again resumes what was stopped",
        )
        parser.link_arguments("data.classes", "model.init_args.classes", apply_on="instantiate", compute_fn=list)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words given and those alone (Lightning's own warns when it is called from Python)."""
        self.words = cast("list[str]", args)
        self.config = parser.parse_args(self.words)
        command = self.config["subcommand"]
        self.seeds = seed_list(self.config[command]["random_seeds"]) if command == "fit" else []

    def _parse_ckpt_path(self) -> None:
        """The YAML says what the model is; a checkpoint's own account of it is not merged over that."""

    def _set_seed(self) -> None:
        if not self.seeds:
            super()._set_seed()

    def instantiate_classes(self) -> None:
        """Build task, data and trainer; not where several trainings, each in a process of its own, are asked for."""
        if not self.seeds:
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if self.seeds:
            require_one_process("fit --random_seeds")
            fit_repeatedly(self.words, self.plain_config(), self.seeds)
        else:
            super()._run_subcommand(subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The Trainer, which keeps the run in the folder `output` unless the YAML's `trainer` says otherwise."""
        folder, given = Path(self._get(self.config, "output")), self._get(self.config_init, "trainer")
        fits = self.subcommand == "fit" and not given.fast_dev_run
        own = given.logger if given.logger is not None else fits
        kwargs["default_root_dir"] = given.default_root_dir or str(folder)
        kwargs["logger"] = run_loggers(folder, self._get(self.config, "wandb")) if own is True else own
        kwargs["devices"], kwargs["num_nodes"] = launched_devices(given.devices, given.num_nodes)
        kwargs["plugins"] = [CheckpointFiles(), *(given.plugins or [])]
        callbacks = list(given.callbacks or [])
        if fits:
            checkpoints = given.enable_checkpointing is not False
            callbacks += run_callbacks(folder, self.model, self.plain_config(), checkpoints=checkpoints, logs=bool(own))
        else:
            self.save_config_callback = None  # config.yaml is the training's
        if given.enable_progress_bar is not False:
            callbacks.append(progress_bar())  # after what is printed before a training starts
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except ValueError as error:  # Lightning's answer to SLURM's tasks that do not match its devices
            raise InputError(f"trainer: {error}") from error
        check_process_count(trainer.world_size)
        check_trainer(trainer, sync_batchnorm=given.sync_batchnorm)
        return trainer

    def plain_config(self) -> dict[str, Any]:
        """The whole configuration of the command, in plain JSON values."""
        command = str(self.subcommand)
        text = self._parser(command).dump(self.config[command], format="json", skip_none=False)
        return dict(json.loads(text))

    def before_fit(self) -> None:
        """Refuse to train over an earlier run, whose figures and checkpoints would be lost."""
        folder = Path(self._get(self.config, "output"))
        if (folder / "config.yaml").exists() and not self._get(self.config, "ckpt_path"):
            raise InputError(
                f"{folder} already holds a run: remove it, name another folder (--output), "
                f"or go on with it (--ckpt_path last)",
            )
        self.before_validate()

    def before_validate(self) -> None:
        """Look at a checkpoint that is given: that it is of this task, and carries no code."""
        path = self._get(self.config, "ckpt_path")
        if path and str(path) not in ("last", "best", "hpc", "registry"):
            read_checkpoint(path, str(self.model.task_name))

    before_test = before_validate


def check_trainer(trainer: pl.Trainer, *, sync_batchnorm: bool) -> None:
    """Look at what a Trainer is asked to do.

    Args:
        trainer: Lightning's.
        sync_batchnorm: whether batch norms are to take their statistics over all processes.

    Raises:
        InputError: something that torch cannot do, or that would spoil a training silently.
    """
    if sync_batchnorm and trainer.world_size > 1 and trainer.strategy.root_device.type == "cpu":
        raise InputError(
            "sync_batchnorm is for GPUs: torch has no SyncBatchNorm for the CPU; leave it out, and each process "
            "normalises by its own batch"
        )
    if str(trainer.precision) in ("16-true", "bf16-true"):
        raise InputError(
            f"precision {trainer.precision} would round weights and images to 16 bits, and the CRF would see wrong "
            "colours: choose bf16-mixed, auto, or 16-mixed on GPUs"
        )


def run_lightning(words: list[str]) -> None:
    """Run `fit`, `validate` or `test`.

    Args:
        words: the command line from the command's name on.

    Raises:
        InputError: something handed in is unusable; a `UsageError` where the command line or a YAML is.
    """
    try:
        TagToMaskCLI(
            model_class=pl.LightningModule,
            datamodule_class=BaseDataModule,
            trainer_class=AutoPrecisionTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=LightningParser,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True},  # before_fit has looked already
            load_from_checkpoint_support=False,  # the tasks save plain arguments themselves: loaded with weights_only
            parser_kwargs={"prog": "tag2mask"},
            args=words,
        )
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise
        raise InputError(f"the checkpoint is of another network than the YAML describes: {str(error)[:300]}") from error
