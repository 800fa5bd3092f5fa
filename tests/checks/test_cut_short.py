"""What is told of a script whose reading the work limit ended."""

from __future__ import annotations

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.source.interpret import machine
from amplint.source.module import Module

_SCALED_AT_TIMES = """\
import torch
from torch import nn

model = nn.Linear(4, 4).cuda()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
scaler = torch.amp.GradScaler("cuda")
for x, y in loader:
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nn.functional.mse_loss(model(x), y)
    loss = scaler.scale(loss) if often else loss
    loss.backward()
    scaler.step(optimizer)
    scaler.update()
"""


def _codes() -> list[str]:
    module = Module.read("train.py", (_SCALED_AT_TIMES + "print(0)\n" * 2000).encode())
    settings = Settings(codes=frozenset(("AMP103", "AMP104")))
    return [finding.code for finding in checks.check_module(module, settings).findings]


def test_whether_a_loss_is_scaled_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which condition it hangs on may have been forgotten: a backward that is seen both ways is not judged."""
    assert _codes() == ["AMP103"]
    monkeypatch.setattr(machine, "MOST_STEPS", 1000)
    assert _codes() == []
