"""Scripts that train in float64, which autocast leaves alone."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import FunctionNode, Module

_NUMPY = frozenset(("np", "numpy", "tf", "pd", "jnp"))  # whose float64 is what they compute in anyway
_TRAINS = events.Forward | events.Loss | events.Operation | events.Backward | events.Step


def trains_in_float64(reading: Reading, files: Sequence[Module]) -> bool:
    """Whether what trains, a model, or a file's top level has to do with float64. Functions that only measure (meters
    that add up counts over processes, metrics of an evaluation) may have it."""
    training: set[ast.AST] = {
        frame.code for e in reading.events if isinstance(e, _TRAINS) and e.grad for frame in e.frame.stack()
    }
    for module in files:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in ("double", "float64", "DoubleTensor"):
                numpy = isinstance(node.value, ast.Name) and node.value.id in _NUMPY
                if not numpy and _matters(module, node, training):
                    return True
    return False


def _matters(module: Module, node: ast.AST, training: set[ast.AST]) -> bool:
    above = list(module.ancestors(node))
    functions = [one for one in above if isinstance(one, FunctionNode)]
    models = (one for one in above if isinstance(one, ast.ClassDef))
    if not functions or any(one in training for one in functions):
        return True
    return any(getattr(method, "name", "") == "forward" for one in models for method in one.body)
