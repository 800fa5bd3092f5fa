"""CUDA's devices on a machine without CUDA: what a script sends to "cuda" stays on the CPU.

`cuda_on_cpu` is about tensors (`.cuda()`, `.to("cuda")`, `device="cuda"`), `open_gate` about what torch says of the
machine (`torch.cuda.is_available()` is True, there is one GPU), which opens a script's path for GPUs. A device object
stays what it is: `torch.device("cuda").type` is "cuda". Kernels, dtypes and autocast: see graph/policy.py.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch
import torch.distributed
import torch.utils._device
import torch.utils.data

_CPU = torch.device("cpu")
_LEGACY = "Float Double Half BFloat16 Long Int Short Char Byte Bool"


def mapped(value: Any) -> Any:
    """The device to use instead: the CPU for any CUDA device, by name or object."""
    if isinstance(value, torch.device):
        return _CPU if value.type == "cuda" else value
    if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")):
        return "cpu"
    return value


def _indexed(value: Any) -> Any:
    """The same where a plain number is the index of a GPU, too."""
    return "cpu" if isinstance(value, int) and not isinstance(value, bool) else mapped(value)


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """While it is open, CUDA tensors are CPU tensors."""
    torch.utils._device._device_constructors()  # it keeps what it sees first: torch's own functions
    with contextlib.suppress(Exception):  # and so do the compiler's rules for them
        importlib.import_module("torch._dynamo.trace_rules").get_torch_obj_rule_map()
    with ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
            original = getattr(owner, name, None)
            if original is not None:
                put(owner, name, wraps(original)(wrapper(original)))

        for kind in (torch.Tensor, torch.nn.utils.rnn.PackedSequence):
            put(kind, "cuda", _itself)
            put(kind, "pin_memory", _itself)
        put(torch.Tensor, "record_stream", _nothing)
        wrap(torch.Tensor, "to", _first)
        wrap(torch.nn.Module, "to", _first)
        wrap(torch.Tensor, "type", _legacy_type)
        for name in ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "new_empty_strided"):
            wrap(torch.Tensor, name, _keyword)
        for owner, name in _factories():
            wrap(owner, name, _keyword)
        wrap(torch.utils._device.DeviceContext, "__init__", _first)
        wrap(torch, "set_default_device", _default_device)
        wrap(torch, "set_default_tensor_type", _legacy_default)
        wrap(torch, "load", _load)
        put(torch, "Generator", _Generator)
        wrap(torch.utils.data.DataLoader, "__init__", _no_pinning)
        wrap(torch.nn.parallel.DistributedDataParallel, "__init__", _no_device_ids)
        put(sys.modules["torch.nn.parallel.data_parallel"], "_get_available_device_type", _nothing)
        if torch.distributed.is_available():
            wrap(torch.distributed, "init_process_group", _gloo)
        for kind_name in _LEGACY.split():
            put(torch.cuda, f"{kind_name}Tensor", getattr(torch, f"{kind_name}Tensor"))
        yield


@contextmanager
def open_gate() -> Iterator[None]:
    """While it is open, torch says that there is one GPU, and what is asked of it does nothing."""
    with ExitStack() as stack:
        for name, value in _GATE.items():
            if hasattr(torch.cuda, name):
                stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name, value in _RANDOM.items():
            if hasattr(torch.cuda, name):
                stack.enter_context(mock.patch.object(torch.cuda, name, value))
        accelerator = getattr(torch, "accelerator", None)
        for name, value in _ACCELERATOR.items():
            if hasattr(accelerator, name):
                stack.enter_context(mock.patch.object(accelerator, name, value))
        if torch.distributed.is_available():
            stack.enter_context(mock.patch.object(torch.distributed, "is_nccl_available", _true))
        yield


# -- tensors ------------------------------------------------------------------------------------------------------


def _itself(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _factories() -> Iterator[tuple[Any, str]]:
    """torch's functions that make tensors on a device."""
    names = {function.__name__ for function in torch.utils._device._device_constructors()}
    likes = ("empty", "full", "ones", "rand", "randint", "randn", "zeros")
    for name in sorted(names | {f"{like}_like" for like in likes} | {"normal", "from_file"}):
        for owner in (torch, torch.fft):
            if hasattr(owner, name):
                yield owner, name


