"""Symbols: one object for one origin."""

from __future__ import annotations

from amplint.source import symbols
from amplint.source.values import Const, Items


def test_what_is_too_large_to_compare_goes_by_the_object_that_it_is() -> None:
    symbols.reset()
    large, other = (Items(tuple(Const(n) for n in range(40))) for _ in range(2))
    assert symbols.sym("op", "Add", large, Const(1)) is symbols.sym("op", "Add", large, Const(1))
    assert symbols.sym("op", "Add", large, Const(1)) != symbols.sym("op", "Add", large, Const(2))
    assert symbols.sym("op", "Add", large, Const(1)) != symbols.sym("op", "Add", other, Const(1))
