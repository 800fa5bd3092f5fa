"""What the checks of dtype crashes share."""

from __future__ import annotations

import ast

from amplint.checks.numerics.common import made_half
from amplint.checks.registry import Evidence, Script
from amplint.findings import Severity
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.tensors import HALF
from amplint.source.values import KNOWN, Choice, Region, Tensor, Value


def half(value: Value, event: events.Event) -> Tensor | None:
    """The half tensor that a value is here, on both sides of a choice; None where it may be something else. What a
    forward that nothing calls is given counts as half as long as its region is on."""
    match value:
        case Tensor(dtype=dtype, trust=trust) if dtype in HALF:
            return value if trust or _on(event) else None
        case Choice():
            yes, no = half(value.yes, event), half(value.no, event)
            return yes if no is not None else None
    return None


def _on(event: events.Event) -> bool:
    region = event.region
    return region is not None and region.assumed


def enabled(event: events.Event) -> Region | None:
    """The innermost autocast region if it is on, as far as the answers given until here tell."""
    from amplint.source.interpret import conditions

    region = event.region
    if region is None:
        return None
    if tensors.dtype_of(region.autocast.dtype) == "float32":
        return None
    on = conditions.evaluate(conditions.truth(region.autocast.enabled), event.facts)
    return region if on is not False else None


def policy(script: Script, event: events.Event) -> str:
    """What autocast does with an operation here: "lower", "fp32", "promote" or ""."""
    region = enabled(event)
    if region is None or not isinstance(event, events.Operation):
        return ""
    device = tensors.device_type(region.autocast.device) or script.settings.target_device
    return tensors.policy("cpu" if device == "cpu" else "cuda").get(event.name, "")


def severity(tensor: Tensor) -> Severity:
    """A crash where the dtype was seen; a note where it rests on an assumed region."""
    return Severity.ERROR if tensor.trust == KNOWN else Severity.NOTE


def evidence(script: Script, *values: Value) -> list[Evidence]:
    """Where tensors got their dtype."""
    return [one for value in values for one in made_half(script, value)]


def operand_node(event: events.Operation, place: int) -> ast.expr | None:
    """The source of an operand: the tensor that a method is called on comes first."""
    call = event.node
    if not isinstance(call, ast.Call):
        return None
    method = len(event.args) == len(call.args) + 1
    if method and place == 0:
        return call.func.value if isinstance(call.func, ast.Attribute) else None
    place -= method
    return call.args[place] if 0 <= place < len(call.args) and len(event.args) == len(call.args) + method else None


_FLOATS = (*HALF, "float32")


def clash(one: Value | None, other: Value | None, least: int = KNOWN) -> bool:
    """Whether two tensors surely differ in dtype, one of them half and the other not."""
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.dtype in _FLOATS
        and other.dtype in _FLOATS
        and (one.dtype in HALF) is not (other.dtype in HALF)
        and min(one.trust, other.trust) >= least
    )


def in_place(event: events.Operation) -> bool:
    function = event.node.func if isinstance(event.node, ast.Call) else None
    return isinstance(function, ast.Attribute) and function.attr.endswith("_")
