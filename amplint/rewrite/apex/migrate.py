"""The whole of a script's apex.amp becomes torch.amp, in one fix, which is given only if its result is clean."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field, replace

from amplint.config import Settings
from amplint.findings import Applicability, Edit, Fix
from amplint.rewrite import edits
from amplint.rewrite.apex.availability import Leaving
from amplint.rewrite.apex.by_hand import refuse_by_hand, refuse_part
from amplint.rewrite.apex.calls import Seen
from amplint.rewrite.apex.extras import extra_edits, is_extra
from amplint.rewrite.apex.group import Group, group_of
from amplint.rewrite.apex.place import placed
from amplint.rewrite.apex.region import Region, evaluated, inference_regions, unread_evaluations
from amplint.rewrite.apex.scaled import ScaledLoss, collapsed
from amplint.rewrite.apex.scope import Scope
from amplint.rewrite.apex.setup import Setup, setup_of
from amplint.rewrite.apex.states import scale_edits, state_edits
from amplint.rewrite.apex.steps import first_of, master_edits, owner_text, step_edits, steps_of, unscale_edits
from amplint.rewrite.apex.training import trained
from amplint.rewrite.apex.uses import Use, Uses
from amplint.rewrite.apex.verify import changed, verify
from amplint.rewrite.islands.float32 import Cast, cast_edits
from amplint.rewrite.plan import StepPlan
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.regions.evaluation import evaluation_regions
from amplint.rewrite.scaler.checkpoints import state_edits as checkpoint_edits
from amplint.rewrite.scaler.home import Home
from amplint.rewrite.scaler.reach import Reach
from amplint.rewrite.syntax.layout import end, start
from amplint.rewrite.syntax.text import edit
from amplint.source import events
from amplint.source.interpret.entries import Reading, read
from amplint.source.module import Module
from amplint.source.values import Optimizer

_KNOWN = frozenset("initialize scale_loss master_params get_scale state_dict load_state_dict disable_casts".split())
_STATE = ("state_dict", "load_state_dict")
_AS_BEFORE = frozenset(("AMP116", "AMP133"))  # what apex lacked as well, where its state was not saved
_HALF = re.compile(r"\.half\(\)")


@dataclass
class Migration:
    """The edits of a group's files, what was done in each of them, and what changes for the person who trains."""

    edits: list[Edit]
    words: dict[Module, list[str]] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pairs: list[tuple[Module, Module]] = field(default_factory=list)  # the files that change, before and after
    unsaved: list[str] = field(default_factory=list)  # codes of what apex lacked as well


def migrate(reading: Reading, settings: Settings) -> Fix:
    """The fix for one file that changes alone; raises Refused where a part of it has to be done by a person."""
    group = group_of(reading.module, settings.roots, (reading.module,))
    made = migration(group, settings, reading if not group.others or group.others == [reading.module] else None)
    message = "use torch.amp instead of apex.amp"
    if not any(uses.uses for uses in group.uses.values()):
        message = "remove the import of apex.amp, which nothing uses"
    if said := "; ".join((*made.changes, *made.notes)):
        message += f" ({said})"
    if made.unsaved:
        message += "; the scaler's state is not saved and restored, nor was that of apex"
        message += f" ({', '.join(made.unsaved)})"
    unsafe = made.changes or made.unsaved
    return Fix(message, Applicability.UNSAFE if unsafe else Applicability.SAFE, tuple(sorted(set(made.edits))))


def migration(group: Group, settings: Settings, reading: Reading | None = None) -> Migration:
    """All edits of a group, checked; raises Refused."""
    reading = reading or read(group.main, settings.roots, settings.apis, group.others)
    try:
        made = _Writer(group, reading, settings).made()
        made.pairs = changed(group, made.edits)
        saves = any(uses.named(*_STATE) for uses in group.uses.values())
        made.unsaved = verify(group, made.pairs, settings, frozenset() if saves else _AS_BEFORE)
        group.check()
    except edits.CannotEdit as error:
        raise Refused(f"its code has a shape that amplint does not edit ({error.reason})", BY_HAND) from None
    return made


