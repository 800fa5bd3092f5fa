"""One step of an optimizer, as it is recorded: on which gradients it is made, and at which rates."""

from __future__ import annotations

from typing import Any

import torch

from amplint.verify.child import tensors
from amplint.verify.child.emulate import HALVES
from amplint.verify.child.lines import here
from amplint.verify.child.protocol import Pool, Scale
from amplint.verify.child.records import number


class Attempt:
    """A step that an optimizer is about to make, or a scaler to skip."""

    def __init__(self, optimizer: Any, scaler: Any, pool: Pool | None) -> None:
        self.optimizer, self.scaler, self.pool = optimizer, scaler, pool
        self.scale: Scale | None = pool.scale if pool else None
        self.norm: torch.Tensor | None = None
        self.rates = tensors.rates(optimizer)
        self.parts: dict[str, torch.Tensor | None] = {}
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []  # half parameters that have gradients, as they were
        self.stepped = False
        self.line = here()

    def measure(self, names: dict[int, str]) -> None:
        """The norm of what it is made on, by parameter: gradients unscaled and clipped."""
        groups = getattr(self.optimizer, "param_groups", None) or ()
        scale = None
        if self.scaler is not None and getattr(self.optimizer, "_step_supports_amp_scaling", False):
            scale = self.pool.scale if self.pool is not None else None  # it divides by that itself
        for index, parameter in enumerate(one for group in groups for one in group["params"]):
            norm = tensors.norm([parameter])
            name = names.get(id(parameter), f"parameter {index}")
            self.parts[name] = norm / scale.value if norm is not None and scale is not None else norm

    def hold(self) -> None:
        """Remember the half parameters as they are before the step."""
        groups = getattr(self.optimizer, "param_groups", None) or ()
        for parameter in (one for group in groups for one in group["params"]):
            if parameter.dtype in HALVES and parameter.grad is not None:
                self.before.append((parameter, parameter.detach().clone()))

    def swallowed(self) -> list[int] | None:
        """Of how many half weights that have a gradient the step has left how many as they are; None without any."""
        moving = [(now.grad != 0, now == before) for now, before in self.before if now.grad is not None]
        if not moving:
            return None
        return [sum(int((a & b).sum()) for a, b in moving), sum(int(a.sum()) for a, _ in moving)]

    def told(self) -> dict[str, Any]:
        """As the record of the step has it."""
        said: dict[str, Any] = {"rates": [None if rate is None else float(rate) for rate in self.rates]}
        if self.parts:
            said["swallowed"] = self.swallowed()
            said["parts"] = {name: None if one is None else number(float(one)) for name, one in self.parts.items()}
        return said
