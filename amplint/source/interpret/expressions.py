"""Expressions: what they stand for. Evaluation yields a value for each world, because calls inside may fork it."""

from __future__ import annotations

import ast
import builtins
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

from amplint.source.interpret import calls, conditions, library_calls, objects, protocol, tensors
from amplint.source.interpret.frames import Frame, Results, scopes
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.roles import path_of
from amplint.source.interpret.world import World, join
from amplint.source.symbols import ask, fresh, options, sym
from amplint.source.values import (
    NONE,
    Autocast,
    Checkpoint,
    Choice,
    Class,
    Const,
    Formula,
    Function,
    Gradient,
    Instance,
    Items,
    Lib,
    Many,
    Mapping,
    NullContext,
    Optimizer,
    Parameter,
    Parameters,
    Partial,
    Scaler,
    Sym,
    Tensor,
    Test,
    Value,
)

_DISPATCHED = (Const, Lib, Function, Class, Partial, Autocast, NullContext)  # what a table is there to choose from
_BUILTINS = frozenset(dir(builtins))
_CONSTANTS = {
    **dict.fromkeys(("math.inf", "numpy.inf", "torch.inf"), Const(math.inf)),
    **dict.fromkeys(("math.pi", "numpy.pi", "torch.pi"), Const(math.pi)),
    **dict.fromkeys(("math.nan", "numpy.nan", "torch.nan"), Const(math.nan)),
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}
_TENSOR_OPS: dict[type, str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.Div: "div",
    ast.Pow: "pow",
    ast.MatMult: "matmul",
    ast.FloorDiv: "floor_divide",
    ast.Mod: "remainder",
}
_COMPARISONS: dict[type, str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Is: "is",
    ast.IsNot: "is not",
    ast.In: "in",
    ast.NotIn: "not in",
}


LONGEST = 4096  # items, characters or bits of what an operation gives: sizes may double with every line


def evaluate(m: Machine, node: ast.expr, world: World, frame: Frame) -> Results:
    """The value of an expression, once per world that evaluating it leads to."""
    m.tick()
    match node:
        case ast.Constant():
            return [(Const(node.value, node), world)]
        case ast.Name():
            results = lookup(m, node, world, frame)
            return [(objects.resolve(m, value, after, frame), after) for value, after in results]
        case ast.Attribute():
            return _attribute(m, node, world, frame)
        case ast.Call():
            return calls.evaluate_call(m, node, world, frame)
        case ast.BinOp():
            return [
                (binary(m, node.op, left, right, node, w2, frame), w2)
                for left, w1 in evaluate(m, node.left, world, frame)
                for right, w2 in evaluate(m, node.right, w1, frame)
            ]
        case ast.UnaryOp():
            return [(_unary(node.op, value), after) for value, after in evaluate(m, node.operand, world, frame)]
        case ast.BoolOp():
            return _bool_op(m, node, world, frame)
        case ast.Compare():
            return _compare(m, node, world, frame)
        case ast.IfExp():
            return _if_expression(m, node, world, frame)
        case ast.Tuple() | ast.List() | ast.Set():
            return _sequence(m, node, world, frame)
        case ast.Dict():
            return _dict(m, node, world, frame)
        case ast.Subscript():
            return [
                (_typed_item(m, item(m, owner, index, node, w2, frame), node, w2, frame), w2)
                for owner, w1 in evaluate(m, node.value, world, frame)
                for index, w2 in evaluate(m, node.slice, w1, frame)
            ]
        case ast.Lambda():
            return [
                (Function(node, frame, given, ()), after) for given, after in calls.defaults(m, node.args, world, frame)
            ]
        case ast.NamedExpr():
            results = []
            for value, after in evaluate(m, node.value, world, frame):
                after.set(scope_to_bind(node.target.id, frame), node.target.id, value)
                results.append((value, after))
            return results
        case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
            return _comprehension(m, node, world, frame)
        case ast.Starred() | ast.Await() | ast.FormattedValue():
            return evaluate(m, node.value, world, frame)
        case ast.JoinedStr():
            return _f_string(m, node, world, frame)
        case ast.Slice():
            return [(sym("slice", id(node)), world)]
        case ast.Yield() | ast.YieldFrom():
            return [(fresh("sent"), world)]
    return [(fresh(), world)]


