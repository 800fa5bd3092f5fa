"""AMP223: the region is entered, and the forward that it is for runs outside."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.autocast.common import MANAGED, MODEL_NAMES, brings_autocast, real_region, regions_in, within
from amplint.checks.registry import Script, alternatives, found, found_at, may_both_run, rule, same_function, text
from amplint.checks.scaler.protocol import is_disabled
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.module import Module
from amplint.source.tree import called_name, stored_names
from amplint.source.values import Instance, Model, Scaler, Tensor
from amplint.source.walk import walk

_HALF = re.compile(r"float16|bfloat16|fp16|bf16|\bhalf\b")
_NO_MODEL = frozenset(  # what schedulers and data do, not models
    "add_noise get_velocity zero_grad to cuda sample_timesteps randn_like randint normalize".split()
)


@rule("AMP223")
def forward_outside_region(script: Script) -> Iterator[Finding]:
    """The loss is computed in an autocast region, and the forward that it comes from was not."""
    if any(word in script.module.text for word in MANAGED) or not any(True for _ in script.events(events.Backward)):
        return
    forwards = list(script.events(events.Forward))
    covered = {one.model for one in forwards if one.region is not None}
    outside = [one for one in forwards if one.region is None and one.grad and one.model not in covered]
    for event in script.events(events.Operation):
        region = real_region(event)
        if event.name not in tensors.LOSSES or region is None or not event.grad or not event.args:
            continue
        output = event.args[0]
        if not isinstance(output, Tensor) or output.region is not None:
            continue
        forward = next((one for one in outside if one.model in output.of and same_function(one, event)), None)
        if forward is None:
            continue
        if brings_autocast(script, forward) or not may_both_run(forward, event):
            continue
        seen = isinstance(forward.model, Instance | Model)
        yield found(
            "AMP223",
            forward,
            "the model runs outside the autocast region, which holds its loss alone: the forward is in float32, and "
            "losses are in float32 anyway",
            severity=None if seen else Severity.NOTE,
            evidence=[(forward, "the forward"), (event, "the loss, in the region")],
            help="begin the region before the forward",
        )


@rule("AMP223")
def second_forward_outside_region(script: Script) -> Iterator[Finding]:
    """A model runs under autocast in a step, and once more outside, for a loss that is scaled like the first."""
    if any(word in script.module.text for word in MANAGED):
        return
    forwards = [one for one in script.events(events.Forward) if one.grad]
    inside = [one for one in forwards if one.region is not None and not one.region.assumed]
    covered = {one.node for one in inside}
    outside = [one for one in forwards if one.region is None and one.node not in covered]
    for backward in script.events(events.Backward) if inside and outside else ():
        loss = backward.loss
        if not isinstance(backward.scaler, Scaler) or not isinstance(loss, Tensor) or is_disabled(backward.scaler):
            continue
        if loss.region is not None or not loss.of or _differentiates_twice(loss):
            continue
        for forward in outside:
            if forward.model not in loss.of or not same_function(forward, backward) or not _before(forward, backward):
                continue
            first = next((one for one in inside if one.model == forward.model and _in_one_step(one, forward)), None)
            if first is None or not may_both_run(forward, backward) or brings_autocast(script, forward):
                continue
            yield found(
                "AMP223",
                forward,
                f"{text(forward.module, forward.node)} runs outside autocast, in float32, where the same model runs "
                "under it in the same step",
                severity=Severity.WARNING,
                evidence=[
                    (first, "under autocast"),
                    (forward, "outside"),
                    (backward, "its loss is scaled all the same"),
                ],
                help="put this forward and its loss into a region, too",
            )
            break


def _in_one_step(one: events.Forward, other: events.Forward) -> bool:
    """Whether two forwards belong to one round of a loop, or one call of a function, and both happen."""
    together = same_function(one, other) or (one.loops and other.loops and one.loops[-1].node is other.loops[-1].node)
    return bool(together) and may_both_run(one, other) and not alternatives(one.module, one.node, other.node)


def _before(one: events.Event, other: events.Event) -> bool:
    return getattr(one.node, "lineno", 0) <= getattr(other.node, "lineno", 0)


def _differentiates_twice(loss: Tensor, depth: int = 12) -> bool:
    """Whether a loss is made of gradients: a penalty, which is left in float32 on purpose."""
    if loss.made == "grad" or depth == 0:
        return True
    return any(_differentiates_twice(part, depth - 1) for part in loss.parents if isinstance(part, Tensor))


@rule("AMP223")
def region_without_forward(script: Script) -> Iterator[Finding]:
    """A region of a training step holds nothing that autocast casts, and the model is called right behind it."""
    module = script.module
    if "backward" not in module.text:
        return
    for region in regions_in(module):
        function = module.function(region)
        calls = [node for statement in region.body for node in walk(statement) if isinstance(node, ast.Call)]
        if not calls or any(called_name(call) not in _NO_MODEL for call in calls):
            continue
        if any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) for node in walk(region)):
            continue
        bound = stored_names(region)
        behind = _called_behind(module, region, bound)
        if behind is None or not _has_backward(module, function):
            continue
        yield found_at(
            "AMP223",
            module,
            region,
            f"nothing in this autocast region is cast by autocast, and {text(module, behind.func)} runs behind it",
            severity=Severity.WARNING,
            evidence=[(module, behind, "the forward, outside the region")],
            help="put the forward and the loss into the region",
        )


def _called_behind(module: Module, region: ast.With, bound: set[str]) -> ast.Call | None:
    """The model that is called, in the statements after the region, on what the region made."""
    block = next(
        block for _, block in ast.iter_fields(module.parents[region]) if isinstance(block, list) and region in block
    )
    for statement in block[block.index(region) + 1 :]:
        if any(within(module, statement, other) for other in regions_in(module)) or isinstance(statement, ast.With):
            return None
        for node in walk(statement):
            if not isinstance(node, ast.Call) or not MODEL_NAMES.search(called_name(node)):
                continue
            if bound & {arg.id for arg in node.args if isinstance(arg, ast.Name)}:
                return node
    return None


def _has_backward(module: Module, function: ast.AST | None) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in walk(function or module.tree))


# -- a context that is called autocast, and is none --------------------------------------------------------------------


@rule("AMP223")
def autocast_of_ones_own(script: Script) -> Iterator[Finding]:
    """A context manager that is named for autocast yields without it where low precision is asked for."""
    module = script.module
    for function in module.all_nodes:
        if not isinstance(function, ast.FunctionDef) or "autocast" not in function.name:
            continue
        if not any(module.source(decorator).endswith("contextmanager") for decorator in function.decorator_list):
            continue
        for branch in walk(function):
            if not isinstance(branch, ast.If) or not _asks_for_half(branch.test) or len(branch.body) != 1:
                continue
            match branch.body[0]:
                case ast.Expr(value=ast.Yield(value=None) as nothing) if not _in_region(module, nothing, function):
                    yield found_at(
                        "AMP223",
                        module,
                        nothing,
                        f"{function.name} enters no autocast where low precision is asked for: all that runs in it is "
                        "in float32",
                        evidence=[(module, branch.test, "low precision is asked for")],
                        help="yield inside torch.autocast(device_type, dtype=dtype)",
                    )


def _asks_for_half(test: ast.expr) -> bool:
    """`dtype == torch.float16 or dtype == torch.bfloat16`, `dtype in (…)`; not a negation of it."""
    match test:
        case ast.BoolOp(op=ast.Or(), values=values):
            return all(_asks_for_half(value) for value in values)
        case ast.Compare(ops=[ast.Eq() | ast.Is() | ast.In()], comparators=[wanted]):
            return bool(_HALF.search(ast.unparse(wanted))) and "float32" not in ast.unparse(wanted)
    return False


def _in_region(module: Module, node: ast.AST, function: ast.AST) -> bool:
    for above in module.ancestors(node):
        if above is function:
            return False
        if isinstance(above, ast.With):
            return True
    return False
