"""`tag2mask run`: inputs that a later stage refuses are refused before the first stage, and by a dry run."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from datamodules.errors import InputError
from datamodules.folder import FolderDataModule
from training.cli import main
from training.recipes import input_checks
from training.recipes import runner as runner_module
from training.recipes.recipe import Stage

WORDS = ("--config=photos.yaml", "--weights=none", "--accelerator=cpu")
TAGS = ("cat", "dog", "cat;dog", "", "dog", "cat")


@pytest.fixture
def photos(tmp_path):
    """A folder of twelve images with a table of tags; one is for validation."""
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    names = [f"image_{number:02d}.png" for number in range(12)]
    for name in names:
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name)
    rows = [f"{name},{TAGS[number % len(TAGS)]}\n" for number, name in enumerate(names)]
    (folder / "tags.csv").write_text("file,tags\n" + "".join(rows))
    return folder


@pytest.fixture
def started(monkeypatch):
    """The stages that were started: none of them runs."""
    stages = []

    def run_process(_words, title):
        stages.append(title)
        return 3

    monkeypatch.setattr(runner_module, "run_process", run_process)
    return stages


def damage_validation(photos, tmp_path):
    (sample,) = FolderDataModule(str(photos), val_fraction=0.1).samples("val")
    Path(sample.image).unlink()
    return [], f"the split 'val' of {photos / 'tags.csv'} contains {sample.id}, and there is no image"


def leave_no_validation(photos, tmp_path):
    (photos / "tags.csv").write_text("file,tags\nimage_00.png,cat\n")
    for number in range(1, 12):
        (photos / f"image_{number:02d}.png").unlink()
    return [], "'val'"


def damage_headers(photos, tmp_path):
    for number in range(3):
        (photos / f"image_{number:02d}.png").write_bytes(b"no image")
    return [], "3 of 12 images cannot be read"


def give_an_image_for_weights(photos, tmp_path):
    return [f"--weights={photos / 'image_00.png'}"], "image_00.png is refused: it carries code or is damaged"


def give_other_weights(photos, tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    return [f"--weights={tmp_path / 'other.pth'}"], "other.pth do not fit backbone mobilenet_v2"


def name_no_class(photos, tmp_path):
    return ["--small_classes=[dogs]"], "stage 'seeds': small_classes: there is no class 'dogs'; did you mean 'dog'?"


def ask_for_a_gpu(photos, tmp_path):
    return ["--accelerator=cuda"], "stage 'classifier': accelerator is cuda, and this machine has none"


def write_capitals(photos, tmp_path):
    return ["--accelerator=GPU"], "stage 'classifier': there is no accelerator 'GPU'; did you mean 'gpu'?"


@pytest.mark.parametrize("words", [(), ("--dry_run=true",)], ids=["run", "dry run"])
@pytest.mark.parametrize("damage", [
    damage_validation, leave_no_validation, damage_headers, give_an_image_for_weights, give_other_weights,
    name_no_class, ask_for_a_gpu, write_capitals,
])  # fmt: skip
def test_inputs_that_a_later_stage_refuses(photos, tmp_path, started, monkeypatch, capsys, damage, words):
    """One sentence that names the stage, and no stage has started."""
    monkeypatch.setattr("training.recipes.estimate.time_step", lambda *_arguments: (0.0, 0, 0))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("pytorch_lightning.accelerators.CUDAAccelerator.is_available", lambda: False)
    changed, message = damage(photos, tmp_path)
    given = [*WORDS, "--stages=seeds", *changed, *words]
    assert main(["run", f"--root={photos}", f"--output={tmp_path / 'out'}", *given]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tag2mask: stage '")
    assert message in error
    assert started == []


def test_what_check_finds_in_the_tags_is_printed_once(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.recipes.estimate.time_step", lambda *_arguments: (0.0, 0, 0))
    table = photos / "tags.csv"
    first, *rows = table.read_text().splitlines()
    table.write_text("\n".join([first, rows[0].replace("cat", "Cat"), *rows[1:]]))
    assert main(["run", *WORDS, f"--root={photos}", f"--output={tmp_path / 'out'}", "--dry_run=true"]) == 0
    printed = capsys.readouterr().err
    assert printed.count("warning: Cat, cat look like one class") == 1
    assert printed.count("warning: classes with fewer than 20 images are hardly learned") == 1


def test_headers_are_read_once_for_all_stages(photos, tmp_path, started, monkeypatch):
    """And a recipe without mistakes starts."""
    read = []
    monkeypatch.setattr(input_checks, "readable", lambda samples, _found: read.append(len(samples)))
    words = [*WORDS, "--stages=affinity", "--classes=[cat, dog]", "--small_classes=[dog]"]
    assert main(["run", f"--root={photos}", f"--output={tmp_path / 'out'}", *words]) == 3
    assert started == ["stage 1 of 3: classifier"]
    assert sorted(read) == [1, 11]


def test_an_unknown_index_in_an_own_mask(photos):
    (photos / "masks").mkdir()
    Image.fromarray(np.full((20, 30), 9, np.uint8)).save(photos / "masks/image_00.png")
    data = FolderDataModule(str(photos), targets="tags", annotations="masks", train_split="all", val_split=None)
    with pytest.raises(InputError, match=r"masks.image_00\.png .*9"):
        input_checks.InputChecks().check_images(data)


def test_an_unknown_index_in_a_mask_of_the_validation(photos, tmp_path, started, monkeypatch, capsys):
    """Each mask is read once for all stages; one that cannot be read does not count."""
    (photos / "masks").mkdir()
    samples = FolderDataModule(str(photos), val_fraction=0.5).samples("val")
    masks = [photos / f"masks/{sample.id}.png" for sample in samples]
    for mask in masks:
        Image.fromarray(np.full((20, 30), 2, np.uint8)).save(mask)
    masks[0].write_bytes(masks[0].read_bytes()[:-30])
    data, checks, read = FolderDataModule(str(photos), val_fraction=0.5), input_checks.InputChecks(), []
    read_mask = input_checks.read_class_mask
    monkeypatch.setattr(input_checks, "read_class_mask", lambda *given: read.append(given[0]) or read_mask(*given))
    for _ in range(2):
        checks.check_images(data)
    assert sorted(read) == sorted(map(str, masks))
    (sample,) = FolderDataModule(str(photos)).samples("val")  # that of the recipe
    Image.fromarray(np.full((20, 30), 77, np.uint8)).save(photos / f"masks/{sample.id}.png")
    assert main(["run", f"--root={photos}", f"--output={tmp_path / 'out'}", *WORDS]) == 1
    message = f"masks/{sample.id}.png contains the index 77, and its classes end at 2 (255 is ignored)"
    assert message in capsys.readouterr().err
    assert started == []


def test_a_missing_file_of_clip(tmp_path):
    for weights, message in (("download", ""), ("none.safetensors", "there are no weights none.safetensors")):
        stage = Stage("classifier", "zero-shot", {"root": "photos", "weights": weights}, ())
        assert input_checks.downloads_weights(stage) == (weights == "download")
        with pytest.raises(InputError, match=message) if message else nullcontext():
            input_checks.check_options(stage, [stage])


def test_a_dry_run_names_what_is_not_there_yet(tmp_path, monkeypatch, capsys):
    """VOC is downloaded into a folder that does not exist; the weights are downloaded, too."""
    monkeypatch.setattr("training.recipes.estimate.time_step", lambda *_arguments: (0.0, 0, 0))
    words = ["--config=voc12.yaml", f"--root={tmp_path / 'voc'}", "--weights=imagenet", "--dry_run=true"]
    assert main(["run", f"--output={tmp_path / 'out'}", *words]) == 0
    printed = capsys.readouterr().out
    for name in ("classifier", "affinity", "first-network", "network"):
        assert f"stage '{name}' is neither checked nor estimated: the images of {tmp_path / 'voc'} are not" in printed
    assert "are not checked: classifier, affinity, first-network, network" in printed


def test_a_dry_run_of_a_training_on_what_an_earlier_stage_writes(tmp_path, monkeypatch, capsys):
    """As the run itself, it takes the data as they will be."""
    monkeypatch.setattr("training.recipes.estimate.time_step", lambda *_arguments: (0.0, 0, 0))
    second = {"data": {"init_args": {"root": "{first}"}}}
    stages = {
        "first": {"command": "fit", "config": "classifier_demo.yaml"},
        "second": {"command": "fit", "config": "classifier_voc_animals.yaml", "options": second},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "stages": stages}))
    assert main(["run", f"--config={tmp_path / 'recipe.yaml'}", "--dry_run=true"]) == 0
    printed = capsys.readouterr().out
    assert "stage 'second' is neither checked nor estimated: its images are written when" in printed
    assert "stage 'first' is neither" not in printed


PLUG_IN = """
from pathlib import Path
from datamodules.folder import FolderDataModule
from seeds.classifier import ClassifierTask
from torch import nn

