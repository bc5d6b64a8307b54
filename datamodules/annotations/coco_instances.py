"""Annotations from a JSON of COCO's instances: masks rendered from segmentations, boxes, keypoints."""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from pycocotools import mask as coco_mask

from datamodules.annotations.shapes import Annotation, Point, are_numbers, check_labels, mask_index, valid_box
from datamodules.class_names import IGNORE, MAX_CLASSES, class_name
from datamodules.errors import InputError, errors_at
from datamodules.files import AnyPath
from datamodules.image_ids import image_id
from datamodules.masks import RleMask
from datamodules.progress import first_few, print_message
from datamodules.sample import SplitSamples, require_recorded_size


def coco_annotations(path: AnyPath, content: Any, samples: SplitSamples, known: Sequence[str]) -> Iterator[Annotation]:
    """Yield the annotations of a JSON of COCO's instances.

    The mask of an image is rendered from its instances where all have a segmentation; otherwise the image has boxes:
    those of a class whose instances all have one and are no crowds. Points are keypoints with a visibility above
    0. An image without instances is background, as in COCO; but where its tags name an object, it counts as not
    annotated, since annotation tools export such images, too. Categories that are no class of the data set become 255
    in masks, and are left out otherwise. Crowds are 255 in masks, see also `brush_masks_as_instances`.

    Args:
        path: the JSON, for messages.
        content: its content.
        samples: the images of the split.
        known: all classes of the data set.

    Raises:
        InputError: it is no such JSON, no category is a class, an instance is invalid, or an image has another size.
    """
    check_instances(content, path)
    categories = {key: class_name(name, known) for key, name in category_names(content, path).items()}
    indices = {key: mask_index(name, known) for key, name in categories.items()}
    check_labels(categories.values(), known, path, "its categories")
    content = brush_masks_as_instances(content)
    images = images_with_instances(content, categories, path)
    names = [image_id(file) for file, _, _ in images]
    matching = samples.match_ids(names, [f"{path}, image {image['id']}" for _, image, _ in images], path)
    partly = []
    for name, (_, image, instances) in zip(matching, images, strict=True):
        if name not in samples or not (instances or not samples[name].tags):
            continue
        segmented = all(has_area(each.get("segmentation")) for each in instances)
        if not segmented and any(has_area(each.get("segmentation")) for each in instances):
            partly.append(name)
        if not segmented or any(each.get("keypoints") for each in instances):
            require_recorded_size(
                (image.get("height"), image.get("width")), samples[name], f"{path}, image {image['id']}"
            )
        if segmented and (mask := instance_mask(image, instances, indices, path)) is not None:
            yield Annotation(name, str(path), mask)
        no_boxes = {each["category_id"] for each in instances if each.get("iscrowd") or not each.get("bbox")}
        for each in instances:
            if indices[category := each["category_id"]] == IGNORE:
                continue
            label, location = categories[category], f"{path}, annotation {each.get('id')} of image {name}"
            if not segmented and category not in no_boxes and label in known:
                if not are_numbers(each["bbox"], 4):
                    raise InputError(f"{location}: the bbox {each['bbox']} is not [x, y, width, height]")
                x, y, width, height = map(float, each["bbox"])
                with errors_at(location):
                    box = valid_box(label, x, y, x + width, y + height)
                yield Annotation(name, location, box)
            for point in _keypoints(each, label, location):
                yield Annotation(name, location, point)
    if partly:
        problem = "have instances with and without a segmentation: their boxes are read, and no mask"
        print_message(f"{path}: {len(partly)} images {problem}: {first_few(partly)}")


def _keypoints(instance: Mapping[str, Any], label: str, location: str) -> Iterator[Point]:
    """Yield the keypoints of an instance whose visibility is above 0."""
    keypoints = instance.get("keypoints") or []
    if not isinstance(keypoints, list) or len(keypoints) % 3 or not are_numbers(keypoints, len(keypoints)):
        raise InputError(f"{location}: its keypoints are not a list [x, y, visibility, ...] of numbers")
    for x, y, visibility in zip(*[iter(keypoints)] * 3, strict=True):
        if visibility > 0:
            yield Point(label, float(x), float(y))


def check_instances(content: Any, path: AnyPath) -> None:
    """Raise an InputError unless a JSON has lists of images, annotations and categories, and no invalid ``iscrowd``."""
    for key in ("images", "annotations", "categories"):
        found = content.get(key) if isinstance(content, dict) else None
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise InputError(f"{path} is not a JSON of COCO's instances: it has no list of {key}")
    for each in content["annotations"]:
        if (crowd := each.get("iscrowd")) not in (None, 0, 1):  # the text "0" would count as a crowd
            raise InputError(f"{path}: annotation {each.get('id')} has the iscrowd {crowd!r}, which must be 0 or 1")


