"""AMP217 and AMP219: operands that autocast does not reach, and inputs that are cast in its place."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import entered, real_region
from amplint.checks.registry import Script, found, rule, text
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.values import KNOWN, Parameter, Tensor, Value


@rule("AMP219")
def half_input_in_region(script: Script) -> Iterator[Finding]:
    """What a model is given under autocast was cast to half precision by hand."""
    halved = {cast.model for cast in script.events(events.Cast) if cast.dtype in tensors.HALF}
    for forward in script.events(events.Forward):
        region = real_region(forward)
        if region is None or not forward.grad or halved or _goes_backward(forward):
            continue
        for value in tensors.tensors_in(forward.given):
            if value.of or value.made not in ("half", "bfloat16", "to"):
                continue
            if value.dtype not in ("float16", "bfloat16") or not isinstance(value.node, ast.Call):
                continue
            if value.node not in forward.module.parents or any(
                isinstance(parent, Tensor) and parent.dtype in tensors.HALF for parent in value.parents
            ):
                continue
            yield found(
                "AMP219",
                forward,
                f"the input is cast to {value.dtype} by hand: autocast casts what it must, layer by layer, and leaves "
                "the rest in float32",
                node=value.node,
                evidence=[(entered(script, region), "the region"), (forward, "the model that it is given to")],
                help="hand the model its input as it is",
                fix=fixes.without_cast(forward.module, value.node, forward.node),
            )


def _goes_backward(forward: events.Forward) -> bool:
    """Whether the model is an engine that runs backward itself (DeepSpeed): its weights may be half, as its input."""
    call = forward.node
    return isinstance(call, ast.Call) and f"{text(forward.module, call.func)}.backward(" in forward.module.text


@rule("AMP217")
def in_place_in_region(script: Script) -> Iterator[Finding]:
    """A product that is written into a tensor is not autocast: its operands must agree by themselves."""
    lowered = {op for op, way in tensors.policy().items() if way == "lower"}
    for event in script.events(events.Operation):
        region = real_region(event)
        if region is None or event.name not in lowered or not _writes(event):
            continue
        dtypes = {_dtype(value) for value in (*event.args, *(value for _, value in event.kwargs))} - {None}
        half, full = dtypes & {"float16", "bfloat16", "low"}, "float32" in dtypes
        if "" in dtypes or not full:
            continue
        yield found(
            "AMP217",
            event,
            f"{text(event.module, event.node)} is not autocast, because it writes into a tensor"
            + (": float32 and half precision meet here, which raises" if half else ": it runs in float32"),
            severity=None if half else Severity.NOTE,
            evidence=[(entered(script, region), "in this autocast region")],
            help="use the form that returns a new tensor",
        )


def _writes(event: events.Operation) -> bool:
    match event.node:
        case ast.Call(func=ast.Attribute(attr=name), keywords=keywords):
            return (name.endswith("_") and not name.endswith("__")) or any(one.arg == "out" for one in keywords)
    return False


def _dtype(value: Value) -> str | None:
    """The dtype of an operand: "" if it is not known, None if it is no tensor."""
    match value:
        case Parameter():
            return value.dtype or "float32"
        case Tensor():
            return value.dtype if value.trust == KNOWN else ""
    return None
