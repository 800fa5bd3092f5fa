"""Methods of scalers and optimizers."""

from __future__ import annotations

import ast
from dataclasses import replace

from amplint.source import events
from amplint.source.interpret import calls, choices, classes, conditions, protocol, tensors, training
from amplint.source.interpret.frames import Arguments, Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, serial, sym
from amplint.source.values import (
    NONE,
    TRUE,
    Const,
    Instance,
    Items,
    Many,
    Model,
    Object,
    Optimizer,
    Scaler,
    StateDict,
    Sym,
    Tensor,
    Test,
    Value,
)


def scaler_method(
    m: Machine, scaler: Scaler, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    args = given.args
    match name:
        case "scale" if args:
            return [(scaled(m, args[0], scaler, node, world), world)]
        case "unscale_" | "step" if args and _has_no_gradients(args[0]):
            misused(m, scaler, name, args, node, world, frame)
            return [(fresh("call"), world)]
        case "unscale_" if args:
            split = choices.split(m, args[0], world)
            for plain, after in split:
                for optimizer in [] if _off(scaler, after) else optimizers_in(plain, after):
                    before = protocol.gradients(after, optimizer)
                    event = m.emit(
                        events.Unscale, node, after, frame, scaler=scaler, optimizer=optimizer, before=before, state="",
                        clips=training.clips_of(after, optimizer),
                        clipped_by_methods=after.get("clipped by methods", None) or (),
                    )  # fmt: skip
                    event.before, event.state = protocol.unscale(after, event, scaler, optimizer)
            return [(NONE, after) for _, after in split]
        case "step" if args:
            closure = len(args) > 1 or "closure" in given.kwargs
            split = choices.split(m, args[0], world)
            for plain, after in split:
                for optimizer in optimizers_in(plain, after):
                    training.step(m, optimizer, None if _off(scaler, after) else scaler, node, after, frame, closure)
            return [(fresh("call"), after) for _, after in split]
        case "update":
            if not _off(scaler, world):
                protocol.update(world, m.emit(events.Update, node, world, frame, scaler=scaler, pairs=()))
            return [(NONE, world)]
        case "state_dict":
            return [(StateDict(scaler), world)]
        case "load_state_dict" if args:
            m.observe(events.Load, node, world, frame, target=scaler, source=args[0])
            return [(NONE, world)]
        case "is_enabled":
            formula = conditions.truth(scaler.enabled)
            return [(Const(formula) if isinstance(formula, bool) else Test(formula), world)]
        case "get_scale":
            return [(sym("scale of", scaler, serial()), world)]
    return None


def misused(
    m: Machine, scaler: Scaler, name: str, given: tuple[Value, ...], node: ast.AST, world: World, frame: Frame
) -> None:
    """Tell of a scaler that is on and asked for what raises."""
    if not _off(scaler, world):
        m.observe(events.Misused, node, world, frame, scaler=scaler, name=name, given=given)


def _has_no_gradients(value: Value) -> bool:
    """Whether it is surely no optimizer: a schedule of learning rates, a library's model."""
    return isinstance(value, Model) or (isinstance(value, Object) and value.kind == "scheduler")


def _off(scaler: Scaler, world: World) -> bool:
    """Whether the scaler is known to be disabled here: then its methods pass everything through."""
    return world.known(conditions.truth(scaler.enabled)) is False


def scaled(m: Machine, value: Value, scaler: Scaler, node: ast.AST, world: World) -> Value:
    """scaler.scale(value)."""
    value = tensors.settled(value, world)
    if _off(scaler, world):
        return value
    match value:
        case Items():
            return Items(tuple(scaled(m, item, scaler, node, world) for item in value.items), value.kind)
        case Tensor():
            return replace(value, scaler=scaler, made="scale", node=node, parents=(value,), identity=serial())
    of, region, _ = tensors.provenance((value,))
    return Tensor("", of=of, region=region or tensors.region_of(world), scaler=scaler, made="scale", node=node,
                  parents=(value,), identity=serial())  # fmt: skip


def optimizers_in(value: Value, world: World) -> list[Optimizer]:
    """The optimizers that an argument of the scaler stands for; what is handed to a scaler is one."""
    match value:
        case Optimizer():
            protocol.register(world, value)
            return [value]
        case Sym() | Instance() | Object():
            optimizer = Optimizer(value)
            protocol.register(world, optimizer, entry=True)
            return [optimizer]
        case Tensor():  # what an unknown call made of parameters passes for one
            optimizer = Optimizer(sym("handed to a scaler", value.identity))
            protocol.register(world, optimizer, entry=True)
            protocol.hand_over(world, optimizer)
            return [optimizer]
        case Many():
            return optimizers_in(value.item, world)
    return []


def scale_and_step(m: Machine, scaler: Object, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """A callable scaler (timm's NativeScaler): backward, unscale and clip, step and update in one call."""
    api = m.library.find(scaler.name + ".__call__")
    bound = api.bind(given.args, given.kwargs) if api else dict(given.kwargs)
    loss = bound.get("loss") or (given.args[0] if given.args else fresh("loss"))
    optimizer = bound.get("optimizer") or (given.args[1] if len(given.args) > 1 else NONE)
    inner = Scaler(scaler)
    training.backward(m, scaled(m, loss, inner, node, world), node, world, frame)
    results: Results = []
    for updating, after in world.decide(conditions.truth(bound.get("need_update", Const(True)))):
        if updating:
            for one in optimizers_in(optimizer, after):
                training.step(m, one, inner, node, after, frame)
            protocol.update(after, m.emit(events.Update, node, after, frame, scaler=inner, pairs=()))
        results.append((fresh("norm"), after))
    return results


def optimizer_method(
    m: Machine, optimizer: Optimizer, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    match name:
        case "step" if _of_ones_own(given, world):
            protocol.hand_over(world, optimizer)  # what it does is not said
            return [(fresh("call"), world)]
        case "step":
            closure = bool(given.args) or "closure" in given.kwargs
            if closure:
                function = given.args[0] if given.args else given.kwargs["closure"]
                results = calls.call(m, function, Arguments(), node, world, frame)
            else:
                results = [(NONE, world)]
            for _, after in results:
                training.step(m, optimizer, _stepping(m, after, frame), node, after, frame, closure)
            return [(fresh("call"), after) for _, after in results]
        case "zero_grad":
            event = m.emit(events.ZeroGradient, node, world, frame, touched=())
            event.touched = protocol.zero(world, event, [optimizer])
            return [(NONE, world)]
        case "first_step" | "second_step":  # of SAM and its kind: it changes weights in a way of its own
            protocol.hand_over(world, optimizer)
            if TRUE in (*given.args, given.kwargs.get("zero_grad")):
                event = m.emit(events.ZeroGradient, node, world, frame, touched=())
                event.touched = protocol.zero(world, event, [optimizer])
            return [(NONE, world)]
        case "state_dict":
            return [(StateDict(optimizer), world)]
        case "load_state_dict" if given.args:
            m.observe(events.Load, node, world, frame, target=optimizer, source=given.args[0])
            return [(NONE, world)]
        case "add_param_group" | "train" | "eval" | "register_step_post_hook":
            return [(NONE, world)]
        case "clip_grad_norm":
            training.clip(m, optimizer.of or frozenset((optimizer,)), "norm", node, world, frame)
            return [(fresh("norm"), world)]
        case "backward" if given.args:
            training.backward(m, given.args[0], node, world, frame, managed=True)
            return [(NONE, world)]
    return None


def _of_ones_own(given: Arguments, world: World) -> bool:
    """Whether a step is told what torch's are not: `step(dry_run=True)`, or the scaler to step with."""
    told = TRUE in (value for key, value in given.kwargs.items() if key != "closure")
    return told or any(
        isinstance(one, Scaler) for value in given.values() for one in conditions.sides(value, world.facts)
    )


def _stepping(m: Machine, world: World, frame: Frame) -> Scaler | None:
    """The scaler whose own step() this runs in: an heir of torch's decides itself what is stepped, and how."""
    for one in frame.stack():
        if one.name == "step" and isinstance(one.owner, Instance):
            api = m.library.find_first(classes.library_bases(m, one.owner.cls, world, one))
            if api is not None and api.returns == "scaler":
                return Scaler(one.owner)
    return None
