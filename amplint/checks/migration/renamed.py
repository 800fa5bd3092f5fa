"""Family 6, migration: names that PyTorch deprecates, and arguments that moved."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint import knowledge
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import migration as fixes
from amplint.source import events
from amplint.source.interpret.tensors import dtype_of
from amplint.source.module import Module
from amplint.source.tree import defaults, named_argument, names_in
from amplint.source.values import Autocast, Const, Lib, Scaler, Sym, Test, Value
from amplint.source.walk import walk

# Deprecated name → (its successor, the torch version that has it).
MOVED = {
    "torch.cuda.amp.autocast": ("torch.amp.autocast", (2, 4)),
    "torch.cuda.amp.GradScaler": ("torch.amp.GradScaler", (2, 3)),
    "torch.cuda.amp.custom_fwd": ("torch.amp.custom_fwd", (2, 4)),
    "torch.cuda.amp.custom_bwd": ("torch.amp.custom_bwd", (2, 4)),
    "torch.cpu.amp.autocast": ("torch.amp.autocast", (2, 4)),
    "torch.cpu.amp.GradScaler": ("torch.amp.GradScaler", (2, 3)),
}
for _name in (
    "autocast_mode.autocast",
    "autocast_mode.custom_fwd",
    "autocast_mode.custom_bwd",
    "grad_scaler.GradScaler",
):
    MOVED[f"torch.cuda.amp.{_name}"] = MOVED[f"torch.cuda.amp.{_name.rpartition('.')[2]}"]


_OLD_ORDER = (
    "enabled",
    "dtype",
    "cache_enabled",
)  # what followed the device in nobody's API: torch.cuda.amp.autocast's
_OLD_SCALER = ("init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled")


@rule("AMP601")
def deprecated_amp_api(script: Script) -> Iterator[Finding]:
    """torch.cuda.amp.* and torch.cpu.amp.*, by whatever name the file reaches them."""
    module = script.module
    severity = knowledge.rules()["AMP601"].severity
    uses: list[tuple[ast.AST, str]] = []
    guarded: set[str] = (
        set()
    )  # names of imports that keep their meaning: code for old versions, or another file, uses them
    for node, old in deprecated_uses(module):
        if script.settings.target_torch < MOVED[old][1] or _for_old_versions(
            module, node, MOVED[old][0], old.split(".")[1]
        ):
            guarded |= _bound(node)
        else:
            uses.append((node, old))
    guarded |= fixes.taken_elsewhere(module, uses)
    changed = [(node, old) for node, old in uses if not _bound(node) & guarded]
    fix = fixes.to_torch_amp(module, changed, guarded) if changed else None
    for node, old in uses:
        new, since = MOVED[old]
        device = old.split(".")[1]
        arguments = f'("{device}", …)' if new.endswith(("autocast", "GradScaler")) else f'(device_type="{device}")'
        said = f"{old} is deprecated since torch {'.'.join(map(str, since))}"
        named = _named_only(module, node)
        if named == "isinstance":
            said += f": what {new} makes is no instance of it"
        elif not named:
            said += ": a FutureWarning at every call"
        yield Finding(
            "AMP601",
            said,
            module.path,
            module.range(node),
            Severity.NOTE if named == "annotation" else severity,
            help=f"use {new}{arguments}",
            fix=fix if (node, old) in changed else None,
        )


def _bound(node: ast.AST) -> set[str]:
    """The name that an import binds, or that a use reads by itself."""
    match node:
        case ast.alias(name=name, asname=other):
            return {other or name}
        case ast.Name(id=name):
            return {name}
    return set()


def _named_only(module: Module, node: ast.AST) -> str:
    """Where a class is named and not called: "annotation", "isinstance", or ""."""
    inner = node
    for above in module.ancestors(node):
        match above:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass")):
                return "isinstance"
            case ast.arg(annotation=annotation) | ast.AnnAssign(annotation=annotation) if annotation is inner:
                return "annotation"
            case ast.FunctionDef(returns=returns) | ast.AsyncFunctionDef(returns=returns):
                return "annotation" if returns is inner else ""
            case ast.stmt() | ast.Call():
                return ""
        inner = above
    return ""


def deprecated_uses(module: Module) -> Iterator[tuple[ast.AST, str]]:
    """Every place that names a deprecated API: imports of it, and uses through any import. Names that a fallback
    imports from two places are left alone: they serve old versions, too."""
    for node in module.all_nodes:
        match node:
            case ast.ImportFrom(level=0):
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    if name in MOVED and module.imports[alias.asname or alias.name] == {name}:
                        yield alias, name
            case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()):
                names = module.dotted(node)
                if len(names) == 1 and (name := next(iter(names))) in MOVED:
                    yield node, name


_ABSENT = frozenset("ImportError ModuleNotFoundError AttributeError TypeError".split())


def _for_old_versions(module: Module, node: ast.AST, new: str, device: str) -> bool:
    """Whether this is what runs where torch is too old for the successor: in the handler of an attempt to use that, in
    the other arm of a branch that uses it, under a question about torch's version, or after the successor's return."""
    inside = node
    for above in module.ancestors(node):
        if any(_returns_it(module, before, new, device) for before in _before(above, inside)):
            return True
        match above:
            case ast.Try() if inside in above.handlers:
                caught = names_in(inside)
                if caught & _ABSENT or any(_names(module, part, new, device) for part in above.body):
                    return True
            case ast.If(test=test, body=body, orelse=orelse):
                other = orelse if inside in body else body
                if inside is not test and (
                    asks_version(module, test) or any(_names(module, part, new, device) for part in other)
                ):
                    return True
            case ast.IfExp(test=test, body=yes, orelse=no) if inside is not test:
                if asks_version(module, test) or _names(module, no if inside is yes else yes, new, device):
                    return True
        inside = above
    return False


def _before(block: ast.AST, node: ast.AST) -> list[ast.stmt]:
    """The statements before one in its block."""
    for statements in (getattr(block, "body", None), getattr(block, "orelse", None)):
        if isinstance(statements, list) and node in statements:
            return statements[: statements.index(node)]
    return []


def _returns_it(module: Module, statement: ast.stmt, new: str, device: str) -> bool:
    """Whether a statement returns the successor, where torch has it."""
    match statement:
        case ast.If(body=[*_, ast.Return() as returned]) | ast.Try(body=[*_, ast.Return() as returned]):
            return _names(module, returned, new, device)
    return False


def _names(module: Module, tree: ast.AST, name: str, device: str) -> bool:
    """Whether code uses a library name, for this device."""
    wanted = {name, name.replace("torch.amp.autocast", "torch.autocast")}
    return any(
        bool(wanted & module.dotted(node)) and not _of_another_device(module, node, device)
        for node in walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
    )


def _of_another_device(module: Module, node: ast.AST, device: str) -> bool:
    """Whether a call names another device: that arm is there for the device, not for a version."""
    match module.parents[node]:
        case ast.Call(func=function, args=[ast.Constant(value=str() as named), *_]) if function is node:
            return named.partition(":")[0] != device
    return False


def asks_version(module: Module, test: ast.expr) -> bool:
    """Whether a condition compares torch's version, or asks whether torch has something."""
    asked = text(module, test, 200).lower()
    return "torch" in asked and ("version" in asked or "hasattr" in asked)


