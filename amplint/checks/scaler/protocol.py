"""What the checks of the scaler protocol share: reading steps and backward passes off the events."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from amplint.checks.registry import (
    Script,
    first_argument,
    fork,
    receiver,
    text,
)
from amplint.source import events
from amplint.source.interpret.tensors import dtype_of
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import assigned_to, calls_in, named_argument, names_in
from amplint.source.values import (
    FALSE,
    Optimizer,
    Scaler,
    Tensor,
    Value,
)
from amplint.source.walk import walk


def backwards_of(gradients: events.Gradients) -> list[events.Backward]:
    return [origin for origin in gradients.origins if isinstance(origin, events.Backward)]


def unscaled_in_last_round(
    script: Script, use: events.Event, optimizer: Optimizer, backwards: Iterable[events.Backward]
) -> bool:
    """Whether the loop over micro-batches, which is over where gradients are used, unscales them itself: in the round
    that it takes for the last, whatever that is asked by."""
    over = {loop.node for backward in backwards for loop in backward.loops} - {loop.node for loop in use.loops}
    return any(
        unscale.optimizer == optimizer and any(loop.node in over for loop in unscale.loops)
        for unscale in (script.events(events.Unscale) if over else ())
    )


def steps_of(script: Script, optimizer: Optimizer, scaled: bool) -> Iterator[events.Step]:
    """All steps of an optimizer, through a scaler or not."""
    for step in script.events(events.Step):
        if step.optimizer == optimizer and (step.scaler is not None) is scaled:
            yield step


def flag_decides(event: events.Event, others: Iterable[events.Event], but_for: events.Event | None = None) -> bool:
    """Whether the other way of doing it stands in the other arm of an `if`: then a flag that amplint cannot relate to
    the scaler chooses between them, and nothing is known to be wrong. What counts rounds (`if i % 4 == 0`) is none, nor
    is a flag that is asked once for both the event and what it is held against (`but_for`)."""
    return any(
        not _counts(event.module, branch) and not (but_for and same_arm(branch, event, but_for))
        for branch in forks(event, others)
    )


def _counts(module: Module, branch: ast.AST) -> bool:
    """Whether a branch asks for the remainder of a loop's counter: its arms run in turn."""
    if not isinstance(branch, ast.If):
        return False
    counters = {
        node.id
        for loop in module.ancestors(branch)
        if isinstance(loop, ast.For)
        for node in walk(loop.target)
        if isinstance(node, ast.Name)
    }
    return any(
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and not names_in(node.left).isdisjoint(counters)
        for node in walk(branch.test)
    )


def forks(event: events.Event, others: Iterable[events.Event]) -> Iterator[ast.AST]:
    """The branches that choose between an event and the others."""
    for other in others:
        place = place_in(event, other)
        branch = None if place is None else fork(event.module, event.node, place)
        if branch is not None:
            yield branch


def same_arm(branch: ast.AST, event: events.Event, other: events.Event) -> bool:
    """Whether two events stand in one arm of a branch: what the branch asks is answered alike for both."""
    place = place_in(event, other)
    inside = place is not None and branch in event.module.ancestors(place)
    return inside and fork(event.module, event.node, place) is not branch  # type: ignore[arg-type]


def place_in(event: events.Event, other: events.Event) -> ast.AST | None:
    """Where the function of one event runs the other: at its own node, or at the call that leads to it."""
    node: ast.AST | None = other.node
    for frame in other.frame.stack():
        if frame.code is event.frame.code:
            return node
        node = frame.call
    return None


def named(step: events.Step) -> str:
    """The optimizer as the source names it."""
    return first_argument(step) if step.scaler is not None else receiver(step) or "the optimizer"


def scaler_name(gradients: events.Gradients) -> str:
    """The scaler as the source names it where it scales, or else unscales."""
    for event in (*gradients.origins, *gradients.by):
        uses = (one for one in walk(event.node) if isinstance(one, ast.Attribute) and one.attr in ("scale", "unscale_"))
        if (used := next(uses, None)) is not None:
            return text(event.module, used.value)
    return "scaler"


def only_bfloat16(script: Script, scaler: Value) -> bool:
    """Whether all losses that a scaler is seen to scale are computed in bfloat16, which needs none: AMP123 says so, and
    nothing is lost with its state."""
    scaled = [b for b in script.events(events.Backward) if b.scaler == scaler]
    regions = [b.loss.region if isinstance(b.loss, Tensor) else None for b in scaled]
    return bool(regions) and all(
        region is not None and not region.assumed and dtype_of(region.autocast.dtype) == "bfloat16"
        for region in regions
    )


