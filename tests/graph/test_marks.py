"""Marks: which node of a chain, what is no alarm, and how they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amplint.findings import Severity
from amplint.graph.calibrate import measure
from amplint.graph.capture.captured import Precision
from amplint.graph.capture.ladder import capture
from amplint.graph.marks import Mark, marks, to_finding
from amplint.graph.ranges import Declared, analyse

HALF, BF16 = torch.float16, torch.bfloat16
X = torch.randn(16, 64, generator=torch.Generator().manual_seed(7))


class Of(nn.Module):
    """A function of a linear layer's half outputs, which have a deviation of `std`."""

    def __init__(self, function: Callable[[Tensor], Any], std: float = 1.0) -> None:
        super().__init__()
        self.function, self.body = function, nn.Linear(64, 64, bias=False)
        torch.manual_seed(0)
        nn.init.normal_(self.body.weight, std=std / 8)

    def forward(self, x: Tensor) -> Any:
        return self.function(self.body(x))


def told(
    model: nn.Module,
    *inputs: Tensor,
    mode: str = "amp",
    dtype: torch.dtype = HALF,
    run: bool = True,
    scale: float | None = None,
    optimizer: dict[str, Any] | None = None,
    loss: Callable[[Any], Tensor] | None = None,
    declared: dict[str, Declared] | None = None,
) -> list[Mark]:
    captured = capture(model, inputs or (X,), {}, Precision(mode, dtype), "export")
    calibration = measure(captured, loss, optimizer) if run else None
    return marks(captured, analyse(captured, declared), calibration, scale)


def summary(found: list[Mark]) -> list[tuple[str, str, str]]:
    """(code, verdict, operation) of warnings and errors."""
    return [(one.code, one.verdict, one.message.split()[0]) for one in found if one.severity is not Severity.NOTE]


@pytest.mark.parametrize("run", [False, True])
@pytest.mark.parametrize(
    ("function", "std", "expected"),
    [
        (lambda h: h * h, 10, None),
        (lambda h: h * h, 200, "*"),
        (lambda h: (h * h) + 1, 200, "*"),  # the first of a chain
        (lambda h: (h * h).relu().sum(-1), 200, "*"),
        (lambda h: h.pow(2).mean(), 200, None),  # float32 under autocast
        (lambda h: h.float() * h, 200, None),
        (lambda h: F.layer_norm(h * 500, (64,)), 200, "*"),
        (lambda h: torch.sigmoid(h * 500), 200, None),  # of inf as of 100 000
        (lambda h: torch.clamp(h * 500, -10, 10), 200, None),
        (lambda h: (h * 500) > 0, 200, None),
        (lambda h: torch.clamp(h * 500, -10), 200, "*"),
        (lambda h: h @ h.t(), 60, "@"),
        (lambda h: (h * 1e-5) * (h * 1e-5), 1, "*"),  # underflow: all of it is zero
    ],
)
def test_where_and_what(function: Callable[[Tensor], Any], std: float, expected: str | None, run: bool) -> None:
    found = summary(told(Of(function, std), run=run))
    verdict = "calibrated" if run else "likely"
    if expected and std == 1:
        assert [(code, known) for code, known, _ in found] == [("AMP452", verdict)]
    else:
        assert found == ([("AMP451", verdict, expected)] if expected else [])


@pytest.mark.parametrize(
    ("dtype", "mode", "function", "expected"),
    [
        (HALF, "amp", lambda h: h.float().sum(-1), []),
        (HALF, "half", lambda h: (h * h).sum(-1), ["*"]),
        (HALF, "amp", lambda h: h.exp(), []),
        (HALF, "half", lambda h: h.exp(), ["exp"]),  # no autocast that would run it in float32
        (BF16, "amp", lambda h: h * h * h, []),
        (BF16, "half", lambda h: h * h * h, []),
    ],
)
def test_dtypes(dtype: torch.dtype, mode: str, function: Callable[[Tensor], Any], expected: list[str]) -> None:
    found = summary(told(Of(function, 10 if expected == ["exp"] else 200), dtype=dtype, mode=mode))
    assert [operation for code, _, operation in found if code == "AMP451"] == expected


def test_a_proof_is_no_alarm_and_a_floor_is_certain() -> None:
    square = Of(lambda h: (h.tanh() * 200) * 300, 50)
    assert summary(told(square, run=False)) == []  # at most 60 000, whatever comes
    high = Of(lambda h: (h.tanh() + 3) * 60000, 50)
    assert summary(told(high, run=False)) == [("AMP451", "certain", "*")]


