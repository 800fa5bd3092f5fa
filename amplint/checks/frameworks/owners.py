"""Family 7, who else runs the step: Accelerate, Lightning, transformers' Trainer, DeepSpeed, XLA."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.frameworks.calls import ACCELERATORS, calls_of, is_true, methods, subclasses, targets
from amplint.checks.registry import Script, alternatives, found, found_at, receiver, rule
from amplint.checks.scaler.protocol import is_disabled
from amplint.checks.scaler.scaling import frozen
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import frameworks as fixes
from amplint.source import events
from amplint.source.interpret.tensors import region_dtype
from amplint.source.module import Module
from amplint.source.tree import calls_in, last_name, named_argument
from amplint.source.values import TRUE, Autocast, Region, Scaler, Tensor

_CLIPS = {
    f"torch.nn.utils.{prefix}{name}"
    for prefix in ("", "clip_grad.")
    for name in ("clip_grad_norm_", "clip_grad_value_")
}
_LIGHTNING = tuple(
    f"{package}.LightningModule"
    for package in (
        "lightning",
        "lightning.pytorch",
        "pytorch_lightning",
        "pytorch_lightning.core",
        "lightning.pytorch.core",
    )
)
_TRAINER = ("transformers.Trainer", "transformers.trainer.Trainer", "transformers.Seq2SeqTrainer", "trl.SFTTrainer")
_ARGUMENTS = (
    "transformers.TrainingArguments",
    "transformers.Seq2SeqTrainingArguments",
    "trl.SFTConfig",
    "trl.DPOConfig",
)
_XLA_STEP = ("torch_xla.core.xla_model.optimizer_step", "xm.optimizer_step")


@rule("AMP703")
def clip_past_accelerate(script: Script) -> Iterator[Finding]:
    """torch clips gradients that Accelerate has scaled."""
    module = script.module
    made = list(calls_of(module, *ACCELERATORS))
    if len(made) != 1:
        return
    precision = named_argument(made[0], "mixed_precision")
    named = precision.value if isinstance(precision, ast.Constant) else None
    if isinstance(precision, ast.Constant) and named != "fp16":
        return
    grade = Severity.ERROR if named == "fp16" else Severity.WARNING
    if precision is None and all(keyword.arg for keyword in made[0].keywords):
        grade = Severity.NOTE  # it has none unless it is launched with one
    for clip in script.events(events.Clip):
        call = clip.node
        if not isinstance(call, ast.Call) or clip.module is not module or not module.dotted(call.func) & _CLIPS:
            continue
        backwards = [one for _, before in clip.touched if before.kind == "managed" for one in before.origins]
        ours = next((one for one in backwards if receiver(one) in targets(module, made[0])), None)
        if ours is None:
            continue
        accelerator, name = receiver(ours), next(iter(module.dotted(call.func))).rpartition(".")[2]
        yield found(
            "AMP703",
            clip,
            f"in fp16 these gradients are still multiplied by {accelerator}'s loss scale: the limit acts as if it were "
            "that much smaller",
            severity=grade,
            evidence=[(ours, "scales the loss in fp16"), (clip, "clipped while scaled")],
            help=f"call {accelerator}.{name}: it unscales first",
            fix=fixes.clip_by_accelerator(module, call, accelerator, name),
        )


@rule("AMP703")
def scaler_beside_accelerate(script: Script) -> Iterator[Finding]:
    """A GradScaler of one's own scales a loss that Accelerate scales again: a note where the code does all of AMP by
    itself and says nothing of a precision to Accelerate, which then has none unless it is launched with one."""
    module = script.module
    for backward in script.events(events.Backward):
        if isinstance(backward.scaler, Scaler) and backward.managed and not is_disabled(backward.scaler):
            made = next(iter(calls_of(module, *ACCELERATORS)), None)
            if made is None or receiver(backward) not in targets(module, made):
                continue
            precision = named_argument(made, "mixed_precision")
            if isinstance(precision, ast.Constant) and precision.value != "fp16":
                continue
            alone = precision is None and any(isinstance(one.value, Autocast) for one in script.events(events.Create))
            yield found(
                "AMP703",
                backward,
                "in fp16 the loss is scaled twice: by this scaler, and by the Accelerator, which unscales its own",
                severity=Severity.NOTE if alone else None,
                help='drop the GradScaler: Accelerator(mixed_precision="fp16") has one',
            )


@rule("AMP703")
def autocast_past_accelerate(script: Script) -> Iterator[Finding]:
    """A region that is always float16, around the loss of a run whose precision is the Accelerator's to choose."""
    module = script.module
    made = list(calls_of(module, *ACCELERATORS))
    precisions = [named_argument(call, "mixed_precision") for call in made]
    if any(isinstance(one, ast.Constant) and one.value == "fp16" for one in precisions):
        return
    for backward in script.events(events.Backward):
        region = backward.loss.region if isinstance(backward.loss, Tensor) else None
        if not backward.managed or backward.module is not module or region is None or region.assumed:
            continue
        if isinstance(backward.scaler, Scaler):  # scaled by a scaler of its own, whatever the Accelerator does
            continue
        owner = receiver(backward)
        if not owner.rpartition(".")[2].startswith("accelerator") or not _always_float16(module, region):
            continue
        entered = script.entry(region)
        if entered is None or entered.module is not module or frozen(script, region):
            continue
        yield found(
            "AMP703",
            entered,
            f"this region is float16 whatever {owner} runs in: in float32 runs nothing scales the loss, and bf16 runs "
            "are float16",
            severity=Severity.WARNING,
            evidence=[(entered, "always float16"), (backward, f"{owner} scales where its own setting says fp16")],
            help=f"enter {owner}.autocast(): it follows mixed_precision",
        )


