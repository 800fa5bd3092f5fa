from __future__ import annotations

import ast

import pytest
from edit_helpers import edited, read, stmt

from amplint.rewrite.edits import CannotEdit, add_import, binding_of, change_import, remove_import_name
from amplint.source.module import Module


@pytest.mark.parametrize(
    ("source", "at", "expected"),
    [
        ("import torch\n", None, "torch"),
        ("import torch as T\n", None, "T"),
        ("import numpy, torch as T\n", None, "T"),
        ("import torch.nn\n", None, "torch"),
        ("import torch.nn as nn\nfrom torch import amp\n", None, None),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None\n", None, "torch"),
        ("if TYPE_CHECKING:\n    import torch\n", None, None),
        ("def f():\n    import torch as T\n    x\n", None, None),
        ("def f():\n    import torch as T\n    x\n", "x", "T"),
        ("def f():\n    import torch as T\ndef g():\n    x\n", "x", None),
    ],
)
def test_binding_of(source, at, expected):
    module = read(source)
    assert binding_of(module, "torch", stmt(module, at) if at else None) == expected


def test_binding_of_what_is_imported_from_somewhere():
    module = read("from torch.cuda import amp\nfrom .engine import step as s\n")
    assert binding_of(module, "torch.cuda.amp") == "amp"
    assert binding_of(module, ".engine.step") == "s"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch\n", "import torch\n"),
        ("import torch.nn\n", "import torch.nn\n"),
        ("import os\nimport sys  # s\n\nx\n", "import os\nimport sys  # s\nimport torch\n\nx\n"),
        ("import os; import sys\n", "import os; import sys\nimport torch\n"),
        ("import os\nfrom torch import nn\nimport z\n", "import os\nimport torch\nfrom torch import nn\nimport z\n"),
        ("import torch.nn as nn\nx\n", "import torch\nimport torch.nn as nn\nx\n"),
        ("import os\nos.x()\nimport sys\ndef f(): pass\nimport z\n", None),
        ("", "import torch\n"),
        ("# c", "# c\nimport torch\n"),
        ("x\n", "import torch\n\nx\n"),
        ("#!/bin/x\n\nx\n", "#!/bin/x\n\nimport torch\n\nx\n"),
        ("def f(): pass\n", "import torch\n\n\ndef f(): pass\n"),
        ('"""D."""\nx\n', '"""D."""\n\nimport torch\n\nx\n'),
        ('"""D."""\n\nx\n', '"""D."""\n\nimport torch\n\nx\n'),
        ('"""D."""', '"""D."""\n\nimport torch'),
        ("from __future__ import a\n\nx\n", "from __future__ import a\n\nimport torch\n\nx\n"),
        ("def f():\n    import torch\n", "import torch\n\n\ndef f():\n    import torch\n"),
        ("import os\r\nx\r\n", "import os\r\nimport torch\r\nx\r\n"),
    ],
)
def test_add_import(source, expected):
    module = read(source)
    expected = expected or source.replace("import sys\n", "import sys\nimport torch\n")
    assert edited(module, add_import(module, "import torch")) == expected


def test_add_import_adds_only_the_names_that_are_missing():
    module = read("from torch.amp import autocast\n")
    edits = add_import(module, "from torch.amp import autocast, GradScaler")
    assert edited(module, edits) == "from torch.amp import autocast\nfrom torch.amp import GradScaler\n"


@pytest.mark.parametrize(("existing", "needed"), [("torch.amp.x", False), ("torch.amplifier", True), ("torch", True)])
def test_add_import_of_a_submodule(existing, needed):
    module = read(f"import {existing}\n")
    assert bool(add_import(module, "import torch.amp")) is needed


@pytest.mark.parametrize(
    "source", ["torch = 1\n", "from x import torch\n", "def torch(): pass\n", "import x as torch\n"]
)
def test_add_import_refuses_a_name_that_is_taken(source):
    with pytest.raises(CannotEdit, match="torch for something else"):
        add_import(read(source), "import torch")


