"""`tag2mask run`: which stages run, which are kept, how a stopped recipe resumes, and the messages for mistakes."""

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

from datamodules.base_datamodule import BaseDataModule
from datamodules.seed_cache import SeedCache
from datamodules.source_revision import ALL_PACKAGES
from training.cli import FUNCTIONS, LIGHTNING, dispatch, main
from training.command_process import Ended
from training.recipes import run_recipe
from training.recipes.recipe import read_recipe

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
                    "config": "demo_classifier.yaml",
                    "options": {"data": data, "trainer": {"max_epochs": epochs, **QUIET}},
                },
                "seeds": {"command": "seeds generate", "config": "demo_seeds.yaml", "options": seeds},
                "quality": {"command": "seeds evaluate", "options": {"cache": "{seeds}"}},
            },
        }

    def run(self, content: dict | None = None, *words: str) -> int:
        self.path.write_text(yaml.safe_dump(content or self.content(), sort_keys=False))
        return main(["run", f"--config={self.path}", *words])


def run_here(words, _title):
    return Ended(main(list(words)), 1.5, 7_000_000)


@pytest.fixture
def ran(monkeypatch):
    """Run the commands in this process, and collect them; the last tests run them in their own processes."""
    commands = []

    def run_and_record(words, title):
        commands.append(words)
        return run_here(words, title)

    monkeypatch.setattr(run_recipe, "run_process", run_and_record)
    monkeypatch.setattr(run_recipe, "check_options", print)
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
        patch.setattr(run_recipe, "run_process", run_here)
        patch.setattr(run_recipe, "check_options", print)
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
    assert {path.name for path in (out / "stages").iterdir()} == {
        f"{name}.{end}" for name in ALL for end in ("json", "yaml")
    }


def test_nothing_changed_nothing_runs(copied, ran):
    """The same command again keeps every stage, with the time it took."""
    assert copied.run() == 0
    assert names(ran) == []
    summary = json.loads((copied.output / "summary.json").read_text())
    assert {(stage["state"], stage["seconds"]) for stage in summary["stages"]} == {("kept", 1.5)}


def test_stages_run_again_after_a_change_of_their_code(copied, ran, monkeypatch, capsys):
    """A stage depends on the packages that run it: commands of seeds on `datamodules` and `seeds` alone."""
    before = run_recipe.source_revision(ALL_PACKAGES)
    for package in ("datamodules", "training"):
        before[package] += " changed"
        monkeypatch.setattr(run_recipe, "source_revision", lambda packages: {name: before[name] for name in packages})
        assert copied.run() == 0
        assert names(ran)[0] == "classifier"
        assert f"the code in {package}/ has changed" in capsys.readouterr().out
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
    assert found - {"output", "return"} <= run_recipe.PATH_OPTIONS
    data_options = inspect.signature(BaseDataModule).parameters.keys()
    assert {"root", "cues", "cues_checkpoint"} <= data_options & run_recipe.PATH_OPTIONS
    assert run_recipe.is_path("model.init_args.weights", "data/x.pth")
    assert not run_recipe.is_path("model.init_args.weights", "imagenet")
    assert run_recipe.is_path("data.labels", "lists/cls_labels.npy")
    assert not run_recipe.is_path("data.labels", "imagesets")
    assert run_recipe.is_path("caches[1]", "runs/walk")


def test_a_changed_option_runs_what_depends_on_it(copied, ran, capsys):
    """The stage and those that refer to it run, for a printed reason; the new result replaces the old one."""
    content = copied.content()
    content["stages"]["seeds"]["options"]["fg_threshold"] = 0.25
    assert copied.run(content) == 0
    assert names(ran) == ["seeds", "quality"]
    printed = capsys.readouterr().out
    reason = "[stage 2 of 3: seeds] seeds generate: fg_threshold is 0.25, was 0.4; about 2 s; with all later stages"
    assert reason in printed
    assert "[stage 3 of 3: quality] seeds evaluate: " in printed
    assert yaml.safe_load((copied.output / "stages/seeds.yaml").read_text())["fg_threshold"] == 0.25
    assert not [path for path in (copied.output / "stages").iterdir() if path.name.startswith(".")]


