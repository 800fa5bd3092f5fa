"""Family 1, zero_grad(): before the backward or after the step, never between them, and never left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import (
    Script,
    first_argument,
    fork,
    found,
    own_condition,
    rule,
    same_function,
    text,
)
from amplint.checks.scaler.accumulation import counts_batches, every_n_batches
from amplint.checks.scaler.nonfinite import asks_for_nonfinite
from amplint.checks.scaler.protocol import (
    backwards_of,
    lineno,
)
from amplint.findings import Finding, Fix
from amplint.rewrite.fixes import scaler as fixes
from amplint.source import events
from amplint.source.module import Module
from amplint.source.walk import walk

_ZEROES = re.compile(r"zero|\.grad\s*=|\bdel\b.*\.grad|grad_to_none|set_to_none")


@rule("AMP120")
def misplaced_zero_grad(script: Script) -> Iterator[Finding]:
    """Gradients are thrown away before the step that should use them."""
    for step in script.events(events.Step):
        before = step.before
        if step.scaler is None or before.kind != "none" or not before.lost or not before.by:
            continue
        zero = before.by[0]
        if _if_not_finite(zero):
            continue  # AMP125
        if _of_some(zero):
            continue
        if _ends_its_round(zero, step):
            continue  # the step is one of a later round, which has its own backward
        if every_n_batches(zero) and len(step.loops) < len(zero.loops):
            continue  # a step behind the loop is for the micro-batches that came after it
        if _own_backward_follows(script, zero, step):
            continue  # it is another loss whose gradients are thrown away: AMP121
        backwards = backwards_of(before)[-1:]
        if any(same_function(zero, b) and not same_function(zero, step) for b in backwards):
            continue  # a helper that throws away the gradients of its own backward: it has measured them
        yield found(
            "AMP120",
            zero,
            "gradients are set to zero between backward and step: the step changes nothing, or raises AssertionError",
            evidence=[
                *((b, "gradients are computed") for b in backwards),
                (zero, "and thrown away"),
                (step, "before this uses them"),
            ],
            help="call it after the step, or before the forward",
            fix=_zero_after(script, zero, step),
        )


def _ends_its_round(zero: events.Event, step: events.Event) -> bool:
    """Whether gradients are thrown away where the loop goes on to its next round, in an arm without the step."""
    for above in zero.module.ancestors(zero.node):
        if isinstance(above, ast.For | ast.While | ast.FunctionDef):
            return False
        if isinstance(above, ast.If):
            arm = next((one for one in (above.body, above.orelse) if any(zero.node in walk(part) for part in one)), [])
            if arm and isinstance(arm[-1], ast.Continue):
                return not any(step.node in walk(part) for part in arm)
    return False


@rule("AMP136")
def the_same_micro_batch(script: Script) -> Iterator[Finding]:
    """zero_grad before the forward and the step after it under one condition: the micro-batch that steps is the one
    that begins anew, and what all others have added since is thrown away."""
    told: set[ast.AST] = set()
    for step in script.events(events.Step):
        module, due = step.module, _counted(step)
        if step.scaler is None or due is None or step.before.kind != "scaled" or step.before.stepped:
            continue
        inner = [loop.node for loop in step.loops]
        backwards = backwards_of(step.before)
        for zero in script.events(events.ZeroGradient):
            asked = _counted(zero)
            if zero.node in told or asked is None or asked is due or not same_function(zero, step):
                continue
            mine = any(optimizer == step.optimizer for optimizer, _ in zero.touched)
            same = text(module, asked.test, 200) == text(module, due.test, 200) and bool(inner)
            if not mine or not same or [loop.node for loop in zero.loops] != inner:
                continue
            if backwards and all(_every(zero, backward, step, inner) for backward in backwards):
                told.add(zero.node)
                yield found(
                    "AMP136",
                    zero,
                    "gradients are set to zero in the very micro-batch that steps: what the others have added before "
                    "it is thrown away",
                    evidence=[
                        (zero, "begins anew"),
                        (backwards[-1], "every micro-batch adds its gradients"),
                        (step, "steps in the same one, with its gradients alone"),
                    ],
                    help="set them to zero after the step",
                )


def _counted(event: events.Event) -> ast.If | None:
    """The condition around an event in its loop, if it is nothing but `i % n == k`."""
    for above in event.module.ancestors(event.node):
        match above:
            case ast.If(test=ast.Compare(left=ast.BinOp(op=ast.Mod()), ops=[ast.Eq()])):
                return above
            case ast.If() | ast.For() | ast.While() | ast.FunctionDef():
                return None
    return None


def _every(zero: events.Event, backward: events.Backward, step: events.Step, inner: list[ast.AST]) -> bool:
    """Whether a backward runs in every micro-batch, between what may set to zero and what may step."""
    around = [above for above in backward.module.ancestors(backward.node) if isinstance(above, ast.If)]
    loop = inner[-1] if inner else None
    free = loop is not None and not any(loop in backward.module.ancestors(branch) for branch in around)
    between = lineno(zero.node) < lineno(backward.node) < lineno(step.node)
    return free and between and same_function(backward, step) and [one.node for one in backward.loops] == inner


def _if_not_finite(zero: events.Event) -> bool:
    """Whether only what is not finite is set to zero."""
    above = (one for one in zero.module.ancestors(zero.node) if isinstance(one, ast.If))
    return any(asks_for_nonfinite(one.test) for one in above)


def _of_some(zero: events.Event) -> bool:
    """Whether a condition in a loop over parameters picks those whose gradients are dropped: `if "head" in name`."""
    if "zero_grad" in text(zero.module, zero.node):
        return False
    above = (one for one in zero.module.ancestors(zero.node) if isinstance(one, ast.If | ast.For))
    return isinstance(picked := next(above, None), ast.If) and ".grad" not in text(zero.module, picked.test)


def _own_backward_follows(script: Script, zero: events.Event, step: events.Step) -> bool:
    """Whether another way leads through a backward for this optimizer between zero_grad and step."""
    start, end = zero.module.range(zero.node).start, step.module.range(step.node).start
    return any(
        any(one == step.optimizer for one, _ in backward.touched)
        and start < backward.module.range(backward.node).start < end
        for backward in script.events(events.Backward)
        if same_function(zero, step) and same_function(backward, step)
    )


def _zero_after(script: Script, zero: events.Event, step: events.Step) -> Fix | None:
    if not same_function(zero, step):
        return None
    update = next((u for u in script.events(events.Update) if u.scaler == step.scaler and same_function(u, step)), None)
    return fixes.zero_after(zero.module, zero.node, step.node, update.node if update else None)


@rule("AMP136")
def wrong_accumulation(script: Script) -> Iterator[Finding]:
    """Gradients of micro-batches are thrown away before the step that should add them up."""
    for zero in script.events(events.ZeroGradient):
        for optimizer, before in zero.touched:
            if before.kind not in ("scaled", "plain") or before.stepped:
                continue
            steps = [s for s in script.events(events.Step) if s.optimizer == optimizer]
            here = next((s for s in steps if same_function(s, zero)), None)
            if here is not None and (not every_n_batches(here) or every_n_batches(zero)):
                continue
            step = here or _due_where_zero_is_not(zero, steps)
            backwards = backwards_of(before)
            if step is None or not _in_every_round(zero, step, backwards):
                continue
            if here is None and any(all(f.code is not zero.frame.code for f in b.frame.stack()) for b in backwards):
                continue  # a helper that goes backward for itself
            used = {backward.node for backward in backwards_of(step.before) if not every_n_batches(backward)}
            if not used & {backward.node for backward in backwards_of(before)}:
                continue  # what is thrown away is what another loss leaves: a critic's, in its generator
            yield found(
                "AMP136",
                zero,
                "gradients are set to zero in every micro-batch, but the step runs only every few: it uses the last "
                "one alone",
                evidence=[
                    (zero, "every micro-batch"),
                    *((b, "gradients are computed") for b in backwards_of(before)[-1:]),
                    (step, "every few micro-batches"),
                ],
                help="set them to zero where the step is, after it",
            )


def _due_where_zero_is_not(zero: events.Event, steps: list[events.Step]) -> events.Step | None:
    """The step that a loop calls in every nth round only, while it calls what sets gradients to zero in each, whatever
    functions they are in."""
    if not zero.loops or _branches_in(zero, zero.loops[-1].node) != []:
        return None
    for step in steps:
        if [one.node for one in step.loops] == [one.node for one in zero.loops]:
            branches = _branches_in(step, step.loops[-1].node)
            if any(counts_batches(module, one.test) for module, one in branches or ()):
                return step
    return None


def _branches_in(event: events.Event, loop: ast.AST) -> list[tuple[Module, ast.If]] | None:
    """The conditions under which a round of a loop runs something, those of the calls that lead to it among them."""
    found: list[tuple[Module, ast.If]] = []
    node: ast.AST | None = event.node
    for frame in event.frame.stack():
        if node is None:
            return None
        for above in frame.module.ancestors(node):
            if above is loop:
                return found
            if isinstance(above, ast.If):
                found.append((frame.module, above))
        node = frame.call
    return None


def _in_every_round(zero: events.Event, step: events.Step, backwards: list[events.Backward]) -> bool:
    """Whether the loop over micro-batches that runs backward and step sets gradients to zero in each round: not once
    before it (as every epoch does), and not under a condition of its own."""
    loops = [loop.node for loop in zero.loops]
    return (
        loops == [loop.node for loop in step.loops]
        and all([loop.node for loop in backward.loops][: len(loops)] == loops for backward in backwards)
        and not own_condition(zero.module, zero.node, step.node)
    )


@rule("AMP136")
def never_zeroed(script: Script) -> Iterator[Finding]:
    """Nothing in the loop sets the gradients to zero: what a step has unscaled stays, and scaled ones are added to it.
    Where no loop of the file does, it is an excerpt."""
    if "zero_grad" not in script.module.text:
        return
    for step in script.events(events.Step):
        if step.scaler is None or not step.loops or not step.optimizer.name.startswith("torch.optim."):
            continue
        loop = step.loops[-1]
        backward = next((b for b in backwards_of(step.before) if loop in b.loops), None)
        if backward is None or loop.round == 1 or loop.frame is not step.frame or step.module is not backward.module:
            continue
        left = (before for optimizer, before in backward.touched if optimizer == step.optimizer)
        used = any(before.stepped and before.kind in ("unscaled", "mixed") for before in left)
        if not used or _ZEROES.search(step.module.source(loop.node)):
            continue
        if any(loop.node is one.node for zero in script.events(events.ZeroGradient) for one in zero.loops):
            continue
        yield found(
            "AMP136",
            step,
            f"nothing sets the gradients of {first_argument(step)} to zero in this loop: each step uses those of all "
            "rounds before, the last of them scaled differently",
            evidence=[
                (step, "unscales the gradients in place, and leaves them"),
                (backward, "the next round adds scaled ones to them"),
            ],
            help="zero_grad() in every round: before the backward, or after the step",
        )


@rule("AMP136")
def zeroed_without_the_scaler_only(script: Script) -> Iterator[Finding]:
    """All that sets gradients to zero stands beside the step of a run without AMP (`else: step(); zero_grad()`): where
    the scaler steps, the gradients of all steps before stay."""
    module = script.module
    zeroes = [node for node in module.all_nodes if _sets_to_zero(node)] if "zero_grad" in module.text else []
    told: set[ast.AST] = set()
    for step in script.events(events.Step) if zeroes else ():
        branches = [fork(module, step.node, zero) for zero in zeroes] if step.module is module else [None]
        branch = branches[0]
        if step.scaler is None or step.node in told or not isinstance(branch, ast.If) or set(branches) != {branch}:
            continue
        plain = (one for one in module.nodes(ast.Call) if text(module, one.func) == f"{first_argument(step)}.step")
        beside = next((one for one in plain if fork(module, one, step.node) is branch), None)
        backwards = [one for one in backwards_of(step.before) if one.module is module]
        repeated = any(one.loops for one in (step, *backwards))
        if beside is None or not backwards or not repeated or _ZEROES.search(_arm_of(module, branch, step.node)):
            continue
        told.add(step.node)
        yield found(
            "AMP136",
            step,
            f"no gradients are set to zero where the scaler steps: {text(module, zeroes[0])} stands in the other arm "
            "alone, and each step uses the gradients of all steps before",
            evidence=[(backwards[-1], "adds to the gradients"), (step, "steps, and leaves them")],
            help="zero_grad() behind both arms",
        )


def _sets_to_zero(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            return "zero_grad" in name
        case ast.Assign(targets=[ast.Attribute(attr="grad")]):
            return True
    return False


def _arm_of(module: Module, branch: ast.If, node: ast.AST) -> str:
    """The source of the arm that holds a node."""
    above = {node, *module.ancestors(node)}
    arm = branch.body if any(one in above for one in branch.body) else branch.orelse
    return "\n".join(module.rows(one) for one in arm)
