"""The scaler's protocol as it happens: in which unit each optimizer's gradients are, and what is done out of order.

Gradients are scaled by what the loss was scaled by; only a backward, `unscale_`, a step and `zero_grad` change that.
Optimizers that share parameters (a wrapper and the optimizer inside) share their gradients' state: a Pool."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

Fault = Callable[[str, str], None]  # a rule's code, and what happens


class Scale:
    """What losses were multiplied by between two updates of a scaler. Its number is read when it is needed: on a GPU
    that waits for the device."""

    def __init__(self, scaler: Any) -> None:
        self.scaler = weakref.ref(scaler)
        self._tensor = scaler._scale.detach().clone()
        self._value: float | None = None

    @property
    def value(self) -> float:
        if self._value is None:
            self._value = float(self._tensor)
        return self._value


@dataclass(eq=False)
class Pool:
    """The gradients of the optimizers that share parameters."""

    optimizers: list[weakref.ref[torch.optim.Optimizer]] = field(default_factory=list)
    units: list[Scale | None] = field(default_factory=list)  # of the losses in the gradients; None: one not scaled
    unscaled: bool = False  # `unscale_` has divided them
    stepped: bool = False  # since the last backward
    half: bool = False  # a backward that was not scaled computed in float16
    norm: tuple[torch.Tensor | None, Scale | None] | None = None  # before clipping
    seen: Any = None  # the state of the gradients after the last backward, or clipping

    def parameters(self) -> Iterable[torch.Tensor]:
        for reference in self.optimizers:
            optimizer = reference()
            for group in optimizer.param_groups if optimizer is not None else ():
                yield from group["params"]

    def clear(self) -> None:
        """The gradients are gone, or count no more."""
        self.units.clear()
        self.unscaled = self.stepped = self.half = False

    @property
    def scale(self) -> Scale | None:
        """What its gradients are multiplied by now."""
        return None if self.unscaled else next((unit for unit in self.units if unit is not None), None)


class Pools:
    """All optimizers that are alive."""

    def __init__(self) -> None:
        self.all: list[Pool] = []
        self._of: dict[int, Pool] = {}  # by parameter

    def add(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer was made, or has new parameters."""
        params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        found = self.of(params)
        pool = found[0] if found else Pool()
        for other in found[1:]:
            pool.optimizers += other.optimizers
            self.all.remove(other)
            for parameter in other.parameters():
                self._of[id(parameter)] = pool
        if not any(reference() is optimizer for reference in pool.optimizers):
            pool.optimizers.append(weakref.ref(optimizer))
        if pool not in self.all:
            self.all.append(pool)
        self._of |= {id(parameter): pool for parameter in params}

    def alive(self) -> list[Pool]:
        """Those with an optimizer that is still there."""
        if any(all(reference() is None for reference in pool.optimizers) for pool in self.all):
            self.all = [pool for pool in self.all if any(reference() is not None for reference in pool.optimizers)]
        return self.all

    def of(self, parameters: Iterable[Any]) -> list[Pool]:
        """The pools that hold some of these parameters."""
        found: list[Pool] = []
        for parameter in parameters:
            pool = self._of.get(id(parameter))
            if pool is not None and pool not in found and any(parameter is one for one in pool.parameters()):
                found.append(pool)
        return found

    def of_optimizer(self, optimizer: Any) -> Pool | None:
        """Also of what only looks like an optimizer, by its first parameter."""
        for group in getattr(optimizer, "param_groups", None) or ():
            for parameter in group["params"]:
                return self._of.get(id(parameter))
        return None


# -- what happens -------------------------------------------------------------------------------------------------


def backward(pool: Pool, unit: Scale | None, fresh: bool, fault: Fault) -> None:
    """Gradients of a loss in this unit were added; `fresh`: there were none before."""
    pool.norm = None
    if fresh or pool.stepped:
        pool.clear()
    if pool.unscaled and unit is not None and unit.value != 1:
        fault("AMP108", "adds scaled gradients to gradients that unscale_ has divided")
    if not any(one is unit for one in pool.units):
        pool.units.append(unit)


def unscale(scaler: Any, optimizer: Any, pool: Pool | None, fault: Fault) -> None:
    """Before `unscale_`: a second one raises."""
    match stage(scaler, optimizer):
        case "STEPPED":
            fault("AMP137", "unscales gradients after the step that has used them")
        case "UNSCALED" if pool is None or pool.unscaled:
            fault("AMP108", "unscales the same gradients again before update()")
        case "UNSCALED":
            fault("AMP113", "goes on to the next batch after unscale_ without scaler.update()")


def scaler_step(scaler: Any, optimizer: Any, pool: Pool | None, fault: Fault) -> None:
    """Before the scaler's step, which divides what is not unscaled yet."""
    if stage(scaler, optimizer) == "STEPPED":
        fault("AMP110", "steps again without scaler.update() in between")
    if pool is None or not pool.units:
        return
    scales = [unit for unit in pool.units if unit is not None]
    if not scales:
        fault("AMP103", "steps through the scaler on gradients of a loss that was never scaled")
    elif len(scales) < len(pool.units):
        fault("AMP104", "steps on a sum of scaled and unscaled gradients")
    elif any(unit.scaler() is not scaler for unit in scales):
        fault("AMP134", "steps through another scaler than the one that scaled the loss")
    elif not pool.unscaled and any(unit is not current(scaler) for unit in scales):
        fault("AMP112", "steps on gradients that were scaled before the last update()")


def plain_step(pool: Pool, fault: Fault) -> None:
    """Before an optimizer's own step, outside of a scaler's."""
    scale = pool.scale
    if scale is not None and scale.value != 1:
        fault("AMP102", "steps past the scaler on gradients that are still scaled")


def clip(pool: Pool, fault: Fault) -> None:
    """Before the gradients are clipped."""
    scale = pool.scale
    if scale is not None and scale.value != 1:
        fault("AMP105", "clips gradients that are still scaled")


# -- scalers ------------------------------------------------------------------------------------------------------

_current: weakref.WeakKeyDictionary[Any, Scale] = weakref.WeakKeyDictionary()


def current(scaler: Any) -> Scale:
    """What a scaler multiplies by until its next update."""
    if scaler not in _current:
        _current[scaler] = Scale(scaler)
    return _current[scaler]


def updated(scaler: Any) -> None:
    """The next scale may be another one."""
    _current.pop(scaler, None)


def stage(scaler: Any, optimizer: Any) -> str:
    """READY, UNSCALED or STEPPED, as the scaler itself keeps it."""
    states = getattr(scaler, "_per_optimizer_states", {})
    return str(states[id(optimizer)]["stage"].name) if id(optimizer) in states else "READY"


def overflowed(scaler: Any, optimizer: Any) -> bool:
    """Whether the scaler found an inf or a nan in this optimizer's gradients. Waits for the device."""
    states = getattr(scaler, "_per_optimizer_states", {})
    found = states[id(optimizer)]["found_inf_per_device"] if id(optimizer) in states else {}
    return any(float(one) > 0 for one in found.values())
