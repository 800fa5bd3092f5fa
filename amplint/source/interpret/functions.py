"""Functions of the project: they run with their real arguments, in a frame of their own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache

from amplint.source import tree
from amplint.source.interpret import (
    calls,
    classes,
    conditions,
    containers,
    contexts,
    expressions,
    protocol,
    statements,
    tensors,
    variables,
)
from amplint.source.interpret.frames import Arguments, Flow, Frame, Results
from amplint.source.interpret.machine import MOST_ASIDE, MOST_FRAMES, MOST_STEPS, Machine, Spent
from amplint.source.interpret.world import PROTOCOL, World, join_all
from amplint.source.module import FunctionNode
from amplint.source.symbols import ask, fresh, sym
from amplint.source.tree import last_name
from amplint.source.values import (
    NONE,
    Class,
    Const,
    Function,
    Instance,
    Items,
    Lib,
    Managing,
    Many,
    Mapping,
    Optimizer,
    Partial,
    Sym,
    Value,
)
from amplint.source.walk import children


def define_function(
    m: Machine, node: ast.FunctionDef | ast.AsyncFunctionDef, world: World, frame: Frame
) -> list[World]:
    results = []
    for decorators, before in expressions.each(m, node.decorator_list, world, frame):
        for given, after in defaults(m, node.args, before, frame):
            function = Function(node, frame, given, decorators)
            after.set(variables.scope_to_bind(node.name, frame), node.name, function)
            results.append(after)
    return results


def defaults(
    m: Machine, args: ast.arguments, world: World, frame: Frame
) -> list[tuple[tuple[tuple[str, Value], ...], World]]:
    """The values of a function's defaults, by parameter, as its definition evaluates them."""
    named = tree.defaults(args)
    return [
        (tuple((name, value) for (name, _), value in zip(named, values, strict=True)), after)
        for values, after in expressions.each(m, [default for _, default in named], world, frame)
    ]


@lru_cache(maxsize=4096)
def abstract(node: FunctionNode) -> bool:
    """Whether a function is there to be overridden: it says so, or only raises NotImplementedError."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    if any(last_name(one) == "abstractmethod" for one in decorators):
        return True
    body = node.body if isinstance(node.body, list) else []
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    match body:
        case [ast.Raise(exc=ast.Name(id="NotImplementedError") | ast.Call(func=ast.Name(id="NotImplementedError")))]:
            return True
    return False


@lru_cache(maxsize=4096)
def hollow(node: FunctionNode) -> bool:
    """Whether a function says nothing but what it is for: `...`, `pass`, `return`, a docstring."""
    body = node.body if isinstance(node.body, list) else [ast.Return(ast.Constant(0))]
    return all(
        isinstance(s, ast.Pass)
        or (isinstance(s, ast.Return) and s.value is None)
        or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        for s in body
    )


def _gives_nothing(node: FunctionNode, call: ast.AST | None, caller: Frame) -> bool:
    """Whether a call's result is used although the function returns none: what it stands for is defined elsewhere, in a
    subclass. Where nothing is made of the result it is a hook, which does nothing as it is."""
    return hollow(node) and not isinstance(caller.module.parents.get(call), ast.Expr)  # type: ignore[arg-type]


@lru_cache(maxsize=4096)
def shape(node: FunctionNode) -> tuple[bool, bool, frozenset[str]]:
    """(is a generator, defines functions or classes inside, names declared global or nonlocal)."""
    generator, nested = False, False
    outer: set[str] = set()
    pending: list[ast.AST] = list(node.body) if isinstance(node.body, list) else [node.body]
    while pending:
        inner = pending.pop()
        match inner:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() | ast.ClassDef():
                nested = True
                continue
            case ast.Yield() | ast.YieldFrom():
                generator = True
            case ast.Global() | ast.Nonlocal():
                outer |= set(inner.names)
        pending += children(inner)
    return generator, nested, frozenset(outer)


@lru_cache(maxsize=4096)
def keeps_results(node: FunctionNode) -> bool:
    """Whether a function runs once for the same arguments: @cache, @lru_cache(…), @cached_property."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    makers = [one.func if isinstance(one, ast.Call) else one for one in decorators]
    names = [last_name(maker) for maker in makers]
    return any(name in ("cache", "lru_cache", "cached_property") for name in names)


# -- calls -------------------------------------------------------------------------------------------------------------


def _asked_for(m: Machine, function: Function, caller: Frame | None) -> bool:
    """Whether to run a function whatever its words are: where a whole file is asked for, what that file calls, and
    what a training step calls."""
    if m.at is not None or m.alone or caller is None:
        return False
    return function.frame.module is m.project.main or m.relevance(caller.module).steps(caller.code)


