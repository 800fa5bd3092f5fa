"""What stays in float32 between the regions: losses that CUDA autocast refuses, and gradient penalties.

Such a statement runs outside autocast, and so does what follows it, up to the next forward. What a region made is cast
with `.float()` where it is used there.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.islands import penalties
from amplint.rewrite.islands.casts import Uncast, operand, read_outside
from amplint.rewrite.islands.islands import islands, keep, words
from amplint.rewrite.islands.logarithms import logarithms
from amplint.rewrite.islands.logits import Logits, logits
from amplint.rewrite.islands.sigmoids import ADVICE, REASON, Bare, Tail, There, returned_by, sigmoid_before
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.regions.derivation import of_model
from amplint.rewrite.regions.lifts import lifts_of, nodes_of, shown, standing
from amplint.rewrite.regions.named import Named, may_move, named, taken_in
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import called_name
from amplint.source.values import Instance

Region = tuple[ast.stmt, ...]
PENALTY = "the gradient penalty in float32"
PROBABILITIES = "binary cross entropy, and the sigmoid before it, in float32"
LOGITS = "binary cross entropy on logits"


class Use(NamedTuple):
    """What stands where a forward moved away; `{torch}` is what torch is called there."""

    call: ast.Call
    text: str


Cast = ast.expr | Tail | Bare | There | Use | Logits


class Low(NamedTuple):
    """A stretch that can run under autocast, with its first forward, the expressions elsewhere that need float32, and
    the forwards that move from the statement behind it to a line of their own at its end. `before` is what the stretch
    stands before, if it has nothing but these."""

    forward: events.Forward
    region: Region
    casts: tuple[Cast, ...] = ()
    named: tuple[Named, ...] = ()
    before: ast.stmt | None = None


@dataclass
class Parts:
    """What a set of regions falls into; `kept` says what stays in float32, in a person's words."""

    low: list[Low] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def cast_edits(module: Module, cast: Cast, torch: str) -> list[Edit]:
    """`.float()` for an expression; a Sigmoid at the end of a Sequential becomes one of the float32 output."""
    if isinstance(cast, Logits):
        return list(cast.edits)
    if isinstance(cast, There):
        return [edit for other, part in cast.parts for edit in _edits_there(other, part)]
    if isinstance(cast, Use):
        return edits.replace(module, cast.call, cast.text.format(torch=torch))
    if isinstance(cast, Bare):
        made = edits.change_call(module, cast.sequential, remove=(len(cast.sequential.args) - 1,))
        for call in cast.calls:
            made += edits.wrap_call(module, call, f"{torch}.sigmoid({{}}.float())")
        return made
    operand = cast.returned if isinstance(cast, Tail) else cast
    text = module.source(operand)
    simple = isinstance(operand, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
    text = f"{text if simple else f'({text})'}.float()"
    if not isinstance(cast, Tail):
        return edits.replace(module, operand, text)
    made = edits.change_call(module, cast.sequential, remove=(len(cast.sequential.args) - 1,))
    return made + edits.replace(module, operand, f"{torch}.sigmoid({text})")


def _edits_there(module: Module, part: ast.expr | Tail) -> list[Edit]:
    if not isinstance(part, Tail):
        return cast_edits(module, part, "")
    torch = edits.binding_of(module, "torch", at=module.statement(part.returned))
    made = [] if torch else edits.add_import(module, "import torch")
    return made + cast_edits(module, part, torch or "torch")


def split(reading: Reading, region: Region) -> tuple[Region, tuple[Cast, ...]]:
    """The one part of a region that can run under autocast, and what the rest needs in float32."""
    forwards = _forwards(reading)
    first = next(forwards[node] for statement in region for node in ast.walk(statement) if node in forwards)
    low = partition(reading, [(first, region)], "float16").low
    if len(low) != 1 or low[0].named:
        raise Refused(REASON, ADVICE)
    return low[0].region, low[0].casts


def partition(
    reading: Reading, regions: Sequence[tuple[events.Forward, Region]], dtype: str, whole: bool = False
) -> Parts:
    """The parts of some regions that can run under autocast, and what the others need for float32: what the sigmoid is
    given (in half precision it is 0 or 1 too soon, and the loss's gradient infinite there), and what was computed
    under autocast. With `whole`, these are all regions of the script: any other forward runs in float32, too. What
    prepares a float32 statement is float32 as well, unless it uses what cannot be cast there."""
    stay: set[ast.stmt] = set()  # under autocast
    while True:
        try:
            return _partition(reading, regions, dtype, whole, stay)
        except Uncast as uncast:
            statement = reading.module.statement(uncast.name)
            if statement in stay:
                raise
            stay.add(statement)


def _partition(
    reading: Reading,
    regions: Sequence[tuple[events.Forward, Region]],
    dtype: str,
    whole: bool,
    stay: Collection[ast.stmt],
) -> Parts:
    module = reading.module
    made = Parts()
    runs: list[Low] = []
    outside: list[ast.stmt] = []
    casts: list[Cast] = list(logarithms(reading, [region for _, region in regions]))
    identical: set[str] = set()
    forwards = _forwards(reading)
    on_logits = logits(reading)
    taken = taken_in(module.tree)
    for forward, region in regions:
        strict, inputs = penalties.penalties(reading, module.scope(region[0]), must=dtype != "bfloat16")
        identical |= inputs
        apart = [any(node in strict for node in ast.walk(statement)) for statement in region]
        losses = [_probabilities(reading, statement) for statement in region]
        if any(apart):
            made.kept.append(PENALTY)
        if any(losses) and on_logits is not None:
            made.kept.append(LOGITS)
            casts += [on_logits] if whole else []
            losses = [[] for _ in region]
        if any(losses):
            made.kept.append(PROBABILITIES)
        hoisted: dict[ast.stmt, list[Named]] = {}
        for statement, calls in islands(reading, region, forwards).items():
            index = region.index(statement)
            if not apart[index]:
                hoisted[statement] = _hoisted(module, statement, calls, forwards.keys() - set(calls), taken)
                apart[index] = True
            made.kept += words(module, calls)
            keep(reading, calls)
        for index, given in enumerate(losses):
            casts += [sigmoid_before(reading, event) for event in given]
            if given and not apart[index]:
                ways = {node for loss in given for node in nodes_of(loss)}
                hoisted[region[index]] = _hoisted(module, region[index], ways, forwards, taken)
            apart[index] = apart[index] or bool(given)
        low, rest = _runs(reading, forward, region, apart, forwards, hoisted, stay)
        ours = [one for one in rest if one in region and not apart[region.index(one)]]
        if any(apart) and any(of_model(node, lifts_of(reading)) for one in ours for node in ast.walk(one)):
            raise Refused("its loss is float32 in part, and amplint does not see what the model's methods run", BY_HAND)
        runs += low
        outside += rest
    if whole:
        outside += _other_forwards(reading, [region for _, region in regions])
    after = _float32_after(reading, casts)
    moved = [one for low in runs for one in low.named]
    bare = {call for cast in casts if isinstance(cast, Bare) for call in cast.calls}
    casts = [_unmoved(cast, {one.call for one in moved}) for cast in casts]
    for one in moved:
        text = one.name if one.call not in bare and after.get(one.call, 0) is None else f"{one.name}.float()"
        casts.append(Use(one.call, f"{{torch}}.sigmoid({text})" if one.call in bare else text))
    apart_nodes = {node for one in moved for node in ast.walk(one.call)}
    regions_low = [one.region for one in runs if one.region]
    for node, kind, bindings in read_outside(reading, regions_low, outside, after):
        if node in apart_nodes:
            continue
        if node.id in identical:  # a gradient is taken by the tensor that it names
            casts += bindings.values(node)
        elif (cast := operand(module, node, kind)) is not None:
            casts.append(cast)
    given_once = tuple(cast for cast in dict.fromkeys(casts) if cast not in {one.call for one in moved})
    made.low = [one._replace(casts=() if index else given_once) for index, one in enumerate(runs)]
    made.kept = list(dict.fromkeys(made.kept))
    return made


def _unmoved(cast: Cast, moved: set[ast.Call]) -> Cast:
    """A cast, but for what is cast where it moves to."""
    return cast._replace(calls=tuple(one for one in cast.calls if one not in moved)) if isinstance(cast, Bare) else cast


def _hoisted(
    module: Module, statement: ast.stmt, ways: Collection[ast.AST], forwards: Collection[ast.AST], taken: set[str]
) -> list[Named]:
    """The forwards that a statement gives to what is computed in float32; `ways` are the calls that lead there."""
    inside = [node for node in ast.walk(statement) if node in forwards]
    if any(one in ways for node in inside for one in ast.walk(node)):
        raise Refused(REASON, "compute the loss of what the model returns where that has a name")
    return named(module, statement, inside, taken) if inside else []


def _forwards(reading: Reading) -> dict[ast.AST, events.Forward]:
    """The calls that run a model, or a function that does."""
    found: dict[ast.AST, events.Forward] = {}
    for event in reading.events:
        if isinstance(event, events.Forward):
            found.setdefault(event.node, event)
            for frame in event.frame.stack():
                if frame.call is not None and frame.caller is not None:
                    found.setdefault(frame.call, shown(event, frame.call))
    return found


def _runs(
    reading: Reading,
    forward: events.Forward,
    region: Region,
    strict: list[bool],
    forwards: dict[ast.AST, events.Forward],
    hoisted: dict[ast.stmt, list[Named]],
    stay: Collection[ast.stmt],
) -> tuple[list[Low], list[ast.stmt]]:
    """The stretches of a region from a forward to what must be float32, and the other statements."""
    held = [any(node in forwards for node in ast.walk(one)) for one in region]
    kinds: list[bool] = []  # whether a statement is under autocast
    for index, runs in enumerate(held):
        kinds.append(not strict[index] and (runs or not kinds or kinds[-1]))
    fixed = [runs or one in stay or _computes_loss(reading, one) for runs, one in zip(held, region, strict=True)]
    for index in range(len(region) - 1, 0, -1):
        if kinds[index - 1] and not kinds[index] and not hoisted.get(region[index]):
            _give_back(region, kinds, strict, fixed, index)
    firsts = [next((forwards[node] for node in ast.walk(one) if node in forwards), forward) for one in region]
    found: list[Low] = []
    between: list[ast.stmt] = []  # losses since the last stretch, whose forwards moved to its end
    for index, low in enumerate(kinds):
        names = hoisted.get(region[index], [])
        if low and index and kinds[index - 1]:
            found[-1] = found[-1]._replace(region=(*found[-1].region, region[index]))
        elif low:
            found.append(Low(firsts[index], (region[index],)))
            between = []
        elif names:
            behind = bool(index and found and (kinds[index - 1] or (between and between[-1] is region[index - 1])))
            if behind and all(may_move(between, one.call) for one in names):
                found[-1] = found[-1]._replace(named=(*found[-1].named, *names))
                between.append(region[index])
            else:
                found.append(Low(firsts[index], (), (), tuple(names), region[index]))
                between = [region[index]]
    return found, [one for one, low in zip(region, kinds, strict=True) if not low]


def _give_back(region: Region, kinds: list[bool], strict: list[bool], fixed: list[bool], at: int) -> None:
    """What stands between the last forward before `at` and the float32 statements from there on, and only prepares
    these, is float32, too: labels, interpolated inputs."""
    needed: set[str] = set()
    for index in range(at, len(region)):
        if kinds[index]:
            break
        if strict[index]:
            needed |= _names(region[index])
    while at > 1 and kinds[at - 1] and not fixed[at - 1] and _changed(region[at - 1]) & needed:
        at -= 1
        kinds[at] = False
        needed |= _names(region[at])


def _names(statement: ast.stmt) -> set[str]:
    """What a statement reads, also where it adds to that."""
    found = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    grown = (node.target for node in ast.walk(statement) if isinstance(node, ast.AugAssign))
    return found | {target.id for target in grown if isinstance(target, ast.Name)}


def _changed(statement: ast.stmt) -> set[str]:
    """The names that a statement assigns, or to whose fields it assigns."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            root: ast.expr = node
            while isinstance(root, ast.Attribute):
                root = root.value
            found |= {root.id} if isinstance(root, ast.Name) else set()
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method))) if method[-1:] == "_":
            found.add(name)
    return found


def _computes_loss(reading: Reading, statement: ast.stmt) -> bool:
    inside = set(ast.walk(statement))
    return any(
        event.node in inside or any(frame.call in inside for frame in event.frame.stack())
        for event in reading.events
        if isinstance(event, events.Loss)
    )


def _other_forwards(reading: Reading, regions: Sequence[Region]) -> list[ast.stmt]:
    """The statements outside of all regions, but in their functions, that run a model."""
    inside = {node for region in regions for statement in region for node in ast.walk(statement)}
    codes = {reading.module.scope(region[0]) for region in regions}
    found: dict[ast.stmt, None] = {}
    under = {
        node
        for event in reading.events
        if isinstance(event, events.Forward) and inside & set(standing(event))
        for node in standing(event)
    }
    for node in _forwards(reading):
        if node in reading.module.parents and node not in inside and node not in under:
            statement = reading.module.statement(node)
            if isinstance(statement, ast.Assign | ast.AugAssign | ast.Expr) and reading.module.scope(node) in codes:
                found[statement] = None
    return list(found)


def _float32_after(reading: Reading, casts: list[Cast]) -> dict[ast.AST, int | None]:
    """The calls of models (and of sigmoids) whose last sigmoid is computed in float32, and which element of what they
    return it is."""
    module = reading.module
    classes: dict[ast.AST, int | None] = {}
    calls: dict[ast.AST, int | None] = {}
    own = [(module, one) for one in casts if isinstance(one, ast.expr | Tail)]
    for source, cast in (*own, *(part for one in casts if isinstance(one, There) for part in one.parts)):
        if isinstance(cast, Tail):
            above = source.parents[cast.returned]
            index = above.elts.index(cast.returned) if isinstance(above, ast.Tuple) else None
            classes |= {one: index for one in source.ancestors(cast.sequential) if isinstance(one, ast.ClassDef)}
            continue
        around = source.parents[cast]
        calls[source.parents[around] if isinstance(around, ast.Attribute) else around] = None
        if (cls := returned_by(source, cast)) is not None:
            classes[cls] = None
    calls |= {call: None for cast in casts if isinstance(cast, Bare) for call in cast.calls}
    return calls | {
        event.node: classes[event.model.cls.node]
        for event in reading.events
        if isinstance(event, events.Forward) and isinstance(event.model, Instance) and event.model.cls.node in classes
    }


def _probabilities(reading: Reading, statement: ast.stmt) -> list[events.Operation]:
    """What a statement computes, calls included, that autocast refuses. In a model's own forward it cannot be helped
    from here."""
    inside = set(ast.walk(statement))
    calls = {called_name(node) for node in inside if isinstance(node, ast.Call)}
    around = {statement, *reading.module.ancestors(statement)}
    found = []
    for event in reading.events:
        if not isinstance(event, events.Operation) or event.name != "binary_cross_entropy":
            continue
        frames = list(event.frame.stack())
        functions = [frame.code for frame in frames if isinstance(frame.code, ast.FunctionDef)]
        if event.node in inside or any(one.name in calls and one not in around for one in functions):
            if any(frame.in_model for frame in frames) or event.module is not reading.module:
                raise Refused(REASON, ADVICE)
            found.append(event)
    return found
