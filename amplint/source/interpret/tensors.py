"""Tensors: the dtype that an operation's result has under the autocast policy, and where tensors come from.

The policy is data (rules/ops.toml). What cannot be known stays "".
"""

from __future__ import annotations

import ast
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from amplint import knowledge
from amplint.source.interpret import conditions
from amplint.source.interpret.promotion import promote
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh, held_in, serial
from amplint.source.values import (
    ASSUMED,
    FALSE,
    GIVEN,
    KNOWN,
    Autocast,
    Choice,
    Const,
    Device,
    Gradient,
    Items,
    Lib,
    Many,
    Mapping,
    Owners,
    Parameter,
    Parameters,
    Region,
    Sym,
    Tensor,
    Value,
)

HALF = ("float16", "bfloat16", "low")
DTYPES = {
    **dict.fromkeys(("float16", "half", "HalfTensor"), "float16"),
    **dict.fromkeys(("bfloat16", "BFloat16Tensor"), "bfloat16"),
    **dict.fromkeys(("float32", "float", "FloatTensor"), "float32"),
    **dict.fromkeys(("float64", "double", "DoubleTensor"), "float64"),
    **dict.fromkeys(("int64", "long", "int32", "int", "int16", "short", "int8", "uint8", "LongTensor"), "integer"),
    "bool": "bool",
    **dict.fromkeys(("complex64", "complex128", "cfloat"), "complex"),
}
CASTS = {  # what a method of this name makes of a tensor
    "half": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "double": "float64",
    "long": "integer",
    "int": "integer",
    "bool": "bool",
}
# Methods and functions whose result holds the same numbers in the same dtype.
VIEWS = frozenset(
    (
        "view reshape transpose permute contiguous squeeze unsqueeze expand expand_as flatten unflatten t movedim "
        "swapaxes repeat repeat_interleave clone roll flip narrow index_select gather take select view_as "
        "reshape_as chunk split tensor_split unbind requires_grad_ retain_grad cuda cpu triu tril diagonal "
        "as_strided unfold pin_memory broadcast_to rearrange repeat tile swapdims T mT H data real"
    ).split()
)
NUMBERS = frozenset(("item tolist numpy size dim numel stride storage_offset get_device ndimension nelement").split())
BOOLEAN = frozenset(
    ("eq ne lt le gt ge isnan isinf isfinite logical_and logical_or logical_not logical_xor bool all any").split()
)
INTEGER = frozenset(("argmax argmin argsort long int nonzero searchsorted bincount floor_divide").split())
COMPLEX = frozenset(
    (
        "fft_fft fft_ifft fft_rfft fft_fft2 fft_ifft2 fft_rfft2 fft_fftn fft_ifftn fft_rfftn complex view_as_complex"
    ).split()
)
REAL = frozenset("fft_irfft fft_irfft2 fft_irfftn fft_hfft istft abs".split())  # of complex numbers
# Ops whose result has the dtype of a layer's weights, outside autocast.
WEIGHTED = frozenset(
    (
        "linear bilinear embedding embedding_bag conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
        "conv_transpose3d"
    ).split()
)
LOSSES = frozenset(
    (
        "cross_entropy_loss nll_loss nll_loss_nd mse_loss l1_loss smooth_l1_loss huber_loss kl_div ctc_loss "
        "poisson_nll_loss binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss "
        "hinge_embedding_loss margin_ranking_loss triplet_margin_loss soft_margin_loss multi_margin_loss "
        "multilabel_margin_loss gaussian_nll_loss multilabel_soft_margin_loss triplet_margin_with_distance_loss "
        "cross_entropy"
    ).split()
)


@cache
def _aliases() -> dict[str, str]:
    return dict(knowledge.ops()["aliases"])


@cache
def _several() -> frozenset[str]:
    return frozenset(knowledge.ops()["several"])


@cache
def _known() -> frozenset[str]:
    return frozenset(_aliases().values())


