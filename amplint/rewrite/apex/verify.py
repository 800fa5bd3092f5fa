"""What a migration leads to: it must parse, and `check` must find nothing in it that was not there before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from amplint import checks
from amplint.config import Settings
from amplint.findings import Edit, Finding, Severity
from amplint.rewrite.apex.group import Group
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.syntax.apply import Conflict, apply
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
    codes in `allowed`; returns those of them that are found. What half precision does to numbers (AMP4, AMP127), it did
    with apex as well, and what is logged of a scaled loss (AMP130) was scaled."""
    wanted = replace(settings, codes=default_codes() - {"AMP605"}, notes=frozenset())
    found = _found(group, [after for _, after in pairs], wanted)
    if not found:
        return []
    known = Counter(one.code for one in _found(group, [before for before, _ in pairs], wanted))
    new = Counter(one.code for one in found) - known
    wrong = next((f for f in found if f.code in new.keys() - allowed and not _was_so(f)), None)
    if wrong is not None:
        raise Refused(f"in torch.amp, {wrong.message} ({wrong.code})", wrong.help or BY_HAND)
    return sorted(new.keys() & allowed)


def _was_so(finding: Finding) -> bool:
    """Whether it was as wrong with apex, where nothing told of it."""
    logged = finding.code == "AMP130" and finding.severity is Severity.WARNING
    return logged or finding.code.startswith(("AMP4", "AMP127"))


def _found(group: Group, modules: Sequence[Module], settings: Settings) -> list[Finding]:
    """What the script shows in some of its files, as they are given: what helps it is judged as the script uses it."""
    paths = {one.path for one in modules}
    main = next((one for one in modules if one.path == group.main.path), group.main)
    others = [one for one in group.others if one.path not in paths]
    found = checks.check_module(main, settings, [*others, *modules]).findings
    return [one for one in found if one.severity is not Severity.NOTE and one.path in paths]
