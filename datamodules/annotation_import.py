"""Annotations from Label Studio, CVAT, YOLO and Hugging Face data sets; those of COCO are in `annotation_files`.

Each reader yields the annotations of the images that are among the samples. Labels that are no class of the data set
become 255 in masks. In masks of regions a smaller region covers a larger one, and what no region covers is background.
"""

import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import yaml
from pycocotools import mask as coco_mask
from upath import UPath

from datamodules.annotations import BACKGROUND, Found, LabelledBox, Point
from datamodules.brush_rle import decode_brush
from datamodules.class_names import IGNORE
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
        regions, size = [], None
        for each in result:
            if not isinstance(each, dict) or not str(each.get("type")).endswith("labels"):
                continue  # choices, texts and relations
            try:
                label, size, region = _studio_region(each)
            except InputError as error:
                raise InputError(f"{place}: {error}.") from error
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise InputError(f"{place}: a region of the type {each['type']} is invalid ({error!r}).") from error
            labels.add(label)
            if isinstance(region, dict):
                regions.append((class_index(label, known), region))
            elif label in known and name in samples:
                yield name, place, region
        if name in samples and regions and size:
            yield name, place, RleMask.of_regions(f"of {place}", size, regions)
        elif name in samples and not result:
            yield name, place, RleMask(f"of {place}", image_size(samples[name].image), b"", ())
    if labels and labels.isdisjoint(known):
        found = ", ".join(sorted(labels)[:5])
        raise InputError(
            f"{path}: none of its labels is a class of the data set: {found}; there are {', '.join(known[:20])}."
        )


def _latest_results(path: AnyPath, tasks: Sequence[Any]) -> dict[str, tuple[str, str, list[Any]]]:
    """Return time, place for messages, and result of the last annotation of each image in Label Studio's tasks."""
    latest: dict[str, tuple[str, str, list[Any]]] = {}  # time, place and result by image
    for number, task in enumerate(tasks, 1):
        place = f"{path}, task {task.get('id', number) if isinstance(task, dict) else number}"
        if not isinstance(task, dict) or not isinstance(annotations := task.get("annotations"), list):
            raise InputError(f"{place} has no list of annotations: export the project of Label Studio as JSON.")
        name = _task_image(task, place)
        for each in annotations:
            if not isinstance(each, dict) or not isinstance(each.get("result"), list):
                raise InputError(f"{place} has an annotation without a result.")
            changed = str(each.get("updated_at") or each.get("created_at") or "")
            if not each.get("was_cancelled") and (name not in latest or changed >= latest[name][0]):
                latest[name] = changed, f"{place}, image {name}", each["result"]
    if not latest:
        raise InputError(f"{path} contains no annotation of any image.")
    return latest


def _task_image(task: Mapping[str, Any], place: str) -> str:
    """Return the id of a task's image: its own ``id`` as `annotation_export` writes it, or the image's path.

    Label Studio puts eight digits before the name of an uploaded file.
    """
    data = task.get("data")
    values = list(data.values()) if isinstance(data, dict) else []
    if isinstance(data, dict) and isinstance(name := data.get("id"), str):
        return name
    for value in values:
        url = urlsplit(value) if isinstance(value, str) else urlsplit("")
        file = next(iter(parse_qs(url.query).get("d", ())), "") or (url.path if url.scheme else str(value))
        if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES:
            folder, _, last = file.rpartition("/")
            prefix, dash, rest = last.partition("-")
            uploaded = "data/upload" in folder and dash and len(prefix) == 8
            return image_id(rest if uploaded else file)
    raise InputError(f"{place} has no image: none of its data is the path of an image ({', '.join(IMAGE_SUFFIXES)}).")


