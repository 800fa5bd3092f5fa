"""Dtypes that do not go together (AMP505, AMP508)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.crashes.common import clash, enabled, evidence, in_place, operand_node, policy
from amplint.checks.numerics.common import guarded, named
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.checks.state.casts import half_cast
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import crashes as fixes
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.interpret.tensors import HALF
from amplint.source.module import Module
from amplint.source.tree import called_name
from amplint.source.values import KNOWN, Items, Many, Object, Sym, Tensor, Value
from amplint.source.walk import walk

_LAYERS = frozenset(
    (
        "linear bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d lstm gru rnn_tanh "
        "rnn_relu lstm_cell gru_cell rnn_tanh_cell prelu multi_head_attention_forward"
    ).split()
)
_NORMS = frozenset("layer_norm group_norm batch_norm".split())  # half weights need a half input
_STRICT_NORMS = frozenset("layer_norm group_norm".split())  # on a GPU also float32 weights a float32 one
# Functions that take tensors of one dtype only.
_STRICT = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner", "einsum", "tensordot", "lerp"), 2),
    **dict.fromkeys(("addmm", "baddbmm", "addbmm", "addmv", "scaled_dot_product_attention"), 3),
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "grid_sample", "grid_sampler", "bilinear"), 2),
    **dict.fromkeys(("binary_cross_entropy", "huber_loss", "mse_loss"), 2),
}
# Whose forward takes what its backward does not, and the torch whose backward does, too (mse_loss: pytorch#175743;
# measured: 2.11 raises, 2.13 does not).
_IN_BACKWARD = {"huber_loss": None, "mse_loss": (2, 12)}


# -- layers ------------------------------------------------------------------------------------------------------------


@rule("AMP505")
def mixed_dtype_layer(script: Script) -> Iterator[Finding]:
    """A layer is given a tensor of another dtype than its weights, with no autocast to cast them."""
    if _casts_out_of_sight(script):
        return
    for event in script.events(events.Operation):
        if not event.layer or event.name not in _LAYERS | _NORMS or guarded(event) or enabled(event) is not None:
            continue
        given = event.args[0] if event.args else None
        if not isinstance(given, Tensor) or given.trust != KNOWN:
            continue
        wide, low = event.layer == "float32", event.layer in HALF
        strict = event.name in _LAYERS or (event.name in _STRICT_NORMS and script.settings.target_device == "cuda")
        if not ((wide and given.dtype in HALF and strict) or (low and given.dtype == "float32")):
            continue
        left = given.region is not None and wide
        yield found(
            "AMP505",
            event,
            f"a layer with {event.layer} weights is given {named(given.dtype)}, outside autocast: RuntimeError, the "
            "dtypes must be the same",
            evidence=evidence(script, given),
            help="run the layer in the region, too, or cast the tensor to float32 where it leaves the region"
            if left
            else "run it under autocast with float32 weights and inputs, or cast the input to the weights' dtype",
        )


# get_peft_model casts the adapters, not the model.
_CASTERS = ("set_default_dtype", "set_default_tensor_type", "FullyShardedData", "get_peft_model")


def _casts_out_of_sight(script: Script) -> bool:
    """Whether models may be cast in a way that is not followed: by an engine, or module by module."""
    if any(word in script.module.text for word in _CASTERS):
        return True
    if any(isinstance(event.model, Sym) for event in script.events(events.Cast)):
        return True
    worlds = [world for ended in script.reading.machine.rounds.values() for world in ended]
    spaces = {id(space): space for world in worlds for space in world.spaces.values()}  # worlds share most
    return any(_engine(value) for space in spaces.values() for value in space.values())


def _engine(value: Value) -> bool:
    """Whether something is an engine that owns models, or what its constructor gave (`engine, optimizer, _, _ = …`)."""
    if isinstance(value, Sym) and value.kind == "item" and isinstance(value.parts[0], Value):
        value = value.parts[0]
    return isinstance(value, Object) and value.kind == "managed"


@rule("AMP505")
def every_tensor_cast(script: Script) -> Iterator[Finding]:
    """A function casts whatever is a tensor to half: indices and masks, too."""
    module = script.module
    for call in module.nodes(ast.Call):
        subject = call.func.value if isinstance(call.func, ast.Attribute) else None
        if not isinstance(subject, ast.Name) or not half_cast(module, call):
            continue
        if _whatever_comes(module, call, subject) and not _of_one_kind(module, call, subject.id):
            yield found_at(
                "AMP505",
                module,
                call,
                "every tensor is cast to half, indices and masks, too: an embedding of half indices, a half mask or "
                "half labels raise, and integers above 2048 are rounded",
                severity=Severity.WARNING,
                help="cast floating-point tensors only: x.is_floating_point()",
            )


def _whatever_comes(module: Module, call: ast.Call, subject: ast.Name) -> bool:
    """Whether all that decides about a cast is that its subject is a tensor, and the subject is any of many: an
    argument of a function for one thing, or of a comprehension over arguments."""
    above = list(module.ancestors(call))
    if any(_goes_through_weights(module, node) for node in above):
        return False
    for place, node in enumerate(above):
        inner = above[place - 1] if place else call
        match node:
            case ast.IfExp(test=test, body=body) if body is inner:
                return _asks_only_for_a_tensor(test, subject.id)
            case ast.If(test=test, body=body) if inner in body:
                return _asks_only_for_a_tensor(test, subject.id) and _is_argument(module, call, subject)
            case ast.stmt() if not isinstance(node, ast.Return | ast.Assign | ast.Expr):
                return False
    return False


def _of_one_kind(module: Module, call: ast.Call, name: str) -> bool:
    """Whether a comprehension goes through what a batch holds under one key, or through what is concatenated beside it:
    all images, or all masks, not one of each."""
    function = module.function(call) or module.tree
    joined = {
        one.args[0].id
        for one in walk(function)
        if isinstance(one, ast.Call) and called_name(one) in _JOINS and one.args and isinstance(one.args[0], ast.Name)
    }
    for above in module.ancestors(call):
        if isinstance(above, ast.ListComp | ast.GeneratorExp | ast.For):
            generator = above if isinstance(above, ast.For) else above.generators[0]
            if not isinstance(generator.target, ast.Name) or generator.target.id != name:
                continue
            sources = [generator.iter]
            if isinstance(generator.iter, ast.Name):
                name = generator.iter.id
                made = (node for node in walk(function) if isinstance(node, ast.Assign))
                sources = [node.value for node in made if _is_name(node.targets[0], name)]
            if name in joined or (sources and all(map(_under_a_key, sources))):
                return True
    return False


_JOINS = frozenset("cat concat concatenate stack vstack hstack".split())


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _under_a_key(node: ast.expr) -> bool:
    """Whether this is what a dict holds under a key that is written out."""
    match node:
        case ast.Subscript(slice=ast.Constant(value=str())):
            return True
        case ast.Call(func=ast.Attribute(attr="get" | "pop"), args=[ast.Constant(value=str()), *_]):
            return True
    return False


def _goes_through_weights(module: Module, node: ast.AST) -> bool:
    """Whether a loop or a comprehension goes through a state dict: what is in it are weights."""
    match node:
        case ast.DictComp(generators=generators) | ast.ListComp(generators=generators):
            return any("state_dict" in text(module, one.iter) for one in generators)
        case ast.For(iter=over):
            return "state_dict" in text(module, over)
    return False


def _is_argument(module: Module, call: ast.Call, subject: ast.Name) -> bool:
    """Whether a function returns the cast of its only argument, itself or in containers."""
    function = module.function(call)
    statement = module.statement(call)
    if not isinstance(function, ast.FunctionDef) or not isinstance(statement, ast.Return):
        return False
    return bool(function.args.args) and subject.id == function.args.args[0].arg


def _asks_only_for_a_tensor(test: ast.expr, name: str) -> bool:
    """`isinstance(t, torch.Tensor)` or `torch.is_tensor(t)`, perhaps with other questions than one of its dtype."""
    if any(isinstance(node, ast.Attribute) and node.attr in _DTYPE_WORDS for node in walk(test)):
        return False
    for node in walk(test):
        match node:
            case ast.Call(func=ast.Name(id="isinstance"), args=[ast.Name(id=same), kind]) if same == name:
                if isinstance(kind, ast.Attribute) and kind.attr == "Tensor":
                    return True
                if isinstance(kind, ast.Name) and kind.id == "Tensor":
                    return True
            case ast.Call(func=ast.Attribute(attr="is_tensor"), args=[ast.Name(id=same)]) if same == name:
                return True
    return False


_DTYPE_WORDS = frozenset("dtype is_floating_point is_complex FloatTensor type".split())


# -- functions ---------------------------------------------------------------------------------------------------------


@rule("AMP508")
def mixed_dtype_op(script: Script) -> Iterator[Finding]:
    """A function of several tensors is given half and float32, with no autocast to cast them."""
    for event in script.events(events.Operation):
        count = _STRICT.get(event.name)
        if count is None or event.layer or guarded(event):
            continue
        if not in_place(event) and policy(script, event) in ("lower", "promote", "fp32"):
            continue
        if enabled(event) is not None and not (in_place(event) or event.name == "lerp"):
            continue
        in_backward = event.name in _IN_BACKWARD
        if in_backward and not (event.grad and any(True for _ in script.events(events.Backward))):
            continue
        if (promotes := _IN_BACKWARD.get(event.name)) is not None and script.settings.target_torch >= promotes:
            continue
        operands = list(_operands(event))[:count]
        pair = next(((one, two) for one in operands for two in operands if clash(one, two) and one.dtype in HALF), None)
        if pair is None:
            continue
        yield found(
            "AMP508",
            event,
            f"{event.name} of {named(pair[0].dtype)} and {pair[1].dtype}: RuntimeError"
            f"{' in backward' if in_backward else ''}, the dtypes must be the same",
            evidence=evidence(script, *pair),
            help="cast one to the dtype of the other, or run it under autocast (in-place forms are never cast)",
        )


@rule("AMP508")
def two_half_precisions(script: Script) -> Iterator[Finding]:
    """An operation that autocast promotes is given the other half precision than its region's: it knows only one."""
    for event in script.events(events.Operation):
        region = enabled(event)
        if region is None or policy(script, event) != "promote" or guarded(event) or in_place(event):
            continue
        lower = tensors.region_dtype(region)
        other = next((one for one in _operands(event) if one.dtype != lower or one.trust != KNOWN), None)
        if other is None or {lower, other.dtype} != {"float16", "bfloat16"} or other.trust != KNOWN:
            continue  # float32 before it makes float32 of both
        nodes = [operand_node(event, place) for place, value in enumerate(event.args) if value is other]
        yield found(
            "AMP508",
            event,
            f"{event.name} of {other.dtype} in a {lower} region: RuntimeError, autocast promotes nothing but {lower} "
            "and float32",
            evidence=evidence(script, other),
            help="call .float() on it",
            fix=fixes.cast(event.module, [node for node in nodes if node is not None]),
        )


def _operands(event: events.Operation) -> Iterator[Tensor]:
    for value in event.args:
        match value:
            case Tensor():
                yield value
            case Items(items=items):
                yield from (item for item in items if isinstance(item, Tensor))
            case Many(item=Tensor() as item):
                yield item
