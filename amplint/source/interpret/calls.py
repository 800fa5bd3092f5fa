"""Calls: local functions run with their real arguments, objects act by what they are, the rest is unknown."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from functools import lru_cache

from amplint.source import events
from amplint.source.interpret import (
    attributes,
    conditions,
    contexts,
    expressions,
    library_calls,
    methods,
    objects,
    protocol,
    statements,
    tensors,
)
from amplint.source.interpret.frames import Arguments, Flow, Frame, Results
from amplint.source.interpret.machine import MOST_FRAMES, Machine, device_value, site
from amplint.source.interpret.world import PROTOCOL, World, join_all
from amplint.source.module import FunctionNode
from amplint.source.symbols import ask, fresh, significant, sym
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
    Managing,
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

_BACKWARD = re.compile(r"(?:^|_)backwards?$")  # what something unknown that runs backward is called: manual_backward


def evaluate_call(m: Machine, node: ast.Call, world: World, frame: Frame) -> Results:
    function = node.func
    if isinstance(function, ast.Name) and function.id == "super":
        return [(objects.Super(frame.owner or NONE, frame.cls or NONE), world)]
    if isinstance(function, ast.Attribute):
        return [
            result
            for owner, w1 in expressions.evaluate(m, function.value, world, frame)
            for given, w2 in arguments(m, node, w1, frame)
            for result in call_attribute(m, owner, function.attr, given, node, w2, frame)
        ]
    return [
        result
        for callee, w1 in expressions.evaluate(m, function, world, frame)
        for given, w2 in arguments(m, node, w1, frame)
        for result in call(m, callee, given, node, w2, frame)
    ]


def arguments(m: Machine, node: ast.Call, world: World, frame: Frame) -> list[tuple[Arguments, World]]:
    results = []
    for values, w1 in expressions.each(m, node.args, world, frame):
        args: list[Value] = []
        more = False
        for argument, value in zip(node.args, values, strict=True):
            if isinstance(argument, ast.Starred):
                known = objects.elements(value)
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
                elif isinstance(value, Mapping):
                    kwargs |= {str(key.value): item for key, item in value.items if isinstance(key, Const)}
                    open_ended |= value.open
                else:
                    open_ended = True
            results.append((Arguments(tuple(args), kwargs, open_ended), w2))
    return results


def call_attribute(
    m: Machine, owner: Value, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results:
    """`owner.name(…)`."""
    if isinstance(owner, Imported):
        return call_attribute(m, objects.resolve(m, owner, world, frame), name, given, node, world, frame)
    if isinstance(owner, Choice):
        return [
            result
            for plain, after in split(m, owner, world)
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
    if not significant(value) and not objects.tells(value):
        return [(objects.blend(value), world)]
    return [
        result
        for answer, after in world.decide(value.formula)
        for result in split(m, value.yes if answer else value.no, after)
    ]


def call(m: Machine, callee: Value, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """`callee(…)`."""
    match callee:
        case Function():
            return call_function(m, callee, given, node, world, frame)
        case Class():
            return instantiate(m, callee, given, node, world, frame)
        case Lib():
            return library_calls.call(m, callee.name, given, node, world, frame)
        case Imported():
            return call(m, objects.resolve(m, callee, world, frame), given, node, world, frame)
        case Partial():
            merged = Arguments((*callee.args, *given.args), {**dict(callee.kwargs), **given.kwargs}, given.open)
            return call(m, callee.function, merged, node, world, frame)
        case Bound():
            return call_attribute(m, callee.receiver, callee.name, given, node, world, frame)
        case Choice():
            return [
                result
                for plain, after in split(m, callee, world)
                for result in call(m, plain, given, node, after, frame)
            ]
        case Instance():
            return call_instance(m, callee, given, node, world, frame)
        case Model():
            return methods.forward(m, callee, given, node, world, frame)
        case Object(kind="managed"):  # an engine that is called is the model it wraps
            return methods.forward(m, callee, given, node, world, frame)
        case Object(kind="callable-scaler"):
            return methods.scale_and_step(m, callee, given, node, world, frame)
        case Sym(kind="attr", parts=(Value() as owner, str() as name)):
            if not m.is_model(callee):
                return call_method(m, owner, name, given.args, given.kwargs, node, world, frame, given.open)
        case Const():
            return [] if callee == NONE else [(fresh("call"), world)]
    if m.is_model(callee):
        return methods.forward(m, callee, given, node, world, frame)
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
    if isinstance(owner, Instance | objects.Super | Class):
        found = objects.member(m, owner, name, node, world, frame)
        if found is not None:
            return [result for value, after in found for result in call(m, value, given, node, after, frame)]
    result = methods.call(m, owner, name, given, node, world, frame)
    if result is not None:
        return result
    callee = sym("attr", owner, name)
    if m.is_model(callee):
        return methods.forward(m, callee, given, node, world, frame)
    stored = world.get(owner, name)
    if isinstance(stored, Value):
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
    if "autocast" in _last_name(callee):
        device = given.kwargs.get("device_type") or (given.args[0] if given.args else None)
        enabled, dtype = given.kwargs.get("enabled", fresh("enabled")), given.kwargs.get("dtype", sym("managed dtype"))
        return [(Autocast(site(node, frame), device_value(device), dtype, enabled, node=node), world)]
    values = given.values()
    if values and isinstance(values[0], Tensor | Sym | Many | Items) and _BACKWARD.search(_last_name(callee)):
        methods.backward(m, values[0], node, world, frame, managed=True)
        return [(NONE, world)]
    for value in values:
        protocol.hand_over(world, value)
        if isinstance(value, Scaler):
            handed = events.HandOver(node, frame, world.contexts, world.loops, world.facts, value, values)
            m.observe(handed)
        if isinstance(value, Items | Mapping | Many):
            for inner in objects.contents(value):
                protocol.hand_over(world, inner)
    if "save" in _last_name(callee):
        parts = tuple(part for value in values for part in library_calls.saved_parts(value)[0])
        if any(isinstance(part, Scaler) for part in parts):
            m.observe(events.Save(node, frame, world.contexts, world.loops, world.facts, parts, False))
    carried = (receiver, *values) if isinstance(receiver, Tensor) else values
    plain = isinstance(callee, Sym) and not isinstance(next(iter(callee.parts), None), Tensor)
    in_region = tensors.region_of(world) is not None and plain and isinstance(node, ast.Call)
    result = tensors.opaque(carried, world, node)
    if in_region:
        of = frozenset((callee,)) | (result.of if result else frozenset())
        result = tensors.opaque((), world, node, of)
    return [(result if result is not None else fresh("call"), world)]


def _last_name(callee: Value) -> str:
    match callee:
        case Lib():
            return callee.name.rpartition(".")[2]
        case Sym(kind="attr" | "name", parts=(_, str() as name)):
            return name
    return ""


# -- functions ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def abstract(node: FunctionNode) -> bool:
    """Whether a function is there to be overridden: it only raises NotImplementedError."""
    body = node.body if isinstance(node.body, list) else []
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    match body:
        case [ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError")))]:
            return True
    return False


@lru_cache(maxsize=4096)
def shape(node: FunctionNode) -> tuple[bool, bool, frozenset[str]]:
    """(is a generator, defines functions or classes inside, names declared global or nonlocal)."""
    generator, nested = False, False
    outer: set[str] = set()
    pending: list[ast.AST] = list(node.body) if isinstance(node.body, list) else [node.body]
    while pending:
        inner = pending.pop()
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            nested = True
            continue
        generator |= isinstance(inner, ast.Yield | ast.YieldFrom)
        if isinstance(inner, ast.Global | ast.Nonlocal):
            outer |= set(inner.names)
        pending += ast.iter_child_nodes(inner)
    return generator, nested, frozenset(outer)


def new_frame(m: Machine, function: Function, node: ast.AST | None, caller: Frame | None, entry: bool = False) -> Frame:
    code, module = function.node, function.frame.module
    parent = function.frame
    roles: dict[str, str] = {}
    if isinstance(parent.code, ast.ClassDef):
        own_name = code.args.args[0].arg if code.args.args else "self"
        prefix = own_name + "."
        roles |= {path: role for path, role in m.roles(module, parent.code).items() if path.startswith(prefix)}
    elif not isinstance(parent.code, ast.Module):
        roles |= parent.roles
    roles |= m.roles(module, code)
    return Frame(
        m.scope(),
        code,
        module,
        parent,
        caller,
        node,
        function.owner,
        function.cls,
        roles,
        shape(code)[2],
        caller is not None and caller.in_model,
        entry,
        m.round if entry else 1,
    )


def call_function(
    m: Machine,
    function: Function,
    given: Arguments,
    node: ast.AST,
    world: World,
    caller: Frame | None,
    *,
    in_model: bool = False,
    entry: bool = False,
    enters: bool = False,
) -> Results:
    """Run a function's body with these arguments. `enters`: what it has entered stays so after it."""
    code = function.node
    if caller is not None and (caller.depth() >= MOST_FRAMES or any(frame.code is code for frame in caller.stack())):
        if m.relevance(function.frame.module).steps(code):
            protocol.give_up(world)
        return unknown(m, sym("recursive", id(code)), given, node, world, caller)
    idle = caller is not None and not m.relevance(function.frame.module).matters(code, m.alone)
    if caller is not None and (abstract(code) or idle):
        return unknown(m, sym("attr", function.owner or NONE, function.name), given, node, world, caller)
    generator, nested, _ = shape(code)
    manager = any(isinstance(d, Lib) and d.name.endswith("contextmanager") for d in function.decorators)
    if generator and not manager and not entry:
        return [(Many(fresh("yielded")), world)]
    m.entered.add(code)
    frame = new_frame(m, function, node, caller, entry)
    frame.in_model |= in_model
    bind(m, function, given, world, frame)
    outside = world.contexts
    known = set(world.space("gradients"))
    starts = [world]
    for decorator in reversed(function.decorators):
        starts = [after for before in starts for _, after in contexts.enter(m, decorator, code, code, before, frame)]
    left = Flow()
    if isinstance(code, ast.Lambda):
        for start in starts:
            left.returns += expressions.evaluate(m, code.body, start, frame)
    else:
        ended = statements.run(m, code.body, starts, frame, left)
        left.returns += [(NONE, after) for after in ended]
    if manager and left.yields:
        results: Results = []
        for bound, at_yield in left.yields:
            added = at_yield.contexts[len(outside) :]
            at_yield.contexts = outside
            results.append((Managing(added, bound), at_yield))
        return _join_results(results, frame)
    for _, after in left.returns if not enters else ():
        contexts.leave(after, outside)
    results = _join_results(left.returns, frame)
    for value, after in results:
        _clean_up(value, after, frame, known, nested)
    return results


