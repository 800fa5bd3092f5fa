"""Normalisation, softmax and dropout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from amplint.graph.ranges.domain import MASK, Box, cell, make, merge, normal_max, together, total
from amplint.graph.ranges.transfer.binary import aligned
from amplint.graph.ranges.transfer.table import Call, transfer
from amplint.graph.ranges.transfer.view import moved


def moments(box: Box, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and variance of all elements along these dimensions (kept with size 1)."""
    count = math.prod(box.shape[dim] for dim in dims)
    mean = total(box, dims, box.mean) / count
    return mean, (total(box, dims, box.square) / count - mean**2).clamp_min(0)


def normalised(call: Call, box: Box, dims: list[int], eps: float, weight: Any, bias: Any, count: int) -> Box:
    """(x − mean) / sqrt(var + eps) · weight + bias, with moments over `dims`: no element can exceed sqrt(count − 1)."""
    mean, var = moments(box, dims)
    factor = 1 / (var + eps).sqrt()
    return scaled(
        call,
        (box.mean - mean) * factor,
        box.var * factor**2,
        math.sqrt(max(count - 1, 0)) * 1.001,
        weight,
        bias,
        box,
        factor,
    )


def scaled(
    call: Call, mean: Tensor, var: Tensor, bound: float, weight: Any, bias: Any, box: Box, factor: Tensor
) -> Box:
    """A normalised tensor, |x| ≤ bound, times weight plus bias (cells with the result's rank)."""
    rank = len(call.shape)
    up, down = (box.top - box.mean) * factor, (box.mean - box.bottom) * factor
    low, high = cell(-bound, rank), cell(bound, rank)
    if weight is not None:
        from amplint.graph.ranges.transfer.binary import times

        low, high = times(low, high, weight[0], weight[1])
        var = var * weight[2] ** 2 + weight[3] * (var + mean**2)
        mean, size = mean * weight[2], weight[2].abs()
        up, down = up * size, down * size
    if bias is not None:
        low, high, mean, var = low + bias[0], high + bias[1], mean + bias[2], var + bias[3]
    reach = normal_max(math.prod(call.shape)) * var.sqrt()
    up, down = torch.minimum(up, 3 * reach), torch.minimum(down, 3 * reach)
    return make(
        call.shape, low, high, mean, var, mean - torch.maximum(down, reach * 0.9), mean + torch.maximum(up, reach * 0.9)
    )


def parameter(call: Call, name: str, at: list[int] | None = None) -> Tensor | None:
    """The cells of a weight, for the last dimensions or for dimension at[0]. Without data a weight is 1, a bias 0."""
    if name not in call:
        return None
    box = call.box(name)
    rank = len(call.shape)
    if box.exact is None and bool((box.low == -math.inf).all()):
        value = 1.0 if name == "weight" else 0.0
        known = [box.low, box.high, cell(value, len(box.shape)), cell(0.0, len(box.shape))]
        box = make(box.shape, *known)
    if at is None:
        return aligned(box, rank)
    after = rank - at[0] - 1
    return moved(
        box, (*box.shape, *[1] * after), lambda cells: cells.reshape(*cells.shape, *[1] * after)
    ).cells.reshape(6, *[1] * at[0], -1, *[1] * after)


@transfer("_weight_norm")
def _weight_norm(call: Call) -> Box:
    """g · v / ‖v‖, the norm over all but one dimension."""
    v, g = call.box("v"), call.box("g")
    count = v.size // max(g.size, 1)
    gain = aligned(g, len(call.shape))
    most = torch.maximum(gain[0].abs(), gain[1].abs()) * 1.001
    return make(call.shape, -most, most, 0.0, (gain[3] + gain[2] ** 2) / max(count, 1))


@transfer("layer_norm native_layer_norm")
def _layer_norm(call: Call) -> Any:
    box = call.box("input")
    count = len(call["normalized_shape"])
    dims = list(range(len(box.shape) - count, len(box.shape)))
    size = math.prod(box.shape[dim] for dim in dims)
    eps = float(call.get("eps", 1e-5))
    result = normalised(call, box, dims, eps, parameter(call, "weight"), parameter(call, "bias"), size)
    return _more(call, result)