@rule("AMP602")
def moved_positional_argument(script: Script) -> Iterator[Finding]:
    """Positional arguments that mean something else than they did under the old name (or the new one)."""
    for create in script.events(events.Create):
        value = create.value
        node = create.node
        if not isinstance(node, ast.Call):
            continue
        if isinstance(value, Autocast):
            position = _position(node, "dtype")
            if _boolean(value.device):
                continue  # AMP222 mends the whole call
            if position is not None and (_boolean(value.dtype) or is_flag(create.module, position)):
                flag = text(create.module, position)
                yield found(
                    "AMP602",
                    create,
                    f"the second positional argument of torch.autocast is dtype, not enabled: {flag} raises TypeError",
                    help=f"write enabled={flag}",
                    fix=fixes.name_arguments(create.module, node, dict(enumerate(_OLD_ORDER[: len(node.args) - 1], 1))),
                )
            elif isinstance(value.enabled, Lib) and dtype_of(value.enabled) and (given := _enabled(node)) is not None:
                yield found(
                    "AMP602",
                    create,
                    f"{text(create.module, given)} is passed as `enabled` here, not as dtype: TypeError",
                    help=f"write dtype={text(create.module, given)}",
                    fix=fixes.enabled_to_dtype(create.module, node, given),
                )
        elif isinstance(value, Scaler) and _number(value.device) and node.args:
            scale = text(create.module, node.args[0])
            yield found(
                "AMP602",
                create,
                f"the first argument of torch.amp.GradScaler is the device, not init_scale: {scale} is no scale there",
                help=f'write torch.amp.GradScaler("cuda", init_scale={scale})',
                fix=fixes.name_arguments(create.module, node, dict(enumerate(_OLD_SCALER[: len(node.args)])), '"cuda"'),
            )


def _enabled(call: ast.Call) -> ast.expr | None:
    """What is passed as `enabled`: by its name, or first."""
    named = named_argument(call, "enabled")
    return named or (call.args[0] if len(call.args) == 1 else None)


def _position(call: ast.Call, keyword: str) -> ast.expr | None:
    """The second positional argument, unless that parameter was passed by its name."""
    if any(one.arg == keyword for one in call.keywords) or len(call.args) < 2:
        return None
    return call.args[1]


