"""The oldest torch that a project asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from amplint.config import load


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (2, 4)),
        ({"pyproject.toml": '[project]\ndependencies = ["numpy", "torch>=2.1,<3"]'}, (2, 1)),
        ({"pyproject.toml": "[project]\ndependencies = [\"torch[opt]~=2.5.1; python_version > '3.9'\"]"}, (2, 5)),
        ({"pyproject.toml": '[project.optional-dependencies]\ntrain = ["torch >= 1.13"]'}, (1, 13)),
        ({"pyproject.toml": '[tool.poetry.dependencies]\ntorch = "^2.2"'}, (2, 2)),
        ({"pyproject.toml": '[tool.poetry.dependencies]\ntorch = {version = "2.6.0", source = "x"}'}, (2, 6)),
        ({"requirements.txt": "# torch>=1.11\nnumpy\ntorch==2.0.1+cu118  # pinned\n"}, (2, 0)),
        ({"requirements-dev.txt": "torch>2.2\n"}, (2, 2)),
        ({"setup.py": 'setup(install_requires=["torch>=2.3", "torchvision>=0.4"])'}, (2, 3)),
        ({"setup.cfg": "[options]\ninstall_requires =\n    torch>=2.3\n"}, (2, 3)),
        ({"requirements/train.txt": "torch==2.6.0 --index-url https://example.org\n"}, (2, 6)),
        # what says nothing of it
        ({"requirements.txt": "torch\ntorchvision==0.15\ntorch-scatter==2.1\npytorch>=1.12\n"}, (2, 4)),
        ({"requirements.txt": "torch<2.9\n"}, (2, 4)),
        ({"requirements.txt": "torch>=1.4\n"}, (2, 4)),  # has no torch.autocast: where it runs today it is newer
        ({"pyproject.toml": "not TOML: torch"}, (2, 4)),
        ({"pyproject.toml": '[project]\ndependencies = "torch>=2.1"'}, (2, 4)),
        # the settings win
        ({"pyproject.toml": '[project]\ndependencies = ["torch>=2.1"]\n[tool.amplint]\ntarget-torch = "2.7"'}, (2, 7)),
        ({"amplint.toml": 'target-torch = "2.7"', "requirements.txt": "torch>=2.1"}, (2, 7)),
    ],
)
def test_the_oldest_torch(files: dict[str, str], expected: tuple[int, int], tmp_path: Path) -> None:
    for name, text in {".git": "", **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "src").mkdir()
    assert load([str(tmp_path / "src")], {}).target_torch == expected
    assert load([str(tmp_path / "src")], {"target-torch": "2.9"}).target_torch == (2, 9)
    assert load([str(tmp_path / "src")], {}, isolated=True).target_torch == (2, 4)


def test_the_nearest_project_decides(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch>=2.0")
    inner = tmp_path / "inner"
    inner.mkdir()
    assert load([str(inner)], {}).target_torch == (2, 0)
    (inner / "pyproject.toml").write_text('[project]\nname = "x"')
    assert load([str(inner)], {}).target_torch == (2, 4)
