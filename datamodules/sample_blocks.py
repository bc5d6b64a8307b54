"""The images of a split in blocks, one for each shard of a seed cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datamodules.files import AnyPath
from datamodules.sample import Sample
from datamodules.seed_cache.shard import shard_name


@dataclass(frozen=True)
class SampleBlocks:
    """The images of a split in blocks, one for each shard of a seed cache.

    Attributes:
        names: file name of the shard of each block.
        read: returns the samples of the block with a number.
        samples: all samples in order; None where a block's samples are unknown until it is read.
        files_sha256: where ``samples`` is None, the SHA-256 of what the samples follow from, such as names and sizes
            of files.
        files: where ``samples`` is None, the file from which each block is read.
    """

    names: Sequence[str]
    read: Callable[[int], Sequence[Sample]]
    samples: Sequence[Sample] | None = None
    files_sha256: str = ""
    files: Sequence[AnyPath] = ()


def consecutive_blocks(samples: Sequence[Sample], size: int) -> SampleBlocks:
    """Return blocks of ``size`` samples each; the last may have fewer."""
    names = [shard_name(number) for number in range(-(-len(samples) // size))]
    return SampleBlocks(names, lambda number: samples[number * size : (number + 1) * size], samples)
