"""Annotations from CVAT, YOLO and Hugging Face data sets.

Each reader yields the annotations of the images that are among the samples. Labels that are no class of the data set
become 255 in masks. In masks of regions a smaller region covers a larger one, and what no region covers is background.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import yaml
from upath import UPath

from datamodules.annotations.shapes import BACKGROUND, Annotation, check_labels, mask_index, valid_box
from datamodules.class_names import MAX_CLASSES, class_name, mask_lut
from datamodules.errors import InputError, UnreadableError, errors_at, first_line, import_extra
from datamodules.files import AnyPath, is_uri, read_bytes
from datamodules.image_ids import image_id
from datamodules.images import image_size, open_image
from datamodules.masks import RleMask, decode_mask, map_indices
from datamodules.sample import SplitSamples


def cvat_masks(path: AnyPath, samples: SplitSamples, known: Sequence[str]) -> Iterator[Annotation]:
    """Yield the masks of an archive in VOC's layout, as CVAT exports "Segmentation mask 1.1".

    ``labelmap.txt`` lists the colour of each label, ``SegmentationClass`` contains a PNG for each image.

    Args:
        path: the zip file.
        samples: the images of the split.
        known: all classes of the data set.

    Raises:
        InputError: it is no such archive, or a mask has a colour that is not listed.
    """
    with ExitStack() as stack:
        with _zip_errors(path):
            file = io.BytesIO(read_bytes(path)) if is_uri(path) else stack.enter_context(Path(str(path)).open("rb"))
            archive = stack.enter_context(zipfile.ZipFile(file))
            files = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
            labelmaps = [archive.read(name) for name in files if name.endswith("labelmap.txt")]
        members = [name for name in files if "SegmentationClass/" in name and name.endswith(".png")]
        if len(labelmaps) != 1 or not members:
            problem = f"{len(labelmaps)} files labelmap.txt and {len(members)} masks in SegmentationClass"
            raise InputError(f'{path} contains {problem}: export one task or project as "Segmentation mask 1.1"')
        colours = _read_labelmap(labelmaps[0].decode("utf-8-sig", "replace"), path, known)
        ids = [member.partition("SegmentationClass/")[2].removesuffix(".png") for member in members]
        matching = samples.match_ids(ids, [f"{path}, {member}" for member in members], path)
        for name, member in zip(matching, members, strict=True):
            if name not in samples:
                continue
            location = f"{path}, {member}"
            with _zip_errors(path):
                content = archive.read(member)
            with open_image(io.BytesIO(content), location) as image:
                red, green, blue = np.moveaxis(np.array(image.convert("RGB")).astype(np.int32), -1, 0)
            found, inverse = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
            if unlisted := next((key for key in found.tolist() if key not in colours), None):
                colour = f"{unlisted >> 16},{unlisted >> 8 & 255},{unlisted & 255}"
                raise InputError(f"{location} has pixels of the colour {colour}, which labelmap.txt does not list")
            label_map = np.array([colours[key] for key in found.tolist()], np.uint8)[inverse].reshape(red.shape)
            yield Annotation(name, location, RleMask.from_label_map(f"of {location}", label_map))


@contextmanager
def _zip_errors(path: AnyPath) -> Iterator[None]:
    """Turn the errors of `zipfile` into an InputError that names the file."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as a zip file: {error}") from error


def _read_labelmap(text: str, path: AnyPath, known: Sequence[str]) -> dict[int, int]:
    """Return the index in masks of each colour in CVAT's ``labelmap.txt``; a colour is red << 16 | green << 8 | blue.

    Raises:
        InputError: a line is malformed, two labels have one colour, or no label is a class of the data set.
    """
    labels, colours = set[str](), dict[int, int]()
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            label, colour, *_ = [*line.split(":"), ""]
            try:
                red, green, blue = bytes(map(int, colour.split(",")))
            except ValueError as error:
                raise InputError(f"{path}: the line {line!r} of labelmap.txt is not label:red,green,blue::") from error
            name = class_name(label, known)
            index = mask_index(name, known)
            if colours.setdefault(red << 16 | green << 8 | blue, index) != index or (
                not (red or green or blue) and index
            ):
                raise InputError(f"{path}: the colour of {label!r} in labelmap.txt is that of another label")
            labels.add(name)
    colours.setdefault(0, 0)  # the background need not be listed
    check_labels(labels, known, path, "the labels of labelmap.txt")
    return colours


def yolo_annotations(path: AnyPath, samples: SplitSamples, known: Sequence[str]) -> Iterator[Annotation]:
    """Yield the annotations of YOLO's text files: polygons are a mask, lines of four numbers are boxes.

    The files are those in folders named ``labels`` beside or below the YAML. An image with an empty file is background;
    but where its tags name an object, it counts as not annotated. The pixels below a polygon's outline belong to it, as
    in Ultralytics' reader.

    Args:
        path: ``data.yaml`` with the ``names`` of the classes.
        samples: the images of the split.
        known: all classes of the data set.

    Raises:
        InputError: the YAML has no names, none is a class, there are no files, or a line is invalid.
    """
    names = {key: class_name(name, known) for key, name in _yolo_names(path).items()}
    check_labels(names.values(), known, path, "its names")
    texts = yolo_label_files(path)
    if not texts:
        raise InputError(f"there is no folder labels with text files beside {path}")
    ids, files = [image_id(name) for _, name in texts], [file for file, _ in texts]
    for name, file in zip(samples.match_ids(ids, list(map(str, files)), path), files, strict=True):
        if name not in samples:
            continue
        try:
            height, width = image_size(samples[name].image)
        except UnreadableError:  # `unreadable_images.readable` leaves it out
            continue
        mask = np.zeros((height, width), np.uint8)
        boxes, polygons = [], []
        for location, label, numbers in _yolo_lines(file, names):
            if len(numbers) == 4:
                x, y, w, h = numbers
                sides = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
                with errors_at(location):
                    boxes.append((location, valid_box(label, *sides)))
            else:
                vertices = np.floor(np.array(numbers).reshape(-1, 2) * (width, height)).astype(np.int32)
                polygons.append((float(cv2.contourArea(vertices)), mask_index(label, known), vertices))
        for _, index, vertices in sorted(polygons, key=lambda polygon: (-polygon[0], polygon[1])):
            cv2.fillPoly(mask, [vertices], index)
        if polygons or not (boxes or samples[name].tags):
            yield Annotation(name, str(file), RleMask.from_label_map(f"of {file}", mask))
        for location, box in boxes:
            if box.name in known:
                yield Annotation(name, location, box)


