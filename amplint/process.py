"""Child processes that run the user's code: with a time limit, and with nothing left behind when they are over."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def run(
    command: Sequence[str],
    seconds: float,
    done: Callable[[], bool] = lambda: False,
    env: Mapping[str, str] = os.environ,
    cwd: str | None = None,
    output: int = 2,
) -> int | None:
    """The command's exit code; 0 as soon as `done` says so; None if time ran out.

    It reads nothing, and writes to `output`, standard error if not told otherwise. When this returns, or raises
    (Ctrl-C), its processes are gone."""
    sys.stderr.flush()
    with _clean():
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=dict(env),
            cwd=cwd,
        )
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return child.wait(0.1)
                if done():
                    return 0
            return None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextlib.contextmanager
def _clean() -> Iterator[None]:
    """Afterwards no process is left that was started inside, also none that went into a session of its own: on Linux
    orphans come to the process that adopts them."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = set(_descendants(os.getpid()))
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        for _ in range(100):
            left = set(_descendants(os.getpid())) - before
            for process in left:
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, os.WNOHANG)
            if not left:
                break
            time.sleep(0.01)
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _descendants(root: int) -> list[int]:
    """All processes under one that have not ended and been waited for."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # it ended meanwhile
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for process in found:
        found += children.get(process, ())
    return found[1:]
