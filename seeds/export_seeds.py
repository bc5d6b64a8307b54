"""A seed cache in the files of others."""

from pathlib import Path
from typing import get_args

import numpy as np

from datamodules.errors import InputError
from datamodules.files import new_folder
from datamodules.images import image_size
from datamodules.irn_maps import write_irn
from datamodules.masks import write_mask
from datamodules.progress import track
from datamodules.sec_cues import sec_files
from datamodules.seed_cache import NO_CUE, SeedCache
from seeds.import_seeds import Format


def export_seeds(
    cache: Path,
    output: Path,
    format: Format,  # noqa: A002 - the option's name
    *,
    root: str | None = None,
    split: str | None = None,
) -> None:
    """Write a seed cache in the files of others, with a ``classes.txt`` that names the classes 1..C.

    ``sec`` is the pickle and list that the SEC authors' code reads (theirs expects a grid of 41x41 and VOC's 20
    classes); an image's labels are the classes it has maps or cues of. ``irn`` is a ``.npy`` file an image with its
    maps, as irn's later steps read them. ``png`` is a palette PNG an image with its label map: 0 = background,
    1..C = class, 255 = no cue.

    Args:
        cache: a seed cache.
        output: the folder to be, which must not hold anything yet.
        format: sec, irn or png.
        root: irn: folder of the images, whose sizes its maps take; as recorded in the cache if not given.
        split: irn: which list of images; as recorded if not given.

    Raises:
        InputError: no such cache, one that does not fit the format (cues of several sizes, no maps), images that
            are missing, a folder that holds something. Nothing is left behind then.
    """
    if format not in get_args(Format):
        raise InputError(f"format is {format!r}, and must be one of {', '.join(get_args(Format))}")
    seeds = SeedCache(cache)
    with new_folder(output) as folder:
        if format == "sec":
            _write_sec(seeds, folder)
        elif format == "irn":
            _write_irn(seeds, folder, root, split)
        else:
            for name in track(seeds.ids, "exporting"):
                write_mask(folder / f"{name}.png", seeds.cues(name))
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in seeds.classes), encoding="utf-8")


def _write_sec(seeds: SeedCache, folder: Path) -> None:
    pictures, shapes = [], set()
    for name in track(seeds.ids, "exporting"):
        cues = seeds.cues(name)
        classes, _ = seeds.maps(name)
        labels = np.union1d(classes + 1, np.setdiff1d(cues, (0, NO_CUE)))
        pictures.append((name, labels, cues))
        shapes.add(cues.shape)
    if len(shapes) != 1:
        raise InputError(f"{seeds.path} has cues of {len(shapes)} different sizes, and SEC's file holds but one")
    for file, content in sec_files(pictures).items():
        (folder / file).write_bytes(content)


def _write_irn(seeds: SeedCache, folder: Path, root: str | None, split: str | None) -> None:
    from datamodules.datamodule import TagDataModule, covered
    from seeds.data import data_settings

    settings = data_settings(seeds.inputs.get("data"), seeds.classes, root=root, train_split=split)
    data = TagDataModule(**settings)
    photos = data.photos(data.hparams["train_split"], labels=False, masks=False)
    photos = covered(seeds, photos)
    some = False
    pairs = list(zip(photos.ids, photos.images, strict=True))
    for name, path in track(pairs, "exporting"):
        classes, maps = seeds.maps(name)
        some |= len(maps) > 0
        write_irn(folder / f"{name}.npy", classes, maps, image_size(path))
    if not some:
        raise InputError(f"{seeds.path} holds cues without maps, and irn's files hold maps")
