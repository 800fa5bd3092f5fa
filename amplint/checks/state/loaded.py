"""Models that are loaded in half and trained by a library (AMP303, AMP312)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule, text
from amplint.checks.state.casts import assigned, may_be_float16
from amplint.findings import Finding
from amplint.source.interpret.library_calls import QUANTISES
from amplint.source.module import Module
from amplint.source.walk import walk

# Who keeps float32 copies, or trains adapters in float32: nothing to say where these are.
_MASTERS = ("deepspeed", "DeepSpeed", "FullyShardedDataParallel", "prepare_model_for_kbit_training", "get_peft_model")


@rule("AMP312")
def half_checkpoint_trained(script: Script) -> Iterator[Finding]:
    """A checkpoint is loaded in float16 and trained by a Trainer or with Accelerate."""
    module = script.module
    if any(word in module.text for word in (*_MASTERS, "peft_config", "add_adapter", "LoraConfig")):
        return
    for load in module.all_nodes:
        if not isinstance(load, ast.Call) or not _in_float16(module, load):
            continue
        statement = module.statement(load)
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if value is load:
                pass
            case _:
                continue
        if _changed(module, statement, name):
            continue
        trainer = _trainer_of(module, statement, name)
        if trainer is None:
            continue
        how = (
            "its scaler then raises ValueError: Attempting to unscale FP16 gradients."
            if _scales(module)
            else ("small updates are lost, and Adam's eps of 1e-8 is zero")
        )
        yield found_at(
            "AMP312",
            module,
            load,
            f"the checkpoint is loaded in float16 and trained: {how}",
            evidence=[(module, load, "parameters are float16"), (module, trainer, "and are trained")],
            help="load it in float32 (dtype=torch.float32) and let the trainer run autocast",
        )


def _in_float16(module: Module, call: ast.Call) -> bool:
    """Whether this loads a model in float16, and does not quantise it."""
    keywords = call.keywords
    dtypes = [keyword for keyword in keywords if keyword.arg in ("torch_dtype", "dtype")]
    if not any(may_be_float16(module, dtype.value) and _whatever_for(module, dtype.value) for dtype in dtypes):
        return False
    if any(keyword.arg in (None, *QUANTISES) for keyword in keywords):
        return False
    match call.func:
        case ast.Attribute(attr="from_pretrained", value=owner):
            return "Pipeline" not in text(module, owner)
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
            return any(
                _hands_on(module, loader, dtypes) for loader in module.nodes(ast.FunctionDef) if loader.name == name
            )
    return False


def _whatever_for(module: Module, dtype: ast.expr) -> bool:
    """Whether a dtype does not depend on what the model is loaded for: a choice may, one of the attention does not."""
    return not isinstance(dtype, ast.IfExp) or re.search("attn|flash", text(module, dtype.test)) is not None


def _hands_on(module: Module, loader: ast.FunctionDef, dtypes: list[ast.keyword]) -> bool:
    """Whether a function gives back what it loads in the dtype that it is given."""
    match loader.body[-1], loader.args.kwarg:
        case ast.Return(
            value=ast.Call(func=ast.Attribute(attr="from_pretrained", value=owner), keywords=keywords)
        ), rest:
            given = {(one.arg, one.value.id) for one in keywords if isinstance(one.value, ast.Name)}
        case _:
            return False
    if "Pipeline" in text(module, owner) or any(keyword.arg in QUANTISES for keyword in keywords):
        return False
    named = {(dtype.arg, dtype.arg) for dtype in dtypes}
    return bool(given & named) or (rest is not None and (None, rest.arg) in given)


def _changed(module: Module, load: ast.stmt, name: str) -> bool:
    """Whether the model is made float32 or frozen again, in whole or in part. What is loaded in float16 whatever is
    asked for, and frozen only if it is asked for, is trained otherwise."""
    scope = module.scope(load)
    asked = isinstance(load, ast.Assign) and _always_half(load.value) and f"{name}.parameters()" in module.text
    for node in walk(scope):
        match node:
            case ast.Call(func=ast.Attribute(attr="requires_grad_", value=ast.Name(id=same))) if same == name and asked:
                if not isinstance(module.parents[module.statement(node)], ast.If):
                    return True
            case ast.Call(func=ast.Attribute(attr="float" | "requires_grad_", value=ast.Name(id=same))) if same == name:
                return True
            case ast.Call(func=ast.Attribute(attr="to", value=ast.Name(id=same)), keywords=keywords) if same == name:
                if any("float32" in text(module, one) for one in (*node.args, *(k.value for k in keywords))):
                    return True
            case ast.Assign(targets=[ast.Attribute(attr="requires_grad" | "data")]):
                return True
    return False


def _always_half(load: ast.expr) -> bool:
    """Whether the dtype is written where a model is loaded."""
    return isinstance(load, ast.Call) and any(
        isinstance(keyword.value, ast.Attribute) and keyword.value.attr in ("float16", "half")
        for keyword in load.keywords
        if keyword.arg in ("torch_dtype", "dtype")
    )


def _trainer_of(module: Module, load: ast.stmt, name: str) -> ast.Call | None:
    """The Trainer that is given the model and told to train, or the preparation for a loop with a backward."""
    scope = module.scope(load)
    trains = any(
        isinstance(node, ast.Attribute) and node.attr == "train" and isinstance(module.parents.get(node), ast.Call)
        for node in walk(scope)
    )
    backward = any(isinstance(node, ast.Attribute) and node.attr == "backward" for node in module.all_nodes)
    for call in walk(scope):
        match call:
            case ast.Call(func=ast.Name(id=callee) | ast.Attribute(attr=callee), args=args, keywords=keywords):
                given = [*args, *(keyword.value for keyword in keywords if keyword.arg == "model")]
            case _:
                continue
        if not any(isinstance(one, ast.Name) and one.id == name for one in given):
            continue
        if callee.endswith("Trainer") and trains and _told_to_train(module, scope, call):
            return call
        if callee == "prepare" and backward and _is_accelerator(module, call):
            return call
    return None


def _told_to_train(module: Module, scope: ast.AST, made: ast.Call) -> bool:
    """Whether `train()` is called on a Trainer where it is made, or on what it was assigned to."""
    match module.parents[made]:
        case ast.Attribute(attr="train") as method if isinstance(module.parents[method], ast.Call):
            return True
    statement = module.statement(made)
    if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
        return False
    name = statement.targets[0].id
    for node in walk(scope):
        match node:
            case ast.Call(func=ast.Attribute(attr="train", value=ast.Name(id=same))) if same == name:
                return True
    return False


def _is_accelerator(module: Module, call: ast.Call) -> bool:
    """Whether `x.prepare` is Accelerate's."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(owner, ast.Name) and any(
        isinstance(value, ast.Call) and text(module, value.func).endswith("Accelerator")
        for value in assigned(module, owner)
    )


