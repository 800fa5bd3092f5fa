"""How autocast is entered: with parentheses, by `with`, with a device."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.around import never_low
from amplint.checks.autocast.common import bound_again, is_autocast
from amplint.checks.autocast.device import made as by_name
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.module import FunctionNode, Module, imported_from
from amplint.source.values import FALSE, Autocast, Scaler, Tensor

_MODULES = frozenset("torch.amp torch.cuda.amp torch.cpu.amp torch.amp.autocast_mode".split())
_BOTH = (2, 3)  # the torch version that has autocast and GradScaler in torch.amp
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
    for event in script.events(events.CannotEnter):
        if not event.called:
            yield from _enters_a_class(script, event.module, event.node)
        elif any(create.value == event.value for create, _, _ in by_name(script)):
            yield found(
                "AMP207",
                event,
                f"what {text(event.module, event.node)[:-2]} holds is an autocast object, no class: to call it without "
                "a function raises TypeError",
                help="enter it without parentheses",
            )
    place = _Place(script)
    module = script.module
    kept = _kept(module)
    for node in module.all_nodes:
        match node:
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    yield from _with_item(place, module, item.context_expr)
                    if _holds_a_class(module, item.context_expr):
                        yield from _enters_a_class(script, module, item.context_expr)
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
            case ast.Call(func=func, args=[]) if text(module, func) in kept and not _has_device(node):
                values = list(_assigned(module, func))
                made = next((one for one in values if module.dotted(one) & _GENERAL), None)
                if made is not None and not any(isinstance(one, ast.Call) for one in values):
                    yield place.found(
                        made,
                        f"{text(module, func)} is this class, and is called without device_type, which is required: "
                        "TypeError",
                        f'write partial({text(module, made)}, "cuda")',
                    )
            case ast.Call() if _lacks_device(module, node, script.settings.target_torch):
                yield place.found(
                    node,
                    f"{text(module, node)} raises TypeError: device_type is required",
                    'pass the device type: torch.autocast("cuda")',
                    fixes.add_device(module, node, script.settings.target_device),
                )


@rule("AMP207")
def scaler_without_autocast(script: Script) -> Iterator[Finding]:
    """Losses are scaled in a project nothing of which runs in half precision."""
    seen: set[ast.AST] = set()
    if any(True for _ in script.events(events.Enter)):
        return
    for backward in script.events(events.Backward):
        scaler = backward.scaler
        create = next((one for one in script.events(events.Create) if one.value == scaler), None)
        if not isinstance(scaler, Scaler) or create is None or create.node in seen or scaler.enabled == FALSE:
            continue
        if backward.module is not script.module or create.module is not script.module:
            continue
        loss, function = backward.loss, backward.frame.code
        if not isinstance(loss, Tensor) or loss.region is not None or not loss.of:
            continue  # how it comes to be is not seen
        plain = (one for one in script.events(events.Backward) if one.scaler is None and one.frame.code is function)
        if any(True for _ in plain) or not never_low(script):
            continue  # a flag decides whether it is scaled, and may be off for good
        seen.add(create.node)
        yield found(
            "AMP207",
            create,
            "losses are scaled, and no file of the project enters autocast: everything runs in float32, which needs no "
            "scaling",
            severity=Severity.WARNING,
            evidence=[(create, "the scaler"), (backward, "a loss in float32 is scaled")],
            help="compute the loss in torch.autocast(…), or leave the scaler out",
        )


def _enters_a_class(script: Script, module: Module, node: ast.AST) -> Iterator[Finding]:
    """A `with` on a name that holds a class."""
    if is_autocast(module, node):
        return
    shown = text(module, node, 60)
    called = any(isinstance(one, ast.Call) and text(module, one.func, 60) == shown for one in module.all_nodes)
    classes = [one for one in _assigned(module, node) if _is_class(module, one)]
    simple = bool(classes) and not called and not is_autocast(module, classes[0])
    yield found_at(
        "AMP207",
        module,
        classes[0] if classes else node,
        f"{shown} may be a class here, or what makes contexts, and no context: `with` raises TypeError",
        evidence=[(module, node, "entered here")],
        help=f"enter an object: {shown}(…)" if not classes else f"write {text(module, classes[0])}(…)",
        fix=fixes.add_parentheses(module, classes[0], script.settings.target_device) if simple else None,
    )


def _holds_a_class(module: Module, name: ast.AST) -> bool:
    """Whether one function gives a name nothing but classes and contexts, one of the former at least."""
    values = list(_assigned(module, name))
    return (
        any(_is_class(module, one) for one in values)
        and all((isinstance(one, ast.Call) and _is_class(module, one.func)) or _is_class(module, one) for one in values)
        and len({module.function(one) for one in values}) == 1
    )


def _assigned(module: Module, name: ast.AST) -> Iterator[ast.expr]:
    """What is assigned to a name in its function, or to a field in its class; and the arms of it."""
    if not isinstance(name, ast.Name | ast.Attribute):
        return
    shown, scope = text(module, name), _scope(module, name)
    for one in module.nodes(ast.Assign):
        if any(text(module, target) == shown for target in one.targets) and _scope(module, one.targets[0]) is scope:
            yield from (one.value.body, one.value.orelse) if isinstance(one.value, ast.IfExp) else (one.value,)


def _scope(module: Module, name: ast.AST) -> ast.AST | None:
    """The function of a name, the class of a field."""
    kind = ast.ClassDef if isinstance(name, ast.Attribute) else FunctionNode
    return next((above for above in module.ancestors(name) if isinstance(above, kind)), None)


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
        passed_over = isinstance(item.op, ast.And) and any(_is_region(module, value) for value in item.values[:-1])
        if calls or passed_over:
            word = "and" if isinstance(item.op, ast.And) else "or"
            entered = item.values[-1] if isinstance(item.op, ast.And) else item.values[0]
            yield place.found(
                item,
                f"`{word}` gives one of its operands: only {text(module, entered, 40)} is entered",
                "separate context managers with a comma",
                fixes.split_contexts(module, item),
            )


def _is_region(module: Module, name: ast.expr) -> bool:
    """Whether a name is given an autocast object, at least in some runs, and nothing but contexts."""
    values = list(_assigned(module, name))
    made = [one for one in values if isinstance(one, ast.Call) and _is_class(module, one.func)]
    return len(made) == len(values) and any(is_autocast(module, one.func) for one in made)


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


def _kept(module: Module) -> set[str]:
    """The names and fields that may hold an autocast class that asks for a device, to be called later."""
    found = set()
    for one in module.nodes(ast.Assign):
        arms = (one.value.body, one.value.orelse) if isinstance(one.value, ast.IfExp) else (one.value,)
        if any(isinstance(arm, ast.Name | ast.Attribute) and module.dotted(arm) & _GENERAL for arm in arms):
            found |= {text(module, target) for target in one.targets}
    return found


def _has_device(call: ast.Call) -> bool:
    return any(keyword.arg in (None, "device_type") for keyword in call.keywords)


def _lacks_device(module: Module, call: ast.Call, target: tuple[int, ...]) -> bool:
    names = set() if call.args else module.dotted(call.func)
    either = bool(names & _GENERAL) and target >= _BOTH and _falls_back(module, call.func)
    if not names or not (names <= _GENERAL or either):
        return False
    return not _has_device(call)


def _falls_back(module: Module, name: ast.expr) -> bool:
    """Whether a name is torch.amp's, and torch.cuda.amp's only where the import of that fails: in a torch that nobody
    checks for. Nothing else is said there of which it is."""
    found = False
    for attempt in module.nodes(ast.Try):
        plain = all(isinstance(one, ast.ImportFrom) for one in attempt.body) and not attempt.orelse
        arms = [one for handler in attempt.handlers for one in handler.body]
        tried = any(imported_from(node, alias) in _GENERAL for node, alias in _imports(attempt.body, name))
        if tried and not (plain and all(isinstance(one, ast.ImportFrom) for one in arms)):
            return False
        found |= tried and any(True for _ in _imports(arms, name))
    return found and not bound_again(module, name)


def _imports(body: list[ast.stmt], name: ast.expr) -> Iterator[tuple[ast.ImportFrom, ast.alias]]:
    for node in body:
        if isinstance(node, ast.ImportFrom) and isinstance(name, ast.Name):
            yield from ((node, alias) for alias in node.names if (alias.asname or alias.name) == name.id)
