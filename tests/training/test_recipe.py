"""`tag2mask run`: mistakes in recipes, which stages run, which are kept, how a stopped recipe resumes."""

import csv
import importlib
import inspect
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import psutil
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ActionConfigFile, ArgumentParser
from PIL import Image

from datamodules import files
from datamodules.base_datamodule import BaseDataModule
from datamodules.errors import InputError, UsageError
from datamodules.files import file_sizes, write_json
from datamodules.masks import write_mask
from datamodules.seed_cache import SeedCache
from datamodules.source_revision import ALL_PACKAGES
from tests.processes import child, exit_status, kill
from training.cli import FUNCTIONS, LIGHTNING, dispatch, main
from training.parsers import UniqueKeyLoader
from training.recipes import recipe as recipe_file
from training.recipes import runner as runner_module
from training.recipes import stage_result
from training.recipes.estimate import estimate_training, process_count, time_step
from training.recipes.input_checks import InputChecks
from training.recipes.recipe import Stage, read_recipe, substitute
from training.recipes.runner import Runner
from training.recipes.stage_result import StageResult, read_figures

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROOT = CONFIGS.parent
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "precision": "32-true"}
SMALL = {"train": "{images}", "val": 4, "image_size": 48, "size": 48, "batch_size": 4, "num_workers": 0}
ALL = ["classifier", "seeds", "quality"]


class RecipeFolder:
    """A recipe of a classifier, its seeds and their figures, all very small, and the data set beside it."""

    def __init__(self, folder: Path, data: Path):
        self.path, self.output, self.data = folder / "recipe.yaml", folder / "out", data

    def content(self, epochs: int = 1) -> dict:
        data = {"init_args": {"root": f"{self.data}/{{images}}", **SMALL}}
        seeds = {"checkpoint": "{classifier}/last.ckpt", "num_workers": 0, "flip": False, "precision": "32-true"}
        return {
            "output": str(self.output),
            "settings": {"images": 8},
            "stages": {
                "classifier": {
                    "command": "fit",
                    "config": "classifier_demo.yaml",
                    "options": {"data": data, "trainer": {"max_epochs": epochs, **QUIET}},
                },
                "seeds": {"command": "seeds generate", "config": "seeds_demo.yaml", "options": seeds},
                "quality": {"command": "seeds evaluate", "options": {"cache": "{seeds}"}},
            },
        }

    def run(self, content: dict | None = None, *words: str) -> int:
        self.path.write_text(yaml.safe_dump(content or self.content(), sort_keys=False))
        return main(["run", f"--config={self.path}", *words])


def run_here(words, _title):
    return main(list(words))


@pytest.fixture
def ran(monkeypatch):
    """Run the commands in this process, and collect them; the last tests run them in their own processes."""
    commands = []

    def run_and_record(words, title):
        commands.append(words)
        return run_here(words, title)

    monkeypatch.setattr(runner_module, "run_process", run_and_record)
    return commands


def names(ran) -> list[str]:
    """The stages that ran, by their YAMLs; forget them."""
    found = [next(Path(word).stem for word in words if word.startswith("--config=")) for words in ran]
    ran.clear()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe that has run; not to be changed."""
    folder = tmp_path_factory.mktemp("recipe")
    recipe = RecipeFolder(folder, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "run_process", run_here)
        assert recipe.run() == 0
    return recipe


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it in another folder: keys do not depend on the folder of the output."""
    shutil.copytree(whole.output, tmp_path / "out")
    return RecipeFolder(tmp_path, whole.data)


