"""AMP212: a loss that is computed outside the region, on what came out of it in half precision."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.autocast.common import MODEL_NAMES, entered, may_be_enabled, regions_in, within
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.rewrite.fixes import suite_of
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.module import Module
from amplint.source.tree import called_name, calls_in, names_in
from amplint.source.values import Region, Scaler, Tensor, Value
from amplint.source.walk import walk

# Losses of class indices: no other operand raises half outputs to float32.
_OF_INDICES = frozenset("cross_entropy_loss cross_entropy nll_loss nll_loss_nd multi_margin_loss".split())
# What keeps its operand's dtype where no region is active, with one operand that matters.
_KEEPS = frozenset("softmax log_softmax sigmoid logsigmoid tanh relu squeeze neg flatten clamp".split())
_CASTS = frozenset("half bfloat16 to float".split())
_LOSS = re.compile(r"(?:^|_)(?:loss(?:es)?|criterions?|criteria|objectives?|cost)(?:$|_|\d)|Loss$", re.IGNORECASE)
_ON_PURPOSE = re.compile(r"precision|float|fp32|autocast|\bamp\b|stab", re.IGNORECASE)


@rule("AMP212")
def loss_outside_region(script: Script) -> Iterator[Finding]:
    """A loss of the library runs outside the region on half outputs: it and its gradient are half, too."""
    if not any(True for _ in script.events(events.Backward)):
        return
    outputs = {
        forward.node: forward.region
        for forward in script.events(events.Forward)
        if forward.region is not None and may_be_enabled(forward.region, forward) and forward.grad
    }
    for event in script.events(events.Operation):
        if event.name not in tensors.LOSSES or not event.grad or _in_region(event):
            continue
        operands = _operands(event)
        regions = [_came_out_half(value, event, outputs) for value in operands]
        if not operands or regions[0] is None:
            continue
        if event.name in _OF_INDICES:
            if event.name.startswith("nll") and _dtype(operands[0]) == "":
                continue  # of a model that ends in log_softmax, in float32 as autocast has it
            if len(operands) > 1 and isinstance(operands[1], Tensor) and operands[1].dtype in ("float32", "float64"):
                continue  # class probabilities
        elif len(operands) < 2 or regions[1] is None or _of_one_output(*operands):
            continue  # a target in float32 makes it a loss in float32
        half = _dtype(operands[0]) or tensors.region_dtype(regions[0])
        yield found(
            "AMP212",
            event,
            "this loss is computed outside the autocast region, on outputs in "
            f"{'half precision' if half == 'low' else half}: {_harm(script, half)}",
            evidence=[(entered(script, regions[0]), "the region"), (event, "the loss, behind it")],
            help="compute the loss inside the region, or on outputs.float()",
            fix=fixes.into_region(event.module, regions[0].node, event.node, 2 if event.name not in _OF_INDICES else 1),
        )


def _harm(script: Script, half: str) -> str:
    """What becomes of a loss in half precision: only float16 overflows, and only where a scaler scales."""
    if half == "bfloat16":
        return "so is the loss, and two of its digits are left"
    if any(isinstance(backward.scaler, Scaler) for backward in script.events(events.Backward)):
        return "so is the loss, and a scaled gradient of 65536 does not fit in float16"
    return "so are the loss and its gradient"


def _in_region(event: events.Event) -> bool:
    region = event.region
    return region is not None and (region.assumed or may_be_enabled(region, event))


def _operands(event: events.Operation) -> list[Value]:
    """Input and target, by position or by name."""
    named = dict(event.kwargs)
    inputs = event.args[:2] if event.args else tuple(named[key] for key in ("input", "target") if key in named)
    if len(event.args) == 1 and "target" in named:
        inputs = (event.args[0], named["target"])
    return list(inputs)


def _of_one_output(one: Value, other: Value) -> bool:
    """Whether both are parts of what one model returned: one of them may be what it was given."""
    return isinstance(one, Tensor) and isinstance(other, Tensor) and one.dtype == "" and one.node is other.node


def _dtype(value: Value) -> str:
    return value.dtype if isinstance(value, Tensor) else ""


def _came_out_half(value: Value, event: events.Event, outputs: dict[ast.AST, Region]) -> Region | None:
    """The region that a value left in half precision: its dtype is known, or it is what a model returned there."""
    if not isinstance(value, Tensor) or value.trust != 2 or value.region is None or value.region.assumed:
        return None
    if value.made in _CASTS or not may_be_enabled(value.region, event):
        return None
    if _without_gradients(event.module, value.node) or _without_gradients(event.module, value.region.node):
        return None
    if value.dtype in tensors.HALF:
        return value.region
    if value.dtype != "":
        return None
    if value.node in outputs:
        return outputs[value.node]
    if value.made == "" and _calls_model(value.node) and within(event.module, value.node, value.region.node):
        return value.region
    if value.made in _KEEPS and value.parents:
        return _came_out_half(value.parents[0], event, outputs)
    return None


def _without_gradients(module: Module, node: ast.AST | None) -> bool:
    """Whether a node stands where no gradients are recorded: nothing learns from what it computes."""
    around = [node, *module.ancestors(node)] if node in module.parents and node is not None else []
    words = [module.source(item.context_expr) for one in around if isinstance(one, ast.With) for item in one.items] + [
        module.source(decorator)
        for one in around
        if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        for decorator in one.decorator_list
    ]
    return any("no_grad" in word or "inference_mode" in word for word in words)


def _calls_model(node: ast.AST | None) -> bool:
    """Whether a call whose target is not known is that of a model, by its name."""
    if not isinstance(node, ast.Call):
        return False
    name = called_name(node)
    return bool(MODEL_NAMES.search(name))


# -- losses that are not seen ------------------------------------------------------------------------------------------


@rule("AMP212")
def unseen_loss_outside_region(script: Script) -> Iterator[Finding]:
    """A note: a loss of one's own comes after the region that its outputs come from."""
    module = script.module
    if "autocast" not in module.text or "backward" not in module.text:
        return
    known: set[ast.AST | None] = set()
    for event in script.events(events.Operation):
        if event.name in tensors.LOSSES:
            known |= {event.node, *(frame.call for frame in event.frame.stack())}
    for region in regions_in(module):
        outputs = _bound(region.body)
        if not outputs or any(_is_loss(call) for statement in region.body for call in calls_in(statement)):
            continue
        block = suite_of(module, region)
        after = block[block.index(region) + 1 :]
        for index, statement in enumerate(after):
            call = _loss_of(statement, outputs)
            if call is None or call in known:
                continue
            name = statement.targets[0].id  # type: ignore[attr-defined]
            if _runs_backward(after[index + 1 :], name) and not _said(module, region, statement):
                yield found_at(
                    "AMP212",
                    module,
                    call,
                    f"{text(module, call.func)} runs outside the autocast region: where its inputs are in half "
                    "precision, so are the loss and its gradient",
                    severity=Severity.NOTE,
                    evidence=[(module, region, "the region ends before the loss")],
                    help="compute the loss inside the region, or on outputs.float()",
                )
            break


