"""Family 1, the scaler and its optimizers: which of them has gradients, and which one was unscaled."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import (
    Script,
    alternatives,
    first_argument,
    found,
    may_both_run,
    receiver,
    rule,
    same_function,
    scaler_in,
    text,
)
from amplint.checks.scaler.protocol import backwards_of, is_disabled
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import unscale as fixes
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import last_name, names_in, parameters, place_of
from amplint.source.values import Instance, Optimizer, Scaler
from amplint.source.walk import walk


@rule("AMP121")
def optimizer_without_gradients(script: Script) -> Iterator[Finding]:
    """A path reaches scaler.step(optimizer) but not the backward that computes this optimizer's gradients."""
    for step in script.events(events.Step):
        before = step.before
        if step.scaler is None or is_disabled(step.scaler) or before.kind != "none":
            continue
        if step.closure or (step.frame.entry and not _emptied(script, step)):
            continue
        emptied = _emptied_on_the_way(script, step)
        skipped = [
            b
            for b in script.events(events.Backward)
            if b.scaler == step.scaler
            and any(one == step.optimizer for one, _ in b.touched)
            and not (same_function(b, step) and any(_stands_before(b.node, zero) for zero in emptied))
        ]
        here = [b for b in skipped if same_function(b, step)]
        helped = [b for b in skipped if b not in here and not (emptied and _apart(b, step))]
        if not here or helped or not all(_under_own_branch(b, step) for b in here):
            continue
        if _hands_on(step, here[0]):
            continue  # whoever gets it may run the backward
        yield found(
            "AMP121",
            step,
            f"where no backward has run, {first_argument(step)} has no gradients: {scaler_in(step)}.step() raises "
            "AssertionError (No inf checks were recorded), where a plain step would do nothing",
            evidence=[(here[0], "its gradients are computed only here"), (step, "but it is stepped in any case")],
            help="step it under the same condition as its backward",
        )


def _apart(backward: events.Backward, step: events.Step) -> bool:
    """Whether the function that steps is not on the way to a backward: it is another's, which this one's zero_grad
    throws away."""
    return all(frame.code is not step.frame.code for frame in backward.frame.stack())


def _emptied_on_the_way(script: Script, step: events.Step) -> set[ast.AST]:
    """Where gradients are set to zero on every way to the step: those that a generator's loss leaves in the
    discriminator. Asked once a step: what it is asked of, backwards, can be hundreds."""
    module, around = step.module, {step.node, *step.module.ancestors(step.node)}
    return {
        zero.node
        for zero in script.events(events.ZeroGradient)
        if same_function(zero, step)
        and any(one == step.optimizer for one, _ in zero.touched)
        and _stands_before(zero.node, step.node)
        and all(above in around for above in module.ancestors(zero.node) if not isinstance(above, ast.Expr))
    }


def _stands_before(one: ast.AST, other: ast.AST) -> bool:
    """Whether a node begins before another of the same file."""
    return place_of(one) < place_of(other)


def _hands_on(step: events.Step, backward: events.Backward) -> bool:
    """Whether the function of the step gives the scaler to another one, or both the loss and the optimizer."""
    scaler, optimizer = receiver(step), first_argument(step)
    losses = names_in(backward.node) - {"self"}
    for call in (one for one in walk(step.frame.code) if isinstance(one, ast.Call)):
        given = {ast.unparse(value) for value in (*call.args, *(keyword.value for keyword in call.keywords))}
        if scaler in given or (optimizer in given and losses & given):
            return True
    return False


def _emptied(script: Script, step: events.Step) -> bool:
    """Whether the function itself has set the gradients to zero before."""
    return any(
        same_function(zero, step) and any(one == step.optimizer for one, _ in zero.touched)
        for zero in script.events(events.ZeroGradient)
    )


def _under_own_branch(backward: events.Backward, step: events.Step) -> bool:
    """Whether an `if` (and no loop) stands around the backward that does not stand around the step."""
    module = step.module
    around = set(module.ancestors(step.node))
    own = [above for above in module.ancestors(backward.node) if above not in around]
    loops = any(isinstance(above, ast.For | ast.While | ast.AsyncFor) for above in own)
    return not loops and any(isinstance(above, ast.If) for above in own)


