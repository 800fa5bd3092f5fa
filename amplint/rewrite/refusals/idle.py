"""Optimizers that train nothing: their steps only move a schedule of learning rates on, to look at it."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import called_name, names_in

_SCHEDULES = re.compile(r"LR|[Ss]ched|[Ww]arm_?[Uu]p|[Rr]ates?")
_OWN = frozenset(("step", "zero_grad", "param_groups", "state_dict", "defaults"))


def idle(reading: Reading, steps: Sequence[events.Step]) -> bool:
    """Whether nothing but a schedule uses the optimizer of a step, and nothing at all what it would train."""
    module, optimizer = reading.module, steps[0].optimizer
    made = [one for one in reading.events if isinstance(one, events.Create) and one.value == optimizer]
    nodes, codes = {one.node for one in made}, {one.frame.code for one in (*made, *steps)}
    if len(nodes) != 1 or len(codes) != 1 or any(one.optimizer != optimizer for one in steps):
        return False
    (call,), (code,) = nodes, codes
    statement = module.statement(call) if call in module.parents else None
    if not isinstance(call, ast.Call) or not isinstance(statement, ast.Assign):
        return False
    if any(isinstance(one, events.Backward) and one.frame.code is code for one in reading.events):
        return False
    names = [ast.unparse(one) for one in statement.targets]
    given = (*call.args[:1], *(one.value for one in call.keywords if one.arg == "params"))
    trained = names_in(*given) - set(module.imports)
    inside = set(ast.walk(call))
    scope = code if isinstance(code, ast.FunctionDef) else module.tree
    reads = (one for one in ast.walk(scope) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load))
    for node in (one for one in reads if one not in inside):
        if node.id in trained or (node.id in names and not _scheduled(module, node)):
            return False
    return len(names) == 1 and names[0].isidentifier()


def _scheduled(module: Module, name: ast.Name) -> bool:
    """Whether a use of an optimizer is a call of its own, or hands it to a schedule."""
    above = module.parents[name]
    if isinstance(above, ast.Attribute):
        return above.attr in _OWN
    if isinstance(above, ast.keyword):
        above = module.parents[above]
    return isinstance(above, ast.Call) and above.func is not name and bool(_SCHEDULES.search(called_name(above)))
