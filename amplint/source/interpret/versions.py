"""Versions of torch that a script asks about: whatever amplint speaks of came with torch.autocast, so all of it is
newer than what came before."""

from __future__ import annotations

import ast
import re

from amplint.source.module import Module
from amplint.source.walk import walk

_OLDEST = (1, 10)  # the first with torch.autocast
_VERSION = re.compile(r"(\d+)(?:\.(\d+))?")


def decided(node: ast.Compare, module: Module) -> bool | None:
    """The answer to `version.parse(torch.__version__) >= version.parse("1.6")`; None where it depends."""
    op = node.ops[0]
    if len(node.ops) > 1 or not isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) or not _of_torch(node.left, module):
        return None
    words = [one.value for one in walk(node.comparators[0]) if isinstance(one, ast.Constant)]
    found = _VERSION.match(words[0]) if len(words) == 1 and isinstance(words[0], str) else None
    if found is None or (int(found[1]), int(found[2] or 0)) >= _OLDEST:
        return None
    return isinstance(op, ast.Gt | ast.GtE)


def _of_torch(node: ast.expr, module: Module) -> bool:
    if not isinstance(node, ast.Call | ast.Attribute):
        return False
    return any(
        isinstance(one, ast.Attribute) and one.attr == "__version__" and "torch" in module.dotted(one.value)
        for one in walk(node)
    )
