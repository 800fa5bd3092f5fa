"""Entries of dict literals."""

from __future__ import annotations

import ast

from amplint.findings import Edit
from amplint.rewrite.syntax.layout import end, token_after
from amplint.rewrite.syntax.text import CannotEdit, edit
from amplint.source.module import Module


def add_entry(module: Module, mapping: ast.Dict, after: ast.expr, text: str) -> list[Edit]:
    """Add `text` ("key: value") after the entry whose value is `after`, laid out as the entries are: on a row of its
    own, under the keys, where they have rows of their own; with a comma behind where the last entry had one."""
    if after not in mapping.values:
        raise CannotEdit("not an entry of the dict")
    index = mapping.values.index(after)
    key = mapping.keys[index]
    if key is None:
        raise CannotEdit("behind a **")
    stop = end(module, after)
    following = token_after(module, stop)
    if following.text not in (",", "}"):
        raise CannotEdit("the entry's value is in parentheses")
    before = mapping.keys[index - 1] if index else mapping
    own_row = before is not None and module.range(key).start.row > module.range(before).start.row
    gap = "\n" + " " * (module.range(key).start.column - 1) if own_row else " "
    if following.text == "}":
        return [edit(module, stop, stop, f",{gap}{text}")]
    return [edit(module, following.end, following.end, f"{gap}{text},")]
