"""The child: open CUDA's policy, go through one of the doors, answer."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import tempfile
from typing import Any

from amplint.graph.child.answer import finish, internal, say

_OLDEST = (2, 6)  # as in pyproject.toml
_LONG = 80  # characters of a folder; a socket's path may have about a hundred


def run(folder: str) -> None:
    """Do what `folder`/job.json says; ends the process."""
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as stream:
        job: dict[str, Any] = json.load(stream)
    _hold_sockets(folder)
    say(folder, "torch")
    try:
        import torch
    except ImportError as error:
        finish(folder, {"error": _no_torch(error, _command(job))})
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        has = f"{sys.executable} has torch {torch.__version__}"
        finish(folder, {"error": f"{has}; {_command(job)} needs {oldest} or newer"})
    try:  # amplint's own part is imported before the user's folder is on the path
        if job["door"] == "script":
            from amplint.graph.child.script import script as door
        elif job["door"] == "verify":
            from amplint.verify.child.door import verify as door
        else:
            from amplint.graph.child.factory import factory as door
    except Exception as error:
        finish(folder, {"error": internal(error)})
    door(folder, job)


def _hold_sockets(folder: str) -> None:
    """What workers would leave in the temporary folder when they are killed is put where it goes with the run."""
    local = os.path.realpath(folder).startswith(os.path.join(os.path.realpath(tempfile.gettempdir()), ""))
    if local and len(folder) < _LONG:
        multiprocessing.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]


def _command(job: dict[str, Any]) -> str:
    return "verify" if job["door"] == "verify" else "trace"


def _no_torch(error: ImportError, command: str) -> str:
    if error.name != "torch":
        return f"torch cannot be imported in {sys.executable}: {error}"
    return (
        f"{sys.executable} has no torch, which {command} needs: pip install amplint[torch], or name the interpreter "
        "that trains with --python"
    )