@cache
def policy(device: str = "cuda") -> dict[str, str]:
    """Op → "lower", "fp32", "promote" or "banned"."""
    lists = knowledge.ops()[device]
    table = dict.fromkeys(lists["lower"], "lower")
    for group in ("fp32", "fp32_set_opt_dtype", "fp32_append_dtype"):
        table |= dict.fromkeys(lists.get(group, ()), "fp32")
    table |= dict.fromkeys(lists.get("promote", ()), "promote")
    table |= dict.fromkeys(lists.get("banned", ()), "banned")
    table |= {op: table[through] for op, through in knowledge.ops().get("decomposes", {}).items() if through in table}
    return table


@cache
def only_float16(device: str = "cuda") -> frozenset[str]:
    """Ops that autocast casts to float16 whatever the dtype of its region."""
    return frozenset(knowledge.ops()[device].get("float16", ()))


def op_of(name: str) -> str:
    """The op that a dotted library name calls, or ""."""
    return _aliases().get(name, "")


def dtype_of(value: Value | None) -> str:
    """The dtype that `torch.float16`, "float16" … names, or ""."""
    match value:
        case Lib():
            return DTYPES.get(value.name.removeprefix("torch.").removeprefix("cuda."), "")
        case Const(value=str() as text):
            return DTYPES.get(text.removeprefix("torch.").removeprefix("cuda."), "")
    return ""


def region_of(world: World) -> Region | None:
    """The innermost autocast region if it is (or may be) enabled."""
    for context in reversed(world.contexts):
        if isinstance(context, Region):
            return context if enabled(context, world) else None
    return None


def enabled(region: Region, world: World) -> bool:
    """False only where the region is known to be disabled."""
    from amplint.source.interpret.conditions import truth

    if in_float32(region, world.facts):
        return False
    return world.known(truth(region.autocast.enabled)) is not False


def in_float32(region: Region, facts: conditions.Facts) -> bool:
    """Whether autocast is given float32 where these answers hold: it is off then."""
    dtype = region.autocast.dtype
    return dtype is not None and all(dtype_of(side) == "float32" for side in conditions.sides(dtype, facts) or [dtype])


def region_dtype(region: Region) -> str:
    """What autocast casts to in a region: "float16", "bfloat16" or "low"."""
    if region.assumed:
        return "low"
    if region.autocast.dtype is None:
        return "float16" if device_type(region.autocast.device) in ("cuda", "mps", "xpu") else "low"
    dtype = dtype_of(region.autocast.dtype)
    return dtype if dtype in HALF else "low"


def device_type(value: Value | None) -> str:
    """ "cuda", "cpu" … where the device is a constant, else ""."""
    match value:
        case Const(value=str() as text):
            return text.partition(":")[0]
        case Device():
            return value.type
    return ""


def tensors_in(values: Iterable[Value]) -> Iterator[Tensor]:
    """All tensors in values, inside containers too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Items | Many | Mapping | Choice):
            yield from tensors_in((value.yes, value.no) if isinstance(value, Choice) else held_in(value))


def provenance(values: Iterable[Value]) -> tuple[Owners, Region | None, Any]:
    """The models, the autocast region and the scaler that anything in `values` came from."""
    of: set[Value] = set()
    region = None
    scaler = None
    for tensor in tensors_in(values):
        of |= tensor.of
        region = region or tensor.region
        scaler = scaler or tensor.scaler
    return frozenset(of), region, scaler


def settled(value: Value, world: World) -> Value:
    """A value without the sides of choices that cannot be here."""
    match value:
        case Choice():
            known = world.known(value.formula)
            if known is not None:
                return settled(value.yes if known else value.no, world)
            yes, no = settled(value.yes, world), settled(value.no, world)
            unchanged = yes is value.yes and no is value.no
            return value if unchanged else conditions.choice(value.formula, yes, no)
        case Items():
            return Items(tuple(settled(item, world) for item in value.items), value.kind)
    return value


def is_scale(value: Value) -> bool:
    """Whether a number was computed from a scaler's scale."""
    match value:
        case Sym(kind="scale of"):
            return True
        case Sym(kind="op" | "unary" | "call", parts=parts):
            return any(isinstance(part, Value) and is_scale(part) for part in parts)
        case Choice():
            return is_scale(value.yes) or is_scale(value.no)
    return False


