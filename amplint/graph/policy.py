"""CUDA's autocast policy on a machine without CUDA: kernels of the CPU's autocast key that follow rules/ops.toml.

CPU autocast has other lists than CUDA's (softmax, layer_norm, pow, sum and exp stay half there), so what it says is
never what a GPU does. Inside `cuda_policy`, `torch.autocast("cpu")` casts as CUDA's autocast does, and a region that
asks for "cuda" is one for the CPU.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch

from amplint import knowledge

KINDS = ("lower", "fp32", "fp32_set_opt_dtype", "fp32_append_dtype", "promote", "banned")
HALVES = (torch.float16, torch.bfloat16)
_KEY = "AutocastCPU"
# On CUDA a recurrent layer is one cuDNN call, which autocast casts to float16 (ATen/cudnn/AutocastRNN.cpp).
RNN = tuple(f"aten::{name}.{form}" for name in knowledge.ops()["cuda"]["float16"] for form in ("input", "data"))
_APPENDED = {
    torch.ops.aten.norm.Scalar: torch.ops.aten.norm.ScalarOpt_dtype,
    torch.ops.aten.norm.ScalarOpt_dim: torch.ops.aten.norm.ScalarOpt_dim_dtype,
}
_EXCLUDED = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)


_open = 0  # how many are open: one in another changes nothing


@contextmanager
def cuda_policy() -> Iterator[None]:
    """While it is open, autocast on the CPU follows CUDA's lists, and "cuda" in an autocast call means the CPU. Open it
    before the user's code is imported: a region made outside, at import time (a decorator), is not known inside."""
    global _open
    if _open:
        yield
        return
    default = torch.get_autocast_dtype("cpu")
    library = torch.library.Library("aten", "IMPL", _KEY)  # type: ignore[no-untyped-call]
    with ExitStack() as stack:
        stack.callback(library._destroy)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that kernels are overridden
            for operator, kind in _overridden():
                library.impl(operator, _kernel(operator, kind))  # type: ignore[no-untyped-call]
        for owner, name, new in _cuda_is_cpu():
            stack.enter_context(mock.patch.object(owner, name, new))
        stack.callback(torch._C._jit_set_autocast_mode, torch._C._jit_set_autocast_mode(False))  # has lists of its own
        stack.callback(torch.set_autocast_dtype, "cpu", default)
        torch.set_autocast_dtype("cpu", torch.float16)
        _open += 1
        try:
            yield
        finally:
            _open -= 1


