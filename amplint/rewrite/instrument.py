"""FP32 → AMP: turns planned training steps into AMP steps, and says what was done in a person's words."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from amplint import checks, knowledge
from amplint.config import Settings
from amplint.findings import Applicability, Edit, Finding, Severity
from amplint.repair import Check, Unsettled, repair
from amplint.rewrite import device, edits
from amplint.rewrite.apply import Conflict, apply
from amplint.rewrite.checkpoints import state_edits
from amplint.rewrite.evaluation import evaluation_regions
from amplint.rewrite.fixes.scaler import free_name
from amplint.rewrite.home import at_hand, calls_of
from amplint.rewrite.plan import Plans, StepPlan, make_plans, unscale_at
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.rewrite.switch import switch
from amplint.rewrite.unfit import to_numpy, whole_script
from amplint.rewrite.used import check_used
from amplint.selection import default_codes
from amplint.source import suppress
from amplint.source.interpret.entries import Reading, read
from amplint.source.module import Module, Unreadable, parse
from amplint.source.suppress import fp32_lines

SAFE = frozenset((Applicability.SAFE,))
# What half-done AMP lacks, which `check --fix` would not add unasked: always, and in files that change anyway.
COMPLETES = frozenset(("AMP101",))
GOES_ALONG = frozenset(("AMP116", "AMP133"))
RANGE = frozenset(("AMP401", "AMP403", "AMP406", "AMP407"))  # what only float16's range breaks


@dataclass
class Result:
    """The new text of a file, a line per training step, and whether one was refused."""

    text: str
    lines: list[str] = field(default_factory=list)
    refused: bool = False
    steps: bool = True  # whether it holds a training step


def fix(module: Module, settings: Settings, options: dict[str, Any], together: Sequence[Module] = ()) -> Result:
    """Apply the safe fixes, then instrument what runs in full precision; nothing is converted in part. `together` are
    the files that were named with this one."""
    dtype = "float16" if options["dtype"] == "auto" else options["dtype"]
    settings = _asked(settings.of_file(module.path), options.get("select") or (), dtype)
    repaired, fixed, left = _repair(module, settings, complete=True)
    reading = read(repaired, settings.roots, settings.apis)
    plans = make_plans(reading, dtype, together)
    kept = set(fp32_lines(repaired.text))
    result = Result(repaired.text)
    lines: list[tuple[int, str]] = []

    def say(node: ast.AST, words: str) -> None:
        row = repaired.range(node).start.row
        lines.append((row, f"{module.path}:{row}: {words}"))

    def refuse(node: ast.AST, reason: str, advice: str) -> None:
        say(node, f"refused: {reason}; {advice}")
        result.refused = True

    broken = next((one for one in left if one.severity is Severity.ERROR and one.code.startswith("AMP1")), None)
    for node in plans.already:
        if broken is not None:
            refuse(node, f"half done, and {broken.message} ({broken.code})", broken.help or BY_HAND)
        else:
            say(node, "completed: " + _mended(fixed) if fixed else "already AMP")
    if plans.plans:
        _check_files(plans, reading, settings, dtype, together)
    for node, refusal in plans.refused:
        if _kept_as_is(repaired, node, kept):
            say(node, "kept in float32, as its comment asks")
        else:
            refuse(node, refusal.reason, refusal.advice)
    for plan in plans.plans:
        if _kept_as_is(repaired, plan.step.node, kept):
            say(plan.step.node, "kept in float32, as its comment asks")
            continue
        try:
            text, words = _convert(repaired, reading, plan, settings, dtype)
        except (Refused, edits.CannotEdit) as refusal:
            refuse(plan.step.node, refusal.reason, getattr(refusal, "advice", BY_HAND))
        else:
            result.text = text
            words += ["mended " + _mended(fixed)] if fixed else []
            say(plan.step.node, "converted: " + "; ".join(words))
    result.steps = bool(lines)
    if not lines and fixed:
        lines.append((0, f"{module.path}: fixed: {_mended(fixed)}"))
    if result.refused and not plans.already:
        result.text = module.text  # never a partial conversion
    result.lines = [line for _, line in sorted(lines)]
    return result


def _check_files(plans: Plans, reading: Reading, settings: Settings, dtype: str, together: Sequence[Module]) -> None:
    """Refuse the steps of a script that uses a file which low precision cannot run."""

    def find(used: Module, codes: frozenset[str]) -> tuple[Finding, ...]:
        return _find(used, replace(settings, codes=codes & default_codes(), target_dtype=dtype))

    try:
        used = check_used(reading.module, reading.machine.project, together, find)
        whole_script(reading, dtype, (reading.module, *together), used)
    except Refused as refusal:
        plans.refused += [(plan.step.node, refusal) for plan in plans.plans]
        plans.plans = []


def _mended(fixed: tuple[Finding, ...]) -> str:
    return ", ".join(sorted({f"{one.code} {knowledge.rules()[one.code].name}" for one in fixed}))


def _kept_as_is(module: Module, node: ast.AST, kept: set[int]) -> bool:
    """`# amplint: fp32 reason` on the step, on a loop around it, or on its function."""
    return any(getattr(one, "lineno", 0) in kept for one in (module.statement(node), *module.ancestors(node)))


def _asked(settings: Settings, select: Sequence[str], dtype: str) -> Settings:
    """What is looked for: what is on by default, and what was selected, too."""
    codes = settings.codes | (default_codes() if select or not settings.codes else frozenset())
    if not any(one.upper().startswith(("AMP6", "ALL")) for one in select):
        codes -= _deprecated()
    if dtype == "bfloat16":
        codes -= RANGE
    return replace(settings, codes=codes, notes=frozenset())


def _deprecated() -> frozenset[str]:
    """The rules about names that still work."""
    rules = knowledge.rules().items()
    return frozenset(code for code, rule in rules if code.startswith("AMP6") and rule.severity is not Severity.ERROR)


def _find(module: Module, settings: Settings) -> tuple[Finding, ...]:
    """The file's own findings that no comment hides."""
    comments = suppress.read(module.text)
    found = checks.check_module(module, settings).findings
    return tuple(
        one for one in found if one.path == module.path and one.code in settings.codes and not comments.hide(one)
    )


