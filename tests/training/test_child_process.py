"""A process of a command: how it ended is returned, and it ends with the process that started it."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from training.child_process import run_process

ROOT = Path(__file__).resolve().parents[2]
TITLE = "stage 1 of 1: classifier"
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_model_summary=false", "--trainer.max_steps=1"]


def fit(folder: Path, images: int) -> list[str]:
    """A training that draws its images first, which takes minutes for 20,000 images."""
    words = ["fit", f"--config={ROOT / 'configs/classifier_demo.yaml'}", *QUIET, f"--data.root={folder / 'data'}"]
    return [*words, f"--output={folder / 'run'}", f"--data.train={images}", "--data.val=1", "--data.num_workers=0"]


def started_by(pid: int, folder: Path) -> psutil.Process:
    """The process that another one starts, once it draws images."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(folder.glob(".data.*.part/JPEGImages/*")):
            for child in psutil.Process(pid).children():
                with suppress(psutil.Error):  # it has ended
                    if "training.cli" in child.cmdline():
                        return child
        time.sleep(0.05)
    raise TimeoutError


def test_how_a_process_ended(tmp_path, capfd):
    status = run_process(fit(tmp_path, 16), TITLE)
    printed = capfd.readouterr().err
    assert status == 0, printed
    assert "\n[stage 1 of 1: classifier] drawing train: 0/16 images\n" in printed
    assert run_process(["fit", "--trian=1"], TITLE) == 2


def test_the_process_runs_the_same_program(tmp_path, monkeypatch, capfd):
    """Though the folder it is started in holds a package of the same name; its exit status comes back."""
    (tmp_path / "training").mkdir()
    (tmp_path / "training/__init__.py").write_text("raise SystemExit('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    assert run_process(["--version"], TITLE) == 0
    assert "tag2mask" in capfd.readouterr().out
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert run_process(["--version"], TITLE) == 1


def test_a_process_that_is_killed(tmp_path):
    killer = threading.Thread(target=lambda: started_by(os.getpid(), tmp_path).kill())
    killer.start()
    status = run_process(fit(tmp_path, 20_000), TITLE)
    killer.join()
    assert status == 128 + signal.SIGKILL


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_started_it(tmp_path, how):
    code = f"from training.child_process import run_process; run_process({fit(tmp_path, 20_000)}, {TITLE!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as starter:
        process = started_by(starter.pid, tmp_path)
        starter.send_signal(how)
        assert starter.wait() == -how
        process.wait(timeout=10)
        assert not process.is_running()


def test_control_c_ends_both(tmp_path):
    """A terminal sends it to the whole group of processes: both end, and the status is that of an interrupt."""
    code = (  # a shell that starts the tests in the background has Ctrl-C ignored
        "import signal, sys; from training.child_process import run_process\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try: run_process({fit(tmp_path, 20_000)}, {TITLE!r})\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True) as starter:
        process = started_by(starter.pid, tmp_path)
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.wait(timeout=30) == 130
        assert not process.is_running()
