"""Code of a model that a training step does not come by: under a flag that is off unless it is given
(`forward(x, reverse=False)`), or in methods that only such code calls, or what makes the model."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator

from amplint.source.module import Module
from amplint.source.tree import called_name, defaults, parameters

MAKING = frozenset(("__init__", "reset_parameters", "init_weights", "_init_weights", "_reset_parameters"))
_DECORATORS = ("torch.", "staticmethod", "classmethod", "property")
_DEPTH = 4


def unreached(module: Module, node: ast.AST, script: Module, files: Collection[Module]) -> bool:
    """Whether a node in a file that a script uses runs only where a flag asks for it that the script never gives."""
    return module is not script and _unreached(module, node, script, files, _DEPTH)


def under_a_flag(module: Module, node: ast.AST, files: Collection[Module]) -> bool:
    """Whether a node runs only where a parameter is given that is False by default, and none of some files gives it."""
    function = module.function(node)
    return isinstance(function, ast.FunctionDef) and _asleep(module, node, function, files, files)


def _unreached(module: Module, node: ast.AST, script: Module, files: Collection[Module], depth: int) -> bool:
    function = module.function(node)
    if not isinstance(function, ast.FunctionDef):
        return False
    if function.name in MAKING or _asleep(module, node, function, (script,), files):
        return True
    called = {one.attr for one in script.nodes(ast.Attribute)} | {one.arg for one in script.nodes(ast.keyword)}
    if depth == 0 or function.name == "forward" or function.name.startswith("__") or function.name in called:
        return False
    if not all(ast.unparse(one).startswith(_DECORATORS) for one in function.decorator_list):
        return False  # it may be handed to someone else
    uses = [(one, use) for one in files for use in _uses(one, function)]
    if not uses and not function.name.startswith("_"):
        return False  # who knows who calls it
    return all(_unreached(one, use, script, files, depth - 1) for one, use in uses)


def _asleep(
    module: Module,
    node: ast.AST,
    function: ast.FunctionDef,
    givers: Collection[Module],
    files: Collection[Module],
) -> bool:
    """Whether a condition above a node is a parameter that is False where nothing is given, and is not given."""
    inner: ast.AST = node
    for above in module.ancestors(node):
        if above is function:
            break
        match above:
            case (
                ast.If(test=ast.Name(id=name), body=arm)
                | ast.If(test=ast.UnaryOp(op=ast.Not(), operand=ast.Name(id=name)), orelse=arm)
            ) if inner in arm:
                parameters = {one.arg for one in (*function.args.args, *function.args.kwonlyargs)}
                if name in parameters and _off(name, files) and not any(_gives(one, name, files) for one in givers):
                    return True
        inner = above
    return False


def _gives(module: Module, name: str, files: Collection[Module]) -> bool:
    """Whether a file gives a parameter something else than False: by its name, as a field, or by its place in a call
    of a model, or of a function that has it."""
    if any(one.arg == name and getattr(one.value, "value", None) is not False for one in module.nodes(ast.keyword)):
        return True
    fields = module.nodes(ast.Attribute)
    if any(one.attr == name and isinstance(one.ctx, ast.Store) for one in fields):
        return True
    places = [(function, index) for one in files for function, index in _places(one, name)]
    models = {ast.unparse(one.value) for one in fields if one.attr in ("parameters", "train", "eval", "to", "cuda")}
    for call in module.nodes(ast.Call):
        if any(name in (getattr(one, "id", ""), getattr(one, "attr", "")) for one in call.args):
            return True
        called = called_name(call)
        for function, index in places:
            if len(call.args) > index and function in (called, "forward" if ast.unparse(call.func) in models else ""):
                return True
    return False


def _places(module: Module, name: str) -> Iterator[tuple[str, int]]:
    """The functions of a file that have a parameter, and its place in a call."""
    for function in module.nodes(ast.FunctionDef):
        names = [one.arg for one in function.args.args]
        if name in names:
            yield function.name, names.index(name) - (names[0] == "self")


def _off(name: str, files: Collection[Module]) -> bool:
    """Whether a parameter is False by default wherever it has a default, and has one somewhere."""
    found = [value for one in files for value in _defaults(one, name)]
    return bool(found) and all(getattr(value, "value", None) is False for value in found)


def _defaults(module: Module, name: str) -> Iterator[ast.expr]:
    for function in module.nodes(ast.FunctionDef):
        yield from (value for one, value in defaults(function.args) if one == name)


def _uses(module: Module, function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Where a file reads a function or method by its name."""
    for node in module.nodes(ast.Attribute):
        if node.attr == function.name:
            yield node
    for name in module.nodes(ast.Name):
        if name.id == function.name and isinstance(name.ctx, ast.Load):
            around = module.function(name)
            own = parameters(around)
            if name.id not in own:
                yield name
