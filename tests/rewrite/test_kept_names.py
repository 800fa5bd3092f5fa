"""What a file imports may be taken from it by other files: its name keeps what it means."""

from __future__ import annotations

import pytest

from amplint import checks
from amplint.config import Settings
from amplint.findings import Applicability
from amplint.repair import repair
from amplint.rewrite import importers
from amplint.source.module import Module

BARE = """\
from torch.cuda.amp import GradScaler, autocast


def forward(model, x):
    with autocast():
        return model(x)


def scaler():
    return GradScaler()
"""
DOTTED = """\
import torch
from torch.cuda import amp


def forward(model, x):
    with amp.autocast():
        return model(x)
"""


def fixed(tmp_path, monkeypatch, texts: dict[str, str], name: str) -> str:
    """What the fixes of AMP601 make of one file of a project."""
    monkeypatch.chdir(tmp_path)
    importers._taken_below.cache_clear()
    for path, text in {"pyproject.toml": "", **texts}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / path).write_text(text)
    settings = Settings(codes=frozenset(("AMP601",)), roots=(str(tmp_path),))
    module = Module.read(name, texts[name].encode())

    def check(now: Module):
        return checks.check_module(now, settings).findings

    return repair(module, check(module), check, (Applicability.SAFE,)).module.text


@pytest.mark.parametrize(
    "user",
    [
        "from lib.half import autocast\n\nwith autocast():\n    pass\n",
        "from lib.half import (\n    GradScaler,  # a comment\n    autocast,\n)\n\nautocast(), GradScaler(8.0)\n",
        "from lib.half import *\n\nwith autocast():\n    GradScaler(1024.0)\n",
        "from lib import half\n\nwith half.autocast():\n    half.GradScaler(1024.0)\n",
    ],
    ids=("by name", "in brackets", "by a star", "as an attribute"),
)
def test_a_name_that_another_file_takes_keeps_its_meaning(tmp_path, monkeypatch, user):
    """There it is called as the old one is."""
    after = fixed(tmp_path, monkeypatch, {"lib/half.py": BARE, "train.py": user}, "lib/half.py")
    old, new = "from torch.cuda.amp import", "from torch.amp import"
    assert old in after and "with autocast():" in after
    taken = "GradScaler" in user
    assert (new in after) is (not taken)
    assert ('GradScaler("cuda")' in after) is (not taken)


def test_what_a_package_passes_on_keeps_its_meaning(tmp_path, monkeypatch):
    texts = {"lib/__init__.py": "from torch.cuda.amp import autocast\n\n__all__ = ['autocast']\n"}
    texts |= {"lib/run.py": "from . import autocast\n\nwith autocast():\n    pass\n"}
    assert fixed(tmp_path, monkeypatch, texts, "lib/__init__.py") == texts["lib/__init__.py"]


def test_an_import_that_a_star_passes_on_stays(tmp_path, monkeypatch):
    texts = {"lib/common.py": DOTTED, "lib/model.py": "from lib.common import *\n\nwith amp.autocast():\n    pass\n"}
    after = fixed(tmp_path, monkeypatch, texts, "lib/common.py")
    assert "from torch.cuda import amp\n" in after
    assert 'with torch.amp.autocast("cuda"):' in after


@pytest.mark.parametrize(
    "other",
    [
        "from lib.half import forward\n",
        "from lib.half import *\nfrom torch.amp import GradScaler, autocast\n\nautocast('cuda'), GradScaler('cuda')\n",
        "from torch.cuda.amp import autocast\nfrom lib import half\n\nwith autocast():\n    half.forward\n",
    ],
)
def test_what_no_other_file_takes_is_mended(tmp_path, monkeypatch, other):
    after = fixed(tmp_path, monkeypatch, {"lib/half.py": BARE, "train.py": other}, "lib/half.py")
    assert "from torch.amp import GradScaler, autocast" in after
    assert 'with autocast("cuda"):' in after
