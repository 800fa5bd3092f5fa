"""A mark's words: how large, why, and what to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from amplint.graph.marks.facts import Facts, name, origin
from amplint.rewrite.islands.traced import HALF_LAYER

PRODUCTS = frozenset("matmul mm bmm baddbmm addmm einsum scaled_dot_product_attention dot mv addbmm".split())
LAYERS = frozenset("linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d".split())
SUMS = frozenset("sum mean cumsum cumprod prod logsumexp norm linalg_vector_norm var std trace avg_pool2d".split())
_OPERATORS = {"mul": "*", "add": "+", "sub": "-", "rsub": "-", "div": "/", "matmul": "@", "pow": "**"}


def number(value: float) -> str:
    """1234.5 → 1230; 1.23e+05 → 1.2e5."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bits(value: float) -> str:
    count = f"{abs(value):.1f}"
    return f"{count} bit" if count == "1.0" else f"{count} bits"


def operation(node: fx.Node) -> str:
    """What a reader of the source calls it."""
    called = name(node) or node.name
    return _OPERATORS.get(called, called.lstrip("_"))


def shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def grown(node: fx.Node, facts: Facts) -> str:
    """Which factor made a value large, in words with numbers."""
    parts = []
    tensors = [one for one in node.all_input_nodes if shape(one) or name(one)]
    sizes = {one: size for one in tensors if (size := facts.largest(one)) is not None}
    called = name(node)

    def up_to(what: str, nodes: list[fx.Node]) -> list[str]:
        return [f"{what} up to {number(sizes[one])}" for one in nodes if one in sizes]

    if called in PRODUCTS or called in LAYERS:
        given = [one for one in tensors if facts.captured.kinds.get(one.name) != "parameter"]
        weights = [one for one in tensors if facts.captured.kinds.get(one.name) == "parameter"]
        length = _length(node, called, tensors)
        if length:
            parts.append(f"a sum over {length} products")
        parts += [*up_to("values", given[:2]), *up_to("weights", weights[:1])]
        if len(given) >= 2 and origin(given[0], True) is origin(given[1], True):
            parts.append("a product with itself, whose diagonal is a sum of squares")
    elif called in SUMS and tensors:
        length = _reduced(node, tensors[0])
        parts += [f"a sum over {length} values"] if length > 1 and called != "mean" else []
        parts += up_to("values", tensors[:1])
    elif called in ("mul", "square", "pow"):
        same = len(tensors) == 2 and origin(tensors[0], True) is origin(tensors[1], True)
        if called != "mul" or same or len(node.all_input_nodes) == 1 == len(set(node.args[:2])):
            parts += up_to("a power of values", tensors[:1])
        else:
            parts += [f"a product of {_and(number(sizes[one]) for one in tensors if one in sizes)}"] if sizes else []
            scalars = [one for one in node.args[:2] if isinstance(one, int | float)]
            parts += [f"times {number(float(scalars[0]))}"] if scalars else []
    else:
        parts += [f"operands up to {_and(number(sizes[one]) for one in tensors[:2] if one in sizes)}"] if sizes else []
    if not parts and (found := facts.ranges.get(node)) and found.why:
        parts.append(f"{found.why[0]} {number(found.why[1])}")
    return ", ".join(parts)


def _and(words: Any) -> str:
    return " and ".join(words)


def _length(node: fx.Node, called: str, tensors: list[fx.Node]) -> int:
    shapes = [shape(one) for one in tensors if len(shape(one)) >= 1]
    if called == "scaled_dot_product_attention" or not shapes:
        return 0
    if called in LAYERS and called != "linear":
        weight = shapes[1] if len(shapes) > 1 else ()
        return _product(weight[1:])
    if called == "einsum":
        return _summed(node, [shape(one) for one in tensors])
    return shapes[0][-1] if called in ("matmul", "linear", "mm", "bmm", "mv", "dot") else shapes[-1][0]


def _summed(node: fx.Node, shapes: list[tuple[int, ...]]) -> int:
    """How many products an einsum adds up; 0 where its equation is not a plain one."""
    left, _, out = str(node.args[0]).replace(" ", "").partition("->")
    labels = left.split(",")
    if "..." in left or "->" not in str(node.args[0]) or len(labels) < len(shapes):
        return 0
    sizes = {
        label: size
        for names, held in zip(labels, shapes, strict=False)
        for label, size in zip(names, held, strict=False)
    }
    return _product(size for label, size in sizes.items() if label not in out)


def _reduced(node: fx.Node, operand: fx.Node) -> int:
    return max(_product(shape(operand)) // max(_product(shape(node)), 1), 1)


def _product(sizes: Any) -> int:
    result = 1
    for size in sizes:
        result *= int(size)
    return result


def remedy(node: fx.Node, facts: Facts) -> str:
    """What to do against an overflow."""
    called, dtype = name(node), dtype_name(facts.half(node) or facts.captured.precision.dtype)
    bf16 = "" if dtype == "bfloat16" else "; or train in bfloat16"
    given = [one for one in node.all_input_nodes if facts.captured.kinds.get(one.name) != "parameter"]
    if called in PRODUCTS and len(given) >= 2 and origin(given[0], True) is origin(given[1], True):
        return f"divide an operand by the number of terms before the product, or compute it in float32{bf16}"
    if called in PRODUCTS:
        return f"scale an operand before the product (q * scale @ k.T), or compute it in float32{bf16}"
    if called in LAYERS and any(facts.half(one) for one in node.all_input_nodes if one not in given):
        return f"{HALF_LAYER} and a float32 input{bf16}"
    if called in LAYERS:
        return f"compute it in float32 (autocast off, .float() on its input), or make its weights smaller{bf16}"
    if called in ("mul", "pow", "square"):
        return f"compute it in float32: .float() on its operand{bf16}"
    if called in SUMS:
        return f"sum in float32: .float() on its operand, or divide before the sum{bf16}"
    return f"compute it in float32: .float() on its operands{bf16}"
