"""The dtype that autocast is given: none that it casts to, one for another device, or none at all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.autocast.common import is_autocast
from amplint.checks.autocast.device import asked_before, made, sides_of
from amplint.checks.autocast.options import Option, is_about_amp, option_of, options_of
from amplint.checks.autocast.placement import asks_for_device
from amplint.checks.autocast.switches import enabled_of, is_scaler
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import named_argument
from amplint.source.values import FALSE, TRUE, Autocast, Const, Lib, Region
from amplint.source.walk import walk

_NEVER = frozenset("float64 double int8 uint8 int16 short int32 int int64 long bool complex64 complex128".split())
_NAMES = {
    **dict.fromkeys(("float16", "half", "fp16", "torch.float16", "torch.half"), "float16"),
    **dict.fromkeys(("bfloat16", "bf16", "torch.bfloat16"), "bfloat16"),
}


@rule("AMP210")
def no_dtype_to_cast_to(script: Script) -> Iterator[Finding]:
    """dtype is a string, float32 around a training step, a dtype that autocast never casts to, or the CPU's float16."""
    known = options_of(script.module) if "add_argument" in script.module.text else {}
    for create, value, _ in made(script):
        argument = _dtype(create)
        if argument is None or value.dtype is None:
            continue
        module, shown = create.module, text(create.module, argument)
        sides = sides_of(value.dtype, create)
        # an option of the script says nothing of a field of the same name in another file, nor of what is seen
        own = create.module is script.module and not any(tensors.dtype_of(side) for side in sides)
        option = option_of(known, argument) if own else None
        if all(isinstance(side, Const) and isinstance(side.value, str) for side in sides) or _is_text(option):
            yield found(
                "AMP210",
                create,
                f"{shown} is a string, not a torch.dtype: TypeError when autocast is entered",
                help="pass torch.float16 or torch.bfloat16",
                fix=_dtype_of(module, argument, option),
            )
        elif all(isinstance(side, Lib) and side.name.removeprefix("torch.") in _NEVER for side in sides):
            yield found(
                "AMP210",
                create,
                f"autocast does not cast to {shown}: on a CPU it warns and is off",
                severity=Severity.WARNING,
                help="pass torch.float16 or torch.bfloat16",
            )
        elif value.enabled == TRUE and all(tensors.dtype_of(side) == "float32" for side in sides):
            if _trains_in(script, create) and not _half_elsewhere(script, create):
                yield found(
                    "AMP210",
                    create,
                    "autocast to float32 casts nothing: the step runs in full precision (on a CPU autocast warns, too)",
                    severity=Severity.WARNING,
                    help="pass torch.float16 or torch.bfloat16, or enabled=False",
                )
        elif value.enabled == TRUE and _float32_by_default(module, argument, known):
            yield found(
                "AMP210",
                create,
                f"{shown} is float32 by default: the region is on and casts nothing",
                severity=Severity.NOTE,
                help="enable it for float16 and bfloat16 only",
            )
        elif all(tensors.dtype_of(side) == "float16" for side in sides) and value.device is not None:
            devices = {tensors.device_type(side) for side in sides_of(value.device, create)}
            if not devices & {"", "cpu"} or asks_for_device(value.enabled) or asked_before(create) or _is_probe(create):
                continue
            yield found(
                "AMP210",
                create,
                "float16 whatever the device is: on a CPU it is 7 to 70 times slower than float32",
                severity=Severity.NOTE,
                help='leave the dtype to the device, or enable it for "cuda" only',
            )


def _half_elsewhere(script: Script, create: events.Create) -> bool:
    """Whether the same call may be given another dtype than float32 in other runs: a setting says which."""
    return any(
        other.node is create.node and tensors.dtype_of(side) != "float32"
        for other, value, _ in made(script)
        for side in (sides_of(value.dtype, other) if value.dtype is not None else ())
    )


def _is_probe(create: events.Create) -> bool:
    """Whether the region holds nothing: it only asks whether torch takes the dtype."""
    around = next((one for one in create.module.ancestors(create.node) if isinstance(one, ast.With)), None)
    return around is not None and all(isinstance(one, ast.Pass) for one in around.body)


def _dtype(create: events.Create) -> ast.expr | None:
    """The argument for dtype."""
    call = create.node
    if not isinstance(call, ast.Call):
        return None
    named = named_argument(call, "dtype")
    return named or (call.args[1] if len(call.args) > 1 else None)


def _is_text(option: Option | None) -> bool:
    return option is not None and option.kind == "text"


