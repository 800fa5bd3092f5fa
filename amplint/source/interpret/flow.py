"""Statements: how worlds flow through them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from amplint.source import events
from amplint.source.interpret import (
    attributes,
    calls,
    conditions,
    contexts,
    expressions,
    library_calls,
    objects,
    operators,
    subscripts,
    variables,
)
from amplint.source.interpret.frames import Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World, join_all
from amplint.source.symbols import ask, fresh, significant, sym
from amplint.source.values import (
    NONE,
    Autocast,
    Choice,
    Class,
    Const,
    Formula,
    Function,
    Imported,
    Items,
    Lib,
    Many,
    Mapping,
    Optimizer,
    Scaler,
    Sym,
    Tensor,
    Value,
)

MOST_ROUNDS = 3
DEEP = 5  # loops around a loop, from which on it gets one round


@dataclass(slots=True)
class Flow:
    """Where worlds go when they leave a block other than at its end."""

    returns: list[tuple[Value, World]] = field(default_factory=list)
    breaks: list[World] = field(default_factory=list)
    continues: list[World] = field(default_factory=list)
    yields: list[tuple[Value, World]] = field(default_factory=list)  # of a context manager, at its yield

    def stop(self, other: Flow) -> None:
        """Let what left an inner block by return or yield leave this one, too."""
        self.returns += other.returns
        self.yields += other.yields


def run(m: Machine, body: list[ast.stmt], worlds: list[World], frame: Frame, flow: Flow) -> list[World]:
    """Run a block in each world; returns the worlds that reach its end."""
    for statement in body:
        if not worlds:
            break
        after: list[World] = []
        for world in worlds:
            after += execute(m, statement, world, frame, flow)
        worlds = join_all(after) if len(after) > 1 else after
    return worlds


def execute(m: Machine, node: ast.stmt, world: World, frame: Frame, flow: Flow) -> list[World]:
    m.tick()
    match node:
        case ast.Expr():
            return _expression(m, node, world, frame, flow)
        case ast.Assign():
            return [
                after
                for value, before in expressions.evaluate(m, node.value, world, frame)
                for after in _assign_all(m, node.targets, _wrapped(node, value, before, frame), before, frame)
            ]
        case ast.AnnAssign():
            if node.value is None:
                return [world]
            return [
                after
                for value, before in expressions.evaluate(m, node.value, world, frame)
                for after in assign(m, node.target, value, before, frame)
            ]
        case ast.AugAssign():
            return _augmented(m, node, world, frame)
        case ast.If():
            return _if(m, node, world, frame, flow)
        case ast.For() | ast.AsyncFor():
            return _for(m, node, world, frame, flow)
        case ast.While():
            return _while(m, node, world, frame, flow)
        case ast.With() | ast.AsyncWith():
            return _with(m, node, list(node.items), world, frame, flow)
        case ast.Return():
            if node.value is None:
                flow.returns.append((NONE, world))
            else:
                flow.returns += expressions.evaluate(m, node.value, world, frame)
            return []
        case ast.Break():
            flow.breaks.append(world)
            return []
        case ast.Continue():
            flow.continues.append(world)
            return []
        case ast.Raise():
            return []
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return _define(m, node, world, frame)
        case ast.ClassDef():
            return _define_class(m, node, world, frame)
        case ast.Import() | ast.ImportFrom():
            _import(m, node, world, frame)
            return [world]
        case ast.Try() | ast.TryStar():
            return _try(m, node, world, frame, flow)
        case ast.Assert():
            outcomes = decide(m, node.test, world, frame)
            return [after for answer, after in outcomes if answer] or [world]
        case ast.Delete():
            for target in node.targets:
                if isinstance(target, ast.Name):
                    world.drop(frame.scope, target.id)
            return [world]
        case ast.Match():
            return _match(m, node, world, frame, flow)
    return [world]


# -- expressions and assignments ---------------------------------------------------------------------------------------


def _expression(m: Machine, node: ast.Expr, world: World, frame: Frame, flow: Flow) -> list[World]:
    inner = node.value
    if isinstance(inner, ast.Yield):
        results = [(NONE, world)] if inner.value is None else expressions.evaluate(m, inner.value, world, frame)
        flow.yields += [(value, after.copy()) for value, after in results]
        return [after for _, after in results]
    after = []
    for value, world_after in expressions.evaluate(m, inner, world, frame):
        if isinstance(value, Autocast) or (isinstance(value, Tensor) and value.made == "scale" and value.scaler):
            m.observe(events.Discard(node, frame, world_after.contexts, world_after.loops, world_after.facts, value))
        if not isinstance(value, Const) or value.value is not library_calls.NEVER:
            after.append(world_after)
    return after


def _wrapped(node: ast.Assign, value: Value, world: World, frame: Frame) -> Value:
    """`optimizer = Lookahead(optimizer)`: an unknown wrapper that takes its argument's name keeps its identity."""
    if isinstance(value, Sym) and isinstance(node.value, ast.Call) and len(node.targets) == 1:
        target = variables.path_text(node.targets[0])
        for argument in node.value.args:
            if isinstance(argument, ast.Name) and argument.id == target:
                old = world.get(frame.scope, target)
                if isinstance(old, Optimizer | Scaler):
                    return old
    return value


