"""Family 1, over several micro-batches and several optimizers."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache

from amplint.checks.registry import (
    Script,
    alternatives,
    first_argument,
    found,
    found_at,
    own_condition,
    rule,
    same_function,
    text,
)
from amplint.checks.scaler.protocol import (
    backwards_of,
)
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.module import Module
from amplint.source.symbols import is_any_of_several
from amplint.source.tree import names_in
from amplint.source.values import (
    Scaled,
)
from amplint.source.walk import walk


@rule("AMP134")
def wrong_scaler_or_optimizer(script: Script) -> Iterator[Finding]:
    """One optimizer is unscaled and not stepped, another is stepped and not unscaled."""
    ways: dict[tuple[object, object], set[tuple[bool, ast.AST]]] = {}  # how a function steps an optimizer, and where
    unscaled: dict[tuple[object, object], list[events.Unscale]] = {}  # by a scaler in a function
    for step in script.events(events.Step):
        ways.setdefault((step.frame.code, step.optimizer), set()).add((step.scaler is not None, step.node))
    for unscale in script.events(events.Unscale):
        unscaled.setdefault((unscale.frame.code, unscale.scaler), []).append(unscale)
    found_odd = {key: next((u for u in group if not _is_stepped(u, ways)), None) for key, group in unscaled.items()}
    optimizers = {key: {u.optimizer for u in group} for key, group in unscaled.items()}
    for step in script.events(events.Step):
        key = (step.frame.code, step.scaler)
        odd = found_odd.get(key)
        if step.scaler is None or odd is None or step.optimizer in optimizers[key]:
            continue
        if first_argument(odd) == first_argument(step):  # `for opt in optimizers:` twice
            continue
        if any(is_any_of_several(one.optimizer) for one in (odd, step)):
            continue
        yield found(
            "AMP134",
            step,
            f"{first_argument(step)} is stepped but was not unscaled, and {first_argument(odd)} was unscaled but is "
            "not stepped: one of them is the wrong one",
            evidence=[(odd, "unscaled, never stepped"), (step, "stepped, not unscaled")],
            help="unscale and step the same optimizers",
        )


def _is_stepped(unscale: events.Unscale, ways: dict[tuple[object, object], set[tuple[bool, ast.AST]]]) -> bool:
    """Whether a step uses what was unscaled: through the scaler, or past it in the same arm of a branch."""
    steps = ways.get((unscale.frame.code, unscale.optimizer), ())
    return any(scaled or not alternatives(unscale.module, unscale.node, node) for scaled, node in steps)


@rule("AMP108")
def accelerate_unscales_every_micro_batch(script: Script) -> Iterator[Finding]:
    """accelerator.clip_grad_norm_, which unscales, in every micro-batch of accelerator.accumulate."""
    module = script.module
    if not any("accelerate" in module_name for names in module.imports.values() for module_name in names):
        return
    for call in module.all_nodes:
        match call:
            case ast.Call(
                func=ast.Attribute(value=owner, attr="clip_grad_norm_" | "clip_grad_value_" | "unscale_gradients")
            ):
                accelerator = text(module, owner)
            case _:
                continue
        region = _accumulates(module, call, accelerator)
        if region is not None and _may_accumulate(module):
            yield found_at(
                "AMP108",
                module,
                call,
                f"{accelerator}.accumulate() runs this in every micro-batch: float16 gradients are unscaled before the "
                "others are added to them, and the second time it raises RuntimeError",
                severity=Severity.WARNING,
                evidence=[(module, region, "micro-batches"), (module, call, "unscales and clips in each")],
                help=f"call it only if {accelerator}.sync_gradients",
            )


def _accumulates(module: Module, call: ast.AST, accelerator: str) -> ast.expr | None:
    """The accelerator.accumulate() that a call stands in, unless an `if` asks which micro-batch it is."""
    for above in module.ancestors(call):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return None
        if isinstance(above, ast.If) and any(_asks_which(module, one) for one in _meanings(module, above.test)):
            return None
        for item in above.items if isinstance(above, ast.With) else ():
            if text(module, item.context_expr, 200).startswith(f"{accelerator}.accumulate("):
                return item.context_expr
    return None


def _asks_which(module: Module, test: ast.expr) -> bool:
    """Whether a condition is about which micro-batch of the window it is."""
    return "sync" in text(module, test, 200) or _has_modulo(test)


def _meanings(module: Module, test: ast.expr) -> list[ast.expr]:
    """A condition, and what the names in it are assigned to: `due = accelerator.sync_gradients and …; if due:`."""
    names = names_in(test)
    assigned = [
        one.value
        for one in module.nodes(ast.Assign)
        if any(isinstance(target, ast.Name) and target.id in names for target in one.targets)
    ]
    return [test, *assigned]


def _may_accumulate(module: Module) -> bool:
    """Whether the Accelerator is told how many micro-batches a step has: without that, each is a step. One that is made
    elsewhere may be."""
    made = [n for n in module.all_nodes if isinstance(n, ast.Call) and _is_accelerator(module, n)]
    given = [keyword for call in made for keyword in call.keywords]
    steps = [keyword.value for keyword in given if keyword.arg and "gradient_accumulation" in keyword.arg]
    if not made or any(keyword.arg is None for keyword in given):
        return True
    return any(not (isinstance(value, ast.Constant) and value.value == 1) for value in steps)


def _is_accelerator(module: Module, call: ast.Call) -> bool:
    return any(name.rpartition(".")[2] == "Accelerator" for name in module.dotted(call.func))


@rule("AMP136")
def step_in_every_micro_batch(script: Script) -> Iterator[Finding]:
    """Every micro-batch steps, but gradients are set to zero only every few: what a step unscaled and left behind is
    nothing beside the scaled gradients that are added to it."""
    zeros = list(script.events(events.ZeroGradient))
    for step in script.events(events.Step):
        if step.scaler is None or step.before.kind != "scaled" or every_n_batches(step):
            continue
        own = [z for z in zeros if same_function(z, step) and any(one == step.optimizer for one, _ in z.touched)]
        here = [loop.node for loop in step.loops]
        if own and here and all(every_n_batches(z) and [loop.node for loop in z.loops] == here for z in own):
            yield found(
                "AMP136",
                step,
                "this steps in every micro-batch, but gradients are set to zero only every few: nothing accumulates, "
                "each step uses the last micro-batch alone",
                evidence=[
                    *((b, "scaled gradients are added") for b in backwards_of(step.before)[-1:]),
                    (step, "to those that this has unscaled"),
                    (own[0], "and that are set to zero only here"),
                ],
                help="step and update where the gradients are set to zero, before it",
            )


@rule("AMP136")
def backward_of_every_nth_alone(script: Script) -> Iterator[Finding]:
    """Each micro-batch's loss is computed, but only every nth goes backward, divided by n as if all had."""
    for step in script.events(events.Step):
        module = step.module
        due = _due(step)
        own = [b for b in script.events(events.Backward) if same_function(b, step) and b.loops == step.loops]
        if due is None or not step.loops or not own or not all(_stands_in(module, b.node, due) for b in own):
            continue
        share = next((one for one in walk(due) if _divides(module, one, due.test, own[0].node)), None)
        loss = _of_each_round(module, own[0].node, due, step.loops[-1].node)
        if share is None or loss is None:
            continue
        yield found_at(
            "AMP136",
            module,
            own[0].node,
            "every micro-batch's loss is computed, but only every few goes backward, divided by their number: the "
            "others are thrown away, and the step is that much smaller",
            evidence=[
                (module, loss, "computed for every micro-batch"),
                (module, share, "divided as if all were added up"),
                (module, own[0].node, "and differentiated only where the step is due"),
            ],
            help="divide and go backward in every micro-batch; step, update and zero_grad only where the step is due",
        )