@rule("AMP121")
def optimizers_of_one_loss(script: Script) -> Iterator[Finding]:
    """Several optimizers share one backward, and all are stepped, whether or not each has gradients."""
    told = set()
    for step in script.events(events.Step):
        if not isinstance(step.scaler, Scaler) or is_disabled(step.scaler) or step.node in told:
            continue
        backwards = [b for b in script.events(events.Backward) if b.scaler is not None and same_function(b, step)]
        together = [s for s in script.events(events.Step) if s.scaler == step.scaler and same_function(s, step)]
        chain = _branches(step.module, step.node)
        places = {s.node: s for s in together if _branches(s.module, s.node) == chain}
        several = len({s.optimizer for s in places.values()}) > 1 and len({b.node for b in backwards}) == 1
        if not several and not _each_of_many(step):
            continue
        told.add(step.node)
        yield found(
            "AMP121",
            step,
            f"if nothing that {first_argument(step)} trains has a gradient (all of it frozen, or not used for this "
            "loss), this raises AssertionError (No inf checks were recorded), where a plain step would do nothing",
            severity=Severity.NOTE,
            evidence=[*((b, "one backward") for b in backwards[:1]), (step, "for all optimizers")],
            help="step and unscale only optimizers that have gradients: any(p.grad is not None for g in "
            'optimizer.param_groups for p in g["params"])',
        )


def _branches(module: Module, node: ast.AST) -> list[ast.AST]:
    """The `if`s around a node in its function."""
    found_above: list[ast.AST] = []
    for above in module.ancestors(node):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            break
        if isinstance(above, ast.If):
            found_above.append(above)
    return found_above


def _each_of_many(step: events.Step) -> bool:
    """Whether a loop over optimizers steps each, and nothing asks whether it has gradients."""
    module = step.module
    argument = first_argument(step)
    for above in module.ancestors(step.node):
        if isinstance(above, ast.If) and "grad" in text(module, above.test, 200).replace("grad_scaler", ""):
            return False
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return False
        if isinstance(above, ast.For):
            names = names_in(above.target)
            source = text(module, above.iter, 200)
            return argument in names and "optim" in source and "valid" not in source
    return False


@rule("AMP122")
def unscale_and_step_differ(script: Script) -> Iterator[Finding]:
    """unscale_ of an optimizer inside a wrapper, step of the wrapper, or the other way round."""
    unscaled: dict[tuple[object, object], list[events.Unscale]] = {}  # by a scaler in a function
    for unscale in script.events(events.Unscale):
        unscaled.setdefault((unscale.frame.code, unscale.scaler), []).append(unscale)
    for step in script.events(events.Step):
        if step.scaler is None or is_disabled(step.scaler):
            continue
        for unscale in unscaled.get((step.frame.code, step.scaler), ()):
            one, other = first_argument(unscale), first_argument(step)
            if one == other or alternatives(step.module, unscale.node, step.node) or not may_both_run(unscale, step):
                continue
            spelled = one.startswith(f"{other}.") or other.startswith(f"{one}.")
            inside = _wraps(script, step.optimizer, unscale.optimizer) or _wraps(
                script, unscale.optimizer, step.optimizer
            )
            if spelled or (unscale.optimizer != step.optimizer and inside):
                yield found(
                    "AMP122",
                    step,
                    f"{first_argument(unscale)} was unscaled, {first_argument(step)} is stepped: they hold the same "
                    "parameters, but the scaler knows optimizers by their identity, and divides the gradients again",
                    evidence=[(unscale, "gradients are unscaled"), (step, "and once more here")],
                    help="unscale and step the same object",
                )


def _wraps(script: Script, outer: Optimizer, inner: Optimizer) -> bool:
    """Whether one optimizer is a field of the object that is used as the other."""
    held = outer.site
    return isinstance(held, Instance) and any(value == inner for value in script.fields_of(held))


@rule("AMP137")
def unscale_after_use(script: Script) -> Iterator[Finding]:
    """unscale_ of gradients that a step has used, or that are unscaled already."""
    for unscale in script.events(events.Unscale):
        before = unscale.before
        if before.stepped and before.kind == "unscaled":
            yield from _after_step(script, unscale)
        elif before.kind == "unscaled" and unscale.state == "unscaled" and before.by:
            first = before.by[0]
            if not isinstance(first, events.Unscale) or first.node is unscale.node or first.scaler != unscale.scaler:
                continue
            if not same_function(first, unscale) or alternatives(unscale.module, first.node, unscale.node):
                continue
            yield found(
                "AMP137",
                unscale,
                "these gradients are unscaled already: the second unscale_ raises RuntimeError",
                evidence=[(first, "unscaled"), (unscale, "once more, before a step and an update")],
                help="unscale once per step",
                fix=fixes.drop_second(unscale.module, unscale.node),
            )


