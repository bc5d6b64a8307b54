"""The seed cache on disk: what a classifier said about each image, made once, read many times.

A folder of ``manifest.json``, ``index.safetensors`` and ``shard-00000.safetensors`` …, some hundreds of images a
shard; nothing in it is ever run. The manifest is written last: a folder with a manifest is a whole cache. Beside the
makers' settings it holds

======================  ==================================================================================
``format, version``     what this is
``classes``             names of the classes 1..C of the label maps
``pictures``            how many there are
``left_out``            images of the list that could not be used: id and reason
``shards``              of each in turn ``sha256``, ``bytes``, ``pictures``
``index``               ``sha256`` and ``bytes`` of the index, which holds the ids; see :mod:`datamodules.cache.index`
``checksum``            SHA-256 of the manifest itself, without this line
======================  ==================================================================================

No file is named in it: names follow from the shards' numbers. Shards: :mod:`datamodules.cache.shard`.
"""

from datamodules.cache.format import NO_CUE, SHARD_SIZE, VERSION, as_stored
from datamodules.cache.reader import SeedCache
from datamodules.cache.writer import CacheWriter

__all__ = ["NO_CUE", "SHARD_SIZE", "VERSION", "CacheWriter", "SeedCache", "as_stored"]
