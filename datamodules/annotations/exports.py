# ruff: noqa: A002  format is the name of an option
"""Label maps of images in the formats of annotation tools and other libraries."""

import json
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import yaml
from pycocotools import mask as coco_mask
from scipy.spatial import cKDTree

from datamodules.annotations.brush_rle import encode_brush
from datamodules.annotations.label_studio import ID_KEY
from datamodules.annotations.shapes import UNKNOWN
from datamodules.class_names import IGNORE, voc_palette
from datamodules.errors import InputError, import_extra
from datamodules.files import is_uri, uri_path, write_atomically, write_json
from datamodules.masks import encode_mask, mask_png
from datamodules.tar_files import open_file

AnnotationFormat = Literal["coco", "yolo", "label-studio", "cvat", "huggingface"]
"""Formats that `write_annotations` writes."""

ROW_GROUP = 100 << 20
"""Bytes of the image files in a row group of Parquet, which are in memory; as in the library datasets."""


class LabelledImage(NamedTuple):
    """An image and the class of each of its pixels.

    Attributes:
        id: name of the image, see `datamodules.sample.Sample`.
        image: its path or URI.
        label_map: uint8 (H, W) of the image's own size: 0 background, 1..C, 255 not known.
    """

    id: str
    image: str
    label_map: np.ndarray

    @property
    def file_name(self) -> str:
        """Path of the image below the folder of images."""
        return self.id + PurePosixPath(uri_path(self.image) if is_uri(self.image) else self.image).suffix


def write_annotations(
    format: AnnotationFormat, folder: Path, classes: Sequence[str], images: Iterable[LabelledImage]
) -> None:
    """Write label maps for an annotation tool or library.

    ================  ==================================================================================================
    ``coco``          ``instances.json``: an instance for each class of an image, as run lengths that keep holes
    ``yolo``          ``labels/<id>.txt`` and ``data.yaml``: a polygon for each connected region of a class; holes are
                      joined to the outline by a line of no width. Unknown pixels become background. Trainers look for
                      the images in ``images``
    ``label-studio``  ``tasks.json``, tasks with brush masks as predictions, and ``labeling_config.xml``. A local image
                      is named by its absolute path, below the document root ``/`` of Label Studio's local storage
    ``cvat``          ``annotations.zip`` in VOC's layout of segmentation, as CVAT's "Segmentation mask 1.1"
    ``huggingface``   ``train.parquet`` with the columns ``id``, ``file_name``, ``image``, ``mask`` (class indices;
                      255 = unknown) and ``tags``; needs
                      ``pip install -c constraints.txt '.[huggingface]'``
    ================  ==================================================================================================

    Where pixels are unknown, ``coco`` and ``cvat`` get one more class, ``unknown``; ``label-studio`` always does.

    Args:
        format: the format.
        folder: an existing folder.
        classes: names of the classes 1..C.
        images: the label maps; one is in memory at a time.

    Raises:
        InputError: a class has the name ``unknown`` while pixels are unknown, a name is invalid in the format, an image
            cannot be read, or the library of the format is not installed.
    """
    writers = {"coco": _coco, "yolo": _yolo, "label-studio": _label_studio, "cvat": _cvat, "huggingface": _huggingface}
    writers[format](folder, tuple(classes), images)


def _with_unknown(classes: tuple[str, ...]) -> tuple[str, ...]:
    if UNKNOWN in classes:
        raise InputError(f"pixels are unknown, and {UNKNOWN!r} is the name of a class: this format cannot contain both")
    return *classes, UNKNOWN


def _class_masks(each: LabelledImage, classes: tuple[str, ...]) -> list[tuple[int, np.ndarray]]:
    """Return index and pixels, bool (H, W), of each class in an image; unknown pixels have the index C + 1."""
    found = [int(index) for index in np.unique(each.label_map) if index]
    return [(len(classes) + 1 if index == IGNORE else index, each.label_map == index) for index in found]


