"""Sums of products by labels, as einsum has them, and their rounding."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from amplint.graph.ranges.domain import LARGE, Box, make, normal_max
from amplint.graph.ranges.transfer.table import Call

FP32 = 2.0**-24


def margin(length: int, half: float) -> float:
    """The share of Σ|a·b| by which a sum of `length` products may be off: FP32's rounding of every product and sum,
    that of this analysis, and that of half operands and result."""
    return (length + 16) * FP32 * 2 + 3.2 * half


def blame(box: Box, weight: Tensor | None, length: int, result: float) -> tuple[str, float] | None:
    """Which factor makes a result large: of the input's range, the weight's norm, and the length of the sum."""
    size = float(torch.maximum(box.top.max(), -box.bottom.min()))
    if not result > 0 or not size > 0 or not math.isfinite(result):
        return None
    norm = (
        float(torch.linalg.vector_norm(weight.detach().float().flatten(1), dim=1).max()) if weight is not None else 1.0
    )
    parts = {"input range": size, "weight norm": norm, "reduction length": result / (size * norm) if norm else 0.0}
    cause = max(parts, key=lambda name: parts[name])
    return cause, float(length) if cause == "reduction length" else parts[cause]


def contraction(call: Call, a: Box, b: Box, one: str, two: str, out: str) -> Box:
    """Σ a·b by labels, as einsum has them. Dimensions in which a box's cells do not differ are left out of its labels;
    a summed one that both leave out counts as its length."""
    first, second = _labels(one, len(a.shape)), _labels(two, len(b.shape))
    rank = len(call.shape)
    last = _labels(out, rank)
    sizes = dict(zip(first, a.shape, strict=True))
    for label, size in zip(second, b.shape, strict=True):
        sizes[label] = max(size, sizes.get(label, 1))
    summed = [label for label in sizes if label not in last]
    a, first_labels = _drop(a, first)
    b, second_labels = _drop(b, second)
    kept = [label for label in last if label in first_labels or label in second_labels]
    times = math.prod(sizes[label] for label in summed if label not in first_labels and label not in second_labels)
    length = math.prod(sizes[label] for label in summed)
    names = {label: chr(97 + index) for index, label in enumerate(sizes)}
    equation = "{},{}->{}".format(
        *("".join(names[one] for one in part) for part in (first_labels, second_labels, kept))
    )

    def contract(x: Tensor, y: Tensor) -> Tensor:
        value = torch.einsum(equation, x, y) * times
        return value.reshape([sizes[label] if label in kept else 1 for label in last])

    x, y = a.cells, b.cells
    c, d = x[:2].clamp(-LARGE, LARGE), y[:2].clamp(-LARGE, LARGE)
    middle = ((c[0] + c[1]) / 2, (d[0] + d[1]) / 2)
    outer = ((c[1] - c[0]) / 2 + middle[0].abs(), (d[1] - d[0]) / 2 + middle[1].abs())
    centre, most = contract(*middle), contract(*outer)
    reach = (most - contract(middle[0].abs(), middle[1].abs())).clamp_min(0)
    slack = most * (margin(length, call.half) + 1e-12)
    if call.half:
        slack = slack + 2.0**-24 * length * (outer[0].max() + outer[1].max())
    mean = contract(x[2], y[2])
    var = (contract(a.square, b.square) - contract(x[2] ** 2, y[2] ** 2)).clamp_min(0)
    low, high = centre - reach - slack, centre + reach + slack
    low, high = (
        torch.nan_to_num(low, -math.inf, math.inf, -math.inf),
        torch.nan_to_num(high, math.inf, math.inf, -math.inf),
    )
    why = blame(a, None, length, float((mean.abs() + normal_max(math.prod(call.shape)) * var.sqrt()).max()))
    return make(call.shape, low, high, mean, var, why=why)


def _labels(text: str, rank: int) -> list[str]:
    """One label a dimension; those of an ellipsis are numbers from the right."""
    if "..." not in text:
        return list(text)
    before, after = text.split("...")
    free = rank - len(before) - len(after)
    return [*before, *(str(free - index) for index in range(free)), *after]


def _drop(box: Box, labels: list[str]) -> tuple[Box, list[str]]:
    """Without the dimensions in which all cells are one."""
    held = [index for index in range(len(labels)) if box.cells.shape[1 + index] > 1]
    cells = box.cells.reshape(6, *(box.cells.shape[1 + index] for index in held))
    return replace(box, cells=cells, log=None), [labels[index] for index in held]
