"""The flag that switches mixed precision: of the wrong type, compared with what it never is, or always true."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import partial

from amplint.checks.autocast.common import AUTOCASTS, is_autocast
from amplint.checks.autocast.options import OFF, Option, is_about_amp, names_amp, option_of, options_of
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.interpret import conditions
from amplint.source.interpret.tensors import dtype_of
from amplint.source.module import Module
from amplint.source.symbols import options as sides_of
from amplint.source.tree import named_argument
from amplint.source.values import Autocast, Const, Device, Items, Lib, Scaler, Test, Value
from amplint.source.walk import walk

SCALERS = frozenset(
    (
        "torch.amp.GradScaler torch.cuda.amp.GradScaler torch.amp.grad_scaler.GradScaler "
        "torch.cuda.amp.grad_scaler.GradScaler torch.cpu.amp.GradScaler"
    ).split()
)
_OLD = ("torch.cuda.", "torch.cpu.")


@rule("AMP222")
def flag_of_the_wrong_type(script: Script) -> Iterator[Finding]:
    """`enabled` is no bool: autocast raises, a scaler is on for whatever is not empty; or a flag is the device."""
    known = _known(script.module)
    for create in script.events(events.Create):
        value, node = create.value, create.node
        if (
            not isinstance(value, Autocast | Scaler)
            or not isinstance(node, ast.Call)
            or not _by_name(create.module, node)
        ):
            continue
        argument = enabled_of(create.module, node)
        if argument is not None:
            said = _wrong(create, value.enabled, argument, known)
            if said is not None and (isinstance(value, Autocast) or said[1]):
                shown = text(create.module, argument)
                yield found(
                    "AMP222",
                    create,
                    f"{shown} is {said[0]}, not a bool: "
                    + ("autocast raises TypeError" if isinstance(value, Autocast) else "the scaler is always on"),
                    help="make it a bool where it is read",
                    fix=_bool(create.module, argument) if isinstance(value, Autocast) else None,
                )
        elif isinstance(value, Autocast) and node.args and _is_flag(value.given, node.args[0], known):
            yield found(
                "AMP222",
                create,
                f"{text(create.module, node.args[0])} stands where the device type belongs: ValueError",
                help=f"write enabled={text(create.module, node.args[0])}",
                fix=fixes.flag_to_enabled(create.module, node, script.settings.target_device),
            )


def _switchable(module: Module) -> bool:
    return "autocast" in module.text or "GradScaler" in module.text


def _known(module: Module) -> dict[str, Option]:
    return options_of(module) if _switchable(module) and "add_argument" in module.text else {}


def _by_name(module: Module, call: ast.Call) -> bool:
    names = module.dotted(call.func)
    return bool(names) and names <= AUTOCASTS | SCALERS


def is_scaler(create: events.Create) -> bool:
    """Whether a GradScaler is made by its name."""
    node = create.node
    return isinstance(create.value, Scaler) and isinstance(node, ast.Call) and _by_name(create.module, node)


def enabled_of(module: Module, call: ast.Call) -> ast.expr | None:
    """What a call of autocast or GradScaler is given for `enabled`."""
    named = named_argument(call, "enabled")
    if named is not None or any(isinstance(one, ast.Starred) for one in call.args):
        return named
    names = module.dotted(call.func)
    scaler = bool(names & SCALERS)
    old = all(name.startswith(_OLD) for name in names)
    place = (4 if old else 5) if scaler else (0 if old else 2)
    return call.args[place] if len(call.args) > place else None


def _wrong(
    create: events.Create, enabled: Value, argument: ast.expr, known: dict[str, Option]
) -> tuple[str, bool] | None:
    """What a flag is instead of a bool, and whether it is true whatever it says."""
    option = option_of(known, argument)
    if option is not None and option.kind in ("text", "number"):
        return (f"a string (option {option.flag})", True) if option.kind == "text" else ("a number", False)
    if _is_environment(create.module, argument):
        return "a string (of the environment)", True
    sides = [one for side in conditions.sides(enabled, create.facts) for one in sides_of(side)]
    if not sides:
        return None
    if all(isinstance(side, Const) and isinstance(side.value, str) for side in sides):
        return "a string", all(isinstance(side, Const) and bool(side.value) for side in sides)
    if all(isinstance(side, Const) and not isinstance(side.value, bool) for side in sides):
        return ("None", False) if enabled == Const(None) else ("a number", False)
    if all(isinstance(side, Items) and side.kind in ("tuple", "list") for side in sides):
        return "a tuple", all(isinstance(side, Items) and bool(side.items) for side in sides)
    if all(isinstance(side, Device) for side in sides):
        return "a device", True
    return None


def _is_environment(module: Module, node: ast.expr) -> bool:
    """`os.environ["AMP"]`, `os.getenv("AMP", "0")`: a string, or None."""
    match node:
        case ast.Call(func=function):
            return bool(module.dotted(function) & {"os.getenv", "os.environ.get"}) and all(
                isinstance(one, ast.Constant) and isinstance(one.value, str) for one in node.args
            )
        case ast.Subscript(value=value):
            return "os.environ" in module.dotted(value)
    return False


def _bool(module: Module, argument: ast.expr) -> Fix | None:
    match argument:
        case ast.Constant(value=int() as said) if not isinstance(said, bool):
            return fixes.device_type(module, argument, str(bool(said)))
    return None


def _is_flag(given: Value | None, argument: ast.expr, known: dict[str, Option]) -> bool:
    """Whether the first argument of the new autocast is a condition or a switch."""
    if isinstance(given, Test) or (isinstance(given, Const) and isinstance(given.value, bool)):
        return True
    option = option_of(known, argument)
    return option is not None and option.kind in ("switch", "bool")


# -- what conditions ask ----------------------------------------------------------------------------------------------


@rule("AMP222")
def flag_compared_with_what_it_never_is(script: Script) -> Iterator[Finding]:
    """A comparison, or a question for its truth, that always has the same answer."""
    module = script.module
    if not _switchable(module):
        return
    known = options_of(module)
    for node in module.all_nodes:
        said = None
        match node:
            case ast.Compare(left=left, ops=[operator], comparators=[right]):
                said = _compared(known, left, operator, right) or _dtype_and_text(module, known, left, operator, right)
            case ast.BoolOp(op=ast.Or(), values=[first, *others]):
                if isinstance(first, ast.Compare) and is_about_amp(first.left) and any(map(_is_text, others)):
                    said = "is always true: `or` is given a string, not a comparison"
            case ast.If(test=test) | ast.IfExp(test=test):
                said = _asked(module, known, test)
                node = test
            case ast.keyword(arg="enabled", value=ast.Call(func=ast.Name(id="bool")) as value):
                said, node = _asked(module, known, value), value
        if said:
            yield found_at(
                "AMP222", module, node, f"{text(module, node)} {said}", help="compare it with what it can be"
            )


@rule("AMP222")
def dtype_that_is_no_question(script: Script) -> Iterator[Finding]:
    """A dtype where a comparison belongs, which is true; or compared with the name of a type, which it never equals."""
    module = script.module
    for node in module.all_nodes if _OF_DTYPES.search(module.text) else ():
        match node:
            case ast.BoolOp(op=ast.Or(), values=[ast.Compare(comparators=[first]), *others]):
                if not _is_dtype(module, first) or not any(_is_dtype(module, one) for one in others):
                    continue
                said = "is always true: `or` is given a dtype, not a comparison"
                help = f"write in ({', '.join(text(module, one) for one in (first, *others))})"
            case ast.Compare(
                left=ast.Call(func=ast.Attribute(attr="type"), args=[], keywords=[]),
                ops=[ast.Eq() | ast.NotEq() as operator],
                comparators=[right],
            ) if _is_dtype(module, right):
                always = "true" if isinstance(operator, ast.NotEq) else "false"
                said, help = f"is always {always}: a tensor's type() is a string, and no dtype", "compare its dtype"
            case _:
                continue
        yield found_at("AMP222", module, node, f"{text(module, node)} {said}", help=help)


_OF_DTYPES = re.compile(r"\bor\s+\(?\w+\.(half|b?float)|\.type\(\)\s*[!=]=\s*\w+\.\w")


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(node.value)


def _compared(known: dict[str, Option], left: ast.expr, operator: ast.cmpop, right: ast.expr) -> str:
    if not is_about_amp(left):
        return ""
    if isinstance(operator, ast.Is | ast.IsNot) and isinstance(right, ast.Constant) and isinstance(right.value, str):
        return "compares which object it is, not what it says: two equal strings may be two objects"
    if not isinstance(operator, ast.Eq | ast.NotEq):
        return ""
    always = "true" if isinstance(operator, ast.NotEq) else "false"
    if isinstance(left, ast.Name | ast.Attribute) and ast.unparse(left) == ast.unparse(right):
        return f"is always {'false' if always == 'true' else 'true'}: it compares a thing with itself"
    option = option_of(known, left)
    if option is None or not isinstance(right, ast.Constant) or not isinstance(right.value, str):
        return ""
    if option.kind in ("switch", "bool"):
        return f"is always {always}: {option.flag} is True or False, no string"
    if option.kind == "text" and option.choices and right.value not in option.values:
        return f"is always {always}: {option.flag} has no such choice"
    return ""


def _dtype_and_text(
    module: Module, known: dict[str, Option], left: ast.expr, operator: ast.cmpop, right: ast.expr
) -> str:
    """What comparing a string with a dtype says: they are never equal, whatever the string is."""
    others: list[ast.expr] = []
    match operator, right:
        case ast.Eq() | ast.NotEq(), _:
            others = [right]
        case ast.In() | ast.NotIn(), ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
            others = elements
    if not others or not is_about_amp(left) or not all(map(partial(_is_dtype, module), others)):
        return ""
    if not _holds_text(module, known, left):
        return ""
    always = "true" if isinstance(operator, ast.NotEq | ast.NotIn) else "false"
    return f"is always {always}: a string is never equal to a dtype"


def _is_dtype(module: Module, node: ast.expr) -> bool:
    return any(one.startswith("torch.") and dtype_of(Lib(one)) for one in module.dotted(node))


def _holds_text(module: Module, known: dict[str, Option], node: ast.expr) -> bool:
    """Whether an expression is surely a string: an option of the command line, a parameter that is said to be one, or
    a variable that only strings are assigned to."""
    match node:
        case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner)) if _PARSED.search(owner):
            option = option_of(known, node)
            return option is not None and option.kind == "text" and "setattr(" not in module.text
        case ast.Name(id=name):
            stores = [one for one in module.nodes(ast.Name) if one.id == name and isinstance(one.ctx, ast.Store)]
            told = [one.annotation for one in module.nodes(ast.arg) if one.arg == name]
            values = [getattr(module.parents[one], "value", None) for one in stores]
            return (
                bool(values or told)
                and all(value is not None and _is_text(value) for value in values)
                and all(isinstance(one, ast.Name) and one.id == "str" for one in told)
            )
    return False


_PARSED = re.compile(r"(^|_)(args|opts?|options|hparams|flags)$", re.IGNORECASE)


def _asked(module: Module, known: dict[str, Option], test: ast.expr) -> str:
    """What asking a string whether it is true says: yes, also for "no" and "False"."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return _asked(module, known, inner)
        case ast.BoolOp(op=ast.And(), values=[inner, *_]):
            return _asked(module, known, inner)
        case ast.Call(func=ast.Name(id="bool"), args=[inner]):
            test = inner
    if not is_about_amp(test):
        return ""
    option = option_of(known, test)
    if option is None or option.kind != "text":
        return ""
    off = [value for value in option.values if isinstance(value, str) and value.lower() in OFF]
    return f"asks whether a string is empty: {option.flag} {off[0]} is true, too" if off else ""