class Repair(NamedTuple):
    """A module after its fixes, what they mended, and what is left."""

    module: Module
    fixed: tuple[Finding, ...]
    left: tuple[Finding, ...]


def _repair(module: Module, settings: Settings, complete: bool = False) -> Repair:
    """Apply the safe fixes; with `complete`, also what half-done AMP lacks. Deprecated names are brought up to date in
    files that change anyway."""

    wider = replace(settings, codes=settings.codes | (_deprecated() & default_codes()))
    known: dict[str, tuple[Finding, ...]] = {}

    def check(allowed: frozenset[str], wanted: Settings, module: Module) -> tuple[Finding, ...]:
        if module.text not in known:
            known[module.text] = _find(module, wider)
        found = (one for one in known[module.text] if one.code in wanted.codes)
        return tuple(_made_safe(one) if one.code in allowed else one for one in found)

    stages = [(frozenset[str](), settings)]  # first what is wrong, then what is missing: a dtype may decide that
    if complete:
        stages.append((COMPLETES, settings))
    done = Repair(module, (), check(frozenset(), settings, module))
    try:
        for allowed, wanted in stages:
            done = _more(done, partial(check, allowed, wanted))
        if not done.fixed:
            return done
        for allowed in (GOES_ALONG if complete else frozenset[str](), frozenset[str]()):
            along = _more(done, partial(check, allowed, wider))
            if not {one.code for one in along.left} - {one.code for one in done.left} & GOES_ALONG:
                return along  # otherwise the scaler's state would be saved where it cannot be restored
    except Unsettled:
        return Repair(module, (), check(frozenset(), settings, module))
    return along


def _more(done: Repair, check: Check) -> Repair:
    repaired = repair(done.module, check(done.module), check, SAFE)
    return Repair(repaired.module, done.fixed + repaired.fixed, repaired.findings)


def _made_safe(finding: Finding) -> Finding:
    fix = finding.fix
    if fix is None or fix.applicability is not Applicability.UNSAFE:
        return finding
    return replace(finding, fix=replace(fix, applicability=Applicability.SAFE))


def _convert(module: Module, reading: Reading, plan: StepPlan, settings: Settings, dtype: str) -> tuple[str, list[str]]:
    """The text with one step converted, and what was done; raises Refused if the outcome is not clean."""
    torch = edits.binding_of(module, "torch", at=plan.region[0])
    if torch is None:
        raise Refused("the file has no name for torch at the training step", "add `import torch` at its top")
    writer = _Writer(module, plan, settings.target_device, dtype, torch)
    seen = {frame.call for event in reading.events for frame in event.frame.stack() if frame.call is not None}
    writer.write(seen)
    for region, casts in evaluation_regions(reading, plan):
        if dtype != "bfloat16" or not to_numpy(reading, region[0]):
            writer.evaluate(region, casts)
    try:
        text = apply(module.text, writer.edits)
    except Conflict:
        raise Refused("its edits would overlap", "spread the training step over lines of its own") from None
    text, mended = _settled(module, text, settings)
    return text, [*writer.words, *(["mended " + _mended(mended)] if mended else [])]


