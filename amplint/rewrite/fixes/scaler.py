"""Fixes of family 1, the scaler protocol."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Edit, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt, bound_before, conditions_above, roots, suite_of
from amplint.rewrite.refusals.sharding import sharded
from amplint.rewrite.syntax.text import edit
from amplint.source.module import Module
from amplint.source.tree import names_in, place_of, stored_names
from amplint.source.walk import walk

SAFE, UNSAFE = Applicability.SAFE, Applicability.UNSAFE


def unscale_before(module: Module, clip: ast.AST, scaler: str, optimizer: str, step: ast.AST) -> Fix | None:
    """Insert unscale_ before the statement that clips. Where the step is under `if scaler is not None:`, unscale_ is,
    too. Where it has another condition that the clip has not, the clip moves to it, if it has none of its own:
    gradients can be unscaled once per step only."""
    statement = module.statement(clip)
    call = f"{scaler}.unscale_({optimizer})"
    if not bound_before(module, scaler, clip) or not bound_before(module, optimizer, clip):
        return None
    above_clip, above_step = conditions_above(module, clip), conditions_above(module, step)
    extra = [one for one in above_step if one not in above_clip]
    own = [one for one, _ in above_clip if not any(one is other for other, _ in above_step)]
    if not extra:
        once = _before_loops(statement, own, call)
        return attempt(f"insert {call}", SAFE, lambda: edits.insert_before(module, once, [call]))
    match extra:
        case [(ast.If(test=test), "body")] if module.source(test) in (scaler, f"{scaler} is not None"):
            if not all(isinstance(one, ast.If) for one in own):
                return None
            guarded = [f"if {module.source(test)}:", f"    {call}"]
            first = module.statement(own[-1]) if own else statement
            return attempt(f"insert {call}", SAFE, lambda: edits.insert_before(module, first, guarded))
    if own or not isinstance(statement, ast.Expr) or len(extra) > 1 or not isinstance(extra[0][0], ast.If):
        return None
    target = module.statement(step)
    lines = [call, *_lines(module, statement)]

    def build() -> list[Edit]:
        return [*edits.delete(module, statement), *edits.insert_before(module, target, lines)]

    return attempt(f"clip where the step is, after {call}", UNSAFE, build)


def unscale_before_guarded(module: Module, clip: ast.AST, scaler: str, optimizer: str, step: ast.AST) -> Fix | None:
    """Insert unscale_ before the statement that clips, in another function than the step, under the one condition that
    the step has there (`if self.scaler is not None:`)."""
    call = f"{scaler}.unscale_({optimizer})"
    lines = [call]
    match conditions_above(module, step):
        case []:
            pass
        case [(ast.If(test=test), "body")] if "\n" not in module.source(test):
            lines = [f"if {module.source(test)}:", f"    {call}"]
        case _:
            return None
    first = _before_loops(module.statement(clip), [one for one, _ in conditions_above(module, clip)], call)
    return attempt(f"insert {call}", SAFE, lambda: edits.insert_before(module, first, lines))


def _before_loops(statement: ast.stmt, above: list[ast.AST], call: str) -> ast.stmt:
    """Where a call that may run once only belongs: before the loops among `above` (innermost first) that `statement`
    stands in (`for group in optimizer.param_groups:`), but for those that choose what the call is about."""
    for node in above:
        if isinstance(node, ast.For | ast.While):
            if stored_names(node) & roots(call):
                break
            statement = node
    return statement


def _lines(module: Module, statement: ast.stmt) -> list[str]:
    """The text of a statement as lines that start at column 0."""
    first, *rest = module.source(statement).splitlines()
    indent = len(module.line(statement.lineno)) - len(module.line(statement.lineno).lstrip())
    return [first, *(line[indent:] if line[:indent].isspace() else line for line in rest)]


def step_through_scaler(module: Module, step: ast.Call, scaler: str, update: bool) -> Fix | None:
    """`optimizer.step()` → `scaler.step(optimizer)`, and an update after it if there is none."""
    if not isinstance(step.func, ast.Attribute) or step.args or step.keywords:
        return None  # called by a name of its own: `step = optimizer.step`
    if not bound_before(module, scaler, step):
        return None
    optimizer = module.source(step.func.value)
    statement = module.statement(step)

    def build() -> list[Edit]:
        changed = edits.replace(module, step, f"{scaler}.step({optimizer})")
        return changed + (edits.insert_after(module, statement, [f"{scaler}.update()"]) if update else [])

    return attempt(f"call {scaler}.step({optimizer})", SAFE, build)


def drop_second_step(module: Module, step: ast.AST) -> Fix | None:
    statement = module.statement(step)
    if not isinstance(statement, ast.Expr):
        return None
    return attempt("remove the second step", SAFE, lambda: edits.delete(module, statement))


def scale_backward(module: Module, backward: ast.Call, scaler: str, dropped: ast.stmt | None = None) -> Fix | None:
    """`loss.backward()` → `scaler.scale(loss).backward()`; a scale() whose result was dropped goes away."""
    if not isinstance(backward.func, ast.Attribute) or not bound_before(module, scaler, backward):
        return None
    receiver = backward.func.value

    def build() -> list[Edit]:
        changed = edits.wrap_call(module, receiver, f"{scaler}.scale({{}})")
        return changed + (edits.delete(module, dropped) if dropped is not None else [])

    return attempt(f"scale the loss with {scaler}", SAFE, build)


def move_under_step(module: Module, unscale: ast.AST, step: ast.AST) -> Fix | None:
    """Move unscale_, and what follows it in its block up to the step's `if`, to the step."""
    first = module.statement(unscale)
    suite = suite_of(module, first)
    target = module.statement(step)
    branch = next((one for one, _ in conditions_above(module, step) if one in suite), None)
    if not isinstance(branch, ast.If) or branch.orelse or not isinstance(first, ast.Expr):
        return None
    moved = suite[suite.index(first) : suite.index(branch)]
    if not moved or not all(isinstance(one, ast.Expr) or _only_clips(one) for one in moved):
        return None
    return attempt("unscale and clip where the step is", SAFE, lambda: edits.move_before(module, moved, target))


