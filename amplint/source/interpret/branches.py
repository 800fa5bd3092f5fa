"""Branches: `if`, `match` and `try` send worlds different ways."""

from __future__ import annotations

import ast

from amplint.source.interpret import conditions, expressions, protocol, statements, variables
from amplint.source.interpret.frames import Flow, Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World, join_all
from amplint.source.symbols import ask, fresh, sym
from amplint.source.values import Const, Formula, Value
from amplint.source.walk import walk


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


def run_if(m: Machine, node: ast.If, world: World, frame: Frame, flow: Flow) -> list[World]:
    if _is_main(node.test) and frame.module is not m.project.main:
        return statements.run(m, node.orelse, [world], frame, flow)
    if _is_main(node.test):
        return statements.run(m, node.body, [world], frame, flow)
    if variables.path_text(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return [world]
    after: list[World] = []
    met = m.ways.setdefault(node, (frame.module, set()))[1]
    told = frame.module.says("OptState") and _asks_the_scaler(frame, node.test)
    for answer, arm in decide(m, node.test, world, frame):
        met.add(answer)
        if told:
            protocol.give_up(arm)
        after += statements.run(m, node.body if answer else node.orelse, [arm], frame, flow)
    return join_all(after)


def _asks_the_scaler(frame: Frame, test: ast.expr) -> bool:
    """Whether a condition asks what the scaler itself has noted of an optimizer: then the code knows how its gradients
    stand, and amplint does not."""
    return "OptState" in frame.module.source(test)


def _is_main(test: ast.expr) -> bool:
    match test:
        case ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()]):
            return True
    return False


def run_match(m: Machine, node: ast.Match, world: World, frame: Frame, flow: Flow) -> list[World]:
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
                for name in walk(case.pattern):
                    bound = getattr(name, "name", None)
                    if isinstance(bound, str):
                        taken.set(frame.scope, bound, fresh("matched"))
                ended.append(statements.run(m, case.body, [taken], frame, flow))
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


def run_try(m: Machine, node: ast.Try | ast.TryStar, world: World, frame: Frame, flow: Flow) -> list[World]:
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
                after += statements.run(m, handler.body, [start], frame, inner)
        else:
            done = statements.run(m, node.body, [arm], frame, inner)
            after += statements.run(m, node.orelse, done, frame, inner)
    after = join_all(after)
    if node.finalbody:
        ended = Flow()
        after = statements.run(m, node.finalbody, after, frame, ended)
        for group in ("breaks", "continues"):
            setattr(inner, group, statements.run(m, node.finalbody, getattr(inner, group), frame, ended))
        inner.returns = [
            (value, done)
            for value, before in inner.returns
            for done in statements.run(m, node.finalbody, [before], frame, ended)
        ]
        flow.stop(ended)
    flow.stop(inner)
    flow.breaks += inner.breaks
    flow.continues += inner.continues
    return after
