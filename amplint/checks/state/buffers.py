"""Buffers: what a cast of the model or an overflow does to them (AMP310, AMP311)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding
from amplint.source import events
from amplint.source.module import Module
from amplint.source.symbols import held_in
from amplint.source.values import Instance, Model, Value
from amplint.source.walk import walk

_UPDATES = frozenset("mul_ add_ copy_ lerp_ index_add_ scatter_add_ sub_ div_".split())


@rule("AMP310")
def buffers_not_protected(script: Script) -> Iterator[Finding]:
    """A buffer is updated in the forward: a scaler that skips a step does not undo that."""
    module = script.module
    for cls in module.all_nodes:
        if not isinstance(cls, ast.ClassDef):
            continue
        buffers = dict(_buffers(cls))
        forward = next((one for one in cls.body if isinstance(one, ast.FunctionDef) and one.name == "forward"), None)
        if forward is None or not buffers or "isfinite" in text(module, forward, 10_000):
            continue
        for node in walk(forward):
            match node:
                case ast.Call(func=ast.Attribute(attr=name, value=target), args=[value, *_]) if name in _UPDATES:
                    pass
                case _:
                    continue
            field = _field(target)
            if field in buffers and not isinstance(value, ast.Constant):
                yield found_at(
                    "AMP310",
                    module,
                    node,
                    f"{field} is updated in the forward: after an overflow it holds inf or nan, though the scaler "
                    "skips the step",
                    help="update it from float32 values only where they are finite",
                )
                buffers.pop(field)


def _buffers(cls: ast.ClassDef) -> Iterator[tuple[str, ast.Call]]:
    """The buffers that a class registers, by name."""
    for node in walk(cls):
        match node:
            case ast.Call(func=ast.Attribute(attr="register_buffer"), args=[ast.Constant(value=str() as name), *_]):
                yield name, node


def _field(node: ast.expr) -> str:
    """The x of `self.x`, of its parts and its data."""
    while True:
        match node:
            case ast.Subscript(value=inner) | ast.Attribute(attr="data", value=inner):
                node = inner
            case ast.Call(func=ast.Attribute(attr=name, value=inner)) if name in _UPDATES or name == "data":
                node = inner
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return name
            case _:
                return ""


@rule("AMP311")
def critical_buffer_cast(script: Script) -> Iterator[Finding]:
    """A model with a table of positions or frequencies is cast to half, and the table with it."""
    seen = set()
    for cast in script.events(events.Cast):
        if cast.dtype not in ("float16", "bfloat16") or cast.node in seen:
            continue
        for cls, module in _classes(script, cast.model):
            table = _table(cls)
            if table is None or _protects(cls) or _made_again(cast):
                continue
            seen.add(cast.node)
            name, call = table
            exact = 2048 if cast.dtype == "float16" else 256
            yield found_at(
                "AMP311",
                cast.module,
                cast.node,
                f"{name} of {cls.name} becomes {cast.dtype} with the model: angles and positions above {exact} lose "
                "their place",
                evidence=[(module, call, "a table of positions"), (cast.module, cast.node, "is cast here")],
                help="cast it back to float32, or keep it out of the buffers and compute it in float32",
            )
            break


def _classes(script: Script, model: Value, depth: int = 5) -> Iterator[tuple[ast.ClassDef, Module]]:
    """The classes of the modules that a model surely holds."""
    if depth == 0:
        return
    match model:
        case Instance():
            yield model.cls.node, model.cls.frame.module
            top = script.reading.machine.loaded.get(script.module, {}).get(model) or {}
            inner = script.fields_of(model) or [value for value in top.values() if isinstance(value, Value)]
        case Model():
            inner = [*model.args]
        case _:
            inner = [*held_in(model)]
    for part in inner:
        yield from _classes(script, part, depth - 1)


def _table(cls: ast.ClassDef) -> tuple[str, ast.Call] | None:
    """A buffer that is computed from torch.arange and a power or a period: frequencies, angles, positions."""
    for name, call in _buffers(cls):
        if len(call.args) < 2:
            continue
        pending, seen = [call.args[1]], set[str]()
        found: set[str] = set()
        while pending:
            for node in walk(pending.pop()):
                match node:
                    case ast.Call(func=ast.Attribute(attr="arange" | "linspace")):
                        found.add("range")
                    case ast.BinOp(op=ast.Pow()):
                        found.add("angle")
                    case ast.Call(func=ast.Attribute(attr="pow" | "exp" | "outer" | "cos" | "sin")):
                        found.add("angle")
                    case ast.Name(id=used) if used not in seen:
                        seen.add(used)
                        pending += [
                            one.value
                            for one in walk(cls)
                            if isinstance(one, ast.Assign)
                            and any(isinstance(target, ast.Name) and target.id == used for target in one.targets)
                        ]
        if found == {"range", "angle"}:
            return name, call
    return None


def _protects(cls: ast.ClassDef) -> bool:
    """Whether a class decides itself what casts do to it."""
    return any(isinstance(one, ast.FunctionDef) and one.name in ("_apply", "to", "half") for one in cls.body)


def _made_again(cast: events.Cast) -> bool:
    """Whether buffers or parts of the model are cast back after it."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("named_buffers", "buffers")
        for node in walk(cast.module.tree)
        if getattr(node, "lineno", 0) > cast.node.lineno  # type: ignore[attr-defined]
    )
