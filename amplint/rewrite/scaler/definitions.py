"""What a name stands for across the files of a project: the function, class or module that it was imported from."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from amplint import files
from amplint.rewrite.around import files_around
from amplint.source.interpret import entries
from amplint.source.interpret.project import Project, now_together
from amplint.source.module import FunctionNode, Module, Unreadable
from amplint.source.tree import last_name, parameters

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
Found = tuple[Module, ast.AST]
MOST_HOPS = 8
MOST_PROJECTS = 200
MOST_READ = 12  # files that are read as scripts to see whether they run a method


_projects: dict[Module, tuple[object, Project]] = {}


def _project(module: Module, roots: tuple[str, ...]) -> Project:
    """The project around a file, as long as the same files change together."""
    known = _projects.get(module)
    if known is None or known[0] is not now_together():
        if len(_projects) > MOST_PROJECTS:
            _projects.clear()
        known = _projects[module] = now_together(), Project.around(module, roots)
    return known[1]


def definition(module: Module, node: ast.expr, roots: Sequence[str] = ()) -> Found | None:
    """The function or class of the project that a name, or the attribute of a module or of `self`, stands for."""
    return _of(_project(module, tuple(roots)), module, node)


def _of(project: Project, module: Module, node: ast.expr) -> Found | None:
    match node:
        case ast.Name(id=name):
            return _named(project, module, name, MOST_HOPS)
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            around = module.class_of(node)
            for owner, cls in classes_of(module, around, project) if around is not None else ():
                for member in cls.body:
                    if isinstance(member, ast.FunctionDef) and member.name == name:
                        return owner, member
        case ast.Attribute(value=owner, attr=name):
            inner = _module(project, module, owner)
            return _named(project, inner, name, MOST_HOPS) if inner is not None else None
    return None


def functions_called(module: Module, name: str) -> list[tuple[Module, ast.FunctionDef]]:
    """The functions of the project that a name may be at a file's top, or as one of several imports."""
    own = [(module, one) for one in module.tree.body if isinstance(one, ast.FunctionDef) and one.name == name]
    found: list[tuple[Module, ast.FunctionDef]] = own
    project = _project(module, ())
    for statement in module.nodes(ast.ImportFrom):
        for alias in statement.names:
            if name != (alias.asname or alias.name):
                continue
            source = project.find(statement.module or "", statement.level, module)
            match _named(project, source, alias.name, MOST_HOPS) if source is not None else None:
                case (where, ast.FunctionDef() as function):
                    found.append((where, function))
                case _:
                    return []
    return found


def sources_of(module: Module, name: str) -> list[tuple[Module, str]]:
    """The file of the project that a name is imported from, and what it is called there."""
    project = _project(module, ())
    found = [
        (project.find(one.module or "", one.level, module, whole=True), alias.name)
        for one in module.nodes(ast.ImportFrom)
        for alias in one.names
        if name == (alias.asname or alias.name)
    ]
    return [(source, known) for source, known in found if source is not None]


def functions_of(module: Module, owner: str, name: str) -> list[tuple[Module, ast.FunctionDef]]:
    """The functions of a name in the file of the project that a file imports as `owner`: `utils.load_model`."""
    project = _project(module, ())
    for dotted in module.imports.get(owner, ()):
        level = len(dotted) - len(dotted.lstrip("."))
        if (source := project.find(dotted.lstrip("."), level, module, whole=True)) is not None:
            return [(source, one) for one in source.tree.body if isinstance(one, ast.FunctionDef) and one.name == name]
    return []


def methods_called(module: Module, name: str) -> list[tuple[Module, ast.FunctionDef]]:
    """The methods of the name that a file and those that it imports from define."""
    project = _project(module, ())
    sources = {module: None}
    for statement in module.nodes(ast.ImportFrom):
        source = project.find(statement.module or "", statement.level, module, whole=True)
        sources |= {source: None} if source is not None else {}
    return [
        (one, member)
        for one in sources
        for cls in one.tree.body
        if isinstance(cls, ast.ClassDef)
        for member in cls.body
        if isinstance(member, ast.FunctionDef) and member.name == name
    ]


