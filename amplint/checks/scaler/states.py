"""Family 1, what a checkpoint lacks, where the source says it in other ways than by saving an optimizer's state."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.around import resumes
from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import last_name
from amplint.source.values import FALSE, Scaler
from amplint.source.walk import walk

_OPTIMIZER_LOADED = re.compile(r"optim\w*(\[[^\]]*\])?\.load_state_dict\(")


@rule("AMP116")
def resumed_from_weights_alone(script: Script) -> Iterator[Finding]:
    """What a script saves and loads again holds weights and no scaler's state."""
    module = script.module
    if not _scales(script) or "scaler.state_dict" in module.text or "amp.state_dict" in module.text:
        return
    if _OPTIMIZER_LOADED.search(module.text):  # from a file of its own, or from one that holds more
        return
    loads = {(owner, path): call for owner, path, call in _loads(module)}
    for owner, path, call in _saves(module):
        again = loads.get((owner, path))
        if again is not None and _behind(module, call, again):
            continue  # the run itself goes on with it: it has lost nothing
        if again is not None and f"{owner}.step(" not in module.text:  # a scheduler, in a file of its own
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


def _behind(module: Module, save: ast.AST, load: ast.AST) -> bool:
    """Whether the function that saves loads further down."""
    together = module.function(save) is module.function(load) is not None
    return together and module.range(save).start < module.range(load).start


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
        entry = _state_of_optimizer(mapping, module.function(mapping))
        if entry is not None and not _mentions_amp(module, mapping) and not _put_back(module, mapping):
            yield found_at(
                "AMP116",
                module,
                entry,
                "the state holds the optimizer's but not apex.amp's: a resumed run starts at a scale of 65536 again "
                "and skips steps",
                severity=None if resumes(script) else Severity.NOTE,
                evidence=[(module, made[0], "scales losses from here on"), (module, entry, "saved without it")],
                help="save amp.state_dict(), too, and load it behind amp.initialize",
            )


@rule("AMP116")
def apex_state_alone(script: Script) -> Iterator[Finding]:
    """A script that trains by apex.amp or by a GradScaler saves the state of apex.amp, and never that of the scaler."""
    module = script.module
    if "apex" not in module.text or re.search(r"caler\w*(\[\w+\])?\.state_dict|getattr\(\w*scaler", module.text):
        return
    made = [statement for statement in module.nodes(ast.Assign) if _is_scaler(module, statement.value)]
    names = {last_name(target) for statement in made for target in statement.targets}
    if not made or "" in names or _passed_on(module, names) or all(_in_a_loop(module, one) for one in made):
        return
    for call in module.nodes(ast.Call):
        if "apex.amp.state_dict" in module.dotted(call.func):
            yield found_at(
                "AMP116",
                module,
                call,
                "this is the state of apex.amp; that of the GradScaler, which scales where apex does not, is never "
                "saved: a resumed run starts at a scale of 65536 again and skips steps",
                severity=None if resumes(script) else Severity.NOTE,
                evidence=[(module, made[0], "the scaler"), (module, call, "saved without it")],
                help="save the scaler's state_dict() where there is a scaler, and load it on resuming",
            )
            return


def _in_a_loop(module: Module, statement: ast.stmt) -> bool:
    """Whether a loop of its function makes a scaler anew in each round: AMP115 says so, and no state would help."""
    for above in module.ancestors(statement):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        if isinstance(above, ast.For | ast.While):
            return True
    return False


def _put_back(module: Module, mapping: ast.Dict) -> bool:
    """Whether a state is kept in a field whose parts are loaded again, and that nothing is handed: the run itself goes
    back to it, and goes on with its own scale."""
    match module.parents[mapping]:
        case ast.Assign(targets=[ast.Attribute() as field]):
            kept = ast.unparse(field)
        case _:
            return False
    read = [one for one in module.nodes(ast.Attribute) if isinstance(one.ctx, ast.Load) and ast.unparse(one) == kept]
    return bool(read) and all(isinstance(module.parents[one], ast.Subscript) for one in read)


def _is_scaler(module: Module, node: ast.expr) -> bool:
    if not isinstance(node, ast.Call):
        return False
    return _may_be_on(node) and bool(module.dotted(node.func) & {"torch.amp.GradScaler", "torch.cuda.amp.GradScaler"})


def _may_be_on(made: ast.Call) -> bool:
    """Whether what is made is not told that it is off."""
    told = (one.value for one in made.keywords if one.arg == "enabled")
    return not any(isinstance(value, ast.Constant) and not value.value for value in told)


