"""Marks against counters, advice, the batch sweep, places in converted files, and which runs are made: on made runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_verdict import trained

from amplint import verifying
from amplint.cli import cli
from amplint.config import Settings
from amplint.findings import Finding, Location, Range, Severity
from amplint.verify import marks, memory
from amplint.verify.advice import advice
from amplint.verify.convert import CannotConvert, Conversion, convert, line_map
from amplint.verify.places import Places
from amplint.verify.runs import Run
from amplint.verify.sweep import sweep
from amplint.verify.workspace import Workspace

SCRIPT = """import torch
from torch import nn
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.Linear(16, 4).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader:
    x, y = x.to(device), y.to(device)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SCRIPT)
    return "train.py"


# -- converted files --------------------------------------------------------------------------------------------------


def test_lines_of_a_converted_file_are_those_of_the_users(script):
    conversion = convert(script, Settings(), "float16", [])
    (text,) = conversion.changed.values()
    lines, new, old = line_map(SCRIPT, text.decode()), text.decode().splitlines(), SCRIPT.splitlines()
    for row, line in enumerate(new, 1):
        if line.strip() in (before.strip() for before in old if before.strip()):
            assert old[lines[row] - 1].strip() == line.strip(), line
    scaled = next(row for row, line in enumerate(new, 1) if "scaler.scale(loss).backward()" in line)
    assert old[lines[scaled] - 1].strip() == "loss.backward()"
    places = Places(Workspace("/tmp/space", [(str(Path.cwd()), "/tmp/space/0")]), conversion)
    assert places.site(f"/tmp/space/0/train.py:{scaled}") == "train.py:10"
    assert places.site("/usr/lib/other.py:3") == "/usr/lib/other.py:3" and places.site("nowhere") == "nowhere"


def test_what_fix_refuses_is_said(script):
    Path(script).write_text("def train(model, optimizer, x):\n    model(x).sum().backward()\n    optimizer.step()\n")
    with pytest.raises(CannotConvert, match=r"refused: .*--against"):
        convert(script, Settings(), "float16", [])


# -- marks ------------------------------------------------------------------------------------------------------------


def line(row: int = 9, phase: str = "forward", **counts: Any) -> dict[str, Any]:
    plain = {"path": "train.py", "line": row, "op": "aten.mm.default", "phase": phase, "calls": 50, "elements": 1000}
    plain |= {"inf": 0, "nan": 0, "flushed": 0, "subnormal": 0, "absmax": 312.0, "origin": 0, "shapes": []}
    return plain | {"counted_by": "kernel"} | counts


def mark(code: str, row: int = 9, last: int | None = None) -> Finding:
    place = Range(Location(row, 1), Location(last or row, 5))
    return Finding(code, "far", "train.py", place, Severity.WARNING, verdict="likely")


@pytest.mark.parametrize(
    ("code", "lines", "outcome", "evidence"),
    [
        ("AMP451", [line()], "refuted", "50 calls: largest 312, 7.7 bits below float16's limit"),
        ("AMP451", [line(inf=7, origin=3, absmax=7e4)], "confirmed", "7 of 1000 values were not finite, in 50 calls"),
        ("AMP451", [line(nan=7, absmax="inf")], "not exercised", "what came in was not finite, in 50 calls"),
        ("AMP451", [line(row=8)], "not exercised", "nothing was counted on the line"),
        ("AMP451", [line(phase="backward")], "not exercised", "nothing was counted on the line"),
        ("AMP452", [line(flushed=200)], "confirmed", "200 of 1000 values flushed to zero, in 50 calls"),
        ("AMP452", [line()], "refuted", "50 calls: 0 of 1000 values were below 2^-24 and flushed to zero"),
        ("AMP452", [line(counted_by="statistics")], "not exercised", "nothing that flushes to zero was counted"),
        ("AMP454", [line(phase="backward", flushed=900)], "confirmed", "900 of 1000 values flushed"),
        ("AMP454", [line(flushed=900)], "not exercised", "nothing"),
        ("AMP507", [line()], "refuted", "50 calls without an error"),
        ("AMP455", [line()], "not exercised", "no step was made"),
        ("AMP999", [line()], "not exercised", "the counters do not tell"),
        ("AMP105", [], "confirmed", "the script clips scaled gradients, 50 times"),
    ],
)
def test_a_mark_against_the_counters(script, code, lines, outcome, evidence):
    half = Run("amp", 0, answer={"faults": [{"code": "AMP105", "what": "clips scaled gradients", "count": 50}]})
    (one,) = marks.judged([(mark(code), "")], Places(Workspace("")), lines, half, "float16")
    assert (one["outcome"], one["place"]) == (outcome, "train.py:9")
    assert one["evidence"].startswith(evidence)


