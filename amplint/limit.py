"""Limits: of processor time, so that no file can hang a run; and of what Python spends on its own housekeeping."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

_SLOTS = 70_000  # of the frame of with_room: a little more than half a MiB
DEEPEST = 6000  # calls of Python functions, which need little of the stack; ast.parse is content with fewer levels
AGAIN = 1.0  # seconds from one TooLong to the next: Python drops what is raised while it cleans up (in __del__)


class TooLong(BaseException):
    """The time is up. No Exception: nothing on the way may catch it by accident."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in the block after so much processor time: a busy machine makes no difference.

    Where there is no such clock (Windows) or it belongs to somebody else (not the main thread), there is no limit.
    """
    if not hasattr(signal, "SIGPROF") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@contextlib.contextmanager
def rare_collection() -> Iterator[None]:
    """Let Python look rarely for cycles of garbage in the block: syntax trees are large and have none, and to look
    through the same ones again and again takes as long as to parse them."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(4_000_000, 8, 50)  # new objects (some 200 MB), and how many such looks until older ones get one
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@contextlib.contextmanager
def deep_recursion() -> Iterator[None]:
    """Let the block recurse as deep as any tree that ast.parse gives."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEEPEST))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def with_room(work: Callable[[], object]) -> None:
    """Call something that recurses deeply. Python keeps frames in pieces of 16 KiB, each taken from the system when a
    call needs it and given back at its return: a loop of calls at such an edge spends its time there. This function's
    own frame is so large that its piece, a power of two, has half a MiB left for what it calls."""
    work()


with_room.__code__ = with_room.__code__.replace(co_stacksize=_SLOTS)
