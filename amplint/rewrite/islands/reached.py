"""What a call of a script leads to, in whatever file, that casts under autocast only: custom autograd functions."""

from __future__ import annotations

import ast

from amplint.rewrite.islands.kernels import named_in, search_of
from amplint.source.interpret.entries import Reading


def runs_functions(reading: Reading, call: ast.Call) -> bool:
    """Whether a call leads to a custom autograd function, in whatever file."""
    for _, code in search_of(reading).reached(named_in(call.func)):
        bases = code.bases if isinstance(code, ast.ClassDef) else ()
        if any(ast.unparse(base).endswith(("autograd.Function", "function.Function")) for base in bases):
            return True
        if any(getattr(base, "id", "") == "Function" for base in bases):
            return True
    return False