print("loading: version 1.0")
print("- of a plug-in")

class Photos(FolderDataModule):
    def __init__(self, root: str, notes: Path = Path("notes.csv"), **common):
        assert not notes.is_file()
        super().__init__(root, **common)

class Tagger(ClassifierTask):
    def __init__(self, classes: list[str], norm: type = nn.BatchNorm2d, **more):
        assert norm(3)
        super().__init__(classes, **more)
"""


def test_classes_of_others_with_defaults_that_yaml_cannot_express(photos, tmp_path, monkeypatch, capsys):
    """And a module of others prints when it is imported."""
    monkeypatch.setattr("training.recipes.estimate.time_step", lambda *_arguments: (0.0, 0, 0))
    (tmp_path / "plug_in_of_a_test.py").write_text(PLUG_IN)
    monkeypatch.syspath_prepend(tmp_path)
    options = {
        "data": {"class_path": "plug_in_of_a_test.Photos", "init_args": {"root": str(photos), "size": 64}},
        "model": {"class_path": "plug_in_of_a_test.Tagger", "init_args": {"backbone": "resnet18"}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    recipe = {"output": str(tmp_path / "out"), "stages": {"train": {"command": "fit", "options": options}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["run", f"--config={tmp_path / 'recipe.yaml'}", "--dry_run=true"]
    assert main(words) == 0, capsys.readouterr().err  # what is printed is no YAML
    assert main(words) == 0, capsys.readouterr().err  # the module is imported already


WEIGHTS = ("seed_weight", "expand_weight", "constrain_weight")


@pytest.mark.parametrize("words", [(), ("--dry_run=true",)], ids=["run", "dry run"])
@pytest.mark.parametrize(("change", "message"), [
    ({"data": {"class_path": "FolderDataModule", "init_args": {"root": "{photos}", "size": None}}},
     "stage 'train': data.init_args.size is empty (null), and needs a value"),
    ({"data": {"init_args": {"root": "{photos}"}}}, "stage 'train': data needs a class_path"),
    ({"model": None}, "stage 'train': model needs a class_path"),
    ({"model": {"class_path": "ClassifierTask", "init_args": {"backbone": "resnet18", "weights": None}}},
     "stage 'train': model.init_args.weights is empty (null), and needs a value"),
    ({"model": {"class_path": "SegmentationTask"}},
     "stage 'train': loss 'sec' needs cues: give the data module targets: cues"),
    ({"model": {"class_path": "SegmentationTask", "init_args": {"loss": "cross_entropy"}}},
     "stage 'train': loss 'cross_entropy' needs masks"),
    ({"model": {"class_path": "SegmentationTask", "init_args": dict.fromkeys(WEIGHTS, 0.0)}},
     "stage 'train': the weights of the seed, expand and constrain losses are all 0"),
    ({"trainer": {"max_steps": 0}}, "stage 'train': trainer.max_steps is 0, and the training would have no step"),
    ({"trainer": {"limit_train_batches": 0}}, "trainer.limit_train_batches is 0, and the training would have no step"),
], ids=[
    "null", "no data module", "no model", "no weights", "no cues", "no masks", "no loss", "no step", "no batch",
])  # fmt: skip
def test_trainings_without_a_class_or_a_value(photos, tmp_path, started, capsys, words, change, message):
    options = {
        "data": {"class_path": "FolderDataModule", "init_args": {"root": "{photos}"}},
        "model": {"class_path": "ClassifierTask", "init_args": {"backbone": "resnet18"}},
    } | change
    recipe = {
        "output": str(tmp_path / "out"), "settings": {"photos": str(photos)},
        "stages": {"train": {"command": "fit", "options": options}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", f"--config={tmp_path / 'recipe.yaml'}", *words]) != 0
    assert message in capsys.readouterr().err
    assert not started


def test_equal_steps_are_timed_once(photos, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr("training.recipes.estimate.time_step", lambda *given: sizes.append(given[2]) or (0.0, 0, 0))
    words = [*WORDS, f"--root={photos}", f"--output={tmp_path / 'out'}", "--dry_run=true"]
    assert main(["run", *words]) == 0
    assert len(sizes) == 3  # classifier, boundaries, and one for the two segmentation networks


def test_hours_operations_and_memory_of_a_dry_run(photos, tmp_path, monkeypatch, capsys):
    """Of 5 and of 3 steps, each of 2 hours and 1e15 operations, with 3e9 bytes."""
    monkeypatch.setattr("training.recipes.estimate.time_step", lambda *_given: (2 * 3600.0, 10**15, 3 * 10**9))

    def stage(steps):
        data = {"class_path": "FolderDataModule", "init_args": {"root": str(photos), "size": 32}}
        model = {"class_path": "ClassifierTask", "init_args": {"backbone": "resnet18"}}
        trainer = {"max_epochs": -1, "max_steps": steps, "accelerator": "cpu"}
        return {"command": "fit", "options": {"data": data, "model": model, "trainer": trainer}}

    recipe = {"output": str(tmp_path / "out"), "stages": {"first": stage(5), "second": stage(3)}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["run", f"--config={tmp_path / 'recipe.yaml'}", "--dry_run=true"]) == 0
    printed = capsys.readouterr().out
    rows = [[text.strip() for text in line.split("│")] for line in printed.splitlines() if "│ to run" in line]
    assert [row[4:9] for row in rows] == [["11", "5", "10.00", "5.0", "3.0"], ["11", "3", "6.00", "3.0", "3.0"]]
    assert "trainings: 16.0 hours, " in printed


@pytest.mark.parametrize("exists", [False, True])
def test_a_folder_that_a_stage_downloads_is_not_checked(tmp_path, exists):
    """It may be missing, or incomplete after a download that was stopped; the path may be written in another way."""
    root = tmp_path / "voc"
    if exists:
        root.mkdir()

    def stage(name, path, **more):
        data = {"class_path": "VOCDataModule", "init_args": {"root": path, **more}}
        return Stage(name, "fit", {"data": data, "model": {"class_path": "ClassifierTask"}}, ())

    stages = [stage("classifier", str(root), download=True), stage("network", f"{root}/")]
    input_checks.InputChecks().check_existing(stages, stages)
    with pytest.raises(InputError, match="stage 'network': "):
        input_checks.InputChecks().check_existing(stages[1:], stages[1:])


@pytest.mark.parametrize(
    "options", [{"trainer": {"accelerator": "gpu"}}, {"accelerator": "gpu"}, {"accelerator": "cuda"}]
)
def test_a_gpu_that_the_machine_has_or_has_not(monkeypatch, options):
    """Of a training, and of another command; Lightning calls it gpu or cuda."""
    refused = pytest.raises(InputError, match="this machine has none")
    for available, problem in ((True, nullcontext()), (False, refused)):
        found = "pytorch_lightning.accelerators.CUDAAccelerator.is_available"
        monkeypatch.setattr(found, lambda available=available: available)
        with problem:
            input_checks.check_accelerator(options)
    for name in ("auto", "cpu"):
        input_checks.check_accelerator({"accelerator": name})


def test_annotations_of_images_at_a_uri_are_checked_first():
    """The images alone are not: each would be a request."""
    for more, needed in (({}, False), ({"annotations": ["few.csv"]}, True)):
        data = {"class_path": "FolderDataModule", "init_args": {"root": "memory://photos", **more}}
        stage = Stage("classifier", "fit", {"data": data}, ())
        assert input_checks.needs_data(stage, [stage]) == needed
