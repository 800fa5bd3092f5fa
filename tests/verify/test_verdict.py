"""The verdict on made records: what drifts as rounding does is the same, and each way of not being the same is told."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from amplint.verify.compare import DIFFERENT, SAME, TOO_FEW, Runs, Verdict, compare
from amplint.verify.curves import bounds, curves, scatter, skipped
from amplint.verify.runs import Run


def trained(
    seed: int = 0,
    *,
    steps: int = 50,
    kind: str = "fp32",
    drift: float = 0.0,
    batch: float = 0.1,
    rate: float = 0.06,
    skips: tuple[int, ...] = (),
    shift: float = 0.0,
    norm: float = 1.0,
    offset: float = 2.0,
    **answer: Any,
) -> Run:
    """A loss that falls by `rate` an update to `offset` / 10, with noise from batch to batch that the seed decides, and
    a drift that grows as rounding's does."""
    batches, other = random.Random(seed), random.Random(f"{seed} {kind}")
    run, updates = Run(kind, seed), 0
    for step in range(steps):
        level = offset * (0.1 + 0.9 * math.exp(-rate * updates)) * (1 + 0.02 * math.sin(seed))
        noise = batch * batches.gauss(0, 1)
        away = drift * min(1.0, step / 20) * other.gauss(0, 1)
        loss = (level + noise + away) * (1 + shift * step / steps)
        gone = step in skips
        updates += not gone
        run.steps.append(
            {
                "step": step,
                "losses": [["train.py:9", loss]],
                "norm": "inf" if gone else norm * level,
                "optimizer": 0,
                "skipped": gone,
                "scale": 65536.0 if kind == "amp" else None,
                "seconds": 0.1,
                "rates": [0.1],
            }
        )
    run.answer = {"ended": "steps", "faults": [], **answer}
    return run


FP32 = [trained(seed) for seed in range(3)]


def judge(amp: Run, fp32: list[Run] = FP32, dtype: str = "float16", **more: Any) -> Verdict:
    severity = {"AMP105": "error", "AMP117": "warning"}.__getitem__
    return compare(Runs(fp32, [amp], **more), dtype, severity)


def spoiled(run: Run, at: int, value: Any) -> Run:
    run.steps[at]["losses"][0][1] = value
    return run


FAULT = {"code": "AMP105", "what": "clips scaled gradients", "count": 50, "place": "train.py:12"}


@pytest.mark.parametrize(
    ("amp", "said"),
    [
        (trained(kind="amp"), "< 0.01 % from FP32"),
        (trained(kind="amp", drift=0.05), "from FP32"),
        (trained(kind="amp", faults=[FAULT | {"code": "AMP117"}]), "gradient norm 1 times"),
    ],
)
def test_the_same(amp, said):
    verdict = judge(amp)
    assert verdict.word == SAME, verdict.reasons
    assert any(said in reason for reason in verdict.reasons)
    assert verdict.steps == 50 and verdict.why


@pytest.mark.parametrize(
    ("amp", "said"),
    [
        (trained(kind="amp", faults=[FAULT]), "AMP105: clips scaled gradients at train.py:12 (50 times)"),
        (spoiled(trained(kind="amp"), 30, "nan"), "1 loss is not finite in AMP, first at step 31; in FP32 none"),
        (trained(kind="amp", rate=0.0), "from FP32"),
        (trained(kind="amp", shift=0.5), "from FP32"),
        (trained(kind="amp", norm=65536.0), "gradient norm 6.55e+04 times FP32's"),
        (
            trained(kind="amp", skips=tuple(range(0, 50, 3))),
            "the loss scale never settles: 17 of 50 steps skipped, to the end",
        ),
        (trained(kind="amp", offset=2.2), "first loss"),
    ],
)
def test_not_the_same(amp, said):
    fp32 = [trained(seed, batch=0.01) for seed in range(3)] if "first loss" in said else FP32
    verdict = judge(amp, fp32)
    assert verdict.word == DIFFERENT
    assert any(said in reason for reason in verdict.reasons), verdict.reasons


def test_losses_that_are_no_numbers_in_fp32_either_are_the_same():
    """A script that skips them itself; also where a whole window has no other."""
    fp32, amp = [trained(seed) for seed in range(3)], trained(kind="amp")
    for run in (*fp32, amp):
        for at in (3, *range(12, 20)):
            spoiled(run, at, "nan")
    verdict = judge(amp, fp32)
    assert verdict.word == SAME and math.isfinite(verdict.relative), verdict.reasons
    nothing = [spoiled(trained(steps=9), at, "nan") for at in range(3)]
    for run in nothing:
        for at in range(9):
            spoiled(run, at, "nan")
    assert judge(nothing[0], nothing).word == TOO_FEW
    for run in nothing:
        for step in run.steps:
            step["losses"] = []
    assert judge(nothing[0], nothing).reasons == ["no backward has 8 losses that are numbers, in every run"]
    zero = [trained(offset=0.0, batch=0.0) for _ in range(3)]
    assert math.isfinite(judge(zero[0], zero).relative)


