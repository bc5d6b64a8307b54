"""``seeds verify`` and ``seeds info``: check every byte of a seed cache, and print its settings."""

import json
from pathlib import Path

from rich.console import Console

from datamodules.errors import InputError
from datamodules.progress import track
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache_index import list_shards
from datamodules.seed_shard import Shard, shard_name


def verify_cache(cache: Path) -> None:
    """Check every byte of every shard of a seed cache, and that the shards form one complete cache.

    Args:
        cache: a seed cache.

    Raises:
        InputError: shards are damaged, missing or of different settings; all damaged shards are named.
    """
    numbers, problems = list_shards(cache), []
    for number in track(numbers, "verifying", unit="shards"):
        try:
            Shard(cache / shard_name(number)).verify()
        except InputError as error:
            problems.append(str(error).removesuffix("; make the cache again"))
    if problems:
        raise InputError(f"{len(problems)} of {len(numbers)} shards are damaged: " + "; ".join(problems))
    seeds = SeedCache(cache)
    left_out = f", {len(seeds.left_out)} left out" if seeds.left_out else ""
    Console(soft_wrap=True).print(
        f"{cache}: {len(seeds)} images in {len(numbers)} shards{left_out}; every byte is sound", highlight=False
    )


def print_info(cache: Path) -> None:
    """Print a seed cache's classes, settings, inputs, numbers of images, shards and bytes, and left-out images as JSON.

    Args:
        cache: a seed cache.

    Raises:
        InputError: there is no cache in the folder, or a shard is missing or damaged.
    """
    seeds = SeedCache(cache)
    info = {
        "classes": seeds.classes, "images": len(seeds), "shards": seeds.num_shards,
        "bytes": sum(size for size, _ in list_shards(cache).values()), "fingerprint": seeds.fingerprint,
        "settings": seeds.settings, "inputs": seeds.inputs, "left_out": seeds.left_out,
    }  # fmt: skip
    Console().print_json(json.dumps(info))
