"""The two state machines of loss scaling, as torch/amp/grad_scaler.py has them.

Per optimizer's gradients: none | plain | scaled | unscaled | mixed; only backward, unscale_, step and zero_grad change
it. Per (scaler, optimizer): ready | unscaled | stepped, reset by update. Each function performs one transition in a
world and returns the state before it, for the event that tells of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from amplint.source.events import Event, Gradients, Update
from amplint.source.interpret import containers
from amplint.source.interpret.world import World
from amplint.source.symbols import held_in, is_any_of_several, options
from amplint.source.values import (
    Instance,
    Items,
    Many,
    Mapping,
    Model,
    Optimizer,
    Owners,
    Region,
    Scaler,
    Sym,
    Tensor,
    Value,
)

UNKNOWN: dict[str, Any] = {
    "gradients": Gradients("unknown"),
    "updates": "unknown",
    "stale weights": None,
    "first forwards": None,
}
_ACCUMULATES = ("plain", "scaled", "managed")
_MADE = frozenset("zeros ones empty full rand randn tensor zeros_like ones_like randn_like rand_like".split())


def register(world: World, optimizer: Optimizer, entry: bool = False) -> None:
    """Make an optimizer known; with `entry` its gradients may hold anything."""
    if world.get("gradients", optimizer) is None:
        world.set("gradients", optimizer, Gradients("entry" if entry else "none"))


def optimizers(world: World) -> list[Optimizer]:
    return list(world.space("gradients"))


def replaced(world: World, old: Value | None, new: Value, field: bool = False) -> None:
    """What held an optimizer holds another one of the same parameters (ASGD after SGD): nothing uses the old one. A
    `field` that the same call fills again holds the same one: its method was read before somebody was seen to call it,
    with arguments that were unknown then."""
    if old is None or not any(isinstance(one, Optimizer) for one in options(new)):
        return
    kept = options(new)
    for optimizer in options(old):
        if isinstance(optimizer, Optimizer) and optimizer not in kept:
            for another in kept:
                if not isinstance(another, Optimizer):
                    continue
                again = field and optimizer.node is not None and optimizer.node is another.node
                if again or _share(world, optimizer, another):
                    world.drop("gradients", optimizer)


def _share(world: World, one: Optimizer, other: Optimizer) -> bool:
    return any(related(world, mine, yours) for mine in one.of for yours in other.of)


def begin(world: World) -> None:
    """Code that nothing calls begins: whatever ran before it may have left gradients behind, or none. Unknown things
    that are used as optimizers are met again where this code uses them."""
    for optimizer in optimizers(world):
        if isinstance(optimizer.site, Sym):
            world.drop("gradients", optimizer)
        else:
            world.set("gradients", optimizer, Gradients("entry"))
    for key in list(world.space("updates")):
        world.drop("updates", key)


def gradients(world: World, optimizer: Optimizer) -> Gradients:
    state: Gradients | None = world.get("gradients", optimizer)
    return state if state is not None else Gradients("entry")


def owners(world: World, of: Owners) -> tuple[list[Optimizer], list[Optimizer]]:
    """The optimizers that surely, and those that perhaps, hold parameters of the models `of`.

    One optimizer in a world owns all parameters. With several, one whose parameters are unknown perhaps owns any.
    """
    known = optimizers(world)
    if len(known) == 1:
        copied = bool(of) and all(_copied(world, model, known[0]) for model in of)
        return ([], [] if known[0].of else known) if copied else (known, [])
    if named := [one for one in known if one in of]:  # optimizer.param_groups
        return named, []
    sure = [one for one in known if any(related(world, model, owned) for model in of for owned in one.of)]
    perhaps = [one for one in known if one not in sure and (not of or not one.of)]
    return sure, perhaps


def _copied(world: World, model: Value, optimizer: Optimizer) -> bool:
    """Whether a model is a copy (`deepcopy(model)`), and nothing says that the optimizer was given that copy."""
    copied = isinstance(model, Sym) and model.kind == "copy"
    return copied and not any(related(world, model, owned) for owned in optimizer.of)


def held_instead(parameters: Value | None) -> str:
    """What an optimizer is handed that are no weights of a model, as Optimizer.holds has it."""
    if parameters is None:
        return ""
    return "copies" if containers.holds_copies(parameters) else "tensors" if _only_tensors(parameters) else ""


def _only_tensors(parameters: Value) -> bool:
    """Whether these are tensors that are made here, of no model: a latent, a mask."""
    match parameters:
        case Tensor():
            return not parameters.of and parameters.made in _MADE
        case Items():
            return bool(parameters.items) and all(map(_only_tensors, parameters.items))
    return False


def related(world: World, one: Value, other: Value) -> bool:
    """Whether two models are the same or one is part of the other."""
    return one == other or any(
        mine == yours or _part(world, mine, yours) or _part(world, yours, mine)
        for mine in options(one)
        for yours in options(other)
    )


def holds_more(world: World, optimizer: Optimizer, parts: Owners) -> bool:
    """Whether an optimizer waits to step with gradients of more than these parts of a model."""
    waits = gradients(world, optimizer).kind in (*_ACCUMULATES, "unscaled") and not gradients(world, optimizer).stepped
    own = any(one == mine or _part(world, mine, one) for one in parts for mine in optimizer.of)
    return waits and not own


def _part(world: World, part: Value, whole: Value, depth: int = 4) -> bool:
    above = part.parts[0] if isinstance(part, Sym) and part.kind in ("attr", "item") else None
    if isinstance(above, Value) and (above == whole or _part(world, above, whole, depth)):
        return True
    if depth == 0:
        return False
    return any(
        inner == part or _part(world, part, inner, depth - 1) for inner in _children(world, whole) if inner is not whole
    )


def _children(world: World, whole: Value) -> list[Value]:
    match whole:
        case Instance():
            inner = [value for value in world.space(whole).values() if isinstance(value, Value)]
        case Model():
            inner = [*whole.args, *(value for _, value in whole.kwargs)]
        case Sym():
            inner = made_with(world, whole)
        case _:
            inner = [*held_in(whole)]
    return [value for value in inner if isinstance(value, Instance | Model | Items | Many | Mapping | Sym)]


def made_with(world: World, made: Sym) -> list[Value]:
    """The model that an object of a library was made with, which has a part in what that computes, if it is the only
    one of its arguments that an optimizer trains: `criterion = WorldLoss(model, config)`."""
    owned = {one for optimizer in optimizers(world) for one in optimizer.of}
    trained = [one for one in world.get("made with", made) or () if one in owned]
    return trained if len(trained) == 1 else []


def backward(
    world: World, event: Event, of: Owners, scaler: Value | None, managed: bool, region: Region | None
) -> tuple[tuple[Optimizer, Gradients], ...]:
    """A backward pass adds to the gradients of every optimizer that owns parameters of the loss's models."""
    sure, perhaps = owners(world, of)
    kind = "scaled" if scaler is not None else "managed" if managed else "plain"
    touched = []
    for optimizer in sure:
        before = gradients(world, optimizer)
        touched.append((optimizer, before))
        world.set("gradients", optimizer, _accumulate(before, kind, scaler, region, event))
    for optimizer in perhaps:
        before = gradients(world, optimizer)
        begins = before.stepped or before.kind in ("none", "entry")
        same = scaler if kind == "scaled" and (begins or before.scaler == scaler) else None
        origins = (event,) if begins else (*before.origins, event)
        world.set("gradients", optimizer, Gradients("unknown", same, origins=origins))
    return tuple(touched)


