"""Choices: one of two values; decided, by a world for each, only where it matters which."""

from __future__ import annotations

from dataclasses import replace

from amplint.source.interpret import conditions, containers, tensors
from amplint.source.interpret.frames import Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import sym
from amplint.source.values import (
    NONE,
    Autocast,
    Bound,
    Checkpoint,
    Choice,
    Class,
    Const,
    Function,
    GradMode,
    Instance,
    Items,
    Lib,
    Model,
    NullContext,
    Object,
    Optimizer,
    Partial,
    Scaler,
    Sym,
    Tensor,
    Value,
)


def split(m: Machine, value: Value, world: World) -> Results:
    """A Choice that matters, decided: a world for each side that can be. Other choices stay one value."""
    if not isinstance(value, Choice):
        return [(value, world)]
    known = world.known(value.formula)
    if known is not None:
        return split(m, value.yes if known else value.no, world)
    if value.no == NONE or value.yes == NONE:
        world.suppose(value.formula if value.no == NONE else conditions.negate(value.formula))
        return split(m, value.yes if value.no == NONE else value.no, world)
    if not significant(value) and not tells(value):
        here = tensors.settled(value, world)  # what is known of the choices inside it
        return [(blend(here) if isinstance(here, Choice) else here, world)]
    return [
        result
        for answer, after in world.decide(value.formula)
        for result in split(m, value.yes if answer else value.no, after)
    ]


_SIGNIFICANT = (Scaler, Optimizer, Autocast, Function, Class, Instance, Partial, Bound, Object, Model)


def significant(value: Value | None) -> bool:
    """Whether it matters which of two such values a variable holds: calling it, or entering it, has an effect on
    events."""
    if isinstance(value, Choice):
        return significant(value.yes) or significant(value.no)
    if isinstance(value, Items):
        return any(significant(item) for item in value.items)
    if isinstance(value, Lib):
        return "autocast" in value.name or "GradScaler" in value.name
    return isinstance(value, _SIGNIFICANT)


_TELLING = (Autocast, NullContext, GradMode, Checkpoint)


def tells(value: Value) -> bool:
    """Whether the sides of a choice act differently: tensors scaled or not, contexts, gradient-holding things."""
    sides = list(containers.contents(value))
    scaled = {side.scaler for side in sides if isinstance(side, Tensor)}
    regions = {side.region for side in sides if isinstance(side, Tensor)}
    return len(scaled) > 1 or len(regions) > 1 or any(isinstance(side, _TELLING) for side in sides)


def blend(value: Choice) -> Value:
    """A choice that makes no difference, as one value."""
    sides = list(containers.contents(value))
    if all(isinstance(side, Tensor) for side in sides):
        return containers.merge_elements(sides)
    found = [side for side in sides if isinstance(side, Tensor)]
    if found and all(isinstance(side, Tensor | Sym | Const) for side in sides):
        one = containers.merge_elements(list(found))
        assert isinstance(one, Tensor)
        return replace(one, dtype="")
    return conditions.one_of(value) if all(isinstance(side, Sym) for side in sides) else sym("choice", value)
