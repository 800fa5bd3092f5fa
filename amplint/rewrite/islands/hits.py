"""What half precision cannot run, or computes too coarsely, in a person's words."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

from amplint.rewrite.islands.numbers import (
    ANGLES,
    AREA,
    BOUND,
    BUFFER,
    COVARIANCE,
    LOGARITHM,
    PARAMETER,
    PIXELS,
    VARIANCE,
)
from amplint.rewrite.refusals.refused import KEEP, Refused
from amplint.source.module import Module

BCE, SPARSE, COMPILED, AWAY, BANDS = "binary_cross_entropy", "sparse", "compiled", "away", "bands"
IN_PLACE = frozenset("addmm_ addbmm_ baddbmm_ addmv_ addr_".split())
COARSE = frozenset((LOGARITHM, VARIANCE, AREA, AWAY))  # where the function is a loss

Place = tuple[str, int, int]


class Hit(NamedTuple):
    """A call that half precision cannot run, with its file."""

    module: Module
    call: ast.Call
    what: str

    @property
    def place(self) -> Place:
        return str(Path(self.module.path).resolve()), self.call.lineno, self.call.col_offset


APART = "compute them on .float() under torch.autocast(device_type, enabled=False)"
_SAID = {
    COMPILED: (
        "computes its loss with a compiled kernel, which takes float32 only",
        "give it .float() outside of autocast",
    ),
    BCE: (
        "computes binary cross entropy on probabilities, which CUDA autocast refuses",
        "use binary_cross_entropy_with_logits on logits there first",
    ),
    BOUND: (
        "keeps probabilities from 1 by a bound that half precision rounds to 1, and takes log(1 - p)",
        "make them .float() before they are bounded, or use binary_cross_entropy_with_logits on logits",
    ),
    LOGARITHM: (
        "takes the logarithm of a sigmoid, which is 0 or 1 too soon in half precision",
        "use logsigmoid on what the sigmoid is given",
    ),
    AREA: (
        "takes the logarithm of an overlap of boxes, whose areas overflow in half precision from 256 by 256 pixels on",
        "give it .float() outside of autocast",
    ),
    VARIANCE: (
        "computes a variance as a difference of averages, which half precision rounds by more than that",
        APART,
    ),
    AWAY: (
        "computes on the CPU, where the autocast of a GPU does nothing",
        "give it .float() outside of autocast",
    ),
    BANDS: (
        "sums a power spectrum into bands, a product of matrices that overflows in half precision",
        "call it under torch.autocast(device_type, enabled=False)",
    ),
    BUFFER: (
        "averages products over the batch in a buffer, where what half precision loses stays",
        APART,
    ),
    COVARIANCE: ("squares differences of products of matrices, whose gradients vanish in half precision", APART),
    ANGLES: ("takes sines of products of positions, which half precision rounds by a tenth of a radian", APART),
    PIXELS: ("multiplies coordinates of pixels, which half precision rounds to half a pixel", APART),
    PARAMETER: (
        "sets a parameter to a product, and in half precision it would be a half tensor from then on",
        APART.replace("them", "it"),
    ),
}


def refusal(hit: Hit) -> Refused:
    place = f"{hit.module.path}:{hit.module.range(hit.call).start.row}"
    if hit.what in IN_PLACE:
        return Refused(
            f"{place} calls {hit.what}(), for which autocast casts nothing",
            "make its operands .float() first: in float32 that changes nothing",
        )
    if hit.what in _SAID:
        does, advice = _SAID[hit.what]
        return Refused(f"{place} {does}", advice)
    if hit.what == SPARSE:
        return Refused(f"{place} multiplies sparse tensors, which have no half-precision kernels everywhere", KEEP)
    return Refused(
        f"{place} calls {hit.what}(), which has no half-precision kernel",
        "make its operand .float() first: in float32 that changes nothing",
    )
