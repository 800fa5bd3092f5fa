"""Half gradients that are clipped, and checkpoints whose activations float16 does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator

from amplint.checks.numerics.common import LARGEST
from amplint.checks.registry import Evidence, Script, found, rule
from amplint.findings import Finding
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.values import TRUE, Const, Gradient, Model, Value


@rule("AMP413")
def half_gradient_norm(script: Script) -> Iterator[Finding]:
    """The norm of float16 gradients is taken, which is inf where they are large: clipping then makes them 0."""
    casts = {cast.model: cast for cast in script.events(events.Cast) if cast.dtype == "float16"}
    for clip in script.events(events.Clip):
        if clip.how == "norm" and clip.halves:
            yield _told(clip, casts.get(clip.halves[0]))
    for event in script.events(events.Operation):
        of = event.args[0] if event.name in ("norm", "linalg_vector_norm") and event.args else None
        if isinstance(of, Gradient) and event.result.dtype == "float16":
            model = next((model for model in of.of if model in casts), None)
            yield _told(event, casts.get(model) if model is not None else None)


def _told(event: events.Event, cast: events.Cast | None) -> Finding:
    evidence: list[Evidence] = [(cast, "the parameters became float16 here")] if cast is not None else []
    return found(
        "AMP413",
        event,
        f"the gradients are float16, and so is their norm: past {LARGEST:.0f} it is inf, and clipping by it sets every "
        "gradient to 0",
        evidence=evidence,
        help="keep the parameters in float32 and run the model under autocast",
    )


# Families whose checkpoints were trained in bfloat16: t5-small, flan-t5-xl, mt5-base, byt5, T0pp, gemma-2b …
_NAMES = re.compile(r"^(?:\w+-)*?(?:\w?\w?\w?t5|ul2|pegasus|gemma\d*|T0p*)(?:[-_.]|\d*$)")
_FOR_TESTS = re.compile(r"tiny-random|internal-testing|dummy")  # weights drawn at random, which nobody trained


@rule("AMP415")
def bf16_checkpoint_in_fp16(script: Script) -> Iterator[Finding]:
    """A checkpoint that was trained in bfloat16 is trained in float16."""
    loaded = [
        call
        for call in script.events(events.Call)
        if call.name.endswith(".from_pretrained") and _family(call.args[0] if call.args else None)
    ]
    for call in loaded:
        model = call.result
        assert isinstance(model, Model)
        use = _trained_in_float16(script, call, model)
        if use is None:
            continue
        name = _family(call.args[0])
        yield found(
            "AMP415",
            call,
            f"{name} was trained in bfloat16: its activations pass {LARGEST:.0f}, which float16 does not hold",
            evidence=[(use, "in float16 here")],
            help="use bfloat16, which needs no GradScaler, or float32",
        )


def _family(name: Value | None) -> str:
    """The name of a checkpoint of one of these families: "google/mt5-base"."""
    if not isinstance(name, Const) or not isinstance(name.value, str):
        return ""
    known = _NAMES.search(name.value.rpartition("/")[2]) and not _FOR_TESTS.search(name.value)
    return name.value if known else ""


def _trained_in_float16(script: Script, made: events.Call, model: Model) -> events.Event | None:
    """Where a model runs under float16 autocast with gradients, or is said to be trained in float16 by arguments that
    are made in the same function, or one of the two in none."""
    place = made.module.function(made.node)
    for forward in script.events(events.Forward):
        if forward.model == model and forward.grad and forward.region is not None:
            dtype = forward.region.autocast.dtype
            if not forward.region.assumed and tensors.dtype_of(dtype) == "float16":
                return forward
    for call in script.events(events.Call):
        if call.name.endswith("TrainingArguments") and dict(call.kwargs).get("fp16") == TRUE:
            other = call.module.function(call.node)
            if place is None or other is None or place is other:
                return call
    return None
