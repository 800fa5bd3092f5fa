"""Training: what happens to gradients and weights, told as events."""

from __future__ import annotations

import ast
from dataclasses import replace
from functools import lru_cache

from amplint.source import events
from amplint.source.interpret import conditions, containers, protocol, tensors
from amplint.source.interpret.frames import Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.values import (
    NONE,
    TRUE,
    Const,
    Instance,
    Model,
    Optimizer,
    Owners,
    Region,
    Scaled,
    Sym,
    Tensor,
    Value,
)
from amplint.source.walk import walk


def backward(m: Machine, loss: Value, node: ast.AST, world: World, frame: Frame, managed: bool = False) -> None:
    """Gradients of a loss (or of each of several) are accumulated."""
    loss = tensors.as_known(loss, world)
    of, region, scaler = tensors.provenance((loss,))
    managed = managed or any(isinstance(context, Scaled) for context in world.contexts)
    if region is not None and not tensors.enabled(region, world):
        region = None
    event = m.emit(events.Backward, node, world, frame, loss=loss, scaler=scaler, managed=managed)
    event.touched = protocol.backward(world, event, of, scaler, managed, region)


def step(
    m: Machine,
    optimizer: Optimizer,
    scaler: Value | None,
    node: ast.AST,
    world: World,
    frame: Frame,
    closure: bool = False,
) -> None:
    """optimizer.step() or scaler.step(optimizer)."""
    event = m.emit(
        events.Step, node, world, frame,
        optimizer=optimizer, scaler=scaler, before=protocol.gradients(world, optimizer), closure=closure,
        clips=clips_of(world, optimizer),
    )  # fmt: skip
    event.before, event.state = protocol.step(world, scaler, optimizer)  # type: ignore[arg-type]
    event.halves = _cast_to("float16", world, optimizer, event.before)
    event.bfloats = _cast_to("bfloat16", world, optimizer, event.before)
    mark_stale(world, event)


def _cast_to(dtype: str, world: World, optimizer: Optimizer, before: events.Gradients) -> tuple[Value, ...]:
    """The models that this optimizer surely trains and that have, or may have, this dtype here."""
    if optimizer.holds == "copies":
        return ()
    trained = set(optimizer.of)
    if not trained and len(protocol.optimizers(world)) == 1:
        for origin in before.origins:
            if isinstance(origin, events.Backward):
                trained |= tensors.provenance((origin.loss,))[0]
    found = []
    for model in trained:
        known = world.get(("dtype of", model), "dtype")
        frozen = world.get(("dtype of", model), "frozen") is not None
        if not frozen and Const(dtype) in conditions.sides(known or NONE, world.facts):
            found.append(model)
    return tuple(found)


def zero_gradients(m: Machine, of: frozenset[Value], node: ast.AST, world: World, frame: Frame) -> None:
    """The gradients of the models' parameters are dropped; where a part of a model drops its own between backward and
    step, the others' are stepped with."""
    sure, perhaps = protocol.owners(world, of)
    part = bool(of) and all(_is_part(m, one) for one in of)
    sure = [one for one in sure if not (part and protocol.holds_more(world, one, of))]
    event = m.emit(events.ZeroGradient, node, world, frame, touched=())
    event.touched = protocol.zero(world, event, sure)
    for optimizer in perhaps:
        if protocol.gradients(world, optimizer).kind != "none":
            world.set("gradients", optimizer, protocol.UNKNOWN["gradients"])


def _is_part(m: Machine, model: Value) -> bool:
    """Whether a model is a field of another: `self.model.encoder`."""
    whole = model.parts[0] if isinstance(model, Sym) and model.kind == "attr" else None
    return isinstance(whole, Value) and m.is_model(whole)


def clip(m: Machine, of: Owners, how: str, node: ast.AST, world: World, frame: Frame, own: bool = False) -> None:
    """Gradients are clipped; `own`: surely those of the models' own parameters, not of copies."""
    touched, perhaps = _owning(world, of)
    halves = tuple(model for model in of if own and tensors.weights_of(world, model) == "float16")
    event = m.emit(events.Clip, node, world, frame, of=of, how=how, touched=touched, halves=halves, perhaps=perhaps)
    waiting: list[Optimizer | None] = [one for one, before in touched if before.kind == "entry"]
    for optimizer in waiting or ([] if touched else [None]):
        world.set("clipped", optimizer, (*(world.get("clipped", optimizer) or ()), event))


