"""Where statements stand in the text: their rows, indentation and comments, and what separates neighbours.

The syntax tree has exact positions but no separators, comments or line ends; this module reads those from the tokens.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

from amplint.rewrite.syntax.text import CannotEdit, margin, row_end
from amplint.source.module import Module

BLOCK_FIELDS = ("body", "orelse", "finalbody")
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
_OPENS_STRING = {getattr(tokenize, name, -1) for name in ("FSTRING_START", "TSTRING_START")}
_CLOSES_STRING = {getattr(tokenize, name, -1) for name in ("FSTRING_END", "TSTRING_END")}


class Token(NamedTuple):
    """A token that is not white space or a comment; the end of a logical line is the token "\\n"."""

    text: str
    start: int
    end: int


@dataclass(eq=False)
class Layout:
    """What the tokens of a file say: the tokens, which of them begin a logical line, which rows begin inside a string,
    and how deep the file indents."""

    tokens: list[Token] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    first_rows: set[int] = field(default_factory=set)
    string_rows: set[int] = field(default_factory=set)
    unit: str = "    "


_layouts: WeakKeyDictionary[Module, Layout] = WeakKeyDictionary()


def layout(module: Module) -> Layout:
    """The file's layout, read once. Raises CannotEdit where the tokenizer refuses what the parser took."""
    if (known := _layouts.get(module)) is not None:
        return known
    result = Layout()
    units: Counter[str] = Counter()
    margins = [""]
    openings: list[int] = []
    at_first = True
    rows = io.StringIO("".join(f"{module.line(row)}\n" for row in range(1, len(module.starts) + 1)), newline="\n")
    try:
        for kind, text, (row, column), (end_row, end_column), _ in tokenize.generate_tokens(rows.readline):
            if kind == tokenize.INDENT:
                if text.startswith(margins[-1]):
                    units[text[len(margins[-1]) :]] += 1
                margins.append(text)
            elif kind == tokenize.DEDENT:
                margins.pop()
            if kind in _SILENT:
                continue
            if kind in _OPENS_STRING:
                openings.append(row)
            elif kind in _CLOSES_STRING:
                result.string_rows.update(range(openings.pop() + 1, end_row + 1))
            elif kind == tokenize.STRING:
                result.string_rows.update(range(row + 1, end_row + 1))
            if at_first:
                result.firsts.append(len(result.tokens))
                result.first_rows.add(row)
            at_first = kind == tokenize.NEWLINE
            start = module.starts[row - 1] + column
            end = start if at_first else module.starts[end_row - 1] + end_column
            result.tokens.append(Token("\n" if at_first else text, start, end))
    except (tokenize.TokenError, SyntaxError, IndexError):
        raise CannotEdit("the file cannot be split into tokens") from None
    result.starts = [token.start for token in result.tokens]
    if units:
        result.unit = units.most_common(1)[0][0]
    _layouts[module] = result
    return result


# -- tokens around a place --------------------------------------------------------------------------------------------


def token_at(module: Module, offset: int) -> int:
    """Index of the token that starts at `offset`."""
    known = layout(module)
    index = bisect_left(known.starts, offset)
    if index == len(known.starts) or known.starts[index] != offset:
        raise CannotEdit("the tokens do not agree with the syntax tree")
    return index


def token_before(module: Module, offset: int) -> Token | None:
    """The last token that starts before `offset`."""
    known = layout(module)
    index = bisect_left(known.starts, offset)
    return known.tokens[index - 1] if index else None


def token_after(module: Module, offset: int) -> Token:
    """The first token that starts at or after `offset`; the end of the file reads as the end of a line."""
    known = layout(module)
    index = bisect_left(known.starts, offset)
    return known.tokens[index] if index < len(known.tokens) else Token("\n", len(module.text), len(module.text))


def first_token(module: Module, offset: int) -> Token:
    """The first token of the logical line that holds the token at or before `offset`."""
    known = layout(module)
    index = bisect_right(known.starts, offset) - 1
    return known.tokens[known.firsts[bisect_right(known.firsts, index) - 1]]


def is_operand(text: str) -> bool:
    """True where a bracket right after this token calls or indexes it, and does not merely group."""
    if text in ("True", "False", "None"):
        return True
    return not keyword.iskeyword(text) and (text[-1] in ")]}\"'_" or text[-1].isalnum())


# -- statements -------------------------------------------------------------------------------------------------------


def start(module: Module, node: ast.AST) -> int:
    """Offset of a node's first character; a decorated definition's decorators are included."""
    if decorators := getattr(node, "decorator_list", None):
        return first_token(module, start(module, decorators[0])).start
    return module.offset(module.range(node).start)


def end(module: Module, node: ast.AST) -> int:
    """Offset after a node's last character."""
    return module.offset(module.range(node).end)


def suite(module: Module, stmt: ast.stmt) -> list[ast.stmt]:
    """The block that holds a statement: it and its siblings."""
    parent = module.parents[stmt]
    for name in BLOCK_FIELDS:
        block = getattr(parent, name, None)
        if isinstance(block, list) and any(stmt is sibling for sibling in block):
            return block
    raise CannotEdit("not a statement of a block")  # cannot happen for a node of this module


