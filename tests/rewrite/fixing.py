"""For the tests of `amplint fix`: case files (a script, `# output` and what it becomes, `# said` and what is said), and
a small script to change."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from click.testing import CliRunner, Result

from amplint.cli import cli

HERE = Path(__file__).parent
_PART = re.compile(r"^# == (.+)\n", re.MULTILINE)

HEAD = """\
import torch
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = torch.nn.Linear(4, 4).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
"""
STEP = """\
for x, y in loader:
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x.to(device)), y.to(device))
    loss.backward()
    optimizer.step()
"""
TWO = HEAD + "head = torch.nn.Linear(4, 4).to(device)\nslow = torch.optim.SGD(head.parameters(), lr=0.01)\n"


class Case(NamedTuple):
    """A script, the options to convert it with, what it becomes ("": what it was), and the summary."""

    options: list[str]
    script: str
    output: str
    said: str


def case(name: str, folder: str = "cases") -> Case:
    script, _, rest = (HERE / folder / f"{name}.case").read_text(encoding="utf-8").partition("# output\n")
    options = ""
    if script.startswith("# options: "):
        options, _, script = script.removeprefix("# options: ").partition("\n")
    output, _, said = rest.partition("# said\n")
    return Case(shlex.split(options), script, output, said)


def names(folder: str = "cases") -> list[str]:
    return sorted(path.stem for path in (HERE / folder).glob("*.case"))


def amplint(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["fix", *arguments], catch_exceptions=False)


def put(text: str, name: str = "train.py") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def project(name: str) -> tuple[dict[str, str], dict[str, str], str]:
    """The files of a small project, each under `# == path`, what they become (`# == path after`), and what is said
    (`# == said`)."""
    pieces = _PART.split((HERE / "projects" / f"{name}.case").read_text(encoding="utf-8"))
    found = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    before = {key: text for key, text in found.items() if key != "said" and not key.endswith(" after")}
    after = {key: found.get(f"{key} after", text) for key, text in before.items()}
    return before, after, found["said"]


def contents(names: list[str]) -> dict[str, str]:
    return {name: Path(name).read_text(encoding="utf-8") for name in names}


def check_case(one: Case) -> None:
    """The script becomes what the case says, and stays so."""
    path = put(one.script)
    result = amplint("train.py", *one.options)
    assert path.read_text(encoding="utf-8") == (one.output or one.script)
    assert (result.stdout, result.exit_code) == (one.said, 0)
    again = amplint("train.py", *one.options)
    assert path.read_text(encoding="utf-8") == (one.output or one.script)
    assert "converted" not in again.stdout
