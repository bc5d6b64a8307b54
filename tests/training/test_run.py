"""`tag2mask run`: what runs, what is kept, how it goes on, what it says of mistakes."""

import csv
import importlib
import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import yaml
from filelock import FileLock

import training.recipes.run
from datamodules.datamodule import TagDataModule
from datamodules.source_revision import ALL_PACKAGES
from training.cli import FUNCTIONS, LIGHTNING, dispatch, main
from training.recipes import stages
from training.recipes.recipe import read_recipe
from training.recipes.stage_process import Ended

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ROOT = CONFIGS.parent
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "precision": "32-true"}
SMALL = {"size": 48, "batch_size": 4, "num_workers": 0}


def recipe_of(output: Path, epochs: int = 1) -> dict:
    """Data, a classifier, its seeds and their figures, all very small."""
    return {
        "output": str(output),
        "settings": {"pictures": 8},
        "stages": {
            "data": {"command": "synthesize", "options": {"train": "{pictures}", "val": 4, "size": 48}},
            "classifier": {
                "command": "fit",
                "config": "demo_classifier.yaml",
                "options": {"data": {"root": "{data}", **SMALL}, "trainer": {"max_epochs": epochs, **QUIET}},
            },
            "seeds": {
                "command": "seeds generate",
                "config": "demo_seeds.yaml",
                "options": {
                    "checkpoint": "{classifier}/last.ckpt",
                    "num_workers": 0,
                    "flip": False,
                    "precision": "32-true",
                },
            },
            "quality": {"command": "seeds evaluate", "options": {"cache": "{seeds}", "root": "{data}"}},
        },
    }


