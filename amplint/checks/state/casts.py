"""Casts to half precision as the source spells them, for what is kept in fields and variables."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from amplint.source.interpret.tensors import DTYPES
from amplint.source.module import Module
from amplint.source.tree import parameters, stored_names
from amplint.source.walk import walk

HALVES = ("float16", "bfloat16")
Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
# Methods that give what they are called on, cast or not, as far as its dtype goes.
_KEEP = frozenset(
    "eval train cuda cpu to requires_grad_ detach clone contiguous share_memory pin_memory data module type".split()
)


def half_cast(module: Module, node: ast.AST) -> str:
    """The half dtype that a call casts to: `x.half()`, `x.to(torch.bfloat16)`; "" for any other node."""
    match node:
        case ast.Call(func=ast.Attribute(attr="half"), args=[], keywords=[]):
            return "float16"
        case ast.Call(func=ast.Attribute(attr="bfloat16"), args=[], keywords=[]):
            return "bfloat16"
        case ast.Call(func=ast.Attribute(attr="to" | "type"), args=args, keywords=keywords):
            given = [*args, *(keyword.value for keyword in keywords if keyword.arg == "dtype")]
            return next((dtype for dtype in (half_dtype(module, one) for one in given) if dtype), "")
    return ""


def may_be_float16(module: Module, node: ast.expr) -> bool:
    """Whether an expression is float16, in one of the values of its variable at least."""
    return half_dtype(module, node, among=("float16",)) != ""


def half_dtype(module: Module, node: ast.expr, depth: int = 3, among: tuple[str, ...] = HALVES) -> str:
    """The half dtype that an expression is, or may be where a variable has several values; "" if none."""
    match node:
        case ast.Attribute(value=ast.Name(id=name)) if "torch" in module.imports.get(name, ()):
            dtype = DTYPES.get(node.attr, "")
            return dtype if dtype in among else ""
        case ast.IfExp() if depth:
            arms = (half_dtype(module, arm, depth - 1, among) for arm in (node.body, node.orelse))
            return next((dtype for dtype in arms if dtype), "")
        case ast.Name() if depth:
            values = (half_dtype(module, value, depth - 1, among) for value in assigned(module, node))
            return next((dtype for dtype in values if dtype), "")
    return ""


def assigned(module: Module, name: ast.Name) -> Iterator[ast.expr]:
    """What a name is assigned in its function, or in the module if it is not assigned there."""
    for scope in (module.function(name), module.tree):
        found = False
        inside: Iterable[ast.AST] = module.nodes(ast.Assign) if scope is module.tree else walk(scope) if scope else ()
        for node in inside:
            if isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == name.id for target in node.targets
            ):
                found = True
                yield node.value
        if found:
            return


def chain(node: ast.expr) -> Iterator[ast.expr]:
    """A chain of methods from its end to its start, as long as each gives what it is called on:
    `copy(m).half().eval()` gives itself, `copy(m).half()` and `copy(m)`."""
    while True:
        yield node
        match node:
            case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in _KEEP or name in ("half", "bfloat16"):
                node = inner
            case ast.Attribute(value=inner, attr="data" | "module"):
                node = inner
            case _:
                return


def cast_in(module: Module, value: ast.expr) -> ast.expr | None:
    """The cast to half that a value, an arm of it, or each element of it went through last; None if none did."""
    match value:
        case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
            return cast_in(module, value.elt)
        case ast.DictComp():
            return cast_in(module, value.value)
        case ast.IfExp():
            return cast_in(module, value.body) or cast_in(module, value.orelse)
        case ast.Call(func=ast.Name(id="list" | "tuple" | "dict"), args=[inner], keywords=[]):
            return cast_in(module, inner)
    for part in chain(value):
        match part:
            case ast.Call(func=ast.Attribute(attr="float" | "double")):
                return None
            case ast.Call() if half_cast(module, part):
                return part
            case ast.Call(func=ast.Attribute(attr="to" | "type"), args=args, keywords=keywords):
                given = [*args, *(keyword.value for keyword in keywords)]
                if any(isinstance(one, ast.Attribute) and one.attr in ("float32", "float", "float64") for one in given):
                    return None
    return None


def scope_of(module: Module, path: ast.expr) -> Scope:
    """Where a path lives: `self.x` in its class, a name in its function, or in the module."""
    root = path
    while isinstance(root, ast.Attribute | ast.Subscript):
        root = root.value
    owner = module.class_of(path)
    if isinstance(root, ast.Name) and root.id in ("self", "cls") and owner is not None:
        return owner
    function = module.function(path)
    if function is not None and isinstance(root, ast.Name):
        return function if root.id in (*parameters(function), *stored_names(function)) else module.tree
    return module.tree