def category_names(content: dict[str, list[dict[str, Any]]], path: AnyPath) -> dict[int, str]:
    """Return the names of categories by their ids, in the order of the ids.

    A category 0 that no annotation uses and that another one names as its supercategory is left out.

    Raises:
        InputError: a category has no id or name, an id or a name occurs twice, or there are none or too many.
    """
    names: dict[int, str] = {}
    used = [each.get("category_id") for each in content["annotations"]]
    for each in content["categories"]:
        key, name = each.get("id"), each.get("name")
        if not isinstance(key, int) or not isinstance(name, str) or key in names:
            raise InputError(f"{path}: the category {each} has no id or name, its id is no integer or occurs twice")
        others = [other for other in content["categories"] if other is not each]
        if key != 0 or key in used or all(other.get("supercategory") != name for other in others):
            names[key] = name
    if twice := next((name for name, times in Counter(names.values()).items() if times > 1), None):
        raise InputError(f"{path}: two categories have the name {twice!r}")
    if not 1 <= len(names) <= MAX_CLASSES:
        raise InputError(f"{path} has {len(names)} categories, and an 8-bit mask has 1 to {MAX_CLASSES} classes")
    return dict(sorted(names.items()))


def brush_masks_as_instances(content: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return the content of a JSON with ``iscrowd`` 0 for the brush masks of CVAT, which exports them as crowds.

    An instance is one if it has CVAT's attribute ``occluded``, or if all instances with a segmentation are crowds.
    """
    crowds = [bool(each.get("iscrowd")) for each in content["annotations"] if has_area(each.get("segmentation"))]
    only_crowds = bool(crowds) and all(crowds)

    def is_brush_mask(instance: dict[str, Any]) -> bool:
        attributes = instance.get("attributes")
        return only_crowds or (isinstance(attributes, dict) and "occluded" in attributes)

    annotations = [{**each, "iscrowd": 0} if is_brush_mask(each) else each for each in content["annotations"]]
    return {**content, "annotations": annotations}


def images_with_instances(
    content: dict[str, list[dict[str, Any]]], categories: Collection[int], path: AnyPath
) -> list[tuple[str, dict[str, Any], list[dict[str, Any]]]]:
    """Return the images of a JSON: file name or URI, the image as it is in the JSON, and its instances.

    Run lengths without a pixel are no instance: somebody erased a brush mask.

    Args:
        content: the JSON.
        categories: ids of the categories.
        path: the JSON, for messages.

    Raises:
        InputError: an image has no file name, no id or that of another one, or an instance has no image or category.
    """
    instances: dict[int | str, list[dict[str, Any]]] = {}  # by image
    for image in content["images"]:
        if not isinstance(number := image.get("id"), int | str) or number in instances:
            raise InputError(f"{path}: the id {number!r} of an image is missing, or occurs twice")
        instances[number] = []
    sizes = {image["id"]: [image.get("height"), image.get("width")] for image in content["images"]}
    for each in content["annotations"]:
        for what, known in (("image_id", instances), ("category_id", categories)):
            if not isinstance(each.get(what), int | str) or each[what] not in known:
                problem = f"annotation {each.get('id')} has the {what} {each.get(what)!r}"
                raise InputError(f"{path}: {problem}, and there is no such {what.removesuffix('_id')}")
        if not is_erased(each.get("segmentation"), sizes[each["image_id"]]):
            instances[each["image_id"]].append(each)
    files = [str(image.get("file_name") or image.get("coco_url") or "") for image in content["images"]]
    if "" in files:
        raise InputError(f"{path}: image {content['images'][files.index('')]['id']} has no file_name")
    return [(file, image, instances[image["id"]]) for file, image in zip(files, content["images"], strict=True)]


def is_erased(segmentation: Any, size: list[Any]) -> bool:
    """Return whether a segmentation is a single run of background of an image's size [height, width]."""
    if not isinstance(segmentation, dict) or segmentation.get("size") != size:
        return False
    if not all(isinstance(side, int) for side in size):
        return False  # `instance_mask` names the image
    counts = segmentation.get("counts")
    if isinstance(counts, str) and len(counts) <= 8:  # a number below 2^32 has up to seven characters
        counts = decompress_runs(counts)
    return isinstance(counts, list) and counts == [math.prod(size)]


def has_area(segmentation: Any) -> bool:
    """Return whether an instance has a segmentation other than polygons of fewer than three points."""
    only_lists = isinstance(segmentation, list) and all(isinstance(each, list) for each in segmentation)
    return bool(segmentation) and not (only_lists and all(len(each) in (0, 2, 4) for each in segmentation))


def instance_mask(
    image: dict[str, Any], annotations: list[dict[str, Any]], indices: dict[int, int], path: AnyPath
) -> RleMask | None:
    """Return the mask of an image; None where an instance has no segmentation.

    Where no instance has an area, every pixel is 255.

    Args:
        image: the image in the JSON.
        annotations: its instances.
        indices: index in the mask by category.
        path: the JSON, for messages.

    Raises:
        InputError: the image's size is missing, or a segmentation is invalid.
    """
    height, width = image.get("height"), image.get("width")
    if not (
        isinstance(height, int) and isinstance(width, int) and 0 < min(height, width) <= max(height, width) < 2**31
    ):
        raise InputError(f"{path}: image {image['id']} has no height or width, or they are no integers of 1 to 2^31")
    instances: list[tuple[bool, int, int, bytes]] = []
    for each in annotations:
        try:
            rle = instance_rle(each.get("segmentation"), height, width)
        except ValueError as error:
            raise InputError(f"{path}: annotation {each.get('id')} {error}") from error
        if rle is None:
            return None
        crowd = bool(each.get("iscrowd"))
        index = IGNORE if crowd else indices[each["category_id"]]
        instances.append((not crowd, -int(coco_mask.area(rle)), index, rle["counts"]))
    if annotations and not any(area for _, area, _, _ in instances):  # lines: where the objects are is not known
        everywhere = coco_mask.frPyObjects({"size": [height, width], "counts": [0, height * width]}, height, width)
        instances = [(False, -height * width, IGNORE, everywhere["counts"])]
    instances.sort(key=lambda instance: instance[:2])  # crowds, then by area
    painted = bytes(index for _, _, index, _ in instances)
    counts = tuple(counts for *_, counts in instances)
    return RleMask(f"of image {image['id']} in {path.name}", (height, width), painted, counts)


def instance_rle(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Return the pixels of an instance as pycocotools' compressed run lengths.

    Args:
        segmentation: a list of polygons [x, y, x, y, …], whose union counts; or run lengths ``counts`` of ``size``
            (H, W), a list or a compressed text. pycocotools does not check them.
        height: height of the image.
        width: width of the image.

    Returns:
        ``size`` and ``counts``; None for an empty segmentation, such as a list of empty polygons.

    Raises:
        ValueError: the segmentation is invalid; the message is the end of a sentence.
    """
    if not segmentation or (isinstance(segmentation, list) and not any(segmentation)):
        return None
    runs: Any = [height * width]
    if isinstance(segmentation, list):
        far = 10 * max(height, width)
        try:  # nan and inf are not below any limit; pycocotools would take memory for points far away
            valid = all(len(each) % 2 == 0 and sum(map(abs, each)) <= far * len(each) for each in segmentation)
        except TypeError:
            valid = False
        if not valid:
            raise ValueError("has a segmentation that is not a list of polygons [x, y, x, y, ...] in its image")
        for each in filter(None, segmentation):
            for values, side in ((each[::2], width), (each[1::2], height)):
                low, high = min(values), max(values)  # slivers on the border of the image are not beyond it
                if (low < 0 and high <= 0) or (low >= side and high > side):
                    raise ValueError(f"has a polygon outside of its image, which is {width}x{height}")
        # fewer points have no area, and pycocotools reads two of them as a box
        if polygons := [each for each in segmentation if len(each) >= 6]:
            return dict(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    else:
        size, counts = (segmentation.get(key) if isinstance(segmentation, dict) else None for key in ("size", "counts"))
        if size != [height, width]:
            raise ValueError(f"has run lengths of the size {size}, and its image is {[height, width]} (height, width)")
        runs = decompress_runs(counts) if isinstance(counts, str) else counts
        valid = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
        if not valid or sum(runs) != height * width:
            raise ValueError(f"has run lengths that do not sum up to the {height * width} pixels of its image")
    return dict(coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width))


def decompress_runs(text: str) -> list[int]:
    """Return the run lengths of COCO's compressed text; those of any text are integers, and may be negative.

    A number is written in groups of five bits, the lowest first, as characters from ``0`` on; 32 is added to each group
    but the last, whose bit 16 is the sign. From the fourth number on, it is the difference to the last but one.
    """
    runs: list[int] = []
    number = shift = 0
    for group in (ord(character) - 48 for character in text):
        number |= (group & 31) << shift
        shift += 5
        if not group & 32:
            number -= (group & 16) << (shift - 4)
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