BACKWARD = [line(3, "backward", flushed=15), line(phase="backward", flushed=90)]
GONE, MADE = {"scale": 65536.0, "skipped": True}, {"scale": 16384.0, "skipped": False}


@pytest.mark.parametrize(
    ("claim", "lines", "steps", "outcome", "evidence"),
    [
        ("AMP453 integers", [line(absmax=4100.0)], [], "confirmed", "50 calls: values up to 4100 in float16, which"),
        ("AMP453 integers", [line()], [], "refuted", "50 calls: values up to 312 in float16, which holds integers ex"),
        ("AMP453 angles", [line(absmax=1000.0)], [], "confirmed", "50 calls: angles up to 1000 rad, rounded by"),
        ("AMP453 angles", [line(absmax=3.0)], [], "refuted", "50 calls: angles up to 3 rad, rounded by up to 0.00098"),
        ("AMP453 angles", [line(absmax="inf")], [], "confirmed", "50 calls: angles up to inf rad"),
        ("AMP453 cancelled", [line(8, bits=3), line(bits=9.2)], [], "confirmed", "50 calls: of 11 bits 2 are left at"),
        ("AMP453 cancelled", [line(bits=1.5)], [], "refuted", "50 calls: of 11 bits 10 are left at the least"),
        ("AMP453 cancelled", [line(8, bits=9)], [], "not exercised", "nothing was subtracted on the line"),
        ("AMP453 terms", [line(calls=200)], [MADE] * 2, "confirmed", "100 additions a step"),
        ("AMP453 terms", [line()], [MADE] * 2, "refuted", "25 additions a step"),
        ("AMP453 saturated", [line()], [], "not exercised", "the counters do not tell"),
        ("AMP453 integers", [line(row=8)], [], "not exercised", "nothing was counted on the line"),
        ("AMP454 here", BACKWARD, [], "refuted", "50 calls: 90 of 1000 values were below 2^-24"),
        ("AMP454 all", BACKWARD, [], "confirmed", "105 of 2000 values flushed to zero, in 50 calls"),
        ("AMP454 skips", BACKWARD, [GONE, GONE, MADE], "confirmed", "the scaler skipped the first 2 steps"),
        ("AMP454 skips", BACKWARD, [MADE, GONE, MADE], "refuted", "the scaler skipped none of the first steps"),
        ("AMP454 skips", BACKWARD, [MADE | {"scale": None}], "not exercised", "no scaler was at work"),
        ("AMP455", [], [MADE, {"swallowed": [40, 100]}], "confirmed", "the first step left 40 of 100 half weights"),
        ("AMP455", [], [{"swallowed": [4, 100]}, {"swallowed": None}], "refuted", "the first step left 4 of 100 half"),
        ("AMP455", [], [{"swallowed": None}], "refuted", "no parameter that is trained is half"),
    ],
)  # fmt: skip
def test_what_a_mark_claims_is_judged_by_what_was_counted_of_it(script, claim, lines, steps, outcome, evidence):
    code, _, about = claim.partition(" ")
    differences = [one | {"cancelled": one["bits"]} for one in lines if "bits" in one]
    half = Run("amp", 0, steps=steps, answer={"differences": differences})
    (one,) = marks.judged([(mark(code), about)], Places(Workspace("")), lines, half, "float16")
    assert one["outcome"] == outcome and one["evidence"].startswith(evidence), one


def test_the_next_trace_words_what_a_run_said(script):
    """Also when the line has moved; not when it is another."""
    settings = Settings(root=str(Path.cwd()))
    half = Run("amp", 0)
    found = [(mark("AMP451"), ""), (mark("AMP455"), "")]
    judged = marks.judged(found, Places(Workspace("")), [line()], half, "float16")
    memory.remember(judged, 50, settings)
    Path(script).write_text("\n\n" + SCRIPT)
    moved, other, known = memory.worded([mark("AMP451", 11), mark("AMP451", 12), mark("AMP455", 11)], settings)
    said = "far; verify ran 50 steps here: 50 calls: largest 312, 7.7 bits below float16's limit"
    assert (moved.message, moved.verdict) == (said, "refuted")
    assert (other.message, known.message) == ("far", "far")
    Path(".amplint_cache/verified.json").write_text("[1")
    assert memory.worded([mark("AMP451", 11)], settings) == [mark("AMP451", 11)]


# -- advice, sweep ----------------------------------------------------------------------------------------------------


