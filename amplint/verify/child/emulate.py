"""Half operations that the CPU lacks or does slowly: the FP32 operation on the half operands, rounded to half.

That is what a tensor core does but for the order of its sums: products of half numbers are exact in FP32."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from amplint.verify.kernels.ops import Counts

HALVES = (torch.float16, torch.bfloat16)
_aten = torch.ops.aten
# A kernel that GPUs have and the CPU does not.
LACKING = re.compile(
    r"not implemented for '(?:Half|BFloat16)'|mixed dtype \(CPU\)|could not create a primitive|"
    r"[Uu]nsupported (?:data|input) type:? (?:Half|BFloat16)"
)
_NOWHERE = re.compile(
    r"linalg|_fft|cholesky|svd|eig|(^|_)(lu|qr)(_|$)|solve|inverse|lstsq|householder|det$"
)  # nor has a GPU
SLOW = {
    getattr(_aten, name).default
    for name in (
        "convolution convolution_overrideable _convolution convolution_backward mv dot vdot addmv addbmm addr "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention_for_cpu_backward"
    ).split()
    if hasattr(_aten, name) and hasattr(getattr(_aten, name), "default")
}


def is_lacking(func: Any, error: Exception) -> bool:
    """Whether an operation failed for want of a half kernel on the CPU only."""
    return LACKING.search(str(error)) is not None and not _NOWHERE.search(func.__name__)


def full(func: Any, args: Sequence[Any], kwargs: dict[str, Any], half: torch.dtype) -> tuple[Any, list[Counts]]:
    """The operation in FP32, with its results rounded; and what is in those."""
    wide = {}

    def widen(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.dtype in HALVES:
            if id(leaf) not in wide:
                wide[id(leaf)] = (leaf, leaf.float())
            return wide[id(leaf)][1]
        return torch.float32 if leaf in HALVES and isinstance(leaf, torch.dtype) else leaf

    given = pytree.tree_map(widen, (tuple(args), kwargs))
    results = func(*given[0], **given[1])
    for leaf, copy in wide.values():  # written into
        if copy._version:
            leaf.copy_(copy)
    back = {id(copy): leaf for leaf, copy in wide.values()}
    keeps = _dtypes(func, args, kwargs)
    counts: list[Counts] = []
    rounded = []
    leaves, tree = pytree.tree_flatten(results)
    for index, leaf in enumerate(leaves):
        if id(leaf) in back:
            leaf = back[id(leaf)]
        elif isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32 and keeps.get(index, half) in HALVES:
            leaf, found = torch.ops.amplint.narrow(leaf, str(keeps.get(index, half)).removeprefix("torch."))
            counts.append(Counts.of(found))
        rounded.append(leaf)
    return pytree.tree_unflatten(rounded, tree), counts


def _dtypes(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[int, torch.dtype]:
    """The dtypes of the operation's results, where it can say them without a kernel: mean and rstd stay FP32."""
    if func in SLOW:
        return {1: torch.float32} if "attention_for_cpu" in func.__name__ and "backward" not in func.__name__ else {}
    if func._schema.is_mutable:
        return {}

    def shadow(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    try:
        given = pytree.tree_map(shadow, (tuple(args), kwargs))
        leaves = pytree.tree_leaves(func(*given[0], **given[1]))
    except Exception:  # an operation that has no meta kernel
        return {}
    return {index: leaf.dtype for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
