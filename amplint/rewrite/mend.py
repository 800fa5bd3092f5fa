"""The safe fixes of a file, and what half-done AMP lacks: applied before it is converted, and to what came of that."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from amplint import checks, knowledge
from amplint.config import Settings
from amplint.findings import Applicability, Finding, Severity
from amplint.repair import Check, Unsettled, repair
from amplint.rewrite.refusals.refused import Refused
from amplint.selection import default_codes, expand_all
from amplint.source import suppress
from amplint.source.module import Module

SAFE = frozenset((Applicability.SAFE,))
# What half-done AMP lacks, which `check --fix` would not add unasked: always, and in files that change anyway.
COMPLETES = frozenset(("AMP101",))
GOES_ALONG = frozenset(("AMP116", "AMP133"))
RANGE = frozenset(("AMP401", "AMP403", "AMP406", "AMP407"))  # what only float16's range breaks
# What any AMP makes less exact, and a person may judge, and a resumed run that finds its scale anew: as a warning, it
# is said, and no reason to refuse.
BEARABLE = ("AMP4", "AMP5", "AMP116", "AMP127", "AMP133", "AMP212", "AMP221", "AMP223", "AMP224")

# What was done, where a person would not say it by the name of what was wrong.
_DONE = {
    "AMP101": "a scaler for its float16 gradients",
    "AMP102": "the step goes through the scaler",
    "AMP103": "the loss is scaled",
    "AMP104": "every loss is scaled",
    "AMP105": "gradients unscaled before they are clipped",
    "AMP106": "gradients unscaled before they are read",
    "AMP108": "gradients unscaled once a step",
    "AMP110": "the scaler is updated",
    "AMP111": "the scaler is updated once, after the step",
    "AMP112": "the scaler is updated after the last step",
    "AMP115": "one scaler for the whole run",
    "AMP116": "the scaler's state is saved",
    "AMP133": "the scaler's state is restored",
    "AMP508": "float16 that meets bfloat16 cast to float32",
}
_SCALERS = (2, 3)  # the first torch with a GradScaler for other devices than CUDA


def in_words(fixed: tuple[Finding, ...]) -> str:
    done = sorted({one.code for one in fixed})
    return ", ".join(f"{_DONE[code]} ({code})" if code in _DONE else f"{code} {_name(code)}" for code in done)


def _name(code: str) -> str:
    return knowledge.rules()[code].name


def asked(settings: Settings, path: str, options: dict[str, Any], dtype: str) -> tuple[Settings, frozenset[str]]:
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
    settings = replace(settings, codes=codes, notes=frozenset())
    by_project = settings.torch_from not in ("", "target-torch")
    if by_project and dtype != "bfloat16" and settings.target_device != "cuda":
        oldest = max(settings.target_torch, _SCALERS)  # whoever trains there with float16 has it
        settings = replace(settings, target_torch=oldest)
    return settings, along


def _deprecated() -> frozenset[str]:
    """The rules about names that still work."""
    rules = knowledge.rules().items()
    return frozenset(code for code, rule in rules if code.startswith("AMP6") and rule.severity is not Severity.ERROR)


def find(module: Module, settings: Settings) -> tuple[Finding, ...]:
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


def mend(module: Module, settings: Settings, along: frozenset[str], complete: bool = False) -> Repair:
    """Apply the safe fixes; with `complete`, also what half-done AMP lacks. The codes in `along` are fixed in files
    that change anyway."""

    wider = replace(settings, codes=settings.codes | along)
    known: dict[str, tuple[Finding, ...]] = {}

    def check(allowed: frozenset[str], wanted: Settings, module: Module) -> tuple[Finding, ...]:
        if module.text not in known:
            known[module.text] = find(module, wider)
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


def settle(module: Module, before: Module, settings: Settings, along: frozenset[str]) -> Repair:
    """A converted file after its own safe fixes (a mask constant that half precision cannot hold, say), and what is
    left that was not there before, and BEARABLE. Anything else that `check` finds in it is a
    reason to refuse: it crashes, or it is the conversion that is wrong. Notes never are, nor numbers only shown."""
    mended = mend(module, settings, along)
    known = {(finding.code, finding.message) for finding in find(before, settings)}
    new = tuple(
        finding
        for finding in mended.left
        if finding.severity is not Severity.NOTE
        and (finding.code, finding.message) not in known
        and not only_shown(mended.module, finding)
    )
    for finding in new:
        if finding.severity is Severity.ERROR or not finding.code.startswith(BEARABLE):
            raise Refused(f"in half precision, {finding.message} ({finding.code})", finding.help or "mend that first")
    return mended._replace(left=new)


def warned(left: tuple[Finding, ...], path: str = "") -> list[str]:
    """Words for what may suffer in half precision, each code once, at its first line of the file as it is now: the one
    that is spoken of, or another, by its path."""
    first = {one.code: one for one in sorted(left, key=lambda one: one.range, reverse=True)}
    place = f"{path}:" if path else "line "
    return [f"look at {place}{one.range.start.row}: {one.message} ({code})" for code, one in sorted(first.items())]


def only_shown(module: Module, finding: Finding) -> bool:
    """Whether a finding is about a number in an f-string, where no edit can be made before Python 3.12: what is too
    large for half precision reads inf there, and nothing learns from it."""
    if not finding.code.startswith("AMP4"):
        return False
    shown = (module.range(node) for node in ast.walk(module.tree) if isinstance(node, ast.JoinedStr))
    return any(one.start <= finding.range.start and finding.range.end <= one.end for one in shown)