def _more(call: Call, result: Box) -> Any:
    """The native operations give mean and 1/std, too."""
    if len(call.vals) == 1:
        return result
    rest = [
        make(tuple(int(n) for n in one.shape), -math.inf, math.inf) for one in call.vals[1:] if isinstance(one, Tensor)
    ]
    return (result, *rest)


@transfer("rms_norm _fused_rms_norm")
def _rms_norm(call: Call) -> Any:
    box = call.box("input")
    count = len(call["normalized_shape"])
    dims = list(range(len(box.shape) - count, len(box.shape)))
    size = math.prod(box.shape[dim] for dim in dims)
    eps = float(call.get("eps", 1.2e-7))
    factor = 1 / (total(box, dims, box.square) / size + eps).sqrt()
    weight = parameter(call, "weight")
    result = scaled(call, box.mean * factor, box.var * factor**2, math.sqrt(size) * 1.001, weight, None, box, factor)
    return _more(call, result)


@transfer("group_norm native_group_norm")
def _group_norm(call: Call) -> Any:
    box = call.box("input")
    groups = int(call.get("num_groups", call.get("group", 1)))
    channels = box.shape[1]
    size = box.size // (box.shape[0] * groups)
    box = merge(box, [dim for dim in range(len(box.shape)) if dim != 1])
    mean, square = box.mean, box.square
    if mean.shape[1] > 1 and groups > 1:
        per = channels // groups
        mean = mean.reshape(groups, per).mean(1, keepdim=True).expand(groups, per).reshape(mean.shape)
        square = square.reshape(groups, per).mean(1, keepdim=True).expand(groups, per).reshape(square.shape)
    elif mean.shape[1] > 1:
        mean, square = mean.mean(1, keepdim=True), square.mean(1, keepdim=True)
    factor = 1 / ((square - mean**2).clamp_min(0) + float(call.get("eps", 1e-5))).sqrt()
    weight, bias = parameter(call, "weight", [1]), parameter(call, "bias", [1])
    bound = math.sqrt(max(size - 1, 0)) * 1.001
    return _more(call, scaled(call, (box.mean - mean) * factor, box.var * factor**2, bound, weight, bias, box, factor))


@transfer("instance_norm")
def _instance_norm(call: Call) -> Box:
    box = call.box("input")
    dims = list(range(2, len(box.shape)))
    size = math.prod(box.shape[2:])
    weight, bias = parameter(call, "weight", [1]), parameter(call, "bias", [1])
    return normalised(call, box, dims, float(call.get("eps", 1e-5)), weight, bias, size)


@transfer("batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training")
def _batch_norm(call: Call) -> Any:
    box = call.box("input")
    rest = [dim for dim in range(len(box.shape)) if dim != 1]
    training = bool(call.get("training", call.get("train", "no_training" not in call.name)))
    weight, bias = parameter(call, "weight", [1]), parameter(call, "bias", [1])
    eps = float(call.get("eps", call.get("epsilon", 1e-5)))
    size = box.size // max(box.shape[1], 1)
    mean_name = "running_mean" if "running_mean" in call.arguments else "input_mean"
    if training or mean_name not in call:
        return _more(call, normalised(call, merge(box, rest), rest, eps, weight, bias, size))
    box = merge(box, rest)
    after = [1] * (len(box.shape) - 2)
    first, second = call.real("running_mean"), call.real("running_var")
    if first is None or second is None:
        return _more(call, normalised(call, box, rest, eps, weight, bias, size))
    centre, var = (one.detach().double().reshape(1, -1, *after) for one in (first, second))
    factor = 1 / (var + eps).sqrt()
    low, high = (box.low - centre) * factor, (box.high - centre) * factor
    mean, spread = (box.mean - centre) * factor, box.var * factor**2
    up, down = (box.top - box.mean) * factor, (box.mean - box.bottom) * factor
    if weight is not None:
        from amplint.graph.ranges.transfer.binary import times

        low, high = times(low, high, weight[0], weight[1])
        mean, spread = mean * weight[2], spread * weight[2] ** 2
        up, down = up * weight[2].abs(), down * weight[2].abs()
    if bias is not None:
        low, high, mean = low + bias[0], high + bias[1], mean + bias[2]
    slack = 1e-5 * (centre.abs() * factor)
    return _more(call, make(call.shape, low - slack, high + slack, mean, spread, mean - down, mean + up))


