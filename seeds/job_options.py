"""The options shared by all jobs that write a seed cache: ``seeds generate``, ``seeds refine`` and ``pseudo-label``."""

from dataclasses import dataclass
from typing import Literal

from datamodules.errors import InputError
from datamodules.seed_cache.shard import MAX_IMAGES, SHARD_SIZE
from datamodules.unreadable_images import MAX_UNREADABLE, check_share
from seeds.distributed import read_partition
from seeds.precision import Precision


@dataclass(frozen=True)
class JobOptions:
    """How a job reads images, shares the work and writes shards.

    Attributes:
        batch_size: images per batch; by default as in the training of the network.
        num_workers: processes that read images, for each process with a network; by default as in the training.
        shard_size: images per file.
        accelerator: where the network runs: auto, cpu, gpu, …
        devices: processes on each machine, each with a GPU or on the CPU; auto: one process on the CPU, all GPUs, and
            under torchrun as many as torchrun starts.
        num_nodes: machines, where SLURM starts the processes.
        partition: i/N, with i from 0 to N-1: write only the shards i, i + N, i + 2 N, …; N independent jobs write the
            whole cache. Each process that torchrun or srun launches may have a partition.
        threads: torch's threads in each process; their number changes the last bits of the result, the number of
            processes does not. More processes are faster than more threads.
        precision: floating-point precision of the network: auto, 32-true or bf16-mixed. auto is bf16-mixed where the
            processor computes bfloat16 natively, else 32-true (see `seeds.precision`).
        max_unreadable: share of images that may be unreadable: they are left out and listed on the terminal and in
            the cache. With more of them the job stops. With ``partition`` it is the share of the partition's images;
            of tar files, those count that the process has read so far.
        strict: stop at the first unreadable image.
        overwrite: replace shards that were made with other settings.

    Raises:
        InputError: a number is out of range.
    """

    batch_size: int | None = None
    num_workers: int | None = None
    shard_size: int = SHARD_SIZE
    accelerator: str = "auto"
    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    partition: str = "0/1"
    threads: int = 1
    precision: Precision = "auto"
    max_unreadable: float = MAX_UNREADABLE
    strict: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1 or not 1 <= self.shard_size <= MAX_IMAGES:
            raise InputError(
                f"threads {self.threads} must be positive, shard_size {self.shard_size} in 1..{MAX_IMAGES}"
            )
        check_share(self.max_unreadable)
        read_partition(self.partition)
