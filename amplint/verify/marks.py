"""The marks of `amplint trace` and the findings of `amplint check` against what a run counted on their lines."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amplint import process, tracing
from amplint.config import Settings
from amplint.engine import Job, check_data
from amplint.findings import Finding
from amplint.report.numbers import many, times
from amplint.verify.convert import Conversion
from amplint.verify.places import Places
from amplint.verify.runs import START, Launch, Run
from amplint.verify.workspace import Workspace

CONFIRMED, REFUTED, UNSEEN = "confirmed", "refuted", "not exercised"
LIMITS = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
_SMALL = {"float16": "2^-24", "bfloat16": "2^-133"}
_OVERFLOW = {"AMP451", "AMP401", "AMP402", "AMP406", "AMP407", "AMP408", "AMP409", "AMP410", "AMP415"}
_UNDERFLOW = {"AMP452", "AMP403", "AMP404"}
_FLUSHED = 1e-3  # share of the values, from which on they are lost
_GRADIENTS = {"all": 0.01, "here": 0.1}  # the same of gradients, of the whole model and of a line
_BITS = {"float16": 11, "bfloat16": 8}  # of a number; integers are exact to 2 to the power of that
_ANGLE = 0.05  # radians: an angle's rounding that is no longer small
_KEPT = 4.0  # bits of a difference's operands that must be left in it
_TERMS = 64  # added one after another
_SWALLOWED = 0.25  # of the first updates
Claim = tuple[Finding, str]  # and what about, where its code makes several (graph/marks/mark.py)
Lines = Sequence[dict[str, Any]]  # counters
_NO_INPUTS = {"input": (), "inputs": None, "eval": False, "meta": False, "precision": None, "frontend": "auto"}


# -- what is to be judged -----------------------------------------------------------------------------------------


def traced(target: str, space: Workspace, settings: Settings, dtype: str, how: Launch) -> tuple[list[Claim], str]:
    """The marks of a trace of the script in a workspace, by the paths there; or why there is none."""
    folder = f"{space.folder}.trace"
    os.makedirs(folder, exist_ok=True)
    settings = replace(settings, target_dtype=dtype)
    arguments = [space.told(text) for text in how.arguments]
    job = tracing.job_of(target, arguments, settings, _NO_INPUTS | {"dtype": dtype})
    job["target"] = space.inside(target)
    Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
    answered = Path(folder, "answer.json")
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    if env.get("PYTHONPATH"):
        env["PYTHONPATH"] = space.told(env["PYTHONPATH"])
    how.tell("trace")
    with open(os.path.join(folder, "output.txt"), "wb") as output:
        command = [how.python, str(START), folder]
        with contextlib.suppress(OSError):
            process.run(command, how.timeout, answered.exists, env, space.inside(os.getcwd()), output.fileno())
    how.tell("")
    try:
        said = json.loads(answered.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [], "trace gave no answer"
    if "error" in said:
        return [], f"trace: {said['error']}"
    entries = [entry | {"path": entry["path"] or job["target"]} for entry in said["findings"]]
    return [(tracing.finding_of(entry), entry["about"]) for entry in entries], ""


def checked(script: str, conversion: Conversion, settings: Settings) -> list[Claim]:
    """What `amplint check` finds in the AMP script and the files that changed with it, by the user's paths."""
    found: list[Finding] = []
    texts = {os.path.abspath(script): Path(script).read_bytes()} | conversion.changed
    for path, data in texts.items():
        found += check_data(path, data, Job(settings)).findings
    return [(one, "") for one in found if one.code not in ("AMP001", "AMP901", "AMP902", "AMP903")]


# -- the judgement ------------------------------------------------------------------------------------------------


def judged(
    claims: Sequence[Claim], places: Places, lines: Sequence[dict[str, Any]], half: Run, dtype: str
) -> list[Any]:
    """Each finding with its outcome, as the report has it; `lines` are the counters, by the user's places."""
    found = []
    for finding, about in claims:
        path, first = places.theirs(finding.path, finding.range.start.row)
        _, last = places.theirs(finding.path, finding.range.end.row)

        def is_on(one: dict[str, Any], path: str = path, rows: range = range(first, max(first, last) + 1)) -> bool:
            return one["path"] == path and one["line"] in rows

        outcome, evidence = _outcome(finding, about, is_on, lines, half, dtype)
        found.append(
            {
                "code": finding.code,
                "place": f"{path}:{first}",
                "message": finding.message,
                "outcome": outcome,
                "evidence": evidence,
            }
        )
    return found


