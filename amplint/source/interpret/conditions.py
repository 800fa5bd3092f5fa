"""Conditions: what is asked of unknown values, and what follows from the answers of one world.

A formula is True, False, an atom, ("not", f), ("and", f, g) or ("or", f, g). An atom is a tuple whose first item says
what is asked: ("truth", k), ("none", k), ("eq", k, constant), ("cmp", op, k, k'). Equal questions are equal atoms, which
is what makes `if args.amp:` early and late agree. Facts map atoms (and undecided compounds) to their answers.
"""

from __future__ import annotations

from typing import Any

from amplint.source.values import (
    Choice,
    Const,
    Formula,
    Items,
    Lib,
    Many,
    Mapping,
    Sym,
    Tensor,
    Test,
    Value,
    fresh,
)

Facts = dict[Any, Any]
MOST_ATOMS = 16  # of a formula
MOST_BRANCHES = 8  # of a choice
_NEGATED = {"!=": "==", "not in": "in", "is not": "is", ">=": "<", "<=": ">"}


def key(value: Value) -> Any:
    """What identifies a value in an atom."""
    return ("tensor", value.identity) if isinstance(value, Tensor) else value


def negate(formula: Formula) -> Formula:
    if isinstance(formula, bool):
        return not formula
    return formula[1] if formula[0] == "not" else ("not", formula)


def both(left: Formula, right: Formula) -> Formula:
    if left is False or right is False:
        return False
    if left is True:
        return right
    return left if right is True or left == right else _compound("and", left, right)


def either(left: Formula, right: Formula) -> Formula:
    if left is True or right is True:
        return True
    if left is False:
        return right
    return left if right is False or left == right else _compound("or", left, right)


def choose(formula: Formula, yes: Formula, no: Formula) -> Formula:
    return yes if yes == no else either(both(formula, yes), both(negate(formula), no))


def _compound(operator: str, left: Formula, right: Formula) -> Formula:
    """A compound formula; one that grew too large to reason about becomes a question of its own."""
    if _weight(left) + _weight(right) > MOST_ATOMS:
        return ("truth", fresh("formula"))
    return (operator, left, right)


def _weight(formula: Formula) -> int:
    match formula:
        case ("and" | "or", left, right):
            return _weight(left) + _weight(right)
        case ("not", inner):
            return _weight(inner)
    return 1


def choice(formula: Formula, yes: Value, no: Value) -> Value:
    """`yes` where the formula holds, else `no`; one unknown thing where that would become too large to reason about."""
    if yes == no or formula is True:
        return yes
    if formula is False:
        return no
    if _branches(yes) + _branches(no) > MOST_BRANCHES:
        return fresh("choice")
    return Choice(formula, yes, no)


def _branches(value: Value) -> int:
    return 1 + _branches(value.yes) + _branches(value.no) if isinstance(value, Choice) else 0


def truth(value: Value) -> Formula:
    """When is `bool(value)` true?"""
    match value:
        case Const():
            return bool(value.value)
        case Test():
            return value.formula
        case Choice():
            return choose(value.formula, truth(value.yes), truth(value.no))
        case Items():
            return bool(value.items)
        case Mapping() if value.items or not value.open:
            return bool(value.items)
        case Sym() | Tensor() | Many() | Mapping() | Lib():
            return ("truth", key(value))
        case _:
            return True  # objects are true


def compare(operator: str, left: Value, right: Value) -> Formula:
    """The condition of one comparison."""
    if operator in _NEGATED:
        return negate(compare(_NEGATED[operator], left, right))
    if operator in ("is", "=="):
        return _equal(left, right)
    if operator == "in" and isinstance(right, Items):
        result: Formula = False
        for item in right.items:
            result = either(result, _equal(left, item))
        return result
    if isinstance(left, Const) and isinstance(right, Const):
        return _compare_constants(operator, left.value, right.value)
    return ("cmp", operator, key(left), key(right))


def _equal(left: Value, right: Value) -> Formula:
    if isinstance(left, Choice):
        return choose(left.formula, _equal(left.yes, right), _equal(left.no, right))
    if isinstance(right, Choice) or (isinstance(left, Const) and not isinstance(right, Const)):
        left, right = right, left
        if isinstance(left, Choice):
            return choose(left.formula, _equal(left.yes, right), _equal(left.no, right))
    if isinstance(right, Const):
        if isinstance(left, Const):
            return left == right or (left.value is not None and right.value is not None and left.value == right.value)
        if isinstance(left, Test) and isinstance(right.value, bool):
            return left.formula if right.value else negate(left.formula)
        if isinstance(left, Sym | Tensor | Many | Lib):
            return ("none", key(left)) if right.value is None else ("eq", key(left), right)
        return False  # an object is neither None nor a constant
    if left == right:
        return True
    return ("cmp", "==", *sorted((key(left), key(right)), key=repr))


def _compare_constants(operator: str, left: Any, right: Any) -> Formula:
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
    return ("cmp", operator, Const(left), Const(right))


def evaluate(formula: Formula, facts: Facts) -> bool | None:
    """What the facts say: true, false, or nothing."""
    if isinstance(formula, bool):
        return formula
    known = facts.get(formula)
    if known is not None:
        return bool(known)
    match formula:
        case ("not", inner):
            answer = evaluate(inner, facts)
            return None if answer is None else not answer
        case ("and", left, right):
            return _combine(evaluate(left, facts), evaluate(right, facts), False)
        case ("or", left, right):
            return _combine(evaluate(left, facts), evaluate(right, facts), True)
        case ("truth", subject):
            if ("is", subject) in facts:
                return bool(facts["is", subject].value)
            return False if facts.get(("none", subject)) else None
        case ("none", subject):
            if ("is", subject) in facts:
                return facts["is", subject].value is None
            return False if facts.get(("truth", subject)) else None
        case ("eq", subject, constant):
            if ("is", subject) in facts:
                return bool(facts["is", subject] == constant)
            if facts.get(("none", subject)) or (facts.get(("truth", subject)) is False and constant.value):
                return False
    return None


def _combine(left: bool | None, right: bool | None, absorbing: bool) -> bool | None:
    if left is absorbing or right is absorbing:
        return absorbing
    return None if left is None or right is None else not absorbing


def assume(formula: Formula, answer: bool, facts: Facts) -> Facts | None:
    """The facts with one more answer and what follows at once; None where that contradicts them."""
    known = evaluate(formula, facts)
    if known is not None:
        return facts if known is answer else None
    match formula:
        case ("not", inner):
            return assume(inner, not answer, facts)
        case ("and", left, right) if answer:
            half = assume(left, True, facts)
            return None if half is None else assume(right, True, half)
        case ("or", left, right) if not answer:
            half = assume(left, False, facts)
            return None if half is None else assume(right, False, half)
        case ("and" | "or", left, right):
            for side, other in ((left, right), (right, left)):
                if evaluate(side, facts) is not None:
                    return assume(other, answer, facts)
        case ("eq", subject, constant) if answer:
            return {**facts, formula: True, ("is", subject): constant}
    return {**facts, formula: answer}


def undecided(formula: Formula, facts: Facts) -> Formula | None:
    """The first atom of the formula that the facts do not answer, or None."""
    if evaluate(formula, facts) is not None:
        return None
    match formula:
        case ("not", inner):
            return undecided(inner, facts)
        case ("and" | "or", left, right):
            return undecided(left, facts) or undecided(right, facts)
    return formula
