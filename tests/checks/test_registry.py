"""Each rule has a page and a check."""

from __future__ import annotations

import ast

from amplint.checks import check_module
from amplint.checks.frameworks.calls import targets
from amplint.checks.registry import CHECKS
from amplint.config import Settings
from amplint.knowledge import rules, traced
from amplint.source.module import Module

NO_CHECK = ("AMP0", "AMP9")  # amplint fix acts on family 0; the engine reports family 9


def test_each_page_has_a_check_and_each_check_a_page():
    check_module(Module.read("empty.py", b""), Settings())  # the checks are registered when first used
    assert {code for code, _ in CHECKS} == {code for code in rules() if not code.startswith(NO_CHECK)} - traced()


def test_a_call_of_another_file_is_assigned_to_nothing_here():
    here = Module.read("a.py", b"x = f()\n")
    there = Module.read("b.py", b"y = f()\n")
    (call,) = there.nodes(ast.Call)
    assert targets(there, call) == {"y"}
    assert targets(here, call) == set()
