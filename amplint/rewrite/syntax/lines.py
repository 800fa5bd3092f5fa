"""Edits of whole statements: insert, delete, move, indent under a new header, move out of a `with`.

New text is given as lines with relative indentation in steps of 4 spaces; it gets the file's own indentation.
A block that stands on its header's line (`if c: step()`) is moved to lines of its own where something is added to it.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.findings import Edit
from amplint.rewrite.syntax.layout import (
    begins_line,
    comment_top,
    consecutive,
    end,
    ends_line,
    extent,
    margin_of,
    shifted,
    start,
    stays_first,
    token_before,
    unit,
)
from amplint.rewrite.syntax.text import CannotEdit, edit, edit_within, row_end, row_start
from amplint.source.module import Module

# -- insert -----------------------------------------------------------------------------------------------------------


def insert_before(module: Module, stmt: ast.stmt, lines: Sequence[str]) -> list[Edit]:
    """New lines before a statement, above the comment block that describes it.

    Before a docstring or a `from __future__` import nothing may come: there, the lines go after it.
    """
    block, index, _ = consecutive(module, [stmt])
    after = index
    while after < len(block) and stays_first(module, block, after):
        after += 1
    text = _indented(module, stmt, lines)
    return _above(module, block, index, text) if after == index else _below(module, block, after - 1, text)


def insert_after(module: Module, stmt: ast.stmt, lines: Sequence[str]) -> list[Edit]:
    """New lines after a statement: below its trailing comment, and below a compound statement's last comment."""
    block, index, _ = consecutive(module, [stmt])
    if stays_first(module, block, index):
        return insert_before(module, stmt, lines)
    return _below(module, block, index, _indented(module, stmt, lines))


def _indented(module: Module, stmt: ast.stmt, lines: Sequence[str]) -> str:
    """`lines` at the statement's indentation, relative steps of 4 spaces in the file's own unit; no final line end."""
    base = margin_of(module, stmt)
    step = unit(module, base)
    result = []
    for line in "\n".join(lines).split("\n"):
        depth = (len(line) - len(line.lstrip(" "))) // 4
        result.append(base + step * depth + line[4 * depth :] if line.strip() else "")
    return "\n".join(result)


def _above(module: Module, block: Sequence[ast.stmt], index: int, text: str) -> list[Edit]:
    """Put indented `text` before block[index]."""
    if begins_line(module, block[index]):
        place = row_start(module, comment_top(module, block[index]))
        return [edit(module, place, place, text + "\n")]
    return [
        *_opened(module, block, index),
        _split(module, block, index, f"\n{text}\n{margin_of(module, block[index])}"),
    ]


def _below(module: Module, block: Sequence[ast.stmt], index: int, text: str) -> list[Edit]:
    """Put indented `text` after block[index]."""
    if not ends_line(module, block[index]):
        return _above(module, block, index + 1, text)
    place = extent(module, block[index])
    return [*_opened(module, block, index + 1), edit(module, place, place, "\n" + text)]


def _opened(module: Module, block: Sequence[ast.stmt], index: int) -> list[Edit]:
    """Move a block on its header's line to lines of its own; nothing where block[0] gets split off anyway."""
    if index == 0 or begins_line(module, block[0]):
        return []
    return [_split(module, block, 0, "\n" + margin_of(module, block[0]))]


def _split(module: Module, block: Sequence[ast.stmt], index: int, text: str) -> Edit:
    """Replace what separates block[index] from the statement or header before it on its line."""
    return edit(module, _gap(module, block, index), start(module, block[index]), text)


def _gap(module: Module, block: Sequence[ast.stmt], index: int) -> int:
    """Offset where the statement or the header before block[index] ends on its line."""
    if index:
        return end(module, block[index - 1])
    colon = token_before(module, start(module, block[0]))
    assert colon is not None
    return colon.end


# -- delete -----------------------------------------------------------------------------------------------------------


def delete(module: Module, *stmts: ast.stmt) -> list[Edit]:
    """Remove statements with their lines and trailing comments; comments above stay, and so do neighbours on the line.

    A block that would be left empty gets `pass`. Of the blank lines above and below, the larger group stays. Two calls
    know nothing of each other: statements of one block that all go must go in one call.
    """
    return [_cut(module, run, with_comments=False) for run in _runs(module, stmts)]


def _runs(module: Module, stmts: Sequence[ast.stmt]) -> list[list[ast.stmt]]:
    """The statements in the order of the file, those that follow one another in a block together."""
    runs: list[list[ast.stmt]] = []
    for stmt in sorted(stmts, key=lambda stmt: start(module, stmt)):
        if any(above in stmts for above in module.ancestors(stmt)):
            continue  # it goes with the statement around it
        block, index, _ = consecutive(module, [stmt])
        if runs and index and block[index - 1] is runs[-1][-1]:
            runs[-1].append(stmt)
        else:
            runs.append([stmt])
    return runs


