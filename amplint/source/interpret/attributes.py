"""Attributes: reading them of whatever has them, and setting them."""

from __future__ import annotations

import ast
import math
from dataclasses import replace

from amplint.source.interpret import (
    choices,
    classes,
    conditions,
    imports,
    objects,
    operations,
    protocol,
    tensors,
    training,
    variables,
)
from amplint.source.interpret.frames import Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import serial, sym
from amplint.source.values import (
    FALSE,
    KNOWN,
    NONE,
    Bound,
    Choice,
    Class,
    Const,
    Device,
    Function,
    Gradient,
    Imported,
    Instance,
    Lib,
    Many,
    Mapping,
    Model,
    Namespace,
    Object,
    Optimizer,
    Parameter,
    Parameters,
    Scaler,
    Tensor,
    Value,
)

_CONSTANTS = {
    **dict.fromkeys(("math.inf", "numpy.inf", "torch.inf"), Const(math.inf)),
    **dict.fromkeys(("math.pi", "numpy.pi", "torch.pi"), Const(math.pi)),
    **dict.fromkeys(("math.nan", "numpy.nan", "torch.nan"), Const(math.nan)),
}
_METHODS_TAKEN = {"step", "zero_grad", "scale", "unscale_", "update", "backward"}  # as in `step = optimizer.step`


def attribute(m: Machine, owner: Value, name: str, node: ast.AST, world: World, frame: Frame) -> Results:
    """The value of `owner.name`."""
    match owner:
        case Lib():
            dotted = f"{owner.name}.{name}"
            return [(_CONSTANTS.get(dotted) or Lib(dotted), world)]
        case Choice():
            return _attribute_of_choice(m, owner, name, node, world, frame)
        case Tensor():
            return [(tensor_attribute(owner, name, node, world), world)]
        case Imported():
            return attribute(m, imports.resolve(m, owner, world), name, node, world, frame)
        case Namespace(module=module):
            return [(imports.named(m, module, name, world) or sym("name", module.path, name), world)]
        case Instance() | classes.Super() | Class():
            found = classes.member(m, owner, name, node, world, frame)
            if found is not None:
                return found
        case Parameter() if name == "device":
            return [(Device("", sym("attr", "parameter", "device")), world)]
        case Parameters() | Parameter():
            return [(Gradient(owner.of) if name == "grad" else owner, world)]
        case Gradient():
            return [(owner, world)]
        case Scaler() if name.endswith("scaler"):
            return [(owner, world)]  # of an object whose step(optimizer) and update() are the scaler's that it keeps
        case Optimizer():
            if name == "param_groups":
                of = owner.of | {owner}  # those of its models that it has
                return [(Many(Mapping(((Const("params"), Parameters(of)),), True)), world)]
        case Object():
            api = m.library.find(f"{owner.name}.{name}")
            if api is not None and api.returns == "scaler":
                return [(Scaler(sym("attr", owner, name), sym("attr", owner, "is_enabled")), world)]
            held = objects.taken(owner, name, (), node, world)
            if held is not None:
                return [(held, world)]
        case Device(type=kind):
            if name == "type":
                return [(Const(kind) if kind else sym("attr", owner.text, "type"), world)]
        case Model():
            if name in ("weight", "bias"):
                return [(Parameter(frozenset((owner,))), world)]
            if name == "module":
                return [(owner, world)]
        case Function():
            return [(sym("attr", owner.name, name), world)]
    stored = world.get(owner, name)
    if isinstance(stored, Value):
        return [(stored, world)]
    if isinstance(owner, Optimizer | Scaler) and name in _METHODS_TAKEN:
        return [(Bound(owner, name), world)]
    if name == "module" and m.is_model(owner):
        return [(owner, world)]
    return [(sym("attr", owner, name), world)]


