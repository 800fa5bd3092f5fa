"""What runs under autocast: from a forward to the last statement that derives a loss from it, between the backwards.

Where the forward runs in a function that the loss is returned from, its call is the forward; where the loss is handed
to the function that calls backward, or is a field, the callers are looked through, too.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import NamedTuple

from amplint.rewrite.fixes import suite_of
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.regions.derivation import Region, Trail, of_model, read, stored
from amplint.rewrite.regions.inline import ADVICE, REASON, is_inline, named_loss, runs_forward
from amplint.rewrite.regions.lifts import (
    Lifts,
    Through,
    argument,
    inside,
    lifts_of,
    outside,
    shown,
    standing,
)
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.frames import Frame
from amplint.source.module import FunctionNode, Module
from amplint.source.symbols import fresh
from amplint.source.tree import parameters

__all__ = ["Region", "regions_of", "stored"]


class Level(NamedTuple):
    """One function on the way from the backward outwards: where the backward, or the call that leads to it, stands, and
    what is needed there."""

    frame: Frame
    node: ast.AST
    needed: frozenset[str]


def regions_of(reading: Reading, backwards: Sequence[events.Backward]) -> list[tuple[events.Forward, Region]]:
    """The regions of some backwards, in the order of the text, each with its (first) forward; those that share
    statements are one."""
    found: list[Region] = []
    seen: set[tuple[ast.AST, ...]] = set()
    for backward in backwards:
        way = tuple(standing(backward))
        if way not in seen:
            seen.add(way)
            for region in _of(reading, backward):
                found = _with(reading.module, found, region)
    found.sort(key=lambda one: (one[0].lineno, one[0].col_offset))
    lifts = lifts_of(reading)
    inner = [[node for one in region for node in ast.walk(one) if node in lifts.forwards] for region in found]
    # a region of a loss alone, made from what another method keeps in a field, may stand before its forward
    known = next((shown(lifts.forwards[nodes[0]][0], nodes[0]) for nodes in inner if nodes), None)
    made: list[tuple[events.Forward, Region]] = []
    for region, nodes in zip(found, inner, strict=True):
        if nodes:
            known = shown(lifts.forwards[nodes[0]][0], nodes[0])
        known = known or _unseen(reading.module, lifts, region, backwards)
        made.append((known, region))
    return made


def _unseen(module: Module, lifts: Lifts, region: Region, backwards: Sequence[events.Backward]) -> events.Forward:
    """The forward of a region whose model is called by a method that amplint has not looked into."""
    code = module.scope(region[0])
    frames = (frame for one in backwards for frame in one.frame.stack() if frame.code is code)
    calls = (node for one in region for node in ast.walk(one) if of_model(node, lifts))
    frame, call = next(frames, None), next(calls, None)
    if frame is None or call is None:
        raise Refused("the loss does not come from a forward in the same iteration", BY_HAND)
    return Through(call, frame, (), (), {}, fresh("a model"))


def _with(module: Module, found: list[Region], region: Region) -> list[Region]:
    """The regions with one more, merged with those of its block that it meets."""
    block = suite_of(module, region[0])
    apart: list[Region] = []
    for one in found:
        if one[0] not in block:
            if any(above in one for above in module.ancestors(region[0])):
                return found  # it lies inside another
            if any(above in region for above in module.ancestors(one[0])):
                continue
            apart.append(one)
            continue
        first, last = block.index(one[0]), block.index(one[-1])
        start, end = block.index(region[0]), block.index(region[-1])
        if last < start - 1 or end < first - 1:
            apart.append(one)
            continue
        region = tuple(block[min(first, start) : max(last, end) + 1])
    return [*apart, region]


def _of(reading: Reading, backward: events.Backward) -> list[Region]:
    module, lifts = reading.module, lifts_of(reading)
    if not isinstance(backward.node, ast.Call) or not isinstance(backward.node.func, ast.Attribute):
        raise Refused("the backward has an unusual form", BY_HAND)
    of, _, _ = tensors.provenance((backward.loss,))
    if of:  # what another backward trains may be a part of it, detached
        of = of.union(*(tensors.provenance((e.loss,))[0] for e in reading.events if isinstance(e, events.Backward)))
    receiver = _unscaled(backward.node.func.value) if backward.scaler is not None else backward.node.func.value
    if is_inline(reading, receiver):
        if backward.scaler is not None:
            raise Refused(REASON, ADVICE)
        named_loss(reading, backward)
    levels = _levels(module, lifts, of, backward.frame, backward.node, read(receiver))
    found: list[Region] = []
    made: set[str] = set()
    for level in reversed(levels):  # from the outermost, which makes what the inner ones use
        if level is not levels[-1]:
            made = _handed(level.frame, made)
        trail = Trail(module, lifts, of, set(level.needed), made)
        found += _climb(module, trail, level.node)
        made = trail.made
    if not found and not runs_forward(reading, backward):
        frame, given = levels[-1].frame, parameters(levels[-1].frame.code)
        caller = frame.caller.module if frame.caller is not None and not frame.entry else module
        if caller is not module and any(name in given for name in levels[-1].needed):
            raise Refused(f"the loss is given to {frame.name}() by {caller.path}", BY_HAND)
        raise Refused("the loss does not come from a forward in the same iteration", BY_HAND)
    return found


def _unscaled(receiver: ast.expr) -> ast.expr:
    """The loss in `scaler.scale(loss)`."""
    match receiver:
        case ast.Call(func=ast.Attribute(attr="scale"), args=[loss]):
            return loss
    return receiver


def _handed(frame: Frame, made: set[str]) -> set[str]:
    """What is called how in a function of what its caller has made: fields, parameters, and names of both."""
    fields = {path for one in made if (path := inside(frame, one))}
    given = {name: argument(frame, name) for name in parameters(frame.code)}
    same = made - given.keys() if _around(frame) else set()
    return fields | same | {name for name, value in given.items() if value is not None and read(value) & made}


def _around(frame: Frame) -> bool:
    """Whether the caller is the function (or module) that the called one is defined in: it sees the same variables."""
    return frame.parent is not None and frame.caller is not None and frame.parent.code is frame.caller.code


def _levels(
    module: Module, lifts: Lifts, of: frozenset[object], frame: Frame, node: ast.AST, needed: set[str]
) -> list[Level]:
    """The function of a backward, and its callers as far as they hand it something that it needs."""
    levels: list[Level] = []
    while True:
        levels.append(Level(frame, node, frozenset(needed)))
        trail = Trail(module, lifts, of, set(needed), set())  # type: ignore[arg-type]
        _climb(module, trail, node)
        call, caller = frame.call, frame.caller
        if frame.entry or not isinstance(call, ast.Call) or caller is None or caller.module is not module:
            return levels
        if _repeats(module, lifts, node):
            return levels  # what its caller computes was there before the first iteration
        needed = set()
        for name in trail.needed:
            root = name.partition(".")[0]
            if path := outside(frame, name):
                needed.add(path)
            elif (given := argument(frame, root)) is not None:
                if any(inner in lifts.forwards for inner in ast.walk(given)):
                    raise Refused(REASON, ADVICE)
                needed |= read(given)
            elif _around(frame) and root not in parameters(frame.code):
                needed.add(name)  # a variable of the function or module around
        if not needed:
            return levels
        frame, node = caller, call


def _repeats(module: Module, lifts: Lifts, node: ast.AST) -> bool:
    """Whether a loop around a node, in its function, takes steps."""
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode):
            return False
        if isinstance(above, ast.For | ast.While) and any(one in lifts.steps for one in ast.walk(above)):
            return True
    return False


def _climb(module: Module, trail: Trail, node: ast.AST) -> list[Region]:
    """The regions in the block of the backward, and in those around it that the same iteration runs."""
    blocks: list[tuple[list[ast.stmt], set[str]]] = []
    statement: ast.AST = module.statement(node)
    while isinstance(statement, ast.stmt):
        block = suite_of(module, statement)
        blocks.append((block[: block.index(statement)], set(trail.needed)))
        trail.deriving(blocks[-1][0])
        statement = module.parents[statement]
        while isinstance(statement, ast.ExceptHandler | ast.match_case):
            statement = module.parents[statement]
        if isinstance(statement, ast.For | ast.While) and not any(n in trail.lifts.steps for n in ast.walk(statement)):
            if isinstance(statement, ast.For):
                trail.needed |= read(statement.iter) if stored(statement.target) & trail.needed else set()
                trail.needed -= stored(statement.target)
        elif not isinstance(statement, ast.If | ast.With | ast.Try):
            break
    left, found = trail.needed, []
    for block, needed in reversed(blocks):  # what the outer blocks make, the inner ones use
        trail.needed = needed
        found += trail.derive(block)
    trail.needed = left
    return found
