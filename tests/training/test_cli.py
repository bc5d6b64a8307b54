"""The command line, in-process and as a process: every command on a tiny data set, and messages for mistakes."""

import errno
import json
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.files import file_sha256
from datamodules.seed_cache import SeedCache
from tests.processes import child, exit_status
from tests.training.fits import CONFIGS, read_record
from training.cli import FUNCTIONS, LIGHTNING, RECIPE, main
from training.recipes.recipe import leaves

SMALL = [
    *("--data.train=8", "--data.val=4", "--data.image_size=48", "--data.size=48", "--data.batch_size=4"),
    *("--data.num_workers=0", "--trainer.max_epochs=1"),
]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the whole pipeline has run on a tiny data set, each step by its command."""
    folder = tmp_path_factory.mktemp("pipeline")
    data, run = folder / "data", lambda *words: main([str(word) for word in words])
    common = [f"--data.root={data}", *SMALL, *QUIET]
    classifier = ["fit", f"--config={CONFIGS / 'classifier_demo.yaml'}", f"--output={folder / 'classifier'}", *common]
    assert run(*classifier) == 0
    checkpoint = folder / "classifier/last.ckpt"
    generate = ["seeds", "generate", "--checkpoint", checkpoint, "--output", folder / "seeds", "--cue_stride", 4]
    assert run(*generate) == 0
    assert run("seeds", "evaluate", "--cache", folder / "seeds", "--output", folder / "quality") == 0
    sec = ["fit", f"--config={CONFIGS / 'sec_demo.yaml'}", f"--output={folder / 'sec'}", *common]
    sec += [f"--data.cues={folder / 'seeds'}", f"--model.weights={checkpoint}"]
    sec += [f"--data.cues_checkpoint={checkpoint}"]
    assert run(*sec) == 0
    assert run("evaluate", "--checkpoint", folder / "sec/last.ckpt", "--output", folder / "val") == 0
    photos = data / "JPEGImages"
    assert (
        run("predict", "--checkpoint", folder / "sec/last.ckpt", "--images", photos, "--output", folder / "masks") == 0
    )
    return folder


def test_every_step_writes_its_files(made):
    """Checkpoints, figures, a page and masks are where the README lists them, with the content it describes."""
    for run in ("classifier", "sec"):
        assert {"config.yaml", "metrics.csv", "last.ckpt", "best.ckpt"} <= {
            path.name for path in (made / run).iterdir()
        }
    checkpoint = made / "classifier/last.ckpt"  # the initial weights of the network
    recorded = {name: read_record(made / name)["attempts"][0].get("weights") for name in ("classifier", "sec")}
    assert recorded == {"classifier": None, "sec": {"path": str(checkpoint), "sha256": file_sha256(checkpoint)}}
    quality = json.loads((made / "quality/metrics.json").read_text())
    keys = {"miou_fixed", "threshold_fixed", "miou_oracle", "threshold_oracle", "precision", "recall", "coverage"}
    assert keys <= quality.keys()
    assert quality["miou_oracle"] >= quality["miou_fixed"]
    metrics = json.loads((made / "val/metrics.json").read_text())
    assert metrics["images"] == 4
    assert np.isclose(metrics["miou"], np.mean(list(metrics["iou"].values())))
    assert (made / "val/index.html").read_text().startswith("<!doctype html>")
    for photo in (made / "data/JPEGImages").glob("*.jpg"):
        with Image.open(photo) as image, Image.open(made / "masks" / f"{photo.stem}.png") as mask:
            assert mask.mode == "P"
            assert mask.size == image.size


def test_checkpoints_hold_no_code(made):
    """Every checkpoint loads with weights_only."""
    for path in made.glob("*/*.ckpt"):
        assert torch.load(path, weights_only=True)["tag2mask"]["version"] == 1


def test_a_disk_without_space_for_a_checkpoint(made, tmp_path):
    """A process that may write files of 1 MB only: one sentence naming the checkpoint, and nothing half-written."""
    words = ["fit", f"--config={CONFIGS / 'classifier_demo.yaml'}", f"--data.root={made / 'data'}", *SMALL, *QUIET]
    words.append(f"--output={tmp_path / 'run'}")

    def train():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
        sys.exit(main(words))

    assert exit_status(child(train, tmp_path / "log")) == 1
    log = (tmp_path / "log").read_text()
    message = r"^tag2mask: the checkpoint .*(best|last)\.ckpt cannot be written: File too large$"
    assert re.search(message, log, re.MULTILINE)
    assert "Traceback" not in log
    files = {"config.yaml", "hparams.yaml", "metrics.csv", "provenance.json"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == files


def test_a_run_is_not_trained_over(made, tmp_path, capsys):
    """The same command again is refused; nothing of the first run changes."""
    before = (made / "classifier/last.ckpt").read_bytes()
    words = ["fit", f"--config={CONFIGS / 'classifier_demo.yaml'}", f"--output={made / 'classifier'}", *SMALL, *QUIET]
    assert main([*words, f"--data.root={made / 'data'}"]) == 1
    assert "already holds a run" in capsys.readouterr().err
    other = shutil.copy(made / "classifier/last.ckpt", tmp_path / "other.ckpt")
    assert main([*words, f"--data.root={made / 'data'}", f"--ckpt_path={other}"]) == 1  # of another run
    assert "already holds a run" in capsys.readouterr().err
    assert (made / "classifier/last.ckpt").read_bytes() == before


def test_a_run_that_failed_at_its_start_is_no_run(made, tmp_path, capsys):
    """A first command ends with a mistake before any checkpoint; the corrected one trains in the same folder."""
    words = ["fit", f"--config={CONFIGS / 'sec_demo.yaml'}", f"--output={tmp_path / 'run'}", *SMALL, *QUIET]
    words += [f"--data.root={made / 'data'}", f"--data.cues={made / 'seeds'}", "--data.cues_checkpoint=null"]
    words += ["--model.init_args.weights=none"]
    assert main([*words, "--data.targets=masks", "--data.annotations=masks"]) == 1
    assert "needs cues" in capsys.readouterr().err
    assert (tmp_path / "run/config.yaml").exists()
    assert main(words) == 0


def test_ctrl_c_in_a_training(monkeypatch, capsys):
    """Lightning ends the process with status 1; the command reports an interrupt."""
    monkeypatch.setattr("training.lightning_cli.TagToMaskCLI", lambda **_: sys.exit(1))
    assert main(["fit", f"--config={CONFIGS / 'classifier_demo.yaml'}"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "seeds generate"])
def test_sigterm_is_no_success(made, tmp_path, monkeypatch, command):
    """A recipe would take a half-trained network for a result. Lightning's exit has no status."""
    monkeypatch.setattr("pytorch_lightning.Trainer.received_sigterm", True)
    words = [f"--config={CONFIGS / 'classifier_demo.yaml'}", *SMALL, *QUIET, f"--data.root={made / 'data'}"]
    if command != "fit":
        words = [f"--checkpoint={made / 'classifier/last.ckpt'}", "--num_workers=0"]
    assert main([*command.split(), *words, f"--output={tmp_path / 'out'}"]) == 143


