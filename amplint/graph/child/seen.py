"""What both doors give: a model, and one batch for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Loss = Callable[[Any], torch.Tensor]


@dataclass
class Seen:
    """A model and a batch as they were before the forward, and what is known of the step around it.

    `loss` maps the model's output to a scalar whose gradient is that of the script's loss, unscaled; None where the
    door knows none. `rng` is the state of the CPU's generator before the forward."""

    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng: torch.Tensor
    loss: Loss | None = None
    value: float | None = None  # of the loss in the script, unscaled
    optimizer: dict[str, Any] | None = None  # {"class": "AdamW", "lr": 0.001, …}: its first group's hyperparameters
    dtype: torch.dtype | None = None  # that the script's own autocast region asks for
    scale: float | None = None  # of the script's loss; 1 in float16 without a GradScaler; None in FP32 training
    declared: list[tuple[torch.Tensor, float, float]] = field(default_factory=list)  # an input, its lowest and highest
    seconds: dict[str, float] = field(default_factory=dict)  # "script": to its first backward
    notes: list[str] = field(default_factory=list)


class Refused(Exception):
    """There is nothing to trace; the message says why in a line."""
