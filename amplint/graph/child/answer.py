"""How the child answers: one JSON file, written once, by whichever of its processes is first."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from typing import Any, NoReturn


def say(folder: str, phase: str) -> None:
    """Tell the parent how far it is: what it names if time runs out."""
    with open(os.path.join(folder, "phase"), "w", encoding="utf-8") as stream:
        stream.write(phase)


def claim(folder: str) -> None:
    """Only one process of a script goes on to the analysis; the others wait to be killed."""
    try:
        os.close(os.open(os.path.join(folder, "claimed"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        while True:
            time.sleep(60)


def finish(folder: str, answer: dict[str, Any]) -> NoReturn:
    """Answer, and end here and now: nothing of the user's runs any more, no `finally`, no atexit."""
    part = os.path.join(folder, f"answer.{os.getpid()}")
    with open(part, "w", encoding="utf-8") as stream:
        json.dump(answer, stream)
    os.replace(part, os.path.join(folder, "answer.json"))
    for output in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
            output.flush()
    os._exit(0)
