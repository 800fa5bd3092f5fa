"""Family 1, fields: a scaler that is stored in one field and used in another, or stored in none."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule
from amplint.checks.scaler.scopes import plain
from amplint.findings import Finding
from amplint.source.module import Module
from amplint.source.walk import walk


@rule("AMP135")
def misspelt_field(script: Script) -> Iterator[Finding]:
    """A scaler is stored in a field that nothing reads, beside one of nearly the same name that is read."""
    module = script.module
    for cls in module.all_nodes if "GradScaler" in module.text else ():
        if not isinstance(cls, ast.ClassDef):
            continue
        stored: dict[str, list[ast.Attribute]] = {}
        for node in walk(cls):
            match node:
                case ast.Assign(
                    targets=[ast.Attribute(value=ast.Name(id="self")) as target], value=ast.Call(func=function)
                ):
                    if _last(function).endswith("GradScaler"):
                        stored.setdefault(target.attr, []).append(target)
        if not stored:
            continue
        read = _read(module)
        for name, targets in stored.items():
            others = [o for o in read if o != name and _near(o, name) and _belongs(cls, o)]
            if name not in read and len(others) == 1 and name not in _strings(module):
                yield found_at(
                    "AMP135",
                    module,
                    targets[0],
                    f"nothing reads self.{name}: what is used is self.{others[0]}, which has no scaler on this path",
                    help=f"self.{others[0]} = …",
                )


@rule("AMP135")
def field_of_nobody(script: Script) -> Iterator[Finding]:
    """A class without bases makes a scaler, and uses one in a field that nothing in the file stores."""
    module = script.module
    for cls in module.nodes(ast.ClassDef) if "GradScaler" in module.text else ():
        if any(ast.unparse(base) not in ("object", "nn.Module", "torch.nn.Module") for base in cls.bases):
            continue
        makes = any(
            isinstance(n, ast.Assign) and isinstance(n.value, ast.Call) and _last(n.value.func).endswith("GradScaler")
            for n in walk(cls)
        )
        for node in walk(cls) if makes else ():
            match node:
                case ast.Call(
                    func=ast.Attribute(
                        attr="unscale_" | "scale" | "step" | "update",
                        value=ast.Attribute(ast.Name("self"), name) as field,
                    )
                ) if "scaler" in name.lower() and name not in _stored(module) and plain(cls, name):
                    yield found_at(
                        "AMP135",
                        module,
                        field,
                        f"nothing stores self.{name}: this raises AttributeError",
                        help="use the scaler that the class makes",
                    )
                    break


@rule("AMP135")
def made_too_late(script: Script) -> Iterator[Finding]:
    """__init__ calls a method that reads the scaler, and makes the scaler below."""
    module = script.module
    for cls in module.nodes(ast.ClassDef) if "GradScaler" in module.text else ():
        methods = {one.name: one for one in cls.body if isinstance(one, ast.FunctionDef)}
        init = methods.get("__init__")
        if init is None or any(
            ast.unparse(base) not in ("object", "nn.Module", "torch.nn.Module") for base in cls.bases
        ):
            continue
        stores: dict[str, list[ast.Attribute]] = {}
        for node in walk(cls):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                stores.setdefault(node.attr, []).append(node)
        for name, places in stores.items():
            made = [module.statement(place) for place in places]
            if not any("GradScaler(" in module.source(one) for one in made) or not plain(cls, name):
                continue
            if any(module.function(place) is not init for place in places):
                continue
            for call in walk(init):
                match call:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=called)) if called in methods:
                        method = methods[called]
                        reads = [n for n in walk(method) if _is_use(n, name) and module.function(n) is method]
                        early = module.function(call) is init and all(call.lineno < one.lineno for one in places)
                        if reads and early and not _asks(method):
                            yield found_at(
                                "AMP135",
                                module,
                                call,
                                f"this uses self.{name}, which is made below: AttributeError",
                                evidence=[(module, reads[0], "used here"), (module, made[0], "made only here")],
                                help=f"make self.{name} first",
                            )
                            break


@rule("AMP135")
def class_for_an_object(script: Script) -> Iterator[Finding]:
    """What is kept as the scaler is the class: nobody calls it, and its methods are used."""
    module = script.module
    for node in module.nodes(ast.Assign) if "GradScaler" in module.text else ():
        if not isinstance(node.value, ast.Name | ast.Attribute) or not _last(node.value).endswith("GradScaler"):
            continue
        if not any(name.startswith(("torch.", "torch_xla.")) for name in module.dotted(node.value)):
            continue
        for target in node.targets:
            if _last(target) not in ("scaler", "grad_scaler", "_scaler", "_grad_scaler"):
                continue
            shown = module.source(target)
            uses = [n for n in module.nodes(ast.Attribute) if module.source(n.value) == shown]
            called = any(module.source(call.func) == shown for call in module.nodes(ast.Call))
            if not called and any(n.attr in ("scale", "unscale_", "step", "update") for n in uses):
                yield found_at(
                    "AMP135",
                    module,
                    node.value,
                    f"{shown} is the class here, and no scaler: its methods raise TypeError",
                    help=f"write {module.source(node.value)}()",
                )


def _is_use(node: ast.AST, name: str) -> bool:
    """Whether a scaler in a field is called."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=one))):
            return one == name
    return False


def _asks(method: ast.FunctionDef) -> bool:
    """Whether a method asks which fields there are, or expects that one is missing."""
    return any(
        isinstance(node, ast.Try) or (isinstance(node, ast.Name) and node.id in ("hasattr", "getattr"))
        for node in walk(method)
    )


def _stored(module: Module) -> set[object]:
    """What may be a field: what is stored as one, and all texts, by which one can be set."""
    fields = {n.attr for n in module.nodes(ast.Attribute) if not isinstance(n.ctx, ast.Load)}
    return fields | _strings(module)


def _last(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _read(module: Module) -> set[str]:
    return {n.attr for n in module.all_nodes if isinstance(n, ast.Attribute) and not isinstance(n.ctx, ast.Store)}


def _belongs(cls: ast.ClassDef, name: str) -> bool:
    """Whether the class itself reads a field of this name as a scaler, or stores one there."""
    return any(
        isinstance(n, ast.Attribute) and n.attr == name and isinstance(n.value, ast.Name) and n.value.id == "self"
        for n in walk(cls)
    )


def _near(one: str, other: str) -> bool:
    """Whether two names differ by a slip inside a word: not by an ending that tells several things apart, as
    `scaler_d` and `scaler_g` or `scaler` and `scalers`."""
    if len(one) != len(other) or min(len(one), len(other)) < 5:
        return False
    differing = [i for i in range(len(one)) if one[i] != other[i]]
    if not differing or differing[-1] == len(one) - 1 or not (one[:2] == other[:2] and one[-1] == other[-1]):
        return False
    swapped = len(differing) == 2 and differing[1] == differing[0] + 1 and sorted(one) == sorted(other)
    around = (one + other)[differing[0] - 1 : differing[-1] + 2]
    return (len(differing) == 1 or swapped) and "_" not in around and not any(one[i].isdigit() for i in differing)


def _strings(module: Module) -> set[object]:
    return {node.value for node in module.all_nodes if isinstance(node, ast.Constant)}
