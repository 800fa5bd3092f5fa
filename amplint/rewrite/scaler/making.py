"""Makes the scalers: beside their optimizers, saved and restored with them, and handed to the steps."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.changes import Changes
from amplint.rewrite.fixes import suite_of
from amplint.rewrite.gates import device
from amplint.rewrite.gates.devices import with_type
from amplint.rewrite.gates.switch import switch
from amplint.rewrite.plan import StepPlan
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.refusals.sharding import SCALER, sharded
from amplint.rewrite.regions.derivation import on_the_cpu
from amplint.rewrite.regions.lifts import Through, standing
from amplint.rewrite.scaler.checkpoints import state_edits
from amplint.rewrite.scaler.definitions import other_users
from amplint.rewrite.scaler.files import file_edits
from amplint.rewrite.scaler.home import Home, owners, sharing, unknowing
from amplint.rewrite.scaler.reach import Files, Reach, hand_down, is_optional, savers
from amplint.rewrite.scaler.scalers import ScalerPlan
from amplint.rewrite.scaler.wrapped import Wrapped
from amplint.rewrite.syntax.text import edit_within
from amplint.source import events
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import parameters, stored_names


@dataclass(frozen=True)
class Aim:
    """What is written: the target device and the dtype, in these files."""

    device: str
    dtype: str
    files: Files
    version: tuple[int, int] = (2, 4)  # of torch, the oldest that it must run on


def torch_at(module: Module, place: ast.AST, changes: Changes) -> str:
    """The name for torch at a place; it is imported at the top of a file that has none."""
    name = edits.binding_of(module, "torch", at=place)
    if name is None and device.imported(module, "torch"):
        name = "torch"  # with everything else of a file
    if name is None and any("torch" in parameters(one) for one in module.ancestors(place)):
        name = "torch"  # a cell of marimo is given what another cell imports
    if name is None:
        changes.edits += [one for one in edits.add_import(module, "import torch") if one not in changes.edits]
        name = "torch"
    return name


def choose_dtype(module: Module, torch: str, version: tuple[int, int], changes: Changes) -> None:
    """For --dtype auto: one constant or function behind the import of torch and those that follow it."""
    if module in changes.chosen:
        return
    changes.chosen.add(module)
    if any(getattr(node, "id", "") == device.AUTO for node in ast.walk(module.tree)):
        raise Refused(f"the name {device.AUTO} is taken", "rename that, or pass --dtype float16")
    place: ast.stmt | None = None
    for one in module.tree.body:
        if place is not None and not isinstance(one, ast.Import | ast.ImportFrom):
            break
        names = one.names if isinstance(one, ast.Import) else []
        if place is not None or any(a.name == "torch" and (a.asname or a.name) == torch for a in names):
            place = one
    if place is None:
        raise Refused("torch is not imported at the top of the file", "pass --dtype float16")
    lines = device.auto_lines(module, torch, version)
    if lines[2].startswith("def ") and place is not module.tree.body[-1]:
        following = module.tree.body[module.tree.body.index(place) + 1]
        lines += [""] * (3 - (following.lineno - (place.end_lineno or place.lineno)))
    changes.after(module, place, lines)


def plain_gate(
    module: Module, place: ast.stmt, aim: Aim, torch: str, model: str | None, early: bool = False
) -> device.Gate | None:
    """The gate at a place by the device alone."""
    gate = device.gate(module, place, aim.device, torch, model, early)
    return with_type(gate, module, place, torch, aim.files) if gate is not None else None


def gate_at(
    module: Module, place: ast.stmt, aim: Aim, torch: str, model: str | None, home: Home | None, early: bool = False
) -> device.Gate | None:
    """The gate at a place, with the script's own switch; None where one of them is not at hand. The switch is the one
    that the scaler's home reads, where there is one."""
    gate = plain_gate(module, place, aim, torch, model, early)
    known = switch(home.module, home.statement) if home is not None else ""
    if gate is None or not known:
        return gate
    here = switch(module, place)
    return device.Gate(gate.device, f"{here} and {gate.enabled}" if gate.enabled else here) if here else None