def _always_float16(module: Module, region: Region) -> bool:
    """Whether an autocast is told nothing by a variable: it names float16, or no dtype at all."""
    call = region.autocast.node
    if not isinstance(call, ast.Call) or region.autocast.enabled != TRUE or region_dtype(region) != "float16":
        return False
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    return all(isinstance(one, ast.Constant) or module.dotted(one) == {"torch.float16"} for one in given)


@rule("AMP704")
def lightning_conflict(script: Script) -> Iterator[Finding]:
    """Gradients are clipped where Lightning has not unscaled them, or run backward past its scaler."""
    module = script.module
    for cls in subclasses(module, *_LIGHTNING):
        for hook in methods(cls, "on_after_backward"):
            for call in calls_in(hook):
                if module.dotted(call.func) & _CLIPS or _clips_itself(cls, call):
                    yield found_at(
                        "AMP704",
                        module,
                        call,
                        'with precision="16-mixed" gradients are still scaled in on_after_backward: the limit acts as '
                        "if it were smaller by the loss scale",
                        help="clip in on_before_optimizer_step, or pass gradient_clip_val to the Trainer",
                    )
        if "automatic_optimization = False" not in module.source(cls):
            continue
        for step in methods(cls, "training_step"):
            for call in calls_in(step):
                if (
                    isinstance(call.func, ast.Attribute)
                    and call.func.attr == "backward"
                    and not _is_self(call.func.value)
                ):
                    yield found_at(
                        "AMP704",
                        module,
                        call,
                        'with precision="16-mixed" this loss is not scaled, and optimizer.step() divides its gradients '
                        "by the scale",
                        help=f"call self.manual_backward({module.source(call.func.value)})",
                    )


def _clips_itself(cls: ast.ClassDef, call: ast.Call) -> bool:
    """Whether this is Lightning's own clip, or a method of the class that makes gradients smaller by their norm."""
    match call.func:
        case ast.Attribute(attr=name, value=ast.Name(id="self")):
            own = list(methods(cls, name))
        case _:
            return False
    if not own:
        return name == "clip_gradients"
    called = [last_name(inner.func) for method in own for inner in calls_in(method)]
    shrunk = (inner for method in own for inner in calls_in(method) if last_name(inner.func) == "mul_")
    return "norm" in called and any(".grad" in ast.unparse(inner.func) for inner in shrunk)