def each(
    m: Machine, nodes: Sequence[ast.expr], world: World, frame: Frame, lazily: bool = False
) -> list[tuple[tuple[Value, ...], World]]:
    """Evaluate expressions one after the other; `lazily`: files that only a bare name comes from are not read yet."""
    results: list[tuple[list[Value], World]] = [([], world)]
    for node in nodes:
        grown: list[tuple[list[Value], World]] = []
        for values, before in results:
            bare = lazily and isinstance(node, ast.Name)
            found = lookup(m, node, before, frame) if bare else evaluate(m, node, before, frame)  # type: ignore[arg-type]
            if len(found) == 1:  # nearly always: a table of 100 000 numbers is not copied 100 000 times
                values.append(found[0][0])
                grown.append((values, found[0][1]))
            else:
                grown += [([*values, value], after) for value, after in found]
        results = grown
    return [(tuple(values), after) for values, after in results]


# -- names -------------------------------------------------------------------------------------------------------------


def path_text(node: ast.AST) -> str:
    return path_of(node) or ""


def scope_to_bind(name: str, frame: Frame) -> object:
    """The scope that an assignment to `name` writes to."""
    if name in frame.outer:
        for above in list(scopes(frame))[1:]:
            if isinstance(above.code, ast.Module) or name in above.roles:
                return above.scope
    return frame.scope


def lookup(m: Machine, node: ast.Name, world: World, frame: Frame) -> Results:
    """What a name stands for; an imported one is not resolved."""
    name = node.id
    for where in scopes(frame):
        value = world.get(where.scope, name)
        if value is not None:
            return [(typed(m, value, node, world, where if where is not frame else frame), world)]
    module_scope = next(where for where in scopes(frame) if isinstance(where.code, ast.Module))
    stars = world.get(module_scope.scope, "*")
    if isinstance(stars, Items) and name not in _BUILTINS:
        for star in stars.items:
            assert isinstance(star, Const)
            if m.library.find(f"{star.value}.{name}") or tensors.op_of(f"{star.value}.{name}"):
                return [(Lib(f"{star.value}.{name}"), world)]
    if name in _BUILTINS:
        return [(Lib(f"builtins.{name}"), world)]
    unknown = sym("name", frame.module.path, name)
    return [(typed(m, unknown, node, world, module_scope), world)]


def typed(m: Machine, value: Value, node: ast.AST, world: World, frame: Frame) -> Value:
    """An unknown value as what the code uses it as."""
    if isinstance(value, Sym) and frame.roles:
        role = frame.roles.get(path_text(node))
        if role is not None:
            return typed_as(m, value, role, world)
    elif isinstance(value, Choice) and frame.roles.get(path_text(node)):
        yes, no = (typed(m, side, node, world, frame) for side in (value.yes, value.no))
        return conditions.choice(value.formula, yes, no)
    elif isinstance(value, Optimizer):
        protocol.register(world, value, entry=m.in_entry)
    return value


def typed_as(m: Machine, value: Sym, role: str, world: World) -> Value:
    kind = role.rstrip("?")
    if kind == "model":
        m.models.update(options(value))
        return value
    known: Value
    if kind == "scaler":
        known = Scaler(value, sym("attr", value, "is_enabled"))
    elif isinstance(value.parts[0], Optimizer):
        return value.parts[0]  # what a wrapper holds
    else:
        optimizer = Optimizer(value)
        protocol.register(world, optimizer, entry=m.in_entry or _given(value))
        known = optimizer
    return conditions.choice(ask("truth", value), known, NONE) if role.endswith("?") else known


def _given(value: Sym) -> bool:
    """Whether a thing was there before what amplint runs began: its gradients may hold anything."""
    if value.kind == "attr":
        inner = value.parts[0]
        return isinstance(inner, Instance) or (isinstance(inner, Sym) and _given(inner))
    return value.kind in ("argument", "name")


# -- attributes and items ----------------------------------------------------------------------------------------------


def _attribute(m: Machine, node: ast.Attribute, world: World, frame: Frame) -> Results:
    results = []
    for owner, before in evaluate(m, node.value, world, frame):
        for value, after in attribute(m, owner, node.attr, node, before, frame):
            results.append((typed(m, value, node, after, frame), after))
    return results


