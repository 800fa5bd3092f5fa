"""Walking syntax trees: as `ast.walk` does, in its order, in a third of the time. What never holds a name or a place is
left out: contexts (`ast.Load`) and operators (`ast.Add`), which are read as `node.ctx` and `node.op`."""

from __future__ import annotations

import ast

# Fields that hold no nodes, or only contexts and operators.
_PLAIN = frozenset(
    "arg asname attr conversion ctx id is_async kind kwd_attrs level lineno module name op ops rest simple tag "
    "type_comment type_ignores".split()
)
_EMPTY_ITEMS = frozenset(("keys", "kw_defaults"))  # lists with None in them: `{**more}`, `def f(*, a)`


def _fields(kind: type[ast.AST]) -> tuple[str, ...]:
    if kind in (ast.Constant, ast.Global, ast.Nonlocal, ast.MatchSingleton):
        return ()
    return tuple(name for name in kind._fields if name not in _PLAIN)


_FIELDS = {kind: _fields(kind) for kind in vars(ast).values() if isinstance(kind, type) and issubclass(kind, ast.AST)}


def walk(top: ast.AST) -> list[ast.AST]:
    """This node and all nodes below it, level by level."""
    found = [top]
    fields = _FIELDS
    for node in found:  # which grows on the way
        for name in fields[type(node)]:
            value = getattr(node, name, None)
            if type(value) is list:
                found += [one for one in value if one is not None] if name in _EMPTY_ITEMS else value
            elif value is not None:
                found.append(value)
    return found


def children(node: ast.AST, besides: frozenset[str] = frozenset()) -> list[ast.AST]:
    """The nodes right below this one, but for those in the fields `besides`."""
    found: list[ast.AST] = []
    for name in _FIELDS[type(node)]:
        value = getattr(node, name, None) if name not in besides else None
        if type(value) is list:
            found += [one for one in value if one is not None] if name in _EMPTY_ITEMS else value
        elif value is not None:
            found.append(value)
    return found
