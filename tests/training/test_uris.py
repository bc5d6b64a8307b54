"""Trainings, evaluations and predictions whose data, seed cache and checkpoint are in a bucket."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
import yaml
from upath import UPath

from datamodules.files import file_sha256, write_atomically
from seeds.checkpoints import read_file
from tests.storage import upload
from tests.training.fits import fit
from training.cli import main


@pytest.fixture(scope="session")
def in_bucket(s3: str, voc: Path, cues: Path, checkpoint: Path) -> dict[str, str]:
    """The URIs of the data set, the seed cache and the checkpoint of the other fixtures."""
    fsspec.filesystem("s3").put_file(str(checkpoint), f"{s3}/training/sec.ckpt")
    return {
        "voc": upload(voc, f"{s3}/training/voc"),
        "cues": upload(cues, f"{s3}/training/cues"),
        "checkpoint": f"{s3}/training/sec.ckpt",
    }


def metrics_of(folder: Path) -> dict:
    """Return the figures of an evaluation, without the names of its inputs."""
    metrics = json.loads((folder / "metrics.json").read_text())
    return {key: value for key, value in metrics.items() if key not in ("data", "checkpoint", "provenance")}


def test_an_evaluation_has_the_same_figures(in_bucket, voc, cues, checkpoint, tmp_path) -> None:
    """Of a checkpoint, and of a folder of predictions."""
    places = {
        "local": (checkpoint, voc, cues),
        "bucket": tuple(in_bucket[key] for key in ("checkpoint", "voc", "cues")),
    }
    for name, (ckpt, root, cache) in places.items():
        words = [f"--checkpoint={ckpt}", f"--root={root}", f"--cues={cache}", "--num_workers=2"]
        assert main(["evaluate", *words, f"--output={tmp_path / name}"]) == 0
        words = [f"--predictions={root}/SegmentationClass", f"--root={root}", f"--output={tmp_path / name / 'masks'}"]
        assert main(["evaluate", *words]) == 0
    assert metrics_of(tmp_path / "local") == metrics_of(tmp_path / "bucket")
    assert metrics_of(tmp_path / "bucket/masks")["miou"] == 1.0


def test_a_training_gives_the_same_weights(in_bucket, voc, cues, tmp_path) -> None:
    """Three steps of SEC on a local seed cache and on one in the bucket, with two workers."""
    for name, places in {"local": (voc, cues), "bucket": (in_bucket["voc"], in_bucket["cues"])}.items():
        assert fit(*places, tmp_path / name, "--data.num_workers=2") == 0
    rows = [list(csv.DictReader((tmp_path / name / "metrics.csv").open())) for name in ("local", "bucket")]
    assert rows[0] == rows[1]
    weights = [read_file(tmp_path / name / "last.ckpt")["state_dict"] for name in ("local", "bucket")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_masks_of_images_in_a_bucket(in_bucket, voc, checkpoint, tmp_path) -> None:
    """A folder of the bucket, and single images of it; a missing image is listed."""
    shutil.copytree(voc / "JPEGImages", tmp_path / "photos")
    words = ["predict", f"--checkpoint={in_bucket['checkpoint']}", "--num_workers=2", "--crf=false"]
    photos = f"{in_bucket['voc']}/JPEGImages"
    assert main([*words, f"--images={photos}", f"--output={tmp_path / 'bucket'}"]) == 0
    assert main([*words, f"--images={tmp_path / 'photos'}", f"--output={tmp_path / 'local'}"]) == 0
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert len(names) == 14
    for name in names:
        assert file_sha256(tmp_path / "bucket" / name) == file_sha256(tmp_path / "local" / name), name
    images = f"[{photos}/train_00000.jpg,{photos}/none.jpg]"
    assert main([*words, f"--images={images}", f"--output={tmp_path / 'two'}"]) == 1
    assert "none.jpg cannot be read: there is no such file or folder" in (tmp_path / "two/skipped.csv").read_text()
    assert (tmp_path / "two/train_00000.png").is_file()


NOWHERE = "there is no such file or folder"
MISTAKES = {
    "no bucket": (
        "evaluate --checkpoint=s3://no/a.ckpt",
        "there is no checkpoint s3://no/a.ckpt: there is no bucket no",
    ),
    "no key": ("evaluate --checkpoint={s3}/a.ckpt", f"there is no checkpoint {{s3}}/a.ckpt: {NOWHERE}"),
    "no root": ("evaluate --checkpoint={sec} --root={s3}/no", f"folder {{s3}}/no cannot be read: {NOWHERE}"),
    "no bucket's name": ("predict --checkpoint={sec} --images=s3:/photos", "images: Not of type UPath: "),
    "no root's bucket": ("evaluate --checkpoint={sec} --root=s3:/voc", "folder s3:///voc cannot be read: "),
    "no such storage": (
        "evaluate --checkpoint={sec} --root=foo://voc",
        "folder foo://voc cannot be accessed: Unsupported filesystem: 'foo'",
    ),
    "no export": ("predict --checkpoint={s3}/no.onnx --images={voc}", f"nor a *.ckpt: {NOWHERE}"),
    "no images": ("predict --checkpoint={sec} --images={s3}/no", f"{NOWHERE}: {{s3}}/no"),
    "cut short": ("evaluate --checkpoint={s3}/cut.ckpt", "{s3}/cut.ckpt cannot be read as a checkpoint: "),
    "no weights": (
        "fit --config=sec_demo.yaml --data.root={voc} --data.cues={cues} --model.weights={s3}/no.pth",
        f"{NOWHERE}",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(in_bucket, s3, checkpoint, tmp_path, capsys, mistake) -> None:
    """Exit status 1, and nothing is written."""
    write_atomically(UPath(f"{s3}/cut.ckpt"), checkpoint.read_bytes()[:5000])
    places = {"s3": s3, "sec": in_bucket["checkpoint"], "voc": in_bucket["voc"], "cues": in_bucket["cues"]}
    words, message = (text.format(**places) for text in MISTAKES[mistake])
    assert main([*words.split(), f"--output={tmp_path / 'out'}"]) in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command",
    ["predict --checkpoint={checkpoint} --images={voc}", "evaluate --checkpoint={checkpoint}",
     "seeds evaluate --cache={cues}", "fit --config=sec_demo.yaml --data.root={voc}", "run --config=demo.yaml"],
)  # fmt: skip
def test_results_go_to_no_folder_named_like_a_uri(in_bucket, tmp_path, capsys, monkeypatch, command) -> None:
    configs = Path(__file__).resolve().parents[2] / "configs"
    words = command.format(**in_bucket).replace("--config=", f"--config={configs}/")
    monkeypatch.chdir(tmp_path)
    assert main([*words.split(), "--output=s3://bucket/results"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must be a local path, not s3://bucket/results" in line
    assert not list(tmp_path.iterdir())


def test_missing_credentials_end_a_process_with_one_sentence(in_bucket) -> None:
    """No traceback, exit status 1."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_ACCESS_KEY")}
    command = [sys.executable, "-m", "training.cli", "seeds", "info", f"--cache={in_bucket['cues']}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    reason = "access is denied, check the credentials (Unable to locate credentials)"
    assert re.fullmatch(rf"tag2mask: {in_bucket['cues']}\S* .*: {re.escape(reason)}\n", done.stderr)
    assert done.returncode == 1


def test_a_recipe_notices_what_changes_in_a_bucket(s3, voc, tmp_path, capsys, monkeypatch) -> None:
    """A stage is kept until a mask behind its URI changes."""
    monkeypatch.setattr("training.recipes.runner.run_process", lambda words, _title: main(list(words)))
    root = upload(voc, f"{s3}/recipe/voc")
    options = {"root": root, "predictions": f"{root}/SegmentationClass"}
    content = {"output": str(tmp_path / "out"), "stages": {"score": {"command": "evaluate", "options": options}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    mask, other = (UPath(root) / f"SegmentationClass/val_0000{index}.png" for index in (0, 1))
    states = []
    for change in (False, False, True, False):
        if change:
            write_atomically(mask, other.read_bytes())
        assert main(["run", f"--config={tmp_path / 'recipe.yaml'}"]) == 0, capsys.readouterr().err
        states.append(json.loads((tmp_path / "out/summary.json").read_text())["stages"][0]["state"])
    assert states == ["done", "kept", "done", "kept"]
