"""Where probabilities come from: the sigmoid before a binary cross entropy."""

from __future__ import annotations

import ast
from collections.abc import Collection
from typing import NamedTuple

from amplint.rewrite.refusals.refused import Refused, command
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import uses_of
from amplint.source.values import Instance, Model, Sym, Tensor, Value

REASON = "its loss is binary cross entropy on probabilities, which CUDA autocast refuses"
ADVICE = "use binary_cross_entropy_with_logits on logits first"
VIEWS = frozenset(("view", "reshape", "squeeze", "flatten", "unsqueeze", "view_as", "transpose", "permute", "t"))


class Tail(NamedTuple):
    """A Sequential that ends in a Sigmoid, and what the forward that runs it returns: the sigmoid of that is the
    same."""

    sequential: ast.Call
    returned: ast.expr


class Bare(NamedTuple):
    """A model that is a Sequential which ends in a Sigmoid, and all its calls: the sigmoid of these is the same."""

    sequential: ast.Call
    calls: tuple[ast.Call, ...]


class There(NamedTuple):
    """What is given to the sigmoids of models whose classes are in other files."""

    parts: tuple[tuple[Module, ast.expr | Tail], ...]


def sigmoid_before(reading: Reading, loss: events.Operation) -> ast.expr | Tail | Bare | There:
    """What the sigmoid is given whose probabilities a loss gets."""
    known = loss.args[0] if loss.args else None
    given = loss.node.args[0] if isinstance(loss.node, ast.Call) and loss.node.args else None
    return sigmoid_behind(reading, given, known)


def sigmoid_behind(
    reading: Reading, given: ast.expr | None, known: Value | None = None
) -> ast.expr | Tail | Bare | There:
    """What the sigmoid is given whose probabilities an expression stands for."""
    module = reading.module
    if given is not None and (bare := bare_of(reading, given)) is not None:
        return bare
    classes = classes_of(reading, given) if given is not None else set()
    if classes is None:
        return _there(reading, given, known)
    try:
        return _in(module, classes, known)
    except Refused as refusal:
        raise _with_files(reading, given) or refusal from None


def _with_files(reading: Reading, given: ast.expr | None) -> Refused | None:
    """Names the files of the models that amplint has not looked into, where these may say the sigmoid."""
    models = models_at(reading)
    calls = forwards_behind(reading.module, given, models) if given is not None else []
    files = {reading.module.path}
    for model in (one for call in calls for one in models[call]):
        if not isinstance(model, Sym) or model.kind != "made":
            return None
        place, _, name = str(model.parts[0]).rpartition(".")
        level = len(place) - len(place.lstrip("."))
        found = reading.machine.project.find(place.lstrip("."), level, reading.module, whole=True)
        if found is None or "igmoid" not in found.text or f"class {name}" not in found.text:
            return None
        files.add(found.path)
    return Refused(REASON, f"{command(files)} changes them together", tuple(files)) if len(files) > 1 else None


def _there(reading: Reading, given: ast.expr | None, known: Value | None) -> There:
    """The sigmoids of models whose classes are in other files, each of which says one, and returns it."""
    models = models_at(reading)
    calls = forwards_behind(reading.module, given, models) if given is not None else []
    found = {one.cls: None for call in calls for one in models[call] if isinstance(one, Instance)}
    if not all(isinstance(one, Instance) for call in calls for one in models[call]):
        raise Refused(REASON, ADVICE)
    made = [(one.frame.module, one.node) for one in found]
    if any(module is reading.module or node not in module.tree.body for module, node in made):
        raise Refused(REASON, ADVICE)
    parts = tuple((module, _in(module, {node}, known)) for module, node in made)
    for module, part in parts:
        if isinstance(part, Tail) or returned_by(module, part) is not None:
            continue
        if not isinstance(known, Tensor) or known.node not in set(module.ancestors(part)):
            raise Refused(REASON, ADVICE)
    return There(parts)


def _in(module: Module, classes: Collection[ast.AST], known: Value | None) -> ast.expr | Tail:
    """What the sigmoid of some classes is given (of a file, if there are none)."""
    nodes = [node for one in classes or (module.tree,) for node in ast.walk(one)]
    sigmoids = {call: operand for call in nodes if (operand := sigmoid_of(module, call)) is not None}
    if isinstance(known, Tensor) and known.node in sigmoids:
        return sigmoids[known.node]
    layers = [node for node in nodes if isinstance(node, ast.Call) and is_layer(module, node)]
    if len(sigmoids) == 1 and all(isinstance(module.parents[layer], ast.Assign) for layer in layers):
        call, operand = next(iter(sigmoids.items()))
        if getattr(module.function(call), "name", "") == "forward":
            return operand
    if not sigmoids and len(layers) == 1 and (tail := tail_of(module, layers[0])) is not None:
        return tail
    raise Refused(REASON, ADVICE)


