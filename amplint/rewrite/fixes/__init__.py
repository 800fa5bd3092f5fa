"""The fixes that findings carry: one module a family, as in checks/. A shape that cannot be edited gets no fix."""

from __future__ import annotations

import ast
from collections.abc import Callable

from amplint.findings import Applicability, Edit, Fix
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import names_in, parameters, place_of, stored_names
from amplint.source.walk import walk


def attempt(message: str, applicability: Applicability, build: Callable[[], list[Edit]]) -> Fix | None:
    """The fix that `build` makes, or None where its shape cannot be edited."""
    from amplint.rewrite.edits import CannotEdit

    try:
        edits = build()
    except CannotEdit:
        return None
    return Fix(message, applicability, tuple(sorted(set(edits)))) if edits else None


def roots(text: str) -> set[str]:
    """The names that an expression starts from: `self` and `i` in `self.scalers[i]`."""
    return names_in(ast.parse(text, mode="eval"))


def bound_before(module: Module, text: str, place: ast.AST) -> bool:
    """Whether the names in `text` have their values where `place` stands: no local of its function that is only
    assigned further down; no text names nothing (a method that was called by a name of its own)."""
    if not text:
        return False
    function = module.function(place)
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return True
    for name in roots(text).difference(parameters(function)):
        stores = [place_of(node) for node in module.stores(name, function)]
        if stores and min(stores) >= place_of(place):
            return False
    return True


def surely_bound(module: Module, text: str, place: ast.AST) -> bool:
    """Whether the names in `text` have values at a place whatever the branches above took: `if fp16: dtype = …` alone
    gives `dtype` none. Loops and attempts are taken to have run."""
    scope = module.scope(place)
    here = conditions_above(module, place)
    tests = {(ast.unparse(branch.test), arm) for branch, arm in here if isinstance(branch, ast.If)}

    def is_met(node: ast.AST) -> bool:
        return all(
            (branch, arm) in here or (ast.unparse(branch.test), arm) in tests or "__main__" in ast.unparse(branch.test)
            for branch, arm in conditions_above(module, node)
            if isinstance(branch, ast.If)
        )

    for name in roots(text):
        stores = [
            node
            for node in walk(scope)
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
            if module.scope(node) is scope and node.lineno < place.lineno  # type: ignore[attr-defined]
        ]
        branches = {one for node in stores for one, _ in conditions_above(module, node) if isinstance(one, ast.If)}
        whole = any(_binds([one], name) and is_met(one) for one in branches)
        if stores and not whole and not any(map(is_met, stores)):
            return False
    return True


def _binds(block: list[ast.stmt], name: str) -> bool:
    """Whether a block gives a name a value whichever way it goes, or leaves."""
    for statement in block:
        match statement:
            case ast.If(body=body, orelse=orelse):
                if orelse and _binds(body, name) and _binds(orelse, name):
                    return True
            case ast.Raise() | ast.Return() | ast.Continue() | ast.Break():
                return True
            case _:
                if name in stored_names(statement):
                    return True
    return False


def suite_of(module: Module, statement: ast.stmt) -> list[ast.stmt]:
    """The block that a statement stands in."""
    parent = module.parents[statement]
    for _, block in ast.iter_fields(parent):
        if isinstance(block, list) and statement in block:
            return block
    return [statement]


def conditions_above(module: Module, node: ast.AST) -> list[tuple[ast.AST, str]]:
    """The branches and loops that a node stands under inside its function, each with the arm it is in."""
    above: list[tuple[ast.AST, str]] = []
    inner = node
    for parent in module.ancestors(node):
        if isinstance(parent, FunctionNode):
            break
        if isinstance(parent, ast.If | ast.For | ast.While | ast.Try | ast.Match | ast.match_case | ast.ExceptHandler):
            arm = next((name for name, part in ast.iter_fields(parent) if isinstance(part, list) and inner in part), "")
            above.append((parent, arm))
        inner = parent
    return above


def asks_for(condition: tuple[ast.AST, str], text: str) -> bool:
    """Whether a branch is the one for where something exists: `if optimizer is not None:`."""
    match condition:
        case (ast.If(test=ast.Compare(left=asked, ops=[ast.IsNot()], comparators=[ast.Constant(value=None)])), "body"):
            return ast.unparse(asked) == text
        case (ast.If(test=asked), "body"):
            return ast.unparse(asked) == text
    return False


def steps_either_way(condition: tuple[ast.AST, str], stepper: str) -> bool:
    """Whether the other arms of a branch take a step with the same optimizer, as well."""
    branch, arm = condition
    if not isinstance(branch, ast.If) or arm not in ("body", "orelse"):
        return False
    other = branch.orelse if arm == "body" else branch.body
    if len(other) == 1 and isinstance(inner := other[0], ast.If):
        return steps_either_way((inner, "body"), stepper) and steps_either_way((inner, "orelse"), stepper)
    calls = (one.value.func for one in other if isinstance(one, ast.Expr) and isinstance(one.value, ast.Call))
    methods = (one for one in calls if isinstance(one, ast.Attribute) and "step" in one.attr)
    return any(ast.unparse(one.value) == stepper for one in methods)
