"""Fixes of family 5, dtype crashes."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Edit, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt
from amplint.source.module import Module

SAFE, UNSAFE = Applicability.SAFE, Applicability.UNSAFE


def cast(
    module: Module,
    operands: list[ast.expr],
    to: str = "float()",
    message: str = "compute it in float32",
    safe: bool = True,
) -> Fix | None:
    """`x` → `x.float()` for each of some operands of a call that raises as it is. Unsafe where they are not seen to be
    half: they may be float64, which has more to lose."""
    if not operands or any(isinstance(one, ast.Starred) for one in operands):
        return None
    return attempt(
        message, SAFE if safe else UNSAFE, lambda: [edit for one in operands for edit in _cast(module, one, to)]
    )


def _cast(module: Module, operand: ast.expr, to: str) -> list[Edit]:
    text = module.source(operand)
    if not isinstance(operand, ast.Name | ast.Attribute | ast.Call | ast.Subscript):
        text = f"({text})"
    return edits.replace(module, operand, f"{text}.{to}")
