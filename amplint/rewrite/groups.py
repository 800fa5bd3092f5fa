"""Which files go together: those that one step concerns change all, or none; and what of them is unfit for that."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from amplint.findings import Finding
from amplint.rewrite.islands.norms import check_norms
from amplint.rewrite.islands.sigmoids import There
from amplint.rewrite.mend import find
from amplint.rewrite.models.functions import custom_functions
from amplint.rewrite.models.used import check_used, used_by
from amplint.rewrite.plan import StepPlan
from amplint.rewrite.refusals.refused import Refused, one_command
from amplint.rewrite.refusals.unfit import PLAYS, check_zeroed, plays, whole_script
from amplint.rewrite.scaler.definitions import uses_in
from amplint.rewrite.scaler.reach import Files, Reach, must_change, savers
from amplint.rewrite.scaler.wrapped import Wrapped, shown
from amplint.selection import default_codes
from amplint.source import events
from amplint.source.module import Module

if TYPE_CHECKING:
    from amplint.rewrite.instrument import Draft


def groups_of(known: Sequence[Draft]) -> list[list[Draft]]:
    """The files in groups: in one group are those that one step concerns."""
    group = {draft.now: {draft.now} for draft in known}
    for draft in known:
        for module, plans in draft.plans.items():
            if plans.plans or plans.already or plans.refused:
                every = [*plans.plans, *(half for half in plans.halves.values() if isinstance(half, StepPlan))]
                concerned = {draft.now, module, *(one for plan in every for one in modules_of(plan))}
                concerned |= _of_savers(every, known)
                concerned |= _with_functions(draft, known)
                merged = set().union(*(group[one] for one in concerned if one in group))
                for one in merged:
                    group[one] = merged
    seen: set[Module] = set()
    found: list[list[Draft]] = []
    for draft in known:
        if draft.now not in seen:
            members = [one for one in known if one.now in group[draft.now]]
            seen |= {one.now for one in members}
            found.append(members)
    return found


def _with_functions(draft: Draft, known: Sequence[Draft]) -> set[Module]:
    """The files named with this one whose custom autograd functions its steps may meet: it reads them, or imports them
    from wherever (`check_used` asked for them)."""
    have = [one for one in known if one is not draft and any(custom_functions(one.now))]
    if not have:
        return set()
    near = set(related(draft, known))
    brought = _imports(draft)
    for other in known:
        if other is not draft and os.path.realpath(draft.now.path) in (theirs := _imports(other)):
            brought |= theirs
    return {one.now for one in have if one.now in near or os.path.realpath(one.now.path) in brought}


def _imports(draft: Draft) -> set[str]:
    assert draft.reading is not None
    return {os.path.realpath(one.path) for one in used_by(draft.now, draft.reading.machine.project)}


def modules_of(plan: StepPlan) -> list[Module]:
    """The files in which a step needs changes."""
    found = [plan.module]
    if isinstance(plan.step, Wrapped):
        found += [frame.module for frame in plan.step.frames]
    for home in plan.homes:
        found += [home.module, *(frame.module for frame in home.path)]
        found += [frame.caller.module for frame in home.path if frame.caller is not None]
    found += [
        module for part in plan.parts for cast in part.casts if isinstance(cast, There) for module, _ in cast.parts
    ]
    return list(dict.fromkeys(found))


def _of_savers(plans: Sequence[StepPlan], known: Sequence[Draft]) -> set[Module]:
    """The files of the functions that save or restore the optimizers, and those that call these."""
    files = Files(tuple(draft.now for draft in known))
    found: set[Module] = set()
    for home in (home for plan in plans for home in plan.homes):
        for function, (module, _) in savers(Reach("scaler", home, (home.optimizer,)), files).items():
            found |= {module, *(one for one in files.named if uses_in(one, function, module))}
    return found


def related(draft: Draft, known: Sequence[Draft]) -> list[Module]:
    """The files named with this one that it reads, or that read it."""

    def reads(one: Draft, other: Draft) -> bool:
        return not other.places.isdisjoint(one.reads)

    return [other.now for other in known if other is not draft and (reads(draft, other) or reads(other, draft))]


def steps_outside(draft: Draft, known: Sequence[Draft]) -> None:
    """Refuse what a script trains in files that were not named."""
    own = draft.plans[draft.now]
    if own.plans or own.refused or own.already:
        return
    named = {one.now for one in known}
    assert draft.reading is not None
    steps = {step.node: step for step in (shown(one) for one in draft.reading.events if isinstance(one, events.Step))}
    calls: list[tuple[ast.AST, str]] = []
    needed = [draft.now]
    for module, plans in draft.plans.items():
        if module in named or os.path.relpath(module.path) in map(os.path.relpath, draft.aside):
            continue
        homes = {plan.step.node: modules_of(plan) for plan in plans.plans}
        for node in [*homes, *(one for one, _ in plans.refused if one in steps)]:
            frames = steps[node].frame.stack()
            frame = next((one for one in frames if one.caller and one.caller.module is draft.now), None)
            if frame is not None and frame.call is not None:
                calls.append((frame.call, f"{module.path}:{node.lineno}"))  # type: ignore[attr-defined]
                needed += homes.get(node, [module])
    for call, step in calls:
        draft.refuse(call, Refused(f"its training step is in {step}", must_change(list(dict.fromkeys(needed)), ())))


def unfit(draft: Draft, plans: list[StepPlan], known: Sequence[Draft]) -> Refused | None:
    """Why the steps that a script runs cannot be converted as a whole."""
    named = {one.now for one in known}
    reading, settings, dtype = draft.reading, draft.settings, draft.dtype
    assert reading is not None
    needed = list(dict.fromkeys(module for plan in plans for module in modules_of(plan)))
    missing = [module.path for module in needed if module not in named]
    lacks: Refused | None = None
    if missing:
        reason = f"{', '.join(missing)} must change with it"
        lacks = Refused(reason, must_change(needed, ()), [module.path for module in needed])
    if not draft.asked and any(plays(module) for module in (draft.now, *needed)):
        return PLAYS

    def crashes(used: Module, codes: frozenset[str]) -> tuple[Finding, ...]:
        target = "float16" if dtype == "auto" else dtype
        return find(used, replace(settings, codes=codes & default_codes(), target_dtype=target))

    try:
        files = [draft.now, *related(draft, known)]
        used = check_used(draft.now, reading.machine.project, [one.now for one in known], crashes)
        whole_script(reading, dtype, files, used)
        if dtype != "bfloat16":
            check_zeroed(reading, [*files, *used])
            draft.norms = check_norms(draft.now, used, [one.now for one in known])
    except Refused as refusal:
        if lacks is None or not refusal.files:
            return lacks or refusal
        one_command([lacks, refusal])
        lacks.files = (*lacks.files, *refusal.files)
    return lacks
