"""Family 1, what a resumed run gets back of the scaler's state."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import takewhile

from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.interpret import conditions
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import last_name, names_in, stored_names
from amplint.source.values import Checkpoint, Choice, Optimizer, Scaler, Value
from amplint.source.walk import walk

_SCALER_NAMES = {"scaler", "grad_scaler", "amp_scaler", "loss_scaler"}
_RESUMED = ("model", "checkpoint", "ckpt", "state", "snapshot", "resume")


@rule("AMP133")
def scaler_state_not_restored(script: Script) -> Iterator[Finding]:
    """The scaler's state is saved but never loaded, or loaded from where it may be missing or empty."""
    loads = [load for load in script.events(events.Load) if isinstance(load.target, Scaler)]
    for load in loads:
        if _from_file(load.source) and not _guarded(script, load):
            message = (
                "a checkpoint without the scaler's state raises KeyError here, one from a run with a disabled scaler "
                "RuntimeError (its state is empty)"
            )
            if (entry := _entry(load)) is not None and any(
                text(load.module, entry) in test for test in _tests(load.module, load.node)
            ):
                message = "a checkpoint without the scaler's state raises KeyError where the condition looks at it"
            yield found(
                "AMP133",
                load,
                message,
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
                    "a scaler that may be disabled becomes part of the checkpoint: its state is then empty, and "
                    "loading that "
                    "into an enabled scaler raises RuntimeError",
                    severity=Severity.NOTE,
                    help="register it only where it is enabled",
                )
    saves = [s for s in script.events(events.Save) if any(isinstance(p, Scaler) for p in s.parts) and not s.registers]
    resumes = [load for load in script.events(events.Load) if isinstance(load.target, Optimizer)]
    restored = loads or any("scaler" in text(load.module, load.node) for load in script.events(events.Load))
    if saves and resumes and not restored:
        yield found(
            "AMP133",
            resumes[0],
            "the optimizer's state is restored, the scaler's was saved but is not: the scale starts at 65536 again",
            evidence=[(saves[0], "saved here"), (resumes[0], "not restored here")],
            help="load the scaler's state beside the optimizer's",
        )


def _from_file(source: Value) -> bool:
    """Whether something is an entry of a checkpoint that is read here, if nobody gives another."""
    match source:
        case Checkpoint():
            return bool(source.path)
        case Choice():
            return _from_file(source.yes) or _from_file(source.no)
    return False


def _guarded(script: Script, load: events.Load) -> bool:
    """Whether a condition asks for the scaler or its state before it is loaded, or a handler catches its absence; or
    a condition asks whether there is a state before it calls a helper that loads anything."""
    callers = [(frame.caller.module, frame.call) for frame in load.frame.stack() if frame.caller and frame.call]
    return _asked_for(load, _written(script)) or any(
        "scale" in test and any(sign in test for sign in (" in ", ".get(", "["))
        for module, call in callers
        for test in _tests(module, call)
    )


def _written(script: Script) -> set[object]:
    """The keys that the script itself always writes to its checkpoints."""
    dicts = [save.mapping for save in script.events(events.Save) if isinstance(save.mapping, ast.Dict)]
    return {key.value for mapping in dicts for key in mapping.keys if isinstance(key, ast.Constant)}


def _asked_for(load: events.Load, written: set[object]) -> bool:
    """Whether the function that loads asks first. To look at what may not be there raises KeyError, too: that is no
    question, unless what is saved here always has it, as None at times."""
    module, loaded = load.module, _entry(load)
    entry, key = (text(module, loaded), text(module, loaded.slice)) if loaded is not None else ("", "")
    may_lack = loaded is None or not isinstance(loaded.slice, ast.Constant) or loaded.slice.value not in written
    for test in _tests(module, load.node):
        asked = test.replace(entry, "") if entry and may_lack else test
        if "scale" in asked and any(sign in asked for sign in (" in ", ".get(", "[", "keys")):
            return True
        if key and key in asked and any(sign in asked for sign in (" in ", ".get(", "keys")):
            return True
    above = list(takewhile(lambda one: not isinstance(one, FunctionNode), module.ancestors(load.node)))
    return any(isinstance(one, ast.Try) for one in above) or _state_asked_for(load, above)


def _state_asked_for(load: events.Load, above: list[ast.AST]) -> bool:
    """Whether what is loaded has a name, which a condition asks for: `state = ckpt.get("scaler")`, `if state: …`. (What
    lacks the key raises where the name is assigned, if it does.)"""
    match load.node:
        case ast.Call(args=[ast.Name(id=name), *_]):
            asked = (part for one in above if isinstance(one, ast.If) for part in _conjuncts(one.test))
            return any(ast.unparse(part) in (name, f"{name} is not None", f"len({name}) > 0") for part in asked)
    return False


