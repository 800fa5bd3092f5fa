"""Counters that a loop keeps by hand are no constants: a later round stands for all later ones."""

from __future__ import annotations

import pytest

from amplint.source import events
from amplint.source.interpret.entries import read
from amplint.source.module import Module

LOOP = """\
import torch
@torch.inference_mode()
def evaluate(model, data):
    total = 0.0
    for x, y in data:
        out = model(x)
        loss = torch.nn.functional.cross_entropy(out, y)
        total += loss.item()
    return total
model = Net().cuda()
opt = torch.optim.SGD(model.parameters(), lr=0.1)
n, every = 0, 4
{head}:
    loss = model(next(batches))
    loss.backward()
    {count}
    if n % every == 0:
        opt.step()
        opt.zero_grad()
    if n > 0 and n % 500 == 0:
        print(evaluate(model, held_out))
"""


@pytest.mark.parametrize("head", ["while True", "for _ in range(100)"])
@pytest.mark.parametrize("count", ["n += 1", "n = n + 1"])
def test_what_hangs_on_a_counter_happens(head: str, count: str) -> None:
    found = read(Module.read("train.py", LOOP.format(head=head, count=count).encode())).events
    assert any(isinstance(event, events.Step) for event in found)
    assert any(isinstance(event, events.Forward) and not event.grad for event in found)


TRAINER = """\
import torch
class Trainer:
    def __init__(self, net):
        self.net = net.cuda()
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)
        self.steps = 0
    def train(self, x):
        self.opt.zero_grad()
        loss = self.net(x).mean()
        if self.steps > 5000 and self.steps % 16 == 0:
            loss = loss + torch.nn.functional.mse_loss(self.net(x), x)
        loss.backward()
        self.opt.step()
        self.steps += 1
"""


@pytest.mark.parametrize("calls", ["", "trainer = Trainer(Net())\nfor x in data:\n    trainer.train(x)\n"])
def test_what_hangs_on_an_object_s_counter_happens(calls: str) -> None:
    found = read(Module.read("train.py", (TRAINER + calls).encode())).events
    assert any(isinstance(event, events.Loss) and event.name == "mse_loss" for event in found)
