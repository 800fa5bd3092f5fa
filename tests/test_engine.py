from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import fake_check, make_finding, make_fix

from amplint import checks, engine
from amplint.checks import Checked
from amplint.config import Settings, load
from amplint.engine import Job, check_data, run
from amplint.files import File, discover
from amplint.findings import Applicability
from amplint.repair import ROUNDS

SAFE = frozenset({Applicability.SAFE})
BOTH = SAFE | {Applicability.UNSAFE}
pytestmark = pytest.mark.usefixtures("fake")


def job(**fields: object) -> Job:
    return Job(load(["."], {}), **fields)  # type: ignore[arg-type]


def put(path: str, content: str | bytes = "bad_call()\n") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def found(path: str = ".", **flags: object) -> list[str]:
    settings = load(["."], {key.replace("_", "-"): value for key, value in flags.items()})
    return [file.path for file in discover([path], settings)]


def check(path: str, **fields: object) -> engine.Outcome:
    [outcome] = run(discover([path], load(["."], {})), job(**fields))
    return outcome


# -- discovery ----------------------------------------------------------------------------------------------------


def test_discovery():
    for path in ("b.py", "a.pyi", "c.txt", "sub/d.py", "build/e.py", "x/.venv/f.py", "x/site-packages/g.py"):
        put(path)
    put("env/pyvenv.cfg"), put("env/h.py"), put("x.py/inner.py")
    assert found() == ["a.pyi", "b.py", "sub/d.py", "x.py/inner.py"]
    assert found("sub") == ["sub/d.py"]
    assert found(exclude=["sub", "x.py"]) == ["a.pyi", "b.py", "build/e.py", "x/.venv/f.py", "x/site-packages/g.py"]
    assert found(extend_exclude=["sub/*", "*.pyi"]) == ["b.py", "x.py/inner.py"]


def test_named_files_are_checked_whatever_their_name():
    put("build/e.py"), put("script")
    settings = load(["."], {})
    assert discover(["build/e.py", "script"], settings) == [File("build/e.py", True), File("script", True)]
    assert discover(["build/e.py", "script"], settings, force_exclude=True) == [File("script", True)]
    assert discover(["build"], settings) == [File("build/e.py")]
    assert discover(["build"], settings, force_exclude=True) == []


def test_each_file_once_and_named_if_it_was_named():
    put("a.py"), put("sub/b.py")
    settings = load(["."], {})
    twice = discover([".", "sub", "./a.py", os.path.abspath("a.py")], settings)
    assert twice == [File("a.py", True), File("sub/b.py")]


def test_loops_of_links_end():
    put("sub/a.py")
    os.symlink("..", "sub/up")
    os.symlink("loop.py", "loop.py")
    assert found() == ["loop.py", "sub/a.py"]
    assert check("loop.py").findings[0].message.startswith("cannot read: too many levels of symbolic links")


def test_an_editors_lock_is_no_file():
    os.symlink("user@host.1234", ".#a.py")
    assert found() == []


# -- bad input ----------------------------------------------------------------------------------------------------