@dataclass
class Maker:
    """Makes the scalers of a group of files; the words for each are those of its first step."""

    aim: Aim
    changes: Changes
    reaches: list[Reach] = field(default_factory=list)
    places: dict[tuple[ast.AST, str], ast.stmt] = field(default_factory=dict)  # where each name is made in some code
    homes: set[tuple[ast.stmt, str]] = field(default_factory=set)
    left: dict[str, None] = field(default_factory=dict)  # what cannot be given the scaler

    def make(self, scaler: ScalerPlan, words: list[str]) -> list[str]:
        """A scaler at each home of its optimizers: every script that runs the step makes its own. Returns the words
        that go behind those for the steps."""
        first = scaler.steps[0]
        several = len(scaler.optimizers) > 1 or first.home.loop is not None
        made: list[str] = []
        reaches: list[Reach] = []  # of this scaler
        saved: dict[str, None] = {}
        passed: dict[str, None] = {}
        for home, optimizers in scaler.homes:
            self._at_home(scaler, home)
            if home.module is not first.step.frame.module:
                made.append(home.module.path)
            reach = Reach(_name_at(home, scaler), home, optimizers)
            self.reaches.append(reach)
            reaches.append(reach)
            for other in (one for plan in scaler.steps for one in plan.homes if one.code is home.code):
                reach.add(other.path)
            for plan in scaler.steps:
                if isinstance(plan.step, Wrapped):
                    reach.add(plan.step.frames)
                for backward in plan.backwards if reach is reaches[0] else ():
                    reach.lead_to(backward)
            for function, file in reaches[0].stepping.items():
                reach.handed[function] = reach.stepping[function] = file
            passed |= dict.fromkeys(f"{one.name}()" for one in reach.handed)
            saved |= self._states(scaler, reach)
        where = f" in {' and '.join(dict.fromkeys(made))}" if made else ""
        renewed = any(_renewing(home.module, home.statement) is not None for home, _ in scaler.homes)
        beside = "before the loop that renews the" if renewed else "beside the"
        words.append(f"{scaler.name} made {beside} {'optimizers' if several else 'optimizer'}{where}")
        makers = {plan.create.module for plan in scaler.steps if plan.create is not None}
        if self.aim.device != "cpu" and not any(device.moves(one) for one in {*self.aim.files.named, *makers}):
            words.append("nothing here moves the model to a GPU, and until something does, AMP stays off")
        if any(plan.summed for plan in scaler.steps):
            words.append("its scale starts low, because the loss is a sum")
        words += [f"passed to {' and '.join(passed)}"] if passed else []
        once = "one update, after the last step" if len(scaler.updates) == 1 else "an update after each group of steps"
        after = [once] if several else []
        after += [f"{scaler.name} {' and '.join(sorted(saved, reverse=True))} the checkpoint"] if saved else []
        after, self.left = [*after, *self.left], {}
        return after

    def name_at(self, scaler: ScalerPlan, module: Module, node: ast.AST) -> str:
        """What a scaler is called at a node."""
        homes = [(home, _name_at(home, scaler)) for home, _ in scaler.homes]
        names = {one.text(module, node) for one in self.reaches if (one.home, one.name) in homes}
        if len(names) != 1:
            raise Refused("the loss is scaled where the scaler has several names", BY_HAND)
        return names.pop()

    def finish(self) -> None:
        """Hand the scalers down, those of one name together: scripts that share a function share its parameter."""
        names = dict.fromkeys(reach.name.removeprefix("self.") for reach in self.reaches)
        for name in names:
            same = [one for one in self.reaches if one.name.removeprefix("self.") == name]
            self.changes.edits += hand_down(same, self.aim.files)

    def _at_home(self, scaler: ScalerPlan, home: Home) -> None:
        module, made = home.module, home.statement
        name = _name_at(home, scaler)
        known = self.places.setdefault((home.code, name), made)
        if known is not made:
            raise Refused("its optimizers step in several files", BY_HAND)
        if (made, name) in self.homes:
            return  # steps of several files share it
        self.homes.add((made, name))
        torch = torch_at(module, made, self.changes)
        if self.aim.dtype == "auto":
            choose_dtype(module, torch, self.aim.version, self.changes)
        loop = _renewing(module, made)
        gate = gate_at(module, loop or made, self.aim, torch, _trained(scaler.steps[0], home), home, early=True)
        if gate is None and loop is None:
            made, gate = self._later(home, torch, scaler)
        if gate is not None and home.of_object and gate.enabled.startswith("next("):
            gate = None  # who makes the object may move it when it is made
        if gate is None:
            reason, advice = (
                "the device is not known where the optimizer is made",
                "make the optimizer after the device",
            )
            raise device.unknown(self.aim.files.named, self.aim.device, reason, advice)
        own = _own_switch(scaler.steps[0])
        if own and device.visible(module, own, loop or made):
            gate = device.Gate(gate.device, own)
        asked = [gate.enabled] if gate.enabled else []
        asked += [f"{device.auto_dtype(module)} == {torch}.float16"] if self.aim.dtype == "auto" else []
        new = self.aim.version >= (2, 3) or self.aim.device != "cuda"
        if not new and any(on_the_cpu(plan.module, part.region) for plan in scaler.steps for part in plan.parts):
            raise Refused(
                "its loss is computed on the CPU, and the GradScaler of PyTorch before 2.3 takes none from there",
                "compute it on the GPU, or say --target-torch 2.3 if it runs on that",
            )
        given = [gate.device] if new else []
        given += ["init_scale=1024.0"] if any(plan.summed for plan in scaler.steps) else []
        given += [f"enabled={' and '.join(asked)}"] if asked else []
        made_by = f"{torch}.{'amp' if new else 'cuda.amp'}.GradScaler"
        if any(sharded(one) for one in (module, *(plan.module for plan in scaler.steps))):
            made_by, given = "ShardedGradScaler", [one for one in given if "=" in one]
            self.changes.edits += [one for one in edits.add_import(module, SCALER) if one not in self.changes.edits]
        line = f"{name} = {made_by}({', '.join(given)})"
        if (told := _global_there(module, home)) is not None:
            self.changes.edits.append(edit_within(module, module.offset(module.range(told).end), f", {name}"))
        if loop is not None:
            self.changes.before(module, loop, [line])
        else:
            self.changes.after(module, made, [line])

    def _later(self, home: Home, torch: str, scaler: ScalerPlan) -> tuple[ast.stmt, device.Gate | None]:
        """The first place behind the optimizer where the device is known, before anything steps or restores it."""
        block = suite_of(home.module, home.statement)
        index = block.index(home.statement)
        uses = {node for plan in scaler.steps for one in (plan.step, *plan.backwards) for node in standing(one)}
        for one, following in pairwise(block[index:]):
            if one is not home.statement and any(n in uses or _restores(n) for n in ast.walk(one)):
                break
            gate = gate_at(home.module, following, self.aim, torch, None, home, early=True)
            if gate is not None:
                return one, gate
        return home.statement, None

    def _unnamed(self, function: ast.FunctionDef, module: Module) -> str | None:
        """Why a function that saves the optimizer cannot be given the scaler: its file, or one that calls it, was not
        named. A run that resumes starts with a new scaler then."""
        files = self.aim.files
        if module not in files.named:
            return ", which was not named,"
        others = other_users(function, module, files.named, files.roots)
        return f", used in {' and '.join(others)}, too," if others else None

    def _states(self, scaler: ScalerPlan, reach: Reach) -> dict[str, None]:
        """Save and restore the scaler's state with that of its optimizers, in every file that does so; what nothing
        saves is not restored."""
        done: dict[str, None] = {}
        edited: list[Edit] = []
        home = reach.home
        known = _wrapped(scaler, home) or reach.optimizers
        places: list[tuple[Module, ast.AST, Sequence[str]]] = [(home.module, home.module.tree, known)]
        if home.in_class:
            places = [(home.module, one, reach.optimizers) for one in sharing(home, reach.optimizers)]
            places += [(module, cls, reach.optimizers) for module, cls in home.classes if module is not home.module]
        self.left |= dict.fromkeys(f"{name} does not know its state" for name in unknowing(home, reach.optimizers))
        for code, through in owners(home, reach.optimizers):
            other = replace(reach, home=replace(home, through=through, around=code))
            for made, said in (
                state_edits(home.module, code, other, other.outside),
                file_edits(home.module, code, other, other.outside),
            ):
                edited += made
                done.update(said)
        for function, (module, name) in savers(reach, self.aim.files).items():
            if module is not home.module and (unnamed := self._unnamed(function, module)):
                self.left[f"{function.name}() in {module.path}{unnamed} does not know its state"] = None
                continue
            around = [function, *module.ancestors(function)]
            if function not in reach.handed and not any(cls in around for _, cls in home.classes):
                reach.handed[function] = module
            if module is not home.module or name not in reach.optimizers:
                places.append((module, function, (name,)))
        for function, module in reach.handed.items():
            if module is not home.module and function not in [code for _, code, _ in places]:
                places.append((module, function, [owner_of(plan) for plan in scaler.steps]))
        handed = [(one, where) for one, where in reach.handed.items() if one not in reach.stepping]
        unsure = {one for one, where in handed if is_optional(one, where, self.aim.files)}
        for module, code, names in places:
            for made, said in (state_edits(module, code, reach, names, unsure), file_edits(module, code, reach, names)):
                edited += made
                done.update(said)
        if "saved in" not in done:
            return {}
        self.changes.edits += edited
        return done