def _keyword(original: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _indexed(kwargs["device"])
        return original(*args, **kwargs)

    return make


def _first(original: Any) -> Any:
    """For methods whose first argument may be the device: x.to(device), x.to(0), DeviceContext(device)."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _indexed(kwargs["device"])
        return original(self, *map(_indexed, args[:1]), *args[1:], **kwargs)

    return call


def _default_device(original: Any) -> Any:
    return lambda device: original(mapped(device))


def _plain(kind: Any) -> Any:
    return kind.replace("torch.cuda.", "torch.") if isinstance(kind, str) else kind


def _legacy_type(original: Any) -> Any:
    return lambda self, dtype=None, *args, **kwargs: original(self, _plain(dtype), *args, **kwargs)


def _legacy_default(original: Any) -> Any:
    return lambda kind: original(_plain(kind))


def _load(original: Any) -> Any:
    """Whatever a script's own map_location does, storages stay where the file is read to: on the CPU."""

    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        place = mapped(map_location) if isinstance(map_location, str | torch.device) else "cpu"
        return original(f, place, *args, **kwargs)

    return load


class _IsGenerator(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _TORCHS)


_TORCHS = torch.Generator


class _Generator(metaclass=_IsGenerator):
    """torch.Generator, for the CPU."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _TORCHS(device=_indexed(device))


def _no_pinning(original: Any) -> Any:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        object.__setattr__(self, "pin_memory", False)

    return __init__


def _no_device_ids(original: Any) -> Any:
    def __init__(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        original(self, module, None, None, *args, **kwargs)

    return __init__


def _gloo(original: Any) -> Any:
    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("device_id", None)
        return original("gloo", *args, **kwargs)

    return init_process_group


# -- the machine --------------------------------------------------------------------------------------------------


class _Stream:
    """A stream, an event or a graph of a GPU: all work is done when it is asked for."""

    cuda_stream, device = 0, torch.device("cuda", 0)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *args: Any) -> None:
        pass

    def wait_stream(self, *args: Any, **kwargs: Any) -> None:
        pass

    wait_event = synchronize = wait = record = wait_stream

    def record_event(self, event: Any = None) -> Any:
        return event or _Stream()

    def query(self) -> bool:
        return True

    def is_capturing(self) -> bool:
        return False

    def elapsed_time(self, other: Any) -> float:
        return 0.0


def _properties(*args: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        name="CPU under CUDA's policy", major=8, minor=0, total_memory=80 << 30, multi_processor_count=108, warp_size=32
    )


def _context(*args: Any, **kwargs: Any) -> Any:
    return contextlib.nullcontext()


def _zero(*args: Any, **kwargs: Any) -> int:
    return 0


def _true(*args: Any, **kwargs: Any) -> bool:
    return True


_GATE: dict[str, Any] = {
    "is_available": _true,
    "device_count": lambda: 1,
    "current_device": _zero,
    "is_bf16_supported": _true,
    "is_current_stream_capturing": lambda: False,
    "get_device_name": lambda *args: _properties().name,
    "get_device_capability": lambda *args: (8, 0),
    "get_device_properties": _properties,
    "can_device_access_peer": lambda *args: False,
    "get_arch_list": lambda: ["sm_80"],
    "mem_get_info": lambda *args: (80 << 30, 80 << 30),
    "memory_stats": lambda *args: defaultdict(int),
    "memory_summary": lambda *args, **kwargs: "",
    "memory_snapshot": lambda *args, **kwargs: [],
    "current_stream": _Stream,
    "default_stream": _Stream,
    "Stream": _Stream,
    "Event": _Stream,
    "stream": _context,
    "device": _context,
    "device_of": _context,
    **dict.fromkeys(
        "memory_allocated max_memory_allocated memory_reserved max_memory_reserved memory_cached max_memory_cached "
        "utilization temperature power_draw clock_rate memory_usage".split(),
        _zero,
    ),
    **dict.fromkeys(
        "init _lazy_init set_device set_stream synchronize empty_cache ipc_collect reset_peak_memory_stats "
        "reset_max_memory_allocated reset_max_memory_cached reset_accumulated_memory_stats "
        "set_per_process_memory_fraction set_sync_debug_mode".split(),
        _nothing,
    ),
}
_RANDOM: dict[str, Any] = {
    "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
    "get_rng_state_all": lambda: [torch.get_rng_state()],
    **dict.fromkeys("set_rng_state set_rng_state_all manual_seed manual_seed_all seed seed_all".split(), _nothing),
    "initial_seed": lambda: torch.initial_seed(),
}
_ACCELERATOR: dict[str, Any] = {
    "is_available": _true,
    "device_count": lambda: 1,
    "current_accelerator": lambda *args, **kwargs: torch.device("cuda"),
    "current_device_index": _zero,
    "current_device_idx": _zero,
    "current_stream": _Stream,
    **dict.fromkeys(
        "set_device_index set_device_idx set_stream synchronize empty_cache reset_peak_memory_stats".split(), _nothing
    ),
}