def is_flag(module: Module, argument: ast.expr) -> bool:
    """Whether the file says of a name or attribute that it is a switch: by its default or annotation, by its command-
    line option, or by asking `if` it is true."""
    match argument:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            said = text(module, argument)
        case ast.BoolOp(values=values):
            return all(is_flag(module, value) for value in values)
        case _:
            return isinstance(argument, ast.Compare) or (
                isinstance(argument, ast.UnaryOp) and isinstance(argument.op, ast.Not)
            )
    if "dtype" in name:
        return False
    public = name.lstrip("_") if isinstance(argument, ast.Attribute) else name  # self._amp keeps the argument amp
    for node in module.all_nodes:
        match node:
            case ast.arguments():
                told = [getattr(value, "value", None) for one, value in defaults(node) if one == public]
                if any(isinstance(value, bool) for value in told):
                    return True
                for parameter in (*node.posonlyargs, *node.args, *node.kwonlyargs):
                    if parameter.arg == public and isinstance(parameter.annotation, ast.Name):
                        return parameter.annotation.id == "bool"
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=[ast.Constant(value=str() as option), *_]):
                if option.lstrip("-").replace("-", "_") == name and _is_switch(node):
                    return True
            case ast.If(test=test) | ast.IfExp(test=test):
                if text(module, test) in (said, f"not {said}"):
                    return True
    return False


def _is_switch(option: ast.Call) -> bool:
    """Whether a command-line option is true or false."""
    for keyword in option.keywords:
        match keyword.arg, keyword.value:
            case "action", ast.Constant(value="store_true" | "store_false") | ast.Attribute(
                attr="BooleanOptionalAction"
            ):
                return True
            case "type", ast.Name(id="bool"):
                return True
    return False


def _boolean(value: Value | None) -> bool:
    match value:
        case Test() | Const(value=bool()):
            return True
        case Sym(kind="constant", parts=(str() as name, *_)):
            return name.rpartition(".")[2].startswith(("is_", "has_"))  # torch.cuda.is_available()
    return False


def _number(value: Value | None) -> bool:
    return isinstance(value, Const) and isinstance(value.value, int | float) and not isinstance(value.value, bool)


# -- custom_fwd and custom_bwd ----------------------------------------------------------------------------------------


@rule("AMP603")
def custom_fwd_needs_device(script: Script) -> Iterator[Finding]:
    """torch.amp.custom_fwd or custom_bwd without device_type."""
    module = script.module
    named: list[ast.Name | ast.Attribute] = [*module.nodes(ast.Name), *module.nodes(ast.Attribute)]
    for node in named:
        if not module.dotted(node) or not module.dotted(node) <= _CUSTOM:
            continue
        above = module.parents[node]
        call = above if isinstance(above, ast.Call) and above.func is node else None
        if call is None and node not in getattr(above, "decorator_list", ()):
            continue  # handed on, to functools.partial for one
        if call and any(keyword.arg in ("device_type", None) for keyword in call.keywords):
            continue
        name = next(iter(module.dotted(node)))
        device = script.settings.target_device
        yield found_at(
            "AMP603",
            module,
            call or node,
            f"{name} takes device_type, and nothing passes it: TypeError when the class is defined",
            help=f'write @{text(module, node)}(device_type="{device}")',
            fix=fixes.with_device_type(module, call or node, device),
        )


_CUSTOM = {"torch.amp.custom_fwd", "torch.amp.custom_bwd"}


# -- functions about autocast's state ---------------------------------------------------------------------------------

# Deprecated function → its successor and the device that this takes first. All of them are in torch 2.4.
STATE = {
    f"torch.{verb}_autocast_{old}_{what}": (f"torch.{verb}_autocast_{what}", device)
    for old, device in (("gpu", "cuda"), ("cpu", "cpu"), ("xla", "xla"), ("ipu", "ipu"), ("hpu", "hpu"))
    for verb, what in (("get", "dtype"), ("set", "dtype"), ("is", "enabled"), ("set", "enabled"))
    if (old, what) != ("gpu", "enabled")  # torch.is_autocast_enabled() asks about CUDA, and is not deprecated
}


@rule("AMP604")
def deprecated_autocast_state(script: Script) -> Iterator[Finding]:
    """torch.get_autocast_gpu_dtype() and the like."""
    module = script.module
    if script.settings.target_torch < (2, 4):
        return
    for call in module.nodes(ast.Call):
        names = module.dotted(call.func)
        if len(names) != 1 or (old := next(iter(names))) not in STATE:
            continue
        new, device = STATE[old]
        if _for_old_versions(module, call, new, device) or isinstance(call.func, ast.Name):
            continue
        given = ", ".join([f'"{device}"', *(text(module, one) for one in call.args)])
        yield found_at(
            "AMP604",
            module,
            call,
            f"{old} is deprecated since torch 2.4: a DeprecationWarning at every call",
            help=f"write {new}({given})",
            fix=fixes.state_of(module, call, new.rpartition(".")[2], device),
        )
