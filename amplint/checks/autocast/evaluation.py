"""AMP221 and AMP223: the same model runs under autocast in one place and outside in another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import takewhile

from amplint.checks.autocast.common import MANAGED, MODEL_NAMES, brings_autocast, real_region, regions_in
from amplint.checks.registry import Script, found_at, may_both_run, rule, text
from amplint.findings import Finding
from amplint.source import events
from amplint.source.interpret.frames import Frame
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import place_of
from amplint.source.walk import walk

# They run every forward of the models they prepare under autocast, wherever it stands.


@rule("AMP221")
def eval_outside_autocast(script: Script) -> Iterator[Finding]:
    """A model is trained under autocast, and its evaluation runs in float32."""
    if not any(True for _ in script.events(events.Backward)) or _is_managed(script.module):
        return
    forwards = list(script.events(events.Forward))
    trained = [one for one in forwards if one.grad and real_region(one) is not None]
    covered = {one.frame.code for one in forwards if one.region is not None and not one.grad}
    for forward in forwards:
        if forward.grad or forward.region is not None or not forward.loops or forward.frame.code in covered:
            continue
        step = next((one for one in trained if _same_model(forward, one) and not _same_loop(forward, one)), None)
        if step is None or brings_autocast(script, step) or not may_both_run(forward, step):
            continue
        if any("autocast" in code for code in _around(forward, step)):
            continue
        module, place = _apart(forward, step)
        yield found_at(
            "AMP221",
            module,
            place,
            f"{_callee(forward)} is trained under autocast, and evaluated without: in float32, at the speed and memory "
            "of float32",
            evidence=[
                (step.module, step.node, "the training step runs it under autocast"),
                (module, place, "the evaluation does not"),
            ],
            help="enter the same autocast around the forward, inside no_grad",
        )


def _is_managed(module: Module) -> bool:
    """Whether the code, not only its comments, has to do with what runs every forward under autocast."""
    if not any(word in module.text for word in MANAGED):
        return False
    return any(word in name for node in module.all_nodes for name in _names_of(node) for word in MANAGED)


def _names_of(node: ast.AST) -> tuple[str, ...]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.alias(name=name):
            return (name,)
        case ast.ImportFrom(module=str() as name):
            return (name,)
    return ()


def _around(forward: events.Forward, step: events.Forward) -> Iterator[str]:
    """The code of an evaluation: its functions, up to the loop that runs it; what also holds the training step only as
    far as it does not. A function that both run enters autocast for the training step, and does not for this."""
    shared = _shared(forward, step)
    for frame in forward.frame.stack():
        if frame in shared:
            continue
        place = forward.node if frame is forward.frame else None
        yield _rows(frame.module, frame.code, place, step.node)
        if not isinstance(frame.code, FunctionNode) or frame.call is None or frame.caller is None:
            return
        if frame.caller.module.loop(frame.call) is not None:
            return


def _shared(forward: events.Forward, step: events.Forward) -> list[Frame]:
    """The calls of functions that a training step makes, too, on its way to the same forward."""
    codes = {frame.code for frame in step.frame.stack()} if forward.node is step.node else set()
    return list(takewhile(lambda frame: frame.code in codes and frame.caller is not None, forward.frame.stack()))


def _apart(forward: events.Forward, step: events.Forward) -> tuple[Module, ast.AST]:
    """Where an evaluation parts from a training step: at its call of what both run."""
    shared = _shared(forward, step)
    if shared and shared[-1].call is not None and shared[-1].caller is not None:
        return shared[-1].caller.module, shared[-1].call
    return forward.module, forward.node


def _rows(module: Module, code: ast.AST, place: ast.AST | None, step: ast.AST) -> str:
    above = set(module.ancestors(step))
    if code not in above and isinstance(code, FunctionNode):
        return module.rows(code)
    inner = place
    for node in module.ancestors(place) if place is not None else ():
        if node in above:
            break
        inner = node
    return module.rows(inner) if inner is not None else ""


def _callee(event: events.Event) -> str:
    return text(event.module, event.node.func) if isinstance(event.node, ast.Call) else "the model"


def _same_model(one: events.Forward, other: events.Forward) -> bool:
    """One value, or (where no caller is seen) one name in one file, in one class."""
    if one.model == other.model:
        return True
    if one.module is not other.module or _callee(one) != _callee(other) or _callee(one) == "the model":
        return False
    return one.module.class_of(one.node) is one.module.class_of(other.node)


def _same_loop(one: events.Event, other: events.Event) -> bool:
    """Whether both belong to one iteration: the targets of a teacher, a warm-up."""
    return bool(one.loops and other.loops) and one.loops[-1].node is other.loops[-1].node


# -- functions that the reading does not connect: their callers are elsewhere, or subclasses define the forward --------

_Home = tuple[ast.Module | ast.ClassDef, str]  # a class or file, and what is called there


@rule("AMP221")
def eval_function_outside_autocast(script: Script) -> Iterator[Finding]:
    """A function trains what it is given (or its object's forward) under autocast, and another of the same class or
    file evaluates it without."""
    module = script.module
    if "backward" not in module.text or _is_managed(module):
        return
    regions = list(regions_in(module))
    trained: dict[_Home, ast.Call] = {}
    for region in regions:
        within = module.function(region)
        if isinstance(within, ast.FunctionDef) and _runs_backward(within):
            trained |= dict(_forwards(module, within, region))
    homes = {home for home, _ in trained}
    for function in (node for home in homes for node in home.body if isinstance(node, ast.FunctionDef)):
        if not _evaluates(module, function) or "autocast" in module.rows(function):
            continue
        if any(_names(region, function.name) for region in regions):
            continue
        for home, call in _forwards(module, function, function):
            step = trained.get(home)
            own = next(
                (node for node in home[0].body if getattr(node, "name", "") == home[1].removeprefix("self.")), None
            )
            if step is None or (own is not None and "autocast" in module.rows(own)):
                continue
            name = text(module, call.func)
            yield found_at(
                "AMP221",
                module,
                call,
                f"{name} is trained under autocast, and evaluated without: in float32, at the speed and memory of "
                "float32",
                evidence=[
                    (module, step, "the training step runs it under autocast"),
                    (module, call, "the evaluation does not"),
                ],
                help="enter the same autocast around the forward, inside no_grad",
            )
            break


def _runs_backward(function: ast.AST) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in walk(function))


def _forwards(module: Module, function: ast.FunctionDef, inside: ast.AST) -> Iterator[tuple[_Home, ast.Call]]:
    """The calls of what looks like a model: a parameter of the function, or a member of its object."""
    home = module.parents[function]
    if not isinstance(home, ast.Module | ast.ClassDef):
        return
    parameters = {parameter.arg for parameter in walk(function.args) if isinstance(parameter, ast.arg)}
    calls = [node for node in walk(inside) if isinstance(node, ast.Call) and (node.args or node.keywords)]
    for call in sorted(calls, key=place_of):
        match call.func:
            case ast.Name(id=name) if name in parameters and MODEL_NAMES.search(name) and isinstance(home, ast.Module):
                if module.loop(call) is not None:
                    yield (home, name), call
            case ast.Attribute(value=ast.Name(id="self"), attr=name) if isinstance(home, ast.ClassDef):
                if MODEL_NAMES.search(name) or name.endswith("module"):
                    yield (home, f"self.{name}"), call


def _evaluates(module: Module, function: ast.FunctionDef) -> bool:
    """Whether a function runs without gradients: decorated so, or in a `with`."""
    if _runs_backward(function):
        return False
    words = [module.source(decorator) for decorator in function.decorator_list]
    words += [
        module.source(item.context_expr) for node in function.body if isinstance(node, ast.With) for item in node.items
    ]
    return any(word.rstrip("()").endswith(("no_grad", "inference_mode")) for word in words)


def _names(region: ast.With, name: str) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr == name) or (isinstance(node, ast.Name) and node.id == name)
        for node in walk(region)
    )
