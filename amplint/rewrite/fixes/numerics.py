"""Fixes of family 4, numerics."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Edit, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt
from amplint.source.module import Module

SAFE, UNSAFE = Applicability.SAFE, Applicability.UNSAFE


def finfo_limit(module: Module, tensor: ast.expr, constant: ast.expr, negative: bool, added: bool) -> Fix | None:
    """A mask constant → the limit of the filled tensor's own dtype. Unsafe where the result may be added to more of its
    kind (an additive mask)."""
    torch = edits.binding_of(module, "torch", at=module.statement(tensor))
    if torch is None or not isinstance(tensor, ast.Name | ast.Attribute):
        return None
    limit = f"{torch}.finfo({module.source(tensor)}.dtype).{'min' if negative else 'max'}"
    applicability = UNSAFE if added or not negative else SAFE
    return attempt(f"use {limit}", applicability, lambda: edits.replace(module, constant, limit))


def eps_in_float32(module: Module, tensor: ast.expr) -> Fix | None:
    """`x + 1e-8` → `x.float() + 1e-8`."""
    text = module.source(tensor)
    if not isinstance(tensor, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
        text = f"({text})"
    return attempt("add eps in float32", SAFE, lambda: edits.replace(module, tensor, f"{text}.float()"))


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
