"""Good code, as people write it: no rule may raise an error or a warning on any script in silent/.

They are what must stay silent by design (inference, frozen halves, complete branches, …), and what was a false alarm
once: none may be taken out. On a script in quiet/ the rule that it is named after may not even raise a note.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Severity
from amplint.knowledge import rules
from amplint.source.module import Module

SILENT = sorted(Path(__file__).with_name("silent").glob("*.case"))
QUIET = sorted(Path(__file__).with_name("quiet").glob("*.case"))


@pytest.mark.parametrize("path", SILENT, ids=lambda path: path.stem)
def test_good_code_is_silent(path: Path) -> None:
    module = Module.read("train.py", path.read_bytes())
    found = checks.check_module(module, Settings(codes=frozenset(rules()))).findings
    loud = [f for f in found if f.severity is not Severity.NOTE and f.code != "AMP001"]
    assert [(f.range.start.row, f.code, f.message) for f in loud] == []


@pytest.mark.parametrize("path", QUIET, ids=lambda path: path.stem)
def test_nothing_is_worth_a_note(path: Path) -> None:
    module = Module.read("train.py", path.read_bytes())
    code = frozenset((path.name.partition("-")[0],))
    found = checks.check_module(module, Settings(codes=code, notes=code)).findings
    assert [(f.range.start.row, f.code, f.message) for f in found] == []


TEST = """\
import pytest
import torch


def test_the_kernel_in_half():
    x = torch.randn(4, 8).cuda().half().requires_grad_()
    layer = Kernel(8).cuda()
    with torch.autocast("cuda"):
        layer(x).mean().backward()
    with torch.autocast("cuda", True):
        layer(x)
"""


@pytest.mark.parametrize(("name", "loud"), [("test_kernel.py", ["AMP602"]), ("kernel.py", ["AMP202", "AMP602"])])
def test_what_only_training_suffers_from_is_a_note_in_a_test(name: str, loud: list[str]) -> None:
    found = checks.check_module(Module.read(name, TEST.encode()), Settings(codes=frozenset(rules()))).findings
    assert sorted({one.code for one in found if one.severity is not Severity.NOTE and one.code != "AMP001"}) == loud
