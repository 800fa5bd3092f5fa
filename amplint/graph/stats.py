"""Exact statistics of a tensor's values, by their exponents: what a half dtype would make of them, at any power-of-two
scale."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

LOW, HIGH = -50, 20  # the bins of a histogram: log2 |x|, what lies outside counts in the outermost ones
_BIAS, _SIZE = 150, 278  # an index for each power of two that float32 has: 2^-149 is the first, 2^127 the last
_NORMAL, _INF = 23, 0x7F800000  # what is added to a float32's exponent for its index; the bits of inf
_CHUNK = 2**17  # values at a time: what is in between stays in the cache


@dataclass(frozen=True)
class Limits:
    """Where a dtype ends. Powers of two, as exponents; `overflow`: the smallest |x| that rounds to inf."""

    zero: int  # |x| <= 2^zero rounds to zero (to even)
    normal: int  # |x| < 2^normal is subnormal
    overflow: float


LIMITS = {
    torch.float16: Limits(-25, -14, 65520.0),
    torch.bfloat16: Limits(-134, -126, (2 - 2.0**-8) * 2.0**127),
}


@dataclass(frozen=True)
class Stats:
    """Of a tensor, or of several together. `exponents[i]` counts the values with 2^(i-150) <= |x| < 2^(i-149); `powers`
    those of them that are 2^(i-150) exactly."""

    count: int
    zeros: int
    nan: int
    infinite: int
    absmax: float  # of the finite values
    tiny: float  # the smallest non-zero |x|; 0 where there is none
    mean: float
    std: float
    exponents: torch.Tensor
    powers: torch.Tensor

    @property
    def nonzero(self) -> int:
        """How many values are finite and not zero: what all shares are shares of."""
        return self.count - self.zeros - self.nan - self.infinite

    def flushed(self, dtype: torch.dtype, scale: int = 0) -> float:
        """The share that `dtype` rounds to zero once multiplied by 2^scale."""
        return self._share(self._up_to(LIMITS[dtype].zero - scale, True))

    def subnormal(self, dtype: torch.dtype, scale: int = 0) -> float:
        """The share that is not zero in `dtype`, but has lost bits there."""
        limits = LIMITS[dtype]
        return self._share(self._up_to(limits.normal - scale, False) - self._up_to(limits.zero - scale, True))

    def overflow(self, dtype: torch.dtype, scale: int = 0) -> float:
        """The share that `dtype` rounds to inf, counted from the next power of two on; no less than one value where the
        largest is beyond the limit."""
        limit = LIMITS[dtype].overflow / 2.0**scale
        if self.absmax < limit:
            return 0.0
        return self._share(max(self.nonzero - self._up_to(math.ceil(math.log2(limit)), False), 1))

    def hist(self) -> list[int]:
        """Counts by floor(log2 |x|), bins LOW … HIGH."""
        low, high = LOW + _BIAS, HIGH + _BIAS
        inner = self.exponents[low : high + 1].clone()
        inner[0] += self.exponents[:low].sum()
        inner[-1] += self.exponents[high + 1 :].sum()
        return [int(one) for one in inner]

    def _up_to(self, exponent: int, closed: bool) -> int:
        """How many non-zero values have |x| < 2^exponent; <= where closed."""
        at = max(exponent + _BIAS, 0)
        return int(self.exponents[:at].sum()) + (int(self.powers[at : at + 1].sum()) if closed else 0)

    def _share(self, number: int) -> float:
        return number / self.nonzero if self.nonzero else 0.0


def of(value: torch.Tensor) -> Stats:
    """Statistics of a floating-point or complex tensor with data, as float32 holds it."""
    value = value.detach()
    if value.layout != torch.strided:  # the gradient of an embedding that is sparse
        value = value.to_dense()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    flat = value.float().reshape(-1)
    return together(map(_of, torch.split(flat, _CHUNK))) if len(flat) > _CHUNK else _of(flat)


def _of(flat: torch.Tensor) -> Stats:
    """Mostly by the bits: |x| is ordered as they are, and half of this would be the conversion to float64 alone."""
    count = flat.numel()
    if not count:
        empty = torch.zeros(_SIZE, dtype=torch.int64)
        return Stats(0, 0, 0, 0, 0.0, 0.0, 0.0, 0.0, empty, empty)
    bits = flat.contiguous().view(torch.int32) & 0x7FFFFFFF
    index, fraction = (bits >> 23) + _NORMAL, bits & 0x7FFFFF
    power = fraction == 0
    exponents = torch.bincount(index, minlength=_SIZE + 1)
    powers = torch.bincount(index[power], minlength=_SIZE + 1)
    zeros, infinite = int(powers[_NORMAL]), int(powers[_SIZE])
    nan = int(exponents[_SIZE]) - infinite
    if int(exponents[_NORMAL]) > zeros:  # float32's own subnormal numbers
        mantissa, place = torch.frexp(fraction[(index == _NORMAL) & ~power].float())
        exponents += torch.bincount(place, minlength=_SIZE + 1)
        powers += torch.bincount(place[mantissa == 0.5], minlength=_SIZE + 1)
        exponents[_NORMAL] -= len(place)
    for one in (exponents, powers):
        one[_NORMAL] -= zeros
    if nan + infinite:
        bits, flat = bits[bits < _INF], flat[bits < _INF]
    some, there = max(flat.numel(), 1), count - zeros - nan - infinite
    mean = float(flat.sum(dtype=torch.float64)) / some
    square = float(torch.linalg.vector_norm(flat, dtype=torch.float64)) ** 2 / some
    return Stats(
        count=count,
        zeros=zeros,
        nan=nan,
        infinite=infinite,
        absmax=_number(int(bits.max())) if there else 0.0,
        tiny=_number(int(((bits - 1) & 0x7FFFFFFF).min()) + 1) if there else 0.0,  # 0 is the largest so
        mean=mean,
        std=math.sqrt(max(square - mean**2, 0.0)),
        exponents=exponents[:_SIZE],
        powers=powers[:_SIZE],
    )


def _number(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


EMPTY = _of(torch.zeros(0))


def together(parts: Iterable[Stats]) -> Stats:
    """The statistics of several tensors' values as one."""
    total = EMPTY
    for one in parts:
        left, right = total.count - total.nan - total.infinite, one.count - one.nan - one.infinite
        both = max(left + right, 1)
        mean = (left * total.mean + right * one.mean) / both
        square = (left * (total.std**2 + total.mean**2) + right * (one.std**2 + one.mean**2)) / both
        total = Stats(
            count=total.count + one.count,
            zeros=total.zeros + one.zeros,
            nan=total.nan + one.nan,
            infinite=total.infinite + one.infinite,
            absmax=max(total.absmax, one.absmax),
            tiny=min(total.tiny or one.tiny, one.tiny or total.tiny),
            mean=mean,
            std=math.sqrt(max(square - mean**2, 0.0)),
            exponents=total.exponents + one.exponents,
            powers=total.powers + one.powers,
        )
    return total
