"""Sums, means, extremes and scans along dimensions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from amplint.graph.ranges.domain import LARGE, Box, cell, make, merge, normal_max, one_sided, total
from amplint.graph.ranges.transfer.contraction import margin
from amplint.graph.ranges.transfer.normalise import moments
from amplint.graph.ranges.transfer.table import Call, dims_of, squeeze, transfer


@transfer("sum mean nansum nanmean")
def _sum(call: Call) -> Box:
    box = call.box("self")
    dims = dims_of(call, len(box.shape))
    count = math.prod(box.shape[dim] for dim in dims)
    keep = bool(call.get("keepdim", False))
    return _summed(call, box, dims, keep, 1.0 / count if "mean" in call.name and count else 1.0)


def kept(shape: tuple[int, ...], dims: list[int]) -> tuple[int, ...]:
    """The shape of a reduction that keeps its dimensions: where it must lie beside what was reduced."""
    return tuple(1 if dim in dims else size for dim, size in enumerate(shape))


def _summed(call: Call, box: Box, dims: list[int], keep: bool, factor: float) -> Box:
    count = math.prod(box.shape[dim] for dim in dims)
    low, high = box.low.clamp(-LARGE, LARGE), box.high.clamp(-LARGE, LARGE)
    slack = total(box, dims, torch.maximum(low.abs(), high.abs())) * margin(count, 0.0)
    least, most = total(box, dims, low) - slack, total(box, dims, high) + slack
    if bool((box.low >= 0).all()):
        least = least.clamp_min(0)
    mean, var = total(box, dims, box.mean), total(box, dims, box.var)
    parts = [least, most, mean, var]
    reach = normal_max(math.prod(call.shape)) * var.sqrt()
    up, down = (box.top - box.mean).clamp_min(0), (box.mean - box.bottom).clamp_min(0)
    lone = [one.amax(dims, keepdim=True) if dims else one for one in (up, down)]
    usual = normal_max(box.size) * box.var.sqrt()
    heavy = [
        (one.amax(dims, keepdim=True) if dims else one) > 2 * (usual.amax(dims, keepdim=True) if dims else usual)
        for one in (up, down)
    ]
    tops = [torch.where(flag, torch.maximum(reach, one), reach) for flag, one in zip(heavy, lone, strict=True)]
    parts += [mean - tops[1], mean + tops[0]]
    sizes = [squeeze(part, dims, keep) for part in parts]
    sizes = [size * (factor**2 if index == 3 else factor) for index, size in enumerate(sizes)]
    form = None
    if box.form and box.form[0] == "square":
        form = ("mean squares" if factor != 1 else "squares", box.form[1], count, kept(box.shape, dims))
    elif factor == 1 and bool((box.low >= 0).all()) and len(dims) == 1:
        form = ("sum", call.source("self"), dims[0], kept(box.shape, dims))
    why = ("reduction length", float(count)) if factor == 1 else box.why
    zero = box.zero and (count == 1 or not bool(((box.low < 0) | (box.mean > 0)).any()))
    return make(call.shape, *sizes, form=form, why=why, zero=zero, infinite=box.infinite)


@transfer("amax amin max min aminmax cummax cummin mode median kthvalue")
def _extreme(call: Call) -> Any:
    box = call.box("self")
    if call.name in ("max", "min") and "other" in call:
        from amplint.graph.ranges.transfer.binary import _larger

        return _larger(replace(call, name="maximum" if call.name == "max" else "minimum"))
    rank = len(box.shape)
    dims = dims_of(call, rank)
    count = math.prod(box.shape[dim] for dim in dims)
    whole = merge(box, dims)
    mean, var = whole.mean, whole.var
    if call.name in ("amax", "max", "amin", "min"):
        reach = one_sided(count) * var.sqrt() * (1 if "max" in call.name else -1)
        mean = torch.minimum(torch.maximum(mean + reach, whole.bottom), whole.top)
        var = var / max(2 * math.log(max(count, 2)), 1.0)
    keep = len(call.shape) == rank
    parts = [squeeze(one, dims, keep) for one in (whole.low, whole.high, mean, var, whole.bottom, whole.top)]
    form = ("largest", call.source("self"), count, kept(box.shape, dims)) if call.name in ("amax", "max") else None
    values = make(call.shape, *parts, zero=box.zero, form=form, infinite=box.infinite and "min" in call.name)
    return _indexed(call, values, max((box.shape[dim] for dim in dims), default=1))


def _indexed(call: Call, values: Box, length: int) -> Any:
    if len(call.vals) == 1:
        return values
    shape = tuple(int(size) for size in call.vals[1].shape)
    if call.vals[1].dtype == call.dtype and call.name == "aminmax":
        return values, values
    return values, make(shape, 0, max(length - 1, 0), (length - 1) / 2, length**2 / 12, 0, length - 1, zero=True)


@transfer("argmax argmin argsort searchsorted bucketize nonzero multinomial")
def _places(call: Call) -> Box:
    box = call.box(
        "self"
        if "self" in call.arguments
        else "sorted_sequence"
        if "sorted_sequence" in call.arguments
        else "boundaries"
    )
    length = max([*box.shape, 1])
    if call.name in ("argmax", "argmin") and "dim" not in call:
        length = box.size
    length += 1 if call.name in ("searchsorted", "bucketize") else 0
    return make(call.shape, 0, max(length - 1, 0), (length - 1) / 2, length**2 / 12, 0, length - 1, zero=True)


@transfer("histc bincount")
def _counts(call: Call) -> Box:
    size = max(call.box("self").size, 1)
    mean = size / max(math.prod(call.shape), 1)
    return make(call.shape, 0, size, mean, mean, zero=True)


@transfer("sort topk msort")
def _sorted(call: Call) -> Any:
    box = call.box("self")
    dim = int(call.get("dim", -1)) % max(len(box.shape), 1)
    whole = merge(box, [dim])
    values = make(call.shape, *whole.cells, zero=box.zero, infinite=box.infinite)
    return _indexed(call, values, box.shape[dim] if box.shape else 1)


@transfer("var std var_mean std_mean")
def _var(call: Call) -> Any:
    box = call.box("self")
    rank = len(box.shape)
    dims = dims_of(call, rank)
    count = math.prod(box.shape[dim] for dim in dims)
    correction = call.get("correction")
    unbiased = call.get("unbiased", True)
    correction = float(correction) if correction is not None else (1.0 if unbiased else 0.0)
    degrees = max(count - correction, 1e-9)
    var = moments(box, dims)[1]
    low, high = (
        box.low.amin(dims, keepdim=True) if dims else box.low,
        box.high.amax(dims, keepdim=True) if dims else box.high,
    )
    most = (
        ((high - low) / 2).clamp_max(1e70) ** 2 * count / degrees * 1.001
        if count > correction
        else torch.full_like(high, math.inf)
    )
    centre, spread = var * count / degrees * (count - 1) / max(count, 1), 2 * var**2 / max(count - 1, 1)
    if count - 1 == degrees:
        centre = var
    parts = [torch.zeros_like(most), most, centre, spread]
    keep = len(call.shape) == rank and bool(dims)
    if "std" in call.name:
        root = centre.sqrt()
        parts = [parts[0], most.sqrt(), root, (spread / (4 * centre.clamp_min(1e-300)))]
    sizes = [squeeze(one, dims, keep) for one in parts]
    first = make(call.shape, *sizes)
    if "mean" not in call.name:
        return first
    inner = replace(call, name="mean", vals=call.vals[1:])
    return first, _summed(inner, box, dims, keep, 1.0 / count)


@transfer("norm linalg_vector_norm frobenius_norm linalg_norm")
def _norm(call: Call) -> Box:
    box = call.box("self")
    rank = len(box.shape)
    dims = dims_of(call, rank)
    count = math.prod(box.shape[dim] for dim in dims)
    order = call.get("ord", call.get("p", 2))
    order = 2.0 if isinstance(order, str) or order is None else float(order)
    size = torch.maximum(box.low.abs(), box.high.abs()).clamp_max(1e70)
    keep = len(call.shape) == rank and rank > 0
    if order == math.inf:
        whole = merge(box, dims)
        most = size.amax(dims, keepdim=True)
        top = torch.maximum(whole.top, -whole.bottom)
        parts = [torch.zeros_like(most), most, top * 0.8, (top * 0.1) ** 2, top * 0.5, top]
    elif order == 1:
        mean = total(box, dims, (box.mean**2 + box.var * 2 / math.pi).sqrt())
        most = total(box, dims, size) * 1.001
        parts = [torch.zeros_like(most), most, mean, total(box, dims, box.var)]
    else:
        power = total(box, dims, box.square)
        fourth = total(box, dims, 2 * box.var**2 + 4 * box.var * box.mean**2)
        most = total(box, dims, size**2).sqrt() * 1.001
        if order != 2:
            most = most * count
        parts = [torch.zeros_like(most), most, power.sqrt(), fourth / (4 * power.clamp_min(1e-300))]
    sizes = [squeeze(one, dims, keep) for one in parts]
    form = ("norm", call.source("self"), count, kept(box.shape, dims)) if order == 2 else None
    return make(call.shape, *sizes, form=form, why=("reduction length", float(count)))


@transfer("logsumexp")
def _logsumexp(call: Call) -> Box:
    box = call.box("self")
    rank = len(box.shape)
    dims = dims_of(call, rank)
    count = math.prod(box.shape[dim] for dim in dims)
    whole = merge(box, dims)
    shift = math.log(count)
    extra = torch.minimum(
        whole.var / 2, (one_sided(count) * whole.var.sqrt() - shift).clamp_min(0) + 0.5 * whole.var.clamp_max(1)
    )
    keep = len(call.shape) == rank
    parts = [whole.low + shift - 1e-3, whole.high + shift + 1e-3, whole.mean + shift + extra, whole.var / count]
    low, high, mean, var = (squeeze(one, dims, keep) for one in parts)
    return make(call.shape, low, high, mean, var.clamp_min(1e-12))


@transfer("cumsum logcumsumexp cumprod")
def _cumsum(call: Call) -> Box:
    box = call.box("self")
    if call.name != "cumsum" or not box.shape:
        if call.name == "cumprod" and bool((box.low >= 0).all() and (box.high <= 1).all()):
            return make(call.shape, 0, 1, 0.3, 0.1, 0, 1)
        return make(call.shape, -math.inf, math.inf)
    dim = int(call["dim"]) % len(box.shape)
    count = box.shape[dim]
    whole = merge(box, [dim])
    rank = len(box.shape)
    steps = torch.arange(1, count + 1, dtype=torch.float64).reshape([-1 if one == dim else 1 for one in range(rank)])
    low, high = whole.low.clamp(-LARGE, LARGE) * steps, whole.high.clamp(-LARGE, LARGE) * steps
    slack = torch.maximum(low.abs(), high.abs()) * margin(count, 0.0)
    return make(
        call.shape,
        low - slack,
        high + slack,
        whole.mean * steps,
        whole.var * steps,
        why=("reduction length", float(count)),
    )


@transfer("prod")
def _prod(call: Call) -> Box:
    box = call.box("self")
    dims = dims_of(call, len(box.shape))
    count = math.prod(box.shape[dim] for dim in dims)
    size = float(torch.maximum(box.low.abs(), box.high.abs()).max())
    most = math.exp(min(count * math.log(max(size, 1e-300)), 700.0)) * 1.001
    whole = merge(box, list(range(len(box.shape))))
    mean, square = float(whole.mean.reshape(())), float(whole.square.reshape(()))
    least = 0.0 if bool((box.low >= 0).all()) else -most
    centre, power = (min(abs(one) ** min(count, 1000), 1e60) for one in (mean, square))
    rank = len(call.shape)
    return make(call.shape, least, most, cell(math.copysign(centre, mean), rank), cell(power - centre**2, rank))
