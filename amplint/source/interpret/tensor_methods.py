"""Methods of tensors, parameters and gradients."""

from __future__ import annotations

import ast
from dataclasses import replace

from amplint.source.interpret import operations, protocol, tensors, training
from amplint.source.interpret.frames import Arguments, Frame, Results
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, serial, sym
from amplint.source.values import (
    ASSUMED,
    FALSE,
    GIVEN,
    NONE,
    Gradient,
    Items,
    Lib,
    Many,
    Parameter,
    Parameters,
    Sym,
    Tensor,
    Value,
)
from amplint.source.walk import walk

_IN_PLACE_KEEP = frozenset(("requires_grad_ retain_grad share_memory_").split())
_SAME_SHAPE = _IN_PLACE_KEEP | {"cuda", "cpu", "clone", "contiguous", "pin_memory"}
_LINEAR = frozenset(
    ("mul_ div_ mul div add_ copy_ view reshape clone detach cpu cuda to float contiguous sub_ half").split()
)


def tensor_method(
    m: Machine, tensor: Tensor, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    if name == "backward":
        training.backward(m, tensor, node, world, frame)
        return [(NONE, world)]
    if name == "detach" or name == "detach_":
        return [(replace(tensor, of=frozenset(), scaler=None, identity=serial()), world)]
    if name in tensors.CASTS and not given.args:
        made = tensors.cast(tensor, tensors.CASTS[name], node, name)
        operations.tell_cast(m, tensor, made, node, world, frame)
        return [(made, world)]
    if name in ("to", "type", "type_as"):
        converted = _converted(tensor, name, given, node)
        operations.tell_cast(m, tensor, converted, node, world, frame)
        return [(converted, world)]
    if name == "numpy":
        operations.operation(m, "numpy", (tensor,), {}, node, world, frame)
    if name == "size":  # the same as what stands in x.shape
        shape = sym("attr", f"tensor {tensor.identity}", "shape")
        return [(sym("item", shape, given.args[0]) if given.args else shape, world)]
    if name in tensors.NUMBERS:
        return [(fresh("number"), world)]
    if name == "view" and given.args and isinstance(given.args[0], Lib):  # the same bits as another dtype
        read = replace(tensor, dtype=tensors.dtype_of(given.args[0]) or "integer", made=name, identity=serial())
        return [(read, world)]
    if name in tensors.VIEWS or name in _IN_PLACE_KEEP:
        return [(operations.view(tensor, shaped=name in _SAME_SHAPE), world)]
    if name in ("values", "items", "keys", "get", "to_tuple"):  # a model's output may be a dict of tensors
        if (
            tensor.trust == GIVEN and tensor.made == "argument"
        ):  # of anything, then: only tensors were taken for granted
            return [(fresh("call"), world)]
        inner = operations.view(tensor, deeper=True)
        return [(Many(Items((fresh("key"), inner))) if name == "items" else Many(inner), world)]
    op = tensors.op_of(f"torch.Tensor.{name}")
    plain = name.rstrip("_") if name.endswith("_") and not name.startswith("_") else name
    if not op and plain != name:
        op = tensors.op_of(f"torch.Tensor.{plain}") or plain
    if op or name in tensors.policy() or name in tensors.BOOLEAN or name in tensors.INTEGER:
        in_place = plain != name
        result = operations.operation(m, op or name, (tensor, *given.args), given.kwargs, node, world, frame, in_place)
        return [(result, world)]
    if name in ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "new"):
        dtype = tensors.dtype_of(given.kwargs.get("dtype")) or tensor.dtype
        made = Tensor(dtype, tensor.trust, made=name, node=node, parents=(tensor,), identity=serial())
        if name in ("new_full", "new_tensor"):
            operations.tell(m, name.removeprefix("new_"), given.args, given.kwargs, made, node, world, frame)
        return [(made, world)]
    for value in given.values():
        protocol.hand_over(world, value)
    return [(tensors.opaque((tensor, *given.values()), world, node) or Tensor(identity=serial()), world)]


