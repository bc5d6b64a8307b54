"""Options of a command without its imports, job options, and commands that need no network without torch."""

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from upath import UPath

from datamodules.errors import InputError, UsageError
from seeds.job_options import JobOptions
from tests.seed_caches import CacheWriter
from tests.seeds.test_import_seeds import irn_folder
from training.cli import FUNCTIONS, main
from training.parsers import find_configs, read_config, read_path, read_signature, run_function, split_lists

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "pytorch_lightning", "torchvision", "albumentations", "numba", "segmentation_models_pytorch")
RUN = """
import json, sys
from training.cli import main
statuses = [main(words) for words in json.loads(sys.argv[1])]
print(json.dumps([statuses, [name for name in json.loads(sys.argv[2]) if name in sys.modules]]))
"""


def in_a_process(*commands: list[str]) -> tuple[list[int], list[str]]:
    """Exit statuses of commands run one after the other in a process, and the heavy modules it imported."""
    words = [sys.executable, "-c", RUN, json.dumps(commands), json.dumps(HEAVY)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_a_file_uri_is_a_local_path(tmp_path):
    assert read_path(f"file://{tmp_path}/seeds") == UPath(tmp_path / "seeds")
    assert isinstance(read_path(f"file://{tmp_path}"), Path)


def test_a_folder_whose_name_is_a_number():
    """A YAML reads it as a number."""
    assert read_path(2024) == UPath("2024")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_that_is_read_is_that_of_the_function(name):
    target = FUNCTIONS[name][0]
    module, function = target.split(":")
    real = getattr(importlib.import_module(module), function)
    stub = read_signature(target)
    assert inspect.signature(stub) == inspect.signature(real, eval_str=True)
    assert get_type_hints(stub) == get_type_hints(real)
    assert inspect.getdoc(stub) == inspect.getdoc(real)
    assert len(stub.__code__.co_code) < 40  # without the body


def test_a_signature_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "commands_of_a_test.py").write_text("import torch as t\n\ndef one(x: t.Tensor, y=unknown): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NameError, match="unknown"):
        read_signature("commands_of_a_test:one")


JOB = '''
from pathlib import Path
from seeds.job_options import JobOptions
called = []
def command(cache: Path, *, size: int = 3, job: JobOptions = JobOptions()) -> None:
    """Do it.

    Args:
        cache: a cache.
        size: a side.
        job: options of the job.
    """
    called.append((cache, size, job))
'''


def test_fields_of_a_job_are_plain_options(tmp_path, monkeypatch, capsys):
    """On the command line and in YAML, with their help, types and defaults."""
    (tmp_path / "job_of_a_test.py").write_text(JOB)
    (tmp_path / "job.yaml").write_text("cache: c\ndevices: 2\nstrict: true\n")
    monkeypatch.syspath_prepend(tmp_path)
    target = "job_of_a_test:command"
    run_function(target, "a test", "test", [f"--config={tmp_path / 'job.yaml'}", "--threads=3", "--size=4"])
    module = importlib.import_module("job_of_a_test")
    assert module.called == [(Path("c"), 4, JobOptions(devices=2, strict=True, threads=3))]
    for words, message in (
        (["--cache=c", "--devics=2"], "there is no option 'devics'; did you mean 'devices'"),
        (["--cache=c", "--job.devices=2"], "there is no option 'job.devices' here, only in another group"),
        (["--cache=c", "--threads=many"], "threads: expected int"),
        (["--cache=c", "--threads=0"], "threads 0 must be positive"),
    ):
        with pytest.raises(InputError, match=message):
            run_function(target, "a test", "test", words)
    with pytest.raises(SystemExit):
        run_function(target, "a test", "test", ["--help"])
    assert "images per file. (type: int, default: 256)" in capsys.readouterr().out


def test_help_imports_no_network():
    names = [*(name.split() for name in FUNCTIONS), ["run"]]
    statuses, imported = in_a_process(["--help"], ["seeds"], ["--version"], *([*name, "--help"] for name in names))
    assert set(statuses) == {0}
    assert imported == []


def test_mistakes_are_found_without_a_network():
    statuses, imported = in_a_process(
        ["evaluate", "--chekpoint=x"], ["seeds", "generate", "--flip=perhaps"], ["predit"]
    )
    assert statuses == [2, 2, 2]
    assert imported == []


def test_commands_that_need_no_network_import_none(tmp_path):
    generator = np.random.default_rng(0)
    with CacheWriter(tmp_path / "cache", ("ant", "bat", "cow"), {}) as writer:
        for name in "abc":
            maps = generator.random((1, 5, 5), np.float32)
            cues = generator.choice([0, 2, 255], (5, 5)).astype(np.uint8)
            writer.add(name, cues, map_classes=np.array([1]), maps=maps, saliency=generator.random((5, 5), np.float32))
    (tmp_path / "metrics.json").write_text(json.dumps({"miou": 0.5, "iou": {"ant": 0.5}, "images": 3}))
    irn_folder(tmp_path)
    cache = f"--cache={tmp_path / 'cache'}"
    source = tmp_path / "sec/localization_cues.pickle"
    commands = [
        ["compare", str(tmp_path / "metrics.json"), str(tmp_path / "metrics.json")],
        ["seeds", "info", cache],
        ["seeds", "verify", cache],
        ["seeds", "threshold", cache, f"--output={tmp_path / 'thresholded'}", "--fg_threshold=0.3"],
        ["seeds", "export", cache, "--format=sec", f"--output={tmp_path / 'sec'}"],
        ["seeds", "export", cache, "--format=png", f"--output={tmp_path / 'png'}"],
        ["seeds", "import", "--format=sec", f"--source={source}", f"--output={tmp_path / 'a'}", "--grid=5"],
        ["seeds", "import", "--format=png", f"--source={tmp_path / 'png'}", f"--output={tmp_path / 'b'}"],
        ["seeds", "import", "--format=irn", f"--source={tmp_path / 'npy'}", f"--output={tmp_path / 'c'}"],
    ]
    statuses, imported = in_a_process(*commands)
    assert statuses == [0] * len(commands)
    assert imported == []


@pytest.mark.parametrize(("words", "expected"), [
    (["--classes", "cat,dog"], ["--classes", '["cat", "dog"]']), (["--classes=cat"], ['--classes=["cat"]']),
    (["--classes=big cat, dog"], ['--classes=["big cat", "dog"]']), (["--classes=[a, b]"], ["--classes=[a, b]"]),
    (["--classes", "null"], ["--classes", "null"]), (["--root", "a,b"], ["--root", "a,b"]),
    (["--classes", "--root", "x"], ["--classes", "--root", "x"]), (["classes", "a,b"], ["classes", "a,b"]),
])  # fmt: skip
def test_lists_of_names_without_brackets(words, expected):
    assert split_lists(words, {"classes"}) == expected


def test_options_that_are_lists_of_names(capsys):
    with pytest.raises(SystemExit):
        run_function(*FUNCTIONS["check"], "check", ["--root=x", "--classes", "cat,dog", "--print_config"])
    assert "classes:\n- cat\n- dog\n" in capsys.readouterr().out


@pytest.mark.parametrize(("command", "word", "option"), [
    ("check", "photos", "root"), ("seeds info", "runs/seeds", "cache"), ("seeds evaluate", "runs/seeds", "cache"),
    ("evaluate", "photos", "root"), ("evaluate", "last.ckpt", "checkpoint"), ("predict", "photos", "images"),
])  # fmt: skip
def test_a_path_without_its_option(command, word, option):
    with pytest.raises(UsageError, match=f"'{word}' is no option; did you mean --{option} {word}"):
        run_function(*FUNCTIONS[command], command, [word])


def test_images_of_explain_have_no_option():
    words = ["--images=photos", "--checkpoint=x", "--output=y"]
    for given in (words, ["a.jpg", *words]):
        with pytest.raises(UsageError, match="images are given without an option"):
            run_function(*FUNCTIONS["explain"], "explain", given)


def test_the_folder_of_a_recipe_for_its_checkpoint(tmp_path):
    (tmp_path / "network").mkdir()
    (tmp_path / "network/last.ckpt").write_bytes(b"")
    (tmp_path / "classifier").mkdir()
    (tmp_path / "classifier/last.ckpt").write_bytes(b"")
    os.utime(tmp_path / "classifier/last.ckpt", (0, 0))
    words = [f"--checkpoint={tmp_path}", "--images=photos", f"--output={tmp_path / 'masks'}"]
    with pytest.raises(InputError, match=r"is a folder: its checkpoint is .*network/last\.ckpt"):
        run_function(*FUNCTIONS["predict"], "predict", words)


@pytest.mark.parametrize("words", [
    ["--config", "configs/sec_demo.yaml"], ["-c", "configs/sec_demo.yaml"], ["--config=sec_demo.yaml"],
    ["-c", "./sec_demo.yaml"],
])  # fmt: skip
def test_a_yaml_of_the_program_in_any_working_folder(tmp_path, monkeypatch, words):
    """By its name, and as the README writes it; a file of this name in the working folder has priority."""
    monkeypatch.chdir(tmp_path)
    shipped = str(ROOT / "configs/sec_demo.yaml")
    assert find_configs(["fit", *words])[-1].removeprefix("--config=") == shipped
    name = words[-1].removeprefix("--config=")
    (tmp_path / "configs").mkdir()
    (tmp_path / name).write_text("output: grün\n", encoding="utf-8")
    assert find_configs(["fit", *words])[-1].removeprefix("--config=") == str(Path(name))
    assert read_config(name)[1] == {"output": "grün"}


@pytest.mark.parametrize("names", ["[no, cat]", "[cat, null]", "[cat, 7]", "[1.5]"])
def test_names_that_yaml_reads_as_other_values(tmp_path, capsys, names):
    """The message names the remedy, which works."""
    (tmp_path / "check.yaml").write_text(f"root: {tmp_path}\nclasses: {names}\n")
    words = ["check", f"--config={tmp_path / 'check.yaml'}"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "classes: expected str, got " in error
    assert error.endswith("; put names such as no, on, null and numbers in quotes\n")
    (tmp_path / "check.yaml").write_text(f"root: {tmp_path}\nclasses: ['no', 'on']\n")
    assert main(words) == 1
    assert "in quotes" not in capsys.readouterr().err