def classes_of(
    module: Module, cls: ast.ClassDef, project: Project | None = None
) -> Iterator[tuple[Module, ast.ClassDef]]:
    """A class, and its bases in the project, in the order in which attributes are looked up (roughly)."""
    pending: list[tuple[Module, ast.ClassDef]] = [(module, cls)]
    seen: set[ast.AST] = set()
    while pending:
        owner, one = pending.pop(0)
        if one in seen:
            continue
        seen.add(one)
        yield owner, one
        around = project if project is not None and owner is project.main else _project(owner, ())
        for base in one.bases:
            match _of(around, owner, base):
                case (where, ast.ClassDef() as found):
                    pending.append((where, found))


def _named(project: Project, module: Module, name: str, hops: int) -> Found | None:
    """What a module's top level calls by a name."""
    for one in module.tree.body:
        if isinstance(one, Definition) and one.name == name:
            return module, one
    nodes: Iterator[ast.AST] = ast.walk(module.tree) if hops else iter(())
    for statement in nodes:
        if isinstance(statement, ast.ImportFrom):
            for alias in statement.names:
                if alias.name == "*" or name == (alias.asname or alias.name):
                    wanted = name if alias.name == "*" else alias.name
                    source = project.find(statement.module or "", statement.level, module, whole=True)
                    found = _named(project, source, wanted, hops - 1) if source and source is not module else None
                    if found is not None:
                        return found
                    inner = project.find(".".join(filter(None, (statement.module, wanted))), statement.level, module)
                    if inner is not None and alias.name != "*":
                        return inner, inner.tree
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                if name == alias.asname or (not alias.asname and name == alias.name):
                    source = project.find(alias.name, 0, module)
                    if source is not None:
                        return source, source.tree
    return None


def _module(project: Project, module: Module, node: ast.expr) -> Module | None:
    """The module of the project that an expression is: `utils`, `pkg.utils`."""
    if isinstance(node, ast.Name):
        match _named(project, module, node.id, MOST_HOPS):
            case (source, ast.Module()):
                return source
        return None
    text = ast.unparse(node)
    for statement in ast.walk(module.tree):
        if isinstance(statement, ast.Import) and any(a.name == text and not a.asname for a in statement.names):
            return project.find(text, 0, module)
    if isinstance(node, ast.Attribute) and (outer := _module(project, module, node.value)) is not None:
        match _named(project, outer, node.attr, MOST_HOPS):
            case (source, ast.Module()):
                return source
    return None


# -- who uses a function ----------------------------------------------------------------------------------------------


def uses_in(module: Module, function: ast.FunctionDef, home: Module, roots: Sequence[str] = ()) -> list[ast.expr]:
    """The places in one file that read a function of the top level, or a method by the class that has it. `home` is
    the function's file."""
    if function.name not in module.text:
        return []
    cls = home.parents[function] if isinstance(home.parents[function], ast.ClassDef) else None
    names = {function.name}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names if alias.asname and alias.name == function.name}
    project: Project | None = None
    found: list[ast.expr] = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        if last_name(node) not in names:
            continue
        project = project or _project(module, tuple(roots))
        if cls is not None:
            here = module is home or _imports(project, module, home)
            if isinstance(node, ast.Attribute) and here and not _of_other(module, node, cls, home):
                found.append(node)
        elif module is home and isinstance(node, ast.Name):
            if not is_local(module, node, function):
                found.append(node)
        elif not (isinstance(node, ast.Name) and is_local(module, node, function)):
            one = _of(project, module, node)
            may_be = functions_called(module, node.id) if isinstance(node, ast.Name) else []
            if (one is not None and one[1] is function) or any(other is function for _, other in may_be):
                found.append(node)
    return found


def _of_other(module: Module, node: ast.Attribute, cls: ast.AST, home: Module) -> bool:
    """Whether a field of `self` is one of a class that does not share a class's methods."""
    around = module.class_of(node)
    if around is None or getattr(node.value, "id", "") != "self":
        return False
    kin = classes_of(home, cls) if isinstance(cls, ast.ClassDef) else ()
    return all(one is not cls for _, one in classes_of(module, around)) and all(one is not around for _, one in kin)


