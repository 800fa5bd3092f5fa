"""`amplint verify`: FP32 and AMP runs of a script, compared; the verdict as an exit code. Imports no torch."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from amplint import files, knowledge
from amplint.cli import fail
from amplint.config import Settings
from amplint.engine import source
from amplint.verify import compare as judging
from amplint.verify import marks, memory
from amplint.verify.advice import advice
from amplint.verify.convert import CannotConvert, Conversion, convert, readable
from amplint.verify.curves import curves, main_steps, value
from amplint.verify.places import Places
from amplint.verify.runs import CouldNotRun, Launch, Run, launch, run
from amplint.verify.sweep import sweep
from amplint.verify.told import Report, report
from amplint.verify.workspace import make

Options = dict[str, Any]
WARMUP = 3
_SWEPT = 8  # steps of a run that only measures, after the first ones
_ROUNDED = 2  # runs of FP32 that are off by a rounding
_COUNTED = 10  # steps of the run that counts values on a GPU
FAILS = ("not-same", "not-enough", "fault", "overflow", "skipped", "slower")


def verify(script: str, arguments: Sequence[str], settings: Settings, options: Options) -> int:
    """Run, compare, print; 0 the same, 1 not the same or what --fail-on names, 2 could not run."""
    against = options["against"]
    for path in (script, against):
        if path and not os.path.isfile(path):
            fail(f"{path}: {'is a folder' if os.path.isdir(path) else 'no such file'}; verify takes a training script")
    if options["html"] and not os.path.isdir(os.path.dirname(os.path.abspath(options["html"]))):
        fail(f"--html {options['html']}: no such folder")
    unknown = set(options["fail_on"] or ()) - set(FAILS)
    if unknown:
        fail(f'--fail-on: unknown "{sorted(unknown)[0]}"; one of {", ".join(FAILS)}')
    try:
        if against:
            readable(against)  # what does not compile is no AMP script
        how = launch(script, arguments, options["python"], options["launcher"] or "", options["timeout"], _teller())
        with _folder(options["keep"]) as folder:
            made = _Verification(folder, script, settings, options, how).report()
    except (CannotConvert, CouldNotRun) as error:
        fail(str(error))
    return _print(made, options)


@contextmanager
def _folder(keep: str | None) -> Iterator[str]:
    """Where the workspaces are; gone afterwards, unless it is to be kept."""
    if keep:
        if os.path.exists(keep) and (not os.path.isdir(keep) or os.listdir(keep)):
            fail(f"--keep: {keep} is there already; name a new folder")
        os.makedirs(keep, exist_ok=True)
        yield os.path.abspath(keep)
        return
    folder = os.path.realpath(tempfile.mkdtemp(prefix="amplint-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _teller() -> Any:
    """Tells progress in one line of a terminal; elsewhere nothing."""
    if sys.stderr is None or not sys.stderr.isatty():
        return lambda text: None

    def tell(text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text[: max(20, shutil.get_terminal_size().columns - 1)]}")
        sys.stderr.flush()

    return tell


class _Verification:
    """The runs of one verification, in the order in which they are needed."""

    def __init__(self, folder: str, script: str, settings: Settings, options: Options, how: Launch) -> None:
        self.folder, self.script, self.settings, self.options, self.how = folder, script, settings, options, how
        self.dtype = options["dtype"] or settings.target_dtype
        self.against = options["against"]
        paths = [script, *([self.against] if self.against else [])]
        self.base = make(os.path.join(folder, "base"), paths, how.arguments, settings)
        self.conversion = Conversion()
        if not self.against:
            trees = [theirs for theirs, _ in self.base.trees]
            self.conversion = convert(script, settings, self.dtype, trees)
        self.fp32: list[Run] = []
        self.amp: list[Run] = []
        self.rounded: list[Run] = []
        self.followed: dict[int, Run] = {}
        self.notes: list[str] = []

    def report(self) -> Report:
        first = self._fp32("FP32, seed 0")
        if not first.problem and not first.steps:
            raise CouldNotRun(f"{self.script} ended and never stepped an optimizer")
        if first.problem:
            raise CouldNotRun(f"in FP32 already, {self.script} {first.problem}")
        if first.answer.get("diverged"):
            raise CouldNotRun(f"in FP32 already, {self.script} diverges: {_diverged(first)}")
        on_gpu = _on_gpu(first)
        if self.options["device"] == "cuda" and not on_gpu:
            raise CouldNotRun("--device cuda: torch finds no usable GPU here")
        self.fp32.append(first)
        self.amp.append(self._amp("AMP, seed 0", count=not on_gpu))
        counted = self._amp("AMP, counted", count=True, steps=_COUNTED) if on_gpu else self.amp[0]
        if not counted.answer.get("half_matmuls") and not counted.problem and not self.amp[0].problem:
            raise CouldNotRun(self._never())
        decided = len(main_steps(first)) < judging.LEAST or self.amp[0].problem
        for seed in range(1, 1 if decided else self.options["seeds"]):
            self.fp32.append(self._fp32(f"FP32, seed {seed}", seed=seed))
        verdict = self._judged()
        return self._told(verdict, counted)

    # -- runs -----------------------------------------------------------------------------------------------------

    def _job(self, kind: str, seed: int, more: dict[str, Any]) -> dict[str, Any]:
        return {
            "kind": kind,
            "seed": seed,
            "steps": self.options["steps"],
            "count": False,
            "accumulate": self.options["accumulate"],
            "dtype": self.dtype,
            "device": self.options["device"],
            "full_precision": kind == "fp32",
            "warmup": WARMUP,
            "batch_factor": 1,
        } | more

    def _run(self, name: str, script: str, job: dict[str, Any]) -> Run:
        key = name.replace(", ", "-").replace(" ", "-").lower()
        space = self.base.copy(os.path.join(self.folder, key))
        if job["kind"] == "amp":
            self.conversion.write(space)
        made = run(name, script, space, job, self.how)
        Places(space, self.conversion if job["kind"] == "amp" else None).settle(made)
        if not self.options["keep"]:
            shutil.rmtree(space.folder, ignore_errors=True)
        return made

    def _fp32(self, name: str, seed: int = 0, **more: Any) -> Run:
        return self._run(name, self.script, self._job("fp32", seed, more))

    def _amp(self, name: str, count: bool, seed: int = 0, **more: Any) -> Run:
        return self._run(name, self.against or self.script, self._job("amp", seed, {"count": count} | more))

    # -- the verdict ----------------------------------------------------------------------------------------------

    def _judged(self) -> judging.Verdict:
        """The verdict; where it hangs on what more runs would tell, after these."""
        verdict = self._compare()
        if "first" in verdict.doubts:
            self._same_again()
        if verdict.hard or verdict.word == judging.TOO_FEW:
            return verdict
        self._follow(0)
        for draw in range(1, _ROUNDED + 1):
            self._rounded(0, draw)
        verdict = self._compare()
        if "curve" in verdict.doubts and not verdict.hard:
            for seed in range(1, len(self.fp32)):
                self.amp.append(self._amp(f"AMP, seed {seed}", count=False, seed=seed))
                self._rounded(seed, 1)
                self._follow(seed)
            verdict = self._compare()
        return verdict

    def _compare(self) -> judging.Verdict:
        runs = judging.Runs(self.fp32, self.amp, self.rounded, self.followed)
        return judging.compare(runs, self.dtype, _severity)

    def _rounded(self, seed: int, draw: int) -> None:
        """FP32 again, as far from itself as rounding drives the script."""
        name = f"FP32, seed {seed}, off by a rounding ({draw})"
        made = self._fp32(name, seed=seed, perturb=draw)
        self.rounded += [made] if not made.problem else []

    def _follow(self, seed: int) -> None:
        """FP32 without the steps that AMP has skipped, if there are any."""
        taken: dict[str, list[Any]] = {}
        for step in self.amp[seed].steps:
            taken.setdefault(str(step["optimizer"]), []).append([step["skipped"], step["rates"]])
        if any(skipped for steps in taken.values() for skipped, _ in steps):
            name = f"FP32, seed {seed}, the same steps left out"
            made = self._fp32(name, seed=seed, follow=taken)
            if not made.problem:
                self.followed[seed] = made

    def _same_again(self) -> None:
        """Whether the script does the same again from the same seed; ends the verification if it does not."""
        again = self._fp32("FP32, seed 0 again", steps=2)
        for one, other in zip(curves(self.fp32[0]), curves(again), strict=False):
            a, b = one.values[0], other.values[0]
            if abs(a - b) > 1e-4 * max(abs(a), abs(b)):
                raise CouldNotRun(
                    f"{self.script} differs from run to run: its first loss is {a:.5g}, and {b:.5g} with the "
                    "same seed; make what it draws come from seeded generators of torch, numpy or random"
                )

    def _never(self) -> str:
        said = f"AMP never ran: no matmul or convolution of {self.against or self.script} ran in {self.dtype}"
        if self.conversion.already and not self.against:
            said += "; the script is AMP as it is: does it need an argument that switches AMP on?"
        elif not self.against and self.settings.target_device == "cuda":
            said += "; where it trains on the CPU, --target-device cpu converts it for that"
        return said

    # -- the report -----------------------------------------------------------------------------------------------

    def _told(self, verdict: judging.Verdict, counted: Run) -> Report:
        target = {
            "script": self.script,
            "arguments": list(self.how.arguments),
            "against": self.against or "",
            "dtype": self.dtype,
            "steps": self.options["steps"],
            "seeds": len(self.fp32),
            "launcher": self.options["launcher"] or "",
            "accumulate": self.options["accumulate"],
        }
        reference = self.followed.get(0, self.fp32[0])
        made = report(target, verdict, self.fp32, self.amp, reference, counted, WARMUP)
        made["target"]["conversion"] = self.conversion.lines
        self._marks(made, counted)
        self._sweep(made, _on_gpu(self.fp32[0]))
        if self.conversion.already and not self.against:
            made["notes"].insert(0, f"{self.script} is AMP as it is: FP32 is the same with autocast and scaler off")
        return made

    def _marks(self, made: Report, counted: Run) -> None:
        """What trace marks and check finds in the AMP script, against what was counted on its lines."""
        script = self.against or self.script
        space = self.base.copy(os.path.join(self.folder, "trace"))
        self.conversion.write(space)
        found, why = marks.traced(script, space, self.settings, self.dtype, self.how)
        if why:
            made["notes"].append(f"no marks: {why}")
        found += marks.checked(script, self.conversion, self.settings)
        places = Places(space, self.conversion)
        made["marks"] = marks.judged(found, places, made["lines"], counted, self.dtype)
        capability = counted.answer.get("device", {}).get("capability")
        made["advice"] = advice(made, script, self.conversion, self.settings, places, capability)
        memory.remember(made["marks"], len(main_steps(counted)), self.settings)

    def _sweep(self, made: Report, on_gpu: bool) -> None:
        """The largest batch that fits, where memory is a GPU's."""
        if not self.options["batch_sweep"]:
            return
        if not on_gpu:
            made["not_measured"].append("largest batch that fits: no GPU here")
            return

        def measure(kind: str, factor: int, seconds: float) -> Run:
            more = {"steps": WARMUP + _SWEPT, "batch_factor": factor}
            name = f"{kind}, batch × {factor}"
            self.how = replace(how, timeout=min(how.timeout, seconds))
            return self._fp32(name, **more) if kind == "fp32" else self._amp(name, count=False, **more)

        how = self.how
        made["sweep"], said = sweep(measure, WARMUP, self.options["sweep_time"])
        made["notes"] += said


