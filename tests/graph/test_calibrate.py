"""Calibration: exact statistics, gradients at nodes and casts, useful loss scales, updates that rounding swallows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from amplint.graph import stats
from amplint.graph.calibrate import CalibrationError, measure
from amplint.graph.capture.captured import Precision
from amplint.graph.capture.ladder import capture
from amplint.graph.gradients import gradients, summary
from amplint.graph.updates import swamped

HALF = torch.float16
EDGES = [
    0.0,
    2.0**-25,
    2.0**-24,
    2.0**-14,
    1.0,
    65504.0,
    65519.0,
    65520.0,
    65536.0,
    2.0**-133,
    2.0**-134,
    3.4e38,
    1e-45,
]
NUMBERS = st.one_of(st.sampled_from(EDGES), st.floats(2.0**-50, 2.0**20, width=32), st.floats(width=32))


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, max_size=30), st.integers(-8, 20), st.sampled_from([torch.float16, torch.bfloat16]))
def test_shares_are_those_of_the_cast_itself(numbers, scale, dtype):
    values = torch.tensor(numbers, dtype=torch.float32)
    found = stats.of(values)
    finite = values[values.isfinite() & (values != 0)]
    scaled = finite.double() * 2.0**scale
    scaled = scaled[scaled.abs() < 3e38]  # FP32 itself ends there
    if len(scaled) < len(finite) or dtype == torch.bfloat16:
        scale, scaled = 0, finite.double()
    cast = scaled.to(dtype)
    total = max(len(finite), 1)
    assert found.nonzero == len(finite)
    assert found.nan == int(values.isnan().sum()) and found.infinite == int(values.isinf().sum())
    assert found.flushed(dtype, scale) == int((cast == 0).sum()) / total
    assert (found.overflow(dtype, scale) > 0) == bool(cast.isinf().any())
    lossy = (scaled.abs() < torch.finfo(dtype).tiny) & (cast != 0)
    assert found.subnormal(dtype, scale) == int(lossy.sum()) / total
    assert sum(found.hist()) == len(finite) and len(found.hist()) == 71


def test_statistics_of_parts_are_those_of_the_whole():
    values = torch.randn(1000) * 10.0 ** torch.randn(1000)
    whole, parts = stats.of(values), stats.together(map(stats.of, values.split(300)))
    assert (parts.count, parts.absmax, parts.tiny, parts.hist()) == (
        whole.count,
        whole.absmax,
        whole.tiny,
        whole.hist(),
    )
    assert math.isclose(parts.std, whole.std, rel_tol=1e-9) and math.isclose(parts.mean, whole.mean, rel_tol=1e-9)


class Net(nn.Module):
    """What breaks module hooks: a ReLU in place, a value with two uses, a region without gradients."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.conv(x)))
        with torch.no_grad():
            scale = x.mean() + 1
        x = (x * scale + x).mean((2, 3))
        x += 1
        return self.head(x)


def classes(output):
    return F.cross_entropy(output, torch.arange(4))


@pytest.fixture(scope="module")
def images():
    torch.manual_seed(0)
    return torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("frontend", ["export", "recorder"])
def test_gradients_are_those_of_the_model(images, frontend):
    torch.manual_seed(0)
    model = Net()
    captured = capture(model, (images,), {}, Precision(), frontend)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = measure(captured, classes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert (found.loss, found.signal, found.silent) == ("the script's", True, 0)

    watched = {}
    pairs = ((model.conv, "conv2d"), (model.norm, "batch_norm"), (model.head, "linear"))
    for module, name in pairs:

        def hook(_, given, output, name=name):
            output.register_hook(lambda gradient: watched.update({name: gradient}))

        module.register_forward_hook(hook)
    classes(model(images)).backward()
    assert math.isclose(found.value, float(classes(model(images)).detach()), rel_tol=1e-5)
    true = {value.data_ptr(): value.grad for value in model.parameters()}
    parameters = 0
    for node, one in found.gradient.items():
        gradient = watched.pop(node.target._opname, None) if node.op == "call_function" else None
        if node.op == "placeholder":
            gradient, parameters = true[captured.values[node.name].data_ptr()], parameters + 1
        if gradient is not None:
            assert math.isclose(one.absmax, float(gradient.abs().max()), rel_tol=1e-3, abs_tol=1e-7)
    assert parameters == 6 and not watched


def test_a_casts_gradient_is_that_of_the_operations_behind_it():
    """The weight is used twice; a norm's output goes to a half linear, and on in float32."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8, bias=False)

        def forward(self, x):
            x = self.norm(x)
            return (self.linear(self.linear(x)) + x * 1000).sum()

    captured = capture(Two(), (torch.randn(4, 8),), {}, Precision())
    found = measure(captured)
    assert found.loss == "the model's own"
    casts = {(one.source.name, one.dtype): value for one, value in found.casts}
    norm = next(node for node in captured.nodes() if "norm" in node.name)
    assert casts[norm.name, HALF].absmax < 10 < 900 < found.gradient[norm].absmax
    weight = next(node for node in found.gradient if node.name.endswith("linear_weight"))
    assert casts[weight.name, HALF].absmax == found.gradient[weight].absmax
    assert len([one for one, _ in found.casts if one.weight]) == 1


@pytest.mark.parametrize(
    ("factor", "inside", "window"),
    [(2.0**-8, True, True), (2.0**-45, False, True), (2.0**10, False, True), ("both", False, False)],
)
def test_the_window_of_useful_scales(factor, inside, window):
    """The gradient at the linear's output is the factor itself, element by element."""
    factors = torch.full((8, 16), factor if factor != "both" else 2.0**-40)
    if factor == "both":
        factors[:, :8] = 2.0**10
    captured = capture(nn.Linear(4, 16), (torch.randn(8, 4),), {}, Precision())
    calibration = measure(captured, lambda output: (output * factors).sum())
    found = gradients(captured, calibration)
    assert (found.window is not None) == window
    assert bool(found.window and found.window[0] <= 16 <= found.window[1]) == inside
    if factor == 2.0**-45:
        assert found.flushed(0) == 1.0 and found.window[0] > 0


def test_no_gradient_signal_is_said():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    captured = capture(model, (torch.randn(3, 4),), {}, Precision())
    found = measure(captured, lambda output: output.square().mean())
    assert not found.signal and "no gradient signal" in found.notes[0]
    assert summary(captured, found)["zero"] == ["2.weight"]

    frozen = nn.Softmax(-1)
    found = measure(capture(frozen, (torch.randn(3, 4),), {}, Precision()))
    assert (found.loss, found.gradient) == ("", {}) and found.notes


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 4, sparse=True)

    def forward(self, x):
        return self.words(x)