def _studio_region(each: Mapping[str, Any]) -> tuple[str, tuple[int, int], dict[str, Any] | Point | LabelledBox]:
    """Return a region's label, the image's size (H, W), and the region: run lengths, a point or a box."""
    kind, value, height, width = each["type"], each["value"], each["original_height"], each["original_width"]
    if not all(type(side) is int and 0 < side < 1 << 20 for side in (height, width)):
        raise InputError(f"a region has the original size {height} x {width}")
    if each.get("image_rotation"):
        raise InputError("the image is rotated in Label Studio, which is not supported")
    label = (value.get(kind) or value["labels"])[0]
    if not isinstance(label, str):
        raise InputError(f"a region has the label {label!r}")
    region: dict[str, Any] | Point | LabelledBox
    if kind == "brushlabels":
        region = pixels_rle(decode_brush(value["rle"], height, width))
    elif kind == "polygonlabels":
        corners = [
            side * share / 100 for point in value["points"] for side, share in zip((width, height), point, strict=True)
        ]
        region = instance_rle([corners], height, width) or pixels_rle(np.zeros((height, width), bool))
    elif kind in ("keypointlabels", "rectanglelabels"):
        x, y = value["x"] * width / 100, value["y"] * height / 100
        region = Point(label, x, y)
        if kind == "rectanglelabels":
            region = LabelledBox(label, x, y, x + value["width"] * width / 100, y + value["height"] * height / 100)
    else:
        raise InputError(f"a region is of the type {kind}: draw brush masks, polygons, rectangles or key points")
    return label, (height, width), region


def class_index(label: str, known: Sequence[str]) -> int:
    """Return the index in masks of a tool's label: 0 for `BACKGROUND`, 255 for one that is no class."""
    return 0 if label == BACKGROUND else known.index(label) + 1 if label in known else IGNORE


def pixels_rle(pixels: np.ndarray) -> dict[str, Any]:
    """Return the run lengths of a mask, bool (H, W), as pycocotools compresses them."""
    return dict(coco_mask.encode(np.asfortranarray(pixels, np.uint8)))


