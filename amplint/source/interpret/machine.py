"""The state of one reading: the project's files, the log of events, what has been entered, and how much work is
left."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any, TypeVar

from amplint.source import events
from amplint.source.interpret.conditions import choice
from amplint.source.interpret.frames import Frame
from amplint.source.interpret.library import Library
from amplint.source.interpret.project import Project
from amplint.source.interpret.relevance import Relevance
from amplint.source.interpret.roles import Roles
from amplint.source.interpret.world import World, extend
from amplint.source.module import Module
from amplint.source.symbols import number, options
from amplint.source.values import (
    Choice,
    Const,
    Device,
    Instance,
    Items,
    Mapping,
    Model,
    Object,
    Optimizer,
    Scaler,
    Sym,
    Value,
)

E = TypeVar("E", bound=events.Event)

_NAMELESS = (Sym, Model, Instance, Object, Optimizer, Scaler)
_SPEAKING = ("argument", "attr", "name")  # symbols that say themselves what the source calls them
MOST_STEPS = 200_000  # expressions and statements evaluated per file; beyond it the reading ends where it is
MOST_ASIDE = 25_000  # of these, in one call of a file that takes no training step
MOST_FRAMES = 24


class Exhausted(Exception):
    """The work limit of a file is used up: what was seen so far stands."""


class Spent(Exception):
    """What one call may use of it is used up: the call counts as unknown."""


@dataclass(eq=False)
class Machine:
    project: Project
    library: Library
    at: frozenset[str] | None = None  # words of functions that a reading begins at (relevance.py)
    log: list[events.Event] = field(default_factory=list)
    entered: set[ast.AST] = field(default_factory=set)  # code that some call reached
    models: set[Value] = field(default_factory=set)  # unknown things that are used as models
    scalers: dict[Value, str] = field(default_factory=dict)  # and as scalers, with how the code that told uses them
    texts: dict[Any, str] = field(default_factory=dict)  # what a condition's atom reads like in the source
    names: dict[Value, str] = field(default_factory=dict)  # the variable that each thing was first assigned to
    asked: set[ast.AST] = field(default_factory=set)  # tests of statements whose answer is not a constant
    ways: dict[ast.If, tuple[Module, set[bool]]] = field(default_factory=dict)  # the answers that were met
    unset: frozenset[str] = frozenset()  # constants at the top of the file that may be anything
    rounds: dict[tuple[ast.AST, int], list[World]] = field(default_factory=dict)  # (loop, round) → worlds at its end
    starts: dict[tuple[ast.AST, int], list[Any]] = field(default_factory=dict)  # … and their traces at its start
    round: int = 1  # of the function that nothing calls and that is run now
    in_entry: bool = False  # running code that nothing calls: gradients may hold anything at first
    alone: bool = False  # judging a class of modules by itself: what it is made of is judged by itself, too
    steps: int = 0
    end: int = field(
        default_factory=lambda: MOST_STEPS
    )  # of the work, or of what the call that is being run may use of it
    loaded: dict[Module, dict[Any, Any]] = field(default_factory=dict)  # files that were run, and what they defined
    by_key: set[ast.AST] = field(default_factory=set)  # loops whose rounds take one of several optimizers each
    late: set[Any] = field(default_factory=set)  # fields being looked up (classes._late_field)
    _relevance: dict[Module, Relevance] = field(default_factory=dict)
    _seen: set[Any] = field(default_factory=set)
    _scopes: int = 0

    def is_model(self, value: Value) -> bool:
        """Whether something unknown is (or may be one of several that are) used as a model."""
        if isinstance(value, Sym) and value.kind != "choice":
            return value in self.models
        return any(option in self.models for option in options(value))

    def call(self, value: Value, name: str) -> None:
        """Remember what the source calls a thing that has no name of its own."""
        if name.count("[") > 2:
            return  # a list of lists of lists may hold itself many times over
        if isinstance(value, Items):
            for index, item in enumerate(value.items[:8]):
                self.call(item, f"{name}[{index}]")
        elif isinstance(value, Choice):
            self.call(value.yes, name)
            self.call(value.no, name)
        elif isinstance(value, Mapping):
            for key, item in value.items[:8]:
                self.call(item, f"{name}[{key.value!r}]" if isinstance(key, Const) else "")
        elif name and isinstance(value, _NAMELESS) and not (isinstance(value, Sym) and value.kind in _SPEAKING):
            self.names.setdefault(value, name)

    def tick(self) -> None:
        self.steps += 1
        if self.steps > self.end:
            raise Exhausted if self.steps > MOST_STEPS else Spent

    def scope(self) -> int:
        """A name for the variables of a new frame."""
        self._scopes += 1
        return self._scopes

    def roles(self, module: Module, code: ast.AST) -> dict[str, str]:
        found = module.memo.get("roles")
        if not isinstance(found, Roles):
            found = module.memo["roles"] = Roles(module)
        return found.of(code)

    def relevance(self, module: Module) -> Relevance:
        if module not in self._relevance:
            self._relevance[module] = Relevance(module, self.at if module is self.project.main else None)
        return self._relevance[module]

    def emit(self, kind: type[E], node: ast.AST, world: World, frame: Frame, **fields: Any) -> E:
        """Record an event of a step's story where `world` is."""
        event = self.observe(kind, node, world, frame, **fields)
        world.trace = extend(world.trace, event)
        return event

    def observe(self, kind: type[E], node: ast.AST, world: World, frame: Frame, **fields: Any) -> E:
        """Record an event that does not belong to the story of a step."""
        event = kind(node, frame, world.contexts, world.loops, world.facts, **fields)
        self.log.append(event)
        return event

    def once(self, *key: Any) -> bool:
        """True the first time a key is met; for events of which one tells as much as many."""
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def describe(self, formula: Any, node: ast.AST, frame: Frame) -> None:
        """Remember how a condition reads in the source."""
        if not isinstance(formula, bool) and formula not in self.texts:
            self.texts[formula] = " ".join(frame.module.source(node).split())


def site(node: ast.AST, frame: Frame) -> int:
    """A name for what is made at a place: the place and the calls that led there."""
    calls = tuple(id(above.call) for above in frame.stack() if above.call is not None)
    return number((frame.module.path, id(node), *calls))


def device_value(value: Value | None) -> Value | None:
    """A torch.device for what names one."""
    match value:
        case Choice():
            yes, no = device_value(value.yes), device_value(value.no)
            return value if yes is None or no is None else choice(value.formula, yes, no)
        case Const(value=str() as text):
            return Device(text.partition(":")[0], value)
        case Const(value=int()) if not isinstance(value.value, bool):
            return Device("cuda", value)
    return value
