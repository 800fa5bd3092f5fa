"""Judgement: small functions from what a script does to findings; one module a family, one function a rule."""

from __future__ import annotations

from amplint.config import Settings
from amplint.findings import Finding
from amplint.source.module import Module


def check_module(module: Module, settings: Settings) -> list[Finding]:
    """All findings of the selected rules in one file, in the order of their places; suppressions are not applied here."""
    return []
