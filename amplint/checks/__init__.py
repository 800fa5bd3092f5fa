"""Judgement: small functions from what a script does to findings; one module a family, one function a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pkgutil import walk_packages

from amplint import knowledge
from amplint.config import Settings
from amplint.findings import Finding
from amplint.source import triage
from amplint.source.module import Module


@dataclass(frozen=True)
class Checked:
    """The findings of one file, and the other files of the project that they depend on."""

    findings: tuple[Finding, ...]
    dependencies: tuple[str, ...] = ()


def check_module(module: Module, settings: Settings, others: Sequence[Module] = ()) -> Checked:
    """All findings of the selected rules that reading one file shows, in the order of their places.

    A rule is asked only if the file, with the project files that its reading ran, holds the rule's words. A finding met
    more than once (in another round, world or call) is one finding. Suppressions are not applied here. `others` stand
    for the files at their paths.
    """
    if module.is_foreign:
        return Checked((), ())
    prepare()
    from amplint.checks.registry import CHECKS, Script, in_test
    from amplint.source.interpret.entries import read

    wrappers = triage.wrapper_words(settings.apis)
    plan = triage.plan_of(settings.codes, settings.notes)
    wanted = triage.live_codes([module], plan, wrappers)
    at = frozenset(word for code in wanted for word in knowledge.rules()[code].at)
    script = Script(module, settings, partial(read, module, settings.roots, settings.apis, others, at))
    findings: dict[object, Finding] = {}

    def ask(codes: set[str]) -> None:
        for code, check in CHECKS:
            for finding in check(script) if code in codes else ():
                key = (finding.code, finding.path, finding.range)
                known = findings.get(key)
                if known is None or _rank(finding) < _rank(known):
                    findings[key] = finding

    ask(wanted)
    if script.is_read or not wanted:  # rules whose words are in the files that it uses
        ask(triage.live_codes(script.reading.machine.loaded, plan, wrappers) - wanted)
    measured = module.is_test or module.is_benchmark
    graded = [in_test(one) if measured and one.path == module.path else one for one in findings.values()]
    ordered = sorted(graded, key=lambda finding: (finding.path, finding.range, finding.code))
    read_too = script.reading.dependencies if script.is_read else ()
    return Checked(tuple(ordered), (*read_too, *sorted(script.looked_at)))


@cache
def prepare() -> None:
    """Import every module of checks/, which registers its checks, and read what they know."""
    for read in (knowledge.rules, knowledge.ops, knowledge.apis):
        read()
    for found in walk_packages(__path__, f"{__name__}."):
        import_module(found.name)


def _rank(finding: Finding) -> tuple[int, bool]:
    """Of two findings at one place the more severe one is kept, and one with a fix before one without."""
    return list(type(finding.severity)).index(finding.severity), finding.fix is None
