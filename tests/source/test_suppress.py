from __future__ import annotations

import io
import textwrap

import pytest
from click.testing import CliRunner
from fakes import make_finding

from amplint.cli import cli
from amplint.knowledge import rules
from amplint.rewrite.syntax.apply import apply_changes, changes
from amplint.source import suppress
from amplint.source.module import Module
from amplint.source.suppress import comment_row, fp32_lines, read
from amplint.unused import unused

STEPS = """\
import torch


def descend(loss, scaler):
    scaler.scale(loss).backward()  # amplint: ignore[AMP202] measured
"""
TRAIN = """\
import torch
from steps import descend

model = torch.nn.Linear(784, 10).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
for x, y in loader:
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = torch.nn.functional.cross_entropy(model(x.cuda()), y.cuda())
        descend(loss, scaler)
    scaler.step(optimizer)
    scaler.update()
"""


def hidden(text: str, code: str = "AMP105") -> list[int]:
    """The rows in which a finding of the code is hidden."""
    comments = read(textwrap.dedent(text))
    rows = range(1, len(textwrap.dedent(text).splitlines()) + 1)
    return [row for row in rows if comments.hide(make_finding(row=row, code=code))]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("a()  # amplint: ignore[AMP105] measured\nb()\n", [1]),
        ("a()  # amplint: ignore[AMP101, AMP105]\n", [1]),
        ("a()  # amplint: ignore[amp105]\n", [1]),
        ("a()  #amplint:ignore[AMP105]\n", [1]),
        ("a()  # amplint: ignore[AMP10]\n", [1]),  # a prefix
        ("a()  # amplint: ignore[AMP101]\n", []),
        ("a()  # type: ignore # amplint: ignore[AMP105]\n", [1]),
        # a call over several rows: a comment on any of them speaks of all
        ("a(\n  b,\n  c,\n)  # amplint: ignore[AMP105]\nd()\n", [1, 2, 3, 4]),
        ("a(\n  b,  # amplint: ignore[AMP105]\n  c,\n)\nd()\n", [1, 2, 3, 4]),
        # of a compound statement only the head
        ("with a():  # amplint: ignore[AMP105]\n    b()\n", [1]),
        # alone above: the next logical line, over blank lines and other comments
        ("# amplint: ignore[AMP105] why\na()\nb()\n", [2]),
        ("# amplint: ignore[AMP105] why\n# more\n\na(\n)\nb()\n", [4, 5]),
        ("if x:\n    # amplint: ignore[AMP105] why\n    a()\n    b()\n", [3]),
        ("if x:\n    b()\n# amplint: ignore[AMP105] why\nelse:\n    c()\n", [4]),
        ("# amplint: ignore[AMP105] why\n@wrap\n@wrap2(\n)\ndef a():\n    b()\n", [2, 3, 4, 5]),
        ("a()\n# amplint: ignore[AMP105] at the end\n", []),
        # the whole file
        ("a()\nb()\n# amplint: file-ignore[AMP105] generated\n", [1, 2, 3]),
        ("a()  # noqa: AMP105\nb()\n", [1]),
        ("a()  # noqa: E501,AMP105\n", [1]),
        ("a()  # NOQA:E501 AMP105 because\n", [1]),
        ("a()  # noqa : AMP105\n", [1]),
        ("a()  # noqa: E501\n", []),
        ("a()  # noqa\n", [1]),
        ("a()  # noqa - blanket\n", [1]),
        ("a()  # noqa: because\n", []),
        ("a()  # noqability\n", []),
        ("# noqa: AMP105\na()\n", []),
        ("# flake8: noqa\na()\n", []),
        # what only looks like a comment
        ("a('# amplint: ignore[AMP105]')\n", []),
        ('a("""\n# amplint: ignore[AMP105]\n""")\n', []),
        # comments that do nothing
        ("a()  # amplint: ignore\n", []),
        ("a()  # amplint: ignore[]\n", []),
        ("a()  # amplint: ignore[AMP]\n", []),
        ("a()  # amplint: ignore[clip-before-unscale]\n", []),
        ("a()  # amplint: ignore AMP105\n", []),
        ("# amplint: file-ignore\na()\n", []),
    ],
)
def test_which_rows_a_comment_hides(text, rows):
    assert hidden(text) == rows


@pytest.mark.parametrize(
    ("comment", "words"),
    [
        ("# amplint: ignore", "names no codes"),
        ("# amplint: ignore[]", "names no codes"),
        ("# amplint: file-ignore", "names no codes"),
        ("# amplint: ignore[clip-before-unscale]", '"CLIP-BEFORE-UNSCALE" is no code'),
        ("# amplint: ignroe[AMP105]", '"# amplint: ignroe" means nothing'),
        ("# amplint: disable[AMP105]", "means nothing"),
    ],
)
def test_a_comment_that_does_nothing_says_so(comment, words):
    [(row, text)] = read(f"x\na()  {comment}\n").warnings
    assert row == 2
    assert words in text
    assert "ignore[AMP105]" in text


