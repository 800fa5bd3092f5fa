"""Conditions: what is asked of unknown values, and what follows from the answers of one world.

A formula is True, False or a Question. Atoms ask one thing: ("truth", k), ("none", k), ("eq", k, constant),
("cmp", op, k, k'); ("not", f), ("and", f, g) and ("or", f, g) combine them. Equal questions are one object, which is
what makes `if args.amp:` early and late agree. Facts map questions to their answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from amplint.source.interpret import bounds
from amplint.source.symbols import ask, fresh, options, sym
from amplint.source.values import Choice, Const, Formula, Items, Lib, Many, Mapping, Question, Sym, Tensor, Test, Value

Facts = dict[Any, Any]


class Settled(Facts):
    """Facts in which no answer to a compound question contradicts the answers to its parts, but for those that depend
    on what is `unchecked`. Looking for that is most of the work in a script of many conditions: one more answer can
    only contradict the questions that depend on it, and fewer answers contradict no more. `compound`: those questions;
    `answers`: what was found out about such questions, which are asked again and again."""

    __slots__ = ("answers", "compound", "unchecked")

    def __init__(self, facts: Facts, compound: tuple[Question, ...] = (), unchecked: frozenset[Any] = frozenset()):
        super().__init__(facts)
        self.compound = compound
        self.unchecked = unchecked
        self.answers: dict[Question, bool | None] = {}


MOST_ATOMS = 16  # of a formula
MOST_BRANCHES = 8  # of a choice
_FULL = {Lib("torch.float32"), Lib("torch.float"), Lib("torch.float64"), Lib("torch.double")}
_DTYPES = {
    **{f"torch.{name}": name for name in ("float16", "bfloat16", "float32", "float64")},
    "torch.half": "float16",
    "torch.float": "float32",
    "torch.double": "float64",
}
_ABOUT = ("truth", "none", "eq")  # questions about one thing: one answer may follow from another (_follows)
_NEGATED = {"!=": "==", "not in": "in", "is not": "is", ">=": "<", "<=": ">"}


def key(value: Value) -> Any:
    """What identifies a value in an atom."""
    return ("tensor", value.identity) if isinstance(value, Tensor) else value


def negate(formula: Formula) -> Formula:
    if isinstance(formula, bool):
        return not formula
    return formula.parts[0] if formula.kind == "not" else ask("not", formula)


def both(left: Formula, right: Formula) -> Formula:
    if left is False or right is False or left == negate(right):
        return False
    if left is True:
        return right
    return left if right is True or left == right else _compound("and", left, right)


def either(left: Formula, right: Formula) -> Formula:
    if left is True or right is True or left == negate(right):
        return True
    if left is False:
        return right
    return left if right is False or left == right else _compound("or", left, right)


def choose(formula: Formula, yes: Formula, no: Formula) -> Formula:
    return yes if yes == no else either(both(formula, yes), both(negate(formula), no))


def _compound(operator: str, left: Formula, right: Formula) -> Formula:
    """A compound formula; one that grew too large to reason about becomes a question of its own, the same one wherever
    it is asked."""
    if sum(side.weight for side in (left, right) if isinstance(side, Question)) > MOST_ATOMS:
        return ask("truth", sym("formula", operator, left, right))
    return ask(operator, left, right)


def choice(formula: Formula, yes: Value, no: Value) -> Value:
    """`yes` where the formula holds, else `no`; one unknown thing where that would become too large to reason about."""
    if yes == no or formula is True:
        return yes
    if formula is False:
        return no
    if _branches(yes) + _branches(no) > MOST_BRANCHES:
        return one_of(Choice(formula, yes, no))
    return Choice(formula, yes, no)


def one_of(value: Choice) -> Value:
    """A choice as one unknown thing, named by what it may be, whatever decides."""
    sides = options(value)
    if not all(isinstance(side, Sym) for side in sides):
        return fresh("choice")
    return sides[0] if len(sides) == 1 else sym("choice", *sides)


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
            return ask("truth", key(value))
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
    return ask("cmp", operator, key(left), key(right))


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
        if isinstance(left, Tensor) and left.made not in ("", "argument"):
            return False  # what an operation returned
        if isinstance(left, Sym) and left.kind == "made":
            return False  # what a constructor returned
        if isinstance(left, Lib) and left.name.startswith("torch.") and right.value is None:
            return False  # a name that torch has
        if right.value == "meta":
            return False  # nothing is computed on a meta device
        if isinstance(left, Sym | Tensor | Many | Lib):
            return ask("none", key(left)) if right.value is None else ask("eq", key(left), right)
        return False  # an object is neither None nor a constant
    if left == right:
        return True
    if isinstance(left, Lib) and isinstance(right, Lib) and left.name in _DTYPES and right.name in _DTYPES:
        return _DTYPES[left.name] == _DTYPES[right.name]
    if sym("dtype", "low") in (left, right) and {left, right} & _FULL:
        return False  # half precision, not known which
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Lib) and one.name in _DTYPES and isinstance(other, Sym):
            return ask("eq", key(other), Const(("dtype", _DTYPES[one.name])))  # what is one dtype is no other
    return ask("cmp", "==", frozenset((key(left), key(right))))


def _compare_constants(operator: str, left: Any, right: Any) -> Formula:
    known = bounds.of_constants(operator, left, right)
    return ask("cmp", operator, Const(left), Const(right)) if known is None else known


def evaluate(formula: Formula, facts: Facts) -> bool | None:
    """What the facts say: true, false, or nothing."""
    if isinstance(formula, bool):
        return formula
    known = facts.get(formula)
    if known is not None:
        return bool(known)
    kind, parts = formula.kind, formula.parts
    if kind in _ABOUT:
        return _follows(formula, facts)
    if kind == "cmp":
        return bounds.compared(parts, facts)
    if kind == "not":
        answer = evaluate(parts[0], facts)
        return None if answer is None else not answer
    if kind in ("and", "or"):
        if not isinstance(facts, Settled):
            return _combined(kind, parts, facts)
        if formula not in facts.answers:
            facts.answers[formula] = _combined(kind, parts, facts)
        return facts.answers[formula]
    return None


def _follows(question: Question, facts: Facts) -> bool | None:
    """What other answers about the same thing imply."""
    kind = question.kind
    if question.others is None:
        subject = question.parts[0]
        question.others = ("is", subject), ask("none", subject), ask("truth", subject)
    equal, none, truth = question.others
    value = facts.get(equal)
    if value is not None:
        if kind == "truth":
            return bool(value.value)
        return value.value is None if kind == "none" else bool(value == question.parts[1])
    if kind != "none" and facts.get(none):
        return False
    if kind == "eq":
        computed = bounds.number_of(question.parts[0], facts)
        if computed is not None or bounds.excluded(question.parts[0], question.parts[1], facts):
            return bool(computed == question.parts[1])
    if kind == "truth":
        return None
    true = facts.get(truth)
    if kind == "none":
        return False if true else None
    return False if true is False and question.parts[1].value else None


def _combined(kind: str, parts: tuple[Any, ...], facts: Facts) -> bool | None:
    absorbing = kind == "or"
    left = evaluate(parts[0], facts)
    if left is absorbing:
        return absorbing
    right = evaluate(parts[1], facts)
    if right is absorbing:
        return absorbing
    return None if left is None or right is None else not absorbing


def assume(formula: Formula, answer: bool, facts: Facts) -> Facts | None:
    """The facts with one more answer and what follows at once; None where that contradicts them."""
    known = evaluate(formula, facts)
    if known is not None:
        return facts if known is answer else None
    assert isinstance(formula, Question)
    kind, parts = formula.kind, formula.parts
    if kind == "not":
        return assume(parts[0], not answer, facts)
    if kind in ("and", "or"):
        if answer is (kind == "and"):
            half = assume(parts[0], answer, facts)
            return None if half is None else assume(parts[1], answer, half)
        for side, other in (parts, parts[::-1]):
            if evaluate(side, facts) is not None:
                return assume(other, answer, facts)
    if not isinstance(facts, Settled):
        facts = _unsettled(facts)
    changed = facts.unchecked | _depends(formula)
    if kind in ("and", "or"):
        return Settled({**facts, formula: answer}, (*facts.compound, formula), changed)
    after = Settled(facts, facts.compound)
    after[formula] = answer
    if kind == "eq" and answer:
        after["is", parts[0]] = parts[1]
    elif kind == "cmp":
        bounds.note(parts, answer, after)
    return None if _contradicts(after, changed) else after


def _unsettled(facts: Facts) -> Settled:
    """Facts of which nothing is known to be settled."""
    compound = tuple(one for one in facts if isinstance(one, Question) and one.kind in ("and", "or"))
    return Settled(facts, compound, frozenset().union(*map(_depends, compound)))


def shared(left: Facts, right: Facts) -> Facts:
    """The answers that two worlds agree on."""
    same = {question: answer for question, answer in left.items() if right.get(question) == answer}
    settled = left if isinstance(left, Settled) else right
    if not isinstance(settled, Settled):
        return same
    return Settled(same, tuple(one for one in settled.compound if one in same), settled.unchecked)


def possible(formula: Formula, facts: Facts, atoms: int = 6) -> bool:
    """Whether a formula can be true in this world: undecided atoms are tried both ways, up to a few."""
    known = evaluate(formula, facts)
    if known is not None or atoms == 0:
        return known is not False
    atom = _undecided(formula, facts)
    tried = (assume(atom, answer, facts) for answer in (True, False)) if atom is not None else ()
    return atom is None or any(after is not None and possible(formula, after, atoms - 1) for after in tried)


def atoms_of(formula: Formula) -> Iterator[Question]:
    """The questions that a formula is made of."""
    if isinstance(formula, bool):
        return
    if formula.kind in ("and", "or", "not"):
        for part in formula.parts:
            yield from atoms_of(part)
    else:
        yield formula


def _undecided(formula: Formula, facts: Facts) -> Question | None:
    """The first atom of a formula that the facts do not answer."""
    if isinstance(formula, bool) or evaluate(formula, facts) is not None:
        return None
    if formula.kind in ("and", "or", "not"):
        return next((atom for part in formula.parts if (atom := _undecided(part, facts)) is not None), None)
    return formula


def sides(value: Value, facts: Facts, given: Formula = True) -> list[Value]:
    """What a value can be in this world, where `given` holds."""
    if not isinstance(value, Choice):
        return [value]
    yes, no = both(given, value.formula), both(given, negate(value.formula))
    found = sides(value.yes, facts, yes) if possible(yes, facts) else []
    return found + (sides(value.no, facts, no) if possible(no, facts) else [])


def _contradicts(facts: Settled, changed: frozenset[Any]) -> bool:
    """Whether the answers to the parts of a compound question have settled it otherwise than it was answered.
    `changed`: all that is new is about these."""
    for formula in facts.compound:
        if not changed.isdisjoint(_depends(formula)):
            known = _combined(formula.kind, formula.parts, facts)
            if known is not None and known is not facts[formula]:
                return True
    return False


def _depends(formula: Question) -> frozenset[Any]:
    """What the answer to a question follows from: things that are asked about, and questions that stand for
    themselves."""
    if not formula.depends:
        if formula.kind in ("not", "and", "or"):
            formula.depends = frozenset().union(*map(_depends, formula.parts))
        else:
            formula.depends = frozenset((formula.parts[0] if formula.kind in _ABOUT else formula,))
            if formula.kind == "cmp":  # the answer follows from what is known of the two
                formula.depends |= frozenset(bounds.subjects(formula.parts))
    return formula.depends
