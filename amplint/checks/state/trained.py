"""Parameters that are trained in half precision."""

from __future__ import annotations

import re
from collections.abc import Iterator

from amplint.checks.registry import Script, found, may_both_run, rule, same_function, scaler_in, text
from amplint.checks.scaler.protocol import lineno
from amplint.findings import Finding
from amplint.rewrite.fixes import state as fixes
from amplint.source import events
from amplint.source.interpret import conditions
from amplint.source.symbols import held_in
from amplint.source.values import Instance, Model, Optimizer, Scaler, Sym, Value

# Library models and layers that hold batch normalisation: torchvision's and timm's common families by constructor name.
_BATCHNORM = re.compile(
    r"BatchNorm|(\b|_)(resnet|resnext|wide_resnet|densenet|mobilenet|efficientnet|regnet|shufflenet|googlenet|inception|"
    r"mnasnet|vgg\d+_bn|fcn_|deeplab|lraspp|fasterrcnn|maskrcnn|retinanet)",
    re.IGNORECASE,
)


def cast_of(script: Script, model: Value, before: events.Event, dtype: str = "float16") -> events.Cast | None:
    """The cast of a model, or of what it is a part of, to a dtype before an event, if it is the last one."""
    last = None
    for event in script.reading.events:
        if event is before:
            break
        if not isinstance(event, events.Cast) or not may_both_run(event, before):
            continue
        if event.model == model or model in event.parts:
            last = event if event.dtype == dtype else None
    return last


def trained_in_half(script: Script, scaled: bool) -> Iterator[tuple[events.Step, events.Cast]]:
    for step in script.events(events.Step):
        if (step.scaler is not None) is not scaled or step.before.kind == "unknown":
            continue
        if keeps_masters(step.optimizer):
            continue
        for model in step.halves:
            cast = cast_of(script, model, step)
            if cast is not None and (step.before.kind != "managed" or _behind(script, cast, step)):
                yield step, cast
        if not step.halves and step.before.kind != "managed":
            yield from ((step, cast) for cast in _made_for_half(script, step))


def _behind(script: Script, cast: events.Cast, step: events.Step) -> bool:
    """Whether a model is cast to float16 after its optimizer was made, so that this is what the optimizer trains: no
    frozen base that is cast first, and given float32 adapters. What scales the losses keeps no copies of it then."""
    made = script.created(step.optimizer)
    return made is not None and same_function(made, cast) and lineno(cast.node) > lineno(made.node)


def _made_for_half(script: Script, step: events.Step) -> Iterator[events.Cast]:
    """Casts of models whose parameters an optimizer is given in one function, where another one steps."""
    for create in script.events(events.Create):
        value = create.value
        if not isinstance(value, Optimizer) or value.holds == "copies":
            continue
        if value.node is not None and value.node is step.optimizer.node and not same_function(create, step):
            if "parameters()" not in text(create.module, value.node, 200):
                continue  # copies of them, for one
            casts = (cast_of(script, model, create) for model in value.of)
            yield from (cast for cast in casts if cast is not None and cast.frame is create.frame)


_MASTERS = re.compile(r"fused|fp16|half|master|mixed|amp(?![a-z])|zero|8bit", re.IGNORECASE)


def keeps_masters(optimizer: Optimizer) -> bool:
    """Whether an optimizer that is none of torch's may hold float32 copies of what it trains, going by its name."""
    name = optimizer.name
    if isinstance(optimizer.site, Sym) and optimizer.site.kind == "made":
        name = str(optimizer.site.parts[0])
    return not name.startswith("torch.optim.") and _MASTERS.search(name.rpartition(".")[2]) is not None


