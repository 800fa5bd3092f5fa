"""The verdict as people read it: in the terminal, in a pull request, as a page."""

import json
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from amplint.report.verify.markdown import markdown
from amplint.report.verify.page import page
from amplint.report.verify.terminal import summary

LINE = {
    "path": "net.py", "line": 2, "op": "aten.bmm", "phase": "forward", "calls": 40, "elements": 40960, "inf": 12,
    "nan": 0, "flushed": 0, "subnormal": 3, "absmax": "inf", "origin": 12, "shapes": [[64, 64, 64]],
    "counted_by": "kernel",
}  # fmt: skip
CALM = LINE | {"line": 3, "op": "aten.mm", "inf": 0, "subnormal": 0, "absmax": 8.0, "origin": 0}
FULL = [[2.5 - 0.02 * step + 0.01 * seed for step in range(50)] for seed in range(3)]
REPORT: dict[str, Any] = {
    "version": 1,
    "target": {
        "script": "train.py", "arguments": ["--epochs", "1"], "against": "", "dtype": "float16", "steps": 50,
        "seeds": 3, "device": "CPU under CUDA's policy", "torch": "2.13.0", "launcher": "",
    },
    "verdict": {
        "word": "not the same", "reasons": ["AMP's loss is inf at step 7; FP32's is finite"], "steps": 50,
        "band": {"why": "the spread of 3 seeds of FP32, at least 1 % of the loss", "relative": 0.012},
    },
    "series": [{"site": "train.py:41", "fp32": FULL, "amp": [[*FULL[0][:6], "inf", *FULL[0][7:]]]}],
    "norms": {"fp32": [1.0] * 50, "amp": [1.0] * 6 + ["nan"] + [1.1] * 43},
    "scale": [65536.0] * 7 + [32768.0] * 43, "skipped": [6], "speed": None, "memory": None, "energy": None,
    "not_measured": ["time, memory and energy: there is no GPU here"],
    "faults": [{"code": "AMP105", "what": "clips scaled gradients", "count": 50, "place": "train.py:44"}],
    "lines": [LINE, CALM],
    "layers": [{"class": "Linear", "calls": 10, "dtypes": {"float16": 8, "float32": 2}}],
    "marks": [
        {"code": "AMP451", "place": "net.py:2", "message": "may exceed 65504", "outcome": "confirmed",
         "evidence": "12 of 40960 values became inf"},
        {"code": "AMP452", "place": "net.py:3", "message": "may be 0", "outcome": "refuted", "evidence": "0 did"},
    ],
    "advice": [], "sweep": None, "notes": [], "links_written": [],
}  # fmt: skip
ON_A_GPU = REPORT | {
    "verdict": REPORT["verdict"] | {"word": "same", "reasons": ["the loss stays within FP32's own spread"]},
    "speed": {"fp32": 0.2, "amp": 0.1}, "memory": {"fp32": 8e9, "amp": 5e9}, "energy": {"fp32": 90.0, "amp": 41.0},
    "not_measured": [], "faults": [], "marks": [],
    "sweep": {
        "fp32": {"batch": 64, "samples_per_s": 810.0, "full": True},
        "amp": {"batch": 128, "samples_per_s": 1900.0, "full": False},
    },
}  # fmt: skip


def test_terminal() -> None:
    text = summary(REPORT)
    first, second = text.splitlines()[:2]
    assert first == "✗ train.py in FP32 and float16: not the same, over 50 steps"
    assert second == "  AMP's loss is inf at step 7; FP32's is finite"
    assert "fault: AMP105 clips scaled gradients (train.py:44, 50 times)" in text
    assert "loss scale: 65536 → 32768; 1 step skipped (step 7)" in text
    assert "8 of 10 calls of layers gave float16" in text
    assert "operations in float16, by line: 2; 1 lost values to inf, NaN or 0" in text
    assert "12 (0.029 %)" in text and "net.py:2" in text and "net.py:3 " not in text.split("marks and")[0]
    assert "confirmed     AMP451  net.py:2  12 of 40960 values became inf" in text
    assert "not measured: time, memory and energy: there is no GPU here" in text
    assert "×" in text.split("AMP   ")[1].splitlines()[0], "what is not finite has a sign of its own in the curve"


def test_what_has_been_said_is_not_said_again() -> None:
    verdict = REPORT["verdict"] | {"reasons": ["AMP105: clips scaled gradients at train.py:44 (50 times)"]}
    report = REPORT | {
        "verdict": verdict,
        "marks": [REPORT["marks"][0], REPORT["marks"][0] | {"message": "* may, too"}],
    }
    for text in (summary(report), markdown(report)):
        assert text.count("clips scaled gradients") == 1 and text.count("12 of 40960 values became inf") == 1
    assert page(report, {}).count("clips scaled gradients") == 1


def test_terminal_on_a_gpu() -> None:
    text = summary(ON_A_GPU)
    assert text.startswith("✓ train.py in FP32 and float16: same")
    assert "time a step    FP32    200 ms   AMP    100 ms   2.00 times less" in text
    assert "peak memory    FP32      8 GB   AMP      5 GB   1.60 times less" in text
    assert "largest batch that fits, FP32: 64, 810 samples a second" in text
    assert "largest batch tried, AMP: 128, 1900 samples a second" in text


@pytest.mark.parametrize("report", [REPORT, ON_A_GPU])
def test_markdown_is_tables_that_hold(report: dict[str, Any]) -> None:
    lines = markdown(report).splitlines()
    assert lines[0].startswith("### ")
    for before, line in pairwise(lines):
        if line.startswith("|") and before.startswith("|"):
            assert line.replace("\\|", "").count("|") == before.replace("\\|", "").count("|")
    assert sum(line == "<details>" for line in lines) == sum(line == "</details>" for line in lines)


def test_markdown_is_data() -> None:
    """What comes from a repository can neither break out of a cell nor call people."""
    report = REPORT | {"notes": ["@team <img src=x> `x` | [a](b)"], "links_written": ["a`|b"]}
    text = markdown(report)
    assert "@team" not in text and "<img" not in text and "\\| \\[a\\](b)" in text and "`a'\\|b`" in text


class _Balanced(HTMLParser):
    """Raises where an element that must be closed is not."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in ("section", "table", "svg", "div", "details", "ul", "title", "style", "body"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("section", "table", "svg", "div", "details", "ul", "title", "style", "body"):
            assert self.open.pop() == tag


@pytest.mark.parametrize("report", [REPORT, ON_A_GPU])
def test_page(report: dict[str, Any]) -> None:
    text = page(report, {"net.py": "import torch\nscores = q @ k\nout = a @ b\n"})
    parser = _Balanced()
    parser.feed(text)
    assert parser.open == []
    assert "<script" not in text and "http" not in text
    assert "scores = q @ k" in text
    assert text.count('class="half"') >= 2 and 'class="band"' in text and 'class="cross"' in text


def test_page_is_data() -> None:
    hostile = "<script>alert(1)</script>"
    report = json.loads(json.dumps(REPORT).replace("train.py", hostile).replace("net.py", hostile))
    assert "<script" not in page(report, {})


def test_nothing_to_draw() -> None:
    """A run in which nothing was finite, or nothing ran in half, still has its report."""
    bare = REPORT | {
        "series": [{"site": "train.py:4", "fp32": [["nan"] * 5], "amp": [["nan"] * 5]}],
        "norms": {"fp32": [], "amp": []}, "scale": [], "skipped": [], "lines": [], "layers": [], "marks": [],
    }  # fmt: skip
    for text in (summary(bare), markdown(bare), page(bare, {})):
        assert "not the same" in text.lower()
