"""FP32 → AMP: plans the training steps of all files that were named, and says what became of each."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from amplint.config import Settings
from amplint.findings import Finding, Severity
from amplint.rewrite import edits
from amplint.rewrite.apex.scripts import migrated
from amplint.rewrite.asleep import asleep
from amplint.rewrite.convert import Unit, converted
from amplint.rewrite.groups import groups_of, related, steps_outside, unfit
from amplint.rewrite.islands.norms import guarded
from amplint.rewrite.mend import Repair, asked, in_words, mend
from amplint.rewrite.models.halves import without_casts
from amplint.rewrite.plan import Plans, StepPlan, make_plans
from amplint.rewrite.refusals.refused import BY_HAND, Elsewhere, Refused, one_command
from amplint.rewrite.scaler.definitions import other_users
from amplint.rewrite.scaler.reach import must_change
from amplint.rewrite.scaler.wrapped import Wrapped, shown
from amplint.source import events
from amplint.source.interpret.entries import Reading, read
from amplint.source.interpret.project import together
from amplint.source.module import Module
from amplint.source.notebook import place
from amplint.source.suppress import fp32_lines

T = TypeVar("T")
Guard = Callable[[Module, Callable[[], T]], T | None]


@dataclass
class Result:
    """The new text of a file, a line per training step, and whether one was refused."""

    text: str
    lines: list[str] = field(default_factory=list)
    refused: bool = False
    steps: bool = True  # whether it holds a training step


@dataclass(eq=False)
class Draft:
    """A file on its way: after its safe fixes, its reading, and what was planned for each file with steps in it."""

    module: Module
    settings: Settings
    along: frozenset[str]
    dtype: str
    asked: bool
    mended: Repair
    text: str
    reading: Reading | None = None
    places: frozenset[str] = frozenset()  # what its path may be called
    reads: frozenset[str] = frozenset()  # the files that its reading read or looked for
    plans: dict[Module, Plans] = field(default_factory=dict)
    lines: list[tuple[int, str]] = field(default_factory=list)
    refused: bool = False
    converted: bool = False
    failed: bool = False
    flag: str | None = None  # under which its models were cast to float16 before
    migrated: list[str] = field(default_factory=list)  # what was done about apex.amp
    aside: frozenset[str] = frozenset()  # files that were named, too, and are refused
    norms: Sequence[str] = ()  # files that were named, too, whose layers need float32 where it is converted
    steadied: bool = False  # its own layers got it

    @property
    def now(self) -> Module:
        return self.mended.module

    def say(self, node: ast.AST, words: str) -> None:
        row = self.now.range(node).start.row
        self.lines.append((row, f"{place(self.module.path, row, self.now.text)}: {words}"))

    def refuse(self, node: ast.AST, refusal: Refused | edits.CannotEdit) -> None:
        self.say(node, f"refused: {refusal}; {getattr(refusal, 'advice', BY_HAND)}")
        self.refused = True

    def keeps(self, node: ast.AST) -> bool:
        """`# amplint: fp32 reason` on the step, on a loop around it, or on its function."""
        kept = set(fp32_lines(self.now.text))
        return any(getattr(one, "lineno", 0) in kept for one in (self.now.statement(node), *self.now.ancestors(node)))

    def result(self) -> Result | None:
        if self.failed:
            return None
        if self.migrated and not self.lines:
            self.lines.append((0, f"{self.module.path}: completed: {'; '.join(self.migrated)}"))
        steps, fixed = bool(self.lines) or self.converted, self.mended.fixed
        if not steps and fixed:
            self.lines.append((0, f"{self.module.path}: fixed: {in_words(fixed)}"))
        if self.steadied:
            self.lines.append((0, f"{self.module.path}: fixed: the variance of its layers is taken in float32"))
        done = any(plans.already for plans in self.plans.values())
        text = self.module.text if self.refused and not done else self.text  # never a partial conversion
        return Result(text, [line for _, line in sorted(self.lines)], self.refused, steps)


def fix(module: Module, settings: Settings, options: dict[str, Any]) -> Result:
    """Apply the safe fixes, then instrument what runs in full precision; nothing is converted in part."""
    (result,) = fix_all([module], settings, options)
    assert result is not None
    return result


def fix_all(
    modules: Sequence[Module], settings: Settings, options: dict[str, Any], guard: Guard[Any] = lambda _, work: work()
) -> list[Result | None]:
    """The same for files that were named together: where a step in one needs changes in others, they are made in all or
    in none. `guard` does a file's work, and returns None where that cannot be done. apex.amp is migrated first."""
    dtype = options["dtype"]
    ours = [module for module in modules if not module.is_foreign]
    if len(ours) < len(modules):
        results = iter(fix_all(ours, settings, options, guard))
        return [Result(one.text) if one.is_foreign else next(results) for one in modules]
    moved = migrated(modules, lambda one: asked(settings, one.path, options, dtype)[0], guard, dtype)
    rest = [one for one in modules if one not in moved or ((done := moved[one]) is not None and not done.refused)]
    now = [moved[one].module if one in moved else one for one in rest]  # type: ignore[union-attr]
    words = {one.module.path: one.words for one in moved.values() if one is not None}
    options = {**options, "migrated": words, "aside": frozenset(one.path for one in modules if one not in rest)}
    outcomes = dict(zip(rest, _instrument(now, settings, options, guard), strict=True))
    for module, outcome in moved.items():
        if outcome is not None and outcome.refused:
            rows = sorted({module.range(place).start.row for place in outcome.places})
            said = f"refused: {outcome.refused}; {outcome.refused.advice}"
            outcomes[module] = Result(module.text, [f"{module.path}:{row}: {said}" for row in rows], refused=True)
    return [outcomes.get(one) for one in modules]


