"""The record of a run in its folder, its checkpoints, at Weights & Biases and in evaluations."""

import csv
import errno
import hashlib
import html
import json
import pickle
import re
import struct
from types import SimpleNamespace

import pytest
import torch
import yaml
from wandb.proto.wandb_internal_pb2 import Record

from datamodules.sample import multi_hot
from datamodules.seed_cache import SeedCache
from seeds.provenance import git_revision
from tests.training.conftest import data_of
from tests.training.fits import CONFIGS, fit, read_record
from training.cli import main
from training.runs.provenance_record import RunRecord, provenance_lines, read_provenance

BATCHES = 3  # an epoch: nine images, three a batch


@pytest.fixture(scope="module")
def run(voc, cues, tmp_path_factory):
    """A run of one epoch, resumed for a second one with other options; logged to Weights & Biases, offline."""
    folder = tmp_path_factory.mktemp("experiment") / "run"
    assert fit(voc, cues, folder, "--wandb=offline") == 0
    words = ("--wandb=offline", "--trainer.max_epochs=2", "--trainer.gradient_clip_val=100", "--ckpt_path=last")
    assert fit(voc, cues, folder, *words) == 0
    return folder


def test_the_folder_records_what_made_the_run(run, voc, cues):
    record = read_record(run)
    first, second = record["attempts"]
    assert (first["from_step"], second["from_step"]) == (0, BATCHES)
    assert record["finished"] is True
    for attempt in record["attempts"]:
        assert attempt["seed"] == 0
        assert attempt["torch"] == {"threads": torch.get_num_threads(), "processes": 1, "device": "cpu"}
        assert attempt["packages"]["torch"] == torch.__version__.split("+")[0]
        assert {"pytorch-lightning", "numpy", "python"} <= attempt["packages"].keys()
        assert attempt.get("git") == git_revision(CONFIGS.parent)
        names = (voc / "ImageSets/Segmentation/train.txt").read_text().split()
        assert attempt["data"]["images"] == len(names) == 9
        assert attempt["data"]["images_sha256"] == hashlib.sha256("\n".join(names).encode()).hexdigest()
        data = data_of(voc)
        labels = multi_hot(data.samples("train"), data.classes)
        assert attempt["data"]["labels_sha256"] == hashlib.sha256(labels.tobytes()).hexdigest()
        assert attempt["cache"]["fingerprint"] == SeedCache(cues).fingerprint
    assert (first["config"]["trainer"]["gradient_clip_val"], second["config"]["trainer"]["gradient_clip_val"]) == (
        None,
        100,
    )


def test_the_configuration_is_the_whole_one(run):
    """The recorded configuration of an attempt is that of config.yaml, with which it can be run again."""
    written = yaml.safe_load((run / "config.yaml").read_text())
    recorded = read_record(run)["attempts"][-1]["config"]
    assert {key: recorded[key] for key in written} == written
    assert recorded["model"]["init_args"]["lr"] == 1e-3


def test_the_figures_are_those_of_the_last_validation(run):
    with (run / "metrics.csv").open(newline="") as file:
        logged = [row["val/miou"] for row in csv.DictReader(file) if row["val/miou"]]
    assert read_record(run)["figures"]["val/miou"] == pytest.approx(float(logged[-1]), rel=1e-6)


def test_each_checkpoint_holds_the_same(run):
    record = read_record(run)
    inside = torch.load(run / "last.ckpt", weights_only=True)["provenance"]
    assert inside == {"attempts": record["attempts"], "figures": record["figures"]}


def test_validation_leaves_the_trainings_record_alone(run, voc, cues):
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "provenance.json")}
    assert fit(voc, cues, run, f"--ckpt_path={run / 'last.ckpt'}", command="validate") == 0
    assert {name: (run / name).read_bytes() for name in before} == before


# --- evaluate


