"""Effects of library calls: what rules/apis says that they do (`does = …`), an effect a function."""

from __future__ import annotations

import ast
from collections.abc import Callable

from amplint.source import events
from amplint.source.interpret import calls, containers, protocol, tensors, training
from amplint.source.interpret.frames import NEVER, Arguments, Frame, Results
from amplint.source.interpret.library import Api
from amplint.source.interpret.machine import Machine
from amplint.source.interpret.world import World
from amplint.source.symbols import fresh
from amplint.source.values import NONE, Bound, Const, Function, Imported, Optimizer, Parameters, Partial, Scaler, Value

Bindings = dict[str, Value]


def _clip(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    if any(isinstance(value, Scaler) for value in given.values()):  # who is given it may unscale first
        return _unscale(m, api, bound, given, node, world, frame)
    if any(tensors.is_scale(value) for value in given.values()):  # a limit that is scaled, too
        return [(fresh("norm"), world)]
    how = api.argument("how", bound)
    of = containers.owners_in(api.argument("parameters", bound))
    if api.fixed.get("unscales"):
        for optimizer in protocol.optimizers(world):
            if protocol.gradients(world, optimizer).kind != "managed":
                world.set("gradients", optimizer, protocol.UNKNOWN["gradients"])
        if not protocol.owners(world, of)[0]:
            return [(fresh("norm"), world)]
    clipped = api.argument("parameters", bound)
    kind = str(how.value) if isinstance(how, Const) else "norm"
    training.clip(m, of, kind, node, world, frame, own=isinstance(clipped, Parameters))
    return [(fresh("norm"), world)]


def _zero(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    training.zero_gradients(m, containers.owners_in(api.argument("parameters", bound)), node, world, frame)
    return [(NONE, world)]


def _backward(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    loss = api.argument("loss", bound) or fresh("loss")
    training.backward(m, loss, node, world, frame, managed=api.roles.get("scaler") == "self")
    return [(NONE, world)]


def _unscale(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    for value in given.values():
        protocol.hand_over(world, value)
    return [(NONE, world)]


def _step(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    optimizer = api.argument("optimizer", bound)
    if isinstance(optimizer, Optimizer):
        training.step(m, optimizer, None, node, world, frame)
    return [(fresh("call"), world)]


def _cast(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    model = api.argument("model", bound)
    dtype = tensors.dtype_of(api.argument("dtype", bound))
    if model is not None and dtype:
        training.cast_model(m, model, dtype, node, world, frame)
        return [(model, world)]
    return None


def _save(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    value = api.argument("object", bound)
    parts, complete, mapping = containers.saved_parts(value) if value is not None else ((), False, None)
    scaler = api.argument("scaler", bound)
    optimizer = api.argument("optimizer", bound)
    parts += tuple(part for part in (scaler, optimizer) if part is not None and part != NONE)
    registers = api.does == "register"
    m.observe(events.Save, node, world, frame, parts=parts, complete=complete, registers=registers, mapping=mapping)
    return None


def _load_state(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    target = api.argument("model", bound) or api.argument("object", bound)
    if target is not None:
        m.observe(events.Load, node, world, frame, target=target, source=fresh("state"))
    return None


def _launch(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    """A launcher calls a function for you: in another process or thread, from a command line."""
    target = api.argument("target", bound)
    if target is None:
        return None
    args = api.argument("args", bound)
    passed = containers.elements(args) if args is not None else []
    leading = tuple(fresh("rank") for _ in range(api.fixed.get("leading", 0)))
    inner = Arguments((*leading, *(passed or ())), {}, passed is None or args is None)
    if isinstance(target, Function | Bound | Partial | Imported):
        outside, world.contexts = world.contexts, ()
        results = calls.call(m, target, inner, node, world, frame)
        for _, after in results:
            after.contexts = outside
        return [(fresh("launched"), after) for _, after in results]
    return None


def _exit(
    m: Machine, api: Api, bound: Bindings, given: Arguments, node: ast.AST, world: World, frame: Frame
) -> Results | None:
    return [(Const(NEVER), world)]


_Effect = Callable[[Machine, Api, Bindings, Arguments, ast.AST, World, Frame], Results | None]
EFFECTS: dict[str, _Effect] = {
    "clip": _clip,
    "save": _save,
    "register": _save,
    "load": _load_state,
    "backward": _backward,
    "launch": _launch,
    "exit": _exit,
    "step": _step,
    "unscale": _unscale,
    "zero-grad": _zero,
    "cast": _cast,
}
