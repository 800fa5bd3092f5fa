"""The boxes of what a graph is given: parameters, buffers, constants, and the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from amplint.graph.capture.captured import Captured
from amplint.graph.ranges.domain import Box, Declared, make, number, of_tensor
from amplint.graph.ranges.transfer.table import name_of

_WHOLE = frozenset(  # use the tensor itself: its box may stay coarse
    "linear addmm conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d matmul t".split()
)
BEYOND = 2.0  # a batch proves what holds for inputs up to twice as far from its middle


def given(captured: Captured, node: fx.Node, declared: dict[str, Declared]) -> Any:
    """The box of a placeholder (None for what is no tensor)."""
    value, kind = captured.values.get(node.name), captured.kinds.get(node.name, "input")
    if isinstance(value, bool | int | float):
        return number(value)
    if not isinstance(value, Tensor):
        return None
    told = declared.get(node.name)
    if told is not None:
        return _declared(tuple(value.shape), told, value.dtype)
    if value.layout is not torch.strided:
        return make(tuple(value.shape), -math.inf, math.inf, unknown=str(value.layout).removeprefix("torch."))
    if kind != "input":
        return _initial(node, value) if value.is_meta else held(node, value.detach())
    return _unseen(value) if value.is_meta or not value.numel() else _batch(value.detach())


def held(node: fx.Node, value: Tensor) -> Box:
    """A parameter, buffer or constant."""
    names = {name_of(user.target) for user in node.users}
    if value.numel() > 4096 and value.is_floating_point() and names <= _WHOLE:
        low, high = torch.aminmax(value)
        mean = value.mean().double()
        var = torch.linalg.vector_norm(value).double() ** 2 / value.numel() - mean**2
        infinite = not bool(torch.isfinite(low) & torch.isfinite(high))
        return make(tuple(value.shape), low, high, mean, var, low, high, exact=value, infinite=infinite)
    return of_tensor(value)


def _declared(shape: tuple[int, ...], told: Declared, dtype: torch.dtype) -> Box:
    low, high = told.low, told.high
    low, high = low - abs(low) * 2.0**-23, high + abs(high) * 2.0**-23  # a bound that FP32 must round
    if dtype == torch.bool:
        low, high = 0.0, 1.0
    return make(shape, low, high, told.mean, told.std**2, zero=not dtype.is_floating_point and low <= 0 <= high)


def _unseen(value: Tensor) -> Box:
    """An input without data, by its dtype."""
    shape = tuple(value.shape)
    if value.dtype == torch.bool:
        return make(shape, 0, 1, 0.5, 0.25, 0, 1, zero=True)
    if not value.is_floating_point():
        return make(shape, -(2.0**63), 2.0**63, 0, 0, 0, 0, zero=True)
    return make(shape, -math.inf, math.inf, 0.0, 1.0)


def _batch(value: Tensor) -> Box:
    """An input of the batch at hand, which is one of many: its values are no constants."""
    box = of_tensor(value)
    shape = tuple(value.shape)
    if value.dtype == torch.bool:
        share = float(value.double().mean())
        return make(shape, 0, 1, share, share * (1 - share), 0, 1, zero=True)
    low, high = float(box.low.min()), float(box.high.max())
    if value.is_floating_point():
        keep = _channels(value)
        parts: Any
        if keep is not None:
            dims = [dim for dim in range(value.ndim) if dim != keep]
            var, mean = torch.var_mean(value.double(), dims, correction=0, keepdim=True)
            parts = [low, high, mean, var, value.amin(dims, keepdim=True), value.amax(dims, keepdim=True)]
        else:
            parts = [low, high, value.mean(), value.var(correction=0), low, high]
        middle, reach = (low + high) / 2, (high - low) / 2 * BEYOND
        if low >= 0:  # an image, a share: never below zero
            return make(shape, 0.0, max(middle + reach, high), *parts[2:], zero=box.zero, masked=box.masked)
        return make(shape, middle - reach, middle + reach, *parts[2:], zero=box.zero, masked=box.masked)
    if low >= 0 and high <= 1:  # a mask of zeros and ones
        share = float(value.double().mean())
        return make(shape, 0, 1, share, share * (1 - share), 0, 1, zero=True)
    var, mean = torch.var_mean(value.double().flatten(), 0, correction=0)
    return make(shape, min(low, 0.0) * 2**20, max(high, 1.0) * 2**20, mean, var, low, high, zero=True)


def _channels(value: Tensor) -> int | None:
    """The dimension whose elements an input tells apart: that of the channels, if there are enough values for each."""
    if value.ndim >= 3 and value.shape[1] <= 64 and value.numel() // max(value.shape[1], 1) >= 256:
        return 1
    return None


def _initial(node: fx.Node, value: Tensor) -> Box:
    """A parameter without data, as it is commonly initialised: uniform by fan-in; weights of norms 1, vectors 0."""
    shape = tuple(value.shape)
    kind = torch.finfo(value.dtype) if value.is_floating_point() else None
    if kind is None:
        return make(shape, -(2.0**63), 2.0**63, 0, 0, 0, 0, zero=True)
    if "running_var" in node.name:
        return make(shape, 0, math.inf, 1, 0, 1, 1)
    if value.ndim < 2:
        mean = 1.0 if any(_is_scale(user, node) for user in node.users) else 0.0
        return make(shape, -math.inf, math.inf, mean, 0.0, mean, mean)
    if any("embedding" in name_of(user.target) for user in node.users):
        return make(shape, -math.inf, math.inf, 0.0, 1.0)
    fan = math.prod(shape[1:])
    return make(shape, -math.inf, math.inf, 0.0, 1 / (3 * fan))


def _is_scale(user: fx.Node, node: fx.Node) -> bool:
    """Whether a vector multiplies: the weight of a norm, a layer scale."""
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return False
    name = name_of(user.target)
    if name == "mul":
        return True
    names = [argument.name for argument in schema.arguments]
    return "norm" in name and any(
        one is node and names[at] == "weight" for at, one in enumerate(user.args) if at < len(names)
    )
