"""What amplint imports, and what it never does: torch, and the code that it reads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import amplint

ROOT = Path(amplint.__file__).parents[1]
FIXTURES = ROOT / "fixtures"

# In a fresh interpreter: run a command, then name what must not have been imported.
PROBE = """
import sys
from amplint.cli import main
try:
    main()
finally:
    heavy = {name.partition(".")[0] for name in sys.modules} & {"torch", "numpy", "trap", "train_amp", "train_fp32"}
    print("imported:", *sorted(heavy), file=sys.stderr)
"""

# Trains with a mistake or in full precision, and acts when it is imported or run.
TRAP = """
from pathlib import Path
Path("sprung").touch()
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("fixture", "arguments", "expected"),
    [
        ("train_amp.py", "check --no-cache --fix --unsafe-fixes", "5 fixed"),
        ("train_fp32.py", "fix", "converted"),
        ("train_amp.py", "events", "step optimizer"),
    ],
)
def test_neither_torch_nor_the_code_is_imported(tmp_path, fixture, arguments, expected):
    """Also not as a module that the file imports from its own project."""
    source = (FIXTURES / fixture).read_text()
    (tmp_path / "trap.py").write_text(TRAP + "scaler = torch.amp.GradScaler()\n")
    (tmp_path / "script.py").write_text(source.replace("import torch\n", f"import torch\nimport trap\n{TRAP}", 1))
    done = run(tmp_path, *arguments.split(), "script.py")
    assert expected in done.stdout, done.stderr
    assert done.stderr.splitlines()[-1].strip() == "imported:"
    assert not (tmp_path / "sprung").exists()


# -- the rooms of the house -------------------------------------------------------------------------------------------

# From each room, the rooms that it may import; the modules at the top of the package are rooms of their own.
KNOWN_TO_ALL = {"findings", "knowledge", "limit", "__version__"}
ALLOWED = {
    "source": set(),
    "rewrite": {"source", "checks", "config", "files", "selection", "repair"},
    "checks": {"source", "rewrite", "config"},
    "report": {"source", "rewrite", "config"},
    "repair": {"source", "rewrite"},
    "config": {"floor", "globs", "selection"},
    "findings": set(),
    "knowledge": set(),
}


def imports(path: Path) -> set[str]:
    """The full names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_run_one_way(room):
    place = ROOT / "amplint" / room
    files = place.rglob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    names = {name for file in files for name in imports(file)}
    rooms = {name.split(".")[1] for name in names if name.startswith("amplint.")}
    assert rooms - {room} - KNOWN_TO_ALL <= ALLOWED[room]


def test_only_the_tracer_imports_torch_and_only_what_needs_it_libcst():
    for file in (ROOT / "amplint").rglob("*.py"):
        names = imports(file)
        tops = {name.partition(".")[0] for name in names}
        parts = file.relative_to(ROOT).parts
        if "graph" not in parts and parts[1:3] not in (
            ("verify", "child"),
            ("verify", "kernels"),
        ):  # processes of their own
            assert not tops & {"torch", "numpy"}, file
            assert not any(name.startswith("amplint.graph") for name in names), file
        reads_newer_syntax = parts[1:] == ("source", "newer.py")  # which ast cannot read
        assert "libcst" not in tops or file.parent.name in ("rewrite", "syntax") or reads_newer_syntax, file


def test_a_module_is_short_enough_to_be_read_in_one_sitting():
    lengths = {str(file): len(file.read_text().splitlines()) for file in (ROOT / "amplint").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