def test_a_resumed_run_counts_all_epochs(made):
    """A finished run of one epoch resumes for a second one, and its checkpoint is validated."""
    words = [f"--config={CONFIGS / 'classifier_demo.yaml'}", f"--output={made / 'classifier'}", *SMALL, *QUIET]
    words += [f"--data.root={made / 'data'}", "--trainer.max_epochs=2"]
    assert main(["fit", *words, "--ckpt_path=last"]) == 0
    assert torch.load(made / "classifier/last.ckpt", weights_only=True)["epoch"] == 1
    assert main(["validate", *words, f"--ckpt_path={made / 'classifier/last.ckpt'}"]) == 0


def test_training_on_imported_cues(made, tmp_path):
    """Export in SEC's format and import give a cache of the same cues, on which a network trains."""
    out, back = tmp_path / "sec-files", tmp_path / "seeds"
    words = ["--format", "sec", "--output", str(out), "--cache", str(made / "seeds")]
    assert main(["seeds", "export", *words]) == 0
    words = ["--format", "sec", "--output", str(back), "--source", str(out / "localization_cues.pickle"), "--grid=12"]
    assert main(["seeds", "import", *words]) == 0
    there, again = SeedCache(made / "seeds"), SeedCache(back)
    assert there.ids == again.ids
    assert all((there.cues(name) == again.cues(name)).all() for name in there.ids)
    quality = ["--cache", str(back), "--root", str(made / "data"), "--split", "train", "--output", str(tmp_path / "q")]
    assert main(["seeds", "evaluate", *quality]) == 0
    first, second = (json.loads((place / "metrics.json").read_text()) for place in (made / "quality", tmp_path / "q"))
    assert second["precision"] == first["precision"]
    assert second["miou_cues"] == first["miou_cues"]
    assert second["miou_fixed"] is None
    fit = ["fit", f"--config={CONFIGS / 'sec_demo.yaml'}", f"--output={tmp_path / 'sec'}", *SMALL, *QUIET]
    fit += [f"--data.root={made / 'data'}", f"--data.cues={back}", "--data.cues_checkpoint=null"]
    fit += [f"--model.weights={made / 'classifier/last.ckpt'}", "--trainer.max_steps=1"]
    assert main(fit) == 0
    assert (tmp_path / "sec/last.ckpt").is_file()
    fit[2] = f"--output={tmp_path / 'other'}"
    assert main([*fit, f"--data.cues_checkpoint={made / 'classifier/last.ckpt'}"]) == 1


