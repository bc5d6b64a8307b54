"""Looking at a cache: whether it is what was written, and what it says of itself."""

import json
from pathlib import Path

from rich.console import Console

from datamodules.cache.format import shard_name
from datamodules.cache.reader import SeedCache
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.progress import track


def verify_cache(cache: Path) -> None:
    """Check all of a seed cache: manifest, index, and of every shard its checksum and each image in it.

    Args:
        cache: a seed cache.

    Raises:
        InputError: it is not what was written; all damaged shards are named.
    """
    seeds = SeedCache(cache)
    numbers = range(len(seeds.manifest["shards"]))
    problems = [fault for number in track(numbers, "verifying", unit="shards") if (fault := shard_fault(seeds, number))]
    if problems:
        raise InputError(f"{len(problems)} of {len(numbers)} shards are damaged: " + "; ".join(problems))
    left = f", {len(seeds.left_out)} left out" if seeds.left_out else ""
    Console(soft_wrap=True).print(
        f"{cache}: {len(seeds)} images in {len(numbers)} shards{left}; all as written", highlight=False
    )


def shard_fault(seeds: SeedCache, number: int) -> str:
    """What is wrong with a shard, or an empty string."""
    path, known = seeds.path / shard_name(number), seeds.manifest["shards"][number]
    try:
        shard = seeds.shard(number)
        ids = shard.ids()
        if file_sha256(path) != known["sha256"]:
            return f"{path} is not what was written"
        if tuple(ids) != seeds.ids_of(number):
            return f"{path} holds other images than the index says"
        for row, name in enumerate(ids):
            shard.cues(row, name)
            shard.maps(row, name)
            shard.saliency(row, name)
    except InputError as error:
        return str(error).removesuffix("; make the cache again")
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    return ""


def print_info(cache: Path) -> None:
    """Print what a seed cache says of itself, as JSON: its manifest, with the shards added up.

    Args:
        cache: a seed cache.

    Raises:
        InputError: no such cache, or a damaged one.
    """
    manifest = dict(SeedCache(cache).manifest)
    shards = manifest.pop("shards")
    manifest |= {"shards": len(shards), "bytes": sum(shard["bytes"] for shard in shards) + manifest["index"]["bytes"]}
    Console().print_json(json.dumps(manifest))
