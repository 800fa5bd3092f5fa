"""Moving averages of weights that are kept in half precision (AMP306)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule, text
from amplint.checks.state.casts import Scope, assigned, cast_in, half_cast, half_dtype, scope_of
from amplint.findings import Finding
from amplint.source.module import Module
from amplint.source.tree import called_name
from amplint.source.walk import walk

_EQUAL = 1e-9  # what the sum of two decimal fractions may differ from 1
_LEAST = 0.95  # the decay from which on updates are small
_THROUGH = frozenset(  # calls that give the things inside of what they are called on or with
    "parameters named_parameters state_dict buffers named_buffers items values data detach float half bfloat16 to "
    "clone cpu cuda get module list tuple dict OrderedDict iter next reversed sorted enumerate zip unwrap_model".split()
)
_WEIGHTS = re.compile(r"parameters|params|state_dict|buffers|weights|shadow|\bzip\(|\bsd\b")
_CLASS = re.compile(r"(EMA|Ema)(Model|V\d)?$|ExponentialMovingAverage$|AveragedModel$")  # as libraries name them
_UPDATES = frozenset((ast.Call, ast.Assign, ast.AugAssign))
Average = tuple[ast.AST, ast.expr]  # the statement that updates, and what it updates


@rule("AMP306")
def low_precision_ema(script: Script) -> Iterator[Finding]:
    """A moving average is updated in half precision."""
    module = script.module
    for update, target in _averages(module):
        if not _of_weights(module, update, target):
            continue
        for path, key in _kept_in(module, target):
            scope = scope_of(module, path)
            for cast, dtype in _casts_of(module, path, scope, key):
                yield _lost(module, cast, dtype, f"{text(module, path)} becomes {dtype}", update)


@rule("AMP306")
def average_made_in_half(script: Script) -> Iterator[Finding]:
    """An imported class of moving averages is given half as the dtype to keep them in."""
    module = script.module
    for call in module.nodes(ast.Call):
        name = called_name(call)
        if not _CLASS.search(name) or not module.dotted(call.func):
            continue
        dtypes = [
            dtype for given in call.keywords if given.arg == "dtype" if (dtype := half_dtype(module, given.value))
        ]
        update = _update_of(module, call) if dtypes else None
        if update is not None:
            yield _lost(module, call, dtypes[0], f"{name} keeps its average in {dtypes[0]}", update)


def _lost(module: Module, cast: ast.AST, dtype: str, how: str, update: ast.AST) -> Finding:
    least = "1/2048" if dtype == "float16" else "1/256"
    return found_at(
        "AMP306",
        module,
        cast,
        f"the moving average is kept in {dtype}: updates below {least} of a weight are lost, and 1 - decay times a "
        "difference is that small",
        evidence=[(module, cast, how), (module, update, "and is averaged in that dtype")],
        help="keep the average in float32; cast a copy of it to half where that is needed",
    )


def _update_of(module: Module, made: ast.Call) -> ast.Call | None:
    """Where an object that is made here is told to average; None where it is not, or is cast to float32."""
    match module.statement(made):
        case ast.Assign(targets=[ast.Name() | ast.Attribute() as kept], value=value) if value is made:
            pass
        case _:
            return None
    update = None
    for call in module.nodes(ast.Call):
        match call:
            case ast.Call(func=ast.Attribute(attr="float" | "to" as name, value=owner)) if _same(owner, kept):
                if name == "float" or "float32" in text(module, call):
                    return None
            case ast.Call(func=ast.Attribute(attr="step" | "update" | "update_parameters", value=owner)):
                update = call if update is None and _same(owner, kept) else update
    return update


def _averages(module: Module) -> Iterator[Average]:
    """Updates `a ← d·a + (1 - d)·b`, in one statement or two, in place or not."""
    for node in (one for one in module.all_nodes if type(one) in _UPDATES):
        match node:
            case ast.Call(func=ast.Attribute(attr="lerp_", value=target), args=[_, weight, *_]):
                if _is_small(weight):
                    yield node, target
            case ast.Call(func=ast.Attribute(attr="copy_", value=target), args=[value, *_]):
                if _weighs(value):
                    yield node, target
            case ast.Call(func=ast.Attribute(attr="add_", value=target), args=[_, *_]):
                yield from _scaled_then_added(module, node, target)
            case ast.Call(func=ast.Attribute(attr="_foreach_mul_" | "_foreach_lerp_"), args=[target, _, *_]):
                yield node, target
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript() as target], value=value):
                if _weighs(value):
                    yield node, target
            case ast.AugAssign(op=ast.Add(), target=target, value=value):
                if _complement(value) is not None and _scaled_before(module, node, target):
                    yield node, target


def _of_weights(module: Module, update: ast.AST, target: ast.expr) -> bool:
    """Whether an average is of weights: of all in a loop, or what an object keeps; not a mixture of two batches."""
    if isinstance(target, ast.Attribute) and target.attr != "data":
        return True
    if isinstance(update, ast.Call) and isinstance(update.func, ast.Attribute) and "_foreach" in update.func.attr:
        return True
    for above in module.ancestors(update):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        if isinstance(above, ast.For):
            iterables = [above.iter, *(node for node in walk(above.iter) if isinstance(node, ast.Name))]
            iterables += [value for name in iterables if isinstance(name, ast.Name) for value in assigned(module, name)]
            if any(_WEIGHTS.search(text(module, iterable, 500)) for iterable in iterables):
                return True
    return False


def _complement(value: ast.AST) -> ast.expr | None:
    """The d of a `1 - d` in an expression."""
    for node in walk(value):
        match node:
            case ast.BinOp(op=ast.Sub(), left=ast.Constant(value=1 | 1.0), right=decay):
                return decay
    return None


def _weighs(value: ast.expr) -> bool:
    """Whether an expression is `d·one + (1 - d)·other`, or has numbers for both that come to 1."""
    if any(max(pair) >= _LEAST and abs(sum(pair) - 1) < _EQUAL for pair in _factors(value)):
        return True
    decay = _complement(value)
    if decay is None or not any(isinstance(node, ast.Add | ast.Sub) for node in ast.walk(value)):
        return False
    for sums in ast.walk(value):
        if isinstance(sums, ast.BinOp) and isinstance(sums.op, ast.Add):
            other, own = sums.left, sums.right
            if _complement(own) is None:
                other, own = own, other
            again = {ast.dump(_plain(node)) for node in walk(other)}
            return ast.dump(_plain(decay)) in again and not _decays_fast(decay)
    return False


def _factors(value: ast.expr) -> Iterator[tuple[float, float]]:
    """The numbers in sums such as `0.999·one + 0.001·other`."""
    for node in walk(value):
        match node:
            case ast.BinOp(
                op=ast.Add(),
                left=ast.BinOp(op=ast.Mult()) as one,
                right=ast.BinOp(op=ast.Mult()) as other,
            ):
                first, second = _factor(one), _factor(other)
                if first is not None and second is not None:
                    yield first, second


def _factor(product: ast.BinOp) -> float | None:
    for side in (product.left, product.right):
        if isinstance(side, ast.Constant) and isinstance(side.value, float):
            return side.value
    return None


def _scaled_then_added(module: Module, call: ast.Call, target: ast.expr) -> Iterator[Average]:
    """`a.mul_(d).add_(b, alpha=1 - d)`, or `a.mul_(d)` and `a.add_((1 - d) * b)` one after the other."""
    parts = [*call.args, *(keyword.value for keyword in call.keywords)]
    weight = next((decay for part in parts if (decay := _complement(part))), None)
    match target:
        case ast.Call(func=ast.Attribute(attr="mul_", value=inner), args=[decay]) if not _decays_fast(decay):
            yield call, inner
        case ast.Name() | ast.Attribute() | ast.Subscript() if weight is not None and not _decays_fast(weight):
            if _scaled_before(module, module.statement(call), target):
                yield call, target


def _scaled_before(module: Module, statement: ast.stmt, target: ast.expr) -> bool:
    """Whether the statement before scales the same thing."""
    bodies = [body for _, body in ast.iter_fields(module.parents[statement]) if isinstance(body, list)]
    block = next((body for body in bodies if statement in body), [statement])
    place = block.index(statement)
    match block[place - 1] if place else None:
        case ast.AugAssign(op=ast.Mult(), target=scaled):
            return _same(scaled, target)
        case ast.Expr(value=ast.Call(func=ast.Attribute(attr="mul_", value=scaled))):
            return _same(scaled, target)
    return False


def _same(one: ast.AST, other: ast.AST) -> bool:
    return isinstance(one, ast.expr) and ast.dump(_plain(one)) == ast.dump(_plain(other))


def _plain(node: ast.AST) -> ast.AST:
    """An expression to compare: whether it is read or stored does not matter, nor does `.data`."""
    while isinstance(node, ast.Attribute) and node.attr == "data":
        node = node.value
    match node:
        case ast.Name(id=name):
            return ast.Name(name, ast.Load())
        case ast.Attribute(value=value, attr=name):
            return ast.Attribute(_plain(value), name, ast.Load())  # type: ignore[arg-type]
        case ast.Subscript(value=value, slice=index):
            return ast.Subscript(_plain(value), index, ast.Load())  # type: ignore[arg-type]
    return node


def _decays_fast(decay: ast.expr) -> bool:
    return isinstance(decay, ast.Constant) and isinstance(decay.value, float) and decay.value < _LEAST


def _is_small(weight: ast.expr) -> bool:
    """Whether a weight of the new value is `1 - d`, or unknown, but not a large number."""
    decay = _complement(weight)
    if decay is not None:
        return not _decays_fast(decay)
    return not isinstance(weight, ast.Constant) or (isinstance(weight.value, float) and weight.value <= 1 - _LEAST)


# -- where an average lives --------------------------------------------------------------------------------------------


def _kept_in(module: Module, target: ast.expr, depth: int = 6) -> Iterator[tuple[ast.expr, str]]:
    """The fields and variables that hold what is averaged: `self.ema` of a loop variable over its parameters; and
    under which key, where a dict has one for it (`state["exp_avg"]`)."""
    base = _stripped(target)
    if not isinstance(base, ast.Name | ast.Attribute) or depth <= 0:
        return
    yield base, _key(target)
    if not isinstance(base, ast.Name):
        return
    function = module.function(base)
    for node in walk(function if function is not None else module.tree):
        match node:
            case ast.For(target=names, iter=iterable) | ast.comprehension(target=names, iter=iterable):
                for source in _source(names, iterable, base.id):
                    yield from _kept_in(module, source, depth - 1)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name == base.id:
                yield from _kept_in(module, value, depth - 1)
    if function is not None:
        for argument in _given(module, function, base.id):
            yield from _kept_in(module, argument, depth - 2)


def _stripped(node: ast.expr) -> ast.expr:
    """`self.ema` of `self.ema.state_dict()[k].data`."""
    while True:
        match node:
            case ast.Subscript(value=inner):
                node = inner
            case ast.Attribute(attr="data" | "module", value=inner):
                node = inner
            case ast.Call(func=ast.Attribute(attr=name, value=inner)) if name in _THROUGH:
                node = inner
            case ast.Call(func=ast.Name(id=name), args=[inner]) if name in _THROUGH:
                node = inner
            case _:
                return node


def _key(node: ast.expr) -> str:
    """The key of `state["ema"].data`; none of `state[name]`, or of what is no item."""
    while isinstance(node, ast.Attribute) and node.attr == "data":
        node = node.value
    match node:
        case ast.Subscript(slice=ast.Constant(value=str() as key)):
            return key
    return ""


def _source(names: ast.expr, iterable: ast.expr, name: str) -> Iterator[ast.expr]:
    """What the variable `name` in the target of a loop runs through."""
    match names, iterable:
        case ast.Name(id=same), _ if same == name:
            yield iterable
        case ast.Tuple(elts=elements), ast.Call(func=ast.Name(id="zip"), args=args) if len(args) == len(elements):
            for element, arg in zip(elements, args, strict=True):
                yield from _source(element, arg, name)
        case ast.Tuple(elts=[_, inner]), ast.Call(func=ast.Name(id="enumerate"), args=[arg, *_]):
            yield from _source(inner, arg, name)
        case ast.Tuple(elts=elements), _:
            if any(isinstance(element, ast.Name) and element.id == name for element in elements):
                yield iterable


def _given(module: Module, function: ast.AST, parameter: str) -> Iterator[ast.expr]:
    """What calls in this file give for a parameter."""
    if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    parameters = [one.arg for one in function.args.args]
    if parameter not in parameters:
        return
    method = parameters[0] in ("self", "cls")
    place = parameters.index(parameter) - method
    for call in module.all_nodes:
        match call:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name == function.name:
                named = [keyword.value for keyword in call.keywords if keyword.arg == parameter]
                if named or 0 <= place < len(call.args):
                    yield named[0] if named else call.args[place]


# -- casts -------------------------------------------------------------------------------------------------------------


def _casts_of(module: Module, path: ast.expr, scope: Scope, key: str) -> Iterator[tuple[ast.expr, str]]:
    """Casts to half of what a path holds (under a key): where it is assigned, in place, or of what it is a copy of.
    None if it is cast back in place."""
    if any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "float"
        and _same(node.func.value, path)
        and isinstance(module.parents[node], ast.Expr)
        for node in walk(scope)
    ):
        return
    for node in walk(scope):
        match node:
            case ast.Assign(targets=[target], value=value) if _same(_stripped_index(target), path):
                if key and _key(target) not in ("", key):
                    continue  # another item of the same dict
                values = [value, *(assigned(module, value) if isinstance(value, ast.Name) else ())]
                cast = next((cast for one in values if (cast := cast_in(module, one)) is not None), None)
                if cast is not None:
                    yield cast, half_cast(module, cast)
                elif copied := _copied(value):
                    for place in _in_place(module, copied, value):
                        yield place, half_cast(module, place)
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=receiver)) as call) if _same(receiver, path):
                if dtype := half_cast(module, call):
                    yield call, dtype


def _stripped_index(target: ast.expr) -> ast.expr:
    return target.value if isinstance(target, ast.Subscript) else target


def _copied(value: ast.expr) -> ast.Name | None:
    """The variable that a value is a copy of."""
    for node in walk(value):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Name() as model, *_]):
                if "copy" in name.lower() or name in ("AveragedModel", "EMA", "ModelEMA", "ModelEma", "ModelEmaV2"):
                    return model
            case ast.ListComp(elt=one) | ast.DictComp(value=one):
                weights = _stripped(node.generators[0].iter)
                if isinstance(weights, ast.Name) and weights is not node.generators[0].iter and not _widened(one):
                    return weights
    return None


def _widened(value: ast.expr) -> bool:
    """Whether a copy of a weight is cast on the way, or may be."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("float", "double", "to", "type") for node in walk(value)
    )


def _in_place(module: Module, model: ast.Name, before: ast.expr) -> Iterator[ast.expr]:
    """Casts of a model before it is copied."""
    for value in assigned(module, model):
        cast = cast_in(module, value)
        if cast is not None and cast.lineno < before.lineno:
            yield cast
    for node in walk(scope_of(module, model)):
        match node:
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name))) as call) if name == model.id:
                if half_cast(module, call) and call.lineno < before.lineno:
                    yield call
