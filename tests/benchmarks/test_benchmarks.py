"""Each benchmark runs to its tables on tiny inputs. Programs that it would start run in this process."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest

from seeds.cam_methods.registry import METHODS
from tests.benchmarks import (
    bench_affinity,
    bench_cache,
    bench_crf,
    bench_gradcam,
    bench_loader,
    bench_networks,
    bench_precision,
    bench_sec,
    bench_start,
    bench_step,
)
from tests.benchmarks.bench_step import Measured
from tests.benchmarks.measure import ROOT, peak_memory, read_config
from training.cli import main as tag2mask


def small_config(name):
    config = read_config(name)
    config["data"]["init_args"]["size"] = 64
    return config


def printed_by(main, *arguments):
    """Return what a script prints."""
    with redirect_stdout(io.StringIO()) as output:
        main(list(arguments))
    return output.getvalue()


def test_make_bench_runs_each_benchmark():
    scripts = {path.stem for path in (ROOT / "tests" / "benchmarks").glob("bench_*.py")}
    assert set(re.findall(r"tests\.benchmarks\.(\w+)", (ROOT / "Makefile").read_text())) == scripts
    assert scripts <= {name for name in globals() if name.startswith("bench_")}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_peak_memory_is_that_of_the_process():
    """A process has not the peak of the larger one that starts it, which `ru_maxrss` has."""
    code = "from tests.benchmarks.measure import peak_memory; print(peak_memory())"
    peak = float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT))
    assert 5 < peak < 100 < peak_memory()


def test_affinity(monkeypatch, capsys):
    monkeypatch.setattr(bench_affinity, "SIDE", 32)
    monkeypatch.setattr(bench_affinity, "TURNS", 1)
    bench_affinity.main()
    assert capsys.readouterr().out.count("ratio") == 2


def test_cache(monkeypatch):
    for name, value in {"VOC": 12, "MANY": 300, "INDEXED": 500, "FEW": 2, "QUICK": (4, 1), "SIZE": 64}.items():
        monkeypatch.setattr(bench_cache, name, value)

    def run(code, *words):
        monkeypatch.setattr(sys, "argv", ["-c", *map(str, words)])
        return printed_by(lambda _: exec(code, {})).split()

    monkeypatch.setattr(bench_cache, "in_a_process", run)
    printed = printed_by(bench_cache.main, "--quick")
    assert "reading 12 images" in printed
    assert "cues of 300 images" in printed
    assert "index of 50 images" in printed_by(bench_cache.main, "--index", "50")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_crf(monkeypatch, tmp_path):
    pytest.importorskip("pydensecrf")
    monkeypatch.setattr(bench_crf, "VOC_ROOT", tmp_path)
    monkeypatch.setattr(bench_crf, "CASES", ((2, 3, 8, 8, 1.0, 1),))
    monkeypatch.setattr(bench_crf, "LARGE", (3, 40, 50))
    monkeypatch.setattr(bench_crf, "child", lambda *arguments, **_: printed_by(bench_crf.main, *arguments))
    printed = printed_by(bench_crf.main)
    assert "2 x 8x8x3" in printed
    assert "pydensecrf2" in printed


def test_networks(monkeypatch):
    for name, value in {"LAYERS": ((8, 2),), "IMAGES": 2, "SIZE": 64, "SIDE": 4}.items():
        monkeypatch.setattr(bench_networks, name, value)
    printed = printed_by(bench_networks.main, "--quick")
    for row in ("8 channels, dilation 2", "classifier", "FPN", "DeepLabV3Plus"):
        assert row in printed


def test_gradcam(monkeypatch):
    for library in ("captum", "pytorch_grad_cam", "torchcam"):
        pytest.importorskip(library)
    few = {name: METHODS[name] for name in ("gradcam", "cam")}
    for name, value in {"SIZE": 64, "BATCH": 2, "CASES": (("mobilenet_v2", "features"),), "METHODS": few}.items():
        monkeypatch.setattr(bench_gradcam, name, value)

    def run(command, **_):
        return SimpleNamespace(stdout=printed_by(bench_gradcam.main, *command[3:]))

    monkeypatch.setattr(bench_gradcam, "subprocess", SimpleNamespace(run=run))
    printed = printed_by(bench_gradcam.main)
    assert "mobilenet_v2 features" in printed
    assert "1.00" in printed  # peak memory


def test_loader(monkeypatch):
    found = bench_loader.available_data
    monkeypatch.setattr(bench_loader, "available_data", lambda *args, **kwargs: found(*args, **kwargs) | {"size": 64})
    monkeypatch.setattr(bench_step, "SIDE", 64)
    monkeypatch.setattr(bench_sec, "read_config", small_config)
    monkeypatch.setattr(bench_loader, "WORKERS", (0,))
    printed = printed_by(bench_loader.main, "--quick")
    assert "loader, 0 workers" in printed
    assert "OpenCV (same pixels: 16 of 16)" in printed


def test_precision(monkeypatch):
    """The steps themselves are measured in `test_step`."""
    speeds = iter([1.0, 2.0])
    commands = []

    def apart(name, words, *_):
        commands.append([name, *words])
        return Measured(np.full((3, 2), next(speeds)), np.zeros((3, 2)), 0.0, 4, 100.0)

    monkeypatch.setattr(bench_precision, "apart", apart)
    monkeypatch.setattr(bench_step, "SIDE", 64)
    assert "0.50" in printed_by(bench_precision.main, "--quick")
    assert [words[-1] for words in commands] == ["--trainer.precision=auto", "--trainer.precision=32-true"]


def test_sec(monkeypatch):
    monkeypatch.setattr(bench_sec, "read_config", small_config)
    monkeypatch.setattr(bench_sec, "CASES", (("sec_voc_animals", 1),))
    assert "sec_voc_animals, batch 3, 8x8" in printed_by(bench_sec.main, "--quick")


def test_start(monkeypatch):
    """Commands run in this process."""
    commands = []

    def seconds(command):
        if command is not bench_start.TORCH:
            commands.append(command[3:])
            assert tag2mask(command[3:]) == 0
        return 1.0

    monkeypatch.setattr(bench_start, "processor_seconds", seconds)
    assert "medians of 1 runs" in printed_by(bench_start.main, "--quick")
    assert len(commands) == 2 * 9


def test_step(monkeypatch):
    found = bench_step.available_data
    small = {"size": 64, "num_workers": 0}
    monkeypatch.setattr(bench_step, "available_data", lambda *args, **kwargs: found(*args, **kwargs) | small)
    monkeypatch.setattr(bench_step, "SIDE", 64)
    monkeypatch.setattr(bench_step, "apart", bench_step.measure)
    monkeypatch.setattr(bench_step, "CASES", ("classifier_voc_animals",))
    assert "GiB" in printed_by(bench_step.main, "--quick")
