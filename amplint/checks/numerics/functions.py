"""Functions that half precision drives to 0, 1 or inf before their logarithm or quotient is taken."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.numerics.common import float16, guarded, known_as, made_half
from amplint.checks.registry import Script, found, rule
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import numerics as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.values import ASSUMED, KNOWN, Const, Tensor, Value


@rule("AMP405")
def hand_written_softmax(script: Script) -> Iterator[Finding]:
    """A softmax, log-softmax, log-sigmoid or softplus in steps, one of which is 0, 1 or inf in half precision."""
    for event in script.events(events.Operation):
        if guarded(event) or not event.args or not isinstance(event.args[0], Tensor):
            continue
        told = _logarithm(script, event) if event.name in ("log", "log1p") else None
        if event.name == "div":
            told = _quotient(script, event)
        if told is None:
            continue
        message, help, trust, source, fix = told
        yield found(
            "AMP405",
            event,
            message,
            severity=known_as(trust),
            evidence=made_half(script, source),
            help=help,
            fix=fix,
        )


Told = tuple[str, str, int, Tensor, Fix | None]


def _logarithm(script: Script, event: events.Operation) -> Told | None:
    inner = event.args[0]
    assert isinstance(inner, Tensor)
    trust = float16(script, inner)
    match event.name, inner.made:
        case "log", "softmax" if trust is not None:
            message = "softmax gives 0 in float16 from 17 below the largest logit on, and the logarithm is -inf there"
            return message, "use log_softmax", trust, inner, fixes.log_of(event.module, event.node, "softmax")
        case "log", "sigmoid" if trust is not None:
            message = "sigmoid gives 0 in float16 from x = -17.3 on, and the logarithm is -inf there"
            return message, "use logsigmoid", trust, inner, fixes.log_of(event.module, event.node, "sigmoid")
        case "log", "sub" if (sigmoid := _one_minus(inner)) is not None:
            known = float16(script, sigmoid)
            if known is None and sigmoid.dtype != "bfloat16":
                return None
            limit = "6.25 on in bfloat16" if sigmoid.dtype == "bfloat16" else "8.4 on in float16"
            message = f"sigmoid gives 1 from x = {limit}, and the logarithm of 1 - 1 is -inf"
            fix = fixes.log_of(event.module, event.node, "1 - sigmoid")
            return message, "use logsigmoid(-x)", sigmoid.trust if known is None else known, sigmoid, fix
        case ("log", "add") | ("log1p", "exp"):
            exponential = inner if event.name == "log1p" else _one_plus(inner)
            known = None if exponential is None else float16(script, exponential)
            if exponential is not None and known is not None:
                message = "exp is inf in float16 from x = 11.1 on: softplus written by hand is inf from there"
                fix = fixes.log_of(event.module, event.node, "softplus")
                return message, "use torch.nn.functional.softplus", known, exponential, fix
    return None


def _one_minus(difference: Tensor) -> Tensor | None:
    match difference.parents:
        case (Const(value=1 | 1.0), Tensor(made="sigmoid") as sigmoid):
            return sigmoid
    return None


def _one_plus(total: Tensor) -> Tensor | None:
    parts = [part for part in total.parents if isinstance(part, Tensor) and part.made == "exp"]
    ones = [part for part in total.parents if isinstance(part, Const) and part.value == 1]
    return parts[0] if parts and ones else None


def _quotient(script: Script, event: events.Operation) -> Told | None:
    above = event.args[0]
    below = event.args[1] if len(event.args) > 1 else None
    if not isinstance(above, Tensor) or not isinstance(below, Tensor) or above.made != "exp" or below.made != "sum":
        return None
    trust = float16(script, above)
    argument = above.parents[0] if above.parents else None
    summed = below.parents[0] if below.parents else None
    if trust is None or not isinstance(summed, Tensor) or summed.made != "exp" or _shifted(argument, above):
        return None
    message = "exp is inf in float16 from x = 11.1 on, and inf / inf is nan: a softmax without its shift"
    return message, "use softmax", trust, above, None


def _shifted(argument: Value | None, exponential: Tensor) -> bool:
    """Whether what exp is taken of may be at most 0, as x - x.max() and -x.abs() are."""
    call = exponential.node
    if call is not None and any(isinstance(node, ast.USub | ast.Sub) for node in ast.walk(call)):
        return True
    return isinstance(argument, Tensor) and argument.made in ("sub", "neg", "log_softmax", "clamp")


_RANDOM = frozenset("rand rand_like uniform".split())
_DISTRIBUTIONS = "torch.distributions."
_NO_HALF = frozenset("Dirichlet Beta Gamma Chi2 StudentT FisherSnedecor Kumaraswamy".split())
_CHECKED = frozenset("Categorical OneHotCategorical OneHotCategoricalStraightThrough Multinomial".split())


@rule("AMP412")
def distribution_in_half(script: Script) -> Iterator[Finding]:
    """Noise or a distribution is made of half-precision numbers."""
    for event in script.events(events.Operation):
        drawn = event.args[0] if event.name == "log" and event.args else None
        if not isinstance(drawn, Tensor) or drawn.made not in _RANDOM or drawn.dtype not in tensors.HALF:
            continue
        how_often = "256" if drawn.dtype == "bfloat16" else "2048"
        yield found(
            "AMP412",
            event,
            f"a uniform number in half precision is exactly 0 about once in {how_often} draws, and the logarithm is "
            "-inf there",
            severity=known_as(drawn.trust if drawn.dtype != "low" or drawn.trust == KNOWN else ASSUMED),
            evidence=made_half(script, drawn),
            help="draw it in float32: torch.rand(x.shape, device=x.device)",
        )
    for call in script.events(events.Call):
        last = call.name.rpartition(".")[2]
        if not call.name.startswith(_DISTRIBUTIONS):
            continue
        given = [*call.args, *(value for _, value in call.kwargs)]
        named = dict(call.kwargs)
        half = next((one for one in given if isinstance(one, Tensor) and one.dtype in tensors.HALF), None)
        if half is None or half.trust != KNOWN:
            continue
        if last in _CHECKED and (call.args or named.get("probs") is half):
            message = (
                f"{last} checks that the probabilities add up to 1 within 1e-6: half-precision ones may not "
                "(ValueError), and are drawn with three digits"
            )
        elif last in _NO_HALF:
            message = f"{last} cannot be sampled in half precision: not implemented for 'Half'"
        else:
            continue
        yield found(
            "AMP412",
            call,
            message,
            severity=Severity.WARNING,
            evidence=made_half(script, half),
            help="give it float32: x.float()",
            fix=fixes.argument_in_float32(call.module, call.node, call.args.index(half) if half in call.args else None),
        )
