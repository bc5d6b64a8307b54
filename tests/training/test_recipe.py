"""Mistakes in recipes: one sentence that names the file and the stage, and nothing is written."""

import pytest
import yaml

from training.cli import main
from training.recipes.recipe import references, substitute

MISTAKES = {
    "command": ({"command": "fitt"}, "stage 'x': there is no command 'fitt'; did you mean 'fit'?"),
    "no command": ({"config": "demo_sec.yaml"}, "stage 'x': 'command' is missing"),
    "reference": ({"command": "fit", "options": {"a": "{dat}"}}, "{dat}: no such stage or setting; did you mean"),
    "later": ({"command": "fit", "options": {"a": ["{y}/b"]}}, "its options refer to {y}, which does not come before"),
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


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("output: o\nstages: {}", [], "'stages' names no stage"),
        ("stages: {a: {command: fit}}", [], "'output', the folder of the results, is missing"),
        ("output: o\nstages:\n  a: {command: fit}\n  a: {command: fit}", [], "line 3: 'a' comes twice"),
        ("output: o\nstage: {}", [], "there is no option 'stage'; did you mean 'stages'?"),
        ("output: o\nstages: {stages: {command: fit}}", [], "choose another name"),
        ("output: o\nstages: {../a: {command: fit}}", [], "choose another name"),
        (
            "output: o\nsettings: {output: a}\nstages: {a: {command: fit}}",
            [],
            "'output' cannot be the name of a setting",
        ),
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


def test_a_reference_takes_the_type_of_its_value():
    options = {"a": "{n}", "b": ["{n}/{x}", 3], "c": {"d": None}}
    assert substitute(options, {"n": 5}) == {"a": 5, "b": ["5/{x}", 3], "c": {"d": None}}
    assert references(options) == ["n", "n", "x"]
