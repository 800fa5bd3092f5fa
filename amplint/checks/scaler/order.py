"""Family 1, in which order: backward, unscale_, clip, step."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import partial

from amplint.checks.registry import (
    Script,
    alternatives,
    first_argument,
    found,
    found_at,
    may_both_run,
    own_condition,
    receiver,
    rule,
    same_function,
    text,
)
from amplint.checks.scaler.accumulation import every_n_batches
from amplint.checks.scaler.protocol import (
    backwards_of,
    forks,
    is_disabled,
    is_undecided,
    lineno,
    measures,
    same_arm,
    scale_at_first,
    scaler_name,
    steps_of,
    unscaled_by_a_method,
    unscaled_in_last_round,
)
from amplint.checks.scaler.reading import call_towards, scale_cancels
from amplint.findings import Finding, Fix
from amplint.rewrite.fixes import scaler as fixes
from amplint.rewrite.fixes import suite_of
from amplint.rewrite.fixes import unscale as unscaling
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import names_in
from amplint.source.values import Optimizer, Scaler
from amplint.source.walk import walk


@rule("AMP105")
def clip_before_unscale(script: Script) -> Iterator[Finding]:
    """Gradients are clipped while they are still multiplied by the loss scale."""
    for clip in script.events(events.Clip):
        for optimizer, before in clip.touched:
            if (
                before.kind == "scaled"
                and not before.stepped
                and isinstance(before.scaler, Scaler)
                and not measures(clip)
                and not _mixed_in(script, clip, optimizer)
                and not _for_runs_without(script, clip, optimizer, backwards_of(before))
                and not unscaled_by_a_method(clip)
                and not _unscaled_as_it_is_stepped(script, clip, optimizer)
                and not unscaled_in_last_round(script, clip, optimizer, backwards_of(before))
                and not any(is_undecided(script, one) for one in backwards_of(before))
            ):
                yield _clipped(script, clip, optimizer, backwards_of(before)[-1:])
        if not clip.touched and not measures(clip) and not unscaled_by_a_method(clip):
            yield from _whoevers(script, clip)
    for unscale in script.events(events.Unscale):
        yield from _clipped_on_entry(script, unscale)
    unscales = any(True for _ in script.events(events.Unscale)) or "unscale_" in script.module.text
    if unscales:
        return
    for step in script.events(events.Step):
        if step.scaler is not None and step.before.kind == "entry" and not is_disabled(step.scaler):
            for seen in step.clips:
                if same_function(seen, step) and not measures(seen):
                    yield _clipped(script, seen, step.optimizer, [])
    for clip in script.events(events.Clip):
        if not clip.touched and not measures(clip) and not unscaled_by_a_method(clip):
            yield from _one_of_several(script, clip)


def _clipped_on_entry(script: Script, unscale: events.Unscale) -> Iterator[Finding]:
    """A clip of gradients that a function is entered with (or a method's, of any that are scaled), in front of their
    unscale_, which would raise if they had been unscaled by then."""
    optimizer, before = unscale.optimizer, unscale.before
    if before.kind in ("entry", "scaled") and not before.stepped and not is_disabled(unscale.scaler):
        clips = unscale.clips if before.kind == "entry" else ()
        for clip in (*clips, *unscale.clipped_by_methods):
            first = clip.frame is unscale.frame and lineno(clip.node) < lineno(unscale.node)
            if first and not measures(clip) and not _for_runs_without(script, clip, optimizer, []):
                yield _clipped(script, clip, optimizer, [], unscale)


def _one_of_several(script: Script, clip: events.Clip) -> Iterator[Finding]:
    """A clip of gradients that a function is entered with, where several things can be the optimizer that owns them (a
    factory gives back what it makes or is given), and the function steps each of them through a scaler."""
    every = [step for step in script.events(events.Step) if same_function(step, clip)]
    steps = [
        step
        for step in every
        if step.scaler is not None and not is_disabled(step.scaler) and lineno(step.node) > lineno(clip.node)
    ]
    owners = {one for one, before in clip.perhaps if before.kind == "entry"}
    stepped = {step.optimizer for step in steps if step.before.kind == "entry" and may_both_run(clip, step)}
    nodes = {step.node for step in every if step.optimizer in stepped}
    others = [
        node
        for node in walk(clip.module.function(clip.node) or clip.node)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "step" and node not in nodes
    ]
    if others or len({_named(step) for step in steps}) != 1:
        return
    if owners and len(owners) == len(clip.perhaps) and owners <= stepped:
        yield _clipped(script, clip, steps[0].optimizer, [])


def _whoevers(script: Script, clip: events.Clip) -> Iterator[Finding]:
    """A clip where no optimizer is known to own the gradients, but whichever does, they are scaled."""
    for optimizer, before in _steps_next(script, clip):
        backwards = backwards_of(before)
        if _for_runs_without(script, clip, optimizer, backwards) or _unscaled_as_it_is_stepped(script, clip, optimizer):
            continue
        yield _clipped(script, clip, optimizer, backwards[-1:])


def _steps_next(script: Script, use: events.Clip | events.ReadGradient) -> Iterator[tuple[Optimizer, events.Gradients]]:
    """Of the optimizers that may own the gradients, all of which are scaled, the one that the function steps next."""
    if not all(before.kind == "unknown" and before.scaler and not before.stepped for _, before in use.perhaps):
        return
    later = [
        step
        for step in script.events(events.Step)
        if step.scaler is not None and same_function(step, use) and lineno(step.node) > lineno(use.node)
    ]
    nearest = min(later, key=lambda step: lineno(step.node), default=None)
    yield from (one for one in use.perhaps if nearest is not None and one[0] == nearest.optimizer)


def _unscaled_as_it_is_stepped(script: Script, clip: events.Clip, optimizer: Optimizer) -> bool:
    """Whether what is stepped in the clip's function is unscaled in front of it: by the same words, which name one
    of several optimizers in a dictionary (`self.optimizers[uid]`), or the only one that is stepped there, while
    `optimizer` is not (an adversary's own name for it)."""
    steps = [step for step in script.events(events.Step) if step.scaler is not None and same_function(step, clip)]
    names = {_named(step) for step in steps}
    elsewhere = len(names) == 1 and all(step.optimizer != optimizer for step in steps)
    return any(
        same_function(unscale, clip)
        and unscale.node.lineno < clip.node.lineno  # type: ignore[attr-defined]
        and (elsewhere or "[" in _named(unscale))
        and _named(unscale) in names
        and not alternatives(clip.module, unscale.node, clip.node)
        for unscale in script.events(events.Unscale)
    )


def _named(event: events.Step | events.Unscale) -> str:
    """What an optimizer is called where a scaler is given it."""
    call = event.node
    return text(event.module, call.args[0], 200) if isinstance(call, ast.Call) and call.args else ""


def _for_runs_without(
    script: Script, clip: events.Clip, optimizer: Optimizer, backwards: list[events.Backward]
) -> bool:
    """Whether the clip's arm of a branch is for runs without a scaler: the other arm unscales or steps through it, and
    no scaled backward stands in this one, nor anything else that the scaler does. What asks for the limit alone (`if
    max_norm is not None`) asks for no scaler."""
    unscales = [u for u in script.events(events.Unscale) if u.optimizer == optimizer]
    others = [*unscales, *steps_of(script, optimizer, scaled=True)]
    return any(
        not any(same_arm(branch, clip, one) for one in (*backwards, *others)) and not _asks_for_limit(clip, branch)
        for branch in forks(clip, others)
    )


def _asks_for_limit(clip: events.Clip, branch: ast.AST) -> bool:
    """Whether a branch asks for nothing but what the clip is given."""
    asked = names_in(branch.test) if isinstance(branch, ast.If) else set()
    given = clip.node.args[1:] + [one.value for one in clip.node.keywords] if isinstance(clip.node, ast.Call) else []
    return bool(asked) and asked <= names_in(*given) - {"self"}


def _mixed_in(script: Script, clip: events.Clip, optimizer: Optimizer) -> bool:
    """Whether the clip is meant for another optimizer's gradients, which are unscaled, while no scaler ever steps this
    one: nothing shows that both are there at once."""
    others = any(one != optimizer and before.kind == "unscaled" for one, before in clip.touched)
    return others and next(steps_of(script, optimizer, scaled=True), None) is None


def _clipped(
    script: Script,
    clip: events.Clip,
    optimizer: Optimizer,
    backwards: list[events.Backward],
    unscale: events.Unscale | None = None,
) -> Finding:
    step = min(steps_of(script, optimizer, scaled=True), key=partial(_distance, clip), default=None)
    evidence: list[tuple[events.Event | None, str]] = [(b, "these gradients are scaled") for b in backwards]
    evidence += [(clip, "clipped while scaled")]
    module, place = call_towards(clip, backwards) or (clip.module, clip.node)
    name = "unscale_ of the scaler"
    scale = scale_at_first(script, backwards[0].scaler if backwards else None)
    if step is not None:
        evidence += [(unscale or step, "unscaled only here, after the clip")]
        one_object = clip.frame.owner is not None and step.frame.owner == clip.frame.owner
        same = same_function(step, clip) or one_object or place is not clip.node  # the names mean the same there
        if same and receiver(step):
            name = f"{receiver(step)}.unscale_({first_argument(step)})"
    return found_at(
        "AMP105",
        module,
        place,
        message=f"gradients are clipped while they are still multiplied by the loss scale ({scale} at first): "
        "the limit acts as if it were that much smaller",
        evidence=[(event.module, event.node, words) for event, words in evidence if event is not None],
        help=f"call {name} before clipping",
        fix=_unscale_first(script, clip, module, place, optimizer, step),
    )


def _distance(event: events.Event, step: events.Step) -> tuple[bool, bool, bool]:
    """Which step a clip, or unscale_, is for: one that its function takes, in the same arm of a branch, behind it."""
    if not same_function(step, event):
        return True, False, False
    return False, alternatives(event.module, event.node, step.node), lineno(step.node) < lineno(event.node)


def _unscale_first(
    script: Script, clip: events.Clip, module: Module, place: ast.AST, optimizer: Optimizer, step: events.Step | None
) -> Fix | None:
    """unscale_ before the first of the clips of a step; the fix of one mends the others, too."""
    if step is None or step.module is not module:
        return None
    if module.function(place) is not module.function(step.node):
        return _unscale_in_method(clip, step) if place is clip.node else None
    for other in script.events(events.Clip):
        if other is clip:
            break
        together = same_function(other, clip) and not alternatives(clip.module, other.node, clip.node)
        if other.node is clip.node or not together:
            continue
        owned = other.touched or other.perhaps
        if other in step.clips or any(one == optimizer and at.kind in ("scaled", "entry") for one, at in owned):
            return None
    for late in script.events(events.Unscale):
        behind = same_function(late, step) and lineno(late.node) > lineno(place)
        if late.optimizer == optimizer and behind and not alternatives(module, place, late.node):
            return unscaling.before_clip(module, late.node, place)  # a second one would raise RuntimeError
    return fixes.unscale_before(module, place, receiver(step), first_argument(step), step.node)


def _unscale_in_method(clip: events.Clip, step: events.Step) -> Fix | None:
    """unscale_ before a clip whose step is in another method of the same object, where one function calls both in one
    block: as often as each other."""
    module = clip.module
    scaler, optimizer = receiver(step), first_argument(step)
    methods = [module.function(clip.node), module.function(step.node)]
    classes = {module.parents[method] for method in methods if method is not None}
    if len(classes) != 1 or not isinstance(next(iter(classes)), ast.ClassDef):
        return None
    if not (scaler.startswith("self.") and optimizer.startswith("self.")) or not _called_together(clip, step):
        return None
    return fixes.unscale_before_guarded(module, clip.node, scaler, optimizer, step.node)


def _called_together(one: events.Event, other: events.Event) -> bool:
    """Whether the nearest caller of both calls them (or what leads to them) in one block."""
    common = next((frame for frame in one.frame.stack() if frame in tuple(other.frame.stack())), None)
    suites = []
    for event in (one, other):
        node: ast.AST | None = event.node
        for frame in event.frame.stack():
            if frame is common:
                break
            node = frame.call
        if common is None or node is None:
            return False
        suites.append(suite_of(common.module, common.module.statement(node)))
    return suites[0] is suites[1]


@rule("AMP106")
def scaled_gradient_read(script: Script) -> Iterator[Finding]:
    """Gradients are read or changed by a rule that depends on their size, while they are still scaled."""
    for read in script.events(events.ReadGradient):
        scaled = [one for one in read.touched if one[1].kind == "scaled" and not one[1].stepped]
        for optimizer, before in [*scaled, *_steps_next(script, read)]:
            backwards = backwards_of(before)
            if scale_cancels(read):
                continue
            if isinstance(before.scaler, Scaler) and not unscaled_in_last_round(script, read, optimizer, backwards):
                scaler = scaler_name(before)
                module, place = (read.module, read.node)
                if read.module is not script.module:
                    module, place = call_towards(read, backwards) or (module, place)
                yield found_at(
                    "AMP106",
                    module,
                    place,
                    f"the gradient is still multiplied by the loss scale ({scale_at_first(script, before.scaler)} at "
                    "first) here",
                    evidence=[
                        *((b.module, b.node, "these gradients are scaled") for b in backwards[-1:]),
                        (read.module, read.node, "read scaled"),
                    ],
                    help=f"call {scaler}.unscale_(optimizer) first, once per step",
                    fix=_unscale_before_read(script, read, optimizer),
                )


def _unscale_before_read(script: Script, read: events.ReadGradient, optimizer: Optimizer) -> Fix | None:
    """unscale_ before the first of the reads, in the block of the step."""
    steps = {step.node: step for step in steps_of(script, optimizer, scaled=True)}
    step = next(iter(steps.values()), None)
    if step is None or len(steps) > 1 or step.module is not read.module or not same_function(read, step):
        return None
    if any(other.optimizer == optimizer and same_function(other, step) for other in script.events(events.Unscale)):
        return None
    uses: list[events.ReadGradient | events.Clip] = [*script.events(events.ReadGradient), *script.events(events.Clip)]
    for other in uses:
        touches = any(one == optimizer for one, _ in other.touched)
        if touches and same_function(other, step) and lineno(other.node) < lineno(read.node):
            return None
    return unscaling.before_read(step.module, read.node, receiver(step), first_argument(step), step.node)


@rule("AMP108")
def unscale_per_micro_batch(script: Script) -> Iterator[Finding]:
    """Scaled gradients are added to gradients that were unscaled already: unscale_ runs in every micro-batch."""
    for backward in script.events(events.Backward):
        if backward.scaler is None:
            continue
        for optimizer, before in backward.touched:
            if before.kind != "unscaled" or before.stepped or not before.by:
                continue
            unscale = before.by[0]
            if not isinstance(unscale, events.Unscale) or unscale.scaler != backward.scaler:
                continue
            step = min(steps_of(script, optimizer, scaled=True), key=partial(_distance, unscale), default=None)
            if step is not None and _in_one_round(unscale, step, backward):
                continue
            yield found(
                "AMP108",
                unscale,
                "unscale_ runs before all gradients of the step are there: the next backward adds scaled gradients to "
                "unscaled ones, and a second unscale_ raises RuntimeError",
                evidence=[
                    (unscale, "gradients are unscaled"),
                    (backward, "scaled gradients are added to them in the next micro-batch"),
                    (step, "the step comes later") if step is not None else (None, ""),
                ],
                help="call unscale_ once per step, under the same condition as the step",
                fix=_move_unscale(unscale, step),
            )


def _in_one_round(unscale: events.Unscale, step: events.Step, backward: events.Backward) -> bool:
    """Whether a loop over micro-batches, which the step follows, unscales under a condition: in the last of them."""
    over = {loop.node for loop in unscale.loops} - {loop.node for loop in step.loops}
    return bool(over) and own_condition(unscale.module, unscale.node, backward.node)


@rule("AMP108")
def unscale_again(script: Script) -> Iterator[Finding]:
    """unscale_ runs in every micro-batch, step and update only every few, and zero_grad hides that gradients of two
    sizes would be added: the second unscale_ raises all the same."""
    for unscale in script.events(events.Unscale):
        if unscale.before.kind != "scaled" or unscale.before.stepped or unscale.state not in ("unscaled", "unknown"):
            continue
        inner = [loop.node for loop in unscale.loops]
        ends: list[events.Step | events.Update] = []
        ends += (one for one in script.events(events.Step) if one.scaler == unscale.scaler)
        ends += (one for one in script.events(events.Update) if one.scaler == unscale.scaler)
        ends = [one for one in ends if same_function(one, unscale)]
        steps = [one for one in ends if isinstance(one, events.Step) and one.optimizer == unscale.optimizer]
        if not inner or not steps or len(ends) == len(steps) or every_n_batches(unscale):
            continue
        if all(every_n_batches(one) and [loop.node for loop in one.loops] == inner for one in ends):
            yield found(
                "AMP108",
                unscale,
                "unscale_ runs in every micro-batch, step and update only every few: the second unscale_ before an "
                "update raises RuntimeError",
                evidence=[(unscale, "every micro-batch"), (steps[0], "every few micro-batches")],
                help="call unscale_ once per step, under the same condition as the step",
                fix=_move_unscale(unscale, steps[0]),
            )


def _move_unscale(unscale: events.Unscale, step: events.Step | None) -> Fix | None:
    if step is None or not same_function(unscale, step):
        return None
    return fixes.move_under_step(unscale.module, unscale.node, step.node)
