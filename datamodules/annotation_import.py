"""Annotations from Label Studio, CVAT, YOLO and Hugging Face data sets; those of COCO are in `annotation_files`.

Each reader yields the annotations of the images that are among the samples. Labels that are no class of the data set
become 255 in masks. In masks of regions a smaller region covers a larger one, and what no region covers is background.
"""

import base64
import io
import itertools
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import cv2
import numpy as np
import yaml
from pycocotools import mask as coco_mask
from upath import UPath

from datamodules.annotation_export import ID_KEY
from datamodules.annotations import BACKGROUND, Found, LabelledBox, Point
from datamodules.brush_rle import decode_brush
from datamodules.class_names import IGNORE, MAX_CLASSES
from datamodules.coco_instances import instance_rle
from datamodules.errors import InputError
from datamodules.files import AnyPath, read_bytes
from datamodules.images import IMAGE_SUFFIXES, image_size, open_image
from datamodules.masks import RleMask
from datamodules.sample import Sample, image_id, match_ids

Samples = Mapping[str, Sample]


def label_studio_annotations(
    path: AnyPath, tasks: Sequence[Any], samples: Samples, known: Sequence[str], where: str
) -> Found:
    """Yield the annotations of Label Studio's tasks, exported as JSON.

    Brush masks and polygons are a mask, rectangles are boxes, key points are points. Of several annotations of an image
    the last one counts. An annotation with an empty result is a mask of background alone. Predictions do not count.

    Args:
        path: The JSON, for messages.
        tasks: Its content.
        samples: By id.
        known: All classes of the data set.
        where: Name of the split in messages.

    Raises:
        InputError: A task is invalid, none is annotated, none of the labels is a class, or a region is of another kind.
    """
    latest = _latest_results(path, tasks)
    matching = match_ids(list(latest), [place for _, place, _ in latest.values()], samples, path, where)
    labels = set[str]()
    for name, (_, place, result) in zip(matching, latest.values(), strict=True):
        regions, sizes = [], set[tuple[int, int]]()
        for each in _joined_regions(result):
            try:
                label, size, region = _read_region(each)
            except InputError as error:
                raise InputError(f"{place}: {error}.") from error
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise InputError(f"{place}: a region of the type {each.get('type')} is invalid ({error!r}).") from error
            if label is not None:
                labels.add(label)
            if isinstance(region, dict):
                regions.append((mask_index(label, known), region))
                sizes.add(size)
            elif region and name in samples and (label in known or (label == BACKGROUND and isinstance(region, Point))):
                yield name, place, region
        if len(sizes) > 1:
            raise InputError(f"{place}: its regions have the original sizes {' and '.join(map(str, sorted(sizes)))}.")
        if name in samples and regions:
            yield name, place, RleMask.from_regions(f"of {place}", sizes.pop(), regions)
        elif name in samples and not result:
            yield name, place, RleMask(f"of {place}", image_size(samples[name].image), b"", ())
    if labels and labels.isdisjoint((*known, BACKGROUND)):
        found = f"{', '.join(sorted(labels)[:5])}; there are {', '.join(known[:20])}"
        raise InputError(f"{path}: none of its labels is a class of the data set: {found}.")


def _latest_results(path: AnyPath, tasks: Sequence[Any]) -> dict[str, tuple[str, str, list[Any]]]:
    """Return the last annotation of each image in Label Studio's tasks: its time, place for messages, and result."""
    latest: dict[str, tuple[str, str, list[Any]]] = {}
    for number, task in enumerate(tasks, 1):
        place = f"{path}, task {task.get('id', number) if isinstance(task, dict) else number}"
        if not isinstance(task, dict) or not isinstance(annotations := task.get("annotations"), list):
            raise InputError(f"{place} has no list of annotations: export the project of Label Studio as JSON.")
        name = _task_image(task, place)
        for each in annotations:
            result = each.get("result") if isinstance(each, dict) else None
            if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
                raise InputError(f"{place} has an annotation without a result.")
            changed = str(each.get("updated_at") or each.get("created_at") or "")
            if not each.get("was_cancelled") and (name not in latest or changed >= latest[name][0]):
                latest[name] = changed, f"{place}, image {name}", result
    if not latest:
        raise InputError(f"{path} contains no annotation of any image.")
    return latest


