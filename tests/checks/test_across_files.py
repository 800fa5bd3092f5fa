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
