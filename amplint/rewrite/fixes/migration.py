"""Fixes of family 6, migration."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence

from amplint.findings import Applicability, Edit, Fix
from amplint.rewrite import edits, importers
from amplint.rewrite.fixes import attempt
from amplint.source.module import Module
from amplint.source.tree import names_in

SAFE = Applicability.SAFE
# Positional parameters of the old functions; the new ones begin with the device and have another order.
_OLD = {
    "autocast": ("enabled", "dtype", "cache_enabled"),
    "GradScaler": ("init_scale", "growth_factor", "backoff_factor", "growth_interval", "enabled"),
    "custom_fwd": ("fwd",),
    "custom_bwd": ("bwd",),
}


def to_torch_amp(module: Module, uses: list[tuple[ast.AST, str]], kept: Collection[str] = ()) -> Fix | None:
    """All uses of deprecated names in a file at once: imports and calls depend on one another. Names that are `kept`
    stay imported."""

    def build() -> list[Edit]:
        made: list[Edit] = []
        for statement, names in _imports(module, uses).items():
            made += edits.change_import(module, statement, "torch.amp", names)
        for node, old in uses:
            if not isinstance(node, ast.alias):
                made += _use(module, node, old)
        return made + _unused(module, [node for node, _ in uses if isinstance(node, ast.Attribute)], kept)

    return attempt("use torch.amp", SAFE, build)


def taken_elsewhere(module: Module, uses: list[tuple[ast.AST, str]]) -> set[str]:
    """The names of a file's imports that would mean something else after the fix, or be gone, and that other files of
    the project may take from it."""
    bound: set[str] = set()
    for node, _ in uses:
        if isinstance(node, ast.alias) and module.function(node) is None:
            bound.add(node.asname or node.name)
    return importers.taken_elsewhere(module, bound | _roots(module, [node for node, _ in uses]))


def _imports(module: Module, uses: list[tuple[ast.AST, str]]) -> dict[ast.ImportFrom, list[str]]:
    found: dict[ast.ImportFrom, list[str]] = {}
    for node, _ in uses:
        if isinstance(node, ast.alias):
            statement = module.parents[node]
            assert isinstance(statement, ast.ImportFrom)
            found.setdefault(statement, []).append(node.name)
    return found


def _unused(module: Module, uses: list[ast.Attribute], kept: Collection[str]) -> list[Edit]:
    """Drop what `from torch.cuda import amp` imported, where nothing else uses it."""
    return edits.remove_import_name(module, *(_roots(module, uses) - {*kept}), gone=uses)


def _roots(module: Module, uses: Sequence[ast.AST]) -> set[str]:
    """The names with which dotted uses begin, but for that of torch."""
    dotted = [use for use in uses if isinstance(use, ast.Attribute)]
    roots = names_in(*dotted)
    return roots - {edits.binding_of(module, "torch", at=use) for use in dotted}


def _use(module: Module, node: ast.AST, old: str) -> list[Edit]:
    """One use: the name, if it is a dotted one, and the arguments of the call."""
    _, device, _, *_, name = old.split(".")
    parent = module.parents[node]
    function = _new_name(module, node, name)
    called = isinstance(parent, ast.Call) and parent.func is node
    if name.startswith("custom_"):
        if called:
            assert isinstance(parent, ast.Call)
            return edits.change_call(module, parent, func=function, add_keywords={"device_type": f'"{device}"'})
        if _decorates(parent, node):
            text = function or module.source(node)
            return edits.replace(module, _expr(node), f'{text}(device_type="{device}")')
        raise edits.CannotEdit("not called here")
    if called:
        assert isinstance(parent, ast.Call)
        if parent.args and isinstance(parent.args[0], ast.Constant) and isinstance(parent.args[0].value, str):
            return edits.change_call(module, parent, func=function)  # written for the new one already
        names = dict(enumerate(_OLD[name][: len(parent.args)]))
        given = [one for one in parent.keywords if one.arg in ("device", "device_type")]  # so are these
        first = [module.source(one.value) for one in given] or [f'"{device}"']
        gone = [one.arg for one in given if one.arg]
        return edits.change_call(
            module, parent, func=function, keywords_for_positional=names, add_positional_first=first, remove=gone
        )
    if _is_reference(module, node):
        return edits.replace(module, _expr(node), function) if function else []
    raise edits.CannotEdit("passed on, not called")


def _expr(node: ast.AST) -> ast.expr:
    assert isinstance(node, ast.expr)
    return node


def _decorates(parent: ast.AST, node: ast.AST) -> bool:
    return node in getattr(parent, "decorator_list", ())


def _is_reference(module: Module, node: ast.AST) -> bool:
    """A name in an annotation or an isinstance check: its arguments do not matter."""
    for above in module.ancestors(node):
        match above:
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass")):
                return True
            case ast.arg() | ast.AnnAssign():
                return True
            case ast.stmt():
                return False
    return False


def _new_name(module: Module, node: ast.AST, name: str) -> str | None:
    """The new dotted name, by the file's own binding of torch; None for a bare name, which the import changes."""
    if isinstance(node, ast.Name):
        return None
    torch = edits.binding_of(module, "torch", at=module.statement(node))
    if torch is None:
        raise edits.CannotEdit("the file has no name for torch here")
    return f"{torch}.amp.{name}"


