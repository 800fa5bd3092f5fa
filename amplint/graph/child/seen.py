"""What both doors give: a model, and one batch for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

Loss = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class Optimizer:
    """The optimizer in use, as its first parameter group has it."""

    name: str
    lr: float
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float | None = None
    weight_decay: float = 0.0


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
    loss_name: str = ""
    value: float | None = None  # of the loss in the script, unscaled
    optimizer: Optimizer | None = None
    scale: float | None = None  # of the script's GradScaler
    notes: list[str] = field(default_factory=list)


class Refused(Exception):
    """There is nothing to trace; the message says why in a line."""
