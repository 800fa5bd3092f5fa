"""Family 1, the scaler's state, which belongs in the checkpoint that holds the optimizer's."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from amplint.checks.around import resumes
from amplint.checks.registry import (
    Script,
    first_argument,
    found,
    found_at,
    receiver,
    rule,
    text,
)
from amplint.checks.scaler.life import made_anew_for
from amplint.checks.scaler.protocol import first_scale, only_bfloat16
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import last_name
from amplint.source.values import FALSE, Object, Optimizer, Scaler, Value
from amplint.source.walk import walk


@rule("AMP116")
def scaler_state_not_saved(script: Script) -> Iterator[Finding]:
    """A checkpoint holds the optimizer's state but not the scaler's."""
    scalers: set[Value] = {b.scaler for b in script.events(events.Backward) if isinstance(b.scaler, Scaler)}
    scalers |= {s.scaler for s in script.events(events.Step) if isinstance(s.scaler, Scaler)}
    scalers |= {c.value for c in script.events(events.Create) if isinstance(c.value, Scaler | Object)}
    anew = {c.value for c in script.events(events.Create) if any(True for _ in made_anew_for(script, c))}  # AMP115
    scalers = {one for one in scalers - anew if _scales(one) and not only_bfloat16(script, one)}
    if not scalers or _saves_scaler(script):
        return
    maker = next((c for c in script.events(events.Create) if c.value in scalers), None)
    for save in script.events(events.Save):
        call = _call_here(script, save)
        if call is None or not _holds_optimizer(save):
            continue
        if not (save.complete or save.registers or save.mapping is not None) or _is_temporary(save):
            continue
        if _never_scaled(script, save) or (save.mapping is save.node and not _holds_no_scaler(save.module, save.node)):
            continue
        if save.registers and maker is None:
            continue  # whoever makes the scaler may register it there
        if call is not save.node:
            written = save.complete and save.mapping in script.module.parents  # here, whatever it is called
            if not save.registers and (written or _holds_no_scaler(script.module, call)):
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
    """A helper of another file saves what it is given: that it is not given the scaler is seen at its call, or in the
    dict that it is given."""
    scale = first_scale(maker)
    here = isinstance(save.mapping, ast.Dict) and save.mapping in script.module.parents
    entry = _optimizer_entry(save.mapping, _stepped(script)) if here and isinstance(save.mapping, ast.Dict) else None
    made = [(maker.module, maker.node, "the scaler")] if maker is not None else []
    return found_at(
        "AMP116",
        script.module,
        entry or call,
        "the checkpoint holds the optimizer's state but not the scaler's: a resumed run starts at a scale of "
        f"{scale} again" + (" and skips steps" if scale == "65536" else ""),
        severity=None if resumes(script) else Severity.NOTE,
        evidence=[*made, (script.module, call, "saves a checkpoint"), (save.module, save.node, "without the scaler")],
        help="save scaler.state_dict(), too, and load it where the optimizer's state is loaded",
        fix=_save_scaler(script, save, maker) if here else None,
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
    if not isinstance(save.mapping, ast.Dict) or save.mapping not in script.module.parents:
        return None
    if maker is None or maker.module is not script.module:
        return None
    entry = _optimizer_entry(save.mapping, _stepped(script))
    statement = script.module.statement(maker.node)
    if entry is None or not isinstance(statement, ast.Assign) or statement.value is not maker.node:
        return None
    target = statement.targets[0]
    module = script.module
    field = isinstance(target, ast.Attribute) and module.class_of(maker.node) is module.class_of(save.mapping)
    in_reach = field or module.function(maker.node) is module.function(save.mapping)
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


def _is_temporary(save: events.Save) -> bool:
    """Whether a file is written to a folder for temporary files: the run that writes it reads it again, or nobody."""
    module, call = save.module, save.node
    if "tempfile" not in module.text or not isinstance(call, ast.Call) or len(call.args) < 2:
        return False
    names, assigned = _names_in(call.args[1]), [(one.targets[0], one.value) for one in module.nodes(ast.Assign)]
    for _ in range(3):  # `file = join(self.folder, …)`, `self.folder = folder`, `folder = tempfile.mkdtemp()`
        values = [value for target, value in assigned if last_name(target) in names]
        names = names.union(*map(_names_in, values))
        if any(name.startswith("tempfile.") for one in values for name in _called(module, one)):
            return True
    return False


def _names_in(tree: ast.AST) -> set[str]:
    return {last_name(node) for node in walk(tree)} - {""}


def _called(module: Module, tree: ast.AST) -> Iterator[str]:
    for node in walk(tree):
        if isinstance(node, ast.Call):
            yield from module.dotted(node.func)


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
