"""Every transfer function against what the operation really gives: the interval holds, the estimate is near."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from samples import SAMPLES, Given, Sample, draw
from torch import fx

from amplint.graph import ranges as package
from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.ranges import Declared, Range, analyse
from amplint.graph.ranges.transfer import TABLE

DRAWS = 3
ALL = [
    pytest.param(sample, id=f"{name}-{index}")
    for name, samples in SAMPLES.items()
    for index, sample in enumerate(samples)
]


@pytest.fixture(autouse=True)
def unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of constants go to the transfer functions, too."""
    monkeypatch.setattr(package, "_folded", lambda *_: None)


class Built:
    """A sample as a captured graph of one call, with fresh values for each draw."""

    def __init__(self, sample: Sample, dtype: torch.dtype = torch.float32) -> None:
        self.sample, self.dtype = sample, dtype
        self.generator = torch.Generator().manual_seed(0)
        self.givens: dict[str, Given] = {}
        graph = fx.Graph()
        values: dict[str, Any] = {}
        held: dict[int, fx.Node] = {}

        def place(one: Any) -> Any:
            if isinstance(one, Given):
                node = graph.placeholder(f"p{len(values)}")
                values[node.name] = self._value(one)
                self.givens[node.name] = one
                node.meta["val"] = values[node.name]
                held[id(one)] = node
                return node
            return type(one)(map(place, one)) if isinstance(one, list | tuple) else one

        # placeholders come first: fx wants them in front of calls
        args, kwargs = place(sample.args), {name: place(one) for name, one in sample.kwargs.items()}
        self.node = graph.call_function(sample.op, args, kwargs)
        self.values = values
        result = self.result()
        self.node.meta["val"] = tuple(result) if isinstance(result, list | tuple) else result
        self.parts = [self.node]
        if isinstance(result, list | tuple):
            import operator

            self.parts = [graph.call_function(operator.getitem, (self.node, index)) for index in range(len(result))]
            for part, one in zip(self.parts, result, strict=True):
                part.meta["val"] = one
        graph.output(tuple(self.parts))
        kinds = {name: "parameter" if given.kind == "weight" else "input" for name, given in self.givens.items()}
        self.captured = Captured(fx.GraphModule(torch.nn.Module(), graph), values, kinds, Precision(), "test")

    def _value(self, given: Given) -> torch.Tensor:
        value = draw(given, self.generator)
        return value.to(self.dtype).float() if value.is_floating_point() and self.dtype != torch.float32 else value

    def redraw(self) -> None:
        for name, given in self.givens.items():
            if given.kind != "weight":
                self.values[name] = self._value(given)

    def result(self) -> Any:
        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), lambda one: self.values[one.name].clone())
        torch.manual_seed(int(torch.randint(0, 2**31, (), generator=self.generator)))
        return self.sample.op(*args, **kwargs)

    def ranges(self) -> list[Range]:
        declared = {}
        for name, given in self.givens.items():
            if given.kind == "normal":
                declared[name] = Declared(given.a - 6 * given.b, given.a + 6 * given.b, given.a, given.b)
            elif given.kind == "uniform":
                declared[name] = Declared(given.a, given.b, (given.a + given.b) / 2, (given.b - given.a) / 12**0.5)
            elif given.kind == "integer":
                declared[name] = Declared(given.a, given.b - 1, (given.a + given.b) / 2, (given.b - given.a) / 12**0.5)
        found = analyse(self.captured, declared, strict=True)
        return [found[part] for part in self.parts if part in found]


def test_every_operation_has_a_sample() -> None:
    assert set(TABLE) - set(SAMPLES) == set()
    assert set(SAMPLES) - set(TABLE) == set()


@pytest.mark.parametrize("sample", ALL)
def test_against_sampled_truth(sample: Sample) -> None:
    built = Built(sample)
    ranges = built.ranges()
    largest: list[list[float]] = [[] for _ in ranges]
    for index in range(DRAWS):
        if index:
            built.redraw()
        results = built.result()
        results = (
            [one for one in results if isinstance(one, torch.Tensor)]
            if isinstance(results, list | tuple)
            else [results]
        )
        for value, one, sizes in zip(results, ranges, largest, strict=False):
            _inside(value, one)
            if value.numel() and not value.is_complex():
                sizes.append(float(value.double().abs().nan_to_num(0).max()))
    if sample.bits is None:
        return
    one, sizes = ranges[0], sorted(largest[0])
    assert one.amax is not None and not one.unknown
    true = sizes[len(sizes) // 2]
    error = math.log2(max(one.amax, 1e-30) / max(true, 1e-30)) if max(one.amax, true) > 1e-30 else 0.0
    assert abs(error) <= sample.bits, f"estimate {one.amax:.4g}, true {true:.4g}: {error:+.2f} bits"


HALF = [
    pytest.param(one.values[0], dtype, id=f"{one.id}-{dtype}", marks=() if quick else pytest.mark.slow)
    for one in ALL
    for dtype in (torch.float16, torch.bfloat16)
    if one.values[0].bits is not None
    for quick in [dtype == torch.float16 and str(one.id).endswith("-0")]
]


@pytest.mark.parametrize(("sample", "dtype"), HALF)
def test_interval_holds_in_half(sample: Sample, dtype: torch.dtype) -> None:
    """Operands and results rounded to half, as tensor cores do."""
    built = Built(sample, dtype)
    val = built.node.meta["val"]
    if not isinstance(val, torch.Tensor) or val.dtype != torch.float32:
        return
    built.node.meta["val"] = val.to(dtype)
    (one,) = built.ranges()
    for _ in range(DRAWS):
        built.redraw()
        for name, given in built.givens.items():
            if given.kind == "weight":
                built.values[name] = built.values[name].to(dtype).to(built.values[name].dtype)
        value = built.result().to(dtype)
        _inside(value[torch.isfinite(value)], one)  # what overflows is not the interval's to say


def _inside(value: torch.Tensor, one: Range) -> None:
    if value.is_complex():
        value = torch.view_as_real(value)
    value = value.double()
    value = value[~torch.isnan(value)]
    if not value.numel():
        return
    least, most = float(value.min()), float(value.max())
    assert one.low <= least and most <= one.high, f"[{least}, {most}] outside [{one.low}, {one.high}]"