def first_scale(create: events.Event | None) -> str:
    """What a message calls the scale that a GradScaler begins with."""
    node = create.node if create is not None else None
    if isinstance(node, ast.Call):
        given = named_argument(node, "init_scale")
        if given is not None:
            return _number(given) or "init_scale"
        return next(
            (number for one in node.args[:2] if (number := _number(one))), "65536"
        )  # behind the device, or first
    return "65536"


def _number(node: ast.expr) -> str:
    """A number, or a power of two numbers."""
    match node:
        case ast.Constant(value=bool()):
            return ""
        case ast.Constant(value=int() | float() as number):
            return f"{number:g}"
        case ast.BinOp(
            left=ast.Constant(value=int() | float() as base),
            op=ast.Pow(),
            right=ast.Constant(value=int() | float() as power),
        ) if abs(power) < 64:
            return f"{base**power:g}"
    return ""


def scale_at_first(script: Script, scaler: Value | None) -> str:
    """`first_scale` of a scaler, wherever it is made."""
    return first_scale(script.created(scaler))


def is_disabled(scaler: Value) -> bool:
    return isinstance(scaler, Scaler) and scaler.enabled == FALSE


def measures(clip: events.Clip) -> bool:
    """Clipping with no limit only measures the norm; fairseq's optimizers take 0 for none."""
    if not isinstance(clip.node, ast.Call):
        return False
    match clip.node:
        case ast.Call(func=ast.Attribute(attr="clip_grad_norm"), args=[ast.Constant(value=0), *_]):
            return True
    limit = clip.node.args[1] if len(clip.node.args) > 1 else None
    for keyword in clip.node.keywords:
        if keyword.arg in ("max_norm", "clip_value"):
            limit = keyword.value
    if limit is None:
        return False
    match limit:
        case ast.Constant(value=None):
            return True
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value=str() as number)]):
            return number.strip("+-") in ("inf", "infinity")
        case ast.Attribute(attr="inf"):
            return True
    return False


def unscaled_by_a_method(clip: events.Clip) -> bool:
    """Whether a method that says that it unscales is called before the clip (`self.unscale_gradients()`): it may do so
    in a way that is not followed."""
    module = clip.module
    function = module.function(clip.node)
    return function is not None and any(
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and "unscale" in call.func.attr
        and call.func.attr != "unscale_"
        and call.lineno <= clip.node.lineno  # type: ignore[attr-defined]
        for call in walk(function)
    )


def lineno(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)


def is_scaler(module: Module, node: ast.expr) -> bool:
    """Whether what steps or updates passes for a GradScaler where only text is read: it is called one, and the file
    makes it of no other class. Use alone is too little there: a game has an update() and a step(action), too."""
    return "scaler" in module.source(node).lower() and not is_made_otherwise(module, node)


def is_made_otherwise(module: Module, node: ast.expr) -> bool:
    """Whether a file makes something of a class, or by a function, that is no GradScaler by its name."""
    made = [call for value in assigned_to(module.tree, module.source(node)) for call in calls_in(value)]
    names = {name for call in made for name in module.dotted(call.func) or {module.source(call.func)}}
    return bool(names) and not any(one.endswith("GradScaler") for one in names)


def is_off(call: ast.Call) -> bool:
    """Whether the scaler is surely off: it is not asked for its factors then."""
    return any(keyword.arg == "enabled" and _is_false(keyword.value) for keyword in call.keywords)


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def is_undecided(script: Script, backward: events.Backward) -> bool:
    """Whether a backward was seen with a scaled loss and with an unscaled one, and the work limit ended the reading:
    which condition belongs to which is forgotten then."""
    ways = {one.scaler is None for one in script.events(events.Backward) if one.node is backward.node}
    return len(ways) == 2 and not script.reading.complete


def without_gradients(module: Module, node: ast.AST) -> bool:
    """Whether a node stands inside of torch.no_grad(), in its function."""
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode):
            return False
        for item in above.items if isinstance(above, ast.With) else ():
            entered = item.context_expr
            if isinstance(entered, ast.Call) and module.dotted(entered.func) & _WITHOUT_GRADIENTS:
                return True
    return False


_WITHOUT_GRADIENTS = {"torch.no_grad", "torch.inference_mode"}
