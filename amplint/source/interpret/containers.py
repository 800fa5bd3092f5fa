"""Containers: what is in them, and one value that stands for all of it."""

from __future__ import annotations

import ast

from amplint.source.interpret import conditions, operations, tensors
from amplint.source.interpret.promotion import promote
from amplint.source.symbols import fresh, held_in, sym
from amplint.source.values import (
    Choice,
    Const,
    Gradient,
    Instance,
    Items,
    Many,
    Mapping,
    Model,
    Optimizer,
    Owners,
    Parameter,
    Parameters,
    Scaler,
    StateDict,
    Sym,
    Tensor,
    Test,
    Value,
)


def elements(value: Value) -> list[Value] | None:
    """The elements of a short collection that is known element by element and worth running one by one."""
    match value:
        case Items(items=items) if len(items) <= 8:
            return list(items)
        case Mapping(items=items, open=False) if len(items) <= 8:
            return [key for key, _ in items]
    return None


def element(value: Value) -> Value:
    """What a loop variable holds in one round."""
    match value:
        case Many():
            return _renewed(value.item)
        case Items(items=items) if items:
            return merge_elements(list(items))
        case Parameters():
            return Parameter(value.of)
        case Tensor():
            return operations.view(value, deeper=True)
        case Model() | Instance():
            return sym("item", value, "*")
    return fresh("element")


def _renewed(value: Value) -> Value:
    """Unknown data is other data in each round; things such as models and optimizers stay what they are."""
    match value:
        case Sym(kind="element" | "yielded" | "call" | "unknown"):
            return fresh("element")
        case Items():
            return Items(tuple(_renewed(item) for item in value.items), value.kind)
        case Many():
            return Many(_renewed(value.item))
    return value


def merge_elements(values: list[Value]) -> Value:
    """One value that stands for all of them."""
    if not values:
        return fresh("element")
    first = values[0]
    if all(value == first for value in values[1:]):
        return first
    if all(isinstance(value, Tensor) for value in values):
        of, region, scaler = tensors.provenance(values)
        return Tensor(*promote(values), of=of, region=region, scaler=scaler)
    weights = [value for value in values if isinstance(value, Parameter | Parameters)]
    if len(weights) == len(values):  # those of several models
        dtypes = {value.dtype if isinstance(value, Parameter) else "" for value in weights}
        owners: Owners = frozenset().union(*(value.of for value in weights))
        return Parameter(owners, dtypes.pop() if len(dtypes) == 1 else "")
    kinds = [value for value in values if isinstance(value, Model | Instance | Optimizer | Scaler)]
    return kinds[0] if len(kinds) == len(values) else fresh("element")


CONTAINERS = (Items, Many, Mapping, Choice)


def contents(value: Value) -> list[Value]:
    """Everything inside nested containers."""
    found: list[Value] = []
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, Items | Many | Mapping):
            pending += reversed(held_in(one))
        elif isinstance(one, Choice):
            pending += (one.no, one.yes)
        else:
            found.append(one)
    return found


# -- models and their state --------------------------------------------------------------------------------------------


def owners_in(value: Value | None) -> Owners:
    """The models whose parameters a value holds: Parameters, parameter groups, lists of them; empty if not known."""
    match value:
        case Parameters() | Parameter() | Gradient():
            return value.of
        case Items():
            return _union([owners_in(item) for item in value.items])
        case Many():
            return owners_in(value.item)
        case Mapping():
            inner = value.get(Const("params"))
            return owners_in(inner) if inner is not None else _union([owners_in(item) for _, item in value.items])
        case Choice():
            return owners_in(value.yes) | owners_in(value.no)
        case Model() | Instance():
            return frozenset((value,))
        case Tensor():
            return value.of
        case Sym(kind="attr" | "item", parts=(Value() as owner, *_)):
            return owners_in(owner) if isinstance(owner, Parameters) else frozenset()
    return frozenset()


def _union(parts: list[Owners]) -> Owners:
    """Of a list of parameter groups; unknown (empty) if any is."""
    return frozenset().union(*parts) if parts and all(parts) else frozenset()


def holds_copies(value: Value) -> bool:
    """Whether these are float32 copies of parameters: master weights."""
    match value:
        case Parameter():
            return value.dtype == "float32"
        case Tensor(dtype="float32"):
            return any(holds_copies(part) for part in value.parents)
        case Many():
            return holds_copies(value.item)
        case Items():
            return any(map(holds_copies, value.items))
        case Mapping():
            inner = value.get(Const("params"))
            return inner is not None and holds_copies(inner)
    return False


def saved_parts(value: Value) -> tuple[tuple[Value, ...], bool, ast.AST | None]:
    """What a saved value holds the state of; whether that is all; and the dict that names it."""
    match value:
        case StateDict():
            return (value.of,), True, None
        case Optimizer() | Scaler():
            return (value,), True, None
        case Mapping():
            parts: list[Value] = []
            complete = not value.open
            for _, item in value.items:
                inner, known, _ = saved_parts(item)
                parts += inner
                complete &= known
            return tuple(parts), complete, value.node
        case Items():
            held = [saved_parts(item) for item in value.items]
            return tuple(part for parts, _, _ in held for part in parts), all(known for _, known, _ in held), None
        case Choice():
            yes, no = saved_parts(value.yes), saved_parts(value.no)
            return (*yes[0], *no[0]), yes[1] and no[1], yes[2] or no[2]
        case Const() | Test():
            return (), True, None
        case Tensor() | Parameter() | Sym(kind="argument" | "element" | "attr" | "op" | "constant"):
            return (), isinstance(value, Tensor | Parameter), None
    return (), False, None


def one_table(value: Value) -> Mapping | None:
    """A dict, or what the dicts of a choice have in common; None if it is not known to be one."""
    if not isinstance(value, Choice):
        return value if isinstance(value, Mapping) else None
    yes, no = one_table(value.yes), one_table(value.no)
    if yes is None or no is None:
        return None
    other = dict(no.items)
    shared = [(key, conditions.choice(value.formula, item, other[key])) for key, item in yes.items if key in other]
    return Mapping(tuple(shared), yes.open or no.open or not len(shared) == len(yes.items) == len(no.items), yes.node)
