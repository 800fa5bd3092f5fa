"""Recurrent layers in a bfloat16 region: on CUDA they run in float16."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import device_of, entered, real_region
from amplint.checks.autocast.leaving import may_leave
from amplint.checks.crashes.common import operand_node
from amplint.checks.registry import Script, found, rule, text
from amplint.findings import Finding, Fix
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.values import Region


@rule("AMP224")
def recurrent_in_bfloat16(script: Script) -> Iterator[Finding]:
    """A recurrent layer that trains in a bfloat16 region, where nothing scales the loss."""
    if script.settings.target_device == "cpu" or not _trains_unscaled(script):
        return
    for event in script.events(events.Operation):
        region = real_region(event)
        if region is None or event.name not in tensors.only_float16() or not event.grad:
            continue
        if tensors.region_dtype(region) != "bfloat16" or tensors.device_type(region.autocast.device) == "cpu":
            continue
        yield found(
            "AMP224",
            event,
            f"{_called(event)} runs in float16 here, also in a bfloat16 region (cuDNN), and nothing scales the loss: "
            "its gradients below 6e-8 are 0",
            evidence=[(entered(script, region), "the region")],
            help="run it in float32, outside autocast, or train in float16 with a GradScaler",
            fix=_fix(script, event, region),
        )


def runs_in_float16(script: Script, region: Region) -> bool:
    """Whether a recurrent layer runs in a region on a GPU: in float16, also where the region's dtype is bfloat16."""
    return script.settings.target_device != "cpu" and any(
        one.name in tensors.only_float16() and one.region is not None and one.region.node is region.node
        for one in script.events(events.Operation)
    )


def _trains_unscaled(script: Script) -> bool:
    backwards = list(script.events(events.Backward))
    return bool(backwards) and all(one.scaler is None for one in backwards)


def _called(event: events.Operation) -> str:
    function = getattr(event.node, "func", event.node)
    return text(event.module, function)


def _fix(script: Script, event: events.Operation, region: Region) -> Fix | None:
    """Run it in float32, outside autocast. What it is given may be packed, which has a float(), too."""
    given = operand_node(event, 0)
    call = event.node
    if given is None or not isinstance(call, ast.Call) or len(call.args) != 1 or call.keywords:
        return None  # the state may be a tuple
    if not may_leave(script, event.module, event.module.statement(call), (call,)):
        return None
    return fixes.float32_island(event.module, call, device_of(script, event, region), [given], safe=False)
