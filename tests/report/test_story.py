"""`amplint events`: what it prints, exactly. What it understands is tested in tests/source."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from amplint.cli import cli
from amplint.config import Settings
from amplint.report.story import tell
from amplint.source.interpret import machine
from amplint.source.module import Module

SCRIPT = """\
import torch
from torch.cuda.amp import GradScaler, autocast
from net import build


def train(model, loader, optimizer, scaler, args):
    for images, target in loader:
        optimizer.zero_grad()
        with autocast(enabled=args.amp):
            loss = torch.nn.functional.cross_entropy(model(images), target)
        scaler.scale(loss).backward()
        if args.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        scaler.step(optimizer)
        scaler.update()


model, optimizer = build()
scaler = GradScaler(enabled=args.amp)
for epoch in range(10):
    train(model, loader, optimizer, scaler, args)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, "last.pt")
"""
NET = """\
import torch.optim


def build():
    net = torch.nn.Linear(8, 1)
    return net, torch.optim.SGD(net.parameters(), 0.1)
"""
TOLD = """\
train.py
  net.py:6  make SGD for model
        19  make scaler (gradient scaler), enabled if args.amp
        22  save model and optimizer

train.py:7: each round of `for images, target in loader`, in train()
   8  zero gradients of optimizer
  10  forward model under autocast(cuda, float16, if args.amp)
  10  loss cross_entropy under autocast(cuda, float16, if args.amp)
  11  backward of loss, scaled by scaler
  12  if args.clip:
  13    clip gradients of model (norm), still scaled ✗
  14  step optimizer through scaler
  15  update scaler
"""


def test_a_step_is_told_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(SCRIPT)
    Path("net.py").write_text(NET)
    result = CliRunner().invoke(cli, ["events", "train.py"])
    assert (result.exit_code, result.output) == (0, TOLD)


def test_a_file_that_does_not_train() -> None:
    assert tell(Module.read("a.py", b"print('hello')\n"), Settings()) == "a.py\n  no training step"


def test_a_reading_that_ended_early_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MOST_STEPS", 10)
    assert "the reading ended early" in tell(Module.read("train.py", SCRIPT.encode()), Settings())


def test_a_function_that_is_reached_by_two_calls_is_told_once() -> None:
    script = SCRIPT + "\ntrain(model, loader, optimizer, scaler, args)\n"
    assert tell(Module.read("train.py", script.encode()), Settings()).count("each round of") == 1


def test_the_same_script_is_told_the_same_way_each_time() -> None:
    module = Module.read("train.py", SCRIPT.encode())
    assert len({tell(module, Settings()) for _ in range(3)}) == 1
