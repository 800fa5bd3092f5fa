"""The statements that compute a scaled loss: they ran in mixed precision, and go under autocast."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator

from amplint.rewrite.apex.group import Group
from amplint.rewrite.fixes import suite_of
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.regions.lifts import nodes_of, place_in
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.frames import Frame
from amplint.source.module import Module

Region = tuple[ast.stmt, ...]
Derivation = tuple[events.Forward, list[ast.stmt], list[int]]


class Unseen(Refused):
    """No forward is seen that leads to a loss."""

    def __init__(self) -> None:
        super().__init__("the loss does not come from a forward in the same iteration that amplint sees", BY_HAND)


def training_regions(
    group: Group, reading: Reading, backward: events.Backward, loss: ast.expr, barriers: Collection[ast.AST]
) -> tuple[events.Forward, list[Region]]:
    """The forward and the statements from it to the last one that the loss depends on, in the function of the backward
    or in one that calls it; split where a backward or step of `barriers` stands between. Raises Refused, or Unseen."""
    frame: Frame | None = backward.frame
    place: ast.AST = loss
    needed = _loaded(backward.module, loss)
    while frame is not None and frame.module in group:
        module = frame.module
        forwards = [e for e in reading.events if isinstance(e, events.Forward) and e.grad and _in(e, frame)]
        _refuse_computed(place, place is loss)
        found = _climb(module, place, set(needed), forwards)
        if found is not None:
            forward, block, deriving = found
            return forward, _split(block, deriving, barriers)
        if frame.entry or frame.call is None or frame.caller is None:
            break
        place, frame = frame.call, frame.caller
        needed = _loaded(frame.module, place)
    raise Unseen


def _refuse_computed(place: ast.AST, whole: bool) -> None:
    """Refuse a loss that is computed in the expression itself, or in what the function that scales it is given: it
    would not be under autocast. `loss.mean() / k` is fine."""
    parts = [place] if whole or not isinstance(place, ast.Call) else [*place.args, *place.keywords]
    if any(isinstance(node, ast.Call) and node.args for part in parts for node in ast.walk(part)):
        raise Refused("the loss is computed where it is scaled", "name the loss on a line of its own first")


def _split(block: list[ast.stmt], deriving: list[int], barriers: Collection[ast.AST]) -> list[Region]:
    """The runs of statements from one that derives the loss to another, without a barrier between."""
    regions: list[list[int]] = []
    for index in deriving:
        between = block[regions[-1][-1] + 1 : index] if regions else []
        if not regions or any(node in barriers for one in between for node in ast.walk(one)):
            regions.append([index])
        else:
            regions[-1].append(index)
    return [tuple(block[run[0] : run[-1] + 1]) for run in regions]


def _in(event: events.Event, frame: Frame) -> bool:
    return any(one.code is frame.code for one in event.frame.stack())


def _climb(module: Module, place: ast.AST, needed: set[str], forwards: list[events.Forward]) -> Derivation | None:
    """What computes the names in the block of a place, or in one around it that the same iteration runs."""
    statement = module.statement(place)
    if any(statement in module.ancestors(node) for event in forwards for node in nodes_of(event)) and not isinstance(
        statement, ast.With
    ):
        raise Refused("forward and backward are one statement", "name the loss on a line of its own first")
    while True:
        block = suite_of(module, statement)
        found = _derivation(module, block[: block.index(statement)], needed, forwards)
        if found is not None:
            return found
        above = module.parents[statement]
        if not isinstance(above, ast.If | ast.With | ast.Try):
            return None
        statement = above


def _derivation(
    module: Module, block: list[ast.stmt], needed: set[str], forwards: list[events.Forward]
) -> Derivation | None:
    """The statements of a block, from the forward on, that compute a name of `needed`, which grows by what these
    read."""
    deriving: list[int] = []
    for index in range(len(block) - 1, -1, -1):
        if _stored(module, block[index]) & needed:
            deriving.insert(0, index)
            needed |= _loaded(module, block[index])
    places: dict[int, events.Forward] = {}
    for event in forwards:
        place = place_in(module, block, event)
        if place is not None:
            places.setdefault(place, event)
    starts = [index for index in places if index in deriving]
    if not starts:
        return None
    deriving = [index for index in deriving if index >= min(starts)]
    only = block[deriving[0]]
    if len(deriving) == 1 and isinstance(only, ast.With):
        return _derivation(module, only.body, needed, forwards)
    return places[min(starts)], block, deriving


def _loaded(module: Module, *nodes: ast.AST) -> set[str]:
    """The names and attribute paths that code reads."""
    return set(_paths(module, (n for node in nodes for n in ast.walk(node)), ast.Load))


def _stored(module: Module, statement: ast.stmt) -> set[str]:
    return set(_paths(module, ast.walk(statement), ast.Store))


def _paths(module: Module, nodes: Iterable[ast.AST], context: type[ast.expr_context]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, context):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, context):
            yield module.source(node)


def inference_regions(group: Group, reading: Reading) -> list[Region]:
    """Where a model that is not trained runs: each simple statement that calls it."""
    found: dict[ast.stmt, None] = {}
    for event in reading.events:
        if isinstance(event, events.Forward) and event.module in group.uses and not event.region:
            statement = event.module.statement(event.node)
            if isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr):
                found[statement] = None
    if not found:
        raise Refused("amplint does not see where the model runs", "put its calls under torch.autocast by hand")
    return [(statement,) for statement in found]


_NO_GRAD = frozenset(("torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad"))


def unread_evaluations(module: Module, forward: events.Forward) -> Iterator[Region]:
    """Where code that the reading left out runs the model without gradients, by the name that training calls it."""
    called = getattr(forward.node, "func", None)
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call) or called is None or ast.unparse(node.func) != ast.unparse(called):
            continue
        if _shape(node) != _shape(forward.node):
            continue  # what it returns may be something else, probabilities for instance
        statement = module.statement(node)
        without = any(
            isinstance(above, ast.With | ast.FunctionDef)
            and any(_NO_GRAD & module.dotted(part) for part in _headers(above))
            for above in module.ancestors(statement)
        )
        if without and isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr):
            yield (statement,)


def _shape(node: ast.AST) -> object:
    """How many arguments a call passes, and by which names."""
    return isinstance(node, ast.Call) and (len(node.args), sorted(keyword.arg or "**" for keyword in node.keywords))


def _headers(above: ast.With | ast.FunctionDef) -> list[ast.expr]:
    """What a `with` enters or a function is decorated with, called or not."""
    parts = above.decorator_list if isinstance(above, ast.FunctionDef) else [one.context_expr for one in above.items]
    return [part.func if isinstance(part, ast.Call) else part for part in parts]


def evaluated(module: Module, region: Region, trained: Region) -> Region:
    """A region that evaluates, with the losses behind it that training computes in mixed precision, too: outside, they
    would be computed in half precision. Empty where they cannot be taken in."""
    called = _called(module, trained) - _called(module, region)
    while True:
        block = suite_of(module, region[0])
        stop = block.index(region[-1]) + 1
        rest = [index for index in range(stop, len(block)) if called & _called(module, (block[index],))]
        if rest:
            between = block[stop : rest[-1] + 1]
            return (*region, *between) if all(map(_simple, between)) else ()
        above = module.parents[region[0]]
        if not isinstance(above, ast.If) or not called & _called(module, suite_of(module, above)):
            return region
        region = (above,)


def _simple(statement: ast.stmt) -> bool:
    """Assignments and calls, also under a condition."""
    if isinstance(statement, ast.If):
        return all(map(_simple, (*statement.body, *statement.orelse)))
    return isinstance(statement, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr | ast.Pass)


def _called(module: Module, statements: Iterable[ast.stmt]) -> set[str]:
    """What code calls by a plain name: `criterion`, `self.loss`."""
    nodes = (node for one in statements for node in ast.walk(one))
    return {module.source(node.func) for node in nodes if isinstance(node, ast.Call) and _is_path(node.func)}


def _is_path(node: ast.expr) -> bool:
    """A name, or attributes of `self`: not a method of some value."""
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id in ("self", "F", "nn")
    return isinstance(node, ast.Name)
