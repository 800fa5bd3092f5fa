"""What the frameworks' checks ask of a file: its calls of library names, and what it assigns them to."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.source.module import Module

ACCELERATORS = ("accelerate.Accelerator", "accelerate.accelerator.Accelerator")


def calls_of(module: Module, *names: str) -> Iterator[ast.Call]:
    """Calls of one of these dotted names, and of nothing else that the name may stand for."""
    for call in module.nodes(ast.Call):
        found = module.dotted(call.func)
        if found and found <= set(names):
            yield call


def targets(module: Module, call: ast.Call) -> set[str]:
    """The texts of what the call's result is assigned to; of the first of a tuple's names."""
    above = module.parents.get(call)  # None: a call of another file
    if isinstance(above, ast.Assign):
        firsts = (one.elts[0] if isinstance(one, ast.Tuple) and one.elts else one for one in above.targets)
        return {module.source(one) for one in firsts}
    return {module.source(above.target)} if isinstance(above, ast.AnnAssign) else set()


def is_true(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def subclasses(module: Module, *bases: str) -> Iterator[ast.ClassDef]:
    """Classes of the file that are derived from one of these, directly."""
    for node in module.nodes(ast.ClassDef):
        if any(module.dotted(base) & set(bases) for base in node.bases):
            yield node


def methods(cls: ast.ClassDef, *names: str) -> Iterator[ast.FunctionDef]:
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and (not names or node.name in names):
            yield node
