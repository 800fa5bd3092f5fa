"""Attention and similarity: what is made of products of two tensors in one operation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from amplint.graph.ranges.domain import MASK, Box, make, merge, normal_max
from amplint.graph.ranges.transfer.contract import shifted
from amplint.graph.ranges.transfer.contraction import margin
from amplint.graph.ranges.transfer.table import Call, transfer


@transfer("scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu")
def _attention(call: Call) -> Any:
    q, k, value = call.box("query"), call.box("key"), call.box("value")
    mask = call.get("attn_mask", call.get("attn_bias"))
    length, width = k.shape[-2], q.shape[-1]
    scale = float(call.get("scale", 1 / math.sqrt(width)))
    logits = width * float(q.square.mean()) * float(k.square.mean()) * scale**2
    shown, fewest = (0.5, 1.0) if call.get("is_causal", False) else (1.0, float(length))
    if mask is not None:
        held = call.of(mask)
        if mask.meta["val"].dtype == torch.bool:
            shown = float(held.mean.mean())
        else:
            shown = 1 - held.masked
            logits += float((held.square.mean() - held.mean.mean() ** 2).nan_to_num(0.0))
        fewest = _fewest(held) if shown < 0.99 else fewest
    shown = max(shown, 1 / length)
    weight = _concentration(logits, max(length * shown, 1.0))
    drop = float(call.get("dropout_p", 0.0))
    factor = 1 / (1 - drop) if drop < 1 else 1.0
    v = merge(value, [len(value.shape) - 2])
    slack = 1 + margin(length, call.half) + 1e-3
    low, high = v.low.clamp_max(0) * factor * slack, v.high.clamp_min(0) * factor * slack
    var = v.var * weight * factor
    size = math.prod(call.shape)  # the row that sees the fewest (the first of a causal mask: itself), beside all rows
    alone = normal_max(size // max(q.shape[-2], 1)) * (v.var * _concentration(logits, fewest)).sqrt()
    spread = torch.maximum(alone, normal_max(size) * var.sqrt())
    bottom, top = torch.maximum(v.mean - spread, v.bottom), torch.minimum(v.mean + spread, v.top)
    rank = len(call.shape)
    parts = [one.reshape(*[1] * (rank - one.ndim), *one.shape) for one in (low, high, v.mean, var, bottom, top)]
    result = make(call.shape, *parts)
    if len(call.vals) == 1:
        return result
    rest = [make(tuple(one.shape), -math.inf, math.inf) for one in call.vals[1:] if isinstance(one, Tensor)]
    return (result, *rest)


def _fewest(mask: Box) -> float:
    """The fewest elements that a row of a mask shows."""
    if mask.exact is None:
        return 1.0
    shown = mask.exact if mask.exact.dtype == torch.bool else mask.exact > MASK
    return max(float(shown.sum(-1).min()), 1.0)


def _concentration(logits: float, length: float) -> float:
    """E Σp² of a softmax over `length` normal logits of this variance."""
    return min(1.0, math.exp(min(logits, 50.0)) / length)


@transfer("bilinear")
def _bilinear(call: Call) -> Box:
    a, b, weight = call.box("input1"), call.box("input2"), call.box("weight")
    plain = [merge(box, list(range(len(box.shape)))) for box in (a, b, weight)]
    most = math.prod(float(box.cells[:2].abs().max().clamp_max(1e100)) for box in plain)
    length = a.shape[-1] * b.shape[-1]
    var = length * math.prod(float(box.square) for box in plain)
    reach = most * length * (1 + margin(length, call.half))
    return shifted(
        call, make(call.shape, -reach, reach, 0.0, var, why=("reduction length", float(length))), call.optional("bias")
    )


@transfer("cdist")
def _cdist(call: Call) -> Box:
    a, b = call.box("x1"), call.box("x2")
    length = a.shape[-1]
    spread = float((a.high.max() - b.low.min()).abs().maximum((b.high.max() - a.low.min()).abs()))
    mean = math.sqrt(length * max(float(a.square.mean() + b.square.mean() - 2 * a.mean.mean() * b.mean.mean()), 0.0))
    return make(call.shape, 0, spread * length * 1.01, mean, mean**2 / (2 * length), zero=False)


@transfer("cosine_similarity")
def _cosine(call: Call) -> Box:
    a = call.box("x1")
    return make(call.shape, -1.001, 1.001, 0.0, 1 / max(a.size / max(math.prod(call.shape), 1), 1))