@rule("AMP705")
def trainer_conflict(script: Script) -> Iterator[Finding]:
    """Two precisions at once, or a backward past the Trainer's own."""
    module = script.module
    for call in calls_of(module, *_ARGUMENTS):
        both = named_argument(call, "fp16"), named_argument(call, "bf16")
        if is_true(both[0]) and is_true(both[1]):
            yield found_at(
                "AMP705",
                module,
                call,
                "fp16 and bf16 are both True: ValueError",
                help="keep one of them",
            )
    for cls in subclasses(module, *_TRAINER):
        for step in methods(cls, "training_step"):
            for call in calls_in(step):
                function = call.func
                if not isinstance(function, ast.Attribute) or function.attr != "backward":
                    continue
                if _made_by_a_context(module, function):
                    continue  # with amp.scale_loss(loss, self.optimizer) as scaled_loss
                if isinstance(function.value, ast.Name) and not call.args and "accelerator" not in module.source(call):
                    yield found_at(
                        "AMP705",
                        module,
                        call,
                        "with fp16=True this loss is not scaled, while the Trainer's optimizer steps through a scaler",
                        help=f"call self.accelerator.backward({module.source(function.value)})",
                    )


def _made_by_a_context(module: Module, method: ast.Attribute) -> bool:
    """Whether a `with` around it binds what the method is called on: the context has made it of the loss."""
    made = ast.unparse(method.value)
    return any(
        item.optional_vars is not None and ast.unparse(item.optional_vars) == made
        for above in module.ancestors(method)
        if isinstance(above, ast.With)
        for item in above.items
    )


@rule("AMP706")
def deepspeed_conflict(script: Script) -> Iterator[Finding]:
    """A backward pass, or a scaler, beside DeepSpeed's engine."""
    module = script.module
    engines = {target for call in calls_of(module, "deepspeed.initialize") for target in targets(module, call)}
    if not engines:
        return
    for function in module.nodes(ast.FunctionDef):
        named = [call for call in calls_in(function) if isinstance(call.func, ast.Attribute)]
        on_engine = [call for call in named if module.source(call.func.value) in engines]  # type: ignore[attr-defined]
        does = {call.func.attr: module.source(call.func.value) for call in on_engine}  # type: ignore[attr-defined]
        if "step" not in does or "backward" in does:  # with both, a branch decides
            continue
        for call in named:
            match call:
                case ast.Call(func=ast.Attribute(value=ast.Name(), attr="backward"), args=[]):
                    yield _past_the_engine(module, call, does["step"])


def _past_the_engine(module: Module, call: ast.Call, engine: str) -> Finding:
    assert isinstance(call.func, ast.Attribute)
    loss = module.source(call.func.value)
    return found_at(
        "AMP706",
        module,
        call,
        f"the engine owns the loss scale and the gradients: {loss}.backward() goes past it",
        help=f"call {engine}.backward({loss})",
    )


@rule("AMP707")
def xla_step(script: Script) -> Iterator[Finding]:
    """xm.optimizer_step() on gradients that a scaler has scaled."""
    module = script.module
    steps = list(calls_of(module, *_XLA_STEP))
    scaled = next((one for one in script.events(events.Backward) if isinstance(one.scaler, Scaler)), None)
    if scaled is None or scaled.scaler is None or not steps or is_disabled(scaled.scaler):
        return
    for call in steps:
        together = module.function(call) is module.function(scaled.node) and scaled.module is module
        if together and not alternatives(module, scaled.node, call):
            yield found_at(
                "AMP707",
                module,
                call,
                "xm.optimizer_step takes the step past the scaler: the gradients are still multiplied by the scale",
                evidence=[(module, scaled.node, "scaled here"), (module, call, "stepped here")],
                help="TPUs train in bfloat16 and need no scaler: drop it; on XLA's GPUs, scaler.step(optimizer)",
            )


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
