"""Matrix products in half precision, computed by the kernel that counts."""

from __future__ import annotations

from typing import Any

import torch

from amplint.verify.kernels import ops
from amplint.verify.kernels.ops import Counts

_aten = torch.ops.aten
# the places of the two factors among the arguments; what stands before them is added
_PRODUCTS: dict[Any, int] = {
    _aten.mm.default: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.baddbmm.default: 1,
}
_OTHERS = ("mv", "dot", "vdot", "addmv", "addbmm", "addr", "linear", "matmul")
_PARTS = ("convolution", "attention", "_mm", "_rnn")


def of(func: Any) -> int | None:
    """Where the factors are, if it is one of the products that the kernel computes."""
    return _PRODUCTS.get(func)


def run(func: Any, at: int, args: Any, kwargs: Any, accumulate: str) -> tuple[torch.Tensor, Counts]:
    """The result, and what is in it. On tensor cores a bias is added to the FP32 sum, before it is rounded: here it is
    one more product. What else is added, and bfloat16, goes through FP32."""
    a, b = args[at : at + 2]
    beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
    added = args[0] if at and beta != 0 else None
    if a.dtype == torch.float16 and alpha == 1 and (added is None or (beta == 1 and _is_row(added, a.dim()))):
        if added is not None:
            a = torch.cat([a, a.new_ones((*a.shape[:-1], 1))], -1)
            b = torch.cat([b, added.expand(*b.shape[:-2], 1, b.shape[-1])], -2)
        out, counts = torch.ops.amplint.mm(a, b, accumulate)
    else:
        wide = func(*(one.float() if isinstance(one, torch.Tensor) else one for one in args), **kwargs)
        out, counts = torch.ops.amplint.narrow(wide, str(a.dtype).removeprefix("torch."))
    return out, Counts.of(counts)


def by(func: Any, args: Any, how: str) -> str:
    """How `run` counts."""
    half = args[_PRODUCTS[func]].dtype == torch.float16
    return "kernel" if half and not how.startswith("emulation") else "emulation"


def _is_row(added: torch.Tensor, dims: int) -> bool:
    return added.dtype == torch.float16 and (added.dim() == 1 or (added.dim() == dims and added.shape[-2] == 1))


def shape(func: Any, args: Any) -> list[int] | None:
    """m, k, n of a product; the first operand's shape of what else multiplies; None for all other operations."""
    at = _PRODUCTS.get(func)
    if at is not None:
        return [*args[at].shape, args[at + 1].shape[-1]]
    name = func.__name__.partition(".")[0]
    if name not in _OTHERS and not any(part in name for part in _PARTS):
        return None
    return next((list(one.shape) for one in args if isinstance(one, torch.Tensor)), [])


def load(on_gpu: bool) -> str:
    """The kernel for this device; how it works."""
    return ops.load("cuda" if on_gpu else "cpu")
