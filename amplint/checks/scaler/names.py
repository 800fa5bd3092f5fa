"""Family 1, names: what AMP is made of, used where nothing has bound it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule
from amplint.checks.scaler.deciding import certain, excused, for_amp
from amplint.checks.scaler.scopes import binders, born, dynamic, is_guarded, loads, plain, unbound
from amplint.findings import Finding
from amplint.rewrite.apex.uses import ONLY_APEX
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import last_name
from amplint.source.values import (
    Autocast,
    Choice,
    Imported,
    Instance,
    Lib,
    Object,
    Partial,
    Scaler,
    Value,
)
from amplint.source.walk import walk

_AMP_NAMES = ("GradScaler", "autocast", "custom_fwd", "custom_bwd")
_AMP_LIBRARY = re.compile(r"(^|\.)(amp|autocast|(Sharded)?GradScaler|NativeScaler|nullcontext)(\.|$)")
_USED = re.compile(r"GradScaler|autocast|custom_fwd|custom_bwd|\bamp\.|scale\(|unscale_")
# What these modules have had, in any version of PyTorch, and what these others never had.
_HAS = {
    "torch.amp": {*_AMP_NAMES, "autocast_mode", "grad_scaler", "is_autocast_available", "autocast_decorator"},
    "torch.cuda.amp": {*_AMP_NAMES, "autocast_mode", "grad_scaler", "common", "amp_definitely_not_available"},
    "torch.cpu.amp": {"GradScaler", "autocast", "autocast_mode", "grad_scaler"},
}
_SCALERS = frozenset(f"torch{device}.amp{file}.GradScaler" for device in ("", ".cuda") for file in ("", ".grad_scaler"))
_METHODS = frozenset(
    "scale unscale_ step update is_enabled state_dict load_state_dict get_scale get_growth_factor set_growth_factor "
    "get_backoff_factor set_backoff_factor get_growth_interval set_growth_interval".split()
)
_MISSPELT = frozenset(("_unscale", "_unscale_", "_step", "_update", "_state_dict", "_load_state_dict"))
_ENABLED = ": a GradScaler with enabled=False passes everything through"
_ELSEWHERE = {
    "torch.cuda": ("autocast", "GradScaler"),
    **dict.fromkeys(("torch.nn", "torch.accelerator"), ("autocast", "GradScaler", "amp")),
}


@rule("AMP135")
def bound_on_some_paths(script: Script) -> Iterator[Finding]:
    """A scaler, a context or an import of AMP that is bound under a condition and used without it."""
    told: set[tuple[str, object]] = set()
    for event in script.events(events.Unbound):
        what = _of_amp(event.value)
        key = (event.name, event.frame.code)
        if not what or key in told or is_guarded(event.module, event.node):
            continue
        if not certain(event) or excused(script, event) or for_amp(event):
            continue
        places = _bindings(event)
        if not places:
            continue
        told.add(key)
        where = f"self.{event.name}" if event.home is None else event.name
        error = "AttributeError" if event.home is None else "NameError"
        if event.home is event.frame and isinstance(event.frame.code, ast.FunctionDef | ast.AsyncFunctionDef):
            error = "UnboundLocalError"
        condition = _words(event)
        yield found_at(
            "AMP135",
            event.module,
            event.node,
            f"{where} is bound only {condition}: without that, this raises {error}",
            evidence=[(*place, "bound here, under a condition") for place in places]
            + [(event.module, event.node, "used here on every path")],
            help=f"bind {where} on every path" + _ENABLED * (what == "scaler"),
        )


@rule("AMP135")
def none_on_some_paths(script: Script) -> Iterator[Finding]:
    """A scaler that is None under a condition, and whose methods are called without it."""
    told: set[tuple[object, object]] = set()
    for event in script.events(events.NoneUsed):
        key = (event.scaler, event.frame.code)
        if key in told or is_guarded(event.module, event.node):
            continue
        if not certain(event) or excused(script, event) or for_amp(event):
            continue
        told.add(key)
        made = script.created(event.scaler)
        yield found_at(
            "AMP135",
            event.module,
            event.node,
            f"{event.name} may be None: without AMP, this raises AttributeError",
            evidence=[
                *([(made.module, made.node, "made here, under a condition")] if made is not None else []),
                (event.module, event.node, "used here on every path"),
            ],
            help=f"make it in any case{_ENABLED}",
        )


def _of_amp(value: Value) -> str:
    """Whether something is part of AMP: a scaler or a context or name of its libraries; "" if not."""
    match value:
        case Scaler():
            return "scaler"
        case Autocast():
            return "context"
        case Object(kind="callable-scaler"):
            return "scaler"
        case Lib(name=name):
            return "name" if _AMP_LIBRARY.search(name) else ""
        case Imported(name=name, module=module):
            return "name" if _AMP_LIBRARY.search(f"{module}.{name}") else ""
        case Partial(function=function):
            return "context" if _of_amp(function) else ""
        case Choice():
            return _of_amp(value.yes) or _of_amp(value.no)
    return ""


def _bindings(event: events.Unbound) -> list[tuple[Module, ast.AST]]:
    """Where the name is bound, if it is bound nowhere that is not followed: in a loop, by another function, from
    outside."""
    if event.home is not None:
        module, code = event.home.module, event.home.code
        if dynamic(code) or isinstance(code, ast.Lambda):
            return []
        places = list(binders(code, event.name))
        elsewhere = (n for n in module.all_nodes if isinstance(n, ast.Global | ast.Nonlocal))
        if any(event.name in n.names for n in elsewhere):
            return []
    else:
        if not isinstance(event.owner, Instance):
            return []
        cls = event.owner.cls
        module, code = cls.frame.module, cls.node
        places = [
            node
            for node in module.all_nodes
            if isinstance(node, ast.Attribute) and node.attr == event.name and isinstance(node.ctx, ast.Store)
        ]
        functions = {module.function(place) for place in places}
        if len(functions) != 1 or not functions <= born(module, cls.node) or not plain(cls.node, event.name):
            return []
        if any(
            not isinstance(base, Lib) or base.name not in ("builtins.object", "torch.nn.Module") for base in cls.bases
        ):
            return []
    for place in places:
        for above in module.ancestors(place):
            if above is code:
                break
            if isinstance(above, ast.For | ast.AsyncFor | ast.While):
                return []
            if isinstance(above, ast.ExceptHandler) and not _binds(module.parents[above], places):
                return []
    statements = [module.statement(place) for place in places]
    if isinstance(code, ast.Module) and any(module.parents[one] is code for one in statements):
        return []  # bound as the file is run, whatever a circle of imports made of it
    return [(module, statement) for statement in statements]


def _binds(attempt: ast.AST, places: list[ast.AST]) -> bool:
    """Whether what is tried binds a name, too: its handlers are for runs in which that fails."""
    return isinstance(attempt, ast.Try) and any(node in places for one in attempt.body for node in walk(one))


def _words(event: events.Unbound) -> str:
    """The condition as the source has it."""
    if event.home is None and isinstance(event.owner, Instance):
        module = event.owner.cls.frame.module
    else:
        assert event.home is not None
        module = event.home.module
    places = _bindings(event)
    for above in module.ancestors(places[0][1]):
        arms = [above.body, above.orelse] if isinstance(above, ast.If) else []
        both = arms and all(any(n is place for one in arm for n in walk(one) for _, place in places) for arm in arms)
        if isinstance(above, ast.If) and not both:
            test = " ".join(module.source(above.test).split())
            if test in _asked_at(event.module, event.node):
                continue  # the use asks that, too
            return f"under `{test if len(test) <= 50 else test[:49] + '…'}`" + (
                "" if any(n is places[0][1] for one in above.body for n in walk(one)) else " being false"
            )
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            break
    return "on some paths"


def _asked_at(module: Module, node: ast.AST) -> set[str]:
    """The conditions that hold where something is used: of the branches around it, and to its left in `a and b`."""
    held: list[ast.expr] = []
    below = node
    for above in module.ancestors(node):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            break
        if isinstance(above, ast.If) and below in above.body:
            held.append(above.test)
        elif isinstance(above, ast.BoolOp) and isinstance(above.op, ast.And) and below in above.values:
            held += above.values[: above.values.index(below)]
        below = above
    parts = [part for one in held for part in (one.values if isinstance(one, ast.BoolOp) else [one])]
    return {" ".join(module.source(one).split()) for one in (*held, *parts)}


@rule("AMP135")
def bound_nowhere(script: Script) -> Iterator[Finding]:
    """autocast, GradScaler, amp or a scaler is used and bound nowhere that the use can see."""
    module = script.module
    if not _USED.search(module.text) or not _may_use(module) or dynamic(module.tree):
        return
    told: set[tuple[str, object]] = set()
    for node, kind in _uses(module):
        key = (node.id, None if kind == "import" else module.function(node))
        if key in told or not unbound(module, node) or is_guarded(module, node):
            continue
        told.add(key)
        if kind == "import":
            message = f"{node.id} is not imported: this raises NameError"
            source = "from torch.cuda import amp" if node.id == "amp" else f"from torch.amp import {node.id}"
            help = source
        else:
            message = f"{node.id} is bound in no scope that this can see: this raises NameError"
            help = f"pass {node.id} as an argument, or create it here"
            if kind == "optimizer" and f"self.{node.id}" in module.text:
                help = f"write self.{node.id}"
        yield found_at("AMP135", module, node, message, help=help)


def _may_use(module: Module) -> bool:
    """Whether there is a name that `_uses` could tell of: to go through the text in its order takes long."""
    return any(name.id == "amp" or name.id in _AMP_NAMES for name in module.nodes(ast.Name)) or any(
        (node.attr in ("scale", "unscale_") and isinstance(node.value, ast.Name))
        or (node.attr in ("step", "unscale_") and "caler" in _last(node.value))
        for node in module.nodes(ast.Attribute)
    )


def _steps(method: ast.expr) -> bool:
    """Whether a method of a scaler takes an optimizer."""
    return isinstance(method, ast.Attribute) and method.attr in ("step", "unscale_") and "caler" in _last(method.value)


def _last(node: ast.AST) -> str:
    """The last name of a chain: `scaler` of `self.scaler`."""
    return last_name(node)


def _uses(module: Module) -> Iterator[tuple[ast.Name, str]]:
    """Names that are used as parts of AMP, in the order of the text."""
    scalers = {
        target.id
        for node in module.nodes(ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Call)
        if any(name in _SCALERS for name in module.dotted(node.value.func))
    }
    for node in loads(module.tree):
        above = module.parents[node]
        part = node.id == "amp" and isinstance(above, ast.Attribute) and above.attr in _AMP_NAMES
        if part or node.id in _AMP_NAMES:
            yield node, "import"
        elif isinstance(above, ast.Attribute) and above.value is node:
            call = module.parents[above]
            if not isinstance(call, ast.Call) or call.func is not above:
                continue
            outer = module.parents[call]
            scales = above.attr == "scale" and isinstance(outer, ast.Attribute) and outer.attr == "backward"
            steps = above.attr == "step" and call.args and "caler" in node.id
            if scales or steps or (above.attr == "unscale_" and call.args):
                yield node, "scaler"
        elif isinstance(above, ast.arguments) and "caler" in node.id:
            yield node, "scaler"  # a default: `def train(scaler=scaler)`
        elif node.id in scalers and (
            node in above.args if isinstance(above, ast.Call) else isinstance(above, ast.keyword)
        ):
            yield node, "scaler"  # handed on as what is a scaler elsewhere in the file
        elif isinstance(above, ast.Call) and node in above.args[:1] and _steps(above.func):
            yield node, "optimizer"
        elif isinstance(above, ast.Subscript) and above.value is node:
            call = module.parents[above]
            if isinstance(call, ast.Call) and above in call.args[:1] and _steps(call.func):
                yield node, "optimizer"


@rule("AMP135")
def not_in_the_library(script: Script) -> Iterator[Finding]:
    """A name that no version of torch.amp, torch.cuda.amp or torch.cpu.amp has."""
    module = script.module
    used = "torch" in module.text and _USED.search(module.text)
    for node in (*module.nodes(ast.Attribute), *module.nodes(ast.ImportFrom)) if used else ():
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            for dotted in module.dotted(node.value):
                if node.attr in ONLY_APEX:
                    continue  # AMP608
                if not _exists(dotted, node.attr) and not _rebound(module, node) and not is_guarded(module, node):
                    yield found_at(
                        "AMP135",
                        module,
                        node,
                        f"{dotted} has no {node.attr}, in any version of PyTorch: this raises AttributeError",
                        help=_suggest(node.attr),
                    )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and not is_guarded(module, node):
            for alias in node.names:
                if not _exists(node.module, alias.name):
                    yield found_at(
                        "AMP135",
                        module,
                        node,
                        f"{node.module} has no {alias.name}, in any version of PyTorch: this raises ImportError",
                        help=_suggest(alias.name),
                    )


@rule("AMP135")
def not_of_a_scaler(script: Script) -> Iterator[Finding]:
    """A method that no GradScaler has, of a name that is bound to nothing else."""
    module = script.module
    if "GradScaler" not in module.text:
        return
    scalers: dict[str, bool] = dict.fromkeys((one.arg for one in module.nodes(ast.arg)), False)
    bound: list[ast.Name | ast.Attribute] = [*module.nodes(ast.Name), *module.nodes(ast.Attribute)]
    for target in bound:
        if isinstance(target.ctx, ast.Store):
            value = getattr(module.parents[target], "value", None)
            if isinstance(value, ast.IfExp):
                value = value.orelse if _is_none(value.body) else value.body if _is_none(value.orelse) else value
            made = isinstance(value, ast.Call) and any(one in _SCALERS for one in module.dotted(value.func))
            scalers[ast.unparse(target)] = made and scalers.get(ast.unparse(target), True)
    for node in module.nodes(ast.Attribute) if any(scalers.values()) else ():
        private = node.attr.startswith("_") and node.attr not in _MISSPELT
        if (
            not (node.attr in _METHODS or private or not isinstance(node.ctx, ast.Load))
            and scalers.get(ast.unparse(node.value))
            and not is_guarded(module, node)
        ):
            near = next((one for one in _METHODS if one.strip("_") == node.attr.strip("_")), "")
            yield found_at(
                "AMP135",
                module,
                node,
                f"a GradScaler has no {node.attr}, in any version of PyTorch: this raises AttributeError",
                help=f"write {near}" if near else "see the methods of torch.amp.GradScaler",
            )


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _exists(module: str, name: str) -> bool:
    known = _HAS.get(module)
    if known is not None:
        return name in known or name.startswith("_") or name == "*"
    return name not in _ELSEWHERE.get(module, ())


def _suggest(name: str) -> str:
    near = [one for one in _AMP_NAMES if one.lower() == name.lower().replace("_", "")]
    return f"torch.amp.{near[0] if near else name}" if near or name in _AMP_NAMES else "see the names of torch.amp"


def _rebound(module: Module, node: ast.Attribute) -> bool:
    """Whether the import table alone does not say what the root of a chain is, or the name is added to the module."""
    root: ast.AST = node
    while isinstance(root, ast.Attribute):
        root = root.value
    assert isinstance(root, ast.Name)
    if len(module.imports.get(root.id, ())) != 1:
        return True
    return any(
        (isinstance(one, ast.Name) and one.id == root.id and not isinstance(one.ctx, ast.Load))
        or (isinstance(one, ast.arg) and one.arg == root.id)
        or (isinstance(one, ast.Attribute) and one.attr == node.attr and isinstance(one.ctx, ast.Store))
        for one in module.all_nodes
    )