def _accumulate(before: Gradients, kind: str, scaler: Value | None, region: Region | None, event: Event) -> Gradients:
    new = Gradients(kind, scaler, region, origins=(event,))
    if before.stepped or before.kind in ("none", "entry"):
        return new
    if before.kind in ("unknown", "managed") or kind == "managed":
        return replace(before, origins=(*before.origins, event))
    if before.kind == kind and before.scaler == scaler and not before.stale:
        return replace(new, region=before.region or region, origins=(*before.origins, event))
    return replace(new, kind="mixed", origins=(*before.origins, event), by=before.by)


def unscale(world: World, event: Event, scaler: Scaler, optimizer: Optimizer) -> tuple[Gradients, str]:
    _forget_for_an_element(world, scaler, optimizer)
    before = gradients(world, optimizer)
    state = pair(world, scaler, optimizer)
    after = before if before.kind == "none" else replace(before, kind="unscaled", scaler=scaler, by=(event,))
    if before.kind == "unknown":
        after = UNKNOWN["gradients"]
    world.set("gradients", optimizer, after)
    world.set("updates", (scaler, optimizer), "unscaled")
    return before, state


def _forget_for_an_element(world: World, scaler: Value, optimizer: Optimizer) -> None:
    """An element of a collection that is not known may be any optimizer there is: what becomes of its gradients may
    become of theirs (`for opt in self.optimizers.values(): scaler.unscale_(opt)`)."""
    if not is_any_of_several(optimizer):
        return
    for other in optimizers(world):
        state = gradients(world, other)
        if other != optimizer and state.scaler == scaler and state.kind in ("scaled", "mixed") and not state.stepped:
            world.set("gradients", other, UNKNOWN["gradients"])


