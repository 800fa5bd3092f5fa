"""The training scripts in fixtures/: what amplint says of them, that they train, and that the demo shows it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import amplint
from amplint.checks import check_module
from amplint.config import Settings
from amplint.findings import Severity
from amplint.selection import default_codes
from amplint.source.module import Module

ROOT = Path(amplint.__file__).parents[1]
FIXTURES = ROOT / "fixtures"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_amp.py", ["AMP403", "AMP211", "AMP105", "AMP601", "AMP116"]),
        ("train_fp32.py", []),
        ("resnet50.py", []),
        ("bert_mlm.py", []),
        ("unet.py", []),
    ],
)
def test_what_is_found(name, expected):
    module = Module.read(name, (FIXTURES / name).read_bytes())
    findings = check_module(module, Settings(codes=default_codes())).findings
    assert [finding.code for finding in findings if finding.severity is not Severity.NOTE] == expected


def run(*arguments: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # several threads for so little work wait for each other
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def accuracy(text: str, label: str) -> float:
    found = re.search(rf"{label} .*accuracy (\d+\.\d)%", text)
    assert found, text
    return float(found[1])


@pytest.mark.slow
def test_the_demo(tmp_path):
    """Broken AMP does not learn, repaired AMP does, and converted code learns as well as what it was made from."""
    before = {path: path.read_bytes() for path in FIXTURES.glob("*.py")}
    text = run(FIXTURES / "demo.py", tmp_path / "demo")
    assert before == {path: path.read_bytes() for path in FIXTURES.glob("*.py")}
    amp, fp32 = text.split("train_amp.py, float16")[1].split("train_fp32.py, after")
    assert accuracy(amp, "  as written ") < 50
    assert accuracy(amp, "  repaired ") > 90
    assert accuracy(fp32, "as written, float32") > 95
    assert accuracy(fp32, "converted, bfloat16") > 95


@pytest.mark.slow
def test_an_interrupted_run_goes_on(tmp_path):
    script = (FIXTURES / "train_amp.py", "--no-amp", "--checkpoint", tmp_path / "waves.pt", "--epochs")
    assert run(*script, 1).startswith("epoch 1:")
    assert run(*script, 2).startswith("epoch 2:")


@pytest.mark.slow
@pytest.mark.parametrize(("script", "least", "most"), [("resnet50", 70, 100), ("bert_mlm", 1, 12), ("unet", 0.75, 1)])
def test_converted_scripts_train_alike(script, least, most, tmp_path):
    """Both converted versions end as full precision does, within what its seeds differ by; compare.py fails else."""
    text = run(FIXTURES / "compare.py", tmp_path, "--small", "--script", script)
    ends = re.findall(r"(float32|bfloat16|float16) +([\d.]+)", text)
    assert [dtype for dtype, _ in ends] == ["float32", "bfloat16", "float16"]
    assert all(least <= float(end) <= most for _, end in ends), text  # the best guess without looking: 17 %, 26, 0.22


@pytest.mark.slow
def test_a_converted_checkpoint(tmp_path):
    """A run in full precision is resumed by the converted script, and that one's own checkpoint by itself."""
    old, new = tmp_path / "old.pt", tmp_path / "new.pt"
    small = "--layers 1 1 1 1 --image-size 16 --train-size 64 --val-size 32 --epochs".split()
    run(FIXTURES / "resnet50.py", *small, 1, "--checkpoint", old)
    script = tmp_path / "resnet50.py"
    script.write_bytes((FIXTURES / "resnet50.py").read_bytes())
    run("-m", "amplint", "fix", "--device", "cpu", script)
    assert run(script, *small, 2, "--resume", old, "--checkpoint", new).startswith("going on from epoch 1")
    assert run(script, *small, 3, "--resume", new).startswith("going on from epoch 2")
