"""The dtype that amplint gives the result of an operation, by the policy of autocast and by what the operands are."""

from __future__ import annotations

import pytest

from amplint.source import events
from amplint.source.interpret.entries import read
from amplint.source.module import Module

HEAD = """\
import torch
import torch.nn.functional as F
from torch import nn
net, half = nn.Linear(8, 8).cuda(), nn.Linear(8, 8).cuda().half()
gain = nn.Parameter(torch.ones(8))
"""
REGION = """\
with torch.autocast("cuda", dtype=torch.float16):
    h = net(x)
    y = {}
"""
ALONE = """\
h = half(x)
y = {}
"""
UNDER_AUTOCAST = [
    ("h.masked_fill(mask, 0.0)", "float16"),
    ("torch.where(mask, h, 0.0)", "float16"),
    ("h.mean(axis)", "float16"),
    ("h.sum(axis)", "float32"),
    ("h + gain", "float32"),
    ("h * scale", "float16"),
    ("h + torch.finfo(h.dtype).tiny", "float16"),
    ("torch.cat([h, h], 1)", "float16"),
    ("torch.cat([h, h.float()], 1)", "float32"),
    ("nn.Embedding(9, 8)(ids)", "float32"),
    ("h * h", "float16"),
    ("h**2", "float32"),
    ("h.float() @ h.float()", "float16"),
    ("torch.rand_like(h).log()", "float32"),
    ("F.normalize(h)", "float32"),
    ("h + other", ""),
    ("h.max(1)[0] * 2", "float16"),
    ("h.topk(3)[1] * 2", "integer"),
    ("h.max(1)[0][1] * 2", "float16"),
    ("h / torch.sqrt(torch.tensor(h.shape[-1]).float())", "float16"),
    ("h * torch.tensor(2.0, dtype=torch.float64)", "float16"),
    ("h * torch.ones(8)", "float32"),
    ("h.argmax(1) * torch.tensor(0.5)", "float32"),
    ("torch.tensor(2.0) * 3.0", "float32"),
    ("h * torch.tensor(2.0).cuda()", "float16"),
    ("h * torch.tensor(2.0).repeat(8)", "float32"),
    ("h * torch.tensor(2.0)[None]", "float32"),
    ("h * torch.unsqueeze(torch.tensor(2.0), 0).sqrt()", "float32"),
]
WITHOUT_AUTOCAST = [
    ("h.sum(axis)", "float16"),
    ("h**2", "float16"),
    ("h.softmax(axis)", "float16"),
    ("F.normalize(h)", "float16"),
    ("h + gain", "float32"),
    ("nn.Embedding(9, 8)(ids)", "float32"),
    ("torch.norm(half.weight.grad)", "float16"),
    ("torch.norm(net.weight.grad)", ""),
    ("net(x).mean()", ""),
]


def dtype(script: str) -> str:
    """The dtype of what the last line's last operation gives."""
    module = Module.read("train.py", script.encode())
    last = len(script.splitlines())
    return [
        event.result.dtype
        for event in read(module).events
        if isinstance(event, events.Operation) and event.node.lineno == last  # type: ignore[attr-defined]
    ][-1]


@pytest.mark.parametrize(("expression", "expected"), UNDER_AUTOCAST)
def test_the_dtype_under_autocast(expression: str, expected: str) -> None:
    assert dtype(HEAD + REGION.format(expression)) == expected


@pytest.mark.parametrize(("expression", "expected"), WITHOUT_AUTOCAST)
def test_the_dtype_of_what_a_halved_model_gives(expression: str, expected: str) -> None:
    assert dtype(HEAD + ALONE.format(expression)) == expected