def _assign_all(m: Machine, targets: list[ast.expr], value: Value, world: World, frame: Frame) -> list[World]:
    worlds = [world]
    for target in targets:
        worlds = [after for before in worlds for after in assign(m, target, value, before, frame)]
    return worlds


def assign(m: Machine, target: ast.expr, value: Value, world: World, frame: Frame) -> list[World]:
    """Bind a target to a value."""
    match target:
        case ast.Name():
            value = variables.typed(m, value, target, world, frame)
            m.call(value, target.id)
            world.set(variables.scope_to_bind(target.id, frame), target.id, value)
            return [world]
        case ast.Attribute():
            return [
                after
                for owner, before in expressions.evaluate(m, target.value, world, frame)
                for after in attributes.set_attribute(m, owner, target, value, before, frame)
            ]
        case ast.Subscript():
            return [
                after
                for owner, before in expressions.evaluate(m, target.value, world, frame)
                for index, between in expressions.evaluate(m, target.slice, before, frame)
                for after in subscripts.set_item(m, owner, index, target, value, between, frame)
            ]
        case ast.Tuple() | ast.List():
            worlds = [world]
            for element, part in zip(target.elts, unpack(value, target.elts), strict=True):
                worlds = [after for before in worlds for after in assign(m, element, part, before, frame)]
            return worlds
        case ast.Starred():
            return assign(m, target.value, value, world, frame)
    return [world]


def unpack(value: Value, targets: list[ast.expr]) -> list[Value]:
    """The parts that each target of a tuple assignment gets."""
    count = len(targets)
    match value:
        case Items(items=items) if len(items) == count and not any(isinstance(t, ast.Starred) for t in targets):
            return list(items)
        case Choice():
            yes, no = unpack(value.yes, targets), unpack(value.no, targets)
            return [conditions.choice(value.formula, one, two) for one, two in zip(yes, no, strict=True)]
        case Many():
            return [Many(value.item) if isinstance(target, ast.Starred) else value.item for target in targets]
    return [subscripts.part(value, index) for index in range(count)]


def _augmented(m: Machine, node: ast.AugAssign, world: World, frame: Frame) -> list[World]:
    load = _as_load(node.target)
    return [
        after
        for old, w1 in expressions.evaluate(m, load, world, frame)
        for operand, w2 in expressions.evaluate(m, node.value, w1, frame)
        for new, w3 in operators.augmented(m, node, old, operand, w2, frame)
        for after in assign(m, node.target, new, w3, frame)
    ]


def _as_load(target: ast.expr) -> ast.expr:
    # the interpreter looks at the kind of node only, so a Store name evaluates like a Load name
    return target


# -- branches ----------------------------------------------------------------------------------------------------------


