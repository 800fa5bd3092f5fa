"""Logarithms of probabilities: a sigmoid in half precision is 0 or 1 too soon, and the loss infinite there. It is in
float32 then."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from amplint.rewrite.islands.numbers import logarithm
from amplint.rewrite.islands.sigmoids import (
    Bare,
    Tail,
    There,
    is_layer,
    returned_by,
    sigmoid_behind,
    sigmoid_of,
    tail_of,
    unviewed,
)
from amplint.rewrite.models.used import used_by
from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.regions.derivation import Region, path
from amplint.rewrite.regions.lifts import lifts_of
from amplint.rewrite.scaler.definitions import definition
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module

REASON = "it takes the logarithm of a sigmoid, which is 0 or 1 too soon in half precision"
ADVICE = "use logsigmoid or binary_cross_entropy_with_logits on what the sigmoid is given"


def logarithms(reading: Reading, regions: Iterable[Region]) -> list[ast.expr | Tail | Bare | There]:
    """What the sigmoids are given that some regions take the logarithm of: these are computed in float32. Raises
    Refused where one is not known."""
    read = any(map(_has_sigmoid, reading.machine.loaded))
    if not read and not any(map(_has_sigmoid, used_by(reading.module, reading.machine.project))):
        return []
    forwards = lifts_of(reading).forwards
    found: list[ast.expr | Tail | Bare | There] = []
    for region in regions:
        outputs = {
            path(target)
            for one in region
            for node in ast.walk(one)
            if isinstance(node, ast.Assign) and any(inner in forwards for inner in ast.walk(node.value))
            for target in node.targets
        } - {""}
        for node in (inner for one in region for inner in ast.walk(one)):
            operand = logarithm(node) or _in_a_helper(reading.module, node)
            inside: set[ast.AST] = set()
            for inner in ast.walk(operand) if operand is not None else ():
                if inner in inside:
                    continue
                given = _given(reading.module, inner, region)
                known = inner in forwards or _path(inner) in outputs
                if given or (known if read else _made_elsewhere(reading.module, inner, region)):
                    inside |= set(ast.walk(inner))
                    found += given or [_behind(reading, inner)]
    return found


def _has_sigmoid(module: Module) -> bool:
    return any(node.attr in ("Sigmoid", "sigmoid") for node in module.nodes(ast.Attribute))


def _made_elsewhere(module: Module, node: ast.AST, region: Region) -> bool:
    """Whether a model computes what stands here whose class, in a file that the reading did not enter, returns a
    sigmoid."""
    values = [node]
    if text := _path(node):
        bound = (one for statement in region for one in ast.walk(statement) if isinstance(one, ast.Assign))
        values = [one.value for one in bound if any(_path(target) == text for target in one.targets)]
    called = {ast.unparse(one.func) for value in values for one in ast.walk(value) if isinstance(one, ast.Call)}
    for made in module.nodes(ast.Assign):
        if not any(ast.unparse(target) in called for target in made.targets):
            continue
        for call in (one for one in ast.walk(made.value) if isinstance(one, ast.Call)):
            match definition(module, call.func):
                case (where, ast.ClassDef() as cls):
                    if any(_ends_in(where, one, cls) for one in ast.walk(cls)):
                        return True
    return False


def _ends_in(module: Module, node: ast.AST, cls: ast.ClassDef) -> bool:
    """Whether a sigmoid is what a class's forward returns: not a gate on the way."""
    operand = sigmoid_of(module, node)
    if operand is not None and returned_by(module, operand) is cls:
        return True
    return isinstance(node, ast.Call) and is_layer(module, node) and tail_of(module, node) is not None


def _given(module: Module, node: ast.AST, region: Region) -> list[ast.expr | Tail | Bare | There]:
    """What is given to the sigmoid that is called here, or whose result a name stands for wherever it is bound."""
    made = [node]
    if isinstance(node, ast.Name):
        bound = (one for statement in region for one in ast.walk(statement) if isinstance(one, ast.Assign))
        made = [unviewed(one.value) for one in bound if any(_path(target) == node.id for target in one.targets)]
    operands = [sigmoid_of(module, one) for one in made]
    return [one for one in operands if one is not None] if None not in operands else []


def _path(node: ast.AST) -> str | None:
    return path(node) if isinstance(node, ast.Name | ast.Attribute) else None


def _behind(reading: Reading, node: ast.AST) -> ast.expr | Tail | Bare | There:
    try:
        return sigmoid_behind(reading, node)  # type: ignore[arg-type]
    except Refused:
        raise Refused(REASON, ADVICE) from None


def _in_a_helper(module: Module, node: ast.AST) -> ast.expr | None:
    """The operand of `log(p)`, where the file has `def log(x): return torch.log(x + 1e-8)`."""
    match node:
        case ast.Call(func=ast.Name(id=name), args=[given]):
            pass
        case _:
            return None
    for function in module.tree.body:
        match function:
            case ast.FunctionDef(
                name=own, args=ast.arguments(args=[ast.arg(arg=x), *_]), body=[*_, ast.Return() as end]
            ):
                operands = [logarithm(one) for one in ast.walk(end)] if own == name else []
                if any(getattr(one, "id", "") == x for inner in operands if inner for one in ast.walk(inner)):
                    return given
    return None
