"""Files in the syntax of a newer Python than the one that runs: read in any, every byte at its place."""

from __future__ import annotations

import ast
import sys

import pytest
from click.testing import CliRunner

from amplint.cli import cli
from amplint.source.module import Unreadable, parse
from amplint.source.newer import as_older

OLDER = {
    "type A = int": "A      = int",
    "type A[T] = list[T]": "A         = list[T]",
    "class A[T: int](B): pass": "class A        (B): pass",
    "class A[\n    T,\n](B): pass": "class A\\\n     \\\n (B): pass",
    "def f[T](x: T) -> T: pass": "def f   (x: T) -> T: pass",
    """print(f"é {d["a"]:>{w["b"]}}")""": """print(f"é {d['a']:>{w['b']}}")""",
    """print(f"{'\\n'.join(a)}")""": """print(f"{'_n'.join(a)}")""",
    """print(f"{f"{a["b"]}"}")""": """print(f"{ '{a[_b_]}'}")""",
    """print(f"{"a"}" f"{b}")""": """print(f"{'a'}" f"{b}")""",
    """print(f"a {\n    d["b"]\n}")""": """print( "a \\\n    d[_b_\\\n}")""",
    """print(t"{a}")""": """print(f"{a}")""",
    "try: pass\nexcept A, b.C: pass": "try: pass\nexcept(A,b.C): pass",
}
AS_THEY_ARE = [
    "class A(B[T]): pass",
    """print(f"{d['a']}", type(A), "class A[T]")""",
    "try: pass\nexcept ValueError, e: pass",  # Python 2
    "def f(:",
]


@pytest.mark.parametrize("text", OLDER)
def test_new_syntax_has_an_older_form_of_the_same_length(text):
    if sys.version_info >= (3, 12) and "print(f" in text:
        pytest.skip("this Python reads it as it is")
    older = as_older(text)
    assert older == OLDER[text]
    assert len(older.encode()) == len(text.encode())
    ast.parse(older)


@pytest.mark.parametrize("text", AS_THEY_ARE)
def test_other_syntax_has_none(text):
    assert as_older(text) is None


def test_what_is_wrong_in_any_python_is_told_as_ever():
    with pytest.raises(Unreadable, match=r"^syntax error: "):
        parse("type A = int\nf(\n")


def test_a_fix_changes_the_file_as_it_is_written(tmp_path):
    source = """\
import torch
from torch.cuda.amp import autocast

type Batch[T] = dict[str, T]


def train[T: torch.nn.Module](model: T, loader, d: Batch[int]):
    for step, x in enumerate(loader):
        with autocast():
            print(f"{d["epoch"]}/{step}: {model(x, note=f"{d["a"]}").mean()}")
"""
    file = tmp_path / "train.py"
    file.write_text(source)
    assert CliRunner().invoke(cli, ["check", "--isolated", "--no-cache", "--fix", str(file)]).exit_code == 0
    assert file.read_text() == source.replace("torch.cuda.amp", "torch.amp").replace("autocast()", 'autocast("cuda")')
