"""Every call of a function in the files of a group: by its name, through partial(…), and by a variable or parameter
that may stand for it, together with the other functions that this may stand for."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from amplint.rewrite.apex.group import Group
from amplint.rewrite.models.used import paths_of
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.source.interpret.project import Project
from amplint.source.module import FunctionNode, Module, Unreadable
from amplint.source.tree import assigned_to, last_name, parameters, passed, positional

Seen = dict[ast.AST, set[ast.AST]]  # calls that the reading followed, each with the code it entered
MOST_HOPS = 6


@dataclass
class Calls:
    """The functions that are called by the same calls, these, and the partial(…) that make functions of them."""

    functions: dict[ast.FunctionDef, None] = field(default_factory=dict)
    calls: dict[ast.Call, None] = field(default_factory=dict)
    partials: dict[ast.Call, None] = field(default_factory=dict)


def calls_of(group: Group, function: ast.FunctionDef, seen: Seen, outside: bool = True) -> Calls:
    """Raises Refused where a call may be missed; without `outside`, other files of the project are not asked."""
    home = group.of(function)
    found = Calls()
    if isinstance(home.parents[function], ast.ClassDef):
        found.functions[function] = None
        _of_method(group, function, seen, found)
    else:
        _Flow(group, seen, found).function(function)
    if not found.calls and not found.partials:
        raise Refused(f"no call of {function.name}() is in this file", BY_HAND)
    for one in found.functions if outside else ():
        _refuse_outside(group, one)
    return found


def _of_method(group: Group, function: ast.FunctionDef, seen: Seen, found: Calls) -> None:
    for module in group.others:
        for node in ast.walk(module.tree):
            if not (isinstance(node, ast.Attribute) and node.attr == function.name and isinstance(node.ctx, ast.Load)):
                continue
            parent = module.parents[node]
            owner = _made_as(group, module, node.value)
            if owner is not None and _method(group, owner, function.name) is not function:
                continue
            if isinstance(parent, ast.Call) and parent.func is node:
                entered = seen.get(parent, set())
                if function in entered or owner is not None:
                    found.calls[parent] = None
                    continue
                if entered or module.dotted(node) or not _fits(function, parent):
                    continue  # another method of that name: torch.save(…), model.train()
            elif module.dotted(node):
                continue
            raise Refused(f"{function.name} is passed around, not only called", BY_HAND)


def _made_as(group: Group, module: Module, node: ast.expr, hops: int = 3) -> ast.ClassDef | None:
    """The class of the group's files that an object is made of: what a variable, or a field of `self`, is assigned, or
    what every call passes for a parameter."""
    if isinstance(node, ast.Name) and node.id == "self":
        above = (one for one in module.ancestors(node) if isinstance(one, ast.ClassDef))
        return next(above, None)
    text = ast.unparse(node)
    scope: ast.AST | None = None
    if isinstance(node, ast.Name):
        scope = _scope_of(module, node) or module.tree
    elif text.startswith("self.") and text.count(".") == 1:
        scope = module.class_of(node)
    values = assigned_to(scope, text) if scope is not None else []
    values = [one for one in values if not (isinstance(one, ast.Constant) and one.value is None)]
    made = {resolved(group, module, one.func) if isinstance(one, ast.Call) else None for one in values}
    if (
        not values
        and isinstance(scope, ast.FunctionDef)
        and hops
        and not isinstance(module.parents[scope], ast.ClassDef)
    ):
        outer = Calls()
        try:
            _Flow(group, {}, outer).function(scope)
        except Refused:
            return None
        for call in outer.calls:
            value = argument_of(scope, call, text)
            if not (isinstance(value, ast.Constant) and value.value is None):
                made.add(_made_as(group, group.of(call), value, hops - 1) if value is not None else None)
    one_class = made.pop() if len(made) == 1 else None
    return one_class if isinstance(one_class, ast.ClassDef) else None


def _method(group: Group, cls: ast.ClassDef, name: str, hops: int = MOST_HOPS) -> ast.AST | None:
    """What a class has by a name, itself or from a base in the files."""
    for one in cls.body:
        if isinstance(one, ast.FunctionDef) and one.name == name:
            return one
    for base in cls.bases if hops else ():
        above = resolved(group, group.of(cls), base)
        found = _method(group, above, name, hops - 1) if isinstance(above, ast.ClassDef) else None
        if found is not None:
            return found
    return None


def _fits(function: ast.FunctionDef, call: ast.Call) -> bool:
    """Whether a call of a method may be one of this function, by what it passes."""
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)][1:]
    named = {one.arg for one in call.keywords}
    if None in named or any(isinstance(one, ast.Starred) for one in call.args):
        return True
    if not arguments.vararg and len(call.args) > len(names):
        return False
    if not arguments.kwarg and named - {*names, *(one.arg for one in arguments.kwonlyargs)}:
        return False
    needed = names[len(call.args) : len(names) - len(arguments.defaults)]
    return all(name in named for name in needed)


class _Flow:
    """Follows the functions of the files through variables and parameters to their calls."""

    def __init__(self, group: Group, seen: Seen, found: Calls):
        self.group = group
        self.seen = seen
        self.found = found
        self.holders: set[tuple[ast.AST, str]] = set()

    def function(self, function: ast.FunctionDef) -> None:
        if function in self.found.functions:
            return
        self.found.functions[function] = None
        module = self.group.of(function)
        outer = module.function(function)
        if isinstance(module.parents[function], ast.ClassDef):
            raise Refused(f"{function.name} is passed around, not only called", BY_HAND)
        for where, load in self._loads(module, outer, function):
            self._use(where, load, function.name)

    def _loads(
        self, home: Module, outer: FunctionNode | None, function: ast.FunctionDef
    ) -> Iterator[tuple[Module, ast.expr]]:
        for node in _names(home, outer, function.name):
            yield home, node
        if outer is not None:
            return
        for module in self.group.others:
            if module is home or function.name not in module.text:
                continue
            renamed = (one.asname for node in group_imports(self.group, module) for one in node.names)
            names = {function.name, *renamed}
            for node in ast.walk(module.tree):  # type: ignore[assignment]
                if (
                    isinstance(node, ast.Name | ast.Attribute)
                    and isinstance(node.ctx, ast.Load)
                    and last_name(node) in names
                    and resolved(self.group, module, node) is function
                ):
                    yield module, node

    def _use(self, module: Module, load: ast.expr, name: str) -> None:
        above = module.parents[load]
        match above:
            case ast.Call(func=func) if func is load:
                self.found.calls[above] = None
                return
            case ast.Call(args=[first, *_]) if first is load and "functools.partial" in module.dotted(above.func):
                self.found.partials[above] = None
                return
            case ast.Call() | ast.keyword():
                call = above if isinstance(above, ast.Call) else module.parents[above]
                assert isinstance(call, ast.Call)
                target = resolved(self.group, module, call.func)
                parameter = given_to(target, call, load) if isinstance(target, ast.FunctionDef) else None
                if parameter is not None and isinstance(target, ast.FunctionDef):
                    self._parameter(target, parameter)
                    return
            case ast.Assign(targets=[ast.Name(id=target)]):
                self._variable(module, module.function(above), target)
                return
        raise Refused(f"{name} is passed around, not only called", BY_HAND)

    def _variable(self, module: Module, outer: FunctionNode | None, name: str) -> None:
        if (outer or module.tree, name) in self.holders:
            return
        self.holders.add((outer or module.tree, name))
        for node in _names(module, outer, name, ast.Store):
            statement = module.parents[node]
            value = statement.value if isinstance(statement, ast.Assign) else None
            target = resolved(self.group, module, value) if value is not None else None
            if not isinstance(target, ast.FunctionDef):
                raise Refused(f"{name} may stand for something that amplint does not know", BY_HAND)
            self.function(target)
        for node in _names(module, outer, name):
            self._use(module, node, name)

    def _parameter(self, function: ast.FunctionDef, name: str) -> None:
        if (function, name) in self.holders:
            return
        self.holders.add((function, name))
        module = self.group.of(function)
        if any(_names(module, function, name, ast.Store)):
            raise Refused(f"{name} may stand for something that amplint does not know", BY_HAND)
        outer = Calls()
        _Flow(self.group, self.seen, outer).function(function)
        for call in (*outer.calls, *outer.partials):
            where = self.group.of(call)
            value = argument_of(function, call, name)
            target = resolved(self.group, where, value) if value is not None else None
            if isinstance(target, ast.FunctionDef):
                self.function(target)
            elif isinstance(value, ast.Name):
                self._variable(where, _scope_of(where, value), value.id)
            else:
                raise Refused(f"{name} may stand for something that amplint does not know", BY_HAND)
        for node in _names(module, function, name):
            self._use(module, node, name)


def _names(
    module: Module, outer: FunctionNode | None, name: str, context: type[ast.expr_context] = ast.Load
) -> Iterator[ast.Name]:
    """The places that name a variable of a function, or of the module."""
    for node in ast.walk(outer or module.tree):
        if not isinstance(node, ast.Name) or node.id != name or not isinstance(node.ctx, context):
            continue
        if _scope_of(module, node) is outer:
            yield node


def _scope_of(module: Module, node: ast.Name) -> FunctionNode | None:
    """The function whose variable a name is; None for the module's."""
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode) and binds(module, above, node.id):
            return above
    return None