def _scales(module: Module) -> bool:
    """Whether the file asks for float16 mixed precision, and so for a scaler."""
    for node in module.all_nodes:
        match node:
            case ast.keyword(arg="fp16", value=value) if not (isinstance(value, ast.Constant) and not value.value):
                return True
            case ast.keyword(arg="mixed_precision", value=ast.Constant(value="fp16")):
                return True
    return False


@rule("AMP303")
def adapters_in_half(script: Script) -> Iterator[Finding]:
    """An adapter is added to a float16 model: it gets the dtype of the model, and a scaler refuses its gradients."""
    module = script.module
    if "fp16" not in module.text and "GradScaler" not in module.text:
        return
    for call in module.all_nodes:
        match call:
            case ast.Call(func=ast.Attribute(attr="add_adapter", value=ast.Name(id=name))):
                pass
            case _:
                continue
        function = module.function(call)
        if function is None or not any(
            isinstance(node, ast.Attribute) and node.attr == "backward" for node in walk(function)
        ):
            continue
        cast = _cast_before(module, function, name, call)
        if cast is None or _upcasts(module, function, name, call):
            continue
        yield found_at(
            "AMP303",
            module,
            call,
            f"the adapter gets the dtype of {name}, float16: unscaling its gradients raises ValueError: Attempting to "
            "unscale FP16 gradients.",
            evidence=[
                (module, cast, f"{name} becomes float16 with fp16"),
                (module, call, "the adapter's parameters become float16, too, and are trained"),
            ],
            help="cast the trained parameters to float32 after this: diffusers.training_utils.cast_training_params(…)",
        )


def _cast_before(module: Module, function: ast.AST, name: str, before: ast.Call) -> ast.Call | None:
    """The cast of a model to a dtype that is, or may be, float16."""
    for call in walk(function):
        match call:
            case ast.Call(func=ast.Attribute(attr="to", value=ast.Name(id=same)), args=args, keywords=keywords):
                given = [*args, *(keyword.value for keyword in keywords if keyword.arg == "dtype")]
                earlier = same == name and call.lineno < before.lineno
                if earlier and any(may_be_float16(module, one) for one in given):
                    return call
            case ast.Assign(targets=[ast.Name(id=same)], value=ast.Call() as load) if same == name:
                if load.lineno < before.lineno and _in_float16(module, load):
                    return load
    return None


def _upcasts(module: Module, function: ast.AST, name: str, after: ast.Call) -> bool:
    """Whether trained parameters are made float32 between a call and the training."""
    rows = [node.lineno for node in walk(function) if isinstance(node, ast.Attribute) and node.attr == "backward"]
    last = min((row for row in rows if row > after.lineno), default=after.lineno)
    for node in walk(function):
        if not after.lineno <= getattr(node, "lineno", 0) <= last:
            continue
        match node:
            case ast.Call(func=ast.Name(id="cast_training_params") | ast.Attribute(attr="cast_training_params")):
                return True
            case ast.Call(func=ast.Attribute(attr="float", value=ast.Name(id=same))) if same == name:
                return True
            case ast.Assign(targets=[ast.Attribute(attr="data")]):
                return True
            case ast.Call(func=ast.Attribute(attr="to", value=ast.Name(id=same)), args=args, keywords=keywords):
                given = (*args, *(keyword.value for keyword in keywords))
                if same == name and any("float32" in text(module, one) for one in given):
                    return True
    return False
