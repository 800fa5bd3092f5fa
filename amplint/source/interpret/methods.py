"""Methods: which kind of thing has them; and methods of objects, and of what is unknown."""

from __future__ import annotations

import ast
from typing import Any

from amplint.source import events
from amplint.source.interpret import (
    classes,
    conditions,
    container_methods,
    contexts,
    library_calls,
    models,
    objects,
    roles,
    scaler_methods,
    tensor_methods,
    tensors,
    training,
)
from amplint.source.interpret.frames import Arguments, Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import ask, fresh, made_by_another, options, serial, sym
from amplint.source.values import (
    NONE,
    Autocast,
    Bound,
    Checkpoint,
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
    Parameter,
    Parameters,
    Scaler,
    StateDict,
    Sym,
    Tensor,
    Value,
)

_MODEL_ONLY = frozenset(("parameters named_parameters modules named_modules children named_children").split())
_CASTS = frozenset("half float bfloat16 double to type".split())
_KEEPS = ("load", "save", "set", "reset", "init", "add", "register", "update", "remove", "copy", "is_", "has_", "get_")
_TENSOR_METHODS = frozenset(
    (
        "softmax log_softmax masked_fill masked_fill_ matmul bmm sigmoid relu tanh exp log rsqrt sqrt mean var std "
        "norm clamp transpose permute view reshape unsqueeze squeeze contiguous type_as chunk detach expand "
        "flatten"
    ).split()
)


