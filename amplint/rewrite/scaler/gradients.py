"""Gradients between backward and step: where they are clipped, read or changed, and so must have been unscaled."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from amplint.rewrite.fixes import asks_for, conditions_above, steps_either_way
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.regions.lifts import common, node_in
from amplint.rewrite.scaler.wrapped import Wrapped
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.frames import Frame
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import last_name, parameters, place_of

Condition = tuple[ast.AST, str]
_LINEAR = frozenset(("mul_", "div_", "mul", "div", "neg", "neg_", "zero_", "detach_", "requires_grad_", "copy_"))
CLIPS = re.compile(r"clip_?grad|grad\w*clip")
_KEEPS = frozenset(("data", "view", "reshape", "flatten", "detach", "clone", "contiguous"))


def handled(reading: Reading, steps: Sequence[events.Step]) -> tuple[ast.AST, ...]:
    """Where the gradients of a step are used before it, in the function of the step, or in one that leads to it and has
    its optimizer under the same name. What is read after the step has been unscaled by it."""
    step = steps[0]
    optimizers = {one.optimizer for one in steps}
    backwards = {one.node for step in steps for one in step.before.origins}
    own = wrapper_of(step)
    found: dict[ast.AST, None] = {}
    seen: set[ast.AST] = set()
    for event in reading.events:
        if not isinstance(event, events.Clip | events.ReadGradient | events.ZeroGradient):
            continue
        seen.add(event.node)
        if event.frame.code is own:
            continue
        states = [before for optimizer, before in event.touched if optimizer in optimizers]
        if isinstance(event, events.ZeroGradient) or (
            states and all(one.stepped or one.kind == "none" for one in states)
        ):
            continue
        if states and all(one.origins and backwards.isdisjoint(o.node for o in one.origins) for one in states):
            continue  # the gradients of another step
        if not states and (
            event.touched or isinstance(event, events.ReadGradient) or event.frame.code is not step.frame.code
        ):
            continue  # whose gradients a clip takes may not be known
        frame = common(step, event)
        node = node_in(event, frame.code) if frame is not None else None
        same = frame is not None and (frame.code is step.frame.code or _known_to(frame, step))
        if frame is None or node is None or not same or node is node_in(step, frame.code):
            raise Refused("gradients are clipped or read in another function", BY_HAND)
        found[node] = None
    found |= dict.fromkeys(_others(reading, steps, seen))
    if len({reading.module.function(node) for node in found}) > 1:
        raise Refused("gradients are clipped or read in several functions", BY_HAND)
    return tuple(found)


def dropped(reading: Reading, steps: Sequence[events.Step]) -> tuple[ast.AST, ...]:
    """Where the gradients of a step are set to zero, in its function."""
    step, optimizers = steps[0], {one.optimizer for one in steps}
    zeros = (one for one in reading.events if isinstance(one, events.ZeroGradient))
    mine = (one for one in zeros if any(optimizer in optimizers for optimizer, _ in one.touched))
    found = (node_in(one, step.frame.code) for one in mine if common(step, one) is not None)
    return tuple(dict.fromkeys(node for node in found if node is not None))


def handled_inside(reading: Reading, step: events.Step) -> tuple[ast.AST, ...]:
    """Where the method of a wrapper uses the gradients before it steps its optimizer, or says that it clips them."""
    own = wrapper_of(step)
    if own is None or not isinstance(step, Wrapped):
        return ()
    used = [e.node for e in reading.events if isinstance(e, events.Clip | events.ReadGradient) and e.frame.code is own]
    used += (node for node in ast.walk(own) if _clips(node) and place_of(node) < place_of(step.within.node))
    return tuple(dict.fromkeys(used))


def wrapper_of(step: events.Step) -> ast.AST | None:
    """The method of a wrapper that takes a step."""
    return step.within.frame.code if isinstance(step, Wrapped) else None


def in_words(used: Sequence[ast.AST]) -> str:
    """What unscaling changes, in a person's words."""
    for node in sorted(used, key=place_of):
        name = getattr(getattr(node, "func", None), "attr", getattr(getattr(node, "func", None), "id", ""))
        if "clip" in name:
            return f"{name} now after unscale_"
        if "clamp" in name:
            return "gradients unscaled before they are clipped"
    return "gradients unscaled before they are read"


