"""Optimizers whose state or updates half precision cannot hold (AMP304, AMP305, AMP307)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.checks.state.casts import half_cast
from amplint.checks.state.trained import cast_of, keeps_masters, trained_in_half
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.values import Optimizer
from amplint.source.walk import walk

_VANISHES = 2.0**-25
_EPS = {**dict.fromkeys("Adam AdamW NAdam RAdam RMSprop Adamax".split(), 1e-8), "Adagrad": 1e-10}  # torch's defaults
_LARGE_STEP = 1e-2  # a learning rate from which on updates are seen


@rule("AMP304")
def adam_eps_with_half_parameters(script: Script) -> Iterator[Finding]:
    """Adam and its kin divide by the root of a second moment plus an eps that is zero in float16."""
    for step, cast in trained_in_half(script, scaled=False):
        optimizer = step.optimizer
        name = optimizer.name.rpartition(".")[2]
        if not optimizer.name.startswith("torch.optim.") or name not in _EPS:
            continue
        call = optimizer.node
        if not isinstance(call, ast.Call) or any(keyword.arg in (None, "fused") for keyword in call.keywords):
            continue
        eps, place = _number(call, "eps", _EPS[name])
        made = script.created(optimizer)
        if eps is None or eps > _VANISHES or made is None:
            continue
        yield found(
            "AMP304",
            made,
            f"eps={eps:g} is 0 in float16, and so is the second moment of a small gradient: {name} divides by zero, "
            "and weights become inf or nan",
            node=place,
            evidence=[(cast, "parameters become float16"), (made, "their optimizer adds eps in that dtype")],
            help="train float32 parameters; with float16 ones, eps must be 1e-4 or so",
        )


def _number(call: ast.Call, name: str, default: float) -> tuple[float | None, ast.AST | None]:
    """A keyword's number and where it stands; None for what is no literal."""
    for keyword in call.keywords:
        if keyword.arg == name:
            value = keyword.value
            known = isinstance(value, ast.Constant) and isinstance(value.value, int | float)
            return (float(value.value) if known else None), value  # type: ignore[attr-defined]
    return default, None


@rule("AMP305")
def bf16_parameters_without_master_weights(script: Script) -> Iterator[Finding]:
    """Parameters are bfloat16 while an optimizer of torch trains them."""
    for step in script.events(events.Step):
        optimizer = step.optimizer
        if not optimizer.name.startswith("torch.optim.") or keeps_masters(optimizer):
            continue
        if step.before.kind in ("managed", "unknown"):
            continue
        call = optimizer.node
        rate = _number(call, "lr", 1e-3)[0] if isinstance(call, ast.Call) else None
        if rate is not None and rate >= _LARGE_STEP and optimizer.name.endswith("SGD"):
            continue
        for model in step.bfloats:
            cast = cast_of(script, model, step, "bfloat16")
            if cast is None:
                continue
            yield found(
                "AMP305",
                cast,
                "the trained weights are bfloat16: an update smaller than 1/512 of a weight is lost, and the second "
                "moment of Adam cannot decay",
                evidence=[(cast, "parameters become bfloat16"), (step, "and are trained like that")],
                help="keep float32 weights and run the forward under torch.autocast(…, dtype=torch.bfloat16)",
            )


@rule("AMP305")
def adapters_in_bfloat16(script: Script) -> Iterator[Finding]:
    """The adapters that are trained are cast to half, layer by layer."""
    module = script.module
    if "deepspeed" in module.text.lower():
        return  # its optimizer keeps float32 masters of what it trains
    for branch in module.all_nodes:
        match branch:
            case ast.If(test=ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=name), kind])):
                pass
            case _:
                continue
        if not text(module, kind).rpartition(".")[2].startswith(("BaseTunerLayer", "LoraLayer")):
            continue
        for statement in branch.body:
            for call in walk(statement):
                match call:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id=same))) if same == name:
                        dtype = half_cast(module, call)
                        if dtype:
                            yield found_at(
                                "AMP305",
                                module,
                                call,
                                f"the adapters, which are what is trained, become {dtype}: there is no float32 copy of "
                                "them, and small updates are lost",
                                help="leave the adapters in float32 (PEFT's default); autocast casts what it needs",
                            )


@rule("AMP307")
def state_in_the_dtype_of_the_parameters(script: Script) -> Iterator[Finding]:
    """The state of an optimizer is loaded for half parameters, or its model is cast between two steps."""
    for load in script.events(events.Load):
        if not isinstance(load.target, Optimizer) or keeps_masters(load.target):
            continue
        for model in load.target.of:
            cast = cast_of(script, model, load)
            if cast is not None and not _was_half(script, load.target, cast):
                yield found(
                    "AMP307",
                    load,
                    "the state is cast to the parameters' dtype, float16: a second moment below 6e-8 becomes 0",
                    evidence=[(cast, "parameters become float16")],
                    help="train float32 parameters, or load the state before they are cast",
                )
    stepped: dict[Optimizer, events.Step] = {}
    casts: dict[Optimizer, events.Cast] = {}
    for event in script.reading.events:
        if isinstance(event, events.Cast):
            for optimizer in stepped:
                if event.model in optimizer.of:
                    casts[optimizer] = event
        elif isinstance(event, events.Create) and isinstance(event.value, Optimizer):  # anew, for another model
            stepped.pop(event.value, None)
            casts.pop(event.value, None)
        elif isinstance(event, events.Step):
            optimizer = event.optimizer
            cast = casts.pop(optimizer, None)
            if cast is not None and cast.model in (*event.halves, *event.bfloats) and not keeps_masters(optimizer):
                yield found(
                    "AMP307",
                    cast,
                    f"the model becomes {cast.dtype} when the optimizer has its moments in float32: the next step "
                    "raises RuntimeError: expected dtype float for `end`",
                    severity=Severity.WARNING,
                    evidence=[(stepped[optimizer], "the moments are made"), (cast, "the weights change their dtype")],
                    help="cast a copy of the model: copy.deepcopy(model).half()",
                )
            stepped[optimizer] = event


def _was_half(script: Script, optimizer: Optimizer, cast: events.Cast) -> bool:
    """Whether a state that this script itself saves never was in float32: the parameters were cast before the optimizer
    was made."""
    made = script.created(optimizer)
    every = script.reading.events
    return (
        made is not None
        and every.index(cast) < every.index(made)
        and any(optimizer in save.parts for save in script.events(events.Save))
    )
