"""What a file uses of apex.amp: its imports, and every place that names a part of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from amplint.source.module import FunctionNode, Module
from amplint.source.tree import names_in, parameters, stored_names

AMP = "apex.amp"
Import = ast.Import | ast.ImportFrom
_CATCHES = frozenset("ImportError ModuleNotFoundError Exception BaseException".split())
# What only apex.amp has (its state_dict is told by what is passed to it: nothing).
ONLY_APEX = frozenset(
    (
        "scale_loss initialize master_params disable_casts half_function float_function promote_function "
        "register_half_function register_float_function register_promote_function state_dict load_state_dict"
    ).split()
)
_NATIVE = ("torch.cuda.amp", "torch.amp", "torch.autocast", "torch.cpu.amp")


@dataclass(frozen=True)
class Use:
    """A place that names a part of apex.amp: the whole dotted expression, and the part's name ("" for all of it)."""

    node: ast.Name | ast.Attribute
    name: str


@dataclass
class Uses:
    """The imports of apex.amp, each with what it imports of it, the uses, and whether torch's own AMP is used, too."""

    imports: list[tuple[Import, ast.alias]] = field(default_factory=list)
    uses: list[Use] = field(default_factory=list)
    native: bool = False

    def named(self, *names: str) -> list[Use]:
        return [use for use in self.uses if use.name in names]


def uses_of(module: Module) -> Uses:
    """Everything that the file has of apex.amp; nothing in it that only looks so (a parameter called `amp`)."""
    found = Uses()
    for node in ast.walk(module.tree):
        match node:
            case ast.ImportFrom(module="apex", level=0):
                found.imports += [(node, alias) for alias in node.names if alias.name == "amp"]
            case ast.ImportFrom(module=str() as source, level=0) if _part(source) is not None:
                found.imports += [(node, alias) for alias in node.names]
            case ast.Import():
                found.imports += [(node, alias) for alias in node.names if _part(alias.name) is not None]
            case ast.Name(ctx=ast.Load()) if node.id in module.imports and not _local(module, node):
                top: ast.Name | ast.Attribute = node
                while isinstance(above := module.parents[top], ast.Attribute):
                    top = above
                used = next(_parts(module, top), None)
                if used is not None:
                    found.uses.append(used)
                found.native |= any(name.startswith(_NATIVE) for name in module.dotted(top))
    if any(use.node is not None and _root(use.node) == "apex" for use in found.uses):
        plain = [node for node in ast.walk(module.tree) if isinstance(node, ast.Import)]
        found.imports += [(node, alias) for node in plain for alias in node.names if alias.name == "apex"]
    return found


def _part(name: str) -> str | None:
    """What follows `apex.amp` in a dotted name."""
    return name[len(AMP) :].lstrip(".") if name == AMP or name.startswith(AMP + ".") else None


def _parts(module: Module, top: ast.Name | ast.Attribute) -> Iterator[Use]:
    """The use at a dotted expression: `amp.state_dict` of `amp.state_dict.x` stays one with an unknown name."""
    for name in module.dotted(top):
        part = _part(name)
        if part is not None:
            part = part.removeprefix("frontend.").removeprefix("handle.")
            yield Use(top, part)


def _root(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _local(module: Module, node: ast.Name) -> bool:
    """Whether a name is a variable or a parameter of a function around it."""
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode) and node.id in (*parameters(above), *stored_names(above)):
            return True
    return False


def guard(module: Module, statement: ast.stmt) -> ast.Try | None:
    """The `try` in whose body an import stands, where it goes on without it or says what is missing."""
    above = module.parents[statement]
    if isinstance(above, ast.Try) and statement in above.body and any(_catches(one) for one in above.handlers):
        return above
    return None


def _catches(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    return not names_in(handler.type).isdisjoint(_CATCHES)


def raises(attempt: ast.Try) -> bool:
    """Whether the script ends where the import fails."""
    return any(isinstance(node, ast.Raise) for handler in attempt.handlers for node in ast.walk(handler))


def falls_back(attempt: ast.Try) -> bool:
    """Whether torch's own AMP is imported where apex is not there."""
    handled = (part for handler in attempt.handlers for part in ast.walk(handler))
    for node in handled:
        match node:
            case ast.ImportFrom(module="torch.amp" | "torch.cuda.amp"):
                return True
            case ast.ImportFrom(module="torch" | "torch.cuda", names=names) if any(one.name == "amp" for one in names):
                return True
    return False
