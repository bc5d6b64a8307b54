"""Whole images are resized to the validation size of the checkpoint, not to the size of training crops."""

import torch

from datamodules.seed_cache import SeedCache
from seeds.job_options import JobOptions
from seeds.refine_seeds import refine_seeds
from tests.training.conftest import SIZE
from training.pseudo_labels import pseudo_label

LARGER = SIZE + 32
JOB = JobOptions(num_workers=0, accelerator="cpu")


def of_eval_size(checkpoint, folder):
    """Return a copy of a checkpoint whose validation size is larger."""
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["eval_size"] = LARGER
    torch.save(content, folder / "larger.ckpt")
    return folder / "larger.ckpt"


def test_labels_of_a_network(checkpoint, tmp_path):
    larger = of_eval_size(checkpoint, tmp_path)
    for given, size in (({}, LARGER), ({"size": SIZE}, SIZE)):
        pseudo_label(larger, tmp_path / str(size), **given, crf=False, job=JOB)
        assert SeedCache(tmp_path / str(size)).settings["size"] == size


def test_labels_of_a_walk(cues, boundaries, tmp_path):
    larger = of_eval_size(boundaries, tmp_path)
    for given, size in (({}, LARGER), ({"size": SIZE}, SIZE)):
        options = {"crf": False, "steps": 1, "job": JOB}
        refine_seeds(cues, larger, tmp_path / str(size), **given, **options)
        assert SeedCache(tmp_path / str(size)).settings["size"] == size
