"""The script's own switch for mixed precision: a flag or a name that it has, but does not use for anything yet."""

from __future__ import annotations

import ast
import re

from amplint.rewrite.gates.device import visible
from amplint.source.module import Module

_NAME = re.compile(r"(use_|enable_|with_)?(amp|fp16|half|mixed_precision|half_precision)", re.IGNORECASE)


def switch(module: Module, place: ast.stmt) -> str:
    """The switch as it is read at a statement: `args.amp`, `use_amp`; "" where there is none."""
    flags = [flag for flag in _flags(module) if not _decides(module, flag)]
    for node in ast.walk(module.tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=ast.Attribute(attr="parse_args"))):
                for flag in flags:
                    if visible(module, name, place):
                        return f"{name}.{flag}"
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _NAME.fullmatch(name) and _is_truth(value):
                if visible(module, name, place) and not _decides(module, name):
                    return name
    return ""


def _decides(module: Module, name: str) -> bool:
    """Whether a switch decides something already, and so has a meaning of its own."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            for inner in ast.walk(node.test):
                if name in (getattr(inner, "id", ""), getattr(inner, "attr", "")):
                    return True
    return False


def _flags(module: Module) -> list[str]:
    """The command line's flags for mixed precision, by the names of their fields."""
    found = []
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=[*names], keywords=keywords) if any(
                keyword.arg == "action" and getattr(keyword.value, "value", "") == "store_true" for keyword in keywords
            ):
                texts = [name.value for name in names if isinstance(name, ast.Constant) and isinstance(name.value, str)]
                fields = [text[2:].replace("-", "_") for text in texts if text.startswith("--")]
                for keyword in keywords:
                    if keyword.arg == "dest" and isinstance(keyword.value, ast.Constant):
                        fields = [str(keyword.value.value)]
                found += [name for name in fields[:1] if _NAME.fullmatch(name)]
    return found


def _is_truth(value: ast.expr) -> bool:
    """Whether a value is a plain yes or no."""
    if isinstance(value, ast.Constant):
        return isinstance(value.value, bool)
    return isinstance(value, ast.Attribute) and _NAME.fullmatch(value.attr) is not None
