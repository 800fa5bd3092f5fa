"""What comparisons say of one thing: `n == 1` answers `n > 1`, `n > 1` answers `n == 1`, and one member of an
enumeration is none of the others.

Facts keep, beside the answers, what a thing is known to be: ("is", k) a constant, ("same", k) one thing that is equal,
("bounds", k) the comparisons with constants that were answered.
"""

from __future__ import annotations

from typing import Any

from amplint.source.values import Const, Lib, Sym

Facts = dict[Any, Any]
Parts = tuple[Any, ...]  # of a question: an operator and what it compares; for "==" the two of them as a set

_MIRRORED = {"<": ">", ">": "<"}


def subjects(parts: Parts) -> list[Any]:
    """What a comparison is about, constants left out."""
    return [side for side in _sides(parts) if not isinstance(side, Const)]


def compared(parts: Parts, facts: Facts) -> bool | None:
    """What the facts say of a comparison that was not asked before."""
    operator, sides = parts[0], _sides(parts)
    if len(sides) != 2:
        return None
    left, right = (number_of(side, facts) or side for side in sides)
    if isinstance(left, Const) and isinstance(right, Const):
        return left == right if operator == "==" else of_constants(operator, left.value, right.value)
    if operator == "==":
        return False if any(_another(facts.get(("same", one)), two) for one, two in (sides, sides[::-1])) else None
    asked = _bound(operator, left, right)
    if asked is None:
        return None
    subject, operator, limit = asked
    return next(
        (known for one in facts.get(("bounds", subject), ()) if (known := _implied(one, operator, limit)) is not None),
        None,
    )


def number_of(value: Any, facts: Facts) -> Const | None:
    """The constant that a thing, or what is computed of things, is known to be: `i % n` is 0 where `n == 1`."""
    known = facts.get(("is", value))
    if known is not None or isinstance(value, Const):
        return known or value  # type: ignore[no-any-return]
    match value:
        case Sym(kind="op", parts=(("Mod" | "Sub" | "Add" | "Mult") as operator, left, right)):
            one, two = number_of(left, facts), number_of(right, facts)
            if operator == "Mod" and two is not None and type(two.value) is int and two.value == 1:
                return Const(0)
            if one is None or two is None or type(one.value) is not int or type(two.value) is not int:
                return None
            match operator:
                case "Sub":
                    return Const(one.value - two.value)
                case "Add":
                    return Const(one.value + two.value)
                case "Mult":
                    return Const(one.value * two.value)
            return Const(one.value % two.value) if two.value else None
    return None


def excluded(subject: Any, constant: Const, facts: Facts) -> bool:
    """Whether what a thing was compared with says that it is not this constant."""
    return any(
        of_constants(operator, constant.value, limit) is (not answer)
        for operator, limit, answer in facts.get(("bounds", subject), ())
    )


def note(parts: Parts, answer: bool, facts: Facts) -> None:
    """Keep what follows from the answer to a comparison."""
    operator, sides = parts[0], _sides(parts)
    if len(sides) != 2:
        return
    if operator == "==":
        if answer:
            facts.update({("same", sides[0]): sides[1], ("same", sides[1]): sides[0]})
        return
    asked = _bound(operator, *sides)
    if asked is not None:
        subject, operator, limit = asked
        facts["bounds", subject] = (*facts.get(("bounds", subject), ()), (operator, limit, answer))


def of_constants(operator: str, left: Any, right: Any) -> bool | None:
    try:
        match operator:
            case "<":
                return bool(left < right)
            case ">":
                return bool(left > right)
            case "in":
                return left in right
    except TypeError:
        pass
    return None


def _sides(parts: Parts) -> tuple[Any, ...]:
    return tuple(parts[1]) if parts[0] == "==" else parts[1:]


def _bound(operator: str, left: Any, right: Any) -> tuple[Any, str, Any] | None:
    """A comparison with a number: of what, how, and with which."""
    if operator not in _MIRRORED or isinstance(left, Const) is isinstance(right, Const):
        return None
    if isinstance(left, Const):
        left, operator, right = right, _MIRRORED[operator], left
    return (left, operator, right.value) if isinstance(right.value, int | float) else None


def _implied(known: tuple[str, Any, bool], operator: str, limit: Any) -> bool | None:
    """What one answered comparison with a number says of another with a number."""
    how, number, answer = known
    above = (how == ">") is answer  # x > number, x >= number; otherwise x < number, x <= number
    strict = answer
    if above and operator == ">":
        return True if number > limit or (number == limit and strict) else None
    if above:  # is x < limit?
        return False if number >= limit else None
    if operator == "<":
        return True if number < limit or (number == limit and strict) else None
    return False if number <= limit else None


def _another(known: Any, asked: Any) -> bool:
    """Whether two things are different members of one enumeration: `Kind.FAST` and `Kind.EXACT`."""
    one, two = _member(known), _member(asked)
    return one is not None and two is not None and one[0] == two[0] and one[1] != two[1]


def _member(value: Any) -> tuple[Any, str] | None:
    """A constant of a class, as its name says, and the class."""
    match value:
        case Sym(kind="attr", parts=(owner, str() as name)) if name.isupper():
            return owner, name
        case Lib(name=path) if path.count(".") > 1 and path.rpartition(".")[2].isupper():
            owner, _, name = path.rpartition(".")
            return owner, name
    return None