def _passed_on(module: Module, names: set[str]) -> bool:
    """Whether a scaler is handed to what may save it, or is kept in something that may be saved."""
    for node in module.all_nodes:
        match node:
            case ast.Call(func=function, args=args, keywords=keywords):
                given = [*args, *(keyword.value for keyword in keywords)]
                if re.search(r"step|train|epoch|fit|Scaler", last_name(function)):
                    continue
            case ast.Dict(values=given) | ast.List(elts=given) | ast.Tuple(elts=given, ctx=ast.Load()):
                pass
            case ast.Return(value=ast.expr() as value):
                given = [value]
            case ast.Assign(targets=[ast.Subscript()], value=value):
                given = [value]
            case _:
                continue
        if any(last_name(one) in names for one in given):
            return True
    return False


def _adapts(initialize: ast.Call) -> bool:
    """Whether the loss scale is not fixed where amp is initialized."""
    for keyword in initialize.keywords:
        match keyword.arg, keyword.value:
            case "loss_scale", ast.Constant(value=value) if value not in (None, "dynamic"):
                return False
            case "opt_level", ast.Constant(value="O0" | "O3"):
                return False
    return _may_be_on(initialize)


def _state_of_optimizer(mapping: ast.Dict, function: ast.AST | None = None) -> ast.expr | None:
    """The entry that holds an optimizer's state, in a dict that holds a model's or a counter, too; the state may have a
    name in the function."""
    for key, value in zip(mapping.keys, mapping.values, strict=True):
        match key:
            case ast.Constant(value=str() as name) if name.lower().startswith("optim") and len(mapping.keys) > 1:
                named = [value] if function is None else [value, *_assigned(function, value)]
                if any(map(_is_state, named)):
                    return value
    return None


def _is_state(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr=method)):
            return bool(re.fullmatch(r"(get_\w*)?state(_dict)?", method))
    return False


def _assigned(function: ast.AST, name: ast.expr) -> Iterator[ast.expr]:
    """What a function assigns to a name."""
    for node in walk(function) if isinstance(name, ast.Name) else ():
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name.id:  # type: ignore[attr-defined]
                yield value


@rule("AMP116")
def state_of_a_trainer(script: Script) -> Iterator[Finding]:
    """A method gives its class's state for somebody else to save: the optimizer's, but not that of the scaler, which
    the class makes."""
    module = script.module
    if "GradScaler" not in module.text or re.search(r"scaler\w*\.state_dict|amp\w*\.state_dict", module.text):
        return
    for body in module.nodes(ast.ClassDef):
        made = next((node for node in walk(body) if _makes_own_scaler(module, node, body)), None)
        if made is None:
            continue
        for method in body.body:
            entry = _given_state(method)
            if entry is not None and not re.search(r"scaler|torch\.save", module.source(method)):
                yield found_at(
                    "AMP116",
                    module,
                    entry,
                    "the state holds the optimizer's but not the scaler's: a resumed run starts at a scale of 65536 "
                    "again and skips steps",
                    severity=None if resumes(script) else Severity.NOTE,
                    evidence=[(module, made, "the scaler"), (module, entry, "given without it")],
                    help="give scaler.state_dict(), too, and load it where the optimizer's state is loaded",
                )


def _makes_own_scaler(module: Module, node: ast.AST, body: ast.ClassDef) -> bool:
    """Whether this is `self.x = GradScaler(…)`, and it is not off for good; or `made.x = …` in a classmethod that makes
    an object, whose methods step through `self.x`."""
    match node:
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id=owner), attr=field)], value=ast.Call() as call):
            if last_name(call.func) != "GradScaler" or not _may_be_on(call):
                return False
            return owner == "self" or f"self.{field}.step(" in module.source(body)
    return False


def _given_state(method: ast.stmt) -> ast.expr | None:
    """The state of an optimizer of its own that a method returns with others in a dict."""
    if not isinstance(method, ast.FunctionDef):
        return None
    returned = {
        last_name(node.value) for node in walk(method) if isinstance(node, ast.Return) and node.value is not None
    }
    for node in walk(method):
        match node:
            case ast.Return(value=ast.Dict() as mapping):
                entry = _state_of_optimizer(mapping)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict() as mapping) if name in returned:
                entry = _state_of_optimizer(mapping)
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str() as key))],
                value=ast.Call(func=ast.Attribute(attr="state_dict")) as state,
            ) if name in returned and key.lower().startswith("optim"):
                entry = state
            case _:
                continue
        if entry is not None:
            return entry
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
