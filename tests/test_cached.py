"""The cache, and several processes."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import fake_check, make_related

from amplint import cache, checks, engine, files, parallel
from amplint.checks import Checked
from amplint.config import load
from amplint.engine import run
from amplint.files import discover
from tests.test_engine import SAFE, check, job, put, read_only

pytestmark = pytest.mark.usefixtures("fake")


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were really checked."""
    seen: list[str] = []

    def counting(module, settings):
        seen.append(module.text)
        return fake_check(module, settings)

    monkeypatch.setattr(checks, "check_module", counting)
    return seen


def cached(path: str = "a.py", **fields: object) -> engine.Outcome:
    settings = load(["."], {})
    return check(path, cache=cache.open_cache(replace(settings, **fields)))  # type: ignore[arg-type]


def test_a_second_run_checks_nothing_and_finds_the_same(checked):
    put("a.py", "bad_call()\nwarn_call()\nshown_call()  # amplint: ignore\n"), put("b.py", "fine_call()\n")
    first = [cached("a.py"), cached("b.py")]
    assert [cached("a.py"), cached("b.py")] == first
    assert len(checked) == 2
    assert Path(".amplint_cache/.gitignore").read_text() == "*\n"


def test_everything_that_decides_the_result_is_asked_for(checked, monkeypatch):
    put("a.py")
    cached()
    cached(target_torch=(2, 5))
    cached(target_dtype="bfloat16")
    cached(apis=({"names": ["x"]},))
    cached(roots=("elsewhere",))
    put("a.py", "bad_call() \n")
    cached()
    put("sub/c.py")
    cached(os.path.abspath("a.py"))
    monkeypatch.setattr(cache, "__version__", "9")
    cached()
    assert len(checked) == 8


def test_entries_are_replaced_not_piled_up(checked):
    for number in range(5):
        put("a.py", f"bad_call(){' ' * number}\n")
        cached()
    assert len(list(Path(".amplint_cache").rglob("*.json"))) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"content": 1}', b"\xff", b'{"a":' * 100_000])
def test_damaged_entries_are_ignored(checked, content):
    put("a.py")
    expected = cached()
    [entry] = Path(".amplint_cache").rglob("*.json")
    entry.write_bytes(content)
    assert cached() == expected
    assert cached() == expected
    assert len(checked) == 2


@pytest.mark.parametrize("blocker", ["file", "makedirs", "replace"])
def test_a_cache_that_cannot_be_written_is_no_cache(checked, monkeypatch, blocker):
    put("a.py")
    if blocker == "file":
        put(".amplint_cache", "in the way")
    else:
        monkeypatch.setattr(os, blocker, read_only)
    assert [finding.code for finding in cached().findings] == ["AMP105"]
    assert [finding.code for finding in cached().findings] == ["AMP105"]
    assert len(checked) == 2
    assert not list(Path(".").rglob("*.json.*"))


def test_a_result_holds_as_long_as_its_dependencies(monkeypatch):
    put("a.py"), put("lib.py", "1")
    runs = []

    def depending(module, settings):
        runs.append(1)
        related = (make_related("lib.py", 1, "here"),)
        findings = tuple(replace(finding, related=related) for finding in fake_check(module, settings).findings)
        return Checked(findings, ("lib.py", "absent.py"))

    monkeypatch.setattr(checks, "check_module", depending)
    first = cached()
    assert cached() == first
    assert len(runs) == 1
    put("lib.py", "2")
    assert cached() == first
    assert len(runs) == 2
    put("absent.py")
    cached(), cached()
    assert len(runs) == 3
    os.unlink("lib.py")
    cached(), cached()
    assert len(runs) == 4


def test_a_result_may_depend_on_what_is_in_a_folder(monkeypatch):
    put("a.py")
    runs = []

    def depending(module, settings):
        runs.append(1)
        return Checked((), (".",))

    monkeypatch.setattr(checks, "check_module", depending)
    cached(), cached()
    assert len(runs) == 1
    put("b.py")
    cached(), cached()
    assert len(runs) == 2


def test_fixes_come_out_of_the_cache_whole(checked):
    put("a.py", "bad_call()\n")
    cached()
    settings = load(["."], {})
    outcome = check("a.py", cache=cache.open_cache(settings), fix=SAFE, write=True)
    assert len(outcome.fixed) == 1
    assert Path("a.py").read_text() == "good_call()\n"
    assert len(checked) == 2  # at first, and after the fix


needs_fork = pytest.mark.skipif(sys.platform != "linux", reason="the fake check reaches workers by fork")


@needs_fork
def test_processes_change_nothing(monkeypatch):
    for number in range(150):
        put(
            f"f{number:03}.py",
            "bad_call()\n" * (number % 3) + "crash_call()\n" * (number == 7) + "def f(:" * (number == 8),
        )
    listed = discover(["."], load(["."], {}))
    monkeypatch.setattr(parallel, "_processors", lambda: 1)
    alone = run(listed, job())
    monkeypatch.setattr(parallel, "_processors", lambda: 3)
    together = run(listed, job())
    assert [replace(outcome, trace="") for outcome in together] == [replace(outcome, trace="") for outcome in alone]


@needs_fork
def test_a_file_that_kills_its_process_kills_nothing_else(monkeypatch):
    for number in range(80):
        put(f"f{number:03}.py", "bad_call()\n" if number != 40 else "die_call()\n")

    def deadly(module, settings):
        if "die_call" in module.text:
            os._exit(1)
        return fake_check(module, settings)

    monkeypatch.setattr(checks, "check_module", deadly)
    monkeypatch.setattr(parallel, "_processors", lambda: 2)
    outcomes = run(discover(["."], load(["."], {})), job())
    assert [outcome.path for outcome in outcomes if outcome.failed] == ["f040.py"]
    assert outcomes[40].findings[0].message.startswith("amplint crashed on this file")
    assert sum(len(outcome.findings) for outcome in outcomes) == 80


def test_few_files_need_no_pool(monkeypatch):
    monkeypatch.setattr(parallel, "_processors", lambda: 8)
    monkeypatch.setattr(parallel, "_pool", lambda workers: pytest.fail("a pool"))
    put("a.py")
    run(discover(["."], load(["."], {})), job())


def test_source_of_what_is_gone_is_empty():
    assert engine.source("gone.py") == ""
    assert engine.source(put("a.py", b"\xff")) == engine.source(put("b.py", b"# coding: undefined\n")) == ""
    assert files.SUFFIXES == (".py", ".pyi", ".ipynb")
