"""Family 1, the scaler protocol: scale, backward, unscale_, clip, step, update, in this order."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import (
    Script,
    alternatives,
    first_argument,
    found,
    receiver,
    rule,
    same_function,
    text,
)
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.interpret import conditions
from amplint.source.interpret.tensors import device_type, dtype_of, region_dtype
from amplint.source.values import (
    FALSE,
    Checkpoint,
    Optimizer,
    Region,
    Scaled,
    Scaler,
    Sym,
    Tensor,
    Value,
)


def _backwards(event: events.Event, gradients: events.Gradients) -> list[events.Backward]:
    return [origin for origin in gradients.origins if isinstance(origin, events.Backward)]


def _steps(script: Script, optimizer: Optimizer, scaled: bool) -> Iterator[events.Step]:
    """All steps of an optimizer, through a scaler or not."""
    for step in script.events(events.Step):
        if step.optimizer == optimizer and (step.scaler is not None) is scaled:
            yield step


def _flag_decides(script: Script, event: events.Event, others: Iterator[events.Step] | list[events.Backward]) -> bool:
    """Whether the other way of doing it stands in the other arm of an `if`: then a flag that amplint cannot relate to the
    scaler chooses between them, and nothing is known to be wrong."""
    return any(
        same_function(event, other)
        and other.module is event.module
        and alternatives(event.module, event.node, other.node)
        for other in others
    )


@rule("AMP101")
def fp16_without_scaler(script: Script) -> Iterator[Finding]:
    """A loss computed under float16 autocast is differentiated and stepped on without a GradScaler."""
    for step in script.events(events.Step):
        before = step.before
        if before.kind != "plain" or before.region is None or (step.closure and step.scaler):
            continue
        for backward in _backwards(step, before):
            region = backward.loss.region if isinstance(backward.loss, Tensor) else before.region
            severity = _half_without_scaler(region)
            if severity is None or (step.scaler is not None and not _disabled(step.scaler)):
                continue
            scaled = [b for b in script.events(events.Backward) if b.scaler is not None]
            if any(same_function(backward, b) for b in scaled) or _flag_decides(script, backward, scaled):
                continue
            assert region is not None
            yield found(
                "AMP101",
                backward,
                f"float16 gradients without a GradScaler: those below {2**-25:.2g} become zero, silently",
                severity=severity,
                evidence=[
                    (_entering(script, region), "the loss is computed in float16 under this autocast"),
                    (backward, "its gradients are computed unscaled"),
                    (step, f"and {text(step.module, step.node)} uses them"),
                ],
                help="scale the loss with torch.amp.GradScaler, or use dtype=torch.bfloat16",
                fix=_complete(script, backward, step, region),
            )


def _complete(script: Script, backward: events.Backward, step: events.Step, region: Region) -> Fix | None:
    """A scaler made beside the optimizer, where everything stands in one function."""
    create = next((c for c in script.events(events.Create) if c.value == step.optimizer), None)
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


def _disabled(scaler: Value) -> bool:
    return isinstance(scaler, Scaler) and scaler.enabled == FALSE


def _entering(script: Script, region: Region) -> events.Event | None:
    return next((event for event in script.events(events.Enter) if event.entered == region), None)


@rule("AMP102")
def step_bypasses_scaler(script: Script) -> Iterator[Finding]:
    """optimizer.step() on gradients that a scaler scaled."""
    for step in script.events(events.Step):
        before = step.before
        if (
            step.scaler is not None
            or before.kind not in ("scaled", "unscaled")
            or not isinstance(before.scaler, Scaler)
        ):
            continue
        if _flag_decides(script, step, _steps(script, step.optimizer, scaled=True)):
            continue
        backward = _backwards(step, before)[-1:]
        evidence: list[tuple[events.Event | None, str]] = [(b, "these gradients are scaled") for b in backward]
        if before.stepped and before.kind == "unscaled":
            through = [s for s in _steps(script, step.optimizer, scaled=True) if same_function(s, step)]
            if not through:
                continue
            evidence += [(through[-1], "this already steps the optimizer")]
            message = f"{_named(step)} steps a second time, past the scaler's check for inf and nan"
            yield found(
                "AMP102", step, message, evidence=evidence, help="remove it: scaler.step() calls optimizer.step()"
            )
        elif before.kind == "unscaled":
            yield found(
                "AMP102",
                step,
                f"{_named(step)} bypasses the scaler: a step with inf or nan gradients is not skipped",
                severity=Severity.WARNING,
                evidence=[*evidence, (before.by[0] if before.by else None, "unscaled here")],
                help=f"call {_scaler_name(script, before)}.step({_named(step)}) instead",
                fix=_through_scaler(script, step),
            )
        else:
            yield found(
                "AMP102",
                step,
                f"{_named(step)} steps with gradients that are still multiplied by the loss scale (65536 at first)",
                evidence=evidence,
                help=f"call {_scaler_name(script, before)}.step({_named(step)}) instead",
                fix=_through_scaler(script, step),
            )


def _through_scaler(script: Script, step: events.Step) -> Fix | None:
    origin = next((b for b in step.before.origins if same_function(b, step)), None)
    if origin is None or not isinstance(step.node, ast.Call):
        return None
    updates = any(u.scaler == step.before.scaler for u in script.events(events.Update))
    return fixes.step_through_scaler(step.module, step.node, _scaler_name(script, step.before), not updates)


def _named(step: events.Step) -> str:
    """The optimizer as the source names it."""
    return first_argument(step) if step.scaler is not None else receiver(step) or "the optimizer"


def _scaler_name(script: Script, gradients: events.Gradients) -> str:
    for origin in gradients.origins:
        scaled = next((n for n in ast.walk(origin.node) if isinstance(n, ast.Attribute) and n.attr == "scale"), None)
        if scaled is not None:
            return text(origin.module, scaled.value)
    return "scaler"


@rule("AMP103")
def backward_not_scaled(script: Script) -> Iterator[Finding]:
    """scaler.step() on gradients of a loss that was never scaled; scaler.scale() whose result is dropped."""
    for step in script.events(events.Step):
        before = step.before
        if step.scaler is None or before.kind != "plain" or _disabled(step.scaler):
            continue
        scaled = [b for b in script.events(events.Backward) if b.scaler is not None]
        for backward in _backwards(step, before):
            if _flag_decides(script, backward, scaled) or _flag_decides(
                script, step, _steps(script, step.optimizer, scaled=False)
            ):
                continue
            yield found(
                "AMP103",
                backward,
                "the loss is not scaled, but the step divides its gradients by the loss scale (65536 at first)",
                evidence=[
                    (backward, "unscaled gradients are computed"),
                    (step, f"{receiver(step)} divides them by the scale and steps"),
                ],
                help=f"call {receiver(step)}.scale(loss).backward()",
                fix=_scale_loss(script, backward, step),
            )
    for discard in script.events(events.Discard):
        if isinstance(discard.value, Tensor):
            yield found(
                "AMP103",
                discard,
                "the scaled loss is dropped: scale() returns it and leaves its argument as it is",
                help="call backward() on what scale() returns",
            )


def _scale_loss(script: Script, backward: events.Backward, step: events.Step) -> Fix | None:
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
        backwards = _backwards(step, before)
        scaled = [b for b in backwards if b.scaler is not None]
        if step.scaler is None or before.kind != "mixed" or not scaled:
            continue
        for backward in backwards:
            if backward.scaler is None and not _flag_decides(script, backward, scaled):
                yield found(
                    "AMP104",
                    backward,
                    "this loss is not scaled, but its gradients are added to scaled ones and divided by the loss scale with "
                    "them: next to nothing is left of it",
                    evidence=[
                        (scaled[-1], "these gradients are scaled"),
                        (backward, "these are not"),
                        (step, "both are divided"),
                    ],
                    help=f"scale every loss of the step: {receiver(step)}.scale(loss).backward()",
                    fix=_scale_loss(script, backward, step),
                )


@rule("AMP105")
def clip_before_unscale(script: Script) -> Iterator[Finding]:
    """Gradients are clipped while they are still multiplied by the loss scale."""
    for clip in script.events(events.Clip):
        for optimizer, before in clip.touched:
            if (
                before.kind == "scaled"
                and not before.stepped
                and isinstance(before.scaler, Scaler)
                and not _measures(clip)
            ):
                yield _clipped(script, clip, optimizer, _backwards(clip, before)[-1:])
    unscales = any(True for _ in script.events(events.Unscale)) or "unscale_" in script.module.text
    if unscales:
        return
    for step in script.events(events.Step):
        if step.scaler is not None and step.before.kind == "entry" and not _disabled(step.scaler):
            for clip in step.clips:
                if isinstance(clip, events.Clip) and same_function(clip, step) and not _measures(clip):
                    yield _clipped(script, clip, step.optimizer, [])


def _clipped(script: Script, clip: events.Clip, optimizer: Optimizer, backwards: list[events.Backward]) -> Finding:
    step = next(_steps(script, optimizer, scaled=True), None)
    evidence: list[tuple[events.Event | None, str]] = [(b, "these gradients are scaled") for b in backwards]
    evidence += [(clip, "clipped while scaled")]
    place = _call_towards(clip, backwards)
    if step is not None:
        evidence += [(step, "unscaled only here, after the clip")]
        name = f"{receiver(step)}.unscale_({first_argument(step)})"
    else:
        name = "scaler.unscale_(optimizer)"
    return found(
        "AMP105",
        clip,
        node=place,
        message="gradients are clipped while they are still multiplied by the loss scale (65536 at first): "
        "the limit acts as if it were that much smaller",
        evidence=evidence,
        help=f"call {name} before clipping",
        fix=_unscale_first(script, clip, place or clip.node, optimizer, step),
    )


def _unscale_first(
    script: Script, clip: events.Clip, place: ast.AST, optimizer: Optimizer, step: events.Step | None
) -> Fix | None:
    """unscale_ before the first of the clips of a step; the fix of one mends the others, too."""
    module = clip.module
    if step is None or step.module is not module or module.function(place) is not module.function(step.node):
        return None
    for other in script.events(events.Clip):
        if other is clip:
            break
        if (
            other.node is not clip.node
            and same_function(other, clip)
            and not alternatives(module, other.node, clip.node)
        ):
            if any(one == optimizer and before.kind in ("scaled", "entry") for one, before in other.touched):
                return None
    return fixes.unscale_before(module, place, receiver(step), first_argument(step), step.node)


def _call_towards(event: events.Event, others: list[events.Backward]) -> ast.AST | None:
    """Where the function that ran `others` calls the helper that `event` is in: what is wrong is wrong there, the helper
    serves other callers, too. None if the event is not in a helper of that function."""
    for other in others:
        call = None
        for frame in event.frame.stack():
            if frame is other.frame:
                return call
            call = frame.call
    return None


def _measures(clip: events.Clip) -> bool:
    """Clipping with no limit only measures the norm."""
    if not isinstance(clip.node, ast.Call):
        return False
    limit = clip.node.args[1] if len(clip.node.args) > 1 else None
    for keyword in clip.node.keywords:
        if keyword.arg in ("max_norm", "clip_value"):
            limit = keyword.value
    if limit is None:
        return False
    match limit:
        case ast.Constant(value=None):
            return True
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() as number)]):
            return number.strip("+-") in ("inf", "infinity")
        case ast.Attribute(attr="inf"):
            return True
    return False


@rule("AMP106")
def scaled_gradient_read(script: Script) -> Iterator[Finding]:
    """Gradients are read or changed by a rule that depends on their size, while they are still scaled."""
    for read in script.events(events.ReadGradient):
        for _, before in read.touched:
            if before.kind == "scaled" and not before.stepped and isinstance(before.scaler, Scaler):
                scaler = _scaler_name(script, before)
                yield found(
                    "AMP106",
                    read,
                    "the gradient is still multiplied by the loss scale (65536 at first) here",
                    evidence=[
                        *((b, "these gradients are scaled") for b in _backwards(read, before)[-1:]),
                        (read, "read scaled"),
                    ],
                    help=f"call {scaler}.unscale_(optimizer) first, once per step",
                )


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
            step = next(_steps(script, optimizer, scaled=True), None)
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


def _move_unscale(unscale: events.Unscale, step: events.Step | None) -> Fix | None:
    if step is None or not same_function(unscale, step):
        return None
    return fixes.move_under_step(unscale.module, unscale.node, step.node)


@rule("AMP110")
def missing_update(script: Script) -> Iterator[Finding]:
    """scaler.step() or unscale_() again, although update() has not run since the last step."""
    for event in script.events(events.Event):
        if not isinstance(event, events.Step | events.Unscale) or event.scaler is None or event.state != "stepped":
            continue
        step = next(
            (
                s
                for s in _steps(script, event.optimizer, scaled=True)
                if s.scaler == event.scaler and s.module is event.module
            ),
            None,
        )
        if step is None:
            continue
        name = receiver(step)
        yield found(
            "AMP110",
            step,
            f"{name}.update() does not run after {text(step.module, step.node)}: the next round raises RuntimeError",
            evidence=[(step, "steps"), (event, "comes again without an update() in between")],
            help=f"call {name}.update() once per iteration, after the last {name}.step()",
            fix=_update_after(script, step),
        )


def _update_after(script: Script, step: events.Step) -> Fix | None:
    """update() after the last step through this scaler, unless one stands somewhere already (under another condition)."""
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
        if update is not None and before.by and isinstance(before.by[0], events.Unscale):
            yield found(
                "AMP111",
                update,
                f"{receiver(update)}.update() runs between unscale_ and step: the step divides the gradients by the scale a "
                "second time",
                evidence=[
                    (before.by[0], "unscaled"),
                    (update, "the scaler forgets that"),
                    (step, "and unscales again"),
                ],
                help="call it once, after the step",
            )
    for update in script.events(events.Update):
        for optimizer, waiting in update.waiting:
            step = next((s for s in _steps(script, optimizer, True) if s.scaler == update.scaler), None)
            if update.pairs or step is None or not same_function(step, update):
                continue
            yield found(
                "AMP111",
                update,
                f"{receiver(update)}.update() runs although nothing was stepped or unscaled since the last one: AssertionError",
                evidence=[
                    *((b, "gradients wait for a step") for b in _backwards(step, waiting)[-1:]),
                    (update, "updates before it"),
                    (step, "the step comes later"),
                ],
                help="call it once, after the step, under the step's condition",
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
        if step.scaler is None or before.kind != "scaled" or not before.stale or not before.by:
            continue
        update = before.by[0]
        if not isinstance(update, events.Update) or not any(state == "stepped" for _, state in update.pairs):
            continue
        other = next((s for s in script.events(events.Step) if s.optimizer == update.pairs[0][0] and s.scaler), None)
        yield found(
            "AMP112",
            update,
            f"{receiver(update)}.update() runs before {_named(step)} has stepped: if it changes the scale, those gradients are "
            "divided by the wrong one",
            evidence=[
                *((b, "gradients are scaled with the old scale") for b in _backwards(step, before)[-1:]),
                (other, "another optimizer steps"),
                (update, "the scale may change"),
                (step, "and divides by the new one"),
            ],
            help="call update() once per iteration, after the last step",
        )


@rule("AMP113")
def step_skipped_without_update(script: Script) -> Iterator[Finding]:
    """A path skips the step after unscale_ and forgets update(): the next unscale_ raises."""
    for unscale in script.events(events.Unscale):
        before = unscale.before
        if unscale.state != "unscaled" or before.kind != "scaled" or before.stepped:
            continue
        step = next(_steps(script, unscale.optimizer, scaled=True), None)
        name = receiver(unscale)
        yield found(
            "AMP113",
            unscale,
            f"a path skips the step after this and never calls {name}.update(): the next unscale_ raises RuntimeError",
            evidence=[(unscale, "unscaled"), (step, "skipped on one path") if step is not None else (None, "")],
            help=f"call {name}.update() on that path, too",
        )


@rule("AMP115")
def scaler_created_in_loop(script: Script) -> Iterator[Finding]:
    """A GradScaler that does not live as long as the training it belongs to."""
    for create in script.events(events.Create):
        if not isinstance(create.value, Scaler) or create.value.enabled == FALSE:
            continue
        used = [b for b in script.events(events.Backward) if b.scaler == create.value]
        for backward in used:
            if not create.loops and not _one_epoch(create, backward):
                continue
            inner = len(backward.loops) > len(create.loops)
            older = [o for o, _ in backward.touched if not _made_in(script, o, create)]
            if not older:
                continue
            if not inner:
                message = "a new GradScaler in every iteration starts at 65536 again: it never learns the scale"
                severity = Severity.ERROR
            else:
                message = "a new GradScaler in every epoch starts at 65536 again, while the optimizer goes on"
                severity = Severity.WARNING
            yield found(
                "AMP115",
                create,
                message,
                severity=severity,
                evidence=[(create, "made here"), (backward, "and used here")],
                help="create it once, beside the optimizer",
                fix=fixes.move_before_loops(create.module, create.node),
            )


def _made_in(script: Script, optimizer: Optimizer, create: events.Create) -> bool:
    """Whether an optimizer is made in the same loop (or function) as the scaler: then both start anew together."""
    for other in script.events(events.Create):
        if other.value == optimizer:
            depth = len(create.loops)
            return [loop.node for loop in other.loops[:depth]] == [loop.node for loop in create.loops]
    return not create.loops and not isinstance(optimizer.site, Sym)


def _one_epoch(create: events.Create, backward: events.Backward) -> bool:
    """Whether a function that nothing calls here is run once an epoch: it is told which epoch it runs, is given the
    optimizer, and holds the one loop over batches."""
    code = create.frame.code
    if not create.frame.entry or not isinstance(code, ast.FunctionDef) or len(backward.loops) != 1:
        return False
    names = {argument.arg for argument in (*code.args.args, *code.args.kwonlyargs)}
    return bool(names & {"epoch", "cur_epoch", "current_epoch", "epoch_idx", "epoch_num", "i_epoch", "ep"}) and any(
        isinstance(optimizer.site, Sym) and optimizer.site.kind == "argument" for optimizer, _ in backward.touched
    )


@rule("AMP116")
def scaler_state_not_saved(script: Script) -> Iterator[Finding]:
    """A checkpoint holds the optimizer's state but not the scaler's."""
    scalers = {b.scaler for b in script.events(events.Backward) if isinstance(b.scaler, Scaler)}
    scalers |= {s.scaler for s in script.events(events.Step) if isinstance(s.scaler, Scaler)}
    scalers |= {c.value for c in script.events(events.Create) if isinstance(c.value, Scaler)}
    scalers = {scaler for scaler in scalers if scaler.enabled != FALSE}
    if not scalers or _saves_scaler(script):
        return
    for save in script.events(events.Save):
        if save.module is not script.module or not _holds_optimizer(save):
            continue
        if not save.complete and not save.registers and save.mapping is None:
            continue
        maker = next((c for c in script.events(events.Create) if c.value in scalers), None)
        at = save.mapping if isinstance(save.mapping, ast.Dict) else None
        event: events.Event = maker if save.registers and maker is not None else save
        yield found(
            "AMP116",
            event,
            "the checkpoint holds the optimizer's state but not the scaler's: a resumed run starts at a scale of 65536 "
            "again and skips steps",
            node=None if event is maker else _optimizer_entry(at) or save.node,
            evidence=[(maker, "the scaler"), (save, "saved without it")],
            help="save scaler.state_dict(), too, and load it where the optimizer's state is loaded",
            fix=_save_scaler(script, save, maker),
        )


def _save_scaler(script: Script, save: events.Save, maker: events.Create | None) -> Fix | None:
    """The scaler's state beside the optimizer's, where the scaler has a name."""
    if not isinstance(save.mapping, ast.Dict) or maker is None or maker.module is not save.module:
        return None
    entry = _optimizer_entry(save.mapping)
    statement = script.module.statement(maker.node)
    if entry is None or not isinstance(statement, ast.Assign) or statement.value is not maker.node:
        return None
    target = statement.targets[0]
    in_reach = isinstance(target, ast.Attribute) or same_function(maker, save)
    if not in_reach or not isinstance(target, ast.Name | ast.Attribute):
        return None
    return fixes.add_state(script.module, save.mapping, entry, text(script.module, target))


def _saves_scaler(script: Script) -> bool:
    """Whether the state of any scaler is saved or asked for."""
    if any(isinstance(part, Scaler) for save in script.events(events.Save) for part in save.parts):
        return True
    names: set[str] = set()
    for event in script.events(events.Event):
        if isinstance(event, events.Step | events.Unscale) and event.scaler is not None:
            names.add(receiver(event).rpartition(".")[2])
    for node in ast.walk(script.module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="state_dict", value=owner)):
                last = text(script.module, owner).rpartition(".")[2]
                if last in names or "scaler" in last.lower():
                    return True
    return False


def _holds_optimizer(save: events.Save) -> bool:
    if any(isinstance(part, Optimizer) for part in save.parts):
        return True
    return isinstance(save.mapping, ast.Dict) and _optimizer_entry(save.mapping) is not None


def _optimizer_entry(mapping: ast.Dict | None) -> ast.AST | None:
    """The entry of a dict literal that holds an optimizer's state."""
    if mapping is None:
        return None
    for key, value in zip(mapping.keys, mapping.values, strict=True):
        match key, value:
            case ast.Constant(value=str() as name), ast.Call(func=ast.Attribute(attr="state_dict")) if "optim" in name:
                return value
    return None


