"""Reading of annotations: masks, points, scribbles and boxes from tables, lists of ids and annotation tools' files."""

import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from upath import UPath

from datamodules.annotations.bounding_boxes import xml_boxes
from datamodules.annotations.coco_instances import coco_annotations
from datamodules.annotations.imports import cvat_masks, parquet_masks, yolo_annotations, yolo_label_files
from datamodules.annotations.label_studio import label_studio_annotations
from datamodules.annotations.shapes import (
    BACKGROUND,
    Annotation,
    Box,
    Mask,
    Point,
    Scribble,
    Shape,
    are_numbers,
    require_inside,
    valid_box,
)
from datamodules.class_names import IGNORE, class_name, mask_lut
from datamodules.errors import InputError, UnreadableError, errors_at, unknown_name
from datamodules.files import AnyPath, existing_files, is_uri, read_json, read_lines
from datamodules.image_ids import image_id
from datamodules.images import IMAGE_SUFFIXES, image_size
from datamodules.masks import RleMask, read_class_mask
from datamodules.progress import first_few, print_message
from datamodules.sample import Sample, SplitSamples, require_recorded_size
from datamodules.tables import TABLES, path_in_table, read_rows

NAMED_SOURCES = ("masks", "xml")
"""Sources of annotations that are no files: the data set's own masks, and the boxes of a VOC folder."""

TOOL_READERS = {".zip": cvat_masks, ".yaml": yolo_annotations, ".yml": yolo_annotations, ".parquet": parquet_masks}
"""Readers of the files of other tools, by suffix."""

SUFFIXES = (".txt", *TABLES, ".json", *TOOL_READERS)
"""Suffixes of files that are sources of annotations."""

FORMS = {
    "points": '["class", x, y]',
    "scribbles": '["class", [[x, y], [x, y]]]',
    "boxes": '["class", left, top, right, bottom]',
}
"""Columns of a table, and how one element of a field is written."""


def check_source(source: str) -> None:
    """Raise an InputError unless ``source`` is ``masks``, ``xml`` or the path of a file of a kind that can be read."""
    if source not in NAMED_SOURCES and PurePosixPath(source).suffix.lower() not in SUFFIXES:
        kinds = f"{', '.join(NAMED_SOURCES)}, or the path of a file ({', '.join(SUFFIXES)})"
        raise InputError(f"annotations contains {source!r}, and must contain {kinds}")


def referenced_files(source: AnyPath) -> list[str]:
    """Return the files that a file of annotations names: masks of a table, text files beside the YAML of YOLO.

    There are none where the source cannot be read.
    """
    suffix = source.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return [str(file) for file, _ in yolo_label_files(source)]
    if suffix not in TABLES:
        return []
    try:
        masks = [row.get("mask") for _, row in read_rows(source)[1]]
    except InputError:
        return []
    return [path_in_table(source, mask.strip()) for mask in masks if isinstance(mask, str) and mask.strip()]


