"""The analysis of whole graphs: self-products, masks, infinities, in-place writes, weights without data; and a fuzz."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.exported import export
from amplint.graph.policy import cuda_policy
from amplint.graph.ranges import Declared, Range, analyse
from amplint.graph.run import run

aten = torch.ops.aten


class Model(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any], **weights: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in weights.items():
            self.register_parameter(name, nn.Parameter(value, requires_grad=value.is_floating_point()))

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args, **dict(self.named_parameters()))


def captured(function: Callable[..., Any], *args: Tensor, **weights: Tensor) -> Captured:
    with cuda_policy():
        return export(Model(function, **weights), args, {}, Precision())


def normal(found: Captured) -> dict[str, Declared]:
    names = [name for name, kind in found.kinds.items() if kind == "input" and found.values[name].is_floating_point()]
    return dict.fromkeys(names, Declared(-6, 6))


def ranges_of(function: Callable[..., Any], *args: Tensor, **weights: Tensor) -> dict[str, Range]:
    """By the name of the node; "out" is the last one."""
    found = captured(function, *args, **weights)
    named = {node.name: one for node, one in analyse(found, normal(found), strict=True).items()}
    return named | {"out": list(named.values())[-1]}


X = torch.randn(8, 16, 64, generator=torch.Generator().manual_seed(1)).clamp(-6, 6)


def bits(function: Callable[..., Any], *args: Tensor) -> float:
    """log2 of the estimate of the largest |x| beside the median of runs."""
    out = ranges_of(function, *args)["out"]
    assert out.amax is not None
    torch.manual_seed(0)
    sizes = sorted(float(function(*(torch.randn_like(one) for one in args)).abs().max()) for _ in range(5))
    return math.log2(out.amax / sizes[2])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * x,
        lambda x: x * x * x,
        lambda x: x**3 + x,
        lambda x: x * torch.sigmoid(x),
        lambda x: 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.044715 * x**3))),
        lambda x: x * x.clone(),
        lambda x: x @ x.transpose(-1, -2),
        lambda x: (x * x).sum(-1),
        lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda x: x - x.mean(-1, keepdim=True),
        lambda x: F.normalize(x, dim=-1),
        lambda x: torch.exp(x - x.amax(-1, keepdim=True)),
        lambda x: x[..., :32] * torch.sigmoid(x[..., 32:]),
        lambda x: torch.softmax(x[..., :32] @ x[..., 32:].transpose(-1, -2) * 0.177, -1) @ x,
    ],
)
def test_what_depends_on_itself(function: Callable[[Tensor], Tensor]) -> None:
    assert abs(bits(function, X)) < 0.9


@pytest.mark.parametrize(
    ("function", "bound"),
    [
        (lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6), 8.1),
        (lambda x: x * (x * x).mean(-1, keepdim=True).add(1e-6).rsqrt(), 8.1),
        (lambda x: F.normalize(x, dim=-1), 1.01),
        (lambda x: x / x.norm(dim=-1, keepdim=True), 1.01),
        (lambda x: torch.exp(x - x.amax(-1, keepdim=True)), 1.01),
        (lambda x: (e := torch.exp(x)) / e.sum(-1, keepdim=True), 1.01),
        (lambda x: torch.softmax(x, -1) @ x[0].T, 6.1),
        (lambda x: F.layer_norm(x * 1e6, (64,)), 8.1),
    ],
)
def test_bounds_that_plain_intervals_miss(function: Callable[[Tensor], Tensor], bound: float) -> None:
    out = ranges_of(function, X)["out"]
    assert max(-out.low, out.high) <= bound


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.norm(dim=1),  # of a square matrix: the norm of a row divides a column
        lambda x: x / (x * x).sum(0, keepdim=True).sqrt().view(8, 1),
        lambda x: x / x.norm(dim=1).expand(8, 8),
        lambda x: x - x.amax(1),
        lambda x: x * torch.rsqrt(x.pow(2).mean(1)),
    ],
)
def test_a_norm_bounds_what_it_is_the_norm_of(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.ones(8, 8)
    x[0] = 1e-3
    found = captured(function, x)
    _sound(found, analyse(found, dict.fromkeys(found.values, Declared(-2, 2)), strict=True))


def test_mask_is_harmless() -> None:
    def function(x: Tensor) -> Tensor:
        scores = x @ x.transpose(-1, -2) / 8
        mask = torch.full((16, 16), float("-inf")).triu(1)
        return torch.softmax(scores + mask, -1)

    found = ranges_of(function, X)
    added = found["add"]
    assert added.masked and not added.infinite and added.low == -math.inf
    assert added.amax is not None and 5 < added.amax < 30  # without what the mask hides
    assert not any(one.infinite for one in found.values())


def test_filled_mask_is_harmless_and_its_use_is_not() -> None:
    hidden = torch.arange(16) > 8

    def filled(x: Tensor) -> Tensor:
        return (x @ x.transpose(-1, -2)).masked_fill(hidden, -65504.0)

    found = ranges_of(lambda x: torch.softmax(filled(x), -1), X)
    assert found["masked_fill"].masked
    assert not ranges_of(lambda x: filled(x) * 2, X)["masked_fill"].masked


def test_log_of_zero_that_where_discards_is_harmless() -> None:
    def bucket(x: Tensor) -> Tensor:
        far = torch.arange(16)
        large = torch.log(far.float() / 4) + 4
        return x[..., :16] + torch.where(far < 4, far.float(), large)

    found = ranges_of(bucket, X)
    assert found["log"].masked and not found["log"].infinite
    assert not found["out"].infinite and found["out"].high < 25


def test_log_of_relu_is_infinite() -> None:
    found = ranges_of(lambda x: torch.log(torch.relu(x)) * 2, X)
    assert found["log"].infinite
    assert not ranges_of(lambda x: torch.log(torch.sigmoid(x)) * 2, X)["log"].infinite
    assert ranges_of(lambda x: 1 / torch.relu(x), X)["out"].infinite


def test_constants_are_exact() -> None:
    found = ranges_of(lambda x: x * torch.arange(64).float().div(10000.0).neg().exp(), X)
    exact = found["exp"].exact
    assert exact is not None and torch.allclose(exact, torch.exp(-torch.arange(64) / 10000.0))
    assert found["out"].high <= 6.1


@pytest.mark.parametrize(("scale", "share"), [(2.0**-27, 1.0), (2.0**-25, 0.68), (2.0**-22, 0.1), (2.0**-15, 0.0)])
def test_share_that_is_flushed(scale: float, share: float) -> None:
    out = ranges_of(lambda x: x * scale, X)["out"]
    assert out.tiny == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("function", "weights", "cause"),
    [
        (F.linear, {"weight": torch.randn(64, 64) * 100}, "weight norm"),
        (lambda x: x.sum((1, 2)), {}, "reduction length"),
        (lambda x: (x * 3e4) @ (x * 2).transpose(-1, -2), {}, "input range"),
        (lambda x: (x + 1).transpose(1, 2) @ (x + 1), {}, "reduction length"),
    ],
)
def test_the_cause(function: Callable[..., Tensor], weights: dict[str, Tensor], cause: str) -> None:
    why = ranges_of(function, X, **weights)["out"].why
    assert why is not None and why[0] == cause


def test_writes_in_place_reach_views_and_bases() -> None:
    def function(x: Tensor) -> Tensor:
        base = x.clone()
        view = base[:, 2:4]
        view.mul_(1000.0)
        other = base.view(8, -1)
        base.add_(1.0)
        return torch.cat([view.flatten(1), other], 1) + 1

    found = captured(function, X)
    _sound(found, analyse(found, normal(found), strict=True))


def test_weights_without_data() -> None:
    found = captured(
        lambda x, weight, bias: F.linear(x, weight, bias), X, weight=torch.randn(32, 64), bias=torch.zeros(32)
    )
    found.values |= {name: value.to("meta") for name, value in found.values.items() if found.kinds[name] == "parameter"}
    out = list(analyse(found, normal(found)).values())[-1]
    assert (out.low, out.high) == (-math.inf, math.inf)
    assert out.var == pytest.approx(1 / 3, rel=0.1)  # uniform by fan-in: 64 · 1/(3 · 64)
    weight = next(name for name, kind in found.kinds.items() if kind == "parameter" and found.values[name].ndim == 2)
    out = list(analyse(found, normal(found) | {weight: Declared(-1, 1, 0, 0.5)}).values())[-1]
    assert out.var == pytest.approx(16, rel=0.1)


def test_unknown_operation_is_named() -> None:
    found = captured(lambda x: torch.linalg.inv(x[:, :, :16]) + 1, X)
    out = list(analyse(found, normal(found), strict=True).values())[-1]
    assert out.amax is None and (out.low, out.high) == (-math.inf, math.inf)
    assert "linalg_inv" in out.unknown


def test_a_batch_at_hand_is_one_of_many() -> None:
    found = captured(lambda x: x * 2, X)
    out = list(analyse(found).values())[-1]
    assert out.exact is None and out.high > 1.5 * float(X.max()) * 2
    assert out.amax == pytest.approx(float(X.abs().max()) * 2, rel=0.01)


def _sound(found: Captured, ranges: dict[fx.Node, Range]) -> None:
    wrong = []

    def seen(node: fx.Node, value: Any) -> Any:
        if isinstance(value, Tensor) and node in ranges and value.numel() and not value.is_complex():
            held = value.double()
            held = held[~torch.isnan(held)]
            if held.numel() and not (ranges[node].low <= float(held.min()) and float(held.max()) <= ranges[node].high):
                wrong.append((node, float(held.min()), float(held.max()), ranges[node].low, ranges[node].high))
        return value

    with torch.no_grad():
        run(found, seen)
    assert not wrong, f"{wrong[0]}\n{found.graph.graph}"


def test_the_likeliest_class_has_a_logarithm_of_zero() -> None:
    """Found by a random program: FP32 rounds away what the other classes add."""
    found = captured(lambda x: 1 / F.log_softmax(x, 0), torch.tensor([40.0, -40.0, 0.0]))
    _sound(found, analyse(found, {"x": Declared(-60, 60)}, strict=True))


def test_the_inverse_root_of_minus_zero_is_minus_infinite() -> None:
    """Found by a random program: what dropout drops of a negative number is -0."""
    found = captured(lambda x, keep: torch.rsqrt(x * keep), torch.tensor([-2.0, 2.0]), torch.tensor([0.0, 1.0]))
    _sound(found, analyse(found, {"x": Declared(-3, 3), "keep": Declared(0, 1)}, strict=True))


@pytest.mark.parametrize(
    "shrinks", [torch.log, torch.log1p, torch.asinh, lambda x: x**0.1, lambda x: x ** torch.full_like(x, 0.1)]
)
def test_what_overflowed_stays_infinite(shrinks: Callable[[Tensor], Tensor]) -> None:
    """Found by a random program: exp is infinite in FP32 from 89 on, and so is its logarithm."""
    found = captured(lambda x: shrinks(torch.exp(x)), torch.tensor([-60.0, 100.0, 1000.0]))
    _sound(found, analyse(found, {"x": Declared(-60, 1000)}, strict=True))


# Random programs on tensors of (4, 8): each step takes what earlier steps gave.
ONE: list[tuple[Any, tuple[Any, ...]]] = [
    (aten.relu.default, ()),
    (aten.gelu.default, ()),
    (aten.silu.default, ()),
    (aten.tanh.default, ()),
    (aten.sigmoid.default, ()),
    (aten.exp.default, ()),
    (aten.abs.default, ()),
    (aten.neg.default, ()),
    (aten.log.default, ()),
    (aten.sqrt.default, ()),
    (aten.rsqrt.default, ()),
    (aten.reciprocal.default, ()),
    (aten.pow.Tensor_Scalar, (2,)),
    (aten.pow.Tensor_Scalar, (3,)),
    (aten.clamp.default, (-1.0, 2.0)),
    (aten.mul.Tensor, (-3.5,)),
    (aten.add.Tensor, (100.0,)),
    (aten.rsub.Scalar, (1.0,)),
    (aten.div.Tensor, (7.0,)),
    (aten.softmax.int, (-1,)),
    (aten.log_softmax.int, (0,)),
    (aten.layer_norm.default, ([8],)),
    (aten.cumsum.default, (1,)),
    (aten.roll.default, ([3], [1])),
    (aten.flip.default, ([0],)),
    (aten.relu_.default, ()),
    (aten.mul_.Tensor, (2.5,)),
    (aten.clamp_.default, (-2.0, None)),
    (aten.detach.default, ()),
    (aten.dropout.default, (0.4, True)),
    (aten.tril.default, ()),
]
REDUCE = [aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.linalg_vector_norm.default]
TWO = [
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.maximum.default,
    aten.minimum.default,
    aten.add_.Tensor,
    aten.mul_.Tensor,
    aten.atan2.default,
]
STEP = st.tuples(st.integers(0, 11), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))


def program(steps: list[tuple[int, int, int, int]], seed: int, scale: float) -> Captured:
    generator = torch.Generator().manual_seed(seed)
    graph = fx.Graph()
    values = {
        "x": (torch.randn(4, 8, generator=generator) * scale).clamp(-3 * scale, 3 * scale),
        "y": torch.rand(4, 8, generator=generator) * scale,
        "weight": torch.randn(8, 8, generator=generator),
        "kernel": torch.randn(4, 4, 3, generator=generator),
    }
    kinds = {"x": "input", "y": "input", "weight": "parameter", "kernel": "parameter"}
    held: dict[fx.Node, Any] = {}
    for name, value in values.items():
        node = graph.placeholder(name)
        node.meta["val"] = held[node] = value.clone()
    pool = [node for node in held if node.name in ("x", "y")]
    weight, kernel = (node for node in held if node.name in ("weight", "kernel"))

    def call(target: Any, *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        given = fx.map_arg(args, lambda one: held[one])
        torch.manual_seed(0)
        held[node] = target(*given)
        kept = held[node]
        node.meta["val"] = tuple(one.clone() for one in kept) if isinstance(kept, tuple | list) else kept.clone()
        return node

    for kind, first, second, third in steps:
        a, b = pool[first % len(pool)], pool[second % len(pool)]
        if kind < 4:
            target, rest = ONE[third % len(ONE)]
            pool.append(call(target, a, *rest))
        elif kind < 7:
            pool.append(call(TWO[third % len(TWO)], a, b))
        elif kind == 7:
            reduce = REDUCE[third % len(REDUCE)]
            rest = (2, [1], True) if reduce is aten.linalg_vector_norm.default else ([third % 2], True)
            pool.append(call(TWO[second % 4], a, call(reduce, a if third % 3 else b, *rest)))
        elif kind == 8:
            pool.append(call(aten.linear.default, a, weight) if third % 2 else call(aten.matmul.default, a, weight))
        elif kind == 9:
            scores = call(aten.matmul.default, a, call(aten.t.default, b))
            pool.append(call(aten.matmul.default, call(aten.softmax.int, scores, -1) if third % 2 else scores, b))
        elif kind == 10:
            view = call(aten.slice.Tensor, a, 1, third % 4, third % 4 + 4)
            if third % 3 == 0:
                call(aten.mul_.Tensor, view, 30.0)
            pool.append(call(aten.cat.default, [view, call(aten.slice.Tensor, b, 1, 0, 4)], 1))
        else:
            wide = call(aten.view.default, call(aten.contiguous.default, a), [1, 4, 8])
            mixed = call(aten.conv1d.default, wide, kernel, None, [1], [1])
            where = call(aten.where.self, call(aten.gt.Scalar, b, 0.1), call(aten.view.default, mixed, [4, 8]), b)
            pool.append(where)
    graph.output(tuple(pool))
    return Captured(fx.GraphModule(nn.Module(), graph), values, kinds, Precision(), "test")


def _fuzz(steps: list[tuple[int, int, int, int]], seed: int, scale: float) -> None:
    found = program(steps, seed, scale)
    declared = {"x": Declared(-3 * scale, 3 * scale, 0, scale), "y": Declared(0, scale, scale / 2, scale * 0.29)}
    _sound(found, analyse(found, declared, strict=True))


FUZZ = given(
    st.lists(STEP, min_size=1, max_size=12), st.integers(0, 2**20), st.sampled_from([1e-6, 0.1, 1.0, 30.0, 1e4])
)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@FUZZ
def test_random_programs_stay_in_their_intervals(steps: Any, seed: int, scale: float) -> None:
    _fuzz(steps, seed, scale)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
@FUZZ
def test_many_random_programs_stay_in_their_intervals(steps: Any, seed: int, scale: float) -> None:
    _fuzz(steps, seed, scale)
