"""What marks are made from: the captured graph, its ranges and its calibration, asked by node."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from amplint.graph import casting
from amplint.graph.calibrate import Calibration
from amplint.graph.capture.captured import Captured, dtype_of, place_of
from amplint.graph.casting import Cast
from amplint.graph.ranges.domain import Range
from amplint.graph.ranges.transfer.table import name_of
from amplint.graph.stats import LIMITS, Stats

HALVES = (torch.float16, torch.bfloat16)
# Give their first operand's own values, in another shape, order or dtype.
VIEWS = frozenset(
    "_to_copy to type_as contiguous clone detach alias view reshape _unsafe_view transpose permute t squeeze unsqueeze "
    "expand expand_as flatten unflatten movedim swapaxes slice select narrow chunk split split_with_sizes unbind "
    "repeat lift_fresh_copy lift_fresh getitem view_as ravel mT numpy_T dropout".split()
)
PARTS = frozenset("slice select narrow chunk split split_with_sizes unbind getitem".split())


@dataclass
class Facts:
    """Of one captured model."""

    captured: Captured
    ranges: dict[fx.Node, Range]
    calibration: Calibration | None
    casts: list[Cast] = field(default_factory=list)  # to half, that autocast makes

    def calls(self) -> Iterator[fx.Node]:
        """The calls, but those that give memory as it is, to be written to."""
        return (node for node in self.captured.nodes() if "empty" not in name(node))

    def half(self, node: fx.Node) -> torch.dtype | None:
        """The half dtype in which a node's values are held; None where they are not."""
        dtype = dtype_of(node)
        return dtype if dtype in HALVES else None

    def limit(self, node: fx.Node) -> float:
        dtype = self.half(node) or self.captured.precision.dtype
        return LIMITS[dtype].overflow

    def stats(self, node: fx.Node) -> Stats | None:
        """What was measured, of nodes with finite values only."""
        found = self.calibration.forward.get(node) if self.calibration else None
        return found if found is not None and found.nonzero else None

    def measured(self, node: fx.Node) -> bool:
        return self.stats(node) is not None and not self._mask(node)

    def largest(self, node: fx.Node) -> float | None:
        """max |x|, measured where there is a measurement: without what a mask of the dtype's own minimum hides."""
        found = self.ranges.get(node)
        if self.measured(node):
            stats = self.stats(node)
            return stats.absmax if stats else None
        return found.amax if found else None

    def flushed(self, node: fx.Node) -> float:
        """The share of non-zero values that the node's dtype makes zero."""
        dtype, found = self.half(node) or self.captured.precision.dtype, self.ranges.get(node)
        if stats := self.stats(node):
            return stats.flushed(dtype)
        return (found.tiny or 0.0) if found and dtype == torch.float16 else 0.0

    def safe(self, node: fx.Node) -> bool:
        """Proved not to overflow."""
        found = self.ranges.get(node)
        return found is not None and not found.infinite and max(abs(found.low), abs(found.high)) < self.limit(node)

    def _mask(self, node: fx.Node) -> bool:
        """Whether what was measured holds a mask's constant: the least number of the dtype, or what all discard."""
        found, stats = self.ranges.get(node), self.stats(node)
        least = torch.finfo(self.half(node) or self.captured.precision.dtype).max
        return (found is not None and found.masked) or (stats is not None and abs(stats.absmax / least - 1) < 2.0**-10)


def gather(captured: Captured, ranges: dict[fx.Node, Range], calibration: Calibration | None) -> Facts:
    casts = casting.cast_graph(captured, casting.alias, whole=False).casts
    return Facts(captured, ranges, calibration, [one for one in casts if one.dtype in HALVES])


def origin(node: Any, whole: bool = False) -> Any:
    """The node whose values a node has: through views and casts. `whole`: all of them, not through slices."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        if whole and (node.target is operator.getitem or name_of(node.target) in PARTS):
            break
        if node.target is not operator.getitem and name_of(node.target) not in VIEWS:
            break
        if not node.args or not isinstance(node.args[0], fx.Node):
            break
        node = node.args[0]
    return node


def name(node: Any) -> str:
    return name_of(node.target) if isinstance(node, fx.Node) and node.op == "call_function" else ""


def operands(node: fx.Node, facts: Facts) -> list[fx.Node]:
    """The tensors a call reads, other than parameters and buffers."""
    kinds = facts.captured.kinds
    return [one for one in node.all_input_nodes if kinds.get(one.name, "") not in ("parameter", "buffer")]


def placed(node: fx.Node) -> fx.Node:
    """The node itself, or the nearest behind it with a line of the user's."""
    seen, queue = {node}, [node]
    for one in queue:
        if place_of(one) is not None:
            return one
        queue += [user for user in one.users if user not in seen]
        seen |= set(queue)
    return node


def constant(node: Any, ranges: dict[fx.Node, Range]) -> Tensor | None:
    """A node's value, where it is the same for every input."""
    found = ranges.get(node) if isinstance(node, fx.Node) else None
    return found.exact if found else None


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
