"""Library calls: what rules/apis says they return and do."""

from __future__ import annotations

import ast

from amplint.source import events
from amplint.source.interpret import (
    builtin_functions,
    calls,
    choices,
    conditions,
    containers,
    effects,
    objects,
    operations,
    protocol,
    tensors,
    training,
)
from amplint.source.interpret.frames import Arguments, Frame, Results
from amplint.source.interpret.library import Api
from amplint.source.interpret.machine import Machine, device_value, site
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, options, sym
from amplint.source.values import (
    FALSE,
    NONE,
    TRUE,
    Autocast,
    Checkpoint,
    Choice,
    Class,
    Const,
    Device,
    Gradient,
    GradMode,
    Instance,
    Items,
    Lib,
    Model,
    NullContext,
    Object,
    Optimizer,
    Parameters,
    Partial,
    Region,
    Scaled,
    Scaler,
    Sym,
    Tensor,
    Test,
    Value,
)

_NEVER_HERE = {  # the script runs as it is written
    "torch.jit.is_scripting",
    "torch.jit.is_tracing",
    "torch.compiler.is_compiling",
    "torch.compiler.is_exporting",
    "torch._dynamo.is_compiling",
    "torch.onnx.is_in_onnx_export",
}
QUANTISES = {"load_in_8bit", "load_in_4bit", "quantization_config"}  # the dtype is then that of what is computed
_MAKES = {"optimizer", "scaler", "model", "autocast", "callable-scaler", "managed"}


def makes(m: Machine, callee: Value) -> bool:
    """Whether calling this makes something that training is made of."""
    if isinstance(callee, Lib):
        api = m.library.find(callee.name)
        return (api is not None and api.returns in _MAKES) or _is_layer(callee.name)
    return isinstance(callee, Class)


def _is_layer(name: str) -> bool:
    last = name.rpartition(".")[2]
    return name.startswith("torch.nn.") and last[:1].isupper() and not name.startswith("torch.nn.utils")


_OF_AUTOCAST = frozenset(("torch.is_autocast_enabled", "torch.get_autocast_gpu_dtype", "torch.get_autocast_dtype"))


def _of_region(name: str, region: Region) -> Value:
    """What torch says of the region that a call stands in."""
    if name.endswith("dtype"):
        dtype = tensors.region_dtype(region)
        return sym("dtype", "low") if dtype == "low" else Lib(f"torch.{dtype}")
    formula = conditions.truth(region.autocast.enabled)
    return Const(formula) if isinstance(formula, bool) else Test(formula)


