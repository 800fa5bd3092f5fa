"""The child: open CUDA's policy, go through one of the two doors, analyse, answer."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

from amplint.graph.child.answer import finish, internal, say

_OLDEST = (2, 4)  # as in pyproject.toml


def run(folder: str) -> None:
    """Do what `folder`/job.json says; ends the process."""
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as stream:
        job: dict[str, Any] = json.load(stream)
    say(folder, "torch")
    try:
        import torch
    except ImportError as error:
        finish(folder, {"error": _no_torch(error)})
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        finish(folder, {"error": f"{sys.executable} has torch {torch.__version__}; trace needs {oldest} or newer"})
    try:  # amplint's own part is imported before the user's folder is on the path
        if job["door"] == "script":
            from amplint.graph.child.script import script as door
        else:
            from amplint.graph.child.factory import factory as door
    except Exception as error:
        finish(folder, {"error": internal(error)})
    door(folder, job)


def _no_torch(error: ImportError) -> str:
    if error.name != "torch":
        return f"torch cannot be imported in {sys.executable}: {error}"
    return (
        f"{sys.executable} has no torch, which trace needs: pip install amplint[torch], or name the interpreter that "
        "trains with --python"
    )