def add_annotations(
    samples: SplitSamples, sources: Sequence[str], *, root: AnyPath, mask_classes: Sequence[str],
    classes: Sequence[str], masks: Callable[[], Mapping[str, Mask | None]],
) -> list[Sample]:  # fmt: skip
    """Return samples with the masks, points, scribbles and boxes of several sources.

    Points, scribbles and boxes of an image are collected from all sources, without repeats, and sorted. Those of
    classes that were not chosen are left out. Of several masks of an image that of the last source counts. Tags that
    are not known become the classes of the annotations; they stay unknown where the annotations name no class and leave
    pixels unknown. A mask from a file corrects known tags: they become its classes and those of the other annotations
    where it has no unknown pixel, and its classes are added otherwise. Messages list images with several masks, and
    those whose tags change.

    Args:
        samples: all samples of a split; their masks are replaced in what is returned.
        sources: each ``masks``, ``xml``, or the path or URI of a file with one of `SUFFIXES`, see
            `datamodules.base_datamodule.BaseDataModule`.
        root: folder of the data set.
        mask_classes: all classes of the data set, in the order of the indices in its masks.
        classes: the chosen classes.
        masks: returns the data set's own masks by id.

    Raises:
        InputError: a source is invalid or contains no image of the samples; a class is unknown, or is not among the
            tags of its image, which has no mask from a file.
    """
    masks_by_id: dict[str, Mask] = {}
    own, replaced = set[str](), dict[str, None]()  # images with a mask of the data set itself, and with several masks
    shapes: dict[str, set[Shape]] = {name: set() for name in samples}
    untagged: dict[str, tuple[Shape, str]] = {}  # the first annotation of an image whose class is none of its tags
    size_of, lut = cache(image_size), mask_lut(mask_classes, classes)
    for source in sources:
        is_own = source == "masks" or source.lower().endswith(".txt")
        for name, location, item in _read_source(source, samples, root, mask_classes, masks):
            if isinstance(item, Mask):
                if masks_by_id.get(name, item) != item:
                    replaced[name] = None
                masks_by_id[name] = item
                (own.add if is_own else own.discard)(name)
                continue
            shape = item._replace(name=class_name(item.name, mask_classes))
            tags = samples[name].tags
            if _is_chosen(shape, tags, location, mask_classes, classes):
                if tags is not None and shape.name not in (*tags, BACKGROUND):
                    untagged.setdefault(name, (shape, location))
                if not is_uri(image := samples[name].image):  # else when it is read: this would be a request for each
                    with errors_at(location), suppress(UnreadableError):
                        require_inside(shape, image, size_of(image))
                shapes[name].add(shape)
    for name, (shape, location) in untagged.items():
        if name not in masks_by_id or name in own:  # else the mask corrects the tags
            tags = samples[name].tags
            shown = f"the tags of the image are {', '.join(sorted(tags))}" if tags else "the image has no tag"
            raise InputError(f"{location}: there is a {type(shape).__name__.lower()} of {shape.name!r}, and {shown}")
    complete = [
        replace(
            sample, mask=masks_by_id.get(sample.id),
            points=tuple(sorted(each for each in shapes[sample.id] if isinstance(each, Point))),
            scribbles=tuple(sorted(each for each in shapes[sample.id] if isinstance(each, Scribble))),
            boxes=tuple(sorted(each for each in shapes[sample.id] if isinstance(each, Box))),
        )
        for sample in samples.values()
    ]  # fmt: skip
    with ThreadPoolExecutor() as pool:  # masks are read where tags may change
        read = list(pool.map(lambda sample: _with_tags(sample, lut, classes, corrects=sample.id not in own), complete))
    result, contents = [sample for sample, _ in read], [names for _, names in read if names is not None]
    tags = frozenset[str]().union(*(samples[name].tags or () for name in masks_by_id if name not in own))
    if contents and not any(contents) and not tags.isdisjoint(classes):
        indices = ", ".join(f"{index} for {name}" for index, name in enumerate(mask_classes[:3], start=1))
        meaning = f"0 is background, 255 is not known, and objects have the index {indices}"
        print_message(f"warning: no mask in the annotations shows a class: {meaning}")
    changed = [
        " ".join([each.id, *(f"+{tag}" for tag in sorted(new - old)), *(f"-{tag}" for tag in sorted(old - new))])
        for each, sample in zip(result, samples.values(), strict=True)
        if (old := sample.tags) is not None and (new := each.tags or frozenset()) != old
    ]
    for names, what in ((list(replaced), "have several masks, and the last one counts"), (changed, "get other tags")):
        if names:
            print_message(f"annotations: {len(names)} images {what}: {first_few(names)}")
    return result