def test_layers_of_one_line_are_one_mark() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Of(lambda h: F.layer_norm(h * h, (64,)), 200 + 50 * at) for at in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    (mark,) = (one for one in told(Layers()) if one.severity is not Severity.NOTE)
    assert mark.count == 4 and set(mark.modules) == {f"layers.{at}" for at in range(4)}
    assert mark.modules[0] in mark.message and "4 modules" in mark.message
    finding = to_finding(mark)
    assert (finding.code, finding.severity, finding.verdict) == ("AMP451", Severity.WARNING, "calibrated")
    assert finding.path == __file__ and finding.range.start < finding.range.end
    assert mark.headroom_bits is not None and mark.headroom_bits < 0 and "float32" in finding.help


def test_an_infinity_that_nothing_uses() -> None:
    """T5's buckets: the logarithm of a distance of zero, which where() does not take."""

    def buckets(h: Tensor) -> Tensor:
        distance = torch.arange(64, device=h.device)
        far = (torch.log(distance.float() / 16) * 8).long()
        return h + torch.where(distance < 16, distance, far)

    assert summary(told(Of(buckets))) == []


def test_a_mask_that_is_a_tensor() -> None:
    """-9e15 * torch.ones_like(x), which where() takes: -inf, harmless but for a row without anything else."""

    def masked(h: Tensor) -> Tensor:
        return torch.where(h > 0, h, -9e15 * torch.ones_like(h)).softmax(-1)

    (mark,) = (one for one in told(Of(masked)) if one.severity is not Severity.NOTE)
    assert (mark.code, mark.verdict, mark.severity) == ("AMP451", "certain", Severity.WARNING)
    assert "-9.0e15 does not fit into float16" in mark.message and "torch.finfo(x.dtype).min" in mark.remedy


def test_tight_is_a_note() -> None:
    notes = [one for one in told(Of(lambda h: h * 100, 20)) if one.code == "AMP451"]
    assert [(one.code, one.verdict, one.severity) for one in notes] == [("AMP451", "tight", Severity.NOTE)]
    assert notes[0].headroom_bits is not None and 2 < notes[0].headroom_bits < 4


def test_a_weight_beyond_half() -> None:
    model = Of(lambda h: h)
    with torch.no_grad():
        model.body.weight[0, 0] = 1e5
    (mark,) = (one for one in told(model) if one.severity is not Severity.NOTE)
    assert (mark.code, mark.verdict, mark.severity) == ("AMP451", "certain", Severity.ERROR)
    assert "the parameter" in mark.message


def test_a_weight_beyond_half_is_told_even_where_its_products_saturate() -> None:
    """inf - inf is nan, and so is its sigmoid."""
    model = Of(torch.sigmoid)
    with torch.no_grad():
        model.body.weight.mul_(1e6)
    (mark,) = (one for one in told(model) if one.severity is not Severity.NOTE)
    assert (mark.code, mark.verdict) == ("AMP451", "certain") and "the parameter" in mark.message


def test_declared_ranges_need_no_data() -> None:
    model = Of(lambda h: h * h)
    assert summary(told(model, run=False)) == []
    assert summary(told(model, run=False, declared={"x": Declared(-1e4, 1e4, 0.0, 400.0)})) == [
        ("AMP451", "likely", "*")
    ]


@pytest.mark.parametrize(
    ("scale", "factor", "expected"),
    [
        (1.0, 1e-6, Severity.WARNING),  # no scaler
        (None, 1e-6, None),
        (65536.0, 1e-6, None),
        (16.0, 1e-9, Severity.WARNING),  # below the window
        (65536.0, 1e3, Severity.NOTE),  # the scaler finds its way down
        (1.0, 1.0, None),
    ],
)
def test_gradients(scale: float | None, factor: float, expected: Severity | None) -> None:
    found = told(Of(lambda h: h.tanh()), scale=scale, loss=lambda output: output.sum() * factor)
    assert [one.severity for one in found if one.code == "AMP454"] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("mode", "lr", "expected"), [("half", 1e-6, True), ("half", 1e-2, False), ("amp", 1e-6, False)]
)
def test_swamped_updates(mode: str, lr: float, expected: bool) -> None:
    model = Of(lambda h: h.tanh(), 8.0)
    found = told(model, mode=mode, dtype=BF16, optimizer={"class": "AdamW", "lr": lr, "weight_decay": 0.0})
    assert [one.code for one in found if one.severity is not Severity.NOTE] == (["AMP455"] if expected else [])
