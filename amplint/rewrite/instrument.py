"""FP32 → AMP: turns planned training steps into AMP steps, and says what was done in a person's words."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from amplint import checks, knowledge
from amplint.config import Settings
from amplint.findings import Applicability, Finding, Severity
from amplint.repair import Check, Unsettled, repair
from amplint.rewrite import edits
from amplint.rewrite.apply import Conflict, apply
from amplint.rewrite.arrays import array_casts
from amplint.rewrite.evaluation import evaluation_regions
from amplint.rewrite.halves import without_casts
from amplint.rewrite.plan import Plans, StepPlan, make_plans, merged_parts
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.rewrite.scalers import scalers_for
from amplint.rewrite.unfit import PLAYS, plays, whole_script
from amplint.rewrite.used import check_used
from amplint.rewrite.writer import Writer
from amplint.selection import default_codes, expand_all
from amplint.source import suppress
from amplint.source.interpret.entries import Reading, read
from amplint.source.module import Module, Unreadable, parse
from amplint.source.suppress import fp32_lines

SAFE = frozenset((Applicability.SAFE,))
# What half-done AMP lacks, which `check --fix` would not add unasked: always, and in files that change anyway.
COMPLETES = frozenset(("AMP101",))
GOES_ALONG = frozenset(("AMP116", "AMP133"))
RANGE = frozenset(("AMP401", "AMP403", "AMP406", "AMP407"))  # what only float16's range breaks


@dataclass
class Result:
    """The new text of a file, a line per training step, and whether one was refused."""

    text: str
    lines: list[str] = field(default_factory=list)
    refused: bool = False
    steps: bool = True  # whether it holds a training step


def fix(module: Module, settings: Settings, options: dict[str, Any], together: Sequence[Module] = ()) -> Result:
    """Apply the safe fixes, then instrument what runs in full precision; nothing is converted in part. `together` are
    the files that were named with this one."""
    dtype = options["dtype"]
    if dtype == "auto" and settings.target_device == "cpu":
        dtype = "bfloat16"  # what CPUs have kernels for
    given = settings
    settings, along = _asked(settings, module.path, options, dtype)
    repaired, fixed, left = _repair(module, settings, along, complete=True)
    reading = read(repaired, settings.roots, settings.apis)
    if (found := without_casts(reading)) is not None:
        plain, flag = found
        result = fix(plain, given, options, [plain if one.path == module.path else one for one in together])
        if result.text != plain.text and not result.refused and f"enabled={flag}" in result.text + "enabled=":
            result.lines = [f"{line}; the casts to float16 are gone" for line in result.lines]
            return result
    plans = make_plans(reading, dtype, together)
    kept = set(fp32_lines(repaired.text))
    result = Result(repaired.text)
    lines: list[tuple[int, str]] = []

    def say(node: ast.AST, words: str) -> None:
        row = repaired.range(node).start.row
        lines.append((row, f"{module.path}:{row}: {words}"))

    def refuse(node: ast.AST, reason: str, advice: str) -> None:
        say(node, f"refused: {reason}; {advice}")
        result.refused = True

    broken = next((one for one in left if one.severity is Severity.ERROR and one.code.startswith("AMP1")), None)
    for node in plans.already:
        if broken is not None:
            refuse(node, f"half done, and {broken.message} ({broken.code})", broken.help or BY_HAND)
        else:
            say(node, "completed: " + _mended(fixed) if fixed else "already AMP")
    if plans.plans:
        _check_files(plans, reading, settings, dtype, together)
    if not options.get("asked", True) and plays(module):
        plans.refused = [(node, PLAYS) for node in (*(plan.step.node for plan in plans.plans), *dict(plans.refused))]
        plans.plans = []
    for node, refusal in plans.refused:
        if _kept_as_is(repaired, node, kept):
            say(node, "kept in float32, as its comment asks")
        else:
            refuse(node, refusal.reason, refusal.advice)
    by_comment = {plan.step.frame.code for plan in plans.plans if _kept_as_is(repaired, plan.step.node, kept)}
    for plan in plans.plans:
        if plan.step.frame.code in by_comment:
            say(plan.step.node, "kept in float32, as its comment asks")
    wanted = [plan for plan in plans.plans if plan.step.frame.code not in by_comment]
    if result.refused and wanted:  # a script is converted as a whole or not at all
        row = lines[-1][0]
        for plan in wanted:
            refuse(plan.step.node, f"the step on line {row} of the same script is refused", "see there")
        wanted = []
    try:
        text, said = _convert(repaired, reading, wanted, settings, along, dtype) if wanted else (result.text, [])
    except (Refused, edits.CannotEdit) as refusal:
        for plan in wanted:
            refuse(plan.step.node, refusal.reason, getattr(refusal, "advice", BY_HAND))
    else:
        result.text = text
        for plan, words in zip(wanted, said, strict=True):
            words += ["mended " + _mended(fixed)] if fixed else []
            say(plan.step.node, "converted: " + "; ".join(words))
    result.steps = bool(lines)
    if not lines and fixed:
        lines.append((0, f"{module.path}: fixed: {_mended(fixed)}"))
    if result.refused and not plans.already:
        result.text = module.text  # never a partial conversion
    result.lines = [line for _, line in sorted(lines)]
    return result


def _check_files(plans: Plans, reading: Reading, settings: Settings, dtype: str, together: Sequence[Module]) -> None:
    """Refuse the steps of a script that uses a file which low precision cannot run."""

    def find(used: Module, codes: frozenset[str]) -> tuple[Finding, ...]:
        return _find(
            used, replace(settings, codes=codes & default_codes(), target_dtype="float16" if dtype == "auto" else dtype)
        )

    try:
        used = check_used(reading.module, reading.machine.project, together, find)
        whole_script(reading, dtype, (reading.module, *together), used)
    except Refused as refusal:
        plans.refused += [(plan.step.node, refusal) for plan in plans.plans]
        plans.plans = []


def _mended(fixed: tuple[Finding, ...]) -> str:
    return ", ".join(sorted({f"{one.code} {knowledge.rules()[one.code].name}" for one in fixed}))


def _kept_as_is(module: Module, node: ast.AST, kept: set[int]) -> bool:
    """`# amplint: fp32 reason` on the step, on a loop around it, or on its function."""
    return any(getattr(one, "lineno", 0) in kept for one in (module.statement(node), *module.ancestors(node)))


def _asked(settings: Settings, path: str, options: dict[str, Any], dtype: str) -> tuple[Settings, frozenset[str]]:
    """What is looked for: what is on by default, and what was selected, too, but not what is to be ignored; and the
    deprecated names that are brought up to date in files that change anyway."""
    select, ignore = options.get("select") or (), options.get("ignore") or ()
    if select or not settings.codes:
        settings = replace(settings, codes=(settings.codes | default_codes()) - expand_all(ignore))
    settings = settings.of_file(path)
    codes, along = settings.codes, settings.codes & _deprecated() & default_codes()
    if not any(one.upper().startswith(("AMP6", "ALL")) for one in select):
        codes -= _deprecated()
    if dtype == "bfloat16":
        codes -= RANGE
    return replace(settings, codes=codes, notes=frozenset()), along


def _deprecated() -> frozenset[str]:
    """The rules about names that still work."""
    rules = knowledge.rules().items()
    return frozenset(code for code, rule in rules if code.startswith("AMP6") and rule.severity is not Severity.ERROR)


def _find(module: Module, settings: Settings) -> tuple[Finding, ...]:
    """The file's own findings that no comment hides."""
    comments = suppress.read(module.text)
    found = checks.check_module(module, settings).findings
    return tuple(
        one for one in found if one.path == module.path and one.code in settings.codes and not comments.hide(one)
    )