def _dtype_of(module: Module, argument: ast.expr, option: Option | None) -> Fix | None:
    """The dtype that a string names."""
    torch = fixes.torch_at(module, argument)
    if torch is None:
        return None
    match argument:
        case ast.Constant(value=str() as said) if said in _NAMES:
            return fixes.device_type(module, argument, f"{torch}.{_NAMES[said]}")
    names = {"float16", "bfloat16", "half"}
    if option is not None and option.choices and set(option.choices) <= names and option.default in names:
        return fixes.device_type(module, argument, f"getattr({torch}, {module.source(argument)})")
    return None


def _trains_in(script: Script, create: events.Create) -> bool:
    """Whether a model runs, or a loss is computed, with gradients in this region and in no other."""
    for event in (*script.events(events.Forward), *script.events(events.Loss)):
        regions = [context for context in event.contexts if isinstance(context, Region)]
        if event.grad and len(regions) == 1 and regions[0].autocast.node is create.node:
            return True
    return False


def _float32_by_default(module: Module, argument: ast.expr, known: dict[str, Option]) -> bool:
    """Whether the dtype comes from a table, and what nobody chooses otherwise is float32: `dtypes[name]`."""
    match argument:
        case ast.Subscript(value=ast.Name(id=table), slice=key):
            pass
        case _:
            return False
    for node in module.all_nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values)) if name == table:
                default = _default(module, key, known)
                for one, value in zip(keys, values, strict=True):
                    if isinstance(one, ast.Constant) and one.value == default and default is not None:
                        return bool(module.dotted(value) & {"torch.float32", "torch.float"})
    return False


def _default(module: Module, key: ast.expr, known: dict[str, Option]) -> object:
    """What a setting is where nobody sets it: an option's default, or the second argument of `.get(…)`."""
    option = option_of(known, key)
    if option is not None:
        return option.default
    for node in module.all_nodes:
        match node:
            case ast.Assign(
                targets=[target], value=ast.Call(func=ast.Attribute(attr="get"), args=[_, ast.Constant(value=said)])
            ) if ast.unparse(target) == ast.unparse(key) and module.function(node) is module.function(key):
                return said
    return None


# -- no dtype ---------------------------------------------------------------------------------------------------------


@rule("AMP209")
def dtype_left_to_the_device(script: Script) -> Iterator[Finding]:
    """No dtype: the script's own dtype option is not passed on, or the need for a scaler depends on the device."""
    option = _scaler_s_option(script)
    for create, value, _ in made(script):
        if value.dtype is not None or tensors.device_type(value.device) == "cpu" or value.node is not create.node:
            continue
        if option is not None:
            around = [above for above in create.module.ancestors(create.node) if isinstance(above, ast.If | ast.IfExp)]
            asked = [create.node, *(above.test for above in around)]
            if not any(_reads(one, option) for one in asked):
                yield found(
                    "AMP209",
                    create,
                    f"{option.flag} decides over the scaler, but autocast is not told: it casts to float16 on CUDA "
                    f"whatever {option.flag} says",
                    evidence=[(_scaler(script), "the scaler asks for it")],
                    help="pass dtype=…",
                )
        elif not tensors.device_type(value.device) and not asked_before(create) and _unscaled_step(script, create):
            yield found(
                "AMP209",
                create,
                "no dtype: float16 on CUDA, which needs a GradScaler, and bfloat16 on a CPU, which needs none",
                severity=Severity.NOTE,
                help="pass dtype=torch.bfloat16, or float16 with a scaler",
            )


@rule("AMP209")
def dtype_asked_but_not_given(script: Script) -> Iterator[Finding]:
    """Whether there is a dtype switches autocast on, which one it is is not passed on; it may be bfloat16."""
    for create in script.events(events.Create):
        value, module, call = create.value, create.module, create.node
        if not isinstance(value, Autocast) or value.dtype is not None or not isinstance(call, ast.Call):
            continue
        scope = module.scope(call)
        asked = {name for test in _switches(module, call, scope) if (name := _there(test))}
        chosen = [
            one for one in walk(scope) if isinstance(one, ast.Assign) and "torch.bfloat16" in module.dotted(one.value)
        ]
        name = next((t.id for one in chosen for t in one.targets if isinstance(t, ast.Name) and t.id in asked), "")
        if name and tensors.device_type(value.device) != "cpu":
            yield found(
                "AMP209",
                create,
                f"{name} decides whether autocast is on, but autocast is not told which dtype it is: on CUDA it casts "
                "to float16, where bfloat16 was asked for, too",
                evidence=[(create, f"on where {name} is not None")],
                help=f"pass dtype={name}",
            )


_BF16 = re.compile(r"(^|_)b(f|float)_?16(_|$)", re.IGNORECASE)