def attribute(m: Machine, owner: Value, name: str, node: ast.AST, world: World, frame: Frame) -> Results:
    """The value of `owner.name`."""
    match owner:
        case Lib():
            dotted = f"{owner.name}.{name}"
            return [(_CONSTANTS.get(dotted) or Lib(dotted), world)]
        case Choice():
            return _attribute_of_choice(m, owner, name, node, world, frame)
        case Tensor():
            return [(library_calls.tensor_attribute(owner, name, node, world), world)]
    return objects.attribute(m, owner, name, node, world, frame)


def _attribute_of_choice(m: Machine, owner: Choice, name: str, node: ast.AST, world: World, frame: Frame) -> Results:
    known = world.known(owner.formula)
    if known is not None:
        return attribute(m, owner.yes if known else owner.no, name, node, world, frame)
    if owner.no == NONE or owner.yes == NONE:  # None has no such attribute: the script would have crashed
        world.suppose(owner.formula if owner.no == NONE else conditions.negate(owner.formula))
        return attribute(m, owner.yes if owner.no == NONE else owner.no, name, node, world, frame)
    results = []
    for yes, w1 in attribute(m, owner.yes, name, node, world, frame):
        for no, w2 in attribute(m, owner.no, name, node, w1, frame):
            results.append((conditions.choice(owner.formula, yes, no), w2))
    return results


def item(m: Machine, owner: Value, index: Value, node: ast.AST, world: World, frame: Frame) -> Value:
    """The value of `owner[index]`."""
    if isinstance(index, Choice) and isinstance(owner, Items | Mapping):
        yes = item(m, owner, index.yes, node, world, frame)
        no = item(m, owner, index.no, node, world, frame)
        return conditions.choice(index.formula, yes, no)
    if isinstance(index, Test) and isinstance(owner, Items) and len(owner.items) == 2:
        return conditions.choice(index.formula, owner.items[1], owner.items[0])
    match owner:
        case Items(items=items) if isinstance(index, Const) and type(index.value) is int:
            if -len(items) <= index.value < len(items):
                return items[index.value]
            return fresh("item")
        case Items(items=items) if items:
            same = all(type(one) is type(items[0]) for one in items)
            return items[0] if same and len(items) == 1 else sym("item", owner, index)
        case Many():
            return owner.item
        case Mapping():
            found = owner.get(index)
            if found is not None:
                return found
            stored = world.get(owner, index)
            if stored is not None:
                return stored  # type: ignore[no-any-return]
            dispatched = _dispatch(owner, index)
            return sym("item", owner, index) if dispatched is None else dispatched
        case Tensor():
            return library_calls.view(owner, node)
        case Choice():
            yes = item(m, owner.yes, index, node, world, frame)
            no = item(m, owner.no, index, node, world, frame)
            return conditions.choice(owner.formula, yes, no)
        case Checkpoint():
            return Checkpoint(owner.site, (*owner.path, index))
        case Parameters():
            return Parameter(owner.of)
        case Gradient():
            return owner
    stored = world.get(("items", owner), index)
    if stored is not None:
        return stored  # type: ignore[no-any-return]
    family = world.get(("items", owner), "*")
    if family is not None:
        return family  # type: ignore[no-any-return]
    return part(owner, index)


def _dispatch(table: Mapping, index: Value) -> Value | None:
    """`{"fp16": torch.float16, "bf16": torch.bfloat16}[args.dtype]`: one of few, by the key that it equals."""
    keys = [key for key, _ in table.items]
    values = [value for _, value in table.items]
    plain = isinstance(index, Sym) and all(isinstance(key, Const) for key in keys)
    if table.open or not plain or not 0 < len(keys) <= 4 or not all(isinstance(value, _DISPATCHED) for value in values):
        return None
    chosen = values[-1]  # a key that is not there is an error
    for key, value in reversed(list(zip(keys[:-1], values[:-1], strict=True))):
        chosen = conditions.choice(conditions.compare("==", index, key), value, chosen)
    return chosen


def _typed_item(m: Machine, value: Value, node: ast.AST, world: World, frame: Frame) -> Value:
    return typed(m, value, node, world, frame)


