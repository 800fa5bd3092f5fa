"""Evaluation loops: where a trained model runs without gradients."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Sequence

from amplint.rewrite.fixes import suite_of
from amplint.rewrite.islands.casts import OUTPUT, tensors_made
from amplint.rewrite.islands.float32 import Cast, split
from amplint.rewrite.islands.reached import runs_functions
from amplint.rewrite.plan import StepPlan
from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.regions.lifts import lifts_of, place_in
from amplint.rewrite.regions.regions import stored
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import names_in

_SIMPLE = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr
# What refuses operands of two dtypes outside autocast.
_STRICT = frozenset(
    "mm bmm matmul addmm baddbmm einsum linear index_copy_ index_add_ scatter_ scatter_add_ masked_scatter_".split()
)
# What may hand the values on to code that knows no half precision (OpenCV, boxes in pixels), or measures by them what
# half precision is too coarse or too small for (millimetres).
_MEASURES = re.compile(
    r"post_?proc|decod|nms|suppress|boxes|bbox|detect|evaluator|coco|\.evaluate$|psnr|ssim|rmse", re.IGNORECASE
)
Region = tuple[ast.stmt, ...]


def evaluation_regions(
    reading: Reading, plan: StepPlan, trained: Sequence[Region] = ()
) -> list[tuple[Region, tuple[Cast, ...]]]:
    """For each place under no_grad that runs the trained model as the training step does: the statements from the
    forward to the last that computes a loss from it, and what a loss behind them needs in float32. `trained` are the
    regions of the training steps.

    A function that evaluates does so as a whole or not at all. Code that generates (it calls the model otherwise, or
    samples from what it says) is left alone."""
    module = reading.module
    regions: dict[ast.stmt, Region] = {}
    seen: list[ast.AST] = []
    criteria = _criteria(plan)
    losses = [event for event in reading.events if isinstance(event, events.Loss) and not event.grad]
    taken = {node for region in trained for one in region for node in ast.walk(one)}
    shared = _shared(reading, taken)
    for event in reading.events:
        if not isinstance(event, events.Forward) or event.grad or event.region:
            continue
        node = _shown(event, shared)
        if node is None or node not in module.parents or node in taken:
            continue
        if event.model != plan.forward.model and not _same_call(node, plan.forward.node):
            continue
        seen.append(node)
        first = module.statement(node)
        if not isinstance(first, _SIMPLE) or _shape(node) != _shape(plan.forward.node):
            continue
        if _samples(_whole(module, first)):
            continue
        block = suite_of(module, first)
        start = block.index(first)
        ends = [index for loss in losses if (index := place_in(module, block, loss)) is not None and index >= start]
        ends += [index for index in range(start, len(block)) if _called(block[index]) & criteria]
        behind = _models_behind(reading, first)
        ends += [index for index in range(start, len(block)) if block[index] in behind]
        between = block[start : max(ends, default=start) + 1]
        if not all(isinstance(one, _SIMPLE) and one not in taken for one in between):
            continue
        if behind <= set(between) and not _mixes(reading, between):
            regions.setdefault(first, tuple(between))
    inside = {node for region in regions.values() for one in region for node in ast.walk(one)}
    left = {module.function(node) for node in seen if node not in inside} - {None}
    chosen: list[tuple[Region, tuple[Cast, ...]]] = []
    for region in regions.values():
        if module.function(region[0]) in left:
            continue  # a part of it would be in half precision, and another not
        if any(set(region) & set(other) for other, _ in chosen):
            continue
        try:
            chosen.append(split(reading, region))
        except Refused:
            continue  # it evaluates in float32, as it did
    return chosen


def _shared(reading: Reading, taken: Collection[ast.AST]) -> set[ast.AST]:
    """The functions that the training steps call under autocast."""
    found: set[ast.AST] = set()
    for event in reading.events:
        if isinstance(event, events.Forward) and event.grad:
            stack = list(event.frame.stack())
            for index, frame in enumerate(stack):
                if frame.call in taken:
                    found |= {one.code for one in stack[: index + 1]}
    return found


def _shown(event: events.Forward, shared: Collection[ast.AST]) -> ast.AST | None:
    """Where a forward stands, or the call of the function that training and evaluation share."""
    node: ast.AST | None = event.node
    for frame in event.frame.stack():
        if frame.code not in shared:
            break
        node = None if frame.entry else frame.call
    return node


def _criteria(plan: StepPlan) -> set[str]:
    """What the training step calls to compute its loss from what the model returns."""
    needed = {node.id for one in plan.backwards for node in ast.walk(one.node) if isinstance(node, ast.Name)}
    found: set[str] = set()
    made = (node for one in plan.region for node in ast.walk(one) if isinstance(node, ast.Assign | ast.AugAssign))
    for statement in sorted(made, key=lambda one: one.lineno, reverse=True):
        if stored(statement) & needed:
            found |= _called(statement)
            needed |= names_in(statement.value)
    return found - _called(plan.forward.node) - {"sum", "float"}


def _called(code: ast.AST) -> set[str]:
    """The names and fields of `self` that some code calls."""
    found = set()
    for node in ast.walk(code):
        match node:
            case ast.Call(func=ast.Name() | ast.Attribute(value=ast.Name(id="self")) as function):
                found.add(ast.unparse(function))
    return found


def _mixes(reading: Reading, region: Sequence[ast.stmt]) -> bool:
    """Whether what a region makes is multiplied with, or put into, something that may be float32 behind it, where
    nothing casts; or what the model returns is exponentiated there, which half precision can do only up to 11, or
    given to what makes boxes or the like of it, or to a custom autograd function, which casts under autocast only."""
    module, names = reading.module, set().union(*map(stored, region))
    scope = module.scope(region[0])
    last = region[-1].end_lineno or 0
    outputs = {name for name, kind in tensors_made(reading, region).items() if kind == OUTPUT}
    for node in ast.walk(scope):
        match node:
            case ast.Call(func=ast.Attribute(attr="exp" | "exp_" | "expm1")) if node.lineno > last:
                if not names_in(node).isdisjoint(outputs):
                    return True
                continue
            case ast.Call(func=function, args=given) if node.lineno > last and _MEASURES.search(ast.unparse(function)):
                if any(isinstance(one, ast.Name) and one.id in outputs for one in map(_detached, given)):
                    return True
                continue
            case ast.BinOp(op=ast.MatMult()):
                pass
            case ast.Call(func=ast.Attribute(attr=word)) if word in _STRICT:
                pass
            case ast.Call() if node.lineno > last and _takes(node, outputs) and runs_functions(reading, node):
                return True
            case _:
                continue
        if node.lineno > last and not names_in(node).isdisjoint(names):
            return True
    return False


def _detached(value: ast.expr) -> ast.expr:
    """What `value.data` and `value.detach().cpu()` are of."""
    while True:
        match value:
            case ast.Attribute(attr="data", value=inner):
                value = inner
            case ast.Call(func=ast.Attribute(attr="detach" | "cpu", value=inner), args=[]):
                value = inner
            case _:
                return value


def _models_behind(reading: Reading, first: ast.stmt) -> set[ast.stmt]:
    """The statements that hand a model what comes from a forward: its weights would be float32 behind the region."""
    module, forwards = reading.module, lifts_of(reading).forwards
    names, found, scope = stored(first), set[ast.stmt](), module.function(first)
    statements = (one for one in ast.walk(scope or module.tree) if isinstance(one, _SIMPLE | ast.For))
    for one in sorted(statements, key=lambda one: one.lineno):
        if one.lineno <= first.lineno or module.function(one) is not scope:
            continue
        parts = [one.iter] if isinstance(one, ast.For) else [one]
        nodes = [node for part in parts for node in ast.walk(part)]
        if names & {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}:
            names |= stored(one) if not isinstance(one, ast.For) else _bound(one.target)
            if any(_takes(node, names) for node in nodes if node in forwards):
                found.add(one)
    return found


def _bound(target: ast.expr) -> set[str]:
    return names_in(target)


def _takes(call: ast.AST, names: Collection[str]) -> bool:
    """Whether a call is given one of some names."""
    given = [*call.args, *(one.value for one in call.keywords)] if isinstance(call, ast.Call) else []
    return any(isinstance(node, ast.Name) and node.id in names for one in given for node in ast.walk(one))


def _same_call(one: ast.AST, other: ast.AST) -> bool:
    """Whether both call the model by the same name: in a function that nothing calls, what it is given is unknown."""
    return (
        isinstance(one, ast.Call) and isinstance(other, ast.Call) and ast.unparse(one.func) == ast.unparse(other.func)
    )


def _shape(node: ast.AST) -> object:
    """How many arguments a call passes, and by which names."""
    if not isinstance(node, ast.Call):
        return None
    return len(node.args), sorted(keyword.arg or "**" for keyword in node.keywords)


def _whole(module: Module, statement: ast.stmt) -> ast.AST:
    """The function around a statement; at a module's top level, the outermost statement."""
    above = [statement, *module.ancestors(statement)]
    return module.function(statement) or above[-2]  # the last is the module


def _samples(code: ast.AST) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("multinomial", "Categorical", "sample", "generate")
        for node in ast.walk(code)
    )
