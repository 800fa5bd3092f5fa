"""Edits of imports: add one, move names to another module, drop what nothing uses any more."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import PurePath
from typing import Any

from amplint.findings import Edit
from amplint.rewrite.syntax import commas
from amplint.rewrite.syntax.layout import begins_line, end, line_end, margin_of, start, stays_first
from amplint.rewrite.syntax.lines import delete, insert_after, insert_before
from amplint.rewrite.syntax.text import CannotEdit, changed, edit, edit_within, plain
from amplint.source.module import Module
from amplint.source.tree import last_name

_DIRECTIVE = re.compile(r"#\s*(noqa|type:|pragma|pylint|isort|ruff|pyright|mypy)")
Import = ast.Import | ast.ImportFrom
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Late = Definition | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith

# -- what is bound ----------------------------------------------------------------------------------------------------


def binding_of(module: Module, dotted: str, at: ast.AST | None = None) -> str | None:
    """The name by which the file reaches `dotted`: "T" for "torch" after `import torch as T`; None where nothing is
    imported as exactly that. Imports at module level count, and in the functions around `at`; not for type checkers."""
    around = {module.tree, *(module.ancestors(at) if at is not None else ())}
    for stmt in _imports(module):
        if _scope(module, stmt) in around and not _for_types_only(module, stmt):
            for alias in stmt.names:
                name, target = _bound(stmt, alias)
                if target == dotted:
                    return name
    return None


def _imports(module: Module) -> Iterator[Import]:
    return (node for node in ast.walk(module.tree) if isinstance(node, Import))


def _bound(stmt: Import, alias: ast.alias) -> tuple[str, str]:
    """The name that an imported item binds, and the dotted name it stands for."""
    if isinstance(stmt, ast.Import):
        top = alias.name.partition(".")[0]
        return (alias.asname, alias.name) if alias.asname else (top, top)
    source = "." * stmt.level + (stmt.module or "")
    return alias.asname or alias.name, f"{source}{'' if source.endswith('.') else '.'}{alias.name}"


def _scope(module: Module, node: ast.AST) -> ast.AST:
    """The innermost module, class or function that holds `node`."""
    return next(above for above in module.ancestors(node) if isinstance(above, ast.Module | Definition))


def _for_types_only(module: Module, node: ast.AST) -> bool:
    tests = (above.test for above in module.ancestors(node) if isinstance(above, ast.If))
    return any(last_name(test) == "TYPE_CHECKING" for test in tests)


# -- add --------------------------------------------------------------------------------------------------------------


def add_import(module: Module, statement: str) -> list[Edit]:
    """Add an import at the top of the file: among those of the same package there, or else after the last one.

    Names that the file imports so already are left out.
    Raises CannotEdit where the file uses a name for something else.
    """
    new = ast.parse(statement).body[0]
    if not isinstance(new, Import):
        raise ValueError(f"not an import: {statement!r}")
    new.names = [alias for alias in new.names if not _is_bound(module, new, alias)]
    if not new.names:
        return []
    for alias in new.names:
        _check_free(module, *_bound(new, alias))
    leading: list[Import] = []
    for stmt in module.tree.body:
        if isinstance(stmt, Late):
            break
        if isinstance(stmt, Import):
            leading.append(stmt)
    text = ast.unparse(new)
    if same := [stmt for stmt in leading if _package(stmt) == _package(new)]:
        smaller = [stmt for stmt in same if _order(stmt) <= _order(new)]
        return insert_after(module, smaller[-1], [text]) if smaller else insert_before(module, same[0], [text])
    if leading:
        gap = [""] if _package(leading[-1]) == "__future__" else []
        return insert_after(module, leading[-1], [*gap, text])
    return _first_import(module, text)


def _first_import(module: Module, text: str) -> list[Edit]:
    """Add an import to a file that has none, with blank lines around it."""
    body = module.tree.body
    if not body:
        place = len(module.text)
        return [edit(module, place, place, "\n" * (module.line(len(module.starts)) != "") + text + "\n")]
    if stays_first(module, body, 0):
        row = module.at(line_end(module, body[0])).row
        has_gap = row >= len(module.starts) or not module.line(row + 1).strip()
        return insert_after(module, body[0], ["", text, *([] if has_gap else [""])])
    return insert_before(module, body[0], [text, "", *([""] if isinstance(body[0], Definition) else [])])


def _order(stmt: Import) -> tuple[bool, str]:
    """What isort sorts by: `import x` before `from x import`, then the name."""
    if isinstance(stmt, ast.Import):
        return False, stmt.names[0].name
    return True, "." * stmt.level + (stmt.module or "")


def _package(stmt: Import) -> str:
    if isinstance(stmt, ast.Import):
        return stmt.names[0].name.partition(".")[0]
    return "." * stmt.level + (stmt.module or "").partition(".")[0]


def _is_bound(module: Module, new: Import, alias: ast.alias) -> bool:
    """True if the file imports this at module level: the same module, under the same name."""
    for stmt in _imports(module):
        if _scope(module, stmt) is module.tree and not _for_types_only(module, stmt):
            for other in stmt.names:
                loads = isinstance(new, ast.ImportFrom) or alias.asname or f"{other.name}.".startswith(f"{alias.name}.")
                if _bound(stmt, other) == _bound(new, alias) and loads:
                    return True
    return False


def _check_free(module: Module, name: str, target: str) -> None:
    """Raise CannotEdit if the module level gives `name` another meaning."""
    for node in ast.walk(module.tree):
        if isinstance(node, Import):
            names = {name for alias in node.names for name, dotted in [_bound(node, alias)] if dotted != target}
        elif isinstance(node, Definition):
            names = {node.name}
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names = {node.id}
        else:
            continue
        if name in names and _scope(module, node) is module.tree:
            raise CannotEdit(f"the file uses the name {name} for something else")


# -- change -----------------------------------------------------------------------------------------------------------


def change_import(
    module: Module, stmt: ast.ImportFrom, source: str, names: Collection[str] | None = None
) -> list[Edit]:
    """Import `names` (default: all) of a from-import from `source` instead. The names that stay get a statement of
    their own, below; comments stay with their names."""
    begin = start(module, stmt)
    old = plain(module, begin, end(module, stmt))
    tree = _parsed_import(old)
    sample = _parsed_import(f"from {source} import _")
    imported = [alias.name for alias in stmt.names]
    wanted = set(imported if names is None else names)
    if unknown := wanted - set(imported):
        raise CannotEdit(f"the statement does not import {min(unknown)}")
    if wanted == set(imported):
        return changed(
            module, begin, old, commas.code(tree.with_changes(module=sample.module, relative=sample.relative))
        )
    kept = commas.code(_without(tree, wanted))
    moved = _without(tree, set(imported) - wanted).with_changes(module=sample.module, relative=sample.relative)
    text = commas.code(moved)
    if "\n" in text and "#" not in text:
        items = ", ".join(ast.unparse(alias) for alias in stmt.names if alias.name in wanted)
        text = f"from {source} import {items}"
    separator = "; "
    if begins_line(module, stmt):
        comment = module.text[end(module, stmt) : line_end(module, stmt)]
        text += comment.rstrip() if _DIRECTIVE.match(comment.strip()) else ""
        separator = "\n" + margin_of(module, stmt)
    return [edit_within(module, begin, text + separator), *changed(module, begin, old, kept)]


def remove_import_name(module: Module, *names: str, gone: Collection[ast.AST] = ()) -> list[Edit]:
    """Drop imported names that nothing uses once the nodes in `gone` are gone.

    What may be meant for others stays: names in `__init__.py`, in `__all__`, imported as themselves (`a as a`), under a
    `# noqa`, or imported in several places. Raises CannotEdit in a `try`, which would have nothing left to try.
    """
    if PurePath(module.path).name == "__init__.py":
        return []
    without = {part for node in gone for part in ast.walk(node)}
    drop: dict[Import, set[str]] = {}
    for name in {*names} - _used_names(module, without):
        found = [(stmt, alias) for stmt in _imports(module) for alias in stmt.names if _bound(stmt, alias)[0] == name]
        if len(found) == 1 and found[0][1].asname != found[0][1].name:
            stmt, alias = found[0]
            if "noqa" not in module.text[start(module, stmt) : line_end(module, stmt)]:
                drop.setdefault(stmt, set()).add(alias.name)
    whole = [stmt for stmt, removed in drop.items() if len(removed) == len(stmt.names)]
    if any(isinstance(module.parents[stmt], ast.Try | ast.ExceptHandler) for stmt in whole):
        raise CannotEdit("the import stands in a `try`")
    edits = delete(module, *whole)
    for stmt, removed in drop.items():
        if stmt not in whole:
            old = plain(module, start(module, stmt), end(module, stmt))
            edits += changed(module, start(module, stmt), old, commas.code(_without(_parsed_import(old), removed)))
    return sorted(edits, key=lambda part: part.range)


def _is_field(module: Module, name: ast.Name) -> bool:
    """Whether a name is assigned in the body of a class (`amp = False`): it is the class's own."""
    scopes = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return isinstance(next((one for one in module.ancestors(name) if isinstance(one, scopes)), None), ast.ClassDef)


