"""Family 1, what a GradScaler and its methods refuse: factors, models and schedules for optimizers, calls of itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import bound_again
from amplint.checks.registry import Script, first_argument, found, found_at, rule, text
from amplint.checks.scaler.protocol import is_made_otherwise, is_off, is_scaler
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import last_name
from amplint.source.values import Scaler

_SCALERS = frozenset(
    f"torch{where}.GradScaler" for where in ("", ".amp", ".amp.grad_scaler", ".cuda.amp", ".cuda.amp.grad_scaler")
)
_FACTORS = {"growth_factor": "above", "backoff_factor": "below"}


@rule("AMP130")
def refused_factors(script: Script) -> Iterator[Finding]:
    """A scale that is to stay as it is, by factors of 1: the constructor asserts that it can grow and shrink."""
    module = script.module
    for call in module.nodes(ast.Call) if any(one in module.text for one in _FACTORS) else ():
        names = module.dotted(call.func) if any(one.arg in _FACTORS for one in call.keywords) else set()
        if not names or not names <= _SCALERS or bound_again(module, call.func) or is_off(call):
            continue
        for keyword in call.keywords:
            side, value = _FACTORS.get(str(keyword.arg)), keyword.value
            if side is None or not isinstance(value, ast.Constant) or not isinstance(value.value, int | float):
                continue
            if (value.value <= 1) if side == "above" else (value.value >= 1):
                yield found_at(
                    "AMP130",
                    module,
                    keyword.value,
                    f"{keyword.arg} has to be {side} 1: {module.source(value)} raises AssertionError",
                    help="to keep the scale as it is: growth_interval=2**31, or update(new_scale=…) in each step",
                )
                break


@rule("AMP134")
def parts_for_an_optimizer(script: Script) -> Iterator[Finding]:
    """unscale_ or step of a scaler is handed the parts of an optimizer, or of a model."""
    module = script.module
    for call in module.nodes(ast.Call) if "unscale_" in module.text else ():
        match call:
            case ast.Call(
                func=ast.Attribute(attr="unscale_" | "step" as method, value=scaler), args=[given], keywords=[]
            ):
                what = _parts(given)
            case _:
                continue
        if what and (is_scaler(module, scaler) or (method == "unscale_" and not is_made_otherwise(module, scaler))):
            yield found_at(
                "AMP134",
                module,
                given,
                f"{module.source(given)} is no optimizer but {what}: AttributeError",
                help="pass the optimizer, which unscale_ and step know again",
            )


def _parts(given: ast.expr) -> str:
    """What is surely no optimizer, by the name that torch gives it."""
    match given:
        case ast.Attribute(attr="param_groups"):
            return "the list of its groups"
        case ast.Call(func=ast.Attribute(attr="parameters" | "named_parameters")):
            return "a model's parameters"
    return ""


@rule("AMP130")
def called_scaler(script: Script) -> Iterator[Finding]:
    """A scaler is called as if it were one of those that do backward and step: `scaler(loss)`."""
    for event in script.events(events.Misused):
        if not event.name and _is_torchs(script, event.scaler) and isinstance(event.node, ast.Call):
            name = text(event.module, event.node.func)
            yield found(
                "AMP130",
                event,
                f"{name} is a GradScaler, which cannot be called: this raises TypeError",
                help=f"{name}.scale(loss).backward()",
            )


@rule("AMP134")
def no_optimizer(script: Script) -> Iterator[Finding]:
    """What is unscaled or stepped has no gradients: a schedule, a model."""
    for event in script.events(events.Misused):
        if event.name and _is_torchs(script, event.scaler):
            what, owner = first_argument(event), text(event.module, event.node).partition(f".{event.name}(")[0]
            yield found(
                "AMP134",
                event,
                f"{what} is no optimizer: {event.name}() looks for its param_groups, and raises AttributeError",
                help=f"give it the optimizer; a schedule steps by itself, after {owner}.step",
            )


@rule("AMP134")
def another_optimizer_in_the_other_arm(script: Script) -> Iterator[Finding]:
    """With a scaler self.optimizer steps, without one optimizer does; and nothing in the file sets the field."""
    module = script.module
    for branch in module.nodes(ast.If) if ".step(" in module.text else ():
        for one, other in ((branch.body, branch.orelse), (branch.orelse, branch.body)):
            given, plain = _steps_through_scaler(module, one), _steps_plainly(other)
            if given is None or plain is None or last_name(given) != last_name(plain):
                continue
            fields = [node for node in (given, plain) if isinstance(node, ast.Attribute)]
            if len(fields) != 1 or not all(isinstance(node, ast.Name | ast.Attribute) for node in (given, plain)):
                continue
            field = fields[0].attr
            set_here = (node.attr == field and isinstance(node.ctx, ast.Store) for node in module.nodes(ast.Attribute))
            if not any(set_here):
                yield found_at(
                    "AMP134",
                    module,
                    given,
                    f"the scaler steps {module.source(given)}, and the other arm {module.source(plain)}: nothing here "
                    f"sets the field {field}",
                    severity=Severity.WARNING,
                    evidence=[(module, given, "with the scaler"), (module, plain, "without it")],
                    help="step the same optimizer in both arms",
                )


def _steps_through_scaler(module: Module, arm: list[ast.stmt]) -> ast.expr | None:
    for statement in arm:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=scaler, attr="step"), args=[given], keywords=[])):
                if is_scaler(module, scaler):
                    return given
    return None


def _steps_plainly(arm: list[ast.stmt]) -> ast.expr | None:
    for statement in arm:
        match statement:
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=optimizer, attr="step"), args=[], keywords=[])):
                return optimizer
    return None


def _is_torchs(script: Script, scaler: Scaler) -> bool:
    """Whether a scaler is made by torch's own class, not by an heir that may do more."""
    made = (one for one in script.events(events.Create) if one.value == scaler)
    return any(isinstance(one.node, ast.Call) and one.module.dotted(one.node.func) & _SCALERS for one in made)
