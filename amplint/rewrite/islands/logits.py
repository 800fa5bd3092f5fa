"""Binary cross entropy on logits, which autocast can run: where a model's sigmoid is read by nothing but the loss, the
model returns logits and the loss is BCEWithLogitsLoss."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from typing import NamedTuple

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.islands.chosen import PROBABILITIES
from amplint.rewrite.islands.sigmoids import forwards_behind, is_layer, sigmoid_of, tail_of, unviewed
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import called_name, parameters, uses_of
from amplint.source.values import Instance, Value

_LIKE = frozenset(("ones_like", "zeros_like", "full_like", "rand_like", "empty_like"))
_ABOUT = frozenset(("shape", "size", "device", "dtype", "dim", "ndim", "numel", "new_ones", "new_zeros", "new_full"))
_MOVES = frozenset(("cuda", "to", "cpu", "train", "eval"))
_WHOLE = frozenset(("torch.save", "torch.onnx.export", "torch.jit.script", "torch.jit.trace", "copy.deepcopy"))


class Logits(NamedTuple):
    """The edits that make a script's binary cross entropy one on logits."""

    edits: tuple[Edit, ...]


class _NotProved(Exception):
    """Something else may read what the sigmoid returns."""


def logits(reading: Reading) -> Logits | None:
    """For all of a script's binary cross entropy at once; None where a probability is, or may be, read by anything
    else."""
    module = reading.module
    losses = {
        event.node: event
        for event in reading.events
        if isinstance(event, events.Operation) and event.name == "binary_cross_entropy"
    }
    if not losses or any(
        one.module is not module or one.region is not None or any(frame.in_model for frame in one.frame.stack())
        for one in losses.values()
    ):
        return None
    try:
        made = [*_criteria(module, losses.keys()), *_models(reading, losses.keys())]
    except (_NotProved, edits.CannotEdit):
        return None
    return Logits(tuple(dict.fromkeys(made)))


# -- the losses -------------------------------------------------------------------------------------------------------


def _criteria(module: Module, losses: Collection[ast.AST]) -> list[Edit]:
    """nn.BCELoss → nn.BCEWithLogitsLoss where it is made, F.binary_cross_entropy → …_with_logits where it is called."""
    calls = [node for node in losses if isinstance(node, ast.Call)]
    made: list[Edit] = []
    known: set[ast.AST] = set()
    texts: set[str] = set()
    for call in calls:
        if "torch.nn.functional.binary_cross_entropy" in module.dotted(call.func):
            made += _renamed(module, call.func, "binary_cross_entropy", "binary_cross_entropy_with_logits")
            known.add(call.func)
        elif isinstance(call.func, ast.Name | ast.Attribute):
            texts.add(module.source(call.func))
        else:
            raise _NotProved
    for text in texts:
        bindings = [statement for statement in ast.walk(module.tree) if _binds(module, statement, text)]
        if not bindings:
            raise _NotProved
        for statement in bindings:
            value = getattr(statement, "value", None)
            while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _MOVES:
                value = value.func.value
            if not isinstance(value, ast.Call) or "torch.nn.BCELoss" not in module.dotted(value.func):
                raise _NotProved
            made += _renamed(module, value.func, "BCELoss", "BCEWithLogitsLoss")
            known.add(value.func)
        for node in _loads(module, text):
            above = module.parents[node]
            moved = isinstance(above, ast.Attribute) and above.attr in _MOVES
            if not moved and not (isinstance(above, ast.Call) and above.func is node and above in calls):
                raise _NotProved
    named = (one for one in ast.walk(module.tree) if isinstance(one, ast.Name | ast.Attribute) and one not in known)
    if any(module.dotted(one) & PROBABILITIES for one in named):
        raise _NotProved
    return made


def _renamed(module: Module, name: ast.expr, old: str, new: str) -> list[Edit]:
    if not isinstance(name, ast.Attribute):
        raise _NotProved
    return edits.replace(module, name, module.source(name).removesuffix(old) + new)


def _binds(module: Module, statement: ast.AST, text: str) -> bool:
    return isinstance(statement, ast.Assign) and any(module.source(target) == text for target in statement.targets)


