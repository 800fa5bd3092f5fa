"""All that needs a GPU, in one go: python benchmarks/gpu.py [--only SECTION …] [--out FILE]. Sections:

policy    CUDA autocast's real dtypes against rules/ops.toml
crashes   what raises for half tensors: operations without a half kernel, operands of two dtypes, constants beyond 65504
kernels   the compiled FP16 matmul against torch's own: speed, counters' cost, correctness (benchmarks/kernels.py)
fixtures  the three training scripts at real sizes: FP32 with TF32 off and on, `amplint fix` in FP16 and BF16, AMP
          written by hand: time, memory and energy a step, and the loss that they reach
verify    `amplint verify` itself on one of them, marks against measurements included

Results go to benchmarks/results/<device>.json, section by section as they are there, with device and versions. On a
machine without a GPU `fixtures` and `verify` run small and say nothing of speed, to show that they run at all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "amplint" / "graph" / "child" / "start.py"
GPU = torch.cuda.is_available()
STEPS, WARM_UP = (50, 10) if GPU else (8, 2)

# The sizes in which these networks are trained, as far as a minute allows; and tiny ones for a CPU.
SIZES = {
    "resnet50": "--width 64 --image-size 224 --classes 1000 --batch-size 128 --train-size 1280 --val-size 128",
    "bert_mlm": "--hidden-size 768 --layers 12 --heads 12 --max-length 128 --batch-size 64 --lr 1e-4",
    "unet": "--channels 64 --depth 4 --image-size 256 --batch-size 16 --train-size 320 --val-size 16 --lr 1e-3",
}
TINY = {
    "resnet50": "--layers 1 1 1 1 --image-size 16 --train-size 256 --batch-size 16",
    "bert_mlm": "--hidden-size 32 --train-size 256 --val-size 32",
    "unet": "--depth 2 --channels 4 --image-size 16 --train-size 128 --val-size 16",
}
# AMP as a person writes it, from torch's own recipe: what is replaced, and by what.
BY_HAND = {
    "resnet50": [
        (
            "        output = model(images)\n        loss = criterion(output, target)\n        losses.update",
            '        with torch.autocast("cuda", torch.float16):\n            output = model(images)\n'
            "            loss = criterion(output, target)\n        losses.update",
        ),
        (
            "        loss.backward()\n        optimizer.step()\n",
            "        scaler.scale(loss).backward()\n        scaler.step(optimizer)\n        scaler.update()\n",
        ),
        ("def train(loader", 'scaler = torch.amp.GradScaler("cuda")\n\n\ndef train(loader'),
    ],
    "bert_mlm": [
        (
            "            loss, _ = model(input_ids, labels)\n",
            '            with torch.autocast("cuda", torch.float16):\n'
            "                loss, _ = model(input_ids, labels)\n",
        ),
        ("            loss.backward()\n", "            scaler.scale(loss).backward()\n"),
        (
            "                torch.nn.utils.clip_grad_norm_",
            "                scaler.unscale_(optimizer)\n                torch.nn.utils.clip_grad_norm_",
        ),
        (
            "                optimizer.step()\n",
            "                scaler.step(optimizer)\n                scaler.update()\n",
        ),
        ("def main(", 'scaler = torch.amp.GradScaler("cuda")\n\n\ndef main('),
    ],
    "unet": [
        (
            "            masks_pred = model(images)\n            loss = criterion(masks_pred, masks)\n",
            '            with torch.autocast("cuda", torch.float16):\n                masks_pred = model(images)\n'
            "                loss = criterion(masks_pred, masks)\n",
        ),
        (
            "            loss.backward()\n",
            "            scaler.scale(loss).backward()\n            scaler.unscale_(optimizer)\n",
        ),
        ("            optimizer.step()\n", "            scaler.step(optimizer)\n            scaler.update()\n"),
        ("def train_model(", 'scaler = torch.amp.GradScaler("cuda")\n\n\ndef train_model('),
    ],
}  # fmt: skip


_chosen = [*SIZES]


def policy() -> dict[str, Any]:
    """How many calls of listed operations gave the dtype of their list under CUDA's own autocast."""
    if not GPU:
        return {"not measured": "there is no GPU"}
    torch.set_default_device("cuda")
    sys.path.insert(0, str(ROOT))
    try:
        listed = importlib.import_module("tests.graph.test_policy")
    finally:
        sys.path.remove(str(ROOT))
    half, full = torch.float16, torch.float32
    expected: list[tuple[str, Callable[[], Any], torch.dtype]] = []
    for table, dtype in ((listed.LOWER, half), (listed.WIDEN, full), (listed.KEPT, half)):
        expected += [(name, call, dtype) for name, call in table.items()]
    for name, call in listed.PROMOTE.items():
        expected.append((f"{name}, half", lambda call=call: call(listed.h(3)), half))  # type: ignore[misc]
        expected.append((f"{name}, float32", lambda call=call: call(listed.f(3)), full))  # type: ignore[misc]
    wrong = {}
    with torch.autocast("cuda", half):
        for name, call, dtype in expected:
            try:
                got = str(call().dtype)
            except Exception as error:
                got = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            if got != str(dtype):
                wrong[name] = f"{got}, expected {dtype}"
    torch.set_default_device("cpu")
    return {"calls": len(expected), "as listed": len(expected) - len(wrong), "wrong": wrong}


