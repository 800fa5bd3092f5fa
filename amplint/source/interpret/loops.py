"""Loops: bodies run a few rounds, until nothing new happens."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import lru_cache

from amplint.source import events
from amplint.source.interpret import assignment, branches, choices, classes, containers, expressions, statements
from amplint.source.interpret.frames import Flow, Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import PROTOCOL, World, join_all
from amplint.source.symbols import fresh
from amplint.source.values import Class, Const, Instance, Optimizer, Scaler, Value
from amplint.source.walk import walk

MOST_ROUNDS = 3
DEEP = 5  # loops around a loop, from which on it gets one round


def run_for(m: Machine, node: ast.For | ast.AsyncFor, world: World, frame: Frame, flow: Flow) -> list[World]:
    after: list[World] = []
    for iterable, start in expressions.evaluate(m, node.iter, world, frame):
        for whole, before in choices.split(m, iterable, start):
            plain = classes.handed_on(m, whole, "__iter__", before, frame)
            known = containers.elements(plain)
            if known is not None:
                after += _unrolled(m, node, known, before, frame, flow)
            else:
                item = lambda plain=plain: containers.element(plain)  # noqa: E731
                after += rounds(m, node, before, frame, flow, item, once=_leads_to_several(plain, before))
    return join_all(after)


def _leads_to_several(table: Value, world: World) -> bool:
    """Whether the keys that are looped over lead to optimizers, one of which stands for all: `for k in all: all[k]`."""
    kept = world.get(("items", table), "*")
    return kept is not None and any(isinstance(one, Optimizer | Scaler) for one in containers.contents(kept))


def _unrolled(
    m: Machine, node: ast.For | ast.AsyncFor, items: list[Value], world: World, frame: Frame, flow: Flow
) -> list[World]:
    worlds, left = [world], Flow()
    seen: set[Value] = set()
    for item in items:
        optimizers = {one for one in containers.contents(item) if isinstance(one, Optimizer)}
        if optimizers & seen:
            continue  # one that was made in a loop stands for several: each has its turn once
        seen |= optimizers
        inner = Flow()
        worlds = [after for before in worlds for after in assignment.assign(m, node.target, item, before, frame)]
        worlds = join_all(statements.run(m, node.body, worlds, frame, inner) + inner.continues)
        left.stop(inner)
        left.breaks += inner.breaks
    flow.stop(left)
    return join_all(statements.run(m, node.orelse, worlds, frame, flow) + left.breaks)


def rounds(
    m: Machine,
    node: ast.For | ast.AsyncFor | ast.While,
    world: World,
    frame: Frame,
    flow: Flow,
    item: Callable[[], Value] | None = None,
    once: bool = False,
) -> list[World]:
    """Run a loop's body until nothing new happens, three rounds at most; the rounds are kept apart in `m.rounds`.

    Below several loops one round has to do: three rounds of each of d loops are 3^d. It has to do, too, where each
    round gets another optimizer, and one stands for all of them: none comes again."""
    outer, worlds, breaks = world.loops, [world], []
    before: list[object] = []
    most = MOST_ROUNDS if len(outer) < DEEP and not once else 1
    for number in range(1, MOST_ROUNDS + 1):
        inner = Flow()
        entering: list[World] = []
        logged = len(m.log)
        element = None if item is None else item()  # the same in all worlds: what one asks of it, the others may, too
        if element is not None and any(isinstance(one, Optimizer | Scaler) for one in containers.contents(element)):
            most = 1
        for one in worlds:
            one.loops = (*outer, events.Loop(node, frame, number))
            started = _uncounted(m, node, one, frame) if number > 1 else [one]
            for start in started:
                if isinstance(node, ast.While):
                    entering += [w for answer, w in branches.decide(m, node.test, start, frame) if answer]
                else:
                    assert element is not None
                    entering += assignment.assign(m, node.target, element, start, frame)
        m.starts.setdefault((node, number), [w.trace for w in entering])
        worlds = join_all(statements.run(m, node.body, entering, frame, inner) + inner.continues)
        m.rounds.setdefault((node, number), []).extend(world.copy() for world in worlds)
        flow.stop(inner)
        breaks += inner.breaks
        states = [_state(w) for w in worlds]
        quiet = len(m.log) == logged
        if (
            not worlds
            or quiet
            or number == most
            or node in m.by_key
            or (number > 1 and all(s in before for s in states))
        ):
            break
        before = states
    ended = worlds or breaks
    for one in (*worlds, *breaks):
        one.loops = outer
    if not worlds and breaks:
        return join_all(breaks)
    return join_all(statements.run(m, node.orelse, ended, frame, flow) + breaks)


def _uncounted(m: Machine, node: ast.For | ast.AsyncFor | ast.While, world: World, frame: Frame) -> list[World]:
    """A later round stands for all later ones: forget the numbers that the loop counts (`step += 1`), or that methods
    count, which it may call."""
    for owner in [one for one in world.spaces if isinstance(one, Instance)]:
        forget_counted(owner, world)
    worlds = [world]
    for target in _counters(node):
        worlds = [
            after
            for one in worlds
            for value, before in expressions.evaluate(m, target, one, frame)
            for after in (
                assignment.assign(m, target, fresh("counter"), before, frame)
                if isinstance(value, Const) and type(value.value) in (int, float)
                else [before]
            )
        ]
    return worlds


@lru_cache(1024)
def _counters(node: ast.AST) -> tuple[ast.Name | ast.Attribute, ...]:
    """The names and fields that a loop adds to: `n += 1`, `self.n = self.n + 1`."""
    found: dict[str, ast.Name | ast.Attribute] = {}
    for inner in walk(node):
        match inner:
            case ast.AugAssign(target=ast.Name() | ast.Attribute() as target):
                found.setdefault(ast.dump(target), target)
            case ast.Assign(targets=[ast.Name() | ast.Attribute() as target], value=ast.BinOp(left=left)) if isinstance(
                left, ast.Name | ast.Attribute
            ) and ast.unparse(left) == ast.unparse(target):
                found.setdefault(ast.dump(target), target)
    return tuple(found.values())


def forget_counted(instance: Instance, world: World) -> None:
    """Forget the numbers that an object's methods count: `self.steps += 1`."""
    pending = [instance.cls]
    for cls in pending:
        pending += [base for base in cls.bases if isinstance(base, Class) and base not in pending]
        for name in _counted(cls.node):
            value = world.get(instance, name)
            if isinstance(value, Const) and type(value.value) in (int, float):
                world.set(instance, name, fresh("counter"))


@lru_cache(1024)
def _counted(node: ast.ClassDef) -> frozenset[str]:
    methods = [
        one for one in node.body if isinstance(one, ast.FunctionDef) and one.name != "__init__" and one.args.args
    ]
    targets = ((target, one.args.args[0].arg) for one in methods for target in _counters(one))
    return frozenset(
        target.attr
        for target, own in targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == own
    )


def _state(world: World) -> object:
    """What decides how the next round goes: the protocol states."""
    return [world.space(owner) for owner in PROTOCOL]
