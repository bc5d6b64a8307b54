"""Seeds that others made, brought into a seed cache."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from datamodules.class_names import check_classes, mask_lut
from datamodules.errors import InputError
from datamodules.files import file_sha256
from datamodules.irn_maps import read_irn
from datamodules.masks import read_class_mask
from datamodules.progress import track
from datamodules.sec_cues import INPUT_LIST, SecCues
from datamodules.seed_cache import NO_CUE
from datamodules.voc import read_ids, voc_classes
from seeds.cues import foreground_cues, label_map, resolve_conflicts
from seeds.provenance import ids_sha256, provenance

Format = Literal["sec", "irn", "png"]


class Imported(NamedTuple):
    """An image's seeds in terms of the source's classes: label map uint8 (h, w), maps (k, h', w') of classes (k,)."""

    name: str
    cues: NDArray[np.uint8]
    classes: NDArray[np.int64]
    maps: NDArray[np.float32]


def import_seeds(
    source: Path,
    output: Path,
    format: Format,  # noqa: A002 - the option's name
    *,
    classes: list[str] | None = None,
    ids: Path | None = None,
    input_list: Path | None = None,
    grid: int = 41,
    fg_threshold: float = 0.2,
    bg_threshold: float = 0.05,
    overwrite: bool = False,
) -> None:
    """Turn seeds that others made into a seed cache; nothing that their files may carry is run.

    ``sec`` is the pickle of the SEC authors: its cues are kept as they are. ``irn`` is a folder of ``.npy`` files as
    irn or psa write them: their maps are kept, and cues made of them. ``png`` is a folder of label maps as 8-bit PNGs:
    0 = background, 1..C = class, 255 = no cue; they are kept at their own size.

    The source's classes are those of a ``classes.txt`` beside its files, else VOC's 20 in their order.

    Args:
        source: the pickle (gzipped or not), or the folder of .npy files or PNGs.
        output: the cache's folder, which must not exist.
        format: whose files they are: sec, irn or png.
        classes: which of the source's classes to keep, in this order; cues of others become no cue. All if not given.
        ids: a list of the images to take, one a line; all of the source if not given.
        input_list: sec: which image has which number; input_list.txt beside the pickle if not given.
        grid: cells a side of the cues: those the pickle was made for (sec), or those to make (irn).
        fg_threshold: irn: a class's cue is where its map exceeds this fraction of its own maximum.
        bg_threshold: irn: the background's cue is where no map exceeds this fraction of its own maximum.
        overwrite: replace a cache that is already there.

    Raises:
        InputError: files that are missing, damaged, hostile or of another kind; an image of the list that is not
            there; an unknown class. Nothing is left behind then.
    """
    _check_options(format, grid, fg_threshold, bg_threshold)
    known = voc_classes(source if source.is_dir() else source.parent)
    chosen = known if classes is None else check_classes(classes, known, f"of {source}")
    release = _open_sec(source, input_list, len(known), grid) if format == "sec" else None
    there = release.ids if release else _file_ids(source, "npy" if format == "irn" else "png")
    wanted = _wanted(there, ids, source)
    manifest = _origin(source, format, wanted, ids) | {"grid": None if format == "png" else [grid, grid]}
    if release:
        found = _sec(release, wanted)
    elif format == "irn":
        manifest |= {"fg_threshold": fg_threshold, "bg_threshold": bg_threshold}
        found = _irn(source, wanted, len(known), grid, fg_threshold, bg_threshold)
    else:
        found = _png(source, wanted, mask_lut(known, known))
    lut = mask_lut(known, chosen)
    with CacheWriter(output, chosen, manifest, overwrite=overwrite) as cache:
        for name, cues, kinds, maps in track(found, "importing", len(wanted)):
            kept = np.isin(lut[kinds + 1], (0, NO_CUE), invert=True)  # maps of the classes that are kept
            cache.add(name, lut[cues], map_classes=lut[kinds[kept] + 1].astype(np.int64) - 1, maps=maps[kept])


def _check_options(form: str, grid: int, fg_threshold: float, bg_threshold: float) -> None:
    if form not in get_args(Format):
        raise InputError(f"format is {form!r}, and must be one of {', '.join(get_args(Format))}")
    if grid < 1 or not 0 <= bg_threshold <= fg_threshold < 1:
        raise InputError(
            f"grid {grid} must be positive, and bg_threshold {bg_threshold} and fg_threshold {fg_threshold} in 0..1, "
            "the first not above the second"
        )


def _open_sec(source: Path, input_list: Path | None, num_classes: int, grid: int) -> SecCues:
    if source.is_dir():
        raise InputError(f"{source} is a folder; format sec wants the pickle itself")
    return SecCues(source, input_list or source.with_name(INPUT_LIST), num_classes, grid)


def _sec(release: SecCues, names: tuple[str, ...]) -> Iterator[Imported]:
    for name in names:
        cells = release.cells(name)[None]  # (1, C+1, h, w)
        cues = resolve_conflicts(cells[:, 1:], cells[:, 0])[0]
        yield Imported(name, cues, np.zeros(0, np.int64), np.zeros((0, *cues.shape), np.float32))


def _irn(
    folder: Path, names: tuple[str, ...], num_classes: int, grid: int, fg_threshold: float, bg_threshold: float
) -> Iterator[Imported]:
    for name in names:
        classes, maps = read_irn(folder / f"{name}.npy", num_classes)
        cues = np.full((grid, grid), NO_CUE, np.uint8)
        if len(maps):
            cells = np.stack([cv2.resize(each, (grid, grid), interpolation=cv2.INTER_LINEAR) for each in maps])
            cues = label_map(classes, cells, None, fg_threshold)  # (h, w)
            cues[~foreground_cues(cells[None], bg_threshold)[0].any(axis=0)] = 0
        yield Imported(name, cues, classes, maps)


def _png(folder: Path, names: tuple[str, ...], lut: NDArray[np.uint8]) -> Iterator[Imported]:
    for name in names:
        cues = read_class_mask(folder / f"{name}.png", lut)
        yield Imported(name, cues, np.zeros(0, np.int64), np.zeros((0, *cues.shape), np.float32))


def _file_ids(folder: Path, ending: str) -> tuple[str, ...]:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} of .{ending} files")
    found = tuple(sorted(path.stem for path in folder.glob(f"*.{ending}")))
    if not found:
        raise InputError(f"the folder {folder} holds no .{ending} files")
    return found


def _wanted(there: tuple[str, ...], ids: Path | None, source: Path) -> tuple[str, ...]:
    """The images of the list, or all there are."""
    if ids is None:
        return there
    names = tuple(Path(name).stem for name in read_ids(ids))
    lacking = sorted(set(names) - set(there))
    if lacking:
        raise InputError(f"{source} lacks {len(lacking)} of the {len(names)} images of {ids}, first {lacking[0]}")
    return names


def _origin(source: Path, form: Format, names: tuple[str, ...], ids: Path | None) -> dict[str, Any]:
    """What the cache remembers of where it came from."""
    if form == "sec":
        digest = file_sha256(source)
    else:  # of the files' own digests, in the order of the images
        ending = "npy" if form == "irn" else "png"
        files = "".join(f"{name} {file_sha256(source / f'{name}.{ending}')}\n" for name in names)
        digest = hashlib.sha256(files.encode()).hexdigest()
    return {
        "method": "imported", "source_format": form, "source": source.name, "source_sha256": digest,
        "ids": None if ids is None else str(ids),
        "images_sha256": ids_sha256(names), **provenance(),
    }  # fmt: skip