def enabled_to_dtype(module: Module, call: ast.Call, given: ast.expr) -> Fix | None:
    """`autocast(torch.bfloat16)` and `autocast("cuda", enabled=torch.bfloat16)` → `dtype=torch.bfloat16`."""

    def build() -> list[Edit]:
        if given in call.args:
            return edits.change_call(module, call, keywords_for_positional={call.args.index(given): "dtype"})
        return edits.change_call(module, call, add_keywords={"dtype": module.source(given)}, remove=["enabled"])

    return attempt("pass it as dtype", SAFE, build)


def name_arguments(module: Module, call: ast.Call, names: dict[int, str], first: str = "") -> Fix | None:
    """Give positional arguments the names of the parameters they were meant for."""
    return attempt(
        "name the arguments",
        SAFE,
        lambda: edits.change_call(
            module, call, keywords_for_positional=names, add_positional_first=[first] if first else []
        ),
    )


def rename_argument(module: Module, call: ast.Call, old: str, new: str) -> Fix | None:
    """Give a keyword argument the name of the parameter it was meant for."""
    given = module.source(next(one.value for one in call.keywords if one.arg == old))
    return attempt(
        "name the arguments",
        SAFE,
        lambda: edits.change_call(module, call, remove=[old], add_keywords={new: given}),
    )


def device_of_the_new_scaler(module: Module, call: ast.Call) -> Fix | None:
    """`torch.amp.GradScaler(device_type=x)` → `torch.amp.GradScaler(x)`."""
    given = next(one.value for one in call.keywords if one.arg == "device_type")
    return attempt(
        "pass it as the device",
        SAFE,
        lambda: edits.change_call(module, call, add_positional_first=[module.source(given)], remove=["device_type"]),
    )


def with_device_type(module: Module, node: ast.AST, device: str) -> Fix | None:
    """`@custom_fwd` and `@custom_fwd(cast_inputs=…)` → with `device_type`."""

    def build() -> list[Edit]:
        if isinstance(node, ast.Call):
            return edits.change_call(module, node, add_keywords={"device_type": f'"{device}"'})
        return edits.replace(module, _expr(node), f'{module.source(node)}(device_type="{device}")')

    return attempt("pass device_type", SAFE, build)


def state_of(module: Module, call: ast.Call, name: str, device: str) -> Fix | None:
    """`torch.set_autocast_gpu_dtype(x)` → `torch.set_autocast_dtype("cuda", x)`."""

    def build() -> list[Edit]:
        if not isinstance(call.func, ast.Attribute):
            raise edits.CannotEdit("imported by name")
        function = f"{module.source(call.func.value)}.{name}"
        return edits.change_call(module, call, func=function, add_positional_first=[f'"{device}"'])

    return attempt(f"use torch.{name}", SAFE, build)