def decide(m: Machine, test: ast.expr, world: World, frame: Frame) -> list[tuple[bool, World]]:
    """Both possible answers to a condition, each with its world."""
    outcomes = []
    for value, after in expressions.evaluate(m, test, world, frame):
        formula = conditions.truth(value)
        m.describe(formula, test, frame)
        if not isinstance(formula, bool):
            m.asked.add(test)
        outcomes += after.decide(formula)
    return outcomes


def _if(m: Machine, node: ast.If, world: World, frame: Frame, flow: Flow) -> list[World]:
    if _is_main(node.test):
        return run(m, node.body, [world], frame, flow)
    if variables.path_text(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return [world]
    after: list[World] = []
    for answer, arm in decide(m, node.test, world, frame):
        after += run(m, node.body if answer else node.orelse, [arm], frame, flow)
    return join_all(after)


def _is_main(test: ast.expr) -> bool:
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()]):
            return True
    return False


def _match(m: Machine, node: ast.Match, world: World, frame: Frame, flow: Flow) -> list[World]:
    after: list[World] = []
    for value, rest in expressions.evaluate(m, node.subject, world, frame):
        current: World | None = rest
        ended: list[list[World]] = []
        for number, case in enumerate(node.cases):
            if current is None:
                break
            formula = _pattern(value, case.pattern, number)
            arms = dict(current.decide(formula))
            taken, current = arms.get(True), arms.get(False)
            if taken is not None:
                for name in ast.walk(case.pattern):
                    bound = getattr(name, "name", None)
                    if isinstance(bound, str):
                        taken.set(frame.scope, bound, fresh("matched"))
                ended.append(run(m, case.body, [taken], frame, flow))
        joined = [] if current is None else [current]
        for arm in reversed(ended):  # as if each case were the else of the one before it
            joined = join_all([*arm, *joined])
        after += joined
    return join_all(after)


def _pattern(value: Value, pattern: ast.pattern, number: int) -> Formula:
    match pattern:
        case ast.MatchValue(value=ast.Constant() as constant):
            return conditions.compare("==", value, Const(constant.value))
        case ast.MatchSingleton():
            return conditions.compare("is", value, Const(pattern.value))
        case ast.MatchOr():
            formula: Formula = False
            for option in pattern.patterns:
                formula = conditions.either(formula, _pattern(value, option, number))
            return formula
        case ast.MatchAs(pattern=None):
            return True
    return ask("matches", conditions.key(value), number)


def _try(m: Machine, node: ast.Try | ast.TryStar, world: World, frame: Frame, flow: Flow) -> list[World]:
    """Both edges: the body completes, or a handler runs from where the body began."""
    inner = Flow()
    fails = sym("fails", id(node)) if not world.loops else fresh("fails")
    arms = world.decide(ask("truth", fails)) if node.handlers else [(False, world)]
    after: list[World] = []
    for failed, arm in arms:
        if failed:
            for handler in node.handlers:
                start = arm.copy()
                if handler.name:
                    start.set(frame.scope, handler.name, fresh("exception"))
                after += run(m, handler.body, [start], frame, inner)
        else:
            done = run(m, node.body, [arm], frame, inner)
            after += run(m, node.orelse, done, frame, inner)
    after = join_all(after)
    if node.finalbody:
        ended = Flow()
        after = run(m, node.finalbody, after, frame, ended)
        for group in ("breaks", "continues"):
            setattr(inner, group, run(m, node.finalbody, getattr(inner, group), frame, ended))
        inner.returns = [
            (value, done) for value, before in inner.returns for done in run(m, node.finalbody, [before], frame, ended)
        ]
        flow.stop(ended)
    flow.stop(inner)
    flow.breaks += inner.breaks
    flow.continues += inner.continues
    return after


# -- loops -------------------------------------------------------------------------------------------------------------


def _for(m: Machine, node: ast.For | ast.AsyncFor, world: World, frame: Frame, flow: Flow) -> list[World]:
    after: list[World] = []
    for iterable, start in expressions.evaluate(m, node.iter, world, frame):
        for plain, before in calls.split(m, iterable, start):
            known = objects.elements(plain)
            if known is not None:
                after += _unrolled(m, node, known, before, frame, flow)
            else:
                item = lambda plain=plain: objects.element(m, plain, node.iter)  # noqa: E731
                after += rounds(m, node, before, frame, flow, item)
    return join_all(after)


