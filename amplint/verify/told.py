"""The report of a verification as one dict: what JSON prints, and terminal, Markdown and page are made from."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from amplint.verify.compare import Verdict
from amplint.verify.curves import main_steps, skipped
from amplint.verify.marks import LIMITS
from amplint.verify.runs import Run

Report = dict[str, Any]
VERSION = 1


def report(
    target: dict[str, Any],
    verdict: Verdict,
    fp32: Sequence[Run],
    amp: Sequence[Run],
    reference: Run,
    counted: Run,
    warmup: int,
) -> Report:
    """What the runs came to. `amp` are the runs whose time counts, `reference` the FP32 run that makes the same steps,
    `counted` the one whose values were counted."""
    half = amp[0]
    device = fp32[0].answer.get("device", {})
    on_gpu = device.get("policy") == "CUDA"
    shown = device.get("name", "?") if on_gpu else f"{device.get('name', 'CPU')}, CUDA's policy on the CPU"
    steps = main_steps(half) if half.steps else []
    made: Report = {
        "version": VERSION,
        "target": target
        | {
            "device": shown,
            "torch": device.get("torch", "?"),
            "kernel": counted.answer.get("kernel"),
            "ranks": counted.answer.get("launched", {}).get("world", 1),
        },
        "verdict": {
            "word": verdict.word,
            "reasons": verdict.reasons,
            "steps": verdict.steps,
            "band": {"why": verdict.why, "relative": verdict.relative},
        },
        "series": _series([reference, *fp32[1:]], amp),
        "norms": {
            "fp32": [step["norm"] for step in main_steps(reference)],
            "amp": [step["norm"] for step in steps],
        },
        "scale": [step["scale"] for step in steps] if any(step["scale"] is not None for step in steps) else [],
        "skipped": skipped(half) if half.steps else [],
        "speed": _both(_speed(fp32, warmup), _speed(amp, warmup)) if on_gpu else None,
        "memory": _both(_most(fp32, "memory"), _most(amp, "memory")),
        "energy": _both(_energy(fp32), _energy(amp)),
        "not_measured": [],
        "faults": counted.answer.get("faults", []),
        "lines": _lines(counted, target["dtype"]),
        "layers": counted.answer.get("layers", []),
        "marks": [],
        "advice": [],
        "sweep": None,
        "notes": list(dict.fromkeys(note for run in (*fp32, *amp, counted) for note in run.answer.get("notes", ()))),
        "links_written": sorted({path for run in (*fp32, *amp, counted) for path in run.written}),
    }
    made["not_measured"] = [
        f"{what}: {'no reading from the device' if on_gpu else 'no GPU here'}"
        for key, what in (("speed", "step time in AMP"), ("memory", "peak memory"), ("energy", "energy a step"))
        if made[key] is None
    ]
    return made


def _lines(run: Run, dtype: str) -> list[dict[str, Any]]:
    """The counters of each source line, the worst first."""

    def rank(line: dict[str, Any]) -> tuple[float, ...]:
        size = max(1, line["elements"])
        largest = float(line["absmax"] or 0) / LIMITS[dtype]
        return (-line["origin"] / size, -(line["inf"] + line["nan"]) / size, -line["flushed"] / size, -largest)

    return sorted(run.answer.get("lines", ()), key=rank)


def _series(fp32: Sequence[Run], amp: Sequence[Run]) -> list[dict[str, Any]]:
    """The loss curves as they were recorded, by backward; sites of FP32 and AMP go together by their order."""
    runs = [[_raw(run) for run in kind] for kind in (fp32, amp)]
    sites = list(runs[0][0])
    found = []
    for index, site in enumerate(sites):
        both = [[list(one.values())[index] for one in kind if index < len(one)] for kind in runs]
        found.append({"site": site, "fp32": both[0], "amp": both[1]})
    return found


def _raw(run: Run) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for step in run.steps:
        for site, loss in step["losses"]:
            found.setdefault(site, []).append(loss)
    return found


def _both(fp32: float | None, amp: float | None) -> dict[str, float] | None:
    return None if not fp32 or not amp else {"fp32": fp32, "amp": amp, "ratio": fp32 / amp}


def _speed(runs: Sequence[Run], warmup: int) -> float | None:
    """Seconds a step: the median of the runs' medians, without the first steps."""
    medians = []
    for run in runs:
        seconds = [step["seconds"] for step in main_steps(run)[warmup:] if step.get("seconds")] if run.steps else []
        medians += [statistics.median(seconds)] if seconds else []
    return statistics.median(medians) if medians else None


def _most(runs: Sequence[Run], key: str) -> float | None:
    known = [run.answer[key] for run in runs if run.answer.get(key)]
    return max(known) if known else None


def _energy(runs: Sequence[Run]) -> float | None:
    """Joules a step."""
    known = [
        run.answer["energy"] / (run.answer.get("energy_steps") or 1)
        for run in runs
        if run.steps and run.answer.get("energy")
    ]
    return statistics.median(known) if known else None