def test_skips_are_said():
    amp = trained(kind="amp", drift=0.05, skips=(0, 1))
    verdict = judge(amp, followed={0: trained(skips=(0, 1))})
    assert verdict.word == SAME
    assert verdict.reasons[0].startswith("2 steps skipped by the scaler while it found its scale")


def test_a_run_that_breaks_in_amp_is_not_the_same():
    amp = trained(kind="amp", steps=3)
    amp.problem = "crashed after 3 optimizer steps: RuntimeError: expected scalar type Float but found Half"
    verdict = judge(amp)
    assert (
        verdict.word == DIFFERENT
        and "in AMP the script crashed after 3 optimizer steps: RuntimeError" in verdict.reasons[0]
    )


def test_a_few_steps_are_no_curve():
    verdict = judge(trained(kind="amp", steps=7))
    assert (verdict.word, verdict.steps) == (TOO_FEW, 7)
    assert judge(trained(kind="amp", steps=7, faults=[FAULT])).word == DIFFERENT


def test_skipped_steps_delay_the_curve():
    """A fast fall, and five steps skipped: FP32 that leaves out the same steps is exactly it."""
    skips = (0, 1, 2, 3, 4)
    fp32 = [trained(seed, rate=0.3, batch=0.01) for seed in range(3)]
    amp = trained(kind="amp", rate=0.3, batch=0.01, skips=skips)
    plain = judge(amp, fp32)  # without it, a difference that more runs may explain
    delayed = trained(rate=0.3, batch=0.01, skips=skips)
    verdict = judge(amp, fp32, followed={0: delayed})
    assert verdict.word == SAME, verdict.reasons
    assert plain.word == DIFFERENT and plain.doubts == {"curve"}


def test_what_only_rounding_moves_has_the_floor_for_a_band():
    """Three equal FP32 runs: a script whose seeds do nothing."""
    fp32 = [trained() for _ in range(3)]
    close, far = trained(kind="amp", shift=0.005), trained(kind="amp", shift=0.03)
    assert judge(close, fp32).word == SAME
    assert judge(close, fp32).why == "the floor for float16: rounding"
    verdict = judge(far, fp32)
    assert verdict.word == DIFFERENT and verdict.doubts == {"curve"} and not verdict.hard
    assert judge(far, fp32, "bfloat16").word == SAME


def test_more_seeds_of_amp_tell_drift_from_a_difference():
    """Drift has another sign from each seed; what all have in common is a difference."""
    fp32 = [trained(seed, batch=0.0) for seed in range(3)]
    wide = [trained(seed, batch=0.0, kind="amp", shift=shift) for seed, shift in enumerate((0.12, -0.12, 0.0))]
    common = [trained(seed, batch=0.0, kind="amp", shift=0.12) for seed in range(3)]
    severity = {}.get
    assert compare(Runs(fp32, wide[:1]), "float16", severity).word == DIFFERENT
    assert compare(Runs(fp32, wide), "float16", severity).word == SAME
    assert compare(Runs(fp32, common), "float16", severity).word == DIFFERENT


def off(seed: int, draw: int, drift: float, start: int = 0) -> Run:
    """FP32 from a seed, off by a rounding that moves it as far as `drift`."""
    run = trained(start + seed, kind=f"rounded {draw}", drift=drift)
    run.seed = seed
    return run


def test_what_rounding_does_is_allowed_and_no_more():
    """Seeds differ by a third of the loss at the end; rounding by a thousandth."""
    fp32 = [trained(seed, batch=0.2) for seed in range(3)]
    rounded = [trained(kind=f"rounded {draw}", batch=0.2, drift=0.002) for draw in (1, 2)]
    near, far = (trained(kind="amp", batch=0.2, shift=shift) for shift in (0.003, 0.05))
    assert judge(far, fp32).word == SAME
    verdict = judge(near, fp32, rounded=rounded)
    assert verdict.word == SAME and verdict.relative < 0.01, verdict.reasons
    assert verdict.why == "4 times as far as rounding alone moves FP32 in a window of 6 steps"
    verdict = judge(far, fp32, rounded=rounded)
    assert verdict.word == DIFFERENT and verdict.doubts == {"curve"}


def test_seeds_that_do_nothing_are_no_measure():
    """Three equal FP32 runs, which rounding alone drives apart."""
    fp32 = [trained(batch=0.0) for _ in range(3)]
    rounded = [trained(kind=f"rounded {draw}", batch=0.0, drift=0.05) for draw in (1, 2)]
    amp = trained(kind="amp", batch=0.0, drift=0.05)
    assert judge(amp, fp32).word == DIFFERENT
    assert judge(amp, fp32, rounded=rounded).word == SAME


