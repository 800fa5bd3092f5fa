"""What goes where: for each training step of a script, whether and how it becomes an AMP step, or why not."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from amplint.rewrite.arrays import array_casts
from amplint.rewrite.fixes import conditions_above
from amplint.rewrite.float32 import Cast, split
from amplint.rewrite.frameworks import framework
from amplint.rewrite.home import Home, home_of
from amplint.rewrite.lifts import common, node_in
from amplint.rewrite.reads import looked_at
from amplint.rewrite.refused import BY_HAND, Elsewhere, Refused
from amplint.rewrite.regions import Region, regions_of
from amplint.rewrite.unfit import by_hand, whole_script
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module


class Part(NamedTuple):
    """A stretch that runs under autocast: its (first) forward, its statements, and what a loss behind it needs in
    float32."""

    forward: events.Forward
    region: Region
    casts: tuple[Cast, ...] = ()


@dataclass(frozen=True)
class StepPlan:
    """One training step: where its parts stand."""

    step: events.Step
    backward: events.Backward  # the first
    create: events.Create | None
    home: Home
    forward: events.Forward
    region: tuple[ast.stmt, ...]  # from the forward to the last statement that derives the loss
    parts: tuple[Part, ...] = ()  # all regions, in the order of the text
    backwards: tuple[events.Backward, ...] = ()
    arrays: tuple[ast.expr, ...] = ()  # what needs float32 to become a NumPy array
    summed: bool = False  # whether the loss is a sum over the batch: as large as a scaled mean already
    clips: tuple[ast.AST, ...] = ()
    reads: tuple[ast.AST, ...] = ()
    others: tuple[Home, ...] = ()  # of other callers, which make optimizers of their own

    @property
    def homes(self) -> tuple[Home, ...]:
        return self.home, *self.others

    @property
    def module(self) -> Module:
        return self.step.module


@dataclass
class Plans:
    """All training steps of a script, by the place of the step."""

    plans: list[StepPlan] = field(default_factory=list)
    refused: list[tuple[ast.AST, Refused]] = field(default_factory=list)
    already: list[ast.AST] = field(default_factory=list)


def make_plans(reading: Reading, dtype: str, together: Sequence[Module] = (), own: bool = True) -> Plans:
    """Look at every step that the reading met in its own file; `together` are the files named with it. `own` is False
    for another file that the reading went through: only the steps that it met count."""
    made = Plans()
    module = reading.module
    by_node: dict[ast.AST, list[events.Step]] = {}
    for event in reading.events:
        if isinstance(event, events.Step) and event.module is module:
            by_node.setdefault(event.node, []).append(event)
    managed = framework(module, together)
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
                made.already.append(node)
            elif any(_same_training(step, other) for step in steps for other in in_amp):
                continue  # what the script does where its own switch is off
            elif any(step.frame.code in inside for step in steps):
                made.already.append(node)
            elif managed and managed.runs(module, node):
                made.refused.append((node, managed.refusal))
            else:
                made.plans.append(_plan(reading, steps, dtype, together))
        except Refused as refusal:
            made.refused.append((node, refusal))
    if own and not (made.plans or made.refused or made.already):
        if managed:
            (made.already.append if managed.done else made.refused.append)(managed.entry)  # type: ignore[arg-type]
        else:
            _without_step(reading, made)
    return made


def _without_step(reading: Reading, made: Plans) -> None:
    """Backward calls that no optimizer's step follows. Where nothing steps or changes weights, nothing is trained."""
    module = reading.module
    stepping = any(isinstance(node, ast.Attribute) and "step" in node.attr for node in ast.walk(module.tree))
    if not stepping and not by_hand(module):
        return
    for event in reading.events:
        if not isinstance(event, events.Backward) or event.module is not module or event.scaler or event.managed:
            continue
        if any(node is event.node for node, _ in made.refused):
            continue
        if stepping:
            refusal = Refused("amplint does not see which optimizer steps after this backward", BY_HAND)
        else:
            reason = "no optimizer steps after this backward: the parameters are updated by hand"
            refusal = Refused(reason, "use an optimizer from torch.optim")
        made.refused.append((event.node, refusal))


def _same_training(step: events.Step, other: events.Step) -> bool:
    return step.optimizer == other.optimizer or step.frame.code is other.frame.code


def _in_amp(step: events.Step) -> bool:
    before = step.before
    return step.scaler is not None or before.kind in ("managed", "scaled", "unscaled") or before.region is not None


