"""amp.initialize goes, and the scaler is made in its place."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.apex.setup import Setup
from amplint.rewrite.syntax.layout import end, is_elif, margin_of, start
from amplint.rewrite.syntax.text import edit
from amplint.source.module import Module


@dataclass
class Placed:
    """The edits, the statements that they replace, and those that are still to be deleted."""

    edits: list[Edit] = field(default_factory=list)
    gone: list[ast.stmt] = field(default_factory=list)
    deleted: list[ast.stmt] = field(default_factory=list)


def placed(module: Module, setup: Setup, line: str) -> Placed:
    """Put a line (or nothing) in the place of amp.initialize, before the condition that it stands under; a condition
    that held nothing else goes."""
    made = Placed(deleted=list(setup.dropped))
    whole = setup.emptied or (setup.statement if setup.before is setup.statement else None)
    if setup.emptied is not None and setup.emptied.orelse:
        made.edits.append(_turned(module, setup.emptied, line))
        made.gone += setup.emptied.body
    elif whole is not None:
        lines = [part for part in (setup.replaced, line) if part]
        if lines:
            text = f"{module.newline}{margin_of(module, whole)}".join(lines)
            made.edits.append(edit(module, start(module, whole), end(module, whole), text))
        (made.gone if lines else made.deleted).append(whole)
    else:
        made.edits += edits.insert_before(module, setup.before, [line]) if line else []
        if setup.replaced:
            place = start(module, setup.statement), end(module, setup.statement)
            made.edits.append(edit(module, *place, setup.replaced))
        (made.gone if setup.replaced else made.deleted).append(setup.statement)
    return made


def _turned(module: Module, branch: ast.If, line: str) -> Edit:
    """`if half: model, optimizer = amp.initialize(…)` and its `else` → `if not half:`, behind the line."""
    test = module.source(branch.test)
    head = f"{line}{module.newline}{margin_of(module, branch)}" if line else ""
    head += "if not " + (test if re.fullmatch(r"[\w.]+", test) else f"({test})")
    first = branch.orelse[0]
    if is_elif(module, first) and isinstance(first, ast.If):
        other = module.source(first.test)
        head += f" and {f'({other})' if isinstance(first.test, ast.BoolOp | ast.IfExp) else other}"
        first = first.body[0]
    head += f":{module.newline}{margin_of(module, first)}"
    return edit(module, start(module, branch), start(module, first), head)
