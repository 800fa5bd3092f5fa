"""What the checks of autocast regions share: which region an event runs in, and on which device."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.module import Module
from amplint.source.tree import called_name, named_argument, names_autocast
from amplint.source.values import Instance, Region

MANAGED = ("accelerat", "lightning", "Fabric", "deepspeed")  # words of who else enters autocast
AUTOCASTS = frozenset(
    (
        "torch.autocast torch.amp.autocast torch.amp.autocast_mode.autocast "
        "torch.cuda.amp.autocast torch.cuda.amp.autocast_mode.autocast torch.cpu.amp.autocast"
    ).split()
)

_AUTOCAST = re.compile(r"\bautocast\b|is_autocast")

# What an unknown thing is called that is called as a model.
MODEL_NAMES = re.compile(r"model|net|forward|encoder|decoder|backbone|generator|discriminator|critic|transformer|vae")


def real_region(event: events.Event) -> Region | None:
    """The innermost autocast region of an event, if it may be enabled and is in the code."""
    region = event.region
    if region is None or region.assumed or not may_be_enabled(region, event):
        return None
    return region


def may_be_enabled(region: Region, event: events.Event) -> bool:
    from amplint.source.interpret import conditions

    if tensors.in_float32(region, event.facts):
        return False
    return conditions.evaluate(conditions.truth(region.autocast.enabled), event.facts) is not False


def entered(script: Script, region: Region) -> events.Event | None:
    return next((event for event in script.events(events.Enter) if event.entered.node is region.node), None)


def is_autocast(module: Module, node: ast.AST) -> bool:
    """Whether a name or attribute stands for an autocast class."""
    names = module.dotted(node)
    return bool(names) and names <= AUTOCASTS


def regions_in(module: Module) -> Iterator[ast.With]:
    """The `with` statements that enter autocast, by their words; not those that turn it off."""
    for node in module.all_nodes:
        if isinstance(node, ast.With) and any(enters_autocast(module, item.context_expr) for item in node.items):
            yield node


def enters_autocast(module: Module, node: ast.expr) -> bool:
    """Whether an expression of a `with` makes an autocast (`torch.autocast(…)`, `self.autocast()`) that may be on."""
    if isinstance(node, ast.IfExp):
        return enters_autocast(module, node.body) or enters_autocast(module, node.orelse)
    if not isinstance(node, ast.Call):
        return False
    named = names_autocast(called_name(node)) and not any("transformer_engine" in n for n in module.dotted(node.func))
    if not named and not is_autocast(module, node.func):
        return False
    for value in (*node.args, *(keyword.value for keyword in node.keywords)):
        off = isinstance(value, ast.Constant) and value.value is False
        if off or (isinstance(value, ast.Attribute) and value.attr in ("float32", "float")):
            return False
    return True


def within(module: Module, node: ast.AST | None, outer: ast.AST) -> bool:
    """Whether a node stands inside another one of this file."""
    return node is not None and any(above is outer for above in module.ancestors(node))


def brings_autocast(script: Script, forward: events.Forward) -> bool:
    """Whether the model enters autocast by itself: its class, or something in it."""
    match forward.model:
        case Instance(cls=cls) if "autocast" in cls.frame.module.rows(cls.node):
            return True
    return any(frame.call is forward.node for enter in script.events(events.Enter) for frame in enter.frame.stack())


def is_library_loss(module: Module, call: ast.Call) -> bool:
    return any(tensors.op_of(name) in tensors.LOSSES for name in module.dotted(call.func))


def uses_autocast(module: Module) -> bool:
    """Whether a file has to do with autocast: not one that hands on a setting called `autocast_dtype`."""
    return bool(_AUTOCAST.search(module.text))


def device_of(script: Script, event: events.Operation, region: Region) -> str:
    """The device type of a region as code: the constant, what the region says where that can be said again, the device
    of an operand; otherwise the one the user targets."""
    constant = tensors.device_type(region.autocast.device)
    if constant or region.assumed or region.autocast.device is None:
        return f'"{constant or script.settings.target_device}"'
    module, call = event.module, region.autocast.node
    if isinstance(call, ast.Call) and call in module.parents and module.function(call) is module.function(event.node):
        named = named_argument(call, "device_type")
        device = named or (call.args[0] if call.args else None)
        if isinstance(device, ast.Name | ast.Attribute):
            return module.source(device)
    operand = event.node.args[0] if isinstance(event.node, ast.Call) and event.node.args else None
    if isinstance(operand, ast.Call) and isinstance(operand.func, ast.Attribute) and operand.func.attr == "float":
        operand = operand.func.value
    return f"{operand.id}.device.type" if isinstance(operand, ast.Name) else f'"{script.settings.target_device}"'


def bound_again(module: Module, function: ast.expr) -> bool:
    """Whether the file gives the name that is called another meaning somewhere."""
    root: ast.AST = function
    while isinstance(root, ast.Attribute):
        root = root.value
    return any(
        (isinstance(one, ast.Name) and not isinstance(one.ctx, ast.Load) and one.id == root.id)
        or (isinstance(one, ast.arg) and one.arg == root.id)
        or (isinstance(one, ast.FunctionDef | ast.ClassDef) and one.name == root.id)
        for one in module.all_nodes
        if isinstance(root, ast.Name)
    )
