"""Facts that are settled are looked through in part: that changes no answer."""

from __future__ import annotations

import random

from amplint.source.interpret.conditions import Facts, Settled, assume, evaluate, shared
from amplint.source.symbols import ask, reset, sym
from amplint.source.values import Const, Formula


def test_settled_facts_answer_like_all_others() -> None:
    reset()
    chance = random.Random(0)
    contradictions = 0
    for _ in range(300):
        things = [sym("name", "file", letter) for letter in "xyz"]
        known: list[Formula] = [ask("cmp", "<", *things[:2])]
        for thing in things:
            known += [ask("truth", thing), ask("none", thing), *(ask("eq", thing, Const(one)) for one in (0, 1))]
        for _ in range(12):
            kind = chance.choice(("and", "or", "not"))
            known.append(ask(kind, *chance.sample(known, 1 if kind == "not" else 2)))
        settled: Facts | None = Settled({})
        plain: Facts | None = {}
        for _ in range(25):
            formula, answer = chance.choice(known), chance.random() < 0.5
            assert settled is not None and plain is not None
            before = settled
            settled, plain = assume(formula, answer, settled), assume(formula, answer, dict(plain))
            assert settled == plain
            if settled is None or plain is None:
                contradictions += evaluate(formula, before) is None
                break
            if chance.random() < 0.1:  # as a join forgets
                lost = chance.choice([*settled, None])
                settled = shared(settled, {asked: answer for asked, answer in settled.items() if asked != lost})
                assert isinstance(settled, Settled)
                plain = dict(settled)
    assert contradictions > 10