def _outcome(
    finding: Finding, about: str, is_on: Callable[[dict[str, Any]], bool], lines: Lines, half: Run, dtype: str
) -> tuple[str, str]:
    fault = next((one for one in half.answer.get("faults", ()) if one["code"] == finding.code), None)
    if fault is not None:
        return CONFIRMED, f"the script {fault['what']}, {times(fault['count'])}"
    forward = [one for one in lines if is_on(one) and one["phase"] == "forward"]
    backward = [one for one in lines if is_on(one) and one["phase"] == "backward"]
    if finding.code in _OVERFLOW:
        return _overflow(forward, dtype)
    if finding.code in _UNDERFLOW:
        return _underflow(forward, dtype)
    if finding.code == "AMP453":
        if about == "cancelled":
            return _cancelled([one for one in half.answer.get("differences", ()) if is_on(one)], dtype)
        return _spoiled(about, forward, half, dtype)
    if finding.code == "AMP454":
        if about == "skips":
            return _skips(half)
        if about == "all":
            backward = [one for one in lines if one["phase"] == "backward"]
        return _underflow(backward, dtype, _GRADIENTS.get(about, _FLUSHED))
    if finding.code == "AMP455":
        return _swallowed(half)
    if finding.code.startswith("AMP5"):
        if half.problem:
            return UNSEEN, f"the run failed: {half.problem}"
        return (
            (REFUTED, f"{_calls(forward)} without an error") if forward else (UNSEEN, "nothing was counted on the line")
        )
    return UNSEEN, "the counters do not tell"


def _overflow(on: Lines, dtype: str) -> tuple[str, str]:
    """Infinities that come out of finite operands on the line."""
    if not on:
        return UNSEEN, "nothing was counted on the line"
    bad, elements = sum(one["inf"] + one["nan"] for one in on), sum(one["elements"] for one in on)
    if any(one["origin"] for one in on):
        return CONFIRMED, f"{bad} of {elements} values were not finite, in {_calls(on)}"
    if bad:
        return UNSEEN, f"what came in was not finite, in {_calls(on)}"
    return REFUTED, f"{_calls(on)}: {_headroom(max(float(one['absmax'] or 0) for one in on), dtype)}"


def _underflow(on: Lines, dtype: str, share: float = _FLUSHED) -> tuple[str, str]:
    """Values that are not zero, and too small for half: at least this share of them."""
    exact = [one for one in on if one.get("counted_by") in ("kernel", "emulation")]
    elements, flushed = sum(one["elements"] for one in exact), sum(one["flushed"] for one in exact)
    if flushed > share * elements:
        return CONFIRMED, f"{flushed} of {elements} values flushed to zero, in {_calls(exact)}"
    if exact:
        return (
            REFUTED,
            f"{_calls(exact)}: {flushed} of {elements} values were below {_SMALL[dtype]} and flushed to zero",
        )
    return UNSEEN, "nothing that flushes to zero was counted on the line"


def _spoiled(about: str, on: Lines, half: Run, dtype: str) -> tuple[str, str]:
    """What half's few bits leave too little of, by the largest value on the line."""
    if not on:
        return UNSEEN, "nothing was counted on the line"
    largest, bits = max(float(one["absmax"] or 0) for one in on), _BITS[dtype]
    if about == "integers":
        said = f"{_calls(on)}: values up to {largest:.4g} in {dtype}, which holds integers exactly to {2**bits}"
        return CONFIRMED if largest > 2**bits else REFUTED, said
    if about == "angles":
        rounding = 2.0 ** (math.floor(math.log2(largest)) - bits) if 0 < largest < math.inf else largest
        said = f"{_calls(on)}: angles up to {largest:.4g} rad, rounded by up to {rounding:.2g} rad"
        return CONFIRMED if rounding >= _ANGLE else REFUTED, said
    if about == "terms" and half.steps:
        added = max(one["calls"] for one in on) / len(half.steps)
        said = f"{added:.0f} additions a step"
        return CONFIRMED if added >= _TERMS else REFUTED, said
    return UNSEEN, "the counters do not tell"


def _cancelled(on: Lines, dtype: str) -> tuple[str, str]:
    """Bits that a difference of rounded numbers has left of them."""
    if not on:
        return UNSEEN, "nothing was subtracted on the line"
    bits = _BITS[dtype]
    left = bits - max(one["cancelled"] for one in on)
    said = f"{_calls(on)}: of {bits} bits {max(left, 0):.0f} are left at the least"
    return CONFIRMED if left < _KEPT else REFUTED, said


def _skips(half: Run) -> tuple[str, str]:
    """Steps that the scaler skips at the beginning, while its scale comes down."""
    scaled = [step for step in half.steps if step["scale"] is not None]
    if not scaled:
        return UNSEEN, "no scaler was at work"
    first = next((at for at, step in enumerate(scaled) if not step["skipped"]), len(scaled))
    if first:
        return CONFIRMED, f"the scaler skipped the first {'step' if first == 1 else f'{first} steps'}"
    return REFUTED, f"the scaler skipped none of the first steps, at a scale of {scaled[0]['scale']:g}"


def _swallowed(half: Run) -> tuple[str, str]:
    """Half weights that the first steps have left as they are, though they have a gradient."""
    first = [step["swallowed"] for step in half.steps if "swallowed" in step]
    if not first:
        return UNSEEN, "no step was made"
    counts = [one for one in first if one]
    if not counts:
        return REFUTED, "no parameter that is trained is half"
    still, of = (sum(column) for column in zip(*counts, strict=True))
    return (
        CONFIRMED if still > _SWALLOWED * of else REFUTED,
        f"the first step left {still} of {of} half weights that have a gradient as they were",
    )


def _headroom(largest: float, dtype: str) -> str:
    if not largest:
        return "all values were 0"
    bits = math.log2(LIMITS[dtype] / largest)
    return f"largest {largest:.4g}, {bits:.1f} bits below {dtype}'s limit"


def _calls(on: Lines) -> str:
    return many(max(one["calls"] for one in on), "call")
