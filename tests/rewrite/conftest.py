"""A folder for each test that writes files."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.rewrite.fixing")


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
