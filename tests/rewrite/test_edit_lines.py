from __future__ import annotations

import pytest
from edit_helpers import edited, expr, read, stmt

from amplint.rewrite.edits import (
    CannotEdit,
    dedent_tail,
    delete,
    indent_under,
    insert_after,
    insert_before,
    move_after,
    move_before,
    wrap_call,
)


@pytest.mark.parametrize(
    ("source", "at", "expected"),
    [
        ("a\nb\n", "b", "a\nNEW\nb\n"),
        ("a\nb", "b", "a\nNEW\nb"),
        ("a\n\n# why b\n# is here\nb\n", "b", "a\n\nNEW\n# why b\n# is here\nb\n"),
        ("a\n# not about b\n\nb\n", "b", "a\n# not about b\n\nNEW\nb\n"),
        ("if a:\n    c\n    # deeper\nb\n", "b", "if a:\n    c\n    # deeper\nNEW\nb\n"),
        ('x = """\n# text\n"""\nb\n', "b", 'x = """\n# text\n"""\nNEW\nb\n'),
        ("#!/usr/bin/env python\n# A licence.\nb\n", "b", "#!/usr/bin/env python\n# A licence.\nNEW\nb\n"),
        ("@d\n@e\ndef b(): c\n", "def", "NEW\n@d\n@e\ndef b(): c\n"),
        ("a; b  # c\n", "b", "a\nNEW\nb  # c\n"),
        ("a; b  # c\n", "a", "NEW\na; b  # c\n"),
        ("if c: b\n", "b", "if c:\n    NEW\n    b\n"),
        ("if c: a; b; d  # t\nelse: e\n", "b", "if c:\n    a\n    NEW\n    b; d  # t\nelse: e\n"),
        ("if c: \\\n  b\n", "b", "if c:\n    NEW\n    b\n"),
        ("def f(): return b  # t\n", "return", "def f():\n    NEW\n    return b  # t\n"),
        ("try: a\nexcept E: b\nfinally: c\n", "b", "try: a\nexcept E:\n    NEW\n    b\nfinally: c\n"),
        ("match v:\n    case 1: b\n", "b", "match v:\n    case 1:\n        NEW\n        b\n"),
        ("def f():\n  '''Doc.'''\n  b\n", "'''", "def f():\n  '''Doc.'''\n  NEW\n  b\n"),
        ("'''Doc.'''\nfrom __future__ import x\nb\n", "'''", "'''Doc.'''\nfrom __future__ import x\nNEW\nb\n"),
        ("while a:\r\n\tif c: b\r\n", "b", "while a:\r\n\tif c:\r\n\t\tNEW\r\n\t\tb\r\n"),
        ("if c:\r  b\r", "b", "if c:\r  NEW\r  b\r"),
        ("async def f():\n    async with é: b\n", "b", "async def f():\n    async with é:\n        NEW\n        b\n"),
    ],
)
def test_insert_before(source, at, expected):
    module = read(source)
    assert edited(module, insert_before(module, stmt(module, at), ["NEW"])) == expected


@pytest.mark.parametrize(
    ("source", "at", "expected"),
    [
        ("a\nb\n", "a", "a\nNEW\nb\n"),
        ("a", "a", "a\nNEW"),
        ("a  # why\n# b\nb\n", "a", "a  # why\nNEW\n# b\nb\n"),
        ("a  # why\n   # and how\nb\n", "a", "a  # why\n   # and how\nNEW\nb\n"),
        ("x = a \\\n  + b  # t\nc\n", "x", "x = a \\\n  + b  # t\nNEW\nc\n"),
        ("f(a,\n  b)\n", "f", "f(a,\n  b)\nNEW\n"),
        ("for a in b:\n    c\n\n    # d()\n\ne\n", "for", "for a in b:\n    c\n\n    # d()\nNEW\n\ne\n"),
        ("for a in b:\n    c\n    # d()\n", "c", "for a in b:\n    c\n    NEW\n    # d()\n"),
        ("if a:\n    b\nelse:\n    c\nd\n", "if", "if a:\n    b\nelse:\n    c\nNEW\nd\n"),
        ("if a:\n    b\n# else\nelse:\n    c\n", "b", "if a:\n    b\n    NEW\n# else\nelse:\n    c\n"),
        ("if a: b\nelif c: d\n", "b", "if a:\n    b\n    NEW\nelif c: d\n"),
        ("if a: b; c  # t\n", "b", "if a:\n    b\n    NEW\n    c  # t\n"),
        ("if a: b; c  # t\n", "c", "if a:\n    b; c  # t\n    NEW\n"),
        ("a; b;\n", "b", "a; b;\nNEW\n"),
        ("a; b;\n", "a", "a\nNEW\nb;\n"),
        ("def f(): pass\na\n", "def", "def f(): pass\nNEW\na\n"),
        ("'''Doc.'''\nfrom __future__ import x\n", "'''", "'''Doc.'''\nfrom __future__ import x\nNEW\n"),
    ],
)
def test_insert_after(source, at, expected):
    module = read(source)
    assert edited(module, insert_after(module, stmt(module, at), ["NEW"])) == expected


