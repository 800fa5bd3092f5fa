"""What goes where: for each training step of a script, whether and how it becomes an AMP step, or why not."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field

from amplint.rewrite.fixes import suite_of
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.frames import Frame
from amplint.source.module import Module
from amplint.source.values import Optimizer, Sym


class Refused(Exception):
    """A training step that stays as it is: why, and what a person can do."""

    def __init__(self, reason: str, advice: str):
        super().__init__(reason)
        self.reason = reason
        self.advice = advice


@dataclass(frozen=True)
class StepPlan:
    """One training step: where its parts stand."""

    step: events.Step
    backward: events.Backward
    create: events.Create
    forward: events.Forward
    region: tuple[ast.stmt, ...]  # from the forward to the last statement that derives the loss
    clips: tuple[ast.AST, ...] = ()
    reads: tuple[ast.AST, ...] = ()
    path: tuple[
        Frame, ...
    ] = ()  # from the function that steps outwards, to (not with) the one that makes the optimizer


@dataclass
class Plans:
    """All training steps of a script, by the place of the step."""

    plans: list[StepPlan] = field(default_factory=list)
    refused: list[tuple[ast.AST, Refused]] = field(default_factory=list)
    already: list[ast.AST] = field(default_factory=list)


def make_plans(reading: Reading, dtype: str, together: Sequence[Module] = ()) -> Plans:
    """Look at every step that the reading met in its own file; `together` are the files named with it."""
    made = Plans()
    module = reading.module
    by_node: dict[ast.AST, list[events.Step]] = {}
    for event in reading.events:
        if isinstance(event, events.Step) and event.module is module:
            by_node.setdefault(event.node, []).append(event)
    for node, steps in by_node.items():
        try:
            if any(_in_amp(step) for step in steps):
                made.already.append(node)
            else:
                made.plans.append(_plan(reading, steps, dtype, together))
        except Refused as refusal:
            made.refused.append((node, refusal))
    if not by_node:
        for event in reading.events:
            if isinstance(event, events.Backward) and event.module is module and event.node not in made.already:
                reason = "no optimizer steps after this backward: the parameters are updated by hand"
                if not any(node is event.node for node, _ in made.refused):
                    made.refused.append((event.node, Refused(reason, "use an optimizer from torch.optim")))
    return made


def _in_amp(step: events.Step) -> bool:
    before = step.before
    return step.scaler is not None or before.kind in ("managed", "scaled", "unscaled") or before.region is not None


def _plan(reading: Reading, steps: list[events.Step], dtype: str, together: Sequence[Module]) -> StepPlan:
    module, step = reading.module, steps[0]
    _whole_script(reading, dtype, (module, *together))
    if any(one.optimizer.closure or one.closure for one in steps):
        raise Refused("its step() runs the backward in a closure", "a GradScaler cannot drive it: keep float32")
    stepping = (e.optimizer for e in reading.events if isinstance(e, events.Step) and e.module is module)
    if len({optimizer.node or optimizer for optimizer in stepping}) > 1:
        raise Refused("the script has several optimizers", "amplint converts scripts with one optimizer so far")
    backwards = [o for one in steps for o in one.before.origins if isinstance(o, events.Backward)]
    nodes = {backward.node for backward in backwards}
    if not backwards:
        raise Refused("no backward was seen before this step", "convert it by hand")
    if len(nodes) > 1:
        raise Refused("several backward calls share this step", "convert it by hand")
    backward = backwards[0]
    if backward.frame.code is not step.frame.code or backward.module is not module:
        raise Refused("backward and step are in different functions", "convert it by hand")
    forward, region = _region(reading, backward)
    create, path = _way(reading, step)
    clips: list[events.Event] = []
    reads: list[events.Event] = []
    for event in reading.events:
        if isinstance(event, events.Clip | events.ReadGradient) and any(o == step.optimizer for o, _ in event.touched):
            (clips if isinstance(event, events.Clip) else reads).append(event)
    if any(event.frame.code is not step.frame.code for event in (*clips, *reads)):
        raise Refused("gradients are clipped or read in another function", "convert it by hand")
    return StepPlan(
        step,
        backward,
        create,
        forward,
        region,
        tuple(dict.fromkeys(event.node for event in clips)),
        tuple(dict.fromkeys(event.node for event in reads)),
        path,
    )


def _whole_script(reading: Reading, dtype: str, together: Sequence[Module]) -> None:
    """What makes a script as a whole unfit."""
    module = reading.module
    for event in reading.events:
        if isinstance(event, events.Cast) and event.dtype == "float64":
            raise Refused("the model is float64", "float64 is there for a reason: keep it")
        if isinstance(event, events.Cast) and event.dtype in ("float16", "bfloat16"):
            raise Refused("the model is cast to half precision", "remove the cast first (amplint check says where)")
        if isinstance(event, events.ChangeWeights) and event.how in _BY_HAND and _trains_by_hand(reading, event):
            raise Refused("parameters are also updated by hand", "a GradScaler only steps optimizers: keep float32")
        if isinstance(event, events.Operation) and event.name == "binary_cross_entropy":
            raise Refused(
                "its loss is binary cross entropy on probabilities, which CUDA autocast refuses",
                "use binary_cross_entropy_with_logits on logits first",
            )
        if dtype == "bfloat16" and isinstance(event, events.Operation) and event.name == "numpy":
            raise Refused(
                "it turns model outputs into NumPy arrays, which have no bfloat16", "add .float() before .numpy()"
            )
    words = {node.attr for one in together for node in ast.walk(one.tree) if isinstance(node, ast.Attribute)}
    if words & {"share_memory"}:
        raise Refused("processes share the parameters without locks (Hogwild)", "keep float32")
    if words & {"spmm", "sparse", "to_sparse", "SparseAdam", "sparse_coo_tensor"}:
        raise Refused("it multiplies sparse matrices, which have no half-precision kernels everywhere", "keep float32")
    if words & {"double"} or "torch.float64" in module.text:
        raise Refused("it computes in float64", "float64 is there for a reason: keep it")
    imported = {name.partition(".")[0] for names in module.imports.values() for name in names}
    if imported & {"gym", "gymnasium", "stable_baselines3"}:
        raise Refused("it is reinforcement learning: rollout and update must agree in precision", "convert it by hand")
    for event in reading.events:
        if isinstance(event, events.Backward) and event.module is module and _stops_on_loss(module, event):
            raise Refused("its loop ends on a loss threshold, which half precision may never reach", "keep float32")


_BY_HAND = {"add_", "sub_", "assigned in place", "assigned .data", "addcmul_", "addcdiv_", "copy_"}


def _trains_by_hand(reading: Reading, event: events.ChangeWeights) -> bool:
    """Whether a change of weights uses gradients: p.data.add_(p.grad, alpha=-lr)."""
    statement = event.module.statement(event.node)
    return any(isinstance(node, ast.Attribute) and node.attr == "grad" for node in ast.walk(statement))


def _stops_on_loss(module: Module, backward: events.Backward) -> bool:
    receiver = backward.node.func.value if _is_method(backward.node) else None  # type: ignore[attr-defined]
    names = {node.id for node in ast.walk(receiver) if isinstance(node, ast.Name)} if receiver else set()
    for loop in module.ancestors(backward.node):
        if not isinstance(loop, ast.For | ast.While):
            continue
        for node in ast.walk(loop):
            if isinstance(node, ast.If) and any(isinstance(inner, ast.Break) for inner in node.body):
                tested = {inner.id for inner in ast.walk(node.test) if isinstance(inner, ast.Name)}
                if tested & names and isinstance(node.test, ast.Compare):
                    return True
    return False


def _is_method(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)


def _region(reading: Reading, backward: events.Backward) -> tuple[events.Forward, tuple[ast.stmt, ...]]:
    """The statements from the forward to the last one that the loss depends on, all in the backward's block."""
    module = reading.module
    if not _is_method(backward.node):
        raise Refused("the backward has an unusual form", "convert it by hand")
    statement = module.statement(backward.node)
    block = suite_of(module, statement)
    end = block.index(statement)
    of, _, _ = tensors.provenance((backward.loss,))
    forwards: dict[int, events.Forward] = {}
    for event in reading.events:
        if isinstance(event, events.Forward) and event.module is module and event.frame.code is backward.frame.code:
            place = _index_in(module, block, event.node)
            if place is not None and place < end and (not of or event.model in of):
                forwards.setdefault(place, event)
    if not forwards:
        if _index_in(module, block, backward.node) is not None and any(
            isinstance(e, events.Forward) and statement in module.ancestors(e.node) for e in reading.events
        ):
            raise Refused("forward and backward are one expression", "name the loss on a line of its own first")
        raise Refused("the forward is not in the same block as the backward", "convert it by hand")
    needed = {node.id for node in ast.walk(backward.node.func.value) if isinstance(node, ast.Name)}  # type: ignore[attr-defined]
    paths = {module.source(node) for node in ast.walk(backward.node.func.value) if isinstance(node, ast.Attribute)}  # type: ignore[attr-defined]
    deriving = []
    for index in range(end - 1, -1, -1):
        stored = _stored(module, block[index])
        if stored & (needed | paths):
            deriving.append(index)
            needed |= {node.id for node in ast.walk(block[index]) if isinstance(node, ast.Name)}
    first = min(index for index in forwards if index in deriving) if any(i in deriving for i in forwards) else None
    if first is None:
        raise Refused("the loss does not come from a forward in its block", "convert it by hand")
    last = max(deriving)
    return forwards[first], tuple(block[first : last + 1])


