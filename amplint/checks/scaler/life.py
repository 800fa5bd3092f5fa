"""Family 1, the scaler's life: made once, saved and restored with the optimizer."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import (
    Script,
    found,
    rule,
)
from amplint.checks.scaler.protocol import first_scale, only_bfloat16
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import last_name, stored_names
from amplint.source.values import (
    FALSE,
    Instance,
    Optimizer,
    Scaler,
    Sym,
)
from amplint.source.walk import walk


@rule("AMP115")
def scaler_created_in_loop(script: Script) -> Iterator[Finding]:
    """A GradScaler that does not live as long as the training it belongs to."""
    for create in script.events(events.Create):
        for backward in made_anew_for(script, create):
            first = first_scale(create)
            if len(backward.loops) <= len(create.loops):
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


def made_anew_for(script: Script, create: events.Create) -> Iterator[events.Backward]:
    """The backwards of a scaler that is made for each round, or epoch, of a training whose optimizer is older."""
    if not isinstance(create.value, Scaler) or create.value.enabled == FALSE or _once(create):
        return
    if only_bfloat16(script, create.value):
        return
    used = [b for b in script.events(events.Backward) if b.scaler == create.value]
    steps_older = bool(used) and _steps_older(script, create)
    for backward in used:
        one_step = _one_step(script, create, backward)
        if not create.loops and not one_step and not _one_epoch(create, backward):
            continue
        older = one_step or steps_older or any(not _made_in(script, o, create) for o, _ in backward.touched)
        if older or _handed_to_each_epoch(create):
            yield backward


def _once(create: events.Event) -> bool:
    """Whether a condition, or a failure, picks the round in which it is made: `if epoch == 0`, `if scaler is None`, `if
    not hasattr(self, "scaler")`; a word (`if cfg.dtype == "float16"`) or a flag (`if use_amp is True`) is a setting."""
    for above in create.module.ancestors(create.node):
        if isinstance(above, ast.For | ast.AsyncFor | ast.While | ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        match above:
            case ast.ExceptHandler():  # what failed begins anew, with fewer samples
                return True
            case ast.If(test=ast.Compare(ops=[ast.Eq() | ast.Is()], comparators=[right])):
                return not (isinstance(right, ast.Constant) and isinstance(right.value, str | bool))
            case ast.If(test=ast.UnaryOp(op=ast.Not(), operand=asked)) if _is_there(asked, create):
                return True
    return False


def _is_there(asked: ast.expr, create: events.Event) -> bool:
    """Whether a question is whether what is made here is there already: `hasattr(self, "scaler")`, `self.scaler`."""
    made = create.module.statement(create.node)
    targets = made.targets if isinstance(made, ast.Assign) else []
    match asked:
        case ast.Call(func=ast.Name(id="hasattr"), args=[_, ast.Constant(value=str() as name)]):
            return any(last_name(target) == name for target in targets)
    return any(ast.unparse(target) == ast.unparse(asked) for target in targets)


@rule("AMP115")
def scaler_created_for_each_epoch(script: Script) -> Iterator[Finding]:
    """A scaler that is made in a loop and handed, with an optimizer that is older, to a function that is not seen."""
    for handed in script.events(events.HandOver):
        create = script.created(handed.scaler)
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
    stored = stored_names(around)
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


@rule("AMP123")
def scaler_that_nothing_uses(script: Script) -> Iterator[Finding]:
    """A scaler that a function makes and never looks at again, though it runs a backward. Of float16 AMP101 tells."""
    for create in script.events(events.Create):
        module, made = create.module, create.module.parents.get(create.node)
        function = module.function(create.node)
        if not isinstance(create.value, Scaler) or create.value.enabled == FALSE or function is None:
            continue
        match made:
            case ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case _:
                continue
        used = any(
            isinstance(one, ast.Name) and one.id == name and one is not made.targets[0] for one in walk(function)
        )
        asked = any(isinstance(one, ast.Attribute) and one.attr == "backward" for one in walk(function))
        if used or not asked:
            continue
        yield found(
            "AMP123",
            create,
            f"nothing uses {name}: no loss is scaled by it",
            severity=Severity.NOTE,
            help="scale the loss with it where autocast runs in float16, else leave it out",
        )
