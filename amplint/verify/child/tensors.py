"""What the probe reads of tensors: losses, gradient norms, whether gradients changed. It waits for no device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree

State = list[tuple[int, int] | None]


def listed(value: Any) -> list[Any]:
    """One or many, as a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def total(roots: list[torch.Tensor], weights: list[Any]) -> torch.Tensor:
    """What a backward begins with, as one number on the device: the loss, or the weighted sum of an output."""
    terms = []
    for index, root in enumerate(roots):
        weight = weights[index] if index < len(weights) else None
        term = root.detach().double()
        terms.append((term * weight.detach() if isinstance(weight, torch.Tensor) else term).sum())
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else torch.tensor(float("nan"))


def state(parameters: Iterable[torch.Tensor]) -> State:
    """Changes whenever a gradient does."""
    found: State = []
    for parameter in parameters:
        gradient = parameter.grad
        found.append(None if gradient is None else (id(gradient), gradient._version))
    return found


def norm(parameters: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """The norm of all gradients, on the device; None where there are none."""
    places: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        gradient = gradient.detach()
        if gradient.layout != torch.strided:
            gradient = gradient.coalesce().values() if gradient.is_sparse else gradient.to_dense()
        if gradient.is_complex():
            gradient = torch.view_as_real(gradient)
        if gradient.dtype == torch.float16:  # its squares overflow
            gradient = gradient.float()
        places.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    norms = [one for gradients in places.values() for one in torch._foreach_norm(gradients)]
    if not norms:
        return None
    first = norms[0].device
    whole: torch.Tensor = torch.linalg.vector_norm(torch.stack([one.to(first, torch.float64) for one in norms]))
    return whole


def leading(args: Any, kwargs: Any) -> int | None:
    """The first dimension of a model's first input: its samples."""
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.Tensor) and leaf.dim():
            return int(leaf.shape[0])
    return None


def rates(optimizer: Any) -> list[Any]:
    """The learning rate of each group, as a number or a tensor of its own."""
    found = [group.get("lr") for group in getattr(optimizer, "param_groups", None) or ()]
    return [one.detach().clone() if isinstance(one, torch.Tensor) else one for one in found]


def nudge(optimizer: Any, dtype: str, draw: int, back: bool = False) -> None:
    """Move what an optimizer trains by about a rounding of a dtype, or `back`. The same `draw` moves it the same way,
    and no seed's random numbers are used up."""
    size = torch.finfo(getattr(torch, dtype)).eps * 2
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    for index, parameter in enumerate(parameters):
        if parameter.dtype not in (torch.float32, torch.float64):
            continue
        generator = torch.Generator(parameter.device).manual_seed(draw * len(parameters) + index)
        noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        factor = 1 + size * noise
        parameter.div_(factor) if back else parameter.mul_(factor)