def test_a_recipe_writes_results_records_and_a_summary(whole):
    """A folder and a record per stage, a summary with the stages' figures, and the last stage's result at the top."""
    out = whole.output
    summary = json.loads((out / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ALL
    assert {stage["state"] for stage in summary["stages"]} == {"done"}
    figures = {stage["name"]: stage["figures"] for stage in summary["stages"]}
    quality = json.loads((out / "quality/metrics.json").read_text())
    assert figures["quality"] == {key: quality[key] for key in ("miou_fixed", "miou_otsu", "miou_oracle", "miou_cues")}
    with (out / "classifier/metrics.csv").open() as file:
        logged = [float(row["val/map"]) for row in csv.DictReader(file) if row["val/map"]]
    assert figures["classifier"] == {"val/map": pytest.approx(logged[-1])}
    assert (out / "metrics.json").read_bytes() == (out / "quality/metrics.json").read_bytes()
    assert {path.name for path in (out / "stages").iterdir()} - {"lock"} == {
        f"{name}.{end}" for name in ALL for end in ("json", "yaml")
    }


def test_nothing_changed_nothing_runs(whole, copied, ran):
    """The same command again keeps every stage, with the time it took."""
    assert copied.run() == 0
    assert names(ran) == []
    before = {
        stage["name"]: stage["seconds"] for stage in json.loads((whole.output / "summary.json").read_text())["stages"]
    }
    summary = json.loads((copied.output / "summary.json").read_text())
    assert {stage["name"]: stage["seconds"] for stage in summary["stages"]} == before
    assert {stage["state"] for stage in summary["stages"]} == {"kept"}


def test_the_summary_shows_minutes(copied, ran, capsys):
    path = copied.output / "stages/seeds.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seconds": 90}))
    assert copied.run() == 0
    (row,) = (line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│ seeds "))
    assert [text.strip() for text in row[1:4]] == ["seeds", "kept", "1.5"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resumed": True}))  # the minutes before are not known
    assert copied.run() == 0
    (row,) = (line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│ seeds "))
    assert row[3].strip() == "1.5 since resumed"


def test_stages_run_again_after_a_change_of_their_code(copied, ran, monkeypatch, capsys):
    """A stage depends on the packages that run it: commands of seeds on `datamodules` and `seeds` alone."""
    before = runner_module.source_revision(ALL_PACKAGES)
    for package in ("datamodules", "training"):
        before[package] += " changed"
        monkeypatch.setattr(
            runner_module, "source_revision", lambda packages: {name: before[name] for name in packages}
        )
        assert copied.run() == 0
        assert names(ran)[0] == "classifier"
        assert f"source.{package} has changed" in capsys.readouterr().out
    records = {name: json.loads((copied.output / f"stages/{name}.json").read_text()) for name in ALL}
    sources = {name: set(record["dependencies"]["source"]) for name, record in records.items()}
    of_seeds = {"datamodules", "seeds"}
    assert sources == {"classifier": set(ALL_PACKAGES), "seeds": of_seeds, "quality": of_seeds}


def test_only_options_that_are_paths_count_as_files(copied, ran, monkeypatch):
    """A folder with the name of a split, a command or a setting is no data of a stage."""
    monkeypatch.chdir(copied.path.parent)
    for name in ("train", "val", "cpu", "resnet18", "imagesets", "adamw"):
        (copied.path.parent / name).mkdir()
        (copied.path.parent / name / "notes.txt").write_text("not of the recipe")
    assert copied.run() == 0
    assert names(ran) == []


def test_every_option_that_is_a_path_is_known_as_one():
    """The table of options agrees with the types in the commands' signatures."""
    found = set()
    for target, _ in FUNCTIONS.values():
        module, name = target.split(":")
        hints = get_type_hints(getattr(importlib.import_module(module), name))
        found |= {
            key for key, hint in hints.items() if Path in (hint, *get_args(hint)) or "Path" in str(get_args(hint))
        }
    assert found - {"output", "return"} <= recipe_file.PATH_OPTIONS
    data_options = inspect.signature(BaseDataModule).parameters.keys()
    assert {"root", "cues", "cues_checkpoint"} <= data_options & recipe_file.PATH_OPTIONS
    assert recipe_file.is_path("model.init_args.weights", "data/x.pth")
    assert recipe_file.is_path("data.labels", "lists/cls_labels.npy")
    assert not recipe_file.is_path("data.labels", "imagesets")
    assert recipe_file.is_path("caches.1", "runs/walk")
    assert recipe_file.is_path(
        "masks", "/photos/val-masks"
    )  # of `evaluate`; they may lie outside of the images' folder
    assert recipe_file.is_path("data.init_args.masks", "/photos/val-masks")
    assert recipe_file.is_path("data.init_args.table", __file__)  # of a data module of others
    assert not recipe_file.is_path("data.init_args.table", f"{__file__}.missing")
    assert not recipe_file.is_path("data.init_args.table", "x." * 9999)


@pytest.mark.parametrize("name", ["imagenet", "none", "auto", "masks", "folders"])
def test_a_folder_with_the_name_of_a_keyword_is_no_dependency(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    option = {"imagenet": "model.weights", "none": "model.weights", "auto": "data.masks", "masks": "data.annotations"}
    assert not recipe_file.is_path(option.get(name, "data.init_args.tags"), name)
    assert recipe_file.is_path("data.root", name)


def test_a_dry_run_leaves_results_of_other_settings_in_their_places(copied, ran, monkeypatch, capsys):
    """While a stage runs with new settings, its earlier result is set aside; a dry run does not put it back.

    It lists the earlier result as kept, and those that depend on it.
    """
    changed = copied.content()
    changed["stages"]["seeds"]["options"]["fg_threshold"] = 0.25

    def killed(words, title):
        if "seeds" in title:
            raise KeyboardInterrupt

    monkeypatch.setattr(runner_module, "run_process", killed)
    assert copied.run(changed) == 130
    (copied.output / "seeds").mkdir()
    (copied.output / "seeds/0.safetensors").write_bytes(b"hours of work")
    assert copied.run(copied.content(), "--dry_run=true") == 0
    printed = capsys.readouterr().out
    assert (copied.output / "seeds/0.safetensors").read_bytes() == b"hours of work"
    assert sum("│ kept" in line for line in printed.splitlines()) == 3
    assert copied.run(copied.content()) == 0
    assert "stages to run: none" in capsys.readouterr().out
    assert cache_bytes(copied.output / "seeds") != {"0.safetensors": b"hours of work"}


def test_a_changed_option_runs_what_depends_on_it(copied, ran, capsys):
    """The stage and those that refer to it run, for a printed reason; the new result replaces the old one."""
    content = copied.content()
    content["stages"]["seeds"]["options"]["fg_threshold"] = 0.25
    assert copied.run(content) == 0
    assert names(ran) == ["seeds", "quality"]
    printed = capsys.readouterr().out
    assert "[stage 2 of 3: seeds] seeds generate: options.fg_threshold has changed\n" in printed
    assert "[stage 3 of 3: quality] seeds evaluate: " in printed
    assert yaml.safe_load((copied.output / "stages/seeds.yaml").read_text())["fg_threshold"] == 0.25
    assert not [path for path in (copied.output / "stages").iterdir() if path.name.startswith(".")]


def test_figures_before_a_change_are_reported(copied, ran, capsys):
    def stages():
        return {each["name"]: each for each in json.loads((copied.output / "summary.json").read_text())["stages"]}

    before, content = stages(), copied.content()
    content["stages"]["seeds"]["options"]["fg_threshold"] = 0.25
    for _ in range(2):  # kept, too
        assert copied.run(content) == 0
        assert "(before:" in capsys.readouterr().out
        assert stages()["quality"]["figures_before"] == before["quality"]["figures"]
        assert "figures_before" not in stages()["classifier"]
    assert not any("figures_before" in each for each in before.values())


def test_a_setting_on_the_command_line(copied, ran):
    """A setting reaches the options that refer to it, with its type; named stages run with those they need."""
    assert copied.run(None, "--images", "9", "--stages=classifier") == 0
    assert names(ran) == ["classifier"]
    assert len((copied.data / "9/ImageSets/Segmentation/train.txt").read_text().split()) == 9
    assert copied.run(None, "--images=9", "--stages=seeds") == 0
    assert names(ran) == ["seeds"]


@pytest.mark.parametrize(("default", "text", "value"), [
    ("photos", "2024", "2024"), ("photos", "few #1", "few #1"), ("photos", "Fotos: neu", "Fotos: neu"),
    ("photos", "null", "null"), ("auto", "32-true", "32-true"), (0, "3", 3), (8, "[3, 4]", [3, 4]),
    ([], "[a, b]", ["a", "b"]), ([], "a,b", ["a", "b"]), (["x"], "a", ["a"]), ([], "null", None), ([], "[]", []),
    (None, "few #1.csv", "few #1.csv"), (None, "[a.csv, b.txt]", ["a.csv", "b.txt"]), (None, "null", None),
    (None, "a: b.csv", "a: b.csv"), (None, "[a", "[a"), (None, "3", 3),
])  # fmt: skip
def test_values_of_settings(tmp_path, default, text, value):
    """A text where the recipe has a text, such as the name of a folder; else YAML."""
    path = tmp_path / "r.yaml"
    stages = {"cues": {"command": "seeds generate", "options": {"layer": "{it}"}}}
    path.write_text(yaml.safe_dump({"output": "out", "settings": {"it": default}, "stages": stages}))
    (stage,) = read_recipe(path, ["seeds generate"], {"it": text})[1]
    assert stage.options["layer"] == value


@pytest.mark.parametrize(("epochs", "more", "problem"), [
    ("{network_epochs}", {}, "stage 'network': network_epochs is 0, and must be at least 1"),
    (-3, {"max_steps": 5}, "stage 'network': trainer.max_epochs is -3, and must be at least 1"),
    (-1, {}, "stage 'network': trainer.max_epochs is -1, and must be at least 1"),
    (-1, {"max_steps": 5}, ""), (1, {}, ""), (None, {}, ""),
])  # fmt: skip
def test_a_training_has_an_epoch(copied, capsys, epochs, more, problem):
    """Otherwise it would end without a checkpoint, in place of an earlier one: nothing is touched."""
    trainer = {"max_epochs": epochs, **more}
    content = {
        "output": str(copied.output), "settings": {"network_epochs": 12},
        "stages": {"network": {"command": "fit", "options": {"trainer": trainer}}},
    }  # fmt: skip
    copied.path.write_text(yaml.safe_dump(content))
    if not problem:
        assert len(read_recipe(copied.path, ["fit"], {"network_epochs": "0"})[1]) == 1
        return
    before = file_sizes(copied.output)
    assert copied.run(content, "--network_epochs=0") == 2
    assert problem in capsys.readouterr().err
    assert file_sizes(copied.output) == before


@pytest.mark.parametrize("words", [
    ("--dry-run",), ("--dry_run",), ("--dry_run", "True"), ("--dry-run=yes",), ("--dry-run", "--images=8"),
])  # fmt: skip
def test_ways_to_ask_for_a_dry_run(copied, monkeypatch, words):
    estimated = []
    monkeypatch.setattr(Runner, "estimate", lambda _runner, stages: estimated.append(len(stages)))
    assert copied.run(None, *words) == 0
    assert estimated == [3]


def test_values_of_a_dry_run(copied, ran, capsys):
    """One name in the help, and a sentence for a value that is no boolean."""
    assert copied.run(None, "--dry_run=maybe") == 2
    assert "argument --dry_run: expected true or false, got maybe" in capsys.readouterr().err
    assert copied.run(None, "--help") == 0
    assert "--dry-run" not in capsys.readouterr().out
    assert copied.run(None, "--dry_run", "No") == 0
    assert names(ran) == []


@pytest.mark.parametrize(("text", "value"), [
    ("cat,dog", ["cat", "dog"]), ("cat", ["cat"]), ("[cat, dog]", ["cat", "dog"]), ("null", None),
])  # fmt: skip
def test_classes_without_brackets(text, value):
    (stage, *_) = read_recipe(CONFIGS / "photos.yaml", [*LIGHTNING, *FUNCTIONS], {"classes": text})[1]
    assert stage.options["data"]["init_args"]["classes"] == value


def test_a_slash_behind_a_folder_changes_nothing(copied, ran):
    content = copied.content()
    content["settings"]["data"] = str(copied.data)
    content["stages"]["classifier"]["options"]["data"]["init_args"]["root"] = "{data}/8"
    assert copied.run(content) == 0
    content["stages"]["classifier"]["options"]["data"]["init_args"]["root"] = "{data}/./8/"
    ran.clear()
    assert copied.run(content) == 0
    assert names(ran) == []


def test_results_are_not_written_into_the_folder_of_the_images(copied, ran, capsys):
    content = copied.content()
    content["stages"]["classifier"]["options"]["data"]["init_args"]["root"] = "photos"
    assert copied.run(content, "--output=./photos/") == 2
    assert "photos is the folder of the images: choose another --output" in capsys.readouterr().err
    assert ran == []


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("classifier/last.ckpt", None, ["classifier", "seeds", "quality"]),  # lost
        ("quality/metrics.json", "{}", ["quality"]),  # changed
        ("classifier/note.txt", "mine", []),  # files of the user beside the result do no harm
    ],
)
def test_a_damaged_result_is_made_again(copied, ran, path, content, expected):
    """A result is made again if its files are missing or have changed."""
    file = copied.output / path
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert copied.run() == 0
    again = names(ran)
    assert again[:1] == expected[:1]
    assert set(expected) >= set(again)  # a training that ends in the same bytes changes nothing after it


def test_the_page_of_the_last_stage_is_at_the_top(copied, ran):
    """Beside its figures."""
    for name in ("index.html", "metrics.csv"):
        (copied.output / "quality" / name).write_text(name)
    assert copied.run() == 0
    assert (copied.output / "index.html").read_text() == "index.html"
    assert (copied.output / "metrics.csv").read_text() == "metrics.csv"


def test_files_outside_the_output_count(copied, ran):
    """A stage runs again when a file changes that an option names."""
    weights = copied.path.parent / "other.ckpt"
    shutil.copy(copied.output / "classifier/last.ckpt", weights)
    content = copied.content()
    content["stages"]["seeds"]["options"]["checkpoint"] = str(weights)
    assert copied.run(content) == 0
    assert names(ran) == ["seeds", "quality"]
    checkpoint = torch.load(weights, weights_only=True)
    checkpoint["state_dict"] = {key: value * 1.01 for key, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, weights)
    assert copied.run(content) == 0
    assert names(ran) == ["seeds", "quality"]


def test_annotations_and_their_masks_count(copied, ran, capsys):
    """A stage runs again when a table of annotations changes, or a mask in it; other stages are kept."""
    folder = copied.path.parent / "drawn"
    folder.mkdir()
    mask = folder / "m.png"
    shutil.copy(copied.data / "8/SegmentationClass/train_00000.png", mask)
    table = folder / "table.csv"
    table.write_text("id,mask\ntrain_00000,m.png\n")
    content = copied.content()
    content["settings"]["annotations"] = None
    trained = json.loads(json.dumps(content["stages"]["classifier"]))
    trained["options"]["data"]["init_args"]["annotations"] = "{annotations}"
    content["stages"]["annotated"] = trained
    for words in ([], ["--annotations", str(table)], ["--annotations", f"[{table}]"]):
        assert copied.run(content, *words) == 0
        assert names(ran) == ["annotated"]
        assert copied.run(content, *words) == 0
        assert names(ran) == []
    reasons = re.findall(
        r"annotated\] fit: options\.data\.init_args\.annotations(\.0)? has changed\n", capsys.readouterr().out
    )
    assert len(reasons) == 2
    write_mask(mask, 1 - np.array(Image.open(mask)).clip(0, 1))
    assert copied.run(content, *words) == 0
    assert names(ran) == ["annotated"]
    assert f"annotated] fit: files.{mask} has changed\n" in capsys.readouterr().out
    shutil.copy(copied.data / "8/SegmentationClass/train_00001.png", folder / "n.png")
    table.write_text("id,mask\ntrain_00000,m.png\ntrain_00001,n.png\n")
    assert copied.run(content, *words) == 0
    assert re.search(r"annotated\] fit: files\..*(table.csv has changed|n.png is new)\n", capsys.readouterr().out)


def test_a_file_that_changes_during_a_stage_counts_for_the_next_run(copied, ran, monkeypatch):
    """The result is of the earlier file, and the next run makes it again."""
    table = copied.path.parent / "table.csv"
    table.write_text('id,points\ntrain_00000,"[[""background"", 1, 1]]"\n')
    content = copied.content()
    content["stages"]["classifier"]["options"]["data"]["init_args"]["annotations"] = str(table)
    record_and_run = runner_module.run_process

    def edited_meanwhile(words, title):
        status = record_and_run(words, title)
        table.write_text('id,points\ntrain_00000,"[[""background"", 2, 2]]"\n')
        return status

    with monkeypatch.context() as patch:
        patch.setattr(runner_module, "run_process", edited_meanwhile)
        assert copied.run(content, "--stages=classifier") == 0
    ran.clear()
    assert copied.run(content, "--stages=classifier") == 0
    assert names(ran) == ["classifier"]
    assert copied.run(content, "--stages=classifier") == 0
    assert names(ran) == []


def files_in_key(tmp_path, options: dict) -> dict:
    stage = Stage("cues", "seeds generate", options, ())
    return Runner(tmp_path / "out", main)._key(stage)[1]["files"]


def test_label_files_of_yolo_count(tmp_path):
    (tmp_path / "export/labels/train").mkdir(parents=True)
    label = tmp_path / "export/labels/train/a.txt"
    label.write_text("0 0.5 0.5 0.2 0.2\n")
    source = tmp_path / "export/data.yaml"
    source.write_text("names: [cat]\n")
    found = []
    for text in ("0 0.5 0.5 0.2 0.2\n", "0 0.5 0.5 0.3 0.2\n"):
        label.write_text(text)
        runner_module._fingerprint.cache_clear()
        found.append(files_in_key(tmp_path, {"annotations": str(source)}))
    assert set(found[0]) == {str(source), str(label)}
    assert found[0][str(source)] == found[1][str(source)]
    assert found[0][str(label)] != found[1][str(label)]


@pytest.mark.parametrize("option", ["tags", "masks"])
def test_files_beside_the_root_count(tmp_path, option):
    """These options name files and folders relative to the root."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "lists").mkdir()
    found = []
    for text in ("file,tags\na.jpg,cat\n", "file,tags\na.jpg,dog\n"):
        (tmp_path / "lists/x.csv").write_text(text)
        runner_module._fingerprint.cache_clear()
        value = "../lists/x.csv" if option == "tags" else "../lists"
        nested = {"class_path": "FolderDataModule", "init_args": {"root": str(tmp_path / "photos"), option: value}}
        found.append((files_in_key(tmp_path, {"data": nested}), files_in_key(tmp_path, nested["init_args"])))
    assert all(one != other for one, other in zip(*found, strict=True))


def test_the_module_of_a_class_of_another_package_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "my_package"
    folder.mkdir()
    found = []
    for text in ("x = 1", "x = 2"):
        (folder / "tasks.py").write_text(text)
        runner_module._fingerprint.cache_clear()
        found.append(files_in_key(tmp_path, {"model": {"class_path": "my_package.tasks.MyTask"}}))
    assert [list(files) for files in found] == [[str(folder / "tasks.py")]] * 2
    assert found[0] != found[1]
    for name in ("no_such_package.A", "..A", "A", "sys.A", "training.segmentation_task.SegmentationTask"):
        assert files_in_key(tmp_path, {"model": {"class_path": name}}) == {}


@pytest.mark.parametrize("pattern", ["x-{000..001}.tar", "*.tar"])
def test_tar_files_of_a_pattern_count(tmp_path, pattern):
    (tmp_path / "shards").mkdir()
    found = []
    for size in (10, 20):
        (tmp_path / "shards/x-000.tar").write_bytes(b"0" * size)
        runner_module._fingerprint.cache_clear()
        found.append(files_in_key(tmp_path, {"images": f"{tmp_path}/shards/{pattern}"}))
    assert None not in found[0].values()
    assert found[0] != found[1]


def test_a_folder_above_the_working_folder_is_not_compared(tmp_path, monkeypatch):
    """Other programs write there."""
    (tmp_path / "note.txt").write_text("of another program")
    (tmp_path / "work").mkdir()
    (tmp_path / "work/a.txt").write_text("a")
    monkeypatch.chdir(tmp_path / "work")
    runner_module._fingerprint.cache_clear()
    assert files_in_key(tmp_path, {"root": ".."}) == {"..": None}
    assert files_in_key(tmp_path, {"root": "."})["."] is not None


def test_a_range_of_tar_files_is_no_reference(tmp_path):
    path = tmp_path / "r.yaml"
    options = "{checkpoint: a.ckpt, images: 'x-{000..099}.tar'}"
    path.write_text(f"output: out\nstages: {{cues: {{command: seeds generate, options: {options}}}}}")
    (stage,) = read_recipe(path, ["seeds generate"], {})[1]
    assert stage.options["images"] == "x-{000..099}.tar"


def test_annotations_of_an_earlier_stage_need_not_exist_yet(copied, ran, capsys):
    content = copied.content()
    content["stages"]["masks"] = {
        "command": "seeds export", "options": {"cache": "{seeds}", "format": "coco"},
    }  # fmt: skip
    trained = json.loads(json.dumps(content["stages"]["classifier"]))
    trained["options"]["data"]["init_args"]["annotations"] = "{masks}/instances.json"
    content["stages"]["annotated"] = trained
    assert copied.run(content) == 0, capsys.readouterr().err
    assert names(ran) == ["masks", "annotated"]


def test_a_stopped_command_without_training_starts_anew(tmp_path):
    """Only ``fit`` resumes from last.ckpt: the checkpoint of ``zero-shot`` is a result."""
    stage = Stage("texts", "zero-shot", {}, ())
    result = StageResult(tmp_path, stage)
    (tmp_path / "stages").mkdir()
    assert result.begin("key") is None
    (tmp_path / "texts").mkdir()
    torch.save({"epoch": 1}, tmp_path / "texts/last.ckpt")
    assert result.begin("key") is None
    assert not (tmp_path / "texts").exists()
    training = StageResult(tmp_path, Stage("texts", "fit", {}, ()))
    (tmp_path / "texts").mkdir()
    torch.save({"epoch": 1}, tmp_path / "texts/last.ckpt")
    assert training.begin("key") == ["--ckpt_path=last"]
    content = (tmp_path / "texts/last.ckpt").read_bytes()
    (tmp_path / "texts/last.ckpt").write_bytes(content[: len(content) // 2])
    assert training.begin("key") is None  # a damaged checkpoint would stop every attempt


def test_a_stopped_export_starts_anew(tmp_path):
    """The weights in its folder are no shards of a seed cache that could be completed."""
    result = StageResult(tmp_path, Stage("net", "export", {}, ()))
    (tmp_path / "stages").mkdir()
    assert result.begin("key") is None
    result.folder.mkdir()
    (result.folder / "model.safetensors").write_bytes(b"weights")
    assert result.begin("key") is None
    assert not result.folder.exists()


def test_a_dry_run_writes_nothing_and_estimates_the_trainings(copied, ran, capsys):
    before = {path: path.read_bytes() for path in copied.path.parent.rglob("*") if path.is_file()}
    assert copied.run(copied.content(epochs=3), "--dry_run", "true") == 0
    assert names(ran) == []
    printed = capsys.readouterr().out
    after = {path: path.read_bytes() for path in copied.path.parent.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if path != copied.path} == before
    (row,) = (line for line in printed.splitlines() if "classifier" in line)
    assert re.search(r"fit +│ to run │ +8 │ +6 │ +0\.00 │ +0\.0 │ 0\.\d", row)  # 8 images in batches of 4, 3 epochs
    assert "trainings: 0.0 hours, estimated by two steps of each network on this machine" in printed
    assert copied.run(None, "--dry_run=true") == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "classifier" in line)
    assert "kept" in row


def training_options(whole):
    return {
        "model": {"class_path": "ClassifierTask", "init_args": {"backbone": "resnet18", "output_stride": 32}},
        "data": {"class_path": "VOCDataModule", "init_args": {"root": f"{whole.data}/8", "size": 48, "batch_size": 4}},
        "trainer": {"max_epochs": 2, "accelerator": "cpu"},
    }


def test_steps_of_a_dry_run(whole):
    """They follow from the images and from the limits of the training; only the first step is computed."""
    options = training_options(whole)
    assert estimate_training(options)[:2] == (8, 4)
    options["data"]["init_args"]["min_images_per_epoch"] = 13  # three batches of four images
    checks = InputChecks()
    assert estimate_training(options, checks)[:2] == (8, 6)
    for limits, steps in (
        ({"max_steps": 5}, 5), ({"max_steps": 7}, 6), ({"max_epochs": None, "max_steps": 9}, 9),
        ({"max_epochs": None}, 3000), ({"devices": 3}, 2), ({"devices": "0,1"}, 2),
        ({"devices": [0], "num_nodes": 3}, 2), ({"accumulate_grad_batches": 3}, 2),
        ({"max_epochs": -1, "max_steps": 9}, 9), ({"limit_train_batches": 2}, 4), ({"limit_train_batches": 0.4}, 2),
        ({"accumulate_grad_batches": 3, "limit_train_batches": 2}, 2), ({"max_steps": 0}, 0),
    ):  # fmt: skip
        assert estimate_training(options | {"trainer": options["trainer"] | limits}, checks).steps == steps
    for limits, problem in (({"devices": "two"}, "devices is 'two'"), ({"max_epochs": -1}, "the training has no end")):
        with pytest.raises(InputError, match=problem):
            estimate_training(options | {"trainer": options["trainer"] | limits})


def test_processes_of_a_dry_run(monkeypatch):
    """All GPUs where there are some, unless the processor is named."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    for accelerator, devices, nodes, processes in (
        ("auto", "auto", 1, 4), ("gpu", -1, 2, 8), ("cuda", "-1", 1, 4), ("cpu", "auto", 3, 3), ("gpu", "2", 3, 6),
    ):  # fmt: skip
        assert process_count(accelerator, devices, nodes) == processes
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert process_count("auto", "auto", 1) == 1


@pytest.mark.parametrize(("part", "change", "message"), [
    ("data", {"init_args": {"root": "nowhere"}}, "folder nowhere does not exist"),
    ("data", {"class_path": "nowhere.Data"}, "there is no class nowhere.Data"),
    ("data", {"init_args": {"root": "{data}/8", "labels": "xml"}}, "train_00000: .*train_00000.xml is missing"),
    ("model", {"init_args": {"weights": "none.pth"}}, "there are no weights none.pth"),
    ("model", {"init_args": {"backbone": "resnet0"}}, "resnet0"),
])  # fmt: skip
def test_a_dry_run_finds_what_is_missing(whole, part, change, message):
    """Data, tags, classes and weights."""
    options = training_options(whole)
    options[part] |= substitute(change, {"data": whole.data})
    with pytest.raises(InputError, match=message):
        estimate_training(options)


def test_the_estimate_is_of_the_images_and_channels_that_are_trained_on(whole, tmp_path):
    """A training on the masks of two images reads these two; data with four channels need a network with four."""
    (tmp_path / "ids.txt").write_text("train_00000\ntrain_00003\n")
    options = {
        "model": {"class_path": "SegmentationTask", "init_args": {"encoder": "resnet18", "loss": "cross_entropy"}},
        "data": {
            "class_path": "VOCDataModule",
            "init_args": {
                "root": f"{whole.data}/8", "size": 64, "batch_size": 2, "targets": "masks",
                "annotations": str(tmp_path / "ids.txt"),
            },
        },
        "trainer": {"max_epochs": 3, "accelerator": "cpu"},
    }  # fmt: skip
    images, steps, _, operations, _ = estimate_training(options)
    assert (images, steps) == (2, 3)
    options["data"]["init_args"]["in_channels"] = 4
    assert estimate_training(options).operations > operations


@pytest.mark.parametrize(("change", "message"), [
    ({"eval_sise": 96}, "eval_sise"), ({"size": "abc"}, "expected int, got abc"),
])  # fmt: skip
def test_a_dry_run_finds_mistakes_in_options(tmp_path, whole, ran, capsys, change, message):
    recipe = RecipeFolder(tmp_path, whole.data)
    content = recipe.content()
    content["stages"]["classifier"]["options"]["data"]["init_args"] |= change
    assert recipe.run(content, "--dry_run=true") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tag2mask: stage 'classifier': ")
    assert message in line
    assert not recipe.output.exists()


def test_hours_of_accumulated_batches(whole, monkeypatch):
    monkeypatch.setattr("training.recipes.estimate.time_step", lambda *_: (3.0, 1, 1))
    options = training_options(whole)
    options["trainer"] |= {"max_epochs": None, "max_steps": 5, "accumulate_grad_batches": 2}
    assert estimate_training(options) == (8, 5, 5 * 2 * 3 / 3600, 10, 1)


def test_seconds_of_a_training_step_are_scaled_to_the_batch(monkeypatch):
    """On a processor two images are timed, here at a second a step."""
    network = torch.nn.Conv2d(3, 2, 1)
    network.hparams = {"in_channels": 3}
    times = iter([10.0, 12.0] * 2)
    monkeypatch.setattr("training.recipes.estimate.time", SimpleNamespace(perf_counter=lambda: next(times)))
    assert time_step(network, 2, 8, "cpu", "32-true")[0] == 1
    assert time_step(network, 16, 8, "cpu", "32-true")[0] == 8


def test_memory_of_a_training_step():
    """Weights, gradients and two moments of 20 parameters; and what the backward pass needs of each pixel.

    These are the inputs of the two convolutions, and input and result of logsumexp: 3 + 4 + 2 + 1 numbers.
    """
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Conv2d(4, 2, 1, bias=False))
    network.hparams = {"in_channels": 3}
    for batch_size in (2, 4, 16):
        _, operations, memory = time_step(network, batch_size, 8, "cpu", "32-true")
        # a multiplication and an addition for each weight: forward, for the weights, and below the last layer for maps
        assert operations == 2 * batch_size * 8 * 8 * (2 * 20 + 8)
        assert memory == 4 * (4 * 20 + batch_size * 8 * 8 * (3 + 4 + 2 + 1))