def write(folder: Path, content: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture
def ran(monkeypatch):
    """The commands that ran. They run in this process here; that each has its own is tested with the last ones."""
    commands = []

    def run_here(words, stage):
        commands.append(words)
        return Ended(main(words), 1.5, 7_000_000)

    monkeypatch.setattr(training.recipes.run, "run_process", run_here)
    monkeypatch.setattr(training.recipes.run, "check_options", len)
    return commands


def names(ran) -> list[str]:
    """The stages that ran, by their YAMLs, and forget them."""
    found = [Path(words[-1 if words[-1].startswith("--config") else -2].partition("=")[2]).stem for words in ran]
    ran.clear()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recipe that has run, its YAML beside its output; not to be changed."""
    folder = tmp_path_factory.mktemp("recipe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.recipes.run, "run_process", lambda words, _stage: Ended(main(words), 1.5, 7_000_000))
        patch.setattr(training.recipes.run, "check_options", len)
        path = write(folder, recipe_of(folder / "out"))
        assert main(["run", f"--config={path}"]) == 0
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of it in another place: keys do not depend on where the output is."""
    shutil.copytree(whole / "out", tmp_path / "out")
    return write(tmp_path, recipe_of(tmp_path / "out"))


ALL = ["data", "classifier", "seeds", "quality"]


def test_a_recipe_leaves_what_it_says(whole):
    """A folder and a record a stage, a summary with the figures that the stages wrote, the result at the top."""
    out = whole / "out"
    summary = json.loads((out / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ALL
    assert {stage["state"] for stage in summary["stages"]} == {"done"}
    figures = {stage["name"]: stage["figures"] for stage in summary["stages"]}
    quality = json.loads((out / "quality/metrics.json").read_text())
    assert figures["quality"] == {key: quality[key] for key in ("miou_fixed", "miou_otsu", "miou_oracle", "miou_cues")}
    with (out / "classifier/metrics.csv").open() as file:
        logged = [float(row["val/map"]) for row in csv.DictReader(file) if row["val/map"]]
    assert figures["classifier"] == {"val/map": logged[-1]}
    assert (out / "metrics.json").read_bytes() == (out / "quality/metrics.json").read_bytes()
    assert {path.name for path in (out / "stages").iterdir()} == {
        f"{name}.{end}" for name in ALL for end in ("json", "yaml")
    }


def test_nothing_changed_nothing_runs(copied, ran):
    """The same again: every stage is kept, with the time it took then."""
    assert main(["run", f"--config={copied}"]) == 0
    assert names(ran) == []
    summary = json.loads((copied.parent / "out/summary.json").read_text())
    assert {(stage["state"], stage["seconds"]) for stage in summary["stages"]} == {("kept", 1.5)}


def test_other_code_runs_again_what_it_makes(copied, ran, monkeypatch, capsys):
    """A changed file of `datamodules` runs all anew; one of `training` all but the data, which know nothing of it."""
    before = stages.source_revision(ALL_PACKAGES)

    def changed(package):
        def revision(packages):
            return {name: before[name] + (" changed" if name == package else "") for name in packages}

        monkeypatch.setattr(stages, "source_revision", revision)

    changed("datamodules")
    assert main(["run", f"--config={copied}"]) == 0
    assert names(ran) == ALL
    assert "the code in datamodules/ has changed" in capsys.readouterr().out
    before["datamodules"] += " changed"
    changed("training")
    assert main(["run", f"--config={copied}"]) == 0
    assert names(ran) == ALL[1:]
    assert "the code in training/ has changed" in capsys.readouterr().out


def test_only_options_that_are_paths_count_as_files(copied, ran, monkeypatch):
    """A folder that happens to be called like a split, a command or a setting is no data of a stage."""
    monkeypatch.chdir(copied.parent)
    for name in ("train", "val", "cpu", "resnet18", "imagesets", "adamw"):
        (copied.parent / name).mkdir()
        (copied.parent / name / "notes.txt").write_text("nothing of the recipe's")
    assert main(["run", f"--config={copied}"]) == 0
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
    assert found - {"output", "return"} <= stages.PATH_OPTIONS
    assert {"root", "cues", "cues_made_by"} <= inspect.signature(TagDataModule).parameters.keys() & stages.PATH_OPTIONS
    assert stages.is_path("model.init_args.weights", "data/x.pth")
    assert not stages.is_path("model.init_args.weights", "imagenet")
    assert stages.is_path("data.labels", "lists/cls_labels.npy")
    assert not stages.is_path("data.labels", "imagesets")
    assert stages.is_path("caches[1]", "runs/walk")


def test_a_changed_option_runs_what_depends_on_it(copied, ran, capsys):
    """The stage and those after it that refer to it, and it is said why; the old result goes when the new is there."""
    content = recipe_of(copied.parent / "out")
    content["stages"]["seeds"]["options"]["fg_threshold"] = 0.25
    assert main(["run", f"--config={write(copied.parent, content)}"]) == 0
    assert names(ran) == ["seeds", "quality"]
    said = capsys.readouterr().out
    assert (
        "[stage 3 of 4: seeds] seeds generate: fg_threshold is 0.25, was 0.4; about 2 s; with all later stages" in said
    )
    assert "[stage 4 of 4: quality] seeds evaluate: " in said
    manifest = json.loads((copied.parent / "out/seeds/manifest.json").read_text())
    assert manifest["fg_threshold"] == 0.25
    assert not [path for path in (copied.parent / "out/stages").iterdir() if path.name.startswith(".")]


def test_a_setting_on_the_command_line(copied, ran):
    """A setting reaches the options that refer to it, with its type; named stages run with those they need alone."""
    assert main(["run", f"--config={copied}", "--pictures", "9", "--stages=data"]) == 0
    assert names(ran) == ["data"]
    assert len((copied.parent / "out/data/ImageSets/Segmentation/train.txt").read_text().split()) == 9
    assert main(["run", f"--config={copied}", "--pictures=9", "--stages=seeds"]) == 0
    assert names(ran) == ["classifier", "seeds"]


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        ("classifier/last.ckpt", None, ["classifier", "seeds", "quality"]),  # lost
        ("quality/metrics.json", "{}", ["quality"]),  # not as it was left
        ("data/ImageSets/Main/kite_train.txt", "train_00000 -1\n", ["data"]),  # drawn again as they were
        ("classifier/note.txt", "mine", []),  # one's own files beside it do no harm
    ],
)
def test_what_is_lost_is_made_again(copied, ran, path, content, expected):
    """A result from which files are gone, or are others, is made again."""
    file = copied.parent / "out" / path
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert main(["run", f"--config={copied}"]) == 0
    again = names(ran)
    assert again[: len(expected[:1])] == expected[:1]
    assert set(expected) >= set(again)  # a training that ends in the same bytes changes nothing after it


def test_files_outside_count(copied, ran):
    """An option that names a file is the file: when what is in it changes, the stage runs."""
    weights = copied.parent / "other.ckpt"
    shutil.copy(copied.parent / "out/classifier/last.ckpt", weights)
    content = recipe_of(copied.parent / "out")
    content["stages"]["seeds"]["options"]["checkpoint"] = str(weights)
    path = write(copied.parent, content)
    assert main(["run", f"--config={path}"]) == 0
    assert names(ran) == ["seeds", "quality"]
    checkpoint = torch.load(weights, weights_only=True)
    checkpoint["state_dict"] = {key: value * 1.01 for key, value in checkpoint["state_dict"].items()}
    torch.save(checkpoint, weights)
    assert main(["run", f"--config={path}"]) == 0
    assert names(ran) == ["seeds", "quality"]


def test_a_failure_loses_nothing(copied, ran, capsys):
    """A stage that fails: its status is passed on, the earlier result comes back when the option is taken back."""
    content = recipe_of(copied.parent / "out")
    content["stages"]["seeds"]["options"]["layer"] = "no.such.layer"
    before = (copied.parent / "out/seeds/manifest.json").read_bytes()
    assert main(["run", f"--config={write(copied.parent, content)}"]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("tag2mask: stage 'seeds' (tag2mask seeds generate) failed with exit status 1")
    assert names(ran) == ["seeds"]
    assert main(["run", f"--config={write(copied.parent, recipe_of(copied.parent / 'out'))}"]) == 0
    assert names(ran) == []
    assert (copied.parent / "out/seeds/manifest.json").read_bytes() == before


def test_a_stopped_training_goes_on_only_with_its_own_options(copied, ran, monkeypatch):
    """Stopped after an epoch of two: goes on from there with the same options, starts anew with others."""
    run_here, output = training.recipes.run.run_process, copied.parent / "out"

    def stopped(words, stage):
        run_here([*words, "--trainer.max_epochs=1"], stage)
        raise KeyboardInterrupt

    def run(content) -> int:
        return main(["run", f"--config={write(copied.parent, content)}", "--stages=classifier"])

    def other_rate(epochs: int) -> dict:
        content = recipe_of(output, epochs)
        content["stages"]["classifier"]["options"]["model"] = {"init_args": {"lr": 0.002}}
        return content

    monkeypatch.setattr(training.recipes.run, "run_process", stopped)
    assert run(recipe_of(output, epochs=2)) == 130
    monkeypatch.setattr(training.recipes.run, "run_process", run_here)
    ran.clear()
    assert run(recipe_of(output, epochs=2)) == 0
    assert ran[0][-1] == "--ckpt_path=last"
    assert json.loads((output / "stages/classifier.json").read_text())["resumed"] is True
    monkeypatch.setattr(training.recipes.run, "run_process", stopped)
    assert run(recipe_of(output, epochs=3)) == 130
    monkeypatch.setattr(training.recipes.run, "run_process", run_here)
    ran.clear()
    assert run(other_rate(epochs=3)) == 0
    assert ran[0][-1].startswith("--config")
    assert torch.load(output / "classifier/last.ckpt", weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("version", ["0.0.1", None])
def test_a_stopped_cache_goes_on_whoever_began_it(copied, ran, monkeypatch, version):
    """Begun by a package that has become newer since, or made whole before the record was written."""
    output, run_here = copied.parent / "out", training.recipes.run.run_process
    whole = (output / "seeds/shard-00000.safetensors").read_bytes()

    def stopped(*_given):
        raise KeyboardInterrupt

    def begun(words, stage):
        with pytest.MonkeyPatch.context() as patch:
            if version:
                patch.setattr("seeds.making.source.provenance", lambda: {"packages": {"torch": version}})
                patch.setattr("datamodules.cache.making.Making.finish", stopped)
            main(words)
        raise KeyboardInterrupt

    (output / "stages/seeds.json").unlink()
    shutil.rmtree(output / "seeds")
    path = write(copied.parent, recipe_of(output))
    monkeypatch.setattr(training.recipes.run, "run_process", begun)
    assert main(["run", f"--config={path}"]) == 130
    assert (output / "seeds/plan.json").is_file() is (version is not None)
    monkeypatch.setattr(training.recipes.run, "run_process", run_here)
    assert main(["run", f"--config={path}"]) == 0
    assert (ran[0][-1] == "--overwrite=true") is (version is not None)
    assert (output / "seeds/shard-00000.safetensors").read_bytes() == whole


def test_what_others_made_is_not_touched(tmp_path, ran, capsys):
    """A folder in a stage's place that no recipe has made is refused before anything runs."""
    (tmp_path / "out/seeds").mkdir(parents=True)
    (tmp_path / "out/seeds/mine.txt").write_text("dear to me")
    assert main(["run", f"--config={write(tmp_path, recipe_of(tmp_path / 'out'))}"]) == 1
    assert "seeds exists already, and not as a stage of a recipe" in capsys.readouterr().err
    assert names(ran) == []
    assert (tmp_path / "out/seeds/mine.txt").read_text() == "dear to me"


MISTAKES = {
    "command": ({"command": "fitt"}, "stage 'x': there is no command 'fitt'; did you mean 'fit'?"),
    "no command": ({"config": "demo_sec.yaml"}, "stage 'x': 'command' is missing"),
    "reference": ({"command": "fit", "options": {"a": "{dat}"}}, "no such stage or setting; did you mean 'data'?"),
    "later": ({"command": "fit", "options": {"a": ["{y}/b"]}}, "'{y}/b' refers to {y}, which does not come before"),
    "key": ({"command": "fit", "option": {}}, "stage 'x': there is no option 'option'; did you mean 'options'?"),
    "output": ({"command": "fit", "options": {"output": "a"}}, "a stage's folder has the stage's name"),
    "file": ({"command": "fit", "config": "demo_sek.yaml"}, "stage 'x': there is no file demo_sek.yaml; did you mean"),
    "list": ({"command": "fit", "options": [1]}, "stage 'x': 'options' is not a mapping"),
    "text": ("fit", "stage 'x': it is not a mapping"),
    "minutes": ({"command": "fit", "minutes": "ten"}, "stage 'x': 'minutes' must be a positive number, not 'ten'"),
    "no minutes": ({"command": "fit", "minutes": 0}, "stage 'x': 'minutes' must be a positive number, not 0"),
    "endless": ({"command": "fit", "minutes": float("inf")}, "'minutes' must be a positive number, not inf"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_recipe(name, tmp_path, capsys):
    """One sentence that names the file and the stage; nothing is made."""
    said, expected = MISTAKES[name]
    stages = {"data": {"command": "synthesize"}, "x": said, "y": {"command": "synthesize"}}
    path = write(tmp_path, {"output": str(tmp_path / "out"), "stages": stages})
    assert main(["run", f"--config={path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"tag2mask: {path}: stage 'x'")
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


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
def test_a_recipe_that_is_none(text, words, expected, tmp_path, capsys, monkeypatch):
    """One sentence, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(text)
    assert main(["run", "--config=r.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_what_is_printed_of_stages_and_times(tmp_path, monkeypatch, capsys):
    """First all stages and their time, then each with its number, the reason it runs, its time and that of the rest."""
    titles = []

    def one_second_a_minute(words, stage):
        titles.append(stage)
        return Ended(main(words), 2.0 if "synthesize" in words else 60.0, 7_000_000)

    monkeypatch.setattr(training.recipes.run, "run_process", one_second_a_minute)
    monkeypatch.setattr(training.recipes.run, "check_options", len)
    content = recipe_of(tmp_path / "out")
    for name, minutes in (("data", 2), ("classifier", 60), ("seeds", 90)):
        content["stages"][name]["minutes"] = minutes
    assert main(["run", f"--config={write(tmp_path, content)}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith((str(tmp_path), "[", "  "))]
    unknown = ", without the 1 of unknown time"
    assert lines[:9] == [
        f"{tmp_path}/out: 4 stages, 4 of them to run, about 2 h 32 min{unknown}",
        "  1 data: synthesize, about 2 min",
        "  2 classifier: fit, about 60 min",
        "  3 seeds: seeds generate, about 90 min",
        "  4 quality: seeds evaluate, time unknown",
        f"[stage 1 of 4: data] synthesize: not made yet; about 2 min; with all later stages about 2 h 32 min{unknown}",
        f"[stage 2 of 4: classifier] fit: not made yet; about 60 s; with all later stages about 2 min{unknown}",
        f"[stage 3 of 4: seeds] seeds generate: not made yet; about 90 s; with all later stages about 90 s{unknown}",
        "[stage 4 of 4: quality] seeds evaluate: not made yet; time unknown",
    ]
    assert titles == [f"stage {number} of 4: {name}" for number, name in enumerate(ALL, 1)]
    content["stages"]["classifier"]["minutes"] = 7  # of no consequence for what is kept
    content["stages"]["quality"]["options"]["threshold"] = 0.3
    titles.clear()
    assert main(["run", f"--config={write(tmp_path, content)}"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}/out: 4 stages, 1 of them to run, about 60 s\n" in said
    assert "[stage 2 of 4: classifier] fit: kept\n" in said
    assert titles == ["stage 4 of 4: quality"]


def test_two_at_once(copied, ran, capsys):
    """The second is told so. (A lock is a process's, so that the other is a process.)"""
    place = copied.parent / "out/stages/lock"
    code = (
        "import sys; from filelock import FileLock;"
        f"lock = FileLock({str(place)!r}); lock.acquire(blocking=False); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == "held\n"
        assert main(["run", f"--config={copied}"]) == 1
        assert "another process runs a recipe in" in capsys.readouterr().err
        other.kill()
    with FileLock(place, blocking=False):  # what the killed one left does not matter
        pass


@pytest.mark.parametrize("name", ["demo", "photos", "voc_animals"])
def test_recipes_that_are_shipped(name, tmp_path):
    """Their stages' options are those of their commands; nothing they say is of another recipe's output."""
    recipe = read_recipe(CONFIGS / f"{name}.yaml", [*LIGHTNING, *FUNCTIONS], {"output": str(tmp_path / "elsewhere")})
    for stage in recipe.stages:
        options = stage.resolved(recipe.output)
        assert f"runs/{name}" not in json.dumps(options)
        path = tmp_path / f"{stage.name}.yaml"
        path.write_text(yaml.safe_dump(options))
        with redirect_stdout(io.StringIO()), pytest.raises(SystemExit):
            dispatch([*stage.command.split(), f"--config={path}", "--print_config"])


def process(path: Path) -> subprocess.Popen:
    words = [sys.executable, "-c", "from training.cli import run; run()", "run", f"--config={path}"]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_in_the_middle(whole, tmp_path):
    """`kill -9` during a training: the stage's process ends as well, and the same command comes to the same weights."""
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for output in (straight, killed):
        shutil.copytree(whole / "out", output)
    content = recipe_of(killed, epochs=15)
    del content["stages"]["quality"], content["stages"]["seeds"]
    path = write(tmp_path, content)
    runner = process(path)
    deadline = time.monotonic() + 300
    while not begun(killed) and time.monotonic() < deadline and runner.poll() is None:
        time.sleep(0.02)
    stage = children(runner.pid)
    os.kill(runner.pid, signal.SIGKILL)
    log, _ = runner.communicate()  # to the end of the output, which the stage's process has open as well
    assert "[stage 2 of 2: classifier] fit: trainer.max_epochs is 15, was 1; about 2 s\n" in log
    assert len(stage) == 1
    assert torch.load(killed / "classifier/last.ckpt", weights_only=True)["epoch"] < 14
    again = process(path)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    record = json.loads((killed / "stages/classifier.json").read_text())
    assert record["resumed"] is True
    assert record["peak_memory"] > 50_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.recipes.run, "run_process", lambda words, _stage: Ended(main(words), 1.5, 7_000_000))
        assert main(["run", f"--config={path}", f"--output={straight}"]) == 0
    one, other = (
        torch.load(place / "classifier/last.ckpt", weights_only=True)["state_dict"] for place in (straight, killed)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def begun(output: Path) -> bool:
    """Whether the training has an epoch behind it; the earlier result has been set aside then."""
    aside = (output / "stages/.classifier.old").exists()
    return aside and (output / "classifier/last.ckpt").is_file()


def children(pid: int) -> list[int]:
    """The processes that a process has started, where the system tells."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in listed.read_text().split()] if listed.is_file() else [0]


def test_mistakes_of_later_stages_are_found_first(tmp_path):
    """An option that the last stage does not know stops the recipe before its first stage; status 2, one sentence."""
    content = recipe_of(tmp_path / "out")
    content["stages"]["quality"]["options"]["treshold"] = 0.3
    done = process(write(tmp_path, content))
    said, _ = done.communicate()
    assert done.returncode == 2
    assert said == "tag2mask: stage 'quality': there is no option 'treshold'; did you mean 'threshold'?\n"
    assert not (tmp_path / "out").exists()
