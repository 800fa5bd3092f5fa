"""Fixes of family 1: unscale_ that stands in the wrong place, or twice."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt, bound_before, suite_of
from amplint.source.module import Module
from amplint.source.walk import walk

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
    """Move an unscale_ that follows the clip in its block, or the `if` that clips, to before it."""
    statement = module.statement(unscale)
    suite = suite_of(module, statement)
    around = [module.statement(clip), *module.ancestors(clip)]
    target = next((one for one in around if one in suite), None)
    if not isinstance(statement, ast.Expr) or not isinstance(target, ast.If | ast.Expr | ast.Assign):
        return None
    return attempt("unscale before the clip", SAFE, lambda: edits.move_before(module, [statement], target))


def before_read(module: Module, read: ast.AST, scaler: str, optimizer: str, step: ast.AST) -> Fix | None:
    """Insert unscale_ before the statement of the step's block that reads gradients, unless a path leaves the block
    between the two: the scaler would need an update there."""
    suite = suite_of(module, module.statement(step))
    around = [module.statement(read), *module.ancestors(read)]
    statement = next((one for one in around if one in suite), None)
    if not isinstance(statement, ast.stmt) or not bound_before(module, scaler, statement):
        return None
    if not bound_before(module, optimizer, statement):
        return None
    between = suite[suite.index(statement) : suite.index(module.statement(step))]
    leaves = ast.Continue | ast.Break | ast.Return | ast.Raise
    if not between or any(isinstance(node, leaves) for one in between for node in walk(one)):
        return None
    call = f"{scaler}.unscale_({optimizer})"
    return attempt(f"insert {call}", SAFE, lambda: edits.insert_before(module, statement, [call]))


def update_on_the_other_path(module: Module, unscale: ast.AST, step: ast.AST, scaler: str) -> Fix | None:
    """update() before the `continue` that skips the step, or behind the `if` that holds step and update."""
    call = f"{scaler}.update()"
    first, target = module.statement(unscale), module.statement(step)
    suite = suite_of(module, first)
    if target in suite:
        return _before_continue(module, suite[suite.index(first) + 1 : suite.index(target)], call)
    branch = next((one for one in suite[suite.index(first) :] if target in walk(one)), None)
    if not isinstance(branch, ast.If) or branch.orelse or target not in branch.body:
        return None
    updates = [one for one in branch.body if isinstance(one, ast.Expr) and module.source(one) == call]
    if len(updates) != 1 or updates[0] is not branch.body[-1] or len(branch.body) < 2:
        return None
    return attempt("update on both paths", SAFE, lambda: edits.move_after(module, updates, branch))


def _before_continue(module: Module, between: list[ast.stmt], call: str) -> Fix | None:
    skips = [
        one
        for statement in between
        for one in walk(statement)
        if isinstance(one, ast.Continue) and call not in module.source(statement)
    ]
    if not skips:
        return None
    return attempt(
        "update before the next round",
        SAFE,
        lambda: [edit for skip in skips for edit in edits.insert_before(module, skip, [call])],
    )
