"""``seeds threshold``: make the cues of a seed cache again with other thresholds, without the network."""

from typing import Any

from upath import UPath

from datamodules.errors import InputError, require_below_one
from datamodules.seed_cache import SeedCache
from datamodules.seed_cache.shard import NO_CUE
from datamodules.seed_cache.writer import SeedCacheWriter
from datamodules.source_revision import SEED_PACKAGES, source_revision
from seeds.cues import threshold_cues
from seeds.provenance import package_versions


def threshold_seeds(
    cache: UPath, output: UPath, *, fg_threshold: float = 0.2, bg_fraction: float = 0.1, overwrite: bool = False
) -> None:
    """Make the cues of a seed cache again, by SEC's rule, from its maps and saliency.

    The images have the same cues, maps and saliency as in a cache that ``seeds generate`` writes with these
    thresholds. Only images without tags that have no cue stay without one, as in a cache of ``refine: crf``.

    Args:
        cache: a seed cache with maps and saliency, such as those of ``seeds generate``.
        output: folder of the new cache: a new folder, or a cache of the same settings to resume.
        fg_threshold: foreground cues are the positions where a map exceeds this fraction of its maximum.
        bg_fraction: background cues are this fraction of the positions, those of the lowest saliency.
        overwrite: replace a cache of other settings.

    Raises:
        InputError: a cache, folder or number is not usable. Finished shards stay.
    """
    thresholds = {"fg_threshold": fg_threshold, "bg_fraction": bg_fraction}
    require_below_one(**thresholds)
    seeds = SeedCache(cache)
    origin = {"cache": seeds.fingerprint, "packages": package_versions(), "source": source_revision(SEED_PACKAGES)}
    settings = seeds.settings | thresholds | {"refinement": None, "thresholded": origin}
    blocks, names = list[list[str]](), list[str]()
    for number in range(seeds.num_shards):
        shard = seeds.shard(number)
        blocks.append([*shard.ids, *shard.left_out])
        names.append(shard.path.name)
    inputs = seeds.inputs | {"cache": str(cache)}
    writer = SeedCacheWriter(output, seeds.classes, settings, blocks, inputs, seeds.left_out, names)

    def image(name: str) -> tuple[Any, ...]:
        (classes, maps), saliency = seeds.maps(name), seeds.saliency(name)
        if saliency is None:
            raise InputError(f"the seed cache {cache} has no saliency of image {name}, to make cues of")
        if not len(classes) and (cues := seeds.cues(name)).min() == NO_CUE:  # also where its tags are not known
            return cues, classes, maps, saliency
        return threshold_cues(classes, maps, saliency, fg_threshold, bg_fraction), classes, maps, saliency

    writer.write_missing(image, "cues", overwrite=overwrite)
