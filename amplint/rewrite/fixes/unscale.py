"""Fixes of family 1: unscale_ that stands in the wrong place, or twice."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt, suite_of
from amplint.source.module import Module

SAFE = Applicability.SAFE


def drop_second(module: Module, unscale: ast.AST) -> Fix | None:
    """Remove an unscale_ that repeats another."""
    statement = module.statement(unscale)
    if not isinstance(statement, ast.Expr):
        return None
    return attempt("unscale once", SAFE, lambda: edits.delete(module, statement))


def before_step(module: Module, unscale: ast.AST, step: ast.AST) -> Fix | None:
    """Move unscale_, and the clips that follow it, to before the step, where all stand in one block."""
    statement, target = module.statement(unscale), module.statement(step)
    suite = suite_of(module, target)
    if not isinstance(statement, ast.Expr) or statement not in suite:
        return None
    moved: list[ast.stmt] = [statement]
    for following in suite[suite.index(statement) + 1 :]:
        if "clip_grad" not in module.source(following) or not isinstance(following, ast.Expr | ast.Assign):
            break
        moved.append(following)
    return attempt("unscale before the step", SAFE, lambda: edits.move_before(module, moved, target))


def before_clip(module: Module, unscale: ast.AST, clip: ast.AST) -> Fix | None:
    """Move an unscale_ that follows the clip in its block to before it."""
    statement, target = module.statement(unscale), module.statement(clip)
    if not isinstance(statement, ast.Expr) or statement not in suite_of(module, target):
        return None
    return attempt("unscale before the clip", SAFE, lambda: edits.move_before(module, [statement], target))