def _loads(module: Module, text: str) -> Iterator[ast.expr]:
    for node in ast.walk(module.tree):
        loads = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
        if loads and module.source(node) == text:
            yield node  # type: ignore[misc]


# -- the models -------------------------------------------------------------------------------------------------------


def _models(reading: Reading, losses: Collection[ast.AST]) -> list[Edit]:
    """The sigmoids go from all models whose outputs the losses get."""
    module = reading.module
    calls = [node for node in losses if isinstance(node, ast.Call)]
    models: dict[ast.AST, list[Value]] = {}
    for event in reading.events:
        if isinstance(event, events.Forward):
            models.setdefault(event.node, []).append(event.model)
    given: set[ast.expr] = set()
    outputs: set[tuple[ast.ClassDef, int | None]] = set()
    for call in calls:
        if not call.args:
            raise _NotProved
        behind = forwards_behind(module, call.args[0], models)
        if not behind:
            raise _NotProved
        given.add(unviewed(call.args[0]))
        for forward in behind:
            index = _index(module, forward, unviewed(call.args[0]))
            outputs |= {(_class(module, model), index) for model in models[forward]}
    made: list[Edit] = []
    for cls, index in outputs:
        _check_class(reading, cls, models)
        for node, of in models.items():
            if any(isinstance(one, Instance) and one.cls.node is cls for one in of):
                _check_uses(module, node, index, given)
        made += _without_sigmoid(module, cls, index)
    return made


def _class(module: Module, model: Value) -> ast.ClassDef:
    if not isinstance(model, Instance) or model.cls.node not in module.parents:
        raise _NotProved
    return model.cls.node


def _index(module: Module, forward: ast.Call, given: ast.expr) -> int | None:
    """Which element of what a model returns a name stands for; None for the whole."""
    if given is forward:
        return None
    statement = module.statement(forward)
    assert isinstance(statement, ast.Assign)
    target = statement.targets[0]
    if isinstance(target, ast.Name):
        return None
    if isinstance(target, ast.Tuple) and isinstance(given, ast.Name):
        return next(i for i, one in enumerate(target.elts) if isinstance(one, ast.Name) and one.id == given.id)
    raise _NotProved


def _check_uses(module: Module, forward: ast.AST, index: int | None, given: set[ast.expr]) -> None:
    """Whatever a forward returns must reach the losses, and nothing else."""
    if forward not in module.parents or not isinstance(forward, ast.Call):
        raise _NotProved
    node: ast.AST = forward
    while node not in given and isinstance(module.parents[node], ast.Attribute):
        node = module.parents[module.parents[node]]
        if unviewed(node) is not forward:  # type: ignore[arg-type]
            raise _NotProved
    if forward in given and index is None:
        return
    statement = module.statement(forward)
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1 or statement.value is not node:
        raise _NotProved
    target: ast.expr = statement.targets[0]
    if index is not None:
        if not isinstance(target, ast.Tuple) or len(target.elts) <= index:
            raise _NotProved
        target = target.elts[index]
    if not isinstance(target, ast.Name):
        raise _NotProved
    scope = module.scope(forward)
    for load in ast.walk(scope):
        if isinstance(load, ast.Name) and load.id == target.id and isinstance(load.ctx, ast.Load):
            function = module.scope(load)
            if function is not scope and not _reads_global(function, load.id):
                continue  # a name of its own
            above = module.parents[load]
            about = isinstance(above, ast.Attribute) and above.attr in _ABOUT
            like = isinstance(above, ast.Call) and getattr(above.func, "attr", "") in _LIKE
            if load not in given and not about and not like:
                raise _NotProved


def _reads_global(function: ast.AST, name: str) -> bool:
    """Whether a function reads a name that it does not bind itself."""
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return False
    nodes = uses_of(function, name)
    bound = any(isinstance(one.ctx, ast.Store) for one in nodes)
    bound |= name in parameters(function)
    return bool(nodes) and not bound