@rule("AMP120")
def misplaced_zero_grad(script: Script) -> Iterator[Finding]:
    """Gradients are thrown away before the step that should use them."""
    for step in script.events(events.Step):
        before = step.before
        if step.scaler is None or before.kind != "none" or not before.lost or not before.by:
            continue
        zero = before.by[0]
        backwards = _backwards(step, before)[-1:]
        yield found(
            "AMP120",
            zero,
            "gradients are set to zero between backward and step: the step changes nothing, or raises AssertionError",
            evidence=[
                *((b, "gradients are computed") for b in backwards),
                (zero, "and thrown away"),
                (step, "before this uses them"),
            ],
            help="call it after the step, or before the forward",
            fix=_zero_after(script, zero, step),
        )


def _zero_after(script: Script, zero: events.Event, step: events.Step) -> Fix | None:
    if not same_function(zero, step):
        return None
    update = next((u for u in script.events(events.Update) if u.scaler == step.scaler and same_function(u, step)), None)
    return fixes.zero_after(zero.module, zero.node, step.node, update.node if update else None)


@rule("AMP133")
def scaler_state_not_restored(script: Script) -> Iterator[Finding]:
    """The scaler's state is saved but never loaded, or loaded from where it may be missing or empty."""
    loads = [load for load in script.events(events.Load) if isinstance(load.target, Scaler)]
    for load in loads:
        source = load.source
        if isinstance(source, Checkpoint) and source.path and not _guarded(load):
            yield found(
                "AMP133",
                load,
                "a checkpoint without the scaler's state raises KeyError here, one from a run with a disabled scaler "
                "RuntimeError (its state is empty)",
                severity=Severity.NOTE,
                help='load it only if it is there: if checkpoint.get("scaler"): …',
            )
    for save in script.events(events.Save):
        if not save.registers:
            continue
        for part in save.parts:
            if isinstance(part, Scaler) and conditions.evaluate(conditions.truth(part.enabled), save.facts) is not True:
                yield found(
                    "AMP133",
                    save,
                    "a scaler that may be disabled becomes part of the checkpoint: its state is then empty, and loading that "
                    "into an enabled scaler raises RuntimeError",
                    severity=Severity.NOTE,
                    help="register it only where it is enabled",
                )
    saves = [s for s in script.events(events.Save) if any(isinstance(p, Scaler) for p in s.parts) and not s.registers]
    resumes = [load for load in script.events(events.Load) if isinstance(load.target, Optimizer)]
    if saves and resumes and not loads and ".load_state_dict" in script.module.text:
        if not any("scaler" in text(load.module, load.node) for load in script.events(events.Load)):
            yield found(
                "AMP133",
                resumes[0],
                "the optimizer's state is restored, the scaler's is not, although it was saved: the scale starts at 65536 again",
                evidence=[(saves[0], "saved here"), (resumes[0], "not restored here")],
                help="load the scaler's state beside the optimizer's",
            )