def _only_clips(statement: ast.stmt) -> bool:
    """An assignment of a clip's norm, or an `if` around expressions: as good as the bare call."""
    match statement:
        case ast.Assign(value=ast.Call()):
            return "clip" in ast.unparse(statement.value)
        case ast.If(orelse=[]):
            return all(isinstance(inner, ast.Expr) or _only_clips(inner) for inner in statement.body)
    return False


def update_after(module: Module, steps: list[ast.AST], scaler: str) -> Fix | None:
    """Insert update() after the last step through the scaler in its block."""
    last = max(steps, key=place_of)
    statement = module.statement(last)
    if not scaler or len({tuple(conditions_above(module, step)) for step in steps}) > 1:
        return None
    return attempt(
        f"insert {scaler}.update()", SAFE, lambda: edits.insert_after(module, statement, [f"{scaler}.update()"])
    )


def update_after_loop(module: Module, update: ast.AST, loop: ast.For) -> Fix | None:
    """Move update() out of the loop that it ends."""
    statement = module.statement(update)
    if statement is not loop.body[-1] or len(loop.body) < 2 or loop.orelse:
        return None
    return attempt("update after the loop", SAFE, lambda: edits.move_after(module, [statement], loop))


def update_behind(module: Module, update: ast.AST, step: ast.AST) -> Fix | None:
    """Move update() to right behind the step, where both stand in one block."""
    statement, target = module.statement(update), module.statement(step)
    if not isinstance(statement, ast.Expr) or statement not in suite_of(module, target):
        return None
    return attempt("update after the step", SAFE, lambda: edits.move_after(module, [statement], target))


def drop_update(module: Module, update: ast.AST) -> Fix | None:
    """Remove an update() that another one, after the last step, makes needless."""
    statement = module.statement(update)
    if not isinstance(statement, ast.Expr):
        return None
    return attempt("update once, after the last step", SAFE, lambda: edits.delete(module, statement))


def move_before_loops(module: Module, create: ast.AST) -> Fix | None:
    """Move the scaler's constructor before the outermost loop of its function."""
    statement = module.statement(create)
    loops = [one for one, _ in conditions_above(module, statement) if isinstance(one, ast.For | ast.While)]
    if not loops or not isinstance(statement, ast.Assign) or module.parents[statement] not in loops:
        return None
    outermost = loops[-1]
    assert isinstance(outermost, ast.stmt)
    inside = stored_names(outermost)
    used = names_in(statement.value)
    if used & inside:
        return None
    return attempt("create it once, before the loop", SAFE, lambda: edits.move_before(module, [statement], outermost))


