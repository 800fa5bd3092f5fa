"""Family 1, flags: whether autocast and the scaler are on in the same runs, and whether those are float16 runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.autocast.recurrent import runs_in_float16
from amplint.checks.registry import Script, found, rule, text
from amplint.checks.scaler.deciding import asks_for_float16, branches_around, is_for_float16
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import flags as fixes
from amplint.source import events
from amplint.source.interpret import conditions
from amplint.source.interpret.conditions import atoms_of
from amplint.source.interpret.tensors import device_type, dtype_of, tensors_in
from amplint.source.module import Module
from amplint.source.values import (
    FALSE,
    TRUE,
    Autocast,
    Choice,
    Const,
    Formula,
    Lib,
    Object,
    Question,
    Region,
    Scaler,
    Sym,
    Tensor,
    Value,
)
from amplint.source.walk import walk

# Where autocast switches itself off although it is told to be on: what asks for a device decides nothing here.
_DEVICE = re.compile(r"cuda|gpu|cpu|device|mps|xla|tpu|npu|available", re.IGNORECASE)
_BFLOAT16 = re.compile(r"bf16|bfloat", re.IGNORECASE)
_FLOAT16 = re.compile(r"(?<!b)fp16|(?<!b)float16|half", re.IGNORECASE)
_NOT_AMP = re.compile(r"test|debug|profil|infer|eval|distill|dummy", re.IGNORECASE)
_NAMELESS = re.compile(r"<(enabled|unknown) \d+>")
_PRECISION = re.compile(r"amp|precision|mixed|half", re.IGNORECASE)


@rule("AMP124")
def enabled_flags_differ(script: Script) -> Iterator[Finding]:
    """Autocast is on and the scaler off, or the other way round, because they ask different flags."""
    for backward in script.events(events.Backward):
        scaler, region = _pair(backward)
        if scaler is None or region is None or not _known(scaler):
            continue
        scaling, casting = conditions.truth(scaler.enabled), conditions.truth(region.autocast.enabled)
        if (
            scaling == casting
            or region.assumed
            or _spelled_alike(scaler, region)
            or _holds_it_alone(script, backward, region)
        ):
            continue
        create = _made(script, scaler)
        evidence: list[tuple[events.Event | None, str]] = [
            (create, f"the scaler is on {_when(create, scaler.enabled)}"),
            (script.entry(region), f"autocast is on {_when(script.entry(region), region.autocast.enabled)}"),
            (backward, "both decide what becomes of this"),
        ]
        alone = conditions.both(casting, conditions.negate(scaling))
        related = casting is True or _roots(scaling) == _roots(casting)
        if (
            related
            and _decided_by_flags(alone)
            and _can_be(alone, backward)
            and "float16" in (dtypes := _dtypes(region, backward, alone))
            and not (len(dtypes) > 1 and asks_for_float16(scaler))  # both ask for the dtype, in their own ways
        ):
            if scaler.enabled == FALSE:
                continue  # AMP101
            yield found(
                "AMP124",
                create or backward,
                "where autocast is on, the scaler may be off: float16 gradients are then not scaled, and small ones "
                "become zero",
                evidence=evidence,
                help="give both the same flag",
            )
            continue
        alone = conditions.both(scaling, conditions.negate(casting))
        if _decided_by_flags(casting) and _can_be(alone, backward):
            yield found(
                "AMP124",
                create or backward,
                "the scaler is on where autocast is off: a float32 run is scaled for nothing, and skips steps with "
                "inf or nan instead of showing them",
                severity=Severity.NOTE,
                evidence=evidence,
                help="give both the same flag",
                fix=_same_flag(create, region),
            )


@rule("AMP124")
def registered_where_it_is_off(script: Script) -> Iterator[Finding]:
    """A scaler becomes part of the checkpoint under one flag, and is on under another."""
    for save in _registrations_under_a_flag(script):
        yield found(
            "AMP124",
            save,
            "the scaler is part of the checkpoint under a flag that it does not ask itself: where it is off (bfloat16 "
            "needs none), its state is empty, and loading that into a scaler that is on raises RuntimeError",
            severity=Severity.NOTE,
            help="register it only where it is enabled",
        )


def _registrations_under_a_flag(script: Script) -> Iterator[events.Save]:
    """Where a scaler is registered under a flag of precision, but may be off."""
    for save in script.events(events.Save):
        if not save.registers or not any(isinstance(one, Scaler) and _may_be_off(one, save) for one in save.parts):
            continue
        tests = [text(save.module, one.test, 200) for one in branches_around(save.module, save.node)]
        asked = " ".join(tests)  # a test that names a dtype knows which runs have a scaler
        if _PRECISION.search(asked) and not re.search(r"16|enabled|scaler", asked):
            yield save


def _may_be_off(scaler: Scaler, event: events.Event) -> bool:
    """Whether the scaler is told by a flag whether it is on, and the flag may say no."""
    enabled = conditions.truth(scaler.enabled)
    off = conditions.negate(enabled)
    return _known(scaler) and not isinstance(enabled, bool) and conditions.possible(off, event.facts)


@rule("AMP123")
def scaler_with_bfloat16(script: Script) -> Iterator[Finding]:
    """A scaler that is on where the loss is computed in bfloat16."""
    seen = set()
    for backward in script.events(events.Backward):
        scaler, region = _pair(backward)
        if scaler is None or region is None or region.assumed or not _known(scaler) or is_for_float16(scaler, region):
            continue
        both = conditions.both(conditions.truth(scaler.enabled), conditions.truth(region.autocast.enabled))
        dtypes = _dtypes(region, backward, both)
        create = _made(script, scaler)
        place = create or backward
        entered = script.entry(region)
        if "bfloat16" not in dtypes or place.node in seen or runs_in_float16(script, region):
            continue
        if place.module is not backward.module or entered is None or entered.module is not backward.module:
            continue  # a framework's parts, which others put together
        seen.add(place.node)
        always = dtypes == {"bfloat16"} and not isinstance(region.autocast.dtype, Choice)
        yield found(
            "AMP123",
            place,
            "a GradScaler does nothing for bfloat16, which has float32's range: it only waits for the GPU in every step"
            if always
            else "the scaler is on in bfloat16 runs, too, which need none: it waits for the GPU in every step",
            severity=None if always else Severity.NOTE,
            evidence=[
                (entered, "the loss is computed in bfloat16" + (" or float16" if not always else "")),
                (backward, "and scaled"),
            ],
            help="leave it out" if always else "enabled=dtype == torch.float16",
            fix=_only_for_float16(create, region, always),
        )


@rule("AMP123")
def scaler_asks_for_bfloat16(script: Script) -> Iterator[Finding]:
    """A scaler that is made or enabled because the run is in bfloat16."""
    for create in script.events(events.Create):
        scaler = create.value
        if not isinstance(scaler, Scaler | Object) or (isinstance(scaler, Scaler) and scaler.enabled == FALSE):
            continue
        if isinstance(scaler, Object) and scaler.kind != "callable-scaler":
            continue
        if _for_bfloat16(create):
            yield found(
                "AMP123",
                create,
                "the scaler is made for bfloat16 runs, too, which need none: bfloat16 has float32's range",
                severity=Severity.NOTE,
                help="make it for float16 only",
            )


# -- what is on, and where ---------------------------------------------------------------------------------------------


def _pair(backward: events.Backward) -> tuple[Scaler | None, Region | None]:
    """The scaler and the region of a loss that is scaled."""
    loss = backward.loss
    if not isinstance(loss, Tensor) or not isinstance(backward.scaler, Scaler):
        return None, None
    if len({tensor.region for tensor in tensors_in(loss.parents)}) > 1:
        return None, None  # one of several, and which is not seen
    return backward.scaler, loss.region


def _holds_it_alone(script: Script, backward: events.Backward, region: Region) -> bool:
    """Whether nothing but the backward stands in a region: where the loss is computed is not known."""
    computed = (events.Forward, events.Loss, events.Operation)
    return backward.region == region and not any(
        isinstance(one, computed) and one.region == region for one in script.events(events.Event)
    )


def _known(scaler: Scaler) -> bool:
    """Whether it is seen what switches the scaler on: not where it comes from somewhere else."""
    return not (isinstance(scaler.enabled, Sym) and scaler.enabled.parts[-1:] == ("is_enabled",))


def _made(script: Script, scaler: Scaler) -> events.Create | None:
    values = (scaler, scaler.site)
    return next((create for create in script.events(events.Create) if create.value in values), None)


def _when(event: events.Event | None, enabled: Value) -> str:
    if enabled == TRUE:
        return "always"
    for node in walk(event.node) if event is not None else ():
        if isinstance(node, ast.keyword) and node.arg == "enabled":
            return f"if {text(event.module, node.value)}"  # type: ignore[union-attr]
    return "under its own flag"


def _words(thing: object) -> str:
    """What an atom asks, in the words of the source: `self.args.amp`."""
    match thing:
        case Question(parts=parts) | Sym(parts=parts):
            return " ".join(map(_words, parts))
        case Const(value=value):
            return str(value)
        case Lib(name=name):
            return name
        case str():
            return thing
        case frozenset() | tuple():
            return " ".join(map(_words, thing))
    return ""


def _spelled_alike(scaler: Scaler, region: Region) -> bool:
    """Whether both are told by the same words, or by one setting on two ways (`args.amp`, `self.args.amp`): then they
    mean one thing, though amplint does not see it."""
    one, other = (_flag(node) for node in (scaler.node, region.autocast.node))
    if one is None or other is None:
        return False
    return one == other or ("." in one and "." in other and (one.endswith(f".{other}") or other.endswith(f".{one}")))


def _flag(call: ast.AST | None) -> str | None:
    for keyword in call.keywords if isinstance(call, ast.Call) else ():
        if keyword.arg == "enabled":
            return ast.unparse(keyword.value)
    match call:
        case ast.Call(func=ast.Attribute(attr="autocast") | ast.Name(id="autocast"), args=[ast.Attribute() as first]):
            return ast.unparse(first)  # torch.cuda.amp's
    return None


def _roots(formula: Formula) -> set[object]:
    """What the flags of a formula belong to: the object whose attributes they are, the function whose arguments."""
    roots: set[object] = set()
    for atom in atoms_of(formula):
        root = atom.parts[0] if atom.parts else None
        while isinstance(root, Sym) and root.kind in ("attr", "item") and isinstance(root.parts[0], Value):
            root = root.parts[0]
        roots.add(root.parts[0] if isinstance(root, Sym) and root.kind == "argument" else root)
    return roots


def _decided_by_flags(formula: Formula) -> bool:
    """Whether only things with a name decide, and no device."""
    atoms = [repr(atom) for atom in atoms_of(formula)]
    return (
        bool(atoms)
        and not any(_DEVICE.search(one) or _NOT_AMP.search(one) for one in atoms)
        and not any(_NAMELESS.search(one) for one in atoms)
    )


def _can_be(formula: Formula, event: events.Event) -> bool:
    return conditions.possible(formula, event.facts)


def _dtypes(region: Region, event: events.Event, given: Formula) -> set[str]:
    """What the region may cast to where `given` holds; nothing where that is not seen."""
    dtype = region.autocast.dtype
    if dtype is None:
        return {"float16"} if device_type(region.autocast.device) in ("cuda", "mps", "xpu") else set()
    sides = conditions.sides(dtype, event.facts, given)
    found_dtypes = {dtype_of(side) for side in sides}
    return set() if "" in found_dtypes and len(found_dtypes) == 1 else found_dtypes - {""}


def _for_bfloat16(create: events.Create) -> bool:
    """Whether what was asked on the way to the scaler, or switches it on, holds in bfloat16 runs because it names
    them."""
    module, scaler = create.module, create.value
    tests = [(test, sign) for test, sign in _asked(module, create.node) if _BFLOAT16.search(text(module, test, 300))]
    if tests:
        answers = [_in_bfloat16(test) for test, sign in tests if sign]
        if any(not sign and _in_bfloat16(test) for test, sign in tests) or False in answers:
            return False
        if True in answers:
            return _enabled_in_bfloat16(scaler) is not False
    return _enabled_in_bfloat16(scaler) is True


def _asked(module: Module, node: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """The tests around a node in its function, each with the answer that leads to it."""
    inner = node
    for above in module.ancestors(node):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return
        if isinstance(above, ast.If) and inner is not above.test:
            yield above.test, inner in above.body
        elif isinstance(above, ast.IfExp) and inner is not above.test:
            yield above.test, inner is above.body
        inner = above


def _in_bfloat16(test: ast.expr) -> bool | None:
    """What a test says in a run that is bfloat16 and not float16; None where it names neither."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            answer = _in_bfloat16(operand)
            return None if answer is None else not answer
        case ast.BoolOp(op=operator, values=values):
            answers = [_in_bfloat16(value) for value in values]
            absorbing = isinstance(operator, ast.Or)
            if absorbing in answers:
                return absorbing
            return next((answer for answer in answers if answer is not None), None)
        case ast.Compare(left=left, ops=[ast.Eq() | ast.Is()], comparators=[right]):
            return _names(left, right)
        case ast.Compare(left=left, ops=[ast.NotEq() | ast.IsNot()], comparators=[right]):
            answer = _names(left, right)
            return None if answer is None else not answer
        case ast.Compare(ops=[ast.In()], comparators=[ast.Tuple(elts=elts) | ast.List(elts=elts) | ast.Set(elts=elts)]):
            return any(_names(one) for one in elts) if any(_names(one) is not None for one in elts) else None
        case ast.Name() | ast.Attribute():
            return _names(test)
    return None


