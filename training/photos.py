"""Photos that a user names: their samples, the check that none is replaced, and the list of the skipped ones."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from upath import UPath

from datamodules.errors import InputError
from datamodules.files import AnyPath, is_uri, list_folder, write_csv
from datamodules.images import IMAGE_SUFFIXES, image_names, list_images, report_unread
from datamodules.progress import print_message
from datamodules.sample import Sample, file_samples
from datamodules.tables import TABLES, path_in_table, read_rows
from datamodules.voc import MASK_FOLDERS


def forbid_replacing(samples: Sequence[Sample], targets: Iterable[Path], paths: Iterable[AnyPath] = ()) -> None:
    """Raise an InputError if a file to write is one of the images, or would be in a folder of images or of their masks.

    Masks among the images would be taken for images by the next command, and replace files beside the images. In the
    folder of the data set's own masks they would replace what people have drawn, and be scored as the truth.

    Args:
        samples: the images.
        targets: the files to write.
        paths: images and folders that a user has named; a folder may be a data set.
    """
    local = [Path(sample.image) for sample in samples if not is_uri(sample.image)]
    originals = {path.resolve() for path in local}
    folders = {path.parent for path in originals}
    folders |= {folder.resolve() for folder in {path.parent for path in local}}  # of links
    named = {Path(str(path)).resolve() for path in paths if not is_uri(path) and path.is_dir()}
    own_masks = _own_masks(folders, named)
    for target in targets:
        resolved = target.resolve()
        if resolved in originals:
            raise InputError(f"{target} would replace an image: choose another output folder")
        if resolved.parent in folders:
            raise InputError(f"{target.parent} is a folder of the images: choose another output folder")
        if resolved.parent in own_masks:
            raise InputError(f"{target.parent} is a folder of the data set's own masks: choose another output folder")


def _own_masks(folders: Collection[Path], named: Collection[Path]) -> set[Path]:
    """Return the folders in which a data set has its own masks, or would have them.

    Args:
        folders: those of the images; each may be that of a tag.
        named: those that a user has named. Of others, masks count that exist and that `predict` has not written.
    """
    found = set[Path]()
    for folder in {*folders, *named}:
        own = [folder.parent / name for name in MASK_FOLDERS] if folder.name == "JPEGImages" else [folder / "masks"]
        of_tag = folder.parent / "masks" / folder.name
        found |= {masks for masks in (*own, of_tag) if masks.is_dir() and not (masks / "classes.txt").is_file()}
        found |= {*(own if folder in named else ()), *([of_tag] if folder.parent in named else ())}
    return found


def report_skipped(output: Path, problems: Mapping[str, str], part: str = "") -> None:
    """Write ``skipped.csv``, the images that cannot be read with the reasons; without any, remove an earlier one.

    Args:
        output: the folder for the file.
        problems: see `datamodules.unreadable_images.UnreadableImages.problems`.
        part: end of the file's name, of the job that predicts a part of the images.

    Raises:
        InputError: images were skipped; the command then ends with status 1.
    """
    table = output / f"skipped{part}.csv"
    rows = [(image, problem) for image, problem in problems.items() if problem]
    if not rows:
        table.unlink(missing_ok=True)
        return
    write_csv(table, [("file", "reason"), *rows])
    count = f"{len(rows)} of {len(problems)} images were skipped"
    raise InputError(f"{count}, {table} lists them; the first: {rows[0][1]}")


def photo_samples(paths: Sequence[AnyPath]) -> list[Sample]:
    """Return samples of the given images, of those in the given folders, by name, and of those in the given tables.

    A folder without images may have folders of images, such as one for each tag; their ids are ``FOLDER/NAME`` then.

    Raises:
        InputError: an image does not exist, a folder contains none, none is given, or two have the same name.
    """
    files, ids = list[AnyPath](), dict[str, str]()
    for path in paths:
        is_folder = path.suffix.lower() not in IMAGE_SUFFIXES if is_uri(path) else path.is_dir()
        if path.suffix.lower() in TABLES:
            found = _images_of_table(path)
        else:
            found = _images_of_folder(path, paths) if is_folder else {path: None}
        if not found:
            raise InputError(f"there is no image in {path} ({', '.join(IMAGE_SUFFIXES)})")
        files += found
        ids |= {str(image): name for image, name in found.items() if name}
    if not files:
        raise InputError("no image is given: name images or a folder of them")
    return file_samples(files, ids)


def _images_of_table(path: AnyPath) -> dict[AnyPath, str | None]:
    """Return the images in the column ``image`` of a table, each with the id that the table gives it."""
    header, rows = read_rows(path)
    if "image" not in header:
        raise InputError(f"{path} has no column image with the path of each image")
    found = dict[AnyPath, str | None]()
    for location, row in rows:
        if name := str(row.get("image") or "").strip():
            image = UPath(path_in_table(path, name))
            if image in found:
                raise InputError(f"{location}: the image {name} is given twice")
            found[image] = None if row.get("id") is None else str(row["id"]).strip() or None
    return found


def _images_of_folder(path: AnyPath, given: Sequence[AnyPath]) -> dict[AnyPath, str | None]:
    """Return the images of a folder, or else those of its folders with their ids; print what is left out.

    Args:
        path: the folder.
        given: all paths that are given: folders among them are not left out.
    """
    names, files = list_folder(path)
    folders = _folders_of_images(path, names)
    found = dict[AnyPath, str | None].fromkeys(path / name for name in image_names(files))
    if not found:
        if "masks" in names:
            print_message(f"{path / 'masks'} is left out as a folder of masks: name it, too, if it contains images")
        below, deeper = list[str](), list[AnyPath]()
        for folder in folders:
            names_below, files_below = list_folder(folder)
            below += [f"{folder.name}/{name}" for name in files_below]
            deeper += _folders_of_images(folder, names_below)
        found = {path / name: str(PurePosixPath(name).with_suffix("")) for name in image_names(below)}
        files += below
        if left_out := [image for folder in deeper if folder not in given for image in _local_images(folder)]:
            problem = f"are left out because they are not directly in a folder of {path}"
            print_message(f"{len(left_out)} images {problem}, first {left_out[0]}: name their folders, too")
    elif left_out := [image for folder in folders if folder not in given for image in _local_images(folder)]:
        print_message(f"{len(left_out)} images in folders of {path} are left out: name these folders, too")
    report_unread(path, files)
    return found


def _folders_of_images(path: AnyPath, names: Iterable[str]) -> list[AnyPath]:
    """Return the folders of a folder but those that are hidden or have the name of a folder of masks."""
    return [path / name for name in names if not name.startswith(".") and name not in (*MASK_FOLDERS, "masks")]


def _local_images(folder: AnyPath) -> list[AnyPath]:
    """Return the images in a local folder; none where it cannot be read, and behind a URI, a request each."""
    with suppress(OSError):
        return [] if is_uri(folder) else [folder / name for name in list_images(folder)]
    return []
