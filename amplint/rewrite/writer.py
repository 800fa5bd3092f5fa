"""Writes planned training steps: collects the edits, and says what was done in a person's words."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.findings import Edit
from amplint.rewrite import device, edits
from amplint.rewrite.checkpoints import state_edits
from amplint.rewrite.float32 import Cast, cast_edits
from amplint.rewrite.home import Home, at_hand, calls_of
from amplint.rewrite.plan import Part, StepPlan, unscale_at
from amplint.rewrite.refused import BY_HAND, Refused
from amplint.rewrite.regions import Region
from amplint.rewrite.scalers import ScalerPlan
from amplint.rewrite.switch import switch
from amplint.source import events
from amplint.source.module import Module


class Writer:
    """Collects the edits of the steps of a script; `said` are the words for each of them."""

    def __init__(
        self,
        module: Module,
        plans: Sequence[StepPlan],
        parts: Sequence[Part],
        scalers: Sequence[ScalerPlan],
        target: str,
        dtype: str,
        torch: str,
    ):
        self.module = module
        self.plans = plans
        self.parts = parts
        self.scalers = scalers
        self.target = target
        self.dtype = dtype
        self.torch = torch
        self.edits: list[Edit] = []
        self.before: dict[ast.stmt, list[str]] = {}  # lines to insert
        self.after: dict[ast.stmt, list[str]] = {}
        self.cast: set[ast.expr] = set()
        self.said: list[list[str]] = [[] for _ in plans]

    def made(self) -> list[Edit]:
        """All edits."""
        found = list(self.edits)
        for place, lines in self.before.items():
            found += edits.insert_before(self.module, place, lines)
        for place, lines in self.after.items():
            found += edits.insert_after(self.module, place, lines)
        return found

    def write(self, seen: set[ast.AST]) -> None:
        """The training steps. `seen` are the calls that the reading followed."""
        if self.dtype == "auto":
            self._choose_dtype()
        for part in self.parts:
            self._region(part)
        dtype = "bfloat16 where the GPU has it, else float16" if self.dtype == "auto" else self.dtype
        for plan, words in zip(self.plans, self.said, strict=True):
            function = plan.step.frame.name
            where = f"{function}(): " if function != "<module>" else ""
            casts = any(part.casts for part in plan.parts)
            words.append(f"{where}{'forward' if casts else 'forward and loss'} under autocast({dtype})")
            if casts:
                words.append("binary cross entropy, and the sigmoid before it, in float32")
            if plan.arrays:
                self._for_numpy(plan.arrays)
                words.append("cast to float32 for NumPy, which has no bfloat16")
        for scaler in self.scalers:
            self._scaler(scaler, seen)

    def _choose_dtype(self) -> None:
        """One constant behind the import of torch and those that follow it."""
        module = self.module
        if any(getattr(node, "id", "") == device.AUTO for node in ast.walk(module.tree)):
            raise Refused(f"the name {device.AUTO} is taken", "rename that, or pass --dtype float16")
        place: ast.stmt | None = None
        for one in module.tree.body:
            if place is not None and not isinstance(one, ast.Import | ast.ImportFrom):
                break
            names = one.names if isinstance(one, ast.Import) else []
            if place is not None or any(a.name == "torch" and (a.asname or a.name) == self.torch for a in names):
                place = one
        if place is None:
            raise Refused("torch is not imported at the top of the file", "pass --dtype float16")
        self.after.setdefault(place, []).extend(["", *device.auto_lines(self.torch)])

    def _words(self, plan: StepPlan) -> list[str]:
        return self.said[self.plans.index(plan)]

    def _scaler(self, scaler: ScalerPlan, seen: set[ast.AST]) -> None:
        first = scaler.steps[0]
        several = len(scaler.optimizers) > 1 or first.home.loop is not None
        self._make_scaler(scaler, seen, "optimizers" if several else "optimizer")
        name = scaler.name
        for plan in scaler.steps:
            self._step(plan, name)
        for place in scaler.updates:
            self.after.setdefault(place, []).append(f"{name}.update()")
        words = self._words(first)
        if several:
            words.append("one update, after the last step")
        made, saved = state_edits(self.module, scaler.home, name, scaler.optimizers)
        self.edits += made
        words += [saved] if saved else []

    def _step(self, plan: StepPlan, name: str) -> None:
        module, step, words = self.module, plan.step.node, self._words(plan)
        assert isinstance(step, ast.Call)
        assert isinstance(step.func, ast.Attribute)
        if step.args or step.keywords:
            raise Refused("its step() takes arguments", BY_HAND)
        optimizer = module.source(step.func.value)
        for backward in plan.backwards:
            assert isinstance(backward.node, ast.Call)
            assert isinstance(backward.node.func, ast.Attribute)
            self.edits += edits.wrap_call(module, backward.node.func.value, f"{name}.scale({{}})")
        if (clipping := unscale_at(plan, module)) is not None:
            self.before.setdefault(clipping, []).extend(_unscaled(plan.home, clipping, module, name, optimizer))
            words.append("gradients unscaled before they are clipped")
        self.edits += edits.replace(module, step, f"{name}.step({optimizer})")
        if _schedules(module, step):
            words.append("the scheduler advances on steps that the scaler skips, too")

    def evaluate(self, region: Region, casts: tuple[Cast, ...], arrays: tuple[ast.expr, ...]) -> None:
        """Run an evaluation's forward and loss under autocast, too, where the device is at hand and it can be edited:
        in float32 it is right, as well."""
        gate = self._gate(region[0], self._model_text(region[0]))
        known = len(self.edits)
        try:
            if gate is None:
                return
            self._enter(region, gate, casts)
            self._for_numpy(arrays)
        except edits.CannotEdit:
            del self.edits[known:]
            return
        name = getattr(self.module.function(region[0]), "name", "")
        self.said[0].append(f"{name}() evaluates under autocast" if name else "evaluation under autocast")

    def _gate(self, place: ast.stmt, model: str | None) -> device.Gate | None:
        """The gate at a place, with the script's own switch; None where one of them is not at hand."""
        gate = device.gate(self.module, place, self.target, self.torch, model)
        known = switch(self.module, self.plans[0].home.statement)
        if gate is None or not known:
            return gate
        here = switch(self.module, place)
        return device.Gate(gate.device, f"{here} and {gate.enabled}" if gate.enabled else here) if here else None

    def _region(self, part: Part) -> None:
        module, code = self.module, part.forward.frame.code
        place = part.region[0]
        model = _called_in(part.forward, part.forward.node)
        gate = self._gate(place, model)
        scaler = self._scaler_of(part)
        handed = scaler is not None and (scaler.home.in_class or any(frame.code is code for frame in scaler.home.path))
        if self.dtype == "auto":
            scaler = None  # it is off for bfloat16, where the region is not
        if scaler is not None and (
            gate is None or (gate.enabled and (handed or "(" in gate.device or "bool(" in gate.enabled))
        ):
            device_only = device.gate(module, place, self.target, self.torch, model)
            kind = device_only.device if device_only is not None else f'"{self.target}"'
            gate = device.Gate(kind, f"{scaler.name}.is_enabled()")
        if gate is None:
            raise Refused("the device is not known where the model runs", "pass the device to that function")
        self._enter(part.region, gate, part.casts)

    def _scaler_of(self, part: Part) -> ScalerPlan | None:
        """The scaler that scales what a region computes; failing that, one that is at hand there."""
        found = None
        for scaler in self.scalers:
            for plan in scaler.steps:
                if any(set(one.region) & set(part.region) for one in plan.parts):
                    return scaler
                if found is None and plan.step.frame.code is part.forward.frame.code:
                    found = scaler
        return found

    def _enter(self, region: Region, gate: device.Gate, casts: tuple[Cast, ...]) -> None:
        header = f"with {self.torch}.autocast({gate.arguments(self.dtype, self.torch)}):"
        self.edits += edits.indent_under(self.module, list(region), header)
        for cast in casts:
            self.edits += cast_edits(self.module, cast, self.torch)

    def _for_numpy(self, arrays: tuple[ast.expr, ...]) -> None:
        for tensor in arrays:
            if tensor not in self.cast:
                self.edits += edits.wrap_call(self.module, tensor, "{}.float()")
                self.cast.add(tensor)

    def _model_text(self, inside: ast.AST) -> str | None:
        """What a model that trains is called in some code."""
        return next(filter(None, (_called_in(part.forward, inside) for part in self.parts)), None)

    def _make_scaler(self, scaler: ScalerPlan, seen: set[ast.AST], what: str) -> None:
        name, made, words = scaler.name, scaler.home.statement, self._words(scaler.steps[0])
        gate = self._gate(made, self._trained(scaler.steps[0], made))
        if gate is None:
            raise Refused("the device is not known where the optimizer is made", "make the optimizer after the device")
        asked = [gate.enabled] if gate.enabled else []
        asked += [f"{device.AUTO} == {self.torch}.float16"] if self.dtype == "auto" else []
        enabled = f", enabled={' and '.join(asked)}" if asked else ""
        start = ", init_scale=1024.0" if any(plan.summed for plan in scaler.steps) else ""
        line = f"{name} = {self.torch}.amp.GradScaler({gate.device}{start}{enabled})"
        self.after.setdefault(made, []).append(line)
        words.append(f"{name} made beside the {what}")
        if start:
            words.append("its scale starts low, because the loss is a sum")
        if not scaler.home.in_class:
            self._hand_down(scaler, seen, words)

    def _trained(self, plan: StepPlan, made: ast.stmt) -> str | None:
        """A model of the step, by a name that it has where the scaler is made."""
        create = plan.create
        for node in ast.walk(create.node) if create and create.frame.code is plan.home.code else ():
            match node:
                case ast.Call(func=ast.Attribute(attr="parameters", value=ast.Name() | ast.Attribute() as model)):
                    if device.visible(self.module, text := ast.unparse(model), made):
                        return text
        text = _called_in(plan.forward, plan.forward.node) or ""
        return text if text and device.visible(self.module, text, made) else None

    def _hand_down(self, scaler: ScalerPlan, seen: set[ast.AST], words: list[str]) -> None:
        """Give the scaler to every function between the one that makes it and the one that steps."""
        name = scaler.name
        for frame in scaler.home.path:
            function = frame.code
            if not isinstance(function, ast.FunctionDef):
                raise Refused("the step is in an unusual kind of function", BY_HAND)
            keyword = edits.takes_keyword_only(function)
            self.edits += edits.add_parameter(self.module, function, name)
            for call in calls_of(self.module, function, seen):
                if not at_hand(self.module, scaler.home, call):
                    raise Refused(f"{function.name}() is also called where the scaler is not at hand", BY_HAND)
                self.edits += edits.add_argument(self.module, call, f"{name}={name}" if keyword else name)
            words.append(f"passed to {function.name}()")


def _called_in(forward: events.Forward, inside: ast.AST) -> str | None:
    """What the model that runs is called in some code."""
    func = getattr(forward.node, "func", None)
    if not isinstance(func, ast.Name | ast.Attribute):
        return None
    text = ast.unparse(func)
    called = (ast.unparse(node.func) for node in ast.walk(inside) if isinstance(node, ast.Call))
    return text if text in called else None


def _unscaled(home: Home, place: ast.stmt, module: Module, scaler: str, optimizer: str) -> list[str]:
    """unscale_ for the optimizer, or for each of a collection that the step goes over."""
    call, loop = f"{scaler}.unscale_({optimizer})", home.loop
    if loop is None or loop in module.ancestors(place):
        return [call]
    if not isinstance(loop.target, ast.Name):
        raise Refused("gradients are clipped outside the loop over the optimizers", BY_HAND)
    return [f"for {optimizer} in {home.optimizer}:", f"    {call}"]


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