def test_advice_is_given_where_amp_brings_no_speed(script):
    slow: dict[str, Any] = {"target": {"dtype": "float16"}, "speed": {"ratio": 1.01}}
    slow["lines"] = [line(shapes=[[4096, 768, 50257]]), line(shapes=[[64, 64, 64]])]
    slow["layers"] = [{"class": "Linear", "calls": 4, "dtypes": {"float32": 2, "float16": 2}}]
    Path(script).write_text(SCRIPT.replace("nn.Linear(16, 4)", "nn.Linear(768, 50257)"))
    found = advice(slow, script, Conversion(), Settings(), Places(Workspace("")), [6, 1])
    codes = [one["code"] for one in found]
    assert codes[:3] == ["AMP805", "AMP801", "note"]
    assert "100 % of the products' work" in found[1]["text"] and "train.py:9 (4096 × 768 × 50257)" in found[1]["text"]
    assert (
        advice(slow | {"speed": {"ratio": 1.9}}, script, Conversion(), Settings(), Places(Workspace("")), [9, 0]) == []
    )
    head = slow | {"lines": [line(shapes=[[512, 1024, 1024], [512, 1024, 1]])], "layers": []}  # on one line
    Path(script).write_text(SCRIPT)
    assert "AMP801" not in str(advice(head, script, Conversion(), Settings(), Places(Workspace("")), [9, 0]))
    small = slow | {"lines": [line(shapes=[[64, 64, 64]])], "layers": []}
    Path(script).write_text(SCRIPT)
    (only,) = advice(small, script, Conversion(), Settings(), Places(Workspace("")), [9, 0])
    assert "the products are small (the largest is 64 × 64 × 64)" in only["text"]


def device(memory: int, seconds: float = 0.1) -> Any:
    """A device on which `memory` samples fit in FP32, and twice that in AMP."""

    def measure(kind: str, factor: int, limit: float) -> Run:
        batch = 32 * factor
        run = trained(steps=11)
        if batch > memory * (2 if kind == "amp" else 1):
            run.problem = "crashed before its first training step: OutOfMemoryError: CUDA out of memory"
        for step in run.steps:
            step |= {"samples": batch, "seconds": seconds * factor / (3 if kind == "amp" else 1)}
        return run

    return measure


def test_the_largest_batch_and_its_throughput():
    found, notes = sweep(device(300), 3, 300)
    assert found == {
        "fp32": {"batch": 256, "samples_per_s": pytest.approx(320), "full": True},
        "amp": {"batch": 512, "samples_per_s": pytest.approx(960), "full": True},
    }
    assert notes == []
    found, notes = sweep(device(16), 3, 300)
    assert found is None and "with 1 times the batch the script crashed" in notes[0]


@pytest.mark.parametrize("bold", [0.5, 1.0, 3.0], ids=["timid", "exact", "bold"])
def test_what_two_batches_took_leaves_most_doublings_out(bold):
    """Also where memory is not quite a line: too much is halved, too little is doubled."""
    asked = []

    def measure(kind: str, factor: int, limit: float) -> Run:
        asked.append(factor)
        run = device(32 * 1500)("fp32", factor, limit)
        run.answer |= {"memory": 1000 + 32 * factor, "device": {"memory": (1000 + 32 * 1500) * bold}}
        return run

    found, _ = sweep(measure, 3, 300)
    assert found is not None and found["fp32"]["batch"] == 32 * 1024 and found["fp32"]["full"]
    assert asked[:2] == [1, 2] and len(asked) <= 2 * 5


def test_batches_that_do_not_grow_end_the_sweep():
    def measure(kind: str, factor: int, limit: float) -> Run:
        run = trained(steps=11)
        for step in run.steps:
            step |= {"samples": min(100, 32 * factor), "seconds": 0.1}
        return run

    found, notes = sweep(measure, 3, 300)
    assert found is not None and found["amp"]["batch"] == 100 and not found["amp"]["full"]
    assert "batches grow no further than 100" in notes[0]