def _known_to(frame: Frame, step: events.Step) -> bool:
    """Whether a caller of the function that steps has the optimizer under the same name: a field of the same object, or
    a global."""
    assert isinstance(step.node, ast.Call) and isinstance(step.node.func, ast.Attribute)
    text = ast.unparse(step.node.func.value)
    if text.startswith("self."):
        return frame.owner is not None and frame.owner == step.frame.owner
    bound = {name for one in step.frame.stack() for name in parameters(one.code)}
    parent = step.frame.parent
    return text.isidentifier() and text not in bound and parent is not None and isinstance(parent.code, ast.Module)


def unscale_at(
    module: Module,
    step: events.Step,
    backwards: Sequence[events.Backward],
    used: Sequence[ast.AST],
    over: ast.AST | None,
    dropped: Sequence[ast.AST] = (),
) -> ast.stmt | None:
    """The statement before which the gradients must be unscaled: the first that uses them, or the loop around it. None
    where nothing does. `over` is the loop that goes over several optimizers, `dropped` where gradients are zeroed."""
    if not used:
        return None
    first = min(used, key=place_of)
    code = module.scope(first)
    stepping = node_in(step, code)
    before = [node for one in backwards if (node := node_in(one, code)) is not None]
    if (
        stepping is None
        or place_of(first) > place_of(stepping)
        or any(place_of(first) < place_of(one) for one in before)
    ):
        raise Refused("gradients are clipped or read in an unusual place", BY_HAND)
    here = conditions_above(module, first)
    there = [one for one in conditions_above(module, stepping) if one[0] is not over or one in here]
    stepper = ast.unparse(step.node.func.value)  # type: ignore[attr-defined]
    asked = any(asks_for(one, stepper) for one in here)
    extra = [
        one
        for one in there
        if one not in here and not (asked and asks_for(one, stepper)) and not steps_either_way(one, stepper)
    ]
    if extra and not _spent(module, extra, here, dropped):
        raise Refused("gradients are clipped or read on steps that the optimizer does not take", BY_HAND)
    loops = [one for one, _ in here if isinstance(one, ast.For | ast.While) and one not in {c for c, _ in there}]
    outermost = loops[-1] if loops else module.statement(first)
    assert isinstance(outermost, ast.stmt)
    return outermost


def _spent(module: Module, extra: Sequence[Condition], here: Sequence[Condition], dropped: Sequence[ast.AST]) -> bool:
    """Whether the gradients that are clipped are gone afterwards, stepped or not: `if isfinite(norm): step()`, and then
    they are zeroed. What waits for a later step (accumulation) would be unscaled twice."""
    branches = all(isinstance(one, ast.If) for one, _ in extra)
    return branches and any(conditions_above(module, node) == list(here) for node in dropped)


def decided(module: Module, step: ast.AST, unscaled: ast.stmt, stepper: str) -> ast.stmt:
    """The statement after which it is decided whether the step is taken: itself, or a branch that does not stand around
    what unscales the gradients. `update()` is right behind it: unscale_ has looked for infinities."""
    around, place = conditions_above(module, unscaled), module.statement(step)
    assert isinstance(place, ast.stmt)
    for one in conditions_above(module, step):
        if one in around or not isinstance(one[0], ast.If) or asks_for(one, stepper) or steps_either_way(one, stepper):
            break
        place = one[0]
    return place


# -- what the reading does not tell -----------------------------------------------------------------------------------