@rule("AMP136")
def divided_after_backward(script: Script) -> Iterator[Finding]:
    """A loss is divided by the number of micro-batches when its gradients are there already, and is read no more."""
    for step in script.events(events.Step):
        module = step.module
        due = _due(step)
        if due is None or not step.loops:
            continue
        names = [node for node in walk(step.loops[-1].node) if isinstance(node, ast.Name)]
        for division in walk(step.loops[-1].node):
            match division:
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.BinOp(left=ast.Name(id=left)) as share) if (
                    name == left
                ):
                    pass
                case ast.AugAssign(target=ast.Name(id=name)) as share:
                    pass
                case _:
                    continue
            row = division.lineno
            if not _divides(module, share, due.test, division) or any(n.id == name and n.lineno > row for n in names):
                continue
            for backward in script.events(events.Backward):
                own = names_in(backward.node)
                if backward.loops == step.loops and same_function(backward, step) and name in own:
                    yield found_at(
                        "AMP136",
                        module,
                        division,
                        f"{name} is divided by the number of micro-batches after its backward: the gradients are "
                        "summed up undivided, that many times as large",
                        evidence=[
                            (module, backward.node, "its gradients are computed"),
                            (module, division, "divided now, and read no more"),
                            (module, step.node, "the step uses the undivided sum"),
                        ],
                        help="divide before backward()",
                    )


