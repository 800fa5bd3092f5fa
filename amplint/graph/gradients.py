"""What becomes of the gradients that are half under AMP: flushed to zero, subnormal, infinite, at each loss scale."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from amplint.graph import stats
from amplint.graph.calibrate import Calibration
from amplint.graph.capture.captured import Captured, dtype_of
from amplint.graph.policy import HALVES
from amplint.graph.stats import Stats

DEFAULT = 16  # log2 of GradScaler's first scale
USEFUL = 0.01  # a scale is useful where it flushes at most this share of the gradients other than 0, and none overflows
SCALES = range(-14, 25)  # log2 of those considered; below 1 only where 1 itself overflows


@dataclass(frozen=True)
class Gradients:
    """Of one backward pass: the gradients of half tensors together, once each, and those of half weights."""

    dtype: torch.dtype
    activations: Stats
    weights: Stats

    @property
    def all(self) -> Stats:
        return stats.together((self.activations, self.weights))

    def flushed(self, scale: int = 0) -> float:
        """The share of all that becomes zero under a loss scale of 2^scale."""
        return self.all.flushed(self.dtype, scale)

    def useful(self, scale: int) -> bool:
        both = self.activations, self.weights
        return all(one.flushed(self.dtype, scale) <= USEFUL and not one.overflow(self.dtype, scale) for one in both)

    @property
    def window(self) -> tuple[int, int] | None:
        """log2 of the least and of the largest useful loss scale."""
        found = [scale for scale in SCALES if self.useful(scale)]
        found = [scale for scale in found if scale >= 0] or found
        return (found[0], found[-1]) if found else None


def gradients(captured: Captured, calibration: Calibration) -> Gradients | None:
    """None where there are none in half. A view's gradient is that of what it views, so it is not counted again."""
    dtype = captured.precision.dtype
    weights: list[Stats] = []
    activations: list[Stats] = []
    for cast, found in calibration.casts:
        if cast.dtype in HALVES:
            (weights if captured.kinds.get(cast.source.name) == "parameter" else activations).append(found)
    for node, found in calibration.gradient.items():
        if dtype_of(node) in HALVES and not is_view(node):
            (weights if node.op == "placeholder" else activations).append(found)
    if not (weights or activations):
        return None
    return Gradients(dtype, stats.together(activations), stats.together(weights))


def summary(captured: Captured, calibration: Calibration, scale: float | None = None) -> dict[str, Any] | None:
    """The report's "gradients": shares as they are and under a loss scale (GradScaler's first one where the script has
    none), and the useful scales."""
    found = gradients(captured, calibration)
    if found is None:
        return None
    own = scale is not None
    scale, together, swamped = scale or 2.0**DEFAULT, found.all, calibration.swamped
    power = round(math.log2(scale))
    return {
        "signal": calibration.signal,
        "silent": [calibration.silent, len(calibration.gradient)],
        "zero": list(zeros(captured)),
        "flushed_at_1": together.flushed(found.dtype),
        "subnormal_at_1": together.subnormal(found.dtype),
        "scale": scale,
        "own_scale": own,
        "flushed_at_scale": together.flushed(found.dtype, power),
        "overflow_at_scale": together.overflow(found.dtype, power),
        "window": [2.0**end for end in found.window] if found.window else None,
        "hist": together.hist(),
        "swamped": swamped
        and {
            "optimizer": swamped.optimizer,
            "lr": swamped.lr,
            "share_half": swamped.half,
            "share_float32": swamped.float32,
        },
    }


def zeros(captured: Captured) -> Iterator[str]:
    """The weights that are 0 throughout, as a residual branch's last one often starts: no gradient passes them."""
    for node in captured.graph.graph.nodes:
        target, value = str(node.meta.get("target", "")), captured.values.get(node.name)
        weight = captured.kinds.get(node.name) == "parameter" and target.rpartition(".")[2] == "weight"
        if weight and isinstance(value, torch.Tensor) and not value.is_meta and not bool(value.any()):
            yield target


def is_view(node: fx.Node) -> bool:
    """Whether a node's value is another's memory in its dtype, unchanged."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _aliases(node.args[0])
    return _aliases(node) and dtype_of(node) == dtype_of(node.all_input_nodes[0])


def _aliases(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    returns = schema.returns if schema is not None else ()
    return any(one.alias_info is not None and not one.alias_info.is_write for one in returns)