def add_state(module: Module, mapping: ast.Dict, entry: ast.expr, scaler: str) -> Fix | None:
    """Add the scaler's state to a dict literal, after the optimizer's, in its key style."""
    if not bound_before(module, scaler, mapping):
        return None
    key = next((k for k, v in zip(mapping.keys, mapping.values, strict=True) if v is entry), None)
    if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
        return None
    name = "scaler" + key.value.removeprefix("optimizer").removeprefix("optim").removeprefix("_optimizer")
    if not key.value.startswith("optim"):
        name = "scaler"
    quoted = module.source(key).replace(key.value, name)
    state = f"{scaler}.state_dict()"
    if isinstance(entry, ast.IfExp) and _asks_for_itself(module, entry):  # where there is none, there may be no scaler
        yes, no = (state if isinstance(one, ast.Call) else module.source(one) for one in (entry.body, entry.orelse))
        state = f"{yes} if {module.source(entry.test)} else {no}"
    text = f"{quoted}: {state}"
    return attempt("save the scaler's state, too", UNSAFE, lambda: edits.add_entry(module, mapping, entry, text))


def _asks_for_itself(module: Module, entry: ast.IfExp) -> bool:
    """`optimizer.state_dict() if optimizer else None`."""
    owners = {module.source(one.func.value) for one in walk(entry) if isinstance(one, ast.Call)
              and isinstance(one.func, ast.Attribute) and one.func.attr == "state_dict"}  # fmt: skip
    return any(isinstance(one, ast.expr) and module.source(one) in owners for one in walk(entry.test))


def add_scaler(
    module: Module,
    create: ast.AST,
    backward: ast.AST,
    step: ast.AST,
    clips: list[ast.AST],
    autocast: ast.AST | None,
) -> Fix | None:
    """The whole protocol for one optimizer, one backward and one step: made beside the optimizer, scale, unscale_
    before the first clip, step, update."""
    made, torch = module.statement(create), edits.binding_of(module, "torch", at=module.statement(create))
    match backward, step:
        case ast.Call(func=ast.Attribute(value=loss)), ast.Call(func=ast.Attribute(value=owner), args=[], keywords=[]):
            pass
        case _:
            return None
    if torch is None or not isinstance(made, ast.Assign) or not isinstance(made.targets[0], ast.Name | ast.Attribute):
        return None
    if sharded(module):
        return None  # a plain scaler looks for inf in its own shard only
    optimizer = module.source(owner)
    target = module.source(made.targets[0])
    idle = _idle(module, backward)
    name = idle or target.rpartition(".")[0] + "." * ("." in target) + free_name(module)
    enabled = _enabled(module, autocast)
    between = [clip for clip in clips if backward.lineno < clip.lineno < step.lineno]  # type: ignore[attr-defined]

    def build() -> list[Edit]:
        changes = (
            [] if idle else edits.insert_after(module, made, [f'{name} = {torch}.amp.GradScaler("cuda"{enabled})'])
        )
        changes += edits.wrap_call(module, loss, f"{name}.scale({{}})")
        if between:
            changes += edits.insert_before(module, module.statement(between[0]), [f"{name}.unscale_({optimizer})"])
        changes += edits.replace(module, step, f"{name}.step({optimizer})")
        return changes + edits.insert_after(module, module.statement(step), [f"{name}.update()"])

    return attempt("scale the loss with a GradScaler", UNSAFE, build)


def _idle(module: Module, backward: ast.AST) -> str:
    """A scaler that is made, and that nothing uses yet; "" where there is none at hand."""
    for node in module.all_nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call(func=function)):
                if not any(one.endswith(".GradScaler") for one in module.dotted(function)):
                    continue
                if not any(
                    isinstance(one, ast.Name) and one.id == name and isinstance(one.ctx, ast.Load)
                    for one in module.all_nodes
                ) and bound_before(module, name, backward):
                    return name
    return ""


def free_name(module: Module) -> str:
    """`scaler`, or `grad_scaler` where that is taken (a StandardScaler, say)."""
    taken = {node.id for node in module.all_nodes if isinstance(node, ast.Name)}
    taken |= {node.attr for node in module.all_nodes if isinstance(node, ast.Attribute)}
    return "grad_scaler" if "scaler" in taken else "scaler"


def _enabled(module: Module, autocast: ast.AST | None) -> str:
    """The region's own switch, for the scaler to follow."""
    if isinstance(autocast, ast.Call):
        for keyword in autocast.keywords:
            if keyword.arg == "enabled" and isinstance(keyword.value, ast.Name | ast.Attribute):
                return f", enabled={module.source(keyword.value)}"
    return ""


