"""Other thresholds for a seed cache, without asking the network again."""

from pathlib import Path

from datamodules.errors import InputError
from datamodules.fingerprints import fingerprint
from datamodules.progress import track
from datamodules.seed_cache import SeedCache
from seeds.cues import label_map
from seeds.provenance import provenance

__all__ = ["threshold_seeds"]

OWN = ("format", "version", "pictures", "left_out", "shards", "index", "checksum")  # what a writer says itself


def threshold_seeds(
    cache: Path, output: Path, *, fg_threshold: float = 0.2, bg_fraction: float = 0.1, overwrite: bool = False
) -> None:
    """Make the cues of a seed cache anew, by SEC's rule, from the maps and the saliency that it keeps.

    The shards are, byte for byte, those that `seeds generate` makes with these thresholds, but where it left images
    out: then they are filled up.

    Args:
        cache: a seed cache with maps and saliency, as `seeds generate` makes.
        output: the new cache's folder, which must not exist.
        fg_threshold: a class's cue is where its map exceeds this fraction of its own maximum.
        bg_fraction: the background's cue is this fraction of the cells, those of the lowest saliency.
        overwrite: replace a cache that is already there.

    Raises:
        InputError: a cache, folder or number that is not usable; nothing is left behind then.
    """
    for name, value in (("fg_threshold", fg_threshold), ("bg_fraction", bg_fraction)):
        if not 0 <= value < 1:
            raise InputError(f"{name} {value} is outside 0..1")
    seeds = SeedCache(cache)
    known = {key: value for key, value in seeds.manifest.items() if key not in OWN}
    thresholds = {"fg_threshold": fg_threshold, "bg_fraction": bg_fraction, "refinement": None}
    made = {"thresholded": {"from": fingerprint(cache), **provenance()}}
    size = max(shard["pictures"] for shard in seeds.manifest["shards"])
    writer = CacheWriter(
        output, seeds.classes, known | thresholds | made, overwrite=overwrite, shard_size=size, left_out=seeds.left_out
    )
    with writer:
        for name in track(seeds.ids, "cues"):
            (classes, maps), saliency = seeds.maps(name), seeds.saliency(name)
            if saliency is None:
                raise InputError(f"the seed cache {cache} has no saliency of image {name}, to make cues of")
            cues = label_map(classes, maps, saliency, fg_threshold, bg_fraction)
            writer.add(name, cues, map_classes=classes, maps=maps, saliency=saliency)
