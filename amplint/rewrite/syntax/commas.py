"""Lists with commas on LibCST nodes: arguments, parameters, imported names. Adds and removes, and keeps the layout.

LibCST is imported where a list is built, never with this module: reading a file must not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from amplint.rewrite.syntax.text import CannotEdit

if TYPE_CHECKING:
    import libcst as cst


_TAIL = {"Arg": "whitespace_after_arg", "Param": "whitespace_after_param", "ParamSlash": "whitespace_after"}


class Slot(NamedTuple):
    """An item without its comma; whether a comma follows, and the white space before it; and the gap: the white space
    and comments from there to the next item or the closing bracket. The first slot of a list stands for the opening
    bracket and has no item."""

    node: Any
    comma: bool
    before: cst.BaseParenthesizableWhitespace
    gap: cst.BaseParenthesizableWhitespace


def split(
    opening: cst.BaseParenthesizableWhitespace,
    nodes: Sequence[Any],
    closing: cst.BaseParenthesizableWhitespace | None = None,
) -> list[Slot]:
    """Take a list apart. `closing` is the white space before the closing bracket where no item carries it."""
    import libcst as cst

    empty = cst.SimpleWhitespace("")
    slots = [Slot(None, False, empty, opening)]
    for node in nodes:
        tail = _TAIL.get(type(node).__name__)
        if isinstance(node.comma, cst.Comma):
            slots.append(Slot(node, True, node.comma.whitespace_before, node.comma.whitespace_after))
        elif tail:
            slots.append(Slot(node.with_changes(**{tail: empty}), False, empty, getattr(node, tail)))
        else:
            slots.append(Slot(node, False, empty, closing or empty))
    return slots


def join(slots: Sequence[Slot]) -> list[Any]:
    """Put the items together again. The caller takes the gap of the first slot, and of a last one that has no comma and
    cannot carry it (an imported name)."""
    import libcst as cst

    nodes = []
    for slot in slots[1:]:
        node, tail = slot.node, _TAIL.get(type(slot.node).__name__)
        if slot.comma:
            comma = cst.Comma(whitespace_before=slot.before, whitespace_after=slot.gap)
            nodes.append(node.with_changes(comma=comma))
        else:
            node = node.with_changes(comma=cst.MaybeSentinel.DEFAULT)
            nodes.append(node.with_changes(**{tail: slot.gap}) if tail else node)
    return nodes


def insert(slots: Sequence[Slot], index: int, node: Any) -> list[Slot]:
    """Put an item at slots[index]. It gets a line of its own where every item has one."""
    import libcst as cst

    above, below = slots[index - 1], slots[index:]
    empty, space = cst.SimpleWhitespace(""), cst.SimpleWhitespace(" ")
    margin = _margin(slots, index)
    if below:
        # comments on lines of their own describe the item below: they stay with it
        added = Slot(node, True, empty, _line_break(margin) if margin else space)
        if isinstance(above.gap, cst.ParenthesizedWhitespace) and above.gap.empty_lines:
            added = added._replace(gap=above.gap.with_changes(first_line=cst.TrailingWhitespace()))
            above = above._replace(gap=above.gap.with_changes(empty_lines=()))
        return [*slots[: index - 1], above, added, *below]
    if above.node is None:
        bare = not isinstance(above.gap, cst.ParenthesizedWhitespace) or above.gap.first_line.comment is None
        return [above._replace(gap=empty) if bare else above, Slot(node, False, empty, empty)]
    gap = above.gap
    if margin and isinstance(gap, cst.ParenthesizedWhitespace):
        above = above._replace(comma=True, gap=_line_break(margin).with_changes(first_line=gap.first_line))
        gap = gap.with_changes(first_line=cst.TrailingWhitespace())
    else:
        above = above._replace(comma=True, gap=_line_break(margin) if margin else space)
    return [*slots[:-1], above, Slot(node, slots[-1].comma, empty, gap)]


def remove(slots: Sequence[Slot], index: int) -> list[Slot]:
    """Drop slots[index] with its comma, the comments on lines of their own above it, and the comment behind it if it
    has a line of its own. A new last item takes over the style of the list's end."""
    import libcst as cst

    above, gone, below = slots[index - 1], slots[index], slots[index + 1 :]
    gap = gone.gap
    if isinstance(above.gap, cst.ParenthesizedWhitespace):
        comment = above.gap.first_line.comment
        if not below and above.node is None and comment is None:
            gap = cst.SimpleWhitespace("")
        elif isinstance(gap, cst.ParenthesizedWhitespace):
            gap = gap.with_changes(first_line=above.gap.first_line)
        elif below or comment is not None:
            gap = above.gap.with_changes(empty_lines=())
    comma = above.comma if below else gone.comma and above.node is not None
    return [*slots[: index - 1], above._replace(comma=comma, gap=gap), *below]


def _margin(slots: Sequence[Slot], index: int) -> cst.SimpleWhitespace | None:
    """The indentation of an item put at slots[index] on a line of its own; None where items share lines."""
    import libcst as cst

    gaps = [slot.gap for slot in (slots[1:-1] if len(slots) > 2 else slots[:1])]
    if len(slots) == 1 or not all(isinstance(gap, cst.ParenthesizedWhitespace) for gap in gaps):
        return None
    model = slots[-2 if index == len(slots) else index - 1].gap
    if not isinstance(model, cst.ParenthesizedWhitespace):
        model = gaps[0]
    assert isinstance(model, cst.ParenthesizedWhitespace)
    return model.last_line


def _line_break(margin: cst.SimpleWhitespace) -> cst.ParenthesizedWhitespace:
    import libcst as cst

    return cst.ParenthesizedWhitespace(first_line=cst.TrailingWhitespace(), indent=True, last_line=margin)


def parsed(make: Callable[[], Any]) -> Any:
    """The LibCST node that `make` makes; CannotEdit where LibCST refuses."""
    import libcst as cst

    try:
        return make()
    except (cst.ParserSyntaxError, RecursionError):
        raise CannotEdit("LibCST cannot parse it") from None
    except cst.CSTValidationError as error:
        raise CannotEdit(str(error).rstrip(".").lower()) from None


def code(node: Any) -> str:
    """The text of a LibCST node; CannotEdit where it is nested too deeply to be written."""
    import libcst as cst

    try:
        return (node if isinstance(node, cst.Module) else cst.Module([])).code_for_node(node)
    except RecursionError:
        raise CannotEdit("nested too deeply") from None
