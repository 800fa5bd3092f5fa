"""What the user asks for: [tool.amplint], the command line, and what they target (torch version, device, dtype)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is found in a file. `codes` is what selection came to."""

    codes: frozenset[str] = frozenset()
    notes: frozenset[str] = frozenset()  # codes whose findings of severity note are wanted, too
    target_torch: tuple[int, int] = (2, 4)
    target_device: str = "cuda"
    target_dtype: str = "float16"
    apis: tuple[dict[str, Any], ...] = ()  # the user's own [[tool.amplint.api]] entries
    roots: tuple[str, ...] = ()  # folders in which imports of the same project are looked for