def test_inserted_lines_get_the_indentation_and_line_ends_of_the_file():
    module = read("def f():\r\n\ta\r\n")
    edits = insert_after(module, stmt(module, "a"), ["for p in g:", "    if p:", "        x", "", "y\nz"])
    assert edited(module, edits) == "def f():\r\n\ta\r\n\tfor p in g:\r\n\t\tif p:\r\n\t\t\tx\r\n\r\n\ty\r\n\tz\r\n"


def test_insertions_around_one_place_do_not_clash():
    module = read("if a:\n    b\n    c\n")
    edits = insert_after(module, stmt(module, "b"), ["1"]) + insert_before(module, stmt(module, "c"), ["2"])
    assert edited(module, edits) == "if a:\n    b\n    1\n    2\n    c\n"


def test_lines_go_before_a_statement_that_is_edited_itself():
    module = read("(a + b).backward()\nc\n")
    first, second = module.tree.body
    edits = insert_before(module, first, ["new"]) + wrap_call(module, expr(module, "a + b"), "scale({})")
    assert edited(module, edits) == "new\nscale(a + b).backward()\nc\n"
    edits = insert_before(module, first, ["new"]) + indent_under(module, [first, second], "with W:")
    assert edited(module, edits) == "new\nwith W:\n    (a + b).backward()\n    c\n"


@pytest.mark.parametrize(
    ("source", "gone", "expected"),
    [
        ("a\nX  # why\nb\n", "X", "a\nb\n"),
        ("a\n# stays\nX\nb\n", "X", "a\n# stays\nb\n"),
        ("a\nX", "X", "a"),
        ("X\n", "X", ""),
        ("X(a,\n  b)\nc\n", "X", "c\n"),
        ("@d\ndef X():\n    a\n    # b()\n\nc\n", "def", "c\n"),
        ("if a:\n    X  # why\nb\n", "X", "if a:\n    pass\nb\n"),
        ("if a: X  # why\nelse: b\n", "X", "if a: pass\nelse: b\n"),
        ("if a:\n    b\nelse:\n    X\n", "X", "if a:\n    b\nelse:\n    pass\n"),
        ("a; X; b  # c\n", "X", "a; b  # c\n"),
        ("a; X  # c\n", "X", "a  # c\n"),
        ("X; a  # c\n", "X", "a  # c\n"),
        ("if a: X; b\n", "X", "if a: b\n"),
        ("a; X;\n", "X", "a;\n"),
        ("a\n\nX\n\nb\n", "X", "a\n\nb\n"),
        ("a\n\nX\n\n\ndef f(): b\n", "X", "a\n\n\ndef f(): b\n"),
        ("def f():\n    X\n\n    b\n", "X", "def f():\n    b\n"),
        ("a\n\nX\n", "X", "a\n"),
        ("a\n\nX", "X", "a"),
        ("X; X\nX", "X", "X\nX"),
        ("X\ra\r", "X", "a\r"),
    ],
)
def test_delete(source, gone, expected):
    module = read(source)
    assert edited(module, delete(module, stmt(module, gone))) == expected


