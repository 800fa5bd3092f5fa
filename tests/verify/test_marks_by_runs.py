"""A mark that `trace` makes, confirmed or refuted by a whole run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
for step in range(12):
    x, y = torch.randn(32, 16).to(device), torch.randint(4, (32,)).to(device)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
"""
HALF = [(".to(device)\nopt", ".to(device).bfloat16()\nopt"), ("model(x)", "model(x.bfloat16())")]
LATER = [("    optimizer.step()", '    optimizer.param_groups[0]["lr"] = 0.01\n    optimizer.step()')]


def edited(text: str, edits: list[tuple[str, str]]) -> str:
    for old, new in edits:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edits", "outcome", "least", "most"),
    [([], "confirmed", 600, 676), (LATER, "refuted", 0, 60)],
)
def test_updates_that_half_weights_swallow(tmp_path: Path, edits, outcome, least, most):
    """AMP455 goes by the learning rate that the optimizer was made with; the step has the last word."""
    (tmp_path / "train.py").write_text(edited(SCRIPT, edits))
    (tmp_path / "half.py").write_text(edited(SCRIPT, [*HALF, *edits]))
    command = [sys.executable, "-m", "amplint", "verify", "train.py", "--against", "half.py", "--dtype", "bfloat16"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command += ["--output-format", "json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600, env=env)
    marks = {mark["code"]: mark for mark in json.loads(done.stdout)["marks"]}
    left = re.search(r"the first step left (\d+) of 676 half weights", marks["AMP455"]["evidence"])
    assert left and least <= int(left[1]) <= most and marks["AMP455"]["outcome"] == outcome, marks
    assert marks["AMP305"]["outcome"] == "confirmed"