@rule("AMP301")
def half_model_trained(script: Script) -> Iterator[Finding]:
    """Parameters are float16 while an optimizer trains them."""
    for step, cast in trained_in_half(script, scaled=False):
        yield found(
            "AMP301",
            cast,
            "the trained weights are float16: an update smaller than 1/2048 of a weight is lost, and Adam's eps of "
            "1e-8 "
            "is zero",
            evidence=[(cast, "parameters become float16"), (step, "and are trained like that")],
            help="keep the weights in float32 and run the forward under torch.autocast, with a GradScaler",
            fix=fixes.drop_half(cast.module, cast.node),
        )


@rule("AMP303")
def fp16_parameters_with_scaler(script: Script) -> Iterator[Finding]:
    """A GradScaler is used on float16 parameters."""
    for step, cast in trained_in_half(script, scaled=True):
        yield found(
            "AMP303",
            cast,
            f"{scaler_in(step)} cannot unscale gradients of float16 parameters: ValueError (with a fused optimizer "
            f"no error, "
            "and float16 training)",
            evidence=[(cast, "parameters become float16"), (step, "their gradients are to be unscaled")],
            help="keep trained parameters in float32: autocast casts what it needs",
            fix=fixes.parameters_to_float(cast.module, cast.node),
        )


@rule("AMP303")
def bf16_parameters_with_scaler(script: Script) -> Iterator[Finding]:
    """A GradScaler that is on is used on bfloat16 parameters: CUDA has no kernel that unscales their gradients."""
    for step in script.events(events.Step):
        scaler = step.scaler
        if script.settings.target_device == "cpu" or not isinstance(scaler, Scaler):
            continue
        if step.before.kind in ("managed", "unknown") or keeps_masters(step.optimizer):
            continue
        if conditions.evaluate(conditions.truth(scaler.enabled), step.facts) is not True:
            continue
        for model in step.bfloats:
            cast = cast_of(script, model, step, "bfloat16")
            if cast is not None:
                yield found(
                    "AMP303",
                    cast,
                    f"{scaler_in(step)} cannot unscale gradients of bfloat16 parameters on a GPU: "
                    "\"_amp_foreach_non_finite_check_and_unscale_cuda\" not implemented for 'BFloat16'",
                    evidence=[(cast, "parameters become bfloat16"), (step, "their gradients are to be unscaled")],
                    help="leave the scaler out, or keep trained parameters in float32: autocast casts what it needs",
                )


@rule("AMP302")
def half_batchnorm(script: Script) -> Iterator[Finding]:
    """A model with batch normalisation is cast to float16 and trained."""
    seen = set()
    for scaled in (False, True):
        for step, cast in trained_in_half(script, scaled):
            if cast in seen or not _has_batchnorm(script, cast.model) or _repaired(script, cast):
                continue
            seen.add(cast)
            yield found(
                "AMP302",
                cast,
                "batch normalisation becomes float16: running variances overflow to inf above 65504, and small "
                "updates of "
                "the running averages are lost",
                evidence=[(cast, f"{text(cast.module, cast.node)} casts them, too"), (step, "the model is trained")],
                help="cast the BatchNorm modules back to float32",
                fix=fixes.batchnorm_to_float(cast.module, cast.node),
            )


def _has_batchnorm(script: Script, model: Value, depth: int = 5) -> bool:
    """Whether a model surely holds BatchNorm layers."""
    if depth == 0:
        return False
    match model:
        case Model():
            inner = [*model.args, *(value for _, value in model.kwargs)]
            if _BATCHNORM.search(model.name.rpartition(".")[2]):
                return True
        case Instance():
            inner = script.fields_of(model)
        case _:
            inner = [*held_in(model)]
    return any(_has_batchnorm(script, part, depth - 1) for part in inner)


def _repaired(script: Script, cast: events.Cast) -> bool:
    """Whether modules of the model are cast back afterwards: `for m in model.modules(): if …BatchNorm: m.float()`."""
    for other in script.events(events.Cast):
        part = other.model
        if other.dtype == "float32" and isinstance(part, Sym) and part.kind == "item" and part.parts[0] == cast.model:
            return True
    return False
