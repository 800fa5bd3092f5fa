"""Family 7, what wraps a model or its gradients: DataParallel, FSDP, DDP's hooks, Horovod, torch.compile."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.frameworks.calls import calls_of, targets
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.checks.scaler.protocol import is_disabled
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.interpret.tensors import dtype_of
from amplint.source.module import Module
from amplint.source.tree import calls_in, named_argument
from amplint.source.values import Scaler
from amplint.source.walk import walk

_DATA_PARALLEL = ("torch.nn.DataParallel", "torch.nn.parallel.DataParallel")
_FSDP = (
    "torch.distributed.fsdp.FullyShardedDataParallel",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel",
)
_PLAIN_SCALERS = (
    *("torch.amp.GradScaler", "torch.GradScaler", "torch.cuda.amp.GradScaler", "torch.amp.grad_scaler.GradScaler"),
    "torch.cuda.amp.grad_scaler.GradScaler",
)
_HOOKS = "torch.distributed.algorithms.ddp_comm_hooks.default_hooks"
_FP16_HOOKS = (f"{_HOOKS}.fp16_compress_hook", f"{_HOOKS}.fp16_compress_wrapper")
_GPU = re.compile(r"is_\w*available|capability|device_count|\.type\b|\bhip\b")
_HOROVOD = ("horovod.torch.DistributedOptimizer", "horovod.torch.optimizer.DistributedOptimizer")


@rule("AMP701")
def data_parallel_loses_dtype(script: Script) -> Iterator[Finding]:
    """A DataParallel model is called in a bfloat16 region: its replicas run in float16."""
    module = script.module
    wraps = {target: call for call in calls_of(module, *_DATA_PARALLEL) for target in targets(module, call)}
    for forward in script.events(events.Forward) if wraps else ():
        node, region = forward.node, forward.region
        if forward.module is not module or not isinstance(node, ast.Call) or region is None or region.assumed:
            continue
        wrapped = wraps.get(module.source(node.func))
        if wrapped is None or dtype_of(region.autocast.dtype) != "bfloat16":
            continue
        yield found(
            "AMP701",
            forward,
            "DataParallel does not hand autocast's dtype to its threads: with two GPUs the replicas run in float16, "
            "and nothing scales the loss",
            evidence=[(forward, "called under autocast(bfloat16)")],
            help="decorate the model's forward with torch.autocast, or use DistributedDataParallel",
        )


@rule("AMP702")
def fsdp_plain_scaler(script: Script) -> Iterator[Finding]:
    """Sharded parameters are stepped through a scaler that looks at its own rank's gradients only."""
    module = script.module
    wrapped = next(calls_of(module, *_FSDP), None)
    if wrapped is None:
        return
    for create in script.events(events.Create):
        node, scaler = create.node, create.value
        if not isinstance(scaler, Scaler) or is_disabled(scaler) or not isinstance(node, ast.Call):
            continue
        if not create.module.dotted(node.func) or not create.module.dotted(node.func) <= set(_PLAIN_SCALERS):
            continue
        step = next((one for one in script.events(events.Step) if one.scaler == scaler), None)
        if (step is None and not _wraps_for_others(module, node, wrapped)) or _chosen_beside(create.module, node):
            continue
        yield found(
            "AMP702",
            create,
            "each rank looks for inf in its own shard only: with FSDP one rank skips a step that the others take, and "
            "the weights come apart",
            evidence=[(create, "a scaler for gradients that are whole"), (step, "steps sharded parameters")],
            severity=Severity.ERROR if step is not None else Severity.WARNING,
            help="use torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler",
        )


def _chosen_beside(module: Module, create: ast.AST) -> bool:
    """Whether a branch chooses between this scaler and FSDP's: who wrote it knows which is for which."""
    inner = create
    for above in module.ancestors(create):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef):
            break
        if isinstance(above, ast.If):
            other = above.orelse if inner in above.body else above.body
            if any("ShardedGradScaler" in text(module, one, 2000) for one in other):
                return True
        elif isinstance(above, ast.IfExp) and inner is not above.test:
            other_side = above.orelse if inner is above.body else above.body
            if "ShardedGradScaler" in text(module, other_side, 2000):
                return True
        inner = above
    return False


def _wraps_for_others(module: Module, create: ast.Call, wrapped: ast.Call) -> bool:
    """Whether one class makes the scaler, keeps it, and wraps models, whoever steps; and knows no other scaler."""
    if "ShardedGradScaler" in module.text or not any(one.startswith("self.") for one in targets(module, create)):
        return False
    above = list(module.ancestors(create))
    if any(isinstance(node, ast.If) and "fsdp" in text(module, node.test, 500).lower() for node in above):
        return False
    owner = next((node for node in above if isinstance(node, ast.ClassDef)), None)
    return owner is not None and owner in module.ancestors(wrapped)


@rule("AMP708")
def horovod_unsynchronised(script: Script) -> Iterator[Finding]:
    """A scaler steps Horovod's optimizer, which has not waited for the other workers' gradients."""
    module = script.module
    names = {target for call in calls_of(module, *_HOROVOD) for target in targets(module, call)}
    if not names or ".synchronize(" in module.text:
        return
    for step in script.events(events.Step):
        call = step.node
        if step.module is not module or step.scaler is None or not isinstance(call, ast.Call) or not call.args:
            continue
        optimizer = text(module, call.args[0])
        if optimizer in names and not is_disabled(step.scaler):
            scaler = text(module, call.func.value) if isinstance(call.func, ast.Attribute) else "scaler"
            yield found(
                "AMP708",
                step,
                "the gradients are looked at for inf before the workers have averaged them: each worker decides for "
                "itself whether to step",
                help=f"{optimizer}.synchronize(), {scaler}.unscale_({optimizer}), and then "
                f"with {optimizer}.skip_synchronize(): {scaler}.step({optimizer})",
            )