def _entry(load: events.Load) -> ast.Subscript | None:
    """The entry of a dict that is loaded, where the call names it."""
    given = load.node.args if isinstance(load.node, ast.Call) else []
    return given[0] if given and isinstance(given[0], ast.Subscript) else None


def _tests(module: Module, node: ast.AST) -> Iterator[str]:
    """The conditions around a node in its function."""
    for above in takewhile(lambda one: not isinstance(one, FunctionNode), module.ancestors(node)):
        if isinstance(above, ast.If):
            yield text(module, above.test, 200)


@rule("AMP133")
def scaler_only_saved(script: Script) -> Iterator[Finding]:
    """A helper of another package is handed the scaler to save it; the one that loads is handed nothing to restore."""
    module = script.module
    saves, loads = [], []
    for node in module.all_nodes:
        if not isinstance(node, ast.Call):
            continue
        name = last_name(node.func)
        if name == "load_state_dict" and "scaler" in text(module, node, 200):
            return
        given = {last_name(argument) for argument in (*node.args, *(keyword.value for keyword in node.keywords))}
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
            f"{last_name(saves[0].func)} is handed the scaler, {last_name(loads[0].func)} gets nothing to restore one "
            "from: the scale starts at 65536 again",
            severity=Severity.NOTE,
            evidence=[(module, saves[0], "saved here"), (module, loads[0], "not restored here")],
            help="load the scaler's state where the rest of the checkpoint is loaded",
        )


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
            case ast.Call(func=ast.Attribute(attr="state_dict", value=owner)) if "scaler" in last_name(owner).lower():
                saved = saved or node
            case ast.Call(func=ast.Attribute(attr="load_state_dict", value=owner), args=[given, *_]):
                if "caler" in text(module, node, 300) or "optim" in text(module, node, 300).lower():
                    return  # restored, or found beside the optimizer's
                loads += [(node, name.id) for name in ast.walk(given) if isinstance(name, ast.Name)]
            case ast.Assign(value=ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str() as key))):
                if _COUNTERS.fullmatch(key.lower()):
                    counted.add(name)
            case ast.Call() if "load" in last_name(node.func) and "caler" in text(module, node, 300):
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


@rule("AMP133")
def used_where_none_is_given(script: Script) -> Iterator[Finding]:
    """A helper saves or loads the state of a scaler that it need not be given, and asks only of the others whether they
    are there."""
    module = script.module
    for function in module.nodes(ast.FunctionDef):
        optional = _may_be_none(function)
        if not any("scaler" in name for name in optional):
            continue
        used: dict[str, list[tuple[ast.Call, bool]]] = {}
        for node in walk(function):
            match node:
                case ast.Call(func=ast.Attribute(attr="load_state_dict" | "state_dict", value=ast.Name(id=name))):
                    if name in optional and module.function(node) is function:
                        used.setdefault(name, []).append((node, _asks_for(module, node, name)))
        others = [asked for name, uses in used.items() if "scaler" not in name for _, asked in uses]
        for name, uses in used.items():
            for call, asked in uses:
                if "scaler" in name and not asked and others and all(others):
                    yield found_at(
                        "AMP133",
                        module,
                        call,
                        f"{name} may be None here, and has no {last_name(call.func)} then: AttributeError, for whoever "
                        "trains without one",
                        severity=Severity.WARNING,
                        evidence=[(module, optional[name], "None if it is not given"), (module, call, "used unasked")],
                        help=f"ask before, as is done for the others: if {name} is not None",
                    )


def _may_be_none(function: ast.FunctionDef) -> dict[str, ast.arg]:
    """The parameters of a function that are None where a caller does not give them, and stay so."""
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    pairs = [
        *zip(positional[::-1], given.defaults[::-1], strict=False),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]
    stored = stored_names(function)
    return {
        one.arg: one
        for one, default in pairs
        if isinstance(default, ast.Constant) and default.value is None and one.arg not in stored
    }


def _asks_for(module: Module, node: ast.Call, name: str) -> bool:
    """Whether something is used only where a condition has asked for it, or where its absence is caught; or behind a
    question that may end the function."""
    function = module.function(node)
    assert isinstance(function, ast.FunctionDef)
    for above in module.ancestors(node):
        if above is function:
            break
        if isinstance(above, ast.Try) or (isinstance(above, ast.If | ast.IfExp) and _names(above.test, name)):
            return True
    before = (one for one in function.body if one.lineno < node.lineno)
    return any(isinstance(one, ast.If | ast.Assert) and _names(one.test, name) for one in before)


def _names(test: ast.expr, name: str) -> bool:
    return name in names_in(test)


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
        if test is None or not isinstance(value, ast.Call) or last_name(value.func) != "GradScaler":
            continue
        if any(_GPU in text(module, part) for part in _conjuncts(test)):
            yield text(module, node.targets[0]), test


def _conjuncts(test: ast.expr) -> list[ast.expr]:
    return list(test.values) if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]