def models_at(reading: Reading) -> dict[ast.AST, list[Value]]:
    """The models that each call runs."""
    models: dict[ast.AST, list[Value]] = {}
    for event in reading.events:
        if isinstance(event, events.Forward):
            models.setdefault(event.node, []).append(event.model)
    return models


def bare_of(reading: Reading, probabilities: ast.expr) -> Bare | None:
    """The Sequential that returns what an expression stands for, where it is a model on its own and all its calls are
    seen in this file."""
    module, models = reading.module, models_at(reading)
    behind = forwards_behind(module, probabilities, models)
    found = {model for call in behind for model in models[call]}
    if len(found) != 1 or not all(isinstance(one, Model) and one.name == "torch.nn.Sequential" for one in found):
        return None
    (model,) = found
    names = {module.source(call.func) for call in behind}
    made = [one for one in ast.walk(module.tree) if isinstance(one, ast.Assign) and len(one.targets) == 1]
    made = [one for one in made if module.source(one.targets[0]) in names and not _only_moves(module, one)]
    value = made[0].value if len(made) == len(names) == 1 else None
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in ("to", "cuda"):
        value = value.func.value
    if not isinstance(value, ast.Call) or "torch.nn.Sequential" not in module.dotted(value.func):
        return None
    if len(value.args) < 2 or not is_layer(module, value.args[-1]):
        return None
    calls = [node for node, of in models.items() if model in of]
    if not all(node in module.parents and set(models[node]) == found for node in calls):
        return None
    for node in ast.walk(module.tree):
        loads = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
        if loads and module.source(node) in names:
            above = module.parents[node]
            if isinstance(above, ast.Attribute) and above.attr not in ("__getitem__", "forward", "append"):
                continue
            if isinstance(above, ast.Call) and (above in calls or (node in above.args and _only_looks(module, above))):
                continue
            return None
    return Bare(value, tuple(one for one in calls if isinstance(one, ast.Call)))


def _only_moves(module: Module, statement: ast.Assign) -> bool:
    """Whether a statement is `D = D.to(device)`."""
    match statement.value:
        case ast.Call(func=ast.Attribute(attr="to" | "cuda", value=value)):
            return module.source(value) == module.source(statement.targets[0])
    return False


def _only_looks(module: Module, call: ast.Call) -> bool:
    """Whether a call does not run the model that it is given: print, a function of this file, which the reading saw."""
    name = getattr(call.func, "id", "")
    return name == "print" or any(isinstance(one, ast.FunctionDef) and one.name == name for one in module.tree.body)


def classes_of(reading: Reading, probabilities: ast.expr) -> set[ast.ClassDef] | None:
    """The classes of this file whose models return what an expression of it stands for; empty where these are not
    known, None where one is of another file."""
    module = reading.module
    models = models_at(reading)
    calls = forwards_behind(module, probabilities, models)
    found = [model for call in calls for model in models[call]]
    local = {one.cls.node for one in found if isinstance(one, Instance) and one.cls.node in ast.walk(module.tree)}
    if any(isinstance(one, Instance) and one.cls.node not in local for one in found):
        return None
    known = len(local) > 0 and all(isinstance(one, Instance) for one in found)
    return local if known else set()


def returned_by(module: Module, operand: ast.expr) -> ast.ClassDef | None:
    """The class whose forward returns nothing but the sigmoid of an operand, or a view of it."""
    call = module.parents[operand]
    call = module.parents[call] if isinstance(call, ast.Attribute) else call
    forward = module.function(call)
    if not isinstance(forward, ast.FunctionDef) or forward.name != "forward":
        return None
    returns = [node.value for node in ast.walk(forward) if isinstance(node, ast.Return)]
    root = unviewed(returns[0]) if len(returns) == 1 and returns[0] is not None else None
    if isinstance(root, ast.Name):
        stores = [one for one in forward.body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == root.id]
        later = [
            node
            for node in ast.walk(forward)
            if isinstance(node, ast.Name) and node.id == root.id and stores and node.lineno > stores[-1].lineno
        ]
        root = unviewed(stores[-1].value) if stores and later == [root] else None
    above = module.parents[forward]
    return above if root is call and isinstance(above, ast.ClassDef) else None


def forwards_behind(module: Module, value: ast.expr, forwards: Collection[ast.AST]) -> list[ast.Call]:
    """The calls of models whose result, or an element of it, an expression is a view of; none where one is something
    else."""
    value = unviewed(value)
    if value in forwards and isinstance(value, ast.Call):
        return [value]
    if not isinstance(value, ast.Name):
        return []
    scope = module.scope(value)
    found: list[ast.Call] = []
    for node in ast.walk(scope):
        if isinstance(node, ast.Name) and node.id == value.id and isinstance(node.ctx, ast.Store):
            if module.scope(node) is not scope:
                continue
            statement = module.statement(node)
            made = unviewed(statement.value) if isinstance(statement, ast.Assign) else None
            if not isinstance(made, ast.Call) or made not in forwards:
                return []
            found.append(made)
    return found


