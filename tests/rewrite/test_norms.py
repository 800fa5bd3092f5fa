"""Layers of other files that normalise by hand, with an eps that float16 rounds to zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rewrite.fixing import amplint, put

pytestmark = pytest.mark.usefixtures("own_folder")

SCRIPT = """\
import torch
from net import Net
model = Net().cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for x, y in loader:
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x.cuda()), y.cuda())
    loss.backward()
    optimizer.step()
"""
NET = """\
import torch
EPS = 1e-8
class Norm(torch.nn.Module):
    def __init__(self, dim, eps=1e-12):
        super().__init__()
        self.gamma = torch.nn.Parameter(torch.ones(dim))
        self.eps = eps
    def forward(self, y):
        mean = y.mean(-1, keepdim=True)
        var = torch.var(y, -1, keepdim=True, unbiased=False)
        return self.gamma * (y - mean) / torch.pow(var + EPS, 0.5)
class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Linear(4, 4), Norm(4), torch.nn.Linear(4, 4))
"""


def test_the_file_of_the_layer_changes_with_the_script() -> None:
    put(SCRIPT)
    put(NET, "net.py")
    alone = amplint("train.py")
    assert alone.exit_code == 1
    assert alone.stdout == (
        "train.py:9: refused: net.py:11 adds an eps to a variance that is zero in float16, and nan comes of a row of "
        "equal numbers; amplint fix net.py train.py changes them together\n"
    )
    assert Path("net.py").read_text() == NET
    both = amplint("train.py", "net.py")
    assert both.exit_code == 0
    assert "net.py: fixed: the variance of its layers is taken in float32\n" in both.stdout
    assert Path("net.py").read_text() == NET.replace("torch.var(y,", "torch.var(y.float(),")
    assert "autocast" in Path("train.py").read_text()


def test_a_standard_deviation_that_stands_in_the_sum() -> None:
    put(SCRIPT)
    net = NET.replace("torch.pow(var + EPS, 0.5)", "(y.std(-1, keepdim=True) + self.eps)")
    put(net, "net.py")
    assert amplint("train.py", "net.py").exit_code == 0
    assert Path("net.py").read_text() == net.replace("y.std(", "y.float().std(")


def test_a_variance_that_is_added_to_twice() -> None:
    put(SCRIPT)
    net = NET.replace("        return", "        small = torch.sqrt(var + self.eps)\n        return")
    put(net, "net.py")
    assert amplint("train.py", "net.py").exit_code == 0
    assert Path("net.py").read_text() == net.replace("torch.var(y,", "torch.var(y.float(),")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("EPS = 1e-8", "EPS = 1e-5"),  # float16 holds it
        ("torch.var(y,", "torch.var(self.gamma,"),  # weights stay float32
        ("mean = y", "y = y.float()\n        mean = y"),
        ("torch.var(y,", "torch.var(y.float(),"),
        ("y.mean(-1, keepdim=True)\n", "y.mean(-1, keepdim=True)\n        y = y.to(torch.float32)\n"),
        ("self.gamma = torch.nn.Parameter(torch.ones(dim))", "self.gamma = 1"),  # it scales what a model is given
    ],
)
def test_no_need(before: str, after: str) -> None:
    put(SCRIPT)
    text = NET.replace(before, after)
    put(text, "net.py")
    assert amplint("train.py").exit_code == 0
    assert Path("net.py").read_text() == text


def test_bfloat16_holds_the_eps() -> None:
    put(SCRIPT)
    put(NET, "net.py")
    assert amplint("--dtype", "bfloat16", "train.py").exit_code == 0


def test_a_refused_script_changes_no_layer() -> None:
    put(SCRIPT.replace("model(x.cuda())", "model(x.cuda()).double()"))
    put(NET, "net.py")
    assert amplint("train.py", "net.py").exit_code == 1
    assert Path("net.py").read_text() == NET