def _clean_up(value: Value, world: World, frame: Frame, known: set[Value], nested: bool) -> None:
    """Forget what ends with a call: its variables, unless a function defined in it lives on, and the gradients of
    optimizers that nothing holds any more."""
    made = [optimizer for optimizer in world.space("gradients") if optimizer not in known]
    if nested or made:
        held = [
            inner
            for owner, space in (*world.spaces.items(), (None, {"": value}))
            if owner != frame.scope and owner not in PROTOCOL
            for one in space.values()
            if isinstance(one, Value)
            for inner in objects.contents(one)
        ]
        lives_on = nested and any(isinstance(one, Function | Partial) and _defined_in(one, frame) for one in held)
        if lives_on:
            return
        for optimizer in made:
            if optimizer not in held and isinstance(optimizer.site, int):
                world.drop("gradients", optimizer)
                for key in list(world.space("updates")):
                    if key[1] == optimizer:
                        world.drop("updates", key)
    world.forget(frame.scope)


def _defined_in(value: Value, frame: Frame) -> bool:
    if isinstance(value, Partial):
        return _defined_in(value.function, frame)
    return isinstance(value, Function) and value.frame is frame


def _join_results(results: Results, frame: Frame) -> Results:
    """Join worlds that differ in nothing but what was returned into one that returns a Choice."""
    if len(results) < 2:
        return results
    for value, world in results:
        world.set("returned", frame.scope, value)
    joined = []
    for world in join_all(world for _, world in results):
        joined.append((world.get("returned", frame.scope), world))
        world.drop("returned", frame.scope)
    return joined


