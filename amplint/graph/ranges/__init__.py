"""Ranges: what the values of each node of a captured graph are, without running it.

    analyse(captured) → {node: Range}

One pass over the graph. What depends on constants and parameters alone is computed; for everything else a transfer
function (transfer/, a table by operation) gives a sound interval and an estimate.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from amplint.graph.capture.captured import Captured
from amplint.graph.ranges.domain import Box, Declared, Range, blank, finish, make, merge, of_tensor
from amplint.graph.ranges.inputs import given
from amplint.graph.ranges.transfer import TABLE
from amplint.graph.ranges.transfer.table import HALVES, STRUCTURAL, call_of, name_of
from amplint.graph.run import in_full

__all__ = ["Declared", "Range", "analyse"]

_FOLD = 2**26  # elements: no constant larger than this is computed
_CASTS = frozenset({"_to_copy", "to", "type_as", "contiguous", "clone", "detach", "alias", "lift_fresh_copy"})


def analyse(
    captured: Captured, declared: dict[str, Declared] | None = None, *, strict: bool = False
) -> dict[fx.Node, Range]:
    """A range for every node that gives a tensor; a node that gives several has a tuple's range at its getitems.
    `declared`: by the placeholder's name, for inputs and for parameters without data. `strict`: a transfer function
    that fails raises (else its node is unknown)."""
    boxes = _boxes(captured, declared or {}, strict)
    found = {}
    for node, box in boxes.items():
        if isinstance(box, Box):
            found[node] = finish(box)
        elif isinstance(node.meta.get("val"), Tensor):
            found[node] = Range(
                -math.inf, math.inf, unknown=name_of(node.target) if callable(node.target) else node.name
            )
    return _settled(captured.graph.graph, found)


def _boxes(captured: Captured, declared: dict[str, Declared], strict: bool) -> dict[fx.Node, Any]:
    """The box of each node as it is made; what later in-place operations do to it is not part of it."""
    state = _State()
    results: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in captured.graph.graph.nodes:
            match node.op:
                case "placeholder":
                    box = given(captured, node, declared)
                case "get_attr":
                    held = attrgetter(node.target)(captured.graph)
                    box = of_tensor(held.detach()) if isinstance(held, Tensor) and not held.is_meta else None
                case "call_function":
                    box = _called(node, state, strict)
                case _:
                    continue
            state.now[node] = results[node] = box
            if node.op == "call_function":
                state.follow(node)
    return results


class _State:
    """Boxes as they are now, and who shares memory with whom."""

    def __init__(self) -> None:
        self.now: dict[fx.Node, Any] = {}
        self.root: dict[fx.Node, fx.Node] = {}  # of a view
        self.same: dict[fx.Node, fx.Node] = {}  # the node whose values a cast has

    def origin(self, value: Any) -> Any:
        while isinstance(value, fx.Node) and value in self.same:
            value = self.same[value]
        return value

    def follow(self, node: fx.Node) -> None:
        """Notes casts and views, and applies what an in-place operation writes."""
        target, first = node.target, node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            return
        if target is operator.getitem:
            if first in self.root:
                self.root[node] = self.root[first]
            return
        schema = getattr(target, "_schema", None)
        if schema is None:
            return
        if name_of(target) in _CASTS and isinstance(self.now[node], Box) and _float(node):
            self.same[node] = first
        written = schema.arguments[0].alias_info if schema.arguments else None
        if written is not None and written.is_write:
            self._write(first, node)
        elif schema.returns and schema.returns[0].alias_info is not None:
            self.root[node] = self.root.get(first, first)

    def _write(self, target: fx.Node, node: fx.Node) -> None:
        """`node` wrote to `target`: it and all that share its memory change."""
        box = self.now[node]
        root = self.root.get(target, target)
        plain = isinstance(box, Box)
        self.root[node] = root
        shared = {root, *(one for one, at in self.root.items() if at is root), *node.meta.get("mutates", ())}
        for other in shared:
            held = self.now.get(other)
            if not plain or not isinstance(held, Box):
                self.now[other] = blank(held.shape, "in-place") if isinstance(held, Box) else held
            elif other is target or other is node:
                self.now[other] = replace(box, of=None, form=None)
            else:
                self.now[other] = _union(held, box)
        for other, held in self.now.items():  # functions of what was overwritten are no longer functions of it
            if isinstance(held, Box) and (held.of is not None or held.form is not None):
                named = (held.of[0] if held.of else None, *(held.form or ()))
                if any(isinstance(one, fx.Node) and one in shared for one in named):
                    self.now[other] = replace(held, of=None, form=None)
        self.same = {one: at for one, at in self.same.items() if one not in shared and at not in shared}


def _union(held: Box, written: Box) -> Box:
    """A tensor of which some elements were overwritten."""
    dims = list(range(len(written.shape)))
    new = merge(replace(written, log=None), dims).cells.reshape(6)
    new = new.reshape(6, *[1] * len(held.shape))
    cells = held.cells
    return make(
        held.shape,
        torch.minimum(cells[0], new[0]),
        torch.maximum(cells[1], new[1]),
        (cells[2] + new[2]) / 2,
        torch.maximum(cells[3], new[3]),
        torch.minimum(cells[4], new[4]),
        torch.maximum(cells[5], new[5]),
        zero=held.zero or written.zero,
        infinite=held.infinite or written.infinite,
        unknown=held.unknown or written.unknown,
    )


def _called(node: fx.Node, state: _State, strict: bool) -> Any:
    """What a call gives: a box, a tuple of them, or None for what is no tensor."""
    if node.target is operator.getitem:
        index = node.args[1]
        held = state.now.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
        return held[index] if isinstance(held, tuple) and isinstance(index, int) and index < len(held) else None
    vals = node.meta.get("val")
    if not any(isinstance(val, Tensor) for val in (vals if isinstance(vals, tuple | list) else [vals])):
        return None
    inputs = [state.now.get(one) for one in node.all_input_nodes]
    folded = _folded(node, inputs, state)
    if folded is not None:
        return folded
    name = name_of(node.target)
    call = call_of(node, state.now, state.origin)
    function = TABLE.get(name)
    try:
        if function is None:
            raise LookupError(name)
        result = function(call)
        _check(result, call.vals)
    except Exception:
        if strict and function is not None:
            raise
        boxes = tuple(_blank(one, name) for one in call.vals)
        return boxes if isinstance(vals, tuple | list) else boxes[0]
    if isinstance(result, tuple):
        return tuple(_rounded(one, val, name, inputs) for one, val in zip(result, call.vals, strict=False))
    single = _rounded(result, call.vals[0], name, inputs)
    return (single,) if isinstance(vals, tuple | list) else single


def _blank(val: Any, name: str) -> Box | None:
    try:
        return blank(tuple(map(int, val.shape)), name)
    except Exception:  # no tensor, or one whose size depends on data
        return None


def _check(result: Any, vals: tuple[Any, ...]) -> None:
    for box, val in zip(result if isinstance(result, tuple) else (result,), vals, strict=False):
        if isinstance(box, Box):
            held = tuple(box.cells.shape[1:])
            if box.shape != tuple(val.shape) or len(held) != len(box.shape):
                raise ValueError(f"a box of {box.shape} with cells {held} for a tensor of {tuple(val.shape)}")
            if any(one not in (1, size) for one, size in zip(held, box.shape, strict=True)):
                raise ValueError(f"cells {held} for {box.shape}")


def _rounded(box: Any, val: Any, name: str, inputs: list[Any]) -> Any:
    """The box with its interval widened by the result's rounding, and with what it has from its inputs."""
    if not isinstance(box, Box) or not isinstance(val, Tensor):
        return box
    before = [one for one in inputs if isinstance(one, Box)]
    known: dict[str, Any] = {}
    if not box.unknown:
        known["unknown"] = next((one.unknown for one in before if one.unknown), "")
    if box.why is None:
        known["why"] = next((one.why for one in before if one.why is not None), None)
    if val.dtype.is_floating_point and (name not in STRUCTURAL or (name in _CASTS and val.dtype in HALVES)):
        cells = box.cells.clone()
        share = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}.get(val.dtype, 2.0**-20)
        least = 2.0**-24 if val.dtype == torch.float16 else 1e-38
        size = cells[:2].abs()
        slack = torch.where(size > 0, size * share + least, 0.0)
        cells[0] -= slack[0]
        cells[1] += slack[1]
        known["cells"] = cells
    return replace(box, **known)