def _in_region(m: Machine, function: Function, world: World, caller: Frame | None) -> bool:
    """Whether it is a method of a model that a training step calls under autocast, as it does its forward."""
    if m.alone or caller is None or not isinstance(function.owner, Instance):
        return False
    cls, region = function.owner.cls, tensors.region_of(world)
    return (
        region is not None
        and not region.assumed
        and m.relevance(caller.module).steps(caller.code)
        and classes.is_module(m, cls, world, function.frame)
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
    if caller is not None and m.end == MOST_STEPS and not (entry or enters) and _is_aside(function, caller):
        return _aside(m, function, given, node, world, caller, in_model)
    if caller is not None and (caller.depth() >= MOST_FRAMES or any(frame.code is code for frame in caller.stack())):
        if m.relevance(function.frame.module).steps(code):
            protocol.give_up(world)
        return calls.unknown(m, sym("recursive", id(code)), given, node, world, caller)
    idle = not _asked_for(m, function, caller) and not m.relevance(function.frame.module).matters(code, m.alone)
    idle = idle and not _in_region(m, function, world, caller)
    if caller is not None and (abstract(code) or idle or _gives_nothing(code, node, caller)):
        return calls.unknown(m, sym("attr", function.owner or NONE, function.name), given, node, world, caller)
    generator, nested, _ = shape(code)
    manager = any(isinstance(d, Lib) and d.name.endswith("contextmanager") for d in function.decorators)
    if generator and not manager and not entry:
        return [(Many(fresh("yielded")), world)]
    kept = None
    if caller is not None and keeps_results(code):
        kept = (code, function.owner, given.args, frozenset(given.kwargs.items()), given.open)
        known = world.get("kept results", kept)
        if isinstance(known, Value):
            return [(known, world)]
    m.entered.add(code)
    frame = new_frame(m, function, node, caller, entry)
    frame.in_model |= in_model
    bind(m, function, given, world, frame)
    outside, loops = world.contexts, world.loops
    before = set(world.space("gradients"))
    starts = [world]
    for decorator in reversed(function.decorators):
        starts = [after for one in starts for _, after in contexts.enter(m, decorator, code, code, one, frame)]
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
            at_yield.contexts, at_yield.loops = outside, loops
            results.append((Managing(added, bound), at_yield))
        return _join_results(results, frame)
    for _, after in left.returns:
        after.loops = loops  # it may have returned from within a loop
        if not enters:
            contexts.leave(after, outside)
    results = _join_results(left.returns, frame)
    for value, after in results:
        _clean_up(value, after, frame, before, nested)
        if kept is not None:
            after.set("kept results", kept, value)
    return results


def _is_aside(function: Function, caller: Frame) -> bool:
    """Whether a call leads into a file that takes no training step: what it does there must not use up the work that
    the step needs."""
    module = function.frame.module
    return module is not caller.module and not module.says("step(")


def _aside(
    m: Machine, function: Function, given: Arguments, node: ast.AST, world: World, caller: Frame, in_model: bool
) -> Results:
    """Run a function within its share of the work; beyond it, the call is one that is not known."""
    before = world.copy()
    m.end = min(m.steps + MOST_ASIDE, MOST_STEPS - 1)
    try:
        return call_function(m, function, given, node, world, caller, in_model=in_model)
    except Spent:
        unknown = sym("attr", function.owner or NONE, function.name)
        return calls.unknown(m, unknown, given, node, before, caller)
    finally:
        m.end = MOST_STEPS


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


# What can hold, or be, a function or an optimizer: a large world is full of other things.
_HOLDERS = frozenset((*containers.CONTAINERS, Function, Class, Instance, Partial, Optimizer))


def _clean_up(value: Value, world: World, frame: Frame, known: set[Value], nested: bool) -> None:
    """Forget what ends with a call: its variables, unless a function or class defined in it lives on, and the gradients
    of optimizers that nothing holds any more."""
    made = [optimizer for optimizer in world.space("gradients") if optimizer not in known]
    if nested and any(_defined_in(one, frame) for one in _left(value, world, frame)):
        return
    for optimizer in made:
        if isinstance(optimizer.site, int) and all(one != optimizer for one in _left(value, world, frame)):
            world.drop("gradients", optimizer)
            for key in list(world.space("updates")):
                if key[1] == optimizer:
                    world.drop("updates", key)
    world.forget(frame.scope)


def _left(value: Value, world: World, frame: Frame) -> Iterator[Value]:
    """The functions and optimizers that a call leaves: in what it returned, in its object, where most of them are, and
    then wherever else, which is a long way in a large world."""
    own = world.spaces.get(frame.scope)
    spaces = (space for owner, space in world.spaces.items() if space is not own and owner not in PROTOCOL)
    for space in ({"": value}, world.space(frame.owner), *spaces):
        for one in space.values():
            if type(one) in _HOLDERS:
                yield from containers.contents(one) if isinstance(one, containers.CONTAINERS) else (one,)


def _defined_in(value: Value, frame: Frame) -> bool:
    if isinstance(value, Partial):
        return _defined_in(value.function, frame)
    if isinstance(value, Instance):
        return _defined_in(value.cls, frame)
    return isinstance(value, Function | Class) and value.frame is frame


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


# -- parameters --------------------------------------------------------------------------------------------------------


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
