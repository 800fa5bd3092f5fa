"""Operations on tensors, told as events; tensors that are made, and views of tensors."""

from __future__ import annotations

import ast
from dataclasses import replace

from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.frames import Arguments, Frame
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.promotion import has_no_dimension
from amplint.source.interpret.world import World
from amplint.source.symbols import options, serial, sym
from amplint.source.values import ASSUMED, KNOWN, NONE, Choice, Const, Items, Sym, Tensor, Value

_LIKE = frozenset(
    ("zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_full").split()
)
FILLED = frozenset(("full", "full_like", "tensor", "as_tensor"))  # what is made holds a given number
TOLD = FILLED | {"arange"}
PICKS = frozenset("max min sort topk median nanmedian mode kthvalue cummax cummin".split())  # values and their indices
_EACH = frozenset(("grad", "binary_cross_entropy"))  # what matters wherever it is called from
_OPERANDS = (("input",), ("other", "mat2", "batch2"))  # what torch calls the first and the second
_CREATE = frozenset(("zeros ones empty full rand randn eye linspace logspace normal").split())


def operation(
    m: Machine,
    op: str,
    operands: tuple[Value, ...],
    kwargs: dict[str, Value],
    node: ast.AST,
    world: World,
    frame: Frame,
    in_place: bool = False,
    weights: str = "",
    layer: str = "",
) -> Tensor:
    """Run an op on tensors and tell of it. `weights`: the dtype of a layer's, where it was cast; `layer`: where it is
    known."""
    operands, kwargs = _in_order(operands, kwargs)
    every = (*operands, *kwargs.values())
    result = tensors.operate(op, every, world, node, kwargs.get("dtype"))
    if op.startswith("embedding") and len(operands) == 1:
        result = replace(result, dtype=weights or "float32")
    elif weights and tensors.region_of(world) is None:
        result = replace(result, dtype=weights)
    if in_place and isinstance(operands[0], Tensor):
        result = replace(result, dtype=operands[0].dtype, trust=operands[0].trust)
    tell(m, op, operands, kwargs, result, node, world, frame, layer)
    if op in tensors.LOSSES and not frame.in_model:
        m.emit(events.Loss, node, world, frame, name=op)
    return result


def _in_order(operands: tuple[Value, ...], kwargs: dict[str, Value]) -> tuple[tuple[Value, ...], dict[str, Value]]:
    """`torch.mm(input=a, mat2=b)` as `torch.mm(a, b)`."""
    for place, names in enumerate(_OPERANDS):
        name = next((one for one in names if one in kwargs), None)
        if name is None or len(operands) != place:
            break
        operands = (*operands, kwargs[name])
        kwargs = {other: value for other, value in kwargs.items() if other != name}
    return operands, kwargs


def tell(
    m: Machine,
    op: str,
    operands: tuple[Value, ...],
    kwargs: dict[str, Value],
    result: Tensor,
    node: ast.AST,
    world: World,
    frame: Frame,
    layer: str = "",
) -> None:
    """Record an op on tensors, once for operands that are alike."""
    operands = tuple(tensors.settled(one, world) for one in operands)
    every = (*operands, *kwargs.values())
    signature = tuple((v.dtype, v.made, v.trust) if isinstance(v, Tensor) else type(v).__name__ for v in every)
    calls = tuple(id(one.call) for one in frame.stack()) if op in _EACH else ()
    if m.once(op, node, signature, tensors.region_of(world), calls, layer):
        told = {"name": op, "args": operands, "kwargs": tuple(kwargs.items()), "result": result, "layer": layer}
        m.observe(events.Operation, node, world, frame, **told)


def tell_cast(m: Machine, tensor: Tensor, result: Value, node: ast.AST, world: World, frame: Frame) -> None:
    """Record that integers, or what counts by ones, become half."""
    becomes_half = isinstance(result, Tensor) and result.dtype in tensors.HALF and tensor.dtype not in tensors.HALF
    if becomes_half and (tensor.dtype == "integer" or tensors.counted(tensor) is not None):
        tell(m, "cast", (tensor,), {}, result, node, world, frame)  # type: ignore[arg-type]


def created(name: str, given: Arguments, node: ast.AST) -> Tensor | None:
    """A tensor made from nothing: torch.zeros, torch.arange, …"""
    if not name.startswith("torch."):
        return None
    last = name.rpartition(".")[2]
    asked = given.kwargs.get("dtype", NONE)
    dtype = "low" if asked == sym("dtype", "low") else tensors.dtype_of(asked)
    trust = ASSUMED if dtype == "low" else KNOWN  # x.dtype of a tensor that is taken to be half

    def otherwise(default: str) -> str:
        return default if asked == NONE else dtype

    if last in _CREATE:
        return Tensor(otherwise("float32"), trust, made=last, node=node, identity=serial())
    if last in ("arange", "randint", "randperm"):
        floats = any(isinstance(value, Const) and isinstance(value.value, float) for value in given.args)
        kind = otherwise("float32" if floats else "integer")
        return Tensor(kind, trust, made=last, node=node, parents=given.args, identity=serial())
    if last in ("tensor", "as_tensor", "from_numpy"):
        of, region, scaler = tensors.provenance(given.args)
        kind = otherwise(_constant_dtype(given.args[0] if given.args else NONE))
        return Tensor(
            kind, trust, frozenset() if last == "tensor" else of, region, scaler, last, node, given.args[:1], serial()
        )
    if last in _LIKE and given.args and isinstance(given.args[0], Tensor | Choice):
        like = [one for one in options(given.args[0]) if isinstance(one, Tensor)]
        if like:
            same = len({one.dtype for one in like}) == 1
            kind = dtype or (like[0].dtype if same else "")
            return Tensor(kind, min(one.trust for one in like), made=last, node=node, identity=serial())
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


def view(tensor: Tensor, deeper: bool = False, shaped: bool = False) -> Tensor:
    """The same numbers in another shape. `deeper`: an element of what may be a tuple of tensors; `shaped`: surely in
    the same shape."""
    if tensor.made == "" and deeper:
        return replace(tensor, identity=serial())
    if not shaped and has_no_dimension(tensor):  # it may have some now
        return replace(tensor, identity=serial(), made="view", parents=(tensor,))
    return replace(tensor, identity=serial(), parents=(tensor,) if tensor.made == "" else tensor.parents)


def pair(tensor: Tensor, index: object) -> Tensor | None:
    """A part of what gives values and indices: `values, indices = x.max(dim)`; None for any other tensor."""
    whole = tensor.made in PICKS and not any(isinstance(part, Tensor) for part in tensor.parents[1:])
    if not whole or type(index) is not int or index not in (0, 1):
        return None
    values = replace(tensor, made="values", parents=(tensor,), identity=serial())
    return replace(values, dtype="integer", trust=KNOWN, made="indices") if index == 1 else values


def view_any(value: Value, node: ast.AST) -> Value:
    match value:
        case Tensor():
            return view(value)
        case Items() if value.items:
            return view_any(value.items[0], node)
        case Sym():
            return sym("item", value, "view")
    return value
