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


_COUNTERS = re.compile(r"(global_?|last_?|start_?)?(step|epoch|iter|iteration)s?")


@rule("AMP133")
def counter_restored_alone(script: Script) -> Iterator[Finding]:
    """Training goes on at the step that a checkpoint says, with its weights, but without the scaler's state, which is
    saved."""
    module = script.module
    if "GradScaler" not in module.text or "load_state_dict" not in module.text:
        return
    saved, loads, counted = None, [], set()
    for node in module.all_nodes:
        match node:
            case ast.Call(func=ast.Attribute(attr="state_dict", value=owner)) if "scaler" in _last(owner).lower():
                saved = saved or node
            case ast.Call(func=ast.Attribute(attr="load_state_dict", value=owner), args=[given, *_]):
                if "caler" in text(module, node, 300) or "optim" in text(module, node, 300).lower():
                    return  # restored, or found beside the optimizer's
                loads += [(node, name.id) for name in ast.walk(given) if isinstance(name, ast.Name)]
            case ast.Assign(value=ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str() as key))):
                if _COUNTERS.fullmatch(key.lower()):
                    counted.add(name)
            case ast.Call() if "load" in _last(node.func) and "caler" in text(module, node, 300):
                return
    again = next((load for load, name in loads if name in counted), None)
    if saved is not None and again is not None and _read_from_file(module, counted):
        yield found_at(
            "AMP133",
            module,
            again,
            "training goes on where the checkpoint was written, but not with its loss scale: the scaler's state is "
            "saved and never loaded",
            severity=Severity.NOTE,
            evidence=[(module, saved, "saved here"), (module, again, "not restored here")],
            help="load the optimizer's and the scaler's state, too",
        )


def _read_from_file(module: Module, names: set[str]) -> bool:
    """Whether one of these names is assigned what torch.load gives."""
    return any(
        isinstance(call, ast.Call) and "torch.load" in module.dotted(call.func)
        for node in module.nodes(ast.Assign)
        if any(isinstance(target, ast.Name) and target.id in names for target in node.targets)
        for call in ast.walk(node.value)
    )


@rule("AMP133")
def loaded_where_there_is_none(script: Script) -> Iterator[Finding]:
    """A scaler that is None on a machine without a GPU gets a state loaded without a question whether it is there."""
    module = script.module
    made = dict(_made_on_a_gpu(module))
    for node in module.nodes(ast.Call) if made else ():
        match node.func:
            case ast.Attribute(attr="load_state_dict", value=owner) if (name := text(module, owner)) in made:
                known = {text(module, part, 500) for part in _conjuncts(made[name])}
                above = list(module.ancestors(node))
                tests = [one.test for one in above if isinstance(one, ast.If | ast.IfExp)]
                asked = [text(module, part, 500) for test in tests for part in _conjuncts(test)]
                if any(isinstance(one, ast.Try) for one in above) or any(name in one for one in asked):
                    continue
                if any(_GPU in one or not (one in known or " in " in one) for one in asked):
                    continue
                yield found_at(
                    "AMP133",
                    module,
                    node,
                    f"{name} is None where no GPU is available, and has no load_state_dict: a checkpoint of a GPU "
                    "cannot be loaded on a CPU, for inference either",
                    severity=Severity.WARNING,
                    evidence=[
                        (module, made[name], "made under this condition only"),
                        (module, node, "used without it"),
                    ],
                    help=f"ask before: if {name} is not None",
                )


_GPU = "is_available"


def _made_on_a_gpu(module: Module) -> Iterator[tuple[str, ast.expr]]:
    """What is a GradScaler where a GPU is available, and else None: its name, and the condition."""
    nothing = {
        text(module, target)
        for node in module.nodes(ast.Assign)
        if isinstance(node.value, ast.Constant) and node.value.value is None
        for target in node.targets
    }
    for node in module.nodes(ast.Assign):
        test: ast.expr | None = None
        value = node.value
        match value:
            case ast.IfExp(test=asked, body=body, orelse=ast.Constant(value=None)):
                test, value = asked, body
            case _:
                above = module.parents[node]
                if isinstance(above, ast.If) and node in above.body and text(module, node.targets[0]) in nothing:
                    test = above.test
        if test is None or not isinstance(value, ast.Call) or _last(value.func) != "GradScaler":
            continue
        if any(_GPU in text(module, part) for part in _conjuncts(test)):
            yield text(module, node.targets[0]), test


def _conjuncts(test: ast.expr) -> list[ast.expr]:
    return list(test.values) if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
