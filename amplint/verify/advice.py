"""Why AMP brings no speed-up: what `amplint check` says of speed, and what the runs measured."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amplint.config import Settings
from amplint.engine import Job, check_data
from amplint.verify.convert import Conversion
from amplint.verify.places import Places

Line = dict[str, Any]
_CODES = frozenset({"AMP801", "AMP802", "AMP803", "AMP804", "AMP805"})
_ENOUGH = 1.2  # times faster: AMP pays
_TILE = 8  # what dimensions are multiples of, for tensor cores
_ODD = 0.1  # share of the work, from which on odd dimensions are worth a word
_SMALL = 2**27  # floating-point operations of a product that a GPU does in less time than it takes to start it
_CORES = {"float16": (7, 0), "bfloat16": (8, 0)}  # compute capability that has tensor cores for a dtype
_PRODUCTS = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.baddbmm.")


def advice(
    made: dict[str, Any], script: str, conversion: Conversion, settings: Settings, places: Places, capability: Any
) -> list[dict[str, str]]:
    """What is worth doing, with its code; nothing where AMP is faster as it is."""
    if made["speed"] is not None and made["speed"]["ratio"] >= _ENOUGH:
        return []
    found = [*_device(made["target"]["dtype"], capability), *_shapes(made["lines"]), *_layers(made["layers"])]
    seen = {code for code, _ in found}
    found += [(code, text) for code, text in _checked(script, conversion, settings, places) if code not in seen]
    return [{"code": code, "text": text} for code, text in found]


def _checked(script: str, conversion: Conversion, settings: Settings, places: Places) -> Iterator[tuple[str, str]]:
    """The findings about speed in the AMP script, which are notes."""
    wanted = replace(settings, codes=_CODES, notes=_CODES)
    texts = {os.path.abspath(script): Path(script).read_bytes()} | conversion.changed
    for path, data in texts.items():
        for finding in check_data(path, data, Job(wanted)).findings:
            if finding.code in _CODES:
                place, row = places.theirs(path, finding.range.start.row)
                yield finding.code, f"{place}:{row}: {finding.message}"


def _device(dtype: str, capability: Any) -> Iterator[tuple[str, str]]:
    if isinstance(capability, list) and tuple(capability) < _CORES[dtype]:
        has = ".".join(map(str, capability))
        yield (
            "AMP805",
            f"the GPU (compute capability {has}) has no tensor cores for {dtype}: AMP saves memory, not time",
        )


def _shapes(lines: Sequence[Line]) -> Iterator[tuple[str, str]]:
    """The dimensions of the products, by the work that is in them."""
    products = [one for line in lines if line["op"].startswith(_PRODUCTS) for one in _work(line)]
    whole = sum(work for work, _, _ in products)
    if not whole:
        return
    odd = [one for one in products if any(size % _TILE for size in one[1][-3:])]
    share = sum(work for work, _, _ in odd) / whole
    if share >= _ODD:
        _, shape, line = max(odd, key=lambda one: one[0])
        yield (
            "AMP801",
            f"{100 * share:.0f} % of the products' work has a dimension that is no multiple of {_TILE}, most of it at "
            f"{line['path']}:{line['line']} ({' × '.join(map(str, shape))}): pad it",
        )
    largest = max((shape for _, shape, _ in products), key=math.prod)
    if 2 * math.prod(largest) < _SMALL:
        shown = " × ".join(map(str, largest))
        yield "note", f"the products are small (the largest is {shown}): starting them takes longer than computing them"


def _work(line: Line) -> Iterator[tuple[float, list[int], Line]]:
    """The floating-point operations of a line's calls, by shape: each has as many of them."""
    for shape in line["shapes"]:
        yield 2.0 * line["calls"] / len(line["shapes"]) * math.prod(shape), shape, line


def _layers(layers: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Layers that multiply, and did so in float32."""
    kinds = ("Linear", "Conv", "LSTM", "GRU", "RNN", "MultiheadAttention")
    full = [one for one in layers if one["class"].startswith(kinds) and one["dtypes"].get("float32")]
    calls = sum(one["calls"] for one in layers if one["class"].startswith(kinds))
    stayed = sum(one["dtypes"]["float32"] for one in full)
    if stayed > 0.1 * calls:
        names = ", ".join(sorted(one["class"] for one in full))
        yield "note", f"{stayed} of {calls} calls of layers that multiply ran in float32 ({names})"
