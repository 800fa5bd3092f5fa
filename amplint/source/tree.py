"""Questions about syntax trees that are asked everywhere: what a call calls, what it is given, what code names."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.source.walk import walk


def place_of(node: ast.AST) -> tuple[int, int]:
    """Where code begins: what is before what."""
    return node.lineno, node.col_offset  # type: ignore[attr-defined]


def calls_in(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in walk(tree) if isinstance(node, ast.Call))


def last_name(node: ast.AST | None) -> str:
    """The last part of a dotted name: `scaler` of `trainer.scaler`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def names_autocast(name: str) -> bool:
    """Whether something is called after autocast: not after Transformer Engine's, which is about float8 in its own
    layers (`te.fp8_autocast`, `maybe_te_autocast`)."""
    return "autocast" in name and "fp8" not in name and "te_autocast" not in name


def called_name(node: ast.AST) -> str:
    """The last part of what a call calls: `clip_grad_norm_` of `torch.nn.utils.clip_grad_norm_(…)`."""
    return last_name(node.func if isinstance(node, ast.Call) else node)


def named_argument(call: ast.Call, name: str) -> ast.expr | None:
    """What a call is given by this name."""
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)


def is_differentiable(node: ast.AST) -> bool:
    """autograd.grad(…, create_graph=True): a gradient that a loss is made of."""
    asked = named_argument(node, "create_graph") if isinstance(node, ast.Call) else None
    return getattr(asked, "value", None) is True


def parameters(code: ast.AST | None) -> list[str]:
    """The names of a function's parameters; other code has none."""
    if not isinstance(code, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return []
    return [one.arg for one in walk(code.args) if isinstance(one, ast.arg)]


def positional(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[str]:
    """The parameters that a call can fill by their place."""
    return [one.arg for one in (*function.args.posonlyargs, *function.args.args)]


def defaults(arguments: ast.arguments) -> list[tuple[str, ast.expr]]:
    """What parameters are unless they are given."""
    places = [*arguments.posonlyargs, *arguments.args]
    plain = zip(places[len(places) - len(arguments.defaults) :], arguments.defaults, strict=True)
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [(one.arg, value) for one, value in (*plain, *named) if value is not None]


def passed(function: ast.FunctionDef, call: ast.Call, name: str, bound: bool) -> ast.expr | None:
    """What a call passes for a parameter; `bound`: of a method, which is given its object, too."""
    if (named := named_argument(call, name)) is not None:
        return named
    places = positional(function)[bound:]
    index = places.index(name) if name in places else len(call.args)
    if index >= len(call.args) or any(isinstance(one, ast.Starred) for one in call.args[: index + 1]):
        return None
    return call.args[index]


def assigned_to(code: ast.AST, text: str) -> list[ast.expr]:
    """What some code assigns to a name or field."""
    stores = (node for node in walk(code) if isinstance(node, ast.Assign))
    return [store.value for store in stores if text in map(ast.unparse, store.targets)]


def names_in(*trees: ast.AST) -> set[str]:
    """The names that some code reads or stores."""
    return {node.id for tree in trees for node in walk(tree) if isinstance(node, ast.Name)}


def uses_of(code: ast.AST, name: str) -> list[ast.Name]:
    """Where some code reads or stores a name."""
    return [node for node in walk(code) if isinstance(node, ast.Name) and node.id == name]


def stored_names(*trees: ast.AST) -> set[str]:
    """The names that some code stores."""
    nodes = (node for tree in trees for node in walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
