"""Where a name has its optimizer: behind one statement, or behind several that choose one."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import partial

from amplint.rewrite.fixes import conditions_above, suite_of
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.scaler.definitions import functions_called, functions_of, methods_called
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import positional

UNSEEN = "the optimizer comes from elsewhere: amplint does not see it being made"
SOMETIMES = "the optimizer exists only under some conditions"
SEVERAL = "the optimizer is bound in several places"
_PLAIN = (  # in a condition that is answered alike twice
    ast.Name, ast.Attribute, ast.Constant, ast.Compare, ast.UnaryOp, ast.BoolOp,
    ast.expr_context, ast.cmpop, ast.unaryop, ast.boolop,
)  # fmt: skip


def bound_at(module: Module, text: str, found: Sequence[ast.stmt], use: ast.AST) -> ast.stmt:
    """The statement behind which a name or field has its optimizer, of those that bind it: the one that does, the
    `if … elif …` whose arms do, or the first, where later phases bind it again. `= None` is only a placeholder."""
    real = [one for one in found if not (isinstance(one, ast.Assign | ast.AnnAssign) and _is_none(one.value))]
    real = [one for one in real if not _gives_back(module, text, one)]
    if not real:
        raise Refused(UNSEEN, BY_HAND)
    if not all(isinstance(one, ast.Assign | ast.AnnAssign) for one in real):
        raise Refused("the optimizer is bound by a loop, a `with` or an import", BY_HAND)
    statement = real[0] if len(real) == 1 else _first(module, text, found, real, use)
    own = conditions_above(module, use)
    above = conditions_above(module, statement)
    while above and not _holds(above[0], own) and (only := _only_way(*above[0])) is not None:
        statement, above = only, above[1:]
    missing = [one for one in above if not _holds(one, own)]
    missing = [one for one in missing if not isinstance(one[0], ast.Try)]
    if missing and module.function(statement) is module.function(use):
        raise Refused(SOMETIMES, BY_HAND)
    field = text.startswith("self.")  # its scaler, beside it, exists whenever it does
    unsure = ast.ExceptHandler | ast.match_case if field else ast.If | ast.ExceptHandler | ast.match_case
    if any(isinstance(one, unsure) for one, _ in missing):
        raise Refused(SOMETIMES, BY_HAND)
    return statement


def _only_way(node: ast.AST, arm: str) -> ast.If | None:
    """An `if` behind which nothing runs if its other arm is taken."""
    return node if isinstance(node, ast.If) and _ends(node.orelse if arm == "body" else node.body) else None


def _ends(block: Sequence[ast.stmt]) -> bool:
    match block[-1] if block else None:
        case ast.Raise() | ast.Return():
            return True
        case ast.Expr(value=ast.Call(func=ast.Name(id="exit" | "quit") | ast.Attribute(attr="exit"))):
            return True
        case ast.If(body=body, orelse=orelse):
            return _ends(body) and _ends(orelse)
    return False


def _is_none(value: ast.expr | None) -> bool:
    return value is None or (isinstance(value, ast.Constant) and value.value is None)


def _holds(condition: tuple[ast.AST, str], own: Sequence[tuple[ast.AST, str]]) -> bool:
    """Whether a branch is taken where the optimizer is used, as well: it is the same, asks the same, or asks whether
    the file is run as a script, without which nothing would be there."""
    node, arm = condition
    if condition in own:
        return True
    if not isinstance(node, ast.If):
        return False
    asked = ast.unparse(node.test)
    if asked in ("__name__ == '__main__'", "'__main__' == __name__"):
        return True
    plain = all(isinstance(one, _PLAIN) for one in ast.walk(node.test))
    return plain and any(
        isinstance(other, ast.If) and other_arm == arm and ast.unparse(other.test) == asked for other, other_arm in own
    )


def _gives_back(module: Module, text: str, statement: ast.stmt) -> bool:
    """`optimizer = decayed(optimizer, epoch)`, where each function that this may be returns what it is given."""
    match statement:
        case ast.Assign(targets=[target], value=ast.Call(func=ast.Name(id=name), args=given, keywords=named)):
            functions = functions_called(module, name)
        case ast.Assign(
            targets=[target], value=ast.Call(func=ast.Attribute(attr=name, value=owner), args=given, keywords=named)
        ) if ast.unparse(owner) != text:
            functions = functions_of(module, ast.unparse(owner), name) or methods_called(module, name)
        case _:
            return False
    passed = partial(_returned_as_given, text=text, given=given, named=named, targets=_parts(target))
    return bool(functions) and all(passed(one, inner) for one, inner in functions)


def _parts(target: ast.expr) -> list[ast.expr]:
    return target.elts if isinstance(target, ast.Tuple) else [target]


def _returned_as_given(
    module: Module,
    function: ast.FunctionDef,
    text: str,
    given: Sequence[ast.expr],
    named: Sequence[ast.keyword],
    targets: Sequence[ast.expr],
) -> bool:
    names = positional(function)
    names = names[isinstance(module.parents[function], ast.ClassDef) :]
    passed = [*zip(names, given, strict=False), *((one.arg, one.value) for one in named)]
    same = {parameter for parameter, value in passed if ast.unparse(value) == text}
    nodes = [node for node in ast.walk(function) if module.function(node) is function]
    same -= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    place = next((index for index, one in enumerate(targets) if ast.unparse(one) == text), 0)
    returned = []
    for value in (node.value for node in nodes if isinstance(node, ast.Return)):
        parts = value.elts if len(targets) > 1 and isinstance(value, ast.Tuple) else [value]
        returned.append(parts[place] if len(parts) == len(targets) else None)
    return bool(returned) and all(isinstance(one, ast.Name) and one.id in same for one in returned)


def _first(module: Module, text: str, found: Sequence[ast.stmt], real: Sequence[ast.stmt], use: ast.AST) -> ast.stmt:
    """The statement of the block around all that bind a name behind which it is bound for the first time."""
    functions = {module.function(one) for one in real}
    if len(functions) > 1:
        inits = [one for one in real if getattr(module.function(one), "name", "") == "__init__"]
        if not inits:
            raise Refused(SEVERAL, "bind it once, or convert it by hand")
        real = inits
        found = [one for one in found if module.function(one) is module.function(inits[0])]
        if len(real) == 1:
            return real[0]
    if any(_mentions(one.value, text) for one in real if isinstance(one, ast.Assign | ast.AnnAssign)):
        raise Refused("the optimizer is wrapped", "wrap it where it is made, or convert it by hand")
    block = _around(module, real)
    placeholder = any(one in block for one in found if one not in real)
    binding = [index for index, one in enumerate(block) if any(inner in real for inner in ast.walk(one))]
    last = binding[0]
    for index in binding[1:]:
        if any(_mentions(one, text) for one in block[last + 1 : index + 1]) or not isinstance(
            block[index], ast.If | ast.Assign
        ):
            break
        last = index
    chosen = block[binding[0] : last + 1]
    arms = sum(one in real for statement in chosen for one in ast.walk(statement))
    simple = all(
        isinstance(one, ast.If | ast.Try | ast.Assign | ast.AnnAssign)
        for one in chosen
        if one in [block[i] for i in binding]
    )
    if not simple or not (block[binding[0]] in real or placeholder or arms > 1):
        own, above = conditions_above(module, use), conditions_above(module, real[0])
        if all(_holds(one, own) for one in above) and real[0] not in module.ancestors(use):
            return real[0]  # bound whenever it is used; what comes after it binds it again
        raise Refused(SEVERAL, "bind it once, or convert it by hand")
    return block[last]


def _around(module: Module, found: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The innermost block that holds all of some statements, in the arms of its own."""
    statement = found[0]
    while True:
        block = suite_of(module, statement)
        inside = {inner for one in block for inner in ast.walk(one)}
        if all(one in inside for one in found):
            return block
        above = module.parents[statement]
        while not isinstance(above, ast.stmt):
            above = module.parents[above]
        if isinstance(above, FunctionNode | ast.ClassDef):
            raise Refused(SEVERAL, "bind it once, or convert it by hand")
        statement = above


def _mentions(node: ast.AST | None, text: str) -> bool:
    """Whether something reads a name or field."""
    return node is not None and any(
        isinstance(one, ast.Name | ast.Attribute) and isinstance(one.ctx, ast.Load) and ast.unparse(one) == text
        for one in ast.walk(node)
    )
