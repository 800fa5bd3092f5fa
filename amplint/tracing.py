"""`amplint trace`: what the user asked for as a job for the child, and its answer as an exit code. Imports no torch."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import click

from amplint import files, output, process
from amplint.cli import fail
from amplint.config import Settings
from amplint.engine import source
from amplint.findings import Finding, Location, Range, Severity
from amplint.source import suppress
from amplint.verify.memory import worded
from amplint.verify.places import shown

Job = dict[str, Any]
_START = os.path.join(os.path.dirname(os.path.abspath(__file__)), "graph", "child", "start.py")
_DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[\d,\s]*)(?::(?P<dtype>\w+))?(?::(?P<range>.+))?")
_RANGE = re.compile(r"(-?[\d.]+(?:e[-+]?\d+)?)-(-?[\d.]+(?:e[-+]?\d+)?)")
_PHASES = {
    "": "Python did not get as far as to amplint",
    "torch": "torch was being imported",
    "script": "it had not come to its first training step",
    "factory": "it had not given a model",
    "analysis": "its model was found, and was being traced",
}


def trace(target: str, arguments: Sequence[str], settings: Settings, options: dict[str, Any]) -> int:
    """`amplint trace`: print what the model does in half precision; 0 no marks, 1 marks, 2 could not run."""
    targets = output.targets(options, ("text",))
    said = _answer(job_of(target, arguments, settings, options), options)
    findings, report = _kept(said, target if os.path.isfile(target) else "-", settings)
    if findings:
        from amplint.traced import with_fixes

        findings = with_fixes(findings, settings)
    if options["html"]:
        _write_page(report, findings, options["html"])
    if all(how != "text" for how, _ in targets):
        for note in report["target"]["notes"]:
            click.echo(f"note: {note}", err=True)
    place = output.around(cache(source), files.text, settings, "trace")
    output.write(
        targets,
        lambda how: _summary(report, findings) if how == "text" else output.structured(how, findings, place),
    )
    return int(bool(findings))


def _summary(report: dict[str, Any], findings: list[Finding]) -> Iterator[str]:
    """The report for people, and how its fixes are applied."""
    from amplint.report.numbers import many
    from amplint.report.trace.terminal import summary

    for mark in report["marks"]:
        if mark["place"]:
            mark["place"]["path"] = shown(mark["place"]["path"])
    yield summary(report).removesuffix("\n")
    if count := sum(finding.fix is not None for finding in findings):
        how = "--output-format json > trace.json, then amplint fix --from-trace trace.json"
        yield f"fixes: for {count} of {many(len(findings), 'mark')}: {how}"


# -- the job ------------------------------------------------------------------------------------------------------


def job_of(target: str, arguments: Sequence[str], settings: Settings, options: dict[str, Any]) -> Job:
    """What the child is to do; a mistake of the user's ends the run."""
    is_script = os.path.exists(target) or target.endswith(".py") or ":" not in target
    given = bool(options["input"] or options["inputs"])
    if is_script:
        if not os.path.isfile(target):
            reason = "is a folder" if os.path.isdir(target) else "no such file"
            fail(f"{target}: {reason}; trace takes a script, or a factory as pkg.mod:name")
        if given or options["meta"] or options["eval"]:
            fail("--input, --inputs, --meta and --eval go with a factory (pkg.mod:name); a script has its own batch")
    else:
        if arguments:
            fail(f"{target} is a factory, which takes no arguments: {' '.join(arguments)}")
        if not given:
            fail(f"{target}: name the model's inputs: --input 8,3,224,224:float32, or --inputs pkg.mod:function")
        if options["input"] and options["inputs"]:
            fail("--input and --inputs both give the model's inputs: name one")
        if options["inputs"] and ":" not in options["inputs"]:
            fail(f'--inputs: "{options["inputs"]}" is not pkg.mod:function')
    return {
        "door": "script" if is_script else "factory",
        "target": target,
        "arguments": list(arguments),
        "inputs": [_input(text) for text in options["input"]],
        "inputs_from": options["inputs"] or "",
        "train": not options["eval"],
        "meta": options["meta"],
        "precision": options["precision"] or "",
        "dtype": options["dtype"] or "",
        "target_dtype": settings.target_dtype,
        "frontend": options["frontend"],
    }


