"""What a migration leads to: it must parse, and `check` must find nothing in it that was not there before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from amplint import checks
from amplint.config import Settings
from amplint.findings import Edit, Finding, Severity
from amplint.rewrite.apex.group import Group
from amplint.rewrite.apply import Conflict, apply
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.selection import default_codes
from amplint.source.module import Module, Unreadable, parse


def changed(group: Group, edits: Sequence[Edit]) -> list[tuple[Module, Module]]:
    """The files that change, before and after; raises Refused."""
    by_path: dict[str, list[Edit]] = {}
    for one in edits:
        by_path.setdefault(one.path, []).append(one)
    pairs: list[tuple[Module, Module]] = []
    for module in dict.fromkeys((group.main, *group.uses, *group.files.values())):
        if module.path not in by_path:
            continue
        try:
            text = apply(module.text, sorted(set(by_path[module.path])))
            pairs.append((module, Module(module.path, text, parse(text), module.encoding)))
        except Conflict:
            raise Refused("its edits would overlap", "spread the training step over lines of its own") from None
        except Unreadable as error:
            raise Refused(f"the result would not parse ({error.reason})", "please report this") from None
    return pairs


def verify(
    group: Group, pairs: Sequence[tuple[Module, Module]], settings: Settings, allowed: frozenset[str]
) -> list[str]:
    """Raise Refused unless the files check cleanly: nothing is found in them that was not there before, but for the
    codes in `allowed`; returns those of them that are found."""
    codes = default_codes() - {"AMP605"}
    before = [one for one, _ in pairs]
    after = [one for _, one in pairs]
    found = _found(after, replace(settings, codes=codes, notes=frozenset()))
    if not found:
        return []
    known = Counter(f.code for f in _found(before, replace(settings, codes=codes, notes=frozenset())))
    new = Counter(f.code for f in found) - known
    wrong = next((f for f in found if f.code in new.keys() - allowed), None)
    if wrong is not None:
        raise Refused(f"in torch.amp, {wrong.message} ({wrong.code})", wrong.help or BY_HAND)
    return sorted(new)


def _found(modules: Sequence[Module], settings: Settings) -> list[Finding]:
    """What is found in some files, each of which sees the others as they are given."""
    paths = {one.path for one in modules}
    found: dict[object, Finding] = {}
    for module in modules:
        others = [one for one in modules if one is not module]
        for finding in checks.check_module(module, settings, others).findings:
            if finding.severity is not Severity.NOTE and finding.path in paths:
                found.setdefault((finding.code, finding.path, finding.range), finding)
    return list(found.values())
