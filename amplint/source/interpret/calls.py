"""Calls: local functions run with their real arguments, objects act by what they are, the rest is unknown."""

from __future__ import annotations

import ast
import re
from functools import partial

from amplint.source import events
from amplint.source.interpret import (
    attributes,
    choices,
    classes,
    conditions,
    containers,
    expressions,
    functions,
    imports,
    library_calls,
    methods,
    models,
    objects,
    protocol,
    scaler_methods,
    subscripts,
    tensors,
    training,
    variables,
)
from amplint.source.interpret.frames import Arguments, Frame, Results
from amplint.source.interpret.machine import Machine, device_value, site
from amplint.source.interpret.roles import becomes_model
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, options, sym
from amplint.source.tree import names_autocast
from amplint.source.values import (
    NONE,
    Autocast,
    Bound,
    Choice,
    Class,
    Const,
    Function,
    Imported,
    Instance,
    Items,
    Lib,
    Many,
    Mapping,
    Model,
    Namespace,
    Object,
    Optimizer,
    Partial,
    Scaler,
    Sym,
    Tensor,
    Value,
)

_CLIPPING = re.compile(r"clip_?grad|grad(ient)?s?_?clip", re.IGNORECASE)
_ASKS = re.compile(r"_*(get|set|is|has|use|should|needs?|make|build|create|parse|configure|check|log)_")
_BACKWARD = re.compile(
    r"(?:^|_)(?<!for_)(?<!before_)(?<!after_)backwards?$"
)  # what something unknown that runs backward is called: manual_backward


def evaluate_call(m: Machine, node: ast.Call, world: World, frame: Frame) -> Results:
    function = node.func
    if isinstance(function, ast.Name) and function.id == "super":
        return [(classes.Super(frame.owner or NONE, frame.cls or NONE), world)]
    if isinstance(function, ast.Attribute):
        return [
            result
            for owner, w1 in expressions.evaluate(m, function.value, world, frame)
            for given, w2 in arguments(m, node, w1, frame)
            for read, w3 in _read_for(m, owner, function.value, given, w2, frame)
            for result in call_attribute(m, read, function.attr, given, node, w3, frame)
        ]
    return [
        result
        for callee, w1 in expressions.evaluate(m, function, world, frame)
        for given, w2 in arguments(m, node, w1, frame)
        for read, w3 in _read_for(m, callee, function, given, w2, frame)
        for result in call(m, read, given, node, w3, frame)
    ]


def _read_for(
    m: Machine, callee: Value, node: ast.expr, given: Arguments, world: World, frame: Frame
) -> list[tuple[Value, World]]:
    """What is called, or whose function is. Who is given a model runs it: where files change together, the file of an
    imported function (or of a table of such, or of a module) is read for that, though it has no word of training."""
    name = node.value if isinstance(node, ast.Subscript) else node
    if (
        not isinstance(callee, Lib | Sym)
        or not isinstance(name, ast.Name)
        or not any(_model(m, one, world, frame) for one in (*given.args, *given.kwargs.values()))
    ):
        return [(callee, world)]
    found: list[tuple[Value, World]] = []
    for value, after in variables.lookup(m, name, world, frame):
        if not isinstance(value, Imported):
            return [(callee, world)]
        read = imports.resolve(m, value, after, whole=True)
        if not isinstance(node, ast.Subscript):
            found.append((read, after))
            continue
        for index, w2 in expressions.evaluate(m, node.slice, after, frame):
            found.append((subscripts.item(m, read, index, node, w2, frame), w2))
    return found


def _model(m: Machine, value: Value, world: World, frame: Frame) -> bool:
    if isinstance(value, Instance):
        return isinstance(value.cls, Class) and classes.is_module(m, value.cls, world, frame)
    return isinstance(value, Model) or m.is_model(value)


def arguments(m: Machine, node: ast.Call, world: World, frame: Frame) -> list[tuple[Arguments, World]]:
    results = []
    for values, w1 in expressions.each(m, node.args, world, frame):
        args: list[Value] = []
        more = False
        for argument, value in zip(node.args, values, strict=True):
            if isinstance(argument, ast.Starred):
                known = containers.elements(value)
                args += known or []
                more |= known is None
                if known is None:
                    break
            else:
                args.append(value)
        for named, w2 in expressions.each(m, [keyword.value for keyword in node.keywords], w1, frame):
            kwargs: dict[str, Value] = {}
            open_ended = more
            for keyword, value in zip(node.keywords, named, strict=True):
                if keyword.arg is not None:
                    kwargs[keyword.arg] = value
                elif (table := containers.one_table(tensors.settled(value, w2))) is not None:
                    kwargs |= {str(key.value): item for key, item in table.items if isinstance(key, Const)}
                    open_ended |= table.open
                else:
                    open_ended = True
            results.append((Arguments(tuple(args), kwargs, open_ended), w2))
    return results