def _task_image(task: Mapping[str, Any], place: str) -> str:
    """Return the id of a task's image: that of our own export, or the image's path without suffix.

    Raises:
        InputError: The task has no image, or several.
    """
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    if isinstance(name := data.get(ID_KEY), str):
        return name
    files = {key: _file_of(value) for key, value in data.items() if isinstance(value, str)}
    files = {key: file for key, file in files.items() if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES}
    if len(files) > 1 and "image" not in files:
        raise InputError(f"{place} has several images, {', '.join(files.values())}: name one of them 'image'.")
    file = files.get("image") or next(iter(files.values()), None)
    if file is None:
        raise InputError(
            f"{place} has no image: none of its data is the path of an image ({', '.join(IMAGE_SUFFIXES)})."
        )
    return image_id(file)


def _file_of(value: str) -> str:
    """Return the path in a URL of Label Studio; an uploaded file has eight digits and a hyphen before its name."""
    url = urlsplit(value) if value.startswith(("http:", "https:", "/data/", "/tasks/")) else None
    query = parse_qs(url.query) if url else {}
    if url is None:  # a path, or the URI of an object store, in which ? and # may be parts of names
        return value.replace("\\", "/")
    if url.path.endswith("/local-files/"):
        return query.get("d", [""])[0].replace("\\", "/")
    if "fileuri" in query:
        with suppress(ValueError):
            return base64.b64decode(query["fileuri"][0]).decode()
    path = unquote(url.path)
    return re.sub(r"[0-9a-f]{8}-(?=[^/]*$)", "", path, count=1) if "/data/upload/" in path else path


