"""The device type that autocast is given: a torch.device or "cuda:0" is none, and not every run computes on CUDA."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.autocast.common import is_autocast
from amplint.checks.autocast.given import has_a_type, is_by_default, is_device, of_a_device
from amplint.checks.autocast.options import is_about_amp, options_of
from amplint.checks.autocast.placement import asks_for_device, moves_to_any_device, runs_on_cpu
from amplint.checks.registry import Script, found, rule, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import autocast as fixes
from amplint.rewrite.gates.guards import SAYS_GPU
from amplint.source import events
from amplint.source.interpret import conditions, tensors
from amplint.source.module import Module
from amplint.source.symbols import options
from amplint.source.tree import named_argument
from amplint.source.values import FALSE, TRUE, Autocast, Choice, Const, Device, Scaler, Sym, Value

ACCEPTS_AN_INDEX = (2, 4)  # the torch version from which autocast takes "cuda:0", without its checks
_WRONG = frozenset("gpu auto GPU CUDA CPU fp16 bf16 fp32 float16 bfloat16 float32 half mixed none None".split())


@rule("AMP208")
def not_a_device_type(script: Script) -> Iterator[Finding]:
    """device_type is a torch.device, a number, a string with an index or one that names no device."""
    for create, value, argument in made(script):
        if value.given is None or argument is None:
            continue
        module, shown = create.module, text(create.module, argument)
        sides = sides_of(value.given, create)
        if isinstance(argument, ast.Attribute) and argument.attr == "device_type" and of_a_device(sides):
            owner = text(module, argument.value)
            yield found(
                "AMP208",
                create,
                f"{owner} is a torch.device, which has a type and no device_type: AttributeError",
                severity=Severity.ERROR,
                help=f"pass {owner}.type",
                fix=fixes.device_type(module, argument, f"{owner}.type"),
            )
        elif (sides and all(is_device(script, side) for side in sides)) or has_a_type(module, argument):
            yield found(
                "AMP208",
                create,
                f"{shown} is a torch.device; device_type has to be a string: ValueError",
                severity=Severity.ERROR,
                help=f"pass {shown}.type",
                fix=fixes.device_type(module, argument, f"{fixes.enclosed(module, argument)}.type"),
            )
        elif is_by_default(module, argument):
            yield found(
                "AMP208",
                create,
                f"{shown} is a torch.device by default; device_type has to be a string: ValueError",
                severity=Severity.ERROR,
                help=f"pass {shown}.type, and a torch.device wherever it is given",
            )
        elif sides and all(_is_number(side) for side in sides):
            yield found(
                "AMP208",
                create,
                f"{shown} is no device type, but the number of a device: ValueError",
                severity=Severity.ERROR,
                help='pass "cuda"',
                fix=None
                if isinstance(argument, ast.Name | ast.Attribute)
                else fixes.device_type(module, argument, '"cuda"'),
            )
        elif any(isinstance(side, Const) and side.value in _WRONG for side in sides):
            yield found(
                "AMP208",
                create,
                f"{shown} is no device type that torch knows: RuntimeError",
                severity=Severity.ERROR,
                help='pass "cuda", or device.type',
                fix=_known_type(module, argument),
            )
        elif (index := _index(script, module, argument, sides)) is not None:
            old = script.settings.target_torch < ACCEPTS_AN_INDEX
            if not old and value.enabled == FALSE:
                continue  # nothing is checked of a region that is off
            newer = Severity.NOTE if script.settings.torch_from else Severity.WARNING  # the project asks for it
            yield found(
                "AMP208",
                create,
                f"{index} is no device type but a device: RuntimeError before torch 2.4; since then autocast leaves "
                f"out the checks that it makes for {_type_of(index)}",
                severity=Severity.ERROR if old else newer,
                help="pass the type alone, without the index",
                fix=_without_index(module, argument, sides),
            )


def made(script: Script) -> Iterator[tuple[events.Create, Autocast, ast.expr | None]]:
    """The autocast objects that are made by name (or by a subclass's), each with the argument for device_type."""
    for create in script.events(events.Create):
        node = create.node
        if not isinstance(create.value, Autocast) or not isinstance(node, ast.Call):
            continue
        named = named_argument(node, "device_type")
        if named is not None or is_autocast(create.module, node.func):
            first = node.args[0] if node.args and not isinstance(node.args[0], ast.Starred) else None
            old = any(name.startswith(("torch.cuda.", "torch.cpu.")) for name in create.module.dotted(node.func))
            yield create, create.value, None if old else named or first


def sides_of(value: Value, event: events.Event) -> list[Value]:
    """What a value can be where an event happens; where the answers leave none, whatever it is."""
    return [one for side in conditions.sides(value, event.facts) for one in options(side)] or [value]


def _is_number(value: Value) -> bool:
    """Whether it is surely an int: written out, made by int(…), a rank."""
    match value:
        case Const(value=number):
            return isinstance(number, int) and not isinstance(number, bool)
        case Sym(kind="call", parts=("int", *_)):
            return True
        case Sym(kind="constant", parts=(str() as name, *_)):
            return name.endswith((".get_rank", ".current_device", ".device_count"))
    return False


def _index(script: Script, module: Module, argument: ast.expr, sides: list[Value]) -> str | None:
    """How a device with an index reads, if that is what is passed in some run."""
    for side in sides:
        match side:
            case Const(value=str() as said) if ":" in said:
                return repr(said).replace("*", "…").replace("'", '"')
            case Sym(kind="op", parts=("Add" | "Mod", Const(value=str() as said), *_)) if ":" in said:
                return text(module, argument)
            case Sym(kind="call", parts=("str", Value() as inner)):
                if _str_has_index(script, inner):
                    return text(module, argument)
            case Sym(kind="attr", parts=(Sym(), str() as field)):
                option = options_of(module).get(field) if "add_argument" in module.text else None
                if option is not None and option.kind == "text" and ":" in str(option.default):
                    return f"{text(module, argument)} ({option.flag}, by default {option.default})"
    if isinstance(argument, ast.Name | ast.Attribute) and _counts_devices(module, ast.unparse(argument)):
        return text(module, argument)
    return None


def _str_has_index(script: Script, device: Value) -> bool:
    """Whether str() of a device has an index: always where it is a tensor's, not where it was made without one."""
    for side in options(device):
        match side:
            case Device(text=Const(value=str() as said)):
                if ":" in said:
                    return True
            case Device(text=Sym(kind="attr")):
                return True
            case Sym() if is_device(script, side) or (side.kind == "attr" and side.parts[1] == "device"):
                return True
    return False


def _counts_devices(module: Module, name: str) -> bool:
    """Whether the file itself reckons with an index in this string: it splits it or reads its last character, or looks
    for "cuda" inside and nowhere asks whether it is "cuda"."""
    loose = exact = False
    for node in module.all_nodes:
        match node:
            case ast.Compare(left=ast.Constant(value=":" | "cuda:"), ops=[ast.In()], comparators=[where]):
                if ast.unparse(where) == name:
                    return True
            case ast.Call(func=ast.Attribute(attr="split" | "partition", value=where), args=[ast.Constant(value=":")]):
                if ast.unparse(where) == name:
                    return True
            case ast.Call(func=ast.Name(id="int"), args=[ast.Subscript(value=where)]):
                if ast.unparse(where) == name:
                    return True
            case ast.Compare(left=ast.Constant(value="cuda"), ops=[ast.In()], comparators=[where]):
                loose |= ast.unparse(where) == name
            case ast.Call(func=ast.Attribute(attr="startswith", value=where), args=[ast.Constant(value=str() as said)]):
                loose |= said.startswith("cuda") and ast.unparse(where) == name
            case ast.Compare(left=where, ops=[ast.Eq()], comparators=[ast.Constant(value="cuda")]):
                exact |= ast.unparse(where) == name
    return loose and not exact


def _type_of(index: str) -> str:
    return "the CPU" if "cpu" in index else "CUDA"


def _known_type(module: Module, argument: ast.expr) -> Fix | None:
    """What a word is meant for, where that is a device at all."""
    match argument:
        case ast.Constant(value=str() as said) if said.lower() in ("gpu", "cuda", "cpu"):
            return fixes.device_type(module, argument, '"cpu"' if said == "CPU" else '"cuda"')
    return None


def _without_index(module: Module, argument: ast.expr, sides: list[Value]) -> Fix | None:
    """Only the type: of a literal by itself, of a torch.device's str() by `.type`, of other strings by a
    torch.device."""
    match argument:
        case ast.Constant(value=str() as said):
            return fixes.device_type(module, argument, f'"{said.partition(":")[0]}"')
        case ast.Call(func=ast.Name(id="str"), args=[inner]):
            if all(isinstance(side, Sym) and all(map(_surely_device, side.parts[1:])) for side in sides):
                return fixes.device_type(module, argument, f"{fixes.enclosed(module, inner)}.type")
            return fixes.type_of_string(module, argument, inner)
        case ast.JoinedStr(values=[ast.Constant(value=str() as said), *_]) if ":" in said:
            return fixes.device_type(module, argument, f'"{said.partition(":")[0]}"')
    return fixes.type_of_string(module, argument, argument)


def _surely_device(value: object) -> bool:
    return isinstance(value, Value) and all(isinstance(side, Device) for side in options(value))


# -- where the code computes ------------------------------------------------------------------------------------------


@rule("AMP208")
def cuda_on_any_device(script: Script) -> Iterator[Finding]:
    """CUDA's autocast is on whatever the device is, in code that runs on others too."""
    for create, value, argument in made(script):
        if tensors.device_type(value.device) == "cuda" and value.enabled == TRUE:
            if asked_before(create) or not (runs_on_cpu(create.module) or _anywhere(create)):
                continue
            yield found(
                "AMP208",
                create,
                "CUDA's autocast, but the device is chosen at run time: on a CPU it warns and does nothing, on other "
                "devices it does nothing",
                severity=Severity.NOTE,
                help='say when it is on: enabled=device.type == "cuda"; or autocast for the device: device.type',
            )
        elif _by_availability(value, argument) and _anywhere(create):
            yield found(
                "AMP208",
                create,
                "this asks whether the machine has CUDA, not where the model is: on the CPU of a machine with a GPU it "
                "autocasts the wrong device",
                severity=Severity.NOTE,
                help="ask the model or its input: next(model.parameters()).device.type",
            )


@rule("AMP208")
def cuda_scaler_on_any_device(script: Script) -> Iterator[Finding]:
    """CUDA's scaler is on whatever the device is, beside regions for the device that is chosen at run time."""
    chosen = (
        value.device is not None and not tensors.device_type(value.device)
        for _, value, _ in made(script)
        if value.enabled != FALSE  # an island in float32
    )
    if not any(chosen):
        return
    for create in script.events(events.Create):
        value = create.value
        if not isinstance(value, Scaler) or value.device not in (None, Const("cuda")):
            continue
        if asks_for_device(value.enabled) or asked_before(create):
            continue
        yield found(
            "AMP208",
            create,
            "CUDA's scaler, but the regions are for a device that is chosen at run time: on the CPU of a machine with "
            "a GPU it scales, too (before torch 2.3: AssertionError)",
            severity=Severity.NOTE,
            help='say when it is on: enabled=… and device.type == "cuda"',
        )


def asked_before(create: events.Create) -> bool:
    """Whether a condition on the way here asks for a device, or for mixed precision: then whoever answers it knows."""
    for above in create.module.ancestors(create.node):
        if isinstance(above, ast.If | ast.IfExp | ast.While) and _asks(above.test):
            return True
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            break
    return any(answer and asks_for_device(question) for question, answer in create.facts.items())


def _asks(test: ast.expr) -> bool:
    """Whether a condition is about a device or mixed precision, by its words."""
    return SAYS_GPU.search(ast.unparse(test)) is not None or any(
        is_about_amp(node) for node in ast.walk(test) if isinstance(node, ast.expr)
    )


def _anywhere(create: events.Create) -> bool:
    """Whether the function that makes it sends tensors to whatever device others are on."""
    module = create.module
    around = create.module.function(create.node)
    if around is None and isinstance(above := module.parents.get(create.node), ast.FunctionDef):
        around = above  # a decorator
    return around is not None and moves_to_any_device(around)


def _by_availability(value: Autocast, argument: ast.expr | None) -> bool:
    """Whether the device, or whether it is on, is decided by torch.cuda.is_available() alone."""
    for one in (value.given, value.enabled):
        match one:
            case Sym(kind="constant", parts=("torch.cuda.is_available", *_)):
                return True
            case Choice(formula=formula) if "torch.cuda.is_available" in repr(formula):
                return isinstance(argument, ast.IfExp | ast.Name)
    return False
