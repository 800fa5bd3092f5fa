"""How the child answers: one JSON file, written once, by whichever of its processes is first."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn


def say(folder: str, phase: str) -> None:
    """Tell the parent how far it is: what it names if time runs out."""
    with open(os.path.join(folder, "phase"), "w", encoding="utf-8") as stream:
        stream.write(phase)


def claim(folder: str) -> None:
    """Only one process of a script goes on to the analysis; the others wait to be killed."""
    try:
        with open(os.path.join(folder, "claimed"), "x", encoding="utf-8") as stream:
            stream.write(str(os.getpid()))
    except FileExistsError:
        while True:
            time.sleep(60)


def give_way(folder: str) -> None:
    """Wait for the process that claimed the analysis, if there is one: what it says goes before what we say."""
    claimed = Path(folder, "claimed")
    while claimed.exists():
        multiprocessing.active_children()  # looks after those that ended
        try:
            os.kill(int(claimed.read_text(encoding="utf-8") or os.getpid()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)


def finish(folder: str, answer: dict[str, Any]) -> NoReturn:
    """Answer, unless somebody has, and end here and now: nothing of the user's runs any more, no `finally` either."""
    part = os.path.join(folder, f"answer.{os.getpid()}")
    with open(part, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)
    with contextlib.suppress(FileExistsError):
        os.link(part, os.path.join(folder, "answer.json"))
    leave()


def leave() -> NoReturn:
    """End here and now."""
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
            output.flush()
    os._exit(0)


def internal(error: Exception) -> str:
    """A mistake of amplint's own in a line: what, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if f"{os.sep}amplint{os.sep}" in frame.filename]
    place = f"{os.path.basename(inside[-1].filename)}:{inside[-1].lineno}" if inside else "amplint"
    if os.environ.get("AMPLINT_DEBUG"):
        traceback.print_exception(error)
    return f"internal error in {place}: {describe(error)}; please report"


def describe(error: BaseException) -> str:
    """An error in a line."""
    lines = str(error).strip().splitlines() or [""]
    if type(error).__name__ == "ProcessRaisedException":  # of torch.multiprocessing: it holds a traceback
        return lines[-1]
    said = lines[0]
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in said:
        return f"out of memory: {said.rpartition('allocate memory: ')[2] or type(error).__name__}"
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
