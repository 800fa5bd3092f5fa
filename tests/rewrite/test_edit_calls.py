from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from edit_helpers import edited, read

from amplint.rewrite.edits import CannotEdit, add_argument, add_parameter, change_call


def first(module, kind):
    return next(node for node in ast.walk(module.tree) if isinstance(node, kind))


@pytest.mark.parametrize(
    ("source", "change", "expected"),
    [
        (
            "with torch.cuda.amp.autocast(enabled=x):\n    y\n",
            {"func": "torch.autocast", "add_positional_first": ['"cuda"']},
            'with torch.autocast("cuda", enabled=x):\n    y\n',
        ),
        (
            "torch.cuda.amp.autocast()",
            {"func": "torch.autocast", "add_positional_first": ['"cuda"'], "add_keywords": {"dtype": "torch.half"}},
            'torch.autocast("cuda", dtype=torch.half)',
        ),
        (
            "torch.cuda.amp.GradScaler(\n    2.0**16,  # scale\n    enabled=x,\n)",
            {"func": "torch.amp.GradScaler", "add_positional_first": ['"cuda"']},
            'torch.amp.GradScaler(\n    "cuda",\n    2.0**16,  # scale\n    enabled=x,\n)',
        ),
        ("f(a,\n  b)", {"add_positional_first": ["x"]}, "f(x,\n  a,\n  b)"),
        ("f(a, b, c=1)", {"keywords_for_positional": {0: "i", 1: "k"}}, "f(i=a, k=b, c=1)"),
        ("f(a := 1)", {"keywords_for_positional": {0: "i"}}, "f(i=(a := 1))"),
        ("f(a, **kw)", {"add_keywords": {"k": "1"}}, "f(a, k=1, **kw)"),
        ("f(a, b, c)", {"remove": [1]}, "f(a, c)"),
        ("f(a, b, c)", {"remove": [0, 1, 2]}, "f()"),
        ("f(a, k=1)", {"remove": ["k"]}, "f(a)"),
        ("f(a, k=1, )", {"remove": ["k"]}, "f(a, )"),
        ("f(\n    a,  # A\n    b,  # B\n    c,  # C\n)", {"remove": [1]}, "f(\n    a,  # A\n    c,  # C\n)"),
        ("f(\n    a,  # A\n    b,  # B\n)", {"remove": [1]}, "f(\n    a,  # A\n)"),
        ("f(\n    a,  # A\n    b  # B\n)", {"remove": [1]}, "f(\n    a  # A\n)"),
        ("f(\n    # on a\n    a,\n    # on b\n    b,\n)", {"remove": [0]}, "f(\n    # on b\n    b,\n)"),
        ("f(\n    # on a\n    a,\n    # on b\n    b,\n)", {"remove": [1]}, "f(\n    # on a\n    a,\n)"),
        ("f(a,\n  b)", {"remove": [1]}, "f(a)"),
        ("f(a,  # A\n  b)", {"remove": [1]}, "f(a  # A\n  )"),
        ("f(a, b,  # line\n  c)", {"remove": [1]}, "f(a,  # line\n  c)"),
        ("f(\n    k=1\n)", {"remove": ["k"], "add_keywords": {"i": "2"}}, "f(\n    i=2\n)"),
        ("f(\r\n    a,\r\n)", {"add_keywords": {"k": "1"}}, "f(\r\n    a,\r\n    k=1,\r\n)"),
        ("(a\n .f(b)\n .g())", {"func": "h", "add_keywords": {"k": "1"}}, "(h(k=1))"),
        ("é(ü, ß)", {"keywords_for_positional": {1: "x"}}, "é(ü, x=ß)"),
        ("f(x for x in y)", {"add_keywords": {"k": "1"}}, "f((x for x in y), k=1)"),
        ("f((x for x in y), 1)", {"remove": [1]}, "f((x for x in y))"),
        ("f(*a, b, k=1)", {"remove": ["k"]}, "f(*a, b)"),
    ],
)
def test_change_call(source, change, expected):
    module = read(source)
    assert edited(module, change_call(module, first(module, ast.Call), **change)) == expected


def test_what_a_call_keeps_is_not_in_the_edits():
    module = read("torch.cuda.amp.autocast(enabled=cfg(a))\n")
    edits = change_call(module, first(module, ast.Call), func="torch.autocast", add_positional_first=['"cuda"'])
    assert [(edit.range.start.column, edit.range.end.column, edit.text) for edit in edits] == [
        (7, 16, ""),
        (25, 25, '"cuda", '),
    ]