def call(
    m: Machine, owner: Value, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    """`owner.name(…)`; None where nothing is known about it."""
    match owner:
        case Scaler():
            return scaler_methods.scaler_method(m, owner, name, given, node, world, frame)
        case Optimizer():
            return scaler_methods.optimizer_method(m, owner, name, given, node, world, frame)
        case Tensor():
            return tensor_methods.tensor_method(m, owner, name, given, node, world, frame)
        case Parameters() | Parameter():
            return tensor_methods.parameter_method(m, owner, name, given, node, world, frame)
        case Gradient():
            return tensor_methods.gradient_method(m, owner, name, given, node, world, frame)
        case Model():
            return models.model_method(m, owner, name, given, node, world, frame)
        case Instance() | classes.Super():
            return _instance(m, owner, name, given, node, world, frame)
        case Object():
            return _object(m, owner, name, given, node, world, frame)
        case Items() | Many() | Mapping():
            return container_methods.container_method(m, owner, name, given, node, world, frame)
        case Checkpoint():
            if name == "get" and given.args:
                key = given.args[0]
                default = given.args[1] if len(given.args) > 1 else NONE
                has = ask("truth", sym("has", owner, key))
                return [(conditions.choice(has, Checkpoint(owner.site, (*owner.path, key)), default), world)]
            if not any(isinstance(one, Scaler) for one in given.values()):
                return [(sym("call", name, owner), world)]  # else it is a whole object, and steps
        case Const(value=str()):
            return [(container_methods.text_method(owner, name, given), world)]
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
        return scaler_methods.scaler_method(m, Scaler(instance), name, given, node, world, frame)
    if name == "__init__":
        return [(NONE, world)]
    if api is not None and api.returns == "managed":
        return _object(m, Object(cls.node.name, instance, "managed"), name, given, node, world, frame)
    if classes.is_module(m, cls, world, frame) or name in _MODEL_ONLY:
        if isinstance(owner, classes.Super) and name == "__call__":
            return models.forward(m, instance, given, node, world, frame)
        return models.model_method(m, instance, name, given, node, world, frame)
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
    held = objects.taken(owner, name, given.values(), node, world)
    return [(held, world)] if held is not None else None


def _more_than_steps(given: Arguments) -> bool:
    """Whether what steps an optimizer is given more than a closure, as in `amp.step(optimizer, parameters, clip)`: that
    is a wrapper with a step of its own, and no scaler."""
    return any(isinstance(value, Parameters | Const) for value in given.args[1:])


def _unknown(
    m: Machine, owner: Sym, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    """A method of something unknown, by what only one kind of thing has."""
    is_model = m.is_model(owner) or (owner.kind == "item" and _model_like(m, owner.parts[0]))
    if name == "backward":
        if given.args and not isinstance(given.args[0], Const):
            training.backward(m, given.args[0], node, world, frame, managed=True)  # an engine's backward(loss)
        else:
            training.backward(m, objects.held((owner,), node, world) or owner, node, world, frame)
        return [(NONE, world)]
    if is_model or name in _MODEL_ONLY:
        if name in _MODEL_ONLY:
            m.models.update(options(owner))
        result = models.model_method(m, owner, name, given, node, world, frame)
        if result is not None:
            return result
    if name in ("unscale_", "step", "update", "scale") and not made_by_another(owner):
        scaler = Scaler(owner, sym("attr", owner, "is_enabled"))
        first = next(iter(given.args), None)
        if (
            (name == "unscale_" and first is not None)
            or (name == "step" and isinstance(first, Optimizer) and not _more_than_steps(given))
            or (name == "update" and any(key[0] == scaler for key in world.space("updates")))
        ):
            return scaler_methods.scaler_method(m, scaler, name, given, node, world, frame)
        if name == "scale" and len(given.args) == 1 and any(t.of or t.region for t in tensors.tensors_in(given.args)):
            return [(scaler_methods.scaled(m, given.args[0], scaler, node, world), world)]
    if name == "get_scale" and not given.args:
        return [(sym("scale of", owner, serial()), world)]
    if name == "enter_context" and given.args:  # an ExitStack: left together with the `with` that it is used in
        entered = contexts.enter(m, given.args[0], node, node, world, frame)
        return [(fresh("context") if isinstance(bound, Autocast) else bound, after) for bound, after in entered]
    if name == "state_dict":
        return [(StateDict(owner), world)]
    if name == "load_state_dict" and given.args:
        m.observe(events.Load, node, world, frame, target=owner, source=given.args[0])
        return [(fresh("call"), world)]
    if name in _CASTS and roles.becomes_model(node, frame):
        m.models.add(owner)
        return models.model_method(m, owner, name, given, node, world, frame)
    if name in ("to", "cuda", "cpu", "train", "eval", "requires_grad_", "share_memory"):
        dtype = next((d for d in map(tensors.dtype_of, given.values()) if d), "")
        return [(Tensor(dtype, made="to", node=node, identity=serial()) if dtype else owner, world)]
    if name in ("float", "half", "bfloat16", "double") and not given.args:
        return [(Tensor(tensors.CASTS[name], made=name, node=node, parents=(owner,), identity=serial()), world)]
    if name in _TENSOR_METHODS:
        return tensor_methods.tensor_method(m, Tensor(identity=serial(), node=node), name, given, node, world, frame)
    if is_model and computes(name, given, world, frame):
        return [(tensors.opaque(given.values(), world, node, frozenset((owner,))) or owner, world)]
    api = m.library.method(name)
    if api is not None:
        return library_calls.apply(m, name, api, given, node, world, frame, owner)
    if name in ("startswith", "endswith", "lower", "upper", "strip", "get", "is_available", "exists"):
        return [(sym("call", name, owner, *map(conditions.key, given.values())), world)]
    return None


def computes(name: str, given: Arguments, world: World, frame: Frame) -> bool:
    """Whether a method of a model that nobody has read computes with it, as far as its name and arguments say:
    `policy.evaluate(states, actions)`."""
    recorded = next((one.enabled for one in reversed(world.contexts) if isinstance(one, GradMode)), True)
    tensors_given = given.args and all(isinstance(one, Tensor | Sym) for one in given.args)
    return bool(tensors_given) and recorded and not name.startswith(_KEEPS) and not frame.in_model


def _model_like(m: Machine, value: Any) -> bool:
    return isinstance(value, Model | Instance) or m.is_model(value)
