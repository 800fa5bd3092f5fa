"""Runs a captured graph: in FP32, whatever dtypes it was captured with, or under autocast as it was captured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx

from amplint.graph.capture.captured import Captured
from amplint.graph.policy import HALVES, RNN, without_mkldnn

Seen = Callable[[fx.Node, Any], Any]  # is shown each node's value, and gives the value to go on with


class _Runner(fx.Interpreter):
    def __init__(self, captured: Captured, seen: Seen | None, full: bool) -> None:
        super().__init__(captured.graph, garbage_collect_values=True)
        self.seen, self.full, self.precision = seen, full, captured.precision

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        enabled = not self.full and n.meta.get("autocast", False)
        dtype = n.meta.get("autocast_dtype", self.precision.dtype)
        grad = torch.is_grad_enabled() and n.meta.get("grad", True)
        with torch.autocast("cpu", dtype=dtype, enabled=enabled), torch.set_grad_enabled(grad):
            value = super().run_node(n)
        return self.seen(n, value) if self.seen is not None else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if self.full:  # what casts to half casts to float32
            args, kwargs = (fx.node.map_aggregate(one, in_full) for one in (args, kwargs))
        with without_mkldnn() if _name(target) in RNN and not self.full else nullcontext():
            return super().call_function(target, args, kwargs)


def _name(target: Any) -> str:
    name = getattr(target, "name", None)  # of an overload; a function has none
    return str(name()) if callable(name) else ""


def in_full(value: Any) -> Any:
    return torch.float32 if value in HALVES and isinstance(value, torch.dtype) else value


def run(captured: Captured, seen: Seen | None = None, *, full: bool = True) -> Any:
    """Run the graph on its own values. `full`: in FP32; else at the captured precision, for which `cuda_policy` must be
    open. `seen` is called with each call's node and value."""
    values = [_value(captured, node, full) for node in captured.graph.graph.nodes if node.op == "placeholder"]
    return _Runner(captured, seen, full).run(*values)


def _value(captured: Captured, node: fx.Node, full: bool) -> Any:
    """What a placeholder stands for, in FP32 or in the dtype it was captured in. What a model writes to is a copy."""
    value, seen = captured.values[node.name], node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return value
    wanted = torch.float32 if full or not isinstance(seen, torch.Tensor) else seen.dtype
    if value.dtype in (torch.float32, *HALVES) and value.dtype != wanted:
        return value.to(wanted)
    return value if captured.kinds[node.name] == "parameter" else value.detach().clone()