def _settled(module: Module, text: str, settings: Settings) -> tuple[str, tuple[Finding, ...]]:
    """The converted text after its own safe fixes (a mask constant that half precision cannot hold, say), and what
    they mended. It must parse, and `check` must find nothing wrong in it that was not there before."""
    try:
        after = Module(module.path, text, parse(text), module.encoding)
    except Unreadable as error:
        raise Refused(f"the result would not parse ({error.reason})", "please report this") from None
    after, mended, left = _repair(after, settings)
    known = {(finding.code, finding.message) for finding in _find(module, settings)}
    for finding in left:
        if finding.severity is not Severity.NOTE and (finding.code, finding.message) not in known:
            raise Refused(f"in half precision, {finding.message} ({finding.code})", finding.help or "mend that first")
    return after.text, mended


class _Writer:
    """Collects the edits of one step, and the words for them."""

    def __init__(self, module: Module, plan: StepPlan, target: str, dtype: str, torch: str):
        self.module = module
        self.plan = plan
        self.target = target
        self.dtype = dtype
        self.torch = torch
        self.edits: list[Edit] = []
        self.words: list[str] = []
        self.scaler = self._scaler_name() if dtype == "float16" else ""

    def write(self, seen: set[ast.AST]) -> None:
        """The training step. `seen` are the calls that the reading followed."""
        module, plan, name = self.module, self.plan, self.scaler
        function = plan.step.frame.name
        where = f"{function}(): " if function != "<module>" else ""
        self._region()
        what = "forward" if plan.casts else "forward and loss"
        self.words.append(f"{where}{what} under autocast({self.dtype})")
        if plan.casts:
            self.words.append("binary cross entropy, and the sigmoid before it, in float32")
        if not name:
            return
        self._make_scaler(seen)
        backward, step = plan.backward.node, plan.step.node
        assert isinstance(backward, ast.Call)
        assert isinstance(backward.func, ast.Attribute)
        assert isinstance(step, ast.Call)
        assert isinstance(step.func, ast.Attribute)
        if step.args or step.keywords:
            raise Refused("its step() takes arguments", BY_HAND)
        optimizer = module.source(step.func.value)
        self.edits += edits.wrap_call(module, backward.func.value, f"{name}.scale({{}})")
        if (clipping := unscale_at(plan, module)) is not None:
            self.edits += edits.insert_before(module, clipping, [f"{name}.unscale_({optimizer})"])
            self.words.append("gradients unscaled before they are clipped")
        self.edits += edits.replace(module, step, f"{name}.step({optimizer})")
        self.edits += edits.insert_after(module, module.statement(step), [f"{name}.update()"])
        made, words = state_edits(module, plan.home, name)
        self.edits += made
        self.words += [words] if words else []
        if _schedules(module, step):
            self.words.append("the scheduler advances on steps that the scaler skips, too")

    def evaluate(self, region: tuple[ast.stmt, ...], casts: tuple[ast.expr, ...]) -> None:
        """Run an evaluation's forward and loss under autocast, too, where the device is at hand and it can be edited:
        in float32 it is right, as well."""
        gate = self._gate(region[0], self._model_text(region[0]))
        known = len(self.edits)
        try:
            if gate is None:
                return
            self._enter(region, gate, casts)
        except edits.CannotEdit:
            del self.edits[known:]
            return
        name = getattr(self.module.function(region[0]), "name", "")
        self.words.append(f"{name}() evaluates under autocast" if name else "evaluation under autocast")

    def _gate(self, place: ast.stmt, model: str | None) -> device.Gate | None:
        """The gate at a place, with the script's own switch; None where one of them is not at hand."""
        gate = device.gate(self.module, place, self.target, self.torch, model)
        known = switch(self.module, self.plan.home.statement)
        if gate is None or not known:
            return gate
        here = switch(self.module, place)
        return device.Gate(gate.device, f"{here} and {gate.enabled}" if gate.enabled else here) if here else None

    def _region(self) -> None:
        plan, module = self.plan, self.module
        place = plan.region[0]
        gate = self._gate(place, self._model_text(plan.forward.node))
        handed = plan.step.frame.code is not plan.home.code
        if self.scaler and (gate is None or gate.enabled) and (handed or gate is None or "(" in gate.device):
            device_only = device.gate(module, place, self.target, self.torch, self._model_text(plan.forward.node))
            kind = device_only.device if device_only is not None else f'"{self.target}"'
            gate = device.Gate(kind, f"{self.scaler}.is_enabled()")
        if gate is None:
            raise Refused("the device is not known where the model runs", "pass the device to that function")
        self._enter(plan.region, gate, plan.casts)

    def _enter(self, region: tuple[ast.stmt, ...], gate: device.Gate, casts: tuple[ast.expr, ...]) -> None:
        header = f"with {self.torch}.autocast({gate.arguments(self.dtype, self.torch)}):"
        self.edits += edits.indent_under(self.module, list(region), header)
        for operand in casts:
            text = self.module.source(operand)
            simple = isinstance(operand, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
            self.edits += edits.replace(self.module, operand, f"{text if simple else f'({text})'}.float()")

    def _model_text(self, inside: ast.AST) -> str | None:
        """What the model that runs is called there."""
        func = getattr(self.plan.forward.node, "func", None)
        if not isinstance(func, ast.Name | ast.Attribute):
            return None
        text = ast.unparse(func)
        called = (ast.unparse(node.func) for node in ast.walk(inside) if isinstance(node, ast.Call))
        return text if text in called else None

    def _scaler_name(self) -> str:
        name = free_name(self.module)
        return f"self.{name}" if self.plan.home.in_class else name

    def _make_scaler(self, seen: set[ast.AST]) -> None:
        name, made = self.scaler, self.plan.home.statement
        gate = self._gate(made, self._trained())
        if gate is None:
            raise Refused("the device is not known where the optimizer is made", "make the optimizer after the device")
        enabled = f", enabled={gate.enabled}" if gate.enabled else ""
        start = ", init_scale=1024.0" if self.plan.summed else ""
        line = f"{name} = {self.torch}.amp.GradScaler({gate.device}{start}{enabled})"
        self.edits += edits.insert_after(self.module, made, [line])
        self.words.append(f"{name} made beside the optimizer")
        if start:
            self.words.append("its scale starts low, because the loss is a sum")
        if not self.plan.home.in_class:
            self._hand_down(name, seen)

    def _trained(self) -> str | None:
        """The model, by a name that it has where the optimizer is made."""
        made = self.plan.home.statement
        create = self.plan.create
        for node in ast.walk(create.node) if create and create.frame.code is self.plan.home.code else ():
            match node:
                case ast.Call(func=ast.Attribute(attr="parameters", value=ast.Name() | ast.Attribute() as model)):
                    return ast.unparse(model)
        text = self._model_text(self.plan.forward.node)
        return text if text and device.visible(self.module, text, made) else None

    def _hand_down(self, name: str, seen: set[ast.AST]) -> None:
        """Give the scaler to every function between the one that makes it and the one that steps."""
        home = self.plan.home
        for frame in home.path:
            function = frame.code
            if not isinstance(function, ast.FunctionDef):
                raise Refused("the step is in an unusual kind of function", BY_HAND)
            keyword = edits.takes_keyword_only(function)
            self.edits += edits.add_parameter(self.module, function, name)
            for call in calls_of(self.module, function, seen):
                if not at_hand(self.module, home, call):
                    raise Refused(f"{function.name}() is also called where the scaler is not at hand", BY_HAND)
                self.edits += edits.add_argument(self.module, call, f"{name}={name}" if keyword else name)
            self.words.append(f"passed to {function.name}()")


def _schedules(module: Module, step: ast.Call) -> bool:
    """Whether the loop that steps the optimizer steps a scheduler, too."""
    loop = _loop(module, step)
    for node in ast.walk(loop) if loop is not None else ():
        match node:
            case ast.Call(func=ast.Attribute(attr="step", value=ast.Name(id=name) | ast.Attribute(attr=name))):
                if "sched" in name.lower() and _loop(module, node) is loop:
                    return True
    return False


def _loop(module: Module, node: ast.AST) -> ast.AST | None:
    return next((above for above in module.ancestors(node) if isinstance(above, ast.For | ast.While)), None)