def test_operations_of_convolutions_with_groups():
    """A weight is multiplied once at each position of the output; of a transposed convolution, of the input."""
    grouped = torch.nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False)
    transposed = torch.nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2, bias=False)
    network = torch.nn.Sequential(grouped, transposed)
    network.hparams = {"in_channels": 4}
    _, operations, _ = time_step(network, 2, 8, "cpu", "32-true")
    assert operations == 2 * 2 * 8 * 8 * (2 * 8 * 9 + 3 * 8 * 3 * 4)
    assert grouped.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("words", [(), ("--dry_run=true",)])
@pytest.mark.parametrize("source", ["table", "xml"])
def test_invalid_annotations_are_found_before_the_first_stage(copied, ran, capsys, source, words):
    table = copied.path.parent / "table.csv"
    table.write_text('id,points\ntrain_00000,"[[""no class"", 1, 1]]"\n')
    content = copied.content(epochs=2)
    trained = json.loads(json.dumps(content["stages"]["classifier"]))
    trained["options"]["data"]["init_args"]["annotations"] = [str(table)]
    content["stages"]["annotated"] = trained
    content["settings"]["images"] = 8
    trained["options"]["data"]["class_path"] = "VOCDataModule"
    trained["options"]["data"]["init_args"] = {
        "root": f"{copied.data}/8", "annotations": [str(table) if source == "table" else source], "size": 48,
        "batch_size": 4, "num_workers": 0,
    }  # fmt: skip
    problem = {
        "table": f"{table}, line 2, image train_00000: there is no class 'no class'",
        "xml": f"annotations contains xml, and {copied.data}/8/Annotations has no <id>.xml",
    }[source]
    assert copied.run(content, *words) == 1
    assert f"stage 'annotated': {problem}" in capsys.readouterr().err
    assert ran == []


