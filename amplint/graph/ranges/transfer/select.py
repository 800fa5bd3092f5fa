"""Choosing elements: where, masks, index, gather, embedding, scatter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amplint.graph.ranges.domain import CELLS, MASK, Box, make, merge
from amplint.graph.ranges.transfer.binary import aligned
from amplint.graph.ranges.transfer.table import Call, transfer
from amplint.graph.ranges.transfer.view import joined, moved, reshaped


@transfer("where")
def _where(call: Call) -> Box:
    if "self" not in call:
        return make(call.shape, 0, 2**31)
    return choose(call, call.box("condition"), call.box("self"), call.box("other"))


@transfer("masked_fill")
def _masked_fill(call: Call) -> Box:
    return choose(call, call.box("mask"), call.box("value"), call.box("self"))


def choose(call: Call, condition: Box, one: Box, two: Box) -> Box:
    """`one` where the condition holds, else `two`. A constant of -1e4 and below beside other values is a mask."""
    rank = len(call.shape)
    x, y, share = aligned(one, rank), aligned(two, rank), aligned(condition, rank)[2]
    exact = condition.exact is not None and condition.exact.numel() <= CELLS
    low, high = torch.minimum(x[0], y[0]), torch.maximum(x[1], y[1])
    if exact:  # cell by cell
        low = torch.where(share > 0.5, x[0], y[0])
        high = torch.where(share > 0.5, x[1], y[1])
    whole = float(share.mean())
    masks = [_is_mask(box) for box in (one, two)]
    known: dict[str, Any] = {
        "zero": one.zero or two.zero,
        "infinite": (one.infinite and not masks[0]) or (two.infinite and not masks[1]),
    }
    if condition.exact is not None:
        known["infinite"] = (one.infinite and whole > 0) or (two.infinite and whole < 1)
        known["infinite"] = known["infinite"] and not _discards(condition, one, two)
    if any(masks):
        kept = y if masks[0] else x
        known |= {
            "masked": whole if masks[0] else 1 - whole,
            "infinite": one.infinite or two.infinite,
        }
        kept_box = two if masks[0] else one
        known["flush"] = kept_box.flush
        return make(call.shape, low, high, kept[2], kept[3], kept[4], kept[5], **known)
    share = share.clamp(0, 1)
    mean = share * x[2] + (1 - share) * y[2]
    square = share * (x[3] + x[2] ** 2) + (1 - share) * (y[3] + y[2] ** 2)
    taken = (share > 0, share < 1)
    bottom = torch.minimum(torch.where(taken[0], x[4], math.inf), torch.where(taken[1], y[4], math.inf))
    top = torch.maximum(torch.where(taken[0], x[5], -math.inf), torch.where(taken[1], y[5], -math.inf))
    known["masked"] = whole * one.masked + (1 - whole) * two.masked
    return make(call.shape, low, high, mean, square - mean**2, bottom, top, **known)


def _is_mask(box: Box) -> bool:
    return box.exact is not None and box.exact.numel() == 1 and float(box.exact) <= MASK


def _discards(condition: Box, one: Box, two: Box) -> bool:
    """Whether a constant condition picks none of the infinities of constant arms."""
    taken = torch.ones(())
    for box, wanted in ((one, True), (two, False)):
        if box.infinite:
            if box.exact is None or condition.exact is None:
                return False
            picked = condition.exact.bool() == wanted
            try:
                taken = torch.isinf(box.exact) & picked
            except RuntimeError:
                return False
            if bool(taken.any()):
                return False
    return True


@transfer("embedding embedding_bag")
def _embedding(call: Call) -> Any:
    table = call.box("weight")
    merged = merge(table, [0])
    rank = len(call.shape)
    parts = [one.reshape(*[1] * (rank - 1), -1) for one in merged.cells]
    if call.name == "embedding":
        if table.exact is not None:
            parts[4:] = _drawn(table.exact, parts, max(math.prod(call.shape[:-1]), 1))
        return make(call.shape, *parts)
    length = max(call.box("indices").shape[-1], 1)
    first = make(call.shape, parts[0] * length, parts[1] * length, parts[2], parts[3])
    rest = [make(tuple(int(n) for n in one.shape), 0, math.inf) for one in call.vals[1:]]
    return (first, *rest)


def _drawn(table: Tensor, parts: list[Tensor], count: int) -> list[Tensor]:
    """The extremes to expect of `count` rows of a table: few rows seldom hold its largest value."""
    if count >= 4 * table.shape[0]:
        return parts[4:]
    most = table.detach().abs().amax(1).double().sort().values
    limit = most[min(int(0.5 ** (1 / count) * len(most)), len(most) - 1)]
    return [parts[4].clamp_min(-limit), parts[5].clamp_max(limit)]


@transfer("index index_select gather take take_along_dim masked_select _unsafe_index", structural=True)
def _index(call: Call) -> Box:
    box = call.box("self")
    if call.name in ("index_select", "gather", "take_along_dim"):
        dim = call.get("dim")
        if dim is None or not box.shape:
            return _one_cell(box, call.shape)
        dim = int(dim) % len(box.shape)
        if call.name != "index_select":
            changed = [one for one in range(len(box.shape)) if one == dim or box.shape[one] != call.shape[one]]
        else:
            changed = [dim]
        return moved(merge(box, changed), call.shape, lambda cells: cells)
    if call.name in ("index", "_unsafe_index"):
        indices = list(call["indices"])
        used = [at for at, one in enumerate(indices) if one is not None]
        together = used == list(range(used[0], used[-1] + 1)) if used else True
        merged = merge(box, used)
        if used and together and all(_integers(indices[at]) for at in used):
            width = len(call.shape) - (len(box.shape) - len(used))
            first, last = used[0], used[-1]
            return moved(
                merged,
                call.shape,
                lambda cells: cells.reshape(
                    cells.shape[0], *cells.shape[1 : 1 + first], *[1] * width, *cells.shape[2 + last :]
                ),
            )
    return _one_cell(box, call.shape)


def _integers(value: Any) -> bool:
    val = value.meta.get("val") if hasattr(value, "meta") else value
    return isinstance(val, Tensor) and val.dtype != torch.bool


def _one_cell(box: Box, shape: tuple[int, ...]) -> Box:
    whole = merge(box, list(range(len(box.shape))))
    return (
        reshaped(replace(whole, log=None), shape)
        if shape
        else moved(whole, shape, lambda cells: cells.reshape(cells.shape[0]))
    )


@transfer(
    "index_put _unsafe_index_put index_copy index_fill slice_scatter select_scatter masked_scatter scatter "
    "scatter_reduce put copy",
    structural=True,
)
def _put(call: Call) -> Box:
    box = call.box("self")
    name = next((one for one in ("values", "source", "src", "value") if one in call), None)
    other = call.of(call[name]) if name else make((), 0, 0, 0, 0)
    if call.name == "copy":
        return moved(
            other,
            call.shape,
            lambda cells: cells.reshape(cells.shape[0], *[1] * (len(call.shape) - cells.ndim + 1), *cells.shape[1:]),
        )
    if call.get("accumulate") or "reduce" in call.name or call.get("reduce") is not None:
        return _accumulated(call, box, other)
    return joined(call, [box, other], [float(box.size), float(min(other.size, box.size))])


@transfer("scatter_add index_add")
def _add(call: Call) -> Box:
    box = call.box("self")
    name = next((one for one in ("src", "source") if one in call), "src")
    return _accumulated(call, box, call.box(name))


def _accumulated(call: Call, box: Box, other: Box) -> Box:
    """A sum of an unknown number of elements."""
    count = max(other.size, 1)
    plain, added = (merge(one, list(range(len(one.shape)))) for one in (box, other))
    a, b = plain.cells.reshape(6), added.cells.reshape(6)
    most = float(a[1].clamp_min(0) + b[1].clamp_min(0) * count)
    least = float(a[0].clamp_max(0) + b[0].clamp_max(0) * count)
    usual = max(count / max(math.prod(call.shape), 1), 1.0)
    mean, var = a[2] + b[2] * usual, a[3] + (b[3] + b[2] ** 2) * usual
    return make(call.shape, least * 1.001, most * 1.001, mean, var, zero=box.zero)


@transfer("one_hot")
def _one_hot(call: Call) -> Box:
    width = max(call.shape[-1], 1)
    return make(call.shape, 0, 1, 1 / width, (1 / width) * (1 - 1 / width), 0, 1, zero=True)
