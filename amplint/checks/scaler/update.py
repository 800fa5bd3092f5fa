"""Family 1, update(): once per iteration, after the last step."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import (
    Script,
    alternatives,
    first_argument,
    found,
    may_both_run,
    own_condition,
    receiver,
    rule,
    same_function,
    scaler_in,
    text,
)
from amplint.checks.scaler.accumulation import every_n_batches
from amplint.checks.scaler.protocol import (
    backwards_of,
    flag_decides,
    named,
    steps_of,
)
from amplint.findings import Finding, Fix
from amplint.rewrite.fixes import scaler as fixes
from amplint.rewrite.fixes import unscale as unscaling
from amplint.source import events
from amplint.source.interpret import classes, conditions
from amplint.source.interpret.world import World
from amplint.source.module import Module
from amplint.source.tree import names_in
from amplint.source.values import Class, Instance
from amplint.source.walk import walk


@rule("AMP110")
def missing_update(script: Script) -> Iterator[Finding]:
    """scaler.step() or unscale_() again, although update() has not run since the last step."""
    for event in script.events(events.Event):
        if not isinstance(event, events.Step | events.Unscale) or event.scaler is None or event.state != "stepped":
            continue
        if isinstance(event, events.Unscale) and event.before.stepped:
            continue  # what this unscales has been used: AMP137
        step = next(
            (
                s
                for s in steps_of(script, event.optimizer, scaled=True)
                if s.scaler == event.scaler and s.module is event.module
            ),
            None,
        )
        if step is None or _updates_elsewhere(script, step):
            continue
        name = scaler_in(step)
        yield found(
            "AMP110",
            step,
            f"{name}.update() does not run after {text(step.module, step.node)}: the next round raises RuntimeError",
            evidence=[(step, "steps"), (event, "comes again without an update() in between")],
            help=f"call {name}.update() once per iteration, after the last {name}.step()",
            fix=_update_after(script, step),
        )


def _updates_elsewhere(script: Script, step: events.Step) -> bool:
    """Whether the class of a method that nothing was seen to call updates the same field in another method, of its own
    or of a base that it does not replace: a method that only optimizes is called from there, in whatever file."""
    field, machine = receiver(step).rpartition("self.")[2], script.reading.machine
    for frame in step.frame.stack():
        cls = frame.owner.cls if isinstance(frame.owner, Instance) else None
        if not frame.entry or not isinstance(cls, Class) or not field:
            continue
        replaced = {one.name for one in cls.node.body if isinstance(one, ast.FunctionDef)}
        for base in classes.bases(machine, cls, World(), frame):
            body = base.node.body if isinstance(base, Class) else []
            methods = [one for one in body if isinstance(one, ast.FunctionDef) and one is not frame.code]
            if any((base is cls or one.name not in replaced) and _updates(one, field) for one in methods):
                return True
    return False


def _updates(method: ast.FunctionDef, field: str) -> bool:
    """Whether a method calls self.field.update()."""
    calls = (node.func for node in walk(method) if isinstance(node, ast.Call))
    return any(isinstance(one, ast.Attribute) and ast.unparse(one) == f"self.{field}.update" for one in calls)


def _update_after(script: Script, step: events.Step) -> Fix | None:
    """update() after the last step through this scaler, unless one stands somewhere already (under another
    condition)."""
    if any(update.scaler == step.scaler for update in script.events(events.Update)):
        return None
    steps = [s for s in script.events(events.Step) if s.scaler == step.scaler]
    if not all(same_function(s, step) and s.module is step.module for s in steps):
        return None
    return fixes.update_after(step.module, [s.node for s in steps], receiver(step))


@rule("AMP111")
def misplaced_update(script: Script) -> Iterator[Finding]:
    """update() between unscale_ and step, or without a step: the scaler forgets what it has done."""
    for step in script.events(events.Step):
        before = step.before
        if step.scaler is None or before.kind != "unscaled" or before.stepped or step.state != "ready":
            continue
        update = _last_update(script, step)
        by = before.by[0] if before.by else None
        if update is not None and isinstance(by, events.Unscale) and by.scaler == step.scaler:
            yield found(
                "AMP111",
                update,
                f"{scaler_in(update)}.update() runs between unscale_ and step: the step divides the gradients by the "
                "scale a second time",
                evidence=[
                    (by, "unscaled"),
                    (update, "the scaler forgets that"),
                    (step, "and unscales again"),
                ],
                help="call it once, after the step",
                fix=fixes.update_behind(update.module, update.node, step.node) if same_function(update, step) else None,
            )
    for update in script.events(events.Update):
        if _sets_scale(update):
            continue
        for optimizer, waiting in update.waiting:
            steps = (s for s in steps_of(script, optimizer, True) if s.scaler == update.scaler)
            later = next((s for s in steps if may_both_run(s, update)), None)  # not behind a flag that is off for good
            if update.pairs or later is None or not same_function(later, update) or _stepped_in_a_loop(script, update):
                continue
            yield found(
                "AMP111",
                update,
                f"{scaler_in(update)}.update() runs although nothing was stepped or unscaled since the last one: "
                "AssertionError",
                evidence=[
                    *((b, "gradients wait for a step") for b in backwards_of(waiting)[-1:]),
                    (update, "updates before it"),
                    (later, "the step comes later"),
                ],
                help="call it once, after the step, under the step's condition",
            )


@rule("AMP111")
def update_without_step(script: Script) -> Iterator[Finding]:
    """update() also runs where a condition skips the backward and the step: there is nothing to update from."""
    seen: set[ast.AST] = set()
    for update in script.events(events.Update):
        if update.pairs or update.waiting or update.node in seen or _sets_scale(update):
            continue
        steps = [s for s in script.events(events.Step) if same_function(s, update)]
        mine = [s for s in steps if s.scaler == update.scaler]
        usual = any(
            other.node is update.node and any(state == "stepped" for _, state in other.pairs)
            for other in script.events(events.Update)
        )
        plain = [s for s in steps if s.scaler is None]
        if not mine or not usual or not _on(update) or any(flag_decides(step, plain) for step in mine):
            continue
        skipped = [*mine, *(backward for step in mine for backward in backwards_of(step.before))]
        if not all(own_condition(one.module, one.node, update.node) for one in skipped if same_function(one, update)):
            continue
        seen.add(update.node)
        yield found(
            "AMP111",
            update,
            f"{scaler_in(update)}.update() runs also where nothing was stepped: AssertionError (No inf checks were "
            "recorded prior to update)",
            evidence=[(mine[0], "a condition decides whether this steps"), (update, "this always runs")],
            help="call it right after the step, under the step's condition",
        )


@rule("AMP111")
def update_behind_backward(script: Script) -> Iterator[Finding]:
    """update() right behind the backward, in a function that steps nothing: the step comes later, elsewhere, and
    divides the gradients by a scale that may be another by then."""
    for update in script.events(events.Update):
        module, scaler = update.module, receiver(update)
        if update.pairs or _sets_scale(update) or not scaler or not _on(update):
            continue
        ends = (one for kind in (events.Step, events.Unscale) for one in script.events(kind))
        if any(same_function(one, update) for one in ends):
            continue
        for backward in script.events(events.Backward):
            if backward.scaler != update.scaler or not same_function(backward, update):
                continue
            between = _between(module, backward.node, update.node)
            if between is None or any(not _asks_only(module, statement, scaler) for statement in between):
                continue
            yield found(
                "AMP111",
                update,
                f"{scaler}.update() runs before the step: with nothing stepped since the last one it raises "
                "AssertionError, else the gradients are divided by a scale that they do not carry",
                evidence=[(backward, "gradients wait for a step"), (update, "updates before it")],
                help="call it once, after the step",
            )
            break


def _between(module: Module, first: ast.AST, second: ast.AST) -> list[ast.stmt] | None:
    """The statements between two that stand in one block, the first before the second."""
    for above in (first, *module.ancestors(first)):
        for _, block in ast.iter_fields(module.parents.get(above, above)):
            if isinstance(block, list) and above in block:
                around = {second, *module.ancestors(second)}
                later = [index for index, one in enumerate(block) if one in around and index > block.index(above)]
                return block[block.index(above) + 1 : later[0]] if later else None
    return None


def _asks_only(module: Module, statement: ast.stmt, scaler: str) -> bool:
    """Whether a statement calls nothing but what the scaler says of itself."""
    calls = [node for node in walk(statement) if isinstance(node, ast.Call)]
    return all(text(module, call.func) in (f"{scaler}.get_scale", f"{scaler}.is_enabled") for call in calls)


def _on(update: events.Update) -> bool:
    """Whether the scaler may be on where update() runs: one that is off does nothing."""
    return conditions.possible(conditions.truth(update.scaler.enabled), update.facts)


def _sets_scale(update: events.Update) -> bool:
    """Whether update() is given the new scale: it then asks for no inf checks."""
    return isinstance(update.node, ast.Call) and bool(update.node.args or update.node.keywords)


def _stepped_in_a_loop(script: Script, update: events.Update) -> bool:
    """Whether a loop that has ended before steps through this scaler, each optimizer but for some: `for name in models:
    if name != "judge": scaler.step(…)`. That it steps none is no way through it."""
    module = update.module
    around = set(module.ancestors(update.node))
    return any(
        isinstance(above, ast.For) and above not in around
        for step in script.events(events.Step)
        if step.scaler == update.scaler and same_function(step, update) and step.module is module
        if module.range(step.node).start < module.range(update.node).start
        if not alternatives(module, step.node, update.node)
        for above in module.ancestors(step.node)
    )


def _last_update(script: Script, step: events.Step) -> events.Update | None:
    last = None
    for event in script.reading.events:
        if event is step:
            break
        if isinstance(event, events.Update) and event.scaler == step.scaler:
            last = event
    return last


@rule("AMP112")
def update_between_optimizers(script: Script) -> Iterator[Finding]:
    """update() after one optimizer's step, while another's scaled gradients still wait for theirs."""
    for step in script.events(events.Step):
        before = step.before
        if step.scaler is None or before.kind not in ("scaled", "unknown") or not before.stale or not before.by:
            continue
        update = before.by[0]
        if not isinstance(update, events.Update) or not any(state == "stepped" for _, state in update.pairs):
            continue
        other = next((s for s in script.events(events.Step) if s.optimizer == update.pairs[0][0] and s.scaler), None)
        yield found(
            "AMP112",
            update,
            f"{scaler_in(update)}.update() runs before {named(step)} has stepped: if it changes the scale, those "
            "gradients are divided by the wrong one",
            evidence=[
                *((b, "gradients are scaled with the old scale") for b in backwards_of(before)[-1:]),
                (other, "another optimizer steps"),
                (update, "the scale may change"),
                (step, "and divides by the new one"),
            ],
            help="call update() once per iteration, after the last step",
            fix=_drop_update(script, update, step),
        )


@rule("AMP112")
def update_for_each_optimizer(script: Script) -> Iterator[Finding]:
    """update() in the loop that steps one optimizer after the other, with the gradients of all of them waiting."""
    seen: set[ast.AST] = set()  # in many worlds a place has thousands of events, and each of them would be told
    for update in script.events(events.Update):
        loop = update.loops[-1].node if update.loops else None
        if update.node in seen or not isinstance(loop, ast.For) or update.frame is not update.loops[-1].frame:
            continue
        turns = names_in(loop.target)
        for step in script.events(events.Step):
            if step.scaler != update.scaler or not step.loops or step.loops[-1].node is not loop:
                continue
            backwards = backwards_of(step.before)
            if first_argument(step) not in turns or not (backwards or _left_by_caller(step, loop)):
                continue
            if any(loop is one.node for backward in backwards for one in backward.loops):
                continue
            seen.add(update.node)
            yield found(
                "AMP112",
                update,
                f"{scaler_in(update)}.update() runs after every optimizer's step: if it changes the scale, the "
                "gradients that still wait are divided by the wrong one",
                evidence=[
                    *((one, "gradients are scaled with the old scale") for one in backwards[-1:]),
                    (step, "one optimizer steps"),
                    (update, "the scale may change before the next one does"),
                ],
                help="call update() once, after the loop",
                fix=fixes.update_after_loop(update.module, update.node, loop),
            )
            break


def _left_by_caller(step: events.Step, loop: ast.For) -> bool:
    """Whether the gradients of all optimizers were there before the loop: another method ran the backward passes."""
    if step.before.kind != "entry" or ".scale(" not in step.module.text:
        return False
    return "backward" not in step.module.source(loop)


def _drop_update(script: Script, update: events.Update, step: events.Step) -> Fix | None:
    """Only where another update follows the last step in the same block as that step."""
    later = [u for u in script.events(events.Update) if u.scaler == update.scaler and u.node is not update.node]
    if not any(same_function(u, step) and u.node.lineno > step.node.lineno for u in later):  # type: ignore[attr-defined]
        return None
    return fixes.drop_update(update.module, update.node)


@rule("AMP113")
def step_skipped_without_update(script: Script) -> Iterator[Finding]:
    """A path skips the step after unscale_ and forgets update(): the next unscale_ raises."""
    for unscale in script.events(events.Unscale):
        before = unscale.before
        if unscale.state != "unscaled" or before.kind not in ("scaled", "unknown") or before.stepped:
            continue
        step = next(steps_of(script, unscale.optimizer, scaled=True), None)
        here = [s for s in script.events(events.Step) if s.optimizer == unscale.optimizer and same_function(s, unscale)]
        if step is None and not here:
            continue  # no step is seen at all: a helper that is not followed takes it
        if here and all(s.scaler is None for s in here):
            continue  # no path steps through the scaler: AMP102
        due = any(every_n_batches(s) for s in here)
        if due and not every_n_batches(unscale):
            continue  # not a step that is skipped, but one that is not due: AMP108
        if (due or before.kind == "unknown") and len({s.node for s in here}) != 1:
            continue  # one of several steps takes each path, by conditions that may have been forgotten
        name = scaler_in(unscale)
        yield found(
            "AMP113",
            unscale,
            f"a path skips the step after this and never calls {name}.update(): the next unscale_ raises RuntimeError",
            evidence=[(unscale, "unscaled"), (step, "skipped on one path") if step is not None else (None, "")],
            help=f"call {name}.update() on that path, too",
            fix=unscaling.update_on_the_other_path(unscale.module, unscale.node, here[0].node, name)
            if here and receiver(unscale)
            else None,
        )
