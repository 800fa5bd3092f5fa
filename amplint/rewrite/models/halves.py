"""Models that are trained in float16 by `.half()`: the casts go, and autocast does what they were for.

All casts of one script go together: those of the model, of the loss module, and of the inputs. What a flag of the
script's own switched (`if args.half: model.half()`) is then the switch of autocast (switch.py).
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.syntax.apply import Conflict, apply
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module, Unreadable, parse
from amplint.source.tree import last_name

_HALF = {"torch.float16", "torch.half"}


def without_casts(reading: Reading) -> tuple[Module, str] | None:
    """The module without its casts to float16, where it trains a model that it casts to float16 as a whole, and the
    flag that switched the casts (""). None where it does not, or where the casts are not all of one kind, or do more.
    """
    module = reading.module
    casts = half_casts(reading)
    after = without(module, casts) if casts else None
    if not casts or after is None:
        return None
    flags = {flag_of(module, cast) for cast in casts}
    flag = min(flags)
    if len(flags) > 1 or (flag and any(ast.unparse(test) == flag for test in _tests(after))):
        return None
    return after, flag


def half_casts(reading: Reading, models: Collection[str] = ()) -> list[ast.Call] | None:
    """All casts to float16 of a module, where they are those of a model that it trains, of its loss and of its inputs;
    None where there are none of a model, or where they do more. `models` are names of what is known to be a
    model."""
    module = reading.module
    own = [event for event in reading.events if event.module is module]
    trained = {one.node for one in own if isinstance(one, events.Cast) and one.dtype == "float16"}
    trained |= {cast for cast in _casts(module) if not {*_names(module, cast)}.isdisjoint(models)}
    if not trained or not any(isinstance(one, events.Step) for one in own) or scales_by_hand(module):
        return None
    started = False
    for one in own:  # what is cast behind a step is for something else: an export, a checkpoint
        started |= isinstance(one, events.Step)
        if started and isinstance(one, events.Cast) and not one.loops:
            return None
        if isinstance(one, events.Cast) and any(loop.node in _loops(own) for loop in one.loops):
            return None
    runs = {one.frame.code for one in own if isinstance(one, events.Forward)}
    casts = list(_casts(module))
    for cast in casts:
        if cast not in trained and not _a_loss(module, cast) and module.scope(cast) not in runs:
            return None
    return casts


def without(module: Module, casts: list[ast.Call]) -> Module | None:
    """The module without these casts; None where that is no simple edit."""
    try:
        text = _removed(module, casts)
        return Module(module.path, text, parse(text), module.encoding)
    except (Conflict, Unreadable, edits.CannotEdit):
        return None


def exported(reading: Reading, cast: events.Cast) -> bool:
    """Whether a model is cast when all its training is done."""
    last = max((index for index, one in enumerate(reading.events) if isinstance(one, events.Step)), default=-1)
    outside = not any(loop.node in _loops(reading.events) for loop in cast.loops)
    return last >= 0 and outside and reading.events.index(cast) > last


def _loops(found: Iterable[events.Event]) -> set[ast.AST]:
    """The loops that train."""
    return {loop.node for one in found if isinstance(one, events.Step) for loop in one.loops}


def _casts(module: Module) -> Iterator[ast.Call]:
    """`x.half()`, `x.to(torch.float16)`, `x.type(torch.half)`."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="half"), args=[], keywords=[]):
                yield node
            case ast.Call(func=ast.Attribute(attr="to" | "type")) if _dtype(module, node) is not None:
                yield node


def _names(module: Module, cast: ast.Call) -> Iterator[str]:
    """What is cast, and what the result is called."""
    yield _receiver(module, cast)
    match module.statement(cast):
        case ast.Assign(targets=[ast.Name() | ast.Attribute() as target]):
            yield module.source(target)


