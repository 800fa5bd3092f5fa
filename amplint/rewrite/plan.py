"""What goes where: for each training step of a script, whether and how it becomes an AMP step, or why not."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from amplint.rewrite.islands.arrays import array_casts
from amplint.rewrite.islands.float32 import Cast, partition
from amplint.rewrite.islands.handed import handed_logarithms
from amplint.rewrite.islands.stores import index_stores
from amplint.rewrite.refusals.frameworks import framework, runs_backward
from amplint.rewrite.refusals.idle import idle
from amplint.rewrite.refusals.refused import BY_HAND, KEEP, Elsewhere, Refused
from amplint.rewrite.refusals.unfit import by_hand, whole_script
from amplint.rewrite.regions.inline import follows, forward_in, lines_for
from amplint.rewrite.regions.lifts import common, node_in, without_gradients_first
from amplint.rewrite.regions.named import Named
from amplint.rewrite.regions.regions import Region, regions_of
from amplint.rewrite.scaler.gradients import dropped, handled, handled_inside, hooks, unscale_at
from amplint.rewrite.scaler.home import Home, home_of
from amplint.rewrite.scaler.wrapped import shown
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import place_of
from amplint.source.values import Scaler


class Part(NamedTuple):
    """A stretch that runs under autocast: its (first) forward, its statements, and what a loss behind it needs in
    float32."""

    forward: events.Forward
    region: Region
    casts: tuple[Cast, ...] = ()
    named: tuple[Named, ...] = ()  # forwards that move to its end
    before: ast.stmt | None = None  # where it stands, if there is nothing else in it
    cached: bool = True  # whether cast copies of the weights may be kept for its later forwards

    @property
    def statements(self) -> Region:
        return self.region or ((self.before,) if self.before else ())


@dataclass(frozen=True)
class StepPlan:
    """One training step: where its parts stand."""

    step: events.Step
    backward: events.Backward  # the first
    create: events.Create | None
    home: Home
    forward: events.Forward
    region: tuple[ast.stmt, ...]  # from the forward to the last statement that derives the loss
    parts: tuple[Part, ...] = ()  # all regions, in the order of the text; none where all is float32
    kept: tuple[str, ...] = ()  # what stays in float32 between and behind them
    backwards: tuple[events.Backward, ...] = ()
    arrays: tuple[ast.expr, ...] = ()  # what needs float32 to become a NumPy array
    summed: bool = False  # whether the loss is a sum over the batch: as large as a scaled mean already
    handled: tuple[ast.AST, ...] = ()  # where its gradients are clipped or read, as that shows in one function
    dropped: tuple[ast.AST, ...] = ()  # where they are set to zero
    inside: tuple[ast.AST, ...] = ()  # where the wrapper that takes the step does so
    others: tuple[Home, ...] = ()  # of other callers, which make optimizers of their own
    half: bool = False  # whether it is under autocast already, and only lacks its scaler
    scaler: str = ""  # the scaler that it goes through already: it only lacks autocast

    @property
    def homes(self) -> tuple[Home, ...]:
        return self.home, *self.others

    @property
    def module(self) -> Module:
        return self.step.module

    def unscale_at(self, module: Module) -> ast.stmt | None:
        """The statement before which its gradients must be unscaled."""
        return unscale_at(module, self.step, self.backwards, self.handled, self.home.loop, self.dropped)


@dataclass
class Plans:
    """All training steps of a script, by the place of the step."""

    plans: list[StepPlan] = field(default_factory=list)
    refused: list[tuple[ast.AST, Refused]] = field(default_factory=list)
    already: list[ast.AST] = field(default_factory=list)
    off: list[ast.AST] = field(default_factory=list)  # what a script does where its own switch is off
    halves: dict[ast.AST, StepPlan | Refused] = field(default_factory=dict)  # of those, what lacks a scaler


def make_plans(
    reading: Reading, dtype: str, named: Sequence[Module] = (), related: Sequence[Module] = (), own: bool = True
) -> Plans:
    """Look at every step that the reading met in its own file; of the files `named` with it, some are `related`: they
    read it, or it reads them. `own` is False for another file that the reading went through: only the steps that it met
    count."""
    made = Plans()
    module = reading.module
    by_node: dict[ast.AST, list[events.Step]] = {}
    for event in (shown(one) for one in reading.events if isinstance(one, events.Step)):
        if event.module is module:
            by_node.setdefault(event.node, []).append(event)
    by_node = {node: steps for node, steps in by_node.items() if not idle(reading, steps)}
    managed = framework(module, named)
    inside = {
        event.frame.code
        for event in reading.events
        if isinstance(event, events.Forward) and event.grad and event.region is not None and not event.region.assumed
    }
    in_amp = [step for steps in by_node.values() for step in steps if _in_amp(step)]
    for node, steps in by_node.items():
        try:
            if managed and all(step.before.kind in ("managed", "unknown") for step in steps):
                continue
            if any(step in in_amp for step in steps):
                if (scaler := _scaled_only(reading, steps)) and dtype == "float16":
                    made.plans.append(_plan(reading, steps, dtype, related, scaler=scaler))
                    continue
                made.already.append(node)
                if all(step.scaler is None and step.before.kind == "plain" and step.before.region for step in steps):
                    made.halves[node] = _half(reading, steps, dtype, related)
            elif any(_same_training(step, other) for step in steps for other in in_amp):
                made.off.append(node)
            elif any(step.frame.code in inside for step in steps):
                made.already.append(node)
            elif managed and managed.runs(module, node):
                made.refused.append((node, managed.refusal_of(module, node)))
            else:
                made.plans.append(_plan(reading, steps, dtype, related))
        except Refused as refusal:
            made.refused.append((node, refusal))
    if own and not (made.plans or made.refused or made.already):
        if managed:
            (made.already.append if managed.done else made.refused.append)(managed.entry)  # type: ignore[arg-type]
        else:
            _without_step(reading, made)
    if made.plans and not any(plan.parts or plan.half for plan in made.plans):
        whole = Refused("a gradient penalty is a part of all that it computes, and stays in float32", KEEP)
        made.refused += [(plan.step.node, whole) for plan in made.plans]
        made.plans = []
    return made


def _without_step(reading: Reading, made: Plans) -> None:
    """Backward calls that no optimizer's step follows. Where nothing steps or changes weights, nothing is trained."""
    module = reading.module
    if (runs := runs_backward(module)) is not None:
        made.refused.append(runs)
    called = {node.attr for node in ast.walk(module.tree) if isinstance(node, ast.Attribute)}
    stepping = any("step" in name for name in called)
    if not stepping and not by_hand(module):
        return
    for event in reading.events:
        if not isinstance(event, events.Backward) or event.module is not module or event.scaler or event.managed:
            continue
        if any(node is event.node for node, _ in made.refused):
            continue
        if {"first_step", "second_step"} <= called:
            refusal = Refused("its optimizer steps twice on one batch (SAM), which a GradScaler cannot drive", KEEP)
        elif stepping:
            refusal = Refused("amplint does not see which optimizer steps after this backward", BY_HAND)
        else:
            reason = "no optimizer steps after this backward: the parameters are updated by hand"
            refusal = Refused(reason, "use an optimizer from torch.optim")
        made.refused.append((event.node, refusal))