# Of a half tensor x, with a number c beyond 65504, a mask m and indices k: what raises, and what becomes an infinity.
CONSTANTS = {
    "masked_fill": "x.masked_fill(m, c)",
    "masked_fill, a tensor": "x.masked_fill(m, torch.tensor(c))",
    "fill_": "x.clone().fill_(c)",
    "full": "torch.full((4,), c, dtype=x.dtype)",
    "full_like": "torch.full_like(x, c)",
    "new_full": "x.new_full((4,), c)",
    "new_tensor": "x.new_tensor(c)",
    "clamp": "x.clamp(min=-c)",
    "scatter": "x.scatter(0, k, c)",
    "index_fill": "x.index_fill(0, k, c)",
    "F.pad": "F.pad(x, (1, 1), value=c)",
    "where, the number last": "torch.where(m, x, c)",
    "where, the number first": "torch.where(m, c, x)",
    "where, a float32 tensor": "torch.where(m, x, torch.tensor(c))",
    "x + c": "x + c",
    "x * c": "x * c",
    "x[m] = c": "store(x, m, c)",
    "x[k] = c": "store(x, k, c)",
    "addcmul, value": "torch.addcmul(x, x, x, value=c)",
    "add, alpha": "torch.add(x, x, alpha=c)",
    "threshold": "F.threshold(x, 2.0, c)",
    "torch.tensor": "torch.tensor(c, dtype=x.dtype)",
    "to(half)": "torch.tensor(c).to(x.dtype)",
}
# Of a half tensor and a float32 one of the same shape (a square of 4, a batch of them, an image): what takes both.
TWO_DTYPES = {
    "add": "a + b", "cat": "torch.cat([a, b])", "stack": "torch.stack([a, b])", "where": "torch.where(m, a, b)",
    "maximum": "torch.maximum(a, b)", "addcmul": "torch.addcmul(a, b, b)", "lerp": "torch.lerp(a, b, 0.5)",
    "matmul": "a @ b", "mv": "a @ b[0]", "dot": "a[0] @ b[0]", "bmm": "A @ B", "einsum": 'torch.einsum("ij,jk", a, b)',
    "tensordot": "torch.tensordot(a, b, 1)", "inner": "torch.inner(a, b)", "outer": "torch.outer(a[0], b[0])",
    "kron": "torch.kron(a, b)", "addmm": "torch.addmm(a, b, b)", "baddbmm": "torch.baddbmm(A, B, B)",
    "addmm_": "a.clone().addmm_(b, b)", "baddbmm_": "A.clone().baddbmm_(B, B)", "linear": "F.linear(a, b)",
    "conv2d": "F.conv2d(I, J)", "bilinear": "F.bilinear(a, a, B)", "prelu": "F.prelu(a, b[0, :1])",
    "attention": "F.scaled_dot_product_attention(A, A, B)", "grid_sample": "F.grid_sample(I, G, align_corners=False)",
    "layer_norm, half weights": "F.layer_norm(b, (4,), a[0], a[0])",
    "layer_norm, half input": "F.layer_norm(a, (4,), b[0], b[0])",
    "group_norm, half weights": "F.group_norm(J, 2, a[0], a[0])",
    "batch_norm, half weights": "F.batch_norm(J, None, None, a[0], a[0], True)",
    "batch_norm, half input": "F.batch_norm(I, None, None, b[0], b[0], True)",
    "embedding": "F.embedding(k, a)", "x[k] = y": "store(a, k, b)", "x[m] = y": "store(a, m, b[m])",
    "index_put": "a.index_put((k,), b)", "index_add": "a.index_add(0, k, b)", "index_copy": "a.index_copy(0, k, b)",
    "scatter": "a.scatter(0, K, b)", "scatter_add": "a.scatter_add(0, K, b)",
    "scatter_add_": "a.clone().scatter_add_(0, K, b)", "scatter_reduce": 'a.scatter_reduce(0, K, b, "sum")',
    "masked_scatter": "a.masked_scatter(m, b)", "copy_": "a.clone().copy_(b)", "add_ to half": "a.clone().add_(b)",
    "mse_loss": "grad(F.mse_loss(r, b))", "l1_loss": "grad(F.l1_loss(r, b))",
    "smooth_l1_loss": "grad(F.smooth_l1_loss(r, b))", "huber_loss": "grad(F.huber_loss(r, b))",
    "kl_div": "grad(F.kl_div(r, b))", "bce": "grad(F.binary_cross_entropy(r.sigmoid(), b.sigmoid()))",
    "bce_with_logits": "grad(F.binary_cross_entropy_with_logits(r, b))",
    "cross_entropy, probabilities": "grad(F.cross_entropy(r, b))",
    "cross_entropy, weights": "grad(F.cross_entropy(r, k, weight=b[0]))",
    "cdist": "torch.cdist(a, b)", "cosine_similarity": "F.cosine_similarity(a, b)", "gather": "a.gather(0, K)",
}  # fmt: skip