def _unrolled(
    m: Machine, node: ast.For | ast.AsyncFor, items: list[Value], world: World, frame: Frame, flow: Flow
) -> list[World]:
    worlds, left = [world], Flow()
    seen: set[Value] = set()
    for item in items:
        optimizers = {one for one in objects.contents(item) if isinstance(one, Optimizer)}
        if optimizers & seen:
            continue  # one that was made in a loop stands for several: each has its turn once
        seen |= optimizers
        inner = Flow()
        worlds = [after for before in worlds for after in assign(m, node.target, item, before, frame)]
        worlds = join_all(run(m, node.body, worlds, frame, inner) + inner.continues)
        left.stop(inner)
        left.breaks += inner.breaks
    flow.stop(left)
    return join_all(run(m, node.orelse, worlds, frame, flow) + left.breaks)


def rounds(
    m: Machine,
    node: ast.For | ast.AsyncFor | ast.While,
    world: World,
    frame: Frame,
    flow: Flow,
    item: Callable[[], Value] | None = None,
) -> list[World]:
    """Run a loop's body until nothing new happens, three rounds at most; the rounds are kept apart in `m.rounds`.

    Below several loops one round has to do: three rounds of each of d loops are 3^d. It has to do, too, where each
    round gets another optimizer, and one stands for all of them: none comes again."""
    outer, worlds, breaks = world.loops, [world], []
    before: list[object] = []
    most = MOST_ROUNDS if len(outer) < DEEP else 1
    for number in range(1, MOST_ROUNDS + 1):
        inner = Flow()
        entering: list[World] = []
        logged = len(m.log)
        element = None if item is None else item()  # the same in all worlds: what one asks of it, the others may, too
        if element is not None and any(isinstance(one, Optimizer | Scaler) for one in objects.contents(element)):
            most = 1
        for one in worlds:
            one.loops = (*outer, events.Loop(node, frame, number))
            started = _uncounted(m, node, one, frame) if number > 1 else [one]
            for start in started:
                if isinstance(node, ast.While):
                    entering += [w for answer, w in decide(m, node.test, start, frame) if answer]
                else:
                    assert element is not None
                    entering += assign(m, node.target, element, start, frame)
        m.starts.setdefault((node, number), [w.trace for w in entering])
        worlds = join_all(run(m, node.body, entering, frame, inner) + inner.continues)
        m.rounds.setdefault((node, number), []).extend(world.copy() for world in worlds)
        flow.stop(inner)
        breaks += inner.breaks
        states = [state(w) for w in worlds]
        quiet = len(m.log) == logged
        if not worlds or quiet or number == most or (number > 1 and all(s in before for s in states)):
            break
        before = states
    ended = worlds or breaks
    for one in (*worlds, *breaks):
        one.loops = outer
    if not worlds and breaks:
        return join_all(breaks)
    return join_all(run(m, node.orelse, ended, frame, flow) + breaks)


def _uncounted(m: Machine, node: ast.For | ast.AsyncFor | ast.While, world: World, frame: Frame) -> list[World]:
    """A later round stands for all later ones: forget the numbers that the loop counts (`step += 1`)."""
    worlds = [world]
    for target in _counters(node):
        worlds = [
            after
            for one in worlds
            for value, before in expressions.evaluate(m, target, one, frame)
            for after in (
                assign(m, target, fresh("counter"), before, frame)
                if isinstance(value, Const) and type(value.value) in (int, float)
                else [before]
            )
        ]
    return worlds


