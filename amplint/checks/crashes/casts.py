"""Casts to float32 that a dtype decides, before an operation without a half kernel: whether they leave a half out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from amplint import knowledge
from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.rewrite.fixes import crashes as fixes
from amplint.source.module import Module
from amplint.source.tree import names_in
from amplint.source.walk import walk

_HALF = {"torch.float16": "float16", "torch.half": "float16", "torch.bfloat16": "bfloat16"}
_WIDE = {"torch.float32", "torch.float", "torch.float64", "torch.double"}
_NOT_CAST = " is not cast"


@dataclass(frozen=True)
class Cast:
    """`if x.dtype == torch.bfloat16: x = x.float()`: what is cast, which dtypes, and on a CPU only."""

    node: ast.stmt
    names: frozenset[str]
    dtypes: frozenset[str]
    cpu_only: bool


@rule("AMP502")
def decomposed_as_it_is(script: Script) -> Iterator[Finding]:
    """A decomposition that a cast by dtype does not cover: another dtype, another device, another matrix."""
    for call, operand, missing, cast in _left_out(script.module, "torch.linalg."):
        yield found_at(
            "AMP502",
            script.module,
            call,
            f"{text(script.module, call.func)} has no kernel for half precision on any device: {missing}",
            severity=Severity.WARNING if missing.endswith(_NOT_CAST) else Severity.ERROR,
            evidence=[(script.module, cast.node, "casts some of what comes to float32")],
            help="compute it in float32: call .float() on what goes in, whatever half it is",
            fix=fixes.cast(script.module, [operand], safe=False) if isinstance(operand, ast.Name) else None,
        )


@rule("AMP503")
def transformed_as_it_is(script: Script) -> Iterator[Finding]:
    """A Fourier transform of a half dtype that a cast by dtype does not cover."""
    for call, operand, missing, cast in _left_out(script.module, "torch.fft."):
        if cast.cpu_only:
            continue  # a GPU transforms sizes that are powers of two
        yield found_at(
            "AMP503",
            script.module,
            call,
            f"{text(script.module, call.func)} in half precision: {missing}; cuFFT takes only sizes that are powers of "
            "two in float16, none in bfloat16, and sums overflow above 65504",
            severity=Severity.NOTE,
            evidence=[(script.module, cast.node, "casts some of what comes to float32")],
            help="transform in float32: call .float() on what goes in, whatever half it is",
            fix=fixes.cast(script.module, [operand], safe=False) if isinstance(operand, ast.Name) else None,
        )


def _left_out(module: Module, prefix: str) -> Iterator[tuple[ast.Call, ast.expr, str, Cast]]:
    """Calls of a library's functions that have no half kernel, their operand, and what the cast before them leaves
    out, in words."""
    calls = {call for call in module.nodes(ast.Call) if call.args and _without_kernel(module, call, prefix)}
    for function in module.nodes(ast.FunctionDef) if calls else ():
        casts = None
        for call in walk(function):
            if not isinstance(call, ast.Call) or call not in calls:
                continue
            if module.function(call) is not function:
                continue
            casts = list(_casts(module, function)) if casts is None else casts
            missing = _missing(module, function, call.args[0], casts) if casts else None
            if missing is not None:
                yield call, call.args[0], *missing


def _without_kernel(module: Module, call: ast.Call, prefix: str) -> bool:
    table = knowledge.ops()["no_half_kernel"]
    for name in module.dotted(call.func):
        kind = prefix.removeprefix("torch.").replace(".", "_")
        short = name.removeprefix(prefix if name.startswith(prefix) else "torch.")
        if name.startswith("torch.") and "." not in short:
            return kind + short in table and (name.startswith(prefix) or kind == "linalg_")
    return False


def _missing(
    module: Module, function: ast.FunctionDef, operand: ast.expr, casts: list[Cast]
) -> tuple[str, Cast] | None:
    line = operand.lineno
    used = names_in(operand)
    before = [cast for cast in casts if cast.node.lineno < line]
    if not before or any(_is_wide(module, node) for node in walk(operand)):
        return None
    mine = [cast for cast in before if cast.names & used]
    if mine:
        if any(_is_set_otherwise(module, function, name, mine, line) for cast in mine for name in cast.names & used):
            return None
        if all(cast.cpu_only for cast in mine):
            return "the cast is made on a CPU only", mine[0]
        left = {"float16", "bfloat16"} - {dtype for cast in mine for dtype in cast.dtypes}
        return (left.pop() + _NOT_CAST, mine[0]) if len(left) == 1 else None
    if not isinstance(operand, ast.Name):
        return None
    made = _assigned(function, operand.id)
    for cast in before:
        source = next((one for one in made if names_in(one.value) & cast.names), None)
        if len(made) == 1 and source is not None and source.lineno < cast.node.lineno and _is_sum(source.value):
            return f"{operand.id} is as wide as {min(cast.names)} was before its cast", cast
    return None


def _is_sum(value: ast.expr) -> bool:
    """Whether a value is made by arithmetic on names alone: its dtype is theirs."""
    return isinstance(value, ast.BinOp) and all(isinstance(node, ast.BinOp | ast.Name) for node in walk(value))


def _is_set_otherwise(module: Module, function: ast.FunctionDef, name: str, casts: list[Cast], line: int) -> bool:
    """Whether a name is cast, or made anew, elsewhere between its first cast by dtype and its use."""
    inside = {node for cast in casts for node in walk(cast.node)}
    first = min(cast.node.lineno for cast in casts)
    for node in _assigned(function, name):
        if node in inside or not (first <= node.lineno <= line or _widens(module, node)):
            continue
        arms = [above for above in module.ancestors(node) if isinstance(above, ast.If)]
        if not any(cast.node in arms or _arm_of(cast.node, arms) for cast in casts):
            return True
    return False


def _arm_of(node: ast.stmt, arms: list[ast.If]) -> bool:
    """Whether a statement is the `elif` of an `if` that stands around another."""
    return any(node in one.orelse for one in arms)


def _casts(module: Module, function: ast.FunctionDef) -> Iterator[Cast]:
    for node in walk(function):
        match node:
            case ast.If(test=test, body=body):
                pairs = [(one.targets, one.value) for one in body if isinstance(one, ast.Assign)]
            case ast.Assign(targets=targets, value=ast.IfExp(test=test, body=value, orelse=ast.Name(id=same))):
                pairs = [(targets, value)] if any(isinstance(t, ast.Name) and t.id == same for t in targets) else []
            case _:
                continue
        names = {name for targets, value in pairs if (name := _widened(module, targets, value))}
        about = _dtypes(module, function, test) if names else None
        if about is not None:
            yield Cast(node, frozenset(names), *about)


def _widened(module: Module, targets: list[ast.expr], value: ast.expr) -> str:
    """The name that a statement casts to float32: `x = x.float()`."""
    match targets, value:
        case [ast.Name(id=name)], ast.Call(func=ast.Attribute(value=ast.Name(id=same))) if name == same:
            return name if _is_wide(module, value) else ""
    return ""


def _widens(module: Module, node: ast.Assign) -> bool:
    return any(_is_wide(module, one) for one in walk(node.value))


def _is_wide(module: Module, node: ast.AST) -> bool:
    """Whether a call casts a tensor to float32 or float64."""
    match node:
        case ast.Call(func=ast.Attribute(attr="float" | "double"), args=[]):
            return True
        case ast.Call(func=ast.Attribute(attr="to" | "type")):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            return any(module.dotted(one) & _WIDE for one in given if isinstance(one, ast.Attribute | ast.Name))
    return False


def _dtypes(module: Module, function: ast.FunctionDef, test: ast.expr) -> tuple[frozenset[str], bool] | None:
    """The half dtypes that a test asks for, and whether it asks for the CPU, too; None where it asks other things."""
    if isinstance(test, ast.Name):
        values = [one.value for one in _assigned(function, test.id) if not isinstance(one.value, ast.Constant)]
        return _dtypes(module, function, values[0]) if len(values) == 1 and values[0] is not test else None
    if isinstance(test, ast.BoolOp):
        parts = [_dtypes(module, function, value) for value in test.values]
        if isinstance(test.op, ast.Or):
            if any(part is None or part[1] for part in parts):
                return None
            return frozenset().union(*(part[0] for part in parts if part)), False
        known = [part for part in parts if part is not None]
        others = [value for value, part in zip(test.values, parts, strict=True) if part is None]
        if len(known) == 1 and all(_asks_for_cpu(one) for one in others):
            return known[0][0], bool(others)
        return None
    match test:
        case ast.Compare(ops=[ast.Eq() | ast.In()], comparators=[right]):
            named = {_HALF[name] for one in walk(right) for name in _dotted(module, one) & _HALF.keys()}
            return (frozenset(named), False) if named else None
    return None


def _dotted(module: Module, node: ast.AST) -> set[str]:
    return set(module.dotted(node)) if isinstance(node, ast.Attribute | ast.Name) else set()


def _asks_for_cpu(test: ast.expr) -> bool:
    match test:
        case ast.Compare(ops=[ast.Eq()], comparators=[right]):
            return any(isinstance(node, ast.Constant) and node.value == "cpu" for node in walk(right))
        case ast.Attribute(attr="is_cpu") | ast.UnaryOp(op=ast.Not(), operand=ast.Attribute(attr="is_cuda")):
            return True
    return False


def _assigned(function: ast.FunctionDef, name: str) -> list[ast.Assign]:
    return [
        node
        for node in walk(function)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
    ]
