"""Steps past the scaler (AMP102): optimizer.step() on gradients that a scaler scaled."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found, may_both_run, receiver, rule, same_function, text
from amplint.checks.scaler.protocol import (
    backwards_of,
    forks,
    named,
    same_arm,
    scale_at_first,
    scaler_name,
    steps_of,
)
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.values import TRUE, Scaler


@rule("AMP102")
def step_bypasses_scaler(script: Script) -> Iterator[Finding]:
    """optimizer.step() on gradients that a scaler scaled."""
    for step in script.events(events.Step):
        before = step.before
        if (
            step.scaler is not None
            or before.kind not in ("scaled", "unscaled", "unknown")
            or (before.kind == "unknown" and before.stepped)
            or not isinstance(before.scaler, Scaler)
            or _has_a_scaler(step)
            or _is_engine(script, step)
        ):
            continue
        backward = backwards_of(before)[-1:]
        choosing = forks(step, steps_of(script, step.optimizer, scaled=True))
        if any(not backward or not same_arm(branch, step, backward[0]) for branch in choosing):
            continue
        evidence: list[tuple[events.Event | None, str]] = [(b, "these gradients are scaled") for b in backward]
        if before.stepped and before.kind == "unscaled":
            stepped = [one for one in steps_of(script, step.optimizer, scaled=True) if may_both_run(one, step)]
            here = [one for one in stepped if same_function(one, step)]
            through = here or [one for one in stepped if step.frame in one.frame.stack()]  # by what this function calls
            if not through:
                continue
            evidence += [(through[-1], "this already steps the optimizer")]
            message = f"{named(step)} steps a second time, past the scaler's check for inf and nan"
            yield found(
                "AMP102",
                step,
                message,
                evidence=evidence,
                help="remove it: scaler.step() calls optimizer.step()",
                fix=fixes.drop_second_step(step.module, step.node) if here else None,
            )
        elif before.kind == "unscaled":
            yield found(
                "AMP102",
                step,
                f"{named(step)} bypasses the scaler: a step with inf or nan gradients is not skipped",
                severity=Severity.WARNING,
                evidence=[*evidence, (before.by[0] if before.by else None, "unscaled here")],
                help=f"call {scaler_name(before)}.step({named(step)}) instead",
                fix=_through_scaler(script, step),
            )
        else:
            yield found(
                "AMP102",
                step,
                f"{named(step)} steps with gradients that are still multiplied by the loss scale "
                f"({scale_at_first(script, before.scaler)} at first)",
                severity=None if _is_plain(script, step, before.scaler) else Severity.NOTE,
                evidence=evidence,
                help=f"call {scaler_name(before)}.step({named(step)}) instead",
                fix=_through_scaler(script, step),
            )


def _is_plain(script: Script, step: events.Step, scaler: Scaler) -> bool:
    """Whether scaler and optimizer are surely torch's: made here, or the scaler is updated, or steps, as torch's does.
    What else is used as a scaler may well be one that an optimizer of its own reads."""
    if scaler.node is not None and step.optimizer.node is not None:
        return True
    return any(one.scaler == scaler for one in script.events(events.Update)) or any(
        one.scaler == scaler for one in script.events(events.Step)
    )


def _has_a_scaler(step: events.Step) -> bool:
    """Whether a step is handed a scaler, which it then uses (`optimizer.step(grad_scaler=scaler)`), or what steps holds
    it: `trainer.scaler.scale(loss).backward()`, then `trainer.step()`."""
    if scaler_name(step.before).startswith(f"{receiver(step)}."):
        return True
    given = step.node.keywords if isinstance(step.node, ast.Call) else []
    return any("scaler" in text(step.module, keyword.value).lower() for keyword in given)


def _is_engine(script: Script, step: events.Step) -> bool:
    """Whether what steps has a backward of its own in the same function: `engine.backward(loss)`. What the other arm
    differentiates is not what it steps with."""
    backwards = (one for one in script.events(events.Backward) if one.managed and same_function(one, step))
    return any(receiver(one) == receiver(step) for one in backwards)


def _through_scaler(script: Script, step: events.Step) -> Fix | None:
    origin = next((b for b in step.before.origins if same_function(b, step)), None)
    if origin is None or not isinstance(step.node, ast.Call):
        return None
    if isinstance(step.before.scaler, Scaler) and step.before.scaler.enabled == TRUE and _also_plain(script, step):
        return None  # there is no scaler then, or one that divides what nothing has scaled
    updates = any(u.scaler == step.before.scaler for u in script.events(events.Update))
    return fixes.step_through_scaler(step.module, step.node, scaler_name(step.before), not updates)


def _also_plain(script: Script, step: events.Step) -> bool:
    """Whether the same step is also taken in runs that scale nothing: `if scaler: scaler.scale(loss).backward()`."""
    return any(other.node is step.node and other.before.kind == "plain" for other in script.events(events.Step))