def test_missing_annotations_are_found_before_the_first_stage(tmp_path, ran, capsys):
    recipe = RecipeFolder(tmp_path, tmp_path / "data")
    content = recipe.content()
    content["stages"]["seeds"]["options"]["annotations"] = "few.csv"
    content["stages"]["quality"]["options"]["annotations"] = ["masks", "few.csv"]
    assert recipe.run(content) != 0
    assert "stage 'seeds': there is no file of annotations few.csv" in capsys.readouterr().err
    assert ran == []
    assert not recipe.output.exists()
    content = recipe.content()
    content["stages"]["classifier"]["options"]["data"]["init_args"]["annotations"] = 3
    assert recipe.run(content) != 0
    assert "tag2mask: stage 'classifier': data: annotations: expected str" in capsys.readouterr().err


def cache_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_failure_loses_nothing(copied, ran, capsys):
    """The exit status of a failed stage is passed on; the earlier result is back when the option is as before."""
    content = copied.content()
    content["stages"]["seeds"]["options"]["layer"] = "no.such.layer"
    before = cache_bytes(copied.output / "seeds")
    assert before
    assert copied.run(content) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("tag2mask: stage 'seeds' (tag2mask seeds generate) failed with exit status 1")
    assert names(ran) == ["seeds"]
    assert copied.run() == 0
    assert names(ran) == []
    assert cache_bytes(copied.output / "seeds") == before