def zero_after(module: Module, zero: ast.AST, step: ast.AST, update: ast.AST | None) -> Fix | None:
    """Move zero_grad to after the step (and the update that follows it in the same block)."""
    statement, target = module.statement(zero), module.statement(step)
    if update is not None and module.statement(update) in suite_of(module, target):
        target = module.statement(update)
    if not isinstance(statement, ast.Expr) or statement not in suite_of(module, target):
        return None
    return attempt("set gradients to zero after the step", SAFE, lambda: edits.move_after(module, [statement], target))


def reduce_in_float32(module: Module, reduction: ast.Call) -> Fix | None:
    """`x.mean()` → `x.float().mean()`, `torch.mean(x)` → `torch.mean(x.float())`."""
    operand = reduction.func.value if isinstance(reduction.func, ast.Attribute) else None
    if reduction.args and (operand is None or any(name.startswith("torch") for name in module.dotted(reduction.func))):
        operand = reduction.args[0]
    if operand is None or isinstance(operand, ast.Starred):
        return None
    return attempt("reduce in float32", SAFE, lambda: edits.wrap_call(module, operand, "{}.float()"))


def scaler_instead(module: Module, create: ast.AST, backward: ast.Call, division: ast.AST, step: ast.AST) -> Fix | None:
    """A GradScaler in the place of `(loss * k).backward()` and the loop that divides the gradients by k."""
    made, divides = module.statement(create), _loop_of(module, module.statement(division))
    torch = edits.binding_of(module, "torch", at=made)
    match backward.func, step:
        case ast.Attribute(value=ast.BinOp(left=left, right=right) as product), ast.Call(
            func=ast.Attribute(value=owner), args=[], keywords=[]
        ):
            loss = right if isinstance(left, ast.Constant) or "scale" in module.source(left).lower() else left
        case _:
            return None
    if (
        torch is None
        or divides is None
        or not isinstance(made, ast.Assign)
        or not isinstance(made.targets[0], ast.Name)
    ):
        return None
    name, optimizer = free_name(module), module.source(owner)

    def build() -> list[Edit]:
        changes = edits.insert_after(module, made, [f'{name} = {torch}.amp.GradScaler("cuda")'])
        changes += edits.replace(module, product, f"{name}.scale({module.source(loss)})")
        changes += edits.delete(module, divides)
        changes += edits.replace(module, step, f"{name}.step({optimizer})")
        return changes + edits.insert_after(module, module.statement(step), [f"{name}.update()"])

    return attempt("scale the loss with a GradScaler", UNSAFE, build)


def _loop_of(module: Module, statement: ast.stmt) -> ast.stmt | None:
    """The loop over parameters that does nothing but this."""
    above = module.parents[statement]
    if isinstance(above, ast.If) and above.body == [statement] and not above.orelse:
        statement, above = above, module.parents[above]
    if isinstance(above, ast.For) and above.body == [statement] and not above.orelse:
        return above
    return None


def backward_of_scaled(module: Module, call: ast.Call, inner: ast.Call) -> Fix | None:
    """`scaler.scale(loss.backward())` → `scaler.scale(loss).backward()`."""
    if not isinstance(inner.func, ast.Attribute) or inner.args or inner.keywords:
        return None
    loss = inner.func.value

    def build() -> list[Edit]:
        text = f"{module.source(call.func)}({module.source(loss)}).backward()"
        return edits.replace(module, call, text)

    return attempt("call backward() on the scaled loss", SAFE, build)


def only_call(module: Module, statement: ast.Assign) -> Fix | None:
    """`x = call` → `call`."""
    first, last = (module.offset(module.range(node).start) for node in (statement, statement.value))
    return attempt("do not assign None", SAFE, lambda: [edit(module, first, last, "")])


def look_at(module: Module, node: ast.expr, instead: ast.expr) -> Fix | None:
    """Read the loss where the scaled one is read."""
    text = module.source(instead)
    name = text if isinstance(instead, ast.Name | ast.Attribute | ast.Call | ast.Subscript) else f"({text})"
    return attempt(f"read {name}", SAFE, lambda: edits.replace(module, node, name))


def as_float(module: Module, number: ast.Constant) -> Fix | None:
    return attempt("a float", SAFE, lambda: edits.replace(module, number, f"{module.source(number)}.0"))