def _others(reading: Reading, steps: Sequence[events.Step], seen: set[ast.AST]) -> list[ast.AST]:
    """Uses of `.grad` that no event tells of, and calls that say that they clip, between the backward and the step:
    unscaling before them is always right."""
    module, step = reading.module, steps[0]
    code = step.frame.code
    mine = {_stepper(one) for one in steps}
    others = {_stepper(one) for one in reading.events if isinstance(one, events.Step) and one.frame.code is code} - mine
    last = [node for one in step.before.origins if (node := node_in(one, code)) is not None]
    found = []
    for node in ast.walk(module.tree):
        read = isinstance(node, ast.Attribute) and node.attr == "grad" and not _explained(module, node, seen)
        if not read and (node in seen or not _clips(node)):
            continue
        for place in [node] if module.scope(node) is code else _calls(module, code, module.function(node)):
            if _takes(place, others) and not _takes(place, mine):
                continue  # it clips for another
            if place_of(place) < place_of(step.node) and all(place_of(place) > place_of(one) for one in last):
                found.append(place)
    return found


def _clips(node: ast.AST) -> bool:
    """A call of what is called as clip_grad_norm_ is, whoever wrote it."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[_, *_]):
            return bool(CLIPS.search(name))
    return False


def _stepper(step: events.Step) -> str:
    """The optimizer of a step, as it is written there."""
    function = getattr(step.node, "func", None)
    return ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""


def _takes(node: ast.AST, steppers: set[str]) -> bool:
    """Whether a call is handed one of these optimizers, or what belongs to one."""
    given = [*node.args, *(one.value for one in node.keywords)] if isinstance(node, ast.Call) else []
    inside = (one for value in given for one in ast.walk(value) if isinstance(one, ast.Name | ast.Attribute))
    return any(ast.unparse(one) in steppers for one in inside)


def _calls(module: Module, code: ast.AST, function: ast.AST | None) -> list[ast.AST]:
    """The calls of a function of the file, or of a method of the same object, in some code."""
    if not isinstance(function, ast.FunctionDef):
        return []
    method = isinstance(module.parents[function], ast.ClassDef)
    found: list[ast.AST] = []
    for node in ast.walk(code):
        match node:
            case ast.Call(func=ast.Name(id=name)) if not method and name == function.name:
                found.append(node)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)) if method and name == function.name:
                found.append(node)
    return found


def _explained(module: Module, node: ast.Attribute, seen: set[ast.AST]) -> bool:
    """Whether a use of `.grad` is told by an event, asks whether it is there, drops it, or only multiplies it."""
    if isinstance(node.value, ast.Name) and node.value.id in ("torch", "autograd"):
        return True
    inner: ast.AST = node
    for above in module.ancestors(node):
        if inner in seen or above in seen:
            return True
        match above:
            case ast.Attribute(attr=name) if name in _KEEPS:
                pass
            case ast.Attribute(attr=name):
                return name in _LINEAR or name in ("shape", "device", "dtype", "is_sparse", "size", "numel")
            case ast.Call(func=function) if function is inner:
                pass
            case ast.Call(func=function, args=[first, *_]) if inner is first:
                name = last_name(function)
                return "reduce" in name or name in ("isinstance", "hasattr", "id", "type")
            case ast.Compare(ops=[ast.Is() | ast.IsNot(), *_]) | ast.Delete():
                return True
            case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
                return inner is test
            case ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                pass
            case ast.AugAssign(op=ast.Mult() | ast.Div(), target=target):
                return target is inner
            case ast.Assign(targets=targets, value=value):
                return inner in targets and getattr(value, "value", "") is None
            case ast.stmt():
                return False
        inner = above
    return False


def hooks(module: Module) -> None:
    """Raise Refused where a hook clips gradients: it would see scaled ones."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="register_hook"), args=[hook]):
                body: ast.AST | None = hook
                if isinstance(hook, ast.Name):
                    functions = (one for one in ast.walk(module.tree) if isinstance(one, FunctionNode))
                    body = next((one for one in functions if getattr(one, "name", "") == hook.id), None)
                names = {getattr(one, "attr", "") for one in ast.walk(body)} if body is not None else set()
                if names & {"clamp", "clamp_", "clip", "clip_", "norm", "sign", "normalize", "nan_to_num"}:
                    raise Refused(
                        "a hook changes gradients while they are scaled", "clip them after the backward instead"
                    )