@pytest.mark.parametrize(
    ("source", "names", "expected"),
    [
        (
            "from torch.cuda.amp import autocast, GradScaler as G  # a\n",
            None,
            "from torch.amp import autocast, GradScaler as G  # a\n",
        ),
        ("from torch.cuda.amp import *\n", None, "from torch.amp import *\n"),
        ("from .cuda import a\n", None, "from torch.amp import a\n"),
        ("from m import a, b as c, d\n", {"b"}, "from torch.amp import b as c\nfrom m import a, d\n"),
        (
            "from m import a, b, c  # noqa: F401\n",
            {"a", "c"},
            "from torch.amp import a, c  # noqa: F401\nfrom m import b  # noqa: F401\n",
        ),
        ("from m import (\n    a,\n    b,\n)\n", {"a"}, "from torch.amp import a\nfrom m import (\n    b,\n)\n"),
        (
            "from m import (\n    a,  # A\n    b,  # B\n)\n",
            {"a"},
            "from torch.amp import (\n    a,  # A\n)\nfrom m import (\n    b,  # B\n)\n",
        ),
        (
            "try:\n\tfrom m import a, b\nexcept E: c\n",
            {"b"},
            "try:\n\tfrom torch.amp import b\n\tfrom m import a\nexcept E: c\n",
        ),
        ("if x: from m import a, b; c\n", {"a"}, "if x: from torch.amp import a; from m import b; c\n"),
        ("from m import a, \\\n    b\n", {"b"}, "from torch.amp import b\nfrom m import a\n"),
    ],
)
def test_change_import(source, names, expected):
    module = read(source)
    node = next(node for node in ast.walk(module.tree) if isinstance(node, ast.ImportFrom))
    assert edited(module, change_import(module, node, "torch.amp", names)) == expected


def test_change_import_and_add_import_go_together():
    module = read("from torch.cuda.amp import a, b\n")
    edits = add_import(module, "import torch") + change_import(module, module.tree.body[0], "torch.amp", {"a"})
    assert edited(module, edits) == "import torch\nfrom torch.amp import a\nfrom torch.cuda.amp import b\n"


def test_change_import_refuses_a_name_that_is_not_there():
    module = read("from m import *\n")
    with pytest.raises(CannotEdit):
        change_import(module, module.tree.body[0], "x", {"a"})


@pytest.mark.parametrize(
    ("source", "names", "expected"),
    [
        ("import a\nb\n", "a", "b\n"),
        ("import a, b\nb\n", "a", "import b\nb\n"),
        ("from m import a, b, c\nb\n", "abc", "from m import b\nb\n"),
        ("from m import (\n    a,  # A\n    b,  # B\n)\nb\n", "a", "from m import (\n    b,  # B\n)\nb\n"),
        ("import a.x, b\nb\n", "a", "import b\nb\n"),
        ("import x as a; b\n", "a", "b\n"),
        ("def f():\n    import a\n", "a", "def f():\n    pass\n"),
        ("import a\na.x\n", "a", None),
        ("import a\nclass C:\n    a = False\n", "a", "class C:\n    a = False\n"),
        ("import a\nclass C:\n    b = a\n", "a", None),
        ("import a\ndef f(): global a\n", "a", None),
        ("import a\n__all__ = ['a']\n", "a", None),
        ("import a\ndef f(x: 'list[a]') -> 'b': pass\n", "a", None),
        ("import a  # noqa\n", "a", None),
        ("from m import a as a\n", "a", None),
        ("if x:\n    import a\nelse:\n    from m import a\n", "a", None),
    ],
)
def test_remove_import_name(source, names, expected):
    module = read(source)
    assert edited(module, remove_import_name(module, *names)) == (source if expected is None else expected)


def test_remove_import_name_looks_past_what_is_going():
    module = read("import a\na.x()\na.y()\n")
    first, second = module.tree.body[1:]
    assert remove_import_name(module, "a", gone=[first]) == []
    assert edited(module, remove_import_name(module, "a", gone=[first, second])) == "a.x()\na.y()\n"


def test_remove_import_name_keeps_what_may_be_meant_for_others():
    text = "from .x import a\n"
    assert remove_import_name(Module("pkg/__init__.py", text, ast.parse(text)), "a") == []
    module = read("try:\n    import a\nexcept ImportError:\n    pass\n")
    with pytest.raises(CannotEdit):
        remove_import_name(module, "a")
