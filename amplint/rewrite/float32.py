"""Losses that CUDA autocast refuses (binary cross entropy on probabilities) stay outside the region, in float32."""

from __future__ import annotations

import ast

from amplint.rewrite.refused import Refused
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.values import Tensor

_REASON = "its loss is binary cross entropy on probabilities, which CUDA autocast refuses"
_ADVICE = "use binary_cross_entropy_with_logits on logits first"
Region = tuple[ast.stmt, ...]


def split(reading: Reading, region: Region) -> tuple[Region, tuple[ast.expr, ...]]:
    """The part of a region that can run under autocast, and the expressions that need `.float()`: what the sigmoid is
    given (in half precision it is 0 or 1 too soon, and the loss's gradient infinite there), and what else the region
    computed for the loss."""
    module = reading.module
    banned: dict[int, list[events.Operation]] = {}
    for index, statement in enumerate(region):
        if found := _banned(reading, statement):
            banned[index] = found
    if not banned:
        return region, ()
    first = min(banned)
    if not first:
        raise Refused(_REASON, _ADVICE)
    made = {
        node.id
        for one in region[:first]
        for node in ast.walk(one)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    given = [event for found in banned.values() for event in found]
    casts = [_sigmoid(module, event) for event in given]
    for statement in region[first:]:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id in made and isinstance(node.ctx, ast.Load):
                casts.append(_operand(module, node))
    return region[:first], tuple(dict.fromkeys(casts))


def _banned(reading: Reading, statement: ast.stmt) -> list[events.Operation]:
    """What a statement computes, calls included, that autocast refuses. In a model's own forward it cannot be helped
    from here."""
    inside = set(ast.walk(statement))
    called = {_called(node) for node in inside if isinstance(node, ast.Call)}
    around = {statement, *reading.module.ancestors(statement)}
    found = []
    for event in reading.events:
        if not isinstance(event, events.Operation) or event.name != "binary_cross_entropy":
            continue
        frames = list(event.frame.stack())
        functions = [frame.code for frame in frames if isinstance(frame.code, ast.FunctionDef)]
        if event.node in inside or any(one.name in called and one not in around for one in functions):
            if any(frame.in_model for frame in frames) or event.module is not reading.module:
                raise Refused(_REASON, _ADVICE)
            found.append(event)
    return found


def _sigmoid(module: Module, loss: events.Operation) -> ast.expr:
    """What the sigmoid is given whose probabilities a loss gets."""
    known = loss.args[0] if loss.args else None
    sigmoids = {call: operand for call in ast.walk(module.tree) if (operand := _sigmoid_of(module, call)) is not None}
    if isinstance(known, Tensor) and known.node in sigmoids:
        return sigmoids[known.node]
    layers = [node for node in ast.walk(module.tree) if isinstance(node, ast.Call) and _is_layer(module, node)]
    if len(sigmoids) == 1 and all(isinstance(module.parents[layer], ast.Assign) for layer in layers):
        call, operand = next(iter(sigmoids.items()))
        if getattr(module.function(call), "name", "") == "forward":
            return operand
    raise Refused(_REASON, _ADVICE)


def _sigmoid_of(module: Module, call: ast.AST) -> ast.expr | None:
    """The operand of a call that computes a sigmoid: torch.sigmoid(x), x.sigmoid(), self.out(x) with an nn.Sigmoid."""
    match call:
        case ast.Call(func=ast.Attribute() as function, args=[operand], keywords=[]) if module.dotted(function) & {
            "torch.sigmoid",
            "torch.nn.functional.sigmoid",
            "torch.special.expit",
        }:
            return operand
        case ast.Call(func=ast.Attribute(attr="sigmoid", value=operand), args=[], keywords=[]):
            return operand
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self")) as field, args=[operand], keywords=[]):
            text = module.source(field)
            for node in ast.walk(module.tree):
                if (
                    isinstance(node, ast.Assign)
                    and _is_layer(module, node.value)
                    and any(module.source(target) == text for target in node.targets)
                ):
                    return operand
    return None


def _is_layer(module: Module, node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and "torch.nn.Sigmoid" in module.dotted(node.func)


def _operand(module: Module, name: ast.Name) -> ast.expr:
    """The tensor that a name stands for where it is used: an argument of a call, with the methods that view it. A
    shape in which it might be no tensor is refused."""
    node: ast.expr = name
    while True:
        above = module.parents[node]
        match above:
            case ast.Attribute(value=inner) if inner is node and isinstance(module.parents[above], ast.Call):
                call = module.parents[above]
                assert isinstance(call, ast.Call)
                if call.func is not above or above.attr not in _VIEWS:
                    raise Refused(_REASON, _ADVICE)
                node = call
            case ast.Call() if node in above.args and _is_tensor(module, name, above):
                return node
            case ast.keyword() if _is_tensor(module, name, module.parents[above]):
                return node
            case _:
                raise Refused(_REASON, _ADVICE)


def _parameters(module: Module, call: ast.AST) -> list[str]:
    """The parameters of the function of this file that is called."""
    for function in ast.walk(module.tree):
        if isinstance(function, ast.FunctionDef) and function.name == _called(call):
            return [one.arg for one in (*function.args.posonlyargs, *function.args.args) if one.arg != "self"]
    return []


_VIEWS = frozenset(("view", "reshape", "squeeze", "flatten", "unsqueeze", "view_as", "transpose", "permute", "t"))


def _is_tensor(module: Module, name: ast.Name, call: ast.AST) -> bool:
    """Whether nothing treats the value as a tuple or a dict: here, or in the function of this file that is called."""
    scope: ast.AST = module.function(name) or module.tree
    if not _whole(module, scope, name.id):
        return False
    names = set(_parameters(module, call))
    functions = (f for f in ast.walk(module.tree) if isinstance(f, ast.FunctionDef))
    return all(
        _whole(module, function, one)
        for function in functions
        if names and names <= {argument.arg for argument in function.args.args}
        for one in names
    )


def _called(call: ast.AST) -> str:
    """The last part of the name that a call calls."""
    function = getattr(call, "func", None)
    return getattr(function, "id", "") or getattr(function, "attr", "")


def _whole(module: Module, scope: ast.AST, name: str) -> bool:
    """Whether a name is nowhere taken apart: unpacked, iterated, or indexed by a number or a key."""
    for node in ast.walk(scope):
        if not isinstance(node, ast.Name) or node.id != name or not isinstance(node.ctx, ast.Load):
            continue
        above = module.parents[node]
        match above:
            case ast.Subscript(value=value, slice=ast.Constant()) if value is node:
                return False
            case ast.Assign(targets=[ast.Tuple() | ast.List()], value=value) if value is node:
                return False
            case ast.For(iter=value) | ast.comprehension(iter=value) | ast.Starred(value=value) if value is node:
                return False
            case ast.Call(func=ast.Name(id="len" | "zip" | "enumerate" | "isinstance")):
                return False
    return True
