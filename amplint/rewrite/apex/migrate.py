"""The whole file: every use of apex.amp becomes torch.amp, in one fix, which is given only if its result is clean."""

from __future__ import annotations

import ast
import os
from collections import Counter
from dataclasses import replace

from amplint import checks
from amplint.config import Settings
from amplint.findings import Applicability, Edit, Finding, Fix, Severity
from amplint.rewrite import edits
from amplint.rewrite.apex.availability import Leaving
from amplint.rewrite.apex.region import Region, evaluated, inference_regions, training_regions, unread_evaluations
from amplint.rewrite.apex.scaled import ScaledLoss, collapsed
from amplint.rewrite.apex.scope import Scope
from amplint.rewrite.apex.setup import Setup, setup_of
from amplint.rewrite.apex.states import state_edits
from amplint.rewrite.apex.steps import master_edits, owner_text, step_edits, steps_of, unscale_edits
from amplint.rewrite.apex.uses import Uses, uses_of
from amplint.rewrite.apply import Conflict, apply
from amplint.rewrite.checkpoints import state_edits as checkpoint_edits
from amplint.rewrite.evaluation import evaluation_regions
from amplint.rewrite.home import Home
from amplint.rewrite.layout import end, margin_of, start
from amplint.rewrite.plan import StepPlan
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.rewrite.text import edit
from amplint.selection import default_codes
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module, Unreadable, parse
from amplint.source.values import Optimizer

_KNOWN = frozenset("initialize scale_loss master_params state_dict load_state_dict disable_casts".split())
_AS_BEFORE = frozenset(("AMP116", "AMP133"))  # what apex lacked as well, where its state was not saved
_OTHERS = {
    "half_function": "torch.amp.custom_fwd or a region of its own does what the decorator did",
    "float_function": "use `with torch.autocast('cuda', enabled=False)` and `.float()` in the function",
    "promote_function": "autocast promotes what torch knows; cast the others by hand",
    "register_half_function": "autocast runs matmul, conv and einsum in half already; cast others by hand",
    "register_float_function": "use `with torch.autocast('cuda', enabled=False)` and `.float()` around it",
    "init": "the old handle API: make a GradScaler and scale the losses by hand",
}
_UNSCALED_BY_HAND = "read the scale with scaler.get_scale(), or let scaler.unscale_(optimizer) do it"


def migrate(reading: Reading, settings: Settings, uses: Uses) -> Fix:
    """The fix for the file; raises Refused where a part of it has to be done by a person."""
    try:
        fix = _Migration(reading, settings, uses).fix()
        saves = uses.named("state_dict", "load_state_dict")
        left = _verify(reading.module, settings, fix, frozenset() if saves else _AS_BEFORE)
    except edits.CannotEdit as error:
        raise Refused(f"its code has a shape that amplint does not edit ({error.reason})", BY_HAND) from None
    if left:
        words = f"{fix.message}; the scaler's state is not saved and restored, nor was that of apex ({', '.join(left)})"
        return Fix(words, Applicability.UNSAFE, fix.edits)
    return fix


