"""Whole numbers that half precision does not hold: positions, indices, timesteps."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.around import surely_runs_in_half
from amplint.checks.numerics.common import guarded, known_as, made_half, named
from amplint.checks.registry import Script, found, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.source import events
from amplint.source.interpret import tensors
from amplint.source.module import Module
from amplint.source.tree import named_argument, uses_of
from amplint.source.values import ASSUMED, KNOWN, Const, Sym, Tensor, Value
from amplint.source.walk import walk

_EXACT = {"float16": 2048, "bfloat16": 256, "low": 2048}  # the largest integer up to which all are exact
_OUTER = re.compile(r" *(\w) *, *(?!\1)\w *-> *")  # einsum("i,j->ij"): angles, the positions times frequencies
_PRODUCTS = frozenset("matmul bmm mm einsum".split())


@rule("AMP411")
def integers_in_half(script: Script) -> Iterator[Finding]:
    """Positions, indices or timesteps become half precision, where neighbours are the same number."""
    for event in script.events(events.Operation):
        dtype = event.result.dtype
        if event.name not in ("cast", "arange", *_PRODUCTS) or dtype not in tensors.HALF or guarded(event):
            continue
        if not event.args and event.name != "arange":
            continue  # `mm(*operands)`
        if event.name in _PRODUCTS:
            operands = [arg for arg in event.args if isinstance(arg, Tensor) and arg.dtype not in tensors.HALF]
            outer = isinstance(event.args[0], Const) and _OUTER.match(str(event.args[0].value)) is not None
            counted = next((one for arg in operands if (one := tensors.counted(arg, scaled=outer)) is not None), None)
            if counted is None or _cast_to_float32(operands) or any(_on_the_cpu(one, event) for one in operands):
                continue
            if any(isinstance(arg, Tensor) and arg.made == "softmax" for arg in event.args):
                continue  # the mean of a distribution over bins, which are few: box distances, ages, scores
            severity = known_as(event.result.trust)
            what = f"{event.name} casts positions to {named(dtype)} under autocast"
            help = "compute angles in float32: with torch.autocast(device_type, enabled=False)"
        else:
            source = event.result if event.name == "arange" else event.args[0]
            counted = tensors.counted(source) or _drawn(source)
            if event.result.trust < ASSUMED:
                continue
            severity = known_as(event.result.trust)
            sure = event.result.trust == KNOWN
            what = f"whole numbers become {named(dtype)}" if sure else "whole numbers take a dtype that may be half"
            help = "keep them in integers or float32, and cast what is computed of them"
        if counted is None or _few(counted, dtype) or _few_by_default(event.module, counted, dtype):
            continue
        if _fractions(event.module, event.node):
            continue
        rests = event.name not in _PRODUCTS and severity == Severity.NOTE  # on what comes
        if rests and (not _as_many_as_given(counted) or _of_whole_numbers(event.module, event.node)):
            continue
        if rests and not surely_runs_in_half(script):
            continue
        limits = "2048 (bfloat16: above 256)" if dtype == "low" else str(_EXACT[dtype])
        yield found(
            "AMP411",
            event,
            f"{what}: above {limits} several of them are the same number",
            severity=severity,
            evidence=made_half(script, counted),
            help=help,
        )


@rule("AMP411")
def every_tensor_in_half(script: Script) -> Iterator[Finding]:
    """All tensors among some values are cast to half, whatever they hold: token ids and masks, too."""
    module = script.module
    for choice in module.nodes(ast.IfExp) if ".half()" in module.text else ():
        match choice:
            case ast.IfExp(
                test=test,
                body=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="half"), args=[]),
                orelse=ast.Name(id=other),
            ) if name == other and _each_of(module, choice, name):
                said = text(module, test, 200)
                if _TENSOR.search(said) and not _ASKS.search(said):
                    yield found_at(
                        "AMP411",
                        module,
                        choice,
                        "every tensor becomes float16, whatever it holds: ids above 2048 run together, a mask is no "
                        "bool any more",
                        severity=Severity.NOTE,
                        help=f"ask first: {name}.is_floating_point()",
                    )


_TENSOR = re.compile(r"isinstance\(\w+, (torch\.)?Tensor\)|is_tensor\(\w+\)")
_ASKS = re.compile(r"dtype|float|half|long|int\b|key|name|\bin\b|==")


def _each_of(module: Module, choice: ast.IfExp, name: str) -> bool:
    """Whether a name stands for one value after the other: in a comprehension, or a lambda that is mapped."""
    for above in module.ancestors(choice):
        match above:
            case ast.Lambda(args=ast.arguments(args=[ast.arg(arg=given)])):
                called = module.parents[above]
                return given == name and isinstance(called, ast.Call) and getattr(called.func, "id", "") == "map"
            case ast.ListComp() | ast.GeneratorExp() | ast.DictComp():
                targets = [one.target for one in above.generators]
                return any(isinstance(one, ast.Name) and one.id == name for top in targets for one in walk(top))
            case ast.stmt():
                break
    return False


def _cast_to_float32(operands: list[Tensor]) -> bool:
    """Whether operands were cast by hand in order to be multiplied in float32: AMP211 says what became of it. One cast
    of integers only makes them numbers that can be multiplied."""
    cast = [one for one in operands if one.made == "float"]
    return len(cast) > 1 or any(
        isinstance(part, Tensor) and part.dtype in tensors.HALF for one in cast for part in one.parents
    )


def _on_the_cpu(value: object, event: events.Event, depth: int = 8) -> bool:
    """Whether a tensor is computed of numbers that the same function makes without a device and moves nowhere: what
    multiplies them is on the CPU, too, where CUDA's autocast casts nothing."""
    if not isinstance(value, Tensor) or depth == 0:
        return False
    if value.made == "arange":
        made, module = value.node, event.module
        if not isinstance(made, ast.Call) or made not in module.parents or named_argument(made, "device") is not None:
            return False
        return module.function(made) is module.function(event.node) is not None  # no buffer, which moves
    return value.made in _STAY and any(_on_the_cpu(part, event, depth - 1) for part in value.parents)