def defaults(
    m: Machine, args: ast.arguments, world: World, frame: Frame
) -> list[tuple[tuple[tuple[str, Value], ...], World]]:
    """The values of a function's defaults, by parameter, as its definition evaluates them."""
    positional = [*args.posonlyargs, *args.args]
    named = [(p.arg, d) for p, d in zip(positional[len(positional) - len(args.defaults) :], args.defaults, strict=True)]
    named += [(p.arg, d) for p, d in zip(args.kwonlyargs, args.kw_defaults, strict=True) if d is not None]
    return [
        (tuple((name, value) for (name, _), value in zip(named, values, strict=True)), after)
        for values, after in expressions.each(m, [default for _, default in named], world, frame)
    ]


def bind(m: Machine, function: Function, given: Arguments, world: World, frame: Frame) -> None:
    """Bind parameters; then make every optimizer that the code is handed known, before its first event."""
    spec = function.node.args
    args = (function.owner, *given.args) if function.owner is not None else given.args
    positional = [*spec.posonlyargs, *spec.args]
    default = dict(function.defaults)
    scope = frame.scope
    for parameter, value in zip(positional, args, strict=False):
        world.set(scope, parameter.arg, value)
    rest = args[len(positional) :]
    if spec.vararg is not None:
        unknown_rest = given.open or frame.entry
        world.set(scope, spec.vararg.arg, Many(argument(frame, spec.vararg.arg)) if unknown_rest else Items(rest))
    named = [*positional[len(args) :], *spec.kwonlyargs]
    for parameter in named:
        name = parameter.arg
        if name in given.kwargs:
            value = given.kwargs[name]
        elif frame.entry or given.open or name not in default:
            value = _entry_value(frame, name, default.get(name))
        else:
            value = default[name]
        world.set(scope, name, value)
    if spec.kwarg is not None:
        names = {parameter.arg for parameter in (*positional, *spec.kwonlyargs)}
        extra = tuple((Const(name), value) for name, value in given.kwargs.items() if name not in names)
        world.set(scope, spec.kwarg.arg, Mapping(extra, given.open or frame.entry))
    for path, role in frame.roles.items():
        if role.startswith("optimizer"):
            make_known(m, path, world, frame)


