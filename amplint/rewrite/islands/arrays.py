"""NumPy has no bfloat16: what comes out of a region is cast to float32 before it becomes an array."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.regions.derivation import stored
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import uses_of
from amplint.source.values import Tensor, Value

# Ops whose result is floating-point whatever the reading knows of their operands.
_FLOATING = frozenset(
    "softmax log_softmax sigmoid tanh relu gelu linear bmm matmul mm baddbmm addmm conv1d conv2d conv3d layer_norm "
    "batch_norm dropout mean norm exp log sqrt rsqrt lstm gru rnn_tanh".split()
).union(tensors.LOSSES)
_INDEXING = frozenset("max min topk sort median mode kthvalue cummax cummin".split())  # values and indices
_MADE = frozenset("randn rand zeros ones empty full arange linspace tensor from_numpy as_tensor randint eye".split())
_VIEWS = frozenset("view reshape squeeze unsqueeze flatten transpose permute contiguous detach cpu t data".split())
_OTHER = frozenset(("integer", "bool", "complex", "float64"))


def array_casts(reading: Reading, region: tuple[ast.stmt, ...]) -> tuple[ast.expr, ...]:
    """The tensors that need `.float()` before their `.numpy()`: those that the model makes inside, and those that come
    from a region, or may do so in the same iteration. Raises Refused where one may hold integers, for all that is
    seen, or is in another file."""
    module = reading.module
    above = list(module.ancestors(region[0]))
    around: ast.AST | None = next((one for one in above if isinstance(one, ast.For | ast.While)), None)
    around = around or module.function(region[0])
    inside = {node for statement in region for node in ast.walk(statement)}
    reached = _reached(module, around or module.tree, region)
    compared = {  # what a loss compares has a gradient
        ast.unparse(event.node.args[0])
        for event in reading.events
        if isinstance(event, events.Loss) and event.node in inside and isinstance(event.node, ast.Call)
        if event.node.args
    }
    found: dict[ast.expr, bool] = {}  # whether it is a floating-point one, whenever it was seen
    for event in reading.events:
        if not isinstance(event, events.Operation) or event.name != "numpy":
            continue
        value = event.args[0] if event.args else None
        in_model = any(frame.in_model for frame in event.frame.stack())
        near = event.module is module and (around is None or around in module.ancestors(event.node))
        comes = isinstance(value, Tensor) and any(node in inside for node in _nodes(value))
        if not (in_model or near or comes) or (not comes and isinstance(value, Tensor) and _from_elsewhere(value)):
            continue
        match event.node:
            case ast.Call(func=ast.Attribute(attr="numpy", value=receiver)) if event.module is module:
                if near and not (in_model or comes or _names(receiver) & reached or event.node in inside):
                    continue  # no part of it was computed under autocast
                needed = ast.unparse(_viewed(receiver)) in compared or _floating(module, value, receiver)
            case _:
                raise _refusal()
        if needed is None:
            raise _refusal()
        found[receiver] = found.get(receiver, False) or needed
    return tuple(receiver for receiver, needed in found.items() if needed)


def _reached(module: Module, around: ast.AST, region: tuple[ast.stmt, ...]) -> set[str]:
    """The names that may hold what a region computed, or something made of it."""
    found = set[str]().union(*map(stored, region))
    while True:
        before = len(found)
        for node in ast.walk(around):
            match node:
                case ast.Assign() | ast.AugAssign() | ast.AnnAssign() | ast.NamedExpr() if node.value is not None:
                    targets, value = (node.targets if isinstance(node, ast.Assign) else [node.target]), node.value
                case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                    targets = [target]
                case ast.Call(func=ast.Attribute(value=target), args=args, keywords=keywords):  # kept.append(output)
                    targets, value = [target], ast.Tuple([*args, *(one.value for one in keywords)], ast.Load())
                case _:
                    continue
            if _names(value) & found:
                found |= set[str]().union(*map(_names, targets)) - module.imports.keys()
        if len(found) == before:
            return found


def _names(code: ast.AST) -> set[str]:
    """The names in some code, and its fields of `self`, but for what becomes a number there."""
    match code:
        case ast.Call(func=ast.Attribute(attr="item" | "tolist")) | ast.Call(func=ast.Name(id="float" | "int" | "len")):
            return set()
        case ast.Attribute(value=ast.Name(id="self")):
            return {ast.unparse(code)}
        case ast.Name(id=name):
            return {name} - {"self"}
    return set[str]().union(*map(_names, ast.iter_child_nodes(code)))


def _viewed(receiver: ast.expr) -> ast.expr:
    """What an expression is a view of: `x` in `x.detach().cpu()`."""
    while True:
        match receiver:
            case ast.Call(func=ast.Attribute(attr=name, value=inner)) | ast.Attribute(attr=name, value=inner) if (
                name in _VIEWS
            ):
                receiver = inner
            case _:
                return receiver


def _refusal() -> Refused:
    reason = "it turns model outputs into NumPy arrays, which have no bfloat16"
    return Refused(reason, "add .float() before .numpy()")


def _nodes(value: Value) -> Iterator[ast.AST]:
    """Where a tensor, and what it was made of, was computed."""
    pending, known = [value], set[int]()
    while pending:
        one = pending.pop()
        if isinstance(one, Tensor) and id(one) not in known:
            known.add(id(one))
            pending += one.parents
            if one.node is not None:
                yield one.node


def _from_elsewhere(value: Tensor) -> bool:
    """Whether a tensor was made by hand: data, not an output."""
    return value.made in _MADE and not value.of


def _floating(module: Module, value: Value | None, receiver: ast.expr) -> bool | None:
    """Whether a tensor needs a cast; None where it is not known."""
    if _is_cast(receiver):
        return False
    if not isinstance(value, Tensor):
        return None
    if value.dtype in _OTHER:
        return False
    if value.made in _INDEXING:
        return False if _takes_indices(module, receiver) else None
    if value.dtype or value.made in _FLOATING or _returns_floating(module, value.node):
        return True
    return None


def _is_cast(receiver: ast.expr) -> bool:
    """x.float().numpy(), also with views in between."""
    match _viewed(receiver):
        case ast.Call(func=ast.Attribute(attr="float" | "double" | "int" | "long" | "bool")):
            return True
    return False


def _takes_indices(module: Module, receiver: ast.expr) -> bool:
    """x.max(1)[1], x.max(1).indices, or the second name in `_, indices = x.max(1)`."""
    root = receiver
    while isinstance(root, ast.Call | ast.Attribute):
        root = root.func if isinstance(root, ast.Call) else root.value
    if isinstance(root, ast.Name):
        scope = module.scope(receiver)
        stores = uses_of(scope, root.id)
        made = [module.parents[node] for node in stores if isinstance(node.ctx, ast.Store)]
        return any(isinstance(one, ast.Tuple) and getattr(one.elts[-1], "id", "") == root.id for one in made) and all(
            isinstance(one, ast.Tuple) or (isinstance(one, ast.Assign) and receiver in ast.walk(one.value))
            for one in made
        )
    return any(
        (isinstance(node, ast.Attribute) and node.attr == "indices")
        or (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and node.slice.value == 1)
        for node in ast.walk(receiver)
    )


def _returns_floating(module: Module, node: ast.AST | None) -> bool:
    """Whether a call is one of a function of this file that returns what a floating-point op computes."""
    name = getattr(getattr(node, "func", None), "attr", getattr(getattr(node, "func", None), "id", ""))
    functions = [one for one in ast.walk(module.tree) if isinstance(one, ast.FunctionDef) and one.name == name]
    if not isinstance(node, ast.Call) or len(functions) != 1:
        return False
    returns = [one.value for one in ast.walk(functions[0]) if isinstance(one, ast.Return)]
    return bool(returns) and all(one is not None and _computes_floating(one) for one in returns)


def _computes_floating(node: ast.expr) -> bool:
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _VIEWS:
        node = node.func.value
    name = getattr(getattr(node, "func", None), "attr", "")
    return isinstance(node, ast.Call) and name in _FLOATING
