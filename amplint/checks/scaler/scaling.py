"""Family 1, what is scaled: every loss that reaches a step through the scaler, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import (
    Script,
    found,
    found_at,
    receiver,
    rule,
    same_function,
    scaler_in,
    text,
)
from amplint.checks.scaler.protocol import (
    backwards_of,
    flag_decides,
    forks,
    is_disabled,
    is_undecided,
    scale_at_first,
    steps_of,
    without_gradients,
)
from amplint.checks.scaler.reading import call_towards
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.interpret import conditions
from amplint.source.interpret.conditions import sides
from amplint.source.interpret.tensors import device_type, dtype_of, region_dtype
from amplint.source.values import (
    TRUE,
    Region,
    Scaler,
    Tensor,
    Value,
)


@rule("AMP101")
def fp16_without_scaler(script: Script) -> Iterator[Finding]:
    """A loss computed under float16 autocast is differentiated and stepped on without a GradScaler."""
    for step in script.events(events.Step):
        before = step.before
        if before.kind != "plain" or before.region is None or (step.closure and step.scaler):
            continue
        for backward in backwards_of(before):
            region = backward.loss.region if isinstance(backward.loss, Tensor) else before.region
            severity = _half_without_scaler(region)
            one_mode = severity is None and _half_in_one_mode(script, region, step)
            severity = Severity.WARNING if one_mode else severity
            if severity is None or (step.scaler is not None and not is_disabled(step.scaler)):
                continue
            scaled = [b for b in script.events(events.Backward) if b.scaler is not None]
            assert region is not None
            if _excused(script, backward, scaled, region) or frozen(script, region):
                continue
            entering, choosing = script.entry(region), list(forks(backward, scaled))
            if choosing and entering is not None and entering.module is backward.module:
                yield found(
                    "AMP101",
                    entering,
                    "this region is always float16, and a flag decides whether the loss is scaled: where it is not, "
                    f"gradients below {2**-25:.2g} become zero, silently",
                    severity=severity,
                    evidence=[
                        (entering, "the loss is computed in float16 in either case"),
                        (backward, "its gradients are computed unscaled here"),
                        (step, f"and {text(step.module, step.node)} uses them"),
                    ],
                    help="give the region the flag: enabled=…",
                )
                continue
            yield found(
                "AMP101",
                backward,
                f"float16 gradients without a GradScaler: those below {2**-25:.2g} become zero, silently"
                + (", in the mode in which the region is float16" if one_mode else ""),
                severity=severity,
                evidence=[
                    (entering, "the loss, or what leads to it, is computed in float16 under this autocast"),
                    (backward, "its gradients are computed unscaled"),
                    (step, f"and {text(step.module, step.node)} uses them"),
                ],
                help="scale the loss with torch.amp.GradScaler, or use dtype=torch.bfloat16",
                fix=None if one_mode else _complete(script, backward, step, region),
            )


def _excused(script: Script, backward: events.Backward, scaled: list[events.Backward], region: Region) -> bool:
    """Whether the function scales elsewhere, or a flag chooses between scaled and not: unless the region is float16
    whatever a flag says, and the flag does not ask for a device (on a CPU a CUDA region disables itself)."""
    above = (one.test for one in backward.module.ancestors(backward.node) if isinstance(one, ast.If))
    if any("scaler" in text(backward.module, test, 200).lower() for test in above):
        return True  # without a scaler this runs, and whether it is float16 then is not seen
    choosing = list(forks(backward, scaled))
    if not choosing:
        return any(same_function(backward, b) for b in scaled)
    ways = [b.loss for b in script.events(events.Backward) if b.node is backward.node]
    always = all(isinstance(loss, Tensor) and loss.region is not None for loss in ways)
    always &= region.autocast.enabled == TRUE and not _asks(region.autocast.node)
    always &= _by_name(script, region)
    tests = [text(backward.module, b.test, 200) for b in choosing if isinstance(b, ast.If)]
    return not always or len(tests) < len(choosing) or any(_DEVICE.search(test) for test in tests)


def _by_name(script: Script, region: Region) -> bool:
    """Whether autocast is called by its own name: what is kept under another (`with self.cast():`) is chosen where
    it is kept, and what chose it may have been forgotten since."""
    node, entering = region.autocast.node, script.entry(region)
    if not isinstance(node, ast.Call) or entering is None:
        return True
    return not isinstance(node.func, ast.Attribute) or "autocast" in node.func.attr


def frozen(script: Script, region: Region) -> bool:
    """Whether a region is entered inside of torch.no_grad(): what a frozen encoder gives has no gradients."""
    entering = script.entry(region)
    if entering is None:
        return False
    return without_gradients(entering.module, entering.node)


def _asks(autocast: ast.AST | None) -> bool:
    """Whether an autocast is told by a variable whether it is enabled."""
    if not isinstance(autocast, ast.Call):
        return True
    given = [*autocast.args, *(keyword.value for keyword in autocast.keywords if keyword.arg in (None, "enabled"))]
    return not all(isinstance(value, ast.Constant) or "dtype" in ast.unparse(value) for value in given)


_DEVICE = re.compile(r"cuda|gpu|cpu|device|mps|xla|tpu|is_enabled", re.IGNORECASE)


def _complete(script: Script, backward: events.Backward, step: events.Step, region: Region) -> Fix | None:
    """A scaler made beside the optimizer, where everything stands in one function."""
    create = script.created(step.optimizer)
    if create is None or any(
        not same_function(create, one) or one.module is not script.module for one in (backward, step)
    ):
        return None
    others = [b for b in script.events(events.Backward) if b.node is not backward.node and same_function(b, backward)]
    steps = {s.node for s in script.events(events.Step) if s.optimizer == step.optimizer}
    clips = [c for c in script.events(events.Clip) if same_function(c, step)]
    if others or len(steps) != 1:
        return None
    return fixes.add_scaler(
        script.module, create.node, backward.node, step.node, [clip.node for clip in clips], region.autocast.node
    )


def _half_without_scaler(region: Region | None) -> Severity | None:
    """How sure it is that a region runs in float16."""
    if region is None or region.assumed:
        return None
    autocast = region.autocast
    if autocast.dtype is not None and dtype_of(autocast.dtype) != "float16":
        return None
    if region_dtype(region) == "float16":
        return Severity.ERROR
    device = autocast.device
    if device is None or device_type(device) in ("cpu", "xla", "hpu"):
        return None
    return Severity.WARNING  # float16 wherever the device is not a CPU


_BY_HAND = re.compile(r"loss_scal|scale_loss|unscale|grad_scal", re.IGNORECASE)

_SAVES = re.compile(r"\.save\w*\(|state_dict|save_(model|checkpoint|pretrained)")


def _half_in_one_mode(script: Script, region: Region | None, step: events.Step) -> bool:
    """Whether a setting may make a region float16, and no setting a scaler: there is none in the file. What is trained
    to measure its time, and not saved, is left alone."""
    code = step.module.text
    if region is None or region.assumed or region.autocast.dtype is None or "caler" in code or _BY_HAND.search(code):
        return False
    if device_type(region.autocast.device) in ("cpu", "xla", "hpu") or not _SAVES.search(code):
        return False
    scalers = any(isinstance(create.value, Scaler) for create in script.events(events.Create))
    may = {dtype_of(side) for side in sides(region.autocast.dtype, step.facts)}
    return not scalers and "float16" in may and len(may) > 1


@rule("AMP103")
def backward_not_scaled(script: Script) -> Iterator[Finding]:
    """scaler.step() on gradients of a loss that was never scaled; scaler.scale() whose result is dropped."""
    for step in script.events(events.Step):
        before = step.before
        if step.scaler is None or before.kind != "plain" or is_disabled(step.scaler):
            continue
        scaled = [b for b in script.events(events.Backward) if b.scaler is not None]
        for backward in backwards_of(before):
            if flag_decides(backward, scaled) or is_undecided(script, backward):
                continue
            plain = steps_of(script, step.optimizer, scaled=False)
            optional = flag_decides(step, plain, but_for=backward)
            if optional and (scaled or not _computed_here(backward)):
                continue  # another flag may have decided whether the loss is scaled
            if _called_scaler(backward, scaler_in(step)):
                continue  # AMP130
            yield found(
                "AMP103",
                backward,
                "the loss is not scaled, but the step divides its gradients by the loss scale "
                f"({scale_at_first(script, step.scaler)} at first)",
                evidence=[
                    (backward, "unscaled gradients are computed"),
                    (step, f"{scaler_in(step)} divides them by the scale and steps"),
                ],
                help=f"call {scaler_in(step)}.scale(loss).backward()",
                fix=None if optional else _scale_loss(script, backward, step),
            )
    yield from _unscaled_unscaled(script)
    for discard in script.events(events.Discard):
        if isinstance(discard.value, Tensor):
            yield found(
                "AMP103",
                discard,
                "the scaled loss is dropped: scale() returns it and leaves its argument as it is",
                help="call backward() on what scale() returns",
            )


def _called_scaler(backward: events.Backward, scaler: str) -> bool:
    """Whether the scaler itself is called with the loss: `scaler(loss).backward()`."""
    match backward.node:
        case ast.Call(func=ast.Attribute(value=ast.Call(func=function))):
            return text(backward.module, function) == scaler
    return False


def _computed_here(backward: events.Backward) -> bool:
    """Whether it is seen how a loss comes to be, and nothing scales any: not what unseen code hands over."""
    modules = {frame.module for frame in backward.frame.stack()}
    return isinstance(backward.loss, Tensor) and not any(".scale(" in module.text for module in modules)


def _unscaled_unscaled(script: Script) -> Iterator[Finding]:
    """unscale_ on gradients of a loss that was never scaled, whoever steps with them."""
    scaled = [b for b in script.events(events.Backward) if b.scaler is not None]
    for unscale in script.events(events.Unscale):
        if unscale.before.kind != "plain" or unscale.before.stepped or is_disabled(unscale.scaler):
            continue
        if not conditions.possible(conditions.truth(unscale.scaler.enabled), unscale.facts):
            continue
        for backward in backwards_of(unscale.before):
            chosen = flag_decides(backward, scaled) or flag_decides(unscale, scaled)
            if chosen or not isinstance(backward.loss, Tensor) or is_undecided(script, backward):
                continue
            yield found(
                "AMP103",
                backward,
                "the loss is not scaled, but unscale_ divides its gradients by the loss scale "
                f"({scale_at_first(script, unscale.scaler)} at first)",
                evidence=[(backward, "unscaled gradients are computed"), (unscale, "divided by the scale")],
                help=f"call {scaler_in(unscale)}.scale(loss).backward()",
                fix=_scale_loss(script, backward, unscale),
            )


def _scale_loss(script: Script, backward: events.Backward, step: events.Step | events.Unscale) -> Fix | None:
    if not same_function(backward, step) or not isinstance(backward.node, ast.Call) or not receiver(step):
        return None
    dropped = [
        d.node for d in script.events(events.Discard) if isinstance(d.value, Tensor) and same_function(d, backward)
    ]
    statement = dropped[0] if dropped and isinstance(dropped[0], ast.stmt) else None
    return fixes.scale_backward(backward.module, backward.node, receiver(step), statement)


@rule("AMP104")
def mixed_scaled_losses(script: Script) -> Iterator[Finding]:
    """Scaled and unscaled gradients are added up, and the step divides both by the scale."""
    for step in script.events(events.Step):
        before = step.before
        backwards = backwards_of(before)
        scaled = [b for b in backwards if b.scaler is not None]
        if step.scaler is None or before.kind != "mixed" or not scaled:
            continue
        for backward in backwards:
            if backward.scaler is None and not flag_decides(backward, scaled) and not is_undecided(script, backward):
                place = (backward.module, backward.node)
                if backward.module is not script.module:
                    place = call_towards(backward, scaled) or place
                yield found_at(
                    "AMP104",
                    *place,
                    "this loss is not scaled, but its gradients are added to scaled ones and divided by the loss "
                    "scale with "
                    "them: next to nothing is left of it",
                    evidence=[
                        (scaled[-1].module, scaled[-1].node, "these gradients are scaled"),
                        (backward.module, backward.node, "these are not"),
                        (step.module, step.node, "both are divided"),
                    ],
                    help=f"scale every loss of the step: {scaler_in(step)}.scale(loss).backward()",
                    fix=_scale_loss(script, backward, step),
                )


@rule("AMP104")
def scaled_and_unscaled_in_one_sum(script: Script) -> Iterator[Finding]:
    """A scaled loss and one that is not are added, and the sum is sent backward."""
    summed = {id(b.loss.node): b for b in script.events(events.Backward) if isinstance(b.loss, Tensor) and b.scaler}
    for event in script.events(events.Operation):
        if event.name != "add" or len(event.args) != 2 or not isinstance(event.node, ast.BinOp | ast.AugAssign):
            continue
        scaled = [isinstance(one, Tensor) and isinstance(one.scaler, Scaler) for one in event.args]
        other = event.args[scaled.index(False)] if scaled.count(False) == 1 else None
        backward = next((b for b in summed.values() if _from(b.loss, event.node)), None)
        if not isinstance(other, Tensor) or not (other.of or other.region) or backward is None:
            continue
        sides = (event.node.left, event.node.right) if isinstance(event.node, ast.BinOp) else (None, event.node.value)
        side = sides[scaled.index(False)]
        yield found(
            "AMP104",
            event,
            "this loss is not scaled, but it is added to one that is: the step divides both by the scale, and next to "
            "nothing is left of it",
            node=side,
            evidence=[(event, "scaled and not, in one sum"), (backward, "sent backward together")],
            help="add the losses first, then scale the sum",
        )


def _from(loss: Value, node: ast.AST, depth: int = 6) -> bool:
    """Whether a loss is what a node computes, or is made of it in a few operations."""
    return isinstance(loss, Tensor) and (
        loss.node is node or (depth > 0 and any(_from(parent, node, depth - 1) for parent in loss.parents))
    )