@rule("AMP209")
def bfloat16_asked_but_not_given(script: Script) -> Iterator[Finding]:
    """A region is on where a flag asks for bfloat16, and is given no dtype: on CUDA it casts to float16."""
    module = script.module
    if not re.search(r"(?i)b(f|float)_?16", module.text) or re.search(r"set_autocast_|autocast_mode", module.text):
        return
    for create in script.events(events.Create):
        value, call = create.value, create.node
        if not isinstance(value, Autocast) or value.dtype is not None or value.enabled == FALSE:
            continue
        if not isinstance(call, ast.Call) or create.module is not module or any(k.arg is None for k in call.keywords):
            continue
        if tensors.device_type(value.device) not in ("", "cuda"):
            continue
        if not (is_autocast(module, call.func) or _named(module, call)):
            continue
        flag = next((flag for test in _asked_for(module, call) if (flag := _bf16_in(module, test))), "")
        if flag:
            yield found_at(
                "AMP209",
                module,
                call if is_autocast(module, call.func) else _named(module, call)[0].value,
                f"{flag} asks for bfloat16, but autocast is not told: on CUDA it casts to float16",
                help="pass dtype=torch.bfloat16",
            )


def _asked_for(module: Module, call: ast.Call) -> Iterator[ast.expr]:
    """What has to hold where an autocast is on: `enabled`, and the conditions whose first arm it stands in, in its
    function; where its class has a name (`ctx = autocast`), also the conditions around that."""
    enabled = enabled_of(module, call)
    if enabled is not None:
        yield enabled
    for place in (call, *_named(module, call)):
        yield from _holding(module, place)


def _named(module: Module, call: ast.Call) -> list[ast.Assign]:
    """Where the class autocast gets the name by which it is called."""
    shown = text(module, call.func)
    return [
        node
        for node in module.nodes(ast.Assign)
        if is_autocast(module, node.value) and any(text(module, one) == shown for one in node.targets)
    ]


def _holding(module: Module, node: ast.AST) -> Iterator[ast.expr]:
    inner = node
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode):
            return
        if isinstance(above, ast.If) and inner in above.body:
            yield above.test
        if isinstance(above, ast.IfExp) and inner is above.body:
            yield above.test
        inner = above


def _bf16_in(module: Module, test: ast.expr) -> str:
    """The flag for bfloat16 alone that has to be set where a condition holds."""
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            return next((flag for one in values if (flag := _bf16_in(module, one))), "")
        case ast.Compare(ops=[ast.Eq() | ast.Is()], comparators=[ast.Constant(value=str() as said)]):
            return text(module, test) if _BF16.search(said) else ""
        case ast.Name(id=name) | ast.Attribute(attr=name) if _BF16.search(name):
            return (
                "" if re.search(r"fp|16_or|no_|support|avail|can_|has_", _BF16.sub("_", name)) else text(module, test)
            )
    return ""


def _switches(module: Module, call: ast.Call, scope: ast.AST) -> Iterator[ast.expr | None]:
    """What decides whether an autocast is on: `enabled`, or a choice between it (or its class) and another context."""
    yield enabled_of(module, call)
    yield from (one.test for one in module.ancestors(call) if isinstance(one, ast.IfExp))
    for choice in walk(scope):
        match choice, call.func:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.IfExp(test=test)), ast.Name(id=called):
                if name == called:
                    yield test


def _there(test: ast.expr | None) -> str:
    """x, where a condition is `x is not None`."""
    match test:
        case ast.Compare(left=ast.Name(id=name), ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return name
    return ""


def _scaler(script: Script) -> events.Event | None:
    return next((create for create in script.events(events.Create) if is_scaler(create)), None)


def _scaler_s_option(script: Script) -> Option | None:
    """The option that names a dtype, if the scaler is on for some of its values only."""
    module = script.module
    if "add_argument" not in module.text or "GradScaler" not in module.text:
        return None
    create = _scaler(script)
    if create is None or create.module is not module or not isinstance(create.node, ast.Call):
        return None
    match enabled_of(module, create.node):
        case ast.Compare(left=left, ops=[ast.Eq() | ast.In() | ast.NotEq()], comparators=[right]) if is_about_amp(left):
            names = {one.value for one in walk(right) if isinstance(one, ast.Constant)}
            option = option_of(options_of(module), left)
            if option is not None and option.kind == "text" and names & _NAMES.keys():
                return option
    return None


def _reads(node: ast.AST, option: Option) -> bool:
    name = option.flag.lstrip("-").replace("-", "_")
    return any(isinstance(one, ast.Attribute) and one.attr == name for one in walk(node))


def _unscaled_step(script: Script, create: events.Create) -> bool:
    """Whether an optimizer steps with plain gradients of a loss that was computed in this region."""
    return any(
        step.before.kind == "plain"
        and step.scaler is None
        and step.before.region is not None
        and step.before.region.autocast.node is create.node
        for step in script.events(events.Step)
    )
