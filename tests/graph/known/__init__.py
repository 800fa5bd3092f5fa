"""Defects of public code, each rebuilt small in our own words beside its repair. `# !` ends the line of a
bad model that must be marked; nothing of a good one may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Pair:
    name: str
    code: str
    bad: type[nn.Module]
    good: type[nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    report: str  # where it was told; "": seen in much code
    static: bool = True  # seen without a run, too


def pairs() -> Iterator[Pair]:
    from graph.known import attention, guards, norms, positions, products

    for module in (attention, products, norms, guards, positions):
        yield from module.PAIRS


def normal(*shape: int, mean: float = 0.0, std: float = 1.0) -> Callable[[], tuple[torch.Tensor]]:
    """One input, normal; drawn alike each time."""
    return lambda: (torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * std + mean,)


def wide(layer: nn.Linear | nn.Conv2d, std: float) -> Any:
    """A layer whose weights a training has made large: its outputs have this deviation where its inputs have 1."""
    fan = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=std / fan**0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
