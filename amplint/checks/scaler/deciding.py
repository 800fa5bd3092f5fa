"""Family 1, conditions: what decides whether a script has a scaler, and whether it may lack one where it is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from amplint.checks.registry import Script
from amplint.checks.scaler.scopes import asked_before
from amplint.source import events
from amplint.source.interpret import conditions
from amplint.source.interpret.conditions import atoms_of
from amplint.source.module import Module
from amplint.source.values import Choice, Question, Region, Scaler, Sym

# What a condition says that may have to do with AMP, or with the device, by whatever names the script has for it.
_AMP_WORDS = re.compile(
    r"amp(?![lu])|half|fp_?16|float_?16|bf16|precision|mixed|scaler|scaled|scaling|apex|native", re.IGNORECASE
)
_DEVICE_WORDS = re.compile(r"cuda|gpu|cpu|device|mps|xla|tpu", re.IGNORECASE)
_FLOAT16 = re.compile(r"eq\(.*'(fp16|float16|16|16-mixed)'")
_PATHS = re.compile(r"\S*/\S*")  # of files, in what a symbol is named by
_FORGOTTEN = {"either", "formula", "joined", "unknown", "matched", "element"}


def certain(event: events.Unbound | events.NoneUsed) -> bool:
    """Whether what decides is something that the script asks, not what amplint forgot, and not an import that may
    fail: the name is unbound where none does, and where one fails, or for what the script asks behind an import."""
    atoms = list(atoms_of(event.bound))
    if any(set(_kinds(part)) & _FORGOTTEN for atom in atoms for part in atom.parts):
        return False
    failing = {atom for atom in atoms if "fails" in {kind for part in atom.parts for kind in _kinds(part)}}
    known = {asked: answer for asked, answer in event.facts.items() if asked not in failing}
    failed, imported = (
        conditions.possible(conditions.negate(event.bound), {**known, **dict.fromkeys(failing, answer)})
        for answer in (True, False)
    )
    return imported and (failed or len(failing) < len(set(atoms)))


def _kinds(part: Any, depth: int = 6) -> Iterator[str]:
    if isinstance(part, Sym):
        yield part.kind
    if isinstance(part, tuple) and part and part[0] == "tensor":
        yield "unknown"
    inner = part if isinstance(part, tuple | frozenset) else part.parts if isinstance(part, Sym | Question) else ()
    if isinstance(part, Choice):
        inner = (*atoms_of(part.formula), part.yes, part.no)
    for one in inner if depth else ():
        yield from _kinds(one, depth - 1)


def excused(script: Script, event: events.Unbound | events.NoneUsed) -> bool:
    """Whether an answer on the way to the use may have to do with AMP (or with the device, where that decides), and is
    none of those that decide."""
    deciding = set(atoms_of(event.bound))
    if asked_before(event.module, event.node, [said(script, question) for question in deciding]):
        return True
    words = [_AMP_WORDS, *([_DEVICE_WORDS] if any(_DEVICE_WORDS.search(said(script, q)) for q in deciding) else [])]
    for asked in event.facts:
        atoms = set(atoms_of(asked)) if isinstance(asked, Question) else set()
        if not atoms or atoms & deciding:
            continue
        if any(word.search(said(script, question)) for question in (asked, *atoms) for word in words):
            return True
    return False


def for_amp(event: events.Unbound | events.NoneUsed) -> bool:
    """Whether it is used in a function whose name says that it is for AMP, and that nothing in sight calls."""
    return any(frame.entry and _AMP_WORDS.search(frame.name) for frame in event.frame.stack())


def said(script: Script, question: Question) -> str:
    """A condition as the source has it, and what it asks about."""
    text = script.reading.machine.texts.get(question, "")
    return text or _PATHS.sub("", repr(question))


def is_for_float16(scaler: Scaler, region: Region) -> bool:
    """Whether the scaler is on where float16 is asked for, and the region one of several that are chosen likewise: it
    has another dtype only because which one it is got lost on the way."""
    return asks_for_float16(scaler) and not isinstance(region.autocast.dtype, Choice)


def asks_for_float16(scaler: Scaler) -> bool:
    """Whether what switches the scaler on asks for float16, by its words."""
    return _FLOAT16.search(repr(scaler.enabled)) is not None


def branches_around(module: Module, node: ast.AST) -> Iterator[ast.If]:
    """The conditions that a node stands under, in its function or class."""
    for above in module.ancestors(node):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return
        if isinstance(above, ast.If):
            yield above