def test_delete_several_at_once_leaves_no_block_empty():
    module = read("if a:\n    b; c\n    # about d\n    d\ne\n")
    names = [stmt(module, name) for name in "dbc"]
    assert edited(module, delete(module, *names)) == "if a:\n    pass\ne\n"
    assert edited(module, delete(module, stmt(module, "if"), *names)) == "e\n"
    assert edited(module, delete(module, *names[:2])) == "if a:\n    c\n    # about d\ne\n"


@pytest.mark.parametrize(
    ("source", "moved", "anchor", "before", "after"),
    [
        ("X  # x\na\nb\n", "X", "b", "a\nX  # x\nb\n", "a\nb\nX  # x\n"),
        ("z\n# why X\nX\na\n", "X", "a", "z\n# why X\nX\na\n", "z\na\n# why X\nX\n"),
        ("a\n# why X\nX\nb\n", "X", "b", "a\n# why X\nX\nb\n", "a\nb\n# why X\nX\n"),
        (
            "if a:\n    # why\n    X\n    b\nc\n",
            "X",
            "if",
            "# why\nX\nif a:\n    b\nc\n",
            "if a:\n    b\n# why\nX\nc\n",
        ),
        ("if a:\n    b\n    X\nc\n", "X", "if", "X\nif a:\n    b\nc\n", "if a:\n    b\nX\nc\n"),
        ("if a:\n    b\n    X", "X", "if", "X\nif a:\n    b", "if a:\n    b\nX"),
        ("if a:\n    X\n", "X", "if", "X\nif a:\n    pass\n", "if a:\n    pass\nX\n"),
        ("if a: X  # x\nb\n", "X", "b", "if a: pass\nX  # x\nb\n", "if a: pass\nb\nX  # x\n"),
        ("X\nif a: b\n", "X", "b", "if a:\n    X\n    b\n", "if a:\n    b\n    X\n"),
        ("X\nif a: b; c\n", "X", "c", "if a:\n    b\n    X\n    c\n", "if a:\n    b; c\n    X\n"),
        ("a; X; b\n", "X", "b", "a; X; b\n", "a; b\nX\n"),
        ("X('''\n    t''',\n  c)\nif a:\n  b\n", "X", "b", "if a:\n  X('''\n    t''',\n    c)\n  b\n", None),
        ("if a:\n\tX(\n\t\tb)\nc\n", "X", "c", "if a:\n\tpass\nX(\n\tb)\nc\n", None),
        ("'''Doc.'''\na\nX\n", "X", "'''", "'''Doc.'''\nX\na\n", "'''Doc.'''\nX\na\n"),
    ],
)
def test_move(source, moved, anchor, before, after):
    module = read(source)
    stmts, target = [stmt(module, moved)], stmt(module, anchor)
    assert edited(module, move_before(module, stmts, target)) == before
    assert after is None or edited(module, move_after(module, stmts, target)) == after


def test_move_several():
    module = read("for a in b:\n    x; y\n    # z\n    z  # t\n    step()\n")
    edits = move_after(module, [stmt(module, name) for name in "yz"], stmt(module, "step"))
    assert edited(module, edits) == "for a in b:\n    x\n    step()\n    y\n    # z\n    z  # t\n"


@pytest.mark.parametrize(
    ("source", "first", "last", "expected"),
    [
        ("a\nb\nc\n", "a", "b", "with W:\n    a\n    b\nc\n"),
        ("# stays above\na\n\n# moves\nb\n", "a", "b", "# stays above\nwith W:\n    a\n\n    # moves\n    b\n"),
        ("a = '''\nx\n'''\nb(c,\n  d)\n", "a", "b", "with W:\n    a = '''\nx\n'''\n    b(c,\n      d)\n"),
        ("if x: a; b; c  # t\n", "b", "b", "if x:\n    a\n    with W:\n        b\n    c  # t\n"),
        ("if x: a  # t\nelse: b\n", "a", "a", "if x:\n    with W:\n        a  # t\nelse: b\n"),
        ("a; b\nc\n", "b", "c", "a\nwith W:\n    b\n    c\n"),
        ("if x:\n\ta\n\tfor y in z:\n\t\tb\n", "a", "for", "if x:\n\twith W:\n\t\ta\n\t\tfor y in z:\n\t\t\tb\n"),
        ("if x:\n  a\n", "a", "a", "if x:\n  with W:\n    a\n"),
        ("@d\n# c\ndef f():\n    a\n\n    # b()\n", "def", "def", None),
        ("if x:\r\n    a\r\n", "a", "a", "if x:\r\n    with W:\r\n        a\r\n"),
        ("a\n  # more\n# next\nb\n", "a", "a", "with W:\n    a\n      # more\n# next\nb\n"),
        ("def f():\n    a\n# zero\n    b\n", "a", "b", "def f():\n    with W:\n        a\n# zero\n        b\n"),
    ],
)
def test_indent_under(source, first, last, expected):
    module = read(source)
    stmts = [stmt(module, first), *([stmt(module, last)] if first != last else [])]
    text = edited(module, indent_under(module, stmts, "with W:"))
    if expected is None:
        expected = "with W:\n" + "".join(line and f"    {line}" for line in source.splitlines(keepends=True))
        expected = expected.replace("    \n", "\n")
    assert text == expected


