"""The reference that the kernels are held to: the order of operations of kernels/mm_path.h, in NumPy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from amplint.verify.kernels.ops import Counts


def product(a: Tensor, b: Tensor, chunk: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """a [..., m, k] times b [..., k, n] before and after rounding: FP32 sums over k ascending, which are rounded to
    half after every `chunk` values of k, unless it is 0. The product of two halves is exact in FP32."""
    left, right = a.detach().float().numpy(), b.detach().float().numpy()
    total = np.zeros((*left.shape[:-1], right.shape[-1]), np.float32)
    with np.errstate(all="ignore"):
        for p in range(left.shape[-1]):
            if chunk and p and p % chunk == 0:
                total = total.astype(np.float16).astype(np.float32)
            total = total + left[..., p, None] * right[..., None, p, :]
        return total, total.astype(np.float16)


def counts(exact: np.ndarray, rounded: np.ndarray) -> Counts:
    """What the counters must say of a result."""
    size, tiny = np.abs(rounded.astype(np.float32)), torch.finfo(torch.float16).tiny
    known = np.abs(exact[~np.isnan(exact)])
    return Counts(
        inf=int(np.isinf(size).sum()),
        nan=int(np.isnan(size).sum()),
        flushed=int(((size == 0) & (exact != 0)).sum()),
        subnormal=int(((size > 0) & (size < tiny)).sum()),
        elements=exact.size,
        absmax=float(known.max(initial=0)),
    )


def bits(x: Tensor | np.ndarray) -> list[int]:
    """Of halves, all NaNs the same: +0 and -0 differ."""
    array = x.detach().numpy() if isinstance(x, Tensor) else x
    return np.where(np.isnan(array), np.float16("nan"), array).view(np.uint16).ravel().tolist()