def _span(module: Module, stmts: Sequence[ast.stmt], with_comments: bool) -> tuple[int, int, bool]:
    """The text of consecutive statements: from, to, and whether it is whole rows (without the last line end).

    A trailing comment belongs to it unless a statement before it on the line stays.
    """
    _, index, _ = consecutive(module, stmts)
    alone = begins_line(module, stmts[0])
    if alone and ends_line(module, stmts[-1]):
        top = comment_top(module, stmts[0]) if with_comments else module.at(start(module, stmts[0])).row
        return row_start(module, top), extent(module, stmts[-1]), True
    leaves_line = alone or index == 0 or any(begins_line(module, stmt) for stmt in stmts[1:])
    to_line_end = ends_line(module, stmts[-1]) and leaves_line
    return start(module, stmts[0]), (extent if to_line_end else end)(module, stmts[-1]), False


def _cut(module: Module, stmts: Sequence[ast.stmt], with_comments: bool) -> Edit:
    """The edit that removes consecutive statements."""
    block, first, last = consecutive(module, stmts)
    begin, stop, rows = _span(module, stmts, with_comments)
    if last - first == len(block) and not isinstance(module.parents[block[0]], ast.Module):
        return edit(module, begin, stop, margin_of(module, block[0]) * rows + "pass")
    if rows:
        return edit(module, *_whole_rows(module, begin, stop, first == 0), "")
    if first and not begins_line(module, stmts[0]):
        return edit(module, _gap(module, block, first), stop, "")
    return edit(module, begin, start(module, block[last]), "")


def _whole_rows(module: Module, begin: int, stop: int, leads: bool) -> tuple[int, int]:
    """What to remove for the rows of text[begin:stop]: them, a line end, and blank rows that would add up. `leads` is
    True for the first statement of its block; nothing blank is left between it and the header."""
    top, bottom = module.at(begin).row, module.at(stop).row
    count = len(module.starts)
    rows = count - (not module.line(count))
    above = below = 0
    while top - above > 1 and not module.line(top - above - 1).strip():
        above += 1
    while bottom + below < rows and not module.line(bottom + below + 1).strip():
        below += 1
    if bottom + below == rows:  # nothing follows
        first = top - above
        begin = row_end(module, first - 1) if bottom == count and first > 1 else row_start(module, first)
        return begin, row_start(module, bottom + 1)
    before = token_before(module, begin)
    leads = leads and top - above - 1 == (module.at(before.start).row if before else 0)
    return begin, row_start(module, bottom + 1 + (below if leads else min(above, below)))


# -- move -------------------------------------------------------------------------------------------------------------


def move_before(module: Module, stmts: Sequence[ast.stmt], anchor: ast.stmt) -> list[Edit]:
    """Move consecutive statements, and the comments above and behind them, to where insert_before(anchor) inserts."""
    return _moved(module, stmts, anchor, before=True)


def move_after(module: Module, stmts: Sequence[ast.stmt], anchor: ast.stmt) -> list[Edit]:
    """Move consecutive statements, and the comments above and behind them, to where insert_after(anchor) inserts."""
    return _moved(module, stmts, anchor, before=False)


def _moved(module: Module, stmts: Sequence[ast.stmt], anchor: ast.stmt, before: bool) -> list[Edit]:
    block, first, last = consecutive(module, stmts)
    target, index, _ = consecutive(module, [anchor])
    if any(stmt is anchor or stmt in module.ancestors(anchor) for stmt in stmts):
        raise CannotEdit("a statement cannot move into itself")
    if any(stays_first(module, block, place) for place in range(first, last)):
        raise CannotEdit("a docstring or `from __future__` import stays first")
    while stays_first(module, target, index):
        if index + 1 == len(target) or not stays_first(module, target, index + 1):
            before = False
            break
        index += 1
    if target is block and index == (last if before else first - 1):
        return []
    text = _lifted(module, stmts, margin_of(module, target[index]))
    put = (_above if before else _below)(module, target, index, text)
    return _merged(module, _cut(module, stmts, with_comments=True), put)


def _lifted(module: Module, stmts: Sequence[ast.stmt], base: str) -> str:
    """The text of consecutive statements as it stands when their block is indented by `base`."""
    begin, stop, whole = _span(module, stmts, with_comments=True)
    old, first, last = margin_of(module, stmts[0]), module.at(begin), module.at(stop)
    moves = {row for row, _, _ in shifted(module, range(first.row + (not whole), last.row + 1), old, base)}
    result = []
    for row in range(first.row, last.row + 1):
        line = module.line(row)[: last.column - 1 if row == last.row else None]
        if row == first.row and not whole:
            result.append(base + line[first.column - 1 :])
        else:
            result.append(base + line[len(old) :] if row in moves else line)
    return "\n".join(result)


