"""CUDA's autocast policy on a machine without CUDA: kernels of the CPU's autocast key that follow rules/ops.toml.

CPU autocast has other lists than CUDA's (softmax, layer_norm, pow, sum and exp stay half there), so what it says is
never what a GPU does. Inside `cuda_policy`, `torch.autocast("cpu")` casts as CUDA's autocast does, and a region that
asks for "cuda" is one for the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch

from amplint import knowledge

KINDS = ("lower", "fp32", "fp32_set_opt_dtype", "fp32_append_dtype", "promote", "banned")
HALVES = (torch.float16, torch.bfloat16)
_KEY = "AutocastCPU"
_EXCLUDED = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


@contextmanager
def cuda_policy() -> Iterator[None]:
    """While it is open, autocast on the CPU follows CUDA's lists, and "cuda" in an autocast call means the CPU."""
    library = torch.library.Library("aten", "IMPL", _KEY)  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are overridden
        for operator, kind in _overridden():
            library.impl(operator, _kernel(operator, kind), allow_override=True)  # type: ignore[no-untyped-call]
    try:
        with mock.patch.object(torch.autocast, "__init__", _on_the_cpu(torch.autocast.__init__)):
            yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


def _on_the_cpu(init: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        named = getattr(device_type, "type", device_type)
        dtype = kwargs.get("dtype") or (args[0] if args else None)
        if named == "cuda" and dtype is None:  # the default of CUDA, not the CPU's bfloat16
            kwargs["dtype"] = torch.float16
        init(self, "cpu" if named == "cuda" else device_type, *args, **kwargs)

    return __init__


@cache
def kinds() -> dict[str, str]:
    """The list of CUDA's autocast that each overload is on: "aten::softmax.int" → "fp32_set_opt_dtype"."""
    lists = knowledge.ops()["cuda"]
    table = {}
    for kind in KINDS:
        for name in lists[kind]:
            for overload in lists["overloads"].get(name, ("default",)):
                table[f"aten::{name}" + (f".{overload}" if overload != "default" else "")] = kind
    return table


@cache
def _overridden() -> tuple[tuple[Any, str], ...]:
    """All overloads whose autocast kernel must change: those on CUDA's lists, and those that only the CPU's hold."""
    lists = knowledge.ops()
    names = {name for device in ("cuda", "cpu") for kind in KINDS for name in lists[device].get(kind, ())}
    found = []
    for name in sorted(names):
        packet = getattr(torch.ops.aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            operator = getattr(packet, overload)
            kind = kinds().get(operator.name(), "")
            if kind or _has_kernel(operator.name()):
                found.append((operator, kind))
    return tuple(found)


def _has_kernel(name: str) -> bool:
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, _KEY))
    except RuntimeError:  # an overload for numbers, which the dispatcher does not know
        return False


def _kernel(operator: Any, kind: str) -> Callable[..., Any]:
    """What CUDA's autocast does in front of an operation (ATen/autocast_mode.h, WrapFunction_). Without a kind it has no
    kernel, and what the operation is made of is cast: log_softmax in cross_entropy_loss."""
    if not kind:
        return torch.library.fallthrough_kernel
    names = [argument.name for argument in operator._schema.arguments]

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_EXCLUDED):
            if kind == "banned":
                raise RuntimeError(f"{operator.name()} is unsafe to autocast: see torch.autocast's documentation")
            if kind == "lower":
                return operator(*_cast(args, _lower()), **_cast(kwargs, _lower()))
            if kind == "fp32":
                return operator(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))
            if kind == "promote":
                widest = torch.float32 if any(_float32(value) for value in (*args, *kwargs.values())) else _lower()
                return operator(*_cast(args, widest), **_cast(kwargs, widest))
            if kind == "fp32_set_opt_dtype" and _first_is_half(args):
                at = names.index("dtype")
                given = args[at] if at < len(args) else kwargs.get("dtype")
                if given is None and at < len(args):
                    args = (*args[:at], torch.float32, *args[at + 1 :])
                elif given is None:
                    kwargs = {**kwargs, "dtype": torch.float32}
            elif kind == "fp32_append_dtype" and _first_is_half(args):
                return operator(*_cast(args, torch.float32), **kwargs)
            return operator(*args, **kwargs)

    return run


def _lower() -> torch.dtype:
    return torch.get_autocast_dtype("cpu")


def _eligible(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if _eligible(value) and value.dtype != dtype else value
    if isinstance(value, list | tuple):
        return type(value)(_cast(one, dtype) for one in value)
    if isinstance(value, dict):
        return {key: _cast(one, dtype) for key, one in value.items()}
    return value


def _float32(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_float32, value))
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _first_is_half(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], torch.Tensor) and args[0].dtype in HALVES
