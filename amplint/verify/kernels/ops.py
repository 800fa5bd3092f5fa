"""The operators of the FP16 matmul, as torch sees them: torch.ops.amplint.*

    mm(a, b, accumulate="float32", chunk=0) -> (out, counts)   a [m, k] or [batch, m, k], b alike, float16, any strides
    narrow(x, dtype="float16") -> (out, counts)                x float32, any shape, rounded to float16 or bfloat16
    statistics(x) -> counts                                    x float16 or bfloat16, any shape

mm sums in FP32 over k ascending and rounds once, as tensor cores do (up to the order); with accumulate="float16" the
sum so far is also rounded after every `chunk` values of k (0: 16). `counts` is an int64[6] that `Counts.of` reads.
Until `load` has found a compiled kernel, and on devices that have none, they are emulated (emulate.py).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from amplint.verify.kernels import emulate
from amplint.verify.kernels.build import BuildError, Torch, library

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Counts:
    """Of the elements of a result: how many became what, and the largest absolute value before rounding."""

    inf: int = 0
    nan: int = 0
    flushed: int = 0  # not zero before it was rounded, zero after
    subnormal: int = 0
    elements: int = 0
    absmax: float = 0.0  # NaNs left out; inf only if an operand held one, or a half sum overflowed

    @staticmethod
    def of(counts: Tensor) -> Counts:
        """What an operator gave; waits for the device."""
        inf, nan, flushed, subnormal, elements, bits = counts.tolist()
        return Counts(inf, nan, flushed, subnormal, elements, struct.unpack("<f", struct.pack("<I", bits))[0])

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.inf + other.inf,
            self.nan + other.nan,
            self.flushed + other.flushed,
            self.subnormal + other.subnormal,
            self.elements + other.elements,
            max(self.absmax, other.absmax),
        )


# -- registrations ----------------------------------------------------------------------------------------------------

_torch: Any = torch  # most of what registers operators has no types
_library = _torch.library.Library("amplint", "DEF")
for _schema in (
    'mm(Tensor a, Tensor b, str accumulate="float32", int chunk=0) -> (Tensor, Tensor)',
    'narrow(Tensor x, str dtype="float16") -> (Tensor, Tensor)',
    "statistics(Tensor x) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
for _name in ("mm", "narrow", "statistics"):  # a compiled kernel is for one device, and goes before these
    _library.impl(_name, getattr(emulate, _name), "CompositeExplicitAutograd")


def _fake(name: str) -> Callable[[Function], Function]:
    """What a result looks like, for tracing: shapes and dtypes."""
    register: Callable[[Function], Function] = _torch.library.register_fake(f"amplint::{name}", lib=_library)
    return register


def _fake_counts(x: Tensor) -> Tensor:
    return x.new_empty(6, dtype=torch.int64)


@_fake("mm")
def _fake_mm(a: Tensor, b: Tensor, accumulate: str = "float32", chunk: int = 0) -> tuple[Tensor, Tensor]:
    _torch._check(a.dim() in (2, 3) and a.dim() == b.dim())
    _torch._check(a.dtype == torch.float16 and b.dtype == torch.float16)
    _torch._check(a.shape[-1] == b.shape[-2])
    if a.dim() == 3:
        _torch._check(a.shape[0] == b.shape[0])
    return a.new_empty((*a.shape[:-1], b.shape[-1])), _fake_counts(a)


@_fake("narrow")
def _fake_narrow(x: Tensor, dtype: str = "float16") -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=getattr(torch, dtype)), _fake_counts(x)


@_fake("statistics")
def _fake_statistics(x: Tensor) -> Tensor:
    return _fake_counts(x)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, b, *ctx.how = inputs
    ctx.save_for_backward(a, b)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
    """Each is a matmul of the same kind, as a half training step runs it."""
    a, b = ctx.saved_tensors
    to_a = to_b = None
    if grad is not None and ctx.needs_input_grad[0]:
        to_a = torch.ops.amplint.mm(grad, b.transpose(-1, -2), *ctx.how)[0]
    if grad is not None and ctx.needs_input_grad[1]:
        to_b = torch.ops.amplint.mm(a.transpose(-1, -2), grad, *ctx.how)[0]
    return to_a, to_b, None, None


_torch.library.register_autograd("amplint::mm", _gradients, setup_context=_save, lib=_library)
_torch.library.register_autograd("amplint::narrow", lambda ctx, grad, _: (grad.float(), None), lib=_library)


def _autocast(device: str) -> Any:
    def mm(a: Tensor, b: Tensor, accumulate: str = "float32", chunk: int = 0) -> Any:
        with torch.autocast(device, enabled=False):
            return torch.ops.amplint.mm(a.half(), b.half(), accumulate, chunk)

    return mm


_library.impl("mm", _autocast("cpu"), "AutocastCPU")
_library.impl("mm", _autocast("cuda"), "AutocastCUDA")


# -- the compiled kernels ---------------------------------------------------------------------------------------------

_loaded: dict[str, str] = {}


def here() -> Torch:
    """The torch of this process."""
    return Torch(torch.__version__, Path(torch.__file__).parent)


def load(device: str = "cpu") -> str:
    """Have the compiled kernel for "cpu" or "cuda" do the work from now on, built if it is not there yet.

    Returns how it is done: "C++, AVX-512", or "emulation: " and why."""
    if device not in _loaded:
        _loaded[device] = _load(device)
    return _loaded[device]


def _load(device: str) -> str:
    if device == "cuda" and not torch.cuda.is_available():
        return "emulation: no GPU that torch can use"
    try:
        _torch.ops.load_library(str(library(device, here())))
    except BuildError as error:
        return f"emulation: {error}"
    except OSError as error:  # of another machine or torch than its folder says
        return f"emulation: the library cannot be loaded: {str(error).splitlines()[0]}"
    if device == "cuda":
        return "CUDA C++, sm_{}{}".format(*torch.cuda.get_device_capability())
    paths: str = torch.ops.amplint._cpu_paths()
    return f"C++, {paths.split('; ')[0]}"
