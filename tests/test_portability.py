"""No command uses what Windows or macOS lacks: such calls belong behind libraries (filelock, psutil)."""

import ast
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    *("crypt", "curses", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "readline", "resource"),
    *("spwd", "syslog", "termios", "tty"),
}
OF_OS = {
    *("O_ASYNC", "O_CLOEXEC", "O_DIRECT", "O_DIRECTORY", "O_NOCTTY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
    *("RTLD_GLOBAL", "RTLD_LAZY", "RTLD_NOW", "WEXITSTATUS", "WIFEXITED", "WIFSIGNALED", "WNOHANG", "WTERMSIG"),
    *("chflags", "chown", "chroot", "confstr", "copy_file_range", "ctermid", "eventfd", "fchdir", "fchmod", "fchown"),
    *("fdatasync", "fork", "forkpty", "fpathconf", "fstatvfs", "get_blocking", "getegid", "geteuid", "getgid"),
    *("getgrouplist", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getresuid", "getsid", "getuid"),
    *("getxattr", "killpg", "lchown", "listxattr", "lockf", "major", "makedev", "memfd_create", "minor", "mkfifo"),
    *("mknod", "nice", "openpty", "pathconf", "pidfd_open", "pipe2", "posix_fadvise", "posix_fallocate"),
    *("posix_spawn", "posix_spawnp", "pread", "preadv", "pwrite", "pwritev", "readv", "register_at_fork"),
    *("sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "set_blocking", "setegid", "seteuid"),
    *("setgid", "setgroups", "setns", "setpgid", "setpriority", "setsid", "setuid", "setxattr", "splice", "statvfs"),
    *("sync", "sysconf", "tcgetpgrp", "tcsetpgrp", "ttyname", "uname", "unshare", "wait", "wait3", "wait4", "waitid"),
    *("writev",),
}
OF_OTHERS = {
    "signal": {each.name for each in signal.Signals} - {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
    | {"alarm", "getitimer", "pause", "pthread_kill", "pthread_sigmask", "set_wakeup_fd", "setitimer", "siginterrupt"}
    | {"sigpending", "sigtimedwait", "sigwait", "sigwaitinfo"},
    "socket": {"AF_UNIX", "socketpair", "send_fds", "recv_fds"},
    "time": {"clock_gettime", "clock_settime", "pthread_getcpuclockid", "tzset"},
}
ATTRIBUTES = {"os": OF_OS, **OF_OTHERS}
ARGUMENTS = {"pass_fds", "preexec_fn", "process_group", "start_new_session", "umask", "extra_groups"}
FILES = sorted(path for package in ("datamodules", "seeds", "training") for path in (ROOT / package).rglob("*.py"))


def posix_only(source: str) -> list[str]:
    """What a file uses that POSIX systems alone have, as far as its text shows."""
    tree = ast.parse(source)
    return [name for node in ast.walk(tree) for name in used(node)]


def used(node: ast.AST) -> list[str]:
    """The names of ``MODULES``, ``ATTRIBUTES`` and ``ARGUMENTS`` that a node of the syntax tree itself has."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in MODULES]
    if isinstance(node, ast.ImportFrom):
        taken = [alias.name for alias in node.names if alias.name in ATTRIBUTES.get(str(node.module), ())]
        return [str(node.module)] if node.module in MODULES else taken
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return [ast.unparse(node)] if node.attr in ATTRIBUTES.get(node.value.id, ()) else []
    return [node.arg] if isinstance(node, ast.keyword) and node.arg in ARGUMENTS else []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_use_nothing_that_posix_alone_has(path):
    assert posix_only(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import fcntl", ["fcntl"]),
        ("def f():\n    from resource import getrusage", ["resource"]),
        ("from os import fork, path", ["fork"]),
        ("import os\nos.wait4(1, 0)", ["os.wait4"]),
        ("import signal\nsignal.SIGKILL", ["signal.SIGKILL"]),
        ("subprocess.Popen([], pass_fds=[3])", ["pass_fds"]),
        ("os.register_at_fork(after_in_child=f)", ["os.register_at_fork"]),
        ("import os, signal\nos.kill(1, signal.SIGTERM)", []),
    ],
)
def test_the_search_finds_them(source, found):
    assert posix_only(source) == found
