"""Family 2, autocast regions: what belongs inside, what does not, and what never enters."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, alternatives, found, rule, same_function, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.module import Module
from amplint.source.values import FALSE, Autocast, Parameter, Region, Tensor, Value

AUTOCASTS = frozenset(
    (
        "torch.autocast torch.amp.autocast torch.amp.autocast_mode.autocast "
        "torch.cuda.amp.autocast torch.cuda.amp.autocast_mode.autocast torch.cpu.amp.autocast"
    ).split()
)
_GENERAL = frozenset("torch.autocast torch.amp.autocast torch.amp.autocast_mode.autocast".split())


def real_region(event: events.Event) -> Region | None:
    """The innermost autocast region of an event, if it may be enabled and is in the code."""
    region = event.region
    if region is None or region.assumed or not _enabled(region, event):
        return None
    return region


def _enabled(region: Region, event: events.Event) -> bool:
    from amplint.source.interpret import conditions

    if tensors.dtype_of(region.autocast.dtype) == "float32":
        return False
    return conditions.evaluate(conditions.truth(region.autocast.enabled), event.facts) is not False


@rule("AMP201")
def weights_change_in_region(script: Script) -> Iterator[Finding]:
    """Weights change inside an autocast region and the same region runs the model again: it uses its old copies."""
    for forward in script.events(events.Forward):
        changed = forward.stale
        if changed is None:
            continue
        outer = next(context for context in forward.contexts if isinstance(context, Region))
        yield found(
            "AMP201",
            changed,
            "the weights change, but until this autocast region ends the model keeps using half-precision copies made "
            "before: training stands still",
            evidence=[
                (_entered(script, outer), "the region is entered, and casts each weight once"),
                (changed, "the weights change"),
                (forward, "the model runs on the old copies"),
            ],
            help="enter autocast in every iteration, around the forward and the loss only",
            fix=fixes.region_into_loop(changed.module, outer.node),
        )


def _entered(script: Script, region: Region) -> events.Event | None:
    return next((event for event in script.events(events.Enter) if event.entered.node is region.node), None)


@rule("AMP202")
def backward_in_region(script: Script) -> Iterator[Finding]:
    """backward() inside an autocast region."""
    for backward in script.events(events.Backward):
        region = real_region(backward)
        if region is None:
            continue
        yield found(
            "AMP202",
            backward,
            "backward runs inside the autocast region: its own operations are cast again, some to another dtype than "
            "their forward's",
            evidence=[(_entered(script, region), "the region"), (backward, "backward inside it")],
            help="end the region after the loss",
            fix=fixes.leave_after_loss(backward.module, region.node, backward.node),
        )


@rule("AMP207")
def autocast_never_entered(script: Script) -> Iterator[Finding]:
    """An autocast object that no `with` enters, or that cannot be made."""
    for discard in script.events(events.Discard):
        if isinstance(discard.value, Autocast) and _makes_autocast(discard):
            yield found(
                "AMP207",
                discard,
                "this autocast is made and dropped: nothing runs in it",
                help="enter it: with torch.autocast(…):",
            )
    place = _Place(script)
    module = script.module
    for node in ast.walk(module.tree):
        match node:
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    yield from _with_item(place, module, item.context_expr)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                for decorator in node.decorator_list:
                    if is_autocast(module, decorator):
                        yield place.found(
                            decorator,
                            f"@{text(module, decorator)} without parentheses passes the function as an argument of "
                            "autocast: its body never runs in autocast, and calling it fails",
                            "write @torch.autocast(device_type=…)",
                            fixes.add_parentheses(module, decorator, script.settings.target_device),
                        )
            case ast.Call() if _lacks_device(module, node):
                yield place.found(
                    node,
                    f"{text(module, node)} raises TypeError: device_type is required",
                    'pass the device type: torch.autocast("cuda")',
                    fixes.add_device(module, node, script.settings.target_device),
                )


def _makes_autocast(discard: events.Discard) -> bool:
    """Whether what is called is an autocast class or a method of that name, not a setter such as
    set_autocast_enabled."""
    call = discard.node.value if isinstance(discard.node, ast.Expr) else discard.node
    if not isinstance(call, ast.Call):
        return False
    return is_autocast(discard.module, call.func) or text(discard.module, call.func).split(".")[-1] == "autocast"


def _with_item(place: _Place, module: Module, item: ast.expr) -> Iterator[Finding]:
    if is_autocast(module, item):
        yield place.found(
            item,
            f"`with {text(module, item)}:` enters the class, not an object: it raises TypeError",
            f"write {text(module, item)}(…)",
        )
    if isinstance(item, ast.BoolOp):
        calls = [value for value in item.values if isinstance(value, ast.Call) and is_autocast(module, value.func)]
        if calls:
            word = "and" if isinstance(item.op, ast.And) else "or"
            entered = item.values[-1] if isinstance(item.op, ast.And) else item.values[0]
            yield place.found(
                item,
                f"`{word}` gives one of its operands: only {text(module, entered, 40)} is entered",
                "separate context managers with a comma",
                fixes.split_contexts(module, item),
            )


class _Place:
    """Builds findings of rules that look at syntax alone."""

    def __init__(self, script: Script):
        self.script = script

    def found(self, node: ast.AST, message: str, help: str, fix: Fix | None = None) -> Finding:
        module = self.script.module
        severity = Severity.ERROR
        return Finding("AMP207", message, module.path, module.range(node), severity, help=help, fix=fix)


def is_autocast(module: Module, node: ast.AST) -> bool:
    """Whether a name or attribute stands for an autocast class."""
    names = module.dotted(node)
    return bool(names) and names <= AUTOCASTS


def _lacks_device(module: Module, call: ast.Call) -> bool:
    names = module.dotted(call.func)
    if not names or not names <= _GENERAL or call.args:
        return False
    return not any(keyword.arg in (None, "device_type") for keyword in call.keywords)


@rule("AMP211")
def float_cast_undone(script: Script) -> Iterator[Finding]:
    """Operands are cast to float32 by hand, and autocast casts them straight back."""
    lower = {op for op, way in tensors.policy().items() if way == "lower"}
    for event in script.events(events.Operation):
        if event.name not in lower or event.result.dtype not in tensors.HALF or event.region is None:
            continue
        operands = [value for value in event.args if isinstance(value, Tensor | Parameter)]
        cast = [value for value in operands if _cast_by_hand(value)]
        if not cast or any(not _cast_by_hand(value) and not _float32(value) for value in operands):
            continue
        if len(cast) < 2 and not any(_was_half(value) for value in cast):
            continue  # an input that is made a float tensor: model(images.float())
        region = event.region
        severity = Severity.ERROR if _lexical(event, region) else Severity.WARNING
        if region.assumed:
            severity = Severity.WARNING if _uses_autocast(script, event.module) and len(cast) > 1 else Severity.NOTE
            if len(cast) > 1 and _feeds(script, event.result, _POSITIONS):
                severity = Severity.WARNING
        elif len(cast) < 2:
            severity = Severity.WARNING
        yield found(
            "AMP211",
            event,
            f"autocast casts these operands back to {_half(event.result)}: .float() in front of {event.name} has no "
            f"effect",
            severity=severity,
            evidence=[(_entered(script, region), "in this autocast region")] if not region.assumed else [],
            help="compute it under torch.autocast(device_type, enabled=False)",
            fix=fixes.float32_island(event.module, event.node, _device(script, event, region)),
        )


_POSITIONS = frozenset("sin cos outer".split())


def _half(tensor: Tensor) -> str:
    return "half precision" if tensor.dtype == "low" else tensor.dtype


def _cast_by_hand(value: Value) -> bool:
    return isinstance(value, Tensor) and value.made == "float" and value.dtype == "float32"


def _was_half(value: Value) -> bool:
    return isinstance(value, Tensor) and any(
        isinstance(one, Tensor) and one.dtype in tensors.HALF for one in value.parents
    )


def _float32(value: Value) -> bool:
    return isinstance(value, Parameter) or (isinstance(value, Tensor) and value.dtype == "float32")


def _lexical(event: events.Event, region: Region) -> bool:
    """Whether the operation stands inside the `with` in the source, where its author could see both."""
    return any(above is region.node for above in event.module.ancestors(event.node))


def _uses_autocast(script: Script, module: Module) -> bool:
    return "autocast" in module.text


def _feeds(script: Script, result: Tensor, ops: frozenset[str]) -> bool:
    """Whether a result is an operand of one of these ops."""
    return any(
        event.name in ops and any(isinstance(arg, Tensor) and arg.node is result.node for arg in event.args)
        for event in script.events(events.Operation)
    )


@rule("AMP216")
def bce_in_region(script: Script) -> Iterator[Finding]:
    """binary_cross_entropy inside an autocast region: CUDA refuses it."""
    for event in script.events(events.Operation):
        if event.name != "binary_cross_entropy" or event.region is None:
            continue
        region = event.region
        if not _enabled(region, event) or tensors.device_type(region.autocast.device) == "cpu":
            continue
        if region.assumed and (not _uses_autocast(script, event.module) or _other_arm_leaves(script, event)):
            continue
        yield found(
            "AMP216",
            event,
            "binary cross entropy on probabilities is refused inside a CUDA autocast region (RuntimeError); on a "
            "CPU it runs",
            severity=Severity.WARNING if region.assumed else None,
            evidence=[(_entered(script, region), "in this autocast region")] if not region.assumed else [],
            help="use binary_cross_entropy_with_logits on logits, or leave autocast for the loss",
            fix=_bce_fix(script, event, region),
        )


def _other_arm_leaves(script: Script, event: events.Event) -> bool:
    """Whether the other arm of a branch turns autocast off: then this one is for runs without it."""
    return any(
        enter.entered.autocast.enabled == FALSE
        and same_function(enter, event)
        and alternatives(event.module, event.node, enter.node)
        for enter in script.events(events.Enter)
    )


def _bce_fix(script: Script, event: events.Operation, region: Region) -> Fix | None:
    call = event.node
    if not isinstance(call, ast.Call) or not call.args:
        return None
    prediction = call.args[0]
    match prediction:
        case ast.Call(func=ast.Attribute(attr="sigmoid")):
            logits = fixes.with_logits(event.module, call, prediction)
            if logits is not None:
                return logits
    cast = [prediction]
    target = event.args[1] if len(event.args) > 1 else None
    if len(call.args) > 1 and isinstance(target, Tensor):
        like = target.made.endswith("_like") and target.dtype != "float32"  # torch.ones_like(prediction)
        if like or target.dtype in tensors.HALF:
            cast.append(call.args[1])
    return fixes.float32_island(event.module, call, _device(script, event, region), cast)


def _device(script: Script, event: events.Operation, region: Region) -> str:
    """The device type of a region as code: the constant, what the region says where that can be said again, the device
    of an operand; otherwise the one the user targets."""
    constant = tensors.device_type(region.autocast.device)
    if constant or region.assumed or region.autocast.device is None:
        return f'"{constant or script.settings.target_device}"'
    module, call = event.module, region.autocast.node
    if isinstance(call, ast.Call) and call in module.parents and module.function(call) is module.function(event.node):
        named = next((keyword.value for keyword in call.keywords if keyword.arg == "device_type"), None)
        device = named or (call.args[0] if call.args else None)
        if isinstance(device, ast.Name | ast.Attribute):
            return module.source(device)
    operand = event.node.args[0] if isinstance(event.node, ast.Call) and event.node.args else None
    if isinstance(operand, ast.Call) and isinstance(operand.func, ast.Attribute) and operand.func.attr == "float":
        operand = operand.func.value
    return f"{operand.id}.device.type" if isinstance(operand, ast.Name) else f'"{script.settings.target_device}"'
