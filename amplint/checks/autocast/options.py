"""Options of the command line that a file defines with argparse: of which type they are, and which values they have."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from amplint.source.module import Module

_AMP = frozenset("amp fp16 bf16 half mixed precision autocast dtype float16 bfloat16 fp amp16 use16 mp".split())
_WORD = re.compile(r"[a-z]+[0-9]*|[A-Z]+(?![a-z])[0-9]*|[A-Z][a-z]+[0-9]*")
OFF = frozenset(word.lower() for word in "no none off false 0 fp32 float32 full n disabled disable".split())


@dataclass(frozen=True)
class Option:
    """`--name`: its kind is "switch" (store_true), "bool" (type=bool), "text", "number" or "other"."""

    node: ast.Call
    flag: str
    kind: str
    default: object = None
    choices: tuple[object, ...] = ()

    @property
    def values(self) -> tuple[object, ...]:
        return (*self.choices, self.default)


def options_of(module: Module) -> dict[str, Option]:
    """The options by the name of their field; not those that are defined twice, or set in the file."""
    found: dict[str, Option | None] = {}
    for node in module.all_nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=[ast.Constant(value=str()), *_]):
                name, option = _read(node)
                found[name] = None if name in found else option
    for node in module.all_nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in found:
            found[node.attr] = None
    return {name: option for name, option in found.items() if option is not None}


def _read(call: ast.Call) -> tuple[str, Option | None]:
    flags = [str(one.value) for one in call.args if isinstance(one, ast.Constant)]
    flag = next((one for one in flags if one.startswith("--")), flags[0])
    told = {keyword.arg: keyword.value for keyword in call.keywords}
    match told.get("dest"):
        case ast.Constant(value=str() as name):
            pass
        case _:
            name = flag.lstrip("-").replace("-", "_")
    if None in told or "nargs" in told:
        return name, None
    default, choices = told.get("default"), told.get("choices")
    values = choices.elts if isinstance(choices, ast.List | ast.Tuple | ast.Set) else []
    plain = all(isinstance(one, ast.Constant) for one in values)
    return name, Option(
        call,
        flag,
        _kind(told),
        default.value if isinstance(default, ast.Constant) else None,
        tuple(one.value for one in values if isinstance(one, ast.Constant)) if plain else (),
    )


def _kind(told: dict[str | None, ast.expr]) -> str:
    match told.get("action"):
        case ast.Constant(value="store_true" | "store_false") | ast.Attribute(attr="BooleanOptionalAction"):
            return "switch"
        case None:
            pass
        case _:
            return "other"
    match told.get("type"):
        case ast.Name(id="bool"):
            return "bool"
        case None | ast.Name(id="str"):
            return "text"
        case ast.Name(id="int" | "float"):
            return "number"
    return "other"


def option_of(options: dict[str, Option], node: ast.expr) -> Option | None:
    """The option that an expression such as `args.amp` reads."""
    if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Call):
        return options.get(node.attr)
    return None


def is_about_amp(node: ast.expr) -> bool:
    """Whether a name, field or key is called like a setting of mixed precision: `args.mixed_precision`, `useAMP`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return names_amp(name)
        case ast.Subscript(slice=ast.Constant(value=str() as name)):
            return names_amp(name)
        case ast.Call(func=ast.Attribute(attr="lower" | "upper" | "strip" | "get", value=inner)):
            return is_about_amp(inner) or any(
                isinstance(one, ast.Constant) and isinstance(one.value, str) and names_amp(one.value)
                for one in node.args
            )
    return False


def names_amp(name: str) -> bool:
    return any(word.lower() in _AMP for word in _WORD.findall(name))
