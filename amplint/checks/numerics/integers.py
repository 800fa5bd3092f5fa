"""Whole numbers that half precision does not hold: positions, indices, timesteps."""

from __future__ import annotations

import re
from collections.abc import Iterator

from amplint.checks.numerics.common import guarded, known_as, made_half
from amplint.checks.registry import Script, found, rule
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.values import KNOWN, Const, Tensor

_EXACT = {"float16": 2048, "bfloat16": 256, "low": 2048}  # the largest integer up to which all are exact
_OUTER = re.compile(r" *(\w) *, *(?!\1)\w *-> *")  # einsum("i,j->ij"): angles, the positions times frequencies
_PRODUCTS = frozenset("matmul bmm mm einsum".split())


@rule("AMP411")
def integers_in_half(script: Script) -> Iterator[Finding]:
    """Positions, indices or timesteps become half precision, where neighbours are the same number."""
    for event in script.events(events.Operation):
        dtype = event.result.dtype
        if event.name not in ("cast", "arange", *_PRODUCTS) or dtype not in tensors.HALF or guarded(event):
            continue
        if event.name in _PRODUCTS:
            operands = [arg for arg in event.args if isinstance(arg, Tensor) and arg.dtype not in tensors.HALF]
            outer = isinstance(event.args[0], Const) and _OUTER.match(str(event.args[0].value)) is not None
            counted = next((one for arg in operands if (one := tensors.counted(arg, scaled=outer)) is not None), None)
            if counted is None or any(arg.made == "float" for arg in operands):  # AMP211 says that
                continue
            severity = known_as(event.result.trust)
            what = f"{event.name} casts positions to {_name(dtype)} under autocast"
            help = "compute angles in float32: with torch.autocast(device_type, enabled=False)"
        else:
            if event.result.trust != KNOWN:
                continue
            source = event.result if event.name == "arange" else event.args[0]
            counted = tensors.counted(source) or _drawn(source)
            severity = Severity.WARNING
            what = f"whole numbers become {_name(dtype)}"
            help = "keep them in integers or float32, and cast what is computed of them"
        if counted is None or _few(counted, dtype):
            continue
        limits = "2048 (bfloat16: above 256)" if dtype == "low" else str(_EXACT[dtype])
        yield found(
            "AMP411",
            event,
            f"{what}: above {limits} several of them are the same number",
            severity=severity,
            evidence=made_half(script, counted),
            help=help,
        )


def _name(dtype: str) -> str:
    return "half precision" if dtype == "low" else dtype


def _drawn(value: object) -> Tensor | None:
    """A tensor of integers drawn from a range that is known."""
    return value if isinstance(value, Tensor) and value.made == "randint" else None


def _few(counted: Tensor, dtype: str) -> bool:
    """Whether all of the numbers are exact, or few, or not known to be many: a step makes them indices of channels."""
    bounds = [part for part in counted.parents if not isinstance(part, Tensor)]
    if counted.made == "arange" and len(bounds) > 2:
        return True
    last = bounds[1] if len(bounds) > 1 else bounds[0] if bounds else None
    if isinstance(last, Const) and isinstance(last.value, int | float):
        return abs(last.value) <= _EXACT[dtype] + 1
    return counted.made == "randint"