def binds(module: Module, function: FunctionNode, name: str) -> bool:
    """Whether a name is a parameter or a variable of a function itself."""
    if name in parameters(function):
        return True
    for node in ast.walk(function):
        if isinstance(node, ast.Global) and name in node.names and module.function(node) is function:
            return False
    return any(
        (isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store))
        or (isinstance(node, ast.FunctionDef) and node.name == name and node is not function)
        for node in ast.walk(function)
        if module.function(node) is function
    )


def resolved(group: Group, module: Module, node: ast.expr, hops: int = MOST_HOPS) -> ast.AST | None:
    """The function or class of the group's files that a name, or the attribute of an imported file, stands for."""
    match node:
        case ast.Name(id=name):
            scope = _scope_of(module, node)
            if scope is None:
                return _top_level(group, module, name, hops)
            inner = [one for one in ast.walk(scope) if isinstance(one, ast.FunctionDef) and one.name == name]
            return inner[0] if len(inner) == 1 and not any(_names(module, scope, name, ast.Store)) else None
        case ast.Attribute(value=ast.Name(id=owner), attr=name):
            for statement in group_imports(group, module):
                for alias in statement.names:
                    if (alias.asname or alias.name) == owner:
                        level = getattr(statement, "level", 0)
                        full = ".".join(filter(None, (getattr(statement, "module", ""), alias.name)))
                        source = group.source(module, full, level)
                        if source is not None:
                            return _top_level(group, source, name, hops - 1)
    return None


