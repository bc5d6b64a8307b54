"""Choice and order of images, and seeds of their random changes: a function of seed, epoch and position alone.

A resumed run therefore sees the same batches as an uninterrupted run, and several processes together see the batches of
one process.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DistributedSampler

from datamodules.errors import InputError


class Draw(NamedTuple):
    """Index of an image, and the seed of its random changes."""

    number: int
    seed: int


def run_seed() -> int:
    """Return the seed of the run: that of ``seed_everything``, the same in all processes, or else torch's seed."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Return at most ``wanted`` of the numbers 0..count-1 in order, evenly spread, with the first and the last."""
    wanted = min(wanted, count)
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


def _processes(length: int) -> tuple[int, int]:
    """Return the number of processes and the rank of this one.

    Raises:
        InputError: there are images, but fewer than processes.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1, 0
    replicas = distributed.get_world_size()
    if 0 < length < replicas:
        raise InputError(f"{length} images cannot be distributed over {replicas} processes")
    return replicas, distributed.get_rank()


# Both are subclasses of DistributedSampler, because Lightning replaces other samplers by a DistributedSampler.


class TrainSampler(DistributedSampler[Draw]):
    """Draw every image once per epoch, shuffled; images that do not fill a last batch are left out of the epoch.

    An epoch of a small data set repeats the images, each time in another order.

    Processes take turns along one order, so that their batches together equal the batches of one process with a larger
    batch size. The same holds for batches whose gradients are accumulated. Lightning sets the epoch (``set_epoch``);
    otherwise epochs are counted.

    Args:
        length: number of images.
        batch_size: images per batch and process.
        seed: seed of the order and of the random changes.
        accumulate: batches per optimizer step. Batches that do not fill a last step are left out of the epoch:
            Lightning would divide their gradient by ``accumulate`` all the same.
        repeats: how often each image takes part in the shuffling, relative to the others, (length,); None for once
            each. The epoch contains as many images as before: those at the end of the order are left out of it.
        min_images: least number of images of all processes in an epoch, those that fill no last step included; fewer
            are drawn several times.

    Raises:
        InputError: there are fewer images than processes, or fewer than a step of several batches needs.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, accumulate: int = 1, repeats: Sequence[int] | None = None,
        min_images: int = 0,
    ) -> None:  # fmt: skip
        replicas, rank = _processes(length)
        step, images = batch_size * accumulate, max(length, min_images)
        if accumulate > 1 and images < step * replicas:
            step_size = f"{accumulate} batches (accumulate_grad_batches) of {batch_size} images in {replicas} processes"
            raise InputError(f"{images} images do not fill one step of {step_size}")
        super().__init__(range(length), num_replicas=replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.length = length
        times = np.ones(length, np.int64) if repeats is None else np.array(repeats, np.int64)
        self.indices = np.repeat(np.arange(length), times // np.gcd.reduce(times))  # 4, 4, 4: once each
        # fewer images than a batch: one smaller batch
        self.num_samples = images // (step * replicas) * step or images // replicas
        self.total_size = self.num_samples * replicas

    def __iter__(self) -> Iterator[Draw]:
        """Iterate over the share of this process in the epoch."""
        random = np.random.default_rng([self.seed, self.epoch])
        for start in range(0, self.total_size, self.length):
            order, seeds = random.permutation(self.indices), random.integers(2**62, size=len(self.indices))
            end = min(self.length, self.total_size - start)
            share = slice((self.rank - start) % self.num_replicas, end, self.num_replicas)
            yield from map(Draw, order[share].tolist(), seeds[share].tolist())
        self.epoch += 1  # where set_epoch is not called


class EvalSampler(DistributedSampler[int]):
    """Draw every image once, in order; processes take turns, and no image is repeated to make the shares equal.

    Raises:
        InputError: there are images, but fewer than processes. (A process without images would log nothing, and the
            other processes would wait for its metrics for ever.)
    """

    def __init__(self, length: int) -> None:
        replicas, rank = _processes(length)
        super().__init__(range(length), num_replicas=replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.share = range(rank, length, replicas)
        self.num_samples = len(self.share)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the share of this process."""
        return iter(self.share)
