"""Updates that a weight's rounding swallows: the optimizer's first step on the measured gradients, taken by torch's own
optimizer in float64, and added to the weights as half and as float32."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

# Optimizers that compute as one of torch's does.
SAME = {
    "FusedAdam": "AdamW",
    "FusedSGD": "SGD",
    "DeepSpeedCPUAdam": "AdamW",
    "Adam8bit": "Adam",
    "AdamW8bit": "AdamW",
    "PagedAdamW": "AdamW",
    "PagedAdamW8bit": "AdamW",
    "SGD8bit": "SGD",
}
_SPEED = frozenset({"params", "foreach", "fused", "capturable", "differentiable"})  # which change nothing in the result


@dataclass(frozen=True)
class Swamped:
    """Shares of the parameters' elements whose first update leaves the weight as it is, of all that have one."""

    optimizer: str
    lr: float
    half: float  # were the weights kept in half
    float32: float
    parameters: dict[fx.Node, tuple[float, float]]  # (half, float32) by parameter


def swamped(parameters: dict[fx.Node, torch.Tensor], facts: dict[str, Any], dtype: torch.dtype) -> Swamped | None:
    """By a step on `grad` of each FP32 parameter. None: torch has no such optimizer, or it changes nothing."""
    name = str(facts.get("class", "")).rpartition(".")[2]
    kind = getattr(torch.optim, SAME.get(name, name), None)
    if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
        return None
    accepted = set(inspect.signature(kind).parameters) - _SPEED
    given = {key: _plain(value) for key, value in facts.items() if key in accepted}
    shares, counts = {}, [0, 0, 0]
    for node, parameter in parameters.items():
        if parameter.grad is None or (step := _step(kind, given, parameter)) is None:
            continue
        found = int((step != 0).sum()), _lost(parameter, step, dtype), _lost(parameter, step, torch.float32)
        if found[0]:
            shares[node] = (found[1] / found[0], found[2] / found[0])
            counts = [before + more for before, more in zip(counts, found, strict=True)]
    if not counts[0]:
        return None
    lr = float(_plain(facts.get("lr", inspect.signature(kind).parameters["lr"].default)))
    return Swamped(name, lr, counts[1] / counts[0], counts[2] / counts[0], shares)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) else tuple(value) if isinstance(value, list) else value


def _step(kind: Any, given: dict[str, Any], parameter: torch.Tensor) -> torch.Tensor | None:
    """What the first step adds to the parameter, in float64."""
    assert parameter.grad is not None
    weight = parameter.detach().to(torch.float64, copy=True).requires_grad_()
    weight.grad = parameter.grad.to(torch.float64, copy=True)
    try:
        kind([weight], **given).step()
    except (RuntimeError, TypeError, ValueError):  # sparse gradients only, two dimensions only, a closure
        return None
    return weight.detach() - parameter.detach().double()


def _lost(parameter: torch.Tensor, step: torch.Tensor, dtype: torch.dtype) -> int:
    """How many elements an update other than zero leaves as they are: it is below half an ulp of theirs."""
    weight = parameter.detach().to(dtype)
    return int((((weight.double() + step).to(dtype) == weight) & (step != 0)).sum())