def _input(text: str) -> dict[str, Any]:
    """`8,3,224,224:float32`, `input_ids=2,128:int64:0-30000`: name, shape, dtype, and the range of its values."""
    match = _INPUT.fullmatch(text)
    shape = [part.strip() for part in match["shape"].split(",") if part.strip()] if match else []
    if match is None or not all(map(str.isdigit, shape)) or (not shape and not match["dtype"]):
        fail(f'--input: "{text}" is not a shape as 8,3,224,224:float32 or 2,128:int64:0-30000')
    dtype = match["dtype"] or "float32"
    if dtype not in _DTYPES:
        fail(f'--input: unknown dtype "{dtype}" in "{text}"; one of {", ".join(_DTYPES)}')
    low = high = None
    if match["range"]:
        ends = _RANGE.fullmatch(match["range"])
        try:
            low, high = (float(ends[1]), float(ends[2])) if ends else (0.0, 0.0)
        except ValueError:
            low = high = 0.0
        if low >= high:
            fail(f'--input: "{match["range"]}" in "{text}" is not a range as 0-30000, of which the end is excluded')
    return {"name": match["name"] or "", "shape": list(map(int, shape)), "dtype": dtype, "low": low, "high": high}


# -- the child ----------------------------------------------------------------------------------------------------


def _answer(job: Job, options: dict[str, Any]) -> dict[str, Any]:
    """What the child answers. Its own output, and the script's, go to standard error."""
    python = options["python"] or sys.executable
    with tempfile.TemporaryDirectory(prefix="amplint-", ignore_cleanup_errors=True) as folder:
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        answered = Path(folder, "answer.json")
        try:
            # the model is read on the CPU, under CUDA's policy, wherever it is trained
            env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
            code = process.run([python, _START, folder], options["timeout"], answered.exists, env)
        except OSError as error:
            fail(f"{python} cannot be run: {error.strerror}")
        if answered.exists():
            said: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
        else:
            said = {"error": _silence(folder, job["target"], python, code, options["timeout"])}
    if "error" in said:
        fail(said["error"])
    return said


def _silence(folder: str, target: str, python: str, code: int | None, seconds: float) -> str:
    """Why the child ended without an answer."""
    phase = Path(folder, "phase")
    where = _PHASES[phase.read_text(encoding="utf-8") if phase.exists() else ""]
    if code is None:
        return f"{target} was stopped after {seconds:g} s: {where}; --timeout gives it longer"
    if code == -signal.SIGKILL:
        return f"{target} was killed (signal 9), most likely for lack of memory: {where}"
    if code < 0:
        return f"{target} was killed by signal {-code} ({signal.Signals(-code).name}): {where}"
    if not phase.exists():
        return f"{python} is no Python that runs amplint: it ended with exit code {code}"
    return f"{target} ended with exit code {code}: {where}"


# -- the answer ---------------------------------------------------------------------------------------------------


def _kept(said: dict[str, Any], target: str, settings: Settings) -> tuple[list[Finding], dict[str, Any]]:
    """The findings that are wanted, and the report with their marks only. `target`: where those without a line go."""
    comments: dict[str, suppress.Suppressions] = {}
    findings, at, hidden = [], [], 0
    for index, entry in enumerate(said["findings"]):
        finding = finding_of(entry | {"path": entry["path"] or target})  # no line of the user's ran it
        if finding.path not in comments:
            comments[finding.path] = suppress.read(source(finding.path))
        codes = settings.of_file(finding.path)
        wanted = finding.code in codes.codes and (finding.severity is not Severity.NOTE or finding.code in codes.notes)
        if wanted and not comments[finding.path].hide(finding):
            findings.append(finding)
            at.append(index)
        else:
            hidden += finding.severity is Severity.NOTE and finding.code in codes.codes and not wanted
    report = said["report"]
    report["hidden"] = hidden  # notes, which nobody asked for
    places = {old: new for new, old in enumerate(at)}
    report["marks"] = [report["marks"][index] for index in at]
    measured = worded(findings, settings)
    for mark, old, new in zip(report["marks"], findings, measured, strict=True):
        if new != old:
            mark["message"] += new.message.removeprefix(old.message)
            mark["verdict"] = new.verdict
    for node in report["nodes"]:
        node["mark"] = places.get(node["mark"])
    return measured, report


def finding_of(entry: dict[str, Any]) -> Finding:
    """A mark as the child gives it."""
    start, end = (Location(*entry[key]) for key in ("start", "end"))
    return Finding(
        code=entry["code"],
        message=entry["message"],
        path=shown(entry["path"]),
        range=Range(start, end),
        severity=Severity(entry["severity"]),
        help=entry["help"],
        verdict=entry["verdict"],
    )


def _write_page(report: dict[str, Any], findings: list[Finding], file: str) -> None:
    from amplint.report.trace.page import page
    from amplint.traced import rows_of

    sources = {finding.path: source(finding.path) for finding in findings}
    sources |= {os.path.abspath(path): text for path, text in sources.items()}
    for mark, finding in zip(report["marks"], findings, strict=True):
        mark["fix"] = rows_of(sources[finding.path], finding.fix) if finding.fix else []
    try:
        Path(file).write_text(page(report, sources), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        fail(f"{file}: cannot write the page: {files.reason(error)}")