def test_evaluate_prints_it(run, tmp_path, capsys):
    assert main(["evaluate", f"--checkpoint={run / 'last.ckpt'}", f"--output={tmp_path}", "--num_images=2"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["provenance"] == torch.load(run / "last.ckpt", weights_only=True)["provenance"]
    page = html.unescape((tmp_path / "index.html").read_text())
    attempt = metrics["provenance"]["attempts"][-1]
    for fact in (
        attempt["cache"]["fingerprint"][:12],
        f"torch {attempt['packages']['torch']}",
        f"from step {BATCHES}",
    ):
        assert fact in printed
        assert fact in page
    assert attempt.get("git", "no git revision") in printed


def test_a_checkpoint_without_record_is_evaluated(run, tmp_path, capsys):
    old = torch.load(run / "last.ckpt", weights_only=True)
    del old["provenance"]
    torch.save(old, tmp_path / "old.ckpt")
    assert main(["evaluate", f"--checkpoint={tmp_path / 'old.ckpt'}", f"--output={tmp_path}", "--num_images=0"]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["provenance"] is None
    assert "seed cache" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "record",
    [
        None,
        3,
        [],
        {},
        {"attempts": []},
        {"attempts": 3},
        {"attempts": [torch.ones(1)]},
        {"attempts": [{"a": float("nan")}]},
    ],
)
def test_an_invalid_record_is_none(record):
    assert read_provenance({"provenance": record}) is None


def test_revisions_of_all_attempts_are_listed():
    attempts = [{"git": "a" * 40, "from_step": 0}, {"git": "a" * 40, "from_step": 3}, {"from_step": 6}]
    lines = dict(provenance_lines({"attempts": attempts}))
    assert lines["code"] == f"{'a' * 40}, then no git revision"
    assert "from step 6" in lines["trained"]


def test_figures_that_are_not_finite_are_left_out(tmp_path):
    """A record with one would be no JSON for other programs."""
    record = RunRecord(tmp_path, {})
    figures = {"val/a": torch.tensor(0.5), "val/b": torch.tensor(float("nan")), "train/loss": torch.tensor(1.0)}
    record.on_validation_end(SimpleNamespace(sanity_checking=False, callback_metrics=figures), None)
    assert record.figures == {"val/a": 0.5}
    record.on_validation_end(SimpleNamespace(sanity_checking=True, callback_metrics={}), None)
    assert record.figures == {"val/a": 0.5}


@pytest.mark.parametrize(("digest", "origin"), [("0123456789abcdef", "by 0123456789ab…"), (None, "imported")])
def test_the_origin_of_a_seed_cache_is_shown(digest, origin):
    cache = {"path": "runs/seeds", "fingerprint": "f" * 64, "checkpoint_sha256": digest}
    lines = dict(provenance_lines({"attempts": [{"cache": cache}]}))
    assert lines["seed cache"] == f"runs/seeds (fingerprint ffffffffffff…, {origin})"


# --- Weights & Biases


def records(path):
    """The records in the file of a run at Weights & Biases.

    LevelDB's log format: after 7 bytes of header, blocks of 32 KiB of fragments: checksum, length, kind (1 whole,
    2 first, 3 middle, 4 last), content.
    """
    content, place, body = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        body += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield Record.FromString(body)
            body = b""


def items(entries):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in entries}


@pytest.fixture(scope="module")
def offline(run):
    """Each attempt's folder, configuration and history."""
    found = []
    for file in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        config, history = {}, []
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind in ("run", "config"):
                update = record.run.config.update if kind == "run" else record.config.update
                config |= items(update)
            elif kind == "history":
                history.append(items(record.history.item))
        found.append((file.parent, config, history))
    return found


def test_both_attempts_are_one_run(offline):
    """The same id, and rows that do not overlap, so that `wandb sync --append` adds the later ones."""
    one, other = (folder.name.rpartition("-")[2] for folder, _, _ in offline)
    assert one == other
    assert re.fullmatch("[0-9a-z]{8}", one)
    first, second = ([row["_step"] for row in history] for _, _, history in offline)
    assert first == sorted(set(first))
    assert second == sorted(set(second))
    assert max(first) < min(second)


def test_it_holds_the_configuration(run, offline):
    attempts = read_record(run)["attempts"]
    for number, (_, config, _) in enumerate(offline):
        assert config["config"] == attempts[number]["config"]
        assert config["provenance"] == {"attempts": attempts[: number + 1]}
        assert config["architecture"] == "DeepLabV3Plus"


def test_it_holds_the_curves(run, offline):
    """Each figure of metrics.csv is in the history, at its step."""
    rows = [row for _, _, history in offline for row in history]
    with (run / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    logged = [(row["step"], name, value) for row in table for name, value in row.items() if value]
    assert {name for _, name, _ in logged} >= {"train/loss", "train/seed", "train/constrain", "val/miou", "epoch"}
    for step, name, value in logged:
        if name == "step":
            continue
        there = [row.get(name) for row in rows if row.get("trainer/global_step") == int(step)]
        assert any(found is not None and found == pytest.approx(float(value), rel=1e-5) for found in there), (
            step,
            name,
        )


def test_it_holds_the_images(offline):
    """Panels of training and validation, of both attempts, are named in the history and on disk."""
    for folder, _, history in offline:
        for key in ("train/images", "val/images"):
            names = [row[f"{key}/filenames"] for row in history if f"{key}/filenames" in row]
            assert names, key
            assert all((folder / "files" / name).stat().st_size > 100 for each in names for name in each)


def test_a_file_system_without_locks(voc, cues, tmp_path, monkeypatch, capsys):
    def no_locks(_lock):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("training.folder_lock.FileLock.acquire", no_locks)
    assert fit(voc, cues, tmp_path / "run") == 0
    message = f"{tmp_path / 'run'} cannot be locked: Function not implemented; start no other process that uses it"
    assert message in capsys.readouterr().err


def test_it_goes_to_processes_that_are_spawned(tmp_path):
    assert pickle.loads(pickle.dumps(RunRecord(tmp_path, {"seed": 1}))).config == {"seed": 1}
