"""The documents say what is true today: the README's commands run, its examples do what they say, its table is that of
rules/, and the map in docs/architecture.md that of amplint/.

As a script (`make docs`) this file writes the table and the map.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import tomllib
from itertools import groupby
from pathlib import Path

import pytest
from click.testing import CliRunner

import amplint
from amplint.cli import cli
from amplint.knowledge import rules

ROOT = Path(amplint.__file__).parents[1]
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs/architecture.md"
MARKS = re.compile(r"(<!-- (?:rules|map): .*? -->\n)(.*?)(<!-- end of (?:rules|map) -->)", re.DOTALL)
TEXT = README.read_text(encoding="utf-8")

SCRIPT = """
import torch
from torch import nn
from ourlib import limit_gradients

def clip(model, limit):
    torch.nn.utils.clip_grad_norm_(model.parameters(), limit)

model = nn.Linear(784, 10).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scaler = torch.amp.GradScaler("cuda")
for x, y in loader:
    optimizer.zero_grad()
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nn.functional.cross_entropy(model(x.cuda()), y.cuda())
    scaler.scale(loss).backward()
    CLIP
    scaler.step(optimizer)
    scaler.update()
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def table() -> str:
    """The rules as Markdown, a table a family."""
    lines = []
    for family, members in groupby(rules().values(), lambda rule: rule.family):
        lines += [
            f"\n**{family.capitalize()}**\n",
            "| rule | what it does | severity | fix |",
            "| --- | --- | --- | --- |",
        ]
        for rule in members:
            page = f"rules/{rule.code}-{rule.name}.md"
            fix = {"none": "–", "mixed": "safe or unsafe"}.get(rule.fix, rule.fix)
            lines.append(f"| [{rule.code}]({page}) {rule.name} | {rule.summary} | {rule.severity} | {fix} |")
    return "\n".join(lines) + "\n\n"


def map_of_modules() -> str:
    """Every module with the first sentence of its docstring, room by room."""
    lines = []
    files = sorted(
        (ROOT / "amplint").rglob("*.py"),
        key=lambda path: (path.parent.as_posix(), path.name != "__init__.py", path.name),
    )
    for folder, members in groupby(files, lambda path: path.parent.relative_to(ROOT).as_posix()):
        rows = [(file.name, first_sentence(file)) for file in members]
        shown = [f"| `{name}` | {sentence} |" for name, sentence in rows if sentence]
        lines += [f"\n**{folder}/**\n", "| module | |", "| --- | --- |", *shown]
    return "\n".join(lines) + "\n\n"


def first_sentence(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")
    return re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]


def run(*arguments: str) -> str:
    """What a command prints; it must not fail."""
    result = CliRunner().invoke(cli, [*arguments, "--isolated"] if arguments[0] != "rule" else arguments)
    assert result.exit_code in (0, 1), result.output
    return result.output


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "fixtures", tmp_path / "fixtures")
    monkeypatch.chdir(tmp_path)


def test_the_table_of_rules_is_fresh():
    assert MARKS.findall(TEXT)[0][1] == table(), "run `make docs`"


def test_the_map_of_modules_is_fresh():
    assert MARKS.findall(ARCHITECTURE.read_text(encoding="utf-8"))[0][1] == map_of_modules(), "run `make docs`"


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: block.partition("\n")[0])
def test_commands_print_what_is_shown(block):
    """`…` alone on a line stands for lines left out; nothing else differs."""
    command, _, shown = block.removeprefix("$ amplint ").partition("\n")
    pattern = "".join("(?:.*\n)*?" if line == "…" else re.escape(line + "\n") for line in shown.splitlines())
    printed = run(*shlex.split(command))
    assert re.fullmatch(pattern, printed), printed


@pytest.mark.parametrize("command", re.findall(r"`amplint (check[^`]*) PATH`", TEXT))
def test_commands_in_the_table_run(command):
    assert run(*shlex.split(command), "fixtures/train_amp.py")


def test_flags_exist():
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    known = {name for command in cli.commands.values() for option in command.params for name in option.opts}
    assert flags - known == set()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"])
def test_links_and_paths_lead_to_files(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = {link for link in re.findall(r"\]\(([^)\s]*?)\)", text) if "://" not in link}
    paths = set(re.findall(r"`((?:amplint|rules|tests|docs|fixtures)/[\w./-]*\w)`", text)) - {
        "rules/AMP199-clip-by-value.md",
        "amplint/rules",
    }
    assert {place for place in links | paths if not (ROOT / place).exists()} == set()


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in re.findall(r"\bmake ([a-z]+)", TEXT))


def test_the_configuration_works():
    (configuration,) = blocks("toml")
    assert tomllib.loads(configuration)
    Path("pyproject.toml").write_text(configuration)
    Path("train.py").write_text(SCRIPT.replace("CLIP", "limit_gradients(model.parameters(), 1.0)"))
    assert "AMP105" not in run("check", "train.py")
    found = CliRunner().invoke(cli, ["check", "--output-format", "concise", "train.py"])
    assert "train.py:17:5: AMP105" in found.output


def test_comments_suppress():
    (block,) = blocks("python")
    Path("train.py").write_text(SCRIPT.replace("CLIP", "clip(model, 1.0)"))
    assert "AMP105" in run("check", "train.py")
    for comment in block.split("\n\n"):
        Path("train.py").write_text(SCRIPT.replace("CLIP", comment.strip().replace("\n", "\n    ")))
        assert run("check", "train.py") == "All checks passed!\n"


if __name__ == "__main__":
    for file, made in ((README, table()), (ARCHITECTURE, map_of_modules())):
        text = file.read_text(encoding="utf-8")
        file.write_text(MARKS.sub(lambda found, made=made: found[1] + made + found[3], text), encoding="utf-8")