@transfer("softmax _softmax log_softmax _log_softmax _safe_softmax")
def _softmax(call: Call) -> Box:
    box = call.box("self")
    rank = len(box.shape)
    dim = int(call["dim"]) % max(rank, 1)
    count = box.shape[dim]
    log = "log" in call.name
    mean, var = box.mean, box.var.clamp_max(1e6)
    shown = count * max(1 - box.masked, 1 / max(count, 1)) if box.masked else float(count)
    weight = torch.where(box.mean <= MASK, 0.0, 1.0)  # a masked cell has no share in the sum
    peak = mean.amax(dim, keepdim=True)
    each = torch.exp((mean - peak).clamp_min(-700)) * weight
    held = mean.shape[dim] == count
    norm = (each.sum(dim, keepdim=True) if held else each * shown).clamp_min(1e-300)
    # log Σ exp of normal numbers: near var/2 as long as many take part, near the largest when few do
    spread = var.mean(dim, keepdim=True)
    reach = normal_max(max(int(shown), 1)) if shown > 1 else 0.0
    extra = torch.minimum(
        spread / 2, (reach * spread.sqrt() - math.log(max(shown, 1.0))).clamp_min(0) + 0.5 * spread.clamp_max(1.0)
    )
    lse = peak + norm.log() + extra
    gap = box.low.amin(dim, keepdim=True) - box.high.amax(dim, keepdim=True)
    if log:
        low = gap - math.log(max(count, 1))
        centre = mean - lse
        top = (box.top - lse).clamp_max(0)
        # the largest of a row is exactly 0 where FP32 rounds what the others add away
        return make(call.shape, low, 0.0, centre, var, box.bottom - lse, top, zero=True)
    logs = together([mean - lse, var.sqrt()])
    average = torch.exp((logs[0] + logs[1] ** 2 / 2).clamp_max(0)) * weight
    total_of = average.sum(dim, keepdim=True) if held else average * shown
    average = average / total_of.clamp_min(1e-300)
    square = torch.minimum(average**2 * torch.exp(logs[1] ** 2).clamp_max(1e30), average)
    low = torch.exp(gap.clamp(-740, 0)) / max(count, 1) * 0.999
    low = torch.where(gap < -80, 0.0, low)
    top = torch.exp((box.top - lse).clamp_max(0)) * weight
    if box.masked:  # a row of a mask may show a single element
        top = torch.ones_like(top)
    bottom = torch.exp((box.bottom - lse).clamp(-740, 0)) * weight
    return make(
        call.shape,
        low,
        1.0 + 1e-5,
        average,
        square - average**2,
        torch.minimum(bottom, top),
        torch.maximum(top, average),
        zero=box.masked > 0,
        log=logs,
        form=("probabilities", dim, 1.0),
    )


@transfer("dropout native_dropout feature_dropout")
def _dropout(call: Call) -> Any:
    box = call.box("input")
    drop = float(call.get("p", 0.5))
    if not call.get("train", True) or drop == 0:
        return _more(call, moved(box, call.shape, lambda cells: cells, form=box.form, of=box.of))
    if drop >= 1:
        return _more(call, make(call.shape, 0, 0, 0, 0, zero=True))
    factor = 1 / (1 - drop)
    cells = box.cells
    low, high = cells[0].clamp_max(0) * factor, cells[1].clamp_min(0) * factor
    var = box.square * factor - box.mean**2
    form = None
    if box.form and box.form[0] == "probabilities":
        form = (*box.form[:2], box.form[2] * factor)
    bottom, top = cells[4].clamp_max(0) * factor, cells[5].clamp_min(0) * factor
    log = box.log
    result = make(call.shape, low, high, box.mean, var, bottom, top, zero=True, form=form, log=log, flush=box.flush)
    return _more(call, result)
