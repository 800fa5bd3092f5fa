"""Losses that a region refuses or computes in half precision."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.around import enters_autocast_somewhere
from amplint.checks.autocast.common import device_of, entered, may_be_enabled, uses_autocast
from amplint.checks.autocast.leaving import may_leave
from amplint.checks.registry import Script, alternatives, found, rule, same_function
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.tree import defaults, named_argument
from amplint.source.values import FALSE, Region, Sym, Tensor


@rule("AMP216")
def bce_in_region(script: Script) -> Iterator[Finding]:
    """binary_cross_entropy inside an autocast region: CUDA refuses it."""
    for event in script.events(events.Operation):
        if event.name != "binary_cross_entropy" or event.region is None:
            continue
        region = event.region
        if not may_be_enabled(region, event) or tensors.device_type(region.autocast.device) == "cpu":
            continue
        if region.assumed and _other_arm_leaves(script, event):
            continue
        severity = None
        if region.assumed:
            severity = Severity.WARNING if uses_autocast(event.module) else Severity.NOTE
            if severity == Severity.NOTE and not enters_autocast_somewhere(script):
                continue
        elif _off_by_default(event, region):
            severity = Severity.NOTE
        yield found(
            "AMP216",
            event,
            "binary cross entropy on probabilities is refused inside a CUDA autocast region (RuntimeError); on a "
            "CPU it runs",
            severity=severity,
            evidence=[(entered(script, region), "in this autocast region")] if not region.assumed else [],
            help="use binary_cross_entropy_with_logits on logits, or leave autocast for the loss",
            fix=_bce_fix(script, event, region),
        )


def _off_by_default(event: events.Event, region: Region) -> bool:
    """Whether the region's switch is an argument, or a field set to one, that is False unless somebody passes it."""
    enabled = region.autocast.enabled
    call = region.autocast.node
    if not isinstance(enabled, Sym) or not isinstance(call, ast.Call):
        return False
    given = named_argument(call, "enabled")
    name = given.attr if isinstance(given, ast.Attribute) else given.id if isinstance(given, ast.Name) else ""
    return any(
        (argument, getattr(default, "value", None)) == (name, False)
        for function in event.module.nodes(ast.FunctionDef)
        for argument, default in defaults(function.args)
    )


def _other_arm_leaves(script: Script, event: events.Event) -> bool:
    """Whether the other arm of a branch turns autocast off: then this one is for runs without it."""
    return any(
        enter.entered.autocast.enabled == FALSE
        and same_function(enter, event)
        and alternatives(event.module, event.node, enter.node)
        for enter in script.events(events.Enter)
    )


def _bce_fix(script: Script, event: events.Operation, region: Region) -> Fix | None:
    call = event.node
    if not isinstance(call, ast.Call) or not call.args:
        return None
    prediction = call.args[0]
    match prediction:
        case ast.Call(func=ast.Attribute(attr="sigmoid")):
            logits = fixes.with_logits(event.module, call, prediction)
            if logits is not None:
                return logits
    if not may_leave(script, event.module, event.module.statement(call), (call,)):
        return None  # the model would leave the region, too, and be given what came out of it in half precision
    cast = [prediction]
    target = event.args[1] if len(event.args) > 1 else None
    if len(call.args) > 1 and isinstance(target, Tensor):
        like = target.made.endswith("_like") and target.dtype != "float32"  # torch.ones_like(prediction)
        if like or target.dtype in tensors.HALF:
            cast.append(call.args[1])
    return fixes.float32_island(event.module, call, device_of(script, event, region), cast)