def _dtype(module: Module, call: ast.Call) -> ast.expr | None:
    """The argument of `.to(…)` that says float16."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return next((one for one in given if module.dotted(one) & _HALF), None)


def _a_loss(module: Module, cast: ast.Call) -> bool:
    """Whether what is cast is a loss module: it is called with more than one thing."""
    assert isinstance(cast.func, ast.Attribute)
    text = module.source(cast.func.value)
    return any(
        isinstance(node, ast.Call) and len(node.args) > 1 and module.source(node.func) == text
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
    )


def flag_of(module: Module, cast: ast.Call) -> str:
    """The name or field that a cast asks first; "" where it is made always."""
    above = [one for one in module.ancestors(cast) if isinstance(one, ast.If | ast.IfExp)]
    tests = [one.test for one in above if _is_flag(one.test)]
    return ast.unparse(tests[0]) if tests else ""


def _is_flag(test: ast.expr) -> bool:
    last = last_name(test).lower()
    return isinstance(test, ast.Name | ast.Attribute) and any(
        word in last for word in ("half", "fp16", "amp", "float16")
    )


def _tests(module: Module) -> Iterator[ast.expr]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield from (one for one in ast.walk(node.test) if isinstance(one, ast.Name | ast.Attribute))


def scales_by_hand(module: Module) -> bool:
    """`loss * args.loss_scale`, or float32 copies of the weights."""
    for node in ast.walk(module.tree):
        match node:
            case (
                ast.BinOp(op=ast.Mult(), left=left, right=right)
                | ast.AugAssign(op=ast.Mult(), target=left, value=right)
            ):
                names = [last_name(one).lower() for one in (left, right)]
                if any("loss" in name for name in names) and any("scale" in name for name in names):
                    return True
    return False


def _removed(module: Module, casts: list[ast.Call]) -> str:
    """The text without the casts: statements that only cast go as a whole, and so do branches that only hold those."""
    gone = {module.statement(cast): None for cast in casts if _only_casts(module, module.statement(cast), casts)}
    changed = True
    while changed:
        changed = False
        for stmt in list(gone):
            above = module.parents[stmt]
            if isinstance(above, ast.If) and not above.orelse and all(one in gone for one in above.body):
                gone = {one: None for one in gone if one not in above.body} | {above: None}
                changed = True
                break
    kept: list[Edit] = []
    for cast in casts:
        if any(one in gone for one in module.ancestors(cast)):
            continue
        choice = module.parents[cast]
        if isinstance(choice, ast.IfExp) and _plain(module, cast) == module.source(choice.orelse):
            kept += edits.replace(module, choice, module.source(choice.orelse))
        else:
            kept += edits.replace(module, cast, _plain(module, cast))
    return apply(module.text, [*edits.delete(module, *gone), *kept])


def _only_casts(module: Module, stmt: ast.stmt, casts: list[ast.Call]) -> bool:
    """`model.half()`, `x = x.half()`, `x, y = x.half(), y.half()`."""
    match stmt:
        case ast.Expr(value=ast.Call() as call):
            return call in casts and _plain(module, call) == _receiver(module, call)
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
            pairs = list(zip(targets, values, strict=True))
        case ast.Assign(targets=[target], value=value) | ast.AnnAssign(target=target, value=ast.expr() as value):
            pairs = [(target, value)]
        case _:
            return False
    return all(_plainly(module, value, casts) == module.source(target) for target, value in pairs)


def _plainly(module: Module, value: ast.expr, casts: list[ast.Call]) -> str:
    """What a cast leaves of a value, chosen or not: `model.half() if fp16 else model`; "" where it is no cast."""
    if isinstance(value, ast.IfExp):
        plain = _plainly(module, value.body, casts)
        return plain if plain == module.source(value.orelse) else ""
    return _plain(module, value) if isinstance(value, ast.Call) and value in casts else ""


def _receiver(module: Module, cast: ast.Call) -> str:
    assert isinstance(cast.func, ast.Attribute)
    return module.source(cast.func.value)


def _plain(module: Module, cast: ast.Call) -> str:
    """What is cast, without the cast: `x.half()` → `x`, `x.to(device, torch.half)` → `x.to(device)`."""
    dtype = _dtype(module, cast)
    rest = [module.source(one) for one in cast.args if one is not dtype]
    rest += [f"{one.arg}={module.source(one.value)}" for one in cast.keywords if one.value is not dtype]
    if not [one for one in rest if not one.startswith("non_blocking=")]:
        return _receiver(module, cast)
    assert isinstance(cast.func, ast.Attribute)
    return f"{_receiver(module, cast)}.{cast.func.attr}({', '.join(rest)})"
