"""What several processes that train together must agree on."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

__all__ = ["SharedStatistics", "everyones", "mean_over_processes"]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a number over the processes, float32, without gradient; to be asked for by all of them."""
    mean = value.detach().float().clone()
    if _together():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean


def everyones(thing: Any) -> list[Any]:
    """What each process gives, in their order; to be asked for by all of them."""
    if not _together():
        return [thing]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, thing)
    return found


class SharedStatistics(pl.Callback):
    """Within a training, all processes validate with the first one's batch-norm statistics: those that are saved.

    DistributedDataParallel hands them on before each batch, for which it needs as many batches in every process; a
    validation split need not have them (no picture is counted twice to make shares even), and processes would wait for
    each other for ever. Here they are handed on once, before the validation.
    """

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Hand on the statistics."""
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            for buffer in pl_module.buffers():
                distributed.broadcast(buffer, 0)
            trainer.strategy.model.require_forward_param_sync = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Let training go on as before."""
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.require_forward_param_sync = True