def position(block: Sequence[ast.stmt], stmt: ast.stmt) -> int:
    """Index of a statement in its block."""
    return next(index for index, sibling in enumerate(block) if sibling is stmt)


def consecutive(module: Module, stmts: Sequence[ast.stmt]) -> tuple[list[ast.stmt], int, int]:
    """The block that holds `stmts`, and their slice of it. Raises CannotEdit unless they follow one another in it."""
    if not stmts:
        raise CannotEdit("no statements given")
    block = suite(module, stmts[0])
    first = position(block, stmts[0])
    last = first + len(stmts)
    if len(block) < last or any(a is not b for a, b in zip(block[first:last], stmts, strict=True)):
        raise CannotEdit("the statements do not follow one another in one block")
    if is_elif(module, stmts[0]):
        raise CannotEdit("an `elif` is no statement of its own")
    return block, first, last


def is_elif(module: Module, stmt: ast.stmt) -> bool:
    """True for an `elif`, which the syntax tree shows as an `if` of its own."""
    return isinstance(stmt, ast.If) and module.text.startswith("elif", start(module, stmt))


def stays_first(module: Module, block: Sequence[ast.stmt], index: int) -> bool:
    """True for a docstring and for `from __future__` imports: nothing may come before them."""
    stmt, owner = block[index], module.parents[block[index]]
    if isinstance(stmt, ast.ImportFrom) and stmt.module == "__future__" and not stmt.level:
        return True
    if index or not isinstance(owner, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    return isinstance(stmt, ast.Expr) and isinstance(stmt.value, ast.Constant) and isinstance(stmt.value.value, str)


def begins_line(module: Module, stmt: ast.stmt) -> bool:
    """True unless the statement follows a `;` or the `:` of its block's header on one line."""
    offset = start(module, stmt)
    before = token_before(module, offset)
    if before is not None and before.text != "\n":
        return False
    row = module.at(offset).row
    if row > 1 and module.line(row - 1).endswith("\\") and (before is None or module.at(before.start).row < row - 1):
        raise CannotEdit("a backslash precedes the statement")
    return True


def ends_line(module: Module, stmt: ast.stmt) -> bool:
    """True unless another statement follows on the line (a lone `;` does not count)."""
    after = token_after(module, end(module, stmt))
    return after.text == "\n" or (after.text == ";" and token_after(module, after.end).text == "\n")


def line_end(module: Module, stmt: ast.stmt) -> int:
    """Offset where the statement's last line ends: after its trailing comment, before the line end."""
    after = token_after(module, end(module, stmt))
    while after.text != "\n":
        after = token_after(module, after.end)
    return row_end(module, module.at(after.start).row)


def extent(module: Module, stmt: ast.stmt) -> int:
    """As line_end, with the comment rows below that are indented deeper than the statement: they belong to it."""
    result = line_end(module, stmt)
    depth = _depth(margin_of(module, stmt))
    for row in range(module.at(result).row + 1, len(module.starts) + 1):
        line = module.line(row).strip()
        if line.startswith("#") and _depth(margin(module, row)) > depth:
            result = row_end(module, row)
        elif line:
            break
    return result


def comment_top(module: Module, stmt: ast.stmt) -> int:
    """The first row of the comment block directly above a statement with its indentation, or the statement's own row.

    A block that begins in the file's first row (a licence, a `#!` line) describes the file, not the statement.
    """
    offset = start(module, stmt)
    row = top = module.at(offset).row
    before = token_before(module, offset)
    floor = module.at(before.start).row if before else 0
    own = margin(module, row)
    while top - 1 > floor and module.line(top - 1).startswith(own + "#"):
        top -= 1
    return row if top == 1 else top


# -- indentation ------------------------------------------------------------------------------------------------------


def margin_of(module: Module, stmt: ast.stmt) -> str:
    """The indentation of the statement's block; for a block on its header's line, the one it gets when it is opened."""
    block = suite(module, stmt)
    offset = start(module, block[0])
    if begins_line(module, block[0]):
        return margin(module, module.at(offset).row)
    before = token_before(module, offset)
    header = margin(module, module.at(first_token(module, before.start if before else 0).start).row)
    return header + unit(module, header)


def unit(module: Module, outer: str) -> str:
    """One level of indentation inside a block that is indented by `outer`: the file's, but never tabs after spaces."""
    usual = layout(module).unit
    if outer and ("\t" in outer) != ("\t" in usual):
        return "\t" if "\t" in outer else "    "
    return usual


def _depth(text: str) -> int:
    return len(text.expandtabs())


def shifted(module: Module, rows: Sequence[int], old: str, new: str) -> Iterator[tuple[int, int, int]]:
    """The rows that move when a block indented by `old` gets indented by `new`: row, and the columns (from 0) of the
    margin that `new` takes the place of. Rows inside a string, blank rows and rows further left keep theirs."""
    known = layout(module)
    keep = len(old) if new.startswith(old) else len(new) if old.startswith(new) else 0
    for row in rows:
        line = module.line(row)
        if row in known.string_rows or not line.strip():
            continue
        if line.startswith(old):
            yield row, keep, len(old)
        elif row in known.first_rows:
            raise CannotEdit(f"line {row} mixes ways to indent")
