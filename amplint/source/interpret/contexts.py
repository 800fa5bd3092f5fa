"""Context managers: what entering one does to the world."""

from __future__ import annotations

import ast

from amplint.source import events
from amplint.source.interpret import choices, classes
from amplint.source.interpret.frames import Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh
from amplint.source.values import (
    Autocast,
    Choice,
    GradMode,
    Instance,
    Lib,
    Managing,
    NullContext,
    Object,
    Partial,
    Region,
    Scaled,
    Tensor,
    Value,
)

_CLASSES = frozenset(
    (
        "torch.autocast torch.amp.autocast torch.amp.autocast_mode.autocast contextlib.nullcontext "
        "torch.cuda.amp.autocast torch.cuda.amp.autocast_mode.autocast torch.cpu.amp.autocast"
    ).split()
)


def is_class(value: Value) -> bool:
    """Whether something makes contexts and is none itself: entering it raises TypeError."""
    return (isinstance(value, Lib) and value.name in _CLASSES) or (
        isinstance(value, Partial) and is_class(value.function)
    )


def enter(
    m: Machine, value: Value, node: ast.AST, statement: ast.AST, world: World, frame: Frame
) -> list[tuple[Value, World]]:
    """Enter a context manager; returns what `as` binds, for each world. `statement` is the with, or the decorated
    code."""
    match value:
        case Choice():
            if not (choices.significant(value) or _matters(value)):
                return [(fresh("context"), world)]
            return [
                result
                for answer, after in world.decide(value.formula)
                for result in enter(m, value.yes if answer else value.no, node, statement, after, frame)
            ]
        case Autocast():
            region = Region(value, statement, len(world.loops))
            world.contexts = (*world.contexts, region)
            m.emit(events.Enter, node, world, frame, entered=region)
            return [(value, world)]
        case GradMode():
            world.contexts = (*world.contexts, value)
            return [(value, world)]
        case Lib(name="torch.no_grad" | "torch.inference_mode"):  # as a decorator, without parentheses
            world.contexts = (*world.contexts, GradMode(False))
            return [(value, world)]
        case Scaled():
            world.contexts = (*world.contexts, value)
            return [(value.loss, world)]
        case Managing():
            world.contexts = (*world.contexts, *value.contexts)
            return [(value.bound, world)]
        case Instance():
            return classes.enter_instance(m, value, node, world, frame)
    return [(value if isinstance(value, Tensor | Object) else fresh("context"), world)]


def _matters(value: Value) -> bool:
    if isinstance(value, Choice):
        return _matters(value.yes) or _matters(value.no)
    return isinstance(value, Autocast | NullContext | GradMode | Scaled | Managing)


def leave(world: World, outside: tuple[Value, ...]) -> None:
    """Restore the contexts that were active outside; leaving the outermost autocast drops its cache of cast weights."""
    for context in world.contexts[len(outside) :]:
        if isinstance(context, Region):
            world.drop("stale weights", context.node)
            for of in [key for key in world.space("first forwards") if key[0] is context.node]:
                world.drop("first forwards", of)
    world.contexts = outside


def exit_one(value: Value, world: World) -> None:
    """Leave a context that was entered by hand."""
    for index in range(len(world.contexts) - 1, -1, -1):
        context = world.contexts[index]
        if context == value or (isinstance(context, Region) and context.autocast == value):
            inner = world.contexts[index + 1 :]
            leave(world, world.contexts[:index])
            world.contexts = (*world.contexts, *inner)
            return