def _bound(body: list[ast.stmt]) -> set[str]:
    """The names that a region's statements bind to what calls return, unless that is cast: `model(x).float()`."""
    return {
        name.id
        for statement in body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
        if not (isinstance(statement.value.func, ast.Attribute) and statement.value.func.attr == "float")
        for target in statement.targets
        for name in walk(target)
        if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
    }


def _is_loss(call: ast.Call) -> bool:
    name = called_name(call)
    return bool(_LOSS.search(name))


def _loss_of(statement: ast.stmt, outputs: set[str]) -> ast.Call | None:
    """The call in `loss = criterion(outputs, …)` that is handed what the region made, as it is."""
    match statement:
        case ast.Assign(targets=[ast.Name()], value=ast.Call() as call) if _is_loss(call):
            handed = {arg.id for arg in call.args if isinstance(arg, ast.Name)}
            return call if handed & outputs else None
    return None


def _runs_backward(statements: list[ast.stmt], loss: str) -> bool:
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "backward"
        and loss in names_in(node)
        for statement in statements
        for node in walk(statement)
    )


def _said(module: Module, region: ast.With, loss: ast.stmt) -> bool:
    """Whether a comment between the region and the loss says that it is meant."""
    lines = (module.line(row) for row in range(region.end_lineno or region.lineno, loss.lineno))
    return any(_ON_PURPOSE.search(line.partition("#")[2]) for line in lines)
