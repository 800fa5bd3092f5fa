"""A world: one way the script can run. Worlds fork on conditions, and join again where nothing that matters differs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import Any

from amplint.source.interpret import conditions
from amplint.source.symbols import ask, fresh
from amplint.source.values import (
    NONE,
    Autocast,
    Choice,
    Deferred,
    Formula,
    Imported,
    Lib,
    Object,
    Partial,
    Question,
    Scaler,
    Tensor,
    Value,
)

Key = tuple[Hashable, Hashable]  # a name or field and whose it is
Trace = tuple[Any, Any, int] | None  # (what came before, the last item, how many): shared between worlds

# Spaces in which two worlds must agree to be joined: the protocol states (protocol.py).
# A dict: looked up for every space there is, and an owner is slow to compare with a text.
PROTOCOL = dict.fromkeys(("gradients", "updates", "stale weights", "first forwards"))
PERHAPS = "perhaps bound"  # the space of names and fields that only some of the joined worlds bind (perhaps_bound)
MOST_WORLDS = 32


class Fork:
    """In a trace: where two worlds went different ways and met again."""

    __slots__ = ("formula", "no", "yes")

    def __init__(self, formula: Formula, yes: tuple[Any, ...], no: tuple[Any, ...]):
        self.formula = formula
        self.yes = yes
        self.no = no


class World:
    """Variables, fields and protocol states by owner (`spaces`), the answers so far (`facts`), what is entered
    (`contexts`, `loops`), and what has happened (`trace`). Copying is cheap: spaces are shared until written to."""

    __slots__ = ("_own", "contexts", "facts", "loops", "spaces", "trace")

    def __init__(self) -> None:
        self.spaces: dict[Hashable, dict[Any, Any]] = {}
        self._own: set[Hashable] = set()
        self.facts: conditions.Facts = {}
        self.contexts: tuple[Value, ...] = ()
        self.loops: tuple[Any, ...] = ()
        self.trace: Trace = None

    def copy(self) -> World:
        twin = World()
        twin.spaces = dict(self.spaces)
        self._own = set()
        twin.facts, twin.contexts, twin.loops, twin.trace = self.facts, self.contexts, self.loops, self.trace
        return twin

    def space(self, owner: Hashable) -> dict[Any, Any]:
        """Read only."""
        return self.spaces.get(owner) or {}

    def get(self, owner: Hashable, name: Hashable) -> Any:
        inner = self.spaces.get(owner)
        return None if inner is None else inner.get(name)

    def set(self, owner: Hashable, name: Hashable, value: Any) -> None:
        if owner not in self._own:
            self.spaces[owner] = dict(self.spaces.get(owner) or {})
            self._own.add(owner)
        self.spaces[owner][name] = value

    def drop(self, owner: Hashable, name: Hashable) -> None:
        if name in self.space(owner):
            self.set(owner, name, None)
            del self.spaces[owner][name]

    def forget(self, owner: Hashable) -> None:
        """Drop a whole space: the variables of a call that returned."""
        self.spaces.pop(owner, None)
        self._own.discard(owner)

    def decide(self, formula: Formula) -> list[tuple[bool, World]]:
        """Both answers that are possible here, each with its world. This world itself is one of them."""
        known = conditions.evaluate(formula, self.facts)
        if known is not None:
            return [(known, self)]
        outcomes = []
        for answer in (True, False):
            facts = conditions.assume(formula, answer, self.facts)
            if facts is not None:
                outcomes.append((answer, facts))
        if not outcomes:
            return []  # the facts contradict each other, as was not seen before: this world cannot be
        worlds = [self.copy() for _ in outcomes[1:]]
        result = []
        for (answer, facts), world in zip(outcomes, [self, *worlds], strict=True):
            world.facts = facts
            result.append((answer, world))
        return result

    def known(self, formula: Formula) -> bool | None:
        return conditions.evaluate(formula, self.facts)

    def suppose(self, formula: Formula) -> None:
        """Take a formula as true without asking (the script would have crashed otherwise)."""
        facts = conditions.assume(formula, True, self.facts)
        if facts is not None:
            self.facts = facts


def join_all(worlds: Iterable[World]) -> list[World]:
    """Join what can be joined. Above MOST_WORLDS, what differs is forgotten: a join forgets, it never invents."""
    joined: list[World] = []
    for world in worlds:
        for index, other in enumerate(joined):
            met = join(other, world)
            if met is not None:
                joined[index] = met
                break
        else:
            if len(joined) < MOST_WORLDS:
                joined.append(world)
            else:
                _blur(joined[-1], world)
    return joined


def join(left: World, right: World) -> World | None:
    """One world that stands for both, or None if they differ in a protocol state or in where they are.

    Variables that differ become Choices by a condition on which the two worlds differ.
    """
    if left.contexts != right.contexts or left.loops != right.loops:
        return None
    for shared in PROTOCOL:
        here, there = left.spaces.get(shared), right.spaces.get(shared)
        if here is not there and (here or {}) != (there or {}):
            return None
    _keep_origins(left, right)
    differing = []
    others = right.spaces.get
    apart = [owner for owner, space in left.spaces.items() if others(owner) is not space]
    apart += [owner for owner in right.spaces if owner not in left.spaces]
    if not apart and left.trace is right.trace:  # as after most expressions: only the answers differ
        _agree(left, right)
        return left
    for owner in apart:  # few of them: worlds share most
        if owner in PROTOCOL or owner == PERHAPS:
            continue
        here, there = left.space(owner), right.space(owner)
        for name in {**here, **there}:
            mine, other = here.get(name), there.get(name)
            if mine is not other:
                differing.append(((owner, name), mine, other))
    formula = _difference(left, right)
    perhaps = _perhaps(formula, differing, left, right)
    if formula is None:
        formula = ask("truth", fresh("either"))  # they differ for a reason that was forgotten; together, though
    for (owner, name), mine, other in differing:
        if isinstance(owner, tuple) and owner[0] == "dtype of":  # in one of them the model was not cast
            mine, other = mine or NONE, other or NONE
        left.set(owner, name, _meet(formula, mine, other))
    for (owner, name), bound in perhaps.items():
        left.set(PERHAPS, (owner, name), (left.get(owner, name), bound))
    left.trace = _weave(formula, left.trace, right.trace)
    _agree(left, right)
    return left


def _agree(left: World, right: World) -> None:
    """Keep the answers that both give."""
    if left.facts is not right.facts:
        common = conditions.shared(left.facts, right.facts)
        if len(common) < len(left.facts):
            left.facts = common


def perhaps_bound(world: World, owner: Hashable, name: Hashable) -> Formula:
    """Where a name (or a field) that has a value is bound at all: a function that binds it under a condition leaves it
    without a value elsewhere. Only what AMP is made of is followed."""
    known = world.get(PERHAPS, (owner, name))
    return True if known is None else _bound(known, world.get(owner, name))


def _bound(known: tuple[Value, Formula] | None, value: Value) -> Formula:
    return True if known is None or known[0] is not value else known[1]  # otherwise it was bound again


_OF_AMP = (Scaler, Autocast, Partial, Lib, Imported, Object, Choice)


def _perhaps(
    formula: Formula | None, differing: list[tuple[Key, Any, Any]], left: World, right: World
) -> dict[Key, Formula]:
    """The names and fields that only one of two worlds binds, and where: nothing if that is not known."""
    if formula is None:
        left.forget(PERHAPS)
        return {}
    here, there = left.space(PERHAPS), right.space(PERHAPS)
    old = here if here is there else {**here, **there}
    asked = [one for one in differing if one[0] in old or (one[1] is None) is not (one[2] is None)]
    if here is not there:
        for key in old.keys() - {key for key, _, _ in differing}:
            if here.get(key) is not there.get(key):  # else it stays as it is
                asked.append((key, value := left.get(*key), value))
    found: dict[Key, Formula] = {}
    for key, mine, other in asked:
        if isinstance(mine or other, _OF_AMP):
            sides = [value is not None and _bound(space.get(key), value)
                     for value, space in ((mine, here), (other, there))]  # fmt: skip
            if sides != [True, True]:
                found[key] = conditions.choose(formula, *sides)
    for key, _, _ in asked:
        if key in old and key not in found:
            left.drop(PERHAPS, key)
    return found


def _keep_origins(left: World, right: World) -> None:
    """Gradients that are in one state may come from a backward in either world."""
    mine, other = left.space("gradients"), right.space("gradients")
    if mine is other:
        return
    for optimizer, state in other.items():
        known = mine[optimizer]
        more = tuple(origin for origin in state.origins if origin not in known.origins)
        if more:
            left.set("gradients", optimizer, replace(known, origins=(*known.origins, *more)))


def _difference(left: World, right: World) -> Formula | None:
    """A formula that is true in `left` and false in `right`."""
    if left.facts is right.facts:
        return None
    for mine, other, swapped in ((left.facts, right.facts, False), (right.facts, left.facts, True)):
        for atom, answer in mine.items():
            if other.get(atom) is answer or not isinstance(atom, Question):
                continue
            opposite = conditions.evaluate(atom, other)
            if opposite is not None and opposite is not answer:
                return atom if answer is not swapped else conditions.negate(atom)
    return None


def _meet(formula: Formula, mine: Any, other: Any) -> Any:
    """The value of a variable that is `mine` where the formula holds and `other` where it does not."""
    if mine == other or other is None:
        return mine
    if mine is None:
        return other
    if not isinstance(mine, Value) or not isinstance(other, Value):
        return mine
    if isinstance(mine, Deferred) or isinstance(other, Deferred):
        return other if isinstance(mine, Deferred) else mine  # one of them has used it
    tensors = isinstance(mine, Tensor) and isinstance(other, Tensor)
    if tensors and (mine.scaler, mine.region) == (other.scaler, other.region):  # type: ignore[attr-defined]
        return _blend(mine, other)
    return conditions.choice(formula, _reduce(formula, True, mine), _reduce(formula, False, other))


def _reduce(formula: Formula, answer: bool, value: Value) -> Value:
    """Drop what a Choice by the same formula cannot be."""
    while isinstance(value, Choice) and value.formula == formula:
        value = value.yes if answer else value.no
    return value


def _blend(mine: Value, other: Value) -> Value:
    """A value that promises no more than both do."""
    if isinstance(mine, Tensor) and isinstance(other, Tensor):
        return Tensor(
            dtype=mine.dtype if mine.dtype == other.dtype else "",
            trust=min(mine.trust, other.trust),
            of=mine.of | other.of,
            region=mine.region if mine.region == other.region else None,
            made=mine.made if mine.made == other.made else "",
            parents=(mine, other),
            identity=mine.identity,
        )
    return fresh("joined")


def _weave(formula: Formula, left: Trace, right: Trace) -> Trace:
    """A trace that tells both: the common past, then a Fork."""
    yes: list[Any] = []
    no: list[Any] = []
    one, other = left, right
    while one is not other:
        if one is not None and (other is None or one[2] >= other[2]):
            yes.append(one[1])
            one = one[0]
        else:
            assert other is not None
            no.append(other[1])
            other = other[0]
    if not yes and not no:
        return left
    return extend(one, Fork(formula, tuple(reversed(yes)), tuple(reversed(no))))


def extend(trace: Trace, item: Any) -> Trace:
    return (trace, item, trace[2] + 1 if trace else 1)


def _blur(kept: World, lost: World) -> None:
    """Make `kept` stand for `lost` too, by forgetting every protocol state in which they differ."""
    from amplint.source.interpret.protocol import UNKNOWN

    kept.forget(PERHAPS)
    for shared in PROTOCOL:
        for name in kept.space(shared).keys() | lost.space(shared).keys():
            if kept.get(shared, name) != lost.get(shared, name):
                kept.set(shared, name, UNKNOWN[shared])
    kept.facts = conditions.shared(kept.facts, lost.facts)
    kept.loops = kept.loops if kept.loops == lost.loops else kept.loops[: min(len(kept.loops), len(lost.loops))]
    for owner in kept.spaces.keys() | lost.spaces.keys():
        if owner in PROTOCOL or kept.spaces.get(owner) is lost.spaces.get(owner):
            continue
        here, there = kept.space(owner), lost.space(owner)
        for name in here.keys() | there.keys():
            mine, other = here.get(name), there.get(name)
            if mine is other:
                continue
            if isinstance(mine, Deferred) or isinstance(other, Deferred):
                kept.set(owner, name, other if isinstance(mine, Deferred) else mine)
            elif mine != other and isinstance(mine, Value) and isinstance(other, Value):
                kept.set(owner, name, _blend(mine, other))
