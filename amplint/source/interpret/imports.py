"""Imports: names that come from other files of the project, which are read and run when the name is used."""

from __future__ import annotations

import ast

from amplint.source.interpret import statements
from amplint.source.interpret.frames import Flow, Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World, join_all
from amplint.source.module import Module
from amplint.source.symbols import sym
from amplint.source.values import Const, Imported, Items, Lib, Namespace, Value


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
            continue
        value = Imported(base, alias.name, node.level, frame.module) if local else Lib(f"{base}.{alias.name}")
        world.set(scope, alias.asname or alias.name, value)


def _stars(world: World, scope: object) -> tuple[Value, ...]:
    found = world.get(scope, "*")
    return found.items if isinstance(found, Items) else ()


def resolve(m: Machine, value: Value, world: World, frame: Frame) -> Value:
    """What an imported name is; reads and runs the file that defines it. What is not found is a library name."""
    seen = 0
    while isinstance(value, Imported) and seen < 8:
        seen += 1
        if m.alone:
            return Lib(f"{value.module}.{value.name}".strip("."))
        module = m.project.find(value.module, value.level, value.importer)
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
        found = world.get(module_scope(module), value.name)
        if found is None or found == value:  # `from . import part`, in the package itself
            inner = f"{value.module}.{value.name}".strip(".")
            submodule = m.project.find(inner, value.level, value.importer)
            if submodule is None:
                return sym("name", module.path, value.name)
            load(m, submodule, world)
            return Namespace(submodule)
        value = found
    return value


def load(m: Machine, module: Module, world: World) -> None:
    """Run a file's top level once, by itself, and let this world see what it defines."""
    if module not in m.loaded:
        m.loaded[module] = {}  # a circular import sees what is there so far: nothing
        alone = World()
        frame = module_frame(m, module)
        worlds = join_all(statements.run(m, module.tree.body, [alone], frame, Flow()))
        if worlds:
            m.loaded[module] = dict(worlds[0].spaces)
    if module_scope(module) not in world.spaces:
        for owner, space in m.loaded[module].items():
            if owner not in world.spaces:
                world.spaces[owner] = space


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
