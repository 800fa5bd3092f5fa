"""The cast plan on models of timm and transformers: whether the graph with explicit casts, run without autocast, gives
what the captured graph gives under it, bit for bit; the casts, what they move, and the work that stays in float32.

    python benchmarks/plan.py [MODEL …] [--calibrate]
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace
from typing import Any

import torch
import zoo

from amplint.graph.calibrate import measure
from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.ladder import capture
from amplint.graph.gradients import gradients
from amplint.graph.plan import Plan, explicit, plan
from amplint.graph.policy import cuda_policy
from amplint.graph.run import run

TIMM = """
    resnet18 convnext_atto efficientnet_b0 test_vit swin_tiny_patch4_window7_224 regnetx_002 mobilevit_s ghostnet_050
    pvt_v2_b0 gmlp_ti16_224 nf_ecaresnet26 xcit_nano_12_p16_224
""".split()


def values(captured: Captured) -> list[torch.Tensor]:
    """What the graph gives."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        flat = run(captured, full=False)
    return [one for one in torch.utils._pytree.tree_leaves(flat) if isinstance(one, torch.Tensor)]


def differing(captured: Captured) -> str:
    """How the two differ: nowhere, or in so many of the outputs."""
    with cuda_policy():
        wanted = values(captured)
    given = values(replace(captured, graph=explicit(captured)))
    equal = [
        one.dtype == other.dtype and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))
        for one, other in zip(wanted, given, strict=True)
    ]
    return "equal" if all(equal) else f"{equal.count(False)} of {len(equal)} differ"


def row(name: str, case: zoo.Case, calibrate: bool) -> list[str]:
    model, args, kwargs = case
    captured = capture(model, args, kwargs, Precision())
    start = time.perf_counter()
    found: Plan = plan(captured)
    seconds = time.perf_counter() - start
    counts = found.counts
    cells: list[Any] = [name, captured.frontend, len(found.lists), counts["lower"], counts["fp32"], counts["promote"]]
    cells += [
        found.made,
        f"{found.bytes / 2**20:.1f}",
        f"{found.fp32_share:.1%}",
        f"{seconds:.1f}",
        differing(captured),
    ]
    if calibrate:
        start = time.perf_counter()
        calibration = measure(captured)
        took = time.perf_counter() - start
        flow = gradients(captured, calibration)
        cells += [f"{took:.1f}", f"{step(captured):.1f}", calibration.silent]
        cells += [f"{flow.flushed():.2%}", f"{flow.flushed(16):.3%}", flow.window] if flow else ["", "", ""]
    return [str(one) for one in cells]


def step(captured: Captured) -> float:
    """Seconds of one forward and backward of the same graph without statistics."""
    start = time.perf_counter()
    with torch.enable_grad():
        output = run(captured)
        one = next(one for one in torch.utils._pytree.tree_leaves(output) if getattr(one, "requires_grad", False))
        one.float().square().mean().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--calibrate", action="store_true", help="also measure gradients, by the surrogate loss")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = [
        "model",
        "front end",
        "nodes",
        "lower",
        "fp32",
        "promote",
        "casts",
        "MiB",
        "fp32 work",
        "seconds",
        "agrees",
    ]
    heads += ["calibration, s", "a step, s", "silent", "flushed at 1", "at 2^16", "useful"] if options.calibrate else []
    print("|", " | ".join(heads), "|\n|", "---|" * len(heads), sep="")
    for name in options.models or [*zoo.TRANSFORMERS, *TIMM]:
        try:
            case = zoo.transformers(name) if name in zoo.TRANSFORMERS else zoo.timm(name)
            print("|", " | ".join(row(name, case, options.calibrate)), "|", flush=True)
        except Exception as error:  # one model's failure is a row
            print(
                f"| {name} | {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} |", flush=True
            )


if __name__ == "__main__":
    main()
