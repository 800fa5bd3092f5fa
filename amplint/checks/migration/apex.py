"""Family 6, apex.amp: files that use it, and what a half-done migration leaves behind."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TypeGuard

from amplint import knowledge
from amplint.checks.registry import Script, found, found_at, rule
from amplint.checks.scaler.scopes import dynamic, is_guarded, unbound
from amplint.findings import Finding, Severity
from amplint.rewrite.apex.uses import ONLY_APEX, Use, falls_back, guard, raises, uses_of
from amplint.rewrite.refusals.refused import Refused
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import named_argument
from amplint.source.walk import walk


@rule("AMP608")
def apex_leftover(script: Script) -> Iterator[Finding]:
    """apex.amp's functions are called, and nothing imports apex any more."""
    module = script.module
    if "amp." not in module.text or dynamic(module.tree):
        return
    for node in module.nodes(ast.Attribute):
        if node.attr not in ONLY_APEX or not isinstance(node.ctx, ast.Load) or not _is_amp(module, node.value):
            continue
        grade = Severity.NOTE if _only_with_apex(module, node) else None
        yield found_at("AMP608", module, node, _message(module, node), severity=grade, help=_instead(node.attr))


def _only_with_apex(module: Module, node: ast.AST) -> bool:
    """Whether a condition says that this is for apex (`if self.use_apex`), which no longer has what it needs."""
    above = (one for one in module.ancestors(node) if isinstance(one, ast.If))
    return any("apex" in module.source(one.test).lower() for one in above)


def _is_amp(module: Module, node: ast.expr) -> bool:
    """Whether this is the name `amp`, unbound, or torch's own amp, which has none of these functions."""
    if isinstance(node, ast.Name) and node.id == "amp" and unbound(module, node):
        return not is_guarded(module, node)
    return module.dotted(node) in ({"torch.amp"}, {"torch.cuda.amp"}) and not is_guarded(module, node)


def _message(module: Module, node: ast.Attribute) -> str:
    of = next((one for one in module.dotted(node.value) if one.startswith("torch.")), "")
    if of:
        return f"{of} has no {node.attr}: it is apex.amp's, and raises AttributeError here"
    return f"amp is not bound here: amp.{node.attr} was apex.amp's, and raises NameError"


def _instead(name: str) -> str:
    """What torch.amp has instead of a function of apex.amp."""
    match name:
        case "scale_loss":
            return "write scaler.scale(loss).backward(), with a torch.amp.GradScaler"
        case "initialize":
            return "drop it: torch.autocast around the forward, and a torch.amp.GradScaler, do its work"
        case "master_params":
            return "clip model.parameters(), after scaler.unscale_(optimizer)"
        case "state_dict" | "load_state_dict":
            return f"call {name} of the GradScaler"
        case "disable_casts":
            return 'write torch.autocast("cuda", enabled=False)'
    return "write torch.amp.custom_fwd, or a torch.autocast region"


def _line(use: Use) -> int:
    return use.node.lineno


@rule("AMP605")
def apex_amp(script: Script) -> Iterator[Finding]:
    """apex.amp, which current apex does not have: one finding a file, at the import."""
    module = script.module
    if "apex" not in module.text:
        return
    from amplint.rewrite.apex.migrate import migrate

    uses = uses_of(module)
    if not uses.imports:
        return
    statement, alias = next(((s, a) for s, a in uses.imports if a.name != "apex"), uses.imports[0])
    attempt = guard(module, statement)
    if attempt is not None and (not uses.uses or falls_back(attempt)):
        return
    whole = alias.name == "apex"  # `import apex` itself works
    message = f"current apex has no apex.amp: {'AttributeError where it is used' if whole else 'ImportError'}"
    severity = knowledge.rules()["AMP605"].severity
    fix, advice = None, ""
    if attempt is not None and not raises(attempt) and not whole:
        message = "current apex has no apex.amp: the import fails, and the script goes on without it"
    if uses.native and uses.uses:
        advice = "remove the branch that uses apex: torch.amp is there beside it"
        severity = severity if attempt is None else Severity.NOTE
    else:
        try:
            fix = migrate(script.reading, script.settings)
        except Refused as refused:
            advice = f"not migrated: {refused.reason}; {refused.advice}"
        else:
            advice = fix.message
    if any("apex.parallel" in name for names in module.imports.values() for name in names):
        advice += "; torch.nn.parallel and nn.SyncBatchNorm do what apex.parallel does"
    evidence = [
        (module, use.node, f"amp.{use.name}" if use.name else "apex.amp") for use in sorted(uses.uses, key=_line)
    ]
    yield found_at("AMP605", module, alias, message, severity=severity, evidence=evidence, help=advice, fix=fix)