DEEP = "x = " + "(" * 10_000 + ")" * 10_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("def f(:\n", "syntax error"),
        ("print 'hello'\n", "(Python 2?)"),
        (b"x = 1\n\0\n", "NUL byte"),
        (b"x = '\xe9'\n", "not text in its encoding"),
        (b"# coding: klingon\n", "not text in its encoding"),
        (b"# coding: undefined\n", "undefined"),
        (DEEP, "nest"),
        ("x = " + "-" * 100_000 + "1", "too deeply"),
        ("a" + ".b" * 100_000, "too deeply"),
        ("if x:\n  a\n b\n", "syntax error"),
        ("x = [" + "1, " * 7_000_000 + "]", "amplint reads up to 5 MB: exclude it"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_the_others_are_checked(content, words):
    put("good.py"), put("wrong.py", content)
    outcomes = run(discover([".", "wrong.py"], load(["."], {})), job())
    assert [outcome.failed for outcome in outcomes] == [False, True]
    assert [finding.code for finding in outcomes[0].findings] == ["AMP105"]
    [finding] = outcomes[1].findings
    assert finding.code == "AMP902"
    assert words in finding.message
    assert "\n" not in finding.message


def test_a_notebook_may_be_large_by_its_pictures():
    picture = {"output_type": "display_data", "data": {"image/png": "A" * 6_000_000}, "metadata": {}}
    cell = {"cell_type": "code", "source": ["bad_call()"], "outputs": [picture], "metadata": {}, "execution_count": 1}
    put("plots.ipynb", json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    [finding] = check("plots.ipynb").findings
    assert finding.code == "AMP105"


def test_declared_encodings_are_honoured():
    put("latin.py", "# coding: latin-1\nx = 'é'; bad_call()\n".encode("latin-1"))
    put("bom.py", b"\xef\xbb\xbfbad_call()\n")
    for path, column in (("latin.py", 10), ("bom.py", 1)):
        [finding] = check(path).findings
        assert (finding.code, finding.range.start.column) == ("AMP105", column)


def test_files_that_are_no_files():
    os.symlink("nowhere.py", "broken.py")
    os.mkfifo("pipe.py")
    put("gone.py")
    listed = discover(["."], load(["."], {}))
    os.unlink("gone.py")
    messages = [outcome.findings[0].message for outcome in run(listed, job())]
    assert messages == ["broken link", "no such file or folder", "not a regular file"]
    assert check("missing").findings[0].message == "no such file or folder"


def test_permission_denied(monkeypatch):
    put("a.py"), put("sub/b.py")

    def denied(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "sub")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", denied)
        assert check("a.py").findings[0].message == "cannot read: permission denied"
    monkeypatch.setattr(os, "scandir", denied)
    [file] = discover(["sub"], Settings())
    assert run([file], Job(Settings()))[0].findings[0].message == "cannot read the folder: permission denied"


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("crash", "internal error in {place}: ValueError: boom; please report"),
        ("deep", "internal error in {place}: RecursionError: maximum recursion depth exceeded"),
    ],
)
def test_an_error_inside_a_check_is_a_line_not_a_traceback(word, words):
    put("a.py", f"{word}_call()\n"), put("b.py")
    outcomes = run(discover(["."], load(["."], {})), job())
    [finding] = outcomes[0].findings
    assert finding.message.split(": ", 1)[1] in words.format(place="x").split(": ", 1)[1] + "; please report"
    assert finding.message.startswith("internal error in ")
    assert "Traceback" in outcomes[0].trace
    assert outcomes[0].failed
    assert outcomes[1].findings[0].code == "AMP105"


def test_a_file_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(engine, "SECONDS", 0.2)
    put("a.py", "hang_call()\n"), put("b.py")
    outcomes = run(discover(["."], load(["."], {})), job())
    assert outcomes[0].findings[0].message.startswith("took more than 0.2 s of processor time")
    assert outcomes[1].findings[0].code == "AMP105"


def test_nothing_is_imported_or_run():
    put("a.py", "import os\nos.mkdir('made')\nbad_call()\n")
    check("a.py")
    assert not os.path.exists("made")


# -- triage -------------------------------------------------------------------------------------------------------


def test_only_candidates_are_parsed_unless_they_were_named():
    put("plain.py", "def f(:\n")
    assert not run(discover(["."], load(["."], {})), job())[0].failed
    assert check("plain.py").failed


def test_a_use_of_the_users_own_wrapper_is_a_candidate():
    put("a.py", "from ours import Scaler, def f(:\n")
    settings = replace(load(["."], {}), apis=({"names": ["ours.Scaler"]},))
    assert run(discover(["."], settings), Job(settings))[0].failed
    settings = replace(settings, apis=({"names": ["ours.*.Other"]},))
    assert not run(discover(["."], settings), Job(settings))[0].failed