class _Migration:
    """Collects the edits of one file."""

    def __init__(self, reading: Reading, settings: Settings, uses: Uses):
        self.reading = reading
        self.module: Module = reading.module
        self.settings = settings
        self.uses = uses
        self.edits: list[Edit] = []
        self.notes: list[str] = []
        self.taken: set[ast.stmt] = set()  # what is under autocast
        self.torch = ""

    def fix(self) -> Fix:
        module, uses = self.module, self.uses
        leaving = Leaving(module, uses)
        if not uses.uses:
            self.edits = leaving.edits((), ())
            return self._fix("remove the import of apex.amp, which nothing uses", ())
        for use in uses.uses:
            if use.name not in _KNOWN:
                _refuse_part(use.name)
        self._other_files()
        losses = [ScaledLoss(module, use.node) for use in uses.named("scale_loss")]
        setup = setup_of(module, uses.named("initialize"), leaving, self._running(losses))
        if setup.off:
            setup.switch = "False"
        bindings = {edits.binding_of(module, "torch", at=use.node) for use in uses.uses}
        if len(bindings) > 1:
            raise Refused("functions import torch for themselves", "import it once, at the top")
        self.torch = bindings.pop() or "torch"
        if edits.binding_of(module, "torch", at=uses.uses[0].node) is None:
            self.edits += edits.add_import(module, "import torch", before=None)
        seen = {f.call for event in self.reading.events for f in event.frame.stack() if f.call is not None}
        self.scope = Scope(module, setup, seen)
        replaced = self._setup(setup, bool(uses.named("scale_loss", "state_dict", "load_state_dict")))
        if losses:
            self._training(setup, losses)
        elif setup.optimizers:
            raise Refused(
                "amp.scale_loss is not in this file", "pass a GradScaler there, and change both files together"
            )
        else:
            self._inference()
        self.edits += state_edits(module, uses.named("state_dict", "load_state_dict"), self.scope)
        for use in uses.named("disable_casts"):
            call = module.parents[use.node]
            if not isinstance(call, ast.Call):
                raise Refused("amp.disable_casts is passed around, not called", BY_HAND)
            self.edits += edits.replace(module, call, f'{self.torch}.autocast("cuda", enabled=False)')
        gone = {part for one in replaced for part in ast.walk(one)}
        self.edits += leaving.edits(self._deleted, gone) + self.scope.edits
        return self._fix("use torch.amp instead of apex.amp", setup.changes)

    def _other_files(self) -> None:
        """Refuse a script that another file of the project helps with apex.amp (it saves its state, or scales)."""
        project = self.reading.machine.project
        for node in ast.walk(self.module.tree):
            match node:
                case ast.Import(names=names):
                    wanted, level = [alias.name for alias in names], 0
                case ast.ImportFrom(module=source, names=names, level=level):
                    inner = [".".join(filter(None, (source, alias.name))) for alias in names]
                    wanted = [source, *inner] if source else inner
                case _:
                    continue
            for name in wanted:
                other = project.find(name, level, self.module)
                if other is not None and other is not self.module and uses_of(other).uses:
                    shown = os.path.relpath(other.path)
                    raise Refused(f"{shown} uses apex.amp, too", "pass the GradScaler there, and change both together")

    def _fix(self, message: str, changes: list[str] | tuple[str, ...]) -> Fix:
        words = "; ".join((*changes, *self.notes))
        applicability = Applicability.UNSAFE if changes else Applicability.SAFE
        return Fix(message + (f" ({words})" if words else ""), applicability, tuple(sorted(set(self.edits))))

    # -- amp.initialize -----------------------------------------------------------------------------------------------

    def _setup(self, setup: Setup, scaler: bool) -> list[ast.stmt]:
        """Put the scaler in the place of amp.initialize; returns the statements that are replaced as a whole."""
        module = self.module
        self._deleted: list[ast.stmt] = []
        line = self._scaler_line(setup) if scaler else ""
        whole = setup.emptied or (setup.statement if setup.before is setup.statement else None)
        if whole is not None:
            lines = [part for part in (setup.replaced, line) if part]
            if lines:
                text = f"\n{margin_of(module, whole)}".join(lines)
                self.edits.append(edit(module, start(module, whole), end(module, whole), text))
                return [whole]
            self._deleted.append(whole)
            return []
        if line:
            self.edits += edits.insert_before(module, setup.before, [line])
        if setup.replaced:
            place = start(module, setup.statement), end(module, setup.statement)
            self.edits.append(edit(module, *place, setup.replaced))
            return [setup.statement]
        self._deleted.append(setup.statement)
        return []

    def _scaler_line(self, setup: Setup) -> str:
        name = self.scope.name(setup.statement)
        enabled = f"enabled={setup.switch}" if setup.switch else ""
        if self.settings.target_torch < (2, 3):
            return f"{name} = {self.torch}.cuda.amp.GradScaler({enabled})"
        arguments = ", ".join(filter(None, ('"cuda"', enabled)))
        return f"{name} = {self.torch}.amp.GradScaler({arguments})"

    # -- training -----------------------------------------------------------------------------------------------------

    def _running(self, losses: list[ScaledLoss]) -> list[ast.AST]:
        """Where models run and optimizers step, with AMP or without."""
        found: list[ast.AST] = [
            event.node
            for event in self.reading.events
            if event.module is self.module
            and (isinstance(event, events.Step) or (isinstance(event, events.Forward) and event.grad))
        ]
        for loss in losses:
            above = self.module.parents[loss.statement]
            if isinstance(above, ast.If) and above.orelse:
                found.append(above)  # its other arm runs without AMP
        return found or [loss.statement for loss in losses]

    def _training(self, setup: Setup, losses: list[ScaledLoss]) -> None:
        module, scope = self.module, self.scope
        made, done = collapsed(module, losses, scope)
        self.edits += made
        for loss in losses:
            scaler = scope.reach(loss.statement)
            if loss.statement not in done:
                self.edits += loss.edits(scaler)
        backwards = {
            event.node: event
            for event in self.reading.events
            if isinstance(event, events.Backward) and any(event.node in loss.backwards for loss in losses)
        }
        if any(node not in backwards for loss in losses for node in loss.backwards):
            raise Refused("amplint does not follow the script to every amp.scale_loss", BY_HAND)
        optimizers = {o for event in backwards.values() for o, _ in event.touched}
        steps = steps_of(self.reading, optimizers, [(loss.statement, loss.optimizers) for loss in losses])
        masters = self._masters()
        self.edits += unscale_edits(self.reading, scope, steps, masters, {loss.statement for loss in losses})
        for call in masters:
            self.edits += master_edits(module, call)
        self.edits += step_edits(module, steps, scope)
        plans = self._regions(losses, steps, setup)
        for plan in {plan.forward: plan for plan in reversed(plans)}.values():
            self._evaluation(plan)
        if not self.uses.named("state_dict", "load_state_dict"):
            self._checkpoints(setup, plans)

    def _masters(self) -> dict[ast.Call, str]:
        found = {}
        for use in self.uses.named("master_params"):
            call = self.module.parents[use.node]
            match call, self.module.parents.get(call):
                case ast.Call(args=[ast.Name() | ast.Attribute() as owner], keywords=[]), (
                    ast.Call() | ast.For() | ast.comprehension()
                ) if call.func is use.node:
                    found[call] = self.module.source(owner)
                case _:
                    raise Refused("amp.master_params is kept or saved", BY_HAND)
            above = self.module.parents[call]
            if isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id in ("list", "zip"):
                raise Refused("the master parameters are kept or saved", "the model's own parameters are float32 now")
        return found

    def _regions(
        self, losses: list[ScaledLoss], steps: dict[ast.Call, Optimizer | None], setup: Setup
    ) -> list[StepPlan]:
        """Put what computes each scaled loss under autocast."""
        regions: dict[Region, StepPlan] = {}
        of: dict[ast.AST, ast.expr] = {call: loss.loss for loss in losses for call in loss.backwards}
        first = next(e for e in self.reading.events if isinstance(e, events.Step) and e.node in steps)
        home = Home(setup.statement, owner_text(self.module, next(iter(steps))), setup.function or self.module.tree)
        barriers = {loss.statement for loss in losses} | set(steps)
        for event in self.reading.events:
            if isinstance(event, events.Backward) and event.node in of:
                forward, found = training_regions(self.reading, event, of[event.node], barriers)
                for region in found if forward.region is None else ():
                    regions.setdefault(region, StepPlan(first, event, None, home, forward, region))
        plans = []
        for region in sorted(regions, key=lambda one: (one[0].lineno, -one[-1].lineno)):
            inside = {part for one in region for part in ast.walk(one) if isinstance(part, ast.stmt)}
            if set(region) <= self.taken:
                continue
            if inside & self.taken or any(node in barriers for one in region for node in ast.walk(one)):
                raise Refused("the regions of two losses overlap, or a backward stands in one", BY_HAND)
            self.taken |= inside
            switch = self.scope.switch(region[0])
            if switch is None:
                self.scope.reach(region[0])  # says why it cannot
            self._enter(region, switch or "")
            plans.append(regions[region])
        return plans

    def _enter(self, region: Region, switch: str) -> None:
        enabled = f", enabled={switch}" if switch else ""
        header = f'with {self.torch}.autocast("cuda", dtype={self.torch}.float16{enabled}):'
        self.edits += edits.indent_under(self.module, list(region), header)

    def _evaluation(self, plan: StepPlan) -> None:
        read = [region for region, _ in evaluation_regions(self.reading, plan)]
        for seen in (*read, *unread_evaluations(self.module, plan.forward)):
            region = evaluated(self.module, seen, plan.region)
            if set(seen) <= self.taken or set(region) & self.taken:
                continue
            switch = self.scope.switch(region[0]) if region else None
            name = getattr(self.module.function(seen[0]), "name", "")
            if switch is None:
                self.notes.append(f"{name}() runs in float32" if name else "evaluation runs in float32")
                continue
            self.taken |= set(region)
            self._enter(region, switch)

    def _checkpoints(self, setup: Setup, plans: list[StepPlan]) -> None:
        """Save the scaler's state where the optimizer's is, where the scaler is at hand."""
        if not plans:
            return
        try:
            made, words = checkpoint_edits(self.module, plans[0].home, self.scope.name(setup.statement))
        except Refused:
            return  # AMP116 says so
        self.edits += made
        self.notes += [words] if words else []

    # -- inference ----------------------------------------------------------------------------------------------------

    def _inference(self) -> None:
        for region in inference_regions(self.reading):
            switch = self.scope.switch(region[0])
            if switch is None or "is_enabled" in switch:
                raise Refused("the switch for AMP is not at hand where the model runs", BY_HAND)
            self._enter(region, switch)


