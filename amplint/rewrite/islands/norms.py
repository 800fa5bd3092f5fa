"""Layers of other files that normalise by hand: the variance of a half tensor is half, and float16 rounds the eps that
is added to it to zero, so that a row of equal numbers (silence, padding) gives nan. The readings do not enter these
layers; those of the script itself are AMP403's."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Sequence

from amplint.rewrite.fixes.numerics import eps_in_float32
from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.scaler.reach import must_change
from amplint.rewrite.syntax.apply import apply
from amplint.source.module import Module, parse
from amplint.source.tree import last_name
from amplint.source.walk import walk

_VANISHES = 2.0**-25  # and below: zero in float16
_WIDE = ("float()", "float32", "double()", "autocast", ".type(")


def check_norms(module: Module, used: Sequence[Module], together: Sequence[Module]) -> list[str]:
    """The paths of the named files with such layers that a script uses; raises Refused where one is not named."""
    named = {os.path.realpath(one.path) for one in together}
    found = []
    for one in used:
        if os.path.realpath(one.path) == os.path.realpath(module.path):
            continue
        spread = next(_unguarded(one), None)
        if spread is None:
            continue
        if os.path.realpath(one.path) not in named:
            raise Refused(
                f"{one.path}:{one.range(spread).start.row} adds an eps to a variance that is zero in float16, and nan "
                "comes of a row of equal numbers",
                must_change(together, [one.path]),
            )
        found.append(os.path.realpath(one.path))
    return found


def guarded(module: Module, text: str) -> str:
    """A file's text with the variance of such layers taken in float32."""
    now = Module(module.path, text, parse(text), module.encoding)
    fixes = [eps_in_float32(now, spread) for spread in _unguarded(now)]
    return apply(text, list(dict.fromkeys(edit for fix in fixes if fix is not None for edit in fix.edits)))


def _unguarded(module: Module) -> Iterator[ast.expr]:
    """The variances in the forwards of layers with weights of their own that a vanishing eps is added to."""
    if "var(" not in module.text and "std(" not in module.text:
        return
    for layer in module.nodes(ast.ClassDef):
        methods = {one.name: one for one in layer.body if isinstance(one, ast.FunctionDef)}
        forward = methods.get("forward")
        if forward is None or len(forward.args.args) < 2 or "Parameter(" not in module.rows(layer):
            continue
        if any(word in module.rows(forward) for word in _WIDE):
            continue
        given, nodes = forward.args.args[1].arg, walk(forward)
        assigned = [one for one in nodes if isinstance(one, ast.Assign) and _spread(one.value, given)]
        for node in nodes:
            match node:
                case ast.BinOp(left=left, op=ast.Add(), right=eps):
                    named = isinstance(left, ast.Name) and any(_binds(one, left.id) for one in assigned)
                    if (named or _spread(left, given)) and 0 < _eps(module, methods.get("__init__"), eps) <= _VANISHES:
                        yield left


def _spread(value: ast.expr, given: str) -> bool:
    """Whether this is the variance, or the standard deviation, of what a layer is given."""
    match value:
        case ast.Call(func=ast.Attribute(attr="var" | "std", value=ast.Name(id="torch")), args=[ast.Name(id=name), *_]):
            return name == given
        case ast.Call(func=ast.Attribute(attr="var" | "std", value=ast.Name(id=name))):
            return name == given
    return False


def _eps(module: Module, init: ast.FunctionDef | None, value: ast.expr) -> float:
    """A number, by itself, by the name that the file gives it, or that of a field by default; 0 if it is not known."""
    match value:
        case ast.Constant(value=float() as number):
            return number
        case ast.Name(id=name):
            made = [one.value for one in module.tree.body if isinstance(one, ast.Assign) and _binds(one, name)]
            return _eps(module, None, made[0]) if len(made) == 1 else 0
        case ast.Attribute(value=ast.Name(id="self")) if init is not None:
            defaults = dict(zip((one.arg for one in init.args.args[::-1]), init.args.defaults[::-1], strict=False))
            stores = [one.value for one in walk(init) if isinstance(one, ast.Assign) and _binds(one, value.attr)]
            made = [defaults.get(getattr(one, "id", ""), one) for one in stores]
            return _eps(module, None, made[0]) if len(made) == 1 else 0
    return 0


def _binds(assign: ast.Assign, name: str) -> bool:
    """Whether an assignment is to a name, or to a field of that name."""
    return any(last_name(one) == name for one in assign.targets)