def _check_class(reading: Reading, cls: ast.ClassDef, models: Collection[ast.AST]) -> None:
    """The class's objects must be models on their own, neither part of another nor handed out as a whole, nor to a
    function of this file that was not entered, and all their calls must have been seen."""
    module = reading.module
    entered = {frame.code for event in reading.events for frame in event.frame.stack()}
    functions = {one.name: one for one in ast.walk(module.tree) if isinstance(one, ast.FunctionDef)}
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Name) or node.id != cls.name or not isinstance(node.ctx, ast.Load):
            continue
        call = module.parents[node]
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "super":
            continue
        if not isinstance(call, ast.Call) or call.func is not node:
            raise _NotProved
        around = module.class_of(call)
        if around is not None and any(getattr(one, "name", "") == "forward" for one in around.body):
            raise _NotProved
        statement = module.statement(call)
        if not isinstance(statement, ast.Assign):
            raise _NotProved
        for target in statement.targets:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            for load in (load for part in parts for load in _loads(module, module.source(part))):
                above = module.parents[load]
                if isinstance(above, ast.Return | ast.Dict | ast.List | ast.Tuple):
                    raise _NotProved
                if not isinstance(above, ast.Call):
                    continue
                if above.func is load and above not in models:
                    raise _NotProved
                if load in above.args and module.dotted(above.func) & _WHOLE:
                    raise _NotProved
                callee = functions.get(called_name(above))
                if above.func is not load and callee is not None and callee not in entered:
                    raise _NotProved


def _without_sigmoid(module: Module, cls: ast.ClassDef, index: int | None) -> list[Edit]:
    forward = next((f for f in cls.body if isinstance(f, ast.FunctionDef) and f.name == "forward"), None)
    returns = [node for node in ast.walk(forward) if isinstance(node, ast.Return)] if forward else []
    if forward is None or len(returns) != 1:
        raise _NotProved
    returned = returns[0].value
    if index is not None:
        if not isinstance(returned, ast.Tuple) or len(returned.elts) <= index:
            raise _NotProved
        returned = returned.elts[index]
    if returned is None or isinstance(returned, ast.Tuple):
        raise _NotProved
    for layer in (node for node in ast.walk(cls) if isinstance(node, ast.Call) and is_layer(module, node)):
        tail = tail_of(module, layer)
        if tail is not None and tail.returned is returned:
            return edits.change_call(module, tail.sequential, remove=(len(tail.sequential.args) - 1,))
    root = unviewed(returned)
    if (operand := sigmoid_of(module, root)) is not None:
        return _unwrapped(module, root, operand)
    if isinstance(root, ast.Name):
        stores = [one for one in forward.body if isinstance(one, ast.Assign) and _binds(module, one, root.id)]
        nodes = uses_of(forward, root.id)
        last = stores[-1] if stores else None
        later = [one for one in nodes if last is not None and one.lineno > (last.end_lineno or 0)]
        if last is not None and later == [root]:
            value = unviewed(last.value)
            if (operand := sigmoid_of(module, value)) is not None:
                own = value is last.value and module.source(operand) == root.id and len(last.targets) == 1
                if own and isinstance(getattr(value, "func", None), ast.Attribute):
                    return edits.delete(module, last) + _unused(module, value)
                return _unwrapped(module, value, operand)
    raise _NotProved


def _unwrapped(module: Module, call: ast.expr, operand: ast.expr) -> list[Edit]:
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
        raise _NotProved  # `from torch import sigmoid` would be left without a use
    text = module.source(operand)
    simple = isinstance(operand, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
    return edits.replace(module, call, text if simple else f"({text})") + _unused(module, call)


def _unused(module: Module, call: ast.expr) -> list[Edit]:
    """`self.sigmoid = nn.Sigmoid()` goes where the call was its only use."""
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return []
    text = module.source(call.func)
    if not text.startswith("self.") or sum(1 for _ in _loads(module, text)) != 1:
        return []
    made = [one for one in ast.walk(module.tree) if isinstance(one, ast.Assign) and _binds(module, one, text)]
    if len(made) == 1 and len(made[0].targets) == 1 and is_layer(module, made[0].value):
        return edits.delete(module, made[0])
    return []
