"""`amplint fix --explain`: why-comments above what was written, one for each kind of edit, where it comes first."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator

from amplint.source.module import Module

# What a new row holds → the comment above it; the first that matches counts.
_WHY = (
    (r"\bGradScaler\(", "scales the loss, so that small gradients do not become zero in float16"),
    (r"^with .*autocast\(.*enabled=False", "in float32: half precision has no kernel for this, or not the range"),
    (r"^with .*autocast\(", "forward and loss in half precision, where that is safe; backward stays outside"),
    (r"\.scale\(.*\.backward\(", "the gradients come scaled, too, until unscale_() or step()"),
    (r"\.unscale_\(", "gradients at their true size, before anything clips or reads them"),
    (r"[sS]caler\w*\.step\(", "leaves the weights alone where a gradient is inf or nan"),
    (r"[sS]caler\w*\.update\(\)", "adapts the scale: once, after the last step of the iteration"),
    (r"[sS]caler.*\.state_dict\(\)", "so that a resumed run goes on with the same scale"),
    (r"^if .*\.get\(.*[sS]caler", "checkpoints from before have none"),
    (r"^(def )?amp_dtype\b", "bfloat16 needs no loss scaling, but only newer GPUs have it"),
    (r"^@.*custom_fwd\(", "computes under autocast, in forward and backward alike"),
)


def explain(before: str, after: Module) -> str:
    """The text of a changed file with the comments; nothing is written above rows that were there before."""
    rows = [after.line(row) for row in range(1, len(after.starts) + 1)]
    new = _new_rows(before.splitlines(), rows)
    said: set[str] = set()
    above: dict[int, str] = {}
    for row in sorted(new & set(_beginnings(after))):
        line = rows[row - 1]
        why = next((words for pattern, words in _WHY if re.search(pattern, line.strip())), "")
        if why and why not in said:
            said.add(why)
            above[row] = line[: len(line) - len(line.lstrip())] + f"# {why}{after.newline}"
    text = ""
    for row, start in enumerate(after.starts, 1):
        end = after.starts[row] if row < len(after.starts) else len(after.text)
        text += above.get(row, "") + after.text[start:end]
    return text


def _new_rows(before: list[str], after: list[str]) -> set[int]:
    """The rows that were not there, or were otherwise than by their indentation."""
    matcher = difflib.SequenceMatcher(None, [one.strip() for one in before], [one.strip() for one in after], False)
    same = {row for block in matcher.get_matching_blocks() for row in range(block.b + 1, block.b + block.size + 1)}
    return set(range(1, len(after) + 1)) - same


def _beginnings(module: Module) -> Iterator[int]:
    """The rows that begin with a statement, a decorator, or the entry of a dict: a comment can stand above them."""
    for node in ast.walk(module.tree):
        starts: list[ast.AST] = [node] if isinstance(node, ast.stmt) else []
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.decorator_list:
            starts = [*node.decorator_list]
        elif isinstance(node, ast.Dict):
            starts = [key for key in node.keys if key is not None]
        for one in starts:
            start = module.range(one).start
            ahead = module.line(start.row)[: start.column - 1].strip(" \t\f\ufeff@")
            continued = start.row > 1 and module.line(start.row - 1).rstrip().endswith("\\")
            if not ahead and not continued and not _in_else(module, one):
                yield start.row


def _in_else(module: Module, node: ast.AST) -> bool:
    """`elif`: an `if` that is no statement of its own in the text."""
    return isinstance(node, ast.If) and module.line(node.lineno).lstrip().startswith("elif")
