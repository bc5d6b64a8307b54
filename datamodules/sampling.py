"""Which images come in which order, and with which random changes: a function of seed, epoch and place alone.

A run that was stopped and goes on therefore sees what it would have seen, and so do several processes together.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DistributedSampler

from datamodules.errors import InputError


class Draw(NamedTuple):
    """The number of an image, and the seed of its random changes."""

    number: int
    seed: int


def run_seed() -> int:
    """The seed of the run, the same in all its processes: of ``seed_everything``, else torch's own in this process."""
    return int(os.environ.get("PL_GLOBAL_SEED", torch.initial_seed()))


def evenly(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers 0..count-1, evenly spread, in order; the first and the last among them."""
    if wanted >= count:
        return list(range(count))
    return [round(i * (count - 1) / max(1, wanted - 1)) for i in range(wanted)]


def _world() -> tuple[int, int]:
    """How many processes train together, and which of them this one is."""
    together = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_world_size(), distributed.get_rank()) if together else (1, 0)


def _check_share(length: int, replicas: int) -> None:
    if replicas > 1 and length < replicas:
        raise InputError(f"{length} images cannot be shared out among {replicas} processes.")


# Both are torch's DistributedSampler by name so that Lightning, which replaces others by it, lets them be.


class TrainSampler(DistributedSampler[Draw]):
    """Every image once an epoch, shuffled; the images that do not fill a last batch are left out of the epoch.

    Processes take turns along the one order, so that their batches together are the batches that one process with as
    many times the batch size would see; so are the batches of which the gradients are added up to one step. Lightning
    tells the epoch (``set_epoch``); where nobody does, they are counted.

    Args:
        length: number of images.
        batch_size: of one process.
        seed: of the order and of the random changes.
        accumulate: batches to a step of the optimizer. Those that do not fill a last step are left out of the epoch:
            Lightning would divide their gradient by ``accumulate`` all the same.

    Raises:
        InputError: there are fewer images than processes, or than a step of more than one batch takes.
    """

    def __init__(self, length: int, batch_size: int, seed: int, accumulate: int = 1) -> None:
        replicas, rank = _world()
        _check_share(length, replicas)
        step = batch_size * accumulate
        if accumulate > 1 and length < step * replicas:
            raise InputError(
                f"{length} images do not fill one step of {accumulate} batches (accumulate_grad_batches) of "
                f"{batch_size} images in each of {replicas} processes."
            )
        super().__init__(range(length), num_replicas=replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.length = length
        # less than a batch for each: one smaller batch
        self.num_samples = length // (step * replicas) * step or length // replicas
        self.total_size = self.num_samples * replicas

    def __iter__(self) -> Iterator[Draw]:
        """This process's share of the epoch."""
        random = np.random.default_rng([self.seed, self.epoch])
        order, seeds = random.permutation(self.length), random.integers(2**62, size=self.length)
        for place in range(self.rank, self.total_size, self.num_replicas):
            yield Draw(int(order[place]), int(seeds[place]))
        self.epoch += 1  # for whoever tells no epoch


class EvalSampler(DistributedSampler[int]):
    """Every image once, in order; processes take turns, and none is given an image twice to make shares even.

    Raises:
        InputError: there are images, and fewer than processes. (One without any would log nothing, and the others
            would wait for its figures for ever.)
    """

    def __init__(self, length: int) -> None:
        replicas, rank = _world()
        if length:
            _check_share(length, replicas)
        super().__init__(range(length), num_replicas=replicas, rank=rank, shuffle=False)  # type: ignore[arg-type]
        self.places = range(rank, length, replicas)
        self.num_samples = len(self.places)

    def __iter__(self) -> Iterator[int]:
        """This process's share."""
        return iter(self.places)
