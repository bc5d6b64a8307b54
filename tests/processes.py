"""Processes of a test, forked so that all modules are imported already."""

import os
import signal
import socket
import traceback


def child(work):
    """Run a function in a forked process, in which all modules are imported; return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - printed here: pytest must not continue in this process
        traceback.print_exc()
    finally:
        os._exit(status)


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
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