@pytest.mark.parametrize(
    ("model", "given"),
    [(Sparse(), torch.arange(6)), (nn.Linear(4, 2).double(), torch.randn(3, 4).double())],
    ids=["sparse gradients", "float64"],
)
def test_models_of_other_kinds_are_measured_and_left_as_they_are(model, given):
    before = [one.detach().clone() for one in model.parameters()]
    captured = capture(model, (given,), {}, Precision())
    found = measure(captured, lambda output: output.square().sum(), {"class": "SGD", "lr": 0.5})
    model(given).square().sum().backward()
    true = sorted(float(one.grad.to_dense().abs().max()) for one in model.parameters())
    arrived = sorted(one.absmax for node, one in found.gradient.items() if node.op == "placeholder")
    assert arrived == pytest.approx(true) and found.swamped is not None
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_without_a_loss_the_report_says_what_was_differentiated():
    found = measure(capture(nn.Linear(4, 2), (torch.randn(3, 4),), {}, Precision()))
    assert found.loss == "surrogate: the mean of the squares of the first output"


def test_a_run_that_fails_is_one_line():
    captured = capture(nn.Linear(4, 2).to("meta"), (torch.randn(3, 4, device="meta"),), {}, Precision())
    with pytest.raises(CalibrationError, match="meta device"):
        measure(captured)
    captured = capture(nn.Linear(4, 2), (torch.randn(3, 4),), {}, Precision())
    with pytest.raises(CalibrationError, match="the run in FP32 failed"):
        measure(captured, lambda output: output @ output)


# weight, gradient, optimizer, share swamped in float16 weights
UPDATES = [
    (1.0, 1.0, {"class": "SGD", "lr": 1e-3}, 0.0),
    (1.0, 1.0, {"class": "SGD", "lr": 1e-4}, 1.0),  # half an ulp below 1 is 2.4e-4
    (0.01, 1.0, {"class": "SGD", "lr": 1e-4}, 0.0),
    (1.0, 1e-9, {"class": "torch.optim.adam.Adam", "lr": 1e-3, "eps": 1e-15, "fused": True}, 0.0),  # lr times the sign
    (5.0, 1e-9, {"class": "AdamW", "lr": 1e-3, "eps": 1e-15, "weight_decay": 0.0}, 1.0),
    (
        1.0,
        1e-9,
        {"class": "AdamW", "lr": 1e-3, "eps": 1e-6, "weight_decay": 0.0},
        1.0,
    ),  # eps is larger than the gradient
    (0.0, 1e-9, {"class": "FusedSGD", "lr": 1e-4}, 1.0),  # 1e-13 is zero in float16
    (0.0, 1e-3, {"class": "SGD", "lr": 1e-3}, 0.0),
    (1.0, 0.1, {"class": "SGD", "lr": 1e-3, "momentum": 0.9, "nesterov": True}, 1.0),  # 1.9 times 1e-4
    (1.0, 0.2, {"class": "SGD", "lr": 1e-3, "momentum": 0.9, "nesterov": True}, 0.0),
]


@pytest.mark.parametrize(("weight", "gradient", "facts", "share"), UPDATES)
def test_updates_that_half_weights_swallow(weight, gradient, facts, share):
    parameter = torch.full((3, 2), weight, requires_grad=True)
    parameter.grad = torch.full((3, 2), gradient)
    found = swamped({None: parameter}, facts, HALF)
    assert (found.half, found.float32, found.lr) == (share, 0.0, facts["lr"])
    assert torch.equal(parameter, torch.full((3, 2), weight))


def test_an_unknown_optimizer_is_not_guessed():
    parameter = torch.ones(2, requires_grad=True)
    parameter.grad = torch.ones(2)
    for facts in ({"class": "Sophia", "lr": 1.0}, {"class": "LBFGS", "lr": 1.0}, {"class": "Optimizer"}, {"lr": 1.0}):
        assert swamped({None: parameter}, facts, HALF) is None
    assert swamped({None: parameter}, {"class": "SGD", "lr": 0.0}, HALF) is None  # a warm-up's first step