def labels_rle(name: str, labels: np.ndarray) -> RleMask:
    """Return a label map, uint8 (H, W), as a mask in run lengths; ``name`` is its name in messages."""
    regions = [(int(index), pixels_rle(labels == index)) for index in np.unique(labels) if index]
    height, width = labels.shape
    return RleMask.of_regions(name, (height, width), regions)


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
            files = {name: archive.read(name) for name in archive.namelist() if name.endswith((".png", "labelmap.txt"))}
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as a zip file: {error}.") from error
    masks = {name.partition("SegmentationClass/")[2]: name for name in files if "SegmentationClass/" in name}
    listed = next((content for name, content in files.items() if name.endswith("labelmap.txt")), None)
    if listed is None or not masks:
        raise InputError(f'{path} has no labelmap.txt and SegmentationClass: export it as "Segmentation mask 1.1".')
    colours: dict[int, int] = {}  # index of each colour
    for line in listed.decode("utf-8", "replace").splitlines():
        if line.strip() and not line.startswith("#"):
            label, colour, *_ = [*line.split(":"), ""]
            try:
                red, green, blue = map(int, colour.split(","))
            except ValueError as error:
                raise InputError(f"{path}: the line {line!r} of labelmap.txt is not label:red,green,blue::.") from error
            colours[red << 16 | green << 8 | blue] = class_index(label, known)
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
        yield name, place, labels_rle(f"of {place}", labels)


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
    try:
        content = yaml.safe_load(read_bytes(path))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}.") from error
    names = content.get("names") if isinstance(content, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names:
        raise InputError(f"{path} has no names of classes, as the data.yaml of a YOLO data set has.")
    if set(names.values()).isdisjoint(known):
        found = f"{', '.join(map(str, list(names.values())[:5]))}; there are {', '.join(known[:20])}"
        raise InputError(f"{path}: none of its names is a class of the data set: {found}.")
    ids, files = [], []
    folder = UPath(path.parent)
    for text in folder.rglob("*.txt"):
        folders = text.relative_to(folder).parts
        if "labels" in folders[:-1]:
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
                boxes.append((place, LabelledBox(label, *sides)))
            else:
                vertices = np.floor(np.array(numbers).reshape(-1, 2) * (width, height)).astype(np.int32)
                polygons.append((float(cv2.contourArea(vertices)), class_index(label, known), vertices))
        for _, index, vertices in sorted(polygons, key=lambda polygon: (-polygon[0], polygon[1])):
            cv2.fillPoly(mask, [vertices], index)
        if polygons or not (boxes or samples[name].tags):
            yield name, str(file), labels_rle(f"of {file}", mask)
        for place, box in boxes:
            if box.name in known:
                yield name, place, box


def _yolo_lines(file: AnyPath, names: Mapping[Any, Any]) -> Iterator[tuple[str, str, list[float]]]:
    """Yield place for messages, name of the class, and coordinates of each line of a text file of YOLO."""
    for number, line in enumerate(read_bytes(file).decode("utf-8", "replace").splitlines(), 1):
        words, place = line.split(), f"{file}, line {number}"
        if not words:
            continue
        try:
            label, numbers = str(names[int(words[0])]), [float(word) for word in words[1:]]
        except (KeyError, ValueError) as error:
            raise InputError(f"{place}: {line[:40]!r} is not the number of a class and coordinates.") from error
        if not all(-1 <= each <= 2 for each in numbers) or len(numbers) % 2 or len(numbers) < 4:
            raise InputError(f"{place}: the coordinates are no pairs of fractions of the image's sides.")
        yield place, label, numbers


def parquet_masks(path: AnyPath, samples: Samples, known: Sequence[str], where: str) -> Found:
    """Yield the masks of a Parquet file of a Hugging Face data set.

    Its columns are ``id`` or ``file_name``, and ``mask``: PNGs of class indices. The names of the classes are those of
    a column of tags in the data set's features, else those of our data set.

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
        key = next((name for name in ("id", "file_name") if name in schema.names), None)
        if key is None or "mask" not in schema.names:
            raise InputError(f"{path} needs a column id or file_name, and mask; it has {', '.join(schema.names)}.")
        rows = file.read([key, "mask"]).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}.") from error
    rows = [row for row in rows if row["mask"]]
    names = _class_labels(schema.metadata or {}) or list(known)
    indices = [0, *(class_index(name, known) for name in names)]
    ids = [str(row[key]) if key == "id" else image_id(str(row[key])) for row in rows]
    matching = match_ids(ids, [f"{path}, image {name}" for name in ids], samples, path, where)
    for name, row in zip(matching, rows, strict=True):
        if name in samples:
            place, mask = f"{path}, image {name}", row["mask"]
            content = mask.get("bytes") if isinstance(mask, dict) else mask
            if not isinstance(content, bytes):
                raise InputError(f"{place}: the mask is no image.")
            with open_image(io.BytesIO(content), f"of {place}") as image:
                if image.mode not in ("P", "L"):
                    raise InputError(f"{place}: the mask contains {image.mode} values, not class indices.")
                labels = np.array(image)
            if invalid := next((each for each in np.unique(labels).tolist() if len(names) < each < IGNORE), None):
                raise InputError(f"{place}: the mask contains the index {invalid}, and there are {len(names)} classes.")
            table = np.full(256, IGNORE, np.uint8)
            table[: len(indices)] = indices
            yield name, place, labels_rle(f"of {place}", table[labels])


def _class_labels(metadata: Mapping[bytes, bytes]) -> list[str]:
    """Return the names of a ClassLabel in the features that `datasets` stores in a schema; none where there is none."""

    def names(features: Any) -> Iterator[list[str]]:
        if isinstance(features, dict):
            if features.get("_type") == "ClassLabel" and isinstance(features.get("names"), list):
                yield features["names"]
            for each in features.values():
                yield from names(each)

    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return []
    return next(names(features), [])
