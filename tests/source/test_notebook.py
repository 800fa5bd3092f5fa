"""Notebooks: what is read of them, what is written back, and what is left alone."""

from __future__ import annotations

import ast
import json

import pytest
from click.testing import CliRunner

from amplint.cli import cli
from amplint.source.notebook import NotANotebook, cell_at, split_path, text_of, with_text

TRAIN = """\
for x, y in loader:
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x.cuda()), y.cuda())
    loss.backward()
    optimizer.step()
"""
SETUP = """\
model = nn.Linear(784, 10).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)"""
CLIPPED = """\
scaler = torch.amp.GradScaler("cuda")
for x, y in loader:
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nn.functional.cross_entropy(model(x.cuda()), y.cuda())
    scaler.scale(loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
"""
IMPORTS = "%matplotlib inline\n!pip install torch \\\n  torchvision\nimport torch\nfrom torch import nn\nmodel?"


def notebook(*sources, indent=1, metadata=None, kinds=None, joined=False, ascii=False) -> bytes:
    cells = [
        {"cell_type": kind, "metadata": {}, "source": source if joined else source.splitlines(True)}
        | ({"execution_count": 3, "outputs": [{"data": {"text/plain": ["1.50"]}}]} if kind == "code" else {})
        for source, kind in zip(sources, kinds or ["code"] * len(sources), strict=True)
    ]
    book = {"cells": cells, "metadata": metadata or {}, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(book, indent=indent, ensure_ascii=ascii) + "\n").encode()


def amplint(*arguments):
    return CliRunner().invoke(cli, [*arguments, "--isolated"])


@pytest.mark.parametrize(
    "source",
    [
        IMPORTS,
        "%%bash\nls -l\nfor x in *; do echo; done",
        "%%time\nx = 1\n%timeit x",
        "files = !ls\nx, y = %sx ls",
        "! mkdir -p LM && \\\n    cd LM/ && \\\n    tar -xf lm.tgz",
        "if True:\n    !pip install a \\\n  b\n    x = 1",
        "if True:\n    !ls\n    %cd ..\nelse:\n    ?x",
        "remainder = (7\n% 2)",
        "ls -l text.txt\npip install torch\nls = 3\nx?",
        'text = """\n%matplotlib\n"""',
        "",
        "x = 1\n\n",
        "π = 3  # \u2028\n",
    ],
)
def test_every_cell_is_python_and_comes_back(source):
    for data in (notebook(source), notebook(source, joined=True), notebook(source, indent=None, ascii=True)):
        text = text_of(data)
        ast.parse(text)
        assert with_text(data, text) == data
        changed = json.loads(with_text(data, "import os\n" + text))["cells"][0]["source"]
        assert "".join(changed) == "import os\n" + source


def test_only_code_cells_count_and_have_their_number_among_all():
    data = notebook("# Training", "x = 1\ny = 2", "raw", "z = 3", kinds=["markdown", "code", "raw", "code"])
    text = text_of(data)
    assert [cell_at(text, row) for row in (2, 3, 5)] == [(2, 1), (2, 2), (4, 1)]
    assert "Training" not in text
    assert split_path("a.ipynb:cell 4") == ("a.ipynb", 4)
    assert split_path("cell 4.py") == ("cell 4.py", None)


@pytest.mark.parametrize("indent", [1, 2, None])
@pytest.mark.parametrize("joined", [False, True])
def test_a_fix_touches_nothing_but_the_source_of_its_cell(tmp_path, indent, joined):
    data = notebook(IMPORTS, SETUP, CLIPPED, indent=indent, joined=joined)
    file = tmp_path / "train.ipynb"
    file.write_bytes(data)
    found = amplint("check", "--no-cache", "--select", "AMP105", "--output-format", "concise", str(file))
    assert f"{file}:cell 3:7:5: AMP105 [*]" in found.output
    assert amplint("check", "--no-cache", "--select", "AMP105", "--fix", str(file)).exit_code == 0
    fixed = CLIPPED.replace("    torch.nn", "    scaler.unscale_(optimizer)\n    torch.nn")
    assert file.read_bytes() == notebook(IMPORTS, SETUP, fixed, indent=indent, joined=joined)


def test_json_gives_the_cell_and_places_inside_it(tmp_path):
    file = tmp_path / "train.ipynb"
    file.write_bytes(notebook(IMPORTS, SETUP, CLIPPED))
    found = amplint("check", "--no-cache", "--select", "AMP105", "--output-format", "json", str(file))
    [entry] = json.loads(found.stdout)
    assert (entry["filename"], entry["cell"], entry["location"]) == (str(file), 3, {"row": 7, "column": 5})
    assert entry["fix"]["edits"][0]["cell"] == 3
    assert entry["related"][0]["location"]["row"] == 6


def test_a_notebook_is_converted(tmp_path):
    file = tmp_path / "train.ipynb"
    file.write_bytes(notebook(IMPORTS, SETUP, TRAIN))
    done = amplint("fix", str(file))
    assert f"{file}:cell 3:5: converted" in done.output
    first, second, third = (cell["source"] for cell in json.loads(file.read_bytes())["cells"])
    assert "".join(first) == IMPORTS
    assert "".join(second) == SETUP + '\nscaler = torch.amp.GradScaler("cuda")'
    assert "    scaler.scale(loss).backward()\n" in third
    assert "already AMP" in amplint("fix", str(file)).output


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not the JSON that Jupyter writes"),
        (b"[]", "not the JSON that Jupyter writes"),
        (b'{"cells": [], "nbformat": "4"}', "not the JSON that Jupyter writes"),
        (b'{"cells": [{"cell_type": "code"}], "nbformat": 4}', "not the JSON that Jupyter writes"),
        (b'{"cells": [{"cell_type": "code", "source": 3}], "nbformat": 4}', "not the JSON that Jupyter writes"),
        (b"{" * 100_000, "not the JSON that Jupyter writes"),
        (b'{"worksheets": [], "nbformat": 3}', "format 4 or later"),
        (notebook("x <- 1", metadata={"kernelspec": {"language": "R"}}), "a notebook in R, not in Python"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_what_is_no_notebook_is_said_in_a_line(tmp_path, data, reason):
    with pytest.raises(NotANotebook, match=reason):
        text_of(data)
    file = tmp_path / "bad.ipynb"
    file.write_bytes(data)
    result = amplint("check", "--no-cache", "--output-format", "concise", str(file))
    assert result.exit_code == 2
    assert f"{file}:1:1: AMP902" in result.output
    assert file.read_bytes() == data


def test_a_syntax_error_has_its_place_in_the_cell(tmp_path):
    file = tmp_path / "bad.ipynb"
    file.write_bytes(notebook("x = 1", "y = 2\nloss.backward("))
    result = amplint("check", "--no-cache", "--output-format", "concise", str(file))
    assert f"{file}:cell 2:2:14: AMP902 syntax error" in result.output


def test_a_half_typed_cell_is_passed_over_with_a_note(tmp_path):
    file = tmp_path / "train.ipynb"
    book = notebook("import torch", "model.\n%time x", CLIPPED)
    file.write_bytes(book)
    shown = amplint("check", "--no-cache", "--select", "ALL", "--output-format", "concise", str(file)).output
    assert f"{file}:cell 2:1:1: AMP902 not Python: this cell was not read" in shown
    assert f"{file}:cell 3:7:" in shown  # AMP105
    assert amplint("check", "--no-cache", "--fix", "--unsafe-fixes", str(file)).exit_code < 2
    assert json.loads(file.read_bytes())["cells"][1] == json.loads(book)["cells"][1]
