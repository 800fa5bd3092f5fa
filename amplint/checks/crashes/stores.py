"""Stores by mask or index, which take one dtype only (AMP501)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.around import surely_runs_in_half
from amplint.checks.crashes.common import clash, evidence, in_place, operand_node, policy
from amplint.checks.numerics.common import guarded, named
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.checks.state.casts import assigned
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import crashes as fixes
from amplint.source import events
from amplint.source.module import Module
from amplint.source.values import ASSUMED, KNOWN, Items, Tensor, Value

# Stores that take what is stored in the very dtype of the tensor, with the place of what is stored.
_STORES = {
    **dict.fromkeys(("index_add", "index_copy", "scatter", "scatter_add", "scatter_reduce"), 3),
    **dict.fromkeys(("masked_scatter", "index_put"), 2),
}
_SCALARS = frozenset("sum mean max min prod norm any all item std var median dot det trace".split())  # may have no dims


@rule("AMP501")
def index_store_dtype(script: Script) -> Iterator[Finding]:
    """A store by mask or index whose source has another dtype than its destination."""
    for event in script.events(events.Operation):
        place = _STORES.get(event.name)
        if place is None or guarded(event) or not event.args:
            continue
        if isinstance(event.node, ast.Subscript):
            place = 1
            if not _by_index(event):
                continue
        elif event.name == "index_put" and len(event.args) == 2:
            continue
        stores = isinstance(event.node, ast.Subscript) or in_place(event)
        if policy(script, event) == "promote" and not stores:
            continue
        stored = _stored(event, place)
        into = event.args[0]
        if not clash(into, stored, ASSUMED) or not isinstance(stored, Tensor) or not isinstance(into, Tensor):
            continue
        if stored.made in _SCALARS:
            continue
        how = "a store by index" if event.name == "index_put" else event.name
        yield found(
            "AMP501",
            event,
            f"{how} takes the destination's dtype only: RuntimeError, {named(into.dtype)} for the destination and "
            f"{named(stored.dtype)} for the source",
            severity=Severity.ERROR if min(into.trust, stored.trust) == KNOWN else Severity.NOTE,
            evidence=evidence(script, stored, into),
            help="cast what is stored to the destination's dtype",
            fix=_to_destination(event, place),
        )


def _stored(event: events.Operation, place: int) -> Value | None:
    named_ones = dict(event.kwargs)
    for name in ("source", "src", "values", "tensor"):
        if name in named_ones:
            return named_ones[name]
    return event.args[place] if place < len(event.args) else None


def _by_index(event: events.Operation) -> bool:
    """Whether a subscript surely holds a mask or a tensor of indices: with slices and numbers the store casts."""
    index = dict(event.kwargs).get("index")
    parts = index.items if isinstance(index, Items) else (index,)
    assert isinstance(event.node, ast.Subscript)
    written = event.node.slice
    nodes = written.elts if isinstance(written, ast.Tuple) else [written]
    if any(
        isinstance(part, Tensor) and part.dtype in ("integer", "bool") and not _is_element(event.module, node)
        for part, node in zip(parts, nodes, strict=False)
    ):
        return True
    return any(_is_mask(event.module, node) for node in nodes)


def _is_element(module: Module, node: ast.expr) -> bool:
    """Whether this may be one number of a tensor, `lengths[b] - 1`: without dimensions it is as good as a number."""
    match node:
        case ast.BinOp(left=one, right=ast.Constant()) | ast.UnaryOp(operand=one):
            return _is_element(module, one)
        case ast.Subscript(slice=ast.Constant() | ast.UnaryOp(operand=ast.Constant())):
            return True
        case ast.Subscript(slice=ast.Name(id=name) | ast.Tuple(elts=[*_, ast.Name(id=name)])):
            return any(_counts(above, name) for above in module.ancestors(node))
    return False


def _counts(loop: ast.AST, name: str) -> bool:
    """Whether a loop counts with this name."""
    match loop:
        case ast.For(target=ast.Name(id=target), iter=ast.Call(func=ast.Name(id="range"))):
            return target == name
        case ast.For(target=ast.Tuple(elts=[ast.Name(id=target), _]), iter=ast.Call(func=ast.Name(id="enumerate"))):
            return target == name
    return False


def _is_mask(module: Module, node: ast.expr, depth: int = 2) -> bool:
    match node:
        case ast.Compare(ops=[ast.Eq() | ast.NotEq() | ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()]):
            return True
        case ast.UnaryOp(op=ast.Invert()):
            return True
        case ast.Call(func=ast.Attribute(attr="bool" | "nonzero" | "argsort" | "topk" | "isnan" | "isfinite" | "long")):
            return True
        case ast.Call(func=ast.Attribute(attr="where", value=ast.Name(id="torch")), args=[_]):
            return True
        case ast.Name() if depth:
            values = list(assigned(module, node))
            return bool(values) and all(_is_mask(module, value, depth - 1) for value in values)
    return False


def _to_destination(event: events.Operation, place: int) -> Fix | None:
    module, node = event.module, event.node
    if isinstance(node, ast.Subscript):
        statement = module.statement(node)
        if not isinstance(statement, ast.Assign) or statement.targets != [node]:
            return None
        into, stored = node.value, statement.value
    else:
        first, other = operand_node(event, 0), operand_node(event, place)
        if first is None or other is None:
            return None
        into, stored = first, other
    if not isinstance(into, ast.Name | ast.Attribute):
        return None
    return fixes.cast(module, [stored], f"to({text(module, into)}.dtype)", "store it in the destination's dtype")


_LIKE = frozenset("zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full".split())
_METHODS = {  # stores in place, with the place of what is stored
    **dict.fromkeys(("index_add_", "index_copy_", "scatter_", "scatter_add_", "scatter_reduce_"), 2),
    "masked_scatter_": 1,
}


@rule("AMP501")
def float32_into_an_open_dtype(script: Script) -> Iterator[Finding]:
    """What is cast to float32 on the spot is stored into a tensor that has the dtype of an argument."""
    module = script.module
    for call in module.nodes(ast.Call):
        match call:
            case ast.Call(func=ast.Attribute(value=into, attr=how), args=args) if how in _METHODS:
                named_ones = [one.value for one in call.keywords if one.arg in ("src", "source")]
                stored = [*args[_METHODS[how] :], *named_ones]
                argument = _open_dtype(module, into) if stored and _to_float32(module, stored[0]) else ""
                if argument and surely_runs_in_half(script):
                    yield found_at(
                        "AMP501",
                        module,
                        call,
                        f"{how} takes the destination's dtype only, here that of {argument}: RuntimeError where it is "
                        "half, the source is float32 in any case",
                        severity=Severity.NOTE,
                        help=f"cast what is stored to {argument}.dtype",
                    )


def _to_float32(module: Module, node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="float"), args=[]):
            return True
        case ast.Call(func=ast.Attribute(attr="to"), args=[given]):
            return module.source(given) == "torch.float32"
    return False


def _open_dtype(module: Module, into: ast.expr, depth: int = 2) -> str:
    """The argument of its function whose dtype a tensor is made in, if nothing casts that: `torch.zeros_like(x)`."""
    match into:
        case ast.Name() if depth:
            values = list(assigned(module, into))
            return _open_dtype(module, values[0], depth - 1) if len(values) == 1 else ""
        case ast.Call(func=ast.Attribute(value=owner, attr=how), args=args, keywords=keywords) if how in _LIKE:
            like = owner if how.startswith("new_") else args[0] if args else None
            while isinstance(like, ast.Subscript):
                like = like.value
            function = module.function(into)
            if any(one.arg == "dtype" for one in keywords) or not isinstance(like, ast.Name) or function is None:
                return ""
            given = {one.arg: one.annotation for one in (*function.args.posonlyargs, *function.args.args)}
            annotation = given.get(like.id)
            said = "" if annotation is None else module.source(annotation)
            tensor = like.id in given and (not said or ("Tensor" in said and "Long" not in said))
            again = any(value.lineno < into.lineno for value in assigned(module, like))
            return like.id if tensor and not again else ""
    return ""
