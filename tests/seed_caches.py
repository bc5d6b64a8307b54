"""Seed caches for tests: image by image, in one go; and jobs with flat options."""

from dataclasses import fields

from datamodules.errors import InputError
from datamodules.seed_cache.shard import SHARD_SIZE, ShardBuilder
from datamodules.seed_cache.writer import SeedCacheWriter
from seeds.generate_seeds import generate_seeds
from seeds.job_options import JobOptions


class CacheWriter:
    """A context manager: the cache is written when it is left without an error."""

    def __init__(self, path, classes, settings, *, inputs=None, shard_size=SHARD_SIZE, left_out=None):
        self.path, self.classes, self.settings, self.inputs = path, classes, settings, inputs
        self.shard_size, self.left_out = shard_size, left_out or {}
        self.shards = [ShardBuilder(classes)]

    def __enter__(self):
        return self

    def add(self, name, cues, **parts):
        if len(self.shards[-1].ids) == self.shard_size:
            self.shards.append(ShardBuilder(self.classes))
        self.shards[-1].add(name, cues, **parts)

    def __exit__(self, kind, error, trace):
        if kind is None:
            blocks = [[*shard.ids, *({} if number else self.left_out)] for number, shard in enumerate(self.shards)]
            output = SeedCacheWriter(self.path, self.classes, self.settings, blocks, self.inputs or {})
            if self.path.is_dir() and any(self.path.iterdir()):
                raise InputError(f"{self.path} exists already")
            output.missing(range(len(blocks)))
            for number, shard in enumerate(self.shards):
                output.write(number, shard, {} if number else self.left_out)


def job_options(options):
    """Take the options of a job out of a dictionary."""
    return JobOptions(**{field.name: options.pop(field.name) for field in fields(JobOptions) if field.name in options})


def generate(checkpoint, output, **options):
    """Run `generate_seeds` with the options of the job beside the others."""
    generate_seeds(checkpoint, output, job=job_options(options), **options)
