"""Nearly identical images, found by a hash of coarse differences and by correlation."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from datamodules.errors import UnreadableError
from datamodules.images import as_rgb, read_image
from datamodules.progress import track
from datamodules.sample import Sample

SIDE = 16  # of the grid whose horizontal differences are compared
MAX_HASH_DISTANCE = 16  # of its 256 differences; two photos of VOC animals differ in 61 or more
GRAY_SIDE = 32  # side of the gray image that is compared where few differences differ
MIN_CORRELATION = 0.95  # correlation of two such images; tiles that differ, looked at, had 0.91 or less


class Fingerprint(NamedTuple):
    """Size and descriptors of an image, by which images are compared.

    Attributes:
        height: in pixels.
        width: in pixels.
        bits: the signs of its horizontal differences on a coarse grid, uint64 (4,).
        small: the image in gray and small, of mean 0 and norm 1, float32 (1024,); zeros for one gray value.
        levels: the brightest minus the darkest value in gray.
    """

    height: int
    width: int
    bits: NDArray[np.uint64]
    small: NDArray[np.float32]
    levels: int


def read_fingerprints(samples: Sequence[Sample], channels: int) -> tuple[dict[str, Fingerprint], dict[str, str]]:
    """Return the fingerprint of each image, and the reason for each image that cannot be read, by id."""

    def read(sample: Sample) -> Fingerprint | str:
        try:
            image = read_image(sample.image, channels)
        except UnreadableError as error:
            return str(error)
        gray = cv2.cvtColor(as_rgb(image), cv2.COLOR_RGB2GRAY)
        coarse = cv2.resize(gray, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
        bits = np.packbits(coarse[:, 1:] > coarse[:, :-1]).view(np.uint64)
        small = cv2.resize(gray, (GRAY_SIDE, GRAY_SIDE), interpolation=cv2.INTER_AREA).ravel().astype(np.float32)
        small -= small.mean()
        height, width = image.shape[:2]
        levels = int(gray.max()) - int(gray.min())
        return Fingerprint(height, width, bits, small / max(float(np.linalg.norm(small)), 1e-6), levels)

    with ThreadPoolExecutor() as pool:
        read_ones = list(track(pool.map(read, samples), "reading", len(samples)))
    by_id = dict(zip([sample.id for sample in samples], read_ones, strict=True))
    fingerprints = {name: each for name, each in by_id.items() if isinstance(each, Fingerprint)}
    return fingerprints, {name: each for name, each in by_id.items() if isinstance(each, str)}


def near_groups(fingerprints: Mapping[str, Fingerprint]) -> list[list[str]]:
    """Return the groups of ids, of two or more, that pairs of nearly identical fingerprints connect.

    A pair has at most `MAX_HASH_DISTANCE` different signs of differences on the coarse grid (dHash of N. Krawetz,
    *Kind of Like That*, 2013, at 16x16), and a correlation of at least `MIN_CORRELATION`.
    """
    names, found = list(fingerprints), list(fingerprints.values())
    groups = DisjointSet(range(len(found)))
    bits = np.array([fingerprint.bits for fingerprint in found])  # (N, 4)
    parts = np.ascontiguousarray(bits.T)  # a quarter of the differences is compared first, for speed
    for index, fingerprint in enumerate(found[1:], 1):
        near = np.flatnonzero(np.bitwise_count(parts[0, :index] ^ parts[0, index]) <= MAX_HASH_DISTANCE)
        differences = np.bitwise_count(bits[near] ^ fingerprint.bits).sum(axis=1, dtype=np.int64)
        for other in near[differences <= MAX_HASH_DISTANCE].tolist():
            if fingerprint.small @ found[other].small >= MIN_CORRELATION:
                groups.merge(index, other)
    connected = sorted(sorted(group) for group in groups.subsets() if len(group) > 1)
    return [[names[index] for index in group] for group in connected]