@pytest.mark.parametrize("interrupted", ["write_atomically", "rename", "remove"])
def test_an_earlier_result_survives_a_kill_while_it_is_set_aside_or_put_back(copied, monkeypatch, interrupted):
    """Whatever was the last file operation before the kill, the result of the old settings is found again."""
    before = cache_bytes(copied.output / "seeds")
    changed = copied.content()
    changed["stages"]["seeds"]["options"]["fg_threshold"] = 0.25
    places = {"write_atomically": [files, recipe_file], "rename": [Path], "remove": [stage_result, runner_module]}
    modules = places[interrupted]

    def killed(*_given):
        raise KeyboardInterrupt

    for calls in range(6):
        remaining = iter(range(calls))
        real = getattr(modules[0], interrupted)

        def dies(*given, real=real, remaining=remaining):
            if next(remaining, None) is None:
                raise KeyboardInterrupt
            return real(*given)

        for content in (changed, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(runner_module, "run_process", killed)
                for module in modules:
                    patch.setattr(module, interrupted, dies)
                copied.run(content)
        monkeypatch.setattr(runner_module, "run_process", killed)
        assert copied.run(None, "--stages=seeds") == 0
        assert cache_bytes(copied.output / "seeds") == before


@settings(max_examples=300, deadline=None)
@given(
    actions=st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 8)), max_size=6),
    wanted=st.sampled_from("abc"),
)
def test_a_result_is_never_taken_for_one_of_other_settings(tmp_path_factory, actions, wanted):
    """Files of two results may have the same names and sizes; a kill may come before any change of a file.

    An action is a run with settings, whether it ends, and the number of file operations before it is killed.
    """
    output = tmp_path_factory.mktemp("out")
    result = StageResult(output, Stage("seeds", "seeds generate", {}, []))
    (output / "stages").mkdir()

    def run(key: str, *, ends: bool) -> None:
        if result.keep(key) is not None:
            return
        result.begin(key)
        result.folder.mkdir(exist_ok=True)
        (result.folder / "shard").write_text(key)
        if ends:
            write_json(result.record_path, {"key": key, "files": file_sizes(result.folder)})
            stage_result.remove(result.old)

    for key, ends, operations in actions:
        remaining = iter(range(operations))
        with pytest.MonkeyPatch.context() as patch, suppress(KeyboardInterrupt):
            for module, name in ((files, "write_atomically"), (Path, "rename"), (stage_result, "remove")):
                real = getattr(module, name)

                def dies(*given, real=real, remaining=remaining):
                    if next(remaining, None) is None:
                        raise KeyboardInterrupt
                    return real(*given)

                patch.setattr(module, name, dies)
            run(key, ends=ends)
    if (found := result.find(wanted)) is not None:
        assert (found[1] / "shard").read_text() == wanted
    if result.keep(wanted) is not None:
        assert (result.folder / "shard").read_text() == wanted


