"""Family 1, the scaler's life: made once, saved and restored with the optimizer."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from amplint.checks.around import resumes
from amplint.checks.registry import (
    Script,
    class_of,
    first_argument,
    found,
    found_at,
    receiver,
    rule,
    same_function,
    text,
)
from amplint.checks.scaler.protocol import first_scale, only_bfloat16
from amplint.checks.scaler.states import last_name
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.module import Module
from amplint.source.values import (
    FALSE,
    Instance,
    Object,
    Optimizer,
    Scaler,
    Sym,
    Value,
)
from amplint.source.walk import walk


@rule("AMP115")
def scaler_created_in_loop(script: Script) -> Iterator[Finding]:
    """A GradScaler that does not live as long as the training it belongs to."""
    for create in script.events(events.Create):
        if not isinstance(create.value, Scaler) or create.value.enabled == FALSE:
            continue
        if _once(create) or only_bfloat16(script, create.value):
            continue
        used = [b for b in script.events(events.Backward) if b.scaler == create.value]
        steps_older = bool(used) and _steps_older(script, create)
        for backward in used:
            one_step = _one_step(script, create, backward)
            if not create.loops and not one_step and not _one_epoch(create, backward):
                continue
            inner = len(backward.loops) > len(create.loops)
            older = one_step or steps_older
            older = older or any(not _made_in(script, o, create) for o, _ in backward.touched)
            if not older and not _handed_to_each_epoch(create):
                continue
            first = first_scale(create)
            if not inner:
                message = f"a new GradScaler in every iteration starts at {first} again: it never learns the scale"
                severity = Severity.ERROR
            else:
                message = f"a new GradScaler in every epoch starts at {first} again, while the optimizer goes on"
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


def _once(create: events.Event) -> bool:
    """Whether a condition picks the round in which it is made: `if epoch == 0`, `if scaler is None`; a word (`if
    cfg.dtype == "float16"`) or a flag (`if use_amp is True`) is a setting."""
    for above in create.module.ancestors(create.node):
        if isinstance(above, ast.For | ast.AsyncFor | ast.While | ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        match above:
            case ast.If(test=ast.Compare(ops=[ast.Eq() | ast.Is()], comparators=[right])):
                return not (isinstance(right, ast.Constant) and isinstance(right.value, str | bool))
    return False


@rule("AMP115")
def scaler_created_for_each_epoch(script: Script) -> Iterator[Finding]:
    """A scaler that is made in a loop and handed, with an optimizer that is older, to a function that is not seen."""
    for handed in script.events(events.HandOver):
        create = next((c for c in script.events(events.Create) if c.value == handed.scaler), None)
        if create is None or not create.loops or handed.scaler.enabled == FALSE or handed.frame is not create.frame:
            continue
        older = any(isinstance(o, Optimizer) and not _made_in(script, o, create) for o in handed.values)
        older = older or _older_by_name(handed.module, handed.node, create.loops[-1].node)
        if older and [loop.node for loop in handed.loops] == [loop.node for loop in create.loops]:
            yield found(
                "AMP115",
                create,
                f"a new GradScaler in every round of this loop starts at {first_scale(create)} again, while the "
                "optimizer goes on",
                severity=Severity.WARNING,
                evidence=[(create, "made here"), (handed, "handed on together with an older optimizer")],
                help="create it once, beside the optimizer",
                fix=fixes.move_before_loops(create.module, create.node),
            )


def _made_in(script: Script, optimizer: Optimizer, create: events.Create) -> bool:
    """Whether an optimizer is made in the same loop (or function) as the scaler: then both start anew together."""
    for other in script.events(events.Create):
        if other.value == optimizer:
            depth = len(create.loops)
            return [loop.node for loop in other.loops[:depth]] == [loop.node for loop in create.loops]
    if isinstance(optimizer.site, Sym):
        return not _given(optimizer.site)  # where an unknown call made it cannot be told
    return not create.loops


# `optimizer_class`, `optim_config`: what an optimizer is made of, or with, and none
_ABOUT = frozenset(
    "class cls type name config cfg args kwargs params options fn factory builder maker lr state".split()
)


def _older_by_name(module: Module, call: ast.AST, loop: ast.AST) -> bool:
    """Whether a call in a loop is handed something called an optimizer that the loop does not make: whoever made it,
    it is older."""
    if not isinstance(call, ast.Call):
        return False
    around = loop if loop in module.ancestors(call) else module.function(call)  # a function that the loop calls
    if around is None:
        return False
    stored = {node.id for node in walk(around) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return any(
        isinstance(value, ast.Name | ast.Attribute)
        and "optim" in module.source(value).lower()
        and _ABOUT.isdisjoint(last_name(value).lower().split("_"))
        and module.source(value).partition(".")[0] not in stored
        for value in (*call.args, *(keyword.value for keyword in call.keywords))
    )


def _steps_older(script: Script, create: events.Create) -> bool:
    """Whether the scaler steps an optimizer that the loop that makes the scaler does not bind: by its name, or as a
    field of the object whose loop it is."""
    if not create.loops:
        return False
    loop = create.loops[-1]
    here = loop.frame is create.frame
    bound = {node.id for node in walk(loop.node) if isinstance(node, ast.Name) and not _reads(node)}
    for step in script.events(events.Step):
        if step.scaler == create.value and step.frame is create.frame:
            match step.node:
                case ast.Call(args=[ast.Name(id=name), *_]) if here and name not in bound:
                    return True
                case ast.Call(args=[ast.Attribute(value=ast.Name(id="self"), attr=name), *_]):
                    return (
                        loop.frame.owner is not None
                        and loop.frame.owner == create.frame.owner
                        and _kept(create, loop.node, name)
                    )
    return False


def _kept(create: events.Create, loop: ast.AST, field: str) -> bool:
    """Whether a field is stored, and by no function that the loop runs, going by their names."""
    module = create.module
    stored = [node for node in module.nodes(ast.Attribute) if node.attr == field and isinstance(node.ctx, ast.Store)]
    storing = {getattr(module.function(node), "name", "") for node in stored}
    run = {
        last_name(call.func) for tree in (loop, create.frame.code) for call in walk(tree) if isinstance(call, ast.Call)
    }
    run.add(create.frame.name)
    return bool(stored) and not storing & run and not any(loop in module.ancestors(node) for node in stored)


def _reads(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def _handed_to_each_epoch(create: events.Create) -> bool:
    """Whether the function that makes the scaler is called in a loop, with an optimizer that is older."""
    if not create.loops:
        return False
    loop = create.loops[-1]
    call = next((frame.call for frame in create.frame.stack() if frame.caller is loop.frame), None)
    return call is not None and _older_by_name(loop.frame.module, call, loop.node)


def _given(origin: Sym) -> bool:
    """Whether a thing came with the arguments of a function: it is older than what the function makes."""
    if origin.kind == "attr" and isinstance(origin.parts[0], Instance):
        return True
    return origin.kind == "argument" or (
        origin.kind in ("attr", "item") and isinstance(origin.parts[0], Sym) and _given(origin.parts[0])
    )


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


def _one_step(script: Script, create: events.Create, backward: events.Backward) -> bool:
    """Whether a method that nothing calls here makes a scaler of its own in any case, and takes one step with it, of
    an optimizer of its object or that it is given: it is run once an iteration."""
    frame, made = create.frame, create.module.statement(create.node)
    if not frame.entry or frame.owner is None or backward.frame is not frame or backward.loops or create.loops:
        return False
    if create.module.parents[made] is not frame.code or not isinstance(made, ast.Assign):
        return False
    if not all(isinstance(target, ast.Name) for target in made.targets):
        return False
    return any(
        step.scaler == create.value and step.frame is frame and not step.loops and not _is_local(frame.code, step.node)
        for step in script.events(events.Step)
    )


def _is_local(function: ast.AST, step: ast.AST) -> bool:
    """Whether the optimizer that a step is given is one that the function makes or finds for itself."""
    match step:
        case ast.Call(args=[ast.Name(id=name), *_]):
            return not isinstance(function, ast.FunctionDef) or all(name != one.arg for one in function.args.args)
        case ast.Call(args=[ast.Attribute(), *_]):
            return False
    return True


@rule("AMP116")
def scaler_state_not_saved(script: Script) -> Iterator[Finding]:
    """A checkpoint holds the optimizer's state but not the scaler's."""
    scalers: set[Value] = {b.scaler for b in script.events(events.Backward) if isinstance(b.scaler, Scaler)}
    scalers |= {s.scaler for s in script.events(events.Step) if isinstance(s.scaler, Scaler)}
    scalers |= {c.value for c in script.events(events.Create) if isinstance(c.value, Scaler | Object)}
    scalers = {scaler for scaler in scalers if _scales(scaler) and not only_bfloat16(script, scaler)}
    if not scalers or _saves_scaler(script):
        return
    for save in script.events(events.Save):
        call = _call_here(script, save)
        if call is None or not _holds_optimizer(save):
            continue
        if not save.complete and not save.registers and save.mapping is None:
            continue
        if _never_scaled(script, save) or (save.mapping is save.node and not _holds_no_scaler(save.module, save.node)):
            continue
        maker = next((c for c in script.events(events.Create) if c.value in scalers), None)
        if save.registers and maker is None:
            continue  # whoever makes the scaler may register it there
        if call is not save.node:
            if not save.registers and _holds_no_scaler(script.module, call):
                yield _saved_elsewhere(script, save, call, maker)
            continue
        at = save.mapping if isinstance(save.mapping, ast.Dict) else None
        event: events.Event = maker if save.registers and maker is not None else save
        yield found(
            "AMP116",
            event,
            "the checkpoint holds the optimizer's state but not the scaler's: a resumed run starts at a scale of "
            f"{first_scale(maker)} again" + (" and skips steps" if first_scale(maker) == "65536" else ""),
            severity=None if resumes(script) else Severity.NOTE,
            node=None if event is maker else _optimizer_entry(at, _stepped(script)) or save.node,
            evidence=[(maker, "the scaler"), (save, "saved without it")],
            help="save scaler.state_dict(), too, and load it where the optimizer's state is loaded",
            fix=_save_scaler(script, save, maker),
        )


def _saved_elsewhere(script: Script, save: events.Save, call: ast.AST, maker: events.Create | None) -> Finding:
    """A helper of another file saves what it is given: that it is not given the scaler is seen at its call."""
    scale = first_scale(maker)
    made = [(maker.module, maker.node, "the scaler")] if maker is not None else []
    return found_at(
        "AMP116",
        script.module,
        call,
        "the checkpoint holds the optimizer's state but not the scaler's: a resumed run starts at a scale of "
        f"{scale} again" + (" and skips steps" if scale == "65536" else ""),
        evidence=[*made, (script.module, call, "saves a checkpoint"), (save.module, save.node, "without the scaler")],
        help="save scaler.state_dict(), too, and load it where the optimizer's state is loaded",
    )


def _call_here(script: Script, save: events.Save) -> ast.AST | None:
    """Where the file that was asked for saves: itself, or by the call that leads to the helper of another file."""
    node: ast.AST | None = save.node
    for frame in save.frame.stack():
        if node is None or frame.module is script.module:
            return node
        node = frame.call
    return None


def _scales(value: Value) -> bool:
    """Whether a thing is a GradScaler that is not off for good, or a wrapper of one that is called instead."""
    match value:
        case Scaler():
            return value.enabled != FALSE
        case Object(kind="callable-scaler"):
            return True
    return False


_HOLDERS = ("self", "trainer", "engine", "runner", "learner", "state", "accelerator", "fabric")


def _holds_no_scaler(module: Module, call: ast.AST) -> bool:
    """Whether nothing that a call is handed has, or may have, a scaler in it."""
    if not isinstance(call, ast.Call) or any(isinstance(value, ast.Starred) for value in call.args):
        return False
    if any(keyword.arg is None for keyword in call.keywords):
        return False
    given = [text(module, value).lower() for value in (*call.args, *(keyword.value for keyword in call.keywords))]
    return not any("scaler" in one or one.endswith(_HOLDERS) for one in given)


def _save_scaler(script: Script, save: events.Save, maker: events.Create | None) -> Fix | None:
    """The scaler's state beside the optimizer's, where the scaler has a name."""
    if not isinstance(save.mapping, ast.Dict) or maker is None or maker.module is not save.module:
        return None
    entry = _optimizer_entry(save.mapping, _stepped(script))
    statement = script.module.statement(maker.node)
    if entry is None or not isinstance(statement, ast.Assign) or statement.value is not maker.node:
        return None
    target = statement.targets[0]
    field = isinstance(target, ast.Attribute) and class_of(maker) is class_of(save)
    in_reach = field or same_function(maker, save)
    if not in_reach or not isinstance(target, ast.Name | ast.Attribute):
        return None
    return fixes.add_state(script.module, save.mapping, entry, text(script.module, target))


def _saves_scaler(script: Script) -> bool:
    """Whether the state of any scaler is saved or asked for."""
    if any(isinstance(part, Scaler | Object) and _scales(part) for s in script.events(events.Save) for part in s.parts):
        return True
    names: set[str] = set()
    for event in script.events(events.Event):
        if isinstance(event, events.Step | events.Unscale) and event.scaler is not None:
            names.add(receiver(event).rpartition(".")[2])
    for node in script.module.all_nodes:
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


def _never_scaled(script: Script, save: events.Save) -> bool:
    """Whether the saved optimizers are stepped, and none of them by a scaler: another model of the script is."""
    saved = [part for part in save.parts if isinstance(part, Optimizer)]
    steps = [step for step in script.events(events.Step) if step.optimizer in saved]
    return bool(steps) and all(step.scaler is None for step in steps)


def _stepped(script: Script) -> set[str]:
    """The names of what a scaler steps."""
    steps = (step for step in script.events(events.Step) if step.scaler is not None)
    return {first_argument(step).rpartition(".")[2] for step in steps}


def _optimizer_entry(mapping: ast.Dict | None, stepped: Collection[str] = ()) -> ast.expr | None:
    """The entry of a dict literal that holds an optimizer's state, as its key says, or the name of what has it."""
    if mapping is None:
        return None
    for key, value in zip(mapping.keys, mapping.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            continue
        for state in (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,):
            match state:
                case ast.Call(func=ast.Attribute(attr="state_dict", value=owner)):
                    if "optim" in key.value or last_name(owner) in stepped:
                        return value
    return None