def crashes() -> dict[str, Any]:
    """What raises, and the dtype or the number that comes out of what does not."""
    sys.path.insert(0, str(ROOT))
    try:
        tests = importlib.import_module("tests.test_ops")
    finally:
        sys.path.remove(str(ROOT))
    device = "cuda" if GPU else "cpu"
    torch.set_default_device(device)
    told: dict[str, Any] = {}
    for dtype in (torch.float16, torch.bfloat16):
        square, name = torch.eye(4, dtype=dtype), str(dtype).removeprefix("torch.")
        names = {"torch": torch, "F": torch.nn.functional, "a": square, "v": torch.ones(4, dtype=dtype)}
        calls = {
            op: tests.HALF_CALLS.get(op, f"torch.fft.{op.removeprefix('fft_')}(a)")
            for op in tests.OPS["no_half_kernel"]
        }
        for region in ("", " under autocast"):
            with torch.autocast(device, dtype, enabled=bool(region)):
                told[f"no half kernel, {name}{region}"] = {op: _outcome(call, names) for op, call in calls.items()}
                told[f"two dtypes, {name}{region}"] = {
                    op: _outcome(call, _two(dtype)) for op, call in TWO_DTYPES.items()
                }
    names = {"x": torch.ones(4, dtype=torch.float16), "m": torch.tensor([True, False, True, False]), "c": -1e9}
    names |= {"k": torch.tensor([0, 2]), "torch": torch, "F": torch.nn.functional, "store": _store}
    told["constants, float16"] = {name: _outcome(call, names, value=True) for name, call in CONSTANTS.items()}
    torch.set_default_device("cpu")
    return told


def _two(dtype: torch.dtype) -> dict[str, Any]:
    torch.manual_seed(0)
    square, batch, image = torch.rand(4, 4), torch.rand(2, 4, 4), torch.rand(2, 4, 4, 4)
    names = {"torch": torch, "F": torch.nn.functional, "store": _store, "grad": _grad, "k": torch.arange(4)}
    names |= {"a": square.to(dtype), "b": square, "A": batch.to(dtype), "B": batch, "I": image.to(dtype), "J": image}
    names |= {"m": square > 0.5, "K": torch.zeros(4, 4, dtype=torch.long), "G": torch.rand(2, 3, 3, 2)}
    return names | {"r": square.to(dtype).requires_grad_()}


def _store(into: torch.Tensor, where: torch.Tensor, what: object) -> torch.Tensor:
    into = into.clone()
    into[where] = what
    return into


def _grad(loss: torch.Tensor) -> torch.Tensor:
    loss.backward()
    return loss


def _outcome(call: str, names: dict[str, Any], value: bool = False) -> str:
    """The dtype of a call's result (its last number), or what it raises."""
    try:
        result = eval(call, names)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    result = result[0] if isinstance(result, tuple | list) else result
    if value:
        return f"{str(result.dtype).removeprefix('torch.')} {result.double().flatten().min().item():g}"
    return str(result.dtype).removeprefix("torch.")


def kernels() -> dict[str, Any]:
    """What benchmarks/kernels.py measures on this device."""
    sys.path.insert(0, str(Path(__file__).parent))
    measured: dict[str, Any] = importlib.import_module("kernels").measure("cuda" if GPU else "cpu")
    return measured


def fixtures() -> dict[str, Any]:
    """Each script five ways and a second seed."""
    return {script: _script(script) for script in _chosen}