def test_a_setting_on_the_command_line(copied, ran):
    """A setting reaches the options that refer to it, with its type; named stages run with those they need."""
    assert copied.run(None, "--images", "9", "--stages=classifier") == 0
    assert names(ran) == ["classifier"]
    assert len((copied.data / "9/ImageSets/Segmentation/train.txt").read_text().split()) == 9
    assert copied.run(None, "--images=9", "--stages=seeds") == 0
    assert names(ran) == ["seeds"]


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


@pytest.mark.parametrize("interrupted", ["write_atomically", "rename", "_remove"])
def test_an_earlier_result_survives_a_kill_while_it_is_set_aside_or_put_back(copied, monkeypatch, interrupted):
    """Whatever was the last file operation before the kill, the result of the old settings is found again."""
    before = cache_bytes(copied.output / "seeds")
    changed = copied.content()
    changed["stages"]["seeds"]["options"]["fg_threshold"] = 0.25
    place = {
        "write_atomically": (run_recipe, "write_atomically"), "rename": (Path, "rename"),
        "_remove": (run_recipe, "_remove"),
    }[interrupted]  # fmt: skip
    monkeypatch.setattr(run_recipe, "check_options", print)

    def killed(*_given):
        raise KeyboardInterrupt

    for calls in range(4):
        remaining = iter(range(calls))
        real = getattr(*place)

        def dies(*given, real=real, remaining=remaining):
            if next(remaining, None) is None:
                raise KeyboardInterrupt
            return real(*given)

        for content in (changed, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(run_recipe, "run_process", killed)
                patch.setattr(*place, dies)
                copied.run(content)
        monkeypatch.setattr(run_recipe, "run_process", killed)
        assert copied.run(None, "--stages=seeds") == 0
        assert cache_bytes(copied.output / "seeds") == before


def test_a_stopped_training_resumes_only_with_its_own_options(copied, ran, monkeypatch):
    """Stopped after an epoch of two: the same options resume it, other options start anew."""
    record_and_run = run_recipe.run_process

    def stopped(words, title):
        record_and_run([*words, "--trainer.max_epochs=1"], title)
        raise KeyboardInterrupt

    def run(content) -> int:
        return copied.run(content, "--stages=classifier")

    monkeypatch.setattr(run_recipe, "run_process", stopped)
    assert run(copied.content(epochs=2)) == 130
    monkeypatch.setattr(run_recipe, "run_process", record_and_run)
    ran.clear()
    assert run(copied.content(epochs=2)) == 0
    assert ran[0][-1] == "--ckpt_path=last"
    assert json.loads((copied.output / "stages/classifier.json").read_text())["resumed"] is True
    monkeypatch.setattr(run_recipe, "run_process", stopped)
    assert run(copied.content(epochs=3)) == 130
    monkeypatch.setattr(run_recipe, "run_process", record_and_run)
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
    seeds, record_and_run = copied.output / "seeds", run_recipe.run_process
    before = cues_and_maps(seeds)

    def stopped(words, title):
        record_and_run(words, title)
        raise KeyboardInterrupt

    for lost in (False, True):
        shutil.rmtree(seeds)
        (copied.output / "stages/seeds.json").unlink()
        monkeypatch.setattr(run_recipe, "run_process", stopped)
        assert copied.run() == 130
        monkeypatch.setattr(run_recipe, "run_process", record_and_run)
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
    assert "seeds exists already, and not as a stage of a recipe" in capsys.readouterr().err
    assert names(ran) == []
    assert (tmp_path / "out/seeds/mine.txt").read_text() == "precious"


def test_times_and_reasons_are_printed(tmp_path, whole, monkeypatch, capsys):
    """First all stages and their time, then each with its number, the reason it runs, its time and that of the rest."""
    titles = []

    def one_second_per_minute(words, title):
        titles.append(title)
        return Ended(main(words), 60.0, 7_000_000)

    monkeypatch.setattr(run_recipe, "run_process", one_second_per_minute)
    monkeypatch.setattr(run_recipe, "check_options", print)
    recipe = RecipeFolder(tmp_path, whole.data)
    content = recipe.content()
    for name, minutes in (("classifier", 60), ("seeds", 90)):
        content["stages"][name]["minutes"] = minutes
    assert recipe.run(content) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith((str(tmp_path), "[", "  "))]
    unknown = ", without the 1 of unknown time"
    assert lines[:7] == [
        f"{tmp_path}/out: 3 stages, 3 of them to run, about 2 h 30 min{unknown}",
        "  1 classifier: fit, about 60 min",
        "  2 seeds: seeds generate, about 90 min",
        "  3 quality: seeds evaluate, time unknown",
        f"[stage 1 of 3: classifier] fit: not made yet; about 60 min; with all later stages about 2 h 30 min{unknown}",
        f"[stage 2 of 3: seeds] seeds generate: not made yet; about 90 s; with all later stages about 90 s{unknown}",
        "[stage 3 of 3: quality] seeds evaluate: not made yet; time unknown",
    ]
    assert titles == [f"stage {number} of 3: {name}" for number, name in enumerate(ALL, 1)]
    content["stages"]["classifier"]["minutes"] = 7  # does not change what is kept
    content["stages"]["quality"]["options"]["threshold"] = 0.3
    titles.clear()
    assert recipe.run(content) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path}/out: 3 stages, 1 of them to run, about 60 s\n" in printed
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