def call(
    m: Machine,
    name: str,
    given: Arguments,
    node: ast.AST,
    world: World,
    frame: Frame,
    receiver: Value | None = None,
) -> Results:
    """`torch.x.y(…)`."""
    if name.startswith("builtins."):
        return builtin_functions.call(m, name.removeprefix("builtins."), given, node, world, frame)
    if name.startswith("torch.Tensor.") and given.args:  # an unbound method: map(torch.Tensor.double, xs)
        unbound = Arguments(given.args[1:], given.kwargs, given.open)
        return calls.call_attribute(m, given.args[0], name.rpartition(".")[2], unbound, node, world, frame)
    if given.args and isinstance(given.args[0], Gradient) and name.startswith("torch."):
        read = name.rpartition(".")[2].removeprefix("vector_")
        if read in training.BY_SIZE:
            training.read_gradient(m, given.args[0].of, read, node, world, frame)
    if name == "torch.amp.is_autocast_available" and tensors.region_of(world) is not None:
        return [(TRUE, world)]
    api = m.library.find(name)
    if api is not None:
        return apply(m, name, api, given, node, world, frame, receiver)
    if name == "numpy.finfo" and given.args and isinstance(given.args[0], Lib):  # the limits are the same numbers
        return [(sym("finfo", Lib(given.args[0].name.replace("numpy.", "torch."))), world)]
    if name.startswith(("math.", "numpy.")) and not any(True for _ in tensors.tensors_in(given.values())):
        return [(sym("number", name, *map(conditions.key, given.args)), world)]
    if name in ("numpy.array", "numpy.asarray") and given.args and isinstance(given.args[0], Tensor):
        operations.operation(m, "numpy", given.args[:1], {}, node, world, frame)
        return [(fresh("number"), world)]
    if name == "importlib.import_module" and given.args and isinstance(given.args[0], Const):
        imported = given.args[0].value
        if isinstance(imported, str) and not imported.startswith("."):
            return [(Lib(imported), world)]
    if name == "functools.partial" and given.args:
        return [(Partial(given.args[0], given.args[1:], tuple(given.kwargs.items())), world)]
    if _is_layer(name):
        return [(Model(name, site(node, frame), given.args, tuple(given.kwargs.items())), world)]
    if name == "torch.clear_autocast_cache":
        world.forget("stale weights")
        world.forget("first forwards")
        return [(NONE, world)]
    if name in _OF_AUTOCAST and (region := tensors.region_of(world)) is not None:
        return [(_of_region(name, region), world)]
    if name in _NEVER_HERE:
        return [(FALSE, world)]
    if name == "torch.is_tensor" and given.args:
        return [(builtin_functions.is_tensor(given.args[0]), world)]
    if name == "torch.finfo" and given.args:
        return [(sym("finfo", given.args[0]), world)]
    made = operations.created(name, given, node)
    if made is not None:
        if made.made in operations.TOLD and made.dtype in tensors.HALF:
            operations.tell(m, made.made, given.args, given.kwargs, made, node, world, frame)
        return [(made, world)]
    op = tensors.op_of(name)
    if op:
        return [(operations.operation(m, op, given.args, given.kwargs, node, world, frame), world)]
    if name.startswith("torch."):
        custom = name.startswith("torch.ops.") and not name.startswith("torch.ops.aten.")
        last = name.removeprefix("torch.ops.") if custom else name.rpartition(".")[2]
        if given.args and last in tensors.VIEWS:
            return [(operations.view_any(given.args[0], node), world)]
        if given.args and last.islower() and any(True for _ in tensors.tensors_in(given.values())):
            return [(operations.operation(m, last, given.args, given.kwargs, node, world, frame), world)]
        if name == "torch.distributions.kl_divergence" and (held := objects.held(given.values(), node, world)):
            return [(held, world)]
        if name in ("torch.float16", "torch.half") or last[:1].isupper():
            made_object = Object(name, site(node, frame))
            objects.fill(made_object, given.values(), node, world)
            if any(tensor.dtype in tensors.HALF for tensor in tensors.tensors_in(given.values())):
                _tell(m, name, given, made_object, node, world, frame)
            return [(made_object, world)]
    last = name.rpartition(".")[2]
    if last[:1].isupper() and not any(True for _ in tensors.tensors_in(given.values())):
        calls.unknown(m, Lib(name), given, node, world, frame)
        made_here = sym("made", name, site(node, frame))
        given_to = tuple(one for one in given.values() if isinstance(one, Model | Instance | Sym))
        world.set("made with", made_here, given_to)
        return [(made_here, world)]
    return calls.unknown(m, Lib(name), given, node, world, frame)


def _tell(m: Machine, name: str, given: Arguments, result: Value, node: ast.AST, world: World, frame: Frame) -> None:
    """Record a call whose arguments a rule judges."""
    kwargs = tuple(given.kwargs.items())
    m.observe(events.Call, node, world, frame, name=name, args=given.args, kwargs=kwargs, result=result)