def _guarded(load: events.Load) -> bool:
    """Whether a condition asks for the scaler or its state before it is loaded, or a handler catches its absence."""
    for above in load.module.ancestors(load.node):
        if isinstance(above, ast.Try):
            return True
        if isinstance(above, ast.If) and "scaler" in text(load.module, above.test, 200):
            test = text(load.module, above.test, 200)
            if any(word in test for word in (" in ", ".get(", "[", "keys")):
                return True
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef):
            return False
    return False


@rule("AMP134")
def wrong_scaler_or_optimizer(script: Script) -> Iterator[Finding]:
    """One optimizer is unscaled and not stepped, another is stepped and not unscaled."""
    for step in script.events(events.Step):
        if step.scaler is None:
            continue
        unscales = [u for u in script.events(events.Unscale) if u.scaler == step.scaler and same_function(u, step)]
        stepped = {
            s.optimizer for s in script.events(events.Step) if s.scaler == step.scaler and same_function(s, step)
        }
        unscaled = {u.optimizer for u in unscales}
        if not unscaled or step.optimizer in unscaled or not unscaled - stepped:
            continue
        odd = next(u for u in unscales if u.optimizer not in stepped)
        yield found(
            "AMP134",
            step,
            f"{first_argument(step)} is stepped but was not unscaled, and {first_argument(odd)} was unscaled but is not "
            "stepped: one of them is the wrong one",
            evidence=[(odd, "unscaled, never stepped"), (step, "stepped, not unscaled")],
            help="unscale and step the same optimizers",
        )


