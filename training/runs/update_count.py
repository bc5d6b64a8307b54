"""How many images a training step sees and how many updates a training makes, printed before it starts."""

from typing import Any

import pytorch_lightning as pl

from datamodules.progress import print_message

__all__ = ["UpdateCount"]


class UpdateCount(pl.Callback):
    """Prints the effective batch size and the number of updates, and how they differ from those of one process.

    Several processes and accumulated batches enlarge the effective batch; at a fixed number of epochs the network is
    then updated less often.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Print both numbers."""
        loader: Any = trainer.train_dataloader
        images, batch_size = len(loader.dataset), loader.batch_size
        processes, batches = trainer.world_size, trainer.accumulate_grad_batches
        effective, total = batch_size * processes * batches, trainer.estimated_stepping_batches
        print_message(f"training on {images} images, effective batch size {effective}: {total} updates of the weights")
        if effective == batch_size:
            return
        print_message(
            f"a step sees {batch_size} (batch_size) x {processes} (processes) x {batches} (accumulate_grad_batches) "
            "images; the learning rate stays as it is"
        )
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            updates = trainer.max_epochs * max(1, images // batch_size)
            alone = min(updates, trainer.max_steps) if trainer.max_steps > 0 else updates
            print_message(f"one process without accumulated batches would make {alone} updates of {batch_size} images")
