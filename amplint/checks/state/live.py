"""Models that are cast to half while they are being trained (AMP307, AMP309), and loaded in half (AMP312)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, alternatives, found_at, rule, text
from amplint.checks.state.casts import assigned, half_cast, may_be_float16
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import state as fixes
from amplint.source.module import Module
from amplint.source.tree import called_name
from amplint.source.walk import walk

_PARTS = frozenset("unet transformer text_encoder text_encoder_2 prior controlnet model decoder adapter".split())
_OPTIMIZER = re.compile(
    r"Adam|SGD|RMSprop|Adagrad|Lion|LAMB|optimizer_(class|cls)|(make|get|build|configure|create)_optim"
)
Definition = ast.FunctionDef | ast.AsyncFunctionDef


def trains(module: Module) -> bool:
    """Whether a training step stands in the file: a backward and a step."""
    names = {node.attr for node in module.all_nodes if isinstance(node, ast.Attribute)}
    return "backward" in names and "step" in names


@rule("AMP309")
def saved_in_half(script: Script) -> Iterator[Finding]:
    """A model that is trained on is cast in place to be saved: `torch.save(model.half().state_dict(), …)`."""
    module = script.module
    if not trains(module):
        return
    for call in module.all_nodes:
        if not isinstance(call, ast.Call) or not half_cast(module, call):
            continue
        receiver = call.func.value if isinstance(call.func, ast.Attribute) else None
        if not isinstance(receiver, ast.Name | ast.Attribute) or not _in_save(module, call):
            continue
        if _is_trained(module, receiver) and _in_loop(module, call, receiver):
            yield found_at(
                "AMP309",
                module,
                call,
                f"{text(module, call)} casts {text(module, receiver)} itself, not a copy: training goes on with "
                "rounded half weights",
                help="save a copy: copy.deepcopy(model).half(), or cast the tensors of the state dict",
                fix=fixes.copy_first(module, call, receiver),
            )


def _in_save(module: Module, call: ast.AST) -> bool:
    """Whether a call stands in what is saved, or a state dict is made of its result: that is for saving."""
    match module.parents[call]:
        case ast.Attribute(attr="state_dict"):
            return True
    for above in module.ancestors(call):
        if isinstance(above, ast.stmt):
            return False
        if isinstance(above, ast.Call) and above is not call:
            name = called_name(above)
            if name in ("save", "save_file", "save_model", "save_checkpoint"):
                return True
    return False


def _in_loop(module: Module, node: ast.AST, model: ast.expr) -> bool:
    """Whether training of the same model goes on after a node: it stands in a loop that goes on, or in a function that
    is called in one."""
    below = node
    for above in module.ancestors(node):
        if isinstance(above, ast.For | ast.While):
            bound = walk(above.target) if isinstance(above, ast.For) else ()
            return not any(isinstance(one, ast.Name) and text(module, one) == text(module, model) for one in bound)
        if isinstance(above, ast.FunctionDef | ast.AsyncFunctionDef):
            return _called_in_loop(module, above)
        if isinstance(above, ast.If) and below in above.body and isinstance(above.body[-1], ast.Break | ast.Return):
            return False
        below = above
    return False


def _called_in_loop(module: Module, function: Definition) -> bool:
    """Whether a function is called in a loop, and does not make its optimizer anew each time: one training a call."""
    if any(_makes_optimizer(module, call) for call in walk(function)):
        return False
    method = isinstance(module.parents[function], ast.ClassDef)
    for call in module.all_nodes:
        match call:
            case ast.Call(func=ast.Name(id=name)) if not method and name == function.name:
                pass
            case ast.Call(func=ast.Attribute(attr=name, value=ast.Name(id=owner))) if method and name == function.name:
                if owner in module.imports:  # torch.save() is not this save()
                    continue
            case _:
                continue
        if module.loop(call) is not None:
            return True
    return False


def _makes_optimizer(module: Module, node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _OPTIMIZER.search(text(module, node.func).rpartition(".")[2]) is not None


def _is_trained(module: Module, model: ast.expr) -> bool:
    """Whether the parameters of what is written `model` go to an optimizer, it is put into training mode, or prepared
    for training."""
    written = text(module, model)
    for call in module.all_nodes:
        match call:
            case ast.Call(func=ast.Attribute(attr="train", value=receiver), args=[]):
                if text(module, receiver) == written:
                    return True
            case ast.Call(func=ast.Attribute(attr="prepare"), args=args):
                if any(text(module, one) == written for one in args):
                    return True
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]) if _OPTIMIZER.search(
                name
            ):
                if f"{written}.parameters()" in text(module, first, 400):
                    return True
    return False


@rule("AMP309")
def round_trip(script: Script) -> Iterator[Finding]:
    """A function casts a model that it was given to half, and back to float32 at its end."""
    module = script.module
    if ".float()" not in module.text or not any(half_cast(module, call) for call in module.nodes(ast.Call)):
        return
    for function in module.nodes(ast.FunctionDef):
        given = {one.arg for one in (*function.args.args, *function.args.kwonlyargs)}
        casts = [call for call in walk(function) if isinstance(call, ast.Call) and half_cast(module, call)]
        for cast in casts:
            name = _called_on(cast)
            if name not in given or not _alone(module, cast):
                continue
            back = _cast_back(module, function, name, cast)
            if back is None or alternatives(module, cast, back):
                continue
            if not _made_here(function, name, cast):
                yield found_at(
                    "AMP309",
                    module,
                    cast,
                    "the model is cast to half in place and back: where it is still being trained, or averaged, every "
                    "weight is rounded to 11 bits (8 in bfloat16) each time",
                    severity=Severity.WARNING,
                    evidence=[(module, cast, "every weight is rounded here"), (module, back, "and stays rounded")],
                    help="run it under torch.autocast, or cast a copy: copy.deepcopy(model).half()",
                )


def _alone(module: Module, cast: ast.Call) -> bool:
    """Whether the result of a cast is not used, or only in a choice: `m.half() if half else m.float()`; or only to put
    the model into a mode, `m.half().eval()`."""
    above = module.parents[cast]
    while isinstance(above, ast.Attribute) and above.attr in _KEEPS:
        above = module.parents[module.parents[above]]
    if isinstance(above, ast.IfExp):
        above = module.parents[above]
    return isinstance(above, ast.Expr)


_KEEPS = frozenset("eval train cuda cpu requires_grad_".split())  # methods that return the model they are called on


def _called_on(cast: ast.Call) -> str:
    """The variable that a cast is called on: `m` of `m.eval().half()`."""
    receiver = cast.func.value if isinstance(cast.func, ast.Attribute) else None
    while isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Attribute) and receiver.func.attr in _KEEPS:
        receiver = receiver.func.value
    return receiver.id if isinstance(receiver, ast.Name) else ""


def _cast_back(module: Module, function: Definition, name: str, cast: ast.Call) -> ast.Call | None:
    """`name.float()` further down, as a statement of its own."""
    for call in walk(function):
        match call:
            case ast.Call(func=ast.Attribute(attr="float"), args=[]) if _called_on(call) == name:
                if _alone(module, call) and call.lineno > cast.end_lineno:  # type: ignore[operator]
                    return call
    return None


def _made_here(function: Definition, name: str, cast: ast.Call) -> bool:
    """Whether what a parameter holds was replaced before, on the way to the cast: a model that was loaded here."""
    for node in walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id=same)]) if same == name and node.lineno < cast.lineno:
                block = [statement for statement in function.body if node is statement]
                if block:  # under a condition, a caller's model may still come here
                    return True
    return False


@rule("AMP309")
def live_parts_cast(script: Script) -> Iterator[Finding]:
    """A pipeline that is made around the very model that is being trained is cast to half for a validation."""
    module = script.module
    if not any(keyword.arg == "dtype" for call in module.nodes(ast.Call) for keyword in call.keywords):
        return
    for call in module.nodes(ast.Call):
        match call:
            case ast.Call(func=ast.Attribute(attr="to", value=ast.Name(id=name))):
                pass
            case _:
                continue
        dtypes = [keyword.value for keyword in call.keywords if keyword.arg == "dtype"]
        function = module.function(call) if dtypes else None
        if not isinstance(function, ast.FunctionDef) or name not in [one.arg for one in function.args.args]:
            continue
        for site in _calls_of(module, function):
            bound = _bound(function, site)
            live = _live_part(module, bound.get(name))
            dtype = dtypes[0]
            if isinstance(dtype, ast.Name) and dtype.id in bound:
                dtype = bound[dtype.id]
            if live is not None and may_be_float16(module, dtype):
                yield found_at(
                    "AMP309",
                    module,
                    call,
                    f"the cast reaches {text(module, live)}, which is still being trained: its trained parameters "
                    "become half, and the next unscale raises ValueError: Attempting to unscale FP16 gradients.",
                    evidence=[(module, site, "called with a pipeline around the trained model")],
                    help="leave out the dtype, and run the pipeline under torch.autocast",
                    fix=fixes.drop_dtype(module, call),
                )
                break


def _calls_of(module: Module, function: ast.FunctionDef) -> Iterator[ast.Call]:
    for call in module.all_nodes:
        match call:
            case ast.Call(func=ast.Name(id=name)) if name == function.name:
                yield call


def _bound(function: ast.FunctionDef, call: ast.Call) -> dict[str, ast.expr]:
    """What a call gives for each parameter."""
    names = [one.arg for one in function.args.args]
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    return {**dict(zip(names, call.args, strict=False)), **given}


def _live_part(module: Module, pipeline: ast.expr | None) -> ast.expr | None:
    """The trained model that a pipeline was made around: `from_pretrained(…, unet=unwrap_model(unet))`."""
    if not isinstance(pipeline, ast.Name):
        return None
    for made in assigned(module, pipeline):
        match made:
            case ast.Call(func=ast.Attribute(attr="from_pretrained"), keywords=keywords):
                pass
            case _:
                continue
        for keyword in keywords:
            if keyword.arg in _PARTS:
                inner = (
                    keyword.value.args[0]
                    if isinstance(keyword.value, ast.Call) and keyword.value.args
                    else keyword.value
                )
                if isinstance(inner, ast.Name | ast.Attribute) and _is_trained(module, inner):
                    return inner
    return None
