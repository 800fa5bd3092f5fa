"""`amplint events`: what a script does in each training step, line by line, as the interpreter understood it.

A step is a round of the innermost loop that steps or runs backward (or a call of the function that does, where there is
no loop). Its events are told in the order of the source along the calls that lead to them, each once: what differs
between worlds or rounds is said where it differs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from amplint.config import Settings
from amplint.report.names import Names, brief, listed
from amplint.report.words import TOLD, Detail, as_detail, say
from amplint.source import events
from amplint.source.interpret import conditions, entries
from amplint.source.interpret.frames import Frame
from amplint.source.interpret.machine import Machine
from amplint.source.module import Module
from amplint.source.values import Instance, Question, Sym

Place = tuple[int, int]
_AROUND = (events.Create, events.Cast, events.Save, events.Load)


@dataclass(eq=False)
class Line:
    """A line of the story: a heading with lines below it, or an event with each way in which it was met."""

    where: tuple[Any, ...]  # in the order of the source
    row: str
    heading: str = ""
    callee: str = ""  # what is called, where the heading is a call
    met: list[tuple[events.Event, str, list[str], list[Detail]]] = field(default_factory=list)
    below: dict[Any, Line] = field(default_factory=dict)


def tell(module: Module, settings: Settings) -> str:
    """The story of a file."""
    reading = entries.read(module, settings.roots, settings.apis)
    told = [event for event in reading.events if isinstance(event, TOLD)]
    names = Names(reading.machine, told)
    homes = _homes(told)
    parts = []
    around = [event for event in told if isinstance(event, _AROUND) and _home(event, homes) is None]
    title = "\n".join([module.path, *_lines(around, None, names, reading.machine, module)])
    for home in homes:
        inside = [event for event in told if _home(event, homes) == home]
        text = "\n".join(_lines(inside, home, names, reading.machine, module))
        heading = _heading(home, inside[0])
        if (heading, text) not in parts:
            parts.append((heading, text))
    if not homes:
        title += "\n  no training step"
    if not reading.complete:
        title += "\n  (the reading ended early: amplint's limit of work was reached)"
    return "\n\n".join([title, *(f"{heading}\n{text}" for heading, text in parts)])


# -- steps --------------------------------------------------------------------------------------------------------


def _chain(event: events.Event) -> list[Any]:
    """What an event lies in, outermost first: the code that a reading began with, then loops, each with the calls that
    lead there."""
    frames = list(event.frame.stack())
    chain: list[Any] = [(frames[-1].code, ())]
    for loop in event.loops:
        calls = tuple(frame.call for frame in loop.frame.stack() if frame.call is not None)
        chain.append((loop.node, calls))
    return chain


def _homes(told: Sequence[events.Event]) -> list[Any]:
    """The loops (or functions) whose rounds are the training steps: the outermost of those that hold, directly, a step
    or a backward. Code with steps of its own beside a loop with steps (a warm-up) is told apart from the loop."""
    found = [_chain(event) for event in told if isinstance(event, events.Step | events.Backward)]
    stepping = {place for event in told if isinstance(event, events.Step) for place in _chain(event)[1:]}
    direct = {chain[-1] for chain in found}
    homes: dict[Any, None] = {}
    for chain in found:
        loop = next((place for place in chain[1:] if place in direct), None)
        alone = loop is not None and (loop in stepping or chain[0] not in direct)
        homes[loop if alone else chain[0]] = None
    return list(homes)


def _home(event: events.Event, homes: list[Any]) -> Any:
    if event.frame.call is event.node:
        return None  # what a field was set to elsewhere, looked up here
    return next((place for place in reversed(_chain(event)) if place in homes), None)


def _heading(home: Any, event: events.Event) -> str:
    """`train.py:45: each round of "for images, target in loader", in train, called from main`."""
    node = home[0]
    loop = next((loop for loop in event.loops if loop.node is node), None)
    frames = list(event.frame.stack())
    at = next(index for index, frame in enumerate(frames) if frame.code is (loop.frame.code if loop else node))
    path = f"{frames[at].module.path}:{getattr(node, 'lineno', 1)}"
    names = [frame.name for frame in frames[at:] if not isinstance(frame.code, ast.Module)]
    within = ", called from ".join(f"{name}()" for name in names)
    if loop is None:
        return f"{path}: each call of {within}" if within else f"{path}: the script"
    text = brief(_loop_text(node, frames[at].module))
    return f"{path}: each round of `{text}`" + (f", in {within}" if within else "")


def _loop_text(node: ast.AST, module: Module) -> str:
    if isinstance(node, ast.While):
        return f"while {module.source(node.test)}"
    assert isinstance(node, ast.For | ast.AsyncFor)
    return f"for {module.source(node.target)} in {module.source(node.iter)}"


# -- lines --------------------------------------------------------------------------------------------------------


def _lines(inside: Sequence[events.Event], home: Any, names: Names, m: Machine, main: Module) -> list[str]:
    root = Line((), "")
    several = len({names.name(event.optimizer) for event in inside if isinstance(event, events.Step)}) > 1
    for number, event in enumerate(inside):
        sentence, subjects, details = say(event, names, several)
        if not sentence:
            continue
        line = root
        for key, where, row, heading in _path(event, home, m, main) if home else ():
            line = line.below.setdefault(key, Line(where, row, heading, _callee(key)))
        where = _end(event.node)
        key = (event.node, type(event), sentence)
        row = _row(event.node, event.frame, main)
        line = line.below.setdefault(key, Line((*where, number), row))
        line.met.append((event, sentence, subjects, [as_detail(detail) for detail in details if detail]))
    shown = list(_show(root, names, 0))
    width = max((len(row) for row, _ in shown), default=0)
    return [f"  {row:>{width}}  {text}" for row, text in shown]


def _show(line: Line, names: Names, depth: int) -> Iterator[tuple[str, str]]:
    siblings = sorted(line.below.values(), key=lambda inner: inner.where)
    for inner in siblings:
        text = inner.heading or _sentence(inner, names)
        others = [other for other in siblings if other is not inner and inner.callee and other.where == inner.where]
        if others:
            text = f"{text[:-1]} of {inner.callee}{_when(inner, others, names)}:"
        yield inner.row, "  " * depth + text
        yield from _show(inner, names, depth + 1)


def _when(line: Line, others: list[Line], names: Names) -> str:
    """Of several functions that a call may reach: the condition under which it is this one."""
    having, lacking = list(_events(line)), [event for other in others for event in _events(other)]
    condition = _difference(having, lacking, names, steady=False) if having and lacking else ""
    return f" if {condition}" if condition else ""


def _events(line: Line) -> Iterator[events.Event]:
    yield from (event for event, *_ in line.met)
    for inner in line.below.values():
        yield from _events(inner)


def _sentence(line: Line, names: Names) -> str:
    """An event with all that was met there, conditions included."""
    sentence = line.met[0][1]
    subjects = list(dict.fromkeys(subject for _, _, subjects, _ in line.met for subject in subjects))
    known = [subject for subject in subjects if subject != "something"]
    text = sentence.format(listed(known or subjects or ["something"]))
    alike: dict[tuple[str, str, str], list[str]] = {}  # what is said of several things, once
    for detail in dict.fromkeys(detail for *_, details in line.met for detail in details):
        having = [event for event, *_, details in line.met if detail in details]
        lacking = [event for event, *_, details in line.met if detail not in details]
        when = _qualified(detail, having, lacking, names)
        if when is not None:
            alike.setdefault((detail.text, *when), []).append(detail.name)
    for (said, before, after), told in alike.items():
        joint = ", " if said.startswith(", ") or "round" in before else " "
        text += joint + before + said.removeprefix(", ").removeprefix(" ").format(listed(told)) + after
    return text


def _qualified(
    detail: Detail, having: list[events.Event], lacking: list[events.Event], names: Names
) -> tuple[str, str] | None:
    """What to say before and after a detail that does not hold always; None where it is not worth saying."""
    if not lacking or detail.anyway:
        return "", ""
    late = _only_later(having, lacking)
    before = "" if late is None else "from the second round on "
    lacking = lacking if late is None else late
    condition = _difference(having, lacking, names, steady=late is not None) if lacking else ""
    if lacking and not condition:
        if late is None and detail.text.endswith("✗"):
            return None  # in some world, for a reason that was forgotten: too little to say it
        before += "perhaps "
    return before, f" if {condition}" if condition else ""


def _rounds(event: events.Event) -> list[int]:
    """Which rounds an event was met in: of any loop, then from the innermost loop outwards."""
    found = [*(loop.round for loop in reversed(event.loops)), max(frame.round for frame in event.frame.stack())]
    return [max(found), *found]


def _only_later(having: list[events.Event], lacking: list[events.Event]) -> list[events.Event] | None:
    """If `having` were all met in later rounds, and not all others were: what of `lacking` was met in later rounds,
    too. The loop that tells them apart best is the one that is meant."""
    best = None
    for level in range(min(len(_rounds(event)) for event in (*having, *lacking))):
        late = [event for event in lacking if _rounds(event)[level] > 1]
        apart = all(_rounds(event)[level] > 1 for event in having) and len(late) < len(lacking)
        if apart and (best is None or len(late) < len(best)):
            best = late
    return best


def _difference(having: list[events.Event], lacking: list[events.Event], names: Names, steady: bool) -> str:
    """The condition under which an event is one of `having`, if one answer tells them from `lacking`. `steady`: it must
    be one whose answer no round changes."""
    for facts in (having[0].facts, lacking[0].facts):
        for atom in facts:
            if not isinstance(atom, Question) or (steady and _passing(atom)):
                continue
            for wanted in (True, False):
                text = names.condition(atom if wanted else conditions.negate(atom))
                if (
                    text
                    and all(conditions.evaluate(atom, event.facts) is wanted for event in having)
                    and all(conditions.evaluate(atom, event.facts) is (not wanted) for event in lacking)
                ):
                    return text
    return ""


def _passing(part: object) -> bool:
    """Whether a question is about something that has no name: it is another thing in each round."""
    match part:
        case Question(parts=parts):
            return any(_passing(inner) for inner in parts)
        case Sym(parts=parts):
            return (len(parts) == 1 and isinstance(parts[0], int)) or any(_passing(inner) for inner in parts)
        case ("tensor", _):
            return True
    return False


# -- places -------------------------------------------------------------------------------------------------------


def _path(event: events.Event, home: Any, m: Machine, main: Module) -> Iterator[tuple[Any, Any, str, str]]:
    """The headings above an event inside its step: calls, conditions and inner loops."""
    frames = list(reversed(list(event.frame.stack())))
    loop = next((loop for loop in event.loops if loop.node is home[0]), None)
    code = loop.frame.code if loop else home[0]
    first = next(index for index, frame in enumerate(frames) if frame.code is code)
    for index in range(first, len(frames)):
        frame = frames[index]
        outside: ast.AST = home[0] if index == first else frame.code
        last = index + 1 == len(frames)
        anchor = event.node if last else frames[index + 1].call
        if anchor is None:
            continue
        yield from _conditions(anchor, outside, frame, m, main)
        if not last and isinstance(anchor, ast.Call):
            name = brief(frame.module.source(anchor.func))
            key = (anchor, frames[index + 1].code, frames[index + 1].owner)
            yield key, (*_end(anchor), 0), _row(anchor, frame, main), f"{name}(…):"


def _callee(key: Any) -> str:
    """The class or function that a call reaches."""
    match key:
        case (ast.Call(), ast.AST() as code, owner):
            return owner.cls.node.name if isinstance(owner, Instance) else getattr(code, "name", "a lambda")
    return ""


def _conditions(
    node: ast.AST, outside: ast.AST, frame: Frame, m: Machine, main: Module
) -> Iterator[tuple[Any, Any, str, str]]:
    """The conditions, inner loops and handlers around a node, up to `outside`."""
    found: list[tuple[Any, Any, str, str]] = []
    inner = node
    source = frame.module.source
    for above in frame.module.ancestors(node):
        if above is outside:
            break
        match above:
            case ast.If() if above.test in m.asked and inner is not above.test:
                arm = inner in above.body
                if not arm and _is_elif(above, inner):
                    word = "elif"
                elif arm:
                    word = "if"
                else:
                    word = "else"
                if word == "if":
                    text = f"if {brief(source(above.test))}:"
                    if _is_elif(frame.module.parents.get(above), above):
                        text = "el" + text
                    found.append(((above, True), (*_end(above.test), 0), _row(above, frame, main), text))
                elif word == "else":
                    text = f"else ({_negated(above.test, source)}):"
                    row = str(above.orelse[0].lineno)
                    found.append(((above, False), (*_end(above.body[-1]), 1), row, text))
            case ast.For() | ast.AsyncFor() | ast.While():
                text = f"{brief(_loop_text(above, frame.module))}:"
                test = above.test if isinstance(above, ast.While) else above.iter
                found.append((above, (*_end(test), 0), _row(above, frame, main), text))
            case ast.ExceptHandler():
                what = f" {brief(source(above.type))}" if above.type else ""
                found.append((above, (*_end(above), 0), _row(above, frame, main), f"except{what}:"))
            case ast.match_case():
                text = f"case {brief(source(above.pattern))}:"
                found.append((above, (*_end(above.pattern), 0), _row(above.pattern, frame, main), text))
        inner = above
    yield from reversed(found)


_OPPOSITE: dict[type[ast.cmpop], str] = {
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
}


def _negated(test: ast.expr, source: Callable[[ast.AST], str]) -> str:
    """The opposite of a condition, as a person would write it."""
    match test:
        case ast.UnaryOp(op=ast.Not()):
            return brief(source(test.operand))
        case ast.Compare(ops=[op]):
            return brief(f"{source(test.left)} {_OPPOSITE[type(op)]} {source(test.comparators[0])}")
        case ast.BoolOp():
            return f"not ({brief(source(test))})"
    return f"not {brief(source(test))}"


def _is_elif(parent: ast.AST | None, node: ast.AST) -> bool:
    """Whether `node` is the `elif` of `parent`."""
    return (
        isinstance(parent, ast.If)
        and isinstance(node, ast.If)
        and parent.orelse == [node]
        and parent.col_offset == node.col_offset
    )


def _end(node: ast.AST) -> Place:
    """Where in the source something has happened: at the end of its expression (of decorated code, at its start)."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
        return node.lineno, node.col_offset
    return getattr(node, "end_lineno", 0) or 0, getattr(node, "end_col_offset", 0) or 0


def _row(node: ast.AST, frame: Frame, main: Module) -> str:
    row = str(getattr(node, "lineno", ""))
    return row if frame.module is main else f"{frame.module.path.rpartition('/')[2]}:{row}"