def as_known(value: Value, world: World, depth: int = 6) -> Value:
    """A tensor as this world has it: whether a part of it comes from a region may have hung on what is known by now."""
    value = settled(value, world)
    if depth == 0:
        return value
    match value:
        case Choice():
            yes, no = as_known(value.yes, world, depth - 1), as_known(value.no, world, depth - 1)
            return value if yes is value.yes and no is value.no else replace(value, yes=yes, no=no)
        case Tensor(region=Region()):
            parents = tuple(as_known(parent, world, depth - 1) for parent in value.parents)
            if any(new is not old for new, old in zip(parents, value.parents, strict=True)):
                inherited = value.region == provenance(value.parents)[1]
                return replace(value, parents=parents, region=provenance(parents)[1] if inherited else value.region)
    return value


def weights_of(world: World, model: Value) -> str:
    """The dtype that a model's parameters were cast to, where it is the same on every way here; else ""."""
    dtype = world.get(("dtype of", model), "dtype")
    return dtype.value if isinstance(dtype, Const) and isinstance(dtype.value, str) else ""


def _typed(value: Value, world: World) -> Value:
    """Parameters and gradients of a model that was cast, as tensors of its dtype."""
    if isinstance(value, Many):
        return Many(_typed(value.item, world))
    if isinstance(value, Parameter | Parameters | Gradient):
        dtypes = {weights_of(world, model) for model in value.of}
        dtype = dtypes.pop() if len(dtypes) == 1 else ""
        if dtype:
            return Tensor(dtype)
    return value


_COUNTS_STAY = frozenset("to float type half bfloat16 double add sub long int arange".split())  # still whole numbers


def counted(value: Value, depth: int = 4, scaled: bool = False) -> Tensor | None:
    """The torch.arange that a tensor's numbers are, shifted or cast at most, or `scaled` by a number."""
    if isinstance(value, Tensor) and value.made == "" and depth:  # one of two: `t`, or `torch.arange(t)`
        return next((one for part in value.parents if (one := counted(part, depth - 1, scaled)) is not None), None)
    if isinstance(value, Tensor) and value.made in ("stack", "cat", "meshgrid") and depth:
        parts = [counted(part, depth - 1, scaled) for part in tensors_in(value.parents)]
        return parts[0] if parts and all(parts) else None
    if not isinstance(value, Tensor) or not (value.made in _COUNTS_STAY or (scaled and value.made in ("mul", "div"))):
        return None
    if value.made == "arange":
        return value
    parents = [part for part in value.parents if isinstance(part, Tensor)]
    if value.made in ("mul", "div") and len(parents) > 1:
        return None
    return next((one for part in parents if depth and (one := counted(part, depth - 1, scaled)) is not None), None)


def operate(op: str, operands: tuple[Value, ...], world: World, node: ast.AST, dtype: Value | None = None) -> Tensor:
    """The result of `op` on `operands` here."""
    operands = tuple(settled(operand, world) for operand in operands)
    of, made_under, scaler = provenance(operands)
    if scaler is not None and op in ("mul", "div") and any(is_scale(operand) for operand in operands):
        scaler = None  # times 1 / scaler.get_scale()
    region = region_of(world)
    result, trust = _result(op, tuple(_typed(operand, world) for operand in operands), region)
    if result in ("integer", "bool") and _makes_fractions(op, operands, node):
        result = "float32"
    if dtype_of(dtype):
        result, trust = dtype_of(dtype), KNOWN
    return Tensor(
        result,
        trust,
        of,
        region or made_under,
        scaler,
        op,
        node,
        operands[:3],
        serial(),
    )