@rule("AMP136")
def wrong_accumulation(script: Script) -> Iterator[Finding]:
    """Gradients of micro-batches are thrown away before the step that should add them up."""
    for zero in script.events(events.ZeroGradient):
        for optimizer, before in zero.touched:
            if before.kind not in ("scaled", "plain") or before.stepped:
                continue
            step = next(
                (s for s in script.events(events.Step) if s.optimizer == optimizer and same_function(s, zero)), None
            )
            if step is None or not _every_n_batches(step) or _every_n_batches(zero):
                continue
            yield found(
                "AMP136",
                zero,
                "gradients are set to zero in every micro-batch, but the step runs only every few: it uses the last one alone",
                evidence=[
                    (zero, "every micro-batch"),
                    *((b, "gradients are computed") for b in _backwards(step, before)[-1:]),
                    (step, "every few micro-batches"),
                ],
                help="set them to zero where the step is, after it",
            )


@rule("AMP136")
def apex_unscales_every_micro_batch(script: Script) -> Iterator[Finding]:
    """apex: scale_loss without delay_unscale in a loop of micro-batches."""
    for backward in script.events(events.Backward):
        context = next((one for one in reversed(backward.contexts) if isinstance(one, Scaled)), None)
        if context is None or context.delayed:
            continue
        if any(before.kind == "managed" and not before.stepped for _, before in backward.touched):
            yield found(
                "AMP136",
                backward,
                "apex unscales the gradients after every micro-batch, and checks each for overflow by itself",
                severity=Severity.NOTE,
                help="pass delay_unscale=True to scale_loss in all micro-batches but the last",
            )


def _every_n_batches(event: events.Event) -> bool:
    """Whether a condition counts batches (`i % n == 0`) before this runs."""
    module = event.module
    function = module.function(event.node)
    counts = {
        target.id
        for assign in ast.walk(function or module.tree)
        if isinstance(assign, ast.Assign) and _has_modulo(assign.value)
        for target in assign.targets
        if isinstance(target, ast.Name)
    }
    for above in module.ancestors(event.node):
        if above is function:
            return False
        if isinstance(above, ast.If) and (
            _has_modulo(above.test) or any(isinstance(n, ast.Name) and n.id in counts for n in ast.walk(above.test))
        ):
            return True
    return False


def _has_modulo(node: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mod) and not isinstance(inner.left, ast.Constant)
        for inner in ast.walk(node)
    )