@rule("AMP605")
def one_scale_for_several_losses(script: Script) -> Iterator[Finding]:
    """Several optimizers are initialized together, and their losses are scaled without saying which is which."""
    module = script.module
    if "scale_loss" not in module.text:
        return
    uses = uses_of(module)
    together = [call for call in _calls(module, uses.named("initialize")) if _several(call)]
    for call in _calls(module, uses.named("scale_loss")) if together else ():
        if len(call.args) < 3 and all(keyword.arg != "loss_id" for keyword in call.keywords):
            yield found_at(
                "AMP605",
                module,
                call,
                "all losses share one scale: an overflow in one of them lowers it for the others",
                severity=Severity.NOTE,
                evidence=[(module, together[0], "several optimizers, one loss"), (module, call, "and no loss_id")],
                help="pass num_losses= there and loss_id= here, or make a torch.amp.GradScaler for each",
            )


_CLIPS = {
    f"torch.nn.utils.{where}clip_grad_{how}" for where in ("", "clip_grad.") for how in ("norm", "norm_", "value_")
}


@rule("AMP605")
def clip_in_scale_loss(script: Script) -> Iterator[Finding]:
    """Gradients are clipped before `with amp.scale_loss` is left, which is what unscales them."""
    module = script.module
    if "scale_loss" not in module.text or "clip_grad_" not in module.text:
        return
    for call in _calls(module, uses_of(module).named("scale_loss")):
        region = module.parents[module.parents[call]]
        if not isinstance(region, ast.With):
            continue
        for clip in (node for statement in region.body for node in walk(statement)):
            if isinstance(clip, ast.Call) and module.dotted(clip.func) & _CLIPS:
                yield found_at(
                    "AMP605",
                    module,
                    clip,
                    "these gradients are still multiplied by the loss scale: apex unscales them where `with "
                    "amp.scale_loss` ends, and the limit acts as if it were that much smaller",
                    evidence=[(module, call, "scaled from here to the end of the block"), (module, clip, "clipped")],
                    help="clip behind the block: amp.master_params(optimizer)",
                )


@rule("AMP605")
def clip_of_half_gradients(script: Script) -> Iterator[Finding]:
    """With O2 the optimizer steps float32 weights of its own, whose gradients a clip of the model's does not touch."""
    module = script.module
    if "scale_loss" not in module.text or "clip_grad_" not in module.text or "O2" not in module.text:
        return
    uses = uses_of(module)
    masters = [one for one in _calls(module, uses.named("initialize")) if _level(one) == "O2"]
    scales = list(_calls(module, uses.named("scale_loss"))) if masters else []
    for clip in module.nodes(ast.Call) if scales else ():
        if not clip.args or not module.dotted(clip.func) & _CLIPS or not _of_model(clip.args[0]):
            continue
        for call in scales:
            behind = call.lineno < clip.lineno and module.function(call) is module.function(clip)
            inside = module.parents[module.parents[call]] in module.ancestors(clip)
            if behind and not inside and not _under(module, call) & _under(module, clip, other=True):
                yield found_at(
                    "AMP605",
                    module,
                    clip,
                    "with opt_level O2 the optimizer steps float32 weights of its own: the half gradients that this "
                    "clips are read no more, the step is not clipped",
                    evidence=[
                        (module, masters[0], "float32 master weights for the optimizer"),
                        (module, call, "their gradients are made where this block ends"),
                        (module, clip, "clips those of the model"),
                    ],
                    help="clip amp.master_params(optimizer)",
                )
                break


