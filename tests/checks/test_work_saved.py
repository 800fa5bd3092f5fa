"""Triage, relevance and the cache save work, and nothing else: with and without them the findings are the same."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from amplint import cache, engine
from amplint.config import Settings
from amplint.engine import Job, check_data
from amplint.findings import Finding
from amplint.knowledge import rules
from amplint.source import triage
from amplint.source.interpret.relevance import Relevance
from amplint.source.module import Module

HERE = Path(__file__)
FIXTURES = HERE.parents[2] / "fixtures"
CASES = sorted(path for folder in ("found", "silent", "quiet") for path in HERE.with_name(folder).glob("*.case"))
SCRIPTS = [*CASES, *sorted(FIXTURES.glob("*.py"))]
EVERY = Settings(codes=frozenset(rules()))


def found(data: bytes, job: Job) -> tuple[Finding, ...]:
    return check_data("train.py", data, job, named=False).findings


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_is_saved_changes_no_finding(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = path.read_bytes().partition(b"# changes\n")[0]
    saved = found(data, Job(EVERY))
    kept = Job(EVERY, cache.Cache(str(tmp_path), "run"))
    assert found(data, kept) == saved
    with monkeypatch.context() as patch:
        patch.setattr(engine, "may_hold", lambda *given: pytest.fail("not from the cache"))
        assert found(data, kept) == saved
    monkeypatch.setattr(engine, "may_hold", lambda *given: True)
    monkeypatch.setattr(triage, "live_codes", lambda *given: set(rules()))
    assert found(data, Job(EVERY)) == saved
    monkeypatch.setattr(Relevance, "begins", lambda *given: True)
    monkeypatch.setattr(Relevance, "matters", lambda *given: True)
    assert found(data, Job(EVERY)) == saved


def test_a_word_that_is_denied_by_the_names_of_a_file_is_not_in_its_code() -> None:
    pages = rules().values()
    words = {
        *triage.PATTERNS,
        *(word for page in pages for group in (page.triggers, *page.with_words) for word in group),
    }
    met = set()
    for path in SCRIPTS:
        data = path.read_bytes()
        code, has = triage.code_only(data), triage.asked(data)
        said = {word for word in words if has(word)}
        assert said == {word for word in words if triage.holds(code, word)}, path.name
        met |= said
    assert met >= {*triage.PATTERNS}


MAKERS = """
import torch
from torch import nn
from registry import build
from engine import Engine


class Net(nn.Module):
    def forward(self, x):
        with torch.autocast("cuda", enabled=False):
            return x.float().softmax(-1)


def _make(name, pretrained=False, **kwargs):
    if pretrained:
        kwargs = dict(kwargs, name=name)
    depth = kwargs.pop("depth", 2)
    return build(Net, depth, **kwargs)


def net_small(**kwargs):
    "A Net @ 384x384."
    sizes = dict(depth=2, width=64)
    return _make("small", **dict(sizes, **kwargs))


def predict(x):
    net = Net()
    return net(x)


def loaded(path):
    net = Net()
    net.restore(path)
    return net


def trained(loader):
    Engine(Net()).fit(loader)


def again(x):
    return predict(x)
"""


def test_a_function_that_only_makes_a_model_is_not_run_for_itself() -> None:
    module = Module.read("nets.py", MAKERS.encode())
    relevance = Relevance(module, frozenset(("autocast",)))
    begin = {code.name for code in module.tree.body if isinstance(code, ast.FunctionDef) and relevance.begins(code)}
    assert begin == {"predict", "loaded", "trained", "again"}
