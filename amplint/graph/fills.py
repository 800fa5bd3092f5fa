"""Constants that a half tensor cannot be filled with.

`scores.masked_fill(mask, -1e9)` raises in float16: it ends the run, and would end the capture. Here such tensors are
filled with their dtype's largest number instead, and the line is told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any
from unittest import mock

import torch

from amplint.findings import Severity
from amplint.graph import places
from amplint.graph.capture.captured import Captured, dtype_of, place_of
from amplint.graph.marks import words
from amplint.graph.marks.mark import Mark
from amplint.graph.places import Place
from amplint.graph.policy import HALVES

_NAMES = ("masked_fill", "masked_fill_")


@dataclass(frozen=True)
class Fill:
    """A line that fills a tensor of `dtype` with a number that `dtype` does not have."""

    place: Place | None
    value: float
    dtype: torch.dtype


@contextmanager
def bounded() -> Iterator[list[Fill]]:
    """While it is open such numbers are cut; the list is of those that were."""
    found: list[Fill] = []
    with ExitStack() as stack:
        for owner, name in [*((torch.Tensor, name) for name in _NAMES), (torch, "masked_fill")]:
            wrapped = _cutting(getattr(owner, name), found)
            stack.enter_context(mock.patch.object(owner, name, wrapped))
        yield found


def _cutting(original: Callable[..., Any], found: list[Fill]) -> Callable[..., Any]:
    @wraps(original)
    def fill(self: torch.Tensor, mask: Any, value: Any) -> Any:
        if self.dtype in HALVES and isinstance(value, int | float) and math.isfinite(value):
            limit = torch.finfo(self.dtype).max
            if abs(value) > limit:
                found.append(Fill(places.innermost(), float(value), self.dtype))
                value = math.copysign(limit, value)
        return original(self, mask, value)

    return fill


def marks(captured: Captured, found: list[Fill]) -> list[Mark]:
    """What was cut, as marks: each line once, at its node."""
    told: dict[Place | None, Mark] = {}
    for fill in found:
        nodes = [node for node in captured.nodes() if _fills(node.target) and place_of(node) == fill.place]
        nodes = [node for node in nodes if dtype_of(node) == fill.dtype] or nodes
        if not nodes or fill.place in told:
            continue
        name, limit = str(fill.dtype).removeprefix("torch."), torch.finfo(fill.dtype).max
        kind = {"float16": "Half", "bfloat16": "BFloat16"}[name]
        told[fill.place] = Mark(
            code="AMP451",
            verdict="certain",
            node=nodes[0],
            place=fill.place,
            headroom_bits=math.log2(limit / abs(fill.value)),
            message=f"{words.number(fill.value)} is no {name} number: this raises "
            f'"value cannot be converted to type c10::{kind} without overflow"',
            cause="",
            remedy="fill with torch.finfo(x.dtype).min, x being the tensor that is filled",
            severity=Severity.ERROR,
            count=len(nodes),
            nodes=tuple(nodes),
            modules=tuple(node.meta["module"][-1][0] for node in nodes if node.meta.get("module")),
        )
    return list(told.values())


def _fills(target: Any) -> bool:
    return str(getattr(target, "overloadpacket", "")).removeprefix("aten.") in _NAMES
