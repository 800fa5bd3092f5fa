"""Custom autograd functions: what they compute by hand must meet one dtype, forward and backward.

Under autocast, `forward` may be handed half and float32 tensors together, and `backward` runs outside the region: a
matrix product of a saved float32 weight and a half gradient raises. torch.amp.custom_fwd and custom_bwd give both the
state of the region. Functions that go element by element need nothing (most do: straight-through, gradient reversal);
those that hand tensors to compiled code, or to NumPy, that take exponentials in place, or whose file speaks of sparse
matrices, run in float32 as before.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint import knowledge
from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.syntax.text import edit, margin, row_start
from amplint.source.module import Module

_SPARSE = re.compile(r"sparse|sp_?mm(?![a-z])", re.IGNORECASE)
_PLAIN = {"torch", "math", "typing", "numbers", "functools", "operator", "einops", "warnings"}
_SINCE = (2, 4)  # where torch.amp.custom_fwd came


def custom_functions(module: Module) -> Iterator[tuple[ast.ClassDef, bool]]:
    """The classes that need the decorators, and whether they must run in float32."""
    if "Function" not in module.text:
        return
    lower = set(knowledge.ops()["cuda"]["lower"])
    sparse = _SPARSE.search(module.text) is not None  # half products of sparse matrices have no kernels everywhere
    for cls in ast.walk(module.tree):
        if not isinstance(cls, ast.ClassDef) or not any(_is_function(module, base) for base in cls.bases):
            continue
        methods = [method for method in _methods(cls) if method.name in ("forward", "backward")]
        if len(methods) < 2 or any("custom_" in ast.unparse(one) for m in methods for one in m.decorator_list):
            continue
        nodes = [node for method in methods for node in ast.walk(method)]
        helped = [node for method in _methods(cls) if method not in methods for node in ast.walk(method)]
        foreign = any(_foreign(module, node) for node in (*nodes, *helped))  # a kernel that a helper compiles, too
        lowered = any(_lowered(node, lower) for node in nodes)
        if foreign or lowered:
            yield cls, sparse or foreign or any(map(_chooses, nodes)) or any(map(_exponentiates, nodes))


def _is_function(module: Module, base: ast.expr) -> bool:
    return any(name.startswith("torch.") and name.endswith("autograd.Function") for name in module.dotted(base)) or any(
        name == "torch.autograd.function.Function" for name in module.dotted(base)
    )


def _methods(cls: ast.ClassDef) -> list[ast.FunctionDef]:
    return [one for one in cls.body if isinstance(one, ast.FunctionDef)]


def _lowered(node: ast.AST, lower: set[str]) -> bool:
    """An operation whose operands autocast would cast: a product of matrices, a convolution."""
    match node:
        case ast.BinOp(op=ast.MatMult()):
            return True
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            return name in lower or name.startswith(("conv1d", "conv2d", "conv3d", "conv_transpose"))
    return False


def _chooses(node: ast.AST) -> bool:
    """The nearest of some by their distances, as a codebook looks it up: half products are too coarse to tell."""
    match node:
        case ast.Call(func=ast.Attribute(attr="argmin" | "argmax" | "topk")):
            return True
        case ast.Call(func=ast.Attribute(attr="min" | "max"), keywords=keywords):
            return any(one.arg == "dim" for one in keywords)
    return False


def _exponentiates(node: ast.AST) -> bool:
    """`out.div_(t).exp_()`: autocast casts nothing for what works in place, and half numbers end at 65504."""
    return isinstance(node, ast.Attribute) and node.attr in ("exp_", "exp2_", "expm1_", "pow_", "square_")


def _foreign(module: Module, node: ast.AST) -> bool:
    """A call of what is neither torch's nor the file's own: compiled code; or of NumPy."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute) and node.func.attr == "numpy":
        return True
    names = module.dotted(node.func)
    roots = {name.partition(".")[0] for name in names}
    return bool(roots - _PLAIN) or any(name.startswith("torch.ops.") for name in names)


def decorate(module: Module, torch_version: tuple[int, ...], device: str) -> tuple[list[Edit], list[str]]:
    """Edits that decorate the functions of a file that need it, and what these are called."""
    made: list[Edit] = []
    names = []
    for cls, foreign in custom_functions(module):
        if any(method.name == "setup_context" for method in _methods(cls)):
            raise Refused(
                f"{cls.name} is a custom autograd function with a setup_context(), which custom_fwd cannot decorate",
                "give its forward() the ctx, or call it under torch.autocast(device_type, enabled=False)",
            )
        torch = edits.binding_of(module, "torch", at=cls)
        if torch is None:
            torch = "torch"
            made += [one for one in edits.add_import(module, "import torch") if one not in made]
        where, kind = (
            (f"{torch}.amp", f'device_type="{device}"') if torch_version >= _SINCE else (f"{torch}.cuda.amp", "")
        )
        cast = f"cast_inputs={torch}.float32" if foreign else ""
        for method in _methods(cls):
            if method.name in ("forward", "backward"):
                given = ", ".join(filter(None, (kind, cast if method.name == "forward" else "")))
                call = f"custom_{'fwd' if method.name == 'forward' else 'bwd'}{f'({given})' if given else ''}"
                place = row_start(module, method.lineno)
                made.append(edit(module, place, place, f"{margin(module, method.lineno)}@{where}.{call}\n"))
        names.append(cls.name)
    return made, names