def part(owner: Value, index: object) -> Value:
    """An element of something unknown; of a tensor, a tensor of the same origin."""
    if isinstance(owner, Tensor):
        return library_calls.view(owner, owner.node, deeper=True)
    if isinstance(owner, Many):
        return owner.item
    return sym("item", owner, index if isinstance(index, Value) else Const(index))


# -- operators ---------------------------------------------------------------------------------------------------------


def binary(m: Machine, op: ast.operator, left: Value, right: Value, node: ast.AST, world: World, frame: Frame) -> Value:
    """`left op right`."""
    if isinstance(left, Const) and isinstance(right, Const):
        return fold(op, left.value, right.value)
    if isinstance(left, Items) and isinstance(right, Items) and isinstance(op, ast.Add):
        items = (*left.items, *right.items)
        return Items(items, left.kind) if len(items) <= LONGEST else Many(objects.merge_elements(list(items)))
    if isinstance(op, ast.Mult) and isinstance(left, Items) and len(left.items) == 1:
        return Many(left.items[0])
    if isinstance(op, ast.Add) and isinstance(left, Parameters) and isinstance(right, Parameters):
        return Parameters(left.of | right.of)
    if isinstance(left, Tensor | Parameter) or isinstance(right, Tensor | Parameter) or _holds_tensor(left, right):
        name = _TENSOR_OPS.get(type(op), "")
        return library_calls.operation(m, name, (left, right), {}, node, world, frame)
    if isinstance(op, ast.MatMult):
        return library_calls.operation(m, "matmul", (left, right), {}, node, world, frame)
    if isinstance(left, Choice) and isinstance(right, Const) and not isinstance(left.yes, Choice):
        yes = binary(m, op, left.yes, right, node, world, frame)
        no = binary(m, op, left.no, right, node, world, frame)
        return conditions.choice(left.formula, yes, no)
    if isinstance(left, Gradient) or isinstance(right, Gradient):
        return left if isinstance(left, Gradient) else right
    if isinstance(op, ast.BitAnd | ast.BitOr) and isinstance(left, Test) and isinstance(right, Test):
        join = conditions.both if isinstance(op, ast.BitAnd) else conditions.either
        return Test(join(left.formula, right.formula))
    return sym("op", type(op).__name__, left, right)


def _holds_tensor(left: Value, right: Value) -> bool:
    return any(isinstance(side, Choice) and any(True for _ in tensors.tensors_in((side,))) for side in (left, right))


def fold(op: ast.operator, left: Any, right: Any) -> Value:
    """Arithmetic on constants, where it is cheap and defined."""
    if isinstance(op, ast.Pow):
        if isinstance(left, int | float) and isinstance(right, int | float) and abs(right) <= 1024 and abs(left) <= 1e6:
            try:
                value = left**right
            except (ArithmeticError, ValueError):
                return fresh()
            return Const(value) if isinstance(value, int | float) else fresh()
        return fresh()
    function = _ARITHMETIC.get(type(op))
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    texts = isinstance(left, str) and isinstance(right, str) and isinstance(op, ast.Add)
    if function is None or not (numbers or texts) or (isinstance(op, ast.LShift) and not 0 <= right <= 1024):
        return fresh()
    try:
        value = function(left, right)
    except (ArithmeticError, TypeError, ValueError):
        return fresh()
    size = len(value) if isinstance(value, str) else value.bit_length() if isinstance(value, int) else 0
    return Const(value) if size <= LONGEST else fresh()


def _unary(op: ast.unaryop, value: Value) -> Value:
    if isinstance(op, ast.Not):
        formula = conditions.negate(conditions.truth(value))
        return Const(formula) if isinstance(formula, bool) else Test(formula)
    match value:
        case Const(value=int() | float() as number) if not isinstance(op, ast.Invert) or isinstance(number, int):
            if isinstance(op, ast.USub):
                return Const(-number, value.node)
            return Const(+number) if isinstance(op, ast.UAdd) else Const(~int(number))
        case Choice():
            return conditions.choice(value.formula, _unary(op, value.yes), _unary(op, value.no))
        case Tensor() | Parameter() | Gradient() | Parameters():
            return value
        case Test() if isinstance(op, ast.Invert):
            return Test(conditions.negate(value.formula))
    return sym("unary", type(op).__name__, value)


