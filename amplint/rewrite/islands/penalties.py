"""Gradients of gradients: what lies between the tensor that is differentiated and what it is differentiated by.

A GradScaler scales losses, not what autograd.grad returns: in half precision, the gradients of a penalty would lose
their small parts, or be as large as the scale. So the forward whose output is differentiated runs in float32.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from amplint.rewrite.fixes import conditions_above
from amplint.rewrite.refusals.refused import Refused
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.frames import Code
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import defaults, is_differentiable, named_argument, names_in, positional

REASON = "it takes gradients of gradients (create_graph=True), which a GradScaler does not unscale"
ADVICE = "scale and unscale those of the penalty by hand, or use --dtype bfloat16"
# Libraries whose inner steps are differentiated through: what they take gradients of nothing here shows.
_INNER = frozenset(
    "higher.innerloop_ctx higher.get_diff_optim higher.create_diff_optim torchopt.MetaSGD torchopt.MetaAdam "
    "torchopt.MetaAdamW torchopt.MetaRMSProp learn2learn.algorithms.MAML learn2learn.algorithms.MetaSGD "
    "learn2learn.algorithms.GBML learn2learn.optim.LearnableOptimizer learn2learn.optim.MetaOptimizer "
    "learn2learn.optim.DifferentiableSGD torchmeta.utils.gradient_update_parameters "
    "torchmeta.utils.gradient_based.gradient_update_parameters".split()
)
_KEEPS = frozenset(("view", "reshape", "detach", "requires_grad_", "data", "clone", "flatten", "contiguous"))


def unmet(reading: Reading, module: Module) -> ast.AST | None:
    """The gradient of a gradient in a file that the reading has not met, or that is no autograd.grad."""
    met = {_place(event.module, event.node) for event in _gradients(reading)}  # the file may have been read twice
    found = (node for node in ast.walk(module.tree) if _differentiates(module, node))
    found = (node for node in found if _place(module, node) not in met)
    return next((node for node in found if module is reading.module or not _of_another(module, node)), None)


def _differentiates(module: Module, node: ast.AST) -> bool:
    """autograd.grad(…, create_graph=True), also by a parameter that is True unless something else is given."""
    match named_argument(node, "create_graph") if isinstance(node, ast.Call) else None:
        case ast.Name(id=name):
            function = module.function(node)
            told = dict(defaults(function.args)) if isinstance(function, ast.FunctionDef) else {}
            return getattr(told.get(name), "value", None) is True
    return is_differentiable(node)


def _of_another(module: Module, node: ast.AST) -> bool:
    """Whether the class that takes a gradient of a gradient takes steps itself: the penalty is theirs, and is judged
    with them."""
    cls = module.class_of(node)
    return cls is not None and _words(cls) >= {"backward", "step"}


def _place(module: Module, node: ast.AST) -> tuple[str, int, int]:
    return os.path.realpath(module.path), node.lineno, node.col_offset  # type: ignore[attr-defined]


def unscaled(reading: Reading) -> bool:
    """Whether something is computed from the gradients of a loss that no scaler scales: an inner step of
    meta-learning, an adversarial example."""
    return any(event.grad and not is_differentiable(event.node) for event in _gradients(reading))


def inner_steps(module: Module) -> tuple[ast.Call, str] | None:
    """The call of a library that takes gradient steps which the loss is differentiated through, and its name."""
    return next(((call, inner) for call in module.nodes(ast.Call) if (inner := _inner(module, call))), None)


def _inner(module: Module, node: ast.AST) -> str:
    return min(module.dotted(node.func) & _INNER, default="") if isinstance(node, ast.Call) else ""


def _gradients(reading: Reading) -> Iterator[events.Operation]:
    for event in reading.events:
        if isinstance(event, events.Operation) and event.name == "grad" and isinstance(event.node, ast.Call):
            yield event


def reached(module: Module, used: Sequence[Module]) -> Iterator[Module]:
    """The files whose gradients of gradients a script may reach, by the names that it says."""
    definitions = [
        (one, {node.name} if isinstance(node, ast.ClassDef | FunctionNode) else set(), _words(node), node)
        for one in used
        for node in one.tree.body
        if not isinstance(node, ast.Import | ast.ImportFrom)
    ]
    known = _words(module.tree)
    while True:
        inside = [one for one in definitions if not one[1] or one[1] & known]
        grown = known.union(*(words for _, _, words, _ in inside))
        if grown == known:
            break
        known = grown
    for one in used:
        own = (inner for of, _, _, node in inside if of is one for inner in ast.walk(node))
        if any(_differentiates(one, inner) or _inner(one, inner) for inner in own):
            yield one


def _words(node: ast.AST) -> set[str]:
    found = names_in(node)
    found |= {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
    found |= {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    evaluated = (one for one in ast.walk(node) if isinstance(one, ast.Call) and getattr(one.func, "id", "") == "eval")
    return found.union(*(re.findall(r"\w+", ast.unparse(one)) for one in evaluated))  # eval("models." + name + ".get")


class Penalties(NamedTuple):
    """The statements of a function that run in float32, because gradients are taken there or in what it calls, and the
    names of the tensors by which they are taken: these must be the same tensors wherever they are used."""

    statements: set[ast.stmt]
    inputs: set[str]


def penalties(reading: Reading, code: Code, must: bool) -> Penalties:
    """Raises Refused where not all statements are known, if they `must` be."""
    found = Penalties(set(), set())
    for event in _gradients(reading):
        if event.grad and is_differentiable(event.node):
            try:
                statements, inputs = _around(event, code)
                found.statements.update(statements)
                found.inputs.update(inputs)
            except Refused:
                if must:
                    raise
    return found


def _around(event: events.Operation, code: Code) -> Penalties:
    stack = list(event.frame.stack())
    place = next((index for index, frame in enumerate(stack) if frame.code is code), None)
    if place is None:
        return Penalties(set(), set())
    node: ast.AST = event.node
    outputs, inputs = _given(node, "outputs", 0), _given(node, "inputs", 1)
    seen = False
    path: list[ast.stmt] = []
    keys: set[str] = set()
    for frame in stack[: place + 1]:
        path, keys = [], set()
        if outputs and inputs:
            path, needed, keys = _path(frame.module, frame.code, node, outputs, inputs)
            seen = seen or bool(path)
            outputs, inputs = _passed(frame.code, frame.call, needed), _passed(frame.code, frame.call, keys)
        path.append(frame.module.statement(node))
        node = frame.call or node
    if not seen:
        raise Refused(REASON, ADVICE)
    return Penalties(set(path), keys)


def sources(module: Module, code: Code, here: ast.stmt, needed: set[str]) -> tuple[list[ast.stmt], set[str]]:
    """The statements of a function before a place that compute some names, the last one first; and the names that these
    need at the function's start."""
    around = set(conditions_above(module, here))
    needed, found = set(needed), []
    for statement in reversed(list(_simple(code))):
        if statement is here or statement.lineno >= here.lineno or not writes(statement) & needed:
            continue
        found.append(statement)
        if isinstance(statement, ast.Assign) and set(conditions_above(module, statement)) <= around:
            needed -= writes(statement)
        needed |= reads(statement)
    return found, needed


