"""Progress of long work: what a log file shows of it, and when."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.table import Table
from torch.utils.data import DataLoader

from datamodules.progress import STAGE, Progress, first_few, print_result, track

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def interval(monkeypatch):
    monkeypatch.setattr("datamodules.progress.INTERVAL", 0.02)
    monkeypatch.delenv(STAGE, raising=False)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "progress"]


def test_lines_come_though_nothing_gets_done(capsys):
    """The first at once, more while no item is done, the last at the end, none after it."""
    with Progress("drawing", 4, "masks"):
        assert capsys.readouterr().err == "drawing: 0/4 masks\n"
        time.sleep(0.2)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) >= 3
        assert set(lines) == {"drawing: 0/4 masks"}
    assert re.fullmatch(r"drawing: 0/4 masks in \d:\d\d:\d\d", capsys.readouterr().err.splitlines()[-1])
    time.sleep(0.1)
    assert capsys.readouterr() == ("", "")
    assert not threads()


def test_what_a_line_contains(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("datamodules.progress.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("datamodules.progress.INTERVAL", 0.05)
    monkeypatch.setenv(STAGE, "stage 4 of 12: walk")
    with Progress("training", 1000, "steps", done=100, status="epoch 1/9"):
        clock[0] += 60
    first, last = capsys.readouterr().err.splitlines()
    assert first == "[stage 4 of 12: walk] training: 100/1000 steps, epoch 1/9"
    assert last == "[stage 4 of 12: walk] training: 100/1000 steps in 0:01:00"
    with Progress("training", 1000, "steps", done=100) as progress:
        clock[0] += 60
        progress.update(done=300, status="loss 0.5")  # the 100 before were of an earlier process
        time.sleep(0.2)
    *_, line, _end = capsys.readouterr().err.splitlines()
    assert line == "[stage 4 of 12: walk] training: 300/1000 steps, 3.3 steps/s, 0:03:30 left, loss 0.5"


def test_a_line_shows_a_count_and_the_status_that_belongs_to_it(monkeypatch):
    """A line is written by another thread at any moment, also while the numbers change."""
    lines: list[str] = []
    monkeypatch.setattr("datamodules.progress.INTERVAL", 0)
    monkeypatch.setattr("datamodules.progress.write_line", lines.append)
    with Progress("training", status="step 0", unit="steps") as progress:
        end, step = time.monotonic() + 60, 0
        while step < 100_000 or (len(set(lines)) < 10 and time.monotonic() < end):  # a busy machine writes few lines
            step += 1
            progress.update(done=step, status=f"step {step}")
    found = [re.fullmatch(r"training: (\d+) steps, .*step (\d+)", line) for line in lines]
    pairs = {match.groups() for match in found if match}
    assert len(pairs) > 1
    assert all(done == step for done, step in pairs)


@pytest.mark.parametrize("total", [None, float("inf")])
def test_a_total_that_is_not_known(total, capsys):
    with Progress("reading", total) as progress:
        progress.update(advance=3)
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 0 images"
    assert re.fullmatch(r"reading: 3 images, \d+\.\d images/s", lines[-2])
    assert re.fullmatch(r"reading: 3 images in \d:\d\d:\d\d, \d+\.\d images/s", lines[-1])


def test_items_are_passed_on_and_counted(capsys):
    assert list(track("abc", "reading")) == ["a", "b", "c"]
    assert list(track(iter("ab"), "reading", 2)) == ["a", "b"]
    err = capsys.readouterr().err
    assert err.startswith("reading: 0/3 images\n")
    assert re.search(r"reading: 3/3 images in \d:\d\d:\d\d, ", err)
    assert re.fullmatch(r"reading: 2/2 images in \d:\d\d:\d\d, \d+\.\d images/s", err.splitlines()[-1])


def test_an_error_ends_it(capsys):
    def work():
        for item in track("abc", "reading"):
            assert item == "a"

    with pytest.raises(AssertionError):
        work()
    assert "reading: 1/3 images done, stopped after 0:00:00, " in capsys.readouterr().err.splitlines()[-1]
    time.sleep(0.1)
    assert capsys.readouterr().err == ""
    assert not threads()


def test_forked_workers_write_nothing(capfd):
    """Neither a worker that reads data nor a forked process that ends the report itself."""
    with Progress("reading", 8) as progress:
        for batch in DataLoader(list(range(8)), batch_size=2, num_workers=2, multiprocessing_context="fork"):
            progress.update(advance=len(batch))
        pid = os.fork()
        if not pid:
            progress.stop()
            os._exit(0)
        os.waitpid(pid, 0)
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if " in " in line] == lines[-1:]


def test_a_log_file_grows_while_the_work_is_going_on(tmp_path):
    code = (
        "import time, datamodules.progress as p; p.INTERVAL = 0.05\n"
        "with p.Progress('reading', 3) as progress:\n"
        "    progress.update(advance=1); time.sleep(60)"
    )
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=file) as process:
        deadline = time.monotonic() + 60
        while "1/3" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    assert log.read_text().splitlines()[0] == "reading: 0/3 images"
    assert "reading: 1/3 images, " in log.read_text()


def test_a_log_that_is_gone_ends_no_work(monkeypatch):
    class Gone:
        def write(self, _text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert list(track("abc", "reading")) == ["a", "b", "c"]


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("reading", 4) as progress:
        assert not threads()
        progress.update(advance=4)
    written = capsys.readouterr().err
    assert "\x1b[" in written
    assert "━" in written
    assert "4/4 images" in re.sub(r"\x1b\[[\d;?]*\w", "", written)


def test_names_in_square_brackets_are_shown(capsys):
    """They are no markup of rich: in a line, and in the title, the header and the rows of a table. :dog: is none."""
    print_result("runs/[old]/seeds: sound [/b]")
    table = Table("[class]", title="of [old]")
    table.add_row("car [front] :dog:")
    print_result(table)
    printed = capsys.readouterr().out
    for name in ("runs/[old]/seeds: sound [/b]", "[class]", "of [old]", "car [front] :dog:"):
        assert name in printed


def test_it_imports_neither_torch_nor_lightning():
    code = "import sys, datamodules.progress; sys.exit(bool({'torch', 'pytorch_lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_first_words_of_a_list_and_how_many_there_are_beyond():
    assert first_few([*"abcde"]) == "a, b, c, d, e"
    assert first_few([*"abcdefg"], "; ") == "a; b; c; d; e and 2 more"
    assert first_few([]) == ""
