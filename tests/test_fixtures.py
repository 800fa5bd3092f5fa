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
from amplint.selection import default_codes
from amplint.source.module import Module

ROOT = Path(amplint.__file__).parents[1]
FIXTURES = ROOT / "fixtures"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train_amp.py", ["AMP403", "AMP211", "AMP105", "AMP601", "AMP116"]),
        ("train_fp32.py", []),
    ],
)
def test_what_is_found(name, expected):
    module = Module.read(name, (FIXTURES / name).read_bytes())
    findings = check_module(module, Settings(codes=default_codes())).findings
    assert [finding.code for finding in findings] == expected


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