def _stands_in(module: Module, node: ast.AST, branch: ast.If) -> bool:
    """Whether something stands in the body of a branch."""
    around = {node, *module.ancestors(node)}
    return any(statement in around for statement in branch.body)


def _divides(module: Module, node: ast.AST, test: ast.expr, backward: ast.AST) -> bool:
    """Whether what goes backward is divided by the number that a condition counts to."""
    counted = {
        text(module, one.right) for one in walk(test) if isinstance(one, ast.BinOp) and isinstance(one.op, ast.Mod)
    }
    match node:
        case ast.BinOp(op=ast.Div(), left=divided, right=by) | ast.AugAssign(op=ast.Div(), target=divided, value=by):
            names = names_in(backward)
            return text(module, by) in counted and not names_in(divided).isdisjoint(names)
    return False


def _of_each_round(module: Module, backward: ast.AST, due: ast.If, loop: ast.AST) -> ast.Assign | None:
    """Where every round computes anew the loss that a branch differentiates: not where it adds to a sum of losses."""
    names = {node.id for node in walk(backward) if isinstance(node, ast.Name) and "loss" in node.id.lower()}
    outside = [node for node in walk(loop) if not _stands_in(module, node, due)]
    for node in outside:
        match node:
            case ast.AugAssign(target=ast.Name(id=name)) if name in names:
                return None
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in names:
                if name in names_in(value):
                    return None
    computed = (node for node in outside if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call))
    return next((one for one in computed if isinstance(t := one.targets[0], ast.Name) and t.id in names), None)


@rule("AMP136")
def apex_unscales_every_micro_batch(script: Script) -> Iterator[Finding]:
    """apex: scale_loss without delay_unscale in a loop of micro-batches."""
    for backward in script.events(events.Backward):
        context = next((one for one in reversed(backward.contexts) if isinstance(one, Scaled)), None)
        if context is None or context.delayed or _decides(backward) or _zeroes_unseen(script, backward):
            continue
        if any(before.kind == "managed" and not before.stepped for _, before in backward.touched):
            yield found(
                "AMP136",
                backward,
                "apex unscales the gradients after every micro-batch, and checks each for overflow by itself",
                severity=Severity.NOTE,
                help="pass delay_unscale=True to scale_loss in all micro-batches but the last",
            )


def _zeroes_unseen(script: Script, backward: events.Backward) -> bool:
    """Whether a zero_grad() stands in the loop whose gradients are not known: `[one.zero_grad() for one in …]`."""
    known = {zero.node for zero in script.events(events.ZeroGradient)}
    calls = (one for one in walk(backward.loops[-1].node) if isinstance(one, ast.Call)) if backward.loops else ()
    return any(getattr(one.func, "attr", "") == "zero_grad" and one not in known for one in calls)