def _read_source(
    source: str, samples: SplitSamples, root: AnyPath, known: Sequence[str],
    masks: Callable[[], Mapping[str, Mask | None]],
) -> Iterator[Annotation]:  # fmt: skip
    """Return the annotations in a source; arguments as for `add_annotations`, ``known`` are its ``mask_classes``."""
    path = UPath(source)
    suffix = path.suffix.lower()
    if source == "masks":
        return _own_masks(masks(), samples)
    if source == "xml":
        return _xml_boxes(root, samples, known)
    if suffix == ".txt":
        return _listed_masks(path, masks(), samples)
    if suffix in TABLES:
        return _table(path, samples)
    if suffix == ".json":
        content = read_json(path)
        read = label_studio_annotations if isinstance(content, list) else coco_annotations
        return read(path, content, samples, known)
    return TOOL_READERS[suffix](path, samples, known)


def _is_chosen(
    item: Shape, tags: Collection[str] | None, location: str, known: Sequence[str], classes: Sequence[str]
) -> bool:
    """Return whether an annotation is of the background or of a chosen class.

    Raises:
        InputError: there is no such class.
    """
    if item.name == BACKGROUND and not isinstance(item, Box):
        return True
    if item.name not in known and item.name not in (tags or ()):
        raise InputError(f"{location}: {unknown_name('class', item.name, known)}")
    return item.name in classes


def _with_tags(
    sample: Sample, lut: np.ndarray, classes: Sequence[str], *, corrects: bool
) -> tuple[Sample, frozenset[str] | None]:
    """Return a sample with the tags that follow from its annotations, and the classes in a mask from a file, or None.

    Args:
        sample: the sample.
        lut: uint8 (256,), see `datamodules.class_names.mask_lut`.
        classes: as for `add_annotations`.
        corrects: whether the mask comes from a file: it may change known tags.

    Raises:
        InputError: a mask cannot be read, or that of a file has another size than its image, which is local.
    """
    shapes: list[Shape] = [*sample.points, *sample.scribbles, *sample.boxes]
    known, mask = sample.tags, sample.mask
    if (known is not None and (mask is None or not corrects)) or (mask is None and not shapes):
        return sample, None
    indices = {IGNORE}
    if isinstance(mask, RleMask):
        indices = set(lut[list(mask.indices)].tolist())
        if corrects:
            require_recorded_size(mask.size, sample, f"mask {mask}")
    elif mask is not None:
        try:
            indices = set(np.unique(read_class_mask(mask, lut)).tolist())
        except UnreadableError:
            if known is None:
                raise
            return sample, None  # reading the mask raises the error, where it is needed
    shown = frozenset(classes[index - 1] for index in indices - {0, IGNORE})
    names, in_mask = shown.union(each.name for each in shapes) - {BACKGROUND}, shown if mask and corrects else None
    if known is None:
        return (replace(sample, tags=names) if names or IGNORE not in indices else sample), in_mask
    kept = known if IGNORE in indices else known.difference(classes)
    return replace(sample, tags=names | kept), in_mask


def _own_masks(masks: Mapping[str, Mask | None], samples: SplitSamples) -> Iterator[Annotation]:
    found = {name: mask for name in samples if (mask := masks.get(name)) is not None}
    if not found:
        raise InputError(f"annotations contains masks, and no image of {samples.title} has a mask")
    for name, mask in found.items():
        yield Annotation(name, "masks", mask)


