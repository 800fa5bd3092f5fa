"""Which function checks which rule, and what the functions share: building findings from events."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import TypeVar

from amplint import knowledge
from amplint.config import Settings
from amplint.findings import Finding, Fix, Related, Severity
from amplint.source import events
from amplint.source.events import Create, Enter
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.values import Instance, Question, Region, Sym, Value
from amplint.source.walk import walk

E = TypeVar("E", bound=events.Event)


class Script:
    """What a check is given: the reading of a script and what the user targets. The script is read when a check asks
    for what it does: some look at its text only."""

    def __init__(self, module: Module, settings: Settings, read: Callable[[], Reading]):
        self.settings = settings
        self.module = module
        self._read = read
        self._events: dict[type[events.Event], list[events.Event]] = {}
        self._fields: dict[Instance, list[Value]] = {}
        self.looked_at: set[str] = set()  # files and folders that a finding depends on, beside those that were read

    @cached_property
    def reading(self) -> Reading:
        return self._read()

    @property
    def is_read(self) -> bool:
        return "reading" in self.__dict__

    def fields_of(self, instance: Instance) -> list[Value]:
        """What the fields of an object hold, in any world that a loop or function ended with."""
        if instance not in self._fields:
            worlds = [world for ended in self.reading.machine.rounds.values() for world in ended]
            spaces = {id(space): space for space in (world.space(instance) for world in worlds)}  # worlds share most
            held = [value for space in spaces.values() for value in space.values() if isinstance(value, Value)]
            self._fields[instance] = list(dict.fromkeys(held))
        return self._fields[instance]

    def events(self, kind: type[E]) -> Iterator[E]:
        """All events of a kind, in the order met; none at all of a script that branches beyond what checks can compare
        (two by two): what is told of a part of it may be wrong."""
        if not self._events:
            steps = sum(isinstance(event, events.Step | events.Update) for event in self.reading.events)
            self._events[events.Event] = [] if steps > _MOST else self.reading.events
        if not self._events[events.Event]:
            return iter(())
        if kind not in self._events:
            self._events[kind] = [event for event in self.reading.events if isinstance(event, kind)]
        return iter(self._events[kind])  # type: ignore[arg-type]

    def created(self, value: Value | None) -> Create | None:
        """Where a value is made."""
        return next((event for event in self.events(Create) if event.value == value), None)

    def entry(self, region: Region) -> Enter | None:
        """Where a region is entered."""
        return next((event for event in self.events(Enter) if event.entered == region), None)


_MOST = 2000  # steps and updates, in all worlds and rounds: of 10 000 files in the wild three have more
Check = Callable[[Script], Iterable[Finding]]
CHECKS: list[tuple[str, Check]] = []


def rule(code: str) -> Callable[[Check], Check]:
    """Register a check under its rule's code."""

    def register(check: Check) -> Check:
        CHECKS.append((code, check))
        return check

    return register


Evidence = tuple[events.Event | None, str]


def found(
    code: str,
    event: events.Event,
    message: str,
    *,
    node: ast.AST | None = None,
    severity: Severity | None = None,
    evidence: Iterable[Evidence] = (),
    help: str = "",
    fix: Fix | None = None,
) -> Finding:
    """A finding at an event (or at another node of its file); evidence lines come in the order in which they run."""
    told = [(other, text) for other, text in evidence if other is not None]
    places = [(other.module, other.node, text) for other, text in told]
    finding = found_at(
        code, event.module, node or event.node, message, severity=severity, evidence=places, help=help, fix=fix
    )
    return in_test(finding) if any(map(_run_by_test, (event, *(other for other, _ in told)))) else finding


def in_test(finding: Finding) -> Finding:
    """As it weighs in a unit test: nothing is trained there, so what only training suffers from is a note. What raises
    or is deprecated weighs as much as elsewhere."""
    about_training = finding.code[3] not in "069" and not _RAISES.search(finding.message)
    return replace(finding, severity=Severity.NOTE) if about_training else finding


_RAISES = re.compile(r"Error\b|\braises\b")


def _run_by_test(event: events.Event) -> bool:
    """Whether a unit test leads to this: a function of a file of tests, or one beside what it tests."""
    return any(frame.module.is_test or _is_test(frame.code) for frame in event.frame.stack())