def _merged(module: Module, cut: Edit, put: list[Edit]) -> list[Edit]:
    """The cut and the insertions as edits that do not overlap. They meet where the last statements of a block move to
    right behind it: the insertion then stands at the end of the last row that is cut."""
    *others, last = put
    begin, stop = module.offset(cut.range.start), module.offset(cut.range.end)
    if not begin < module.offset(last.range.start) < stop:
        return sorted([cut, *put], key=lambda part: part.range)
    text = last.text.removeprefix(module.newline)
    return [*others, edit(module, begin, stop, text + "\n" if begin in module.starts else "\n" + text)]


# -- indent and dedent ------------------------------------------------------------------------------------------------


def indent_under(module: Module, stmts: Sequence[ast.stmt], header: str) -> list[Edit]:
    """Put consecutive statements under `header` ("with torch.no_grad():"). Comments directly above the first stay
    where they are, above the header: they introduce what follows, and fewer lines change."""
    block, first, last = consecutive(module, stmts)
    if any(stays_first(module, block, place) for place in range(first, last)):
        raise CannotEdit("a docstring or `from __future__` import stays first")
    base = margin_of(module, stmts[0])
    inner = base + unit(module, base)
    begin, stop = start(module, stmts[0]), extent(module, stmts[-1])
    if begins_line(module, stmts[0]):
        edits = [edit_within(module, begin, f"{header}\n{inner}")]
    else:
        edits = [*_opened(module, block, first), _split(module, block, first, f"\n{base}{header}\n{inner}")]
    if not ends_line(module, stmts[-1]):
        stop = end(module, stmts[-1])
    edits += _shift(module, range(module.at(begin).row + 1, module.at(stop).row + 1), base, inner)
    if not ends_line(module, stmts[-1]):
        edits.append(_split(module, block, last, "\n" + base))
    return edits


def dedent_tail(module: Module, block: ast.With | ast.AsyncWith, first: int) -> list[Edit]:
    """Move the statements of a `with` from body[first] on out after it; with all of them moved, its header goes away.

    Comments go with their statements, those below the last one included.
    """
    body = block.body
    if first >= len(body):
        return []
    outer, inner = margin_of(module, block), margin_of(module, body[first])
    row = module.at(start(module, body[first])).row
    if begins_line(module, body[first]):
        if first:
            edits, row = [], comment_top(module, body[first])
        else:
            begin, row = module.at(start(module, block)).row, module.at(_gap(module, body, 0)).row + 1
            while not module.line(row).strip():
                row += 1  # no blank line is left where the header was
            edits = [edit(module, row_start(module, begin), row_start(module, row), "")]
    else:
        text = "\n" + outer if first else ""
        begin = _gap(module, body, first) if first else start(module, block)
        edits, row = [edit(module, begin, start(module, body[first]), text)], row + 1
    return edits + _shift(module, range(row, module.at(extent(module, block)).row + 1), inner, outer)


def sink_header(module: Module, block: ast.With, loop: ast.For, first: int, stop: int) -> list[Edit]:
    """`with x: for …: a; b; c` → `for …: a; with x: b; c`: the header moves into the loop, around body[first:stop]."""
    outer, inner = margin_of(module, block), margin_of(module, loop)
    header_row, loop_row = module.at(start(module, block)).row, module.at(start(module, loop)).row
    kept, leaves = loop.body[first], loop.body[stop] if stop < len(loop.body) else None
    if module.at(_gap(module, block.body, 0)).row != header_row or not all(
        one is None or begins_line(module, one) for one in (block, loop, kept, leaves)
    ):
        raise CannotEdit("the header or the loop does not have rows of its own")
    header = module.line(header_row)[len(outer) :].rstrip()
    kept_row = comment_top(module, kept)
    last_row = module.at(extent(module, loop)).row
    edits = [edit(module, row_start(module, header_row), row_start(module, header_row + 1), "")]
    edits += _shift(module, range(header_row + 1, kept_row), inner, outer)
    begin = row_start(module, kept_row)
    edits.append(edit_within(module, begin, f"{outer}{unit(module, outer)}{header}\n"))
    if leaves is not None:
        edits += _shift(module, range(comment_top(module, leaves), last_row + 1), inner, outer)
    assert loop_row > header_row
    return edits


def _shift(module: Module, rows: Sequence[int], old: str, new: str) -> list[Edit]:
    """Give the rows of a block that is indented by `old` the indentation `new`."""
    edits = []
    for row, keep, stop in shifted(module, rows, old, new):
        begin = row_start(module, row)
        edits.append(edit(module, begin + keep, begin + stop, new[keep:]))
    return edits
