"""PyTorch's type promotion: the dtype of an operation on tensors of several dtypes.

Source: docs.pytorch.org/docs/stable/tensor_attributes.html#type-promotion-doc
"""

from collections.abc import Iterable

from amplint.source.symbols import is_number
from amplint.source.values import (
    KNOWN,
    Choice,
    Const,
    Items,
    Many,
    Parameter,
    Parameters,
    Question,
    Sym,
    Tensor,
    Value,
)

_RANK = {"bool": 0, "integer": 1, "low": 2, "float16": 2, "bfloat16": 2, "float32": 3, "float64": 4, "complex": 5}
_FLOAT = 2
_CATEGORY = {"bool": 0, "integer": 1, "complex": 3}  # the others are floats
# What makes of tensors without dimensions, and of numbers, one without.
_POINTWISE = frozenset(
    "sqrt rsqrt exp log log2 log10 sin cos abs neg add sub mul div pow to type float double half bfloat16 long".split()
)


def promote(operands: Iterable[Value], scalar: bool = False) -> tuple[str, int]:
    """The dtype that PyTorch's type promotion gives, and how far it can be trusted. With `scalar` an unknown operand is
    taken for a number: what one multiplies or divides a tensor by, if it is not known to be a tensor. A tensor without
    dimensions counts only where it is of a higher category (integer, float, complex) than those that have some."""
    operands = tuple(operands)
    lone = [one for one in operands if has_no_dimension(one)]
    others = [one for one in operands if not has_no_dimension(one) and not is_number(one)]
    if lone and others:
        dtype, trust = _widest(others, scalar)
        if dtype and _CATEGORY.get(_widest(lone)[0], _FLOAT) <= _CATEGORY.get(dtype, _FLOAT):
            return dtype, trust
    return _widest(operands, scalar)


def has_no_dimension(value: Value, depth: int = 4) -> bool:
    """Whether a tensor is surely made of one number, `torch.tensor(3.0)`, or computed from such ones alone."""
    if not isinstance(value, Tensor) or not value.parents or depth == 0:
        return False
    if value.made in ("tensor", "as_tensor"):
        return is_number(value.parents[0])
    tensors = [part for part in value.parents if not is_number(part)]
    return value.made in _POINTWISE and bool(tensors) and all(has_no_dimension(part, depth - 1) for part in tensors)


def _widest(operands: Iterable[Value], scalar: bool = False) -> tuple[str, int]:
    """The widest dtype of the operands, and how far it can be trusted."""
    dtype, trust = "", KNOWN
    for operand in operands:
        match operand:
            case Tensor():
                found, how = operand.dtype, operand.trust
            case Parameter() | Parameters():
                found, how = (operand.dtype if isinstance(operand, Parameter) else "") or "float32", KNOWN
            case Const():
                continue  # Python scalars do not promote
            case Choice() if isinstance(operand.yes, Const) or isinstance(operand.no, Const):
                other = operand.no if isinstance(operand.yes, Const) else operand.yes
                default = isinstance(operand.formula, Question) and operand.formula.kind == "given"
                if isinstance(other, Const) or default or is_number(other):
                    continue  # a parameter with a number by default: what else it is given will be one, too
                found, how = _widest((other,))
            case Choice():
                found, how = _widest((operand.yes,))
                if _widest((operand.no,))[0] != found:
                    return "", KNOWN
            case Sym() if scalar or is_number(operand):
                continue
            case Items(items=items):
                inner = [one for one in items if not isinstance(one, Const)]
                if not inner:
                    continue
                found, how = _widest(inner)
            case Many(item=Tensor() as item):
                found, how = item.dtype, item.trust
            case Sym() | Many():
                found, how = "", KNOWN
            case _:
                continue
        if found == "":
            return "", KNOWN
        if dtype == "" or _RANK[found] > _RANK[dtype]:
            dtype, trust = found, how
        elif _RANK[found] == _RANK[dtype]:
            trust = min(trust, how)
            if found != dtype:
                dtype = "float32" if {found, dtype} == {"float16", "bfloat16"} else "low"
    return dtype, trust