def _instrument(
    modules: Sequence[Module], settings: Settings, options: dict[str, Any], guard: Guard[Any]
) -> list[Result | None]:
    drafts = [guard(one, partial(_draft, one, settings, options)) for one in modules]
    with together([draft.now for draft in drafts if draft is not None]):
        for draft in drafts:
            if draft is not None:
                draft.failed = not guard(draft.module, partial(_look, draft))
    plain = [_without_casts(draft, settings, options, guard) for draft in drafts]
    if plain != drafts:  # models that are trained in half precision go to autocast, where that is their flag's meaning
        _run(plain, guard)
        if all(draft is None or draft.flag is None or _under(draft) for draft in plain):
            return [None if draft is None else draft.result() for draft in plain]
    _run(drafts, guard)
    return [None if draft is None else draft.result() for draft in drafts]


def _run(drafts: Sequence[Draft | None], guard: Guard[Any]) -> None:
    known = [draft for draft in drafts if draft is not None and not draft.failed]
    with together([draft.now for draft in known]):
        for draft in known:
            draft.failed = not guard(draft.module, partial(_plan, draft, known))
        known = [draft for draft in known if not draft.failed]
        for group in groups_of(known):
            if not guard(group[0].module, partial(_decide, group, known)):
                for draft in group:
                    draft.failed = True
        paths = {path for draft in known if not draft.failed for path in draft.norms}
        for draft in known:
            if not paths.isdisjoint(draft.places) and not draft.refused:
                draft.text, draft.steadied = guarded(draft.now, draft.text), True


def _without_casts(draft: Draft | None, settings: Settings, options: dict[str, Any], guard: Guard[Any]) -> Draft | None:
    """The file without the casts of its models to float16, where it has some; under their flag."""
    if draft is None or draft.failed or draft.reading is None or (found := without_casts(draft.reading)) is None:
        return draft
    plain, flag = found
    made: Draft | None = guard(plain, partial(_draft, plain, settings, options))
    if made is None or not guard(plain, partial(_look, made)):
        return draft
    made.flag = flag
    return made


def _under(draft: Draft) -> bool:
    """Whether a file without its casts has become AMP under the flag that cast."""
    if draft.refused or draft.text == draft.module.text or f"enabled={draft.flag}" not in draft.text + "enabled=":
        return False
    draft.lines = [(row, f"{line}; the casts to float16 are gone") for row, line in draft.lines]
    return True


def _draft(module: Module, settings: Settings, options: dict[str, Any]) -> Draft:
    dtype = options["dtype"]
    if dtype == "auto" and settings.target_device == "cpu":
        dtype = "bfloat16"  # what CPUs have kernels for
    settings, along = asked(settings, module.path, options, dtype)
    mended = mend(module, settings, along, complete=True)
    migrated = options.get("migrated", {}).get(module.path, [])
    asked_for, aside = options.get("asked", True), options.get("aside", frozenset())
    return Draft(module, settings, along, dtype, asked_for, mended, mended.module.text, migrated=migrated, aside=aside)


