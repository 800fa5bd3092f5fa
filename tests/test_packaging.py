"""What is shipped: sdist and wheel, built and installed as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import amplint

pytestmark = pytest.mark.slow

ROOT = Path(amplint.__file__).parents[1]
RULES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "rules").rglob("*.*")}
MOST_BYTES = 30_000_000  # as README.md says
NOT_OURS = ("pip", "setuptools", "wheel", "_distutils_hack", "distutils-precedence.pth", "pkg_resources")


def run(*command: object, cwd: Path | str = "/") -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist and the wheel made from the checkout, and the wheel made from the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--sdist", "--wheel", "--outdir", folder, ROOT)
    sdist = next(folder.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    source = folder / sdist.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "again", source)
    return {"sdist": sdist, "wheel": next(folder.glob("*.whl")), "again": next((folder / "again").glob("*.whl"))}


@pytest.fixture(scope="module")
def installed(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and what it depends on, nothing else."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder, with_pip=True)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", built["wheel"])
    return folder


def test_the_wheel_carries_the_rules_and_nothing_of_the_workshop(built):
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    assert {f"amplint/{path}" for path in RULES} <= names
    assert "amplint/py.typed" in names
    sources = {f"amplint/verify/kernels/{name}" for name in ("mm_cpu.cpp", "mm_path.cpp", "mm_path.h", "mm_cuda.cu")}
    assert sources | {f"amplint/verify/kernels/mm_{name}.cuh" for name in ("tally", "tile", "hopper")} <= names
    assert {name.partition("/")[0] for name in names} == {"amplint", f"amplint-{amplint.__version__}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_carries_what_is_needed_to_build_and_test(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    assert wanted | RULES | {"fixtures/train_amp.py", "tests/conftest.py", "docs/architecture.md"} <= names


def test_a_wheel_from_the_sdist_is_the_same(built):
    def content(wheel: Path) -> dict[str, bytes]:
        archive = zipfile.ZipFile(wheel)
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}

    assert content(built["wheel"]) == content(built["again"])


def test_an_installed_amplint_works_from_anywhere(installed):
    pages = run(installed / "bin/amplint", "rule", "--all")
    assert all(f"{code} " in pages for code in ("AMP101", "AMP601", "AMP902"))
    found = run(installed / "bin/amplint", "check", "--isolated", "--no-cache", ROOT / "fixtures/train_amp.py")
    assert "AMP105" in found
    assert run(installed / "bin/python", "-m", "amplint", "--version").strip() == f"amplint {amplint.__version__}"


def test_an_installed_amplint_is_small_and_has_no_torch(installed):
    packages = next(installed.glob("lib/python*/site-packages"))
    ours = [path for path in packages.iterdir() if not path.name.startswith(NOT_OURS)]
    assert {path.name for path in ours} >= {"amplint", "click", "libcst"}
    assert not [path for path in ours if path.name.startswith(("torch", "numpy", "nvidia"))]
    size = sum(file.stat().st_size for path in ours for file in (path, *path.rglob("*")) if file.is_file())
    print(f"{size / 1e6:.1f} MB")
    assert size < MOST_BYTES
