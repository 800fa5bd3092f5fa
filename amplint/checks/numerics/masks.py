"""Rows of a softmax that hold nothing but -inf: where padding is masked as query and as key."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule
from amplint.findings import Finding, Severity
from amplint.source.module import FunctionNode, Module
from amplint.source.walk import walk

_SOFTMAXES = frozenset(("softmax", "log_softmax", "Softmax"))


@rule("AMP401")
def wholly_masked_row(script: Script) -> Iterator[Finding]:
    """The mask of a softmax is a mask of what is padding, times the same along the other axis: the row of a padding
    query is -inf from end to end."""
    module = script.module
    for call in module.nodes(ast.Call):
        match call:
            case ast.Call(func=ast.Attribute(attr="masked_fill" | "masked_fill_"), args=[mask, value]) if (
                _minus_infinity(module, value)
            ):
                pass
            case _:
                continue
        function = module.function(call)
        if not isinstance(function, ast.FunctionDef) or "nan" in module.rows(function):
            continue
        product = _kept(module, mask, call)
        if product is None or not _outer(module, product) or not _softmax_after(module, function, call):
            continue
        yield found_at(
            "AMP401",
            module,
            call,
            "the row of a padding query is -inf from end to end, and its softmax is nan: so is 0 times nan in the next "
            "layer, and a GradScaler skips every such step",
            severity=Severity.NOTE,
            evidence=[(module, product, "queries are masked as well as keys")],
            help="fill with torch.finfo(scores.dtype).min, or mask keys alone",
        )


def _minus_infinity(module: Module, value: ast.expr) -> bool:
    match value:
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() as text)]):
            return text.strip().lower() in ("-inf", "-infinity")
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return module.source(inner).replace("'", '"') in ('float("inf")', "torch.inf", "math.inf", "np.inf", "inf")
    return False


def _kept(module: Module, mask: ast.expr, call: ast.Call) -> ast.BinOp | None:
    """What a mask of what is left out says to keep, if that is a product: `a & b` of `~m`, where m was assigned it."""
    match mask:
        case (
            ast.UnaryOp(op=ast.Invert(), operand=kept)
            | ast.Compare(left=kept, ops=[ast.Eq()], comparators=[ast.Constant(value=0 | False)])
        ):
            pass
        case ast.Call(func=ast.Attribute(value=kept, attr="logical_not"), args=[]):
            pass
        case _:
            return None
    values = [kept]
    if isinstance(kept, ast.Name):
        values = _until(module, kept.id, call)
    product = values[0] if values else None
    return product if isinstance(product, ast.BinOp) and isinstance(product.op, ast.Mult | ast.BitAnd) else None


def _until(module: Module, name: str, place: ast.expr) -> list[ast.expr]:
    """What a name may be assigned where it is used: last first, without what an `if` of its own assigns."""
    bound = [
        node
        for node in walk(module.scope(place))
        if isinstance(node, ast.Assign | ast.AugAssign) and node.lineno < place.lineno and _binds(node, name)
    ]
    bound = [node for node in bound if not (isinstance(node.value, ast.Constant) and node.value.value is None)]
    values: list[ast.expr] = []
    for node in sorted(bound, key=lambda node: node.lineno, reverse=True):
        above = {one for one in module.ancestors(node) if isinstance(one, ast.If)}
        earlier = [one for one in bound if one.lineno < node.lineno]
        if earlier and any(above - set(module.ancestors(one)) for one in earlier):
            continue  # under a condition that what came before was not
        if isinstance(node, ast.AugAssign):
            break
        values.append(node.value)
    return values


def _binds(node: ast.Assign | ast.AugAssign, name: str) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _outer(module: Module, product: ast.BinOp) -> bool:
    """Whether a product is one of two vectors along different axes, a batch of them perhaps."""
    one, other = (_axes(_value(module, factor, product)) for factor in (product.left, product.right))
    if one is not None and other is not None:
        batch = len(one[1]) == 2
        return (
            len(one[1]) == len(other[1]) <= 2
            and one[0] == other[0]
            and one[1][-1] != other[1][-1]
            and (not batch or one[1][0] == other[1][0])
        )
    match product.left, product.right:
        case (
            ast.Call(func=ast.Attribute(value=left, attr="unsqueeze"), args=[ast.Constant(value=int() as i)]),
            ast.Call(func=ast.Attribute(value=right, attr="unsqueeze"), args=[ast.Constant(value=int() as j)]),
        ):
            return i != j and module.source(left) == module.source(right)
    return False


def _value(module: Module, factor: ast.expr, place: ast.expr) -> ast.expr:
    values = _until(module, factor.id, place) if isinstance(factor, ast.Name) else []
    return values[0] if values else factor


def _axes(factor: ast.expr) -> tuple[int, list[int]] | None:
    """How many axes a view has, and which of them are not of size one: of `m[:, None, :]`, and of a rearrange."""
    match factor:
        case ast.Subscript(slice=ast.Tuple(elts=parts)):
            full = [at for at, part in enumerate(parts) if isinstance(part, ast.Slice)]
            ones = [part for part in parts if isinstance(part, ast.Constant) and part.value is None]
            return (len(parts), full) if len(full) + len(ones) == len(parts) and ones else None
        case ast.Call(
            func=ast.Name(id="rearrange") | ast.Attribute(attr="rearrange"), args=[_, ast.Constant(value=said)]
        ):
            before, arrow, after = str(said).partition("->")
            names = after.split()
            if arrow and "(" not in after.replace("()", "") and len(before.split()) < len(names):
                return len(names), [at for at, name in enumerate(names) if name not in ("()", "1")]
    return None


def _softmax_after(module: Module, function: FunctionNode, call: ast.Call) -> bool:
    """Whether a softmax follows, perhaps one that is kept in a field: `self.weigh = F.softmax`."""
    later = {node.attr for node in walk(function) if isinstance(node, ast.Attribute) and node.lineno >= call.lineno}
    return bool(later & _SOFTMAXES) or any(
        isinstance(target, ast.Attribute) and target.attr in later and "oftmax" in module.source(node.value)
        for node in module.nodes(ast.Assign)
        for target in node.targets
    )
