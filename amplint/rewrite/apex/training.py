"""What the scaled losses are computed by: the stretches that go under autocast, and what stays in float32."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from amplint.rewrite.apex.group import Group
from amplint.rewrite.apex.region import Region, Unseen, training_regions
from amplint.rewrite.islands.float32 import PENALTY, Low, partition
from amplint.rewrite.islands.penalties import reads, sources, writes
from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.refusals.unfit import check_gradients
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.frames import Frame
from amplint.source.tree import is_differentiable

Found = dict[Region, tuple[events.Backward, events.Forward]]


@dataclass
class Trained:
    """The stretches under autocast, each with the first backward of what it computes; and what is in float32 now, in a
    person's words."""

    stretches: list[tuple[events.Backward, Low]] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def trained(
    group: Group, reading: Reading, losses: Mapping[ast.AST, ast.expr], barriers: Collection[ast.AST]
) -> Trained:
    """`losses` are those of the backward calls, `barriers` what must not be under autocast. Raises Refused."""
    regions: Found = {}
    unseen: list[tuple[events.Backward, Unseen]] = []
    for event in reading.events:
        if not isinstance(event, events.Backward) or event.node not in losses:
            continue
        try:
            forward, found = training_regions(group, reading, event, losses[event.node], barriers)
        except Unseen as none:
            unseen.append((event, none))
            continue
        for region in found if forward.region is None else ():
            regions.setdefault(region, (event, forward))
    made = Trained()
    rows = {_apart(group, event, losses[event.node], regions, reason) for event, reason in unseen}
    made.notes = [f"the loss of line {row} is in float32: amplint does not see its forward" for row in sorted(rows)]
    ordered = sorted(regions, key=lambda one: (group.of(one[0]).path, one[0].lineno, -one[-1].lineno))
    if not any(is_differentiable(node) for module in group.uses for node in ast.walk(module.tree)):
        made.stretches = [(regions[one][0], Low(regions[one][1], one)) for one in ordered]
        return made
    for module in dict.fromkeys(group.of(one[0]) for one in ordered):
        here = replace(reading, module=module)
        check_gradients(here, ())
        _islands(here, {one: regions[one] for one in ordered if group.of(one[0]) is module}, made)
    return made


def _islands(reading: Reading, regions: Found, made: Trained) -> None:
    """The stretches of one file that has gradient penalties: these stay in float32, as they do where no apex was."""
    parts = partition(reading, [(forward, region) for region, (_, forward) in regions.items()], "float16", whole=True)
    if PENALTY in parts.kept:
        made.changes = ["gradient penalties are computed in float32, where apex used half precision"]
    for low in parts.low:
        if low.named or not low.region:
            raise Refused("a loss that stays in float32 runs the model itself", "name what the model returns first")
        first = next(backward for region, (backward, _) in regions.items() if low.region[0] in region)
        made.stretches.append((first, low))


def _apart(group: Group, backward: events.Backward, loss: ast.expr, regions: Found, reason: Unseen) -> int:
    """The line of a backward whose forward is not seen, or of the call that leads to it: its loss is computed in
    float32, all of it, if nothing of it comes from a stretch under autocast. Raises `reason` where it may."""
    inside = [part for region in regions for one in region for part in ast.walk(one)]
    frame: Frame | None = backward.frame
    place: ast.AST = loss
    while regions and frame is not None and frame.module in group:
        module, here = frame.module, frame.module.statement(place)
        statements, names = sources(module, frame.code, here, reads(place))
        stored = {
            name
            for region in regions
            if frame.code in group.of(region[0]).ancestors(region[0])
            for one in region
            for name in writes(one)
        }
        asked = _asked(node for one in statements for node in ast.walk(one))
        if set(statements) & set(inside) or names & stored or asked & _run(inside):
            break
        if frame.entry or frame.call is None or frame.caller is None:
            if names & {one.arg for one in ast.walk(frame.code) if isinstance(one, ast.arg)} - {"self"}:
                break  # nothing says what it is given
            return module.range(place).start.row
        place, frame = frame.call, frame.caller
    raise reason


def _asked(nodes: Iterable[ast.AST]) -> set[str]:
    """The objects whose methods code calls: `self.head` of `self.head.loss()`, which may hold what it was given."""
    return {
        ast.unparse(node.func.value)
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }


def _run(nodes: Iterable[ast.AST]) -> set[str]:
    """The objects that code calls, or methods of fields of them."""
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    fields = (one.value for one in calls if isinstance(one, ast.Attribute) and isinstance(one.value, ast.Attribute))
    return {ast.unparse(one) for one in (*calls, *fields)}
