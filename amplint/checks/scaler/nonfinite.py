"""Family 1, overflow is normal: what hides it from the scaler, what dies of it, and a scale that falls for ever."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found, found_at, rule
from amplint.checks.scaler.protocol import is_disabled
from amplint.findings import Finding, Severity
from amplint.rewrite.refusals.anomalies import anomaly_mode
from amplint.source import events
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name, last_name
from amplint.source.values import Scaler
from amplint.source.walk import walk

_ASKS = frozenset(("isnan", "isinf", "isfinite"))
_CLEANS = frozenset(("nan_to_num", "nan_to_num_"))
_WATCHED = ("get_scale", "_scale", '["scale"]', "['scale']", "min_scale", "is_enabled")


def is_gradient(node: ast.AST) -> bool:
    """Whether an expression is `x.grad`, or its data, or an element of it."""
    while isinstance(node, ast.Subscript) or (isinstance(node, ast.Attribute) and node.attr == "data"):
        node = node.value
    return isinstance(node, ast.Attribute) and node.attr == "grad"


def asks_for_nonfinite(node: ast.AST) -> bool:
    """Whether an expression asks a gradient whether it is finite."""
    return any(
        isinstance(call, ast.Call) and called_name(call) in _ASKS and any(is_gradient(one) for one in walk(call))
        for call in walk(node)
    )


def scaled_steps(script: Script) -> list[events.Step]:
    return [
        step for step in script.events(events.Step) if isinstance(step.scaler, Scaler) and not is_disabled(step.scaler)
    ]


# -- hidden from the scaler -------------------------------------------------------------------------------------------


@rule("AMP125")
def nonfinite_gradients_masked(script: Script) -> Iterator[Finding]:
    """inf and nan are taken out of the gradients before the scaler looks for them."""
    module = script.module
    steps = [step for step in scaled_steps(script) if step.module is module]
    if not steps or not any(word in module.text for word in (*_CLEANS, *_ASKS)):
        return
    for node in module.all_nodes:
        if not _masks(module, node):
            continue
        for step in steps:
            place = _in_function_of(module, node, step)
            if place is None or not _before_the_look(script, place, step):
                continue
            yield found_at(
                "AMP125",
                module,
                node,
                "inf and nan are taken out of the gradients before the scaler looks for them: it never skips a step "
                "and never lowers the scale",
                evidence=[(module, node, "replaced here"), (step.module, step.node, "found finite here")],
                help="leave them: the scaler skips the step and halves the scale, which makes them finite again",
            )
            break


def _masks(module: Module, node: ast.AST) -> bool:
    """Whether a statement or call puts other numbers where gradients are not finite."""
    match node:
        case ast.Call() if called_name(node) in _CLEANS:
            receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
            operand = receiver if receiver is not None and is_gradient(receiver) else next(iter(node.args), None)
            if operand is None or not is_gradient(operand):
                return _in_hook(module, node)
            if called_name(node) == "nan_to_num_" or any(keyword.arg == "out" for keyword in node.keywords):
                return True
            statement = module.statement(node)
            return isinstance(statement, ast.Assign) and any(map(is_gradient, statement.targets))
        case ast.Assign(targets=[ast.Subscript(value=target, slice=index)], value=ast.Constant()):
            return is_gradient(target) and asks_for_nonfinite(index)
        case ast.Assign(targets=[target], value=ast.Call() as call) if called_name(call) == "where":
            return is_gradient(target) and asks_for_nonfinite(call)
        case ast.Call(func=ast.Attribute(value=target, attr="masked_fill_")) if node.args:
            return is_gradient(target) and asks_for_nonfinite(node.args[0])
        case ast.Call(func=ast.Attribute(value=target, attr="zero_" | "fill_")) if is_gradient(target):
            branch = next((one for one in module.ancestors(node) if isinstance(one, ast.If)), None)
            return branch is not None and asks_for_nonfinite(branch.test)
    return False


def _in_hook(module: Module, call: ast.Call) -> bool:
    """Whether a call is what a gradient hook returns: `p.register_hook(lambda g: torch.nan_to_num(g))`."""
    function = module.parents[call]
    if not isinstance(function, ast.Lambda) or function.body is not call:
        return False
    above = module.parents[function]
    hook = isinstance(above, ast.Call) and called_name(above) in ("register_hook", "register_post_accumulate_grad_hook")
    names = {argument.arg for argument in function.args.args}
    return hook and any(isinstance(one, ast.Name) and one.id in names for arg in call.args for one in walk(arg))


def _in_function_of(module: Module, node: ast.AST, step: events.Step) -> ast.AST | None:
    """Where the function that steps comes by a node: the node itself, or the call of the helper that holds it. A hook
    runs with every backward."""
    home, stepping = module.function(node), module.function(step.node)
    if isinstance(home, ast.Lambda):
        return step.node
    if home is stepping:
        return node
    if isinstance(home, ast.FunctionDef) and not any(isinstance(one, ast.Return) and one.value for one in walk(home)):
        scope: ast.AST = stepping or module.tree
        return next((c for c in walk(scope) if isinstance(c, ast.Call) and called_name(c) == home.name), None)
    return None


def _before_the_look(script: Script, place: ast.AST, step: events.Step) -> bool:
    """Whether it runs before unscale_, or before the step where nothing unscales: unscale_ is what looks for inf."""
    if place is step.node:
        return True
    function = step.module.function(step.node)
    looks = [
        one.node.lineno  # type: ignore[attr-defined]
        for one in (*script.events(events.Unscale), step)
        if one.module is step.module and one.module.function(one.node) is function
    ]
    backwards = [
        one.node.lineno  # type: ignore[attr-defined]
        for one in script.events(events.Backward)
        if one.module is step.module and one.module.function(one.node) is function and one.scaler is not None
    ]
    return bool(backwards) and min(backwards) < place.lineno < min(looks)  # type: ignore[attr-defined]


# -- dies of an overflow ----------------------------------------------------------------------------------------------


@rule("AMP126")
def abort_on_nonfinite(script: Script) -> Iterator[Finding]:
    """A run ends at the first overflow, which is how a scaler finds its scale."""
    for clip in script.events(events.Clip):
        scaled = any(
            isinstance(before.scaler, Scaler) and before.kind in ("scaled", "unscaled") for _, before in clip.touched
        )
        if not scaled or not isinstance(clip.node, ast.Call) or _is_caught(clip.module, clip.node):
            continue
        if _is_true(clip.node, "error_if_nonfinite"):
            yield found(
                "AMP126",
                clip,
                "error_if_nonfinite=True raises RuntimeError at the first overflow, which is normal with a GradScaler: "
                "it skips that step and halves the scale",
                evidence=[(clip, "the gradients are those of a scaled loss")],
                help="leave it out: the norm is inf then, and the step is skipped",
            )
    module = script.module
    steps = [step for step in scaled_steps(script) if step.module is module]
    functions = {module.function(step.node): step for step in reversed(steps)}
    for function, step in functions.items():
        for test, place in _aborts(function or module.tree):
            if module.function(place) is function and _asks_the_norm(module, function, test):
                yield found_at(
                    "AMP126",
                    module,
                    place,
                    "this ends the run at the first overflow, which is normal with a GradScaler: it skips that step "
                    "and halves the scale",
                    evidence=[
                        (module, place, "ends here"),
                        (module, step.node, "the scaler would have skipped this step"),
                    ],
                    help="check the loss instead (it is not scaled), or stop after many skipped steps in a row",
                )
    if steps:
        yield from _anomaly(script, steps)


def _is_caught(module: Module, node: ast.AST) -> bool:
    """Whether a handler around a node takes the RuntimeError that it raises, and goes on."""
    inner = node
    for above in module.ancestors(node):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            return False
        if isinstance(above, ast.Try) and inner in above.body:
            for handler in above.handlers:
                kinds = {last_name(one) for one in walk(handler.type)} if handler.type else _RUNTIME_ERRORS
                if kinds & _RUNTIME_ERRORS:
                    return not any(isinstance(one, ast.Raise) or called_name(one) in _ENDS for one in walk(handler))
        inner = above
    return False


_ENDS = {"exit", "_exit", "abort"}
_RUNTIME_ERRORS = {"RuntimeError", "Exception", "BaseException"}


def _is_true(call: ast.Call, name: str) -> bool:
    return any(k.arg == name and isinstance(k.value, ast.Constant) and k.value.value is True for k in call.keywords)


def _aborts(scope: ast.AST) -> Iterator[tuple[ast.expr, ast.stmt]]:
    """Conditions under which nothing but an end of the run stands, and the statements that do it."""
    for node in walk(scope):
        match node:
            case ast.Assert():
                yield node.test, node
            case ast.If(body=body):
                for statement in body:
                    ends = isinstance(statement, ast.Raise) or (
                        isinstance(statement, ast.Expr) and called_name(statement.value) in ("exit", "_exit", "abort")
                    )
                    if ends:
                        yield node.test, statement


def _asks_the_norm(module: Module, function: FunctionNode | None, test: ast.expr) -> bool:
    """Whether a condition asks only whether gradients, or the norm that clipping gave, are finite."""
    inner = test
    while True:
        match inner:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = operand
            case ast.Call(func=ast.Attribute(value=operand, attr="any" | "all" | "item"), args=[]):
                inner = operand
            case _:
                break
    calls = [inner] if not isinstance(inner, ast.BoolOp) else inner.values
    if not all(isinstance(call, ast.Call) and called_name(call) in _ASKS for call in calls):
        return False
    norms = {
        target.id
        for node in walk(function or module.tree)
        if isinstance(node, ast.Assign)
        and called_name(node.value) in ("clip_grad_norm_", "clip_grad_norm", "get_grad_norm")
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    asked = [one for call in calls for one in walk(call)]
    return any(is_gradient(one) or (isinstance(one, ast.Name) and one.id in norms) for one in asked)


def _anomaly(script: Script, steps: list[events.Step]) -> Iterator[Finding]:
    """A note: anomaly mode raises where an overflow made a nan."""
    module = script.module
    for node in anomaly_mode(module):
        yield found_at(
            "AMP126",
            module,
            node,
            "anomaly mode raises RuntimeError where an overflow makes a nan, which is normal with a GradScaler",
            severity=Severity.NOTE,
            evidence=[(module, steps[0].node, "the scaler skips such steps")],
            help="turn it on to debug only",
        )


# -- a scale that falls for ever --------------------------------------------------------------------------------------


@rule("AMP132")
def no_scale_floor(script: Script) -> Iterator[Finding]:
    """A note: nothing would see that the scale falls to 0."""
    module = script.module
    if any(word in module.text for word in _WATCHED):
        return
    used = {step.scaler for step in scaled_steps(script)} & {update.scaler for update in script.events(events.Update)}
    for create in script.events(events.Create):
        if create.value in used and create.module is module:
            yield found(
                "AMP132",
                create,
                "nothing watches the scale: a model that overflows for ever halves it to 0, and the next finite step "
                "writes nan into the weights",
                help="log scaler.get_scale(), and stop when it is below 1 for many steps",
            )
