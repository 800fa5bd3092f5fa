"""Every edit on random programs in every style: the tree changes as the model says, and nothing else does."""

from __future__ import annotations

import ast
from contextlib import suppress

from edit_model import OPERATIONS, check
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amplint.rewrite.edits import CannotEdit
from amplint.source.module import Module

SIMPLE = (
    r"""
x = 1|step()|é = "ü" + f(ß)|return x|assert x, "m"|del x|pass|x: int = 1|print("#; :", end="")|f"{x!r} {f(a)}"|"text"
f(a, b=1)|f(a,b,)|f(*a, k=1, **kw)|f(x for x in y)|f((x for x in y), 1)|(a + b).backward()|(a).backward()|x[a, 1:2] = y
z = lambda q, r=1: q|raise E from e|import os, sys as s|import a.b|from m import n, o as p|from .r import (t)|await g(1)
x = yield y|x = y = (1, 2)|a if b else c|not(a)|return(f(a))|x = a or b and not c|loss = (yield)|f(y := 1, *b)|global g
with_ = a @ b|a, b = b, a|*a, b = c|x = [i for i in f(j) if k]|x += -a ** -b|f(a)(b)(c)|x.y.z(1).w()
""".strip()
    .replace("\n", "|")
    .split("|")
)
MULTI = [
    "s = '''a\n  b\n'''",
    "s = f('''\n# no comment\n    ''', a,\n      b)",
    "s = f'''a {b}\n    # no comment\n  {c!r:{w}}''' f'{d}'",
    "f(a,\n  b)",
    "f(\n    a,  # A\n    # about b\n    b  # B\n)",
    "f(\n    a,  # A\n    b=1,  # B\n)",
    "f(  # open\n    a, b,\n    c\n  )",
    "x = a + \\\n    b",
    "x = (a +  # one\n     b)",
    "(a\n .b(c)\n .d(\n   e))",
    "from m import (\n    n,  # noqa\n    o as p,\n)",
    "from m import n, \\\n    o",
    "x = {\n  'a': f(1),\n\n  # c\n  'b': 2}",
    "f(lambda: (\n  1), [\n2])",
]
HEADERS = [
    "if c:",
    "if (a\n      and b):",
    "for i in f(y):",
    "while w:",
    "with m as n:",
    "with m(a), n:",
    "async with m:",
    "async for z in q:",
    "def f(a, b=1):",
    "def f():",
    "def f(a, /, b, *, c=1, **k) -> T:",
    "def f(\n    self,  # me\n    a: int,\n):",
    "@deco\ndef g(a):",
    "@d(1)\n# about e\n@e\nasync def h(*k):",
    "class A(B, k=1):",
    "@final\nclass C:",
]
TAILS = {
    "if": [["else:"], ["elif d:"], ["elif d:", "elif e:", "else:"]],
    "try": [["except E:"], ["except (E, F) as e:", "else:", "finally:"], ["finally:"]],
    "for": [["else:"]],
}


@st.composite
def simple_line(draw: st.DrawFn) -> list[str]:
    """A line of simple statements, or one statement over several rows."""
    if draw(st.integers(0, 3)) == 0:
        rows = draw(st.sampled_from(MULTI)).split("\n")
    else:
        many = draw(st.sampled_from([1, 1, 1, 2, 3]))
        statements = [draw(st.sampled_from(SIMPLE)) for _ in range(many)]
        rows = [draw(st.sampled_from(["; ", ";", " ; "])).join(statements) + draw(st.sampled_from(["", "", "", ";"]))]
    return [*rows[:-1], rows[-1] + draw(st.sampled_from(["", "", "  # tail", " #"]))]


@st.composite
def suite(draw: st.DrawFn, header: str, unit: str, depth: int) -> list[str]:
    """A header with its block, on its line or below."""
    *above, last = header.split("\n")
    if draw(st.integers(0, 3)) == 0:
        first, *rest = draw(simple_line())
        return [*above, f"{last} {first}", *rest]
    last += draw(st.sampled_from(["", "", "  # header"]))
    return [*above, last, *(row and unit + row for row in draw(block(unit, depth - 1)))]


@st.composite
def compound(draw: st.DrawFn, unit: str, depth: int) -> list[str]:
    kind = draw(st.sampled_from(["header", "header", "header", "try", "match"]))
    if kind == "match":
        cases = [draw(suite(header, unit, depth - 1)) for header in ("case [1, q]:", "case K(a=f.g) if (h(1)):")]
        return ["match (v):", *(unit + row for case in cases for row in case)]
    header = "try:" if kind == "try" else draw(st.sampled_from(HEADERS))
    options = TAILS.get(header.partition(" ")[0].rstrip(":"), [])
    tails = draw(st.sampled_from(options if kind == "try" else [[], *options]))
    return [row for part in (header, *tails) for row in draw(suite(part, unit, depth))]


@st.composite
def block(draw: st.DrawFn, unit: str, depth: int) -> list[str]:
    rows: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        rows += draw(st.sampled_from([[], [], [], [""], ["", ""], ["# about"], ["", "# two", "# rows"], ["# one", ""]]))
        rows += draw(compound(unit, depth)) if depth and draw(st.booleans()) else draw(simple_line())
        rows += draw(st.sampled_from([[], [], [], [unit + "# deeper"]]))
    return rows + draw(st.sampled_from([[], [], ["# last"], [""]]))


@st.composite
def programs(draw: st.DrawFn) -> str:
    unit = draw(st.sampled_from(["    ", "    ", "\t", "  "]))
    top = draw(st.sampled_from([[], ["#!/usr/bin/python"], ['"""Doc."""', "", "from __future__ import annotations"]]))
    rows = [*top, *draw(block(unit, 3)), *draw(st.sampled_from([[], [""], ["", "", "# end"]]))]
    newline = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    return newline.join(rows) + draw(st.sampled_from(["", newline]))


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=programs(), rnd=st.randoms(use_true_random=False))
def test_edits_do_what_the_model_says_on_any_program(text, rnd):
    module = Module("train.py", text, ast.parse(text))
    for operation in OPERATIONS:
        with suppress(CannotEdit):
            check(module, operation, rnd)
