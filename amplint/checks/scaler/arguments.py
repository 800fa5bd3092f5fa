"""Family 1, what a GradScaler is made with: factors that its constructor refuses."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import bound_again
from amplint.checks.registry import Script, found_at, rule
from amplint.findings import Finding

_SCALERS = frozenset(
    f"torch{where}.GradScaler" for where in ("", ".amp", ".amp.grad_scaler", ".cuda.amp", ".cuda.amp.grad_scaler")
)
_FACTORS = {"growth_factor": "above", "backoff_factor": "below"}


@rule("AMP130")
def refused_factors(script: Script) -> Iterator[Finding]:
    """A scale that is to stay as it is, by factors of 1: the constructor asserts that it can grow and shrink."""
    module = script.module
    for call in module.nodes(ast.Call) if any(one in module.text for one in _FACTORS) else ():
        names = module.dotted(call.func) if any(one.arg in _FACTORS for one in call.keywords) else set()
        if not names or not names <= _SCALERS or bound_again(module, call.func) or _is_off(call):
            continue
        for keyword in call.keywords:
            side, value = _FACTORS.get(str(keyword.arg)), keyword.value
            if side is None or not isinstance(value, ast.Constant) or not isinstance(value.value, int | float):
                continue
            if (value.value <= 1) if side == "above" else (value.value >= 1):
                yield found_at(
                    "AMP130",
                    module,
                    keyword.value,
                    f"{keyword.arg} has to be {side} 1: {module.source(value)} raises AssertionError",
                    help="to keep the scale as it is: growth_interval=2**31, or update(new_scale=…) in each step",
                )
                break


def _is_off(call: ast.Call) -> bool:
    """Whether the scaler is surely off: it is not asked for its factors then."""
    return any(keyword.arg == "enabled" and _false(keyword.value) for keyword in call.keywords)


def _false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False
