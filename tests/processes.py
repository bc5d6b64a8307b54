"""Processes of a test, forked so that all modules are imported already."""

import os
import signal
import socket
import sys
import traceback


def child(work, log=None):
    """Run a function in a forked process, in which all modules are imported; return its id.

    Its standard output is dropped; with ``log``, a path, it and the standard error go to this file.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        output = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        if log:
            os.dup2(output, 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))  # not those of pytest
        work()
        status = 0
    except SystemExit as leave:
        status = leave.code or 0
    except BaseException:  # noqa: BLE001 - printed here: pytest must not continue in this process
        traceback.print_exc()
    finally:
        os._exit(status)


def exit_status(pid):
    """Wait for a child process; return its exit status, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid):
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ranks(world, work):
    """Run a function in several processes as Lightning starts them; return their exit statuses."""
    port = str(free_port())

    def one(rank):
        names = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": world,
            "NODE_RANK": 0,
            "LOCAL_RANK": rank,
        }
        os.environ.update({key: str(value) for key, value in names.items()})
        work()

    pids = [child(lambda rank=rank: one(rank)) for rank in range(world)]
    return [exit_status(pid) for pid in pids]
