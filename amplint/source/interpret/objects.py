"""Objects that hold tensors, as a distribution does: what their methods return comes from those."""

from __future__ import annotations

import ast
from collections.abc import Iterable

from amplint.source.interpret import tensors
from amplint.source.interpret.world import World
from amplint.source.values import Object, Sym, Tensor, Value

_HELD = "made of"
_DRAWN = frozenset(("sample", "sample_n"))  # no gradient flows through what these draw


def fill(made: Value, values: Iterable[Value], node: ast.AST, world: World) -> None:
    """Remember the tensors that an object was made of, or was called with last."""
    found = held(values, node, world)
    if found is not None:
        world.set(made, _HELD, found)


def held(values: Iterable[Value], node: ast.AST, world: World) -> Tensor | None:
    """Something that depends on all tensors among the values and in the objects among them."""
    inner = (world.get(value, _HELD) or value if isinstance(value, Object | Sym) else value for value in values)
    return tensors.opaque(inner, world, node)


def taken(owner: Object, name: str, values: Iterable[Value], node: ast.AST, world: World) -> Tensor | None:
    """What a method of an object that holds tensors returns, or an attribute is; None of any other object."""
    if world.get(owner, _HELD) is None:
        return None
    return held(values if name in _DRAWN else (owner, *values), node, world)
