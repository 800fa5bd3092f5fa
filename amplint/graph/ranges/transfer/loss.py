"""Losses, from logits and probabilities."""

from __future__ import annotations

import math
from typing import Any

import torch

from amplint.graph.ranges.domain import Box, make, merge, normal_max
from amplint.graph.ranges.transfer.table import Call, transfer


def reduced(call: Call, low: Any, high: Any, mean: Any, var: Any, count: int) -> Box:
    """A loss of each element's bounds, reduced as asked: 0 none, 1 mean, 2 sum."""
    low, high, mean, var = (float(torch.as_tensor(one).reshape(-1)[0]) for one in (low, high, mean, var))
    how = int(call.get("reduction", 1))
    factor = {0: 1.0, 1: 1.0, 2: float(count)}[how]
    if how:
        var = var / max(count, 1) * factor**2
    return make(call.shape, low * factor, high * factor * 1.001, mean * factor, var, why=("reduction length", factor))


def _flat(box: Box) -> torch.Tensor:
    return merge(box, list(range(len(box.shape)))).cells.reshape(6)


@transfer("cross_entropy_loss nll_loss nll_loss_nd nll_loss2d nll_loss_forward")
def _entropy(call: Call) -> Any:
    box = call.box("self")
    classes = box.shape[1] if len(box.shape) > 1 else max(box.shape[0], 1)
    x = _flat(box)
    count = max(box.size // classes, 1)
    weight = 1.0
    if "weight" in call and int(call.get("reduction", 1)) != 1:
        weight = float(call.box("weight").high.max())
    if call.name.startswith("cross"):
        worst = (x[1] - x[0] + math.log(classes)) * weight
        mean = math.log(classes) + torch.minimum(x[3] / 2, normal_max(classes) * x[3].sqrt())
        result = reduced(call, 0.0, worst, mean, x[3] + 1e-12, count)
    else:
        result = reduced(call, torch.minimum(-x[1] * weight, -x[1]), -x[0] * weight, -x[2], x[3], count)
    return result if len(call.vals) == 1 else (result, make((), 0, math.inf))


@transfer("mse_loss l1_loss smooth_l1_loss huber_loss")
def _distance(call: Call) -> Box:
    box, target = call.box("self"), call.box("target")
    x, y = _flat(box), _flat(target)
    most = torch.maximum((x[1] - y[0]).abs(), (y[1] - x[0]).abs())
    square = x[3] + y[3] + (x[2] - y[2]) ** 2
    if call.name == "mse_loss":
        return reduced(call, 0.0, most**2, square, 2 * square**2, box.size)
    factor = max(float(call.get("delta", 1.0)), 1.0) if call.name == "huber_loss" else 1.0
    return reduced(call, 0.0, most * factor, square.sqrt() * 0.8 * factor, square * 0.36 * factor**2, box.size)


@transfer("binary_cross_entropy_with_logits binary_cross_entropy soft_margin_loss")
def _binary(call: Call) -> Box:
    box = call.box("self")
    x = _flat(box)
    weight = max([float(call.box(name).high.max()) for name in ("weight", "pos_weight") if name in call], default=1.0)
    if call.name == "binary_cross_entropy":
        return reduced(call, 0.0, 100.0 * max(weight, 1.0), 0.7, 0.5, box.size)
    size = x[:2].abs().max()
    target = float(call.box("target").cells[:2].abs().max()) if "target" in call else 1.0
    worst = (size * max(target, 1.0) * 2 + math.log(2)) * max(weight, 1.0) ** 2
    low = -worst if target > 1 else 0.0
    mean = 0.7 + 0.4 * (x[2].abs() + x[3].sqrt())
    return reduced(call, low, worst, mean, x[3] / 2 + 1e-12, box.size)


@transfer("kl_div")
def _kl(call: Call) -> Box:
    box, target = call.box("self"), call.box("target")
    x, y = _flat(box), _flat(target)
    most = y[:2].abs().max() * (x[:2].abs().max() + y[:2].abs().clamp_min(1).log().max() + 1)
    return reduced(call, -most, most, (y[2] * x[2]).abs(), y[3] * x[3] + 1e-12, box.size)
