"""Annotations from Label Studio's JSON.

Labels that are no class of the data set become 255 in masks. In masks of regions a smaller region covers a larger one,
and what no region covers is background.
"""

import base64
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pycocotools import mask as coco_mask

from datamodules.annotations.brush_rle import decode_brush
from datamodules.annotations.coco_instances import instance_rle
from datamodules.annotations.shapes import BACKGROUND, Annotation, Box, Point, check_labels, mask_index, valid_box
from datamodules.class_names import class_name
from datamodules.errors import InputError, UnreadableError
from datamodules.files import AnyPath
from datamodules.image_ids import forward_slashes, image_id
from datamodules.images import IMAGE_SUFFIXES, image_size
from datamodules.masks import RleMask, encode_mask
from datamodules.progress import first_few, print_message
from datamodules.sample import SplitSamples, require_recorded_size

ID_KEY = "tag2mask_id"
"""Key of an image's id in the data of a task, as `datamodules.annotations.exports` writes it."""

_SHAPE = frozenset({"rle", "points", "x", "y", "width", "height"})  # keys of a region's value


def label_studio_annotations(
    path: AnyPath, tasks: Sequence[Any], samples: SplitSamples, known: Sequence[str]
) -> Iterator[Annotation]:
    """Yield the annotations of Label Studio's tasks, exported as JSON.

    Brush masks and polygons are a mask, rectangles are boxes, key points are points. Of several annotations of an image
    the last one counts. An annotation with an empty result is a mask of background alone. Predictions do not count.

    Args:
        path: the JSON, for messages.
        tasks: its content.
        samples: the images of the split.
        known: all classes of the data set.

    Raises:
        InputError: a task is invalid, none is annotated, none of the labels is a class, or a region is of another kind.
    """
    latest = _latest_results(path, tasks)
    matching = samples.match_ids(list(latest), [location for _, location, _ in latest.values()], path)
    labels = set[str]()
    for name, (_, location, result) in zip(matching, latest.values(), strict=True):
        regions, sizes = [], set[tuple[int, int]]()
        for each in _joined_regions(result):
            try:
                label, size, region = _read_region(each)
            except InputError as error:
                raise InputError(f"{location}: {error}") from error
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
                problem = f"a region of the type {each.get('type')} is invalid ({error!r})"
                raise InputError(f"{location}: {problem}") from error
            if label is not None:
                label = class_name(label, known)
                labels.add(label)
            if isinstance(region, dict):
                sizes.add(size)
                if "rle" not in each["value"] or coco_mask.area(region):  # else the brush mask was erased
                    regions.append((mask_index(label, known), region))
            elif name in samples and (label in known or (label == BACKGROUND and isinstance(region, Point))):
                require_recorded_size(size, samples[name], location)
                yield Annotation(name, location, region)
        if len(sizes) > 1:
            raise InputError(f"{location}: its regions have the original sizes {' and '.join(map(str, sorted(sizes)))}")
        if name in samples and sizes:
            yield Annotation(name, location, RleMask.from_regions(f"of {location}", sizes.pop(), regions))
        elif name in samples and not result:
            try:
                mask = RleMask(f"of {location}", image_size(samples[name].image), b"", ())
            except UnreadableError:  # `unreadable_images.readable` leaves it out
                continue
            yield Annotation(name, location, mask)
    if labels:
        check_labels(labels, (*known, BACKGROUND), path, "its labels")


def _latest_results(path: AnyPath, tasks: Sequence[Any]) -> dict[str, tuple[str, str, list[Any]]]:
    """Return the last annotation of each image in Label Studio's tasks: its time, location for messages, and result."""
    latest: dict[str, tuple[str, str, list[Any]]] = {}
    repeated, tagged = dict[str, None](), dict[str, None]()
    for number, task in enumerate(tasks, 1):
        location = f"{path}, task {task.get('id', number) if isinstance(task, dict) else number}"
        if not isinstance(task, dict) or not isinstance(annotations := task.get("annotations"), list):
            raise InputError(f"{location} has no list of annotations: export the project of Label Studio as JSON")
        name = _task_image(task, location)
        for each in annotations:
            result = each.get("result") if isinstance(each, dict) else None
            if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
                raise InputError(f"{location} has an annotation without a result")
            changed = str(each.get("updated_at") or each.get("created_at") or "")
            if each.get("was_cancelled"):
                continue
            if name in latest:
                repeated[name] = None
            if any(isinstance(region.get("value"), dict) and "choices" in region["value"] for region in result):
                tagged[name] = None
            if name not in latest or changed >= latest[name][0]:
                latest[name] = changed, f"{location}, image {name}", result
    if not latest:
        raise InputError(f"{path} contains no annotation of any image")
    for names, what in (
        (repeated, "have several annotations, and the last one counts"),
        (tagged, "have choices, which are not read: correct tags in the data set itself"),
    ):
        if names:
            print_message(f"{path}: {len(names)} images {what}: {first_few(list(names))}")
    return latest