@pytest.mark.parametrize(
    ("source", "index", "expected"),
    [
        ("with W:  # amp\n    a\n    b\nc\n", 0, "a\nb\nc\n"),
        ("with W:\n    a\n    # why b\n    b  # t\n    # end\nc\n", 1, "with W:\n    a\n# why b\nb  # t\n# end\nc\n"),
        ("# stays\nwith W:\n\n    # a\n    a\n", 0, "# stays\n# a\na\n"),
        ("with W:\n    a\n", 1, "with W:\n    a\n"),
        (
            "with W:\n    a\n    b = '''\n    x\n    '''.f(\n        c)\n",
            1,
            "with W:\n    a\nb = '''\n    x\n    '''.f(\n    c)\n",
        ),
        ("with W: a; b  # t\n", 0, "a; b  # t\n"),
        ("with W: a; b  # t\n", 1, "with W: a\nb  # t\n"),
        ("with W:\n    a; b\n    c\n", 1, "with W:\n    a\nb\nc\n"),
        ("with (V as v,\n      W):\n  if a:\n    b\n  c\n", 0, "if a:\n  b\nc\n"),
        ("if x:\n\twith W:\n\t\ta\n\t\tif y:\n\t\t\tb\nz", 1, "if x:\n\twith W:\n\t\ta\n\tif y:\n\t\tb\nz"),
        ("async def f():\n    async with W:\n        a\n    b\n", 0, "async def f():\n    a\n    b\n"),
        ("with W:\r\n    a\r\n    b", 1, "with W:\r\n    a\r\nb"),
        ("with W:\n    a\n# zero\n    b(\n  c)\n", 0, "a\n# zero\nb(\n  c)\n"),
    ],
)
def test_dedent_tail(source, index, expected):
    module = read(source)
    block = next(node for node in module.parents if hasattr(node, "items"))
    assert edited(module, dedent_tail(module, block, index)) == expected


@pytest.mark.parametrize(
    ("source", "edit"),
    [
        ("if a: b\nelif c: d\n", lambda module: insert_before(module, stmt(module, "elif"), ["x"])),
        ("if a: b\nelif c: d\n", lambda module: insert_after(module, stmt(module, "elif"), ["x"])),
        ("if a: b\nelif c: d\n", lambda module: delete(module, stmt(module, "elif"))),
        ("a\nb\nc\n", lambda module: indent_under(module, [stmt(module, "a"), stmt(module, "c")], "with W:")),
        ("'''Doc.'''\n", lambda module: indent_under(module, [stmt(module, "'''")], "with W:")),
        ("'''Doc.'''\na\n", lambda module: move_after(module, [stmt(module, "'''")], stmt(module, "a"))),
        ("if a:\n    b\n", lambda module: move_after(module, [stmt(module, "if")], stmt(module, "b"))),
        ("a\n", lambda module: move_after(module, [], stmt(module, "a"))),
        ("\\\nb\n", lambda module: insert_before(module, stmt(module, "b"), ["x"])),
        ("if a:\n    b\n\f    c\n", lambda module: indent_under(module, module.tree.body[0].body, "with W:")),
    ],
)
def test_what_cannot_be_edited(source, edit):
    with pytest.raises(CannotEdit):
        edit(read(source))
