"""The edits that fixes are made of, in one place: what to import when writing a fix.

Every function takes a module and nodes of its tree and returns edits that do not overlap; nothing outside them changes.
A shape that a function does not handle raises CannotEdit.
"""

from amplint.rewrite.syntax.calls import add_argument, add_parameter, change_call, takes_keyword_only
from amplint.rewrite.syntax.dicts import add_entry
from amplint.rewrite.syntax.expressions import replace, wrap_call
from amplint.rewrite.syntax.imports import add_import, binding_of, change_import, remove_import_name
from amplint.rewrite.syntax.lines import (
    dedent_tail,
    delete,
    indent_under,
    insert_after,
    insert_before,
    move_after,
    move_before,
    sink_header,
)
from amplint.rewrite.syntax.text import CannotEdit

__all__ = [
    "CannotEdit",
    "add_argument",
    "add_entry",
    "add_import",
    "add_parameter",
    "binding_of",
    "change_call",
    "change_import",
    "dedent_tail",
    "delete",
    "indent_under",
    "insert_after",
    "insert_before",
    "move_after",
    "move_before",
    "remove_import_name",
    "replace",
    "sink_header",
    "takes_keyword_only",
    "wrap_call",
]
