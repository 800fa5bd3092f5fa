"""The report of a trace, for the terminal and as a page."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from amplint.report.trace.page import page
from amplint.report.trace.scale import WINDOWS, bar
from amplint.report.trace.terminal import summary

F16 = WINDOWS["float16"]


def place(row: int) -> dict[str, Any]:
    return {"path": "model.py", "row": row, "column": 5, "end_row": row, "end_column": 9, "function": "forward"}


def seen(tiny: float, largest: float) -> dict[str, Any]:
    return {"tiny": tiny, "absmax": largest, "flushed": 0, "subnormal": 0, "overflow": 0, "hist": [0] * 71}


def node(name: str, module: list[list[str]], **more: Any) -> dict[str, Any]:
    given = {"op": f"aten.{name}.default", "shape": [2, 3], "dtype": "float16", "list": "lower", "place": place(2)}
    plain = {"low": -9.0, "high": 9.0, "amax": 4.0, "safe": True, "unknown": "", "measured": None, "gradient": None}
    return {"name": name, "module": module, "mark": None, **given, **plain, **more}


def report(**more: Any) -> dict[str, Any]:
    mark = {
        "code": "AMP451",
        "severity": "warning",
        "verdict": "calibrated",
        "headroom_bits": -1.55,
        "message": "matmul reaches 191800, and float16 ends at 65504",
        "cause": "a sum of 4096 products",
        "remedy": "scale q before the product",
        "place": place(2),
        "node": "matmul",
        "count": 12,
        "modules": ["blocks.0", "blocks.1"],
    }
    target = {"what": "train.py", "model": "Net<script>", "parameters": 1234567, "frontend": "export", "mode": "train"}
    target |= {"precision": "amp", "dtype": "float16", "device": "on the CPU", "batch": ["2x3 float32"]}
    target |= {"loss": "the script's", "notes": ["2 graph breaks"], "seconds": {}}
    gradients = {"flushed_at_1": 0.0368, "subnormal_at_1": 0.5, "scale": 65536, "flushed_at_scale": 0.0, "signal": True}
    gradients |= {
        "overflow_at_scale": 0.0,
        "window": [8, 131072],
        "own_scale": False,
        "hist": [1] * 71,
        "swamped": None,
    }
    made = {
        "version": 1,
        "target": target,
        "nodes": [
            node("matmul", [["", "Net"], ["head", "Head"]], measured=seen(2.0, 191800.0), mark=0, safe=False),
            node("softmax", [["", "Net"]], dtype="float32", list="fp32"),
        ],
        "marks": [mark],
        "gradients": gradients,
        "plan": {"lower": 1, "fp32": 1, "promote": 0, "other": 0, "casts": 3, "bytes": 12345678},
        "unknown": {"my_op": 2},
    }
    return made | more


def test_the_terminal_says_what_where_why_and_what_to_do() -> None:
    assert (
        summary(report())
        == """\
Net<script>: 1.23 M parameters, 2 operations (export), autocast in float16, on the CPU; batch 2x3 float32
1 operation runs in float16; 0 of them proved not to overflow
note: 2 graph breaks

                        headroom  2^-30   2^-14          2^16
AMP451   calibrated    -1.6 bits     .....-------########!   model.py:2:5
                     matmul reaches 191800, and float16 ends at 65504 (12 times)
                     because: a sum of 4096 products
                     do: scale q before the product

bars: # values measured, 0 becomes 0, ! becomes inf; float16: . subnormal, - normal, | its end
gradients in float16: without a loss scale 3.68 % become 0 and 50 % are subnormal; scaled by 65536, 0 % become 0
useful loss scales: 2^3 to 2^17; 65536, a GradScaler's first, is inside
of all operations autocast runs 1 in float16, 1 in float32, 0 in their widest dtype, 0 as they come: 3 casts, 12.3 MB
unknown to amplint, so nothing is said of what they give: my_op (2)
"""
    )


@pytest.mark.parametrize(
    ("tiny", "largest", "shown"),
    [
        (None, None, "   .....---------------| "),
        (0.25, 3.0, "   .....------##-------| "),
        (1e-9, 1e-8, "00 .....---------------| "),
        (1.0, 1e9, "   .....-------########!!"),
        (1e-30, 1e30, "000####################!!"),
    ],
)
def test_a_bar_shows_what_is_lost(tiny: float | None, largest: float | None, shown: str) -> None:
    assert bar(tiny, largest, F16) == shown


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href") and value and "//" in value[:8]]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_stands_alone_and_escapes_what_it_shows() -> None:
    reader = _Reader()
    given = report()
    given["marks"][0]["fix"] = [("-", "a @ b < c"), ("+", "a.float() @ b")]
    reader.feed(page(given, {"model.py": "def forward(x):\n    a @ b < c\n"}))
    text = " ".join("".join(reader.text).split())
    assert "script" not in reader.tags and "link" not in reader.tags and "img" not in reader.tags
    assert all(one.startswith("file://") for one in reader.outside)
    for shown in (
        "Net<script> in float16",
        "warning AMP451",
        "calibrated: measured on this batch; headroom -1.6 bits, 12 times",
        "head Head 1 operation, 1 in float16, least headroom -1.5 bits",
        "- a @ b < c + a.float() @ b",
        "> 2 a @ b < c",
        "my_op (2)",
    ):
        assert shown in text


def test_a_report_without_marks_and_gradients_is_whole() -> None:
    bare = report(marks=[], gradients=None, unknown={})
    assert "AMP4" not in summary(bare) and "no marks\n" in summary(bare) and "<p>None.</p>" in page(bare, {})
    bare["hidden"] = 2
    assert "no marks; 2 notes: --select AMP4" in summary(bare) and "None; 2 notes not shown" in page(bare, {})
    silent = report(gradients={"signal": False, "silent": [9, 12], "zero": ["bn.weight"], "scale": 65536})
    assert "1 weight of 0 lets none through (bn.weight)" in summary(silent)
    assert "they are 0 at 9 of 12 operations" in summary(silent) and "they are 0 at 9 of 12 operations" in page(
        silent, {}
    )