# -- selection and suppression ------------------------------------------------------------------------------------


def test_only_selected_codes_and_named_notes_are_shown():
    data = b"bad_call()\nwarn_call()\nhint_call()\n"

    def codes(**flags: object) -> list[str]:
        return [finding.code for finding in check_data("a.py", data, Job(load(["."], flags))).findings]

    assert codes() == ["AMP105", "AMP601"]
    assert codes(select=["ALL"]) == ["AMP105", "AMP601", "AMP132"]
    assert codes(select=["AMP6"]) == ["AMP601"]
    ignored = replace(load(["."], {"per-file-ignores": {"a.py": ["AMP1"]}}))
    assert [f.code for f in check_data("a.py", data, Job(ignored)).findings] == ["AMP601"]


def test_suppressions_and_their_warnings():
    outcome = check_data("a.py", b"bad_call()  # amplint: ignore[AMP105] ok\nbad_call()  # amplint: ignore\n", job())
    assert [finding.range.start.row for finding in outcome.findings] == [2]
    assert outcome.warnings[0].startswith('a.py:2: "# amplint: ignore" names no codes')


def test_findings_in_other_files_go_there_once_if_they_were_asked_for(monkeypatch):
    put("main.py", "bad_call()\n"), put("lib.py", "\n\nbad_call()\nbad_call()  # noqa: AMP105\n"), put("other.py")

    def across(module, settings):
        if module.path != "main.py":
            return Checked(tuple(f for f in fake_check(module, settings).findings if f.range.start.row != 4))
        places = [("lib.py", 3), ("lib.py", 4), ("lib.py", 1), ("lib.py", 1), ("other.py", 1), ("main.py", 1)]
        absolute = ((path if path == "main.py" else os.path.abspath(path), row) for path, row in places)
        return Checked(tuple(make_finding(path, row) for path, row in absolute))

    monkeypatch.setattr(checks, "check_module", across)
    outcomes = run(discover(["main.py", "lib.py"], load(["."], {})), job())
    rows = {outcome.path: [finding.range.start.row for finding in outcome.findings] for outcome in outcomes}
    assert rows == {"lib.py": [1, 3, 3], "main.py": [1]}  # 3 twice: the ranges differ


# -- fixes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "allowed", "after", "left"),
    [
        ("bad_call()\n", SAFE, "good_call()\n", []),
        ("a; bad_call(); bad_call()  # x\r\nb\r\n", SAFE, "a; good_call(); good_call()  # x\r\nb\r\n", []),
        ("bad_call()", SAFE, "good_call()", []),
        ("risky_call()\n", SAFE, "risky_call()\n", ["AMP101"]),
        ("risky_call(); bad_call()\n", BOTH, "calm_call(); good_call()\n", []),
        ("shown_call()\n", BOTH, "shown_call()\n", ["AMP110"]),
        ("warn_call(); bad_call()\n", SAFE, "warn_call(); good_call()\n", ["AMP601"]),
        ("first_call()\n", SAFE, "good_call()\n", []),  # a second round
        ("bad_call()  # noqa\n", SAFE, "bad_call()  # noqa\n", []),
        # fixes that do not work are dropped, the others stay
        ("broken_call(); bad_call()\n", SAFE, "broken_call(); good_call()\n", ["AMP105"]),
        ("stubborn_call()\nbad_call()\n", SAFE, "stubborn_call()\ngood_call()\n", ["AMP105"]),
        ("stubborn_call(); bad_call()\n", SAFE, "stubborn_call(); good_call()\n", ["AMP105"]),
    ],
)
def test_fixes(before, allowed, after, left):
    path = put("a.py", before)
    outcome = check(path, fix=allowed, write=True)
    assert Path(path).read_bytes().decode() == after
    assert [finding.code for finding in outcome.findings] == left
    assert not outcome.failed
    assert check(path, fix=allowed, write=True).fixed == ()  # a fixed point
    assert sorted(os.listdir(".")) == ["a.py"]


