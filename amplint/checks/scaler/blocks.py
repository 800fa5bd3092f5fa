"""Family 1, what the text of a block or a file shows by itself, whoever its scaler and optimizer are."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule
from amplint.checks.scaler.protocol import is_off, is_scaler
from amplint.findings import Finding
from amplint.rewrite.fixes import suite_of
from amplint.source.module import Module
from amplint.source.tree import assigned_to, calls_in, last_name, names_in, parameters, place_of


@rule("AMP111")
def update_in_front_of_step(script: Script) -> Iterator[Finding]:
    """`scaler.update()` and then `scaler.step(optimizer)`, with nothing stepped or unscaled in front of them."""
    module = script.module
    for call in module.nodes(ast.Call) if ".update()" in module.text else ():
        match call:
            case ast.Call(func=ast.Attribute(attr="update", value=scaler), args=[], keywords=[]):
                name = module.source(scaler)
            case _:
                continue
        update = module.parents[call]
        if not isinstance(update, ast.Expr) or not is_scaler(module, scaler):
            continue
        step = _next_step(module, update, name)
        if step is None or _is_used_before(module, update, name):
            continue
        yield found_at(
            "AMP111",
            module,
            call,
            f"{name}.update() runs although nothing was stepped or unscaled since the last one: AssertionError",
            evidence=[(module, call, "updates before it"), (module, step, "the step comes later")],
            help="call it once, after the step, under the step's condition",
        )


def _next_step(module: Module, update: ast.stmt, scaler: str) -> ast.Call | None:
    """The step of a scaler in the statement behind its update."""
    behind = _behind(module, update)[:1]
    calls = calls_in(behind[0]) if behind and isinstance(behind[0], ast.Expr | ast.Assign) else ()
    return next((one for one in calls if module.source(one.func) == f"{scaler}.step" and one.args), None)


def _behind(module: Module, statement: ast.stmt) -> list[ast.stmt]:
    """The statements behind one in its block."""
    block = suite_of(module, statement)
    return block[block.index(statement) + 1 :]


def _is_used_before(module: Module, update: ast.stmt, scaler: str) -> bool:
    """Whether the function steps or unscales further up: then the update may be for that, and another optimizer's step
    comes behind it."""
    uses = (f"{scaler}.step", f"{scaler}.unscale_")
    return any(
        place_of(one) < place_of(update) and module.source(one.func) in uses for one in calls_in(module.scope(update))
    )


@rule("AMP103")
def backward_in_front_of_scaled_step(script: Script) -> Iterator[Finding]:
    """`loss.backward()` and then, in the same block, `scaler.step(optimizer)`, in a file that sends every scaled loss
    backward where it scales it: so this one is not."""
    module = script.module
    backwards = [one for one in module.nodes(ast.Call) if _is_plain_backward(one)] if ".step(" in module.text else []
    if not backwards or any(not _is_sent_back(module, one) for one in _scaled(module)):
        return
    for call in backwards:
        statement = module.parents[call]
        handed = names_in(call.func) & set(parameters(module.function(call)))  # by code that may have scaled it
        step = _scaled_step(module, statement) if isinstance(statement, ast.Expr) and not handed else None
        if step is not None and isinstance(step.func, ast.Attribute):
            name = module.source(step.func.value)
            yield found_at(
                "AMP103",
                module,
                call,
                f"the loss is not scaled, but {name}.{step.func.attr} divides its gradients by the loss scale",
                evidence=[(module, call, "unscaled gradients are computed"), (module, step, "divided by the scale")],
                help=f"call {name}.scale(loss).backward()",
            )


def _is_plain_backward(call: ast.Call) -> bool:
    """Whether what is sent backward is a loss that has a name: `loss.backward()`, `(loss / 4).backward()`."""
    match call:
        case ast.Call(func=ast.Attribute(attr="backward", value=loss), args=[]):
            return not any(True for _ in calls_in(loss))
    return False


def _scaled(module: Module) -> list[ast.Call]:
    """The calls of scale(), whoever's."""
    return [one for one in module.nodes(ast.Call) if isinstance(one.func, ast.Attribute) and one.func.attr == "scale"]


def _is_sent_back(module: Module, scaled: ast.Call) -> bool:
    """Whether a scaled loss is nothing but sent backward: `scaler.scale(loss).backward()`."""
    above = module.parents[scaled]
    return isinstance(above, ast.Attribute) and above.attr == "backward"


def _scaled_step(module: Module, backward: ast.stmt) -> ast.Call | None:
    """The step or unscale_ of a scaler that comes next behind a backward in its block, before anything else is sent
    backward or steps."""
    for statement in _behind(module, backward):
        for call in sorted(calls_in(statement), key=place_of):
            match call.func:
                case ast.Attribute(attr="step" | "unscale_", value=scaler) if len(call.args) == 1:
                    return call if is_scaler(module, scaler) else None
                case ast.Attribute(attr="step" | "backward" | "zero_grad"):
                    return None
    return None


@rule("AMP110")
def nowhere_updated(script: Script) -> Iterator[Finding]:
    """A scaler that the file makes and steps through, and gives to nothing else, is updated nowhere in it."""
    module, seen = script.module, set[str]()
    for call in module.nodes(ast.Call) if ".step(" in module.text and "GradScaler" in module.text else ():
        match call:
            case ast.Call(func=ast.Attribute(attr="step", value=scaler), args=[_, *_]):
                name = module.source(scaler)
            case _:
                continue
        if name in seen or not _runs_again(module, call, name) or not _is_kept(module, name):
            continue
        seen.add(name)
        yield found_at(
            "AMP110",
            module,
            call,
            f"{name}.update() runs nowhere: the next round raises RuntimeError",
            evidence=[(module, call, "steps")],
            help=f"call {name}.update() once per iteration, after the last {name}.step()",
        )


def _runs_again(module: Module, step: ast.Call, scaler: str) -> bool:
    """Whether one scaler steps more than once: in a loop, or in another function than the one that makes it. What a
    field without an underscore holds, other files may update."""
    if "." in scaler:
        return scaler.startswith("self._")
    return module.loop(step) is not None or not module.stores(scaler, module.scope(step))


def _is_kept(module: Module, name: str) -> bool:
    """Whether the file makes a scaler, nobody else is given it, and nothing calls update() of it."""
    field = name.rpartition(".")[2]
    if any(one.attr == "update" and last_name(one.value) == field for one in module.nodes(ast.Attribute)):
        return False
    values = assigned_to(module.tree, name)
    made = [call for value in values for call in calls_in(value) if last_name(call.func) == "GradScaler"]
    if not made or any(is_off(call) for call in made):
        return False
    uses: list[ast.Name | ast.Attribute] = [*module.nodes(ast.Name), *module.nodes(ast.Attribute)]
    read = [one for one in uses if last_name(one) == field and isinstance(one.ctx, ast.Load)]
    return all(isinstance(module.parents[one], ast.Attribute) or _is_asked(module, one) for one in read)


def _is_asked(module: Module, node: ast.expr) -> bool:
    """Whether a condition asks for a thing: `if self.scaler is not None`."""
    above = module.parents[node]
    return isinstance(above, ast.Compare | ast.If | ast.IfExp | ast.BoolOp | ast.UnaryOp)
