"""Input that nobody should write but somebody does, against the real checks: a line each, and no other file suffers."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import re
import socket
import time
import tokenize
from io import StringIO
from pathlib import Path

import pytest

from amplint import engine, files, limit
from amplint.config import load
from amplint.engine import Job, Outcome, check_data, run
from amplint.files import discover
from amplint.findings import Applicability
from amplint.knowledge import rules

HEAD = """\
import torch
from torch import nn
model = nn.Linear(2, 2).cuda()
opt = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
"""
LOOP = """\
for x, y in loader:
    opt.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nn.functional.mse_loss(model(x), y)
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(opt)
    scaler.update()
"""
SCRIPT = HEAD + LOOP  # AMP105, with a safe fix
UNSCALE = "    scaler.unscale_(opt)\n"
CLIP = "    torch.nn.utils.clip"
N = 10_000


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "SECONDS", 10)


def job(**fields: object) -> Job:
    return Job(load(["."], {"select": ["ALL"]}, isolated=True), **fields)  # type: ignore[arg-type]


def look(content: str | bytes, path: str = "a.py", **fields: object) -> Outcome:
    return check_data(path, content if isinstance(content, bytes) else content.encode(), job(**fields))


def codes(outcome: Outcome) -> set[str]:
    return {finding.code for finding in outcome.findings}


def nested(header: str, depth: int, body: str) -> str:
    return "".join(" " * level + header + "\n" for level in range(depth)) + " " * depth + body + "\n"


# -- what can be read is read -----------------------------------------------------------------------------------------

READABLE = {
    "attributes": "x = torch" + ".b" * 900,
    "subscripts": "x = a" + "[0]" * 700,
    "calls": "x = a" + "()" * 900,
    "nested calls": "x = " + "model(" * 90 + "1" + ")" * 90,
    "sum": "loss = " + "loss + " * 2500 + "1\nscaler.scale(loss).backward()",
    "comparison": "x = " + "a < " * 5000 + "1",
    "conditions": "x = " + "a if args.amp else " * 400 + "1",
    "and": "if " + "args.a and " * 3000 + "b:\n    opt.step()",
    "elif": "if a:\n    pass\n" + "".join(f"elif args.a == {i}:\n    scaler.step(opt)\n" for i in range(300)),
    "ifs": nested("if args.a:", 90, "scaler.step(opt)"),
    "loops": nested("for a in b:", 19, "scaler.scale(loss).backward(); scaler.step(opt)"),
    "whiles": nested("while a:", 90, "scaler.scale(loss).backward(); scaler.step(opt)"),
    "withs": nested("with a:", 90, "scaler.step(opt)"),
    "functions": nested("def f():", 90, "opt.step()"),
    "table": "x = [" + "1, " * 30_000 + "]",
    "dict": "x = {" + "".join(f"'{i}': {i}, " for i in range(5_000)) + "}",
    "texts": "x = " + "'a' " * N,
    "long row": "x = '" + "a" * 1_000_000 + "'",
    "recursion": "def f(x):\n    g(x)\ndef g(x):\n    f(x)\n    opt.step()\nf(1)",
    "itself": "x = []\nx.append(x)\nclass A(A):\n    pass\nA.a = A\nf = lambda: f()\nf()\nopt.opt = opt",
    "growing list": "x = [1]\n" + "x = x + x\n" * 40 + "model(x)",
    "growing text": "x = 'a'\n" + "x = x + x\n" * 60 + "model(x)",
    "growing number": "x = 3\n" + "x = x * x\n" * 60 + "model(x)",
    "endless numbers": "x = 10**10**10\ny = 1 << 10**12\nloss.masked_fill(m, " + "9" * 4000 + ")\nz = [0] * 10**12",
    "many paths": "".join(f"def f{i}(a):\n    f{i + 1}(a)\n    f{i + 1}(a)\n" for i in range(14)) + "f0(opt)",
}


@pytest.mark.parametrize("name", READABLE)
def test_what_is_odd_or_large_but_python_is_read(name):
    outcome = look(f"{SCRIPT}{READABLE[name]}\n")
    assert not outcome.failed, outcome.findings
    assert "AMP105" in codes(outcome)


@pytest.mark.parametrize("content", ["", "# autocast backward GradScaler\n", '"""backward"""', "\n\n\n", "\x0c"])
def test_files_without_code(content):
    assert look(content) == Outcome("a.py")


# -- what cannot be read is a line ------------------------------------------------------------------------------------

UNREADABLE = {
    "(" * N + ")" * N: (14, "too many nested parentheses"),
    "x = " + "-" * N + "1": (1, "nested too deeply to parse"),
    "x = " + "not " * N + "1": (1, "nested too deeply to parse"),
    "x = " + "lambda: " * N + "1": (1, "nested too deeply to parse"),
    "x = a" + ".b" * N: (1, "nested too deeply to parse"),
    "x = " + "1+" * 100_000 + "1": (1, "nested too deeply to parse"),
    "if a:\n pass\n" + "elif b:\n pass\n" * 5000: (1, "nested too deeply to parse"),
    "".join(" " * i + "if x:\n" for i in range(1000)): (114, "too many levels of indentation"),
    "x = " + "9" * N: (14, "Exceeds the limit (4300 digits)"),
    "print 'a'": (14, "(Python 2?)"),
    "exec 'a'": (14, "(Python 2?)"),
    "raise A, 'b'": (14, "invalid syntax (Python 2?)"),
    "x = 0777": (14, "(Python 2?)"),
    "if a <> b: pass": (14, "invalid syntax (Python 2?)"),
    "x = `a`": (14, "invalid syntax (Python 2?)"),
    "x = y.cuda(async=True)": (14, "(async is a keyword: say non_blocking=)"),
    "%matplotlib inline": (14, "invalid syntax (read as Python 3."),
    "x = 1\0": (14, "contains a NUL byte"),
    "if x:\n\ty = 1\n        z = 2": (16, "inconsistent use of tabs and spaces"),
    "x = 1 +\\": (14, "unexpected EOF"),
}


@pytest.mark.parametrize("content", UNREADABLE, ids=lambda content: content[:20])
def test_what_cannot_be_parsed_is_one_line(content):
    row, words = UNREADABLE[content]
    outcome = look(f"{SCRIPT}{content}\n")
    if "elif" in content and not outcome.failed:
        pytest.skip("from Python 3.13 on, elif does not nest in the parser")
    [finding] = outcome.findings
    assert outcome.failed
    assert finding.code == "AMP902"
    assert words in finding.message
    assert "\n" not in finding.message
    assert finding.range.start.row == row


@pytest.mark.parametrize(
    ("content", "row", "words"),
    [
        (b"# a\n\nx = 1\r\ny = '\xe9'\n", 4, "byte 0xe9 is not utf-8, and no other encoding is declared"),
        (b"\xe9 = 1\n", 1, "byte 0xe9 is not utf-8"),
        (SCRIPT.encode("utf-16"), 1, "byte 0xff is not utf-8"),
        (b"# coding: ascii\n# \xe9\n", 2, "byte 0xe9 is not ascii"),
        (b"# coding: klingon\n", 1, "unknown encoding: klingon"),
        (b"# coding: rot13\n", 1, "not a text encoding"),
        (b"\xef\xbb\xbf# coding: latin-1\n", 1, "starts with a UTF-8 mark but declares another encoding"),
    ],
)
def test_what_is_not_text_is_one_line(content, row, words):
    [finding] = look(content).findings
    assert finding.code == "AMP902"
    assert finding.message.startswith("not text in its encoding: ")
    assert words in finding.message
    assert finding.range.start.row == row


# -- fixes keep every other byte --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "encoding", "newline"),
    [
        (SCRIPT, "utf-8-sig", "\n"),
        ("# coding: latin-1\n# é\n" + SCRIPT, "latin-1", "\n"),
        ("# coding: shift_jis\n# 日本\n" + SCRIPT, "shift_jis", "\r\n"),
        (SCRIPT, "utf-8", "\r\n"),
        (SCRIPT, "utf-8", "\r"),
        (SCRIPT.replace("\n", "\r\n", 3), "utf-8", "\n"),
        (SCRIPT.replace("for x", "\x0cfor x"), "utf-8", "\n"),
        (SCRIPT.replace(CLIP, "\x0c" + CLIP), "utf-8", "\n"),
        (SCRIPT.replace("1.0)", "1.0)  # \u2028 \x85 \x1c \x0b"), "utf-8", "\n"),
        (SCRIPT.rstrip(), "utf-8", "\n"),
        (SCRIPT.replace("    ", "\t"), "utf-8", "\n"),
    ],
)
def test_a_fix_keeps_every_other_byte(script, encoding, newline):
    data = script.replace("\n", newline).encode(encoding) if newline != "\n" else script.encode(encoding)
    Path("a.py").write_bytes(data)
    [outcome] = run(discover(["a.py"], job().settings), job(fix=frozenset({Applicability.SAFE}), write=True))
    assert not outcome.failed
    assert [finding.code for finding in outcome.fixed] == ["AMP105"]
    after = Path("a.py").read_bytes()
    assert after != data
    assert re.sub(rb"[ \t]*scaler\.unscale_\(opt\)(\r\n|\r|\n)", b"", after) == data
    assert os.listdir(".") == ["a.py"]


def test_an_encoding_that_does_not_give_the_file_back_is_not_written():
    data = b"# coding: unicode_escape\n" + SCRIPT.encode() + b"x = '\\u0041'\n"
    outcome = look(data, fix=frozenset({Applicability.SAFE}))
    assert {"AMP105", "AMP903"} <= codes(outcome)
    assert outcome.before == outcome.after


# -- the file system --------------------------------------------------------------------------------------------------


def test_places_that_are_no_files_and_names_that_are_no_names():
    for name in ("a b.py", "-x.py", "--fix.py", "new\nline.py", "\x1b[31m.py", "x:1:2.py", "*.py", "[a].py"):
        Path(name).write_text(SCRIPT)
    os.mkdir("dir.py")
    os.symlink("nowhere.py", "dangling.py")
    os.symlink("self.py", "self.py")
    os.symlink(".", "loop")
    os.mkfifo("pipe.py")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.py")
        outcomes = run(discover([".", "dir.py"], job().settings), job())
    messages = {outcome.path: outcome.findings[0].message for outcome in outcomes if outcome.failed}
    assert messages == {
        "dangling.py": "broken link",
        "self.py": "cannot read: too many levels of symbolic links",
        "pipe.py": "not a regular file",
        "socket.py": "not a regular file",
    }
    assert sum(codes(outcome) == {"AMP105", "AMP132"} for outcome in outcomes) == 8


def test_a_file_with_several_names_is_checked_once():
    os.mkdir("sub")
    Path("sub/b.py").write_text(SCRIPT)
    os.symlink("sub/b.py", "a.py")
    os.symlink("b.py", "sub/c.py")
    os.symlink("sub", "same")
    settings = job().settings
    assert [file.path for file in discover(["."], settings)] == ["sub/b.py"]
    assert [file.path for file in discover(["same", "sub", "sub/../sub/b.py"], settings)] == ["same/b.py"]
    assert discover(["a.py", "sub"], settings) == [files.File("sub/b.py", named=True)]


def test_a_file_that_became_a_pipe_meanwhile(monkeypatch):
    Path("a.py").write_text(SCRIPT)
    status = os.stat("a.py")
    os.unlink("a.py")
    os.mkfifo("a.py")
    keep = os.open("a.py", os.O_RDWR)  # a writer that says nothing
    monkeypatch.setattr(os, "stat", lambda path: status)
    [outcome] = run([files.File("a.py")], job())
    assert outcome.findings[0].message == "cannot read: the system has no data yet"
    os.close(keep)


def test_a_kernel_file_is_read_like_any_other():
    [outcome] = run([files.File("/proc/self/status", named=True)], job())
    assert outcome.findings[0].message.startswith("syntax error")


# -- time and depth ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_time_limit_holds_even_where_an_exception_is_lost(monkeypatch):
    monkeypatch.setattr(limit, "AGAIN", 0.1)

    def spin(self: object = None) -> None:
        until = time.process_time() + 2
        while time.process_time() < until:
            pass

    def swallow() -> None:
        with contextlib.suppress(Exception):
            spin()
        pytest.fail("TooLong was lost")

    def clean_up() -> None:
        type("Deaf", (), {"__del__": spin})()  # Python drops what is raised here
        swallow()

    for work in (swallow, clean_up):
        with pytest.raises(limit.TooLong), limit.time_limit(0.1):
            work()


def test_many_values_are_no_hang():
    outcome = look(SCRIPT + "x = 1\n" + "x = [x, x]\n" * 200)
    assert not outcome.failed or "processor time" in outcome.findings[-1].message


# -- fuzzing ----------------------------------------------------------------------------------------------------------

EXAMPLES = [code for rule in rules().values() for _, code in rule.examples()]


def mutated(text: str, luck: random.Random) -> str:
    """A text with lines lost, doubled or moved, tokens swapped, or an end missing."""
    rows = text.splitlines(keepends=True)
    match luck.randrange(5):
        case 0:
            return text[: luck.randrange(len(text))]
        case 1:
            return "".join(row for row in rows if luck.random() > 0.15)
        case 2:
            at, to = luck.randrange(len(rows)), luck.randrange(len(rows))
            rows.insert(to, rows.pop(at))
            return "".join(rows)
        case 3:
            at = luck.randrange(len(rows))
            indent = " " * luck.randrange(9)
            return "".join((*rows[:at], indent + rows[at].lstrip(), *rows[at:]))
    tokens = [token.string for token in tokenize.generate_tokens(StringIO(text).readline) if token.string.strip()]
    one, other = luck.choice(tokens), luck.choice(tokens)
    return text.replace(one, "\0").replace(other, one).replace("\0", other)


@pytest.mark.parametrize("seed", range(4))
def test_broken_examples_break_nothing(seed):
    luck = random.Random(seed)
    for example in luck.sample(EXAMPLES, 12):
        text = mutated(example, luck)
        outcome = look(text, fix=frozenset(Applicability) - {Applicability.DISPLAY})
        if outcome.failed:
            [finding] = outcome.findings
            assert re.match(r"syntax error|contains a NUL", finding.message), (finding.message, text)
        if outcome.fixed:
            ast.parse(outcome.after)
