"""Places of other files: what a script does in them is found in the script, and read in its own text."""

from __future__ import annotations

from pathlib import Path

from amplint import checks
from amplint.config import Settings
from amplint.source.module import Module

HELPERS = (
    "\n" * 40
    + """import torch


def forward(model, x):
    with torch.autocast("cuda", dtype=torch.float16):
        return model(x)
"""
)
SCRIPT = """import torch
import torch.nn.functional as F
from helpers import forward

model = torch.nn.Linear(784, 10).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader:
    loss = F.cross_entropy(forward(model, x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_a_region_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    (tmp_path / "helpers.py").write_text(HELPERS)
    script = Module.read(str(path), SCRIPT.encode())
    found = checks.check_module(script, Settings(codes=frozenset(("AMP212",)))).findings
    assert [finding.range.start.row for finding in found] == [8]
    assert [Path(place.path).name for place in found[0].related] == ["helpers.py", "train.py"]
