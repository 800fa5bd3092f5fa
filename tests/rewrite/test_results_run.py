"""What `amplint fix` writes runs: as before where AMP is off, and it trains where it is on."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from tests.rewrite.fixing import amplint, case, names, put

pytestmark = pytest.mark.usefixtures("own_folder")

# Needs data, a file, a library, a GPU.
_ELSEWHERE = ("loader", "memory", "engine", "parts import", "sklearn", "gymnasium", "marimo", ".cuda(")
RUNNABLE = [name for name in names() if not any(word in case(name).script for word in _ELSEWHERE)]


def run(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a script prints."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    (tmp_path / "state.pt").unlink(missing_ok=True)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(script, "train.py", "exec"), {"__name__": "__main__"})  # the test's own script
    return out.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_without_a_gpu_it_trains_as_before(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without the target device the output is the FP32 script, bit for bit."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options, script, output, _ = case(name)
    if "cpu" in options:
        pytest.skip("it targets the CPU")
    before = run(script, tmp_path, monkeypatch)
    assert before
    assert run(output, tmp_path, monkeypatch) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNABLE)
def test_switched_off_it_is_the_same_script(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted for the CPU, with autocast and the scaler switched off: the same losses, to the last digit."""
    torch = pytest.importorskip("torch")
    script = case(name).script
    path = put(script)
    assert amplint("train.py", "--device", "cpu").exit_code == 0
    converted = path.read_text(encoding="utf-8")
    assert "autocast" in converted
    before = run(script, tmp_path, monkeypatch)
    autocast, scaler = torch.autocast, torch.amp.GradScaler
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: autocast(*a, **{**k, "enabled": False}))
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, **{**k, "enabled": False}))
    assert run(converted, tmp_path, monkeypatch) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNNABLE if name not in ("own_switch", "half_amp_in_functions")])
def test_switched_on_it_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converted for the CPU in bfloat16 it runs, and its first loss is that of the script."""
    pytest.importorskip("torch")
    script = case(name).script
    path = put(script)
    assert amplint("train.py", "--device", "cpu", "--dtype", "bfloat16").exit_code == 0
    before = run(script, tmp_path, monkeypatch)
    after = run(path.read_text(encoding="utf-8"), tmp_path, monkeypatch)
    first, second = (_numbers(text) for text in (before, after))
    assert len(first) == len(second)
    assert second == pytest.approx(first, rel=0.05, abs=0.05)


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split() if word.replace(".", "").replace("-", "").isdigit()]