def _given(call: ast.AST, name: str, index: int) -> list[ast.expr]:
    assert isinstance(call, ast.Call)
    named = [keyword.value for keyword in call.keywords if keyword.arg == name]
    return named or list(call.args[index : index + 1])


def _path(
    module: Module, code: Code, place: ast.AST, outputs: Sequence[ast.expr], inputs: Sequence[ast.expr]
) -> tuple[list[ast.stmt], set[str], set[str]]:
    """The statements before a place that compute `outputs` from `inputs`; what the outputs need at the function's
    start; and what the inputs are called."""
    keys = {key for one in inputs for key in _keys(module, one)}
    here = module.statement(place)
    needed = {name for one in outputs for name in reads(one)}
    path = [here] if needed & keys else []
    chosen, needed = sources(module, code, here, needed)
    reached = set(keys)
    for statement in reversed(chosen):
        stores = writes(statement)
        both = stores & keys and stores - keys and any(isinstance(node, ast.Call) for node in ast.walk(statement))
        if reads(statement) & reached or both:
            path.append(statement)
            reached |= stores
    return path, needed, keys


def _keys(module: Module, node: ast.expr) -> list[str]:
    """The names and fields that stand for the tensors by which a gradient is taken."""
    match node:
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [key for part in parts for key in _keys(module, part)]
        case ast.Name() | ast.Attribute(value=ast.Name(id="self")):
            return [ast.unparse(node)]
        case ast.Call(func=ast.Attribute(value=inner, attr=name)) | ast.Attribute(value=inner, attr=name) if (
            name in _KEEPS
        ):
            return _keys(module, inner)
    raise Refused(REASON, ADVICE)


def reads(node: ast.AST) -> set[str]:
    """The names and fields of `self` that code reads."""
    found = set()
    for one in ast.walk(node):
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load):
            found.add(one.id)
        elif isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name) and one.value.id == "self":
            found.add(ast.unparse(one))
    return found - {"self"}


def writes(statement: ast.stmt) -> set[str]:
    found = set()
    for one in ast.walk(statement):
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store):
            found.add(one.id)
        elif isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store):
            found.add(ast.unparse(one))
    return found


def _simple(code: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a function that hold no others, in the order of the text."""
    for child in ast.iter_child_nodes(code):
        if isinstance(child, FunctionNode | ast.ClassDef | ast.expr):
            continue
        if isinstance(child, ast.stmt) and not any(isinstance(one, ast.stmt) for one in ast.iter_child_nodes(child)):
            yield child
        else:
            yield from _simple(child)


def _passed(code: Code, call: ast.AST | None, names: set[str]) -> list[ast.expr]:
    """What a call gives for those of the names that are parameters."""
    if not isinstance(code, ast.FunctionDef) or not isinstance(call, ast.Call):
        return []
    parameters = positional(code)
    if parameters[:1] == ["self"]:
        parameters = parameters[1:]
    given = dict(zip(parameters, call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    return [value for name, value in given.items() if name in names and not isinstance(value, ast.Starred)]
