"""What the checks of numerics share: constants, and what is known of a tensor's dtype."""

from __future__ import annotations

import ast
import sys
from functools import lru_cache

from amplint.checks.registry import Script
from amplint.findings import Severity
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.promotion import has_no_dimension
from amplint.source.values import ASSUMED, KNOWN, Choice, Const, Lib, Question, Scaler, Sym, Tensor, Value

LARGEST = 65504.0  # torch.finfo(torch.float16).max
VANISHES = 2.0**-25  # and below: rounds to zero in float16
SMALLEST_NORMAL = 2.0**-14


def constants(value: Value | None) -> list[Const]:
    """The finite numbers that a value may be, by itself or in a tensor without dimensions, which has no more say in the
    dtype of a result than a number. A choice that depends on a dtype is its author's answer to this very question:
    none."""
    match value:
        case Tensor():
            return _held(value)
        case Const(value=bool()):
            return []
        case Const(value=int() | float() as number) if abs(number) <= sys.float_info.max:  # also of an int without end
            return [value]
        case Choice():
            if about_dtype(value.formula):
                return []
            return constants(value.yes) + constants(value.no)
    return []


def _held(tensor: Tensor, depth: int = 3) -> list[Const]:
    """The numbers in a tensor that was made of one: `torch.tensor(-1e9)`, moved or cast. What was made in half holds
    another number from the beginning."""
    if tensor.made in ("tensor", "as_tensor") and has_no_dimension(tensor):
        return constants(tensor.parents[0]) if tensor.dtype not in tensors.HALF else []
    if tensor.made in _STAYS and depth and tensor.parents and isinstance(tensor.parents[0], Tensor):
        return _held(tensor.parents[0], depth - 1)
    return []


_STAYS = frozenset("to half bfloat16 float type type_as".split())


def number(constant: Const) -> float:
    assert isinstance(constant.value, int | float)
    return float(constant.value)


def about_dtype(formula: object) -> bool:
    if isinstance(formula, Sym):
        return formula.kind == "dtype" or any(map(about_dtype, formula.parts))
    if isinstance(formula, Lib):
        return formula.name.startswith("torch.") and tensors.dtype_of(formula) != ""
    if isinstance(formula, Question):
        return _asks_about_dtype(formula)
    return isinstance(formula, tuple | frozenset) and any(map(about_dtype, formula))


@lru_cache(maxsize=1024)  # the same conditions stand around many operations
def _asks_about_dtype(question: Question) -> bool:
    if question.kind == "cmp" and isinstance(question.parts[-1], frozenset) and all(map(_open, question.parts[-1])):
        return False  # whether a table is still in its input's dtype: not which one that is
    return any(map(about_dtype, question.parts))


def _open(value: object) -> bool:
    return isinstance(value, Sym) and (value.kind == "dtype" or (value.kind == "attr" and value.parts[-1] == "dtype"))


def is_half(value: Value, trust: int) -> bool:
    """Whether a tensor is (or, under an unknown autocast dtype, may be) float16, as far as it must be trusted."""
    return isinstance(value, Tensor) and value.dtype in ("float16", "low") and value.trust >= trust


def guarded(event: events.Event) -> bool:
    """Whether a question about a dtype decided that the code runs: its author knows."""
    return any(about_dtype(atom) for atom in event.facts)


def named(dtype: str) -> str:
    return "half precision" if dtype == "low" else dtype


def made_half(script: Script, tensor: Value) -> list[tuple[events.Event | None, str]]:
    """Where a tensor became half."""
    if not isinstance(tensor, Tensor):
        return []
    for event in script.events(events.Operation):
        if event.result.node is tensor.node and event.result.dtype == tensor.dtype:
            what = "half precision" if tensor.dtype == "low" else tensor.dtype
            where = "under autocast" if event.region is not None else ""
            return [(event, f"{event.name} gives {what} {where}".strip())]
    return []


def float16(script: Script, value: Value) -> int | None:
    """How surely something is a float16 tensor (KNOWN, ASSUMED, GIVEN); None where it is not. Low precision of an open
    dtype is float16 where a scaler is in sight: bfloat16 needs none."""
    if not isinstance(value, Tensor) or value.dtype not in ("float16", "low"):
        return None
    if (
        value.dtype == "low"
        and value.trust == KNOWN
        and not any(isinstance(event.value, Scaler) for event in script.events(events.Create))
    ):
        return ASSUMED
    return value.trust


def uses(script: Script) -> dict[ast.AST | None, list[events.Operation]]:
    """The operations on each tensor, by where the tensor was made."""
    found: dict[ast.AST | None, list[events.Operation]] = {}
    for event in script.events(events.Operation):
        for arg in event.args:
            for tensor in tensors.tensors_in((arg,)):
                found.setdefault(tensor.node, []).append(event)
    return found


def known_as(trust: int) -> Severity:
    """A finding rests on what is known, or on what is assumed."""
    return Severity.WARNING if trust == KNOWN else Severity.NOTE
