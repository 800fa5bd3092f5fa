"""LSTM, GRU and plain recurrent layers: their states are bounded by their activations."""

from __future__ import annotations

from typing import Any

import torch

from amplint.graph.ranges.domain import Box, make
from amplint.graph.ranges.transfer.table import Call, transfer


@transfer("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell")
def _recurrent(call: Call) -> tuple[Box, ...] | Box:
    unbounded = call.name == "rnn_relu"
    states = (
        [call.of(one) for one in call.get("hx", [])] if isinstance(call.get("hx"), list | tuple) else [call.box("hx")]
    )
    first = max(float(states[0].cells[:2].abs().max()), 1.0)  # |h| ≤ 1, and GRU keeps a share of the first state
    length = max(call.box("input").shape[:2]) if "input" in call else 1
    shapes: list[tuple[int, ...]] = [tuple(int(size) for size in val.shape) for val in call.vals]
    results: list[Any] = []
    for index, shape in enumerate(shapes):
        if unbounded:
            results.append(make(shape, 0, torch.inf))
        elif call.name.startswith("lstm") and index == len(shapes) - 1:  # the cell: a sum of terms within ±1
            start = float(states[-1].cells[:2].abs().max())
            results.append(make(shape, -(length + start), length + start, 0.0, 0.1))
        else:
            results.append(make(shape, -first * 1.001, first * 1.001, 0.0, 0.05))
    return tuple(results) if len(results) > 1 else results[0]