def _converted(tensor: Tensor, name: str, given: Arguments, node: ast.AST) -> Value:
    """x.to(…), x.type(…), x.type_as(…)."""
    if name == "type_as" or (given.args and isinstance(given.args[0], Tensor)):
        other = given.args[0] if given.args else NONE
        dtype = other.dtype if isinstance(other, Tensor) else ""
        return replace(tensors.cast(tensor, dtype, node, "to"), trust=getattr(other, "trust", 2))
    for value in (*given.args, given.kwargs.get("dtype")):
        dtype = tensors.dtype_of(value)
        if dtype:
            return tensors.cast(tensor, dtype, node, "float" if dtype == "float32" else "to")
        if value == sym("dtype", "low"):  # x.dtype of a tensor that is taken to be half
            return replace(tensors.cast(tensor, "low", node, "to"), trust=ASSUMED)
    if any(isinstance(value, Sym) and value.kind in ("dtype", "argument", "attr") for value in given.values()):
        unknown = given.kwargs.get("dtype") is not None or any(
            isinstance(v, Sym) and (v.kind == "dtype" or (v.kind == "attr" and v.parts[-1] == "dtype"))
            for v in given.args
        )
        if unknown:
            return tensors.cast(tensor, "", node, "to")
    return operations.view(tensor, shaped=True)  # to another device


# -- parameters and gradients ------------------------------------------------------------------------------------------


def parameter_method(
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
    if isinstance(owner, Parameter) and (name in tensors.CASTS or name in ("to", "type")):
        dtypes = (d for d in map(tensors.dtype_of, given.values()) if d)
        return [(replace(owner, dtype=tensors.CASTS.get(name) or next(dtypes, owner.dtype)), world)]
    if name == "requires_grad_":
        if given.args[:1] == (FALSE,):
            training.freeze(owner.of, world)
        return [(owner, world)]
    if name in ("float", "half", "bfloat16", "to", "cuda", "detach", "clone", "view", "t", "transpose"):
        return [(owner, world)]
    op = tensors.op_of(f"torch.Tensor.{name}")
    if op:
        return [(operations.operation(m, op, (owner, *given.args), given.kwargs, node, world, frame), world)]
    return [(owner, world)]


def gradient_method(
    m: Machine, owner: Gradient, name: str, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    if name in ("zero_", "fill_"):
        if not _of_some(node, frame):
            training.zero_gradients(m, owner.of, node, world, frame)
    elif name in ("clamp_", "clamp", "clip_", "clamp_min_", "clamp_max_"):
        training.clip(m, owner.of, "hand", node, world, frame)
    elif name in training.BY_SIZE:
        training.read_gradient(m, owner.of, name, node, world, frame)
        return [(fresh("number"), world)]
    elif name in ("add_", "sub_") and not any(isinstance(value, Gradient) for value in given.args):
        training.read_gradient(m, owner.of, name, node, world, frame)
    elif name in ("isnan", "isinf", "isfinite", "nan_to_num_"):
        return [(fresh("number"), world)]
    elif name in _LINEAR and any(_from_scale(value) for value in given.values()):
        for optimizer in protocol.owners(world, owner.of)[0]:  # unscaled by hand: p.grad.mul_(1 / scaler.get_scale())
            world.set("gradients", optimizer, protocol.UNKNOWN["gradients"])
    return [(owner, world)]


def _of_some(node: ast.AST, frame: Frame) -> bool:
    """Whether a loop over parameters sets some gradients only to zero, by what they are: `if p.grad.isnan().any():`.
    What asks whether there is a gradient at all leaves out none."""
    for above in frame.module.ancestors(node):
        if isinstance(above, ast.For | ast.AsyncFor | ast.While | ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        if isinstance(above, ast.If) and any(
            not all(isinstance(op, ast.Is | ast.IsNot) for op in part.ops)
            if isinstance(part, ast.Compare)
            else isinstance(part, ast.Call) and ast.unparse(part.func) not in ("hasattr", "getattr", "isinstance")
            for part in walk(above.test)
        ):
            return True
    return False


def _from_scale(value: Value) -> bool:
    return isinstance(value, Sym) and (
        value.kind == "scale of" or any(isinstance(part, Value) and _from_scale(part) for part in value.parts)
    )
