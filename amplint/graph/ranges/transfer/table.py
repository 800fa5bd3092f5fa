"""The table of transfer functions, and what such a function is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from amplint.graph.ranges.domain import Box, number, of_tensor

ALIASES = {"transformers.grouped_mm_fallback": "_grouped_mm"}  # the same by another library's name
HALVES = (torch.float16, torch.bfloat16)
Transfer = Callable[["Call"], Any]  # gives a Box, or a tuple of them for an operation with several results
TABLE: dict[str, Transfer] = {}
STRUCTURAL: set[str] = set()  # give their inputs' own values: nothing is rounded


def transfer(names: str, structural: bool = False) -> Callable[[Transfer], Transfer]:
    """Registers a function for these operations (separated by spaces)."""

    def register(function: Transfer) -> Transfer:
        for name in names.split():
            TABLE[name] = function
            if structural:
                STRUCTURAL.add(name)
        return function

    return register


@cache
def name_of(target: Any) -> str:
    """ "add" of aten.add.Tensor and of aten.add_.Tensor; other libraries keep their name: "torchvision.nms"."""
    if not isinstance(target, torch._ops.OpOverload):
        return getattr(target, "__name__", str(target))
    space, _, name = target._schema.name.partition("::")
    if space != "aten":
        return ALIASES.get(f"{space}.{name}", f"{space}.{name}")
    if name not in TABLE and name.endswith("_") and not name.startswith("__"):
        return name[:-1]
    return name


@cache
def _arguments(target: Any) -> tuple[tuple[str, Any], ...]:
    return tuple((one.name, one.default_value) for one in target._schema.arguments)


@dataclass(frozen=True)
class Call:
    """One call: its arguments as boxes, tensors or values, and the shape and dtype of what it gives."""

    node: fx.Node
    name: str
    arguments: dict[str, Any]
    boxes: dict[fx.Node, Any]
    vals: tuple[Any, ...]  # a fake tensor for each result
    origin: Callable[[Any], Any]  # the node whose values a node has: through casts

    def __contains__(self, name: str) -> bool:
        return self.arguments.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.arguments.get(name)
        return default if value is None else value

    def box(self, name: str) -> Box:
        return self.of(self.arguments[name])

    def of(self, value: Any) -> Box:
        """The box of an argument: a node's, or a number's."""
        if isinstance(value, fx.Node):
            held = self.boxes[value]
            if not isinstance(held, Box):
                raise TypeError(f"{value} is no tensor")
            return held
        return of_tensor(value) if isinstance(value, Tensor) else number(value)

    def optional(self, name: str) -> Box | None:
        return self.box(name) if name in self else None

    def listed(self, name: str) -> list[Box]:
        return [self.of(one) for one in self.arguments[name]]

    def real(self, name: str) -> Tensor | None:
        """The tensor itself, where it is known: a parameter, a constant."""
        value = self.arguments.get(name)
        return self.of(value).exact if value is not None else None

    def source(self, name: str) -> Any:
        """The node an argument comes from, through casts."""
        return self.origin(self.arguments.get(name))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.vals[0].shape)

    @property
    def dtype(self) -> torch.dtype:
        found: torch.dtype = self.vals[0].dtype
        return found

    @property
    def half(self) -> float:
        """The rounding of a half result's operands: 2⁻¹¹ (float16), 2⁻⁸ (bfloat16), else 0."""
        return {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}.get(self.dtype, 0.0)


def call_of(node: fx.Node, boxes: dict[fx.Node, Any], origin: Callable[[Any], Any]) -> Call:
    declared = _arguments(node.target)
    given: dict[str, Any] = dict(declared)
    given.update(zip((name for name, _ in declared), node.args, strict=False))
    given.update(node.kwargs)
    val = node.meta.get("val")
    vals = tuple(val) if isinstance(val, tuple | list) else (val,)
    return Call(node, name_of(node.target), given, boxes, vals, origin)


def dims_of(call: Call, rank: int) -> list[int]:
    """The reduced dimensions, none given meaning all."""
    dims = call.get("dim")
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(rank))
    dims = [dims] if isinstance(dims, int) else dims
    return sorted({int(dim) % max(rank, 1) for dim in dims})


def squeeze(cells: Tensor, dims: list[int], keep: bool) -> Tensor:
    """Drops reduced dimensions (of size 1) from plain cells."""
    for dim in sorted(dims, reverse=True) if not keep else ():
        cells = cells.squeeze(dim)
    return cells
