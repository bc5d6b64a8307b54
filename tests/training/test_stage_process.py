"""A stage's process: how it ends is reported, and it ends with the process that started it."""

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

from training.recipes.stage_process import run_process

ROOT = Path(__file__).resolve().parents[2]
LONG = ["synthesize", "--train=20000", "--val=1"]
STAGE = "stage 1 of 1: data"


def started_by(pid: int) -> psutil.Process:
    """The stage that a process starts, once it draws images; other tests may have left other processes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error):  # it has ended
                if "stage_main" in " ".join(child.cmdline()) and child.num_threads() > 4:
                    return child
        time.sleep(0.05)
    raise TimeoutError


def test_how_a_process_ended(tmp_path, capfd):
    done = run_process(["synthesize", f"--output={tmp_path / 'data'}", "--train=1", "--val=1", "--size=32"], STAGE)
    assert done.status == 0
    assert 0 < done.seconds < 120
    assert done.peak_memory > 20_000_000
    assert capfd.readouterr().err.startswith("[stage 1 of 1: data] drawing train: 0/1 images\n")
    assert run_process(["synthesize", f"--output={tmp_path / 'other'}", "--trian=1"], STAGE).status == 2


def test_a_process_that_is_killed(tmp_path):
    killer = threading.Thread(target=lambda: started_by(os.getpid()).kill())
    killer.start()
    ended = run_process([*LONG, f"--output={tmp_path / 'data'}"], STAGE)
    killer.join()
    assert ended.status == 128 + signal.SIGKILL


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_the_process_that_started_it(tmp_path, how):
    code = (
        "from training.recipes.stage_process import run_process; "
        f"run_process({LONG} + ['--output={tmp_path}/d'], {STAGE!r})"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as starter:
        stage = started_by(starter.pid)
        starter.send_signal(how)
        assert starter.wait() == -how
        stage.wait(timeout=10)
        assert not stage.is_running()


def test_control_c_ends_both(tmp_path):
    """A terminal sends it to the whole group of processes: the stage ends by itself, and its status is no surprise."""
    code = (  # a shell that starts the tests in the background has Ctrl-C ignored
        "import signal, sys; from training.recipes.stage_process import run_process\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"try: run_process({LONG} + ['--output={tmp_path}/d'], {STAGE!r})\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True) as starter:
        stage = started_by(starter.pid)
        os.killpg(starter.pid, signal.SIGINT)
        assert starter.wait(timeout=30) == 130
        assert not stage.is_running()