def apply(
    m: Machine,
    name: str,
    api: Api,
    given: Arguments,
    node: ast.AST,
    world: World,
    frame: Frame,
    receiver: Value | None,
) -> Results:
    """What a library call returns and does, by its entry."""
    bound = api.bind(given.args, given.kwargs)
    if receiver is not None:
        bound["self"] = receiver

    def role(which: str) -> Value | None:
        return api.argument(which, bound)

    effect = effects.EFFECTS.get(api.does)
    if effect is not None:
        results = effect(m, api, bound, given, node, world, frame)
        if results is not None:
            return results
    unsaid = fresh("enabled") if given.open else None  # it may be in the **options
    match api.returns:
        case "optimizer":
            parameters = role("parameters")
            made: Value = Optimizer(
                site(node, frame),
                containers.owners_in(parameters),
                name,
                node,
                closure=name.endswith("LBFGS"),
                holds=protocol.held_instead(parameters),
            )
            world.drop("gradients", made)
            protocol.register(world, made)  # type: ignore[arg-type]
            m.emit(events.Create, node, world, frame, value=made)
        case "scaler":
            made = Scaler(site(node, frame), role("enabled") or unsaid or TRUE, node, role("device"))
            for key in list(world.space("updates")):
                if key[0] == made:
                    world.drop("updates", key)
            m.emit(events.Create, node, world, frame, value=made)
        case "autocast" if "autocast_handler" in given.kwargs:
            made = tensors.handled(site(node, frame), node, world)
        case "autocast":
            managed = api.fixed.get("managed")
            told = None if managed else role("dtype")
            made = Autocast(
                site(node, frame),
                device_value(role("device")),
                sym("managed dtype") if told is None and (managed or given.open) else told,
                role("enabled") or unsaid or TRUE,
                role("cache") or Const(True),
                node,
                role("device"),
            )
            m.observe(events.Create, node, world, frame, value=made)
        case "null-context":
            made = NullContext()
        case "no-grad" | "enable-grad":
            made = GradMode(api.returns == "enable-grad")
        case "same":
            value = role("model") or role("object") or (given.args[0] if given.args else fresh("call"))
            made = Items(given.args) if len(given.args) > 1 and "args" in api.roles else value
        case "copy":
            made = sym("copy", site(node, frame), given.args[0] if given.args else NONE)
            if given.args and (m.is_model(given.args[0]) or isinstance(given.args[0], Instance | Model)):
                m.models.add(made)
        case "model":
            made = Model(name, site(node, frame), given.args, tuple(given.kwargs.items()))
            dtype = tensors.dtype_of(role("dtype"))
            if dtype in tensors.HALF and not QUANTISES & set(given.kwargs):
                training.cast_model(m, made, dtype, node, world, frame)
            if name.endswith(".from_pretrained"):
                _tell(m, name, given, made, node, world, frame)
        case "parameters":
            made = Parameters(frozenset().union(*(containers.owners_in(value) for value in given.values())))
        case "tensor":
            return _computed(m, tensors.op_of(name) or name.rpartition(".")[2], given, node, world, frame)
        case "constant":
            made = sym("constant", name, *given.args)
        case "device":
            made = device_value(given.args[0]) if given.args else fresh("device")  # type: ignore[assignment]
            if not all(isinstance(side, Device) for side in options(made)):
                made = Device("", made)
        case "checkpoint":
            made = Checkpoint(site(node, frame))
        case "scaled-loss":
            made = Scaled(role("loss") or fresh("loss"), (role("delay") or FALSE) != FALSE)
        case "scheduler" | "managed" | "callable-scaler":
            if given.kwargs.get("fp16") == TRUE:
                _tell(m, name, given, NONE, node, world, frame)
            made = Object(name, site(node, frame), api.returns)
            if api.returns == "callable-scaler":
                m.observe(events.Create, node, world, frame, value=made)
        case _:
            made = NONE if api.does else fresh("call")
    return [(made, world)]


def _computed(m: Machine, op: str, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """A tensor. Whether what autograd.grad differentiates is scaled is decided first, by a world for each: the gradient
    does not tell any more."""
    results: Results = []
    outputs = given.kwargs.get("outputs") or next(iter(given.args), NONE)
    differ = op == "grad" and isinstance(outputs, Choice) and choices.tells(outputs)
    for one, after in choices.split(m, outputs, world) if differ else [(outputs, world)]:
        args = tuple(one if value is outputs else value for value in given.args)
        kwargs = {key: one if value is outputs else value for key, value in given.kwargs.items()}
        results.append((operations.operation(m, op, args, kwargs, node, after, frame), after))
    return results
