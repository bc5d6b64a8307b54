"""``seeds import``: convert the seeds of other tools to a seed cache."""

import hashlib
from collections import Counter
from typing import Any, Literal

import cv2
import numpy as np
from upath import UPath

from datamodules.class_names import check_classes, mask_lut, voc_classes
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.image_ids import image_id, match_id, read_ids
from datamodules.masks import read_class_mask
from datamodules.seed_cache.irn_maps import read_irn
from datamodules.seed_cache.sec_cues import INPUT_LIST, SecCues
from datamodules.seed_cache.shard import NO_CUE, SHARD_SIZE
from datamodules.seed_cache.writer import SeedCacheWriter
from datamodules.source_revision import SEED_PACKAGES, source_revision
from seeds.cues import foreground_cues, resolve_conflicts, threshold_cues
from seeds.provenance import ids_sha256, package_versions

Format = Literal["sec", "irn", "png"]


def import_seeds(
    source: UPath,
    output: UPath,
    format: Format,  # noqa: A002 - the option's name
    *,
    classes: list[str] | None = None,
    ids: UPath | None = None,
    input_list: UPath | None = None,
    grid: int = 41,
    fg_threshold: float = 0.2,
    bg_threshold: float = 0.05,
    overwrite: bool = False,
) -> None:
    """Convert the seeds of another tool to a seed cache; no code in its files is run.

    ``sec`` is the pickle of the SEC authors: its cues are kept. ``irn`` is a folder of ``.npy`` files as irn or psa
    write them: their maps are kept, and cues are made of them. ``png`` is a folder of label maps as 8-bit PNGs: 0 =
    background, 1..C = class, 255 = no cue; the label maps keep their size.

    The classes of the source are listed in a ``classes.txt`` beside its files; by default they are the 20 of VOC.

    Args:
        source: the pickle (gzipped or not), or the folder of .npy files or PNGs.
        output: folder of the cache: a new folder, or a cache of the same settings to resume.
        format: sec, irn or png.
        classes: classes of the source to keep, in this order; cues of others become no cue. By default all.
        ids: list of the images to convert, one per line; by default all of the source.
        input_list: sec: list of the images' numbers; by default input_list.txt beside the pickle.
        grid: positions on a side of the cue grid: of the pickle (sec), or of the cues to make (irn).
        fg_threshold: irn: foreground cues are the positions where a map exceeds this fraction of its maximum.
        bg_threshold: irn: background cues are the positions where no map exceeds this fraction of its maximum.
        overwrite: replace a cache of other settings.

    Raises:
        InputError: a file is missing, damaged, hostile or of another format; an image of the list is missing; a
            class is unknown. Finished shards stay.
    """
    if grid < 1 or not 0 <= bg_threshold <= fg_threshold < 1:
        raise InputError(
            f"grid {grid} must be positive, 0 <= bg_threshold {bg_threshold} <= fg_threshold {fg_threshold} < 1"
        )
    known = voc_classes(source if source.is_dir() else source.parent)
    chosen = known if classes is None else check_classes(classes, known, f"of {source}")
    suffix = "npy" if format == "irn" else "png"
    sec = SecCues(source, input_list or source.with_name(INPUT_LIST), len(known), grid) if format == "sec" else None
    names = sec.ids if sec else tuple(sorted(
        file.as_posix().removesuffix(f".{suffix}")
        for file in (path.relative_to(source) for path in source.rglob(f"*.{suffix}"))
        if not any(part.startswith(".") for part in file.parts)  # macOS writes ._a.png beside a.png
    ))  # fmt: skip
    if not names:
        raise InputError(f"{source} is no folder that contains .{suffix} files")
    if ids is not None:
        known_ids = set(names)
        listed = tuple(name if name in known_ids else match_id(image_id(name), known_ids) for name in read_ids(ids))
        if lacking := sorted(set(listed) - known_ids):
            raise InputError(f"{source} lacks {len(lacking)} of the {len(listed)} images of {ids}, first {lacking[0]}")
        if not listed:
            raise InputError(f"the list {ids} contains no image")
        if len(set(listed)) < len(listed):  # by several names
            raise InputError(f"the list {ids} contains {Counter(listed).most_common(1)[0][0]} more than once")
        names = listed
    lut, own_lut = mask_lut(known, chosen), mask_lut(known, known)

    def image(name: str) -> tuple[Any, ...]:
        if sec:
            positions = sec.positions(name)[None]  # (1, C+1, h, w); several classes may share a position
            return (lut[resolve_conflicts(positions[:, 1:], positions[:, 0])[0]],)
        if format == "png":
            return (lut[read_class_mask(source / f"{name}.png", own_lut)],)
        found, maps = read_irn(source / f"{name}.npy", len(known))
        cues = np.full((grid, grid), NO_CUE, np.uint8)
        if len(maps):
            resized = np.stack([cv2.resize(each, (grid, grid), interpolation=cv2.INTER_LINEAR) for each in maps])
            cues = threshold_cues(found, resized, None, fg_threshold)
            cues[~foreground_cues(resized[None], bg_threshold)[0].any(axis=0)] = 0
        kept = lut[found + 1] != NO_CUE  # maps of the chosen classes
        return lut[cues], lut[found[kept] + 1].astype(np.int64) - 1, maps[kept]

    # of a folder: over the digests of the files, in the order of the images
    files = "".join(f"{name} {file_sha256(source / f'{name}.{suffix}')}\n" for name in names) if sec is None else ""
    settings: dict[str, Any] = {
        "method": "imported", "source_format": format, "ids_sha256": ids_sha256(names), "packages": package_versions(),
        "source_sha256": file_sha256(source) if sec else hashlib.sha256(files.encode()).hexdigest(),
        "grid": None if format == "png" else [grid, grid], "source": source_revision(SEED_PACKAGES),
        "source_classes": list(known),
    }  # fmt: skip
    if sec:
        settings["numbers_sha256"] = ids_sha256([str(sec.numbers[name]) for name in names])
    if format == "irn":
        settings |= {"fg_threshold": fg_threshold, "bg_threshold": bg_threshold}
    blocks = [names[first : first + SHARD_SIZE] for first in range(0, len(names), SHARD_SIZE)]
    inputs = {"seeds": str(source), "ids": None if ids is None else str(ids)}
    SeedCacheWriter(output, chosen, settings, blocks, inputs).write_missing(image, "importing", overwrite=overwrite)