def _script(script: str) -> dict[str, Any]:
    arguments = [*(SIZES if GPU else TINY)[script].split(), "--epochs", "40"]
    plain, tf32 = {"NVIDIA_TF32_OVERRIDE": "0"}, {"NVIDIA_TF32_OVERRIDE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        original = Path(shutil.copy(ROOT / "fixtures" / f"{script}.py", folder))
        ways: dict[str, tuple[Path, str, int, dict[str, str]]] = {
            "float32": (original, "fp32", 0, plain),
            "float32, another seed": (original, "fp32", 1, plain),
            "float32 with TF32": (original, "fp32", 0, tf32),
            "float16 by amplint fix": (_converted(original, "float16"), "amp", 0, plain),
            "bfloat16 by amplint fix": (_converted(original, "bfloat16"), "amp", 0, plain),
        }
        if GPU:
            ways["float16 by hand"] = (_by_hand(original, script), "amp", 0, plain)
        rows = {}
        for way, (path, kind, seed, env) in ways.items():
            began = time.perf_counter()
            rows[way] = _run(path, arguments, kind, seed, env) | {"wall": round(time.perf_counter() - began, 1)}
            print(f"{script:9} {way:24} {json.dumps(rows[way])}", flush=True)
    return {"arguments": " ".join(arguments), "steps": STEPS, "warm-up": WARM_UP, "runs": rows}


def _converted(original: Path, dtype: str) -> Path:
    path = original.with_name(f"{original.stem}_{dtype}.py")
    shutil.copy(original, path)
    command = [sys.executable, "-m", "amplint", "fix", "--isolated", "--dtype", dtype, str(path)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    return path


def _by_hand(original: Path, script: str) -> Path:
    text = original.read_text(encoding="utf-8")
    for old, new in BY_HAND[script]:
        assert text.count(old) == 1, (script, old)
        text = text.replace(old, new)
    path = original.with_name(f"{script}_by_hand.py")
    path.write_text(text, encoding="utf-8")
    return path


def _run(path: Path, arguments: list[str], kind: str, seed: int, env: dict[str, str]) -> dict[str, Any]:
    """One run of verify's child, uncounted on a GPU: time, memory, energy, and the last losses."""
    job = {
        "door": "verify", "target": str(path), "arguments": arguments, "steps": STEPS, "seed": seed, "kind": kind,
        "count": kind == "amp" and not GPU, "accumulate": "float32", "dtype": "float16", "full_precision": False,
        "device": "cuda" if GPU else "cpu", "warmup": WARM_UP, "batch_factor": 1,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(START), folder], env=os.environ | env, cwd=path.parent, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        said = Path(folder, "answer.json")
        answer = json.loads(said.read_text(encoding="utf-8")) if said.exists() else {"error": done.stderr[-800:]}
        if answer.get("error"):
            return {"error": answer["error"]}
        steps = [json.loads(line) for line in Path(folder, "steps.0.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [value for step in steps for _, value in step["losses"] if isinstance(value, float)]
    energy, counted = answer.get("energy"), len(steps) - WARM_UP
    return {
        "ms a step": round(1000 * statistics.median(step["seconds"] for step in steps[WARM_UP:]), 3),
        "memory": answer.get("memory"),
        "joules a step": round(energy / counted, 3) if energy and counted > 0 else None,
        "skipped": sum(bool(step["skipped"]) for step in steps),
        "first loss": losses[0] if losses else None,
        "last quarter's loss": statistics.mean(losses[-len(losses) // 4 :]) if losses else None,
        "faults": answer.get("faults"),
    }


def verify() -> dict[str, Any]:
    """`amplint verify` on the U-Net: its verdict, costs, and marks against measurements."""
    script = "unet"
    arguments = [*(SIZES if GPU else TINY)[script].split(), "--epochs", "40"]
    with tempfile.TemporaryDirectory() as folder:
        path = shutil.copy(ROOT / "fixtures" / f"{script}.py", folder)
        command = [
            sys.executable, "-m", "amplint", "verify", path, "--steps", "24", "--seeds", "2", "--output-format", "json",
            "--", *arguments,
        ]  # fmt: skip
        env = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
        done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=400, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        return {"exit": done.returncode, "error": done.stderr[-2000:]}
    kept = ("verdict", "speed", "memory", "energy", "not_measured", "faults", "marks", "advice", "notes", "skipped")
    return {"exit": done.returncode} | {key: report.get(key) for key in kept} | {"lines": report.get("lines", [])[:12]}


def main() -> None:
    sections = {section.__name__: section for section in (policy, crashes, kernels, fixtures, verify)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(sections), default=list(sections))
    parser.add_argument("--script", nargs="+", choices=list(SIZES), default=list(SIZES), help="of the fixtures")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    _chosen[:] = options.script
    name = torch.cuda.get_device_name() if GPU else "cpu"
    out = options.out or ROOT / "benchmarks" / "results" / f"{name.lower().replace(' ', '-')}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    results |= {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }
    for section in options.only:
        began = time.perf_counter()
        try:
            results[section] = sections[section]()
        except Exception as error:  # the other sections are still of use
            results[section] = {"error": f"{type(error).__name__}: {error}"}
        print(f"{section}: {time.perf_counter() - began:.0f} s\n{json.dumps(results[section], indent=1)}", flush=True)
        out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
