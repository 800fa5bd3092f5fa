"""Steps that a wrapper of the optimizer takes: `optimizer.step_and_update_lr()` of a class that schedules, too."""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields
from typing import cast

from amplint.source import events
from amplint.source.interpret.frames import Frame


@dataclass(eq=False, slots=True)
class Wrapped(events.Step):
    """A step as it shows where the wrapper's method is called. `inner` is the one that the wrapper takes, `frames` are
    its methods on the way there, innermost first."""

    inner: events.Step | None = None
    frames: tuple[Frame, ...] = ()

    @property
    def within(self) -> events.Step:
        return cast(events.Step, self.inner)


def shown(step: events.Step) -> events.Step:
    """The step, or its wrapper's: that of an object whose field the optimizer is, and which runs no backward."""
    match step.node:
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="self")))):
            owner = step.frame.owner
        case _:
            return step
    backwards = [one for one in step.before.origins if isinstance(one, events.Backward)]
    if owner is None or not backwards or any(frame.owner == owner for one in backwards for frame in one.frame.stack()):
        return step
    node: ast.AST = step.node
    frame: Frame = step.frame
    frames: list[Frame] = []
    while frame.owner == owner:
        if frame.entry or frame.caller is None or frame.call is None:
            return step
        frames.append(frame)
        node, frame = frame.call, frame.caller
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name() | ast.Attribute())):
            told = {one.name: getattr(step, one.name) for one in fields(step)}
            return Wrapped(**{**told, "node": node, "frame": frame}, inner=step, frames=tuple(frames))
    return step
