"""Finding nodes by their text, and applying edits, for the tests of amplint.rewrite.edits."""

from __future__ import annotations

import ast

from amplint.rewrite.syntax.apply import apply
from amplint.source.module import Module, parse


def read(text: str) -> Module:
    return Module.read("train.py", text.encode())


def stmt(module: Module, text: str) -> ast.stmt:
    """The first statement whose source begins with `text`."""
    found = (node for node in ast.walk(module.tree) if isinstance(node, ast.stmt))
    return min((node for node in found if module.source(node).startswith(text)), key=lambda node: node.lineno)


def expr(module: Module, text: str) -> ast.expr:
    """The last expression whose source is `text`."""
    found = (node for node in ast.walk(module.tree) if isinstance(node, ast.expr))
    return [node for node in found if not isinstance(node, ast.FormattedValue) and module.source(node) == text][-1]


def edited(module: Module, edits) -> str:
    """The text after the edits, which must parse."""
    result = apply(module.text, edits)
    parse(result)
    return result