@lru_cache(1024)
def _is_test(code: ast.AST) -> bool:
    named = isinstance(code, ast.FunctionDef) and code.name.startswith("test_")
    return named and any(isinstance(one, ast.Assert) for one in walk(code))


def found_at(
    code: str,
    module: Module,
    node: ast.AST,
    message: str,
    *,
    severity: Severity | None = None,
    evidence: Iterable[tuple[Module, ast.AST, str]] = (),
    help: str = "",
    fix: Fix | None = None,
) -> Finding:
    """A finding at a node of a file, for what the source says by itself."""
    return Finding(
        code,
        message,
        module.path,
        module.range(node),
        severity or knowledge.rules()[code].severity,
        tuple(Related(text, other.path, other.range(place)) for other, place, text in evidence),
        help,
        fix,
    )


def text(module: Module, node: ast.AST, longest: int = 60) -> str:
    """A node's source on one line, for messages."""
    source = " ".join(module.source(node).split())
    return source if len(source) <= longest else source[: longest - 1] + "…"


def receiver(event: events.Event) -> str:
    """The text of what a method was called on: `self.scaler` in `self.scaler.step(optimizer)`."""
    node = event.node
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return text(event.module, node.func.value)
    return ""


def scaler_in(event: events.Event) -> str:
    """What a message calls the scaler of an event, whose method may have been called by a name of its own."""
    return receiver(event) or "the scaler"


def first_argument(event: events.Event) -> str:
    """The text of the first argument of a call: `optimizer` in `self.scaler.step(optimizer)`."""
    node = event.node
    if isinstance(node, ast.Call) and node.args and not isinstance(node.args[0], ast.Starred):
        return text(event.module, node.args[0])
    return ""


def same_function(one: events.Event, other: events.Event) -> bool:
    return one.frame.code is other.frame.code


def alternatives(module: Module, one: ast.AST, other: ast.AST) -> bool:
    """Whether two nodes stand in different arms of one `if`: a run meets one of them, or a flag decides which."""
    return fork(module, one, other) is not None


def fork(module: Module, one: ast.AST, other: ast.AST) -> ast.AST | None:
    """The branch that has the two nodes in different arms."""
    arms = {}
    node = one
    for above in module.ancestors(one):
        if isinstance(above, ast.If | ast.IfExp | ast.Try | ast.Match):
            arms[above] = _arm(above, node)
        node = above
    node = other
    for above in module.ancestors(other):
        if above in arms:
            return above if arms[above] != _arm(above, node) else None
        node = above
    return None


def may_both_run(one: events.Event, other: events.Event) -> bool:
    """Whether nothing that was asked on the way to both was answered differently."""
    if any(one.facts.get(question, answer) != answer for question, answer in other.facts.items()):
        return False
    here, there = list(_settings(one)), list(_settings(other))
    return not any(
        value != another and path[-len(same) :] == same[-len(path) :] for path, value in here for same, another in there
    )


def _settings(event: events.Event) -> Iterator[tuple[tuple[str, ...], object]]:
    """What the options are on the way to an event, by their names: `self.cfg.prec`, read elsewhere as `cfg.prec`."""
    for asked, answer in event.facts.items():
        option = None
        if isinstance(asked, tuple) and len(asked) == 2 and asked[0] == "is":
            option = asked[1]
        elif isinstance(asked, Question) and asked.kind == "truth":
            option = asked.parts[0]
        path = _path(option)
        if len(path) > 1:
            yield path, answer


def _path(option: object) -> tuple[str, ...]:
    """The names of a chain of attributes, without the object that it starts from."""
    match option:
        case Sym(kind="attr", parts=(owner, str() as name)):
            return (*_path(owner), name)
        case Sym(kind="name" | "argument", parts=(*_, str() as name)):
            return (name,)
    return ()


def own_condition(module: Module, one: ast.AST, other: ast.AST) -> bool:
    """Whether a condition stands around the first node that does not stand around the second: then it runs less
    often."""
    around = set(module.ancestors(other))
    for above in module.ancestors(one):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return False
        if isinstance(above, ast.If | ast.IfExp | ast.Match | ast.Try) and above not in around:
            return True
    return False


def _arm(branch: ast.AST, inside: ast.AST) -> str:
    for name, value in ast.iter_fields(branch):
        if isinstance(value, list) and inside in value:
            return f"{name}{value.index(inside)}" if name in ("handlers", "cases") else name
        if value is inside:
            return name
    return ""
