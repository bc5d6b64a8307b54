"""Seed caches for tests: image by image, in one go."""

from contextlib import ExitStack

from datamodules.seed_cache_writer import CacheOutput, new_cache_folder
from datamodules.seed_shard import SHARD_SIZE, ShardBuilder


class CacheWriter:
    """A context manager: the cache appears when it is left without an error."""

    def __init__(self, path, classes, settings, *, inputs=None, overwrite=False, shard_size=SHARD_SIZE, left_out=None):
        self.path, self.classes, self.settings, self.inputs = path, classes, settings, inputs
        self.overwrite, self.shard_size, self.left_out = overwrite, shard_size, left_out or {}
        self.shards = [ShardBuilder(classes)]
        self.stack = ExitStack()

    def __enter__(self):
        self.folder = self.stack.enter_context(new_cache_folder(self.path, overwrite=self.overwrite))
        return self

    def add(self, name, cues, **parts):
        if len(self.shards[-1].ids) == self.shard_size:
            self.shards.append(ShardBuilder(self.classes))
        self.shards[-1].add(name, cues, **parts)

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                blocks = [shard.ids for shard in self.shards]
                output = CacheOutput(self.folder, self.classes, self.settings, blocks, self.inputs)
                for number, shard in enumerate(self.shards):
                    output.write(number, shard, {} if number else self.left_out)
        except BaseException as failure:
            if not self.stack.__exit__(type(failure), failure, failure.__traceback__):
                raise
            return False
        return self.stack.__exit__(kind, error, trace)
