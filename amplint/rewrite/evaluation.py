"""Evaluation loops: where a trained model runs without gradients."""

from __future__ import annotations

import ast

from amplint.rewrite.fixes import suite_of
from amplint.rewrite.plan import StepPlan
from amplint.source import events
from amplint.source.interpret.entries import Reading


def evaluation_regions(reading: Reading, plan: StepPlan) -> list[tuple[ast.stmt, ...]]:
    """For each place under no_grad that runs the trained model: the statements from the forward to the last that
    computes a loss from it."""
    module = reading.module
    regions: dict[ast.stmt, tuple[ast.stmt, ...]] = {}
    losses = [event for event in reading.events if isinstance(event, events.Loss) and event.module is module]
    for event in reading.events:
        if (
            not isinstance(event, events.Forward)
            or event.module is not module
            or event.grad
            or event.region is not None
        ):
            continue
        if event.model != plan.forward.model and module.function(event.node) is None:
            continue
        first = module.statement(event.node)
        if not isinstance(first, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr):
            continue
        block = suite_of(module, first)
        start = block.index(first)
        ends = [block.index(s) for loss in losses if (s := module.statement(loss.node)) in block and not loss.grad]
        end = max((end for end in ends if end >= start), default=start)
        between = block[start : end + 1]
        if all(isinstance(one, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr) for one in between):
            regions.setdefault(first, tuple(between))
    chosen: list[tuple[ast.stmt, ...]] = []
    for region in regions.values():
        if not any(set(region) & set(other) for other in chosen):
            chosen.append(region)
    return chosen