def _global_there(module: Module, home: Home) -> ast.Global | None:
    """The statement that says that the optimizer is a global in the function that makes it."""
    function = module.function(home.statement)
    if function is None or not isinstance(home.code, ast.Module):
        return None
    return next((n for n in ast.walk(function) if isinstance(n, ast.Global) and home.optimizer in n.names), None)


def _wrapped(scaler: ScalerPlan, home: Home) -> tuple[str, ...]:
    """The name of an optimizer that a wrapper is made with, where its state is asked for by that name."""
    create, module = scaler.steps[0].create, home.module
    if not isinstance(scaler.steps[0].step, Wrapped) or create is None or create.node not in module.parents:
        return ()
    match module.statement(create.node):
        case ast.Assign(targets=[ast.Name(id=name)]) as made if made in suite_of(module, home.statement):
            given = any(getattr(one, "id", "") == name for one in ast.walk(home.statement))
            return (name,) if given and f"{name}.state_dict(" in module.text else ()
    return ()


def _restores(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "load_state_dict"


def _own_switch(plan: StepPlan) -> str:
    """The condition of the region that a half-done step is under."""
    region = plan.step.before.region if plan.half else None
    made = region.autocast.node if region is not None else None
    for keyword in made.keywords if isinstance(made, ast.Call) else ():
        if keyword.arg == "enabled" and isinstance(keyword.value, ast.Name | ast.Attribute):
            return ast.unparse(keyword.value)
    return ""


def _name_at(home: Home, scaler: ScalerPlan) -> str:
    """What a scaler is called at one of its homes."""
    name = scaler.name.removeprefix("self.")
    return f"self.{name}" if home.in_class else name


def owner_of(plan: StepPlan) -> str:
    """What the optimizer is called where it steps."""
    node = plan.step.node
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return ast.unparse(node.func.value)


def _renewing(module: Module, made: ast.stmt) -> ast.For | ast.While | None:
    """The outermost loop that makes the optimizer anew for the same model: the scaler outlives it."""
    found: ast.For | ast.While | None = None
    names = {
        node.id
        for call in ast.walk(made)
        if isinstance(call, ast.Call)
        for argument in (*call.args[:1], *(one.value for one in call.keywords if one.arg == "params"))
        for node in ast.walk(argument)
        if isinstance(node, ast.Name)
    }
    for above in module.ancestors(made):
        if isinstance(above, FunctionNode | ast.ClassDef):
            break
        if isinstance(above, ast.For | ast.While):
            bound = stored_names(above)
            if not names or names & bound:
                break
            found = above
    return found


def _trained(plan: StepPlan, home: Home) -> str | None:
    """A model of the step, by a name that it has where the scaler is made."""
    create, made = plan.create, home.statement
    for node in ast.walk(create.node) if create and create.frame.code is home.code else ():
        match node:
            case ast.Call(func=ast.Attribute(attr="parameters", value=ast.Name() | ast.Attribute() as model)):
                if device.visible(home.module, text := ast.unparse(model), made):
                    return text
    text = called_in(plan.forward, plan.forward.node) or ""
    given = {ast.unparse(one) for target in getattr(made, "targets", ()) for one in getattr(target, "elts", ())}
    return text if text and (text in given or device.visible(home.module, text, made)) else None


def called_in(forward: events.Forward, inside: ast.AST) -> str | None:
    """What the model that runs is called in some code."""
    if isinstance(forward, Through):
        return None  # a function, or a method, that runs the model
    func = getattr(forward.node, "func", None)
    if not isinstance(func, ast.Name | ast.Attribute):
        return None
    text = _model_of(func)
    called = (_model_of(node.func) for node in ast.walk(inside) if isinstance(node, ast.Call))
    return text if text in called else None


def _model_of(func: ast.expr) -> str:
    """What is called, as a model: `model` for model.forward, too."""
    match func:
        case ast.Attribute(attr="forward", value=ast.Name() | ast.Attribute() as model):
            return ast.unparse(model)
    return ast.unparse(func)
