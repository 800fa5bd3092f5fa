"""Operations without a half-precision kernel (AMP502, AMP503, AMP504, AMP506, AMP507)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint import knowledge
from amplint.checks.autocast.leaving import may_leave
from amplint.checks.crashes.common import (
    enabled,
    evidence,
    half,
    operand_node,
    policy,
    severity,
)  # fmt: skip
from amplint.checks.numerics.common import guarded, named
from amplint.checks.registry import Script, found, rule, text
from amplint.findings import Finding, Fix, Severity
from amplint.rewrite.fixes import crashes as fixes
from amplint.rewrite.fixes.autocast import float32_island
from amplint.source import events
from amplint.source.interpret.tensors import HALF
from amplint.source.values import GIVEN, KNOWN, Const, Tensor

_THROUGH_PRODUCTS = frozenset(
    "pca_lowrank svd_lowrank linalg_pinv pinverse".split()
)  # they multiply inside: cast again
_FFT = ("fft_", "stft", "istft")
_SPARSE = frozenset("sparse_mm sparse_addmm".split())
_OTHER = frozenset(
    "quantile nanquantile ctc_loss pdist cdist polar histogram histc angle complex view_as_complex".split()
)


def _no_kernel(script: Script) -> Iterator[tuple[events.Operation, list[int], Tensor]]:
    """Operations on half tensors that have no half kernel, with the places of their half operands."""
    ops = knowledge.ops()
    table, only_float16 = ops["no_half_kernel"], ops["no_bfloat16_kernel"]
    if script.settings.target_device == "cuda":
        table = table | ops["no_half_kernel_cuda"]
    for event in script.events(events.Operation):
        if event.name not in table and event.name not in only_float16:
            continue
        if guarded(event) or policy(script, event) == "fp32":
            continue
        halves = ("bfloat16",) if event.name in only_float16 else HALF
        found = [half(value, event) for value in event.args]
        places = [place for place, value in enumerate(found) if value is not None and value.dtype in halves]
        if not places or (event.name in ("quantile", "nanquantile", "ctc_loss") and places[0] != 0):
            continue
        tensor = half(event.args[places[0]], event)
        if tensor is not None and tensor.trust == GIVEN and event.name in ("stft", "istft"):
            continue  # what is given to these is a waveform, not an activation
        if tensor is not None and tensor.trust == GIVEN and _of_a_batch(operand_node(event, places[0])):
            continue
        if tensor is not None and tensor.made not in table:  # one that raises is not reached by what follows
            yield event, places, tensor


def _of_a_batch(operand: ast.expr | None) -> bool:
    """Whether an operand is taken by a word, as the parts of a batch are: matrices and intrinsics more often than
    activations."""
    match operand:
        case ast.Subscript(slice=ast.Constant(value=str())):
            return True
    return False


def _fix(event: events.Operation, places: list[int]) -> Fix | None:
    nodes = [operand_node(event, place) for place in places]
    known = [node for node in nodes if node is not None]
    return fixes.cast(event.module, known, safe=_seen(event, places)) if len(known) == len(nodes) else None


def _seen(event: events.Operation, places: list[int]) -> bool:
    """Whether the operands are seen to be half; what is only assumed may be float64."""
    operands = [half(event.args[place], event) for place in places if place < len(event.args)]
    return all(one is not None and one.trust == KNOWN for one in operands)


def _island(script: Script, event: events.Operation, places: list[int]) -> Fix | None:
    """Run it in float32, outside autocast."""
    nodes = [node for place in places if (node := operand_node(event, place)) is not None]
    plain = all(isinstance(node, ast.Name | ast.Attribute | ast.Subscript) for node in nodes)
    if len(nodes) != len(places) or not plain:  # a layer among them needs the region
        return None
    if not may_leave(script, event.module, event.module.statement(event.node), (event.node,)):
        return None
    return float32_island(
        event.module, event.node, f'"{script.settings.target_device}"', nodes, safe=_seen(event, places)
    )


@rule("AMP502")
def linalg_in_half(script: Script) -> Iterator[Finding]:
    """A decomposition, solver, inverse or determinant of half matrices."""
    for event, places, tensor in _no_kernel(script):
        if event.name.startswith(_FFT) or event.name in _OTHER:
            continue
        inside = event.name in _THROUGH_PRODUCTS and enabled(event) is not None
        yield found(
            "AMP502",
            event,
            f"{_called(event)} has no kernel for {named(tensor.dtype)}: RuntimeError",
            severity=severity(tensor),
            evidence=evidence(script, tensor),
            help="it multiplies inside, too: run it on .float() inputs under torch.autocast(device_type, enabled=False)"
            if inside
            else "compute it in float32: call .float() on what goes in",
            fix=_island(script, event, places) if inside else _fix(event, places),
        )


def _called(event: events.Operation) -> str:
    """What the source calls an operation: `torch.linalg.svd`, `inverse`."""
    function = event.node.func if isinstance(event.node, ast.Call) else None
    method = operand_node(event, 0) is getattr(function, "value", None) and function is not None
    return (
        function.attr if method and isinstance(function, ast.Attribute) else text(event.module, function or event.node)
    )


@rule("AMP503")
def fft_in_half(script: Script) -> Iterator[Finding]:
    """A Fourier transform of a half tensor."""
    for event, places, tensor in _no_kernel(script):
        if not event.name.startswith(_FFT):
            continue
        grade = severity(tensor)
        if tensor.dtype != "bfloat16" and script.settings.target_device != "cpu":
            message = (
                f"{_called(event)} of {named(tensor.dtype)}: cuFFT takes only sizes that are powers of two, and sums "
                "overflow above 65504"
            )
            grade = Severity.WARNING if grade is Severity.ERROR and tensor.dtype == "low" else grade
            if _powers_of_two(event):
                grade = Severity.NOTE
        else:
            message = f"{_called(event)} takes no {named(tensor.dtype)}: RuntimeError"
        yield found(
            "AMP503",
            event,
            message,
            severity=grade,
            evidence=evidence(script, tensor),
            help="transform in float32: call .float() on what goes in",
            fix=_fix(event, places),
        )


def _powers_of_two(event: events.Operation) -> bool:
    """Whether the size of the transform is given, and a power of two."""
    given = dict(event.kwargs)
    size = given.get("n_fft") or given.get("n") or (event.args[1] if len(event.args) > 1 else None)
    value = size.value if isinstance(size, Const) else None
    return isinstance(value, int) and value > 0 and value & (value - 1) == 0


@rule("AMP507")
def no_half_kernel(script: Script) -> Iterator[Finding]:
    """Any other operation that half tensors have no kernel for."""
    for event, places, tensor in _no_kernel(script):
        if event.name not in _OTHER:
            continue
        few = event.name == "cdist"  # with more rows it multiplies matrices, which half can do
        yield found(
            "AMP507",
            event,
            f"{_called(event)} has no kernel for {named(tensor.dtype)}"
            + (" where both sides have at most 25 rows" if few else "")
            + ": RuntimeError",
            severity=Severity.NOTE if few else severity(tensor),
            evidence=evidence(script, tensor),
            help="compute it in float32: call .float() on what goes in",
            fix=_fix(event, places),
        )


@rule("AMP504")
def sparse_in_half(script: Script) -> Iterator[Finding]:
    """A product of a sparse matrix, in a region that casts it to half or with a half factor."""
    for event in script.events(events.Operation):
        if event.name not in _SPARSE or guarded(event):
            continue
        region = enabled(event)
        halves = [one for value in event.args if (one := half(value, event)) is not None]
        kinds = {value.dtype for value in event.args if isinstance(value, Tensor) and value.dtype}
        if region is not None and script.settings.target_device != "cpu":
            grade = Severity.NOTE if region.assumed else Severity.ERROR
            message = "autocast casts a sparse product to half, which CUDA has no kernel for: addmm_sparse_cuda not "
            message += "implemented for 'Half' (compressed rows have one, but no backward)"
        elif region is None and halves and len(kinds) > 1:
            grade = severity(halves[0])
            message = f"a sparse product of {' and '.join(sorted(kinds))} raises RuntimeError: the dtypes must agree"
        else:
            continue
        yield found(
            "AMP504",
            event,
            message,
            severity=grade,
            evidence=evidence(script, *halves),
            help="run it on .float() factors under torch.autocast(device_type, enabled=False)",
            fix=_island(script, event, [0, 1]) if region is not None and event.name == "sparse_mm" else None,
        )


@rule("AMP506")
def bf16_to_numpy(script: Script) -> Iterator[Finding]:
    """A bfloat16 tensor becomes a NumPy array."""
    for event in script.events(events.Operation):
        if event.name != "numpy" or guarded(event):
            continue
        tensor = half(event.args[0], event)
        if tensor is None or tensor.dtype != "bfloat16" or tensor.trust != KNOWN:
            continue
        call = event.node
        method = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "numpy"
        array = call.func.value if method else operand_node(event, 0)  # type: ignore[attr-defined]
        yield found(
            "AMP506",
            event,
            "NumPy has no bfloat16: TypeError: Got unsupported ScalarType BFloat16",
            evidence=evidence(script, tensor),
            help="call .float() before it becomes an array",
            fix=fixes.cast(event.module, [array], message="convert it from float32") if array is not None else None,
        )
