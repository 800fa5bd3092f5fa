"""The compiled FP16 matmul beside torch's own: speed, what the counters cost, and how far results are from float64.

python benchmarks/kernels.py [--threads N]

On a CPU: GFLOP/s at 256³ to 1024³ beside torch's half matmul and FP32 matmul (MKL). On a GPU: TFLOP/s at 1024³, 4096³
and 8192³ beside torch's half matmul (cuBLAS). Random operands; the median of several runs after a warm-up.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from amplint.verify.kernels import ops

SHAPES = [(1, 1, 1), (3, 5, 7), (64, 64, 64), (129, 65, 257), (1, 1024, 33), (255, 1000, 63), (512, 4096, 256)]


def measure(device: str) -> dict[str, Any]:
    """All of it on this device, as JSON has it."""
    began = time.perf_counter()
    how = ops.load(device)
    loaded = round(time.perf_counter() - began, 1)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False  # cuBLAS is to sum in FP32, too
    return {"how": how, "built or loaded in s": loaded, "correct": correct(device), "speed": speed(device)}


def correct(device: str) -> dict[str, Any]:
    """The worst error against float64, in units of what FP32 accumulation and one rounding allow; and the counters
    against those of a float64 product, for products that overflow, underflow and hold NaN."""
    torch.manual_seed(0)
    worst: dict[str, float] = {}
    wrong: list[str] = []
    for m, k, n in SHAPES:
        for strides in ("nn", "nt", "tn", "tt"):
            a = torch.randn((m, k) if strides[0] == "n" else (k, m), device=device).half()
            b = torch.randn((k, n) if strides[1] == "n" else (n, k), device=device).half()
            a, b = (a if strides[0] == "n" else a.T), (b if strides[1] == "n" else b.T)
            for accumulate in ("float32", "float16"):
                out, counts = torch.ops.amplint.mm(a, b, accumulate, 0)
                exact = a.double() @ b.double()
                size = a.double().abs() @ b.double().abs()
                # Higham, Accuracy and Stability, (3.5): |error| ≤ k·u·|a||b|; one rounding of the result more
                bound = (k * 2.0**-23 * size) + exact.abs() * 2.0**-11 + 2.0**-25
                if accumulate == "float16":
                    bound = bound + (k // 16 + 1) * 2.0**-11 * size
                ratio = float(((out.double() - exact).abs() / bound).max())
                worst[accumulate] = max(worst.get(accumulate, 0.0), ratio)
                if ops.Counts.of(counts).elements != m * n:
                    wrong.append(f"{m}x{k}x{n} {strides} {accumulate}: elements")
    cases = {
        "overflow": (torch.full((64, 64), 300.0), torch.full((64, 64), 300.0), {"inf": 64 * 64}),
        "flush": (torch.full((64, 16), 1e-5), torch.full((16, 64), 1e-5), {"flushed": 64 * 64}),
        "subnormal": (torch.full((64, 1), 1e-3), torch.full((1, 64), 1e-3), {"subnormal": 64 * 64}),
        "nan": (torch.full((32, 32), float("nan")), torch.ones(32, 32), {"nan": 32 * 32}),
    }
    for name, (a, b, expected) in cases.items():
        got = ops.Counts.of(torch.ops.amplint.mm(a.half().to(device), b.half().to(device))[1])
        told = {key: getattr(got, key) for key in ("inf", "nan", "flushed", "subnormal")}
        if told != dict.fromkeys(told, 0) | expected:
            wrong.append(f"{name}: {told}")
    ten = torch.randn(10, 96, 64, device=device).half()
    batched = torch.ops.amplint.mm(ten, ten.transpose(1, 2))[0]
    one_by_one = torch.stack([torch.ops.amplint.mm(x, x.T)[0] for x in ten])
    if not torch.equal(batched, one_by_one):
        wrong.append("batched differs from one by one")
    return {"worst error, of what is allowed": {key: round(value, 3) for key, value in worst.items()}, "wrong": wrong}


def speed(device: str) -> dict[str, Any]:
    """10⁹ floating point operations a second, and ratios."""
    sizes = (1024, 4096, 8192) if device == "cuda" else (256, 512, 1024)
    return {f"{size}": _at(device, size) for size in sizes}


def _at(device: str, size: int) -> dict[str, Any]:
    torch.manual_seed(0)
    a, b = (torch.randn(size, size, device=device).half() for _ in range(2))
    full = a.float(), b.float()
    mm = torch.ops.amplint.mm
    work: dict[str, Callable[[], Any]] = {
        "torch half": lambda: a @ b,
        "torch float32": lambda: full[0] @ full[1],
        "amplint": lambda: mm(a, b),
        "amplint, FP16 accumulation": lambda: mm(a, b, "float16", 0),
    }
    if device == "cuda":
        raw = torch.ops.amplint._mm_cuda
        work["amplint, not counted"] = lambda: raw(a, b, "float32", 0, "", False)
        work["amplint, tile"] = lambda: raw(a, b, "float32", 0, "tile", True)
    elif ops.load("cpu").startswith("C++"):
        for path in torch.ops.amplint._cpu_paths().split("; "):
            on = functools.partial(torch.ops.amplint._mm_path, a, b, "float32", 0, path)
            work |= {f"amplint, {path}": functools.partial(on, True)}
        work["amplint, not counted"] = lambda: torch.ops.amplint._mm_path(a, b, "float32", 0, "", False)
    row: dict[str, Any] = {}
    flops = 2.0 * size**3
    for name, run in work.items():
        try:
            row[name] = round(flops / _seconds(run, device) / 1e9, 1)
        except Exception as error:
            row[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    numbers = {name: value for name, value in row.items() if isinstance(value, float)}
    for other in ("torch half", "torch float32", "amplint, not counted"):
        if other in numbers and "amplint" in numbers:
            row[f"amplint / {other}"] = round(numbers["amplint"] / numbers[other], 3)
    return row


def _seconds(run: Callable[[], Any], device: str) -> float:
    """The median time of a call."""
    for _ in range(3 if device == "cuda" else 1):
        run()
    if device == "cpu":
        clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter  # others' work is not ours
        times = []
        for _ in range(5):
            began = clock()
            run()
            times.append(clock() - began)
        return statistics.median(times)
    times = []
    for _ in range(15):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch and the kernel, on a CPU")
    torch.set_num_threads(parser.parse_args().threads)
    print(json.dumps(measure("cuda" if torch.cuda.is_available() else "cpu"), indent=1))


if __name__ == "__main__":
    main()