def unviewed(value: ast.expr) -> ast.expr:
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in VIEWS:
        value = value.func.value
    return value


def tail_of(module: Module, layer: ast.Call) -> Tail | None:
    """The Sequential that a Sigmoid ends, where its class's forward returns nothing but what that says, viewed, or a
    tuple with it."""
    sequential = module.parents[layer]
    match module.parents[sequential]:
        case ast.Assign(targets=[ast.Attribute(value=ast.Name(id="self")) as field], value=ast.Call() as made) if (
            made is sequential and "torch.nn.Sequential" in module.dotted(made.func) and made.args[-1] is layer
        ):
            pass
        case _:
            return None
    around = module.class_of(layer)
    forward = next((f for f in getattr(around, "body", ()) if getattr(f, "name", "") == "forward"), None)
    if around is None or not isinstance(forward, ast.FunctionDef) or len(made.args) < 2:
        return None
    text = module.source(field)
    uses = [n for n in ast.walk(around) if isinstance(n, ast.Attribute) and module.source(n) == text and n is not field]
    outputs = {call for use in uses if (call := _run_by(module, use)) is not None and call in ast.walk(forward)}
    returns = [node for node in ast.walk(forward) if isinstance(node, ast.Return)]
    if len(outputs) < len(uses) or len(returns) != 1 or _used_outside(module, around, field.attr):
        return None
    value = returns[0].value
    for part in value.elts if isinstance(value, ast.Tuple) else [value] if value is not None else []:
        root = unviewed(part)
        if root in outputs:
            return Tail(made, part) if len(outputs) == 1 else None
        if not isinstance(root, ast.Name):
            continue
        uses_of_it = uses_of(forward, root.id)
        stores = [module.parents[node] for node in uses_of_it if isinstance(node.ctx, ast.Store)]
        last = next((one for one in reversed(forward.body) if one in stores), None)
        behind = [one for one in uses_of_it if last is not None and one.lineno > (last.end_lineno or 0)]
        if isinstance(last, ast.Assign) and outputs == {last.value} and behind == [root]:
            return Tail(made, part)  # x = self.main(x), whatever x was before
        if len(uses_of_it) != len(stores) + 1 or len(stores) != len(outputs):
            continue  # something else reads it, or it is something else, too
        if all(isinstance(one, ast.Assign) and one.value in outputs for one in stores):
            return Tail(made, part)
    return None


def _used_outside(module: Module, cls: ast.ClassDef, field: str) -> bool:
    """Whether code outside a class may read a field of its objects: any that does not say `self`, and of the classes
    that inherit from it, all."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr == field:
            if not isinstance(node.value, ast.Name) or node.value.id != "self":
                return True
        elif isinstance(node, ast.ClassDef) and any(getattr(base, "id", "") == cls.name for base in node.bases):
            return True
    return False


def _run_by(module: Module, field: ast.Attribute) -> ast.Call | None:
    """The call that runs a submodule: `self.main(x)`, `data_parallel(self.main, x, …)`."""
    match module.parents[field]:
        case ast.Call(func=function) as call if function is field:
            return call
        case ast.Call(func=function, args=[first, *_]) as call if first is field:
            return call if "torch.nn.parallel.data_parallel" in module.dotted(function) else None
    return None


def sigmoid_of(module: Module, call: ast.AST) -> ast.expr | None:
    """The operand of a call that computes a sigmoid: torch.sigmoid(x), x.sigmoid(), self.out(x) with an nn.Sigmoid."""
    match call:
        case ast.Call(func=function, args=[operand], keywords=[]) if module.dotted(function) & {
            "torch.sigmoid",
            "torch.nn.functional.sigmoid",
            "torch.special.expit",
        }:
            return operand
        case ast.Call(func=ast.Attribute(attr="sigmoid", value=operand), args=[], keywords=[]):
            return operand
        case ast.Call(func=ast.Call() as layer, args=[operand], keywords=[]) if is_layer(module, layer):
            return operand
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self")) as field, args=[operand], keywords=[]):
            text = module.source(field)
            around = next((one for one in module.ancestors(call) if isinstance(one, ast.ClassDef)), module.tree)
            for node in ast.walk(around):
                if (
                    isinstance(node, ast.Assign)
                    and is_layer(module, node.value)
                    and any(module.source(target) == text for target in node.targets)
                ):
                    return operand
    return None


def is_layer(module: Module, node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and "torch.nn.Sigmoid" in module.dotted(node.func)
