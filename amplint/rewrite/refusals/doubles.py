"""Scripts that train in float64, which autocast leaves alone."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.rewrite.islands.unreached import under_a_flag
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import FunctionNode, Module

_NUMPY = frozenset(("np", "numpy", "tf", "pd", "jnp"))  # whose float64 is what they compute in anyway
_TRAINS = events.Forward | events.Loss | events.Operation | events.Backward | events.Step


def trains_in_float64(reading: Reading, files: Sequence[Module]) -> bool:
    """Whether what trains, a model, or a file's top level has to do with float64. Functions that only measure (meters
    that add up counts over processes, metrics of an evaluation) may have it."""
    measuring = _measuring(reading)
    training: set[ast.AST] = {
        frame.code
        for e in reading.events
        if isinstance(e, _TRAINS) and e.grad and measuring.isdisjoint(frame.code for frame in e.frame.stack())
        for frame in e.frame.stack()
    }
    for module in files:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and node.attr in ("double", "float64", "DoubleTensor"):
                numpy = isinstance(node.value, ast.Name) and node.value.id in _NUMPY
                if numpy or _only_asked(module, node) or _counts(module, node) or under_a_flag(module, node, files):
                    continue
                if _matters(module, node, training):
                    return True
    return False


def _measuring(reading: Reading) -> set[ast.AST]:
    """The functions that run models without gradients only: what they compute from that trains nothing."""
    forwards = [event for event in reading.events if isinstance(event, events.Forward)]
    trained: set[ast.AST] = {frame.code for event in forwards if event.grad for frame in event.frame.stack()}
    judged = (event.frame.code for event in forwards if not event.grad)
    found: set[ast.AST] = {code for code in judged if isinstance(code, FunctionNode)}
    return found - trained


def _only_asked(module: Module, node: ast.Attribute) -> bool:
    """Whether a dtype is one of several, or compared: `x.dtype in (torch.float32, torch.float64)`."""
    above = module.parents[node]
    if isinstance(above, ast.Compare):
        return True
    return isinstance(above, ast.Tuple | ast.List | ast.Set) and all(
        isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) for one in above.elts
    )


def _counts(module: Module, node: ast.Attribute) -> bool:
    """Whether a counter is made double to be divided: `correct.double() / len(data)`, with `correct = 0` before."""
    above = module.parents[module.parents[node]]
    if not isinstance(node.value, ast.Name) or not isinstance(above, ast.BinOp) or not isinstance(above.op, ast.Div):
        return False
    name, scope = node.value.id, module.scope(node)
    for inner in ast.walk(scope):
        match inner:
            case ast.Attribute(attr="backward", value=ast.Name(id=loss)) if loss == name:
                return False
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                if not isinstance(value, ast.Constant):
                    return False
    return any(
        isinstance(one, ast.AugAssign) and isinstance(one.target, ast.Name) and one.target.id == name
        for one in ast.walk(scope)
    )


def _matters(module: Module, node: ast.AST, training: set[ast.AST]) -> bool:
    above = list(module.ancestors(node))
    functions = [one for one in above if isinstance(one, FunctionNode)]
    models = (one for one in above if isinstance(one, ast.ClassDef))
    if not functions or any(one in training for one in functions):
        return True
    return any(getattr(method, "name", "") == "forward" for one in models for method in one.body)