def _refuse_part(name: str) -> None:
    if not name:
        raise Refused("amp itself is passed on, compared or asked for", BY_HAND)
    first = name.split(".")[0]
    if first == "lists":
        raise Refused("it changes amp.lists, which torch.amp does not have", "cast where such an operation is called")
    if first.startswith("_") or "." in name:
        raise Refused(f"it reaches into amp.{first}, which torch.amp does not have", _UNSCALED_BY_HAND)
    raise Refused(f"torch.amp has no amp.{name}", _OTHERS.get(name, BY_HAND))


def _verify(module: Module, settings: Settings, fix: Fix, allowed: frozenset[str]) -> list[str]:
    """Raise Refused unless the result parses and checks cleanly: nothing is found in it that was not there before, but
    for the codes in `allowed`; returns those of them that are found."""
    try:
        text = apply(module.text, fix.edits)
        after = Module(module.path, text, parse(text), module.encoding)
    except Conflict:
        raise Refused("its edits would overlap", "spread the training step over lines of its own") from None
    except Unreadable as error:
        raise Refused(f"the result would not parse ({error.reason})", "please report this") from None
    wanted = replace(settings, codes=default_codes() - {"AMP605"}, notes=frozenset())

    def find(one: Module) -> list[Finding]:
        found = checks.check_module(one, wanted).findings
        return [f for f in found if f.severity is not Severity.NOTE and f.path == one.path]

    found = find(after)
    if not found:
        return []
    new = Counter(f.code for f in found) - Counter(f.code for f in find(module))
    wrong = next((f for f in found if f.code in new.keys() - allowed), None)
    if wrong is not None:
        raise Refused(f"in torch.amp, {wrong.message} ({wrong.code})", wrong.help or BY_HAND)
    return sorted(new)
