"""Family 1, what a resumed run gets back, where the source says it in other ways than the state of an optimizer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.module import Module
from amplint.source.values import FALSE, Scaler

_SCALER_NAMES = {"scaler", "grad_scaler", "amp_scaler", "loss_scaler"}
_RESUMED = ("model", "checkpoint", "ckpt", "state", "snapshot", "resume")


@rule("AMP116")
def resumed_from_weights_alone(script: Script) -> Iterator[Finding]:
    """What a script saves and loads again holds weights and no scaler's state."""
    module = script.module
    if not _scales(script) or "scaler.state_dict" in module.text or "amp.state_dict" in module.text:
        return
    loads = {(owner, path): call for owner, path, call in _loads(module)}
    for owner, path, call in _saves(module):
        again = loads.get((owner, path))
        if again is not None:
            yield found_at(
                "AMP116",
                module,
                call,
                "the run resumes from this file, and it holds weights alone: the loss scale starts at 65536 again, and "
                "the optimizer without its state",
                severity=Severity.NOTE,
                evidence=[(module, again, "loaded again here")],
                help="save a dict of the model's, the optimizer's and the scaler's state",
            )


def _scales(script: Script) -> bool:
    """Whether losses are scaled: by a GradScaler, or by apex."""
    if any(isinstance(c.value, Scaler) and c.value.enabled != FALSE for c in script.events(events.Create)):
        return True
    return any(
        isinstance(node, ast.Call) and "apex.amp.initialize" in script.module.dotted(node.func)
        for node in script.module.all_nodes
    )


@rule("AMP116")
def apex_state_not_saved(script: Script) -> Iterator[Finding]:
    """A state that holds the optimizer's holds nothing of apex.amp, which scales the losses."""
    module = script.module
    if "apex" not in module.text or "scale_loss" not in module.text or re.search(r"amp\w*\.state_dict", module.text):
        return
    made = [
        call for call in module.nodes(ast.Call) if "apex.amp.initialize" in module.dotted(call.func) and _adapts(call)
    ]
    for mapping in module.nodes(ast.Dict) if made else ():
        entry = _state_of_optimizer(mapping)
        if entry is not None and not _mentions_amp(module, mapping):
            yield found_at(
                "AMP116",
                module,
                entry,
                "the state holds the optimizer's but not apex.amp's: a resumed run starts at a scale of 65536 again "
                "and skips steps",
                evidence=[(module, made[0], "scales losses from here on"), (module, entry, "saved without it")],
                help="save amp.state_dict(), too, and load it behind amp.initialize",
            )


def _adapts(initialize: ast.Call) -> bool:
    """Whether the loss scale is not fixed where amp is initialized."""
    for keyword in initialize.keywords:
        match keyword.arg, keyword.value:
            case "loss_scale", ast.Constant(value=value) if value not in (None, "dynamic"):
                return False
            case "opt_level", ast.Constant(value="O0" | "O3"):
                return False
            case "enabled", ast.Constant(value=False):
                return False
    return True


def _state_of_optimizer(mapping: ast.Dict) -> ast.expr | None:
    """The entry that holds an optimizer's state, in a dict that holds a model's or a counter, too."""
    for key, value in zip(mapping.keys, mapping.values, strict=True):
        match key, value:
            case ast.Constant(value=str() as name), ast.Call(func=ast.Attribute(attr=method)) if len(mapping.keys) > 1:
                if name.lower().startswith("optim") and re.fullmatch(r"(get_\w*)?state(_dict)?", method):
                    return value
    return None


def _mentions_amp(module: Module, mapping: ast.Dict) -> bool:
    """Whether the function adds something of amp, or of a loss scale, to the state in another way."""
    function = module.function(mapping) or mapping
    stored = re.findall(r"""\[\s*["'](\w+)["']\s*\]\s*=|["'](\w+)["']\s*:""", module.source(function))
    return any(re.search(r"amp\b|amp_|scale", name.lower()) for pair in stored for name in pair)


def _saves(module: Module) -> Iterator[tuple[str, str, ast.Call]]:
    """(whose weights, where to, the call) of each torch.save(x.state_dict(), path)."""
    for node in module.all_nodes:
        match node:
            case ast.Call(args=[ast.Call(func=ast.Attribute(attr="state_dict", value=owner)), path]):
                if "torch.save" in module.dotted(node.func):
                    yield text(module, owner), _named(module, path), node


def _loads(module: Module) -> Iterator[tuple[str, str, ast.Call]]:
    """(whose weights, where from, the call) of each x.load_state_dict(torch.load(path))."""
    for node in module.all_nodes:
        match node:
            case ast.Call(
                func=ast.Attribute(attr="load_state_dict", value=owner),
                args=[ast.Call(args=[path, *_]) as loaded, *_],
            ) if "torch.load" in module.dotted(loaded.func):
                yield text(module, owner), _named(module, path), node


def _named(module: Module, path: ast.expr) -> str:
    """What names a file: the function that makes its name, or the expression itself."""
    return text(module, path.func if isinstance(path, ast.Call) else path)


@rule("AMP133")
def scaler_only_saved(script: Script) -> Iterator[Finding]:
    """A helper of another package is handed the scaler to save it; the one that loads is handed nothing to restore."""
    module = script.module
    saves, loads = [], []
    for node in module.all_nodes:
        if not isinstance(node, ast.Call):
            continue
        name = _last(node.func)
        if name == "load_state_dict" and "scaler" in text(module, node, 200):
            return
        given = {_last(argument) for argument in (*node.args, *(keyword.value for keyword in node.keywords))}
        if "save" in name and given & _SCALER_NAMES and any("optim" in one for one in given):
            saves.append(node)
        elif ("load" in name or "resume" in name) and "pretrain" not in name and any(map(name.__contains__, _RESUMED)):
            if given & _SCALER_NAMES or not _foreign(module, node):
                return
            loads.append(node)
    if saves and loads and _foreign(module, saves[0]):
        yield found_at(
            "AMP133",
            module,
            loads[0],
            f"{_last(saves[0].func)} is handed the scaler, {_last(loads[0].func)} gets nothing to restore one from: "
            "the scale starts at 65536 again",
            severity=Severity.NOTE,
            evidence=[(module, saves[0], "saved here"), (module, loads[0], "not restored here")],
            help="load the scaler's state where the rest of the checkpoint is loaded",
        )


def _last(node: ast.AST) -> str:
    """The last part of a dotted name: `scaler` of `trainer.scaler`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _foreign(module: Module, call: ast.Call) -> bool:
    """Whether a call is one of a function imported by name, whose one result is given one name: what it does with what
    it is handed is not to be seen here."""
    if not isinstance(call.func, ast.Name) or not module.dotted(call.func):
        return False
    match module.statement(call):
        case ast.Assign(targets=[ast.Name()]) | ast.Expr():
            return True
    return False
