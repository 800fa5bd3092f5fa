"""Casts by hand inside a region: autocast casts again."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.around import enters_autocast_somewhere
from amplint.checks.autocast.common import device_of, entered, uses_autocast
from amplint.checks.autocast.leaving import may_leave
from amplint.checks.registry import Script, found, rule
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.tree import called_name
from amplint.source.values import Parameter, Region, Tensor, Value


@rule("AMP211")
def float_cast_undone(script: Script) -> Iterator[Finding]:
    """Operands are cast to float32 by hand, and autocast casts them straight back."""
    undone = list(_undone(script))
    mended = {event.node for event, _ in undone}
    statements = {event.module.statement(event.node): event.module for event, _ in undone}
    places = {one: module for one, module in statements.items() if may_leave(script, module, one, mended)}
    for event, cast in undone:
        assert event.region is not None
        region = event.region
        severity = Severity.ERROR if _lexical(event, region) else Severity.WARNING
        if region.assumed:
            severity = Severity.WARNING if uses_autocast(event.module) and len(cast) > 1 else Severity.NOTE
            if len(cast) > 1 and severity == Severity.NOTE and _feeds(script, event.result, _POSITIONS):
                severity = Severity.WARNING if enters_autocast_somewhere(script) else Severity.NOTE
        elif len(cast) < 2:
            severity = Severity.WARNING
        yield found(
            "AMP211",
            event,
            f"autocast casts these operands back to {_half(event.result)}: "
            + (
                f".float() in front of {event.name} has no effect"
                if any(isinstance(one, Tensor) and one.node and _together(event, one.node) for one in cast)
                else f"{event.name} does not run in float32, although they are"
            ),
            severity=severity,
            evidence=[(entered(script, region), "in this autocast region")] if not region.assumed else [],
            help="compute it under torch.autocast(device_type, enabled=False)",
            fix=fixes.float32_island(
                event.module,
                event.node,
                device_of(script, event, region),
                also=[statement for statement, module in places.items() if module is event.module],
            )
            if event.module.statement(event.node) in places
            else None,
        )


def _undone(script: Script) -> Iterator[tuple[events.Operation, list[Value]]]:
    """Operations that cast operands back, with these operands."""
    lower = {op for op, way in tensors.policy().items() if way == "lower"}
    for event in script.events(events.Operation):
        if event.name not in lower or event.result.dtype not in tensors.HALF or event.region is None:
            continue
        operands: list[Value] = [value for value in event.args if isinstance(value, Tensor | Parameter)]
        cast = [value for value in operands if _cast_by_hand(value)]
        if any(name == "out" for name, _ in event.kwargs) or (event.region.assumed and _for_want_of_it(event)):
            continue  # autocast casts nothing then
        if not cast or any(not _cast_by_hand(value) and not _float32(value) for value in operands):
            continue
        if len(cast) < 2 and not any(_was_half(value) for value in cast):
            continue  # an input that is made a float tensor: model(images.float())
        if len(cast) < 2 and event.region.assumed and _by_layer(event) and any(map(_was_given, cast)):
            continue  # so is this, where nothing is known of what a layer's input was: self.encoder(x.float())
        yield event, cast


def _for_want_of_it(event: events.Event) -> bool:
    """Whether the other arm of an `if` switches autocast off: this one is for where there is none to switch off."""
    below: ast.AST = event.node
    for above in event.module.ancestors(event.node):
        if isinstance(above, ast.If) and below in above.orelse:
            items = (item for node in above.body if isinstance(node, ast.With) for item in node.items)
            if any(_switches_off(item.context_expr) for item in items):
                return True
        below = above
    return False


def _switches_off(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("autocast")
        and any(one.arg == "enabled" and ast.unparse(one.value) == "False" for one in node.keywords)
    )


def _together(event: events.Event, node: ast.AST) -> bool:
    """Whether a cast stands in the function of the operation."""
    return event.module.function(node) is event.module.function(event.node)


_POSITIONS = frozenset("sin cos outer".split())


def _half(tensor: Tensor) -> str:
    return "half precision" if tensor.dtype == "low" else tensor.dtype


def _by_layer(event: events.Operation) -> bool:
    """Whether a module computes an operation, not the function or operator of its name."""
    return isinstance(event.node, ast.Call) and called_name(event.node) != event.name


def _was_given(value: Value) -> bool:
    """Whether a tensor was cast from an argument, of whose dtype nothing is known."""
    return isinstance(value, Tensor) and any(
        isinstance(one, Tensor) and one.made == "argument" for one in value.parents
    )


def _follows(value: Tensor) -> bool:
    """Whether a cast asks for the dtype of something else: `x.to(weight.dtype)` makes them agree, as autocast does."""
    match value.node:
        case ast.Call(func=ast.Attribute(attr="type_as")):
            return True
        case ast.Call(args=args, keywords=keywords):
            given = (*args, *(keyword.value for keyword in keywords))
            return any(isinstance(one, ast.Attribute) and one.attr == "dtype" for one in given)
    return False


def _cast_by_hand(value: Value) -> bool:
    if not isinstance(value, Tensor) or value.made != "float" or value.dtype != "float32" or _follows(value):
        return False
    return not any(
        isinstance(one, Tensor) and one.dtype == "bool" for one in value.parents
    )  # 0 and 1 are exact in half


def _was_half(value: Value) -> bool:
    return isinstance(value, Tensor) and any(
        isinstance(one, Tensor) and one.dtype in tensors.HALF for one in value.parents
    )


def _float32(value: Value) -> bool:
    return isinstance(value, Parameter) or (isinstance(value, Tensor) and value.dtype == "float32")


def _lexical(event: events.Event, region: Region) -> bool:
    """Whether the operation stands inside the `with` in the source, where its author could see both."""
    return any(above is region.node for above in event.module.ancestors(event.node))


def _feeds(script: Script, result: Tensor, ops: frozenset[str]) -> bool:
    """Whether a result is an operand of one of these ops."""
    return any(
        event.name in ops and any(isinstance(arg, Tensor) and arg.node is result.node for arg in event.args)
        for event in script.events(events.Operation)
    )
