"""Where code computes: whether it may run on a CPU, and which conditions ask for the device."""

from __future__ import annotations

import ast
from collections.abc import Hashable, Iterable

from amplint.source.module import Module
from amplint.source.values import Choice, Const, Device, Lib, Question, Sym, Test, Value
from amplint.source.walk import walk

_DEPTH = 8


def runs_on_cpu(module: Module) -> bool:
    """Whether the file says that it may run on a CPU: it chooses between "cuda" and "cpu", or asks for a CPU."""
    for node in module.all_nodes:
        match node:
            case ast.IfExp(body=body, orelse=orelse):
                if {_names_device(body), _names_device(orelse)} == {"cuda", "cpu"}:
                    return True
            case ast.Compare(left=left, ops=[ast.Eq() | ast.NotEq()], comparators=[right]):
                if _names_device(right) == "cpu" and _is_device(left):
                    return True
    return False


def _names_device(node: ast.expr) -> str:
    """ "cuda" or "cpu" for a string, or a torch.device of one."""
    match node:
        case ast.Constant(value=str() as said) if said.partition(":")[0] in ("cuda", "cpu"):
            return said.partition(":")[0]
        case ast.JoinedStr(values=[ast.Constant(value=str() as said), *_]) if said.startswith("cuda"):
            return "cuda"
        case ast.Call(func=ast.Attribute(attr="device"), args=[inner, *_]):
            return _names_device(inner)
    return ""


def _is_device(node: ast.expr) -> bool:
    """`device`, `self.device`, `device.type`, `args.device_name`: by its words, in a comparison with "cpu"."""
    return "device" in ast.unparse(node).lower()


def moves_to_any_device(code: ast.AST) -> bool:
    """Whether code sends tensors to the device of others: `x.to(p.device)`, `device=x.device`."""
    for node in walk(code):
        match node:
            case (
                ast.Call(func=ast.Attribute(attr="to"), args=[ast.Attribute(attr="device"), *_])
                | ast.keyword(arg="device", value=ast.Attribute(attr="device"))
            ):
                return True
    return False


def asks_for_device(asked: Value | Question | bool) -> bool:
    """Whether a condition, or a flag that it sets, is about the device."""
    return _mentions((asked,), _DEPTH)


def _mentions(parts: Iterable[Hashable], depth: int) -> bool:
    for part in parts:
        match part:
            case Device() | Const(value="cpu" | "cuda"):
                return True
            case Sym(kind="attr", parts=(_, "device" | "is_cuda")):
                return True
            case Sym(kind="constant", parts=(str() as name, *_)) if name.startswith("torch.cuda"):
                return True
            case Lib(name=name) if "device" in name or "cuda" in name:
                return True
            case Sym(parts=inner) | Question(parts=inner) if depth and _mentions(inner, depth - 1):
                return True
            case Test(formula=formula) if depth and _mentions((formula,), depth - 1):
                return True
            case Choice(formula=formula, yes=yes, no=no) if depth and _mentions((formula, yes, no), depth - 1):
                return True
            case frozenset() if depth and _mentions(part, depth - 1):
                return True
    return False
