"""Devices that come from other functions or files: whether all that calls them gives a torch.device."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from amplint.rewrite.gates.device import Gate, given_another, is_device_object, is_type, makes_device, says_type
from amplint.rewrite.scaler.definitions import classes_of, definition, named_elsewhere, sources_of
from amplint.rewrite.scaler.reach import Files
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name, stored_names

DEPTH = 3


def with_type(gate: Gate, module: Module, place: ast.AST, torch: str, files: Files) -> Gate:
    """The gate, with `device.type` for `torch.device(device).type` where all that calls the function gives a device,
    and `device` where it is "cuda" or "cpu"."""
    begin, end = f"{torch}.device(", ").type"
    if not gate.device.startswith(begin) or not gate.device.endswith(end):
        return gate
    text = gate.device[len(begin) : -len(end)]
    for known, made, kind in ((_is_object, makes_device, f"{text}.type"), (is_type, _says_type, text)):
        if _all_are(files, module, text, place, known, made, DEPTH):
            return Gate(kind, gate.enabled.replace(gate.device, kind))
    return gate


def _is_object(module: Module, text: str, place: ast.AST) -> bool:
    """Whether a name is a torch.device: a field may be that of a base class, a global that of another file."""
    if is_device_object(module, text, place):
        return not given_another(module, text, place)
    cls = module.class_of(place)
    if text.startswith("self.") and cls is not None:
        bases = [owner for owner, _ in classes_of(module, cls) if owner is not module]
        return any(is_device_object(owner, text) for owner in bases)
    return any(is_device_object(source, name) for source, name in sources_of(module, text))


def _says_type(module: Module, value: ast.expr) -> bool:
    return says_type(value)


def _all_are(
    files: Files,
    module: Module,
    text: str,
    place: ast.AST,
    known: Callable[[Module, str, ast.AST], bool],
    made: Callable[[Module, ast.expr], bool],
    depth: int,
) -> bool:
    """Whether a name is what is looked for, here or wherever its function is called."""
    if known(module, text, place):
        return True
    given = list(_given(files, module, text, place)) if depth else []
    return bool(given) and all(
        value is not None
        and (made(where, value) or _all_are(files, where, ast.unparse(value), value, known, made, depth - 1))
        for where, value in given
    )


def _given(files: Files, module: Module, text: str, place: ast.AST) -> Iterator[tuple[Module, ast.expr | None]]:
    """What calls give a parameter, or a field that __init__ sets to one of its parameters."""
    function = next((above for above in module.ancestors(place) if isinstance(above, FunctionNode)), None)
    cls = module.class_of(place)
    called: ast.AST | None = function
    if text.startswith("self.") and cls is not None:
        inits = [one for one in cls.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        function, called = (inits[0], cls) if inits else (None, None)
        text = _set_to(function, text) if function is not None else ""
    if not isinstance(function, ast.FunctionDef) or called is None:
        return
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    if text not in names or text in stored_names(function):
        return
    method = called is cls or isinstance(module.parents[called], ast.ClassDef)
    if named_elsewhere(getattr(called, "name", ""), module, files.named):
        return  # it may be given a string there
    for one in files.named:
        for call in (node for node in ast.walk(one.tree) if isinstance(node, ast.Call)):
            if called_name(call) != getattr(called, "name", ""):
                continue
            match definition(one, call.func, files.roots):
                case (_, found) if found is called:
                    passed: dict[str | None, ast.expr] = dict(zip(names[method:], call.args, strict=False))
                    passed |= {keyword.arg: keyword.value for keyword in call.keywords}
                    yield one, passed.get(text)


def _set_to(function: ast.FunctionDef, field: str) -> str:
    """The parameter that a method sets a field to: `self.device = device`, also among others."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                pairs = list(zip(targets, values, strict=False))
            case ast.Assign(targets=[target], value=value):
                pairs = [(target, value)]
            case _:
                continue
        for target, value in pairs:
            if isinstance(value, ast.Name) and ast.unparse(target) == field:
                return value.id
    return ""
