"""Converts the planned steps of files that change together: all of them, or none."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from amplint.config import Settings
from amplint.rewrite.changes import Changes
from amplint.rewrite.groups import modules_of
from amplint.rewrite.islands.arrays import array_casts
from amplint.rewrite.islands.sigmoids import There
from amplint.rewrite.mend import in_words, settle, warned
from amplint.rewrite.models.functions import decorate
from amplint.rewrite.plan import StepPlan, merged_parts
from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.regions.evaluation import evaluation_regions
from amplint.rewrite.remarks import remarks
from amplint.rewrite.scaler.making import Aim, Maker
from amplint.rewrite.scaler.reach import Files
from amplint.rewrite.scaler.scalers import scalers_for
from amplint.rewrite.syntax.apply import Conflict, apply
from amplint.rewrite.writer import Writer
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.project import together
from amplint.source.module import Module, Unreadable, parse
from amplint.source.symbols import fresh


@dataclass(frozen=True)
class Unit:
    """The steps of one file, as one script runs them: the reading is that of the script, seen from the file."""

    reading: Reading
    plans: tuple[StepPlan, ...]


def converted(
    units: Sequence[Unit],
    files: Sequence[Module],
    named: Sequence[Module],
    readings: Sequence[Reading],
    settings: Settings,
    along: frozenset[str],
    dtype: str,
) -> tuple[dict[Module, str], list[list[str]]]:
    """The new texts of the files, which are those of the `named` ones that go together, and what was done for each
    step; raises Refused if the outcome is not clean."""
    frames = (frame for reading in readings for event in reading.events for frame in event.frame.stack())
    reached = Files(tuple(named), settings.roots, {frame.call: frame.code for frame in frames if frame.call})
    aim, changes = Aim(settings.target_device, dtype, reached, settings.target_torch), Changes()
    maker = Maker(aim, changes)
    said: list[list[str]] = []
    writers: list[Writer] = []
    for unit in units:
        module, plans = unit.reading.module, unit.plans
        parts = merged_parts(unit.reading, plans, dtype)
        scalers = scalers_for(module, plans, files) if dtype != "bfloat16" and not plans[0].scaler else []
        writer = Writer(module, plans, parts, scalers, aim, changes)
        writer.write()
        for scaler in scalers:
            words = writer.words(scaler.steps[0])
            after = maker.make(scaler, words)
            writer.scale(scaler, partial(maker.name_at, scaler, module))
            words += after
        writer.unscaled()
        writer.said[0] += remarks(unit.reading)
        writers.append(writer)
        said += writer.said
    evaluated: set[ast.stmt] = set()
    for unit, writer in zip(units, writers, strict=True):
        _evaluations(replace(unit.reading, module=writer.module), unit, writer, evaluated, own=True)
    for unit, writer in zip(units, writers, strict=True):
        for other in files:
            for reading in readings:
                own = reading.events is unit.reading.events
                _evaluations(replace(reading, module=other), unit, _for(writer, other), evaluated, own)
    maker.finish()
    functions: list[str] = []
    for module in files:
        made, names = decorate(module, settings.target_torch, aim.device)
        changes.edits += made
        functions += names
    if functions:
        said[0].append(f"{' and '.join(functions)} decorated with custom_fwd and custom_bwd")
    new: dict[Module, Module] = {}
    for module in files:
        if made := changes.made(module):
            try:
                text = apply(module.text, made)
                new[module] = Module(module.path, text, parse(text), module.encoding)
            except Conflict:
                raise Refused("its edits would overlap", "spread the training step over lines of its own") from None
            except Unreadable as error:
                raise Refused(f"the result would not parse ({error.reason})", "please report this") from None
    texts: dict[Module, str] = {}
    every = [plan for unit in units for plan in unit.plans]
    for module, changed in new.items():
        with together([new.get(one, one) for one in files]):
            mended = settle(changed, module, settings, along)
        texts[module] = mended.module.text
        mine = [words for plan, words in zip(every, said, strict=True) if plan.module is module]
        told = mine[0] if mine else said[0]
        if mended.fixed:
            told.append("mended " + in_words(mended.fixed))
        told += warned(mended.left, "" if mine else module.path)
    return texts, said


def _for(writer: Writer, module: Module) -> Writer:
    """The writer, for another file."""
    if module is writer.module:
        return writer
    other = Writer(module, writer.plans, writer.parts, (), writer.aim, writer.changes)
    other.said = writer.said
    return other


def _evaluations(reading: Reading, unit: Unit, writer: Writer, evaluated: set[ast.stmt], own: bool) -> None:
    """Put evaluation under autocast, too. In another script's reading (`own` is False), a model is known by its name
    alone."""
    trained = [part.statements for part in writer.parts]
    for part in writer.parts:
        forward = part.forward if own else replace(part.forward, model=fresh("elsewhere"))
        for region, casts in evaluation_regions(reading, replace(unit.plans[0], forward=forward), trained):
            if evaluated & set(region):
                continue
            try:
                arrays = array_casts(reading, region) if writer.dtype != "float16" else ()
            except Refused:
                continue  # it evaluates in float32, as it did
            there = {one for cast in casts if isinstance(cast, There) for one, _ in cast.parts}
            if not there <= {one for plan in unit.plans for one in modules_of(plan)}:
                continue  # another file would change
            evaluated |= set(region)
            writer.evaluate(region, casts, arrays)
