"""Reads annotations with the libraries of annotation tools, and writes them again with the same libraries.

Run as ``python annotation_tools.py FORMAT SOURCE TARGET IMAGES`` by the interpreter of `INTERPRETER`, because these
libraries need other versions of NumPy and OpenCV than the project.
"""

import json
import shutil
import sys
import zipfile
from pathlib import Path

INTERPRETER = Path(__file__).resolve().parents[1] / ".venv" / "annotation-tools" / "bin" / "python"


def coco(source, target, images):
    """`datumaro`, on which CVAT is built, with run lengths in place of polygons."""
    from datumaro import Dataset

    folder = target / "read"
    (folder / "annotations").mkdir(parents=True)
    shutil.copy(source / "instances.json", folder / "annotations" / "instances_train.json")
    shutil.copytree(images, folder / "images" / "train")
    found = Dataset.import_from(str(folder), "coco_instances")
    found.export(str(target / "written"), "coco_instances", save_media=False, segmentation_mode="mask")
    shutil.copy(target / "written" / "annotations" / "instances_train.json", target / "instances.json")


def cvat(source, target, images):
    """`datumaro`: masks in VOC's layout, as CVAT's "Segmentation mask 1.1"."""
    from datumaro import Dataset

    with zipfile.ZipFile(source / "annotations.zip") as archive:
        archive.extractall(target / "read")
    found = Dataset.import_from(str(target / "read"), "voc_segmentation")
    found.export(str(target / "written"), "voc_segmentation", save_media=False, label_map="source")
    shutil.make_archive(str(target / "annotations"), "zip", target / "written")


def yolo(source, target, images):
    """`supervision`, with masks."""
    from supervision import DetectionDataset

    names = [str(path) for path in (images, source / "labels", source / "data.yaml")]
    found = DetectionDataset.from_yolo(*names, force_masks=True)
    masks = {}
    for path, _, each in found:
        pairs = zip(each.class_id.tolist(), each.mask.tolist(), strict=True) if len(each) else ()
        masks[Path(path).stem] = list(pairs)
    (target / "masks.json").write_text(json.dumps({"classes": found.classes, "masks": masks}))
    found.as_yolo(annotations_directory_path=str(target / "labels"), data_yaml_path=str(target / "data.yaml"))


def label_studio(source, target, images):
    """`label_studio_sdk`: its checks, and annotations that it makes of the brush masks it has decoded."""
    from label_studio_sdk.converter import brush
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(config=(source / "labeling_config.xml").read_text())
    interface.validate()
    tasks = json.loads((source / "tasks.json").read_text())
    for task in tasks:
        (prediction,) = task.pop("predictions")
        assert interface.validate_task(task)
        assert interface.validate_prediction(prediction, return_errors=True) == []
        for region in prediction["result"]:
            height, width = region["original_height"], region["original_width"]
            channels = brush.decode_rle(region["value"]["rle"]).reshape(height, width, 4)
            region["value"]["rle"] = brush.mask2rle(channels[..., 3])
        task["annotations"] = [{"id": 1, "was_cancelled": False, "result": prediction["result"]}]
    (target / "tasks.json").write_text(json.dumps(tasks))


def huggingface(source, target, images):
    """`datasets`: images decoded and encoded again."""
    from datasets import load_dataset

    found = load_dataset("parquet", data_files=str(source / "train.parquet"), split="train", cache_dir=str(target))
    rows = found.map(lambda row: {"mask": row["mask"].copy()}, load_from_cache_file=False)
    rows.to_parquet(str(target / "train.parquet"))


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*map(Path, sys.argv[2:]))