def test_a_hostile_file_of_cues(tmp_path, capsys):
    """No code in a pickle runs; one sentence reports it, and no cache is written."""
    (tmp_path / "input_list.txt").write_text("x.jpg 0\n")
    (tmp_path / "cues.pickle").write_bytes(pickle.dumps({"0_cues": Hostile()}, 2))
    words = ["seeds", "import", "--format=sec", f"--source={tmp_path / 'cues.pickle'}", f"--output={tmp_path / 'c'}"]
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "print, which saved arrays never need; nothing of it was run" in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert "code was run" not in printed.out
    assert not (tmp_path / "c").exists()


TINY_DATA = [
    f"--data.init_args.{name}={value}"
    for name, value in {"root": "{data}", "train": 4, "val": 2, "image_size": 48, "size": 48, "num_workers": 0}.items()
]
MISTAKES = {
    "group in a YAML": (["fit", "--config={bad_group}"], "did you mean 'init_args'?"),
    "class in a YAML": (["fit", "--config={bad_class}"], "no class 'ClasifierTask'; did you mean 'ClassifierTask'?"),
    "trainer option": (["fit", "--config={classifier}", "--trainer.val_check_intervall=3"], "'val_check_interval'?"),
    "trainer type": (["fit", "--config={classifier}", "--trainer.sync_batchnorm=abc"], "expected bool, got abc"),
    "key in a YAML": (["fit", "--config={bad_key}"], "there is no option 'wieght_decay'; did you mean 'weight_decay'?"),
    "data key": (["fit", "--config={classifier}", "--data.sise=3"], "no option 'sise'; did you mean 'size'?"),
    "key of another class": (
        ["fit", "--config={classifier}", "--data=FolderDataModule", "--data.labels=xml"],
        "there is no option 'labels' here, only in another group or of another class_path",
    ),
    "type": (["fit", "--config={classifier}", "--data.size=large"], "data: size: expected int, got large"),
    "string for a boolean": (
        ["predict", "--checkpoint=x", "--images=[x]", "--output=y", "--crf=maybe"],
        "crf: expected bool",
    ),
    "a recipe": (["fit", "--config", "photos.yaml"], "photos.yaml is a recipe: tag2mask run --config "),
    "no YAML": (["fit", "--config=demo_clasifier.yaml"], "there is no file demo_clasifier.yaml; did you mean"),
    "YAML of another folder": (["fit", "--config=no/classifier_demo.yaml"], "there is no file no/classifier_demo.yaml"),
    "broken YAML": (["fit", "--config={broken}"], "line 1: not YAML"),
    "no day": (["fit", "--config={day}"], "not YAML: month must be in 1..12"),
    "no character": (["run", "--config={bell}"], "not YAML: unacceptable character"),
    "no command": (["evalute"], "no command 'evalute'; did you mean 'evaluate'?"),
    "missing": (["seeds", "generate"], "required: checkpoint, output"),
    "another format": (["seeds", "import", "--format=mat", "--source=x", "--output=y"], "format"),
    "nothing to export": (["seeds", "export", "--format=sec", "--cache=x", "--output=y"], "x is not a seed cache"),
    "no class": (["fit", "--config={classifier}", "--model=seeds.classifier.Clasifier"], "Clasifier"),
    "no data": (
        ["fit", "--config={voc}", "--data.root=no/such", "--output={new}", "--model.init_args.weights=none"],
        "no/such does not exist",
    ),
    "no checkpoint": (["evaluate", "--checkpoint=no.ckpt", "--output=x"], "no.ckpt"),
    "an empty line": (
        ["fit", "--config={classifier}", "--config={empty}", "--output={new}"],
        "data.init_args.batch_size is empty (null), and needs a value",
    ),
    "classes of the model": (
        ["fit", "--config={classifier}", "--output={new}", "--model.init_args.classes=[cat]"],
        "--model.init_args.classes follows from the data: give --data.init_args.classes",
    ),
    "Lightning's optimizer": (
        ["fit", "--config={classifier}", "--output={new}", "--optimizer=SGD"],
        "there is no option 'optimizer'",
    ),
    "no seed": (
        ["fit", "--config={classifier}", "--output={new}", "--seed_everything=false"],
        "seed_everything is false: give a number, or true for a random one",
    ),
    "another logger": (
        [
            "fit",
            "--config={classifier}",
            *TINY_DATA,
            "--output={new}",
            "--wandb=offline",
            "--trainer.logger=false",
        ],
        "wandb is offline, and trainer.logger replaces it: leave one of them out",
    ),
    "a figure that is not logged": (
        [
            "fit",
            "--config={classifier}",
            *TINY_DATA,
            "--output={new}",
            "--trainer.max_epochs=1",
            "--trainer.callbacks=EarlyStopping",
            "--trainer.callbacks.monitor=val/none",
        ],
        "Early stopping conditioned on metric `val/none`",
    ),
    "no step": (
        ["fit", "--config={classifier}", *TINY_DATA, "--output={new}", "--trainer.max_steps=0"],
        "the training has no step: max_epochs, max_steps or limit_train_batches is 0",
    ),
    "a batch of one": (
        [
            "fit",
            "--config={masks}",
            "--data=SyntheticDataModule",
            *TINY_DATA,
            "--data.init_args.batch_size=1",
            "--model.init_args.architecture=DeepLabV3Plus",
            "--model.init_args.weights=none",
            "--model.init_args.network_args=null",
            "--data.init_args.classes=null",
            "--data.init_args.train_split=train",
            "--output={new}",
        ],
        "a batch norm of this network needs two images in a batch: raise batch_size",
    ),
    "null": (
        ["fit", "--config={classifier}", "--output={new}", "--model.init_args.backbone=null"],
        "model.init_args.backbone is empty (null), and needs a value",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(name, tmp_path, capsys):
    """Exit status 1 or 2, one line on standard error that names the mistake, no traceback."""
    classifier = CONFIGS / "classifier_demo.yaml"
    (tmp_path / "bad.yaml").write_text(classifier.read_text().replace("weight_decay", "wieght_decay"))
    (tmp_path / "broken.yaml").write_text("model: [unclosed")
    (tmp_path / "day.yaml").write_text("output: 2024-13-45")
    (tmp_path / "bell.yaml").write_text("output: \a")
    (tmp_path / "empty.yaml").write_text("data:\n  init_args:\n    batch_size:\n")
    words, expected = MISTAKES[name]
    places = {
        "new": tmp_path / "run",
        "data": tmp_path / "data",
        "classifier": classifier,
        "masks": CONFIGS / "masks_voc_animals.yaml",
        "voc": CONFIGS / "classifier_voc_animals.yaml",
        "bad_key": tmp_path / "bad.yaml",
        "bad_group": tmp_path / "group.yaml",
        "bad_class": tmp_path / "class.yaml",
        "broken": tmp_path / "broken.yaml",
        "day": tmp_path / "day.yaml",
        "bell": tmp_path / "bell.yaml",
        "empty": tmp_path / "empty.yaml",
    }
    text = CONFIGS.joinpath("classifier_demo.yaml").read_text(encoding="utf-8")
    places["bad_group"].write_text(text.replace("init_args", "init_arg", 1), encoding="utf-8")
    places["bad_class"].write_text(text.replace("ClassifierTask", "ClasifierTask"), encoding="utf-8")
    status = main([word.format(**places) for word in words])
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert status in (1, 2)
    assert expected in message
    assert "Traceback" not in message


def test_the_wrong_checkpoint(made, capsys):
    """A classifier is not evaluated as a segmentation network; the message names its task."""
    words = ["evaluate", "--checkpoint", str(made / "classifier/last.ckpt"), "--output", str(made / "nothing")]
    assert main(words) == 1
    assert "classifier" in capsys.readouterr().err
    assert not (made / "nothing").exists()


class Hostile:
    """A pickle can contain a call."""

    def __reduce__(self):
        return (print, ("code was run",))


@pytest.mark.parametrize("command", ["fit", "validate"])
@pytest.mark.parametrize("kind", ["missing", "code", "another task", "another network"])
def test_checkpoints_that_are_refused(made, tmp_path, capsys, command, kind):
    """One sentence each, and no code is run."""
    torch.save({"state_dict": Hostile()}, tmp_path / "code.ckpt")
    path = {
        "missing": tmp_path / "no.ckpt", "code": tmp_path / "code.ckpt", "another task": made / "sec/last.ckpt",
        "another network": made / "classifier/last.ckpt",
    }[kind]  # fmt: skip
    words = [command, f"--config={CONFIGS / 'classifier_demo.yaml'}", f"--output={tmp_path / 'run'}", *SMALL, *QUIET]
    words += [f"--data.root={made / 'data'}", f"--ckpt_path={path}"]
    words += (
        ["--model.init_args.backbone=mobilenet_v2", "--model.init_args.depth=5"] if kind == "another network" else []
    )
    assert main(words) == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    assert str(path) in printed.err or "another network" in printed.err
    assert "code was run" not in printed.out


def test_a_cache_of_another_classifier(made, capsys):
    """Cues are refused when they come from another checkpoint than the given one."""
    other = made / "sec/last.ckpt"
    words = ["fit", f"--config={CONFIGS / 'sec_demo.yaml'}", f"--output={made / 'sec2'}", *SMALL, *QUIET]
    words += [f"--data.root={made / 'data'}", f"--data.cues={made / 'seeds'}", f"--data.cues_checkpoint={other}"]
    assert main([*words, "--model.weights=none"]) == 1
    assert "another checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        "evaluate --checkpoint missing",
        "explain missing.jpg --checkpoint missing",
        f"fit --config {CONFIGS}/classifier_demo.yaml",
        "predict --images missing --checkpoint missing",
        "review --checkpoint missing",
        f"run --config {CONFIGS}/demo.yaml",
        "seeds show missing",
    ],
)
def test_an_output_that_cannot_be_a_folder(tmp_path, capsys, command):
    """A file in place of the output's folder is reported before anything else is read, and stays as it is."""
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for output in (taken, taken / "below"):
        assert main([*command.split(), "--output", str(output)]) == 1
        assert f"the output {output} cannot be a folder: {taken} is a file" in capsys.readouterr().err
    assert taken.read_text() == "mine"


