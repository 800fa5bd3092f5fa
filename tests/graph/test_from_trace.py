"""`amplint fix --from-trace`: marked lines of the known defects in float32; traced again, they have no such mark."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from graph.known import attention, guards, norms, positions, products
from graph.test_known import found

from amplint.cli import cli
from amplint.config import Settings
from amplint.findings import Finding, Location, Range, Severity
from amplint.graph.marks import to_finding
from amplint.report.json import render
from amplint.traced import with_fixes


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def traced(module: ModuleType) -> dict[str, list[Finding]]:
    """What is found in each of a file's bad models."""
    return {pair.name: [to_finding(mark) for mark in found(pair.bad, pair.inputs(), False)] for pair in module.PAIRS}


@pytest.mark.parametrize("source", [attention, products, norms, guards, positions], ids=lambda one: one.__name__)
def test_marked_lines_in_float32(source: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "models.py"
    text = Path(source.__file__ or "").read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    before = traced(load(path))
    findings = [one for several in before.values() for one in several]
    Path("trace.json").write_text(render(findings, lambda path: Path(path).read_text(), str(tmp_path)))
    told = CliRunner().invoke(cli, ["fix", "--isolated", "--from-trace", "trace.json", "models.py"])
    assert told.exit_code in (0, 1), told.output
    after = path.read_text(encoding="utf-8")
    rows = {int(line.split(":")[1]) for line in told.output.splitlines() if " left: " not in line}
    again = traced(load(path))
    for name, several in before.items():
        if {one.range.start.row for one in several} <= rows:
            assert not {one.code for one in several} & {one.code for one in again[name]}, name
    untouched = [line for line in text.splitlines() if "# !" not in line]
    assert [line for line in untouched if line not in after.splitlines()] == []
    second = CliRunner().invoke(cli, ["fix", "--isolated", "--from-trace", "trace.json", "models.py"])
    assert path.read_text(encoding="utf-8") == after, second.output


def test_bad_input(tmp_path: Path) -> None:
    for text in ("", "{}", "[1]", json.dumps([{"code": "AMP451"}])):
        (tmp_path / "trace.json").write_text(text)
        told = CliRunner().invoke(cli, ["fix", "--isolated", "--from-trace", str(tmp_path / "trace.json")])
        assert told.exit_code == (0 if text == "{}" else 2)
        assert len(told.output.splitlines()) == 1


def test_a_library_is_changed_only_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its findings carry no fix: an editor would apply it."""
    monkeypatch.chdir(tmp_path)
    text = "def forward(x):\n    return x * x\n"
    marked = []
    for name in ("net.py", "venv/lib/site-packages/lib.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        place = Range(Location(2, 12), Location(2, 17))
        marked.append(Finding("AMP451", "far", str(path), place, Severity.WARNING, help="", verdict="calibrated"))
    assert [one.fix is not None for one in with_fixes(marked, Settings())] == [True, False]
    Path("trace.json").write_text(render(marked, lambda path: Path(path).read_text(), str(tmp_path)))
    told = CliRunner().invoke(cli, ["fix", "--isolated", "--from-trace", "trace.json"])
    assert "lib.py:2: AMP451 left: it is in a library" in told.stderr and told.exit_code == 0
    assert Path("net.py").read_text() != text and marked[1].path and Path(marked[1].path).read_text() == text
    CliRunner().invoke(cli, ["fix", "--isolated", "--from-trace", "trace.json", marked[1].path])
    assert "x.float() * x" in Path(marked[1].path).read_text()