@pytest.mark.parametrize("name", ["demo", "photos", "voc_animals"])
def test_shipped_recipes(name, tmp_path):
    """The stages' options are those of their commands; none refers to another recipe's output."""
    recipe = read_recipe(CONFIGS / f"{name}.yaml", [*LIGHTNING, *FUNCTIONS], {"output": str(tmp_path / "elsewhere")})
    for stage in recipe.stages:
        options = stage.resolved_options(recipe.output)
        assert f"runs/{name}" not in json.dumps(options)
        path = tmp_path / f"{stage.name}.yaml"
        path.write_text(yaml.safe_dump(options))
        with redirect_stdout(io.StringIO()), pytest.raises(SystemExit):
            dispatch([*stage.command.split(), f"--config={path}", "--print_config"])


def start(recipe: RecipeFolder, content: dict) -> subprocess.Popen:
    recipe.path.write_text(yaml.safe_dump(content, sort_keys=False))
    words = [sys.executable, "-c", "from training.cli import run; run()", "run", f"--config={recipe.path}"]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_killed_in_the_middle(copied, tmp_path):
    """`kill -9` during a training: the stage's process ends as well, and the same command ends in the same weights."""
    straight = tmp_path / "straight"
    shutil.copytree(copied.output, straight)
    content = copied.content(epochs=15)
    del content["stages"]["quality"], content["stages"]["seeds"]
    runner = start(copied, content)
    deadline = time.monotonic() + 300
    while not in_second_epoch(copied.output) and time.monotonic() < deadline and runner.poll() is None:
        time.sleep(0.02)
    stage = children(runner.pid)
    os.kill(runner.pid, signal.SIGKILL)
    log, _ = runner.communicate()  # to the end of the output, which the stage's process has open as well
    assert "[stage 1 of 1: classifier] fit: trainer.max_epochs is 15, was 1; about 2 s\n" in log
    assert len(stage) == 1
    assert torch.load(copied.output / "classifier/last.ckpt", weights_only=True)["epoch"] < 14
    again = start(copied, content)
    log, _ = again.communicate()
    assert again.returncode == 0, log
    record = json.loads((copied.output / "stages/classifier.json").read_text())
    assert record["resumed"] is True
    assert record["peak_memory"] > 50_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_recipe, "run_process", run_here)
        assert main(["run", f"--config={copied.path}", f"--output={straight}"]) == 0
    one, other = (
        torch.load(place / "classifier/last.ckpt", weights_only=True)["state_dict"]
        for place in (straight, copied.output)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def in_second_epoch(output: Path) -> bool:
    """Whether the training has finished an epoch; the earlier result has been set aside before."""
    return (output / "stages/.classifier.old").exists() and (output / "classifier/last.ckpt").is_file()


def children(pid: int) -> list[int]:
    """The child processes of a process, where the system lists them."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in listed.read_text().split()] if listed.is_file() else [0]


def test_mistakes_of_later_stages_are_found_first(tmp_path):
    """An unknown option of the last stage stops the recipe before its first stage; status 2, one sentence."""
    recipe = RecipeFolder(tmp_path, tmp_path / "data")
    content = recipe.content()
    content["stages"]["quality"]["options"]["treshold"] = 0.3
    done = start(recipe, content)
    log, _ = done.communicate()
    assert done.returncode == 2
    assert log == "tag2mask: stage 'quality': there is no option 'treshold'; did you mean 'threshold'?\n"
    assert not (tmp_path / "out").exists()
