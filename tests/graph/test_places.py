"""Where a call comes from: the innermost line of the user's, its columns, its module."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from amplint.graph import places  # noqa: E402

STDLIB, SITE = (sysconfig.get_paths()[key] for key in ("stdlib", "purelib"))


@pytest.mark.parametrize(
    ("path", "own"),
    [
        ("/home/me/train.py", True),
        (os.path.join(SITE, "timm", "layers", "norm.py"), True),  # a library's model: its line is the one to mend
        (os.path.join(SITE, "einops", "einops.py"), False),
        (os.path.join(os.path.dirname(torch.__file__), "nn", "functional.py"), False),
        (places.__file__, False),
        (os.path.join(STDLIB, "functools.py"), False),
        ("<string>", False),
        ("<eval_with_key>.3", False),
        ("", False),
    ],
)
def test_whose_file(path: str, own: bool) -> None:
    assert places.is_own(path) is own


def test_the_innermost_frame_with_columns_in_code_points() -> None:
    def helper() -> Any:
        ünï = 1; return (places.innermost(), ünï)  # noqa: E702  # fmt: skip

    place = helper()[0]
    line = Path(__file__).read_text(encoding="utf-8").splitlines()[place.row - 1]
    assert line[place.column - 1 : place.end_column - 1] == "places.innermost()"
    assert (place.path, place.function, place.end_row) == (__file__, "helper", place.row)


def test_a_call_over_several_lines() -> None:
    place = max(
        [places.innermost()],
        key=lambda one: one.row,
    )
    assert place.row == place.end_row
    place = (lambda one: one)(
        places.innermost(
            # over three lines
        )
    )
    assert place is not None and place.end_row == place.row + 2


def test_a_stack_trace_of_dynamos(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text("def helper(q, k):\n    s = q @ k\n    return s\n")
    inner = f'  File "{torch.__file__}", line 3, in forward\n    return f(x)\n'
    outer = f'  File "{path}", line 9, in forward\n    helper(x, x)\n'
    resumed = f'  File "{path}", line 2, in torch_dynamo_resume_in_helper_at_1\n    s = q @ k\n        ^^^^^\n'
    text = outer + resumed
    assert places.of_stack_trace(text + inner) == places.Place(str(path), 2, 9, 2, 14, "helper")
    assert places.of_stack_trace(inner) is None and places.of_stack_trace(None) is None


def test_modules_of_a_stack() -> None:
    stack = {
        "0": ("L['self']", torch.nn.Sequential),
        "1": ("L['self']._modules['layer']._modules['0'].norm", "torch.nn.modules.normalization.LayerNorm"),
        "2": ("L['self'].blocks[1]", torch.nn.Linear),
    }
    assert places.modules(stack) == (("", "Sequential"), ("layer.0.norm", "LayerNorm"), ("blocks.1", "Linear"))
    assert places.modules({"0": ("", "net.Net"), "1": ("head", "Linear")}) == (("", "Net"), ("head", "Linear"))
    assert places.modules(None) == ()