def _attribute_of_choice(m: Machine, owner: Choice, name: str, node: ast.AST, world: World, frame: Frame) -> Results:
    known = world.known(owner.formula)
    if known is not None:
        return attribute(m, owner.yes if known else owner.no, name, node, world, frame)
    if owner.no == NONE or owner.yes == NONE:  # None has no such attribute: the script would have crashed
        world.suppose(owner.formula if owner.no == NONE else conditions.negate(owner.formula))
        return attribute(m, owner.yes if owner.no == NONE else owner.no, name, node, world, frame)
    results = []
    for yes, w1 in attribute(m, owner.yes, name, node, world, frame):
        for no, w2 in attribute(m, owner.no, name, node, w1, frame):
            results.append((conditions.choice(owner.formula, yes, no), w2))
    return results


def tensor_attribute(tensor: Tensor, name: str, node: ast.AST, world: World) -> Value:
    """An attribute of a tensor, or of a model's output that is taken for one."""
    match name:
        case "dtype":
            if tensor.dtype in ("", "low"):
                return sym("dtype", tensor.dtype or tensor.identity)
            return Lib(f"torch.{tensor.dtype}")
        case "device":
            return Device("", sym("attr", f"tensor {tensor.identity}", name))
        case "shape" | "is_cuda" | "requires_grad" | "ndim" | "layout" | "itemsize" | "grad_fn":
            return sym("attr", f"tensor {tensor.identity}", name)
        case "grad":
            return Gradient(tensor.of)
        case "T" | "mT" | "H" | "real" | "imag":
            return operations.view(tensor)
        case "data":
            return replace(tensor, of=frozenset(), scaler=None)
        case "values" if tensor.made in operations.PICKS:
            return operations.view(tensor)
        case "indices" if tensor.made in operations.PICKS:
            return Tensor("integer", made="indices", node=node, identity=serial())
    dtype = _of_weights(tensor, world) if name in _HIDDEN else ""
    return Tensor(dtype, KNOWN, tensor.of, tensor.region, tensor.scaler, node=node, identity=serial())


# What transformers' models hand out as their layers computed it; logits may have been cast to float32.
_HIDDEN = frozenset("last_hidden_state pooler_output encoder_last_hidden_state image_embeds text_embeds".split())


def _of_weights(output: Tensor, world: World) -> str:
    """The dtype of the weights that a model of transformers was loaded or cast in, outside autocast: "bfloat16" or "".
    In float16, rules about its range would judge numbers of which nothing is known."""
    loaded = [one for one in output.of if isinstance(one, Model) and one.name.startswith("transformers.")]
    if output.region is not None or output.made or len(loaded) != len(output.of):
        return ""
    return "bfloat16" if loaded and all(tensors.weights_of(world, one) == "bfloat16" for one in loaded) else ""


def set_attribute(
    m: Machine, owner: Value, target: ast.Attribute, value: Value, world: World, frame: Frame
) -> list[World]:
    """`owner.name = value`."""
    name = target.attr
    match owner:
        case Choice():
            return [
                after
                for plain, before in choices.split(m, owner, world)
                for after in set_attribute(m, plain, target, value, before, frame)
            ]
        case Parameter() | Tensor() if name == "grad":
            if value == NONE:
                training.zero_gradients(m, owner.of, target, world, frame)
            elif not (isinstance(value, Gradient) and value.of == owner.of):
                protocol.give_up(world, owner.of)  # gradients made by hand
            return [world]
        case Parameter() if name == "data":
            if isinstance(value, Parameter) and value.dtype:
                for model in owner.of:
                    training.cast_model(m, model, value.dtype, target, world, frame)
            training.change_weights(m, owner.of, f"assigned .{name}", target, world, frame)
            return [world]
        case Parameter() if name == "requires_grad" and value == FALSE:
            training.freeze(owner.of, world)
            return [world]
        case Namespace(module=module):
            world.set(imports.module_scope(module), name, value)
            return [world]
        case Tensor() | Lib() | Const() | Parameter():
            return [world]
    world.drop("gradients", Optimizer(sym("attr", owner, name)))  # what was taken for one before it was set
    value = variables.typed(m, value, target, world, frame)
    m.call(value, variables.path_text(target))
    protocol.replaced(world, world.get(owner, name), value, field=True)
    world.set(owner, name, value)
    return [world]
