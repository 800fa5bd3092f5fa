"""Library calls: what rules/apis says they return and do, builtins, and operations on tensors."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace

from amplint.source import events
from amplint.source.interpret import attributes, calls, classes, conditions, containers, protocol, tensors, training
from amplint.source.interpret.frames import Arguments, Frame, Results
from amplint.source.interpret.library import Api
from amplint.source.interpret.machine import Machine, device_value, site
from amplint.source.interpret.world import World
from amplint.source.symbols import ask, fresh, options, serial, sym
from amplint.source.values import (
    FALSE,
    KNOWN,
    NONE,
    TRUE,
    Autocast,
    Bound,
    Checkpoint,
    Class,
    Const,
    Device,
    Function,
    GradMode,
    Imported,
    Instance,
    Items,
    Lib,
    Many,
    Mapping,
    Model,
    NullContext,
    Object,
    Optimizer,
    Parameters,
    Partial,
    Scaled,
    Scaler,
    Sym,
    Tensor,
    Test,
    Value,
)

NEVER = object()  # what a call that does not return is said to return
_LIKE = frozenset(
    ("zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_full").split()
)
_FILLED = frozenset(("full", "full_like", "tensor", "as_tensor"))  # what is made holds a given number
_CREATE = frozenset(("zeros ones empty full rand randn eye linspace logspace normal").split())
_NEVER_HERE = {  # the script runs as it is written
    "torch.jit.is_scripting",
    "torch.jit.is_tracing",
    "torch.compiler.is_compiling",
    "torch.compiler.is_exporting",
    "torch._dynamo.is_compiling",
    "torch.onnx.is_in_onnx_export",
}
_QUANTISES = {"load_in_8bit", "load_in_4bit", "quantization_config"}  # the dtype is then that of what is computed
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
        return _builtin(m, name.removeprefix("builtins."), given, node, world, frame)
    api = m.library.find(name)
    if api is not None:
        return apply(m, name, api, given, node, world, frame, receiver)
    if name.startswith(("math.", "numpy.")) and not any(True for _ in tensors.tensors_in(given.values())):
        return [(sym("number", name, *map(conditions.key, given.args)), world)]
    if name == "functools.partial" and given.args:
        return [(Partial(given.args[0], given.args[1:], tuple(given.kwargs.items())), world)]
    if _is_layer(name):
        return [(Model(name, site(node, frame), given.args, tuple(given.kwargs.items())), world)]
    if name in _NEVER_HERE:
        return [(FALSE, world)]
    if name == "torch.finfo" and given.args:
        return [(sym("finfo", given.args[0]), world)]
    made = created(name, given, world, node)
    if made is not None:
        if made.made in _FILLED and made.dtype in tensors.HALF:
            tell(m, made.made, given.args, given.kwargs, made, node, world, frame)
        return [(made, world)]
    op = tensors.op_of(name)
    if op:
        return [(operation(m, op, given.args, given.kwargs, node, world, frame), world)]
    if name.startswith("torch."):
        last = name.rpartition(".")[2]
        if given.args and last in tensors.VIEWS:
            return [(view_any(given.args[0], node), world)]
        if given.args and last.islower() and any(True for _ in tensors.tensors_in(given.values())):
            return [(operation(m, last, given.args, given.kwargs, node, world, frame), world)]
        if name in ("torch.float16", "torch.half") or last[:1].isupper():
            return [(Object(name, site(node, frame)), world)]
    last = name.rpartition(".")[2]
    if last[:1].isupper() and not any(True for _ in tensors.tensors_in(given.values())):
        calls.unknown(m, Lib(name), given, node, world, frame)
        return [(sym("made", name, site(node, frame)), world)]
    return calls.unknown(m, Lib(name), given, node, world, frame)


def created(name: str, given: Arguments, world: World, node: ast.AST) -> Tensor | None:
    """A tensor made from nothing: torch.zeros, torch.arange, …"""
    if not name.startswith("torch."):
        return None
    last = name.rpartition(".")[2]
    asked = given.kwargs.get("dtype", NONE)
    dtype = "low" if asked == sym("dtype", "low") else tensors.dtype_of(asked)

    def otherwise(default: str) -> str:
        return default if asked == NONE else dtype

    if last in _CREATE:
        return Tensor(otherwise("float32"), made=last, node=node, identity=serial())
    if last in ("arange", "randint", "randperm"):
        floats = any(isinstance(value, Const) and isinstance(value.value, float) for value in given.args)
        return Tensor(otherwise("float32" if floats else "integer"), made=last, node=node, identity=serial())
    if last in ("tensor", "as_tensor", "from_numpy"):
        of, region, scaler = tensors.provenance(given.args)
        kind = otherwise(_constant_dtype(given.args[0] if given.args else NONE))
        return Tensor(
            kind, KNOWN, frozenset() if last == "tensor" else of, region, scaler, last, node, given.args[:1], serial()
        )
    if last in _LIKE and given.args and isinstance(given.args[0], Tensor):
        like = given.args[0]
        return Tensor(dtype or like.dtype, like.trust, made=last, node=node, identity=serial())
    return None


def _constant_dtype(value: Value) -> str:
    match value:
        case Const(value=bool()):
            return "bool"
        case Const(value=int()):
            return "integer"
        case Const(value=float()):
            return "float32"
    return ""


# -- what rules/apis says ----------------------------------------------------------------------------------------------


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

    effect = _EFFECTS.get(api.does)
    if effect is not None:
        results = effect(m, api, bound, given, node, world, frame)
        if results is not None:
            return results
    match api.returns:
        case "optimizer":
            parameters = role("parameters")
            made: Value = Optimizer(
                site(node, frame), containers.owners_in(parameters), name, node, closure=name.endswith("LBFGS")
            )
            world.drop("gradients", made)
            if parameters is not None and containers.holds_copies(parameters):
                world.set(("dtype of", made), "masters", TRUE)
            protocol.register(world, made)  # type: ignore[arg-type]
            m.emit(events.Create, node, world, frame, value=made)
        case "scaler":
            made = Scaler(site(node, frame), role("enabled") or Const(True), node, role("device"))
            for key in list(world.space("updates")):
                if key[0] == made:
                    world.drop("updates", key)
            m.emit(events.Create, node, world, frame, value=made)
        case "autocast":
            made = Autocast(
                site(node, frame),
                device_value(role("device")),
                sym("managed dtype") if api.fixed.get("managed") else role("dtype"),
                role("enabled") or Const(True),
                role("cache") or Const(True),
                node,
            )
            m.observe(events.Create(node, frame, world.contexts, world.loops, world.facts, made))
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
            if dtype in tensors.HALF and not _QUANTISES & set(given.kwargs):
                training.cast_model(m, made, dtype, node, world, frame)
        case "parameters":
            made = Parameters(frozenset().union(*(containers.owners_in(value) for value in given.values())))
        case "tensor":
            op = tensors.op_of(name) or name.rpartition(".")[2]
            made = operation(m, op, given.args, given.kwargs, node, world, frame)
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
            made = Object(name, site(node, frame), api.returns)
        case _:
            made = NONE if api.does else fresh("call")
    return [(made, world)]


Bindings = dict[str, Value]


def _clip(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    how = api.argument("how", bound)
    of = containers.owners_in(api.argument("parameters", bound))
    if api.fixed.get("unscales"):
        for optimizer in protocol.optimizers(world):
            if protocol.gradients(world, optimizer).kind != "managed":
                world.set("gradients", optimizer, protocol.UNKNOWN["gradients"])
        if not protocol.owners(world, of)[0]:
            return [(fresh("norm"), world)]
    training.clip(m, of, str(how.value) if isinstance(how, Const) else "norm", node, world, frame)
    return [(fresh("norm"), world)]


def _save(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    value = api.argument("object", bound)
    parts, complete, mapping = containers.saved_parts(value) if value is not None else ((), False, None)
    scaler = api.argument("scaler", bound)
    optimizer = api.argument("optimizer", bound)
    parts += tuple(part for part in (scaler, optimizer) if part is not None and part != NONE)
    event = events.Save(
        node, frame, world.contexts, world.loops, world.facts, parts, complete, api.does == "register", mapping
    )
    m.observe(event)
    return None


def _load_state(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    target = api.argument("model", bound) or api.argument("object", bound)
    if target is not None:
        m.observe(events.Load(node, frame, world.contexts, world.loops, world.facts, target, fresh("state")))
    return None


def _backward(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    loss = api.argument("loss", bound) or fresh("loss")
    training.backward(m, loss, node, world, frame, managed=api.roles.get("scaler") == "self")
    return [(NONE, world)]


def _launch(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    """A launcher calls a function for you: in another process or thread, from a command line."""
    target = api.argument("target", bound)
    if target is None:
        return None
    args = api.argument("args", bound)
    passed = containers.elements(args) if args is not None else []
    leading = tuple(fresh("rank") for _ in range(api.fixed.get("leading", 0)))
    inner = Arguments((*leading, *(passed or ())), {}, passed is None or args is None)
    if isinstance(target, Function | Bound | Partial | Imported):
        outside, world.contexts = world.contexts, ()
        results = calls.call(m, target, inner, node, world, frame)
        for _, after in results:
            after.contexts = outside
        return [(fresh("launched"), after) for _, after in results]
    return None


def _exit(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    return [(Const(NEVER), world)]


def _step(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    optimizer = api.argument("optimizer", bound)
    if isinstance(optimizer, Optimizer):
        training.step(m, optimizer, None, node, world, frame)
    return [(fresh("call"), world)]


def _unscale(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    for value in given.values():
        protocol.hand_over(world, value)
    return [(NONE, world)]


def _zero(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    training.zero_gradients(m, containers.owners_in(api.argument("parameters", bound)), node, world, frame)
    return [(NONE, world)]


def _cast(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    model = api.argument("model", bound)
    dtype = tensors.dtype_of(api.argument("dtype", bound))
    if model is not None and dtype:
        training.cast_model(m, model, dtype, node, world, frame)
        return [(model, world)]
    return None


_Effect = Callable[[Machine, Api, Bindings, Arguments, ast.AST, World, Frame], Results | None]
_EFFECTS: dict[str, _Effect] = {
    "clip": _clip,
    "save": _save,
    "register": _save,
    "load": _load_state,
    "backward": _backward,
    "launch": _launch,
    "exit": _exit,
    "step": _step,
    "unscale": _unscale,
    "zero-grad": _zero,
    "cast": _cast,
}


# -- builtins ----------------------------------------------------------------------------------------------------------


def _builtin(m: Machine, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    args = given.args
    first = args[0] if args else None
    match name:
        case "getattr" if len(args) >= 2:
            return _getattr(m, given, node, world, frame)
        case "setattr" if len(args) == 3 and isinstance(args[1], Const) and isinstance(args[1].value, str):
            target = ast.copy_location(ast.Attribute(ast.Constant(None), args[1].value, ast.Store()), node)
            return [(NONE, after) for after in attributes.set_attribute(m, args[0], target, args[2], world, frame)]
        case "list" | "tuple" | "set" | "sorted" | "reversed" | "iter" if first is not None:
            known = first.items if isinstance(first, Items) else None
            value: Value = Items(known, "list") if known is not None else first
            return [
                (
                    value
                    if isinstance(value, Items | Many | Parameters | Mapping)
                    else Many(containers.element(m, value, node)),
                    world,
                )
            ]
        case "next" if first is not None:
            return [(containers.element(m, first, node), world)]
        case "enumerate" if first is not None:
            listed = containers.elements(first)
            if listed is not None:
                pairs = tuple(Items((Const(i), value)) for i, value in enumerate(listed))
                return [(Items(pairs, "list"), world)]
            return [(Many(Items((fresh("element"), containers.element(m, first, node)))), world)]
        case "zip" if args:
            return [(_zip(m, args, node), world)]
        case "map" if len(args) == 2 and first is not None:
            listed = containers.elements(args[1])
            one = listed[0] if listed else containers.element(m, args[1], node)
            return [
                (Many(value), after) for value, after in calls.call(m, first, Arguments((one,)), node, world, frame)
            ]
        case "filter" if len(args) == 2:
            return [
                (
                    args[1]
                    if isinstance(args[1], Parameters | Items | Many)
                    else Many(containers.element(m, args[1], node)),
                    world,
                )
            ]
        case "dict":
            items = tuple((Const(key), value) for key, value in given.kwargs.items())
            base = first if isinstance(first, Mapping) else None
            call_node = node if isinstance(node, ast.Call) else None
            return [
                (
                    Mapping(
                        (*(base.items if base else ()), *items), given.open or (bool(args) and base is None), call_node
                    ),
                    world,
                )
            ]
        case "bool" if first is not None:
            formula = conditions.truth(first)
            return [(Const(formula) if isinstance(formula, bool) else Test(formula), world)]
        case "float" if isinstance(first, Const) and isinstance(first.value, str):
            try:
                return [(Const(float(first.value)), world)]
            except ValueError:
                return [(fresh("call"), world)]
        case "float" | "int" | "abs" if isinstance(first, Const) and isinstance(first.value, int | float):
            try:
                number = float(first.value) if name == "float" else int(first.value)
                return [(Const(abs(first.value) if name == "abs" else number), world)]
            except (OverflowError, ValueError):
                return [(fresh("call"), world)]
        case "sum" if first is not None:
            return [(_sum(m, args, node, world, frame), world)]
        case "exit" | "quit":
            return [(Const(NEVER), world)]
        case "isinstance" if len(args) == 2:
            return [(_isinstance(args[0], args[1]), world)]
        case "hasattr" if len(args) == 2 and classes.surely_has(args[0], args[1], world, frame):
            return [(TRUE, world)]
        case "callable" | "hasattr" | "issubclass":
            return [(Test(ask("truth", sym("call", name, *args))), world)]
        case "range":
            return [(Many(fresh("element")), world)]
        case "len" | "min" | "max" | "round" | "id" | "type" | "str" | "any" | "all" | "repr":
            tensor = tensors.opaque(args, world, node) if name in ("min", "max") else None
            return [(tensor or sym("call", name, *map(conditions.key, args)), world)]
        case "print" | "open" | "input":
            return [(NONE if name == "print" else fresh("call"), world)]
        case "eval":
            return [(fresh("call"), world)]
        case "vars" | "super":
            return [(fresh("call"), world)]
    return calls.unknown(m, Lib(f"builtins.{name}"), given, node, world, frame)


def _getattr(m: Machine, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    owner, name = given.args[0], given.args[1]
    if not (isinstance(name, Const) and isinstance(name.value, str)):
        return [(sym("item", owner, name), world)]
    target = ast.copy_location(ast.Attribute(ast.Constant(None), name.value, ast.Load()), node)
    results = attributes.attribute(m, owner, name.value, target, world, frame)
    if len(given.args) == 3 and len(results) == 1 and isinstance(results[0][0], Sym):
        return [(conditions.choice(ask("truth", sym("has", owner, name)), results[0][0], given.args[2]), world)]
    return results


def _zip(m: Machine, args: tuple[Value, ...], node: ast.AST) -> Value:
    known = [containers.elements(value) for value in args]
    lengths = {len(items) for items in known if items is not None}
    if all(items is not None for items in known) and len(lengths) == 1:
        rows = zip(*(items for items in known if items is not None), strict=True)
        return Items(tuple(Items(row) for row in rows), "list")
    return Many(Items(tuple(containers.element(m, value, node) for value in args)))


def _sum(m: Machine, args: tuple[Value, ...], node: ast.AST, world: World, frame: Frame) -> Value:
    parts = containers.elements(args[0])
    values = tuple(parts) if parts is not None else (containers.element(m, args[0], node),)
    if any(True for _ in tensors.tensors_in(values)):
        return operation(m, "add", values, {}, node, world, frame)
    return sym("call", "sum", *map(conditions.key, args))


def _isinstance(value: Value, cls: Value) -> Value:
    if isinstance(value, Const) and value.value is None:
        return Const(False)
    if isinstance(value, Instance) and isinstance(cls, Class):
        known = {value.cls, *value.cls.bases}
        if cls in known:
            return Const(True)
    if isinstance(value, Items | Mapping) and isinstance(cls, Lib) and cls.name.startswith("builtins."):
        kinds = {
            "builtins.dict": isinstance(value, Mapping),
            "builtins.list": isinstance(value, Items) and value.kind == "list",
        }
        if cls.name in kinds:
            return Const(kinds[cls.name])
    if isinstance(value, Tensor) and isinstance(cls, Lib) and value.dtype:
        return Const(cls.name == "torch.Tensor")
    return Test(ask("isinstance", conditions.key(value), cls))


# -- tensors -----------------------------------------------------------------------------------------------------------


def operation(
    m: Machine,
    op: str,
    operands: tuple[Value, ...],
    kwargs: dict[str, Value],
    node: ast.AST,
    world: World,
    frame: Frame,
    in_place: bool = False,
) -> Tensor:
    """Run an op on tensors and tell of it."""
    every = (*operands, *kwargs.values())
    result = tensors.operate(op, every, world, node, kwargs.get("dtype"))
    if in_place and isinstance(operands[0], Tensor):
        result = replace(result, dtype=operands[0].dtype, trust=operands[0].trust)
    tell(m, op, operands, kwargs, result, node, world, frame)
    if op in tensors.LOSSES and not frame.in_model:
        m.emit(events.Loss, node, world, frame, name=op)
    return result


def tell(
    m: Machine,
    op: str,
    operands: tuple[Value, ...],
    kwargs: dict[str, Value],
    result: Tensor,
    node: ast.AST,
    world: World,
    frame: Frame,
) -> None:
    """Record an op on tensors, once for operands that are alike."""
    every = (*operands, *kwargs.values())
    signature = tuple((v.dtype, v.made, v.trust) if isinstance(v, Tensor) else type(v).__name__ for v in every)
    if m.once(op, node, signature, tensors.region_of(world)):
        m.observe(
            events.Operation(
                node, frame, world.contexts, world.loops, world.facts, op, operands, tuple(kwargs.items()), result
            )
        )


def view(tensor: Tensor, node: ast.AST | None, deeper: bool = False) -> Tensor:
    """The same numbers in another shape. `deeper`: an element of what may be a tuple of tensors."""
    if tensor.made == "" and deeper:
        return replace(tensor, identity=serial())
    return replace(tensor, identity=serial(), parents=(tensor,) if tensor.made == "" else tensor.parents)


def view_any(value: Value, node: ast.AST) -> Value:
    match value:
        case Tensor():
            return view(value, node)
        case Items() if value.items:
            return view_any(value.items[0], node)
        case Sym():
            return sym("item", value, "view")
    return value
