"""Matrix products in half precision, computed and counted."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

_aten = torch.ops.aten
# the places of the two factors among the arguments, and whether something is added
_PRODUCTS: dict[Any, tuple[int, int, bool]] = {
    _aten.mm.default: (0, 1, False),
    _aten.bmm.default: (0, 1, False),
    _aten.addmm.default: (1, 2, True),
    _aten.baddbmm.default: (1, 2, True),
}
_NAMES = (
    "convolution",
    "attention",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "mv",
    "dot",
    "addmv",
    "addbmm",
    "linear",
    "matmul",
)


class Counts(NamedTuple):
    five: tuple[int, int, int, int, int]  # inf, nan, flushed, subnormal, elements
    absmax: float  # of what is finite


def of(func: Any) -> tuple[int, int, bool] | None:
    return _PRODUCTS.get(func)


class Products:
    """Products by the kernel, for one way to accumulate."""

    def __init__(self, accumulate: str) -> None:
        self.accumulate = accumulate
        self.how = "emulation"

    def run(
        self, func: Any, product: tuple[int, int, bool], args: Any, kwargs: Any
    ) -> tuple[torch.Tensor, Counts, str]:
        """The result, its counts, and how they were made."""
        first, second, adds = product
        a, b = args[first], args[second]
        exact = torch.matmul(a.float(), b.float())
        if adds:
            beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
            exact = exact * alpha if alpha != 1 else exact
            exact = exact if beta == 0 else exact + (args[0].float() * beta if beta != 1 else args[0].float())
        out = exact.to(a.dtype)
        return out, count(out, exact), "emulation"


def count(out: torch.Tensor, exact: torch.Tensor | None = None) -> Counts:
    """What is in a half tensor; `exact`: the same before it was rounded."""
    size = out.abs()
    finite = size <= torch.finfo(out.dtype).max
    smallest = torch.finfo(out.dtype).smallest_normal
    nan = int(torch.isnan(out).sum())
    elements = out.numel()
    inf = elements - nan - int(finite.sum())
    subnormal = int(((size > 0) & (size < smallest)).sum())
    flushed = 0 if exact is None else int(((exact != 0) & (out == 0)).sum())
    absmax = float(torch.where(finite, size, 0).max()) if elements else 0.0
    return Counts((inf, nan, flushed, subnormal, elements), absmax)


def shape(args: Any, product: tuple[int, int, bool]) -> list[int]:
    a, b = args[product[0]], args[product[1]]
    return [*a.shape, b.shape[-1]]


def shape_of(func: Any, args: Any) -> list[int] | None:
    """The shape of another operation that multiplies; None for one that does not."""
    name = func.__name__.partition(".")[0]
    if not any(word in name for word in ("convolution", "attention")) and name not in _NAMES:
        return None
    return next((list(one.shape) for one in args if isinstance(one, torch.Tensor)), [])
