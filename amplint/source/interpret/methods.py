"""Methods of what training is made of: scalers, optimizers, models, parameters, gradients, tensors."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from amplint.source import events
from amplint.source.interpret import (
    assignment,
    calls,
    choices,
    classes,
    conditions,
    containers,
    contexts,
    functions,
    library_calls,
    protocol,
    tensors,
    training,
)
from amplint.source.interpret.frames import Arguments, Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import ask, fresh, options, serial, sym
from amplint.source.values import (
    FALSE,
    NONE,
    Autocast,
    Bound,
    Checkpoint,
    Choice,
    Class,
    Const,
    Device,
    Gradient,
    GradMode,
    Instance,
    Items,
    Many,
    Mapping,
    Model,
    NullContext,
    Object,
    Optimizer,
    Owners,
    Parameter,
    Parameters,
    Region,
    Scaler,
    StateDict,
    Sym,
    Tensor,
    Test,
    Value,
)

CASTS = {
    "half": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "double": "float64",
    "long": "integer",
    "int": "integer",
    "bool": "bool",
}
_MODEL_ONLY = frozenset(("parameters named_parameters modules named_modules children named_children").split())
_MODEL_SELF = frozenset(
    ("train eval cuda cpu to requires_grad_ apply share_memory xpu compile half float double bfloat16 type").split()
)


def call(
    m: Machine, owner: Value, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    """`owner.name(…)`; None where nothing is known about it."""
    match owner:
        case Scaler():
            return _scaler(m, owner, name, given, node, world, frame)
        case Optimizer():
            return _optimizer(m, owner, name, given, node, world, frame)
        case Tensor():
            return _tensor(m, owner, name, given, node, world, frame)
        case Parameters() | Parameter():
            return _parameters(m, owner, name, given, node, world, frame)
        case Gradient():
            return _gradient(m, owner, name, given, node, world, frame)
        case Model():
            return _model(m, owner, name, given, node, world, frame)
        case Instance() | classes.Super():
            return _instance(m, owner, name, given, node, world, frame)
        case Object():
            return _object(m, owner, name, given, node, world, frame)
        case Items() | Many() | Mapping():
            return _container(m, owner, name, given, node, world, frame)
        case Checkpoint():
            if name == "get" and given.args:
                key = given.args[0]
                default = given.args[1] if len(given.args) > 1 else NONE
                has = ask("truth", sym("has", owner, key))
                return [(conditions.choice(has, Checkpoint(owner.site, (*owner.path, key)), default), world)]
            return [(sym("call", name, owner), world)]
        case Const(value=str()):
            return [(_text(owner, name, given), world)]
        case Autocast() | NullContext() | GradMode() if name == "__enter__":
            return [(fresh("context"), after) for _, after in contexts.enter(m, owner, node, node, world, frame)]
        case Autocast() | GradMode() if name == "__exit__":
            contexts.exit_one(owner, world)
            return [(NONE, world)]
        case Device() | Bound() | StateDict():
            return [(sym("call", name, owner, *map(conditions.key, given.values())), world)]
        case Sym():
            return _unknown(m, owner, name, given, node, world, frame)
    return None


# -- scaler and optimizer ----------------------------------------------------------------------------------------------


def _off(scaler: Scaler, world: World) -> bool:
    """Whether the scaler is known to be disabled here: then its methods pass everything through."""
    return world.known(conditions.truth(scaler.enabled)) is False


def _scaler(
    m: Machine, scaler: Scaler, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    args = given.args
    match name:
        case "scale" if args:
            return [(scaled(m, args[0], scaler, node, world), world)]
        case "unscale_" if args:
            split = choices.split(m, args[0], world)
            for plain, after in split:
                for optimizer in [] if _off(scaler, after) else optimizers_in(plain, after):
                    before = protocol.gradients(after, optimizer)
                    event = m.emit(
                        events.Unscale, node, after, frame, scaler=scaler, optimizer=optimizer, before=before, state=""
                    )
                    event.before, event.state = protocol.unscale(after, event, scaler, optimizer)
            return [(NONE, after) for _, after in split]
        case "step" if args:
            closure = len(args) > 1 or "closure" in given.kwargs
            split = choices.split(m, args[0], world)
            for plain, after in split:
                for optimizer in optimizers_in(plain, after):
                    training.step(m, optimizer, None if _off(scaler, after) else scaler, node, after, frame, closure)
            return [(fresh("call"), after) for _, after in split]
        case "update":
            if not _off(scaler, world):
                protocol.update(world, m.emit(events.Update, node, world, frame, scaler=scaler, pairs=()))
            return [(NONE, world)]
        case "state_dict":
            return [(StateDict(scaler), world)]
        case "load_state_dict" if args:
            m.observe(events.Load(node, frame, world.contexts, world.loops, world.facts, scaler, args[0]))
            return [(NONE, world)]
        case "is_enabled":
            formula = conditions.truth(scaler.enabled)
            return [(Const(formula) if isinstance(formula, bool) else Test(formula), world)]
        case "get_scale":
            return [(sym("scale of", scaler, serial()), world)]
    return None


def scaled(m: Machine, value: Value, scaler: Scaler, node: ast.AST, world: World) -> Value:
    """scaler.scale(value)."""
    if _off(scaler, world):
        return value
    match value:
        case Items():
            return Items(tuple(scaled(m, item, scaler, node, world) for item in value.items), value.kind)
        case Tensor():
            return replace(value, scaler=scaler, made="scale", node=node, parents=(value,), identity=serial())
    of, region, _ = tensors.provenance((value,))
    return Tensor("", of=of, region=region or tensors.region_of(world), scaler=scaler, made="scale", node=node,
                  identity=serial())  # fmt: skip


def optimizers_in(value: Value, world: World) -> list[Optimizer]:
    """The optimizers that an argument of the scaler stands for; what is handed to a scaler is one."""
    match value:
        case Optimizer():
            protocol.register(world, value)
            return [value]
        case Sym() | Instance() | Object():
            optimizer = Optimizer(value)
            protocol.register(world, optimizer, entry=True)
            return [optimizer]
        case Many():
            return optimizers_in(value.item, world)
    return []


def _optimizer(
    m: Machine, optimizer: Optimizer, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    match name:
        case "step":
            closure = bool(given.args) or "closure" in given.kwargs
            if closure:
                function = given.args[0] if given.args else given.kwargs["closure"]
                results = calls.call(m, function, Arguments(), node, world, frame)
            else:
                results = [(NONE, world)]
            for _, after in results:
                training.step(m, optimizer, None, node, after, frame, closure)
            return [(fresh("call"), after) for _, after in results]
        case "zero_grad":
            event = m.emit(events.ZeroGradient, node, world, frame, touched=())
            event.touched = protocol.zero(world, event, [optimizer])
            return [(NONE, world)]
        case "state_dict":
            return [(StateDict(optimizer), world)]
        case "load_state_dict" if given.args:
            m.observe(events.Load(node, frame, world.contexts, world.loops, world.facts, optimizer, given.args[0]))
            return [(NONE, world)]
        case "add_param_group" | "train" | "eval" | "register_step_post_hook":
            return [(NONE, world)]
        case "clip_grad_norm":
            training.clip(m, optimizer.of or frozenset((optimizer,)), "norm", node, world, frame)
            return [(fresh("norm"), world)]
        case "backward" if given.args:
            training.backward(m, given.args[0], node, world, frame, managed=True)
            return [(NONE, world)]
    return None


def scale_and_step(m: Machine, scaler: Object, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """A callable scaler (timm's NativeScaler): backward, unscale and clip, step and update in one call."""
    api = m.library.find(scaler.name + ".__call__")
    bound = api.bind(given.args, given.kwargs) if api else dict(given.kwargs)
    loss = bound.get("loss") or (given.args[0] if given.args else fresh("loss"))
    optimizer = bound.get("optimizer") or (given.args[1] if len(given.args) > 1 else NONE)
    inner = Scaler(scaler)
    training.backward(m, scaled(m, loss, inner, node, world), node, world, frame)
    results: Results = []
    for updating, after in world.decide(conditions.truth(bound.get("need_update", Const(True)))):
        if updating:
            for one in optimizers_in(optimizer, after):
                training.step(m, one, inner, node, after, frame)
            protocol.update(after, m.emit(events.Update, node, after, frame, scaler=inner, pairs=()))
        results.append((fresh("norm"), after))
    return results


# -- losses and tensors ------------------------------------------------------------------------------------------------

_IN_PLACE_KEEP = frozenset(("requires_grad_ retain_grad share_memory_").split())


def _tensor(
    m: Machine, tensor: Tensor, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    if name == "backward":
        training.backward(m, tensor, node, world, frame)
        return [(NONE, world)]
    if name == "detach" or name == "detach_":
        return [(replace(tensor, of=frozenset(), scaler=None, identity=serial()), world)]
    if name in CASTS and not given.args:
        return [(tensors.cast(tensor, CASTS[name], world, node, name), world)]
    if name in ("to", "type", "type_as"):
        return [(_converted(tensor, name, given, node, world), world)]
    if name == "numpy":
        library_calls.operation(m, "numpy", (tensor,), {}, node, world, frame)
    if name in tensors.NUMBERS:
        return [(fresh("number") if name != "size" else sym("attr", f"tensor {tensor.identity}", name), world)]
    if name in tensors.VIEWS or name in _IN_PLACE_KEEP:
        return [(library_calls.view(tensor, node), world)]
    if name in ("values", "items", "keys", "get", "to_tuple"):  # a model's output may be a dict of tensors
        inner = library_calls.view(tensor, node, deeper=True)
        return [(Many(Items((fresh("key"), inner))) if name == "items" else Many(inner), world)]
    op = tensors.op_of(f"torch.Tensor.{name}")
    plain = name.rstrip("_") if name.endswith("_") and not name.startswith("_") else name
    if not op and plain != name:
        op = tensors.op_of(f"torch.Tensor.{plain}") or plain
    if op or name in tensors.policy() or name in tensors.BOOLEAN or name in tensors.INTEGER:
        in_place = plain != name
        result = library_calls.operation(
            m, op or name, (tensor, *given.args), given.kwargs, node, world, frame, in_place
        )
        return [(result, world)]
    if name in ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "new"):
        dtype = tensors.dtype_of(given.kwargs.get("dtype")) or tensor.dtype
        made = Tensor(dtype, tensor.trust, made=name, node=node, parents=(tensor,), identity=serial())
        if name in ("new_full", "new_tensor"):
            library_calls.tell(m, name.removeprefix("new_"), given.args, given.kwargs, made, node, world, frame)
        return [(made, world)]
    for value in given.values():
        protocol.hand_over(world, value)
    return [(tensors.opaque((tensor, *given.values()), world, node) or Tensor(identity=serial()), world)]


def _converted(tensor: Tensor, name: str, given: Arguments, node: ast.AST, world: World) -> Value:
    """x.to(…), x.type(…), x.type_as(…)."""
    if name == "type_as" or (given.args and isinstance(given.args[0], Tensor)):
        other = given.args[0] if given.args else NONE
        dtype = other.dtype if isinstance(other, Tensor) else ""
        return replace(tensors.cast(tensor, dtype, world, node, "to"), trust=getattr(other, "trust", 2))
    for value in (*given.args, given.kwargs.get("dtype")):
        dtype = tensors.dtype_of(value)
        if dtype:
            return tensors.cast(tensor, dtype, world, node, "float" if dtype == "float32" else "to")
    if any(isinstance(value, Sym) and value.kind in ("dtype", "argument", "attr") for value in given.values()):
        unknown = given.kwargs.get("dtype") is not None or any(
            isinstance(v, Sym) and (v.kind == "dtype" or (v.kind == "attr" and v.parts[-1] == "dtype"))
            for v in given.args
        )
        if unknown:
            return tensors.cast(tensor, "", world, node, "to")
    return library_calls.view(tensor, node)


# -- parameters and gradients ------------------------------------------------------------------------------------------


def _parameters(
    m: Machine, owner: Parameters | Parameter, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    if name in ("copy_", "fill_", "uniform_", "normal_", "zero_", "clamp_", "mul_", "add_", "sub_", "lerp_", "div_",
                "addcmul_", "addcdiv_"):  # fmt: skip
        gradients = [v for v in (*given.args,) if isinstance(v, Gradient)]
        if gradients:
            training.read_gradient(m, owner.of, "manual update", node, world, frame)
        training.change_weights(m, owner.of, name, node, world, frame)
        return [(owner, world)]
    if name in ("size", "numel", "dim", "item", "register_hook"):
        return [(sym("call", name, owner), world)]
    if name in ("append", "extend", "update") and given.args:
        return [(NONE, world)]
    if isinstance(owner, Parameter) and (name in CASTS or name in ("to", "type")):
        dtypes = (d for d in map(tensors.dtype_of, given.values()) if d)
        return [(replace(owner, dtype=CASTS.get(name) or next(dtypes, owner.dtype)), world)]
    if name == "requires_grad_":
        if given.args[:1] == (FALSE,):
            training.freeze(owner.of, world)
        return [(owner, world)]
    if name in ("float", "half", "bfloat16", "to", "cuda", "detach", "clone", "view", "t", "transpose"):
        return [(owner, world)]
    op = tensors.op_of(f"torch.Tensor.{name}")
    if op:
        return [(library_calls.operation(m, op, (owner, *given.args), given.kwargs, node, world, frame), world)]
    return [(owner, world)]


_LINEAR = frozenset(
    ("mul_ div_ mul div add_ copy_ view reshape clone detach cpu cuda to float contiguous sub_ half").split()
)


def _gradient(
    m: Machine, owner: Gradient, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    if name in ("zero_", "fill_"):
        training.zero_gradients(m, owner.of, node, world, frame)
    elif name in ("clamp_", "clamp", "clip_", "clamp_min_", "clamp_max_"):
        training.clip(m, owner.of, "hand", node, world, frame)
    elif name in ("norm", "abs", "max", "min", "mean", "std", "pow", "sign", "sign_", "sum", "square", "topk"):
        training.read_gradient(m, owner.of, name, node, world, frame)
        return [(fresh("number"), world)]
    elif name in ("isnan", "isinf", "isfinite", "nan_to_num_"):
        return [(fresh("number"), world)]
    elif name in _LINEAR and any(_from_scale(value) for value in given.values()):
        for optimizer in protocol.owners(world, owner.of)[0]:  # unscaled by hand: p.grad.mul_(1 / scaler.get_scale())
            world.set("gradients", optimizer, protocol.UNKNOWN["gradients"])
    return [(owner, world)]


def _from_scale(value: Value) -> bool:
    return isinstance(value, Sym) and (
        value.kind == "scale of" or any(isinstance(part, Value) and _from_scale(part) for part in value.parts)
    )


# -- models ------------------------------------------------------------------------------------------------------------


def forward(m: Machine, model: Value, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """A model is called."""
    if isinstance(model, Model):
        op = tensors.op_of(model.name)
        if op in tensors.LOSSES:
            return [(library_calls.operation(m, op, given.args, given.kwargs, node, world, frame), world)]
        _tell_forward(m, model, node, world, frame)
        if op:
            # the reduction and eps arguments of the constructor matter to no dtype
            result = library_calls.operation(m, op, given.args, {}, node, world, frame)
            return [(tag(result, model), world)]
        return [(tag(value, model), after) for value, after in _through_parts(m, model, given, node, world, frame)]
    _tell_forward(m, model, node, world, frame)
    if isinstance(model, Instance) and not m.alone:
        function = classes.method(m, model.cls, "forward", world, frame)
        if function is not None:
            bound = replace(function, owner=model)
            results = functions.call_function(m, bound, given, node, world, frame, in_model=True)
            return [(tag(value, model), after) for value, after in results]
    for value in given.values():
        protocol.hand_over(world, value)
    output = tensors.opaque(given.values(), world, node, frozenset((model,)))
    if output is None:
        output = Tensor("", of=frozenset((model,)), region=tensors.region_of(world), node=node, identity=serial())
    return [(replace(output, of=output.of | {model}), world)]


def _tell_forward(m: Machine, model: Value, node: ast.AST, world: World, frame: Frame) -> None:
    if frame.in_model:
        return
    outer = next((context for context in world.contexts if isinstance(context, Region)), None)
    if tensors.region_of(world) is None:
        outer = None  # no copies are used here
    stale = world.get("stale weights", outer.node) if outer is not None else None
    changed = stale.event if stale is not None and _changed(world, model, stale.event) else None
    m.emit(events.Forward, node, world, frame, model=model, stale=changed)


def _changed(world: World, model: Value, event: events.Event) -> bool:
    """Whether the weights that an event changed are surely this model's."""
    if isinstance(event, events.Step):
        sure, _ = protocol.owners(world, frozenset((model,)))
        return event.optimizer in sure
    return isinstance(event, events.ChangeWeights) and any(protocol.related(world, model, one) for one in event.of)


def _through_parts(m: Machine, model: Model, given: Arguments, node: ast.AST, world: World, frame: Frame) -> Results:
    """nn.Sequential runs its parts; any other library module is opaque."""
    if model.name == "torch.nn.Sequential" and given.args:
        parts = [
            part
            for arg in model.args
            for part in (containers.elements(arg) or [arg] if isinstance(arg, Items) else [arg])
        ]
        results: Results = [(given.args[0], world)]
        for part in parts:
            inside = replace_frame(frame)
            results = [
                after
                for value, before in results
                for after in calls.call(m, part, Arguments((value,)), node, before, inside)
            ]
        return results
    result = tensors.opaque(given.values(), world, node, frozenset((model,)))
    region = tensors.region_of(world)
    return [(result or Tensor("", of=frozenset((model,)), region=region, node=node, identity=serial()), world)]


def replace_frame(frame: Frame) -> Frame:
    """The same frame, inside a model: its parts tell no forwards of their own."""
    return replace(frame, in_model=True)


def tag(value: Value, model: Value) -> Value:
    """What a model returned, as coming from it."""
    match value:
        case Tensor():
            return replace(value, of=value.of | {model})
        case Items():
            return Items(tuple(tag(item, model) for item in value.items), value.kind)
        case Many():
            return Many(tag(value.item, model))
        case Mapping():
            return Mapping(tuple((key, tag(item, model)) for key, item in value.items), value.open, value.node)
        case Choice():
            return conditions.choice(value.formula, tag(value.yes, model), tag(value.no, model))
        case Sym(kind="call" | "unknown" | "item" | "op" | "joined" | "element"):
            return Tensor("", of=frozenset((model,)), identity=serial())
    return value


def _model(
    m: Machine, model: Value, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    of: Owners = frozenset((model,))
    match name:
        case "parameters" | "buffers":
            return [(Parameters(of), world)]
        case "named_parameters":
            return [(Many(Items((fresh("key"), Parameter(of)))), world)]
        case "modules" | "children":
            return [(Many(sym("item", model, "*")), world)]
        case "named_modules" | "named_children":
            return [(Many(Items((fresh("key"), sym("item", model, "*")))), world)]
        case "zero_grad":
            training.zero_gradients(m, of, node, world, frame)
            return [(NONE, world)]
        case "state_dict":
            return [(StateDict(model), world)]
        case "load_state_dict":
            source = given.args[0] if given.args else NONE
            m.observe(events.Load(node, frame, world.contexts, world.loops, world.facts, model, source))
            training.change_weights(m, of, name, node, world, frame)
            return [(fresh("call"), world)]
        case "forward":
            return forward(m, model, given, node, world, frame)
        case "no_sync" | "join":
            return [(NullContext(), world)]
        case "clip_grad_norm_":
            training.clip(m, of, "norm", node, world, frame)
            return [(fresh("norm"), world)]
    if name in _MODEL_SELF:
        dtype = CASTS.get(name, "")
        if name in ("to", "type"):
            dtype = next((d for d in map(tensors.dtype_of, given.values()) if d), "")
        if dtype:
            training.cast_model(m, model, dtype, node, world, frame)
        if name == "requires_grad_" and given.args[:1] == (FALSE,):
            training.freeze(frozenset((model,)), world)
        return [(model, world)]
    return None


def _instance(
    m: Machine,
    owner: Instance | classes.Super,
    name: str,
    given: Arguments,
    node: ast.AST,
    world: World,
    frame: Frame,
) -> Results | None:
    """A method that an object inherits from a library class."""
    instance = owner.owner if isinstance(owner, classes.Super) else owner
    cls = instance.cls if isinstance(instance, Instance) else None
    if not isinstance(cls, Class):
        return None
    api = m.library.find_first(classes.library_bases(m, cls, world, frame))
    if api is not None and api.returns == "scaler":
        return _scaler(m, Scaler(instance), name, given, node, world, frame)
    if name == "__init__":
        return [(NONE, world)]
    if api is not None and api.returns == "managed":
        return _object(m, Object(cls.node.name, instance, "managed"), name, given, node, world, frame)
    if classes.is_module(m, cls, world, frame) or name in _MODEL_ONLY:
        if isinstance(owner, classes.Super) and name == "__call__":
            return forward(m, instance, given, node, world, frame)
        return _model(m, instance, name, given, node, world, frame)
    if name == "state_dict":
        return [(StateDict(instance), world)]
    return None


def _object(
    m: Machine, owner: Object, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    """A method of a library object, as rules/apis describes it."""
    api = m.library.find(f"{owner.name}.{name}")
    if api is not None:
        return library_calls.call(m, f"{owner.name}.{name}", given, node, world, frame, receiver=owner)
    if name == "state_dict":
        return [(StateDict(owner), world)]
    if owner.kind == "managed":
        if name == "backward" and given.args:
            training.backward(m, given.args[0], node, world, frame, managed=True)
            return [(NONE, world)]
        return [(tensors.opaque(given.values(), world, node) or fresh("call"), world)]
    return None


def _container(
    m: Machine, owner: Value, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    args = given.args
    match owner, name:
        case Mapping(), "get" if args:
            found = owner.get(args[0])
            default = args[1] if len(args) > 1 else NONE
            if found is None and owner.open:
                return [(sym("item", owner, args[0]), world)]
            return [(found if found is not None else default, world)]
        case Mapping(), "items" | "values":
            values = tuple(value for _, value in owner.items)
            if not owner.open:
                pairs = tuple(Items(pair) for pair in owner.items)
                return [(Items(pairs if name == "items" else values, "list"), world)]
            one = containers.merge_elements(list(values))
            return [(Many(Items((fresh("element"), one)) if name == "items" else one), world)]
        case Many(), "items":
            return [(owner, world)]
        case Mapping(), "update" if args and isinstance(args[0], Mapping) and isinstance(node, ast.Call):
            merged = Mapping((*owner.items, *args[0].items), owner.open or args[0].open, owner.node)
            return _rebound(m, merged, node, world, frame)
        case Items(), "append" if args and isinstance(node, ast.Call):
            in_loop = bool(world.loops)
            grown: Value = Items((*owner.items, args[0]), owner.kind)
            if in_loop:
                grown = Many(containers.merge_elements([*owner.items, args[0]]))
            return _rebound(m, grown, node, world, frame)
        case Many(), "append" if args and isinstance(node, ast.Call):
            return _rebound(m, Many(containers.merge_elements([owner.item, args[0]])), node, world, frame)
        case ((Items() | Many()), "extend") if args and isinstance(node, ast.Call):
            if isinstance(args[0], Parameters) or isinstance(owner, Many):
                return _rebound(m, args[0] if isinstance(args[0], Parameters) else owner, node, world, frame)
            more = containers.elements(args[0])
            if more is not None and isinstance(owner, Items):
                return _rebound(m, Items((*owner.items, *more), owner.kind), node, world, frame)
            return [(NONE, world)]
        case ((Items() | Many() | Mapping()), ("pop" | "index" | "count" | "keys" | "copy" | "insert" | "sort")):
            item = owner.item if isinstance(owner, Many) else fresh("item")
            return [(owner if name == "copy" else item, world)]
    return None


def _rebound(m: Machine, value: Value, node: ast.Call, world: World, frame: Frame) -> Results:
    """A list or dict changed in place: the variable that holds it now holds another value."""
    assert isinstance(node.func, ast.Attribute)
    target = node.func.value
    if isinstance(target, ast.Name | ast.Attribute):
        return [(NONE, after) for after in assignment.assign(m, target, value, world, frame)]
    return [(NONE, world)]


def _text(owner: Const, name: str, given: Arguments) -> Value:
    """Methods of known strings that conditions use."""
    text = owner.value
    args = [value.value if isinstance(value, Const) else None for value in given.args]
    if isinstance(text, str) and all(isinstance(arg, str) for arg in args):
        if name in ("lower", "upper", "strip") and not args:
            return Const(getattr(text, name)())
        if name in ("startswith", "endswith") and args:
            return Const(getattr(text, name)(args[0]))
    if name == "format" and isinstance(text, str):
        return Const(text.replace("{}", "*"))
    return fresh("text")


# -- unknown receivers -------------------------------------------------------------------------------------------------

_TENSOR_METHODS = frozenset(
    (
        "softmax log_softmax masked_fill masked_fill_ matmul bmm sigmoid relu tanh exp log rsqrt sqrt mean var std "
        "norm clamp transpose permute view reshape unsqueeze squeeze contiguous type_as chunk detach expand "
        "flatten"
    ).split()
)


def _model_like(m: Machine, value: Any) -> bool:
    return isinstance(value, Model | Instance) or m.is_model(value)


def _unknown(
    m: Machine, owner: Sym, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    """A method of something unknown, by what only one kind of thing has."""
    is_model = m.is_model(owner) or (owner.kind == "item" and _model_like(m, owner.parts[0]))
    if name == "backward":
        if given.args and not isinstance(given.args[0], Const):
            training.backward(m, given.args[0], node, world, frame, managed=True)  # an engine's backward(loss)
        else:
            training.backward(m, owner, node, world, frame)
        return [(NONE, world)]
    if is_model or name in _MODEL_ONLY:
        if name in _MODEL_ONLY:
            m.models.update(options(owner))
        result = _model(m, owner, name, given, node, world, frame)
        if result is not None:
            return result
    if name == "unscale_" and given.args:
        return _scaler(m, Scaler(owner, sym("attr", owner, "is_enabled")), name, given, node, world, frame)
    if name == "step" and given.args and isinstance(given.args[0], Optimizer):
        return _scaler(m, Scaler(owner, sym("attr", owner, "is_enabled")), name, given, node, world, frame)
    if name == "scale" and len(given.args) == 1 and any(t.of or t.region for t in tensors.tensors_in(given.args)):
        scaler = Scaler(owner, sym("attr", owner, "is_enabled"))
        return [(scaled(m, given.args[0], scaler, node, world), world)]
    if name == "enter_context" and given.args:  # an ExitStack: left together with the `with` that it is used in
        entered = contexts.enter(m, given.args[0], node, node, world, frame)
        return [(fresh("context") if isinstance(bound, Autocast) else bound, after) for bound, after in entered]
    if name == "state_dict":
        return [(StateDict(owner), world)]
    if name == "load_state_dict" and given.args:
        m.observe(events.Load(node, frame, world.contexts, world.loops, world.facts, owner, given.args[0]))
        return [(fresh("call"), world)]
    if name in ("to", "cuda", "cpu", "train", "eval", "requires_grad_", "share_memory"):
        dtype = next((d for d in map(tensors.dtype_of, given.values()) if d), "")
        return [(Tensor(dtype, made="to", node=node, identity=serial()) if dtype else owner, world)]
    if name in ("float", "half", "bfloat16", "double") and not given.args:
        return [(Tensor(CASTS[name], made=name, node=node, parents=(owner,), identity=serial()), world)]
    if name in _TENSOR_METHODS:
        return _tensor(m, Tensor(identity=serial(), node=node), name, given, node, world, frame)
    api = m.library.method(name)
    if api is not None:
        return library_calls.apply(m, name, api, given, node, world, frame, owner)
    if name in ("startswith", "endswith", "lower", "upper", "strip", "get", "is_available", "exists"):
        return [(sym("call", name, owner, *map(conditions.key, given.values())), world)]
    return None
