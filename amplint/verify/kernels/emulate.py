"""The operators of ops.py in plain torch: what they are where there is no compiler. The same results but for the order
in which an FP32 sum is taken, which is that of torch's own matmul."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 16  # what one tensor core instruction sums


def mm(a: Tensor, b: Tensor, accumulate: str = "float32", chunk: int = 0) -> tuple[Tensor, Tensor]:
    """See ops.mm. With FP16 accumulation the sum so far and the next `chunk` products are added in FP32 and rounded."""
    if accumulate not in ("float32", "float16") or chunk < 0:
        raise ValueError("amplint: accumulate is float32 or float16, and chunk is not negative")
    if a.dtype != torch.float16 or b.dtype != torch.float16:
        raise ValueError("amplint: mm takes float16")
    if a.dim() not in (2, 3) or a.dim() != b.dim():
        raise ValueError("amplint: mm takes two matrices or two batches of them")
    if a.shape[-1] != b.shape[-2] or a.shape[:-2] != b.shape[:-2]:
        raise ValueError("amplint: mm's shapes do not go together")
    with torch.autocast(a.device.type, enabled=False):
        k = a.shape[-1]
        step = k if accumulate == "float32" else chunk or CHUNK
        exact = _product(a[..., :step], b[..., :step, :])
        for begin in range(step, k, step or 1):
            part = _product(a[..., begin : begin + step], b[..., begin : begin + step, :])
            exact = exact.half().float() + part
        return narrow(exact)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In FP32; on CUDA by the tensor cores, where torch can have them give FP32."""
    if a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return (torch.mm if a.dim() == 2 else torch.bmm)(a, b, out_dtype=torch.float32)
    return torch.matmul(a.float(), b.float())


def narrow(x: Tensor, dtype: str = "float16") -> tuple[Tensor, Tensor]:
    """See ops.narrow."""
    out = x.detach().to(getattr(torch, dtype), copy=True, memory_format=torch.contiguous_format)
    return out, _counts(x.detach(), out)


def statistics(x: Tensor) -> Tensor:
    """See ops.statistics."""
    return _counts(x.detach().float(), x.detach())


def _counts(exact: Tensor, out: Tensor) -> Tensor:
    wide = out.float().abs()
    size = exact.abs()
    zero = wide == 0
    most = torch.where(size.isnan(), 0.0, size).max() if size.numel() else size.new_zeros(())
    counts = (
        wide.isinf().sum(),
        wide.isnan().sum(),
        (zero & (size != 0)).sum(),
        (~zero & (wide < torch.finfo(out.dtype).tiny)).sum(),
        torch.tensor(out.numel(), device=out.device),
        most.view(torch.int32).long(),
    )
    return torch.stack(counts)
