"""Stores by index of what a region made: they take the destination's dtype only, where a store by slice casts.

`bank[index] = features.detach()` raises where the features are half and the bank is float32. What
is stored is cast, in the region and behind it; in float32 that changes nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence

from amplint.rewrite.islands.casts import OUTPUT, SAME, tensors_made
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import called_name

_METHODS = {  # stores in place, with the place of what is stored
    **dict.fromkeys(("index_add_", "index_copy_", "scatter_", "scatter_add_"), 2),
    "masked_scatter_": 1,
}
_COUNTS = frozenset(("range", "enumerate", "items", "keys", "sorted", "reversed", "list", "len", "int"))
_JOINS = frozenset(("cat", "stack", "vstack", "hstack"))
_BOXES = ast.Dict | ast.List | ast.DictComp | ast.ListComp | ast.Constant
_MASKS = frozenset(("bool", "nonzero", "argsort", "isnan", "isfinite", "long", "ne", "eq", "gt", "lt", "ge", "le"))


def index_stores(reading: Reading, region: Sequence[ast.stmt]) -> tuple[ast.expr, ...]:
    """What is stored by a mask or by indices from the first statement of a region on, in its function, and may be half
    there, into what is not."""
    module = reading.module
    scope: ast.AST = module.function(region[0]) or module.tree
    first = region[0].lineno
    nodes = [node for node in ast.walk(scope) if getattr(node, "lineno", 0) >= first]
    if not any(_is_store(node) for node in nodes):
        return ()
    runs = {event.node for event in reading.events if isinstance(event, events.Forward)}
    outputs = {name for name, kind in tensors_made(reading, region).items() if kind == OUTPUT}
    inside = {node for one in region for node in ast.walk(one)}
    low: set[str] = set()  # the names that hold half tensors, as the text goes on
    boxes: set[str] = set()  # those that hold no tensor, or one that is made like a half one
    found: list[ast.expr] = []
    for node in sorted(nodes, key=lambda one: (getattr(one, "lineno", 0), getattr(one, "col_offset", 0))):
        if isinstance(node, ast.Assign | ast.Expr) and module.scope(node) is scope:
            for index, value in _stored(node):
                into = _root(node.targets[0] if isinstance(node, ast.Assign) else node.value)
                if into and not {into, ast.unparse(_whole(node))} & (low | boxes) and _is_half(value, low, runs):
                    found += [value] if index is None or _picks(module, index, scope) else []
        if isinstance(node, ast.Assign):
            names = [one for target in node.targets for one in _bound(target)]
            half = _is_half(node.value, low, runs) or (node in inside and all(one in outputs for one in names))
            box = isinstance(node.value, _BOXES) or _like(node.value, low)
            for name in names:
                (low.add if half else low.discard)(name)
                (boxes.add if box else boxes.discard)(name)
    return tuple(found)


def _is_store(node: ast.AST) -> bool:
    subscript = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
    return subscript or (isinstance(node, ast.Attribute) and node.attr in _METHODS)


def _stored(statement: ast.Assign | ast.Expr) -> Iterator[tuple[ast.expr | None, ast.expr]]:
    """What a statement stores, with the index."""
    match statement:
        case ast.Assign(targets=[ast.Subscript(slice=index)], value=value):
            yield index, value
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name), args=given)) if name in _METHODS:
            if len(given) > _METHODS[name]:
                yield None, given[_METHODS[name]]


def _whole(statement: ast.Assign | ast.Expr) -> ast.expr:
    """What is stored into."""
    match statement:
        case ast.Assign(targets=[ast.Subscript(value=into)]) | ast.Expr(value=ast.Call(func=ast.Attribute(value=into))):
            return into
    return ast.Constant(None)


def _root(into: ast.expr) -> str:
    while isinstance(into, ast.Subscript | ast.Attribute | ast.Call):
        into = into.func if isinstance(into, ast.Call) else into.value
    return into.id if isinstance(into, ast.Name) else ""


def _bound(target: ast.expr) -> list[str]:
    parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return [ast.unparse(one) for one in parts if isinstance(one, ast.Name | ast.Attribute)]


def _is_half(value: ast.expr, low: Collection[str], runs: Collection[ast.AST]) -> bool:
    """Whether a value is what a model returned, or a view or a sum of such."""
    match value:
        case ast.Name():
            return value.id in low
        case ast.Attribute(attr="data" | "T" | "mT", value=inner) | ast.Subscript(value=inner):
            return _is_half(inner, low, runs)
        case ast.Attribute():
            return ast.unparse(value) in low
        case ast.BinOp(left=left, right=right):
            sides = [one for one in (left, right) if not isinstance(one, ast.Constant)]
            return bool(sides) and all(_is_half(one, low, runs) for one in sides)
        case ast.Call(func=ast.Attribute(attr=name), args=[ast.List(elts=parts) | ast.Tuple(elts=parts), *_]):
            return name in _JOINS and any(_is_half(one, low, runs) for one in parts)
        case ast.Call():
            if value in runs:
                return True
            return (
                isinstance(value.func, ast.Attribute)
                and value.func.attr in SAME
                and _is_half(value.func.value, low, runs)
            )
    return False


def _like(value: ast.expr, low: Collection[str]) -> bool:
    """`torch.zeros_like(features)`, `features.new_zeros(…)`."""
    match value:
        case ast.Call(func=ast.Attribute(attr=name, value=owner), args=given) if name.endswith("_like"):
            return any(_is_half(one, low, ()) for one in given) or _is_half(owner, low, ())
        case ast.Call(func=ast.Attribute(attr=name, value=owner)) if name.startswith("new_"):
            return _is_half(owner, low, ())
        case ast.Call(func=ast.Name(id="dict" | "list" | "defaultdict" | "OrderedDict")):
            return True
    return False


def _picks(module: Module, index: ast.expr, scope: ast.AST) -> bool:
    """Whether an index may be a mask or a tensor of indices: numbers, slices and keys are none."""
    match index:
        case ast.Tuple(elts=parts):
            return any(_picks(module, one, scope) for one in parts)
        case ast.Compare() | ast.UnaryOp(op=ast.Invert()):
            return True
        case ast.BinOp(left=left, right=right):
            return _picks(module, left, scope) or _picks(module, right, scope)
        case ast.Call(func=ast.Attribute(attr=name, value=owner)):
            return name in _MASKS or _picks(module, owner, scope)
        case ast.Name(id=name):
            return _made_as_index(name, scope)
    return False


def _made_as_index(name: str, scope: ast.AST) -> bool:
    """Whether a name is one of those that a loader hands out, or is made by a call of what gives no number."""
    for node in ast.walk(scope):
        match node:
            case ast.For(target=target, iter=values) if name in {one.id for one in _names(target)}:
                counted = isinstance(values, ast.Call) and _function(values) in _COUNTS
                if isinstance(target, ast.Name):
                    return isinstance(values, ast.Call) and not counted and _function(values) != "tqdm"
                return not counted or not any(one.id == name for one in _names(_first(target)))
            case ast.Assign(targets=[target], value=ast.Call() as made) if name in {one.id for one in _names(target)}:
                return _function(made) not in _COUNTS | {"item", "index"}
    return False


def _first(target: ast.expr) -> ast.expr:
    return target.elts[0] if isinstance(target, ast.Tuple) else target


def _function(call: ast.Call) -> str:
    return called_name(call)


def _names(code: ast.AST) -> Iterator[ast.Name]:
    return (node for node in ast.walk(code) if isinstance(node, ast.Name))
