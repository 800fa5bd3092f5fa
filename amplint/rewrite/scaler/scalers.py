"""How many scalers a script gets, what they are called, and where each is updated.

One scaler serves all optimizers where a single point follows their steps: `update()` goes there, once. Otherwise each
optimizer gets its own, updated right after its step: a scaler must not step an optimizer twice between two updates, nor
change its scale while gradients that carry it wait for a step. Where optimizers share a backward but do not always step
together, one scaler is updated behind each group of steps.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace

from amplint.rewrite.fixes import asks_for, conditions_above, steps_either_way, suite_of
from amplint.rewrite.fixes.scaler import free_name
from amplint.rewrite.plan import StepPlan
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.scaler.definitions import classes_of
from amplint.rewrite.scaler.gradients import decided
from amplint.rewrite.scaler.home import Home
from amplint.source.module import Module
from amplint.source.tree import last_name, place_of


@dataclass(frozen=True)
class ScalerPlan:
    """One scaler: its name, the optimizer behind which it is made, the steps that it makes, the statements behind
    which it is updated."""

    name: str
    home: Home
    steps: tuple[StepPlan, ...]
    updates: tuple[ast.stmt, ...]
    homes: tuple[
        tuple[Home, tuple[str, ...]], ...
    ]  # of all that run the steps, and what the optimizers are called there

    @property
    def optimizers(self) -> tuple[str, ...]:
        return self.homes[0][1]

    @property
    def here(self) -> str:
        """The name in the function that steps."""
        return self.name.removeprefix("self.") if self.home.path else self.home.outside(self.name)


def scalers_for(module: Module, plans: Sequence[StepPlan], files: Sequence[Module] = ()) -> list[ScalerPlan]:
    """Raises Refused where neither one scaler for all nor one for each optimizer is right. `files` are those in which
    the names of the scalers must be free."""
    objects = list(dict.fromkeys(plan.home.through for plan in plans))
    if len(objects) > 1:  # each object has a scaler of its own, as it has its optimizer
        if _shares_backwards(plans):
            raise Refused("optimizers of several objects share a backward", BY_HAND)
        each = [[plan for plan in plans if plan.home.through == one] for one in objects]
        return [scaler for mine in each for scaler in scalers_for(module, mine, files)]
    if len(groups := _apart(plans)) > 1:
        return [scaler for mine in groups for scaler in scalers_for(module, mine, files)]
    if _shares_backwards(plans):
        _check_apart(plans)
    owners = [_owner(module, plan) for plan in plans]
    rounds = _side_by_side(module, [_round(module, plan) for plan in plans], owners)
    homes = list(dict.fromkeys((plan.home.statement, plan.home.optimizer) for plan in plans))
    together = (
        len({plan.step.frame.code for plan in plans}) == 1
        and len({tuple(conditions_above(module, one)) for one in rounds}) == 1
        and len({(plan.home.statement, owner) for plan, owner in zip(plans, owners, strict=True)}) == len(plans)
    )
    alone = len({(plan.home.statement, owner) for plan, owner in zip(plans, owners, strict=True)}) == 1
    if together or len(homes) == 1 or _shares_backwards(plans):
        if together:
            updates: tuple[ast.stmt, ...] = (max(rounds, key=place_of),)
        else:
            updates = _either_way(module, rounds, owners) if alone else _after_groups(module, plans, rounds, owners)
        name = _named(plans[0].home, _free_name((module, *files)))
        made_at = _homes(plans)
        return [ScalerPlan(name, made_at[0][0], tuple(plans), updates, made_at)]
    trees = dict.fromkeys(one.tree for one in (module, *files))
    taken = {last_name(node) for tree in trees for node in ast.walk(tree)}
    made: list[ScalerPlan] = []
    for statement, optimizer in homes:
        mine = [plan for plan in plans if (plan.home.statement, plan.home.optimizer) == (statement, optimizer)]
        name = _name_for(optimizer.rpartition(".")[2])
        if name in taken or name in [one.name.removeprefix("self.") for one in made]:
            raise Refused(f"its scaler would be called {name}, which is taken", "rename that first")
        updates = tuple(rounds[plans.index(plan)] for plan in mine)
        if len({owners[plans.index(plan)] for plan in mine}) > 1:
            raise Refused("the optimizers of one list step in different places", BY_HAND)
        made_at = _homes(mine)
        made.append(ScalerPlan(_named(mine[0].home, name), made_at[0][0], tuple(mine), updates, made_at))
    return made


def _apart(plans: Sequence[StepPlan]) -> list[list[StepPlan]]:
    """The steps in groups: those of one group have their optimizers in variables of functions, or fields of classes,
    that no other group goes through."""
    groups: list[tuple[set[ast.AST], list[StepPlan]]] = []
    for plan in plans:
        codes = {home.code for home in plan.homes} | {frame.code for home in plan.homes for frame in home.path}
        if not all(isinstance(one, ast.FunctionDef) for one in codes) or any(home.of_object for home in plan.homes):
            return [list(plans)]
        for home in plan.homes if plan.homes[0].in_class else ():
            inherited = (one for owner, cls in home.classes for _, one in classes_of(owner, cls))
            codes |= set(inherited)
        near = [one for one in groups if not one[0].isdisjoint(codes)]
        groups = [one for one in groups if one not in near]
        mine = [*(other for _, others in near for other in others), plan]
        groups.append((codes.union(*(one for one, _ in near)), mine))
    return [sorted(mine, key=plans.index) for _, mine in groups]


def _free_name(modules: Sequence[Module]) -> str:
    return "grad_scaler" if any(free_name(module) != "scaler" for module in modules) else "scaler"


def _named(home: Home, name: str) -> str:
    return f"self.{name}" if home.in_class else name


def _name_for(optimizer: str) -> str:
    """The scaler's name in the style of the optimizer's: `optimizer_D` → `scaler_D`, `d_optim` → `d_scaler`."""
    for word in ("optimizer", "Optimizer", "optimiser", "Optimiser", "optim", "opt"):
        if word in optimizer:
            new = "Scaler" if word[0] == "O" else "scaler"
            return optimizer.replace(word + "s", new, 1) if word + "s" in optimizer else optimizer.replace(word, new, 1)
    return f"scaler_{optimizer}"


def _owner(module: Module, plan: StepPlan) -> str:
    node = plan.step.node
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return module.source(node.func.value)


def _round(module: Module, plan: StepPlan) -> ast.stmt:
    """The statement that has made all steps of a round when it is over: the step, or the innermost loop around it
    where that goes over optimizers."""
    step = plan.step.node
    loop = module.loop(step)
    if loop is not None and loop is plan.home.loop:
        return loop
    unscaled = plan.unscale_at(module)
    return module.statement(step) if unscaled is None else decided(module, step, unscaled, _owner(module, plan))


def _side_by_side(module: Module, rounds: Sequence[ast.stmt], owners: Sequence[str]) -> list[ast.stmt]:
    """The rounds; a step that is taken where its optimizer exists is over behind that condition, if another stands
    beside it."""
    levels = [conditions_above(module, one) for one in rounds]
    over: list[ast.stmt] = []
    for one, above, owner in zip(rounds, levels, owners, strict=True):
        asked = above[0][0] if above and asks_for(above[0], owner) and above[1:] in levels else None
        over.append(asked if isinstance(asked, ast.If) else one)
    return over


def _either_way(module: Module, rounds: Sequence[ast.stmt], owners: Sequence[str]) -> tuple[ast.stmt, ...]:
    """The rounds of one optimizer; the branch, where each of its arms takes one."""
    over: dict[ast.stmt, None] = {}
    for one, owner in zip(rounds, owners, strict=True):
        place = one
        while (above := conditions_above(module, place)) and steps_either_way(above[0], owner):
            assert isinstance(above[0][0], ast.stmt)
            place = above[0][0]
        over[place] = None
    return tuple(over)


def _homes(plans: Sequence[StepPlan]) -> tuple[tuple[Home, tuple[str, ...]], ...]:
    """Where a scaler is made: once in every script, or function, that makes the optimizers of the steps."""
    made: list[tuple[Home, tuple[str, ...]]] = []
    for code in dict.fromkeys(home.code for plan in plans for home in plan.homes):
        here = [home for plan in plans for home in plan.homes if home.code is code]
        if not all(any(home.code is code for home in plan.homes) for plan in plans):
            raise Refused("the step is reached with several optimizers", BY_HAND)
        made.append((_shared_home(plans, here), tuple(dict.fromkeys(home.optimizer for home in here))))
    return tuple(made)


def _shared_home(plans: Sequence[StepPlan], homes: Sequence[Home]) -> Home:
    """Behind the last optimizer that is made, and the branches that make some; on the way to each step. Of those that
    one step uses one after the other, behind the first."""
    first = homes[0]
    used = [next(home for home in homes if home in plan.homes) for plan in plans]
    if any(home.in_class != first.in_class for home in used):
        raise Refused("the optimizers are made in different functions", BY_HAND)
    block, places = _common_block(first.module, [home.statement for home in used])
    if not block:
        raise Refused("the optimizers are made under different conditions", BY_HAND)
    return replace(first, statement=max(places, key=block.index))


def _common_block(module: Module, statements: Sequence[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """The innermost block of a function that holds some statements, or branches around them, and which of its own
    statements these are."""
    code = module.function(statements[0])
    place: ast.AST | None = statements[0]
    while isinstance(place, ast.stmt) and place is not code:
        block = suite_of(module, place)
        found = [_in_block(module, block, one) for one in statements]
        held = [one for one in found if one is not None]
        if len(held) == len(found):
            return block, held
        place = module.parents[place]
    return [], []


def _in_block(module: Module, block: list[ast.stmt], statement: ast.stmt) -> ast.stmt | None:
    """The statement of a block that is, or holds, another; where it holds that, it is a branch that goes on."""
    if statement in block:
        return statement
    held = next((one for one in module.ancestors(statement) if one in block), None)
    if not isinstance(held, ast.If) or any(isinstance(one, ast.Return | ast.FunctionDef) for one in ast.walk(held)):
        return None
    return held


def _shares_backwards(plans: Sequence[StepPlan]) -> bool:
    """Whether two steps use the gradients of one backward: with a scaler for each, it could not be scaled for both."""
    nodes = [node for plan in plans for node in {backward.node for backward in plan.backwards}]
    return len(nodes) > len(set(nodes))


def _check_apart(plans: Sequence[StepPlan]) -> None:
    """Raise Refused where two optimizers may hold the same parameters: each would unscale their gradients. One that is
    handed a model, not parameters (a preconditioner: KFAC), takes all of them."""
    for plan in plans:
        call, own = plan.create.node if plan.create is not None else None, plan.step.optimizer
        others = {one.step.optimizer for one in plans if one.step.optimizer != own}
        shared = any(not own.of or not one.of or own.of & one.of for one in others)
        if shared and isinstance(call, ast.Call) and call.args and not _hands_parameters(call):
            name = own.name.rpartition(".")[2]
            raise Refused(
                f"{name}() is handed a model whose gradients another optimizer steps, too: both would unscale them",
                "unscale_ them once, before it, and call its step() yourself",
            )


def _hands_parameters(call: ast.Call) -> bool:
    given = [*call.args, *(one.value for one in call.keywords)]
    return any("param" in ast.unparse(one) or isinstance(one, ast.List | ast.ListComp | ast.Starred) for one in given)


def _after_groups(
    module: Module, plans: Sequence[StepPlan], rounds: Sequence[ast.stmt], owners: Sequence[str]
) -> tuple[ast.stmt, ...]:
    """The last step of each group that is taken between two backwards, in every function that steps. Raises Refused
    where gradients would wait for their step while the scale changes."""
    ends: list[ast.stmt] = []
    codes = list(dict.fromkeys(plan.step.frame.code for plan in plans))
    for code in codes if len(codes) > 1 else ():
        here = [index for index, plan in enumerate(plans) if plan.step.frame.code is code]
        ends += _after_groups(
            module, [plans[one] for one in here], [rounds[one] for one in here], [owners[one] for one in here]
        )
    if ends:
        return tuple(ends)
    backwards = {place_of(one.node) for plan in plans for one in plan.backwards}
    groups: list[list[int]] = []
    for index in sorted(range(len(plans)), key=lambda one: place_of(rounds[one])):
        last = groups[-1][-1] if groups else None
        if last is None or any(place_of(rounds[last]) < one < place_of(rounds[index]) for one in backwards):
            groups.append([])
        groups[-1].append(index)
    before = (0, 0)
    for group in groups:
        above = [conditions_above(module, rounds[index]) for index in group]
        waiting = [one.node for index in group for one in plans[index].backwards]
        if (
            any(one != above[0] for one in above)
            or any(conditions_above(module, node) != above[0] or place_of(node) < before for node in waiting)
            or len({owners[index] for index in group}) < len(group)
        ):
            raise Refused(_APART, BY_HAND)
        before = place_of(rounds[group[-1]])
    return tuple(rounds[group[-1]] for group in groups)


_APART = "a backward is shared by steps that are not taken together"