def _index_in(module: Module, block: list[ast.stmt], node: ast.AST) -> int | None:
    above = {node, *module.ancestors(node)}
    return next((index for index, statement in enumerate(block) if statement in above), None)


def _stored(module: Module, statement: ast.stmt) -> set[str]:
    """The names and attribute paths that a statement assigns."""
    found = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(module.source(node))
    return found


def _way(reading: Reading, step: events.Step) -> tuple[events.Create, tuple[Frame, ...]]:
    """Where the optimizer is made, and the calls from there to the step."""
    optimizer: Optimizer = step.optimizer
    create = next((e for e in reading.events if isinstance(e, events.Create) and e.value == optimizer), None)
    if create is None:
        known = isinstance(optimizer.site, Sym) and optimizer.site.kind == "argument"
        where = "its caller is not in this file" if known else "amplint does not see it being made"
        raise Refused(
            f"the optimizer comes from elsewhere: {where}", "name the other files, too, or convert it by hand"
        )
    if create.module is not reading.module:
        raise Refused("the optimizer is made in another file", "convert it by hand")
    path: list[Frame] = []
    for frame in step.frame.stack():
        if frame.code is create.frame.code:
            return create, tuple(path)
        path.append(frame)
    if isinstance(create.frame.code, ast.Module):
        return create, ()
    raise Refused("the optimizer does not reach the step by calls that amplint can follow", "convert it by hand")