def _used_names(module: Module, without: Collection[ast.AST]) -> set[str]:
    """The names that anything but the imports uses: as a name, in `__all__`, or in an annotation that is a string."""
    used: set[str] = set()
    quoting: list[ast.AST | None] = []
    for node in ast.walk(module.tree):
        if node in without:
            continue
        if isinstance(node, ast.Name):
            if not (isinstance(node.ctx, ast.Store) and _is_field(module, node)):
                used.add(node.id)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            used.update(node.names)
        elif isinstance(node, ast.arg | ast.AnnAssign):
            quoting.append(node.annotation)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            quoting.append(node.returns)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign) and "__all__" in module.source(node):
            quoting.append(node.value)
    for quoted in quoting:
        for part in ast.walk(quoted) if quoted is not None else ():
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                used.update(re.findall(r"\w+", part.value))
    return used


# -- import statements as LibCST nodes --------------------------------------------------------------------------------


def _parsed_import(text: str) -> Any:
    import libcst as cst

    node = commas.parsed(lambda: cst.parse_module(text + "\n")).body[0].body[0]
    if commas.code(node) != text:
        raise CannotEdit("LibCST does not give the import back as it is")
    return node


def _without(node: Any, names: Collection[str]) -> Any:
    """The import without some of its names."""
    import libcst as cst

    if isinstance(node.names, cst.ImportStar):
        raise CannotEdit("a `*` import names nothing")
    bracket = getattr(node, "lpar", None)
    opening = bracket.whitespace_after if bracket else cst.SimpleWhitespace("")
    slots = commas.split(opening, node.names, node.rpar.whitespace_before if bracket else None)
    for index in range(len(slots) - 1, 0, -1):
        if slots[index].node.evaluated_name in names:
            slots = commas.remove(slots, index)
    node = node.with_changes(names=commas.join(slots))
    if not bracket:
        return node
    closing = node.rpar.whitespace_before if slots[-1].comma else slots[-1].gap
    return node.with_changes(
        lpar=bracket.with_changes(whitespace_after=slots[0].gap), rpar=node.rpar.with_changes(whitespace_before=closing)
    )