def yolo_label_files(path: AnyPath) -> list[tuple[AnyPath, str]]:
    """Return the text files in folders named ``labels`` beside or below a ``data.yaml``.

    Returns:
        For each file its path, and its path relative to the folder ``labels``.
    """
    folder, found = UPath(path.parent), list[tuple[AnyPath, str]]()
    for text in folder.rglob("*.txt"):
        folders = text.relative_to(folder).parts
        if "labels" in folders[:-1] and folders.index("labels") <= 1 and text.is_file():  # not runs/…/predict/labels
            found.append((text, "/".join(folders[folders.index("labels") + 1 :])))
    return found


def _yolo_names(path: AnyPath) -> dict[str, str]:
    """Return the names of the classes in a ``data.yaml`` by their numbers."""
    try:
        content = yaml.safe_load(read_bytes(path))
    except (OSError, yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist
        raise InputError(f"{path} cannot be read as YAML: {first_line(error)}") from error
    content = content if isinstance(content, dict) else {}
    names = content.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{path} has no names of classes, as the data.yaml of a YOLO data set has")
    if "kpt_shape" in content:
        raise InputError(f"{path} is of a data set of poses (kpt_shape), and must be one of segmentation or detection")
    return {str(key): name for key, name in names.items()}


def _yolo_lines(file: AnyPath, names: Mapping[str, str]) -> Iterator[tuple[str, str, list[float]]]:
    """Yield location for messages, name of the class, and coordinates of each line of a text file of YOLO."""
    for number, line in enumerate(read_bytes(file).decode("utf-8-sig", "replace").splitlines(), 1):
        words, location = line.split(), f"{file}, line {number}"
        if not words:
            continue
        try:
            label, numbers = names[str(int(words[0]))], [float(word) for word in words[1:]]
        except (KeyError, ValueError) as error:
            raise InputError(f"{location}: {line[:40]!r} is not the number of a class and coordinates") from error
        if not all(-1 <= each <= 2 for each in numbers) or len(numbers) % 2 or len(numbers) < 4:
            raise InputError(f"{location}: the coordinates are no pairs of fractions of the image's sides")
        yield location, label, numbers


def parquet_masks(path: AnyPath, samples: SplitSamples, known: Sequence[str]) -> Iterator[Annotation]:
    """Yield the masks of a Parquet file of a Hugging Face data set.

    Its columns are ``id`` or ``file_name``, and ``mask``: PNGs of class indices, 0 for background. The names of the
    classes are those of the column ``tags`` in the data set's features, else those of our data set.

    Args:
        path: the file.
        samples: the images of the split.
        known: all classes of the data set.

    Raises:
        InputError: it is no such file, a mask is invalid, or pyarrow is not installed.
    """
    import_extra("pyarrow", "huggingface", str(path))
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(io.BytesIO(read_bytes(path)))
        schema = file.schema_arrow
        kinds = (pa.string(), pa.large_string(), pa.string_view())
        texts = [field.name for field in schema if field.type in kinds]
        key = next((name for name in ("id", "file_name") if name in texts), None)
        if key is None or "mask" not in schema.names:
            raise InputError(
                f"{path} needs a column id or file_name of texts, and mask; it has {', '.join(schema.names)}"
            )
        rows = file.read([key, "mask"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {first_line(error)}") from error
    rows = [row for row in rows if row["mask"] and row["mask"] != {"bytes": None, "path": None}]
    names = _tag_names(schema.metadata or {}) or list(known)
    names = [class_name(name, known) for name in names]
    names = names[1:] if names[0] == BACKGROUND else names
    check_labels(names, known, path, "the names of its tags")
    if len(names) > MAX_CLASSES:
        raise InputError(f"{path} has {len(names)} names of tags, and an 8-bit mask has at most {MAX_CLASSES} classes")
    lut = mask_lut(names, known)
    ids = [str(row[key]) if key == "id" else image_id(str(row[key])) for row in rows]
    matching = samples.match_ids(ids, [f"{path}, image {name}" for name in ids], path)
    for name, row in zip(matching, rows, strict=True):
        if name in samples:
            location, mask = f"{path}, image {name}", row["mask"]
            content = mask.get("bytes") if isinstance(mask, dict) else mask
            if not isinstance(content, bytes):
                raise InputError(f"{location}: the mask is no image")
            label_map = map_indices(decode_mask(io.BytesIO(content), f"of {location}"), lut, f"of {location}")
            yield Annotation(name, location, RleMask.from_label_map(f"of {location}", label_map))


def _tag_names(metadata: Mapping[bytes, bytes]) -> list[str]:
    """Return the names of the column ``tags``, a list of ClassLabel, in the features that `datasets` stores."""
    try:
        tags = json.loads(metadata[b"huggingface"])["info"]["features"]["tags"]
        return list(map(str, (tags.get("feature") or tags)["names"]))
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
