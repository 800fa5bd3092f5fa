"""Writes planned training steps: collects the edits, and says what was done in a person's words."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import replace

from amplint.rewrite import edits
from amplint.rewrite.changes import Changes
from amplint.rewrite.fixes import conditions_above
from amplint.rewrite.gates import device
from amplint.rewrite.islands.float32 import Cast, cast_edits
from amplint.rewrite.plan import Part, StepPlan
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.regions.regions import Region
from amplint.rewrite.scaler.gradients import in_words, unscale_at
from amplint.rewrite.scaler.home import Home
from amplint.rewrite.scaler.making import Aim, called_in, choose_dtype, gate_at, plain_gate, torch_at
from amplint.rewrite.scaler.scalers import ScalerPlan
from amplint.rewrite.scaler.wrapped import Wrapped
from amplint.source.module import Module


class Writer:
    """Collects the edits of the steps in one file; `said` are the words for each of them."""

    def __init__(
        self,
        module: Module,
        plans: Sequence[StepPlan],
        parts: Sequence[Part],
        scalers: Sequence[ScalerPlan],
        aim: Aim,
        changes: Changes,
    ):
        self.module = module
        self.plans = plans
        self.parts = parts
        self.scalers = scalers
        self.aim = aim
        self.dtype = aim.dtype
        self.changes = changes
        self.cast: set[Cast] = set()
        self.said: list[list[str]] = [[] for _ in plans]
        receivers = {_receiver(one.node) for plan in plans for one in plan.backwards}
        self.moved = {one.call: one.name for part in parts for one in part.named if one.call in receivers}

    def write(self) -> None:
        """The regions of the training steps."""
        if self.dtype == "auto" and self.parts:
            choose_dtype(self.module, self._torch(self.parts[0].statements[0]), self.aim.version, self.changes)
        for part in self.parts:
            self._region(part)
        dtype = "bfloat16 where the GPU has it, else float16" if self.dtype == "auto" else self.dtype
        for plan, words in zip(self.plans, self.said, strict=True):
            function = plan.step.frame.name
            where = f"{function}(): " if function != "<module>" else ""
            if plan.half:
                words.append(f"{where}its losses are scaled")
            elif plan.parts:
                apart = any(one.endswith("in float32") for one in plan.kept)
                words.append(f"{where}{'forward' if apart else 'forward and loss'} under autocast({dtype})")
                words += plan.kept
                if not all(part.cached for part in plan.parts):
                    words.append("cast weights not kept, because the model runs without gradients first")
            else:
                words.append(f"{where}all in float32, as its gradient penalty needs")
            if plan.arrays:
                self._for_numpy(plan.arrays)
                words.append("cast to float32 for NumPy, which has no bfloat16")

    def scale(self, scaler: ScalerPlan, named: Callable[[ast.AST], str]) -> None:
        """The steps that a scaler makes. `named` says what it is called at a place."""
        for plan in scaler.steps:
            self._step(plan, scaler.here, named)
        for place in scaler.updates:
            self.changes.after(self.module, place, [f"{scaler.here}.update()"])

    def unscaled(self) -> None:
        """The backwards of losses that got a line of their own, where no scaler scales them."""
        for loss, name in self.moved.items():
            self.changes.edits += edits.replace(self.module, loss, name)

    def words(self, plan: StepPlan) -> list[str]:
        return self.said[self.plans.index(plan)]

    def _step(self, plan: StepPlan, name: str, named: Callable[[ast.AST], str]) -> None:
        module, step, words = self.module, plan.step.node, self.words(plan)
        wrapper, within = plan.step, plan.step
        if isinstance(wrapper, Wrapped):
            within, step = wrapper.within, wrapper.within.node
        assert isinstance(step, ast.Call)
        assert isinstance(step.func, ast.Attribute)
        if step.args or step.keywords:
            raise Refused("its step() takes arguments", BY_HAND)
        optimizer = within.module.source(step.func.value)
        for backward in plan.backwards:
            assert isinstance(backward.node, ast.Call)
            assert isinstance(backward.node.func, ast.Attribute)
            loss, scaled = backward.node.func.value, f"{named(backward.node)}.scale({{}})"
            if loss in self.moved:
                self.changes.edits += edits.replace(module, loss, scaled.format(self.moved.pop(loss)))
            else:
                self.changes.edits += edits.wrap_call(module, loss, scaled)
        if (clipping := plan.unscale_at(module)) is not None:
            known = _from_outside(wrapper, optimizer) if isinstance(wrapper, Wrapped) else optimizer
            self.changes.before(module, clipping, _unscaled(plan.home, clipping, module, name, known))
            words.append(in_words(plan.handled))
        inside = name.removeprefix("self.") if isinstance(wrapper, Wrapped) else name
        if (clipping := unscale_at(within.module, within, (), plan.inside, None)) is not None:
            self.changes.before(within.module, clipping, [f"{inside}.unscale_({optimizer})"])
            words.append(in_words(plan.inside))
        self.changes.edits += edits.replace(within.module, step, f"{inside}.step({optimizer})")
        if not isinstance(wrapper, Wrapped) and _schedules(module, step):
            words.append("the scheduler advances on steps that the scaler skips, too")

    def evaluate(self, region: Region, casts: tuple[Cast, ...], arrays: tuple[ast.expr, ...]) -> None:
        """Run an evaluation's forward and loss under autocast, too, where the device is at hand and it can be edited:
        in float32 it is right, as well."""
        gate = self._gate(region[0], self._model_text(region[0]))
        known = len(self.changes.edits)
        try:
            if gate is None:
                return
            self._enter(region, gate, casts)
            self._for_numpy(arrays)
        except edits.CannotEdit:
            del self.changes.edits[known:]
            return
        name = getattr(self.module.function(region[0]), "name", "")
        done = f"{name}() evaluates under autocast" if name else "evaluation under autocast"
        self.said[0] += [done] if done not in self.said[0] else []

    def _gate(self, place: ast.stmt, model: str | None) -> device.Gate | None:
        return gate_at(self.module, place, self.aim, self._torch(place), model, self.plans[0].home)

    def _torch(self, place: ast.AST) -> str:
        return torch_at(self.module, place, self.changes)

    def _region(self, part: Part) -> None:
        module, code = self.module, part.forward.frame.code
        place = part.statements[0]
        model = called_in(part.forward, part.forward.node)
        gate = self._gate(place, model)
        scaler = self._scaler_of(part)
        named = _name_at(scaler, module, place) if scaler is not None and _there(scaler, module.function(place)) else ""
        scaler = scaler if named else None
        handed = scaler is not None and (scaler.home.in_class or code in _handed(scaler))
        if self.dtype == "auto":
            scaler = None  # it is off for bfloat16, where the region is not
        if scaler is not None and (gate is None or (gate.enabled and (handed or "(" in gate.device + gate.enabled))):
            device_only = plain_gate(module, place, self.aim, self._torch(place), model)
            kind = device_only.device if device_only is not None else f'"{self.aim.device}"'
            gate = device.Gate(kind, f"{named}.is_enabled()")
        own = next((plan.scaler for plan in self.plans if plan.scaler), "")
        if own and (gate is None or gate.enabled or not device.always_on(module, own)):
            gate = device.Gate(gate.device if gate else f'"{self.aim.device}"', f"{own}.is_enabled()")
        if gate is None:
            reason, advice = "the device is not known where the model runs", "pass the device to that function"
            raise device.unknown(self.aim.files.named, self.aim.device, reason, advice)
        gate = replace(gate, cached=part.cached)
        self._enter(part.statements, gate, part.casts, bool(part.region))
        lines = [f"    {one.line(module)}" for one in part.named]
        if lines and part.region:
            self.changes.after(module, part.region[-1], lines)
        elif lines:
            self.changes.before(module, place, [self._header(place, gate), *lines])

    def _scaler_of(self, part: Part) -> ScalerPlan | None:
        """The scaler that scales what a region computes; failing that, one that is at hand there."""
        found = None
        for scaler in self.scalers:
            for plan in scaler.steps:
                if any(set(one.statements) & set(part.statements) for one in plan.parts):
                    return scaler
                if found is None and plan.step.frame.code is part.forward.frame.code:
                    found = scaler
        return found

    def _enter(self, region: Region, gate: device.Gate, casts: tuple[Cast, ...], indent: bool = True) -> None:
        if indent:
            header = self._header(region[0], gate)
            self.changes.edits += edits.indent_under(self.module, list(region), header)
        for cast in casts:
            if cast not in self.cast:
                self.changes.edits += cast_edits(self.module, cast, self._torch(region[0]))
                self.cast.add(cast)

    def _header(self, place: ast.stmt, gate: device.Gate) -> str:
        torch = self._torch(place)
        dtype = device.auto_dtype(self.module) if self.dtype == "auto" else f"{torch}.{self.dtype}"
        return f"with {torch}.autocast({gate.arguments(dtype)}):"

    def _for_numpy(self, arrays: tuple[ast.expr, ...]) -> None:
        for tensor in arrays:
            if tensor not in self.cast:
                self.changes.edits += edits.wrap_call(self.module, tensor, "{}.float()")
                self.cast.add(tensor)

    def _model_text(self, inside: ast.AST) -> str | None:
        """What a model that trains is called in some code."""
        return next(filter(None, (called_in(part.forward, inside) for part in self.parts)), None)


def _from_outside(step: Wrapped, optimizer: str) -> str:
    """What the optimizer of a wrapper is called where its method is called: `optimizer._optimizer`."""
    node = step.node
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Attribute)
    return f"{ast.unparse(node.func.value)}.{optimizer.removeprefix('self.')}"


def _unscaled(home: Home, place: ast.stmt, module: Module, scaler: str, optimizer: str) -> list[str]:
    """unscale_ for the optimizer, or for each of a collection that the step goes over."""
    call, loop = f"{scaler}.unscale_({optimizer})", home.loop
    if loop is None or loop in module.ancestors(place):
        return [call]
    if not isinstance(loop.target, ast.Name):
        raise Refused("gradients are clipped outside the loop over the optimizers", BY_HAND)
    return [f"for {optimizer} in {ast.unparse(loop.iter)}:", f"    {call}"]


def _name_at(scaler: ScalerPlan, module: Module, place: ast.stmt) -> str:
    """What the scaler is called at a place: behind its home, in a function that it is handed to, in the methods of the
    classes that have it; "" where it is not at hand."""
    home, around = scaler.home, set(module.ancestors(place))
    if not around.isdisjoint(_handed(scaler)):
        return scaler.here
    if home.in_class:
        inside = any(cls in around for _, cls in home.classes)
        return scaler.name if inside else scaler.here if home.around in around else ""
    if home.module is not module:
        return ""
    return scaler.name if home.code in around or isinstance(home.code, ast.Module) else ""


def _handed(scaler: ScalerPlan) -> set[ast.AST]:
    """The functions that are given the scaler on the way to a step."""
    return {frame.code for plan in scaler.steps for home in plan.homes for frame in home.path}


def _there(scaler: ScalerPlan, code: ast.AST | None) -> bool:
    """Whether a scaler exists whenever some code runs: a field that is set under a condition may be missing in other
    methods than those of the training step."""
    home = scaler.home
    sure = not any(isinstance(one, ast.If) for one, _ in conditions_above(home.module, home.statement))
    events = [event for plan in scaler.steps for event in (plan.step, *plan.backwards)]
    return sure or not home.in_class or any(event.frame.code is code for event in events)


def _receiver(call: ast.AST) -> ast.AST | None:
    return call.func.value if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else None


def _schedules(module: Module, step: ast.Call) -> bool:
    """Whether the loop that steps the optimizer steps a scheduler, too."""
    loop = module.loop(step)
    for node in ast.walk(loop) if loop is not None else ():
        match node:
            case ast.Call(func=ast.Attribute(attr="step", value=ast.Name(id=name) | ast.Attribute(attr=name))):
                if "sched" in name.lower() and module.loop(node) is loop:
                    return True
    return False