def pair(world: World, scaler: Value, optimizer: Optimizer) -> str:
    return world.get("updates", (scaler, optimizer)) or "ready"


def step(world: World, scaler: Scaler | None, optimizer: Optimizer) -> tuple[Gradients, str]:
    before = gradients(world, optimizer)
    state = ""
    if scaler is not None:
        _forget_for_an_element(world, scaler, optimizer)
        state = pair(world, scaler, optimizer)
        world.set("updates", (scaler, optimizer), "stepped")
    after = replace(before, stepped=True)
    if scaler is not None and before.kind == "scaled":
        after = replace(after, kind="unscaled")
    world.set("gradients", optimizer, after)
    return before, state


def update(world: World, event: Update) -> None:
    """The scale may change: pairs are ready again; scaled gradients that no step has used carry the old scale."""
    scaler = event.scaler
    event.pairs = tuple((key[1], state) for key, state in world.space("updates").items() if key[0] == scaler)
    for optimizer, _ in event.pairs:
        world.drop("updates", (scaler, optimizer))
    waiting = []
    for optimizer, state in list(world.space("gradients").items()):
        if state.scaler == scaler and state.kind == "scaled" and not state.stepped:
            waiting.append((optimizer, state))
            world.set("gradients", optimizer, replace(state, stale=True, by=(event,)))
        elif state.scaler == scaler and state.kind == "unknown" and not state.stepped:
            world.set("gradients", optimizer, replace(state, stale=True, by=(event,)))
    event.waiting = tuple(waiting)


def zero(world: World, event: Event, zeroed: list[Optimizer]) -> tuple[tuple[Optimizer, Gradients], ...]:
    touched = []
    for optimizer in zeroed:
        before = gradients(world, optimizer)
        touched.append((optimizer, before))
        lost = before.kind in (*_ACCUMULATES, "unscaled", "mixed") and not before.stepped
        after = Gradients(lost=lost, origins=before.origins if lost else (), by=(event,) if lost else ())
        world.set("gradients", optimizer, after)
    return tuple(touched)


def give_up(world: World, of: Owners = frozenset()) -> None:
    """Something happened to the gradients of these models' optimizers (of all) that amplint does not follow."""
    sure, perhaps = owners(world, of)
    for optimizer in (*sure, *perhaps) if of else optimizers(world):
        world.set("gradients", optimizer, UNKNOWN["gradients"])
    for key in list(world.space("updates")) if not of else ():
        world.set("updates", key, "unknown")


def hand_over(world: World, value: Value) -> None:
    """Something unknown was given a scaler or an optimizer: what it did with it is not known."""
    if isinstance(value, Optimizer) and gradients(world, value).kind not in ("none", "entry"):
        world.set("gradients", value, UNKNOWN["gradients"])
        for key in list(world.space("updates")):
            if key[1] == value:
                world.set("updates", key, "unknown")
    elif isinstance(value, Scaler):
        for optimizer in optimizers(world):
            world.set("updates", (value, optimizer), "unknown")
            if gradients(world, optimizer).scaler == value:
                world.set("gradients", optimizer, UNKNOWN["gradients"])
