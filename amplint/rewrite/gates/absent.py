"""Devices that may be None: where nobody gives one, a model stays where it is, and torch.device(None) raises."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from amplint.source.module import FunctionNode, Module
from amplint.source.tree import assigned_to, defaults, stored_names


def moved_before(module: Module, model: str, place: ast.stmt, devices: Iterable[str]) -> bool:
    """Whether a device at a place may be None, and the model there has been moved to it, or left where it is, by then:
    in the same function, and nowhere behind it. Or the device is known only to the function that made the model, which
    has moved it, or to the `__init__` that has moved a field. Or the object is given the model, and leaves it there."""
    around = module.scope(place)
    if _as_given(module, model, place):
        return True
    if model.startswith("self.") and (init := _init_of(module, around)) is not None:
        others = (one for one in ast.iter_child_nodes(module.parents[init]) if one is not init)
        if any(_moves(one, model) for one in others):
            return False
        return bool(_moves(init, model))
    made = [value for value in assigned_to(around, model) if isinstance(value, ast.Call)]
    moves = _moves(around, model)
    if any(one.lineno >= place.lineno for one in moves):  # type: ignore[attr-defined]
        return False
    if any(perhaps_none(module, one, place) for one in devices):
        return bool(moves)
    return len(made) == 1 and isinstance(made[0].func, ast.Name) and _gives_moved(module, made[0].func.id)


def _as_given(module: Module, model: str, place: ast.stmt) -> bool:
    """Whether a field is nothing but what `__init__` is given, and no method moves that."""
    cls = module.class_of(place)
    if cls is None or not model.startswith("self."):
        return False
    stores = [one for one in ast.walk(cls) if isinstance(one, ast.Assign) and model in map(ast.unparse, one.targets)]
    for store in stores:
        init, value = module.function(store), store.value
        if getattr(init, "name", "") != "__init__" or not isinstance(init, FunctionNode):
            return False
        if not isinstance(value, ast.Name) or value.id not in {one.arg for one in init.args.args}:
            return False
        if value.id in stored_names(init) or _moves(init, value.id):
            return False
    return bool(stores) and not any(_moves(one, model) for one in cls.body)


def _init_of(module: Module, method: ast.AST) -> ast.FunctionDef | None:
    """The __init__ of the class that another method is of."""
    cls = module.parents.get(method)
    if not isinstance(cls, ast.ClassDef):
        return None
    found = (one for one in cls.body if isinstance(one, ast.FunctionDef) and one.name == "__init__")
    return next((one for one in found if one is not method), None)


def _gives_moved(module: Module, name: str) -> bool:
    """Whether a function of the file moves the model that it returns."""
    named = (one for one in module.defs if one.name == name)
    found = [one for one in named if not isinstance(module.parents[one], ast.ClassDef)]
    returned = [one.value for code in found for one in ast.walk(code) if isinstance(one, ast.Return)]
    return (
        len(found) == 1
        and bool(returned)
        and all(
            value is not None and (_is_move(value) or bool(_moves(found[0], ast.unparse(value)))) for value in returned
        )
    )


def _moves(code: ast.AST, model: str) -> list[ast.AST]:
    """Where a function moves a model, by its name there; not where functions inside it do, whenever they are called."""
    found: list[ast.AST] = []
    pending = list(ast.iter_child_nodes(code))
    while pending:
        node = pending.pop()
        if isinstance(node, FunctionNode | ast.ClassDef):
            continue
        pending += ast.iter_child_nodes(node)
        match node:
            case ast.Assign(targets=[target], value=value) if _is_move(value) and ast.unparse(target) == model:
                found.append(node)
            case ast.Call(func=ast.Attribute(value=owner)) if _is_move(node) and ast.unparse(owner) == model:
                found.append(node)
    return found


def _is_move(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("to", "cuda")


def perhaps_none(module: Module, text: str, place: ast.stmt) -> bool:
    """Whether a device is None where nobody gives one: a parameter, the field that it is stored in, or an option."""
    if text.startswith("self."):
        around = module.class_of(place)
        stores = [one for one in ast.walk(around) if isinstance(one, ast.Assign)] if around is not None else []
        stores = [one for one in stores if any(ast.unparse(target) == text for target in one.targets)]
        told = [(module.function(one), one.value) for one in stores]
        return bool(told) and all(
            function is not None and isinstance(value, ast.Name) and may_be_none(function, value.id)
            for function, value in told
        )
    functions = [above for above in module.ancestors(place) if isinstance(above, FunctionNode)]
    return any(may_be_none(function, text) for function in functions) or none_by_default(module, text)


def may_be_none(function: FunctionNode, name: str) -> bool:
    """Whether a parameter has None for its default, and nothing replaces that."""
    none = any(
        one == name and isinstance(value, ast.Constant) and value.value is None
        for one, value in defaults(function.args)
    )
    return none and name not in stored_names(function)


def none_by_default(module: Module, text: str) -> bool:
    """Whether an option of the command line is None where nobody gives it, and nothing replaces that."""
    name = text.rpartition(".")[2]
    stores = (n for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    if name == text or any(node.attr == name for node in stores):
        return False
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=args, keywords=keywords):
                told = {keyword.arg: keyword.value for keyword in keywords}
                flags = [str(getattr(one, "value", "")) for one in args]
                if f"--{name}" in (flag.replace("_", "-") if "_" not in name else flag for flag in flags):
                    default = told.get("default", ast.Constant(None))
                    none = isinstance(default, ast.Constant) and default.value is None
                    return none and not told.keys() & {"required", "action", "nargs"}
    return False