def make_known(m: Machine, path: str, world: World, frame: Frame) -> None:
    """Look at a path that the code uses as an optimizer, if it can be reached already."""
    name, *rest = path.split(".")
    value = world.get(frame.scope, name)
    if value is None or "[" in path:
        return
    node = ast.parse(path, mode="eval").body
    if rest and not isinstance(value, Instance | Sym):
        return
    expressions.evaluate(m, ast.copy_location(node, frame.code), world, frame)


def argument(frame: Frame, name: str) -> Sym:
    return sym("argument", id(frame.code), name)


def _entry_value(frame: Frame, name: str, default: Value | None) -> Value:
    """What a parameter may hold when nothing calls the function. Defaults that look like an eps or a mask constant may
    well be what it gets; flags and counts are left open."""
    unknown_value = argument(frame, name)
    match default:
        case Const(value=float() as number) if 0 < abs(number) <= 1e-2 or abs(number) > 1e4:
            return conditions.choice(ask("given", unknown_value), unknown_value, default)
    return unknown_value


# -- objects -----------------------------------------------------------------------------------------------------------


def instantiate(m: Machine, cls: Class, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """Make an object of a project class and run its __init__."""
    bases = objects.library_bases(m, cls, world, frame)
    place = site(node, frame)
    api = m.library.find_first(bases)
    if api is not None and api.returns == "optimizer":
        bound = api.bind(given.args, given.kwargs)
        of = library_calls.owners_in(api.argument("parameters", bound))
        optimizer = Optimizer(place, of, cls.node.name, node)
        protocol.register(world, optimizer)
        m.emit(events.Create, node, world, frame, value=optimizer)
        return [(optimizer, world)]
    if (
        api is not None
        and api.returns == "scaler"
        and not objects.overrides(cls, ("scale", "step", "unscale_", "update"))
    ):
        scaler = Scaler(place, given.kwargs.get("enabled", Const(True)), node)
        m.emit(events.Create, node, world, frame, value=scaler)
        return [(scaler, world)]
    instance = Instance(cls, place)
    if m.alone:
        return [(instance, world)]
    init = objects.method(m, cls, "__init__", world, frame)
    if init is None:
        objects.fill_fields(cls, instance, given.args, given.kwargs, world)
        return [(instance, world)]
    function = replace(init, owner=instance)
    return [(instance, after) for _, after in call_function(m, function, given, node, world, frame)]


def call_instance(
    m: Machine, instance: Instance, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results:
    """`instance(…)`: __call__, or the forward of a module."""
    function = objects.method(m, instance.cls, "__call__", world, frame)
    if function is not None:
        return call_function(m, replace(function, owner=instance), given, node, world, frame)
    return methods.forward(m, instance, given, node, world, frame)


def enter_instance(m: Machine, instance: Instance, node: ast.AST, world: World, frame: Frame) -> Results:
    """`with` an object of the project's own: what its __enter__ enters is entered."""
    function = objects.method(m, instance.cls, "__enter__", world, frame)
    if function is None:
        return call_method(m, instance, "__enter__", (), {}, node, world, frame)
    return call_function(m, replace(function, owner=instance), Arguments(), node, world, frame, enters=True)
