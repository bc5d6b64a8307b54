"""A process of a command: how it ended is returned, and it ends with the process that started it."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.seed_caches import CacheWriter
from training.child_process import run_process

ROOT = Path(__file__).resolve().parents[2]
TITLE = "stage 1 of 1: classifier"


@pytest.fixture
def endless(tmp_path):
    """A command that never ends by itself: it reads a shard that is a named pipe, into which nobody writes."""
    os.mkfifo(tmp_path / "shard-00000.safetensors")
    return ["seeds", "verify", f"--cache={tmp_path}"]


def started_by(pid: int, folder: Path) -> psutil.Process:
    """The process of the endless command that another process starts, once it reads the pipe."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(OSError):  # nobody reads
            os.open(folder / "shard-00000.safetensors", os.O_WRONLY | os.O_NONBLOCK)  # stays open: the pipe has no end
            (child,) = (each for each in psutil.Process(pid).children() if "training.cli" in each.cmdline())
            return child
        time.sleep(0.05)
    raise TimeoutError


def test_how_a_process_ended(tmp_path, capfd):
    with CacheWriter(tmp_path / "c", ["a"], {}) as writer:
        writer.add("x", np.zeros((2, 2), np.uint8))
    status = run_process(["seeds", "verify", f"--cache={tmp_path / 'c'}"], TITLE)
    printed = capfd.readouterr().err
    assert status == 0, printed
    assert "[stage 1 of 1: classifier] verifying: 0/1 shards\n" in printed
    assert run_process(["seeds", "verify", "--cahce=c"], TITLE) == 2


def test_the_process_runs_the_same_program(tmp_path, monkeypatch, capfd):
    """Though the folder it is started in holds a package of the same name; its exit status comes back."""
    (tmp_path / "training").mkdir()
    (tmp_path / "training/__init__.py").write_text("raise SystemExit('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    assert run_process(["--version"], TITLE) == 0
    assert "tag2mask" in capfd.readouterr().out
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert run_process(["--version"], TITLE) == 1


def test_a_process_that_is_killed(endless, tmp_path):
    killer = threading.Thread(target=lambda: started_by(os.getpid(), tmp_path).kill())
    killer.start()
    status = run_process(endless, TITLE)
    killer.join()
    assert status == 128 + signal.SIGKILL


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_started_it(endless, tmp_path, how):
    code = f"from training.child_process import run_process; run_process({endless}, {TITLE!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as starter:
        process = started_by(starter.pid, tmp_path)
        starter.send_signal(how)
        assert starter.wait() == -how
        process.wait(timeout=10)
        assert not process.is_running()


def test_control_c_ends_both(endless, tmp_path):
    """A terminal sends it to the whole group of processes: both end, and the status is that of an interrupt."""
    code = (  # a shell that starts the tests in the background has Ctrl-C ignored
        "import signal, sys; from training.child_process import run_process\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try: run_process({endless}, {TITLE!r})\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True) as starter:
        process = started_by(starter.pid, tmp_path)
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.wait(timeout=30) == 130
        assert not process.is_running()