@pytest.mark.parametrize(
    ("drift", "amp", "first", "last"),
    [
        (0.02, 0.02, 0.02, 0.0),  # as far as rounding is
        (0.02, 0.04, 0.2, 0.03),  # twice as far
        (0.14, 0.14, 0.22, 0.09),  # as far as another seed's run, which is the worst that rounding does
    ],
)
def test_false_alarms_are_rare(drift, amp, first, last):
    """The share of right AMP runs that make AMP run from the other seeds, and of those that are not the same then."""
    alarms, again = 0, 0
    for trial in range(0, 300, 3):
        fp32 = [trained(trial + seed) for seed in range(3)]
        halves = [trained(trial + seed, kind="amp", drift=amp) for seed in range(3)]
        rounded = [off(0, 1, drift, trial), off(0, 2, drift, trial), off(1, 1, drift, trial), off(2, 1, drift, trial)]
        if compare(Runs(fp32, halves[:1], rounded[:2]), "float16", {}.get).word != SAME:
            alarms += 1
            again += compare(Runs(fp32, halves, rounded), "float16", {}.get).word != SAME
    assert alarms <= first * 100 and again <= last * 100, (alarms, again)


# -- what is equal but for one rounding -------------------------------------------------------------------------------


def rated(run: Run, rates: list[float]) -> Run:
    for step, rate in zip(run.steps, rates, strict=True):
        step["rates"] = [rate]
    return run


FALLING = [0.1 * 0.98**step for step in range(50)]


def test_learning_rates_are_equal():
    fp32 = [rated(trained(seed), FALLING) for seed in range(3)]
    assert judge(rated(trained(kind="amp"), FALLING), fp32).word == SAME
    late = FALLING[:30] + FALLING[29:49]
    verdict = judge(rated(trained(kind="amp"), late), fp32)
    assert verdict.hard and verdict.reasons == [
        "the learning rate at step 31 is 0.055662 in AMP, and 0.054548 in FP32",
    ]
    waits = rated(trained(kind="amp", skips=(29,)), late)  # a scheduler that a skipped step leaves out
    assert judge(waits, fp32, followed={0: trained(skips=(29,))}).word == SAME
    plateau = [rated(trained(seed), late if seed else FALLING) for seed in range(3)]  # hangs on the losses
    assert judge(rated(trained(kind="amp"), late[:40] + FALLING[40:]), plateau).word == SAME


def started(run: Run, at: int = 0, **parts: float | None) -> Run:
    run.steps[at]["parts"] = parts
    return run


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"body": 0.97, "head": 0.51, "bias": 3e-5}, ""),
        ({"body": 0.97, "head": 0.51, "bias": 0.03}, ""),
        ({"body": 1.0, "head": None, "bias": 1e-3}, "the first gradient of head has the norm 0 in AMP, 0.5 in FP32"),
        ({"body": 65536.0, "head": 0.5, "bias": 1e-3}, "of body has the norm 6.55e+04 in AMP, 1 in FP32"),
        ({"body": 3.0, "head": 1.5, "bias": 1e-3}, "of body has the norm 3 in AMP, 1 in FP32, and so with 1 more"),
        ({"body": 1.0, "bias": 1e-3}, "head is not trained in AMP"),
    ],
)
def test_the_first_gradient_of_each_parameter_is_that_of_fp32(parts, said):
    """But for what is too small to say anything."""
    fp32 = [started(trained(seed), body=1.0 + 0.1 * seed, head=0.5, bias=1e-3) for seed in range(3)]
    verdict = judge(started(trained(kind="amp"), **parts), fp32)
    assert (verdict.word, verdict.hard) == ((DIFFERENT, True) if said else (SAME, False)), verdict.reasons
    assert said in verdict.reasons[0]


def test_the_first_step_that_was_made_is_compared_with_fp32s_on_the_same_batch():
    fp32 = [started(trained(seed), body=1.0) for seed in range(3)]
    amp = started(trained(kind="amp", skips=(0,)), 1, body=4.0)
    assert judge(amp, fp32, followed={0: started(trained(skips=(0,)), 1, body=4.1)}).word == SAME


def test_curves_and_windows():
    run = trained(steps=20, kind="amp", skips=(0, 5))
    run.steps[3]["losses"].append(["train.py:20", "inf"])
    one, other = curves(run)
    assert len(one.values) == 20 and other.attempts == [3] and math.isinf(other.values[0])
    assert skipped(run) == [0, 5]
    assert bounds(50)[0] == (0, 6) and bounds(50)[-1] == (43, 50) and bounds(3) == [(0, 3)]
    assert 0.05 < scatter(curves(trained(steps=400, rate=0.0))[0].values) < 0.2