def _same_training(step: events.Step, other: events.Step) -> bool:
    return step.optimizer == other.optimizer or step.frame.code is other.frame.code


def _in_amp(step: events.Step) -> bool:
    before = step.before
    under = before.region is not None and not before.region.assumed
    return step.scaler is not None or before.kind in ("managed", "scaled", "unscaled") or under


def _half(reading: Reading, steps: list[events.Step], dtype: str, together: Sequence[Module]) -> StepPlan | Refused:
    """A step whose forward and loss are under autocast, without a scaler."""
    try:
        return _plan(reading, steps, dtype, together, half=True)
    except Refused as refusal:
        return refusal


def _scaled_only(reading: Reading, steps: list[events.Step]) -> str:
    """The scaler of a step in full precision: what is scaled was never under autocast. "" where there is none."""
    module, node = reading.module, steps[0].node
    if not all(isinstance(one.scaler, Scaler) and one.before.kind in ("scaled", "unscaled") for one in steps):
        return ""
    if "autocast" in module.text or not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return ""
    if any(isinstance(one, events.Enter | events.Cast | events.HandOver) for one in reading.events):
        return ""
    return module.source(node.func.value)


def _plan(
    reading: Reading,
    steps: list[events.Step],
    dtype: str,
    together: Sequence[Module],
    half: bool = False,
    scaler: str = "",
) -> StepPlan:
    module, step = reading.module, steps[0]
    whole_script(reading, dtype, (module, *together))
    if any(one.optimizer.closure or one.closure for one in steps):
        raise Refused("its step() runs the backward in a closure", "a GradScaler cannot drive it: keep float32")
    here = Home(module, module.statement(step.node), "", step.frame.code)  # bfloat16 needs no scaler
    if scaler:
        homes = [here]
    else:
        steps, homes = _homes(steps) if dtype != "bfloat16" else (steps, [here])
        step = steps[0]
    backwards = [o for one in steps for o in one.before.origins if isinstance(o, events.Backward)]
    if not backwards:
        if step.frame.entry and isinstance(step.frame.code, ast.FunctionDef):
            reason = f"no backward was seen before this step: what calls {step.frame.name}() may run it"
            raise Refused(reason, "convert both by hand")
        raise Refused("no backward was seen before this step", BY_HAND)
    if any(one.module is not module for one in backwards):
        raise Refused("backward and step are in different files", BY_HAND)
    regions = _forwards(reading, step) if half else regions_of(reading, backwards)
    distinct = {backward.node: backward for backward in reversed(backwards)}
    backwards = sorted(distinct.values(), key=lambda one: place_of(one.node))
    if any(_after(one, step) for one in backwards):
        raise Refused("its gradients are in part those of the iteration before", "call zero_grad() before the backward")
    parts, kept = ((), ()) if half else _parts(reading, regions, dtype, backwards)
    forward, region = regions[0] if regions else (parts[0].forward, ())
    low = dtype != "float16"
    arrays = tuple(dict.fromkeys(one for part in parts if low for one in array_casts(reading, part.statements)))
    hooks(module)
    create = next((e for e in reading.events if isinstance(e, events.Create) and e.value == step.optimizer), None)
    return StepPlan(
        step,
        backwards[0],
        create,
        homes[0],
        forward,
        region,
        parts,
        kept,
        tuple(backwards),
        arrays,
        _summed(reading, backwards),
        handled(reading, steps),
        dropped(reading, steps),
        handled_inside(reading, step),
        tuple(homes[1:]),
        half,
        scaler,
    )