def _folded(node: fx.Node, inputs: list[Any], state: _State) -> Any:
    """The constant that a call of constants gives, computed in FP32."""
    if any(not isinstance(one, Box) or one.exact is None for one in inputs):
        return None
    tags = getattr(node.target, "tags", ())
    if torch.Tag.nondeterministic_seeded in tags or "empty" in name_of(node.target) or not callable(node.target):
        return None
    vals = node.meta["val"]
    if isinstance(vals, tuple | list) or not isinstance(vals, Tensor) or vals.numel() > _FOLD:
        return None
    schema = getattr(node.target, "_schema", None)
    copied = schema is not None and schema.is_mutable

    def tensor(one: fx.Node) -> Any:
        exact = state.now[one].exact
        exact = exact.float() if exact.dtype in HALVES else exact
        return exact.clone() if copied else exact

    args: Any = fx.node.map_aggregate(fx.map_arg(node.args, tensor), in_full)
    kwargs: Any = fx.node.map_aggregate(fx.map_arg(node.kwargs, tensor), in_full)
    try:
        value = node.target(*args, **kwargs)
    except Exception:
        return None
    return of_tensor(value.detach()) if isinstance(value, Tensor) and tuple(value.shape) == tuple(vals.shape) else None


def _float(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, Tensor) and val.dtype.is_floating_point


_DISCARD: Callable[[str], bool] = frozenset(
    "softmax _softmax log_softmax _log_softmax sigmoid tanh exp relu clamp clamp_min clamp_max hardtanh where minimum "
    "maximum amax max argmax isinf isfinite scaled_dot_product_attention nan_to_num logsumexp sort topk gt lt ge le eq "
    "ne cross_entropy_loss _safe_softmax".split()
).__contains__


def _settled(graph: fx.Graph, ranges: dict[fx.Node, Range]) -> dict[fx.Node, Range]:
    """Infinities and masks that no one uses are harmless: all their users discard them, or give finite values."""
    harmless: dict[fx.Node, bool] = {}
    for node in reversed(list(graph.nodes)):
        harmless[node] = bool(node.users) and all(
            user.op == "call_function"
            and (_DISCARD(name_of(user.target)) or harmless.get(user, False) or _finite(ranges.get(user)))
            for user in node.users
        )
    settled = {}
    for node, one in ranges.items():
        if one.infinite and harmless[node]:
            one = replace(one, infinite=False, masked=True)
        elif one.masked and not harmless[node]:
            one = replace(one, masked=False)
        settled[node] = one
    return settled


def _finite(one: Range | None) -> bool:
    return one is not None and not one.infinite and not one.masked
