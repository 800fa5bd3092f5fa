"""A fix that reads a name reads one that has a value there, whatever the branches above took."""

from __future__ import annotations

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.source.module import Module

SCRIPT = """\
import torch
import torch.nn.functional as F

{given}
model = torch.nn.Linear(8, 2).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def train(scaler):
    for x, y in loader:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=kind):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


scaler = torch.amp.GradScaler("cuda")
train(scaler)
"""


@pytest.mark.parametrize(
    ("given", "offered"),
    [
        ("kind = torch.float16 if fp16 else torch.bfloat16", True),
        ("if fp16:\n    kind = torch.float16\nelse:\n    kind = torch.bfloat16", True),
        ("kind = torch.bfloat16\nif fp16:\n    kind = torch.float16", True),
        ("if fp16:\n    kind = torch.float16\nelif bf16:\n    kind = torch.bfloat16", False),
        (
            "if fp16:\n    kind = torch.float16\nelif bf16:\n    kind = torch.bfloat16\nelse:\n    raise ValueError",
            True,
        ),
    ],
)
def test_the_dtype_has_a_value_where_the_scaler_is_made(given, offered):
    module = Module.read("train.py", SCRIPT.format(given=given).encode())
    settings = Settings(codes=frozenset(("AMP123",)), notes=frozenset(("AMP123",)))
    found = checks.check_module(module, settings).findings
    texts = [edit.text for one in found if one.fix for edit in one.fix.edits]
    assert any("enabled=kind == torch.float16" in text for text in texts) is offered