def group_imports(group: Group, module: Module) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a file, found once."""
    if module not in group.imports:
        group.imports[module] = [
            node for node in ast.walk(module.tree) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
    return group.imports[module]


def _top_level(group: Group, module: Module, name: str, hops: int) -> ast.AST | None:
    """What a file's top level calls by a name, itself or by an import."""
    key = module, name
    if key not in group.names:
        group.names[key] = None  # while it is looked for: imports may go round
        group.names[key] = _looked_up(group, module, name, hops)
    return group.names[key]


def _looked_up(group: Group, module: Module, name: str, hops: int) -> ast.AST | None:
    found: list[ast.AST] = []
    if name in module.text:
        for node in ast.walk(module.tree):
            match node:
                case ast.FunctionDef() | ast.ClassDef() if node.name == name and module.function(node) is None:
                    if not isinstance(module.parents[node], ast.ClassDef):
                        found.append(node)
                case ast.Name(ctx=ast.Store()) if node.id == name and module.function(node) is None:
                    return None
    for statement in group_imports(group, module) if hops > 0 else ():
        for alias in statement.names if isinstance(statement, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name or alias.name == "*":
                source = group.source(module, statement.module or "", statement.level)  # type: ignore[union-attr]
                wanted = name if alias.name == "*" else alias.name
                if source is not None and source is not module:
                    inner = _top_level(group, source, wanted, hops - 1)
                    found += [inner] if inner is not None else []
    return found[0] if len(set(found)) == 1 else None


def given_to(function: ast.FunctionDef, call: ast.Call, value: ast.expr) -> str | None:
    """The parameter that a call gives an expression to."""
    names = positional(function)
    if names[:1] == ["self"]:
        return None
    for name in (*names, *(one.arg for one in function.args.kwonlyargs)):
        if argument_of(function, call, name) is value:
            return name
    return None


def argument_of(function: ast.FunctionDef, call: ast.Call, name: str) -> ast.expr | None:
    """What a call of a function passes for a parameter."""
    return passed(function, call, name, positional(function)[:1] == ["self"])


def _refuse_outside(group: Group, function: ast.FunctionDef) -> None:
    """Refuse a function that another file of the project calls, too."""
    home = group.of(function)
    if home.function(function) is not None or not os.path.isfile(home.path):
        return
    method = isinstance(home.parents[function], ast.ClassDef)
    stem = (
        os.path.basename(home.path)
        .removesuffix(".py")
        .replace("__init__", os.path.basename(os.path.dirname(home.path)))
    )
    for path, data in group.neighbours(home):
        if path in group.files or f"{function.name}(".encode() not in data or stem.encode() not in data:
            continue
        try:
            module = Module.read(os.path.relpath(path), data)
        except Unreadable:
            continue
        called = any(
            isinstance(node, ast.Call)
            and getattr(node.func, "attr" if method else "id", "") == function.name
            and (not method or (_fits(function, node) and not module.dotted(node.func)))
            for node in ast.walk(module.tree)
        )
        if called and Path(home.path).resolve() in paths_of(module, Project.around(module).roots):
            raise Refused(f"{function.name}() is also called in {module.path}", BY_HAND)
