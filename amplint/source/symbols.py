"""Symbols and questions: what is not known, named by how it came to be, and one object for one origin."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

from amplint.source.values import Choice, Class, Const, Instance, Items, Many, Mapping, Optimizer, Question, Sym, Value


def ask(kind: str, *parts: Any) -> Question:
    """The question of this kind about these things."""
    key = (kind, *parts)
    found = _questions.get(key)
    if found is None:
        found = _questions[key] = Question(kind, parts)
    return found


MOST_PARTS = 16  # of a container that a symbol is named by
_HEAVY = frozenset((Items, Mapping, Many, Choice))
_interned: dict[tuple[Hashable, ...], Sym] = {}
_questions: dict[tuple[Hashable, ...], Question] = {}
_instances: dict[tuple[Class, Hashable], Instance] = {}
_numbers: dict[Hashable, int] = {}
_objects: dict[int, tuple[Hashable, int]] = {}
_fresh: Iterator[int] = iter(())


def reset() -> None:
    """Forget all interned symbols; called once per reading, so that two readings in one process are alike."""
    global _fresh
    _interned.clear()
    _questions.clear()
    _instances.clear()
    _numbers.clear()
    _objects.clear()
    _fresh = iter(range(1, 1 << 62))


def sym(kind: str, *parts: Hashable) -> Sym:
    """The symbol of this origin. What is too large to be compared goes by the one object that it is: `(step + 1) % n`
    is one thing however often it is asked, and nothing more is known of it."""
    heavy = False
    for part in parts:
        if type(part) in _HEAVY and weight(part) > MOST_PARTS:  # type: ignore[arg-type]
            heavy = True
            break
    key = (kind, *map(_identity, parts)) if heavy else (kind, *parts)
    found = _interned.get(key)
    if found is None:
        found = _interned[key] = fresh(kind) if heavy else Sym(kind, parts)
    return found


def _identity(part: Hashable) -> Hashable:
    if type(part) not in _HEAVY or weight(part) <= MOST_PARTS:  # type: ignore[arg-type]
        return part
    return (
        "object",
        _objects.setdefault(id(part), (part, next(_fresh)))[1],
    )  # which it keeps, so that its id stays its


def instance(cls: Class, site: Hashable) -> Instance:
    """The object of a class that is made at a site."""
    key = (cls, site)
    found = _instances.get(key)
    if found is None:
        found = _instances[key] = Instance(cls, site)
    return found


def held_in(value: object) -> tuple[Value, ...]:
    """What a container holds, as far as that is known; of anything else nothing."""
    match value:
        case Items():
            return value.items
        case Mapping():
            return tuple(item for _, item in value.items)
        case Many():
            return (value.item,)
    return ()


def weight(value: Value, most: int = MOST_PARTS) -> int:
    """How many values a container holds, counted up to a little more than `most`."""
    total = 1
    for item in (value.yes, value.no) if isinstance(value, Choice) else held_in(value):
        total += weight(item, most - total)
        if total > most:
            break
    return total


def fresh(kind: str = "unknown") -> Sym:
    """A symbol that equals no other."""
    return Sym(kind, (next(_fresh),))


def made_by_another(value: Value) -> bool:
    """Whether an object is of an unread class that is no GradScaler by its name: what scales there may do more."""
    match value:
        case Sym(kind="made", parts=(str() as name, *_)):
            return "GradScaler" not in name.rpartition(".")[2]
    return False


def is_any_of_several(value: Value) -> bool:
    """Whether a loop takes this optimizer, or what has it, out of something unknown."""
    origin = value.site if isinstance(value, Optimizer) else None
    while isinstance(origin, Sym) and origin.kind != "element":
        origin = origin.parts[0] if origin.parts else None
    return isinstance(origin, Sym)


def serial() -> int:
    """A number that no other call returned in this reading."""
    return next(_fresh)


def options(value: Value) -> list[Value]:
    """What a value may be: the sides of its choices, each once."""
    match value:
        case Choice():
            sides = [*options(value.yes), *options(value.no)]
        case Sym(kind="choice", parts=parts):
            sides = [side for part in parts if isinstance(part, Value) for side in options(part)]
        case _:
            return [value]
    return list(dict.fromkeys(sides))


def is_number(value: Value) -> bool:
    """Whether something unknown is surely a Python number: arithmetic on numbers, a size, a length."""
    match value:
        case Const(value=int() | float()):
            return True
        case Sym(kind="number" | "scale of"):
            return True
        case Sym(kind="call", parts=(str() as name, *_)):
            return name in ("len", "round", "int", "float", "abs")
        case Sym(kind="op" | "unary", parts=(_, *operands)):
            return all(isinstance(operand, Value) and is_number(operand) for operand in operands)
        case Sym(kind="item", parts=(Sym(kind="attr", parts=(_, "shape")), *_)):
            return True
        case Sym(kind="attr", parts=(Sym(kind="finfo"), _)):
            return True
        case Choice():
            return is_number(value.yes) and is_number(value.no)
    return False


def number(key: Hashable) -> int:
    """The same small number for the same key: a name that is cheap to compare."""
    return _numbers.setdefault(key, len(_numbers))