@pytest.mark.parametrize(
    "text", ["a()  # amplint: ignore[AMP105]\n", "a()  # noqa\n", "# amplint: fp32 exact\n", "a()  # about amplint\n"]
)
def test_a_comment_that_does_something_is_no_warning(text):
    assert read(text).warnings == ()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("for x in y:  # amplint: fp32 needs it\n    a()\n", {1}),
        ("# amplint: fp32 needs it\nfor x in y:\n    a()\n", {2}),
        ("# amplint: fp32\nfor x in y(\n    z\n):\n    a()\n", {2, 3, 4}),
        ("for x in y:\n    a()\n", set()),
    ],
)
def test_fp32(text, rows):
    assert fp32_lines(text) == rows


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_rows_are_pythons_rows(newline):
    text = newline.join(["a = 'x\fy\u2028z'", "b()  # amplint: ignore[AMP105]", "c()", ""])
    comments = read(text)
    assert [row for row in (1, 2, 3) if comments.hide(make_finding(row=row))] == [2]


@pytest.mark.parametrize("text", ["a(  # noqa: AMP105\n", "if x:\n  a()\n b()  # noqa\n", "'''  # noqa\n", "a\\", ""])
def test_what_does_not_tokenize_is_no_crash(text):
    read(text)
    comment_row(text, 1)


def test_a_file_without_such_comments_is_not_tokenized(monkeypatch):
    monkeypatch.setattr(suppress, "_scan", lambda text: pytest.fail("tokenized"))
    assert read("a()  # ordinary\n") == suppress.Suppressions()


@pytest.mark.parametrize(
    ("text", "row", "expected"),
    [
        ("a()\n", 1, 1),
        ("a(\n  b,\n)\n", 1, 1),
        ('a("""\nx\n""")\n', 1, 3),
        ("a = \\\n  b\n", 1, 2),
        ("a = b + \\\n  c + \\\n  d\ne\n", 2, 3),
    ],
)
def test_where_a_comment_can_stand(text, row, expected):
    assert comment_row(text, row) == expected
    marked = list(io.StringIO(text))
    marked[expected - 1] = marked[expected - 1].rstrip("\n") + "  # noqa: AMP105\n"
    assert read("".join(marked)).hide(make_finding(row=row))


@pytest.mark.parametrize(
    ("line", "fixed"),
    [
        ("a()  # amplint: ignore[AMP101, AMP105] why\n", "a()\n"),
        ("a()  # amplint: ignore[AMP105] why # type: ignore\n", "a()  # type: ignore\n"),
        ("a()  # type: ignore # amplint: ignore[AMP105]\n", "a()  # type: ignore\n"),
        ("a()  # noqa: E501, AMP105\n", "a()  # noqa: E501\n"),
        ("a()  # noqa: AMP105, E501 long\n", "a()  # noqa: E501 long\n"),
        ("# amplint: ignore[AMP105] why\na()\n", "a()\n"),
        ("# amplint: file-ignore[AMP1]\na()\n", "a()\n"),
        ("a()  # noqa\n", None),
        ("a()  # noqa: E501\n", None),
        ("a()  # amplint: ignore[AMP301]\n", None),  # that rule did not run
        ("bad()  # amplint: ignore[AMP101] measured\n", None),
        ("bad()  # amplint: ignore[AMP10]\n", None),
        ("bad()  # amplint: ignore[AMP101, AMP105]\n", "bad()  # amplint: ignore[AMP101]\n"),
        ("x = 1  # amplint: file-ignore[AMP101]\nbad()\n", None),
    ],
)
def test_unused_comments_are_found_and_removed(line, fixed):
    module = Module.read("a.py", line.encode())
    rows = [row for row, text in enumerate(line.splitlines(), 1) if text.startswith("bad")]
    findings = [make_finding(row=row, code="AMP101", path="a.py") for row in rows]
    ran = {code for code in rules() if code.startswith("AMP1")}
    found = list(unused(module, read(line), findings, ran))
    assert len(found) == (fixed is not None)
    for finding in found:
        assert finding.fix
        assert apply_changes(line, changes(line, finding.fix.edits)) == fixed


def test_a_comment_that_hides_what_another_file_shows_is_used(tmp_path):
    (tmp_path / "steps.py").write_text(STEPS)
    (tmp_path / "train.py").write_text(TRAIN)
    arguments = ["check", "--no-cache", "--isolated", "--select", "AMP2,AMP9", "--output-format", "concise"]
    assert CliRunner().invoke(cli, [*arguments, str(tmp_path)]).output == "All checks passed!\n"
    (tmp_path / "train.py").write_text(TRAIN.replace("        descend", "    descend"))
    assert "steps.py:5:36: AMP901 [*]" in CliRunner().invoke(cli, [*arguments, str(tmp_path)]).output