@lru_cache(1024)
def _counters(node: ast.AST) -> tuple[ast.Name | ast.Attribute, ...]:
    """The names and fields that a loop adds to: `n += 1`, `self.n = self.n + 1`."""
    found: dict[str, ast.Name | ast.Attribute] = {}
    for inner in ast.walk(node):
        match inner:
            case ast.AugAssign(target=ast.Name() | ast.Attribute() as target):
                found.setdefault(ast.dump(target), target)
            case ast.Assign(targets=[ast.Name() | ast.Attribute() as target], value=ast.BinOp(left=left)) if isinstance(
                left, ast.Name | ast.Attribute
            ) and ast.unparse(left) == ast.unparse(target):
                found.setdefault(ast.dump(target), target)
    return tuple(found.values())


def state(world: World) -> object:
    """What decides how the next round goes: the protocol states."""
    from amplint.source.interpret.world import PROTOCOL

    return [world.space(owner) for owner in PROTOCOL]


def _while(m: Machine, node: ast.While, world: World, frame: Frame, flow: Flow) -> list[World]:
    return rounds(m, node, world, frame, flow)


# -- with --------------------------------------------------------------------------------------------------------------


def _with(
    m: Machine, node: ast.With | ast.AsyncWith, items: list[ast.withitem], world: World, frame: Frame, flow: Flow
) -> list[World]:
    """Enter the items one by one; leave them all together at the end."""
    if not items:
        return run(m, node.body, [world], frame, flow)
    first, rest = items[0], items[1:]
    outside = world.contexts
    after: list[World] = []
    inner = Flow()
    for value, before in expressions.evaluate(m, first.context_expr, world, frame):
        for bound, entered in contexts.enter(m, value, first.context_expr, node, before, frame):
            started = [entered]
            if first.optional_vars is not None:
                started = assign(m, first.optional_vars, bound, entered, frame)
            for one in started:
                after += _with(m, node, rest, one, frame, inner)
    leaving = [*after, *inner.breaks, *inner.continues, *(w for _, w in inner.returns)]
    for one in leaving:
        contexts.leave(one, outside)
    flow.stop(inner)
    flow.breaks += inner.breaks
    flow.continues += inner.continues
    return join_all(after)


# -- definitions -------------------------------------------------------------------------------------------------------


def _define(m: Machine, node: ast.FunctionDef | ast.AsyncFunctionDef, world: World, frame: Frame) -> list[World]:
    results = []
    for decorators, before in expressions.each(m, node.decorator_list, world, frame):
        for defaults, after in calls.defaults(m, node.args, before, frame):
            function = Function(node, frame, defaults, decorators, cls=None)
            after.set(variables.scope_to_bind(node.name, frame), node.name, function)
            results.append(after)
    return results


def _define_class(m: Machine, node: ast.ClassDef, world: World, frame: Frame) -> list[World]:
    results = []
    for bases, before in expressions.each(m, node.bases, world, frame, lazily=True):
        cls = Class(node, frame, bases)
        inner = Frame(cls, node, frame.module, frame, frame.caller, frame.call, roles={})
        for after in run(m, node.body, [before], inner, Flow()):
            after.set(variables.scope_to_bind(node.name, frame), node.name, cls)
            results.append(after)
    return join_all(results)


def _import(m: Machine, node: ast.Import | ast.ImportFrom, world: World, frame: Frame) -> None:
    scope = frame.scope
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            name = alias.name if alias.asname else top
            local = m.project.has(top)
            value: Value = Imported(name, "", 0, frame.module) if local else Lib(name)
            world.set(scope, alias.asname or top, value)
        return
    base = node.module or ""
    local = node.level > 0 or m.project.has(base.partition(".")[0])
    for alias in node.names:
        if alias.name == "*":
            if local:
                objects.import_star(m, Imported(base, "", node.level, frame.module), world, frame)
            elif base.startswith("torch"):
                world.set(scope, "*", Items((*_stars(world, scope), Const(base))))
            continue
        value = Imported(base, alias.name, node.level, frame.module) if local else Lib(f"{base}.{alias.name}")
        world.set(scope, alias.asname or alias.name, value)


def _stars(world: World, scope: object) -> tuple[Value, ...]:
    found = world.get(scope, "*")
    return found.items if isinstance(found, Items) else ()


__all__ = ["Flow", "Mapping", "assign", "decide", "execute", "run", "significant"]
