"""Models: their forwards, what these return, and their methods."""

from __future__ import annotations

import ast
from dataclasses import replace

from amplint.source import events
from amplint.source.interpret import (
    calls,
    classes,
    conditions,
    containers,
    functions,
    operations,
    protocol,
    tensors,
    training,
)
from amplint.source.interpret.frames import Arguments, Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, serial, sym
from amplint.source.values import (
    ASSUMED,
    FALSE,
    NONE,
    TRUE,
    Choice,
    Const,
    Instance,
    Items,
    Many,
    Mapping,
    Model,
    NullContext,
    Owners,
    Parameter,
    Parameters,
    Region,
    StateDict,
    Sym,
    Tensor,
    Value,
)


def forward(m: Machine, model: Value, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """A model is called."""
    if isinstance(model, Model):
        op = tensors.op_of(model.name)
        if op in tensors.LOSSES:
            return [(operations.operation(m, op, given.args, given.kwargs, node, world, frame), world)]
        _tell_forward(m, model, given, node, world, frame)
        if op:
            # the reduction and eps arguments of the constructor matter to no dtype
            weights = tensors.weights_of(world, model) if op in tensors.WEIGHTED else ""
            layer = _weights(m, model, world)
            result = operations.operation(m, op, given.args, {}, node, world, frame, weights=weights, layer=layer)
            return [(tag(result, model), world)]
        return [(tag(value, model), after) for value, after in _through_parts(m, model, given, node, world, frame)]
    _tell_forward(m, model, given, node, world, frame)
    if isinstance(model, Instance) and not m.alone:
        function = classes.method(m, model.cls, "forward", world, frame)
        if function is not None:
            bound = replace(function, owner=model)
            results = functions.call_function(m, bound, given, node, world, frame, in_model=True)
            of = frozenset((model, *tensors.provenance(given.values())[0]))  # what it is given, it computes with
            return [(tag(value, *of), after) for value, after in results]
    for value in given.values():
        protocol.hand_over(world, value)
    output = tensors.opaque(given.values(), world, node, frozenset((model,)))
    if output is None:
        output = Tensor("", of=frozenset((model,)), region=tensors.region_of(world), node=node, identity=serial())
    return [(replace(output, of=output.of | {model}), world)]


def _weights(m: Machine, model: Model, world: World) -> str:
    """The dtype of a layer's weights: what they were cast to, or made in; float32 if neither is said. Not known of a
    layer in a class that is judged by itself: who makes it may cast it."""
    if world.get(("dtype of", model), "dtype") is not None:
        return tensors.weights_of(world, model)
    made = dict(model.kwargs).get("dtype", NONE)
    return "" if m.alone else "float32" if made == NONE else tensors.dtype_of(made)


def _tell_forward(m: Machine, model: Value, given: Arguments, node: ast.AST, world: World, frame: Frame) -> None:
    if frame.in_model:
        return
    outer = next((context for context in world.contexts if isinstance(context, Region)), None)
    if tensors.region_of(world) is None:
        outer = None  # no copies are used here
    stale = world.get("stale weights", outer.node) if outer is not None else None
    changed = stale.event if stale is not None and _changed(world, model, stale.event) else None
    event = m.emit(events.Forward, node, world, frame, model=model, given=given.values(), stale=changed)
    if outer is not None and not outer.assumed and outer.autocast.cache != FALSE:
        first = world.get("first forwards", (outer.node, model))
        if first is None:
            world.set("first forwards", (outer.node, model), TRUE if event.grad else event)
        elif event.grad and isinstance(first, events.Forward) and _may_train(world):
            event.graphless = first


def _may_train(world: World) -> bool:
    """Whether some optimizer may train a model's weights: none is known, or one that is given more than tensors."""
    known = protocol.optimizers(world)
    return not known or not all(one.holds == "tensors" for one in known)


def _changed(world: World, model: Value, event: events.Event) -> bool:
    """Whether the weights that an event changed are surely this model's."""
    if isinstance(event, events.Step):
        sure, _ = protocol.owners(world, frozenset((model,)))
        return event.optimizer in sure and event.optimizer.holds != "tensors"
    return isinstance(event, events.ChangeWeights) and any(protocol.related(world, model, one) for one in event.of)


def _through_parts(m: Machine, model: Model, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """nn.Sequential runs its parts; any other library module is opaque."""
    if model.name == "torch.nn.Sequential" and given.args:
        parts = [
            part
            for arg in model.args
            for part in (containers.elements(arg) or [arg] if isinstance(arg, Items) else [arg])
        ]
        results: Results = [(given.args[0], world)]
        for part in parts:
            inside = replace(frame, in_model=True)  # the parts tell no forwards of their own
            results = [
                after
                for value, before in results
                for after in calls.call(m, part, Arguments((value,)), node, before, inside)
            ]
        return results
    result = tensors.opaque(given.values(), world, node, frozenset((model,)))
    region = tensors.region_of(world)
    output = result or Tensor("", of=frozenset((model,)), region=region, node=node, identity=serial())
    if region is None and model.name.startswith(("torchvision.models.", "timm.")):
        output = replace(output, dtype=tensors.weights_of(world, model))
    return [(output, world)]


def tag(value: Value, *of: Value) -> Value:
    """What a model returned, as coming from it, and from what it was given."""
    match value:
        case Tensor():
            return replace(value, of=value.of | set(of))
        case Items():
            return Items(tuple(tag(item, *of) for item in value.items), value.kind)
        case Many():
            return Many(tag(value.item, *of))
        case Mapping():
            return Mapping(tuple((key, tag(item, *of)) for key, item in value.items), value.open, value.node)
        case Choice():
            return conditions.choice(value.formula, tag(value.yes, *of), tag(value.no, *of))
        case Sym(kind="call" | "unknown" | "item" | "op" | "joined" | "element"):
            return Tensor("", of=frozenset(of), identity=serial())
    return value


def tag_unknown(value: Value, model: Value) -> Value:
    """What a method of a model returned, where nothing is known of it, as coming from the model."""
    match value:
        case Items():
            return Items(tuple(tag_unknown(item, model) for item in value.items), value.kind)
        case Sym():
            return tag(value, model)
        case Tensor(of=of, made="") if not of:
            return tag(value, model)
    return value


# -- methods -----------------------------------------------------------------------------------------------------------

_MODEL_SELF = frozenset(
    ("train eval cuda cpu to requires_grad_ apply share_memory xpu compile half float double bfloat16 type").split()
)


def _register(m: Machine, model: Value, given: Arguments, world: World) -> None:
    """A buffer is a field that a cast of the model casts, too: what it is in a class judged by itself is assumed."""
    name, value = (
        {**dict(zip(("name", "tensor"), given.args, strict=False)), **given.kwargs}.get(key)
        for key in ("name", "tensor")
    )
    if isinstance(name, Const) and isinstance(name.value, str) and isinstance(value, Tensor):
        world.set(model, name.value, replace(value, trust=min(value.trust, ASSUMED)) if m.alone else value)
        world.set(("buffers", model), name.value, TRUE)


def model_method(
    m: Machine, model: Value, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    of: Owners = frozenset((model,))
    match name:
        case "parameters" | "buffers":
            return [(Parameters(of), world)]
        case "named_parameters":
            return [(Many(Items((fresh("key"), Parameter(of)))), world)]
        case "modules" | "children":
            return [(Many(sym("item", model, "*")), world)]
        case "named_modules" | "named_children":
            return [(Many(Items((fresh("key"), sym("item", model, "*")))), world)]
        case "zero_grad":
            training.zero_gradients(m, of, node, world, frame)
            return [(NONE, world)]
        case "state_dict":
            return [(StateDict(model), world)]
        case "load_state_dict":
            source = given.args[0] if given.args else NONE
            m.observe(events.Load, node, world, frame, target=model, source=source)
            training.change_weights(m, of, name, node, world, frame)
            return [(fresh("call"), world)]
        case "forward":
            return forward(m, model, given, node, world, frame)
        case "register_buffer":
            _register(m, model, given, world)
            return [(NONE, world)]
        case "no_sync" | "join":
            return [(NullContext(), world)]
        case "clip_grad_norm_":
            training.clip(m, of, "norm", node, world, frame, own=True)
            return [(fresh("norm"), world)]
    if name in _MODEL_SELF:
        dtype = tensors.CASTS.get(name, "")
        if name in ("to", "type"):
            dtype = next((d for d in map(tensors.dtype_of, given.values()) if d), "")
        if dtype:
            training.cast_model(m, model, dtype, node, world, frame)
        if name == "requires_grad_" and given.args[:1] == (FALSE,):
            training.freeze(frozenset((model,)), world)
        return [(model, world)]
    return None
