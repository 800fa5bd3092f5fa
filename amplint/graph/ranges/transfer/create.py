"""Tensors from nothing. What is constant is folded before it comes here: these are random, or too large."""

from __future__ import annotations

import math

from amplint.graph.ranges.domain import Box, make
from amplint.graph.ranges.transfer.table import Call, transfer


@transfer("zeros zeros_like new_zeros empty empty_like new_empty empty_strided")
def _zeros(call: Call) -> Box:
    held = call.name in ("zeros", "zeros_like", "new_zeros", "zero")
    low, high = (0.0, 0.0) if held else (-math.inf, math.inf)
    return make(call.shape, low, high, 0, 0, 0, 0, zero=True)


@transfer("ones ones_like new_ones")
def _ones(call: Call) -> Box:
    return make(call.shape, 1, 1, 1, 0, 1, 1)


@transfer("full full_like new_full fill scalar_tensor")
def _full(call: Call) -> Box:
    name = next(one for one in ("fill_value", "value", "s") if one in call.arguments)
    box = call.of(call[name])
    parts = box.cells.reshape(6)
    known = {"zero": box.zero, "infinite": box.infinite}
    return make(call.shape, *parts, **known)


@transfer("arange linspace eye")
def _arange(call: Call) -> Box:
    if call.name == "eye":
        return make(call.shape, 0, 1, 1 / max(call.shape[-1], 1), 1 / max(call.shape[-1], 1), 0, 1, zero=True)
    ends = [call.get(name) for name in ("start", "end") if isinstance(call.get(name), int | float)]
    ends = [*ends, 0.0] if len(ends) < 2 else ends
    low, high = float(min(ends)), float(max(ends))
    return make(call.shape, low, high, (low + high) / 2, (high - low) ** 2 / 12, low, high, zero=low <= 0 <= high)


@transfer("randn randn_like normal normal_functional")
def _randn(call: Call) -> Box:
    mean, std = (
        float(call.get(name, value)) if isinstance(call.get(name, value), int | float) else math.nan
        for name, value in (("mean", 0.0), ("std", 1.0))
    )
    reach = 8.3  # the kernels of FP32 give no larger normal number (Box and Muller's with 2⁻²⁴: 5.77; with 2⁻⁵³: 8.57)
    reach = 8.6
    if math.isnan(mean + std):
        return make(call.shape, -math.inf, math.inf)
    return make(call.shape, mean - reach * std, mean + reach * std, mean, std**2)


@transfer("rand rand_like uniform")
def _rand(call: Call) -> Box:
    low, high = float(call.get("from", 0.0)), float(call.get("to", 1.0))
    return make(call.shape, low, high, (low + high) / 2, (high - low) ** 2 / 12, low, high)


@transfer("bernoulli")
def _bernoulli(call: Call) -> Box:
    p = call.get("p")
    mean = float(p) if isinstance(p, int | float) else float(call.box("self").mean.mean())
    return make(call.shape, 0, 1, mean, mean * (1 - mean), 0, 1, zero=True)


@transfer("randint randint_like random randperm")
def _randint(call: Call) -> Box:
    low, high = call.get("low", call.get("from", 0)), call.get("high", call.get("to", call.get("n", 2**24)))
    low, high = float(low), float(high)
    return make(call.shape, low, high, (low + high) / 2, (high - low) ** 2 / 12, low, high, zero=low <= 0)


@transfer("exponential")
def _exponential(call: Call) -> Box:
    rate = float(call.get("lambd", 1.0))
    return make(call.shape, 0, 40 / rate, 1 / rate, rate**-2, 0, math.log(max(math.prod(call.shape), 2)) / rate)