def _plan(reading: Reading, steps: list[events.Step], dtype: str, together: Sequence[Module]) -> StepPlan:
    module, step = reading.module, steps[0]
    whole_script(reading, dtype, (module, *together))
    if any(one.optimizer.closure or one.closure for one in steps):
        raise Refused("its step() runs the backward in a closure", "a GradScaler cannot drive it: keep float32")
    steps, homes = _homes(steps)
    step = steps[0]
    backwards = [o for one in steps for o in one.before.origins if isinstance(o, events.Backward)]
    if not backwards:
        raise Refused("no backward was seen before this step", BY_HAND)
    regions = regions_of(reading, backwards)
    distinct = {backward.node: backward for backward in reversed(backwards)}
    backwards = sorted(distinct.values(), key=lambda one: _place(one.node))
    if any(one.module is not module for one in backwards):
        raise Refused("backward and step are in different files", BY_HAND)
    if any(_after(one, step) for one in backwards):
        raise Refused("its gradients are in part those of the iteration before", "call zero_grad() before the backward")
    parts = tuple(Part(forward, *split(reading, one)) for forward, one in regions)
    forward, region, _ = parts[0]
    low = dtype != "float16"
    arrays = tuple(dict.fromkeys(one for part in parts if low for one in array_casts(reading, part.region)))
    optimizers = {one.optimizer for one in steps}
    clips: list[events.Event] = []
    reads: list[events.Event] = []
    for event in reading.events:
        if isinstance(event, events.Clip | events.ReadGradient) and any(o in optimizers for o, _ in event.touched):
            (clips if isinstance(event, events.Clip) else reads).append(event)
    if any(event.frame.code is not step.frame.code for event in (*clips, *reads)):
        raise Refused("gradients are clipped or read in another function", BY_HAND)
    create = next((e for e in reading.events if isinstance(e, events.Create) and e.value == step.optimizer), None)
    return StepPlan(
        step,
        backwards[0],
        create,
        homes[0],
        forward,
        region,
        parts,
        tuple(backwards),
        arrays,
        _summed(reading, backwards),
        tuple(dict.fromkeys(event.node for event in clips)),
        tuple(dict.fromkeys([*(event.node for event in reads), *looked_at(backwards[-1], step)])),
        tuple(homes[1:]),
    )


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
    return here is not None and there is not None and _place(here) > _place(there)


def merged_parts(reading: Reading, plans: Sequence[StepPlan]) -> tuple[Part, ...]:
    """The regions of all steps, those that share statements as one."""
    if len(plans) == 1:
        return plans[0].parts
    nodes = {one.node for plan in plans for one in plan.backwards}
    backwards = [one for one in reading.events if isinstance(one, events.Backward) and one.node in nodes]
    regions = regions_of(reading, backwards)
    return tuple(Part(forward, *split(reading, region)) for forward, region in regions)


def _summed(reading: Reading, backwards: Sequence[events.Backward]) -> bool:
    """Whether a loss that is trained on has reduction="sum", and is not divided by the number of its terms."""
    codes = {backward.frame.code for backward in backwards}
    return any(
        isinstance(event, events.Loss | events.Operation)
        and event.grad
        and isinstance(event.node, ast.Call)
        and any(frame.code in codes for frame in event.frame.stack())
        and any(
            keyword.arg == "reduction" and getattr(keyword.value, "value", None) == "sum"
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
    for node in ast.walk(module.function(call) or module.tree):
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


def _place(node: ast.AST) -> tuple[int, int]:
    return node.lineno, node.col_offset  # type: ignore[attr-defined]


def unscale_at(plan: StepPlan, module: Module) -> ast.stmt | None:
    """The statement before which the gradients must be unscaled: the first that clips or reads them, or the loop around
    it. None where nothing does."""
    if not plan.clips and not plan.reads:
        return None
    first = min((*plan.clips, *plan.reads), key=_place)
    backward, step = plan.backwards[-1].node, plan.step.node
    if not _place(backward) < _place(first) < _place(step):
        raise Refused("gradients are clipped or read in an unusual place", BY_HAND)
    here = conditions_above(module, first)
    there = [one for one in conditions_above(module, step) if one[0] is not plan.home.loop or one in here]
    if any(one not in here for one in there):
        raise Refused("gradients are clipped or read on steps that the optimizer does not take", BY_HAND)
    loops = [one for one, _ in here if isinstance(one, ast.For | ast.While) and one not in {c for c, _ in there}]
    outermost = loops[-1] if loops else module.statement(first)
    assert isinstance(outermost, ast.stmt)
    return outermost