def _look(draft: Draft) -> bool:
    draft.reading = read(draft.now, draft.settings.roots, draft.settings.apis)
    if unset := asleep(draft.reading):
        draft.reading = read(draft.now, draft.settings.roots, draft.settings.apis, unset=unset)
    draft.reads = frozenset(draft.reading.dependencies)
    path = Path(draft.module.path)
    draft.places = frozenset(map(str, (path, path.absolute(), path.resolve())))
    return True


def _plan(draft: Draft, known: Sequence[Draft]) -> bool:
    """Plan the steps of the file, and of others that it runs."""
    reading = draft.reading
    if reading is None:
        return False
    near = related(draft, known)
    named = [other.now for other in known]
    draft.plans[draft.now] = make_plans(reading, draft.dtype, named, near)
    for module in dict.fromkeys(shown(event).module for event in reading.events if isinstance(event, events.Step)):
        if module is not draft.now:
            draft.plans[module] = make_plans(replace(reading, module=module), draft.dtype, named, near, own=False)
    return True


# -- what becomes of a group ------------------------------------------------------------------------------------------


def _decide(group: list[Draft], known: Sequence[Draft]) -> bool:
    """Convert the steps of a group, or refuse all of them."""
    places = {draft.now: draft for draft in group}
    wanted: list[tuple[Draft, StepPlan]] = []  # with the file that runs it
    for draft in group:
        wanted += _own_steps(draft, group, known)
        steps_outside(draft, known)
    for _, plan in list(wanted):
        home = places[plan.module]
        if home.keeps(plan.step.node):
            home.say(plan.step.node, "kept in float32, as its comment asks")
            wanted = [one for one in wanted if one[1].step.frame.code is not plan.step.frame.code]
    unfitting = {draft: unfit(draft, [plan for one, plan in wanted if one is draft], known) for draft, _ in wanted}
    one_command([refusal for refusal in unfitting.values() if refusal is not None])
    for draft, refusal in unfitting.items():
        if refusal is not None:
            for plan in [plan for one, plan in wanted if one is draft]:
                places[plan.module].refuse(plan.step.node, refusal)
            wanted = [one for one in wanted if one[0] is not draft]
    failed = next((draft for draft in group if draft.refused), None)
    if failed is not None:  # a script is converted as a whole or not at all
        row, line = failed.lines[-1]
        for _, plan in wanted:
            step = f"line {row}" if plan.module is failed.now else line.partition(": ")[0]
            reason = f"the step on {step} of the same script is refused"
            places[plan.module].refuse(plan.step.node, Refused(reason, "see there"))
        return True
    if wanted:
        _convert(group, wanted, [one.now for one in known])
    if any(draft.refused for draft in group):
        for draft in group:
            draft.norms = ()
    return True


def _own_steps(draft: Draft, group: list[Draft], known: Sequence[Draft]) -> Iterator[tuple[Draft, StepPlan]]:
    """The steps to convert in a file, as the scripts of the group run them; the others are told."""
    module = draft.now
    readers = [draft, *(one for one in group if one is not draft and module in one.plans)]
    broken = next(
        (one for one in draft.mended.left if one.severity is Severity.ERROR and one.code.startswith("AMP1")), None
    )
    unfinished = _unfinished(draft, readers)
    already = dict.fromkeys(node for one in readers for node in one.plans[module].already if node not in unfinished)
    for node in already:
        if broken is not None:
            advice = broken.help or BY_HAND
            draft.refuse(node, Refused(f"half done, and {broken.message} ({broken.code})", advice))
        else:
            done = [*draft.migrated, *([in_words(draft.mended.fixed)] if draft.mended.fixed else [])]
            draft.say(node, "completed: " + "; ".join(done) if done else "already AMP" + _lacks(draft.mended.left))
            draft.migrated = draft.migrated[:1]  # the rest is said once
    off = {node for one in readers for node in one.plans[module].off} | _taken_inside(group)
    own = [refusal for _, refusal in draft.plans[module].refused]  # read alone, without what its callers pass
    merged, refused = _merged(module, readers, unfinished, own)
    for node, refusal in refused.items():
        if node in already or node in off or (node in merged and (isinstance(refusal, Elsewhere) or refusal in own)):
            continue  # a script that runs it tells more
        merged.pop(node, None)
        if draft.keeps(node):
            draft.say(node, "kept in float32, as its comment asks")
            continue
        told = _called(refusal, draft, group, known) if isinstance(refusal, Elsewhere) else refusal
        if broken is not None:
            told = Refused(f"half done ({broken.code}: {broken.message}), and {told.reason}", told.advice)
        draft.refuse(node, told)
    yield from (one for node, one in merged.items() if node not in already and node not in off)