def _on_gpu(made: Run) -> bool:
    return bool(made.answer.get("device", {}).get("policy") == "CUDA")


def _diverged(made: Run) -> str:
    """When a run's losses ceased to be numbers."""
    bad = [step["step"] for step in made.steps if not all(math.isfinite(value(loss)) for _, loss in step["losses"])]
    since = f", and its loss is no number since step {bad[0] + 1}" if bad else ""
    return f"its weights are not finite after {len(made.steps)} steps{since}"


def _severity(code: str) -> str:
    rule = knowledge.rules().get(code)
    return rule.severity.value if rule is not None else "warning"


# -- output -------------------------------------------------------------------------------------------------------


def _print(made: Report, options: Options) -> int:
    if options["output_format"] == "json":
        click.echo(json.dumps(made, indent=2, allow_nan=False))
    elif options["output_format"] == "markdown":
        from amplint.report.verify.markdown import markdown

        click.echo(markdown(made), nl=False)
    else:
        from amplint.report.verify.terminal import summary

        click.echo(summary(made), nl=False)
    if options["html"]:
        from amplint.report.verify.page import page

        sources = {line["path"]: source(line["path"]) for line in made["lines"]}
        _write(options["html"], page(made, sources))
    word, fails = made["verdict"]["word"], set(options["fail_on"] or ())
    if word == judging.DIFFERENT or _named(made, fails):
        return 1
    return 2 if word == judging.TOO_FEW else 0


def _named(made: Report, fails: set[str]) -> bool:
    """Whether something happened that --fail-on names."""
    happened = {
        "not-enough": made["verdict"]["word"] == judging.TOO_FEW,
        "fault": bool(made["faults"]),
        "overflow": any(line["phase"] == "forward" and line.get("origin", line["inf"]) for line in made["lines"]),
        "skipped": bool(made["skipped"]),
        "slower": made["speed"] is not None and made["speed"]["ratio"] < 1,
    }
    return any(happened.get(name, False) for name in fails)


def _write(file: str, text: str) -> None:
    try:
        Path(file).write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        fail(f"{file}: cannot write the page: {files.reason(error)}")
