"""Losses that CUDA autocast refuses (binary cross entropy on probabilities) stay outside the region, in float32."""

from __future__ import annotations

import ast
from typing import NamedTuple

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.refused import Refused
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.values import Instance, Tensor

_REASON = "its loss is binary cross entropy on probabilities, which CUDA autocast refuses"
_ADVICE = "use binary_cross_entropy_with_logits on logits first"
Region = tuple[ast.stmt, ...]


class Tail(NamedTuple):
    """A Sequential that ends in a Sigmoid, and what the forward that runs it returns: the sigmoid of that is the
    same."""

    sequential: ast.Call
    returned: ast.expr


Cast = ast.expr | Tail


def cast_edits(module: Module, cast: Cast, torch: str) -> list[Edit]:
    """`.float()` for an expression; a Sigmoid at the end of a Sequential becomes one of the float32 output."""
    operand = cast.returned if isinstance(cast, Tail) else cast
    text = module.source(operand)
    simple = isinstance(operand, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
    text = f"{text if simple else f'({text})'}.float()"
    if not isinstance(cast, Tail):
        return edits.replace(module, operand, text)
    made = edits.change_call(module, cast.sequential, remove=(len(cast.sequential.args) - 1,))
    return made + edits.replace(module, operand, f"{torch}.sigmoid({text})")


def split(reading: Reading, region: Region) -> tuple[Region, tuple[Cast, ...]]:
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
    called = {event.node for event in reading.events if isinstance(event, events.Forward)}
    if any(node in called for index in banned for node in ast.walk(region[index])):
        raise Refused(_REASON, "name what the model returns on a line of its own first")
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
    casts: list[Cast] = [_sigmoid(module, event) for event in given]
    made -= _float32_after(reading, region[:first], [cast for cast in casts if isinstance(cast, Tail)])
    for statement in region[first:]:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and node.id in made and isinstance(node.ctx, ast.Load):
                casts.append(_operand(module, node))
    return region[:first], tuple(dict.fromkeys(casts))


def _float32_after(reading: Reading, region: Region, tails: list[Tail]) -> set[str]:
    """The names that hold what a model returns whose last sigmoid is computed in float32."""
    module = reading.module
    classes = [one for tail in tails for one in module.ancestors(tail.sequential) if isinstance(one, ast.ClassDef)]
    calls = {
        event.node
        for event in reading.events
        if isinstance(event, events.Forward) and isinstance(event.model, Instance) and event.model.cls.node in classes
    }
    found: dict[str, bool] = {}
    for statement in region:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                above = module.parents[node]
                sure = isinstance(above, ast.Assign) and above is statement and above.value in calls
                found[node.id] = found.get(node.id, True) and sure
    return {name for name, sure in found.items() if sure}


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


def _sigmoid(module: Module, loss: events.Operation) -> Cast:
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
    if not sigmoids and len(layers) == 1 and (tail := _tail(module, layers[0])) is not None:
        return tail
    raise Refused(_REASON, _ADVICE)


def _tail(module: Module, layer: ast.Call) -> Tail | None:
    """The Sequential that a Sigmoid ends, where its class's forward returns nothing but what that says, viewed."""
    sequential = module.parents[layer]
    match module.parents[sequential]:
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self")) as field], value=ast.Call() as made) if (
            made is sequential and "torch.nn.Sequential" in module.dotted(made.func) and made.args[-1] is layer
        ):
            pass
        case _:
            return None
    around = next((above for above in module.ancestors(layer) if isinstance(above, ast.ClassDef)), None)
    forward = next((f for f in getattr(around, "body", ()) if getattr(f, "name", "") == "forward"), None)
    if around is None or forward is None or any(isinstance(one, ast.Starred) for one in made.args):
        return None
    text = module.source(field)
    uses = [n for n in ast.walk(around) if isinstance(n, ast.Attribute) and module.source(n) == text and n is not field]
    outputs = {call for use in uses if (call := _run_by(module, use)) is not None and call in ast.walk(forward)}
    returns = [node for node in ast.walk(forward) if isinstance(node, ast.Return)]
    outside = [n for n in ast.walk(module.tree) if isinstance(n, ast.Attribute) and n.attr == field.attr]
    if len(outputs) < len(uses) or len(returns) != 1 or any(not _of_self(node) for node in outside):
        return None
    value = returns[0].value
    root = value
    while isinstance(root, ast.Call) and isinstance(root.func, ast.Attribute) and root.func.attr in _VIEWS:
        root = root.func.value
    if value is None or root in outputs:
        return Tail(made, value) if value is not None and len(outputs) == 1 else None
    if not isinstance(root, ast.Name):
        return None
    uses_of_it = [node for node in ast.walk(forward) if isinstance(node, ast.Name) and node.id == root.id]
    stores = [module.parents[node] for node in uses_of_it if isinstance(node.ctx, ast.Store)]
    if len(uses_of_it) != len(stores) + 1 or len(stores) != len(outputs):
        return None  # something else reads it, or it is something else, too
    if any(not isinstance(one, ast.Assign) or one.value not in outputs for one in stores):
        return None
    return Tail(made, value)


def _run_by(module: Module, field: ast.Attribute) -> ast.Call | None:
    """The call that runs a submodule: `self.main(x)`, `data_parallel(self.main, x, …)`."""
    match module.parents[field]:
        case ast.Call(func=function) as call if function is field:
            return call
        case ast.Call(func=function, args=[first, *_]) as call if first is field:
            return call if "torch.nn.parallel.data_parallel" in module.dotted(function) else None
    return None


def _of_self(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "self"


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
