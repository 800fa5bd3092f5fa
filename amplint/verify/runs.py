"""One run of the script in a workspace: the job for the child, its time limit, and its records."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amplint import process
from amplint.verify.workspace import Workspace

START = Path(__file__).parents[1] / "graph" / "child" / "start.py"
_GRACE = 20.0  # seconds that other ranks have for their answers
_PHASES = {
    "": "Python did not get as far as to amplint",
    "torch": "torch was being imported",
    "script": "it had not come to its first optimizer step",
}


class CouldNotRun(Exception):
    """Why a run gave nothing to compare, in a line."""


@dataclass
class Run:
    """What a run left: its steps, one object per attempt, and what was said at its end."""

    kind: str  # fp32 | amp
    seed: int
    steps: list[dict[str, Any]] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)  # the user's files that were written through links
    problem: str = ""  # why it ended before its time
    space: Workspace = field(default_factory=lambda: Workspace(""))


@dataclass(frozen=True)
class Launch:
    """How runs are started, and for how long."""

    script: str  # as the user wrote it
    arguments: tuple[str, ...]
    python: str = sys.executable
    launcher: tuple[str, ...] = ()
    timeout: float = 600.0
    tell: Callable[[str], None] = lambda text: None


def launch(
    script: str,
    arguments: Sequence[str],
    python: str | None,
    launcher: str,
    timeout: float,
    tell: Callable[[str], None],
) -> Launch:
    """The same, with the commands looked up."""
    command = tuple(shlex.split(launcher))
    if command:
        beside = os.path.dirname(os.path.abspath(python or sys.executable))
        found = shutil.which(command[0]) or shutil.which(command[0], path=beside)
        if found is None:
            raise CouldNotRun(f"--launcher: {command[0]}: no such command")
        command = (os.path.abspath(found), *command[1:])
    exe = python or sys.executable
    exe = os.path.abspath(exe) if os.sep in exe else exe  # the run is in another folder
    return Launch(script, tuple(arguments), exe, command, timeout, tell)


def run(name: str, target: str, space: Workspace, job: dict[str, Any], how: Launch) -> Run:
    """Run the script to its N-th step; a run that ends before it has a `problem`. Raises where it could not begin."""
    folder = f"{space.folder}.run"
    os.makedirs(folder, exist_ok=True)
    arguments = [space.told(text) for text in how.arguments]
    moved = [list(tree) for tree in space.trees]
    job = {"door": "verify", "target": _named(target, space), "arguments": arguments, "moved": moved} | job
    Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
    command = [*how.launcher, str(START), folder] if how.launcher else [how.python, str(START), folder]
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0", "PYTHONHASHSEED": "0"}
    for key in ("PYTHONPATH", "PWD"):
        if env.get(key):
            env[key] = space.told(env[key])
    made = Run(job["kind"], job["seed"], space=space)
    watch = _Watch(folder, name, job["steps"], how.tell)
    with open(os.path.join(folder, "output.txt"), "wb") as output:
        try:
            cwd = space.inside(os.getcwd())
            code = process.run(command, how.timeout, watch.done, env, cwd, output.fileno())
        except OSError as error:
            raise CouldNotRun(f"{command[0]} cannot be run: {error.strerror}") from None
    how.tell("")
    made.steps = _records(folder)
    made.written = space.written()
    with contextlib.suppress(OSError, ValueError):
        made.answer = json.loads(Path(folder, "answer.json").read_text(encoding="utf-8"))
    if not made.answer:
        made.problem = _silence(folder, len(made.steps), code, how)
    elif "ended" not in made.answer:  # it is the environment that does not fit
        raise CouldNotRun(made.answer.get("error", "the run said nothing"))
    elif made.answer["ended"] == "error":
        made.problem = made.answer.get("error") or "failed"
        if re.fullmatch(r"ended with exit code \d+", made.problem):
            made.problem += last_line(folder)
    return made


def _named(target: str, space: Workspace) -> str:
    """The script as the user wrote it, where that leads to its copy."""
    here = space.inside(os.getcwd())
    same = os.path.normpath(os.path.join(here, target)) == space.inside(target)
    return target if same else space.inside(target)


def _records(folder: str) -> list[dict[str, Any]]:
    """The steps of rank 0; a line that was being written when the run ended is none."""
    steps = []
    with contextlib.suppress(OSError):
        for line in Path(folder, "steps.0.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                steps.append(json.loads(line))
    return steps


class _Watch:
    """Looks after a run: tells its progress, and knows when it has said all."""

    def __init__(self, folder: str, name: str, steps: int, tell: Callable[[str], None]) -> None:
        self.folder, self.name, self.steps, self.tell = folder, name, steps, tell
        self.answered = 0.0
        self.told = 0.0

    def done(self) -> bool:
        now = time.monotonic()
        if now - self.told > 0.5:
            self.told = now
            self.tell(f"{self.name}: step {self._count()} of {self.steps}")
        answer = Path(self.folder, "answer.json")
        if not answer.exists():
            return False
        self.answered = self.answered or now
        try:
            world = json.loads(answer.read_text(encoding="utf-8")).get("launched", {}).get("world", 1)
        except (OSError, ValueError):
            return False
        others = sum(name.startswith("answer.") and name != "answer.json" for name in os.listdir(self.folder))
        return world <= 1 or others >= world - 1 or now - self.answered > _GRACE

    def _count(self) -> int:
        try:
            with open(os.path.join(self.folder, "steps.0.jsonl"), "rb") as stream:
                return stream.read().count(b"\n")
        except OSError:
            return 0


def _silence(folder: str, steps: int, code: int | None, how: Launch) -> str:
    """Why a run ended without an answer, in words that go on from the script's name."""
    phase = Path(folder, "phase")
    said = phase.read_text(encoding="utf-8") if phase.exists() else ""
    where = f"after {steps} steps" if steps else _PHASES.get(said, f"it was at {said}")
    if code is None:
        return f"was stopped after {how.timeout:g} s: {where}; --timeout gives it longer"
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return f"was killed (signal 9), most likely for lack of memory: {where}"
    if code < 0:
        return f"was killed by signal {-code} ({signal.Signals(-code).name}): {where}"
    last = last_line(folder)
    if not said:
        started = " ".join(how.launcher) or how.python
        raise CouldNotRun(f"{started} does not start a Python that runs amplint: exit code {code}{last}")
    return f"ended with exit code {code}: {where}{last}"


def last_line(folder: str) -> str:
    """The last line that a run printed, to go on with; empty if it printed none."""
    with contextlib.suppress(OSError):
        lines = Path(folder, "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        for line in reversed(lines):
            text = re.sub(r"\x1b\[[0-9;]*m", "", line).strip()
            if text:
                return f": {text[:200]}"
    return ""
