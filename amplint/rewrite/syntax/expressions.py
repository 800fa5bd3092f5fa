"""Edits of expressions: replace one, or wrap a call around it.

Whether parentheses are needed is not decided by a table of precedences: the statement is parsed both ways.
"""

from __future__ import annotations

import ast
import warnings
from bisect import bisect_left
from typing import NamedTuple

from amplint.findings import Edit
from amplint.rewrite.syntax.layout import (
    BLOCK_FIELDS,
    end,
    first_token,
    is_elif,
    is_operand,
    layout,
    margin_of,
    start,
    token_after,
    token_at,
)
from amplint.rewrite.syntax.text import CannotEdit, changed, edit_within, plain
from amplint.source.module import Module
from amplint.source.newer import as_older

_TEMPLATES: tuple[type[ast.AST], ...] = (ast.JoinedStr, getattr(ast, "TemplateStr", ast.JoinedStr))


def replace(module: Module, node: ast.expr, text: str) -> list[Edit]:
    """Replace an expression. `text` gets parentheses where it needs them; parentheses that only the old expression
    needed go, others stay."""
    frame = frame_of(module, node)
    begin, stop = _place(module, node)
    wanted = frame.parsed(begin, stop, f"({text})")
    if wanted is None:
        raise CannotEdit("an expression cannot be replaced here")
    choices = [(begin, stop, text), (begin, stop, f"({text})")]
    groups = _groups(module, node)
    if groups and groups[0] == (begin - 1, stop + 1):
        old = module.text[begin:stop]
        if frame.parsed(begin - 1, stop + 1, old) != frame.parsed(begin, stop, old):
            choices.insert(0, (begin - 1, stop + 1, text))
    for first, last, new in choices:
        if frame.parsed(first, last, new) == wanted:
            return changed(module, first, plain(module, first, last), new)
    raise CannotEdit("an expression cannot be replaced here")


def wrap_call(module: Module, node: ast.expr, template: str) -> list[Edit]:
    """Put an expression into a template such as "scaler.scale({})". Parentheses around it become the call's:
    `(a + b).backward()` → `scaler.scale(a + b).backward()`. What is inside the expression is not touched."""
    head, hole, tail = template.partition("{}")
    if not hole:
        raise ValueError(f"no {{}} in {template!r}")
    frame = frame_of(module, node)
    begin, stop = start(module, node), end(module, node)
    old = module.text[begin:stop]
    wanted = frame.parsed(*_place(module, node), f"({head}({old}){tail})")
    if wanted is None:
        raise CannotEdit("an expression cannot be wrapped here")
    choices: list[tuple[int, int, str, str]] = []
    if groups := _groups(module, node):
        if head.endswith("(") and tail.startswith(")"):
            choices += [(*groups[-1], head[:-1], tail[1:]), (*groups[-1], " " + head[:-1], tail[1:])]
        else:
            choices += [(*groups[-1], head, tail), (*groups[-1], " " + head, tail)]
    if _place(module, node) != (begin, stop):  # a generator that is a call's only argument has the call's parentheses
        choices += [(begin + 1, stop - 1, head, tail), (begin + 1, stop - 1, f"{head}(", f"){tail}")]
    else:
        for left, right in ((head, tail), (f"{head}(", f"){tail}")):
            choices += [(begin, stop, left, right), (begin, stop, f"({left}", f"{right})")]
    for first, last, left, right in choices:
        if frame.parsed(first, last, left + module.text[first:last] + right) == wanted:
            return [edit_within(module, at, text) for at, text in ((first, left), (last, right)) if text]
    raise CannotEdit("an expression cannot be wrapped here")


class Frame(NamedTuple):
    """The piece of source that is parsed to see what an edit does: the text of a simple statement, or of a header with
    an empty block, between `head` and `tail`."""

    module: Module
    head: str
    start: int
    end: int
    tail: str

    def parsed(self, start: int, end: int, text: str) -> str | None:
        """The syntax tree with text[start:end] replaced, as a string to compare; None if it does not parse."""
        source = self.module.text[self.start : start] + text + self.module.text[end : self.end]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "invalid escape sequence" is not news that an edit makes
                return ast.dump(self._tree(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None

    def _tree(self, source: str) -> ast.Module:
        """An edit must not bring in syntax that this Python does not read; it may stand beside such syntax."""
        try:
            return ast.parse(self.head + source + self.tail)
        except SyntaxError:
            before = as_older(self.head + self.module.text[self.start : self.end] + self.tail)
            after = as_older(self.head + source + self.tail)
            if before is None or after is None:
                raise
            return ast.parse(after)


def frame_of(module: Module, node: ast.AST) -> Frame:
    """The statement or header that holds `node`. Raises CannotEdit inside f-strings and patterns."""
    for above in module.ancestors(node):
        if isinstance(above, _TEMPLATES):
            raise CannotEdit("inside an f-string")
        if isinstance(above, ast.pattern):
            raise CannotEdit("inside a pattern")
        if isinstance(above, ast.match_case):
            first = _case_start(module, above)
            return Frame(module, "match _:\n ", first, start(module, above.body[0]), "pass")
        if isinstance(above, ast.ExceptHandler):
            return Frame(module, "try: pass\n", start(module, above), start(module, above.body[0]), "pass")
        if isinstance(above, ast.stmt):
            return _statement_frame(module, above)
    raise CannotEdit("not an expression of a statement")


def _statement_frame(module: Module, stmt: ast.stmt) -> Frame:
    first, last, head, tail = start(module, stmt), end(module, stmt), "", ""
    if isinstance(stmt, ast.Match):
        return Frame(module, head, first, _case_start(module, stmt.cases[0]), "case _: pass")
    if is_elif(module, stmt):
        first += len("el")
    if getattr(stmt, "decorator_list", None) and margin_of(module, stmt):
        head = f"if 1:\n{margin_of(module, stmt)}"  # what follows the decorators is indented
    if block := next((block for name in BLOCK_FIELDS if (block := getattr(stmt, name, None))), None):
        last, tail = start(module, block[0]), "pass"
    return Frame(module, head, first, last, tail)


def _case_start(module: Module, case: ast.match_case) -> int:
    return first_token(module, start(module, case.pattern)).start


def _place(module: Module, node: ast.expr) -> tuple[int, int]:
    """The text to replace for `node`. A generator that is a call's only argument owns the call's parentheses in the
    syntax tree; they stay."""
    begin, stop = start(module, node), end(module, node)
    above = module.parents.get(node)
    if isinstance(node, ast.GeneratorExp) and isinstance(above, ast.Call) and above.args == [node]:
        after = token_after(module, end(module, above.func))
        while after.text == ")":
            after = token_after(module, after.end)
        if after.start == begin:
            return begin + 1, stop - 1
    return begin, stop


def _groups(module: Module, node: ast.expr) -> list[tuple[int, int]]:
    """The pairs of parentheses that merely group `node`, innermost first, as ranges that include them."""
    known = layout(module)
    left = token_at(module, start(module, node)) - 1
    right = bisect_left(known.starts, end(module, node))
    groups = []
    while left >= 0 and right < len(known.tokens):
        opening, closing = known.tokens[left], known.tokens[right]
        before = known.tokens[left - 1] if left else None
        if opening.text != "(" or closing.text != ")":
            break
        if before is not None and is_operand(before.text):
            stmt = module.statement(node)
            if before.text != "match" or not isinstance(stmt, ast.Match) or before.start != start(module, stmt):
                break
        groups.append((opening.start, closing.end))
        left, right = left - 1, right + 1
    return groups