def _after_step(script: Script, unscale: events.Unscale) -> Iterator[Finding]:
    """unscale_ where the step of the same round has run."""
    steps = [
        s
        for s in script.events(events.Step)
        if s.optimizer == unscale.optimizer and s.scaler == unscale.scaler and same_function(s, unscale)
    ]
    step = next((s for s in steps if s.loops == unscale.loops and s.node.lineno < unscale.node.lineno), None)  # type: ignore[attr-defined]
    if step is None or alternatives(unscale.module, step.node, unscale.node):
        return
    if unscale.state == "stepped":
        message = f"unscale_ comes after {scaler_in(unscale)}.step(), which has unscaled already: RuntimeError"
    else:
        message = (
            "unscale_ comes after the step and the update: it divides used gradients again, and the next step takes "
            "its own, scaled ones for unscaled"
        )
    yield found(
        "AMP137",
        unscale,
        message,
        evidence=[
            *((b, "these gradients are scaled") for b in backwards_of(step.before)[-1:]),
            (step, "unscaled and used here"),
            (unscale, "and unscaled here"),
        ],
        help="call it before the step, and clip there",
        fix=fixes.before_step(unscale.module, unscale.node, step.node),
    )


@rule("AMP118")
def closure_with_scaler(script: Script) -> Iterator[Finding]:
    """A closure that scaler.step hands on to the optimizer."""
    for step in script.events(events.Step):
        if not isinstance(step.scaler, Scaler) or is_disabled(step.scaler) or not isinstance(step.node, ast.Call):
            continue
        closure = _closure(step.node)
        scales = step.before.scaler == step.scaler or f"{receiver(step)}.scale(" in step.module.text
        if (not scales and step.scaler.node is None) or _may_be_another(step):
            continue  # something else with a step(optimizer, …)
        if closure is not None and _is_closure(step.module, closure):
            named = any(keyword.arg == "closure" for keyword in step.node.keywords)
            yield found(
                "AMP118",
                step,
                f"{scaler_in(step)}.step() cannot run a closure: "
                + (
                    "with closure= it raises RuntimeError"
                    if named
                    else "the optimizer calls it after the gradients were unscaled, and steps with those that it "
                    "computes, which are scaled"
                ),
                node=closure,
                evidence=[(step, "steps with a closure")],
                help="compute loss and backward before the step, or train this optimizer in bfloat16 or float32",
            )
        elif closure is None and step.optimizer.closure:
            yield found(
                "AMP118",
                step,
                f"{text(step.module, step.node)} calls no closure, but this optimizer needs one: TypeError",
                evidence=[(step, "steps without a closure")],
                help="train this optimizer in bfloat16 or float32: no GradScaler works with closures",
            )


def _may_be_another(step: events.Step) -> bool:
    """Whether the file stores a scaler that is none of torch's under the same name: its step may run closures."""
    name = receiver(step).rpartition(".")[2]
    for node in step.module.nodes(ast.Assign):
        if any(last_name(target) == name for target in node.targets):
            for call in walk(node.value):
                made = step.module.dotted(call.func) if isinstance(call, ast.Call) else set()
                if any(one.endswith("Scaler") and not one.startswith("torch.") for one in made):
                    return True
    return False


def _closure(call: ast.Call) -> ast.expr | None:
    """What scaler.step is given beside the optimizer."""
    for keyword in call.keywords:
        if keyword.arg == "closure":
            return keyword.value
    return call.args[1] if len(call.args) > 1 and not isinstance(call.args[1], ast.Starred) else None


def _is_closure(module: Module, node: ast.expr) -> bool:
    """Whether an expression is a function for sure: not a parameter that may be None."""
    if isinstance(node, ast.Lambda):
        return True
    if not isinstance(node, ast.Name):
        return False
    function = module.function(node)
    if node.id in parameters(function):
        return False
    return any(
        (isinstance(one, ast.FunctionDef) and one.name == node.id)
        or (
            isinstance(one, ast.Assign)
            and isinstance(one.value, ast.Lambda | ast.Call)
            and "partial" in text(module, one.value)
            and any(isinstance(target, ast.Name) and target.id == node.id for target in one.targets)
        )
        for one in module.all_nodes
    )
