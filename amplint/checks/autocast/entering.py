"""How autocast is entered: with parentheses, by `with`, with a device."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import bound_again, is_autocast
from amplint.checks.registry import Script, found, rule, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.module import Module
from amplint.source.values import Autocast

_MODULES = frozenset("torch.amp torch.cuda.amp torch.cpu.amp torch.amp.autocast_mode".split())
_GENERAL = frozenset("torch.autocast torch.amp.autocast torch.amp.autocast_mode.autocast".split())


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
    for node in module.all_nodes:
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
            case ast.IfExp(body=body, orelse=orelse):
                for arm, other in ((body, orelse), (orelse, body)):
                    if _is_class(module, arm) and isinstance(other, ast.Call) and is_autocast(module, other.func):
                        yield place.found(
                            arm,
                            f"{text(module, arm)} without parentheses is a class, the other arm an object: `with` on "
                            "the class raises TypeError",
                            f"write {text(module, arm)}()",
                            fixes.add_parentheses(module, arm, script.settings.target_device),
                        )
            case ast.Call() if _lacks_device(module, node):
                yield place.found(
                    node,
                    f"{text(module, node)} raises TypeError: device_type is required",
                    'pass the device type: torch.autocast("cuda")',
                    fixes.add_device(module, node, script.settings.target_device),
                )


def _is_class(module: Module, node: ast.expr) -> bool:
    return is_autocast(module, node) or "contextlib.nullcontext" in module.dotted(node)


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
    if _calls_module(module, item):
        assert isinstance(item, ast.Call)
        yield place.found(
            item,
            f"{text(module, item.func)} is a module, not a class: calling it raises TypeError",
            "write torch.autocast(device_type=…)",
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


def _calls_module(module: Module, item: ast.expr) -> bool:
    names = module.dotted(item.func) if isinstance(item, ast.Call) else set()
    return bool(names) and names <= _MODULES and isinstance(item, ast.Call) and not bound_again(module, item.func)


class _Place:
    """Builds findings of rules that look at syntax alone."""

    def __init__(self, script: Script):
        self.script = script

    def found(self, node: ast.AST, message: str, help: str, fix: Fix | None = None) -> Finding:
        module = self.script.module
        severity = Severity.ERROR
        return Finding("AMP207", message, module.path, module.range(node), severity, help=help, fix=fix)


def _lacks_device(module: Module, call: ast.Call) -> bool:
    names = set() if call.args else module.dotted(call.func)
    if not names or not names <= _GENERAL:
        return False
    return not any(keyword.arg in (None, "device_type") for keyword in call.keywords)
