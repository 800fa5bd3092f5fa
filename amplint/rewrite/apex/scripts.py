"""What `amplint fix` makes of the files that use apex.amp: all files of a script, or none."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from amplint.config import Settings
from amplint.findings import Finding, Severity
from amplint.rewrite import edits
from amplint.rewrite.apex import fp16_optimizer
from amplint.rewrite.apex.fp16_helpers import NAME
from amplint.rewrite.apex.fp16_optimizer import Told
from amplint.rewrite.apex.group import Group, group_of
from amplint.rewrite.apex.migrate import Migration, migration
from amplint.rewrite.apex.uses import Uses, falls_back, guard, uses_of
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.source import suppress
from amplint.source.module import Module

NATIVE = Refused("apex.amp stands beside torch's own AMP", "remove the branch that uses apex")
FLOAT16 = Refused(
    "apex.amp trains in float16 with a loss scale, and bfloat16 was asked for",
    "migrate it with `--dtype float16`, and change the dtype of what that writes",
)


@dataclass
class Outcome:
    """A file after its migration, and what was done in words; or the places of what was refused, with the reason."""

    module: Module
    words: list[str] = field(default_factory=list)
    refused: Refused | None = None
    places: list[ast.AST] = field(default_factory=list)


def migrated(
    modules: Sequence[Module],
    settings: Callable[[Module], Settings],
    run: Callable[[Module, Callable[[], Any]], Any],
    dtype: str = "float16",
) -> dict[Module, Outcome | None]:
    """What becomes of each file that uses apex.amp, or wraps its optimizer in FP16_Optimizer; None where `run`, which
    does the work, had to give up."""
    wrapping: dict[Module, Outcome | None] = {}
    as_amp: dict[Module, tuple[Module, Told]] = {}
    now: list[Module] = []
    for module in modules:
        made = run(module, partial(_told, module, settings(module))) if NAME in module.text else ()
        if isinstance(made, Told):
            as_amp[made.module] = module, made
            now.append(made.module)
        elif isinstance(made, Refused):
            wrapping[module] = Outcome(module, refused=made, places=fp16_optimizer.places(module))
        else:
            now.append(module)  # what `run` gave up on is left to what comes after
    found = _migrated(now, settings, run, dtype, as_amp)
    for module, outcome in found.items():
        if module in as_amp and outcome is not None:
            original, made = as_amp[module]
            wrapping[original] = _in_its_words(original, outcome, made.changes)
        else:
            wrapping[as_amp[module][0] if module in as_amp else module] = outcome
    return wrapping


def _told(module: Module, settings: Settings) -> Told | Refused | tuple[()]:
    try:
        return fp16_optimizer.told(module, settings) or () if "AMP605" in settings.codes else ()
    except Refused as refused:
        return refused
    except edits.CannotEdit as error:
        return Refused(f"its code has a shape that amplint does not edit ({error.reason})", BY_HAND)


def _in_its_words(module: Module, outcome: Outcome, changes: Sequence[str]) -> Outcome:
    """The outcome for a file that does not name apex.amp."""
    if outcome.refused is not None:
        reason, advice = map(fp16_optimizer.in_its_words, (outcome.refused.reason, outcome.refused.advice))
        return Outcome(module, refused=Refused(reason, advice), places=fp16_optimizer.places(module))
    words = [fp16_optimizer.in_its_words(one) for one in outcome.words]
    return Outcome(outcome.module, [*words, *(f"changed: {one}" for one in changes)])


def _migrated(
    modules: Sequence[Module],
    settings: Callable[[Module], Settings],
    run: Callable[[Module, Callable[[], Any]], Any],
    dtype: str,
    told: Collection[Module],
) -> dict[Module, Outcome | None]:
    found: dict[Module, Outcome | None] = {}
    by_path = {os.path.abspath(one.path): one for one in modules}
    for module in sorted(modules, key=lambda one: "initialize" not in one.text):  # scripts before what helps them
        if module in found or "apex" not in module.text:
            continue
        uses = uses_of(module)
        wanted = settings(module)
        if "AMP605" not in wanted.codes or not asks(module, uses):
            continue
        try:
            if uses.native and uses.uses:
                raise NATIVE
            if dtype == "bfloat16" and uses.uses:
                raise FLOAT16
            made: Migration | tuple[Refused, Group | None] | None = run(
                module, partial(_attempt, module, wanted, modules, told)
            )
        except Refused as refused:
            made = refused, None
        if made is None:
            found[module] = None
            continue
        if isinstance(made, tuple):
            reason, group = made
            found[module] = Outcome(module, refused=reason, places=_places(uses))
            for one, its in group.uses.items() if group is not None else ():
                named = by_path.get(os.path.abspath(one.path))
                if named is not None:
                    found.setdefault(named, Outcome(named, refused=reason, places=_places(its)))
            continue
        for before, after in made.pairs:
            named = by_path.get(os.path.abspath(before.path))
            if named is not None:
                found[named] = Outcome(after, _words(made, before, first=before is made.pairs[0][0]))
    return found


def _attempt(
    module: Module, settings: Settings, together: Sequence[Module], told: Collection[Module]
) -> Migration | tuple[Refused, Group | None]:
    group = None
    try:
        group = group_of(module, settings.roots, together)
        if module in told:
            fp16_optimizer.refuse_others(one for one in group.files.values() if one is not module)
        return migration(group, settings)
    except Refused as refused:
        return refused, group


def asks(module: Module, uses: Uses) -> bool:
    """Whether a file needs apex.amp: an import that can be missing, with nothing that uses it or with torch's own in
    its place, or beside torch's own, is fine."""
    if not uses.imports:
        return False
    statement, alias = uses.imports[0]
    attempt = guard(module, statement)
    if attempt is not None and (not uses.uses or falls_back(attempt) or uses.native):
        return False
    finding = Finding("AMP605", "", module.path, module.range(alias), Severity.ERROR)
    return not suppress.read(module.text).hide(finding)


def _places(uses: Uses) -> list[ast.AST]:
    """Where the training steps of a file are, as far as apex.amp says."""
    scaled: list[ast.AST] = [use.node for use in uses.named("scale_loss")]
    others: list[ast.AST] = [use.node for use in (*uses.named("initialize"), *uses.uses)]
    return [*(scaled or others[:1] or [statement for statement, _ in uses.imports[:1]])]


def _words(made: Migration, module: Module, first: bool) -> list[str]:
    words = list(made.words.get(module, []))
    words += [f"changed: {one}" for one in made.changes] if first else []
    words += made.notes if first else []
    if first and made.unsaved:
        words.append("the scaler's state is not in the checkpoint, nor was that of apex")
    return ["apex.amp is torch.amp now", *words]