def is_local(module: Module, node: ast.Name, function: ast.FunctionDef) -> bool:
    """Whether a name is a variable of a function, and not the outer function that is called so."""
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode):
            if isinstance(above, ast.FunctionDef) and function in above.body:
                return False
            if node.id in parameters(above) or any(places_binding(above, node.id)):
                return True
    return False


def places_binding(code: ast.AST, name: str) -> Iterator[ast.AST]:
    """The places that bind a name in a function or module itself, not in what it defines."""
    pending = list(ast.iter_child_nodes(code))
    while pending:
        node = pending.pop(0)
        if isinstance(node, FunctionNode | ast.ClassDef):
            continue
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store):
            yield node
        pending += ast.iter_child_nodes(node)


def _imports(project: Project, module: Module, home: Module) -> bool:
    """Whether a file imports something that the other one defines."""
    names = [a.asname or a.name for n in ast.walk(module.tree) if isinstance(n, ast.ImportFrom) for a in n.names]
    found = (_named(project, module, name, MOST_HOPS) for name in names)
    return any(one is not None and one[0] is home for one in found)


def other_users(function: ast.FunctionDef, home: Module, known: Iterable[Module], roots: Sequence[str]) -> list[str]:
    """The files of the project, but for the known ones, that use a function."""
    seen = {os.path.realpath(one.path) for one in known}
    found = []
    for path in _project_files(home):
        if os.path.realpath(path) in seen:
            continue
        try:
            data = files.read(path)
            if not _may_use(path, data, function, home):
                continue
            module = Module.read(path, data)
        except (Unreadable, ValueError):
            continue
        method = isinstance(home.parents[function], ast.ClassDef)
        for node in uses_in(module, function, home, roots):
            parent = module.parents[node]
            calls = isinstance(parent, ast.Call) and parent.func is node and (parent.args or parent.keywords)
            if not method or calls:
                found.append(path)
                break
    return found


def ran_elsewhere(function: ast.FunctionDef, home: Module, known: Iterable[Module], roots: Sequence[str]) -> list[str]:
    """The files of the project, but for the known ones, that train by a method, whoever made its object for them:
    `optimizer.step()`, where a loader gave the optimizer. They are read as scripts."""
    seen = {os.path.realpath(one.path) for one in known}
    found: list[str] = []
    read = 0
    for path in _project_files(home):
        if os.path.realpath(path) in seen or read == MOST_READ:
            continue
        try:
            data = files.read(path)
            if b"backward" not in data or f".{function.name}(".encode() not in data:
                continue
            read += 1
            frames = (
                frame
                for event in entries.read(Module.read(path, data), tuple(roots)).events
                for frame in event.frame.stack()
            )
            if any(frame.code is function for frame in frames):
                found.append(path)
        except (Unreadable, ValueError):
            continue
    return found


def named_elsewhere(name: str, home: Module, known: Iterable[Module]) -> bool:
    """Whether a file of the project, but for the known ones, says a name."""
    seen = {os.path.realpath(one.path) for one in known}
    for path in _project_files(home):
        if os.path.realpath(path) not in seen:
            try:
                if name.encode() in files.read(path):
                    return True
            except Unreadable:
                continue
    return False


def _may_use(path: str, data: bytes, function: ast.FunctionDef, home: Module) -> bool:
    """Whether a file says the function's name, and that of its file or package, where it does not lie beside it."""
    place = Path(home.path).resolve()
    beside = Path(path).resolve().parent == place.parent
    return function.name.encode() in data and (
        beside or any(one.encode() in data for one in (place.stem, place.parent.name))
    )


def _project_files(home: Module) -> Iterator[str]:
    """The Python files of the project around a file, by the paths that a person would type."""
    here = Path.cwd()
    for path in files_around(home):
        yield str(path.relative_to(here) if path.is_relative_to(here) else path)
