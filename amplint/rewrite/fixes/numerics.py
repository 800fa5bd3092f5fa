"""Fixes of family 4, numerics."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Edit, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt
from amplint.source.module import Module
from amplint.source.walk import walk

SAFE, UNSAFE = Applicability.SAFE, Applicability.UNSAFE


def finfo_limit(module: Module, tensor: ast.expr, constant: ast.expr, negative: bool, added: bool) -> Fix | None:
    """A mask constant → the limit of the filled tensor's own dtype; of float16, which all dtypes hold, where the tensor
    has no name: `(q @ k.T).masked_fill(mask, -1e9)`. Unsafe where the result may be added to more of its kind (an
    additive mask)."""
    torch = edits.binding_of(module, "torch", at=module.statement(tensor))
    named = isinstance(tensor, ast.Name | ast.Attribute)
    if torch is None or (not named and (added or not negative)):
        return None
    dtype = f"{module.source(tensor)}.dtype" if named else f"{torch}.float16"
    limit = f"{torch}.finfo({dtype}).{'min' if negative else 'max'}"
    applicability = UNSAFE if added or not negative else SAFE
    return attempt(f"use {limit}", applicability, lambda: edits.replace(module, constant, limit))


def eps_in_float32(module: Module, tensor: ast.expr, safe: bool = True) -> Fix | None:
    """`x + 1e-8` → `x.float() + 1e-8`; unsafe where x is not seen to be half. A variance is taken in float32: in half
    precision it is 0 below 6e-8, and the gradient that comes back to it overflows."""
    tensor = _spread_out(module, tensor) or tensor
    text = module.source(tensor)
    if not isinstance(tensor, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
        text = f"({text})"
    return attempt(
        "add eps in float32", SAFE if safe else UNSAFE, lambda: edits.replace(module, tensor, f"{text}.float()")
    )


def _spread_out(module: Module, tensor: ast.expr) -> ast.expr | None:
    """What the variance or standard deviation is taken of that stands here, or under a name that is given it once."""
    if isinstance(tensor, ast.Name):
        around = module.scope(tensor)
        named = [node for node in ast.walk(around) if getattr(node, "id", "") == tensor.id]
        made = [one for one in named if not isinstance(one.ctx, ast.Load)]  # type: ignore[attr-defined]
        statement = module.parents.get(made[0]) if len(made) == 1 else None
        if not isinstance(statement, ast.Assign) or statement.targets != made:
            return None
        tensor = statement.value
    match tensor:
        case ast.Call(func=ast.Attribute(attr="var" | "std", value=ast.Name(id="torch")), args=[operand, *_]):
            return operand
        case ast.Call(func=ast.Attribute(attr="var" | "std", value=ast.Name() | ast.Attribute() as operand)):
            return operand
    return None


def scale_first(module: Module, scaled: ast.AST) -> Fix | None:
    """`(q @ k) * scale` → `(q * scale) @ k`; `torch.matmul(q, k) / s` → `torch.matmul(q / s, k)`."""
    if not isinstance(scaled, ast.BinOp) or not isinstance(scaled.op, ast.Mult | ast.Div):
        return None
    product, factor = scaled.left, scaled.right
    if isinstance(scaled.op, ast.Mult) and not _factors(product):
        product, factor = factor, product
    parts = _factors(product)
    if parts is None:
        return None
    first, second = parts
    sign = "*" if isinstance(scaled.op, ast.Mult) else "/"
    q, k, s = (_operand(module, node) for node in (first, second, factor))

    def build() -> list[Edit]:
        if isinstance(product, ast.Call):
            name = module.source(product.func)
            return edits.replace(module, scaled, f"{name}({q} {sign} {s}, {module.source(second)})")
        return edits.replace(module, scaled, f"({q} {sign} {s}) @ {k}")

    return attempt("scale before the product", SAFE, build)


def _factors(product: ast.expr) -> tuple[ast.expr, ast.expr] | None:
    match product:
        case ast.BinOp(op=ast.MatMult(), left=left, right=right):
            return left, right
        case ast.Call(func=ast.Attribute(attr="matmul" | "bmm"), args=[left, right], keywords=[]):
            return left, right
    return None


def _operand(module: Module, node: ast.expr) -> str:
    text = module.source(node)
    if isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript | ast.Constant):
        return text
    return f"({text})"


def square_in_float32(module: Module, product: ast.AST, safe: bool) -> Fix | None:
    """`x * x` → `x.float().pow(2)`."""
    match product:
        case (
            ast.BinOp(left=factor)
            | ast.Call(func=ast.Attribute(attr="mul" | "pow" | "square", value=ast.Name(id="torch")), args=[factor, *_])
        ):
            pass
        case ast.Call(func=ast.Attribute(attr="mul" | "pow" | "square", value=factor)):
            pass
        case _:
            return None
    if any(isinstance(inner, ast.Call | ast.NamedExpr) for inner in walk(factor)):
        return None
    text = f"{_operand(module, factor)}.float().pow(2)"
    applicability = SAFE if safe else UNSAFE
    return attempt("square in float32", applicability, lambda: edits.replace(module, product, text))


def reduce_in_float32(module: Module, call: ast.AST) -> Fix | None:
    """`x.sum(…)` → `x.sum(…, dtype=torch.float32)`."""
    torch = edits.binding_of(module, "torch", at=module.statement(call))
    if (
        not isinstance(call, ast.Call)
        or torch is None
        or any(keyword.arg in ("dtype", None) for keyword in call.keywords)
    ):
        return None
    return attempt("sum in float32", SAFE, lambda: edits.add_argument(module, call, f"dtype={torch}.float32"))


def add_in_float32(module: Module, addition: ast.AST) -> Fix | None:
    """`total += x` → `total += x.float()`."""
    if not isinstance(addition, ast.AugAssign):
        return None
    return attempt(
        "add in float32",
        SAFE,
        lambda: edits.replace(module, addition.value, f"{_operand(module, addition.value)}.float()"),
    )


def log_of(module: Module, logarithm: ast.AST, what: str) -> Fix | None:
    """`torch.log(torch.sigmoid(x))` → `torch.nn.functional.logsigmoid(x)`, and the like."""
    inner = _argument_of(logarithm, ("log", "log1p"))
    if what == "softmax":
        return _log_softmax(module, logarithm, inner)
    if what == "1 - sigmoid":
        inner = inner.right if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Sub) else None
    elif what == "softplus" and isinstance(inner, ast.BinOp):
        inner = inner.left if _argument_of(inner.left, ("exp",)) is not None else inner.right
    x = _argument_of(inner, ("exp",) if what == "softplus" else ("sigmoid",))
    functional = _functional(module, logarithm)
    if x is None or functional is None or not isinstance(logarithm, ast.Call):
        return None
    text = f"-{_operand(module, x)}" if what == "1 - sigmoid" else module.source(x)
    name = "softplus" if what == "softplus" else "logsigmoid"
    return attempt(f"use {name}", SAFE, lambda: edits.replace(module, logarithm, f"{functional}.{name}({text})"))


def _log_softmax(module: Module, logarithm: ast.AST, softmax: ast.expr | None) -> Fix | None:
    if not isinstance(logarithm, ast.Call):
        return None
    if (
        not isinstance(softmax, ast.Call)
        or not isinstance(softmax.func, ast.Attribute)
        or softmax.func.attr != "softmax"
    ):
        return None
    owner = module.source(softmax.func.value)
    text = module.source(softmax).replace(f"{owner}.softmax(", f"{owner}.log_softmax(", 1)
    return attempt("use log_softmax", SAFE, lambda: edits.replace(module, logarithm, text))


def _argument_of(node: ast.AST | None, names: tuple[str, ...]) -> ast.expr | None:
    """x in `torch.NAME(x)`, `F.NAME(x)` or `x.NAME()`."""
    match node:
        case ast.Call(func=ast.Attribute(attr=name), args=[x], keywords=[]) if name in names:
            return x
        case ast.Call(func=ast.Attribute(attr=name, value=x), args=[], keywords=[]) if name in names:
            return x
    return None


def _functional(module: Module, at: ast.AST) -> str | None:
    """How the file reaches torch.nn.functional at a place."""
    found = edits.binding_of(module, "torch.nn.functional", at=at)
    if found is not None and found != "torch":
        return found
    torch = edits.binding_of(module, "torch", at=at)
    return None if torch is None else f"{torch}.nn.functional"


def argument_in_float32(module: Module, call: ast.AST, index: int | None) -> Fix | None:
    """`Categorical(probs)` → `Categorical(probs.float())`."""
    if not isinstance(call, ast.Call):
        return None
    given = [keyword.value for keyword in call.keywords if keyword.arg == "probs"]
    argument = call.args[index] if index is not None and index < len(call.args) else given[0] if given else None
    if argument is None or isinstance(argument, ast.Starred):
        return None
    text = f"{_operand(module, argument)}.float()"
    return attempt("give it float32", SAFE, lambda: edits.replace(module, argument, text))


def finfo_of(module: Module, tensor: ast.expr, limit: ast.expr) -> Fix | None:
    """`torch.finfo(torch.float32).min` → `torch.finfo(scores.dtype).min`."""
    match limit:
        case ast.Attribute(value=ast.Call(args=[dtype])) if isinstance(tensor, ast.Name | ast.Attribute):
            text = f"{module.source(tensor)}.dtype"
            return attempt(f"use {text}", SAFE, lambda: edits.replace(module, dtype, text))
    return None