def begin_with_a_kill(result, key, place, name, dies):
    """Begin a result, with a function in place of another one that ends in a kill."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, dies)
        with pytest.raises(KeyboardInterrupt):
            result.begin(key)


def test_a_training_whose_folder_is_partly_removed_is_not_resumed(tmp_path):
    """It was killed while the folder of a training of other settings was being removed."""
    result = StageResult(tmp_path, Stage("network", "fit", {}, []))
    (tmp_path / "stages").mkdir()
    assert result.begin("a") is None
    result.folder.mkdir()
    torch.save({}, result.folder / "last.ckpt")
    (result.folder / "best.ckpt").touch()
    assert result.begin("a") == ["--ckpt_path=last"]

    def dies(folder):
        (folder / "best.ckpt").unlink()
        raise KeyboardInterrupt

    begin_with_a_kill(result, "b", stage_result, "remove", dies)
    assert result.begin("a") is None


def test_the_last_complete_result_survives_a_run_with_other_settings_that_is_killed(tmp_path):
    """Its files have the same names and sizes."""
    result = StageResult(tmp_path, Stage("seeds", "seeds generate", {}, []))
    (tmp_path / "stages").mkdir()
    for key in "ab":
        assert result.keep(key) is None
        assert result.begin(key) is None
        result.folder.mkdir()
        (result.folder / "shard").write_text(key)
        if key == "a":
            write_json(result.record_path, {"key": key, "files": file_sizes(result.folder)})
    assert result.keep("a") == {"key": "a", "files": {"shard": 1}}
    assert (result.folder / "shard").read_text() == "a"


def test_a_network_that_a_later_stage_cannot_build_is_refused_before_the_first(tmp_path, capsys):
    """The classifier knows the backbone, SMP does not know the encoder."""
    for number in range(20):
        photo = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (9 * number, 0, 0)).save(photo)
    words = [f"--config={CONFIGS}/photos.yaml", f"--output={tmp_path}/out", f"--root={tmp_path}/photos"]
    assert main(["run", *words, "--backbone=efficientnet_b0"]) == 1
    assert "stage 'first-network': there is no encoder 'efficientnet_b0'" in capsys.readouterr().err
    assert not (tmp_path / "out/classifier").exists()


def test_a_folder_that_does_not_exist_leaves_results_and_options_as_they_were(copied, capsys):
    options = {path: path.read_bytes() for path in (copied.output / "stages").glob("*.yaml")}
    content = copied.content()
    data = content["stages"]["classifier"]["options"]["data"]
    data |= {"class_path": "FolderDataModule", "init_args": {"root": "nowhere"}}
    assert copied.run(content) == 1
    assert "stage 'classifier': folder nowhere does not exist" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in options} == options
    assert (copied.output / "classifier/last.ckpt").is_file()


def test_the_options_of_a_kept_stage_are_those_of_its_result(copied, ran):
    content = copied.content()
    content["stages"]["seeds"]["options"]["layer"] = "no.such.layer"
    assert copied.run() == 0
    before = (copied.output / "stages/seeds.yaml").read_bytes()
    assert copied.run(content) == 1
    assert (copied.output / "stages/seeds.yaml").read_bytes() != before
    assert copied.run() == 0
    assert (copied.output / "stages/seeds.yaml").read_bytes() == before


def test_a_stopped_training_resumes_only_with_its_own_options(copied, ran, monkeypatch):
    """Stopped after an epoch of two: the same options resume it, other options start anew."""
    record_and_run = runner_module.run_process

    def stopped(words, title):
        record_and_run([*words, "--trainer.max_epochs=1"], title)
        raise KeyboardInterrupt

    def run(content) -> int:
        return copied.run(content, "--stages=classifier")

    monkeypatch.setattr(runner_module, "run_process", stopped)
    assert run(copied.content(epochs=2)) == 130
    monkeypatch.setattr(runner_module, "run_process", record_and_run)
    ran.clear()
    assert run(copied.content(epochs=2)) == 0
    assert ran[0][-1] == "--ckpt_path=last"
    assert json.loads((copied.output / "stages/classifier.json").read_text())["resumed"] is True
    monkeypatch.setattr(runner_module, "run_process", stopped)
    assert run(copied.content(epochs=3)) == 130
    monkeypatch.setattr(runner_module, "run_process", record_and_run)
    ran.clear()
    other_rate = copied.content(epochs=3)
    other_rate["stages"]["classifier"]["options"]["model"] = {"init_args": {"lr": 0.002}}
    assert run(other_rate) == 0
    assert ran[0][-1].startswith("--config")
    assert torch.load(copied.output / "classifier/last.ckpt", weights_only=True)["epoch"] == 2


def cues_and_maps(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    cache = SeedCache(folder)
    return {name: (cache.cues(name).tobytes(), cache.maps(name)[1].tobytes()) for name in cache.ids}


def test_a_stopped_cache_is_completed(copied, ran, monkeypatch):
    """Finished shards are kept, also those of other settings; without a shard the stage starts anew."""
    seeds, record_and_run = copied.output / "seeds", runner_module.run_process
    before = cues_and_maps(seeds)

    def stopped(words, title):
        record_and_run(words, title)
        raise KeyboardInterrupt

    for lost in (False, True):
        shutil.rmtree(seeds)
        (copied.output / "stages/seeds.json").unlink()
        monkeypatch.setattr(runner_module, "run_process", stopped)
        assert copied.run() == 130
        monkeypatch.setattr(runner_module, "run_process", record_and_run)
        for shard in seeds.glob("*.safetensors") if lost else ():
            shard.unlink()
        ran.clear()
        assert copied.run() == 0
        assert (ran[0][-1] == "--overwrite=true") is not lost
        assert cues_and_maps(seeds) == before


def test_files_that_no_recipe_has_written_are_not_touched(tmp_path, ran, capsys):
    """An occupied folder in a stage's place is refused before anything runs."""
    recipe = RecipeFolder(tmp_path, tmp_path / "data")
    (tmp_path / "out/seeds").mkdir(parents=True)
    (tmp_path / "out/seeds/mine.txt").write_text("precious")
    assert recipe.run() == 1
    assert "seeds exists already, and no recipe has written it" in capsys.readouterr().err
    assert names(ran) == []
    assert (tmp_path / "out/seeds/mine.txt").read_text() == "precious"


def test_stages_and_reasons_are_printed(tmp_path, whole, monkeypatch, capsys):
    """First the stages that will run, then each with its number and the reason it runs."""
    titles = []

    def run_and_record(words, title):
        titles.append(title)
        return main(words)

    monkeypatch.setattr(runner_module, "run_process", run_and_record)
    recipe = RecipeFolder(tmp_path, whole.data)
    content = recipe.content()
    assert recipe.run(content) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith((f"{tmp_path}/out: ", "[stage"))]
    assert lines == [
        f"{tmp_path}/out: stages to run: classifier, seeds, quality",
        "[stage 1 of 3: classifier] fit: not made yet",
        "[stage 2 of 3: seeds] seeds generate: not made yet",
        "[stage 3 of 3: quality] seeds evaluate: not made yet",
    ]
    assert titles == [f"stage {number} of 3: {name}" for number, name in enumerate(ALL, 1)]
    content["stages"]["quality"]["options"]["threshold"] = 0.3
    titles.clear()
    assert recipe.run(content) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/out: stages to run: quality\n" in printed
    assert "[stage 1 of 3: classifier] fit: kept\n" in printed
    assert titles == ["stage 3 of 3: quality"]


