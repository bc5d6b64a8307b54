"""Unreadable images: left out and listed, up to a share of all images."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from datamodules.errors import InputError, UnreadableError
from datamodules.files import is_uri
from datamodules.images import image_size
from datamodules.masks import mask_size, require_same_size
from datamodules.progress import print_message
from datamodules.sample import Sample

MAX_UNREADABLE = 0.01
"""Default share of the images that may be unreadable."""

PRINTED_IMAGES = 10
"""Unreadable images that are printed one by one."""


class UnreadableImages:
    """Collect unreadable images, print their names, and stop when there are too many.

    Args:
        share: share of all images that may be unreadable, within 0..1.
        strict: allow none, regardless of ``share``.

    Attributes:
        reasons: reason by id.
        total: number of images that ``share`` refers to; the readers of images add their numbers.
    """

    def __init__(self, share: float = MAX_UNREADABLE, *, strict: bool = False) -> None:
        check_share(share)
        self.share, self.total = 0.0 if strict else share, 0
        self.reasons: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        """Record an unreadable image, once.

        Raises:
            InputError: more images are unreadable than the share allows.
        """
        if name in self.reasons:
            return
        self.reasons[name] = reason
        if problem := too_many(self.reasons, self.total, self.share):
            raise InputError(problem)
        if len(self.reasons) <= PRINTED_IMAGES:
            print_message(f"left out: {name}: {reason}")

    def problems(self, samples: Sequence[Sample]) -> dict[str, str]:
        """Return why each image, by its path, is unreadable; an empty text where it is readable."""
        return {sample.image: self.reasons.get(sample.id, "") for sample in samples}


def too_many(reasons: Mapping[str, str], total: int, share: float) -> str:
    """Return the error message for too many unreadable images; empty where their number is allowed.

    Args:
        reasons: reason by id of the unreadable images.
        total: number of all images.
        share: share of them that may be unreadable, within 0..1; 1 allows any number, also where ``total`` is 0.
    """
    if share >= 1 or len(reasons) <= share * total + 1e-9:  # 0.29 * 100 is less than 29
        return ""
    limit = f"max_unreadable allows a share of {share:g} (strict: none)"
    return f"{len(reasons)} of {total} images cannot be read, and {limit}; the first: {next(iter(reasons.values()))}"


def check_share(share: float) -> None:
    """Raise an InputError unless ``share`` is a fraction."""
    if not 0 <= share <= 1:
        raise InputError(f"max_unreadable is {share}, and must be a share of the images within 0..1")


def readable(samples: Sequence[Sample], unreadable: UnreadableImages) -> list[Sample]:
    """Return the samples whose images and masks have readable headers, in their order.

    The header of a file named by URI is not read: that would be a request for each file.

    Args:
        samples: samples of a split.
        unreadable: receives the others, with the reasons.

    Raises:
        InputError: a mask has another size than its image, or too many images are unreadable.
    """
    unreadable.total += len(samples)
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(_header_problem, samples))
    for sample, problem in zip(samples, problems, strict=True):
        if problem:
            unreadable.add(sample.id, problem)
    if len(unreadable.reasons) > PRINTED_IMAGES:
        print_message(f"left out in all: {len(unreadable.reasons)} images that cannot be read")
    return [sample for sample, problem in zip(samples, problems, strict=True) if not problem]


def _header_problem(sample: Sample) -> str:
    """Return the reason why the header of an image or of its mask is unreadable; empty where both are readable."""
    try:
        if is_uri(sample.image):
            return ""
        size = image_size(sample.image)
        size_of_mask = mask_size(sample.mask) if sample.mask else size
    except UnreadableError as error:
        return str(error)
    require_same_size(f"mask {sample.mask}", size_of_mask, f"its image {sample.image}", size)
    return ""