def _cuda_is_cpu() -> Iterator[tuple[Any, str, Any]]:
    """What must be patched so that autocast's "cuda" is the CPU's: (owner, name, replacement)."""
    init, casts = torch.autocast.__init__, torch.amp.autocast_mode._cast
    thread = threading.local()

    @functools.wraps(init)  # dynamo reads the signature
    def __init__(self: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
        if not hasattr(thread, "told"):  # CUDA's default, not the CPU's bfloat16: each thread has its own
            thread.told = True
            torch.set_autocast_dtype("cpu", torch.float16)
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def _cast(value: Any, device_type: str, dtype: torch.dtype) -> Any:  # of custom_fwd
        return casts(value, "cpu" if device_type == "cuda" else device_type, dtype)

    yield torch.autocast, "__init__", __init__
    yield torch.amp.autocast_mode, "_cast", _cast
    for name in ("is_autocast_enabled", "set_autocast_enabled", "get_autocast_dtype", "set_autocast_dtype"):
        yield torch, name, _asked(getattr(torch, name))
    yield torch, "get_autocast_gpu_dtype", functools.partial(torch.get_autocast_dtype, "cpu")
    yield torch, "set_autocast_gpu_dtype", functools.partial(torch.set_autocast_dtype, "cpu")


def _asked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a device's autocast state. Where it is given no device it is about CUDA: is_autocast_enabled()."""

    def ask(device_type: Any = "cuda", *args: Any) -> Any:
        if not isinstance(device_type, str):
            return function("cpu", device_type, *args)
        return function("cpu" if device_type == "cuda" else device_type, *args)

    return ask


@cache
def kinds() -> dict[str, str]:
    """The list of CUDA's autocast that each overload is on: "aten::softmax.int" → "fp32_set_opt_dtype"."""
    lists = knowledge.ops()["cuda"]
    table = {}
    for kind in KINDS:
        for name in lists[kind]:
            overloads = lists["overloads"].get(name, ("default",))
            if "upsample" in name:  # .vec calls the listed one; what torch's Python dispatcher has for it does not
                overloads = (*overloads, "vec")
            for overload in overloads:
                table[f"aten::{name}" + (f".{overload}" if overload != "default" else "")] = kind
    return table | dict.fromkeys(RNN, "rnn")


@cache
def _overridden() -> tuple[tuple[Any, str], ...]:
    """All overloads whose autocast kernel must change: those on CUDA's lists, and those that only the CPU's hold."""
    lists = knowledge.ops()
    names = {name for device in ("cuda", "cpu") for kind in KINDS for name in lists[device].get(kind, ())}
    names |= {name.split("::")[1].split(".")[0] for name in RNN}
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
    """What CUDA's autocast does in front of an operation (ATen/autocast_mode.h, WrapFunction_). Without a kind it has
    no kernel, and what the operation is made of is cast: log_softmax in cross_entropy_loss."""
    if not kind:
        return torch.library.fallthrough_kernel
    names = [argument.name for argument in operator._schema.arguments]
    # what may be left out is cast, and decides nothing (measured on CUDA: bilinear's float32 bias)
    optional = {argument.name for argument in operator._schema.arguments if str(argument.type) == "Optional[Tensor]"}
    appended: Any = _APPENDED.get(operator)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_EXCLUDED):
            match kind:
                case "banned":
                    raise RuntimeError(f"{operator.name()} is unsafe to autocast: see torch.autocast's documentation")
                case "lower":
                    return operator(*_cast(args, _lower()), **_cast(kwargs, _lower()))
                case "rnn":
                    with without_mkldnn():
                        return operator(*_cast(args, torch.float16), **_cast(kwargs, torch.float16))
                case "fp32":
                    return operator(*_cast(args, torch.float32), **_cast(kwargs, torch.float32))
                case "promote":
                    given = dict(zip(names, args, strict=False)) | kwargs
                    widest = _widest(value for name, value in given.items() if name not in optional)
                    return operator(*_cast(args, widest), **_cast(kwargs, widest))
                case "fp32_append_dtype":
                    given = {one.name: one.default_value for one in operator._schema.arguments}  # left out of args
                    given |= dict(zip(names, args, strict=False)) | kwargs
                    dtype = torch.float32 if _eligible(args[0]) else args[0].dtype
                    return appended(*(given[name] for name in names), dtype=dtype)
            if _eligible(args[0]):  # fp32_set_opt_dtype
                at = names.index("dtype")
                asked = args[at] if at < len(args) else kwargs.get("dtype")
                if asked is None and at < len(args):
                    args = (*args[:at], torch.float32, *args[at + 1 :])
                elif asked is None:
                    kwargs = {**kwargs, "dtype": torch.float32}
            return operator(*args, **kwargs)

    return run


@contextmanager
def without_mkldnn() -> Iterator[None]:
    """Recurrent layers in float16, which oneDNN does not have."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


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


def _widest(values: Iterable[Any]) -> torch.dtype:
    """The dtype in which a promoting operation runs: one operand after the other, as prioritize in ATen/autocast_mode.h
    goes through them. The other half precision raises unless something before it is float32."""
    widest = _lower()
    for value in values:
        for one in value if isinstance(value, list | tuple) else (value,):
            if not _eligible(one) or widest == torch.float32:
                continue
            if one.dtype not in (torch.float32, _lower()):
                raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")
            widest = one.dtype
    return widest
