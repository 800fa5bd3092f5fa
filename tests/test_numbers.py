"""The numbers that the rule pages print, measured again on the CPU with the installed torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from amplint.knowledge import rules

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional
HALF, BF16 = torch.float16, torch.bfloat16

pytestmark = pytest.mark.filterwarnings("ignore")


def says(code: str, *words: str) -> None:
    """The page holds these words."""
    text = " ".join(rules()[code].text.split())
    for word in words:
        assert word in text, f"{code} no longer says {word!r}"


def half(*values: float) -> Any:
    return torch.tensor(values, dtype=HALF)


def scaler() -> Any:
    return torch.amp.GradScaler("cpu")


def regression(seed: int = 0) -> tuple[Any, Any, Any, Callable[[], Any]]:
    """A linear model, its SGD optimizer at lr 0.1, a scaler, and its loss."""
    torch.manual_seed(seed)
    model = nn.Linear(10, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(32, 10), torch.randn(32, 1)
    return model, optimizer, scaler(), lambda: F.mse_loss(model(x), y)


def one_weight() -> tuple[Any, Any, Any]:
    weight = nn.Parameter(torch.tensor([1.0]))
    return weight, torch.optim.SGD([weight], lr=1.0), scaler()


def test_101_zero_gradients() -> None:
    def zeros(factor: float, dtype: Any, scaled: bool) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
        x, y = torch.randn(1024, 256), torch.randint(0, 10, (1024,))
        with torch.autocast("cpu", dtype=dtype or HALF, enabled=dtype is not None):
            loss = F.cross_entropy(model(x), y) * factor
        (scaler().scale(loss) if scaled else loss).backward()
        return float((model[0].weight.grad == 0).float().mean())

    assert zeros(1e-3, HALF, False) == pytest.approx(0.031, abs=0.002)
    assert zeros(1e-4, HALF, False) == 1
    assert zeros(1e-4, HALF, True) < 1e-4
    assert zeros(1e-4, None, False) == 0
    assert half(1e-5).item() == pytest.approx(1.0014e-5, abs=1e-9)
    assert half(1e-8).item() == 0
    says("AMP101", "3.1 %", "**100 %**", "1.0014e-5", "2.98e-8")


def test_102_step_without_the_scaler() -> None:
    model, optimizer, s, loss = regression()
    start = copy.deepcopy(model)
    s.scale(loss()).backward()
    optimizer.step()
    assert (model.weight - start.weight).abs().max().item() == pytest.approx(6054, abs=1)
    model, optimizer, s, loss = regression()
    loss().backward()
    optimizer.step()
    assert (model.weight - start.weight).abs().max().item() == pytest.approx(0.092, abs=5e-4)
    torch.manual_seed(0)
    noise = [torch.randn(1) * 0.1 for _ in range(100)]
    ends = []
    for factor in (65536, 1):
        weight = nn.Parameter(torch.tensor([2.0]))
        adam = torch.optim.Adam([weight], lr=0.1, weight_decay=0.1)
        for value in noise:
            weight.grad = value * factor
            adam.step()
        ends.append(weight.item())
    assert ends == pytest.approx([2.43, 0.11], abs=0.005)
    says("AMP102", "6054 instead of 0.092", "2.43 instead of 0.11")


def test_103_unscaled_backward() -> None:
    model, optimizer, s, loss = regression()
    loss().backward()
    with pytest.raises(AssertionError, match=r"Attempted step but _scale is None"):
        s.step(optimizer)
    optimizer.zero_grad()
    s.scale(loss())
    loss().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    before = model.weight.detach().clone()
    s.step(optimizer)
    assert norm.item() == pytest.approx(1.36, abs=0.005)
    assert (model.weight - before).norm().item() == pytest.approx(2.1e-6, abs=5e-8)
    says("AMP103", "norm 1.36", "2.1e-6 instead of 0.136")


@pytest.mark.parametrize(("unscale", "seen", "moved"), [(False, 88933, 1.5e-6), (True, 1.36, 0.1)])
def test_105_clip(unscale: bool, seen: float, moved: float) -> None:
    model, optimizer, s, loss = regression()
    before = model.weight.detach().clone()
    s.scale(loss()).backward()
    if unscale:
        s.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    s.step(optimizer)
    assert norm.item() == pytest.approx(seen, rel=0.005)
    assert (model.weight - before).norm().item() == pytest.approx(moved, rel=0.02)
    says("AMP105", "88 933", "**1.5e-6**")


def test_108_unscale_twice_and_too_early() -> None:
    weight, optimizer, s = one_weight()
    s.scale(weight.sum()).backward()
    s.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called on this optimizer"):
        s.unscale_(optimizer)
    s.scale(weight.sum()).backward()
    assert weight.grad.item() == 65537
    s.step(optimizer)
    assert weight.item() == -65536
    says("AMP108", "65537 instead of 2", "−65536")


def test_110_no_update() -> None:
    weight, optimizer, s = one_weight()
    s.scale(weight.sum()).backward()
    s.step(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) is being called after step\(\)."):
        s.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called since the last update\(\)."):
        s.step(optimizer)


@pytest.mark.parametrize(("anew", "taken"), [(True, 0), (False, 16)])
def test_115_scaler_per_batch(anew: bool, taken: int) -> None:
    weight, optimizer, s = one_weight()
    steps = 0
    for _ in range(20):
        s = scaler() if anew else s
        optimizer.zero_grad()
        s.scale(weight.sum() * 0).backward()
        weight.grad = half(15.9 * s.get_scale()).float()  # fits FP16 at a scale of 4096 and below
        s.step(optimizer)
        steps += not any(value.item() for value in s._found_inf_per_device(optimizer).values())
        s.update()
    assert steps == taken
    says("AMP115", "16 of 20", "**0 of 20**")


def test_120_zero_grad() -> None:
    weight, optimizer, s = one_weight()
    s.scale(weight.sum() * 2).backward()
    optimizer.zero_grad()
    with pytest.raises(AssertionError, match="No inf checks were recorded for this optimizer"):
        s.step(optimizer)
    for set_to_none, unscale in ((True, True), (False, False)):
        weight, optimizer, s = one_weight()
        s.scale(weight.sum() * 2).backward()
        if unscale:
            s.unscale_(optimizer)
        optimizer.zero_grad(set_to_none=set_to_none)
        s.step(optimizer)
        assert weight.item() == 1
    says("AMP120", "from 1 to −1 stays at 1")


@pytest.mark.parametrize("dtype", [BF16, HALF])
def test_201_frozen_training(dtype: Any) -> None:
    def losses(outer: Any, inner: Any) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(8, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x = torch.randn(64, 8)
        y = x @ torch.randn(8, 1) * 3
        found = []
        with outer:
            for _ in range(50):
                optimizer.zero_grad()
                with inner:
                    loss = F.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                found.append(loss.item())
        return found

    def region(**options: Any) -> Any:
        return torch.autocast("cpu", dtype=dtype, **options)

    for frozen in (
        losses(region(), nullcontext()),
        losses(region(), region()),
        losses(region(enabled=False), region()),
    ):
        assert len(set(frozen)) == 1
    for moving in (losses(nullcontext(), region()), losses(region(cache_enabled=False), nullcontext())):
        assert [moving[0], moving[1]] == pytest.approx([152.33, 98.01], abs=0.1)
        assert moving[25] == pytest.approx(0.117, abs=0.005)
        assert moving[49] < 0.004
    says("AMP201", "152.33, 98.01, 0.117, 0.003", "152.33, 152.33, 152.33, **152.33**")


def test_201_clamped_weights() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 5.0)
    with torch.autocast("cpu", dtype=BF16):
        layer(torch.ones(1, 1))
        layer.weight.data.clamp_(-0.01, 0.01)
        assert layer(torch.ones(1, 1)).item() == 5.0
        torch.clear_autocast_cache()
        assert layer(torch.ones(1, 1)).item() == pytest.approx(0.01, rel=0.01)
    frozen = nn.Linear(1, 1, bias=False).requires_grad_(False)
    nn.init.constant_(frozen.weight, 5.0)
    with torch.autocast("cpu", dtype=BF16):
        frozen(torch.ones(1, 1))
        frozen.weight.data.clamp_(-0.01, 0.01)
        assert frozen(torch.ones(1, 1)).item() == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(("dtype", "low", "high"), [(BF16, 0.0015, 0.0025), (HALF, 0.0002, 0.0003)])
def test_202_backward_in_region(dtype: Any, low: float, high: float) -> None:
    def gradient(inside: bool) -> Any:
        torch.manual_seed(0)
        body, head, x = nn.Linear(64, 64), nn.Linear(64, 64), torch.randn(32, 64)
        with torch.autocast("cpu", dtype=dtype):
            z = body(x)
            with torch.autocast("cpu", enabled=False):
                loss = head(z.float()).pow(2).mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return head.weight.grad

    right, wrong = gradient(False), gradient(True)
    assert low < ((wrong - right).norm() / right.norm()).item() < high
    says("AMP202", "0.2 % under BF16", "0.03 % under FP16")


def test_207_swallowed_by_and() -> None:
    with torch.no_grad() and torch.autocast("cpu", dtype=BF16):
        assert torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=BF16) and torch.no_grad():
        assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(ValueError, match="Expected `device_type` of type `str`"):
        torch.autocast(lambda x: x)
    with pytest.raises(TypeError, match="'type' object does not support the context manager protocol"), torch.autocast:
        pass


@pytest.mark.parametrize(("dtype", "left", "error"), [(BF16, 769, 14.4), (HALF, 3073, 2.2)])
def test_211_positions(dtype: Any, left: int, error: float) -> None:
    positions, inv_freq = torch.arange(4096).float(), 1.0 / 10000 ** (torch.arange(0, 64, 2) / 64)
    with torch.autocast("cpu", dtype=dtype):
        angles = inv_freq[:, None].float() @ positions[None].float()
        assert angles.dtype == dtype
        assert (angles.double() @ positions[:, None].double()).dtype == torch.float64
        far = (inv_freq[:1, None].float() @ (65536 + torch.arange(512))[None].float()).unique()
    assert angles[0].unique().numel() == left
    assert (angles.float() - torch.outer(inv_freq, positions)).abs().max().item() == pytest.approx(error, abs=0.05)
    assert dtype == HALF or far.numel() == 2
    says("AMP211", "| 769 | 14.4 rad |", "| 3073 | 2.2 rad |", "two are left in BF16")


def test_216_saturated_sigmoid() -> None:
    zero = torch.tensor([0.0])
    logit = half(12.0).requires_grad_()
    lost = F.binary_cross_entropy(torch.sigmoid(logit).float(), zero)
    lost.backward()
    assert lost.item() == 100
    assert logit.grad.isnan()
    z = torch.tensor([12.0])
    assert F.binary_cross_entropy_with_logits(z, zero).item() == pytest.approx(12.00001, abs=5e-6)
    assert F.binary_cross_entropy(torch.sigmoid(z), zero).item() == pytest.approx(11.991, abs=5e-4)
    with torch.autocast("cpu", dtype=HALF):
        F.binary_cross_entropy(torch.rand(4), torch.rand(4))  # the CPU does not ban it
    says("AMP216", "is 100", "12.00001 against 11.991", "8.32", "−17.34")


def test_301_half_weights() -> None:
    ends = []
    for dtype in (torch.float32, HALF):
        weight = nn.Parameter(torch.ones(1, dtype=dtype))
        optimizer = torch.optim.SGD([weight], lr=1e-4)
        for _ in range(1000):
            weight.grad = torch.ones(1, dtype=dtype)
            optimizer.step()
        ends.append(weight.item())
    assert ends == pytest.approx([0.9, 1.0], abs=1e-4)
    weights = nn.Parameter(torch.ones(3, dtype=HALF))
    weights.grad = half(1e-4, 1e-2, 0)
    torch.optim.Adam([weights], lr=1e-3).step()
    assert weights[0] == float("-inf")
    assert weights[1].item() == pytest.approx(0.999, abs=1e-3)
    assert weights[2].isnan()
    large = nn.Parameter(torch.zeros(1000, dtype=HALF))
    large.grad = torch.full((1000,), 3000.0, dtype=HALF)
    assert torch.nn.utils.clip_grad_norm_([large], 1.0).isinf()
    assert large.grad.unique().tolist() == [0]
    assert (half(1) - half(2.4e-4)).item() == 1
    assert (half(1) - half(2.5e-4)).item() < 1
    says("AMP301", "ends at 0.9, the FP16 weight at **1.0**", "−inf, 0.999 and nan", "2.44e-4")


def test_302_running_statistics() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 4) * 400
    low, full = nn.BatchNorm1d(4).half(), nn.BatchNorm1d(4)
    for _ in range(20):
        low(x.half())
        full(x)
    assert low.running_var.isinf().all()
    assert (low.eval()(x.half()) == 0).all()
    assert full.running_var.mean().item() == pytest.approx(150_000, rel=0.15)
    mean_low, mean_full = half(0.0), torch.zeros(1)
    for _ in range(22_000):  # what BatchNorm does with momentum 1e-4 and a batch mean of 1
        mean_low.lerp_(half(1.0), 1e-4)
        mean_full.lerp_(torch.ones(1), 1e-4)
    assert mean_low.item() == pytest.approx(0.25, abs=0.01)
    assert mean_full.item() == pytest.approx(0.89, abs=0.005)
    says("AMP302", "about 150 000", "stopped at 0.25 where FP32 went on to 0.89")


def test_303_half_parameters() -> None:
    def train(**options: Any) -> Any:
        model = nn.Linear(4, 4).half()
        optimizer, s = torch.optim.AdamW(model.parameters(), lr=1e-3, **options), scaler()
        s.scale(model(torch.randn(8, 4).half()).float().pow(2).mean()).backward()
        s.step(optimizer)
        return optimizer.state[model.weight]["exp_avg_sq"].dtype

    with pytest.raises(ValueError, match=r"Attempting to unscale FP16 gradients."):
        train()
    assert train(fused=True) == HALF


def test_401_constants() -> None:
    x, mask = torch.zeros(2, 3, dtype=HALF), torch.ones(2, 3, dtype=torch.bool)
    index = torch.zeros(2, 1, dtype=torch.long)
    for raising in (
        lambda: x.masked_fill(mask, -1e9),
        lambda: x.clone().fill_(-1e9),
        lambda: torch.full((2,), -1e9, dtype=HALF),
        lambda: torch.full_like(x, -1e9),
        lambda: x.new_full((2,), -1e9),
        lambda: x.clamp(min=-1e9),
        lambda: x.scatter(1, index, -1e9),
        lambda: x.index_fill(0, index[0], -1e9),
        lambda: F.pad(x, (0, 1), value=-1e9),
        lambda: x.masked_fill(mask, -65505.0),
    ):
        with pytest.raises(RuntimeError, match="value cannot be converted to type c10::Half without overflow"):
            raising()
    assigned = x.clone()
    assigned[mask] = -1e9
    for silent in (torch.where(mask, -1e9, x), x + -1e9, assigned, mask.half() * -1e9):
        assert (silent == float("-inf")).all()
    assert x.masked_fill(mask, -65504.0)[0, 0].item() == -65504
    assert (half(-60000) + half(-10000)).item() == float("-inf")
    assert torch.full((3,), float("-inf")).softmax(0).isnan().all()
    assert torch.full((3,), torch.finfo(HALF).min).softmax(0).tolist() == pytest.approx([1 / 3] * 3)


def test_403_eps() -> None:
    zero = half(0.0)
    assert torch.log(zero + 1e-8).item() == float("-inf")
    assert torch.log(zero.float() + 1e-8).item() == pytest.approx(-18.4, abs=0.05)
    assert (zero / (zero.mean() + 1e-8)).isnan()
    assert torch.rsqrt(zero + 1e-12).isinf()
    assert torch.rsqrt(zero.float() + 1e-12).item() == pytest.approx(1e6)
    assert zero.clamp(min=1e-8).item() == 0
    assert torch.log(1 - half(1.0).clamp(1e-7, 1 - 1e-7)).item() == float("-inf")
    assert half(1e-7).item() == pytest.approx(1.19e-7, abs=1e-9)
    assert half(1e-6).item() == pytest.approx(1.013e-6, abs=1e-9)
    assert torch.tensor(1e-8, dtype=BF16).item() > 0
    assert F.layer_norm(torch.ones(1, 4, dtype=HALF), (4,), eps=1e-12).isfinite().all()


def test_406_attention_scores() -> None:
    q = torch.full((4, 128), 30.0, dtype=HALF)
    scale = 128**-0.5
    late, early = (q @ q.T) * scale, (q * scale) @ q.T
    assert late.isinf().all()
    assert late.softmax(-1).isnan().all()
    assert early[0, 0].item() == 10184
    assert pytest.approx(10182.3, abs=0.05) == 30 * 30 * 128 * scale
    for size, entry in ((128, 22.62), (64, 32.0)):
        row = torch.full((1, size), entry, dtype=HALF)
        assert (row @ row.T).isinf().all()
        assert ((row * 0.99) @ (row * 0.99).T).isfinite().all()
    torch.manual_seed(0)
    a, b = torch.randn(64, 64).half(), torch.randn(64, 64).half()
    assert torch.equal((a @ b.T) * 0.125, (a * 0.125) @ b.T)
    errors = []
    a, b = torch.randn(64, 128), torch.randn(64, 128)
    exact = (a.half().float() @ b.half().float().T) * scale
    for scores in ((a.half() * scale) @ b.half().T, (a.half() @ b.half().T) * scale):
        errors.append((scores.float() - exact).abs().max().item())
    assert errors == pytest.approx([0.0014, 0.0021], abs=1e-4)
    says("AMP406", "115 200", "10 184", "10 182.3", "0.0014 against 0.0021")


def test_602_moved_arguments() -> None:
    for enabled in (True, False):
        with pytest.raises(TypeError, match=r"must be torch.dtype, not bool"), torch.amp.autocast("cuda", enabled):
            pass
    with pytest.raises(ValueError, match="Expected `device_type` of type `str`"):
        torch.amp.autocast(True)
    assert torch.amp.GradScaler(2.0**10)._device == 1024.0
    assert torch.amp.GradScaler(2.0**10)._init_scale == 65536
    assert torch.amp.GradScaler(False).is_enabled()
    with pytest.raises(TypeError, match=r"must be bool, not torch.dtype"), torch.cpu.amp.autocast(HALF):
        pass
    assert torch.cuda.amp.GradScaler in torch.amp.GradScaler.__subclasses__()