def _merged(
    module: Module, readers: Sequence[Draft], unfinished: Collection[ast.AST], own: Collection[Refused]
) -> tuple[dict[ast.AST, tuple[Draft, StepPlan]], dict[ast.AST, Refused]]:
    """The plans of all scripts for each step of a file, and the refusals, where one that another script has tells more
    than the file's own."""
    merged: dict[ast.AST, tuple[Draft, StepPlan]] = {}
    refused: dict[ast.AST, Refused] = {}
    for one in readers:
        plans = one.plans[module]
        halves = [(node, half) for node, half in plans.halves.items() if node in unfinished]
        for plan in [*plans.plans, *(half for _, half in halves if isinstance(half, StepPlan))]:
            node = plan.step.node
            runs, first = merged.get(node, (one, plan))
            others = [home for home in plan.homes if not any(home.same(other) for other in first.homes)]
            merged[node] = runs, replace(first, others=(*first.others, *others))
        for node, refusal in [*plans.refused, *((node, half) for node, half in halves if isinstance(half, Refused))]:
            if node not in refused or isinstance(refused[node], Elsewhere) or refused[node] in own:
                refused[node] = refusal
    return merged, refused


def _taken_inside(group: Sequence[Draft]) -> set[ast.AST]:
    """The steps that wrappers take, which are planned where these are called."""
    plans = (plan for draft in group for made in draft.plans.values() for plan in made.plans)
    return {plan.step.within.node for plan in plans if isinstance(plan.step, Wrapped)}


def _lacks(left: Sequence[Finding]) -> str:
    """What a script that is AMP already could still do with."""
    if not any(one.code in ("AMP116", "AMP133") for one in left):
        return ""
    return "; the scaler's state is not in its checkpoint (amplint check says more)"


def _unfinished(draft: Draft, readers: Sequence[Draft]) -> set[ast.AST]:
    """The steps that are under autocast and lack a scaler, in a file in which nothing else is wrong."""
    errors = [one for one in draft.mended.left if one.severity is Severity.ERROR and one.code.startswith("AMP1")]
    if draft.dtype == "bfloat16" or {one.code for one in errors} != {"AMP101"}:
        return set()
    return {node for one in readers for node in one.plans[draft.now].halves}


def _called(refusal: Elsewhere, draft: Draft, group: Sequence[Draft], known: Sequence[Draft]) -> Refused:
    """Names the files that call the function, where there are any that are not named yet."""
    function, roots = refusal.frame.code, draft.settings.roots
    if isinstance(function, ast.FunctionDef):
        callers = other_users(function, draft.now, [draft.now], roots)
        if callers:
            reason = f"the optimizer comes from the caller of {function.name}(), in {', '.join(callers)}"
            more = other_users(function, draft.now, [one.now for one in known], roots)
            if not more:
                return Refused(f"{reason}, where amplint does not see which one", BY_HAND)
            return Refused(reason, must_change([one.now for one in group], more))
    return refusal


def _convert(group: list[Draft], wanted: list[tuple[Draft, StepPlan]], named: Sequence[Module]) -> None:
    places = {draft.now: draft for draft in group}
    units: dict[tuple[Module, Draft], list[StepPlan]] = {}
    for draft, plan in wanted:
        units.setdefault((plan.module, draft), []).append(plan)
    first = group[0]
    made = [
        Unit(replace(draft.reading, module=module), tuple(plans))
        for (module, draft), plans in units.items()
        if draft.reading is not None
    ]
    readings = [draft.reading for draft in group if draft.reading is not None]
    try:
        texts, said = converted(
            made, [one.now for one in group], named, readings, first.settings, first.along, first.dtype
        )
    except (Refused, edits.CannotEdit) as refusal:
        for _, plan in wanted:
            places[plan.module].refuse(plan.step.node, refusal)
        return
    for module, text in texts.items():
        places[module].text, places[module].converted = text, True
    for plans, words in zip([plan for unit in made for plan in unit.plans], said, strict=True):
        home = places[plans.module]
        words += ["mended " + in_words(home.mended.fixed)] if home.mended.fixed else []
        home.say(plans.step.node, f"{'completed' if plans.half or plans.scaler else 'converted'}: {'; '.join(words)}")
