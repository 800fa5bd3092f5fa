"""Pooling and interpolation: results lie between their inputs."""

from __future__ import annotations

import math
from typing import Any

import torch

from amplint.graph.ranges.domain import Box, make, merge, normal_max, one_sided
from amplint.graph.ranges.transfer.table import Call, transfer


def _spatial(box: Box, count: int) -> list[int]:
    return list(range(len(box.shape) - count, len(box.shape)))


def _count(name: str) -> int:
    return next((int(one) for one in "123" if f"{one}d" in name), 2)


@transfer(
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d"
)
def _max_pool(call: Call) -> Any:
    box = call.box("self")
    count = _count(call.name)
    box = merge(box, _spatial(box, count))
    kernel = _window(call, box, count)
    mean = torch.minimum(box.mean + one_sided(kernel) * box.var.sqrt() * 0.8, box.top)
    if bool((box.low >= 0).all()):
        mean = torch.maximum(mean, box.mean)
    result = make(
        call.shape,
        box.low,
        box.high,
        mean,
        box.var / (1 + 0.5 * math.log(max(kernel, 1))),
        box.bottom,
        box.top,
        zero=box.zero,
    )
    if len(call.vals) == 1:
        return result
    size = math.prod(box.shape[-count:])
    return result, make(tuple(int(one) for one in call.vals[1].shape), 0, size, size / 2, size**2 / 12, 0, size)


def _window(call: Call, box: Box, count: int) -> int:
    """The elements that one result is made of."""
    size = call.get("kernel_size")
    if size is None:
        inner, outer = math.prod(box.shape[-count:]), math.prod(call.shape[-count:])
        return max(round(inner / max(outer, 1)), 1)
    size = [size] if isinstance(size, int) else list(size)
    whole: int = math.prod(size) ** (count if len(size) == 1 else 1)
    return whole


@transfer(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d"
)
def _avg_pool(call: Call) -> Box:
    box = call.box("self")
    count = _count(call.name)
    box = merge(box, _spatial(box, count))
    kernel = _window(call, box, count)
    low, high = box.low, box.high
    size = torch.maximum(low.abs(), high.abs()) * (kernel + 16) * 2.0**-23
    padding = call.get("padding", 0)
    padded = bool(padding if isinstance(padding, int) else any(padding))
    if padded or call.get("divisor_override"):
        low, high = low.clamp_max(0), high.clamp_min(0)
    if call.get("divisor_override"):
        factor = kernel / float(call["divisor_override"])
        low, high, box = low * factor, high * factor, box
    var = box.var / kernel
    spread = torch.maximum(normal_max(math.prod(call.shape)) * var.sqrt(), (box.top - box.mean) / kernel)
    return make(call.shape, low - size, high + size, box.mean, var, box.mean - spread, box.mean + spread)


# how far the weights of an interpolation go beyond a mean of its inputs: cubic ones are negative, too
_BEYOND = {"bicubic": 1.9, "_bicubic": 1.9}


@transfer(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d "
    "upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa "
    "grid_sampler grid_sampler_2d grid_sampler_3d"
)
def _interpolate(call: Call) -> Box:
    box = call.box("input" if "input" in call.arguments else "self")
    count = len(call.shape) - 2
    box = merge(box, _spatial(box, count))
    low, high = box.low, box.high
    if "bicubic" in call.name or call.get("interpolation_mode") == 2:
        size = torch.maximum(low.abs(), high.abs()) * _BEYOND["bicubic"]
        low, high = -size, size
    if "grid" in call.name:
        low, high = low.clamp_max(0), high.clamp_min(0)
    slack = torch.maximum(low.abs(), high.abs()) * 1e-5 if "nearest" not in call.name else 0.0
    return make(call.shape, low - slack, high + slack, box.mean, box.var, box.bottom, box.top, zero=box.zero)


@transfer(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
    "replication_pad3d",
    structural=True,
)
def _pad(call: Call) -> Box:
    box = call.box("self")
    changed = [dim for dim in range(len(box.shape)) if box.shape[dim] != call.shape[dim]]
    merged = merge(box, changed)
    value = call.get("value", 0.0)
    constant = call.name == "constant_pad_nd" or (call.name == "pad" and call.get("mode", "constant") == "constant")
    if not constant or not changed:
        return make(call.shape, *merged.cells, zero=box.zero, flush=box.flush)
    value = float(value or 0.0)
    share = box.size / max(math.prod(call.shape), 1)
    parts = merged.cells
    mean = parts[2] * share + value * (1 - share)
    square = merged.square * share + value**2 * (1 - share)
    masked = 0.0
    if value <= -1e4:
        mean, square, masked = parts[2], merged.square, 1 - share
    low, high = parts[0].clamp_max(value), parts[1].clamp_min(value)
    bottom, top = (parts[4], parts[5]) if masked else (parts[4].clamp_max(value), parts[5].clamp_min(value))
    known = {"zero": box.zero or value == 0, "masked": masked, "infinite": math.isinf(value) or box.infinite}
    return make(call.shape, low, high, mean, square - mean**2, bottom, top, flush=box.flush, **known)