def clip_by_method(node: ast.AST, world: World, frame: Frame) -> None:
    """A method that is not to be seen says that it clips gradients. It may unscale them first, unless unscale_ follows,
    which would raise then."""
    event = events.Clip(node, frame, world.contexts, world.loops, world.facts, frozenset(), "norm", ())
    world.set("clipped by methods", None, (*(world.get("clipped by methods", None) or ()), event))


def clips_of(world: World, optimizer: Optimizer) -> tuple[events.Clip, ...]:
    """The clips of gradients that the function was entered with, which this optimizer owns."""
    clips: tuple[events.Clip, ...] = world.get("clipped", optimizer) or ()
    if len(protocol.optimizers(world)) == 1:
        clips = (*clips, *(world.get("clipped", None) or ()))
    return clips


# What is made of gradients and depends on how large they are.
BY_SIZE = frozenset(("norm", "abs", "max", "min", "mean", "std", "pow", "sign", "sign_", "sum", "square", "topk"))


def read_gradient(m: Machine, of: Owners, how: str, node: ast.AST, world: World, frame: Frame) -> None:
    touched, perhaps = _owning(world, of)
    m.emit(events.ReadGradient, node, world, frame, of=of, how=how, touched=touched, perhaps=perhaps)


def _owning(world: World, of: Owners) -> tuple[tuple[tuple[Optimizer, events.Gradients], ...], ...]:
    """The optimizers that own gradients of the models, with their state; where none surely does, those that may."""
    sure, unsure = protocol.owners(world, of)
    touched = tuple((optimizer, protocol.gradients(world, optimizer)) for optimizer in sure)
    return touched, tuple((optimizer, protocol.gradients(world, optimizer)) for optimizer in unsure if not sure)


# -- weights -----------------------------------------------------------------------------------------------------------


def change_weights(m: Machine, of: Owners, how: str, node: ast.AST, world: World, frame: Frame) -> None:
    """Weights change other than by an optimizer's step."""
    event = m.emit(events.ChangeWeights, node, world, frame, of=of, how=how)
    mark_stale(world, event)


def mark_stale(world: World, event: events.Event) -> None:
    """Until the outermost autocast region ends, enabled or not, the cast copies of the weights that a forward in it
    made are stale from here on."""
    outer = next((context for context in world.contexts if isinstance(context, Region)), None)
    if outer is None or outer.assumed or outer.autocast.cache == Const(False):
        return
    if any(node is outer.node for node, _ in world.space("first forwards")):
        world.set("stale weights", outer.node, events.Stale(event.node, event))


def cast_model(m: Machine, model: Value, dtype: str, node: ast.AST, world: World, frame: Frame) -> None:
    """The parameters of a model are cast in place, and those of its parts."""
    _cast(model, dtype, world)
    pending = [*world.space(model).values()] if isinstance(model, Instance) else [*getattr(model, "args", ())]
    parts: set[Value] = set()
    while pending:
        for part in containers.contents(pending.pop()):
            if isinstance(part, Model | Instance) and part not in parts:
                parts.add(part)
                _cast(part, dtype, world)
                pending += world.space(part).values() if isinstance(part, Instance) else getattr(part, "args", ())
    m.emit(events.Cast, node, world, frame, model=model, dtype=dtype, parts=frozenset(parts))


def _cast(model: Value, dtype: str, world: World) -> None:
    world.set(("dtype of", model), "dtype", Const(dtype))
    for name in world.space(("buffers", model)):
        buffer = world.get(model, name)
        if isinstance(buffer, Tensor) and buffer.dtype not in ("integer", "bool", "complex"):
            world.set(model, name, replace(buffer, dtype=dtype))
    for name in _parameters_of(model.cls.node) if isinstance(model, Instance) else ():
        parameter = world.get(model, name)
        if isinstance(parameter, Tensor):
            world.set(model, name, replace(parameter, dtype=dtype))


@lru_cache(256)
def _parameters_of(body: ast.AST) -> tuple[str, ...]:
    """The fields to which a class assigns an nn.Parameter."""
    found = []
    for node in walk(body):
        match node:
            case ast.Assign(targets=[ast.Attribute(attr=name)], value=ast.Call(func=function)):
                if isinstance(function, ast.Name | ast.Attribute) and ast.unparse(function).endswith("Parameter"):
                    found.append(name)
    return tuple(found)


def freeze(of: Owners, world: World) -> None:
    """Some parameters of the models are not trained: which dtype the others have is not known then."""
    for model in of:
        world.set(("dtype of", model), "frozen", TRUE)
