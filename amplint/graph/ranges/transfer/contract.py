"""Sums of products: linear, convolution, matmul, einsum, attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from amplint.graph.ranges.domain import LARGE, Box, make, merge, normal_max
from amplint.graph.ranges.transfer.contraction import FP32, blame, contraction, margin
from amplint.graph.ranges.transfer.table import Call, transfer
from amplint.graph.ranges.transfer.view import moved


def rows(weight: Tensor, vectors: list[Tensor]) -> list[Tensor]:
    """weight (G, O/G, K) times each vector (G, K), in the weight's precision whatever the vectors' size: (O) each."""
    columns = torch.stack(vectors, -1)
    scale = columns.abs().amax(1, keepdim=True).clamp(1e-300, LARGE)
    result = (weight @ (columns / scale).to(weight.dtype)).double() * scale
    return list(result.flatten(0, 1).unbind(-1))


def affine(
    call: Call, weight: Tensor, bias: Tensor | None, box: Box, taps: int, size: int, groups: int = 1
) -> list[Tensor]:
    """Low, high, mean, variance and extremes (each of length O) of weight (O, K, taps) · x + bias, x with one cell
    or groups · K."""
    weight = weight.detach()
    weight = weight.float() if weight.dtype != torch.float64 else weight
    length = weight.shape[1] * taps
    parts = [weight, weight.abs(), weight * weight]
    parts = [one.sum(2) if weight.ndim == 3 else one for one in parts]
    cells = box.cells.reshape(6, -1)
    if cells.shape[1] == 1:
        parts = [one.sum(1, keepdim=True) for one in parts]
        groups = 1
    signed, absolute, squares = (one.reshape(groups, -1, one.shape[1]) for one in parts)
    cells = cells.reshape(6, groups, -1)
    low, high = cells[0].clamp(-LARGE, LARGE), cells[1].clamp(-LARGE, LARGE)
    centre, radius = (low + high) / 2, (high - low) / 2
    middle, mean = rows(signed, [centre, cells[2]])
    reach, most, norm = rows(absolute, [radius, centre.abs() + radius, torch.ones_like(radius)])
    (var,) = rows(squares, [cells[3]])
    reach = reach + most * margin(length, call.half) + (2.0**-24 * (norm + length) if call.half else 0.0)
    low, high = middle - reach, middle + reach
    if bias is not None:
        shift = bias.detach().double()
        slack = shift.abs() * (4 * FP32 + 2 * call.half)
        low, high, mean = low + shift - slack, high + shift + slack, mean + shift
    spread = normal_max(size) * var.sqrt()
    lone = _lone(box, weight, cells)
    spread = torch.maximum(spread, lone) if lone is not None else spread
    return [low, high, mean, var, mean - spread, mean + spread]


def _lone(box: Box, weight: Tensor, cells: Tensor) -> Tensor | None:
    """What a single outlier of a heavy tail gives by itself."""
    deviation = torch.maximum(cells[5] - cells[2], cells[2] - cells[4])
    usual = cells[3].sqrt() * normal_max(box.size)
    heavy = deviation > 2 * usual.clamp_min(1e-300)
    if not bool(heavy.any()):
        return None
    most = weight.abs().amax(tuple(range(1, weight.ndim))).double()
    return most * deviation[heavy].max()


@transfer("linear")
def _linear(call: Call) -> Box:
    return linear(call, call.box("input"), call["weight"], call.get("bias"))


@transfer("addmm")
def _addmm(call: Call) -> Box:
    beta, alpha = float(call.get("beta", 1)), float(call.get("alpha", 1))
    if (beta, alpha) == (1, 1):
        return linear(call, call.box("mat1"), call["mat2"], call["self"], transposed=True)
    return _mixed(call, call.box("self"), linear(call, call.box("mat1"), call["mat2"], None, transposed=True))


def linear(call: Call, box: Box, weight_node: Any, bias_node: Any, transposed: bool = False) -> Box:
    held, bias = call.of(weight_node), call.of(bias_node) if bias_node is not None else None
    weight = held.exact
    known = bias.exact if bias is not None else None
    if weight is None or (bias is not None and known is None):
        labels = ("...k", "...kn" if transposed else "nk")
        result = contraction(call, box, held, labels[0], "kn" if transposed else "nk", "...n")
        return shifted(call, result, bias)
    weight = weight.t() if transposed else weight
    rank = len(box.shape)
    box = merge(box, list(range(rank - 1)))
    size = math.prod(call.shape)
    low, high, mean, var, bottom, top = affine(call, weight, known, box, 1, size)
    why = blame(box, weight, weight.shape[1], float(torch.maximum(top.max(), -bottom.min())))
    return make(call.shape, low, high, mean, var, bottom, top, why=why)


def shifted(call: Call, box: Box, bias: Box | None) -> Box:
    if bias is None:
        return box
    from amplint.graph.ranges.transfer.binary import combine

    return combine(replace(call, name="bias"), box, bias, 1.0)


@transfer("conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d conv_transpose3d")
def _conv(call: Call) -> Box:
    box, held = call.box("input" if "input" in call else "self"), call.box("weight")
    bias = call.optional("bias")
    back = bool(call.get("transposed", False)) or "transpose" in call.name
    groups = int(call.get("groups", 1))
    rank = len(held.shape) - 2
    batched = len(box.shape) == rank + 2
    at = 1 if batched else 0
    box = merge(box, [dim for dim in range(len(box.shape)) if dim != at])
    padded = back or _any(call.get("padding", 0))
    if padded:
        cells = box.cells.clone()
        cells[0].clamp_max_(0), cells[1].clamp_min_(0)
        box = replace(box, cells=cells)
    weight = held.exact
    taps = math.prod(held.shape[2:])
    stride = _listed(call.get("stride", 1), rank)
    used = (
        math.prod(max(1.0, size / step) for size, step in zip(held.shape[2:], stride, strict=True)) / taps
        if back
        else 1.0
    )
    known = bias.exact if bias is not None else None
    if weight is None or (bias is not None and known is None):
        inputs = held.shape[1] if not back else held.shape[0] // groups
        result = _unknown_weight(call, box, held, inputs * taps)
        if bias is None:
            return result
        return shifted(
            call, result, moved(bias, (*bias.shape, *[1] * rank), lambda c: c.reshape(*c.shape, *[1] * rank))
        )
    flat = weight.flatten(2) if rank else weight
    if back:  # (I, O/g, taps) → (O, I/g, taps)
        whole, out = flat.shape[0], flat.shape[1]
        flat = (
            flat.reshape(groups, whole // groups, out, taps)
            .transpose(1, 2)
            .reshape(groups * out, whole // groups, taps)
        )
    size = math.prod(call.shape)
    inputs = flat.shape[1]
    if groups > 1 and inputs == 1 and box.cells[0].numel() > 1:
        parts = _depthwise(call, flat, known, box, taps, size, groups)
    else:
        parts = affine(call, flat, known, box, taps, size, groups)
    if back:
        parts[3] = parts[3] * used
        mean = parts[2] if known is None else parts[2] - known.double()
        parts[2] = mean * used + (known.double() if known is not None else 0)
        spread = normal_max(size) * parts[3].sqrt()
        parts[4], parts[5] = parts[2] - spread, parts[2] + spread
    parts = [part.reshape(-1, *[1] * rank) for part in parts]
    why = blame(box, flat, inputs * taps, float(torch.maximum(parts[5].max(), -parts[4].min())))
    return make(call.shape, *parts, why=why)


def _depthwise(
    call: Call, flat: Tensor, bias: Tensor | None, box: Box, taps: int, size: int, groups: int
) -> list[Tensor]:
    """One input channel to each output: affine by element."""
    weight = flat[:, 0].detach().double()
    cells = box.cells.reshape(6, groups).repeat_interleave(weight.shape[0] // groups, 1)
    signed, absolute, squares = weight.sum(1), weight.abs().sum(1), (weight**2).sum(1)
    low, high = cells[0].clamp(-LARGE, LARGE), cells[1].clamp(-LARGE, LARGE)
    plus, minus = weight.clamp_min(0).sum(1), weight.clamp_max(0).sum(1)
    slack = absolute * torch.maximum(low.abs(), high.abs()) * margin(taps, call.half)
    if call.half:
        slack = slack + 2.0**-24 * (absolute + taps)
    least, most = plus * low + minus * high - slack, plus * high + minus * low + slack
    mean, var = signed * cells[2], squares * cells[3]
    if bias is not None:
        shift = bias.detach().double()
        extra = shift.abs() * (4 * FP32 + 2 * call.half)
        least, most, mean = least + shift - extra, most + shift + extra, mean + shift
    spread = normal_max(size) * var.sqrt()
    return [least, most, mean, var, mean - spread, mean + spread]


def _unknown_weight(call: Call, box: Box, held: Box, length: int) -> Box:
    """A convolution with a weight that is computed, or has no data."""
    whole = merge(box, list(range(len(box.shape))))
    weight = merge(held, list(range(len(held.shape))))
    a, w = whole.cells.reshape(6), weight.cells.reshape(6)
    most = float((a[:2].abs().max() * w[:2].abs().max()).clamp_max(LARGE)) * length * (1 + margin(length, call.half))
    mean = a[2] * w[2] * length
    var = length * (a[3] * w[3] + a[3] * w[2] ** 2 + w[3] * a[2] ** 2)
    return make(call.shape, -most, most, mean, var, why=("reduction length", float(length)))


def _any(value: Any) -> bool:
    return value not in (0, "valid") if not isinstance(value, list | tuple) else any(value)


def _listed(value: Any, rank: int) -> list[int]:
    sizes: list[int] = [value] if isinstance(value, int) else list(value or [1])
    return sizes * rank if len(sizes) == 1 else sizes


@transfer("matmul mm bmm mv dot inner")
def _matmul(call: Call) -> Box:
    names = (
        "self",
        "mat2" if "mat2" in call else "vec" if "vec" in call else "tensor" if "tensor" in call else "other",
    )
    a, b = call.box(names[0]), call.box(names[1])
    weight = b.exact
    if weight is not None and weight.ndim == 2 and a.exact is None and len(a.shape) >= 1 and weight.is_floating_point():
        return linear(call, a, call[names[1]], None, transposed=True)
    one = {1: "k"}.get(len(a.shape), "...mk")
    two = {1: "k"}.get(len(b.shape), "...kn")
    out = "..." + ("m" if len(a.shape) > 1 else "") + ("n" if len(b.shape) > 1 else "")
    result = contraction(call, a, b, one, two, out)
    if b.form == ("transposed", call.source(names[0])) or a.form == ("transposed", call.source(names[1])):
        return _gram(result, a, a.shape[-1])
    if len(a.shape) == len(b.shape) == 1 and call.source(names[0]) is call.source(names[1]):
        return _energy(result, a, a.shape[0])
    if a.form and a.form[0] == "probabilities" and len(b.shape) > 1 and a.form[1] in (-1, len(a.shape) - 1):
        top = float(a.top.max().clamp(0, 1)) * normal_max(4 * b.shape[-1])  # a row that looks at one element alone
        return hull(call, result, b, float(a.form[2]), top)
    return result


def _gram(result: Box, a: Box, length: int) -> Box:
    """x·xᵀ: its diagonal is a sum of squares."""
    cells = result.cells.clone()
    diagonal = float(a.square.mean()) * length
    cells[5] = torch.minimum(torch.maximum(cells[5], torch.tensor(diagonal * 1.1, dtype=torch.float64)), cells[1])
    return replace(result, cells=cells, why=("reduction length", float(length)))


def _energy(result: Box, a: Box, length: int) -> Box:
    """Σ x²: no product of independent values."""
    cells = result.cells.clone()
    square = float(a.square.mean())
    deviation = math.sqrt(2 * length) * square * normal_max(max(result.size, 2))
    for at, value in ((2, square * length), (3, 2 * length * square**2)):
        cells[at] = value
    cells[4], cells[5] = cells[2] - min(deviation, square * length), cells[2] + deviation
    cells[[2, 4, 5]] = torch.minimum(torch.maximum(cells[[2, 4, 5]], cells[0]), cells[1])
    return replace(result, cells=cells, why=("reduction length", float(length)))


def hull(call: Call, result: Box, b: Box, factor: float, lone: float) -> Box:
    """Weights that sum to 1 (times the factor): no result leaves the values that are weighed. `lone`: the deviations of
    a value that counts alone."""
    b = merge(b, [len(b.shape) - 2])
    deviation = b.var.sqrt() * lone
    slack = 1 + margin(64, call.half) + 1e-3
    low, high = b.low.clamp_max(0) * factor * slack, b.high.clamp_min(0) * factor * slack
    bottom, top = b.bottom.clamp_max(0) * factor, b.top.clamp_min(0) * factor
    rank = len(call.shape)
    lead = [1] * (rank - low.ndim)
    low, high, bottom, top, deviation = (one.reshape(*lead, *one.shape) for one in (low, high, bottom, top, deviation))
    cells = result.cells
    return make(
        call.shape,
        torch.maximum(cells[0], low),
        torch.minimum(cells[1], high),
        cells[2],
        cells[3],
        torch.maximum(torch.minimum(cells[4], cells[2] - deviation), bottom),
        torch.minimum(torch.maximum(cells[5], cells[2] + deviation), top),
    )


@transfer("_grouped_mm")
def _grouped(call: Call) -> Box:
    """Rows (S, K), each times one of the matrices (E, K, N): what any of them gives. Mixtures of experts."""
    names = list(call.arguments)
    box, held = call.box(names[0]), call.box(names[1])
    weight = held.exact
    if len(held.shape) != 3 or len(box.shape) != 2 or "bias" in call:
        raise LookupError("groups along another dimension")
    if weight is None:
        one = moved(merge(held, [0]), held.shape[1:], lambda cells: cells.squeeze(1))
        return contraction(call, box, one, "sk", "kn", "sn")
    experts, length, width = weight.shape
    flat = weight.transpose(1, 2).reshape(experts * width, length)
    parts = affine(call, flat, None, merge(box, [0]), 1, math.prod(call.shape))
    low, high, mean, var, bottom, top = (part.reshape(experts, width) for part in parts)
    centre = mean.mean(0)
    var = (var + mean**2).mean(0) - centre**2
    why = blame(box, flat, length, float(torch.maximum(top.max(), -bottom.min())))
    ends = low.amin(0), high.amax(0), centre, var, bottom.amin(0), top.amax(0)
    return make(call.shape, *(one.reshape(1, -1) for one in ends), why=why)


@transfer("baddbmm addmv")
def _baddbmm(call: Call) -> Box:
    base = call.box("self")
    names = ("batch1", "batch2") if "batch1" in call else ("mat", "vec")
    a, b = call.box(names[0]), call.box(names[1])
    result = contraction(
        call, a, b, "...mk", "...kn" if len(b.shape) > 1 else "k", "...mn" if len(b.shape) > 1 else "...m"
    )
    return _mixed(call, base, result)


def _mixed(call: Call, base: Box, product: Box) -> Box:
    """beta · base + alpha · product."""
    from amplint.graph.ranges.transfer.binary import combine

    alpha, beta = float(call.get("alpha", 1)), float(call.get("beta", 1))
    cells = base.cells * abs(beta)
    cells[3] *= abs(beta)
    if beta < 0:
        cells = cells[[1, 0, 2, 3, 5, 4]] * torch.tensor([-1, -1, -1, 1, -1, -1]).reshape(-1, *[1] * (cells.ndim - 1))
    return combine(replace(call, name="bias"), replace(base, exact=None, cells=cells.nan_to_num(0.0)), product, alpha)


@transfer("einsum")
def _einsum(call: Call) -> Box:
    equation = str(call["equation"]).replace(" ", "")
    boxes = call.listed("tensors")
    left, _, out = equation.partition("->")
    inputs = left.split(",")
    if "->" not in equation:
        letters = sorted({one for one in left if one.isalpha()})
        out = ("..." if "..." in left else "") + "".join(one for one in letters if left.count(one) == 1)
    if len(boxes) == 1:
        ones = make((), 1, 1, 1, 0, 1, 1)
        return contraction(call, boxes[0], ones, inputs[0], "", out)
    if len(boxes) != 2:
        return make(call.shape, -math.inf, math.inf, unknown="einsum of three")
    result = contraction(call, boxes[0], boxes[1], inputs[0], inputs[1], out)
    first, second = (call.origin(one) for one in call["tensors"])
    if first is not second or "..." in left:
        return result
    length = math.prod(size for label, size in zip(inputs[0], boxes[0].shape, strict=True) if label not in out)
    return (_energy if inputs[0] == inputs[1] else _gram)(result, boxes[0], length)
