"""The archive for VOC's server."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from datamodules.class_names import voc_palette
from datamodules.errors import InputError
from training.cli import main
from training.evaluation.evaluate import evaluate


def run(*words) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def voc_like(predicted_masks, voc, tmp_path):
    """The same images as if of VOC's classes: no classes.txt."""
    root = tmp_path / "VOC2012"
    shutil.copytree(voc, root)
    (root / "classes.txt").unlink()
    return root


def test_the_archive_for_vocs_server(voc_like, predicted_masks, tmp_path):
    folder, ids = predicted_masks
    out = tmp_path / "out"
    words = ("--predictions", folder, "--root", voc_like, "--output", out, "--submission", "true", "--num_images", 0)
    assert run("evaluate", *words) == 0
    with tarfile.open(out / "submission.tar") as archive:
        assert archive.getnames() == [f"results/VOC2012/Segmentation/comp6_val_cls/{name}.png" for name in ids]
        for name, member in zip(ids, archive.getmembers(), strict=True):
            content = archive.extractfile(member).read()
            assert (out / member.name).read_bytes() == content
            image = Image.open(io.BytesIO(content))
            assert image.mode == "P"
            assert image.getpalette()[:63] == voc_palette()[:63]
            assert np.array_equal(np.array(image), np.array(Image.open(folder / f"{name}.png")))


def test_an_archive_of_other_classes_is_refused(checkpoint, tmp_path):
    with pytest.raises(InputError, match="VOC's 20 classes"):
        evaluate(checkpoint, output=tmp_path / "out", submission=True)
    assert not (tmp_path / "out").exists()
