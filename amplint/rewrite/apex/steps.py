"""The optimizer's steps, and what reads or clips gradients before them."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.group import Group
from amplint.rewrite.apex.scaled import ScaledLoss
from amplint.rewrite.apex.scope import Scope
from amplint.rewrite.fixes import conditions_above, suite_of
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.regions.lifts import nodes_of
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import called_name, place_of
from amplint.source.values import Optimizer

_READS = re.compile(r"grad(s|ient|ients)?(_|$)")
_HARMLESS = re.compile(r"zero_grad|no_grad|set_grad|enable_grad|requires_grad|is_grad|grad_acc|grad_enabled|sync")


def steps_of(
    group: Group,
    reading: Reading,
    optimizers: Collection[Optimizer],
    losses: Iterable[ScaledLoss],
    given: Collection[str],
) -> dict[ast.Call, Optimizer | None]:
    """Each place in the files that steps an optimizer whose losses were scaled, with the optimizer: what the reading
    saw, and in the function of a scaled loss each step() of an optimizer of that name. `given` are those that
    amp.initialize is given, as they are called there."""
    found: dict[ast.Call, Optimizer | None] = {}
    kinds: dict[ast.AST, set[str]] = {}
    for event in reading.events:
        if isinstance(event, events.Step) and event.optimizer in optimizers:
            kinds.setdefault(event.node, set()).add(event.before.kind)
    for event in reading.events:
        if isinstance(event, events.Step) and kinds.get(event.node, set()) & {"managed", "unknown", "entry"}:
            if event.optimizer not in optimizers:
                continue
            match event.node:
                case ast.Call(func=ast.Attribute(attr="step"), args=[], keywords=[]) if event.module in group:
                    found.setdefault(event.node, event.optimizer)
                case ast.Call() if event.module in group:
                    raise Refused("the optimizer's step() takes arguments", "a GradScaler cannot drive a closure")
                case _:
                    raise Refused("the optimizer steps in a file that amplint does not change", BY_HAND)
    for loss in losses:
        statement, names = loss.statement, loss.optimizers
        module = group.of(statement)
        for node in ast.walk(module.scope(statement)):
            match node:
                case ast.Call(func=ast.Attribute(attr="step", value=owner), args=[], keywords=[]) if (
                    node not in found and node not in kinds and module.source(owner) in names
                ):
                    if module.function(node) is module.function(statement):
                        found[node] = None
    if not found:
        raise Refused("amplint does not see the optimizer's step() in this file", BY_HAND)
    for step in found:
        holder = owner_text(group.of(step), step)
        if holder != "self" and any(name.startswith(f"{holder}.") for name in given):
            reason = f"{holder} only holds the optimizer that amp.initialize is given, which a GradScaler steps itself"
            raise Refused(reason, BY_HAND)
    return found


def owner_text(module: Module, step: ast.Call) -> str:
    assert isinstance(step.func, ast.Attribute)
    return module.source(step.func.value)


def step_edits(group: Group, steps: Iterable[ast.Call], scope: Scope, scaled: Collection[ast.stmt]) -> list[Edit]:
    """`optimizer.step()` → `scaler.step(optimizer)`, with one update() after the last step of each iteration, or before
    an optimizer steps again. `scaled` are the statements of the scaled losses."""
    made: list[Edit] = []
    updates: list[tuple[Module, ast.stmt, set[str]]] = []  # each with the optimizers that stepped since the one before
    for step in sorted(steps, key=lambda node: node.lineno):
        module = group.of(step)
        statement = module.statement(step)
        if not isinstance(statement, ast.Expr | ast.Assign):
            raise Refused("the optimizer's step() is part of another statement", BY_HAND)
        scaler, owner = scope.reach(step), owner_text(module, step)
        made += edits.replace(module, step, f"{scaler}.step({owner})")
        for index, (other, place, owners) in reversed(list(enumerate(updates))):
            if other is module and (later := _after_both(module, place, statement, scaled)) is not None:
                if owner in owners:
                    updates.append((module, statement, {owner}))
                else:
                    updates[index] = module, later, owners | {owner}
                break
        else:
            updates.append((module, statement, {owner}))
    for module, place, _ in updates:
        made += edits.insert_after(module, place, [f"{scope.name(place)}.update()"])
    return made


def _after_both(module: Module, first: ast.stmt, second: ast.stmt, scaled: Collection[ast.stmt]) -> ast.stmt | None:
    """The statement after which two steps of one iteration are done; None where they are not of one: in different arms
    or loops, or on conditions of their own. Raises Refused where these share the gradients of one backward."""
    if module.function(first) is not module.function(second):
        return None
    above_first = [first, *(one for one in module.ancestors(first) if isinstance(one, ast.stmt))]
    last = second
    while True:
        block = suite_of(module, last)
        top = next((one for one in above_first if one in block), None)
        if top is not None or not isinstance(module.parents[last], ast.stmt):
            break
        last = module.parents[last]  # type: ignore[assignment]
    if top is None or top is last:
        return None
    ways = [_between(module, one, outer) for one, outer in ((first, top), (second, last))]
    if any(isinstance(one, ast.For | ast.While) for way in ways for one in way):
        return None
    conditional = [any(not isinstance(one, ast.With) for one in way) for way in ways]
    if not all(conditional):
        return last
    between = block[block.index(top) : block.index(last) + 1]
    if any(part in scaled for one in between for part in ast.walk(one)):
        return None
    raise Refused("optimizers step on conditions of their own, after one backward", "step them in one place")


def _between(module: Module, inner: ast.stmt, outer: ast.stmt) -> list[ast.AST]:
    """The statements around one, up to another that holds it."""
    if inner is outer:
        return []
    found: list[ast.AST] = []
    for above in module.ancestors(inner):
        found.append(above)
        if above is outer:
            break
    return [one for one in found if isinstance(one, ast.stmt)]


def unscale_edits(
    group: Group,
    reading: Reading,
    scope: Scope,
    steps: dict[ast.Call, Optimizer | None],
    masters: dict[ast.Call, str],
    scaled: Collection[ast.AST],
) -> list[Edit]:
    """unscale_ before the first statement on the way to each step that clips or reads gradients: apex had unscaled them
    at the end of `with amp.scale_loss`. `masters` are the calls of amp.master_params, with their optimizers; `scaled`
    are the scaled losses, and the calls that lead to them."""
    made: list[Edit] = []
    answered: set[ast.AST] = set()
    training: set[ast.AST | None] = {group.of(step).function(step) for step in steps}
    for step, optimizer in steps.items():
        module = group.of(step)
        uses: set[ast.AST] = _uses(group, reading, step, optimizer, training) | {
            c for c, owner in masters.items() if group.of(c) is module and owner == owner_text(module, step)
        }
        uses |= _suspects(module, step, scaled)
        uses = {use for use in uses if module.function(use) is module.function(step) and use.lineno < step.lineno}  # type: ignore[attr-defined]
        answered |= uses
        if not uses:
            continue
        place = _place(module, uses, step)
        scaler = scope.reach(place)
        made += edits.insert_before(module, place, [f"{scaler}.unscale_({owner_text(module, step)})"])
    if any(call not in answered for call in masters):
        raise Refused("amp.master_params is used where no step() of the optimizer follows", BY_HAND)
    return made


def _uses(
    group: Group,
    reading: Reading,
    step: ast.Call,
    optimizer: Optimizer | None,
    training: Collection[ast.AST | None],
) -> set[ast.AST]:
    """What clips or reads gradients that apex has unscaled. `training` are the functions that step."""
    module = group.of(step)
    found: set[ast.AST] = set()
    for event in reading.events:
        if isinstance(event, events.Clip | events.ReadGradient) and any(
            (one == optimizer or optimizer is None) and gradients.kind in ("managed", "unknown", "entry")
            for one, gradients in event.touched
        ):
            calls = nodes_of(event)
            here = (node for node in calls if node in module.parents)
            place = next((node for node in here if module.function(node) is module.function(step)), None)
            if place is None and (event.frame.entry or any(frame.code in training for frame in event.frame.stack())):
                continue  # nothing calls it, or it is another training step's
            if place is None:
                raise Refused("gradients are clipped or read in another function than the step", BY_HAND)
            found.add(place)
    return found


def _suspects(module: Module, step: ast.Call, scaled: Collection[ast.AST]) -> set[ast.AST]:
    """Calls between backward and step that may read gradients, by their names: log_grads(model)."""
    statement = module.statement(step)
    block = suite_of(module, statement)
    begin = 0
    for index, one in enumerate(block[: block.index(statement)]):
        if any(part in scaled for part in ast.walk(one)):
            begin = index + 1
    found: set[ast.AST] = set()
    for one in block[begin : block.index(statement)]:
        for node in ast.walk(one):
            if isinstance(node, ast.Call) and node not in found:
                name = called_name(node)
                reads = _READS.search(name.lower()) and not _HARMLESS.search(name.lower())
                if reads and not _in_other_arm(module, node, one):
                    found.add(node)
    return found


def _in_other_arm(module: Module, node: ast.AST, top: ast.stmt) -> bool:
    """Whether a call stands in an `else`: what runs there is not what AMP runs, or the events say so."""
    return any(isinstance(one, ast.If) and arm == "orelse" for one, arm in conditions_above(module, node) if one is top)


def _place(module: Module, uses: set[ast.AST], step: ast.Call) -> ast.stmt:
    """The statement before which gradients must be unscaled: the first use, or the loop around it."""
    there = conditions_above(module, step)
    ordered = sorted(uses, key=place_of)
    here = conditions_above(module, ordered[0])
    if any(one not in here for one in there):
        raise Refused(
            "gradients are clipped or read on steps that the optimizer does not take",
            "clip where the optimizer steps, then run amplint again",
        )
    outer = [one for one in here if one not in there]
    loops = [index for index, (one, _) in enumerate(outer) if isinstance(one, ast.For | ast.While)]
    own = outer[loops[-1] + 1 :] if loops else outer
    place = outer[loops[-1]][0] if loops else module.statement(ordered[0])
    for use in ordered[1:]:
        if any(one not in conditions_above(module, use) for one in own):
            place = next(one for one, _ in reversed(own))
            break
    assert isinstance(place, ast.stmt)
    return place


def master_edits(module: Module, call: ast.Call, only: bool) -> list[Edit]:
    """`amp.master_params(optimizer)` → the parameters themselves: the model's, where the optimizer has them all, as it
    may where it is the only one."""
    optimizer = module.source(call.args[0])
    model = (_model_in_else(module, call) or _model_of(module, optimizer, call)) if only else ""
    if model:
        return edits.replace(module, call, f"{model}.parameters()")
    return edits.replace(module, call, f'(p for group in {optimizer}.param_groups for p in group["params"])')


def _model_in_else(module: Module, call: ast.Call) -> str:
    """The model whose parameters() the same function is given in the `else`, where AMP is off."""
    outer = module.parents[call]
    branch = module.parents[module.statement(call)]
    if isinstance(outer, ast.Call) and outer.args[:1] == [call] and isinstance(branch, ast.If):
        for node in (part for one in branch.orelse for part in ast.walk(one)):
            if isinstance(node, ast.Call) and module.source(node.func) == module.source(outer.func):
                return _parameters_of(module, node.args)
    return ""


def _parameters_of(module: Module, arguments: list[ast.expr]) -> str:
    """`model`, where the first argument is `model.parameters()`."""
    match arguments[:1]:
        case [ast.Call(func=ast.Attribute(attr="parameters", value=owner), args=[], keywords=[])]:
            return module.source(owner) if isinstance(owner, ast.Name | ast.Attribute) else ""
    return ""


def _model_of(module: Module, optimizer: str, place: ast.Call) -> str:
    """The model whose parameters() every assignment of the optimizer is given, first and whole."""
    found = set()
    function = module.function(place)
    for node in ast.walk(module.tree):
        match node:
            case ast.Assign(targets=[target], value=ast.Call() as value) if module.source(target) == optimizer:
                if module.function(node) is not function and not optimizer.startswith("self."):
                    return ""
                found.add(_parameters_of(module, value.args))
    return found.pop() if len(found) == 1 else ""


def first_of(reading: Reading, steps: Collection[ast.Call]) -> events.Step:
    """The first of the steps that the reading met."""
    for event in reading.events:
        if isinstance(event, events.Step) and event.node in steps:
            return event
    raise Refused("none of its steps is seen to be taken", BY_HAND)
