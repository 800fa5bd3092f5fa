"""Worlds: what is asked, what follows, and what cannot be."""

from __future__ import annotations

import random

from amplint.source.events import Gradients
from amplint.source.interpret import conditions, protocol
from amplint.source.interpret.world import World
from amplint.source.symbols import ask, sym
from amplint.source.values import Const, Formula, Lib, Optimizer, Scaler

X, Y = sym("name", "m", "x"), sym("name", "m", "y")


def test_an_answer_is_remembered_with_what_follows() -> None:
    world = World()
    (answer, yes), (_, no) = world.decide(ask("none", X))
    assert answer
    assert yes.decide(ask("truth", X)) == [(False, yes)]
    assert len(no.decide(ask("truth", X))) == 2


def test_facts_that_turn_out_to_contradict_each_other_end_the_world() -> None:
    world = World()
    world.facts = {
        ask("or", ask("truth", Y), ask("none", X)): True,
        ask("or", ask("and", ask("none", X), ask("eq", X, Const(1))), ask("none", Y)): True,
        ask("truth", X): True,
    }
    assert world.decide(ask("truth", Y)) == []


def test_no_question_can_break_a_world() -> None:
    """Random questions, asked one after the other: each world that is left agrees with the answer it was given."""
    for seed in range(2000):
        chance = random.Random(seed)
        world = World()
        for _ in range(5):
            formula = _formula(chance, 2)
            outcomes = world.decide(formula)
            assert all(after.known(formula) is answer for answer, after in outcomes)
            if not outcomes:
                break
            world = chance.choice(outcomes)[1]


def _formula(chance: random.Random, depth: int) -> Formula:
    if depth == 0 or chance.random() < 0.3:
        subject = chance.choice((X, Y))
        kind = chance.choice(("truth", "none", "eq"))
        return ask(kind, subject) if kind != "eq" else ask(kind, subject, Const(chance.choice((0, 1, 2))))
    kind = chance.choice(("not", "and", "or"))
    if kind == "not":
        return conditions.negate(_formula(chance, depth - 1))
    join = conditions.both if kind == "and" else conditions.either
    return join(_formula(chance, depth - 1), _formula(chance, depth - 1))


def test_an_element_of_an_unknown_collection_may_be_any_optimizer() -> None:
    world, scaler = World(), Scaler(sym("site", "scaler"))
    known, one = Optimizer(sym("site", "known")), Optimizer(sym("element", 1))
    for optimizer in (known, one):
        protocol.register(world, optimizer)
        world.set("gradients", optimizer, Gradients("scaled", scaler))
    protocol.unscale(world, None, scaler, one)  # type: ignore[arg-type]
    assert [protocol.gradients(world, optimizer).kind for optimizer in (known, one)] == ["unknown", "unscaled"]


def test_what_follows_from_comparisons_is_so() -> None:
    """A number is drawn, questions about it are answered by it: no answer that follows from others is another one."""
    decided = 0
    for seed in range(2000):
        chance = random.Random(seed)
        number, world = chance.randrange(8) / 2, World()
        for _ in range(6):
            limit, operator = Const(chance.randrange(8) / 2), chance.choice("< > <= >= ==".split())
            sides = (X, limit) if chance.random() < 0.7 else (limit, X)
            formula = conditions.compare(operator, *sides)
            left, right = (number if side is X else limit.value for side in sides)
            answer = {"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}.get(
                operator, left == right
            )
            decided += world.known(formula) is not None
            assert world.known(formula) in (None, answer)
            facts = conditions.assume(formula, answer, world.facts)
            assert facts is not None
            world.facts = facts
    assert decided > 2000


def test_a_member_of_an_enumeration_is_none_of_the_others() -> None:
    for one, two in (
        (Lib("kinds.Kind.FAST"), Lib("kinds.Kind.EXACT")),
        (sym("attr", Y, "FAST"), sym("attr", Y, "EXACT")),
    ):
        facts = conditions.assume(conditions.compare("==", X, one), True, {})
        assert facts is not None
        assert conditions.evaluate(conditions.compare("==", X, one), facts) is True
        assert conditions.evaluate(conditions.compare("==", X, two), facts) is False
        assert conditions.evaluate(conditions.compare("==", X, sym("attr", Y, "fast")), facts) is None


def test_what_is_computed_of_known_numbers_is_known() -> None:
    facts = conditions.assume(conditions.compare("==", X, Const(1)), True, {})
    assert facts is not None
    rest, last = sym("op", "Mod", Y, X), sym("op", "Sub", X, Const(1))
    assert conditions.evaluate(conditions.compare("==", rest, last), facts) is True
    assert conditions.evaluate(conditions.compare("==", rest, Const(0)), facts) is True
    assert conditions.evaluate(conditions.compare("!=", rest, Const(0)), facts) is False
    assert conditions.evaluate(conditions.compare("<", sym("op", "Mult", X, Const(3)), Const(2)), facts) is False
    assert conditions.evaluate(conditions.compare("==", sym("op", "Mod", X, Y), Const(0)), facts) is None