def _task_image(task: Mapping[str, Any], location: str) -> str:
    """Return the id of a task's image: that of our own export, or the image's path without suffix.

    Raises:
        InputError: the task has no image, or several.
    """
    data = task.get("data")
    data = data if isinstance(data, dict) else {}
    if isinstance(name := data.get(ID_KEY), str):
        return name
    files = {key: _file_of(value) for key, value in data.items() if isinstance(value, str)}
    files = {key: file for key, file in files.items() if PurePosixPath(file).suffix.lower() in IMAGE_SUFFIXES}
    if len(files) > 1 and "image" not in files:
        raise InputError(f"{location} has several images, {', '.join(files.values())}: name one of them 'image'")
    file = files.get("image") or next(iter(files.values()), None)
    if file is None:
        raise InputError(
            f"{location} has no image: none of its data is the path of an image ({', '.join(IMAGE_SUFFIXES)})"
        )
    return image_id(file)


def _file_of(value: str) -> str:
    """Return the path in a URL of Label Studio; an uploaded file has eight digits and a hyphen before its name."""
    if not value.startswith(("http:", "https:", "/data/", "/tasks/")):
        return forward_slashes(value)  # a path, or the URI of an object store: ? and # may be parts of names
    try:
        url = urlsplit(value)
    except ValueError:  # a text, such as http://[host]
        return value
    query = parse_qs(url.query)
    if url.path.endswith("/local-files/"):
        return forward_slashes(query.get("d", [""])[0])
    if "fileuri" in query:
        with suppress(ValueError):
            return base64.urlsafe_b64decode(query["fileuri"][0]).decode()
    path = unquote(url.path)
    return re.sub(r"[0-9a-f]{8}-(?=[^/]*$)", "", path, count=1) if "/data/upload/" in path else path


def _joined_regions(result: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the regions of a result: entries with a shape or label, and the values of all entries of the region."""
    joined: dict[Any, dict[str, Any]] = {}
    for number, each in enumerate(result):
        value = each.get("value")
        if isinstance(value, dict):
            key = each.get("id", number)
            first = joined.setdefault(str(key), {**each, "value": {}})
            first["value"] = first["value"] | value
    return [each for each in joined.values() if any(key in _SHAPE or key.endswith("labels") for key in each["value"])]


def _read_region(each: Mapping[str, Any]) -> tuple[str | None, tuple[int, int], dict[str, Any] | Point | Box]:
    """Return a region's label, the image's size (H, W), and the region: run lengths, a point or a box.

    The label is None where nobody has chosen one.
    """
    value = each["value"]
    named = [name for key, names in value.items() if key.endswith("labels") for name in names]
    if len(named) > 1 or not all(isinstance(name, str) for name in named):
        raise InputError(f"a region has the labels {named}, and must have one")
    label = named[0] if named else None
    shape = _SHAPE & value.keys()
    height, width = each["original_height"], each["original_width"]
    if not all(type(side) is int and 0 < side < 1 << 20 for side in (height, width)):
        raise InputError(f"a region has the original size {height} x {width}")
    if each.get("image_rotation"):
        raise InputError("the image is rotated in Label Studio, which is not supported")
    region: dict[str, Any] | Point | Box
    if "rle" in shape:
        region = encode_mask(decode_brush(value["rle"], height, width))
    elif "points" in shape and "vertices" not in value:
        pairs = [(x * width / 100, y * height / 100) for x, y in value["points"]]
        if len(pairs) < 3:
            raise InputError(f"a polygon has {len(pairs)} points, and needs three")
        try:
            region = dict(instance_rle([list(itertools.chain(*pairs))], height, width) or {})
        except ValueError as error:
            raise InputError(f"a region {error}") from error
    elif {"x", "y"} <= shape and not {"radiusX", "radiusY"} & value.keys() and (label or "text" not in value):
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