@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("f(a)", {"remove": [1]}),
        ("f(a)", {"remove": ["k"]}),
        ("f(k=1)", {"add_keywords": {"k": "2"}}),
        ("f(a, k=1)", {"keywords_for_positional": {0: "k"}}),
        ("f(a, b)", {"keywords_for_positional": {0: "k"}}),
        ("f(*a, b)", {"keywords_for_positional": {1: "k"}}),
        ("f(a)", {"add_positional_first": ["b, c"]}),
        ("f(a)", {"add_positional_first": ["b c"]}),
        ("f'{f(a)}'", {"add_positional_first": ["b"]}),
    ],
)
def test_calls_that_cannot_be_changed(source, change):
    module = read(source)
    with pytest.raises(CannotEdit):
        change_call(module, first(module, ast.Call), **change)


@pytest.mark.parametrize(
    ("source", "argument", "expected"),
    [
        ("f()", "s", "f(s)"),
        ("f(\n)", "s", "f(s)"),
        ("f( a )", "s", "f( a, s )"),
        ("f(a, k=1)", "s", "f(a, s, k=1)"),
        ("f(a, **k)", "s", "f(a, s, **k)"),
        ("f(a, **k)", "s=s", "f(a, s=s, **k)"),
        ("f(a,\n  b)", "s=s", "f(a,\n  b,\n  s=s)"),
        ("f(\n    a, b\n)", "s", "f(\n    a, b, s\n)"),
        ("f(\n    a, b,\n    c,\n)", "s", "f(\n    a, b,\n    c, s,\n)"),
        ("f(\n    a  # A\n)", "s", "f(\n    a,  # A\n    s\n)"),
        ("f(\n    a,  # A\n    # b,\n)", "s", "f(\n    a,  # A\n    s,\n    # b,\n)"),
        ("f(\n    a,\n    # on k\n    k=1,\n)", "s", "f(\n    a,\n    s,\n    # on k\n    k=1,\n)"),
        ("f(a, \\\n  b)", "s", "f(a, \\\n  b, s)"),
        ("f(x for x in y)", "s", "f((x for x in y), s)"),
        ("mp.spawn(f, args=(a,))", "s=s", "mp.spawn(f, args=(a,), s=s)"),
    ],
)
def test_add_argument(source, argument, expected):
    module = read(source)
    assert edited(module, add_argument(module, first(module, ast.Call), argument)) == expected


@pytest.mark.parametrize(
    ("source", "argument"), [("f(*a)", "s"), ("f(a, *b, k=1)", "s"), ("f(s=1)", "s=s"), ("f(a)", "s, t")]
)
def test_arguments_that_cannot_be_added(source, argument):
    module = read(source)
    with pytest.raises(CannotEdit):
        add_argument(module, first(module, ast.Call), argument)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(): pass", "def f(s): pass"),
        ("def f(a): pass", "def f(a, s): pass"),
        ("def f(a, /): pass", "def f(a, /, s): pass"),
        ("def f(a, b=1): pass", "def f(a, b=1, *, s): pass"),
        ("def f(*a): pass", "def f(*a, s): pass"),
        ("def f(a, **k): pass", "def f(a, *, s, **k): pass"),
        ("def f(a, *, k=1): pass", "def f(a, *, k=1, s): pass"),
        ("def f(a, *b, k=1, **kw): pass", "def f(a, *b, k=1, s, **kw): pass"),
        ("def f(\n    a,\n    b,  # B\n) -> T:\n    pass", "def f(\n    a,\n    b,  # B\n    s,\n) -> T:\n    pass"),
        ("def f(\n    a,\n    b  # B\n):\n    pass", "def f(\n    a,\n    b,  # B\n    s\n):\n    pass"),
        ("def f(a,\n      b):\n    pass", "def f(a,\n      b,\n      s):\n    pass"),
        ("def f(a, b,\n      c):\n    pass", "def f(a, b,\n      c, s):\n    pass"),
        ("def f(\n    a=1,\n    **k,\n):\n    pass", "def f(\n    a=1,\n    *,\n    s,\n    **k,\n):\n    pass"),
        ("class A:\n    @d\n    # c\n    def f(self):\n        # c\n        '''D.'''\n", None),
        ("async def f[T](a: T) -> T:\r\n\treturn a\r\n", None),
    ],
)
def test_add_parameter(source, expected):
    expected = expected or source.replace("(self)", "(self, s)").replace("(a: T)", "(a: T, s)")
    module = read(source)
    function = first(module, ast.FunctionDef | ast.AsyncFunctionDef)
    assert edited(module, add_parameter(module, function, "s")) == expected


def test_add_parameter_takes_annotation_and_default_and_refuses_what_is_there():
    module = read("def f(a: int): pass\n")
    function = first(module, ast.FunctionDef)
    text = edited(module, add_parameter(module, function, "s: torch.amp.GradScaler = None"))
    assert text == "def f(a: int, s: torch.amp.GradScaler = None): pass\n"
    for parameter in ("a", "*s", "s, t", "1"):
        with pytest.raises(CannotEdit):
            add_parameter(module, function, parameter)


def test_libcst_is_imported_where_it_is_needed_and_never_before():
    code = "import sys, amplint.rewrite.edits; sys.exit('libcst' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