def _coco(folder: Path, classes: tuple[str, ...], images: Iterable[LabelledImage]) -> None:
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = classes
    for number, each in enumerate(images, 1):
        height, width = each.label_map.shape
        listed.append({"id": number, "file_name": each.file_name, "height": height, "width": width})
        for index, pixels in _class_masks(each, classes):
            names = _with_unknown(classes) if index > len(classes) else names
            rle = encode_mask(pixels)
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": index, "iscrowd": 0,
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode()},
                "area": int(coco_mask.area(rle)), "bbox": coco_mask.toBbox(rle).tolist(),
            })  # fmt: skip
    categories = [{"id": index, "name": name, "supercategory": ""} for index, name in enumerate(names, 1)]
    write_json(folder / "instances.json", {"images": listed, "annotations": annotations, "categories": categories})


def _yolo(folder: Path, classes: tuple[str, ...], images: Iterable[LabelledImage]) -> None:
    for each in images:
        lines = []
        for index, pixels in _class_masks(each, classes):
            if index <= len(classes):  # a quarter of a pixel: readers that truncate and those that round find the pixel
                polygons = [(polygon + 0.25) / pixels.shape[::-1] for polygon in region_polygons(pixels)]
                lines += [f"{index - 1} {' '.join(f'{x:.7g}' for x in polygon.ravel())}\n" for polygon in polygons]
        target = folder / "labels" / f"{each.id}.txt"
        write_atomically(target, "".join(lines).encode())
    content = {"train": "images", "val": "images", "names": dict(enumerate(classes))}
    write_atomically(folder / "data.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())


def region_polygons(pixels: np.ndarray) -> list[np.ndarray]:
    """Return a polygon for each connected region of a mask, filled by ``cv2.fillPoly`` with its boundary.

    A hole is joined to the polygon by the shortest line, there and back, the nearest hole first, so that no line
    crosses another hole.

    Args:
        pixels: bool (H, W).

    Returns:
        int (n, 2) each, n >= 3: x and y of pixels.
    """
    contours, hierarchy = cv2.findContours(pixels.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parents = hierarchy[0][:, 3].tolist() if contours else []
    regions = {index: [contours[index][:, 0]] for index, parent in enumerate(parents) if parent < 0}  # outline, holes
    for index, parent in enumerate(parents):
        if parent >= 0:
            regions[parent].append(contours[index][:, 0])
    polygons = []
    for outline, *holes in regions.values():
        polygon = _join_holes(outline, holes) if holes else outline
        steps = np.diff(polygon, axis=0, append=polygon[:1])
        corners = (steps != np.roll(steps, 1, axis=0)).any(axis=1)  # on a straight line, single pixels are not needed
        polygon = polygon[corners] if corners.any() else polygon
        polygons.append(np.pad(polygon, ((0, max(0, 3 - len(polygon))), (0, 0)), mode="edge"))  # of one or two pixels
    return polygons


def _join_holes(polygon: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """Return a polygon (n, 2) with its holes (m, 2) joined to it, see `region_polygons`."""
    vertices, sizes = np.concatenate(holes), [len(hole) for hole in holes]
    numbers, starts = np.repeat(np.arange(len(holes)), sizes), np.cumsum([0, *sizes])  # the hole of each vertex
    distances, indices = cKDTree(polygon).query(vertices)  # to the nearest vertex of the polygon; inf once joined
    anchors = polygon[indices]
    for _ in holes:
        nearest = int(distances.argmin())
        number = int(numbers[nearest])
        hole, vertex = holes[number], nearest - int(starts[number])
        at = int(np.flatnonzero((polygon == anchors[nearest]).all(axis=1))[0])
        polygon = np.concatenate([polygon[: at + 1], hole[vertex:], hole[: vertex + 1], polygon[at:]])
        distances[numbers == number] = np.inf
        left = np.flatnonzero(distances < np.inf)
        found, indices = cKDTree(hole).query(vertices[left])
        closer = found < distances[left]
        distances[left[closer]], anchors[left[closer]] = found[closer], hole[indices[closer]]
    return polygon


def _label_studio(folder: Path, classes: tuple[str, ...], images: Iterable[LabelledImage]) -> None:
    tasks: list[dict[str, Any]] = []
    names = classes if UNKNOWN in classes else (*classes, UNKNOWN)  # for pixels that a person cannot decide on
    for each in images:
        if "::" in each.image:
            raise InputError(f"Label Studio cannot open {each.image}: unpack the archive")
        height, width = each.label_map.shape
        results = []
        for index, pixels in _class_masks(each, classes):
            names = _with_unknown(classes) if index > len(classes) else names
            results.append({
                "id": f"region-{index}", "type": "brushlabels", "from_name": "labels", "to_name": "image",
                "original_width": width, "original_height": height, "image_rotation": 0,
                "value": {"format": "rle", "rle": encode_brush(pixels), "brushlabels": [names[index - 1]]},
            })  # fmt: skip
        local = f"/data/local-files/?d={quote(os.path.abspath(each.image).lstrip('/'))}"  # noqa: PTH100  links stay
        data = {"image": each.image if is_uri(each.image) else local, ID_KEY: each.id}
        tasks.append({"data": data, "predictions": [{"model_version": "tag2mask", "result": results}]})
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in names)
    config = (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n  <BrushLabels name="labels" toName="image">\n'
        f"{labels}  </BrushLabels>\n</View>\n"
    )
    write_atomically(folder / "labeling_config.xml", config.encode())
    write_atomically(folder / "tasks.json", json.dumps(tasks).encode())


def _cvat(folder: Path, classes: tuple[str, ...], images: Iterable[LabelledImage]) -> None:
    if invalid := next((name for name in classes if re.search(r"[:\n]|^#", name)), None):
        raise InputError(f"the class {invalid!r} has a colon, a line break or '#', which CVAT's labelmap.txt excludes")
    ids, names = [], classes
    with zipfile.ZipFile(folder / "annotations.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for each in images:
            if each.id.startswith("#"):
                raise InputError(f"the id {each.id!r} begins with '#', which begins a comment in CVAT's lists")
            label_map = each.label_map
            if (label_map == IGNORE).any():
                names = _with_unknown(classes)
                label_map = np.where(label_map == IGNORE, len(names), label_map).astype(np.uint8)
            for layer in ("SegmentationClass", "SegmentationObject"):  # without objects, background is one for CVAT
                archive.writestr(f"{layer}/{each.id}.png", mask_png(label_map))
            ids.append(each.id)
        colours = voc_palette()
        lines = [f"{name}:{','.join(map(str, colours[index]))}::" for index, name in enumerate(("background", *names))]
        archive.writestr("labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))
        archive.writestr("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in ids))


def _huggingface(folder: Path, classes: tuple[str, ...], images: Iterable[LabelledImage]) -> None:
    import_extra("datasets", "huggingface", "the format huggingface")
    import pyarrow as pa
    from datasets import ClassLabel, Features, Image, List, Value
    from pyarrow.parquet import ParquetWriter

    features = Features({
        "id": Value("string"), "file_name": Value("string"), "image": Image(), "mask": Image(),
        "tags": List(ClassLabel(names=list(classes))),
    })  # fmt: skip
    rows, size = list[dict[str, Any]](), 0
    with ParquetWriter(folder / "train.parquet", features.arrow_schema) as writer:
        for each in images:
            with open_file(each.image) as file:
                content = file.read()
            rows.append({
                "id": each.id, "file_name": each.file_name,
                "image": {"bytes": content, "path": each.file_name},
                "mask": {"bytes": mask_png(each.label_map), "path": f"{each.id}.png"},
                "tags": [index - 1 for index in np.unique(each.label_map).tolist() if index not in (0, IGNORE)],
            })  # fmt: skip
            size += len(content)
            if size >= ROW_GROUP:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, features.arrow_schema))
                rows, size = [], 0
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, features.arrow_schema))
