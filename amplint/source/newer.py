"""Syntax that is newer than the Python that runs amplint, written as an older Python reads it.

A hook runs in whatever Python its machine has, on files written for another. LibCST's parser knows the syntax of every
version, `ast` only that of its own; so what `ast` does not take is replaced, byte for byte at its place, by something
of the same length that means the same to a reader of tensors. No other byte moves, and fixes go into the original.

* type parameters, `class A[T]:`, `def f[T](x: T):` and `type A[T] = …` (PEP 695, Python 3.12): blanks
* an f-string's own quotes, or a backslash, in a string inside it (PEP 701, Python 3.12): other quotes, underscores;
  an f-string of one quote over several lines: a string of one line, whatever it says
* template strings, `t"…"` (PEP 750, Python 3.14): f-strings
* `except A, B:` (PEP 758, Python 3.14): `except(A,B):`
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import libcst as cst

_NEW = re.compile(rb"\btype\s+\w|\b(class|def)\s+\w+\s*\[|\b[rR]?[fFtT][rR]?['\"]|\bexcept\b[^:(]*,")
_QUOTED = re.compile(rb"['\"\\]")
_OTHER = {b"'": b'"', b'"': b"'"}


def as_older(text: str) -> str | None:
    """The same text in older syntax, of the same length in UTF-8; None where it is not newer, or not Python at all."""
    data = text.encode("utf-8", "surrogatepass")
    if not _NEW.search(data):
        return None
    import libcst as cst  # a tenth of a second, which only files that `ast` cannot read pay
    from libcst.metadata import ByteSpanPositionProvider, MetadataWrapper

    try:
        wrapper = MetadataWrapper(cst.parse_module(text), unsafe_skip_copy=True)
        spans = wrapper.resolve(ByteSpanPositionProvider)
    except (cst.ParserSyntaxError, UnicodeError, RecursionError):
        return None
    out = bytearray(data)
    for node in spans:
        match node:
            case cst.TypeParameters():
                _blank(out, *_span(spans, node))
            case cst.TypeAlias():
                _assign(out, *_span(spans, node), node.name.value.encode(), _span(spans, node.name)[1])
            case cst.TemplatedString() | cst.FormattedString():
                _requote(out, *_span(spans, node), [_span(spans, one) for one in _strings(node)])
            case cst.ExceptHandler(type=cst.Tuple(lpar=[], elements=[_, cst.Element(value=last), *_]) as types):
                if not (isinstance(last, cst.Name) and last.value.islower()):  # Python 2: except ValueError, e
                    _parenthesize(out, *_span(spans, types))
    return out.decode("utf-8", "surrogatepass") if out != data else None


def _span(spans: Any, node: cst.CSTNode) -> tuple[int, int]:
    """Where a node begins and ends, in bytes."""
    return spans[node].start, spans[node].start + spans[node].length


def _join_lines(out: bytearray, start: int, end: int) -> None:
    """A backslash at the end of each line that ends among these bytes."""
    for match in re.finditer(rb"[^\r\n](?=\r?\n)", bytes(out[start:end])):
        out[start + match.start()] = ord("\\")


def _blank(out: bytearray, start: int, end: int) -> None:
    out[start:end] = re.sub(rb"[^\r\n]", b" ", bytes(out[start:end]))
    _join_lines(out, start, end)


def _assign(out: bytearray, start: int, end: int, name: bytes, named: int) -> None:
    """`type A = …` as `A      = …`."""
    out[start:named] = name + b" " * (named - start - len(name))


def _parenthesize(out: bytearray, start: int, end: int) -> None:
    """`except A, B` as `except(A,B)`: the blanks around the names make room. What has none stays as it is."""
    inside = re.sub(rb",\s+", b",", bytes(out[start:end]))
    if out[start - 1 : start] == b" " and end - start - len(inside) >= 1:
        out[start - 1 : end] = (b"(" + inside + b")").ljust(end - start + 1)


def _requote(out: bytearray, start: int, end: int, inside: list[tuple[int, int]]) -> None:
    """An f-string whose inner strings, at `inside`, stand in the other quotes, without what ends or escapes in them."""
    whole = re.match(rb"[rRfFtT]*(['\"])", out[start:end])
    if whole is None:
        return
    out[start : start + whole.start(1)] = whole[0][:-1].replace(b"t", b"f").replace(b"T", b"F")
    if _parses(out[start:end]):
        return
    quote = _OTHER[whole[1]]
    for first, last in inside:
        text = bytes(out[first:last])
        body = re.search(rb"['\"].*['\"]", text, re.DOTALL)
        if body:
            prefix = text[: body.start()] if not re.search(rb"[fFtT]", text[: body.start()]) else b" " * body.start()
            out[first:last] = prefix + quote + _QUOTED.sub(b"_", body[0][1:-1]) + quote
    if not _parses(out[start:end]):  # it runs over several lines: it is read as text alone
        out[start : whole.end() + start - 1] = b" " * (whole.end() - 1)
        out[start + whole.end() : end - 1] = _QUOTED.sub(b"_", out[start + whole.end() : end - 1])
        _join_lines(out, start, end)


def _parses(text: bytes | bytearray) -> bool:
    try:
        ast.parse(b"(" + text + b")")
    except (SyntaxError, ValueError):
        return False
    return True


def _strings(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """The outermost strings below a node."""
    import libcst as cst

    for child in node.children:
        if isinstance(child, cst.SimpleString | cst.FormattedString | cst.TemplatedString):
            yield child
        else:
            yield from _strings(child)