class Repair(NamedTuple):
    """A module after its fixes, what they mended, and what is left."""

    module: Module
    fixed: tuple[Finding, ...]
    left: tuple[Finding, ...]


def _repair(module: Module, settings: Settings, along: frozenset[str], complete: bool = False) -> Repair:
    """Apply the safe fixes; with `complete`, also what half-done AMP lacks. The codes in `along` are fixed in files
    that change anyway."""

    wider = replace(settings, codes=settings.codes | along)
    known: dict[str, tuple[Finding, ...]] = {}

    def check(allowed: frozenset[str], wanted: Settings, module: Module) -> tuple[Finding, ...]:
        if module.text not in known:
            known[module.text] = _find(module, wider)
        found = (one for one in known[module.text] if one.code in wanted.codes)
        return tuple(_made_safe(one) if one.code in allowed else one for one in found)

    stages = [(frozenset[str](), settings)]  # first what is wrong, then what is missing: a dtype may decide that
    if complete:
        stages.append((COMPLETES, settings))
    done = Repair(module, (), check(frozenset(), settings, module))
    try:
        for allowed, wanted in stages:
            done = _more(done, partial(check, allowed, wanted))
        if not done.fixed:
            return done
        for allowed in (GOES_ALONG if complete else frozenset[str](), frozenset[str]()):
            more = _more(done, partial(check, allowed, wider))
            if not {one.code for one in more.left} - {one.code for one in done.left} & GOES_ALONG:
                return more  # otherwise the scaler's state would be saved where it cannot be restored
    except Unsettled:
        return Repair(module, (), check(frozenset(), settings, module))
    return more


