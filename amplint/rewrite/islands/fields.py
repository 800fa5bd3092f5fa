"""Losses that a class makes in its `__init__` and calls elsewhere: whether they are run, and where."""

from __future__ import annotations

import ast

from amplint.source.module import Module


def field_of(module: Module, made: ast.Call) -> str | None:
    """The field of `self` that a call sets to BCELoss."""
    match module.parents[made]:
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self"), attr=field)]):
            return field if "torch.nn.BCELoss" in module.dotted(made.func) else None
    return None


def calls_field(module: Module, field: str) -> bool:
    """Whether a file calls a field of that name that it does not set itself."""
    fields = [one for one in module.nodes(ast.Attribute) if one.attr == field]
    own = any(isinstance(one.ctx, ast.Store) for one in fields)
    calls = (module.parents[one] for one in fields if not (own and ast.unparse(one.value) == "self"))
    return any(isinstance(call, ast.Call) and getattr(call.func, "attr", "") == field for call in calls)


def calls_of(module: Module, made: ast.Call) -> list[ast.Call]:
    """The calls, in its file, of a loss module that a call makes: of a field, those in its class and in the classes
    that inherit from it."""
    match module.parents[made]:
        case ast.Assign(targets=[ast.Name() | ast.Attribute() as target]):
            text = ast.unparse(target)
        case _:
            return []
    calls = [one for one in module.nodes(ast.Call) if ast.unparse(one.func) == text]
    cls = module.class_of(made)
    if cls is None or not text.startswith("self."):
        return calls
    known = {cls.name}
    for other in module.nodes(ast.ClassDef):
        known |= {other.name} if known & {ast.unparse(one) for one in other.bases} else set()
    own = [one for one in module.nodes(ast.ClassDef) if one is cls or one.name in known - {cls.name}]
    return [one for one in calls if not set(own).isdisjoint(module.ancestors(one))]


def is_run(module: Module, made: ast.Call) -> bool:
    """Whether a loss module that a call makes is ever called in its file; a function is."""
    match module.parents[made]:
        case ast.Assign(targets=[ast.Name() | ast.Attribute()]) if "torch.nn.BCELoss" in module.dotted(made.func):
            return bool(calls_of(module, made))
    return True