def _under(module: Module, node: ast.AST, other: bool = False) -> set[tuple[str, bool]]:
    """The conditions of a function under which something runs, and whether they hold then (`other`: do not)."""
    found: set[tuple[str, bool]] = set()
    below = node
    for above in module.ancestors(node):
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef):
            break
        if isinstance(above, ast.If) and below is not above.test:
            found.add((" ".join(module.source(above.test).split()), (below in above.body) is not other))
        below = above
    return found


def _level(initialize: ast.Call) -> object:
    """The opt_level of amp.initialize, where it is written out."""
    given = named_argument(initialize, "opt_level")
    level = initialize.args[3] if len(initialize.args) > 3 else given
    return level.value if isinstance(level, ast.Constant) else None


def _of_model(parameters: ast.expr) -> bool:
    return isinstance(parameters, ast.Call) and isinstance(parameters.func, ast.Attribute) and (
        parameters.func.attr == "parameters"
    )  # fmt: skip


@rule("AMP605")
def backward_without_scale_loss(script: Script) -> Iterator[Finding]:
    """amp.initialize has patched model and optimizer, and no loss of the file is scaled."""
    module = script.module
    if "scale_loss" in module.text or "initialize" not in module.text:
        return
    uses = uses_of(module)
    names = {alias.asname or alias.name for _, alias in uses.imports if alias.name == "amp"}
    patched = [*_calls(module, uses.named("initialize")), *_initialized(module, names)]
    if not any(map(_needs_scaling, patched)) or uses.native:
        return
    for backward in script.events(events.Backward):
        if backward.scaler is None and not backward.managed and backward.module is module:
            yield found(
                "AMP605",
                backward,
                "amp.initialize made this a float16 run, and the loss is not scaled: small gradients become zero, and "
                "with O2 the optimizer's float32 weights get none at all",
                evidence=[(backward, "differentiated as it is")],
                help="with amp.scale_loss(loss, optimizer) as scaled_loss: scaled_loss.backward()",
            )


def _initialized(module: Module, names: set[str]) -> Iterator[ast.Call]:
    """Calls of initialize by names that are apex's amp, or None where it is not there: `else: amp = None`."""
    for call in module.nodes(ast.Call) if names else ():
        match call.func:
            case ast.Attribute(value=ast.Name(id=name), attr="initialize") if name in names:
                yield call


def _needs_scaling(initialize: ast.Call) -> bool:
    """Whether amp.initialize is given an optimizer, and an opt_level under which losses are scaled."""
    given = {keyword.arg: keyword.value for keyword in initialize.keywords}
    if len(initialize.args) < 2 and "optimizers" not in given:
        return False
    level = initialize.args[3] if len(initialize.args) > 3 else given.get("opt_level")
    fixed = [value.value for value in (level, given.get("enabled"), given.get("loss_scale")) if _constant(value)]
    return not any(value in ("O0", "O3", False, 1, "1", "1.0") for value in fixed)


def _constant(node: ast.expr | None) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and node.value is not True


def _calls(module: Module, uses: list[Use]) -> Iterator[ast.Call]:
    for use in uses:
        call = module.parents[use.node]
        if isinstance(call, ast.Call) and call.func is use.node:
            yield call


def _several(initialize: ast.Call) -> bool:
    """Whether amp.initialize is given several optimizers, and not how many losses they have."""
    given = {keyword.arg: keyword.value for keyword in initialize.keywords}
    optimizers = initialize.args[1] if len(initialize.args) > 1 else given.get("optimizers")
    several = isinstance(optimizers, ast.List | ast.Tuple) and len(optimizers.elts) > 1
    return several and "num_losses" not in given and None not in given
