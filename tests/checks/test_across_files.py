"""Mistakes that only the files of a project together show: where they are reported, and mended."""

from __future__ import annotations

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Applicability
from amplint.repair import repair
from amplint.source.module import Module

TRAIN = """\
import torch
from steps import {name}

model = torch.nn.Linear(784, 10).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
for x, y in loader:
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = torch.nn.functional.cross_entropy(model(x.cuda()), y.cuda())
    scaler.scale(loss).backward()
    {call}
    scaler.step(optimizer)
    scaler.update()
"""
LIMIT = """\
from torch.nn.utils import clip_grad_norm_ as clip


def limit(model):
    "Clips in place."
    # rows, so that the place of the clip is none in the short file that calls it
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    return clip(model.parameters(), 1.0)
"""


@pytest.mark.parametrize("call", ["limit(model)", "if limit(model) > 100:\n        print('steep')"])
def test_a_clip_in_another_file_is_told_where_it_is_called(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steps.py").write_text(LIMIT)
    (tmp_path / "train.py").write_text(TRAIN.format(name="limit", call=call))
    module = Module.read("train.py", (tmp_path / "train.py").read_bytes())
    settings = Settings(codes=frozenset({"AMP105"}), roots=(str(tmp_path),))
    [finding] = checks.check_module(module, settings).findings
    assert (finding.path, module.line(finding.range.start.row).strip()) == ("train.py", call.splitlines()[0])
    assert [one.path for one in finding.related] == ["train.py", "steps.py", "train.py"]
    repaired = repair(
        module, (finding,), lambda now: checks.check_module(now, settings).findings, (Applicability.SAFE,)
    )
    assert not repaired.findings
    assert f"    scaler.unscale_(optimizer)\n    {call}\n" in repaired.module.text


SCALER = """\
class LossScaler:
    def __init__(self, scale):
        self.loss_scale = scale

    def scale(self, loss):
        return loss * self.loss_scale

    def unscale_(self, parameters):
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(1.0 / self.loss_scale)

    def update(self):
        self.loss_scale *= 2
"""
OWN = """\
import torch
from package.half.scaling import LossScaler
from torch.nn.utils import clip_grad_norm_


class Trainer:
    def __init__(self, model, loader, half=True):
        self.model, self.loader, self.half = model.cuda(), loader, half
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.scaler = LossScaler(4.0) if half else None

    def train(self):
        for x, y in self.loader:
            loss = torch.nn.functional.cross_entropy(self.model(x), y)
            if self.half:
                self.scaler.scale(loss).backward()
                self.scaler.unscale_(self.model.parameters())
            else:
                loss.backward()
            clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
"""


def test_a_scaler_of_ones_own_is_followed_through_the_name_of_its_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {"__init__": "", "half/__init__": "", "half/scaling": SCALER, "half/trainer": OWN}.items():
        path = tmp_path / "package" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    module = Module.read("package/half/trainer.py", OWN.encode())
    assert checks.check_module(module, Settings(codes=frozenset({"AMP102", "AMP105"}))).findings == ()


BASE = """\
import torch


class Trainer:
    def __init__(self, model, use_amp):
        self.model, self.use_amp = model, use_amp
        self.optimizer = torch.optim.Adam(model.parameters())
        self.scaler = torch.amp.GradScaler("cuda")

    def train(self, loader):
        for batch in loader:
            self.step(batch)
"""
HEIR = """\
import torch
from base import Trainer

# rows, so that the region stands where the short file that makes the scaler has none
# rows
# rows
# rows
# rows
# rows


class Mine(Trainer):
    def step(self, batch):
        with torch.autocast("cuda", dtype=torch.float16, enabled=self.use_amp):
            loss = self.model(batch)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
"""


def test_a_flag_of_another_file_is_no_fix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "mine.py").write_text(HEIR)
    module = Module.read("mine.py", (tmp_path / "mine.py").read_bytes())
    settings = Settings(codes=frozenset({"AMP124"}), roots=(str(tmp_path),))
    [finding] = checks.check_module(module, settings).findings
    assert (finding.path, finding.fix) == ("base.py", None)


ADVERSARIAL = """\
class Attack:
    def __init__(self, model):
        self.model = model

    # rows, so that the place of the backward is none in the short file that calls it
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    # rows
    def train(self, x, y):
        loss = self.model(x, y)
        loss.backward()
"""


def test_an_unscaled_backward_in_another_file_is_told_where_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = TRAIN.format(name="Attack", call="Attack(model).train(x, y)")
    (tmp_path / "steps.py").write_text(ADVERSARIAL)
    (tmp_path / "train.py").write_text(text)
    module = Module.read("train.py", text.encode())
    found = checks.check_module(module, Settings(codes=frozenset(("AMP104",)))).findings
    assert [(one.path, one.range.start.row) for one in found] == [("train.py", 12)]