def _listed_masks(path: AnyPath, masks: Mapping[str, Mask | None], samples: SplitSamples) -> Iterator[Annotation]:
    lines = [(number, line.strip()) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    names = []
    for _, line in lines:  # an id, a file, or the first word of a line, as in the lists of VOC
        texts = (line, line.split()[0])
        files = (image_id(each) for each in texts if PurePosixPath(each).suffix.lower() in IMAGE_SUFFIXES)
        names.append(next((each for each in (*texts, *files) if samples.find_id(each)), texts[1]))
    listed = samples.match_ids(names, [f"{path}, line {number}" for number, _ in lines], path)
    for name in listed:
        if name in samples:
            if (mask := masks.get(name)) is None:
                raise InputError(f"the list {path} contains {name}, and the data set has no mask of it")
            yield Annotation(name, str(path), mask)


def _xml_boxes(root: AnyPath, samples: SplitSamples, known: Sequence[str]) -> Iterator[Annotation]:
    folder = root / "Annotations"
    files = existing_files(folder, [f"{name}.xml" for name in samples])
    listed = [name for name in samples if f"{name}.xml" in files]
    if not listed:
        raise InputError(f"annotations contains xml, and {folder} has no <id>.xml of an image of {samples.title}")
    with ThreadPoolExecutor() as pool:  # the files of an object store are a request each
        boxes = list(pool.map(lambda name: xml_boxes(folder / f"{name}.xml", known), listed))
    for name, own in zip(listed, boxes, strict=True):
        for box in own:
            yield Annotation(name, str(folder / f"{name}.xml"), box)


def _table(path: AnyPath, samples: SplitSamples) -> Iterator[Annotation]:
    header, rows = read_rows(path)
    key = next((name for name in ("file", "file_name", "id") if name in header), None)
    if key is None or {"mask", *FORMS}.isdisjoint(header):
        needed = f"file, file_name or id, and of mask, {', '.join(FORMS)}"
        raise InputError(f"{path} needs a column of {needed}; its header is {','.join(header)!r}")
    locations, names, fields = [], [], []
    for location, row in rows:
        name, own = row.get(key), [(column, row.get(column)) for column in ("mask", *FORMS)]
        if not isinstance(name, str) or not name.strip():
            if not name and not any(field for _, field in own):
                continue  # an empty row of a spreadsheet
            raise InputError(f"{location} has no {key}")
        names.append(name.strip() if key == "id" else image_id(name.strip()))
        locations.append(f"{location}, image {names[-1]}")
        fields.append(own)
    coordinates = dict[str, list[float]]()  # by image
    for name, location, own in zip(samples.match_ids(names, locations, path), locations, fields, strict=True):
        for column, field in own:
            if column != "mask":
                for shape in _shapes(column, field, location):  # of images of other splits, too: all mistakes are found
                    coordinates.setdefault(name, []).extend(np.ravel(shape[1:]).tolist())
                    if name in samples:
                        yield Annotation(name, location, shape)
            elif field is not None and not isinstance(field, str):
                raise InputError(f"{location}: the mask {field!r} is not a path")
            elif name in samples and field and field.strip():
                mask = path_in_table(path, field.strip())
                if not is_uri(mask) and not Path(mask).is_file():
                    raise InputError(f"{location}: there is no mask {mask}")
                yield Annotation(name, location, mask)
    values = list(itertools.chain(*coordinates.values()))
    # one image may have a single point in its corner
    if len(coordinates) > 1 and max(values, default=0) <= 1 and any(0 < value < 1 for value in values):
        raise InputError(f"{path}: no coordinate is above 1; they must be pixels, not shares of the image")


def _shapes(column: str, field: Any, location: str) -> Iterator[Shape]:
    """Yield the points, scribbles or boxes of a field: a list, its JSON, or nothing."""
    if isinstance(field, str):
        try:
            field = json.loads(field) if field.strip() else None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{location}: {column} contains {field[:80]!r}, which is not JSON ({error})") from error
    if field is not None and not isinstance(field, list):
        form = f"a list [{FORMS[column]}, ...]"
        raise InputError(f"{location}: {column} contains {str(field)[:80]!r}, and must be {form}")
    for each in field or ():
        match each:
            case [str(name), *numbers] if column == "points" and are_numbers(numbers, 2):
                yield Point(name, *map(float, numbers))
            case [str(name), *numbers] if column == "boxes" and are_numbers(numbers, 4):
                with errors_at(location):
                    box = valid_box(name, *map(float, numbers))
                yield box
            case [str(name), [*vertices]] if column == "scribbles" and all(are_numbers(xy, 2) for xy in vertices):
                if not vertices:
                    raise InputError(f"{location}: a scribble of {name!r} has no vertex")
                yield Scribble(name, tuple((float(x), float(y)) for x, y in vertices))
            case _:
                form = f"{FORMS[column]} with finite numbers"
                raise InputError(f"{location}: {column} contains {str(each)[:80]}, and must contain {form}")
