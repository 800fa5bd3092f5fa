"""What each edit must do, said on the syntax tree.

An operation picks nodes of a module at random and returns the edits for them with the same change of the tree: owner,
field and new value. The text after the edits must parse to the tree after the change. None: there was nothing to pick.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from random import Random
from typing import Any

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.syntax.apply import apply
from amplint.rewrite.syntax.layout import begins_line, ends_line, stays_first
from amplint.source.module import Module

Change = tuple[ast.AST, str, Any]
Outcome = tuple[list[Edit], list[Change]] | None
Operation = Callable[[Module, Random], Outcome]
OPERATIONS: list[Operation] = []
LOSE_COMMENTS: list[Operation] = []  # with what they remove
TEXTS = """a|a + b|lambda: 0|yield x|a, b|x if y else z|not a|await q|[1]|a := 1|-1|1|'s'|f(x)|x.y|(c)|a or b|x[0]|{1}
|yield|a ** b|*a, b|(
  a)|f(
  a,
  b)""".replace("\n|", "|").split("|")


def operation(function: Operation) -> Operation:
    OPERATIONS.append(function)
    return function


def loses_comments(function: Operation) -> Operation:
    LOSE_COMMENTS.append(function)
    return function


def check(module: Module, operation: Operation, rnd: Random) -> None:
    """The edits do what the change says and lose no comment (`apply` refuses edits that overlap)."""
    outcome = operation(module, rnd)
    if outcome is None:
        return
    found, changes = outcome
    with changed_tree(changes):
        wanted = ast.dump(module.tree)
    text = apply(module.text, found)
    assert ast.dump(ast.parse(text)) == wanted
    assert operation in LOSE_COMMENTS or comments(text) >= comments(module.text)
    assert all(edit.text.replace(module.newline, "").replace("\t", "").isprintable() for edit in found)


def comments(text: str) -> Counter[str]:
    rows = io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n"))
    tokens = tokenize.generate_tokens(rows.readline)
    return Counter(token.string for token in tokens if token.type == tokenize.COMMENT)


@contextmanager
def changed_tree(changes: list[Change]):
    old = [getattr(owner, name) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    yield
    for (owner, name, _), value in reversed(list(zip(changes, old, strict=True))):
        setattr(owner, name, value)


def nodes(module: Module, *kinds: type) -> list[Any]:
    return [node for node in ast.walk(module.tree) if isinstance(node, kinds)]


def parsed(text: str) -> Any:
    """The node of one expression."""
    return ast.parse(f"({text})").body[0].value


def where(module: Module, stmt: ast.stmt) -> tuple[ast.AST, str, list[ast.stmt], int]:
    """The owner and field of the statement's block, the block, and the statement's index."""
    owner = module.parents[stmt]
    for name in ("body", "orelse", "finalbody"):
        block = getattr(owner, name, None)
        if isinstance(block, list):
            for index, sibling in enumerate(block):
                if sibling is stmt:
                    return owner, name, block, index
    raise AssertionError("no block")


def run(block: list[ast.stmt], index: int, rnd: Random) -> list[ast.stmt]:
    return block[index : index + rnd.choice([1, 1, 2, 3, 10])]


def without(block: list[ast.stmt], gone: list[ast.stmt], owner: ast.AST) -> list[ast.stmt]:
    rest = [stmt for stmt in block if not any(stmt is other for other in gone)]
    return rest or ([] if isinstance(owner, ast.Module) else [ast.Pass()])


# -- statements -------------------------------------------------------------------------------------------------------


@operation
def inserts_before(module: Module, rnd: Random) -> Outcome:
    stmt = rnd.choice(nodes(module, ast.stmt))
    found = edits.insert_before(module, stmt, ["new(1)"])
    owner, name, block, index = where(module, stmt)
    while index < len(block) and stays_first(module, block, index):
        index += 1
    return found, [(owner, name, [*block[:index], *ast.parse("new(1)").body, *block[index:]])]


@operation
def inserts_after(module: Module, rnd: Random) -> Outcome:
    stmt = rnd.choice(nodes(module, ast.stmt))
    lines = ["if new:", "    new(1)"]
    found = edits.insert_after(module, stmt, lines)
    owner, name, block, index = where(module, stmt)
    if stays_first(module, block, index):
        while index + 1 < len(block) and stays_first(module, block, index + 1):
            index += 1
    return found, [(owner, name, [*block[: index + 1], *ast.parse("\n".join(lines)).body, *block[index + 1 :]])]


@operation
@loses_comments
def deletes(module: Module, rnd: Random) -> Outcome:
    owner, name, block, index = where(module, rnd.choice(nodes(module, ast.stmt)))
    gone = run(block, index, rnd)
    if rnd.random() < 0.5:
        gone = [stmt for stmt in block if rnd.random() < 0.5] or gone
    return edits.delete(module, *gone), [(owner, name, without(block, gone, owner))]


@operation
def moves(module: Module, rnd: Random) -> Outcome:
    every = nodes(module, ast.stmt)
    stmt = rnd.choice(every)
    anchor = rnd.choice([other for other in every if abs(other.lineno - stmt.lineno) < 12])
    owner, name, block, index = where(module, stmt)
    moving = run(block, index, rnd)
    before = rnd.random() < 0.5
    found = (edits.move_before if before else edits.move_after)(module, moving, anchor)
    target, field, others, place = where(module, anchor)
    while stays_first(module, others, place):
        before = place + 1 < len(others) and not stays_first(module, others, place + 1)
        place += 1
        if place == len(others):
            break
        before = True
    place += not before and place < len(others)
    start = [other for other in others[:place] if other not in moving]
    end = [other for other in others[place:] if other not in moving]
    changes: list[Change] = [(target, field, [*start, *moving, *end])]
    if others is not block:
        changes.append((owner, name, without(block, moving, owner)))
    return found, changes


@operation
def indents(module: Module, rnd: Random) -> Outcome:
    owner, name, block, index = where(module, rnd.choice(nodes(module, ast.stmt)))
    under = run(block, index, rnd)
    found = edits.indent_under(module, under, "with new:")
    header = ast.parse("with new: pass").body[0]
    header.body = under
    return found, [(owner, name, [*block[:index], header, *block[index + len(under) :]])]


@operation
@loses_comments
def dedents(module: Module, rnd: Random) -> Outcome:
    blocks = nodes(module, ast.With, ast.AsyncWith)
    if not blocks:
        return None
    stmt = rnd.choice(blocks)
    first = rnd.randrange(len(stmt.body) + 1)
    found = edits.dedent_tail(module, stmt, first)
    owner, name, block, index = where(module, stmt)
    kept = [stmt] if first else []
    out = (owner, name, [*block[:index], *kept, *stmt.body[first:], *block[index + 1 :]])
    return found, [out, (stmt, "body", stmt.body[:first])] if first else [out]


@operation
def insert_then_delete_gives_the_text_back(module: Module, rnd: Random) -> Outcome:
    stmt = rnd.choice(nodes(module, ast.stmt))
    block = where(module, stmt)[2]
    if not begins_line(module, block[0]) or not begins_line(module, stmt) or not ends_line(module, stmt):
        return None  # lines that get split stay split
    text = apply(module.text, rnd.choice([edits.insert_before, edits.insert_after])(module, stmt, ["new(1)"]))
    inserted = Module(module.path, text, ast.parse(text))
    new = next(node for node in nodes(inserted, ast.Expr) if inserted.source(node) == "new(1)")
    assert apply(text, edits.delete(inserted, new)) == module.text
    return None


@operation
def indent_then_dedent_gives_the_text_back(module: Module, rnd: Random) -> Outcome:
    _, _, block, index = where(module, rnd.choice(nodes(module, ast.stmt)))
    under = run(block, index, rnd)
    if not begins_line(module, block[0]) or not begins_line(module, under[0]) or not ends_line(module, under[-1]):
        return None
    text = apply(module.text, edits.indent_under(module, under, "with new:"))
    indented = Module(module.path, text, ast.parse(text))
    new = next(node for node in nodes(indented, ast.With) if indented.source(node).startswith("with new:"))
    assert apply(text, edits.dedent_tail(indented, new, 0)) == module.text
    return None


# -- expressions ------------------------------------------------------------------------------------------------------


def expression(module: Module, rnd: Random) -> ast.expr | None:
    """An expression that is read, neither assigned to nor part of a slice."""
    found = [
        node
        for node in nodes(module, ast.expr)
        if not isinstance(node, ast.Starred | ast.Slice | ast.FormattedValue)
        and isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
        and not (isinstance(node, ast.Tuple) and any(isinstance(item, ast.Slice) for item in node.elts))
    ]
    return rnd.choice(found) if found else None


def swapped(module: Module, node: ast.expr, new: ast.expr) -> list[Change]:
    owner = module.parents[node]
    for name, value in ast.iter_fields(owner):
        if value is node:
            return [(owner, name, new)]
        if isinstance(value, list) and any(item is node for item in value):
            return [(owner, name, [new if item is node else item for item in value])]
    raise AssertionError("not a child")


@operation
@loses_comments
def replaces(module: Module, rnd: Random) -> Outcome:
    node, text = expression(module, rnd), rnd.choice(TEXTS)
    return node and (edits.replace(module, node, text), swapped(module, node, parsed(text)))


@operation
def wraps(module: Module, rnd: Random) -> Outcome:
    node = expression(module, rnd)
    if node is None:
        return None
    template = rnd.choice(["scaler.scale({})", "{} / k", "-{}", "s({}, 1)", "g({})[0]"])

    class Fill(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.expr:
            return node if name.id == "HOLE" else name

    new = Fill().visit(parsed(template.replace("{}", "(HOLE)")))
    return edits.wrap_call(module, node, template), swapped(module, node, new)


# -- calls and signatures ---------------------------------------------------------------------------------------------


@operation
@loses_comments
def changes_calls(module: Module, rnd: Random) -> Outcome:
    calls = nodes(module, ast.Call)
    if not calls:
        return None
    call = rnd.choice(calls)
    known = next((index for index, arg in enumerate(call.args) if isinstance(arg, ast.Starred)), len(call.args))
    keys = [*range(known), *(keyword.arg for keyword in call.keywords if keyword.arg)]
    remove = [key for key in keys if rnd.random() < 0.2]
    named = range(rnd.randrange(known), known) if known == len(call.args) > 0 and rnd.random() < 0.4 else range(0)
    names = {index: f"new_{index}" for index in named}
    first = rnd.choice([[], [], ['"cuda"'], ["p", "q"]])
    added = rnd.choice([{}, {}, {"new_dtype": "torch.half"}, {"new_a": "1", "new_b": "x or y"}])
    func = rnd.choice([None, "a.b", "x"])
    found = edits.change_call(
        module,
        call,
        func=func,
        keywords_for_positional=names,
        add_positional_first=first,
        add_keywords=added,
        remove=remove,
    )
    args, keywords = [parsed(text) for text in first], []
    for index, arg in enumerate(call.args):
        if index not in remove and index in names:
            keywords.append(ast.keyword(names[index], arg))
        elif index not in remove:
            args.append(arg)
    for keyword in call.keywords:
        if keyword.arg not in remove:
            keywords.append(ast.keyword(keyword.arg, keyword.value))
    keywords = with_keywords(keywords, {name: parsed(text) for name, text in added.items()})
    changes: list[Change] = [(call, "args", args), (call, "keywords", keywords)]
    return found, [*changes, (call, "func", parsed(func))] if func else changes


def with_keywords(keywords: list[ast.keyword], new: dict[str, ast.expr]) -> list[ast.keyword]:
    place = next((index for index, keyword in enumerate(keywords) if keyword.arg is None), len(keywords))
    return [*keywords[:place], *(ast.keyword(name, value) for name, value in new.items()), *keywords[place:]]


@operation
def adds_arguments(module: Module, rnd: Random) -> Outcome:
    calls = nodes(module, ast.Call)
    if not calls:
        return None
    call = rnd.choice(calls)
    if rnd.random() < 0.5:
        return edits.add_argument(module, call, "scaler"), [(call, "args", [*call.args, parsed("scaler")])]
    found = edits.add_argument(module, call, "new=scaler")
    return found, [(call, "keywords", with_keywords(call.keywords, {"new": parsed("scaler")}))]


@operation
def adds_parameters(module: Module, rnd: Random) -> Outcome:
    functions = nodes(module, ast.FunctionDef, ast.AsyncFunctionDef)
    if not functions:
        return None
    function = rnd.choice(functions)
    text = rnd.choice(["new", "new: torch.amp.GradScaler", "new=None"])
    found = edits.add_parameter(module, function, text)
    old, new = function.args, ast.parse(f"def f({text}): pass").body[0].args
    if edits.takes_keyword_only(function):
        return found, [
            (old, "kwonlyargs", [*old.kwonlyargs, *new.args]),
            (old, "kw_defaults", [*old.kw_defaults, *(new.defaults or [None])]),
        ]
    return found, [(old, "args", [*old.args, *new.args]), (old, "defaults", [*old.defaults, *new.defaults])]


# -- imports ----------------------------------------------------------------------------------------------------------


@operation
def changes_imports(module: Module, rnd: Random) -> Outcome:
    imports = [
        node for node in nodes(module, ast.ImportFrom) if node.names[0].name != "*" and node.module != "__future__"
    ]
    imports = [node for node in imports if len({alias.name for alias in node.names}) == len(node.names)]
    if not imports:
        return None
    stmt = rnd.choice(imports)
    names = [alias.name for alias in stmt.names if rnd.random() < 0.5] or [stmt.names[0].name]
    source, target, level = rnd.choice([("torch.amp", "torch.amp", 0), ("..x.y", "x.y", 2)])
    found = edits.change_import(module, stmt, source, names)
    moved = ast.ImportFrom(target, [alias for alias in stmt.names if alias.name in names], level)
    kept = ast.ImportFrom(stmt.module, [alias for alias in stmt.names if alias.name not in names], stmt.level)
    owner, name, block, index = where(module, stmt)
    new = [moved, kept] if kept.names else [moved]
    return found, [(owner, name, [*block[:index], *new, *block[index + 1 :]])]


@operation
def adds_imports(module: Module, rnd: Random) -> Outcome:
    statement = rnd.choice(["import new", "from torch.amp import new", "import numpy as new"])
    found = edits.add_import(module, statement)
    body = module.tree.body
    after = [ast.dump(stmt) for stmt in ast.parse(apply(module.text, found)).body]
    place = after.index(ast.dump(ast.parse(statement).body[0]))
    assert not any(stays_first(module, body, index) for index in range(place, len(body)))
    return found, [(module.tree, "body", [*body[:place], *ast.parse(statement).body, *body[place:]])]


@operation
def removes_imports(module: Module, rnd: Random) -> Outcome:
    imports = [
        node for node in nodes(module, ast.Import, ast.ImportFrom) if getattr(node, "module", "") != "__future__"
    ]
    imports = [node for node in imports if node.names[0].name != "*"]
    names = [bound(alias) for node in imports for alias in node.names if rnd.random() < 0.4]
    gone = nodes(module, ast.Name, ast.arg, ast.AnnAssign, ast.Assign, ast.FunctionDef, ast.AsyncFunctionDef)
    found = edits.remove_import_name(module, *names, gone=[node for node in gone if not hasattr(node, "body")])
    text = apply(module.text, found)
    left = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    kept = {bound(alias) for node in left for alias in node.names}
    assert {bound(alias) for node in imports for alias in node.names} - kept <= set(names)
    assert simple(module.tree) == simple(ast.parse(text))
    return None


def bound(alias: ast.alias) -> str:
    return alias.asname or alias.name.partition(".")[0]


def simple(tree: ast.Module) -> list[str]:
    """The simple statements that are no imports."""
    skip = (ast.Import, ast.ImportFrom, ast.Pass)
    every = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and not isinstance(node, skip)]
    return sorted(ast.dump(node) for node in every if not hasattr(node, "body") and not hasattr(node, "cases"))