def test_an_output_that_cannot_be_written(tmp_path, capsys, monkeypatch):
    """Reported before anything else is read: a whole evaluation would be lost on a read-only disk."""
    monkeypatch.setattr("datamodules.files.os.access", lambda path, _mode: path != tmp_path)
    assert main(["evaluate", "--checkpoint=missing", f"--output={tmp_path / 'new/folder'}"]) == 1
    expected = f"the output {tmp_path / 'new/folder'} cannot be written: {tmp_path} is read-only"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a mapping of options to values"),
        ("- a", "is not a mapping of options to values"),
        ("output: a\noutput: b", "line 1: 'output' comes twice"),
        ("z: &Z {k: 0}\nx: {inner: &A {<<: *Z, k: 1}}\ny: {<<: *A}", "there is no option 'x"),
        (
            "trainer: 5\nmodel: ClassifierTask\ndata: SyntheticDataModule",
            "trainer: 5 is not a mapping",
        ),
    ],
)
def test_yamls_that_are_no_options(tmp_path, capsys, text, message):
    (tmp_path / "a.yaml").write_text(text)
    assert main(["fit", f"--config={tmp_path / 'a.yaml'}"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("code", "status"), [("a text", 1), (None, 0), (3, 3)])
def test_a_library_that_exits(monkeypatch, capsys, code, status):
    def leave(_words):
        sys.exit(code)

    monkeypatch.setattr("training.cli.dispatch", leave)
    assert main(["check"]) == status
    assert capsys.readouterr().err == ("tag2mask: a text\n" if status == 1 else "")


def test_a_process_without_traceback(tmp_path):
    """The installed command itself: status 1 and one sentence."""
    words = [sys.executable, "-c", "from training.cli import run; run()", "seeds", "threshold", "--cache", "no"]
    done = subprocess.run([*words, "--output", "x"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("tag2mask: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_lists_each_command_once(capsys):
    assert main(["--help"]) == 0
    listed = [line[2:20].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted([*LIGHTNING, *FUNCTIONS, *RECIPE])


@pytest.mark.parametrize("command", [*LIGHTNING, *FUNCTIONS])
def test_help_names_options(command, capsys):
    """Each command's help lists its options, and the way to write them as YAML."""
    assert main([*command.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--config" in printed
    assert "--print_config" in printed


COMMANDS = {"seeds": "seeds generate", "refine": "seeds refine", "pseudo": "pseudo-label", "zero": "zero-shot"}
"""Commands by a word of a YAML's name."""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_parses(path, capsys):
    """No YAML that is shipped has a key its command does not know; printing it gives it back."""
    content = yaml.safe_load(path.read_text())
    if "stages" in content:
        pytest.skip("a recipe: see test_recipe.py")
    command = next((COMMANDS[word] for word in path.stem.split("_") if word in COMMANDS), "fit")
    assert main([*command.split(), f"--config={path}", "--print_config"]) == 0
    printed = dict(leaves(yaml.safe_load(capsys.readouterr().out)))
    for key, value in leaves(content):
        is_class = key.endswith("class_path")  # which is printed with its module
        assert str(printed[key]).endswith(value) if is_class else printed[key] == value, key


def test_the_seed_is_0_where_none_is_given(capsys):
    assert main(["fit", "--model=SegmentationTask", "--print_config"]) == 0
    assert "seed_everything: 0" in capsys.readouterr().out.splitlines()


def test_a_log_file_has_each_line_at_once():
    """Python buffers lines that go to a file or a pipe, unless line buffering is on."""
    code = "import sys; from training.cli import main; main(['--help']); sys.exit(not sys.stdout.line_buffering)"
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent, stdout=subprocess.PIPE, check=False).returncode
        == 0
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_one_sentence_also_in_a_data_module(tmp_path, capsys):
    (tmp_path / "lost+found").mkdir(mode=0)
    words = ["--config=classifier_photos.yaml", f"--data.root={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert main(["fit", *words]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"tag2mask: Permission denied: {tmp_path / 'lost+found'}"


def test_a_system_error_within_the_parser_is_one_sentence(tmp_path, monkeypatch, capsys):
    def refuse(*_arguments, **_more):
        raise PermissionError(errno.EACCES, "Permission denied", "photos/lost+found")

    monkeypatch.setattr("datamodules.folder.read_folders", refuse)
    (tmp_path / "photos/cat").mkdir(parents=True)
    words = ["--config=classifier_photos.yaml", f"--data.root={tmp_path / 'photos'}", f"--output={tmp_path / 'out'}"]
    assert main(["fit", *words]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "tag2mask: Permission denied: photos/lost+found"


def test_an_error_of_the_system_that_was_handled_hides_no_mistake_of_the_program(monkeypatch):
    def mistaken(*_arguments):
        try:
            return Path("nowhere/cache.json").read_text()
        except FileNotFoundError:
            return int("not a number")

    monkeypatch.setattr("training.cli.dispatch", mistaken)
    with pytest.raises(ValueError, match="invalid literal"):
        main(["check"])
