"""Family 8, speed: why mixed precision may bring no speed-up. Notes, for who asks for them."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found, found_at, rule
from amplint.findings import Finding
from amplint.source import events
from amplint.source.interpret.tensors import dtype_of
from amplint.source.module import Module
from amplint.source.values import Const, Device, Tensor
from amplint.source.walk import walk

_SMALL = 256  # a narrower matrix costs next to nothing, padded or not
_SYNCS = ("item", "tolist", "numpy", "cpu", "get_scale")
_TF32 = ("torch.backends.cuda.matmul.allow_tf32", "torch.backends.cudnn.allow_tf32")


@rule("AMP801")
def dims_not_multiple_of_8(script: Script) -> Iterator[Finding]:
    """A wide linear layer whose size is no multiple of 8."""
    module = script.module
    for call in module.nodes(ast.Call):
        if module.dotted(call.func) != {"torch.nn.Linear"}:
            continue
        sizes = [node.value for node in call.args[:2] if isinstance(node, ast.Constant) and type(node.value) is int]
        odd = [size for size in sizes if size >= _SMALL and size % 8]
        if odd:
            size = odd[-1]
            yield found_at(
                "AMP801",
                module,
                call,
                f"{size} is no multiple of 8: in float16 and bfloat16 this matmul takes slower kernels, or pads",
                help=f"use {size + -size % 8} (or {size + -size % 64}) and leave the rest unused",
            )


@rule("AMP802")
def sync_in_step(script: Script) -> Iterator[Finding]:
    """The host waits for the GPU in every step."""
    told: set[ast.AST] = set()
    for step in script.events(events.Step):
        loop = step.loops[-1] if step.loops else None
        if step.scaler is None or loop is None or not isinstance(loop.node, ast.For | ast.While):
            continue
        module = loop.frame.module
        for call in (node for part in loop.node.body for node in walk(part) if isinstance(node, ast.Call)):
            if call in told or not _waits(call) or _now_and_then(module, call, loop.node):
                continue
            told.add(call)
            yield found_at(
                "AMP802",
                module,
                call,
                "the host waits here for the GPU in every step, which half precision does not make shorter",
                help="add the tensors up, and read them every so many steps",
            )


def _waits(call: ast.Call) -> bool:
    """Whether a call fetches something from the GPU: not `x.cpu().numpy()`, where the inner one has waited."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _SYNCS or call.args:
        return False
    inner = (one.func for one in walk(call.func.value) if isinstance(one, ast.Call))
    return call.func.attr == "cpu" or not any(isinstance(one, ast.Attribute) and one.attr == "cpu" for one in inner)


def _now_and_then(module: Module, node: ast.AST, loop: ast.AST) -> bool:
    """Whether a condition, or a loop of its own, stands between a node and the loop."""
    for above in module.ancestors(node):
        if above is loop:
            return False
        if isinstance(above, ast.If | ast.IfExp | ast.For | ast.While | ast.FunctionDef | ast.Lambda):
            return True
    return True


@rule("AMP803")
def cast_ping_pong(script: Script) -> Iterator[Finding]:
    """`x.half().float()`: two kernels, and nothing gained but the rounding."""
    module = script.module
    for call in module.nodes(ast.Call):
        outer, inner = _cast(module, call), _cast(module, getattr(call.func, "value", None))
        if outer and inner and (outer in ("float32",)) != (inner in ("float32",)):
            yield found_at(
                "AMP803",
                module,
                call,
                f"a cast to {inner} and straight on to {outer}: two passes over memory"
                + (", and the rounding stays" if outer == "float32" else ""),
                help="leave the first cast out, unless the rounding is what is wanted",
            )


def _cast(module: Module, node: ast.AST | None) -> str:
    match node:
        case ast.Call(func=ast.Attribute(attr="half" | "float" | "bfloat16" as name), args=[], keywords=[]):
            return {"half": "float16", "float": "float32"}.get(name, name)
        case ast.Call(func=ast.Attribute(attr="to"), args=[ast.Attribute() as dtype], keywords=[]):
            return next((_DTYPES[name] for name in module.dotted(dtype) if name in _DTYPES), "")
    return ""


_DTYPES = {
    "torch.float16": "float16",
    "torch.half": "float16",
    "torch.bfloat16": "bfloat16",
    "torch.float32": "float32",
    "torch.float": "float32",
}


@rule("AMP804")
def tf32_off(script: Script) -> Iterator[Finding]:
    """What stays in float32 runs without TF32."""
    module = script.module
    for assign in module.nodes(ast.Assign):
        if not isinstance(assign.value, ast.Constant) or assign.value.value is not False:
            continue
        if any(module.dotted(target) & {*_TF32} for target in assign.targets):
            yield _without_tf32(module, assign)
    for call in module.nodes(ast.Call):
        match call:
            case ast.Call(args=[ast.Constant(value="highest")]):
                if "torch.set_float32_matmul_precision" in module.dotted(call.func):
                    yield _without_tf32(module, call)


def _without_tf32(module: Module, node: ast.AST) -> Finding:
    return found_at(
        "AMP804",
        module,
        node,
        "TF32 is switched off: what autocast leaves in float32 runs without tensor cores",
        help='torch.set_float32_matmul_precision("high") where ten bits of mantissa are enough',
    )


@rule("AMP805")
def no_tensor_cores(script: Script) -> Iterator[Finding]:
    """A model is trained in float16 on the CPU."""
    told: set[ast.AST] = set()
    for backward in script.events(events.Backward):
        region = backward.loss.region if isinstance(backward.loss, Tensor) else None
        if region is None or region.assumed or region.node in told:
            continue
        device = region.autocast.device
        cpu = device.type == "cpu" if isinstance(device, Device) else device == Const("cpu")
        if cpu and dtype_of(region.autocast.dtype) == "float16":
            told.add(region.node)
            yield found(
                "AMP805",
                backward,
                "float16 on a CPU is 20 to 70 times slower than float32 where it has no instructions for it",
                evidence=[(backward, "computed under autocast(cpu, float16)")],
                help="use bfloat16 on CPUs with AMX or AVX512-BF16, and float32 on others",
            )
