"""The verdict on made records: what drifts as rounding does is the same, and each way of not being the same is told."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from amplint.verify.compare import DIFFERENT, SAME, TOO_FEW, Verdict, compare
from amplint.verify.curves import bounds, curves, kept, scatter, skipped
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
            }
        )
    run.answer = {"ended": "steps", "faults": [], **answer}
    return run


FP32 = [trained(seed) for seed in range(3)]


def judge(amp: Run, fp32: list[Run] = FP32, dtype: str = "float16", **more: Any) -> Verdict:
    severity = {"AMP105": "error", "AMP117": "warning"}.__getitem__
    return compare(fp32, [amp], dtype, severity, **more)


def spoiled(run: Run, at: int, value: Any) -> Run:
    run.steps[at]["losses"][0][1] = value
    return run


FAULT = {"code": "AMP105", "what": "clips scaled gradients", "count": 50, "place": "train.py:12"}


@pytest.mark.parametrize(
    ("amp", "said"),
    [
        (trained(kind="amp"), "< 0.01 % from FP32"),
        (trained(kind="amp", drift=0.05), "from FP32"),
        (trained(kind="amp", drift=0.05, skips=(0, 1)), "2 steps skipped by the scaler while it found its scale"),
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
    plain = judge(amp, fp32)
    delayed = trained(rate=0.3, batch=0.01, skips=skips)
    verdict = judge(amp, fp32, delayed=delayed)
    assert verdict.word == SAME, verdict.reasons
    assert plain.word == SAME or plain.doubts == {"skips"}


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
    assert compare(fp32, wide[:1], "float16", severity).word == DIFFERENT
    assert compare(fp32, wide, "float16", severity).word == SAME
    assert compare(fp32, common, "float16", severity).word == DIFFERENT


def test_false_alarms_are_rare():
    """AMP that has drifted as far from FP32 as another seed's run is, which is the worst that rounding does."""
    alarms, again = 0, 0
    severity = {}.get
    for trial in range(0, 600, 3):
        fp32 = [trained(trial + seed) for seed in range(3)]
        amp = [trained(trial + seed, kind="amp", drift=0.14) for seed in range(3)]
        if compare(fp32, amp[:1], "float16", severity).word != SAME:
            alarms += 1
            again += compare(fp32, amp, "float16", severity).word != SAME
    assert alarms < 50 and again < 12, (alarms, again)


def test_curves_and_windows():
    run = trained(steps=20, kind="amp", skips=(0, 5))
    run.steps[3]["losses"].append(["train.py:20", "inf"])
    one, other = curves(run)
    assert len(one.values) == 20 and other.attempts == [3] and math.isinf(other.values[0])
    assert skipped(run) == [0, 5] and len(kept(one, run)) == 18
    assert bounds(50)[0] == (0, 6) and bounds(50)[-1] == (43, 50) and bounds(3) == [(0, 3)]
    assert 0.05 < scatter(curves(trained(steps=400, rate=0.0))[0].values) < 0.2
