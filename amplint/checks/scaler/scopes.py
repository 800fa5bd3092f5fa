"""Scopes: what binds a name, and whether a use can see it; Python's rules, read off the tree alone."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator

from amplint.source.module import FunctionNode, Module
from amplint.source.tree import last_name
from amplint.source.walk import children, walk

_BUILTINS = frozenset((*dir(builtins), "__file__", "__name__", "__class__"))
_DYNAMIC = frozenset(("exec", "execfile", "get_ipython"))
_NAMESPACES = frozenset(("globals", "locals", "vars"))  # without an argument
_WITHOUT_AMP = re.compile(r"(torch\.(nn|optim|utils)|math|typing)(\.|$)")  # none of their names is one of AMP's
_COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_CATCHES = ("NameError", "UnboundLocalError", "AttributeError", "ImportError", "Exception", "BaseException")
_ANNOTATIONS = frozenset(("annotation", "returns", "type_params"))


def own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope, without the bodies of the functions and classes in it (but with what is evaluated here:
    their decorators, bases and defaults)."""
    pending = list(ast.iter_child_nodes(scope))
    while pending:
        node = pending.pop(0)
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pending += [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)]
        elif isinstance(node, ast.ClassDef):
            pending += [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]
        elif isinstance(node, ast.Lambda):
            pending += [*node.args.defaults, *(d for d in node.args.kw_defaults if d)]
        else:
            pending += ast.iter_child_nodes(node)


def binders(scope: ast.AST, name: str) -> Iterator[ast.AST]:
    """What binds a name in a scope."""
    if isinstance(scope, FunctionNode):
        yield from (a for a in walk(scope.args) if isinstance(a, ast.arg) and a.arg == name)
    for node in own_nodes(scope):
        match node:
            case ast.Name(id=one, ctx=ast.Store()) if one == name:
                yield node
            case ast.FunctionDef(name=one) | ast.AsyncFunctionDef(name=one) | ast.ClassDef(name=one) if one == name:
                yield node
            case ast.Import(names=aliases):
                if any((a.asname or a.name.partition(".")[0]) == name for a in aliases):
                    yield node
            case ast.ImportFrom(names=aliases):
                if any((a.asname or a.name) == name for a in aliases):
                    yield node
            case ast.ExceptHandler(name=one) | ast.MatchAs(name=one) | ast.MatchStar(name=one) if one == name:
                yield node
            case ast.MatchMapping(rest=one) if one == name:
                yield node


def dynamic(scope: ast.AST) -> bool:
    """Whether names may come to be in ways that the text does not show."""
    for node in walk(scope):
        match node:
            case ast.Name(id=name) if name in _DYNAMIC:
                return True
            case ast.Call(func=ast.Name(id=name), args=[], keywords=[]) if name in _NAMESPACES:
                return True
            case ast.ImportFrom(module=source, names=[ast.alias(name="*")], level=level):
                if level or not _WITHOUT_AMP.match(source or ""):
                    return True
            case ast.Attribute(value=ast.Name(id="builtins" | "__builtins__"), ctx=ast.Store()):
                return True
    return False


def unbound(module: Module, name: ast.Name) -> bool:
    """Whether no scope that a name can see binds it, anywhere or by `global`."""
    if name.id in _BUILTINS:
        return False
    first = True
    inner: ast.AST = name
    for scope in module.ancestors(name):
        around = isinstance(scope, FunctionNode) and _before(scope, inner)
        inner = scope
        if around:
            continue
        if isinstance(scope, _COMPREHENSIONS):
            stored = (n for generator in scope.generators for n in walk(generator.target))
            if any(isinstance(n, ast.Name) and n.id == name.id for n in stored):
                return False
        elif isinstance(scope, FunctionNode | ast.Module) or (isinstance(scope, ast.ClassDef) and first):
            if any(True for _ in binders(scope, name.id)):
                return False
            first = first and not isinstance(scope, FunctionNode)
    return not any(isinstance(n, ast.Global | ast.Nonlocal) and name.id in n.names for n in module.all_nodes)


def _before(function: FunctionNode, part: ast.AST) -> bool:
    """Whether a part of a function is run where the function is defined: a default, a decorator."""
    return part is function.args or part in getattr(function, "decorator_list", ())


def loads(tree: ast.AST) -> Iterator[ast.Name]:
    """The names that are read when the code runs, in the order of the text; no annotations."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node
        pending += reversed(children(node, besides=_ANNOTATIONS))


def is_guarded(module: Module, node: ast.AST) -> bool:
    """Whether the code around a use expects it to fail, or asks whether the thing is there."""
    inner = node
    for above in module.ancestors(node):
        if isinstance(above, ast.Try) and inner in above.body and any(map(_catches, above.handlers)):
            return True
        if isinstance(above, ast.If | ast.IfExp) and inner is not above.test:
            test = module.source(above.test)
            if "hasattr" in test or "getattr" in test or "version" in test.lower() or "TYPE_CHECKING" in test:
                return True
        if isinstance(above, ast.With) and "suppress(" in "".join(module.source(i.context_expr) for i in above.items):
            return True
        inner = above
    return False


def asked_before(module: Module, node: ast.AST, conditions: list[str]) -> bool:
    """Whether `if not f(): raise` stands in front of a use and asks what one of the conditions asks, in whatever way f
    was imported."""
    calls = {one.rpartition(".")[2] for one in conditions if one.endswith("()")}
    function = module.function(node)
    for branch in walk(function) if calls and function is not None else ():
        match branch:
            case ast.If(test=ast.UnaryOp(op=ast.Not(), operand=asked), body=[*_, ast.Raise() | ast.Return()]):
                before = branch.lineno < node.lineno  # type: ignore[attr-defined]
                if before and module.source(asked).rpartition(".")[2] in calls:
                    return True
    return False


def _catches(handler: ast.ExceptHandler) -> bool:
    caught = handler.type
    names = [caught] if not isinstance(caught, ast.Tuple) else list(caught.elts)
    return caught is None or any(last_name(n) in _CATCHES for n in names)


def born(module: Module, node: ast.ClassDef) -> set[ast.AST | None]:
    """The methods that run whenever an object is made: __init__, and those that such a method calls in any case and
    that no class of the file makes anew."""
    heirs = [one for one in module.nodes(ast.ClassDef) if any(ast.unparse(base) == node.name for base in one.bases)]
    anew = {one.name for heir in heirs for one in heir.body if isinstance(one, ast.FunctionDef)} - {"__init__"}
    methods = {one.name: one for one in node.body if isinstance(one, ast.FunctionDef)}
    found: set[ast.AST | None] = set()
    names = ["__init__"]
    for name in names:
        method = methods.get(name)
        if method is None or method in found or name in anew:
            continue
        found.add(method)
        for statement in method.body:
            match statement:
                case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=called))):
                    names.append(called)
    return found


def plain(node: ast.ClassDef, name: str) -> bool:
    """Whether a class gets its fields in no other way: from a dict, by name, or from a method for missing ones."""
    text = ast.unparse(node)
    return not re.search(r"__getattr|__dict__|setattr\(|vars\(|__slots__", text) and not any(
        isinstance(one, ast.FunctionDef | ast.Assign | ast.AnnAssign)
        and name in (getattr(one, "name", ""), *(getattr(t, "id", "") for t in getattr(one, "targets", ())),
                     getattr(getattr(one, "target", None), "id", ""))
        for one in node.body
    )  # fmt: skip