class _Writer:
    """Collects the edits of a group."""

    def __init__(self, group: Group, reading: Reading, settings: Settings):
        self.group = group
        self.reading = reading
        self.settings = settings
        self.edits: list[Edit] = []
        self.result = Migration(self.edits)
        self.taken: set[ast.stmt] = set()  # what is under autocast
        self.bindings: dict[Module, str] = {}
        self.without: set[Module] = set()  # files that have to import torch
        self.gone: dict[Module, list[ast.stmt]] = {one: [] for one in group.uses}  # replaced as a whole
        self.deleted: dict[Module, list[ast.stmt]] = {one: [] for one in group.uses}

    def made(self) -> Migration:
        leaving = {module: Leaving(module, uses) for module, uses in self.group.uses.items()}
        for module, uses in self.group.uses.items():
            self._parts(module, uses, leaving[module])
        if any(
            not is_extra(use) and use.name not in ("", "__dict__")
            for uses in self.group.uses.values()
            for use in uses.uses
        ):
            self._script(leaving)
        for module, one in leaving.items():
            self._import(module, one)
            gone = {part for statement in self.gone[module] for part in ast.walk(statement)}
            self.edits += one.edits(self.deleted[module], gone)
        if len(self.group.uses) > 1 or any(not uses.uses for uses in self.group.uses.values()):
            for module in self.group.uses:
                self.result.words.setdefault(module, [])
        return self.result

    def _import(self, module: Module, leaving: Leaving) -> None:
        """Import torch where a file has no name for it, in the place of apex.amp where that goes."""
        if module not in self.without:
            return
        own = next((one for one in leaving.statements if module.parents[one] is module.tree), None)
        if own is None or leaving.flags:
            self.edits += edits.add_import(module, "import torch")
            return
        self.edits.append(edit(module, start(module, own), end(module, own), "import torch"))
        self.gone[module].append(own)

    def _named(self, *names: str) -> list[tuple[Module, Use]]:
        return [(module, use) for module, uses in self.group.uses.items() for use in uses.named(*names)]

    def _say(self, place: ast.AST, words: str) -> None:
        known = self.result.words.setdefault(self.group.of(place), [])
        if words and words not in known:
            known.append(words)

    def _torch(self, place: ast.AST) -> str:
        """The file's name for torch at a place; imported where it has none."""
        module = self.group.of(place)
        bound = edits.binding_of(module, "torch", at=place)
        if bound is None:
            self.without.add(module)
        if self.bindings.setdefault(module, bound or "torch") != (bound or "torch"):
            raise Refused("functions import torch for themselves", "import it once, at the top")
        return bound or "torch"

    def _parts(self, module: Module, uses: Uses, leaving: Leaving) -> None:
        """What needs no scaler: amp.lists, what is registered, and decorators."""
        for use in uses.uses:
            if is_extra(use):
                old = self.settings.target_torch < (2, 4)
                made, deleted, told = extra_edits(module, use, self._torch(use.node), old)
                self.edits += made
                self.deleted[module] += deleted
                self.result.changes += [told] if told and told not in self.result.changes else []
                if not deleted:
                    self._say(use.node, f"amp.{use.name} is torch.amp.custom_fwd now")
            elif use.name in ("", "__dict__") and leaving.asks(use.node):
                continue
            elif use.name not in _KNOWN:
                refuse_part(use.name)

    def _script(self, leaving: dict[Module, Leaving]) -> None:
        losses = [ScaledLoss(module, use.node) for module, use in self._named("scale_loss")]
        refuse_by_hand(self.group, losses)
        starts = [use for _, use in self._named("initialize")]
        home = self.group.of(starts[0].node) if starts else self.group.main
        if any(self.group.of(use.node) is not home for use in starts):
            raise Refused("amp.initialize is called in several files", BY_HAND)
        setup = setup_of(home, starts, leaving[home], self._running(home, losses))
        if setup.off:
            setup.switch = "False"
        self.result.changes += [one for one in setup.changes if one not in self.result.changes]
        seen: Seen = {}
        for event in self.reading.events:
            for frame in event.frame.stack():
                if frame.call is not None:
                    seen.setdefault(frame.call, set()).add(frame.code)
        self.scope = Scope(self.group, setup, seen)
        self._place(home, setup, bool(self._named("scale_loss", *_STATE)))
        if losses:
            self._training(setup, losses)
        elif setup.optimizers:
            raise Refused(
                "amp.scale_loss is not in this file, nor in one that it imports",
                "scale the loss where its backward is, with a torch.amp.GradScaler that is made here",
            )
        else:
            self._inference()
        for module, use in self._named(*_STATE):
            self.edits += state_edits(module, [use], self.scope)
            self._say(use.node, f"scaler {'saved' if use.name == 'state_dict' else 'restored'} where amp's state was")
        self.edits += [one for place in self._named("get_scale") for one in scale_edits(*place, self.scope)]
        for module, use in self._named("disable_casts"):
            call = module.parents[use.node]
            if not isinstance(call, ast.Call):
                raise Refused("amp.disable_casts is passed around, not called", BY_HAND)
            self.edits += edits.replace(module, call, f'{self._torch(call)}.autocast("cuda", enabled=False)')
        self.edits += self.scope.edits
        for one in self.scope.handed:
            self._say(one, f"{getattr(one, 'name', '')}() is given the scaler")
        self._other_evaluations(setup)

    def _place(self, module: Module, setup: Setup, scaler: bool) -> None:
        """Put the scaler, where there is to be one, in the place of amp.initialize."""
        line = ""
        if scaler:
            name, torch = self.scope.name(setup.statement), self._torch(setup.statement)
            old = self.settings.target_torch < (2, 3)
            arguments = [] if old else ['"cuda"']
            arguments += [f"init_scale={setup.scale}"] if setup.scale else []
            arguments += [f"enabled={setup.switch}"] if setup.switch else []
            line = f"{name} = {torch}.{'cuda.' if old else ''}amp.GradScaler({', '.join(arguments)})"
            self._say(setup.statement, f"{name} made in the place of amp.initialize")
        made = placed(module, setup, line)
        self.edits += made.edits
        self.gone[module] += made.gone
        self.deleted[module] += made.deleted

    # -- training -----------------------------------------------------------------------------------------------------

    def _running(self, home: Module, losses: list[ScaledLoss]) -> list[ast.AST]:
        """Where models run and optimizers step, with AMP or without."""
        found: list[ast.AST] = [
            event.node
            for event in self.reading.events
            if event.module is home
            and (isinstance(event, events.Step) or (isinstance(event, events.Forward) and event.grad))
        ]
        here = [loss for loss in losses if loss.module is home]
        for loss in here:
            above = home.parents[loss.statement]
            if isinstance(above, ast.If) and above.orelse:
                found.append(above)  # its other arm runs without AMP
        return found or [loss.statement for loss in here]

    def _training(self, setup: Setup, losses: list[ScaledLoss]) -> None:
        scope, group = self.scope, self.group
        made, done = collapsed(losses, scope)
        self.edits += made
        for loss in losses:
            scaler = scope.reach(loss.statement)
            if loss.statement not in done:
                self.edits += loss.edits(scaler)
        wanted = {node for loss in losses for node in loss.backwards}
        backwards = [e for e in self.reading.events if isinstance(e, events.Backward) and e.node in wanted]
        if wanted - {event.node for event in backwards}:
            raise Refused("amplint does not follow the script to every amp.scale_loss", BY_HAND)
        optimizers = {o for event in backwards for o, _ in event.touched}
        steps = steps_of(group, self.reading, optimizers, losses, setup.optimizers)
        masters = self._masters()
        scaled = {loss.statement for loss in losses}
        ways = {frame.call for event in backwards for frame in event.frame.stack() if frame.call is not None}
        unscaled = unscale_edits(group, self.reading, scope, steps, masters, scaled | ways)
        self.edits += unscaled
        for call in masters:
            self.edits += master_edits(group.of(call), call, all(len(event.touched) < 2 for event in backwards))
        self.edits += step_edits(group, steps, scope, scaled)
        plans = self._regions(losses, steps, setup)
        if unscaled:
            self._say(next(iter(steps)), "gradients unscaled before they are clipped or read")
        for plan in {plan.forward: plan for plan in reversed(plans)}.values():
            self._evaluation(plan)
        if not self._named(*_STATE):
            self._checkpoints(setup, plans)

    def _masters(self) -> dict[ast.Call, str]:
        found = {}
        for module, use in self._named("master_params"):
            call = module.parents[use.node]
            above = module.parents.get(call)
            match call, above:
                case ast.Call(args=[ast.Name() | ast.Attribute() as owner], keywords=[]), (
                    ast.Call() | ast.For() | ast.comprehension()
                ) if call.func is use.node:
                    found[call] = module.source(owner)
                case _:
                    raise Refused("amp.master_params is kept or saved", BY_HAND)
            if isinstance(above, ast.Call) and isinstance(above.func, ast.Name) and above.func.id in ("list", "zip"):
                raise Refused("the master parameters are kept or saved", "the model's own parameters are float32 now")
        return found

    def _regions(
        self, losses: list[ScaledLoss], steps: dict[ast.Call, Optimizer | None], setup: Setup
    ) -> list[StepPlan]:
        """Put what computes each scaled loss under autocast."""
        group = self.group
        of: dict[ast.AST, ast.expr] = {call: loss.loss for loss in losses for call in loss.backwards}
        first = first_of(self.reading, steps)
        home_module = group.of(setup.statement)
        optimizer = next(iter(setup.optimizers), "") or owner_text(group.of(first.node), next(iter(steps)))
        code = setup.function or home_module.tree
        owner = self.scope.owner
        classes = ((home_module, owner),) if isinstance(owner, ast.ClassDef) else ()
        home = Home(home_module, setup.statement, optimizer, code, classes=classes)
        barriers = {loss.statement for loss in losses} | set(steps)
        found = trained(group, self.reading, of, barriers)
        self.result.changes, self.result.notes = self.result.changes + found.changes, self.result.notes + found.notes
        plans = []
        for backward, low in found.stretches:
            region = low.region
            inside = {part for one in region for part in ast.walk(one) if isinstance(part, ast.stmt)}
            if set(region) <= self.taken:
                continue
            if inside & self.taken or any(node in barriers for one in region for node in ast.walk(one)):
                raise Refused("the regions of two losses overlap, or a backward stands in one", BY_HAND)
            self.taken |= inside
            switch = self.scope.switch(region[0])
            if switch is None:
                self.scope.reach(region[0])  # says why it cannot
            self._enter(region, switch or "", low.casts)
            name = getattr(group.of(region[0]).function(region[0]), "name", "")
            self._say(region[0], f"{name + '(): ' if name else ''}forward and loss under autocast(float16)")
            plans.append(StepPlan(first, backward, None, home, low.forward, region))
        return plans

    def _enter(self, region: Region, switch: str, casts: tuple[Cast, ...] = ()) -> None:
        module, torch = self.group.of(region[0]), self._torch(region[0])
        enabled = f", enabled={switch}" if switch else ""
        header = f'with {torch}.autocast("cuda", dtype={torch}.float16{enabled}):'
        self.edits += edits.indent_under(module, list(region), header)
        self.edits += [one for cast in casts for one in cast_edits(module, cast, torch)]

    def _evaluation(self, plan: StepPlan) -> None:
        for module in self.group.uses:
            read_ones = [region for region, _ in evaluation_regions(replace(self.reading, module=module), plan)]
            for seen in (*read_ones, *unread_evaluations(module, plan.forward)):
                self._evaluate(module, seen, plan)

    def _evaluate(self, module: Module, seen: Region, plan: StepPlan) -> None:
        same = self.group.of(plan.region[0]) is module
        region = evaluated(module, seen, plan.region) if same else seen
        if set(seen) <= self.taken or set(region) & self.taken or self.scope.early(seen[0]):
            return
        switch = self.scope.switch(region[0]) if region else None
        name = getattr(module.function(seen[0]), "name", "")
        if switch is None:
            told = f"{name}() runs in float32" if name else "evaluation runs in float32"
            self.result.notes += [told] if told not in self.result.notes else []
            return
        self.taken |= set(region)
        self._enter(region, switch)
        self._say(seen[0], f"{name}() evaluates under autocast" if name else "evaluation under autocast")

    def _other_evaluations(self, setup: Setup) -> None:
        """Files that evaluate the model and do not know apex: apex patched torch, so that they ran in half as well.
        Where they cast inputs to half for weights in half, they have to change, too."""
        if not any("weights" in one for one in setup.changes):
            return
        also: dict[Module, list[Region]] = {}
        for event in self.reading.events:
            if isinstance(event, events.Forward) and not event.grad and event.module not in self.group.uses:
                module = event.module
                if module in self.group and _HALF.search(module.text) and event.region is None:
                    statement = module.statement(event.node)
                    if isinstance(statement, ast.Assign | ast.Expr):
                        also.setdefault(module, []).append((statement,))
        for module, regions in also.items():
            if module not in [one for path, one in self.group.files.items() if path in self.group.named]:
                raise Refused(
                    f"{module.path} gives the model inputs in half, and its weights will be float32",
                    f"`{self.group.command([*also])}` changes all of them",
                )
            for region in dict.fromkeys(regions):
                switch = self.scope.switch(region[0])
                if switch is None:
                    self.scope.reach(region[0])
                self._enter(region, switch or "")
                self._say(region[0], "evaluation under autocast")

    def _checkpoints(self, setup: Setup, plans: list[StepPlan]) -> None:
        """Save the scaler's state where the optimizer's is, where the scaler is at hand."""
        if not plans:
            return
        home, scope = plans[0].home, self.scope
        handed = {one: self.group.of(one) for one in scope.handed if isinstance(one, ast.FunctionDef)}
        optimizers = tuple(setup.optimizers) or (home.optimizer,)
        reach = Reach(scope.name(setup.statement), home, optimizers, handed)
        try:
            made, done = checkpoint_edits(home.module, home.module.tree, reach, optimizers)
        except Refused:
            return  # AMP116 says so
        self.edits += made
        if done:
            self._say(setup.statement, f"{reach.name} {' and '.join(sorted(done, reverse=True))} the checkpoint")

    # -- inference ----------------------------------------------------------------------------------------------------

    def _inference(self) -> None:
        for region in inference_regions(self.group, self.reading):
            switch = self.scope.switch(region[0])
            if switch is None or "is_enabled" in switch:
                raise Refused("the switch for AMP is not at hand where the model runs", BY_HAND)
            self._enter(region, switch)
            self._say(region[0], "the model runs under autocast(float16)")