def _bool_op(m: Machine, node: ast.BoolOp, world: World, frame: Frame) -> Results:
    """`a and b`: b is evaluated only where a does not decide."""
    return _chain(m, node.values, isinstance(node.op, ast.Or), world, frame)


def _chain(m: Machine, operands: list[ast.expr], stops: bool, world: World, frame: Frame) -> Results:
    results: Results = []
    for left, after in evaluate(m, operands[0], world, frame):
        formula = conditions.truth(left)
        m.describe(formula, operands[0], frame)
        known = after.known(formula)
        if len(operands) == 1 or known is stops:
            results.append((left, after))
        elif known is not None:
            results += _chain(m, operands[1:], stops, after, frame)
        else:
            logged = len(m.log)
            inside, stopped = after.copy(), conditions.assume(formula, stops, after.facts)
            going = conditions.assume(formula, not stops, after.facts)
            if going is None or stopped is None:  # what follows from the facts was not seen above
                results += _chain(m, operands[1:], stops, after, frame) if going is not None else [(left, after)]
                continue
            inside.facts = going
            rest = _chain(m, operands[1:], stops, inside, frame)
            if len(rest) == 1 and len(m.log) == logged:
                results.append((_both(left, rest[0][0], stops), after))
            else:
                after.facts = stopped
                results += [(left, after), *rest]
    return results


def _both(left: Value, right: Value, is_or: bool) -> Value:
    """The value of `left or right` (or `and`) where left does not decide by itself."""
    formula = conditions.truth(left)
    if isinstance(formula, bool):
        return (left if formula else right) if is_or else (right if formula else left)
    if isinstance(left, Test) and isinstance(right, Test | Const | Sym):
        join = conditions.either if is_or else conditions.both
        joined = join(formula, conditions.truth(right))
        return Const(joined) if isinstance(joined, bool) else Test(joined)
    return conditions.choice(formula, left, right) if is_or else conditions.choice(formula, right, left)


def _compare(m: Machine, node: ast.Compare, world: World, frame: Frame) -> Results:
    results: Results = []
    for values, after in each(m, [node.left, *node.comparators], world, frame):
        formula: Formula = True
        for number, op in enumerate(node.ops):
            left, right = values[number], values[number + 1]
            on_tensor = isinstance(left, Tensor) or isinstance(right, Tensor)
            if on_tensor and not isinstance(op, ast.Is | ast.IsNot | ast.In | ast.NotIn):
                result = library_calls.operation(m, "eq", (left, right), {}, node, after, frame)
                formula = conditions.both(formula, ask("truth", ("tensor", result.identity)))
                if len(node.ops) == 1:
                    results.append((result, after))
                    break
                continue
            formula = conditions.both(formula, conditions.compare(_COMPARISONS[type(op)], left, right))
        else:
            m.describe(formula, node, frame)
            results.append((Const(formula) if isinstance(formula, bool) else Test(formula), after))
    return results


def _if_expression(m: Machine, node: ast.IfExp, world: World, frame: Frame) -> Results:
    """Both values, as a Choice where evaluating them has no effect; else the worlds fork."""
    results: Results = []
    for test, after in evaluate(m, node.test, world, frame):
        formula = conditions.truth(test)
        m.describe(formula, node.test, frame)
        known = after.known(formula)
        if known is not None:
            results += evaluate(m, node.body if known else node.orelse, after, frame)
            continue
        yes_world, no_world = after.copy(), after.copy()
        yes_facts = conditions.assume(formula, True, after.facts)
        no_facts = conditions.assume(formula, False, after.facts)
        if yes_facts is None or no_facts is None:  # what follows from the facts was not seen above
            results += evaluate(m, node.orelse if yes_facts is None else node.body, after, frame)
            continue
        yes_world.facts, no_world.facts = yes_facts, no_facts
        yes = evaluate(m, node.body, yes_world, frame)
        no = evaluate(m, node.orelse, no_world, frame)
        if len(yes) == len(no) == 1:
            met = join(yes[0][1], no[0][1])
            if met is not None:
                results.append((conditions.choice(formula, yes[0][0], no[0][0]), met))
                continue
        results += yes + no
    return results