def test_two_processes_do_not_run_in_one_folder(copied, capsys):
    """The second is refused. (A process holds the lock, so the other one is a process.)"""
    lock = copied.output / "stages/lock"
    code = (
        "import sys; from filelock import FileLock;"
        f"lock = FileLock({str(lock)!r}); lock.acquire(blocking=False); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == "held\n"
        assert copied.run() == 1
        assert "another process runs a recipe in" in capsys.readouterr().err
        other.kill()
    with FileLock(lock, blocking=False):  # the lock of a killed process is free
        pass


@pytest.mark.parametrize("name", ["coco", "coco14", "demo", "photos", "voc12", "voc_animals"])
def test_shipped_recipes(name, tmp_path):
    """The stages' options are those of their commands; none refers to another recipe's output."""
    given = {"output": str(tmp_path / "elsewhere")}
    output, stages = read_recipe(CONFIGS / f"{name}.yaml", [*LIGHTNING, *FUNCTIONS], given)
    for stage in stages:
        (output / "stages").mkdir(parents=True, exist_ok=True)
        words = stage.write_options(output)
        assert f"runs/{name}" not in (output / f"stages/{stage.name}.yaml").read_text()
        with redirect_stdout(io.StringIO()), pytest.raises(SystemExit):
            dispatch([*words, "--print_config"])


def start(recipe: RecipeFolder, content: dict, log: Path) -> int:
    """Start the recipe in a process whose stages are processes; return its id. It prints into ``log``."""
    recipe.path.write_text(yaml.safe_dump(content, sort_keys=False))
    return child(lambda: sys.exit(main(["run", f"--config={recipe.path}"])), log)


def test_killed_in_the_middle(copied, tmp_path):
    """`kill -9` during a training: the stage's process ends as well, and the same command ends in the same weights."""
    straight = tmp_path / "straight"
    shutil.copytree(copied.output, straight)
    content = copied.content(epochs=15)
    del content["stages"]["quality"], content["stages"]["seeds"]
    runner = start(copied, content, tmp_path / "log")
    deadline = time.monotonic() + 300
    while not in_second_epoch(copied.output) and time.monotonic() < deadline:
        assert os.waitpid(runner, os.WNOHANG) == (0, 0)  # it runs
        time.sleep(0.02)
    stage = psutil.Process(runner).children()
    kill(runner)
    assert len(stage) == 1
    assert psutil.wait_procs(stage, timeout=60)[1] == []
    assert "[stage 1 of 1: classifier] fit: options.trainer.max_epochs has changed\n" in (tmp_path / "log").read_text()
    assert torch.load(copied.output / "classifier/last.ckpt", weights_only=True)["epoch"] < 14
    assert exit_status(start(copied, content, tmp_path / "again.log")) == 0, (tmp_path / "again.log").read_text()
    record = json.loads((copied.output / "stages/classifier.json").read_text())
    assert record["resumed"] is True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner_module, "run_process", run_here)
        assert main(["run", f"--config={copied.path}", f"--output={straight}"]) == 0
    one, other = (
        torch.load(place / "classifier/last.ckpt", weights_only=True)["state_dict"]
        for place in (straight, copied.output)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def in_second_epoch(output: Path) -> bool:
    """Whether the training has finished an epoch; the earlier result has been set aside before."""
    return (output / "stages/.classifier.old").exists() and (output / "classifier/last.ckpt").is_file()


def test_mistakes_of_later_stages_are_found_first(tmp_path):
    """An unknown option of the last stage stops the recipe before its first stage; status 2, one sentence."""
    recipe = RecipeFolder(tmp_path, tmp_path / "data")
    content = recipe.content()
    content["stages"]["quality"]["options"]["treshold"] = 0.3
    assert exit_status(start(recipe, content, tmp_path / "log")) == 2
    sentence = "tag2mask: stage 'quality': there is no option 'treshold'; did you mean 'threshold'?\n"
    assert (tmp_path / "log").read_text() == sentence
    assert not (tmp_path / "out/classifier").exists()


# --- mistakes in recipes: one sentence that names the file and the stage, and nothing is written

MISTAKES = {
    "command": ({"command": "fitt"}, "stage 'x': there is no command 'fitt'; did you mean 'fit'?"),
    "no command": ({"config": "sec_demo.yaml"}, "stage 'x': 'command' is missing"),
    "reference": (
        {"command": "fit", "options": {"a": "{dat}"}},
        "{dat}, which is no setting and no earlier stage; did"),
    "later": ({"command": "fit", "options": {"a": ["{y}/b"]}}, "refer to {y}, which is no setting and no earlier"),
    "key": ({"command": "fit", "option": {}}, "stage 'x': there is no option 'option'; did you mean 'options'?"),
    "output": ({"command": "fit", "options": {"output": "a"}}, "a stage's folder has the stage's name"),
    "file": ({"command": "fit", "config": "demo_sek.yaml"}, "stage 'x': there is no file demo_sek.yaml; did you mean"),
    "list": ({"command": "fit", "options": [1]}, "stage 'x': 'options' is not a mapping"),
    "text": ("fit", "stage 'x': it is not a mapping"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_stage(name, tmp_path, capsys):
    stage, expected = MISTAKES[name]
    path = tmp_path / "recipe.yaml"
    stages = {"data": {"command": "fit"}, "x": stage, "y": {"command": "fit"}}
    path.write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "stages": stages}, sort_keys=False))
    assert main(["run", f"--config={path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tag2mask: {path}: stage 'x'")
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_settings_that_refer_to_settings_and_stages(tmp_path):
    path = tmp_path / "recipe.yaml"

    def stages(**settings):
        options = {"root": "{root}", "checkpoint": "{weights}"}
        content = {"data": {"command": "fit"}, "x": {"command": "evaluate", "options": options}}
        path.write_text(yaml.safe_dump({"output": "out", "settings": settings, "stages": content}, sort_keys=False))
        return read_recipe(path, ["fit", "evaluate"], {})[1]

    _, last = stages(root="{base}/voc", weights="{data}/last.ckpt", base="{home}", home="/h")
    assert last.options == {"root": "/h/voc", "checkpoint": "{data}/last.ckpt"}
    assert last.needs == ("data",)
    with pytest.raises(UsageError, match="the setting 'root' refers to itself"):
        stages(root="{base}", base="{root}", weights="")


def test_the_yaml_of_one_command_is_no_recipe(capsys):
    assert main(["run", "--config=seeds_voc_animals.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.endswith("it has no 'stages' and is no recipe; it may be the YAML of one command, such as fit\n")


def test_help_lists_the_settings_of_a_recipe(tmp_path, capsys):
    """Each with the comment behind it in the YAML and its default."""
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "output: o\nsettings:\n  root: photos   # the images, 100 %\n  few: [a, b]\nstages: {a: {command: fit}}"
    )
    assert main(["run", f"--config={recipe}", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--root VALUE the images, 100 % (default: photos)" in text
    assert "--few VALUE (default: [a, b])" in text
    recipe.write_text("settings:\n  a:   # of a\n    - 1\n  b: 2 # of b\n  stages: 3\n  c:\n    - 4\n")
    assert main(["run", f"--config={recipe}", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--a VALUE (default: [1])" in text
    assert "--b VALUE of b (default: 2)" in text
    assert "--c VALUE (default: [4])" in text
    recipe.write_text("settings: {a: 1}\nsettings:\n  a: 1\n  a: 2\n  <<: {d: 5}\n  3: 4\nstages: {}")
    assert main(["run", f"--config={recipe}", "--help"]) == 0  # without it, a key that comes twice is a mistake
    assert "--a VALUE (default: 2)" in " ".join(capsys.readouterr().out.split())
    recipe.write_text("stages: {}\nsettings:\n  a: |\n    text\n")
    assert main(["run", f"--config={recipe}", "--help"]) == 0
    assert "--a VALUE" in capsys.readouterr().out
    assert main(["run", "--config"]) == 2
    assert capsys.readouterr().err == "tag2mask: argument -c/--config: expected one argument\n"
    recipe.write_text("settings: [")
    assert main(["run", f"--config={recipe}", "--help"]) == 2
    assert "not YAML" in capsys.readouterr().err
    recipe.write_text("- 1")
    assert main(["run", f"--config={recipe}", "--help"]) == 0


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("output: o\nstages: {}", [], "'stages' names no stage"),
        ("stages: {a: {command: fit}}", [], "'output', the folder of the results, is missing"),
        ("output: o\nstages:\n  a: {command: fit}\n  a: {command: fit}", [], "line 3: 'a' comes twice"),
        ("output: o\nstage: {}", [], "there is no option 'stage'; did you mean 'stages'?"),
        ("output: o\nstages: {stages: {command: fit}}", [], "choose another name"),
        ("output: o\nstages: {../a: {command: fit}}", [], "choose another name"),
        ("output: o\nstages: {a: {command: fit}}", ["--stages=b"], "has no stage 'b'"),
        ("output: o\nstages: {a: {command: fit}}", ["--root=b"], "there is no option or setting 'root'"),
        ("output: o\nstages: {a: {command: fit}}", ["root"], "'root' is no option with a value"),
        ("output: [o", [], "not YAML"),
    ],
)
def test_an_invalid_recipe(text, words, expected, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    assert main(["run", "--config=r.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_the_yaml_of_a_stage_lies_beside_the_recipe(tmp_path, monkeypatch):
    """Wherever the command is run; a file of the same name in the working folder is another."""
    for folder, size in (("own", 96), ("elsewhere", 128)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cues.yaml").write_text(f"size: {size}\n")
    recipe = tmp_path / "own/recipe.yaml"
    recipe.write_text("output: out\nstages: {cues: {command: seeds generate, config: cues.yaml}}")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_recipe(recipe, FUNCTIONS, {})[1][0].options == {"size": 96}


def test_braces_without_a_name_are_no_reference(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output: out\nstages: {texts: {command: zero-shot, options: {template: 'a {}', root: x}}}")
    _, (stage,) = read_recipe(recipe, FUNCTIONS, {})
    assert stage.options["template"] == "a {}"


def test_a_reference_takes_the_type_of_its_value():
    options = {"a": "{n}", "b": ["{n}/{x}", 3], "c": {"d": None}}
    assert substitute(options, {"n": 5}) == {"a": 5, "b": ["5/{x}", 3], "c": {"d": None}}


def test_a_result_survives_two_failed_attempts_of_other_settings(tmp_path):
    result = StageResult(tmp_path, Stage("cues", "seeds generate", {}, ()))
    (tmp_path / "stages").mkdir()
    result.folder.mkdir()
    (result.folder / "a").write_text("1")
    record = {"key": "first", "files": file_sizes(result.folder)}
    write_json(result.record_path, record)
    for key in ("second", "third"):
        assert result.begin(key) is None
        result.folder.mkdir()  # and the stage fails
    assert result.keep("first") == record
    assert (result.folder / "a").read_text() == "1"


def test_repeated_runs_resume_by_themselves(tmp_path):
    result = StageResult(tmp_path, Stage("network", "fit", {"random_seeds": [0, 1]}, ()))
    (tmp_path / "stages").mkdir()
    assert result.begin("key") is None
    (result.folder / "seed-0").mkdir(parents=True)
    assert result.begin("key") == []
    assert (result.folder / "seed-0").is_dir()


def test_a_kill_before_the_earlier_result_is_set_aside_resumes_nothing_of_it(tmp_path):
    result = StageResult(tmp_path, Stage("network", "fit", {}, ()))
    (tmp_path / "stages").mkdir()
    result.folder.mkdir()
    torch.save({"epoch": 1}, result.folder / "last.ckpt")
    write_json(result.record_path, {"key": "first", "files": file_sizes(result.folder)})

    def killed(*_given):
        raise KeyboardInterrupt

    begin_with_a_kill(result, "second", Path, "rename", killed)
    assert result.begin("second") is None


def test_a_stage_runs_with_the_stages_that_its_own_need(copied, ran):
    assert copied.run(None, "--stages=quality") == 0
    summary = json.loads((copied.output / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ALL


def test_only_a_run_of_the_last_stage_copies_its_result(copied, ran):
    (copied.output / "metrics.json").unlink()
    assert copied.run(None, "--stages=seeds") == 0
    assert not (copied.output / "metrics.json").exists()


def test_figures_with_and_without_crf(tmp_path):
    (tmp_path / "metrics.json").write_text('{"miou": 0.5, "images": 3, "without_crf": {"miou": 0.4}}')
    assert read_figures(tmp_path) == {"miou": 0.5, "miou without CRF": 0.4}


def test_a_page_of_seeds_depends_on_the_code_that_draws_it(tmp_path):
    _, dependencies = Runner(tmp_path, main)._key(Stage("page", "seeds show", {}, ()))
    assert set(dependencies["source"]) == set(ALL_PACKAGES)


def test_code_that_changes_during_a_stage_counts_for_the_next_run(tmp_path, monkeypatch):
    runner, stage = Runner(tmp_path, main), Stage("cues", "seeds generate", {}, ())
    key, before = runner._key(stage)
    monkeypatch.setattr(runner_module, "source_revision", lambda packages: dict.fromkeys(packages, "changed"))
    assert runner._key(stage, before) == (key, before)
    assert runner._key(stage)[0] != key


def test_operations_of_processes_and_accumulated_batches(whole):
    options = {
        "model": {"class_path": "ClassifierTask", "init_args": {"backbone": "resnet18", "output_stride": 32}},
        "data": {"class_path": "VOCDataModule", "init_args": {"root": f"{whole.data}/8", "size": 48, "batch_size": 4}},
    }
    trainer = {"max_steps": 4, "max_epochs": -1, "accelerator": "cpu"}
    plain, two, three = (
        estimate_training(options | {"trainer": trainer | more}).operations
        for more in ({}, {"devices": 2}, {"accumulate_grad_batches": 3})
    )
    assert (two, three) == (2 * plain, 3 * plain)


@pytest.mark.parametrize("text", ["1e3", "-1.5E-3", "1_0e2", "2024", "007", "yes", "null", "12:30", "a: b", "1e3 x"])
def test_texts_stay_texts_in_the_options_of_a_stage(tmp_path, text):
    """As the commands read YAML; a folder may have such a name."""
    (config,) = (word for word in Stage("x", "check", {"root": text}, ()).write_options(tmp_path) if "=" in word)
    parser = ArgumentParser()
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--root", type=str)
    parser.add_argument("--output", type=str)
    assert parser.parse_args([config]).root == text


def test_options_are_checked_as_the_commands_read_them(tmp_path, capsys):
    """PyYAML alone reads 1e-4 as a text, and "4" is one."""
    recipe = {
        "output": str(tmp_path / "out"),
        "settings": {"rate": 0.001},
        "stages": {"train": {"command": "fit", "config": "classifier_demo.yaml", "options": {
            "model": {"init_args": {"lr": "{rate}", "freeze_stride": "4"}},
            "data": {"init_args": {"root": str(tmp_path / "images")}},
        }}},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe).replace("0.001", "1e-3"))
    assert yaml.load("[1e-4, 1.5E3, -2.e+1, '1e3', 1e3x]", UniqueKeyLoader) == [1e-4, 1500.0, -20.0, "1e3", "1e3x"]
    for words in ([], ["--rate=5e-4"]):
        assert main(["run", f"--config={path}", "--dry_run=true", *words]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("root", ["nope://x/y", "~nobody-of-this-name/photos"])
def test_a_root_that_no_storage_knows_is_one_sentence(tmp_path, capsys, root):
    words = ["--config=photos.yaml", f"--root={root}", f"--output={tmp_path / 'out'}", "--dry_run=true"]
    assert main(["run", *words]) == 1
    assert "Traceback" not in (error := capsys.readouterr().err)
    assert error.startswith("tag2mask: ")
