"""Family 1, schedules that go on although the scaler skips a step."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, receiver, rule
from amplint.checks.scaler.protocol import is_disabled
from amplint.findings import Finding
from amplint.source import events
from amplint.source.module import Module
from amplint.source.values import Object, Scaler
from amplint.source.walk import walk

_SCHEDULE = re.compile(r"sched|warm_?up|annealing", re.IGNORECASE)
_STEP = re.compile(r"(?:^|_)step(?:_|$)|^step_update$")
_EPOCHS = re.compile(r"(?<!per_)(?<!_of_)(?<!in_)epochs?\b", re.IGNORECASE)
# Whoever looks at the scale, or at what the step did, knows that steps are skipped.
_KNOWS = re.compile(r"get_scale|_scale\b|found_inf|skip|step_was|optimizer_step_was_skipped|has_overflow|overflow")


@rule("AMP117")
def scheduler_after_skipped_step(script: Script) -> Iterator[Finding]:
    """A schedule steps with every batch, also where the scaler has skipped the optimizer's step."""
    told: set[ast.AST] = set()  # one for each function
    steps: list[events.Step | events.Update] = [*script.events(events.Step), *script.events(events.Update)]
    for step in steps:
        if not isinstance(step.scaler, Scaler) or is_disabled(step.scaler):
            continue
        if isinstance(step.scaler.site, Object) and step.scaler.site.kind == "managed":
            continue
        module = step.module
        code = module.scope(step.node)
        for call in walk(code):
            if code in told or not isinstance(call, ast.Call) or not _schedules(module, call):
                continue
            if module.function(call) is not module.function(step.node) or not _every_step(module, call, step.node):
                continue
            if _KNOWS.search(module.rows(code) if code is not module.tree else module.text):
                continue
            told.add(code)
            yield found_at(
                "AMP117",
                module,
                call,
                f"the schedule goes on where {receiver(step) or 'the scaler'} skips the step, as it does at first, "
                "until the scale fits: warm-up and decay end that many steps early",
                evidence=[(module, step.node, "skipped where gradients are inf"), (module, call, "never skipped")],
                help="step it only where the scale has not gone down: scaler.get_scale() >= scale_before",
            )


def _schedules(module: Module, call: ast.Call) -> bool:
    """Whether a call steps a schedule: `scheduler.step()`, `self.lr_scheduler.step_update(n)`, `scheduler_step(…)`."""
    match call.func:
        case ast.Attribute(value=owner, attr=name):
            return bool(
                _STEP.search(name)
                and (_SCHEDULE.search(module.source(owner)) or _SCHEDULE.search(name))
                and not re.search(r"optimizer\.step$|^scaler", f"{module.source(owner)}.{name}")
            )
        case ast.Name(id=name):
            return bool(_SCHEDULE.search(name) and _STEP.search(name))
    return False


def _every_step(module: Module, call: ast.Call, step: ast.AST) -> bool:
    """Whether the schedule steps as often as the optimizer: in its loop, or in a function of one step; not once an
    epoch."""
    loop = module.loop(call)
    if loop is None or module.function(call) is not module.function(loop):
        return not any(isinstance(one, ast.For | ast.While) for one in _inside(module, step))
    around = list(module.ancestors(step))
    if loop not in around:
        return False
    if isinstance(loop, ast.For):
        return not _EPOCHS.search(f"{module.source(loop.target)} {module.source(loop.iter)}")
    return not _EPOCHS.search(module.source(loop.test))


def _inside(module: Module, node: ast.AST) -> Iterator[ast.AST]:
    for above in module.ancestors(node):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        yield above
