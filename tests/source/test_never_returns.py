"""Calls that never return, inside of what is built from their values."""

from __future__ import annotations

from amplint.source.interpret import entries
from amplint.source.module import Module


def test_a_call_that_never_returns_in_an_f_string() -> None:
    text = "import torch\ndef stop():\n    raise SystemExit\n\nwith torch.autocast('cuda'):\n    print(f'{stop()}')\n"
    assert entries.read(Module.read("a.py", text.encode())).complete
