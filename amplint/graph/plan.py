"""The cast plan: the graph as AMP runs it. Which list decides each node, where dtypes change, what the casts move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from amplint.graph import casting, policy
from amplint.graph.capture.captured import Captured, dtype_of
from amplint.graph.casting import Cast

LISTS = ("lower", "fp32", "promote", "")


@dataclass(frozen=True)
class Plan:
    """Of one forward. Nodes are those of `captured.graph`."""

    lists: dict[fx.Node, str]  # lower | fp32 | promote; "": the inputs decide
    casts: tuple[Cast, ...]  # that autocast makes
    own: tuple[fx.Node, ...]  # the model's own: .float(), .half(), .to(x.dtype)
    flops: dict[torch.dtype, int]  # of matrix products and convolutions, by the dtype they run in

    @property
    def counts(self) -> dict[str, int]:
        """How many nodes each list decides; "other": none."""
        found = list(self.lists.values())
        return {name or "other": found.count(name) for name in LISTS}

    @property
    def made(self) -> int:
        """How many casts are operations of their own."""
        return sum(not one.fused for one in self.casts)

    @property
    def bytes(self) -> int:
        """What the casts read and write."""
        return sum(one.bytes for one in self.casts)

    @property
    def fp32_share(self) -> float:
        """The share of the matrix products' and convolutions' work that runs in float32."""
        total = sum(self.flops.values())
        return self.flops.get(torch.float32, 0) / total if total else 0.0


def plan(captured: Captured) -> Plan:
    with policy.cuda_policy():
        lists = {node: casting.kind_of(node, captured.precision) for node in captured.nodes()}
        casts = tuple(casting.cast_graph(captured).casts)
    return Plan(lists, casts, tuple(filter(_casts, captured.nodes())), _flops(captured))


def _casts(node: fx.Node) -> bool:
    """Whether a node is the model's own cast, from one floating dtype to another."""
    if getattr(node.target, "overloadpacket", None) not in (torch.ops.aten.to, torch.ops.aten._to_copy):
        return False
    before, after = (dtype_of(one) for one in (node.all_input_nodes[0], node))
    return before != after and all(one is not None and one.is_floating_point for one in (before, after))


def _flops(captured: Captured) -> dict[torch.dtype, int]:
    """Counted by torch's own formulas, on fake tensors."""
    found: dict[torch.dtype, int] = {}
    for node in captured.nodes():
        dtype = dtype_of(node)
        if policy.kinds().get(casting.name_of(node)) == "lower" and dtype is not None and (flops := _flops_of(node)):
            found[dtype] = found.get(dtype, 0) + flops
    return found


def _flops_of(node: fx.Node) -> int:
    def value(one: fx.Node) -> Any:
        held = one.meta["val"]
        if not isinstance(held, torch.Tensor):
            return held
        dtype = torch.float32 if held.is_floating_point() else held.dtype  # which kernels are there matters to none
        return torch.empty(held.shape, dtype=dtype, device="meta")

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        try:
            node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:  # whatever torch raises on tensors without data
            return 0
    return int(counter.get_total_flops())
