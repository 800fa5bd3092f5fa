"""What a run leaves: a line per optimizer step as it happens, and one answer at its end.

steps.RANK.jsonl and answer.json (rank 0; the others answer.RANK.json) in the job's folder; the formats are those of
verifying.py's readers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from amplint.graph.child.answer import leave
from amplint.verify.child.lines import NOWHERE, Line, shown

_PATIENCE = 20.0  # seconds that ranks wait for each other's answers


class Records:
    """The records of this process. Files are opened at the first step: until then a process has no rank."""

    def __init__(self, folder: str, job: dict[str, Any]) -> None:
        self.folder, self.job = folder, job
        self.faults: Counter[tuple[str, str, Line]] = Counter()
        self.notes: list[str] = []
        self.steps = 0
        self._stream: Any = None
        self._claimed = False
        self._main = os.getpid()

    def forked(self) -> None:
        """This process is a copy of the one that kept the records: it begins its own."""
        self.__init__(self.folder, self.job)  # type: ignore[misc]

    def step(self, entry: dict[str, Any]) -> None:
        """Write down a step; numbers that JSON lacks are words."""
        if self._stream is None:
            self._open()
        json.dump({"step": self.steps} | entry, self._stream, separators=(",", ":"))
        self._stream.write("\n")
        self._stream.flush()
        self.steps += 1

    def fault(self, code: str, what: str, line: Line = NOWHERE) -> None:
        self.faults[code, what, line] += 1

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def finish(self, answer: dict[str, Any], last: bool = False) -> NoReturn:
        """Answer, and end here and now: nothing of the user's runs any more, no `finally` either. `last`: there is
        no other process left that could answer."""
        rank, world = launched()
        told = {
            "steps": self.steps,
            "faults": [
                {"code": code, "what": what, "count": count, "place": shown(line)}
                for (code, what, line), count in self.faults.items()
            ],
            "launched": {"rank": rank, "world": world},
            "notes": self.notes,
        }
        crashed = answer["ended"] == "error"
        if rank == 0 and self.steps and not self._claimed and not last:  # another process was first to step
            while True:
                time.sleep(60)
        self._write("answer.json" if rank == 0 else f"answer.{rank}.json", told | answer)
        end = time.monotonic() + _PATIENCE
        others = [f"answer.{other}.json" for other in range(1, world)] if rank == 0 else ["answer.json"]
        while (
            self.steps and not crashed and not all(os.path.exists(os.path.join(self.folder, name)) for name in others)
        ):
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        leave()

    def taken(self) -> int:
        """Steps of rank 0, whichever process it is in."""
        with contextlib.suppress(OSError):
            return Path(self.folder, "steps.0.jsonl").read_bytes().count(b"\n")
        return 0

    def answered(self) -> bool:
        return os.path.exists(os.path.join(self.folder, "answer.json"))

    def _open(self) -> None:
        rank, _ = launched()
        path = os.path.join(self.folder, f"steps.{rank}.jsonl")
        try:
            self._stream = open(path, "x", encoding="utf-8")  # noqa: SIM115
            self._claimed = True
        except FileExistsError:
            self._stream = open(f"{path}.{os.getpid()}", "w", encoding="utf-8")  # noqa: SIM115

    def _write(self, name: str, answer: dict[str, Any]) -> None:
        part = os.path.join(self.folder, f".{os.getpid()}")
        with open(part, "w", encoding="utf-8") as stream:
            json.dump(answer, stream)
        with contextlib.suppress(FileExistsError):  # somebody has answered
            os.link(part, os.path.join(self.folder, name))
        os.unlink(part)


def launched() -> tuple[int, int]:
    """Rank and size of the world, as torch.distributed has them, or the launcher."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    with contextlib.suppress(ValueError):
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return 0, 1


def number(value: float | None) -> float | str | None:
    """A number as a record has it."""
    if value is None or math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
