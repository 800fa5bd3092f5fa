"""What runs under autocast: from a forward to the last statement that derives a loss from it, between the backwards."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence

from amplint.rewrite.fixes import suite_of
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module

Region = tuple[ast.stmt, ...]
Found = list[tuple[events.Forward, Region]]


def regions_of(
    reading: Reading, backwards: Sequence[events.Backward], barriers: Collection[ast.AST]
) -> list[tuple[events.Forward, Region]]:
    """The regions of some backwards, in the order of the text; those that share statements are one. `barriers` are the
    backwards and steps of the script, which no region holds."""
    found: Found = []
    for backward in backwards:
        for forward, region in _of(reading, backward, barriers):
            found = _with(reading.module, found, forward, region)
    return sorted(found, key=lambda one: (one[1][0].lineno, one[1][0].col_offset))


def _with(module: Module, found: Found, forward: events.Forward, region: Region) -> Found:
    """The regions with one more, merged with those of its block that it meets."""
    block = suite_of(module, region[0])
    apart: Found = []
    for one in found:
        if one[1][0] not in block:
            apart.append(one)
            continue
        first, last = block.index(one[1][0]), block.index(one[1][-1])
        start, end = block.index(region[0]), block.index(region[-1])
        if last < start - 1 or end < first - 1:
            apart.append(one)
            continue
        region = tuple(block[min(first, start) : max(last, end) + 1])
        forward = one[0] if first <= start else forward
    return [*apart, (forward, region)]


def _of(reading: Reading, backward: events.Backward, barriers: Collection[ast.AST]) -> Found:
    """The statements from the forward to the last one that the loss depends on: in the backward's block, or in one
    around it that the same iteration runs."""
    module = reading.module
    if not isinstance(backward.node, ast.Call) or not isinstance(backward.node.func, ast.Attribute):
        raise Refused("the backward has an unusual form", BY_HAND)
    of, _, _ = tensors.provenance((backward.loss,))
    if of:  # what another backward trains may be a part of it, detached
        of = of.union(*(tensors.provenance((e.loss,))[0] for e in reading.events if isinstance(e, events.Backward)))
    forwards = [
        event
        for event in reading.events
        if isinstance(event, events.Forward)
        and event.module is module
        and event.frame.code is backward.frame.code
        and (not of or event.model in of)
    ]
    statement = module.statement(backward.node)
    if any(isinstance(node, ast.Call) for node in ast.walk(backward.node.func.value)):
        raise Refused("the loss is computed where its backward is called", "name the loss on a line of its own first")
    if any(statement in module.ancestors(event.node) for event in forwards):
        raise Refused("forward and backward are one expression", "name the loss on a line of its own first")
    receiver = list(ast.walk(backward.node.func.value))
    needed = {node.id for node in receiver if isinstance(node, ast.Name)}
    needed |= {ast.unparse(node) for node in receiver if isinstance(node, ast.Attribute)}
    while True:
        block = suite_of(module, statement)
        found = _derivation(module, block[: block.index(statement)], needed, forwards, barriers)
        if found:
            return found
        above = module.parents[statement]
        if not isinstance(above, ast.If | ast.With | ast.Try):
            raise Refused("the loss does not come from a forward in the same iteration", BY_HAND)
        statement = above


def _derivation(
    module: Module,
    block: list[ast.stmt],
    needed: set[str],
    forwards: list[events.Forward],
    barriers: Collection[ast.AST],
) -> Found:
    """The statements of a block from the forward to the last that computes a name of `needed`, which grows by what
    these read, and shrinks by what they assign. Where they are one `with`, those inside it."""
    deriving = []
    for index in range(len(block) - 1, -1, -1):
        if stored(block[index]) & needed:
            deriving.append(index)
            needed -= _replaced(block[index])
            needed |= {node.id for node in ast.walk(block[index]) if isinstance(node, ast.Name)}
    places = {_index_in(module, block, event.node): event for event in reversed(forwards)}
    found: Found = []
    made: set[str] = set()
    for run in _runs(block, barriers):
        inside = [index for index in run if index in deriving]
        starts = [i for i in inside if i in places or (_calls(block[i]) and made & _names(block[i]))]
        if not starts:
            continue
        made |= {name for index in inside if index >= min(starts) for name in stored(block[index])}
        region = block[min(starts) : max(inside) + 1]
        if isinstance(region[0], ast.With):
            inner = _derivation(module, region[0].body, needed, forwards, barriers)
            if len(region) > 1 and (
                not inner or any(_index_in(module, region[1:], event.node) is not None for event in forwards)
            ):
                raise Refused("the loss is computed partly inside a `with`", BY_HAND)
            found += inner
        else:
            found.append((places[min(starts)] if min(starts) in places else found[-1][0], tuple(region)))
    return found


def _runs(block: list[ast.stmt], barriers: Collection[ast.AST]) -> list[range]:
    """The stretches of a block between statements that hold a backward or a step."""
    cuts = [index for index, one in enumerate(block) if any(node in barriers for node in ast.walk(one))]
    return [range(first + 1, last) for first, last in zip([-1, *cuts], [*cuts, len(block)], strict=True)]


def _replaced(statement: ast.stmt) -> set[str]:
    """The names whose value a statement replaces, whatever it was."""
    if not isinstance(statement, ast.Assign):
        return set()
    targets = [part for one in statement.targets for part in (one.elts if isinstance(one, ast.Tuple) else [one])]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _calls(statement: ast.stmt) -> bool:
    return any(isinstance(node, ast.Call) for node in ast.walk(statement))


def _names(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _index_in(module: Module, block: list[ast.stmt], node: ast.AST) -> int | None:
    above = {node, *module.ancestors(node)}
    return next((index for index, statement in enumerate(block) if statement in above), None)


def stored(statement: ast.stmt) -> set[str]:
    """The names and attribute paths that a statement assigns."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(ast.unparse(node))
    return found
