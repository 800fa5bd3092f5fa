"""FP32 → AMP: turns planned training steps into AMP steps, and says what was done in a person's words."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from amplint import checks, knowledge
from amplint.config import Settings
from amplint.findings import Applicability, Edit, Finding, Severity
from amplint.repair import Unsettled, repair
from amplint.rewrite import device, edits
from amplint.rewrite.apply import apply
from amplint.rewrite.evaluation import evaluation_regions
from amplint.rewrite.fixes.scaler import free_name
from amplint.rewrite.plan import Refused, StepPlan, make_plans
from amplint.source.interpret.entries import Reading, read
from amplint.source.module import Module, Unreadable, parse
from amplint.source.suppress import fp32_lines

SAFE = frozenset((Applicability.SAFE,))


@dataclass
class Result:
    """The new text of a file, a line per training step, and whether one was refused."""

    text: str
    lines: list[str] = field(default_factory=list)
    refused: bool = False


def fix(module: Module, settings: Settings, options: dict[str, Any], together: Sequence[Module] = ()) -> Result:
    """Apply the safe fixes, then instrument what runs in full precision; nothing is converted in part. `together` are
    the files that were named with this one."""
    dtype = "float16" if options["dtype"] == "auto" else options["dtype"]
    migrate = any(one.upper().startswith(("AMP6", "ALL")) for one in options.get("select") or ())
    repaired, fixed = _repair(module, settings, migrate)
    reading = read(repaired, settings.roots, settings.apis)
    plans = make_plans(reading, dtype, together)
    kept = set(fp32_lines(repaired.text))
    result = Result(repaired.text)
    lines: list[tuple[int, str]] = []

    def say(node: ast.AST, words: str) -> None:
        row = repaired.range(node).start.row
        lines.append((row, f"{module.path}:{row}: {words}"))

    for node in plans.already:
        say(node, "completed: " + _mended(fixed) if fixed else "already AMP")
    for node, refusal in plans.refused:
        say(node, f"refused: {refusal.reason}; {refusal.advice}")
        result.refused = True
    for plan in plans.plans:
        if _kept_as_is(repaired, plan, kept):
            say(plan.step.node, "kept in float32, as its comment asks")
            continue
        try:
            text, words = _convert(repaired, reading, plan, settings, dtype)
        except (Refused, edits.CannotEdit) as refusal:
            advice = getattr(refusal, "advice", "convert it by hand")
            say(plan.step.node, f"refused: {refusal.reason}; {advice}")
            result.refused = True
        else:
            result.text = text
            say(plan.step.node, f"converted: {words}")
    if not lines and fixed:
        lines.append((0, f"{module.path}: fixed {_mended(fixed)}"))
    if result.refused and not plans.already:
        result.text = module.text  # never a partial conversion
    result.lines = [line for _, line in sorted(lines)]
    return result


def _mended(fixed: tuple[Finding, ...]) -> str:
    return ", ".join(sorted({f"{one.code} {knowledge.rules()[one.code].name}" for one in fixed}))


def _kept_as_is(module: Module, plan: StepPlan, kept: set[int]) -> bool:
    """`# amplint: fp32 reason` on the step, on a loop around it, or on its function."""
    around = (plan.step.node, *module.ancestors(plan.step.node))
    return any(getattr(node, "lineno", 0) in kept for node in around)


def _asked(settings: Settings, migrate: bool) -> Settings:
    """What is looked for: the default rules; migration only if it was selected, or goes with another edit."""
    rules = knowledge.rules().items()
    codes = frozenset(code for code, rule in rules if rule.default and (migrate or not code.startswith("AMP6")))
    return replace(settings, codes=codes, notes=frozenset())


def _repair(module: Module, settings: Settings, migrate: bool = False) -> tuple[Module, tuple[Finding, ...]]:
    """The safe fixes of what is found."""
    asked = _asked(settings, migrate)

    def check(module: Module) -> tuple[Finding, ...]:
        return tuple(f for f in checks.check_module(module, asked).findings if f.path == module.path)

    try:
        repaired = repair(module, check(module), check, SAFE)
    except Unsettled:
        return module, ()
    return repaired.module, repaired.fixed


def _convert(module: Module, reading: Reading, plan: StepPlan, settings: Settings, dtype: str) -> tuple[str, str]:
    """The text with one step converted, and what was done; raises Refused if the outcome is not clean."""
    torch = edits.binding_of(module, "torch", at=plan.region[0])
    if torch is None:
        raise Refused("the file has no name for torch at the training step", "add `import torch` at its top")
    writer = _Writer(module, plan, settings.target_device, dtype, torch)
    writer.write()
    for region in evaluation_regions(reading, plan):
        writer.evaluate(region)
    text = apply(module.text, writer.edits)
    return _settled(module, text, settings), "; ".join(writer.words)


def _settled(module: Module, text: str, settings: Settings) -> str:
    """The converted text after its own safe fixes (a mask constant that half precision cannot hold, say). It must
    parse, and `check` must find nothing wrong in it that was not there before."""
    try:
        after = Module(module.path, text, parse(text), module.encoding)
    except Unreadable as error:
        raise Refused(f"the result would not parse ({error.reason})", "please report this") from None
    after, _ = _repair(after, settings)
    asked = _asked(settings, migrate=False)
    known = {(f.code, f.message) for f in checks.check_module(module, asked).findings}
    for finding in checks.check_module(after, asked).findings:
        if finding.severity is not Severity.NOTE and (finding.code, finding.message) not in known:
            raise Refused(f"in half precision, {finding.message} ({finding.code})", finding.help or "mend that first")
    return after.text


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
        self.scaled = dtype == "float16"

    def write(self) -> None:
        module, plan = self.module, self.plan
        function = plan.step.frame.name
        where = f"{function}(): " if function != "<module>" else ""
        name = self._scaler_name() if self.scaled else ""
        self._region(plan.region, name)
        self.words.append(f"{where}forward and loss under autocast({self.dtype})")
        if not self.scaled:
            return
        self._make_scaler(name)
        backward, step = plan.backward.node, plan.step.node
        assert isinstance(backward, ast.Call)
        assert isinstance(backward.func, ast.Attribute)
        assert isinstance(step, ast.Call)
        assert isinstance(step.func, ast.Attribute)
        if step.args or step.keywords:
            raise Refused("its step() takes arguments", "convert it by hand")
        optimizer = module.source(step.func.value)
        self.edits += edits.wrap_call(module, backward.func.value, f"{name}.scale({{}})")
        if plan.clips or plan.reads:
            first = min((*plan.clips, *plan.reads), key=lambda node: node.lineno)  # type: ignore[attr-defined]
            if not backward.lineno < first.lineno < step.lineno:  # type: ignore[attr-defined]
                raise Refused("gradients are clipped or read in an unusual place", "convert it by hand")
            self.edits += edits.insert_before(module, module.statement(first), [f"{name}.unscale_({optimizer})"])
            self.words.append("gradients unscaled before they are clipped")
        self.edits += edits.replace(module, step, f"{name}.step({optimizer})")
        self.edits += edits.insert_after(module, module.statement(step), [f"{name}.update()"])
        self._save_and_load(name)

    def evaluate(self, region: tuple[ast.stmt, ...]) -> None:
        """Run an evaluation's forward and loss under autocast, too, where the device is at hand."""
        gate = device.gate(self.module, region[0], self.target, self.torch, None)
        if gate is None:
            return
        header = f"with {self.torch}.autocast({gate.arguments(self.dtype, self.torch)}):"
        self.edits += edits.indent_under(self.module, list(region), header)
        function = self.module.function(region[0])
        name = getattr(function, "name", "")
        self.words.append(f"{name}() evaluates under autocast" if name else "evaluation under autocast")

    def _region(self, region: tuple[ast.stmt, ...], scaler: str) -> None:
        model = self._model_text()
        gate = device.gate(self.module, region[0], self.target, self.torch, model)
        if scaler and self.plan.path and (gate is None or gate.enabled):
            kind = gate.device if gate is not None else f'"{self.target}"'
            gate = device.Gate(kind, f"{scaler}.is_enabled()")
        if gate is None:
            raise Refused("the device is not known where the model runs", "pass the device to that function")
        self.edits += edits.indent_under(
            self.module, list(region), f"with {self.torch}.autocast({gate.arguments(self.dtype, self.torch)}):"
        )

    def _model_text(self) -> str | None:
        node = self.plan.forward.node
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            return self.module.source(node.func)
        return None

    def _made_at(self) -> ast.Assign:
        """The statement that makes the optimizer."""
        statement = self.module.statement(self.plan.create.node)
        if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
            raise Refused("the optimizer is made inside a larger expression", "give it a line of its own")
        if not isinstance(statement.targets[0], ast.Name | ast.Attribute):
            raise Refused("the optimizer is one of several things that a line makes", "give it a line of its own")
        return statement

    def _scaler_name(self) -> str:
        target = self.module.source(self._made_at().targets[0])
        prefix = target.rpartition(".")[0]
        if prefix and prefix != "self":
            raise Refused(f"the optimizer is kept in {target}", "convert it by hand")
        return f"self.{free_name(self.module)}" if prefix else free_name(self.module)

    def _make_scaler(self, name: str) -> None:
        made = self._made_at()
        gate = device.gate(self.module, made, self.target, self.torch, self._trained())
        if gate is None:
            raise Refused("the device is not known where the optimizer is made", "make the optimizer after the device")
        enabled = f", enabled={gate.enabled}" if gate.enabled else ""
        line = f"{name} = {self.torch}.amp.GradScaler({gate.device}{enabled})"
        self.edits += edits.insert_after(self.module, made, [line])
        self.words.append(f"{name} made beside the optimizer")
        if not name.startswith("self."):
            self._hand_down(name)

    def _trained(self) -> str | None:
        """The model, as the optimizer's constructor names it: `model` in SGD(model.parameters())."""
        for node in ast.walk(self.plan.create.node):
            match node:
                case ast.Call(func=ast.Attribute(attr="parameters", value=model)):
                    return self.module.source(model)
        return None

    def _hand_down(self, name: str) -> None:
        """Give the scaler to every function between the one that makes it and the one that steps."""
        step = self.plan.step
        assert isinstance(step.node, ast.Call)
        assert isinstance(step.node.func, ast.Attribute)
        for frame in self.plan.path:
            function = frame.code
            if not isinstance(function, ast.FunctionDef):
                raise Refused("the step is in an unusual kind of function", "convert it by hand")
            if _uses_global(function, step) and isinstance(self.plan.create.frame.code, ast.Module):
                continue  # the optimizer is a global there, so is the scaler
            calls = _calls_of(self.module, function)
            keyword = edits.takes_keyword_only(function)
            self.edits += edits.add_parameter(self.module, function, name)
            for call in calls:
                self.edits += edits.add_argument(self.module, call, f"{name}={name}" if keyword else name)
            self.words.append(f"passed to {function.name}()")

    def _save_and_load(self, name: str) -> None:
        """Beside the optimizer's state: the scaler's, and its guarded restoring."""
        from amplint.rewrite.checkpoints import state_edits

        made, words = state_edits(self.module, self.plan, name)
        self.edits += made
        self.words += words


def _uses_global(function: ast.FunctionDef, step: Any) -> bool:
    root = ast.unparse(step.node.func.value).partition(".")[0]
    local = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    local |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return root not in local


def _calls_of(module: Module, function: ast.FunctionDef) -> list[ast.Call]:
    """Every call of a function in the file; any other use of its name could be a call that amplint cannot follow."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and node.id == function.name and isinstance(node.ctx, ast.Load):
            parent = module.parents[node]
            if not isinstance(parent, ast.Call) or parent.func is not node:
                raise Refused(f"{function.name} is passed around, not only called", "convert it by hand")
            found.append(parent)
    if not found:
        raise Refused(f"no call of {function.name} is in this file", "name the file that calls it, too")
    return found