def _forwards(reading: Reading, step: events.Step) -> list[tuple[events.Forward, Region]]:
    """The forwards of a step that is under autocast already, for which nothing is left to do."""
    found: list[tuple[events.Forward, Region]] = [
        (event, ())
        for event in reading.events
        if isinstance(event, events.Forward) and event.frame.code is step.frame.code and event.region is not None
    ]
    if not found:
        raise Refused("its forward is not in the function that steps", BY_HAND)
    return found


def _homes(steps: list[events.Step]) -> tuple[list[events.Step], list[Home]]:
    """The steps whose optimizer can be followed to where it is made, and these places."""
    found: list[events.Step] = []
    homes: list[Home] = []
    lost: Elsewhere | None = None
    for one in steps:
        try:
            home = home_of(one)
        except Elsewhere as elsewhere:
            lost = elsewhere
            continue
        found.append(one)
        if not any(home.same(other) for other in homes):
            homes.append(home)
    if lost is not None and not homes:
        raise lost
    return found, homes


def _after(backward: events.Backward, step: events.Step) -> bool:
    """Whether a backward stands behind the step, in the innermost function that leads to both."""
    frame = common(step, backward)
    here = node_in(backward, frame.code) if frame is not None else None
    there = node_in(step, frame.code) if frame is not None else None
    return here is not None and there is not None and place_of(here) > place_of(there)