def _more(done: Repair, check: Check) -> Repair:
    repaired = repair(done.module, check(done.module), check, SAFE)
    return Repair(repaired.module, done.fixed + repaired.fixed, repaired.findings)


def _made_safe(finding: Finding) -> Finding:
    fix = finding.fix
    if fix is None or fix.applicability is not Applicability.UNSAFE:
        return finding
    return replace(finding, fix=replace(fix, applicability=Applicability.SAFE))


def _convert(
    module: Module, reading: Reading, plans: list[StepPlan], settings: Settings, along: frozenset[str], dtype: str
) -> tuple[str, list[list[str]]]:
    """The text with all steps converted, and what was done for each; raises Refused if the outcome is not clean."""
    parts = merged_parts(reading, plans)
    torch = edits.binding_of(module, "torch", at=parts[0].region[0])
    if torch is None:
        raise Refused("the file has no name for torch at the training step", "add `import torch` at its top")
    scalers = scalers_for(module, plans) if dtype != "bfloat16" else []
    writer = Writer(module, plans, parts, scalers, settings.target_device, dtype, torch)
    writer.write({frame.call for event in reading.events for frame in event.frame.stack() if frame.call is not None})
    evaluated: set[ast.stmt] = set()
    for part in parts:
        for region, casts in evaluation_regions(reading, replace(plans[0], forward=part.forward)):
            if evaluated & set(region):
                continue
            try:
                arrays = array_casts(reading, region) if dtype != "float16" else ()
            except Refused:
                continue  # it evaluates in float32, as it did
            evaluated |= set(region)
            writer.evaluate(region, casts, arrays)
    try:
        text = apply(module.text, writer.made())
    except Conflict:
        raise Refused("its edits would overlap", "spread the training step over lines of its own") from None
    text, mended = _settled(module, text, settings, along)
    said = writer.said
    if mended:
        said[0].append("mended " + _mended(mended))
    return text, said


def _settled(module: Module, text: str, settings: Settings, along: frozenset[str]) -> tuple[str, tuple[Finding, ...]]:
    """The converted text after its own safe fixes (a mask constant that half precision cannot hold, say), and what
    they mended. It must parse, and `check` must find nothing wrong in it that was not there before."""
    try:
        after = Module(module.path, text, parse(text), module.encoding)
    except Unreadable as error:
        raise Refused(f"the result would not parse ({error.reason})", "please report this") from None
    after, mended, left = _repair(after, settings, along)
    known = {(finding.code, finding.message) for finding in _find(module, settings)}
    for finding in left:
        if finding.severity is not Severity.NOTE and (finding.code, finding.message) not in known:
            raise Refused(f"in half precision, {finding.message} ({finding.code})", finding.help or "mend that first")
    return after.text, mended