def _joined_regions(result: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the entries of a result with the values of all entries of the same region: its shape, labels, choices."""
    joined: dict[Any, dict[str, Any]] = {}
    for number, each in enumerate(result):
        value = each.get("value")
        if isinstance(value, dict):
            key = each.get("id", number)
            first = joined.setdefault(str(key), {**each, "value": {}})
            first["value"] = first["value"] | value
    return list(joined.values())


def _read_region(each: Mapping[str, Any]) -> tuple[str | None, Any, dict[str, Any] | Point | LabelledBox | None]:
    """Return a region's label, the image's size (H, W), and the region: run lengths, a point or a box.

    The label is None where nobody has chosen one. There is no region where the entry has neither a shape nor a label.
    """
    value = each["value"]
    named = [name for key, names in value.items() if key.endswith("labels") for name in names]
    if len(named) > 1 or not all(isinstance(name, str) for name in named):
        raise InputError(f"a region has the labels {named}, and must have one")
    label = named[0] if named else None
    shape = {key for key in ("rle", "points", "x", "y", "width", "height") if key in value}
    if not shape and not named:
        return None, None, None
    height, width = each["original_height"], each["original_width"]
    if not all(type(side) is int and 0 < side < 1 << 20 for side in (height, width)):
        raise InputError(f"a region has the original size {height} x {width}")
    if each.get("image_rotation"):
        raise InputError("the image is rotated in Label Studio, which is not supported")
    region: dict[str, Any] | Point | LabelledBox
    if "rle" in shape:
        region = encode_mask(decode_brush(value["rle"], height, width))
    elif "points" in shape and "vertices" not in value:
        pairs = [(x * width / 100, y * height / 100) for x, y in value["points"]]
        region = instance_rle([list(itertools.chain(*pairs))], height, width) or encode_mask(np.zeros((height, width)))
    elif {"x", "y"} <= shape and not {"radiusX", "radiusY", "text"} & value.keys():
        x, y = value["x"] * width / 100, value["y"] * height / 100
        region = Point(label or "", x, y)
        if "height" in shape:
            if value.get("rotation"):
                raise InputError("a rectangle is rotated: draw a polygon in its place")
            sides = x, y, x + value["width"] * width / 100, y + value["height"] * height / 100
            region = valid_box(label or "", *sides)
        if not (-1e9 < x < 1e9 and -1e9 < y < 1e9):
            raise InputError(f"a point is at {x}, {y}")
    else:
        raise InputError(f"a region of the type {each.get('type')} is no brush mask, polygon, rectangle or key point")
    return label, (height, width), region


def valid_box(label: str, left: float, top: float, right: float, bottom: float) -> LabelledBox:
    """Return a box; an InputError where it is empty or its sides are no finite numbers."""
    if not (-1e9 < left < right < 1e9 and -1e9 < top < bottom < 1e9):
        raise InputError(f"a box of {label!r} is empty: left {left:g}, top {top:g}, right {right:g}, bottom {bottom:g}")
    return LabelledBox(label, left, top, right, bottom)


def mask_index(label: str | None, known: Sequence[str]) -> int:
    """Return the index in masks of a tool's label: 0 for `BACKGROUND`, 255 for None and one that is no class."""
    return 0 if label == BACKGROUND else known.index(label) + 1 if label in known else IGNORE


def encode_mask(pixels: np.ndarray) -> dict[str, Any]:
    """Return the run lengths of a mask, bool (H, W), as pycocotools compresses them."""
    return dict(coco_mask.encode(np.asfortranarray(pixels, np.uint8)))


def label_map_to_rle(name: str, labels: np.ndarray) -> RleMask:
    """Return a label map, uint8 (H, W), as a mask in run lengths; ``name`` is its name in messages."""
    regions = [(int(index), encode_mask(labels == index)) for index in np.unique(labels) if index]
    height, width = labels.shape
    return RleMask.from_regions(name, (height, width), regions)


def cvat_masks(path: AnyPath, samples: Samples, known: Sequence[str], where: str) -> Found:
    """Yield the masks of an archive in VOC's layout, as CVAT exports "Segmentation mask 1.1".

    ``labelmap.txt`` lists the colour of each label, ``SegmentationClass`` contains a PNG for each image.

    Args:
        path: The zip file.
        samples: By id.
        known: All classes of the data set.
        where: Name of the split in messages.

    Raises:
        InputError: It is no such archive, or a mask has a colour that is not listed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_bytes(path))) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
            files = {name: archive.read(name) for name in names if name.endswith((".png", "labelmap.txt"))}
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as a zip file: {error}.") from error
    masks = {name.partition("SegmentationClass/")[2]: name for name in files if "SegmentationClass/" in name}
    listed = [content for name, content in files.items() if name.endswith("labelmap.txt")]
    if len(listed) != 1 or not masks:
        problem = f"{len(listed)} files labelmap.txt and {len(masks)} masks in SegmentationClass"
        raise InputError(f'{path} contains {problem}: export one task or project as "Segmentation mask 1.1".')
    colours: dict[int, int] = {}  # index of each colour
    for line in listed[0].decode("utf-8-sig", "replace").splitlines():
        if line.strip() and not line.startswith("#"):
            label, colour, *_ = [*line.split(":"), ""]
            try:
                red, green, blue = bytes(map(int, colour.split(",")))
            except ValueError as error:
                raise InputError(f"{path}: the line {line!r} of labelmap.txt is not label:red,green,blue::.") from error
            index = mask_index(label, known)
            if colours.setdefault(red << 16 | green << 8 | blue, index) != index or (
                not (red or green or blue) and index
            ):
                raise InputError(f"{path}: the colour of {label!r} in labelmap.txt is that of another label.")
    colours.setdefault(0, 0)  # the background need not be listed
    if not any(0 < index < IGNORE for index in colours.values()):
        raise InputError(
            f"{path}: none of the labels of labelmap.txt is a class of the data set: {', '.join(known[:20])}."
        )
    ids = [name.removesuffix(".png") for name in masks]
    matching = match_ids(ids, [f"{path}, {name}" for name in masks.values()], samples, path, where)
    for name, member in zip(matching, masks.values(), strict=True):
        if name not in samples:
            continue
        place = f"{path}, {member}"
        with open_image(io.BytesIO(files[member]), place) as image:
            red, green, blue = np.moveaxis(np.array(image.convert("RGB")).astype(np.int32), -1, 0)
        found, inverse = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
        if unlisted := next((key for key in found.tolist() if key not in colours), None):
            colour = f"{unlisted >> 16},{unlisted >> 8 & 255},{unlisted & 255}"
            raise InputError(f"{place} has pixels of the colour {colour}, which labelmap.txt does not list.")
        labels = np.array([colours[key] for key in found.tolist()], np.uint8)[inverse].reshape(red.shape)
        yield name, place, label_map_to_rle(f"of {place}", labels)


def yolo_annotations(path: AnyPath, samples: Samples, known: Sequence[str], where: str) -> Found:
    """Yield the annotations of YOLO's text files: polygons are a mask, lines of four numbers are boxes.

    The files are those in folders named ``labels`` beside or below the YAML. An image with an empty file is background;
    but where its tags name an object, it counts as not annotated.

    Args:
        path: ``data.yaml`` with the ``names`` of the classes.
        samples: By id.
        known: All classes of the data set.
        where: Name of the split in messages.

    Raises:
        InputError: The YAML has no names, none is a class, there are no files, or a line is invalid.
    """
    names = _yolo_names(path)
    if set(names.values()).isdisjoint(known):
        found = f"{', '.join(map(str, list(names.values())[:5]))}; there are {', '.join(known[:20])}"
        raise InputError(f"{path}: none of its names is a class of the data set: {found}.")
    ids, files = [], []
    folder = UPath(path.parent)
    for text in folder.rglob("*.txt"):
        folders = text.relative_to(folder).parts
        if "labels" in folders[:-1] and folders.index("labels") <= 1 and text.is_file():  # not runs/…/predict/labels
            ids.append(image_id("/".join(folders[folders.index("labels") + 1 :])))
            files.append(text)
    if not files:
        raise InputError(f"there is no folder labels with text files beside {path}.")
    for name, file in zip(match_ids(ids, list(map(str, files)), samples, path, where), files, strict=True):
        if name not in samples:
            continue
        height, width = image_size(samples[name].image)
        mask = np.zeros((height, width), np.uint8)
        boxes, polygons = [], []
        for place, label, numbers in _yolo_lines(file, names):
            if len(numbers) == 4:
                x, y, w, h = numbers
                sides = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
                try:
                    boxes.append((place, valid_box(label, *sides)))
                except InputError as error:
                    raise InputError(f"{place}: {error}.") from error
            else:
                vertices = np.floor(np.array(numbers).reshape(-1, 2) * (width, height)).astype(np.int32)
                polygons.append((float(cv2.contourArea(vertices)), mask_index(label, known), vertices))
        for _, index, vertices in sorted(polygons, key=lambda polygon: (-polygon[0], polygon[1])):
            cv2.fillPoly(mask, [vertices], index)
        if polygons or not (boxes or samples[name].tags):
            yield name, str(file), label_map_to_rle(f"of {file}", mask)
        for place, box in boxes:
            if box.name in known:
                yield name, place, box


def _yolo_names(path: AnyPath) -> dict[str, str]:
    """Return the names of the classes in a ``data.yaml`` by their numbers."""
    try:
        content = yaml.safe_load(read_bytes(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}.") from error
    content = content if isinstance(content, dict) else {}
    names = content.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{path} has no names of classes, as the data.yaml of a YOLO data set has.")
    if "kpt_shape" in content:
        raise InputError(f"{path} is of a data set of poses (kpt_shape), and must be one of segmentation or detection.")
    return {str(key): name for key, name in names.items()}


def _yolo_lines(file: AnyPath, names: Mapping[str, str]) -> Iterator[tuple[str, str, list[float]]]:
    """Yield place for messages, name of the class, and coordinates of each line of a text file of YOLO."""
    for number, line in enumerate(read_bytes(file).decode("utf-8-sig", "replace").splitlines(), 1):
        words, place = line.split(), f"{file}, line {number}"
        if not words:
            continue
        try:
            label, numbers = names[str(int(words[0]))], [float(word) for word in words[1:]]
        except (KeyError, ValueError) as error:
            raise InputError(f"{place}: {line[:40]!r} is not the number of a class and coordinates.") from error
        if not all(-1 <= each <= 2 for each in numbers) or len(numbers) % 2 or len(numbers) < 4:
            raise InputError(f"{place}: the coordinates are no pairs of fractions of the image's sides.")
        yield place, label, numbers


def parquet_masks(path: AnyPath, samples: Samples, known: Sequence[str], where: str) -> Found:
    """Yield the masks of a Parquet file of a Hugging Face data set.

    Its columns are ``id`` or ``file_name``, and ``mask``: PNGs of class indices, 0 for background. The names of the
    classes are those of the column ``tags`` in the data set's features, else those of our data set.

    Args:
        path: The file.
        samples: By id.
        known: All classes of the data set.
        where: Name of the split in messages.

    Raises:
        InputError: It is no such file, a mask is invalid, or pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise InputError(f"{path} needs `pip install 'tag2mask[huggingface]'`.") from error
    try:
        file = ParquetFile(io.BytesIO(read_bytes(path)))
        schema = file.schema_arrow
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        key = next((name for name in ("id", "file_name") if name in texts), None)
        if key is None or "mask" not in schema.names:
            raise InputError(
                f"{path} needs a column id or file_name of texts, and mask; it has {', '.join(schema.names)}."
            )
        rows = file.read([key, "mask"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}.") from error
    rows = [row for row in rows if row["mask"] and row["mask"] != {"bytes": None, "path": None}]
    names = _tag_names(schema.metadata or {}) or list(known)
    names = names[1:] if names[0] == BACKGROUND else names
    if len(names) > MAX_CLASSES or set(names).isdisjoint(known):
        found = f"{', '.join(names[:5])}; there are {', '.join(known[:20])}"
        raise InputError(f"{path}: none of the {len(names)} names of its tags is a class of the data set: {found}.")
    indices = [0, *(mask_index(name, known) for name in names)]
    ids = [str(row[key]) if key == "id" else image_id(str(row[key])) for row in rows]
    matching = match_ids(ids, [f"{path}, image {name}" for name in ids], samples, path, where)
    for name, row in zip(matching, rows, strict=True):
        if name in samples:
            place, mask = f"{path}, image {name}", row["mask"]
            content = mask.get("bytes") if isinstance(mask, dict) else mask
            if not isinstance(content, bytes):
                raise InputError(f"{place}: the mask is no image.")
            with open_image(io.BytesIO(content), f"of {place}") as image:
                mode, labels = image.mode, np.array(image)
            if mode not in ("P", "L"):
                raise InputError(f"{place}: the mask contains {mode} values, not class indices.")
            if invalid := next((each for each in np.unique(labels).tolist() if len(names) < each < IGNORE), None):
                raise InputError(f"{place}: the mask contains the index {invalid}, and there are {len(names)} classes.")
            table = np.full(256, IGNORE, np.uint8)
            table[: len(indices)] = indices
            yield name, place, label_map_to_rle(f"of {place}", table[labels])


def _tag_names(metadata: Mapping[bytes, bytes]) -> list[str]:
    """Return the names of the column ``tags``, a list of ClassLabel, in the features that `datasets` stores."""
    try:
        tags = json.loads(metadata[b"huggingface"])["info"]["features"]["tags"]
        names = (tags.get("feature") or tags)["names"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    return list(map(str, names))
