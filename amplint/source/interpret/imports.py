"""Imports: names that come from other files of the project, which are read and run when the name is used."""

from __future__ import annotations

import ast
from collections import Counter
from typing import Any

from amplint.source.interpret import statements
from amplint.source.interpret.frames import Flow, Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World, join_all
from amplint.source.module import Module, imported_from
from amplint.source.symbols import sym
from amplint.source.values import Const, Deferred, Imported, Items, Lib, Namespace, Value
from amplint.source.walk import children


def run_import(m: Machine, node: ast.Import | ast.ImportFrom, world: World, frame: Frame) -> None:
    scope = frame.scope
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            name = alias.name if alias.asname else top
            local = m.project.has(top)
            value: Value = Imported(name, "", 0, frame.module) if local else Lib(name)
            world.set(scope, alias.asname or top, value)
        return
    base = node.module or ""
    local = node.level > 0 or m.project.has(base.partition(".")[0])
    for alias in node.names:
        if alias.name == "*":
            if local:
                import_star(m, Imported(base, "", node.level, frame.module), world, frame)
            elif base.startswith("torch"):
                world.set(scope, "*", Items((*_stars(world, scope), Const(base))))
            if world.get(scope, "torch") is None:
                world.set(scope, "torch", Lib("torch"))  # as module.imports has it
            continue
        if imported_from(node, alias) == "torch":
            value = Lib("torch")
        else:
            value = Imported(base, alias.name, node.level, frame.module) if local else Lib(f"{base}.{alias.name}")
        world.set(scope, alias.asname or alias.name, value)


def _stars(world: World, scope: object) -> tuple[Value, ...]:
    found = world.get(scope, "*")
    return found.items if isinstance(found, Items) else ()


def resolve(m: Machine, value: Value, world: World, whole: bool = False) -> Value:
    """What an imported name is; reads and runs the file that defines it. What is not found is a library name. `whole`
    asks for files without a word of training, too (`Project.find`)."""
    seen = 0
    while isinstance(value, Imported) and seen < 8:
        seen += 1
        known = f"{value.module}.{value.name}".strip(".")
        if m.alone or _is_engine(m, known):
            return Lib(known)
        module = m.project.find(value.module, value.level, value.importer, whole)
        if module is None:
            inner = f"{value.module}.{value.name}".strip(".")
            submodule = m.project.find(inner, value.level, value.importer) if value.name else None
            if submodule is None:
                return Lib(inner)
            load(m, submodule, world)  # of a folder without an __init__.py
            return Namespace(submodule)
        load(m, module, world)
        if not value.name:
            return Namespace(module)
        found = named(m, module, value.name, world)
        if found is None or found == value:  # `from . import part`, in the package itself
            inner = f"{value.module}.{value.name}".strip(".")
            submodule = m.project.find(inner, value.level, value.importer)
            if submodule is None:
                return sym("name", module.path, value.name)
            load(m, submodule, world)
            return Namespace(submodule)
        value = found
    return value


def _is_engine(m: Machine, name: str) -> bool:
    """Whether a name is of an engine that is known for what it does: so it is in the engine's own project, where the
    file that defines it could be read."""
    api = m.library.find(name)
    return api is not None and api.returns == "managed"


def load(m: Machine, module: Module, world: World) -> None:
    """Run a file's top level once, by itself, and let this world see what it defines. Most of what a file defines is
    never used by the one that imports it: functions and classes wait until their names are (`define`)."""
    if module not in m.loaded:
        m.loaded[module] = {}  # a circular import sees what is there so far: nothing
        alone = World()
        frame = module_frame(m, module)
        worlds = [alone]
        once: set[str] = module.memo.get("bound once") or module.memo.setdefault("bound once", _bound_once(module))
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in once:
                for one in worlds:
                    one.set(frame.scope, node.name, Deferred(node, frame))
            else:
                worlds = statements.run(m, [node], worlds, frame, Flow())
        worlds = join_all(worlds)
        if worlds:
            m.loaded[module] = dict(worlds[0].spaces)
    if module_scope(module) not in world.spaces:
        _see(world, m.loaded[module])


def _see(world: World, spaces: dict[Any, Any]) -> None:
    for owner, space in spaces.items():
        if owner not in world.spaces:
            world.spaces[owner] = space


def _bound_once(module: Module) -> set[str]:
    """The functions and classes of a file's top level whose names nothing else there binds."""
    names: Counter[str] = Counter()
    pending: list[ast.AST] = list(module.tree.body)
    while pending:
        node = pending.pop()
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names[node.name] += 1
                continue
            case ast.Name(ctx=ast.Store() | ast.Del()):
                names[node.id] += 1
            case ast.alias():
                names[node.asname or node.name] += 1
        pending += children(node)
    return {name for name, times in names.items() if times == 1}


def define(m: Machine, value: Value, world: World) -> Value:
    """What a name holds: a deferred definition is run where it stands, once for all worlds."""
    if not isinstance(value, Deferred):
        return value
    frame, name = value.frame, value.node.name
    spaces = m.loaded[frame.module] or world.spaces  # nothing, as long as the file is being run
    found = spaces.get(frame.scope, {}).get(name)
    if found is None or found == value:
        alone = World()
        alone.spaces = dict(spaces)
        alone.drop(frame.scope, name)  # inside, the name is not yet bound
        worlds = join_all(statements.execute(m, value.node, alone, frame, Flow()))
        spaces = dict(worlds[0].spaces if worlds else alone.spaces)
        found = spaces[frame.scope].get(name)
        if found is None:
            found = sym("name", frame.module.path, name)
        if m.loaded[frame.module]:
            m.loaded[frame.module] = spaces
    world.set(frame.scope, name, found)
    _see(world, spaces)
    return found


def named(m: Machine, module: Module, name: str, world: World) -> Value | None:
    """What a name of a file's top level stands for."""
    found = world.get(module_scope(module), name)
    return define(m, found, world) if isinstance(found, Value) else None


def import_star(m: Machine, value: Imported, world: World, frame: Frame) -> None:
    module = m.project.find(value.module, value.level, value.importer)
    if module is None:
        return
    load(m, module, world)
    for name, found in world.space(module_scope(module)).items():
        if isinstance(name, str) and not name.startswith("_"):
            world.set(frame.scope, name, found)


def module_scope(module: Module) -> object:
    return ("module", module.path)


def module_frame(m: Machine, module: Module) -> Frame:
    return Frame(module_scope(module), module.tree, module, roles=m.roles(module, module.tree))