# -- containers --------------------------------------------------------------------------------------------------------


def _sequence(m: Machine, node: ast.Tuple | ast.List | ast.Set, world: World, frame: Frame) -> Results:
    kind = {ast.Tuple: "tuple", ast.List: "list", ast.Set: "set"}[type(node)]
    results: Results = []
    for values, after in each(m, node.elts, world, frame):
        items: list[Value] = []
        open_ended = None
        for element, value in zip(node.elts, values, strict=True):
            if isinstance(element, ast.Starred):
                known = objects.elements(value)
                if known is None:
                    open_ended = value
                else:
                    items += known
            else:
                items.append(value)
        if open_ended is not None:
            many = objects.merge_elements([*items, objects.element(m, open_ended, node)])
            results.append((Many(many), after))
        else:
            results.append((Items(tuple(items), kind), after))
    return results


def _dict(m: Machine, node: ast.Dict, world: World, frame: Frame) -> Results:
    results: Results = []
    keys = [key for key in node.keys if key is not None]
    for key_values, w1 in each(m, keys, world, frame):
        for values, w2 in each(m, node.values, w1, frame):
            items: list[tuple[Value, Value]] = []
            open_ended = False
            names = iter(key_values)
            for key, value in zip(node.keys, values, strict=True):
                if key is None:
                    if isinstance(value, Mapping):
                        items += value.items
                        open_ended |= value.open
                    else:
                        open_ended = True
                else:
                    items.append((next(names), value))
            results.append((Mapping(tuple(items), open_ended, node), w2))
    return results


def _comprehension(
    m: Machine,
    node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp,
    world: World,
    frame: Frame,
) -> Results:
    """One representative element; where the elements are known and few, all of them."""
    inner = Frame(
        m.scope(), frame.code, frame.module, frame, frame.caller, frame.call, frame.owner, frame.cls, frame.roles
    )
    results: Results = []
    element = node.value if isinstance(node, ast.DictComp) else node.elt
    first = node.generators[0]
    for iterable, before in evaluate(m, first.iter, world, frame):
        known = objects.elements(iterable)
        if known is not None and len(node.generators) == 1 and not first.ifs and not isinstance(node, ast.DictComp):
            runs: list[tuple[tuple[Value, ...], World]] = [((), before)]
            for one in known:
                runs = [
                    ((*values, value), after)
                    for values, start in runs
                    for bound in _bind(m, first.target, one, start, inner)
                    for value, after in evaluate(m, element, bound, inner)
                ]
            results += [(Items(values, "list"), after) for values, after in runs]
            continue
        bound = _bind(m, first.target, objects.element(m, iterable, first.iter), before, inner)
        for generator in node.generators[1:]:
            bound = [
                inside
                for start in bound
                for value, after in evaluate(m, generator.iter, start, inner)
                for inside in _bind(m, generator.target, objects.element(m, value, generator.iter), after, inner)
            ]
        for start in bound:
            results += [(_many(value, iterable, node), after) for value, after in evaluate(m, element, start, inner)]
    for _, after in results:
        after.forget(inner.scope)
    return results


def _many(value: Value, iterable: Value, node: ast.AST) -> Value:
    if isinstance(value, Parameter) and value.dtype != "float32" and not isinstance(node, ast.DictComp):
        return Parameters(value.of)
    if isinstance(iterable, Parameters) and isinstance(value, Const | Sym):
        return Many(value)
    return Many(value)


def _bind(m: Machine, target: ast.expr, value: Value, world: World, frame: Frame) -> list[World]:
    from amplint.source.interpret import flow

    return flow.assign(m, target, value, world, frame)


def _f_string(m: Machine, node: ast.JoinedStr, world: World, frame: Frame) -> Results:
    """The text, with `*` for what is not known: names that code builds, as in getattr(self, f"scaler{i}")."""
    text = ""
    for piece in node.values:
        if isinstance(piece, ast.Constant):
            text += str(piece.value)
        elif isinstance(piece, ast.FormattedValue):
            results = evaluate(m, piece.value, world, frame)
            value = results[0][0]
            text += str(value.value) if isinstance(value, Const) else "*"
    return [(Const(text), world)]
