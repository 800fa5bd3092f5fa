"""Family 1, gradients that are read: what their scale means to the reader, and whose mistake it is."""

from __future__ import annotations

import ast

from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import called_name
from amplint.source.walk import walk


def call_towards(event: events.Event, others: list[events.Backward]) -> tuple[Module, ast.AST] | None:
    """Where the function that ran `others` calls the helper that `event` is in: what is wrong is wrong there, the
    helper serves other callers, too. None if the event is not in a helper of that function."""
    for other in others:
        call = None
        for frame in event.frame.stack():
            if frame is other.frame:
                return (frame.module, call) if call else None
            call = frame.call
    return None


def scale_cancels(read: events.ReadGradient) -> bool:
    """Whether a norm of gradients only divides gradients: the direction that is left has no scale
    (`weight + step * weight.grad / norm`, as in adversarial training). Asking whether it is 0, inf or nan is alike."""
    module, node = read.module, read.node
    above = module.parents[node]
    if _divides(module, node):
        return True
    if not isinstance(above, ast.Assign) or len(above.targets) != 1 or not isinstance(above.targets[0], ast.Name):
        return False
    name, function = above.targets[0].id, module.function(node)
    if function is None:
        return False
    named = [one for one in walk(function) if isinstance(one, ast.Name) and one.id == name]
    if sum(not isinstance(one.ctx, ast.Load) for one in named) != 1:
        return False
    read_at = [one for one in named if isinstance(one.ctx, ast.Load)]
    divided = [_divides(module, one) for one in read_at]
    return any(divided) and all(done or _asks_only(module, one) for done, one in zip(divided, read_at, strict=True))


def _divides(module: Module, norm: ast.AST) -> bool:
    """Whether gradients are divided by this, or by this and an epsilon."""
    above = module.parents[norm]
    if isinstance(above, ast.BinOp) and isinstance(above.op, ast.Add) and isinstance(above.right, ast.Constant):
        norm, above = above, module.parents[above]
    match above:
        case ast.BinOp(op=ast.Div(), left=gradients, right=right) if right is norm:
            return any(isinstance(one, ast.Attribute) and one.attr == "grad" for one in walk(gradients))
    return False


def _asks_only(module: Module, norm: ast.AST) -> bool:
    above = module.parents[norm]
    if isinstance(above, ast.Compare):
        others = [one for one in (above.left, *above.comparators) if one is not norm]
        return all(isinstance(one, ast.Constant) and not one.value for one in others)
    return isinstance(above, ast.Call) and called_name(above) in ("isnan", "isinf", "isfinite")