_STAY = frozenset(
    "add sub mul div pow neg exp reciprocal flatten view reshape unsqueeze getitem float meshgrid".split()
)


def _drawn(value: object) -> Tensor | None:
    """A tensor of integers drawn from a range that is known."""
    return value if isinstance(value, Tensor) and value.made == "randint" else None


def _few(counted: Tensor, dtype: str) -> bool:
    """Whether all of the numbers are exact, or few, or not known to be many: a step makes them indices of channels."""
    bounds = [part for part in counted.parents if not isinstance(part, Tensor)]
    if counted.made == "arange" and len(bounds) > 2:
        return True
    last = bounds[1] if len(bounds) > 1 else bounds[0] if bounds else None
    if isinstance(last, Const) and isinstance(last.value, int | float):
        return abs(last.value) <= _EXACT[dtype] + 1
    return counted.made == "randint"


def _fractions(module: Module, count: ast.AST) -> bool:
    """Whether numbers are divided by their own count at once, as `arange(n) / n`: what half precision then rounds are
    fractions, each by the same share, as it does any number."""
    if not isinstance(count, ast.Call):
        return False
    ends = [module.source(one) for one in (*count.args, *(keyword.value for keyword in count.keywords))]
    match module.parents[count], module.function(count):
        case ast.Assign(targets=[ast.Name(id=name)]), (ast.FunctionDef() as function):
            loads = uses_of(function, name)
            parts = [module.parents[one] for one in loads if isinstance(one.ctx, ast.Load)]
            if parts and all(isinstance(one, ast.BinOp) and _divided_by(module, one, ends) for one in parts):
                return True
    for above in module.ancestors(count):
        match above:
            case ast.BinOp() if _divided_by(module, above, ends):
                return True
            case ast.BinOp(op=ast.Mult() | ast.Div()) | ast.UnaryOp():
                continue
        return False
    return False


def _divided_by(module: Module, quotient: ast.BinOp, ends: list[str]) -> bool:
    return isinstance(quotient.op, ast.Div) and module.source(quotient.right) in ends


def _as_many_as_given(counted: Tensor) -> bool:
    """Whether a count ends where a tensor does: at its length, width, number of entries. What a field says is a number
    of channels, which is small."""
    return any(_is_size(part) for part in counted.parents if isinstance(part, Value))


def _is_size(value: object, depth: int = 3) -> bool:
    match value:
        case Sym(kind="item", parts=(Sym(kind="attr", parts=(*_, "shape")), *_)):
            return True
        case Sym(kind="call", parts=("len" | "size" | "numel", *_)):
            return True
        case Sym(kind="op" | "unary" | "number", parts=parts) if depth:
            return any(_is_size(part, depth - 1) for part in parts)
    return False


def _of_whole_numbers(module: Module, cast: ast.AST) -> bool:
    """Whether the dtype is that of something that is compared here: of lengths, which are whole numbers themselves."""
    function = module.function(cast)
    if not isinstance(cast, ast.Call) or function is None:
        return False
    given = (*cast.args, *(keyword.value for keyword in cast.keywords))
    names = {
        one.value.id
        for one in given
        if isinstance(one, ast.Attribute) and one.attr == "dtype" and isinstance(one.value, ast.Name)
    }
    return any(
        isinstance(node, ast.Compare)
        and any(isinstance(inner, ast.Name) and inner.id in names for part in _sides(node) for inner in walk(part))
        for node in walk(function)
    )


def _sides(compared: ast.Compare) -> list[ast.expr]:
    """What is compared with `<` and the like: not dtypes, devices and sizes."""
    sides = (compared.left, *compared.comparators)
    asks = any(_is_about(one) for side in sides for one in walk(side))
    return [] if asks or any(isinstance(one, ast.Is | ast.IsNot) for one in compared.ops) else list(sides)


def _is_about(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("dtype", "device", "shape", "ndim", "size", "dim")


def _few_by_default(module: Module, counted: Tensor, dtype: str) -> bool:
    """Whether a count ends at a parameter whose default is exact (`max_len=32`): nothing shows that there are more."""
    function = module.function(counted.node) if counted.node is not None else None
    if not isinstance(counted.node, ast.Call) or not isinstance(function, ast.FunctionDef):
        return False
    names = [one.id for arg in counted.node.args for one in walk(arg) if isinstance(one, ast.Name)]
    every = [*function.args.posonlyargs, *function.args.args]
    defaults = dict(
        zip([one.arg for one in every[len(every) - len(function.args.defaults) :]], function.args.defaults, strict=True)
    )
    return bool(names) and all(
        isinstance(default := defaults.get(name), ast.Constant)
        and isinstance(default.value, int)
        and 4 * default.value <= _EXACT[dtype]
        for name in names
    )