@rule("AMP222")
def option_of_type_bool(script: Script) -> Iterator[Finding]:
    """type=bool makes True of every string that is not empty, "False" too."""
    module = script.module
    known = _known(module)
    for option in known.values():
        if option.kind != "bool":
            continue
        asked = switches(module, names_amp(option.flag))
        use = next((node for node in asked if any(option_of(known, one) is option for one in _inside(node))), None)
        if use is not None:
            yield found_at(
                "AMP222",
                module,
                option.node,
                f"type=bool: {option.flag} False is True, for every text but the empty one is",
                severity=Severity.WARNING,
                evidence=[(module, use, "it switches mixed precision")],
                help='use action="store_true", or argparse.BooleanOptionalAction',
            )


def switches(module: Module, branches: bool) -> Iterator[ast.expr]:
    """The conditions that switch mixed precision: the flags of autocast and GradScaler, and, with `branches`, what is
    asked before these are made, whatever else hangs on that."""
    for node in module.all_nodes:
        match node:
            case ast.Call() if _by_name(module, node):
                enabled = enabled_of(module, node)
                if enabled is not None:
                    yield enabled
            case ast.If(test=test, body=body) if branches:
                if any(isinstance(one, ast.Call) and _by_name(module, one) for part in body for one in walk(part)):
                    yield test
            case ast.IfExp(test=test, body=inner) if branches:
                if any(isinstance(one, ast.Call) and is_autocast(module, one.func) for one in walk(inner)):
                    yield test


def _inside(node: ast.expr) -> Iterator[ast.expr]:
    return (one for one in walk(node) if isinstance(one, ast.expr))