def call_attribute(
    m: Machine, owner: Value, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results:
    """`owner.name(…)`."""
    if isinstance(owner, Imported):
        return call_attribute(m, imports.resolve(m, owner, world), name, given, node, world, frame)
    if isinstance(owner, Choice):
        scaler = next((one for one in (owner.yes, owner.no) if isinstance(one, Scaler)), None)
        if scaler is not None and NONE in (owner.yes, owner.no):
            _may_be_none(m, owner, scaler, node, world, frame)
        return [
            result
            for plain, after in choices.split(m, owner, world)
            for result in call_attribute(m, plain, name, given, node, after, frame)
        ]
    if owner == NONE:
        return []  # the script would crash here: this world cannot be
    if isinstance(owner, Lib):
        return library_calls.call(m, f"{owner.name}.{name}", given, node, world, frame)
    if isinstance(owner, Namespace):
        return [
            result
            for callee, after in attributes.attribute(m, owner, name, node, world, frame)
            for result in call(m, callee, given, node, after, frame)
        ]
    return call_method(m, owner, name, given.args, given.kwargs, node, world, frame, given.open)


def _may_be_none(m: Machine, owner: Choice, scaler: Scaler, node: ast.AST, world: World, frame: Frame) -> None:
    """Say that a method is called of a scaler that may not be there."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name() | ast.Attribute() as said)):
            bound = owner.formula if owner.yes == scaler else conditions.negate(owner.formula)
            missing = conditions.possible(conditions.negate(bound), world.facts)
            if missing and m.once("none", node, frozenset(world.facts.items())):
                m.observe(events.NoneUsed, node, world, frame, name=ast.unparse(said), scaler=scaler, bound=bound)


def call(m: Machine, callee: Value, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """`callee(…)`."""
    match callee:
        case Function():
            return functions.call_function(m, callee, given, node, world, frame)
        case Class():
            return classes.instantiate(m, callee, given, node, world, frame)
        case Lib():
            return library_calls.call(m, callee.name, given, node, world, frame)
        case Imported():
            return call(m, imports.resolve(m, callee, world), given, node, world, frame)
        case Partial():
            merged = Arguments((*callee.args, *given.args), {**dict(callee.kwargs), **given.kwargs}, given.open)
            return call(m, callee.function, merged, node, world, frame)
        case Bound():
            return call_attribute(m, callee.receiver, callee.name, given, node, world, frame)
        case Choice():
            return [
                result
                for plain, after in choices.split(m, callee, world)
                for result in call(m, plain, given, node, after, frame)
            ]
        case Instance():
            return classes.call_instance(m, callee, given, node, world, frame)
        case Model():
            return models.forward(m, callee, given, node, world, frame)
        case Object(kind="managed"):  # an engine that is called is the model it wraps
            return models.forward(m, callee, given, node, world, frame)
        case Object(kind="callable-scaler"):
            return scaler_methods.scale_and_step(m, callee, given, node, world, frame)
        case Sym(kind="attr", parts=(Value() as owner, str() as name)):
            if not m.is_model(callee) and world.get(owner, name) is not callee:
                return call_method(m, owner, name, given.args, given.kwargs, node, world, frame, given.open)
        case Autocast() if not given.values() and isinstance(frame.module.parents.get(node), ast.withitem):
            m.observe(events.CannotEnter, node, world, frame, value=callee, called=True)
            return [(callee, world)]
        case Const():
            return [] if callee == NONE else [(fresh("call"), world)]
        case Scaler() if given.args:  # it raises; what was meant is scale()
            scaler_methods.misused(m, callee, "", given.args, node, world, frame)
            return [(scaler_methods.scaled(m, given.args[0], callee, node, world), world)]
    if m.is_model(callee):
        return models.forward(m, callee, given, node, world, frame)
    return unknown(m, callee, given, node, world, frame)


def call_method(
    m: Machine,
    owner: Value,
    name: str,
    args: tuple[Value, ...],
    kwargs: dict[str, Value],
    node: ast.AST,
    world: World,
    frame: Frame,
    more: bool = False,
) -> Results:
    """A method of an object."""
    given = Arguments(args, kwargs, more)
    if isinstance(owner, (Instance, classes.Super, Class)):
        found = classes.member(m, owner, name, node, world, frame)
        if found is not None:
            results = [result for value, after in found for result in call(m, value, given, node, after, frame)]
            outside = isinstance(owner, Instance) and frame.owner != owner  # and not a part that it makes for itself
            computes = outside and methods.computes(name, given, world, frame)
            if isinstance(owner, Instance) and computes and classes.is_module(m, owner.cls, world, frame):
                return [(models.tag_unknown(value, owner), after) for value, after in results]
            return results
    result = methods.call(m, owner, name, given, node, world, frame)
    if result is not None:
        return result
    callee = sym("attr", owner, name)
    if m.is_model(callee):
        return models.forward(m, callee, given, node, world, frame)
    stored = world.get(owner, name)
    if isinstance(stored, Value) and stored != callee:  # a wrapper that keeps what it wraps may store it as itself
        return call(m, stored, given, node, world, frame)
    return unknown(m, callee, given, node, world, frame, receiver=owner)


def unknown(
    m: Machine,
    callee: Value,
    given: Arguments,
    node: ast.AST,
    world: World,
    frame: Frame,
    receiver: Value | None = None,
) -> Results:
    """An unknown call: what it does with a scaler or an optimizer is not known; it has no other effect. A factory of
    autocast contexts says so in its name."""
    if names_autocast(_last_name(callee)) and not _of_transformer_engine(callee):
        device = given.kwargs.get("device_type") or (given.args[0] if given.args else None)
        if "autocast_handler" in given.kwargs or "avoid" in _last_name(callee):
            return [(tensors.handled(site(node, frame), node, world), world)]  # NeMo's avoids float16
        enabled, dtype = given.kwargs.get("enabled", fresh("enabled")), given.kwargs.get("dtype", sym("managed dtype"))
        return [(Autocast(site(node, frame), device_value(device), dtype, enabled, node=node), world)]
    values = given.values()
    if values and isinstance(values[0], (Tensor, Sym, Many, Items)) and _BACKWARD.search(_last_name(callee)):
        training.backward(m, values[0], node, world, frame, managed=True)
        return [(NONE, world)]
    if receiver is None and _clips(node, values):
        training.clip(m, containers.owners_in(values[0]), "norm", node, world, frame)
        return [(fresh("norm"), world)]
    if isinstance(receiver, Instance) and says_it_clips(_last_name(callee)):
        training.clip_by_method(node, world, frame)
    for value in values:
        protocol.hand_over(world, value)
        if isinstance(value, Scaler):
            m.observe(events.HandOver, node, world, frame, scaler=value, values=values)
        if isinstance(value, (Items, Mapping, Many)):
            for inner in containers.contents(value):
                protocol.hand_over(world, inner)
    if "save" in _last_name(callee):
        _perhaps_saved(m, given, node, world, frame, alone=receiver is None)
    carried = (receiver, *values) if isinstance(receiver, Tensor) else values
    plain = isinstance(callee, Sym) and not isinstance(next(iter(callee.parts), None), Tensor)
    in_region = tensors.region_of(world) is not None and plain and isinstance(node, ast.Call)
    result = tensors.opaque(carried, world, node)
    if result is not None and becomes_model(node, frame):
        return [(fresh("call"), world)]  # `net = Net(embeddings)`: what it is made with is not what it is
    if result is not None and isinstance(callee, Sym) and isinstance(frame.module.parents.get(node), ast.Expr):
        objects.fill(callee, values, node, world)  # it keeps what it made: `losses(out, y)`, then `losses.backward()`
    runner = next((one for one in (receiver, callee) if isinstance(one, Sym) and protocol.made_with(world, one)), None)
    if in_region or runner is not None:
        of = frozenset((callee if runner is None else runner,)) | (result.of if result else frozenset())
        result = tensors.opaque((), world, node, of)
    return [(result if result is not None else fresh("call"), world)]


def _perhaps_saved(m: Machine, given: Arguments, node: ast.AST, world: World, frame: Frame, alone: bool) -> None:
    """What says that it saves is given states; a function, no method (`alone`), may take those of optimizers itself."""
    named = (value for name, value in given.kwargs.items() if "meta" not in name)  # a label on what is saved
    saved = [containers.saved_parts(value) for value in (*given.args, *named)]
    parts = tuple(part for held, _, _ in saved for part in held)
    mapping = next((made for held, _, made in saved if any(isinstance(part, Optimizer) for part in held)), None)
    optimizers = [one for value in given.args for one in map(partial(_stepped, world), options(value)) if one]
    if mapping is None and alone and optimizers:
        mapping, parts = node, (*parts, *optimizers)  # a helper that takes the states of what it is handed
    if mapping is not None or any(isinstance(part, Scaler) for part in parts):
        m.observe(events.Save, node, world, frame, parts=parts, complete=False, mapping=mapping)


def _stepped(world: World, value: Value) -> Optimizer | None:
    """An optimizer, or what is not known and some function that was handed it uses as one."""
    one = Optimizer(value) if isinstance(value, Sym) else value
    known = isinstance(one, Optimizer) and (one is value or one in protocol.optimizers(world))
    return one if known and isinstance(one, Optimizer) else None


def _clips(node: ast.AST, values: tuple[Value, ...]) -> bool:
    """Whether something that is called as a function says that it clips gradients, and is given whose (not a tensor, as
    what clips in backward is); what is given a scaler or an optimizer may unscale them first."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if says_it_clips(name):
            others = (value for value in values if isinstance(value, Scaler | Optimizer | Object | Instance))
            return (
                bool(values)
                and not any(others)
                and not isinstance(values[0], Tensor)
                and bool(containers.owners_in(values[0]))
            )
    return False


def says_it_clips(name: str) -> bool:
    return _CLIPPING.search(name) is not None and _ASKS.match(name) is None


def _of_transformer_engine(callee: Value) -> bool:
    return isinstance(callee, Lib) and callee.name.startswith("transformer_engine")


def _last_name(callee: Value) -> str:
    match callee:
        case Lib():
            return callee.name.rpartition(".")[2]
        case Sym(kind="attr" | "name", parts=(_, str() as name)):
            return name
    return ""