def test_fixes_that_never_settle_change_nothing():
    path = put("a.py", "endless_call()\n")
    outcome = check(path, fix=SAFE, write=True)
    assert Path(path).read_text() == "endless_call()\n"
    assert "keep asking for more" in outcome.findings[-1].message
    assert outcome.failed


def test_ten_rounds_are_enough_for_ten_conflicts(monkeypatch):
    def growing(module, settings):
        row = module.text.count("x\n") + 1
        fix = make_fix((row, 1, row, 2, "x"), path=module.path)
        return Checked((make_finding(module.path, row, fix=fix),) * (row <= ROUNDS))

    monkeypatch.setattr(checks, "check_module", growing)
    path = put("a.py", "y\n" * 12 + "_call()\n")
    assert not check(path, fix=SAFE, write=True).failed
    assert Path(path).read_text().count("x") == ROUNDS


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfx = '\xc3\xa9'; bad_call()\r\n",
        "# coding: latin-1\nx = 'é'; bad_call()\n".encode("latin-1"),
        b"x = 'a\x0cb'\rbad_call()\r\n\nz",
    ],
)
def test_bytes_outside_the_edits_are_kept(data):
    path = put("a.py", data)
    check(path, fix=SAFE, write=True)
    assert Path(path).read_bytes() == data.replace(b"bad_call()", b"good_call()")


def test_a_fix_that_the_encoding_cannot_hold_is_dropped():
    data = "# coding: latin-1\nx = 'é'; wide_call(); bad_call()\n".encode("latin-1")
    path = put("a.py", data)
    outcome = check(path, fix=SAFE, write=True)
    assert Path(path).read_bytes() == data.replace(b"bad", b"good")
    assert len(outcome.findings) == 1


def test_a_file_that_is_not_given_back_byte_for_byte_is_reported():
    data = b"# coding: utf-7\nx = '+AOk-'  # +AOk\nbad_call()\n"
    path = put("a.py", data)
    outcome = check(path, fix=SAFE, write=True)
    assert Path(path).read_bytes() == data
    assert [finding.code for finding in outcome.findings] == ["AMP903", "AMP105"]


def test_mode_and_links_are_kept():
    path = put("real/a.py")
    os.chmod(path, 0o755)
    os.symlink("real/a.py", "link.py")
    check("link.py", fix=SAFE, write=True)
    assert os.path.islink("link.py")
    assert Path(path).read_text() == "good_call()\n"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def _no_space(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def read_only(*args: object, **kwargs: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize(
    ("module", "function", "stub", "words"),
    [
        (tempfile, "mkstemp", read_only, "read-only file system"),
        (os, "fsync", _no_space, "no space left on device"),
        (os, "replace", _no_space, "no space left on device"),
        (os, "access", lambda *args: False, "the file is read-only"),
    ],
)
def test_what_cannot_be_written_stays_as_it_was(monkeypatch, module, function, stub, words):
    path = put("a.py", "bad_call()\n")
    monkeypatch.setattr(module, function, stub)
    outcome = check(path, fix=SAFE, write=True)
    assert outcome.failed
    assert [finding.code for finding in outcome.findings] == ["AMP105", "AMP902"]
    assert outcome.findings[1].message == f"cannot write the fixes: {words}"
    assert outcome.fixed == ()
    assert Path(path).read_text() == "bad_call()\n"
    assert os.listdir(".") == ["a.py"]


def test_a_file_that_changed_meanwhile_is_not_overwritten(monkeypatch):
    path = put("a.py")

    def check_and_change(module, settings):
        put("a.py", "somebody_else()\n")
        return fake_check(module, settings)

    monkeypatch.setattr(checks, "check_module", check_and_change)
    assert "changed meanwhile" in check(path, fix=SAFE, write=True).findings[-1].message
    assert Path(path).read_text() == "somebody_else()\n"
