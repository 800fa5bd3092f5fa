"""Front ends of speech: mel bands are sums over a power spectrum, products of matrices that autocast takes in half
precision, where a loud frame overflows; what follows is their logarithm."""

from __future__ import annotations

import ast

from amplint.source.module import Module

WORDS = "MelSpectrogram|MelScale|MFCC|LFCC"
_NAMES = WORDS.split("|")
_BANDS = frozenset(f"torchaudio.transforms.{name}" for name in _NAMES)


def sums_bands(module: Module, call: ast.Call) -> bool:
    """Whether a module with a forward calls one of torchaudio's filter banks that it holds: `self.bank(x)`."""
    if not any(name in module.text for name in _NAMES):
        return False  # as nearly all: asked for every call
    cls = module.class_of(call)
    if cls is None or not isinstance(call.func, ast.Attribute) or ast.unparse(call.func.value) != "self":
        return False
    if not any(isinstance(one, ast.FunctionDef) and one.name == "forward" for one in cls.body):
        return False
    field = ast.unparse(call.func)
    made = (node for node in ast.walk(cls) if isinstance(node, ast.Assign))
    values = (one.value for one in made if any(ast.unparse(target) == field for target in one.targets))
    return any(
        _BANDS & module.dotted(inner.func)
        for value in values
        for inner in ast.walk(value)
        if isinstance(inner, ast.Call)
    )