_REAL_VALUED = frozenset(
    (
        "sqrt rsqrt exp exp2 expm1 log log2 log10 log1p sin cos tan asin acos atan sinh cosh tanh sigmoid reciprocal"
    ).split()
)


def _makes_fractions(op: str, operands: tuple[Value, ...], node: ast.AST) -> bool:
    """Whether an operation on whole numbers gives floats, in torch's default dtype: a true division, a root, or
    arithmetic with a Python float."""
    if op in _REAL_VALUED or (op == "div" and isinstance(node, ast.BinOp)):
        return True
    return isinstance(node, ast.BinOp) and any(
        isinstance(one, Const) and isinstance(one.value, float) for one in operands
    )


def _deciding(op: str, operands: tuple[Value, ...]) -> tuple[Value, ...]:
    """The operands whose dtypes make the result's; the others are dims, masks, indices, numbers."""
    if op == "where" and len(operands) == 3:  # where(condition, x, y), or x.where(condition, y)
        first = operands[0]
        method = isinstance(first, Tensor) and first.dtype not in ("", "bool")
        return (first, operands[2]) if method else operands[1:]
    if op in _known() and op not in _several() and operands and isinstance(operands[0], Tensor | Parameter | Choice):
        return operands[:1]
    return operands


def _result(op: str, operands: tuple[Value, ...], region: Region | None) -> tuple[str, int]:
    if op in BOOLEAN:
        return "bool", KNOWN
    if op in INTEGER:
        return "integer", KNOWN
    if op in COMPLEX:
        return "complex", KNOWN
    dtype, trust = promote(_deciding(op, operands), scalar=op in ("mul", "div", "pow"))
    if dtype == "complex" and op in REAL:
        return "float32", trust
    if dtype in HALF and op in knowledge.ops()["no_half_kernel"]:
        return "", trust  # it raises, or does not get here in half
    if region is None or dtype in ("float64", "complex"):
        return dtype, trust
    trust_here = ASSUMED if region.assumed else KNOWN
    device = "cpu" if device_type(region.autocast.device) == "cpu" else "cuda"
    match policy(device).get(op):
        case "lower":
            lower = region_dtype(region)
            return ("float16" if lower == "bfloat16" and op in only_float16(device) else lower), trust_here
        case "fp32":
            return "float32", KNOWN
    return dtype, trust


def cast(tensor: Value, dtype: str, node: ast.AST, made: str) -> Tensor:
    """An explicit cast: `.float()`, `.to(dtype)`."""
    of, region, scaler = provenance((tensor,))
    return Tensor(dtype, KNOWN, of, region, scaler, made, node, (tensor,), serial())


def handled(site: Hashable, node: ast.AST, world: World) -> Value:
    """A region of which Accelerate's handler says whether it is on: inside another, it is there to be off."""
    return fresh("region") if region_of(world) is None else Autocast(site, enabled=FALSE, node=node)


def argument(node: ast.AST, dtype: str = "") -> Tensor:
    """What a forward that nothing calls is taken to be given: an activation in low precision, if nothing is said."""
    return Tensor(dtype or "low", GIVEN, made="argument", node=node, identity=serial())


def opaque(values: Iterable[Value], world: World, node: ast.AST, of: Owners = frozenset()) -> Tensor | None:
    """What an unknown function makes of tensors: something that depends on the same models; None without any tensor."""
    values = tuple(settled(value, world) for value in values)
    found, region, scaler = provenance(values)
    if not (found or of or region or any(True for _ in tensors_in(values))):
        return None
    choices = tuple(value for value in values if isinstance(value, Choice))[:3]  # which of them was it: see as_known()
    return Tensor("", KNOWN, found | of, region_of(world) or region, scaler, "", node, choices, serial())
