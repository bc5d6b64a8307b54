"""Seed caches: folders of shards with the cues and maps of images, and the import of other projects' caches."""

from datamodules.seed_cache.cache import SeedCache

__all__ = ["SeedCache"]