@rule("AMP709")
def fp16_compress_hook(script: Script) -> Iterator[Finding]:
    """Scaled gradients are sent as float16."""
    module = script.module
    uses = [node for node in module.nodes(ast.Attribute) if module.dotted(node) & set(_FP16_HOOKS)]
    named: list[ast.expr] = [*uses, *(node for node in module.nodes(ast.Name) if module.dotted(node) & {*_FP16_HOOKS})]
    scaled = next((step for step in script.events(events.Step) if step.scaler and not is_disabled(step.scaler)), None)
    for node in named if scaled else ():
        yield found_at(
            "AMP709",
            module,
            node,
            "the hook casts scaled gradients to float16 before it divides them by the number of workers: they overflow "
            "sooner, and the scaler settles at a lower scale",
            evidence=[(scaled.module, scaled.node, "the gradients are scaled")] if scaled else [],
            help="use bf16_compress_hook, or a smaller init_scale",
        )


@rule("AMP711")
def compiled_step(script: Script) -> Iterator[Finding]:
    """torch.compile of a function that runs the backward pass and the scaler."""
    module = script.module
    functions = {node.name: node for node in module.nodes(ast.FunctionDef)}
    for call in calls_of(module, "torch.compile"):
        given = call.args[0] if call.args else None
        function = functions.get(given.id) if isinstance(given, ast.Name) else None
        if function is not None and _steps(function):
            yield _compiled(module, call)
    for function in functions.values():
        for decorator in function.decorator_list:
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if module.dotted(called) == {"torch.compile"} and _steps(function):
                yield _compiled(module, decorator)


def _steps(function: ast.FunctionDef) -> bool:
    """Whether a function runs a backward pass and steps through a scaler."""
    methods = {call.func.attr for call in calls_in(function) if isinstance(call.func, ast.Attribute)}
    return "backward" in methods and {"scale", "step"} <= methods


def _compiled(module: Module, node: ast.AST) -> Finding:
    return found_at(
        "AMP711",
        module,
        node,
        "the whole step is compiled, with its backward pass and the scaler: torch.compile breaks the graph at both",
        help="compile the model",
    )


@rule("AMP710")
def bf16_probe(script: Script) -> Iterator[Finding]:
    """torch.cuda.is_bf16_supported(), bare: True where bfloat16 is emulated, and no question whether CUDA is there."""
    from amplint.rewrite.fixes import frameworks as fixes

    module = script.module
    old = script.settings.target_torch < (2, 4)
    for call in calls_of(module, "torch.cuda.is_bf16_supported"):
        if call.args or named_argument(call, "including_emulation") is not None or _asks_first(module, call):
            continue
        yield found_at(
            "AMP710",
            module,
            call,
            "this asks a GPU that may not be there: without CUDA, torch before 2.4 raises here"
            if old
            else "this is True also on GPUs that only emulate bfloat16 (before Ampere): slower than float32 there",
            help="ask torch.cuda.is_available() first" if old else "write including_emulation=False",
            fix=None if old else fixes.without_emulation(module, call),
        )


@rule("AMP710")
def bf16_without_asking(script: Script) -> Iterator[Finding]:
    """bfloat16 is a script's setting out of the box, in a script that knows float16 as well and never asks the GPU."""
    module = script.module
    if "is_bf16_supported" in module.text or "capability" in module.text:
        return
    for assign in module.tree.body:
        match assign:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value="bfloat16" | "bf16")):
                scaler = next((call for call in module.nodes(ast.Call) if _scales_if(module, call, name)), None)
                if scaler is not None:
                    yield found_at(
                        "AMP710",
                        module,
                        assign,
                        "GPUs before Ampere only emulate bfloat16, and nothing asks whether this one does",
                        severity=Severity.NOTE,
                        evidence=[
                            (module, assign, "what is used unless told otherwise"),
                            (module, scaler, "float16 would do"),
                        ],
                        help="choose by torch.cuda.is_bf16_supported(including_emulation=False)",
                    )


def _scales_if(module: Module, call: ast.Call, name: str) -> bool:
    """Whether a scaler is made for float16 only: `GradScaler(enabled=(dtype == "float16"))`."""
    if not any(dotted.endswith("GradScaler") for dotted in module.dotted(call.func)):
        return False
    return re.search(rf"\b{name}\s*==\s*[\"'](float16|fp16)", module.source(call)) is not None


def _asks_first(module: Module, call: ast.Call) -> bool:
    """Whether the code asks about the GPU itself before: in the same condition, in one around it, in a condition
    that leaves the function or block before it, or for its compute capability."""
    for above in module.ancestors(call):
        match above:
            case ast.BoolOp(values=values):
                asked: list[ast.AST] = list(values)
            case ast.If(test=test) | ast.IfExp(test=test) | ast.Assert(test=test) | ast.While(test=test):
                asked = [test]
            case ast.FunctionDef() | ast.Module():
                before = (one for one in walk(above) if isinstance(one, ast.If | ast.Assign))
                asked = [
                    one.test if isinstance(one, ast.If) else one.value for one in before if one.lineno < call.lineno
                ]
            case _:
                continue
        if any(_about_the_gpu(module, one, call) for one in asked):
            return True
        if isinstance(above, ast.FunctionDef):
            return False
    return False


def _about_the_gpu(module: Module, test: ast.AST, call: ast.Call) -> bool:
    return any(
        isinstance(node, ast.Call | ast.Compare) and node is not call and _GPU.search(module.source(node)) is not None
        for node in walk(test)
    )