def _names(*sides: ast.expr) -> bool | None:
    """True for what names bfloat16, False for float16, None for neither."""
    for side in sides:
        source = ast.unparse(side)
        if _BFLOAT16.search(source):
            return True if not _FLOAT16.search(source) else None
        if _FLOAT16.search(source):
            return False
    return None


def _enabled_in_bfloat16(scaler: Value) -> bool | None:
    """Whether a scaler is on in bfloat16 runs, where its flag names them; None where it does not."""
    enabled = conditions.truth(scaler.enabled) if isinstance(scaler, Scaler) else True
    named = [atom for atom in atoms_of(enabled) if _BFLOAT16.search(_words(atom))]
    if not named:
        return None
    facts: conditions.Facts = {}
    for atom in atoms_of(enabled):
        source = _words(atom)
        if _BFLOAT16.search(source) or _FLOAT16.search(source):
            facts = conditions.assume(atom, bool(_BFLOAT16.search(source)), facts) or facts
    return conditions.evaluate(enabled, facts)


# -- fixes -------------------------------------------------------------------------------------------------------------


def _same_flag(create: events.Create | None, region: Region) -> Fix | None:
    """`enabled=` of the region, for the scaler."""
    if create is None or not isinstance(region.autocast, Autocast) or region.autocast.node is None:
        return None
    return fixes.enable_as(create.module, create.node, region.autocast.node)


def _only_for_float16(create: events.Create | None, region: Region, always: bool) -> Fix | None:
    """A scaler that is off for bfloat16."""
    if create is None or not isinstance(create.value, Scaler) or create.value.enabled != TRUE:
        return None
    return fixes.only_for_float16(create.module, create.node, region.autocast.node, always)