def merged_parts(reading: Reading, plans: Sequence[StepPlan], dtype: str) -> tuple[Part, ...]:
    """The regions of all steps, those that share statements as one."""
    if any(plan.half for plan in plans):
        return ()
    nodes = {one.node for plan in plans for one in plan.backwards}
    backwards = [one for one in reading.events if isinstance(one, events.Backward) and one.node in nodes]
    return _parts(reading, regions_of(reading, backwards), dtype, backwards, whole=True)[0]


def _parts(
    reading: Reading,
    regions: Sequence[tuple[events.Forward, Region]],
    dtype: str,
    backwards: Sequence[events.Backward],
    whole: bool = False,
) -> tuple[tuple[Part, ...], tuple[str, ...]]:
    """The stretches under autocast, and what stays in float32 between them. A loss without a name ends its stretch."""
    made = partition(reading, regions, dtype, whole)
    parts = [Part(*low, cached=not without_gradients_first(reading, low.region)) for low in made.low]
    more = [index_stores(reading, one.region) if one.region else () for one in parts]
    more[:1] = [(*one, *handed_logarithms(reading.module)) for one in more[:1]]
    parts = [one._replace(casts=(*one.casts, *casts)) for one, casts in zip(parts, more, strict=True)]
    for line in lines_for(reading, backwards):
        index = next((i for i, one in enumerate(parts) if follows(reading.module, line.statement, one.region)), None)
        if index is None:
            parts.append(Part(forward_in(reading, line.statement, backwards), (), (), (line,), line.statement))
        else:
            parts[index] = parts[index]._replace(named=(*parts[index].named, line))
    return tuple(sorted(parts, key=lambda one: place_of(one.statements[0]))), tuple(made.kept)


_SUMS = (("reduction", "sum"), ("size_average", False))


def _summed(reading: Reading, backwards: Sequence[events.Backward]) -> bool:
    """Whether a loss that is trained on has reduction="sum", or what that was once, and is not divided by the number of
    its terms."""
    codes = {backward.frame.code for backward in backwards}
    return any(
        isinstance(event, events.Loss | events.Operation)
        and event.grad
        and isinstance(event.node, ast.Call)
        and any(frame.code in codes for frame in event.frame.stack())
        and any(
            (keyword.arg, getattr(keyword.value, "value", None)) in _SUMS
            for call in (event.node, _made_by(event.module, event.node))
            if call is not None
            for keyword in call.keywords
        )
        and not _averaged(event.module, event.node)
        for event in reading.events
    )


def _averaged(module: Module, call: ast.Call) -> bool:
    """Whether the result of a call is divided: on the spot, or by the name that it gets."""
    inner: ast.AST = call
    for above in module.ancestors(call):
        if isinstance(above, ast.BinOp) and isinstance(above.op, ast.Div) and above.left is inner:
            return True
        if isinstance(above, ast.stmt):
            break
        inner = above
    names = {ast.unparse(one) for one in getattr(module.statement(call), "targets", ())}
    for node in ast.walk(module.scope(call)):
        match node:
            case ast.BinOp(op=ast.Div(), left=value) | ast.AugAssign(op=ast.Div(), target=value):
                if ast.unparse(value) in names:
                    return True
    return False


def _made_by(module: Module, call: ast.Call) -> ast.Call | None:
    """The constructor of the loss module that a call runs: `criterion = nn.MSELoss(reduction="sum")`."""
    if isinstance(call.func, ast.Name | ast.Attribute):
        text = module.source(call.func)
        for node in ast.walk(module.tree):
            match node:
                case ast.Assign(targets=[target], value=ast.Call() as made) if module.source(target) == text:
                    return made
    return None
