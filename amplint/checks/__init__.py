"""Judgement: small functions from what a script does to findings; one module a family, one function a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    from amplint.checks.autocast import casts, device, dtypes, entering, evaluation, losses, outside, regions, switches  # noqa: F401  # noqa: F401
    from amplint.checks.autocast import forwards, functions, lifetime  # noqa: F401
    from amplint.checks.crashes import kernels, mixed  # noqa: F401
    from amplint.checks.frameworks import owners, wrappers  # noqa: F401
    from amplint.checks.migration import apex, renamed, versions  # noqa: F401  registers the checks
    from amplint.checks.numerics import constants, eps, functions, gradients, integers, products, reductions  # noqa: F401
    from amplint.checks.registry import CHECKS, Script
    from amplint.checks.scaler import (  # noqa: F401  # noqa: F401
        accumulation,
        by_hand,
        flags,
        half,
        life,
        misuse,
        names,
        nonfinite,
        order,
        pairs,
        penalty,
        resume,
        scaling,
        schedule,
        update,
    )
    from amplint.checks.state import averages, buffers, defaults, live, loaded, moments, trained  # noqa: F401
    from amplint.source.interpret.entries import read

    wrappers = triage.wrapper_words(settings.apis)
    plan = triage.plan_of(settings.codes, settings.notes)
    wanted = triage.live_codes([module], plan, wrappers)
    at = frozenset(word for code in wanted for word in knowledge.rules()[code].at)
    reading = read(module, settings.roots, settings.apis, others, at)
    wanted |= triage.live_codes(reading.machine.loaded, plan, wrappers)
    script = Script(reading, settings)
    findings: dict[object, Finding] = {}
    for code, check in CHECKS:
        if code in wanted:
            for finding in check(script):
                key = (finding.code, finding.path, finding.range)
                known = findings.get(key)
                if known is None or _rank(finding) < _rank(known):
                    findings[key] = finding
    ordered = sorted(findings.values(), key=lambda finding: (finding.path, finding.range, finding.code))
    return Checked(tuple(ordered), tuple(reading.dependencies))


def _rank(finding: Finding) -> tuple[int, bool]:
    """Of two findings at one place the more severe one is kept, and one with a fix before one without."""
    return list(type(finding.severity)).index(finding.severity), finding.fix is None
