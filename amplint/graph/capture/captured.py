"""What every front end gives: a flat graph of ATen calls that knows, for each node, its dtype under autocast, the
user's line, and the module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from amplint.graph.capture.shape import Shape
from amplint.graph.places import Place


@dataclass(frozen=True)
class Precision:
    """How the model is to run: under autocast ("amp") or itself half ("half"), and in which dtype."""

    mode: str = "amp"
    dtype: torch.dtype = torch.float16


@dataclass
class Captured:
    """A captured forward.

    The placeholders of `graph` are the names of `values`: parameters, buffers, lifted constants and inputs, as real
    (FP32) or meta tensors. Every call_function node is an ATen overload or operator.getitem; its `meta` holds
      val        a fake tensor (or a tuple of them): shape, and the dtype that the node has at `precision`
      place      Place | None: the user's innermost line
      module     (path, class) from the model down to the module that runs it: (("", "Net"), ("head", "Linear"))
      autocast   whether autocast is on there, and in which dtype (autocast_dtype)
      grad       whether gradients are on there
      mutates    the earlier nodes whose memory it writes to, where it does (in place, through a view)
    A placeholder's `meta` holds val, and target: the name in the model ("head.weight") or of the input.
    """

    graph: fx.GraphModule
    values: dict[str, Any]
    kinds: dict[str, str]  # of each placeholder: parameter | buffer | constant | input
    precision: Precision
    frontend: str  # export | compile | recorder | symbolic
    notes: list[str] = field(default_factory=list)  # what the reader of a report must know: "2 graph breaks"
    shape: Shape | None = None  # how the model's own output is made of what the graph returns

    def output(self, flat: Any) -> Any:
        """The model's own output (a tensor, a tuple, a ModelOutput) from what the graph returns."""
        return flat if self.shape is None else self.shape.whole(flat)

    def nodes(self) -> Iterator[fx.Node]:
        """The calls, in order."""
        return (node for node in self.graph.graph.nodes if node.op == "call_function")


def dtype_of(node: fx.Node) -> torch.dtype | None:
    """The dtype of a node's tensor at the captured precision."""
    value = node.meta.get("val")
    return value.dtype if isinstance(value, torch.Tensor) else None


def place_of(node: fx.Node) -> Place | None:
    place = node.meta.get("place")
    return place if isinstance(place, Place) else None