def _decides(backward: events.Backward) -> bool:
    """Whether the scale_loss around it is told when to delay: then its author knows of it."""
    for above in backward.module.ancestors(backward.node):
        if isinstance(above, ast.With):
            calls = [item.context_expr for item in above.items if isinstance(item.context_expr, ast.Call)]
            return any(keyword.arg == "delay_unscale" for call in calls for keyword in call.keywords)
    return False


@rule("AMP136")
def factor_compounds(script: Script) -> Iterator[Finding]:
    """A hand-written loss scaler divides its factor by the scale in every backward: after k micro-batches the gradients
    carry the scale once, and are divided by it k times."""
    module = script.module
    divided = [node for node in module.nodes(ast.AugAssign) if isinstance(node.op, ast.Div)]
    if not any(isinstance(node.target, ast.Attribute) for node in divided):
        return
    for function in module.defs:
        inside = walk(function)
        scalings = {text(module, side): node for node in inside for side in _factors(node)}
        backwards = [n for n in inside if isinstance(n, ast.Call) and _calls_backward(n)]
        for node in inside:
            match node:
                case ast.AugAssign(target=ast.Attribute() as factor, op=ast.Div(), value=value):
                    scale = text(module, value.args[0] if isinstance(value, ast.Call) and value.args else value)
                    scaling = scalings.get(scale)
                    if scaling is None or not backwards or own_condition(module, node, scaling):
                        continue
                    base = factor.value.id if isinstance(factor.value, ast.Name) else ""
                    if not _set_in(function, text(module, factor), module) and not _set_in(function, base, module):
                        yield found_at(
                            "AMP136",
                            module,
                            node,
                            f"every backward divides {text(module, factor)} by the scale again, but the sum of k "
                            "micro-batches' gradients carries the scale only once: it ends divided by scale^k",
                            severity=Severity.WARNING,
                            evidence=[(module, node, "once a micro-batch"), (module, backwards[0], "adds gradients")],
                            help="set the factor to 1 / scale where the gradients are set to zero",
                        )


def _factors(node: ast.AST) -> list[ast.expr]:
    """What a loss is multiplied by, if this multiplies one: an attribute such as `self.scaler.loss_scale`."""
    match node:
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            return [side for side in (left, right) if isinstance(side, ast.Attribute)]
        case ast.AugAssign(op=ast.Mult(), value=ast.Attribute() as value):
            return [value]
    return []


def _calls_backward(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "backward"


def _set_in(function: ast.FunctionDef | ast.AsyncFunctionDef, target: str, module: Module) -> bool:
    return any(
        isinstance(node, ast.Assign) and any(text(module, one) == target for one in node.targets)
        for node in walk(function)
    )


def every_n_batches(event: events.Event) -> bool:
    """Whether a condition counts batches (`i % n == 0`) before this runs."""
    function = event.module.function(event.node)
    for above in event.module.ancestors(event.node):
        if above is function:
            return False
        if isinstance(above, ast.If) and counts_batches(event.module, above.test):
            return True
    return False


def counts_batches(module: Module, test: ast.expr) -> bool:
    """Whether a condition asks which of several batches it is."""
    counts = _counts_of(module.scope(test))
    return _has_modulo(test) or not names_in(test).isdisjoint(counts)


@lru_cache(256)
def _counts_of(code: ast.AST) -> frozenset[str]:
    """The names that hold which of several batches it is."""
    return frozenset(
        target.id
        for assign in walk(code)
        if isinstance(assign, ast.Assign) and _has_modulo(assign.value)
        for target in assign.targets
        if isinstance(target, ast.Name)
    )


def _due(step: events.Step) -> ast.If | None:
    """The question above a step whether enough micro-batches are added up."""
    above = step.module.ancestors(step.node)
    return next((one for one in above if isinstance(one, ast.If) and _has_modulo(one.test)), None)


def _has_modulo(node: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Mod) and not isinstance(inner.left, ast.Constant)
        for inner in walk(node)
    )