@pytest.mark.parametrize(
    ("start", "each", "runs", "batches"),
    [
        (10, 0.0, {"fp32": 4, "amp": 4}, {"fp32": 1 << 14, "amp": 1 << 15}),  # seconds of a start: memory ends it
        (40, 0.0, {"fp32": 3, "amp": 4}, {"fp32": 1 << 14, "amp": 1 << 15}),
        (100, 0.0, {"fp32": 1, "amp": 1}, {"fp32": 32, "amp": 32}),
        (5, 0.01, {"fp32": 3, "amp": 3}, {"fp32": 64, "amp": 64}),  # and of a sample
        (160, 0.0, {"fp32": 1, "amp": 0}, {}),
    ],
)
def test_a_sweep_keeps_to_its_time(start, each, runs, batches):
    """139 GiB, 8 MiB a sample in FP32 and 4 MiB in AMP: a jump after two runs, whatever there is left of 300 s."""
    now, asked = [0.0], {"fp32": 0, "amp": 0}

    def measure(kind: str, factor: int, limit: float) -> Run:
        asked[kind] += 1
        run = trained(steps=11)
        took, sample = start + each * 32 * factor, 8 if kind == "fp32" else 4
        now[0] += min(took, limit)
        if took > limit:
            run.problem = f"was stopped after {limit:g} s: after 4 steps"
        elif 32 * factor * sample > 139 << 10:
            run.problem = "crashed after 1 optimizer step: OutOfMemoryError: CUDA out of memory"
        for step in run.steps:
            step |= {"samples": 32 * factor, "seconds": 0.1}
        run.answer |= {"memory": 32 * factor * sample, "device": {"memory": 139 << 10}}
        return run

    found, notes = sweep(measure, 3, 300, lambda: now[0])
    assert now[0] <= 301 and asked == runs, (now, asked, notes)
    assert {kind: best["batch"] for kind, best in (found or {}).items()} == batches
    assert all("--sweep-time" in note for note in notes) and len(notes) == sum(
        not (found or {}).get(kind, {"full": False})["full"] for kind, count in asked.items() if count
    )


# -- which runs -------------------------------------------------------------------------------------------------------


def told(monkeypatch: pytest.MonkeyPatch, *arguments: str, **amp: Any) -> tuple[list[str], Any]:
    """The runs of a verification, and how it ended, with made runs."""
    names: list[str] = []

    def run(name: str, target: str, space: Any, job: dict[str, Any], how: Any) -> Run:
        names.append(name)
        left_out = tuple(at for at, (gone, _) in enumerate(job.get("follow", {}).get("0", ())) if gone)
        more = amp if job["kind"] == "amp" else {"skips": left_out}
        shape = {"rate": 0.3, "batch": 0.01} if "skips" in amp else {"batch": 0.0}
        made = trained(job["seed"], kind=job["kind"], **shape | more)
        made.space = space
        made.answer |= {"half_matmuls": 9, "device": {"name": "CPU", "policy": "CUDA's on the CPU", "torch": "2.13"}}
        return made

    monkeypatch.setattr(verifying, "run", run)
    monkeypatch.setattr(marks, "traced", lambda *rest: ([], "not here"))
    done = CliRunner().invoke(cli, ["verify", "train.py", "--output-format", "json", *arguments])
    return names, done


PLAIN = ["FP32, seed 0", "AMP, seed 0", "FP32, seed 1", "FP32, seed 2"]
ROUNDED = ["FP32, seed 0, off by a rounding (1)", "FP32, seed 0, off by a rounding (2)"]


def test_no_more_runs_than_the_verdict_needs(script, monkeypatch):
    names, done = told(monkeypatch)
    assert (names, done.exit_code) == ([*PLAIN, *ROUNDED], 0), done.output
    report = json.loads(done.stdout)
    assert report["verdict"]["word"] == "same" and report["notes"] == ["no marks: not here"]
    names, done = told(monkeypatch, "--batch-sweep", "--fail-on", "skipped", skips=(0,))
    assert done.exit_code == 1 and "largest batch that fits: no GPU here" in json.loads(done.stdout)["not_measured"]


def test_a_delay_is_compared_with_fp32_that_leaves_out_the_same_steps(script, monkeypatch):
    names, done = told(monkeypatch, skips=(0, 1), shift=0.5)
    assert names[:7] == [*PLAIN, "FP32, seed 0, the same steps left out", *ROUNDED]
    assert done.exit_code == 1, done.output


def test_what_may_be_drift_is_tried_with_the_other_seeds(script, monkeypatch):
    names, done = told(monkeypatch, shift=0.2)
    others = [name for seed in (1, 2) for name in (f"AMP, seed {seed}", f"FP32, seed {seed}, off by a rounding (1)")]
    assert names == [*PLAIN, *ROUNDED, *others]
    assert done.exit_code == 1, done.output


def test_what_no_run_can_change_needs_no_more(script, monkeypatch):
    fault = {"code": "AMP105", "what": "clips scaled gradients", "count": 50, "place": "train.py:9"}
    names, done = told(monkeypatch, shift=0.2, faults=[fault])
    assert (names, done.exit_code) == (PLAIN, 1), done.output


def test_a_first_loss_that_differs_asks_whether_the_script_does_the_same_again(script, monkeypatch):
    names, done = told(monkeypatch, offset=3.0)
    assert "FP32, seed 0 again" in names and done.exit_code == 1


def test_what_ran_at_no_line_of_the_users_has_no_place(script):
    made = Run("amp", 0, answer={"lines": [line(), line(0) | {"path": ""}]})
    Places(Workspace("")).settle(made)
    assert [(one["path"], one["line"]) for one in made.answer["lines"]] == [("train.py", 9), ("", 0)]
