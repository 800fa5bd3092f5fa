"""Checkpoints of one object a file: the scaler's state goes into a file of its own, beside the optimizer's."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.source.module import Module

if TYPE_CHECKING:
    from amplint.rewrite.scaler.reach import Reach

_OPTIMIZER = re.compile(r"(?<![a-zA-Z])(?:optimizer|optim|opt)(?![a-zA-Z])")


def file_edits(
    module: Module, code: ast.AST, reach: Reach, optimizers: Sequence[str]
) -> tuple[list[Edit], dict[str, None]]:
    """Edits for every `torch.save(optimizer.state_dict(), path)` in some code whose path names the optimizer, and for
    every loading of such a file; and what was done. Only for one optimizer: the file of a shared scaler has no name.

    Old runs still load: the scaler's state is restored only if its file is there.
    """
    made: list[Edit] = []
    done: dict[str, None] = {}
    for node in reach.within(module, code):
        path = own_file(module, node, optimizers[0]) if len(optimizers) == 1 else None
        if path is None:
            continue
        if not reach.at_hand(module, node):
            raise Refused("the optimizer's state is saved or loaded where the scaler is not at hand", BY_HAND)
        assert isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        scaler, name = reach.text(module, node), _OPTIMIZER.sub("scaler", module.source(path))
        argument = module.source(node.value.args[0])
        if len(node.value.args) == 2:
            saved = module.source(node).replace(module.source(path), name)
            made += edits.insert_after(module, node, [saved.replace(argument, f"{scaler}.state_dict()")])
            done["saved in"] = None
        else:
            os = edits.binding_of(module, "os", node)
            made += edits.add_import(module, "import os") if os is None else []
            loaded = argument.replace(module.source(path), name)
            lines = [f"if {os or 'os'}.path.exists({name}):", f"    {scaler}.load_state_dict({loaded})"]
            made += edits.insert_after(module, node, lines)
            done["restored from"] = None
    return made, done


def own_file(module: Module, node: ast.AST, optimizer: str) -> ast.expr | None:
    """The path of the file that a statement saves the optimizer's state in or loads it from, alone, if the path names
    the optimizer once: `opt_` becomes `scaler_`."""
    match node:
        case ast.Expr(
            value=ast.Call(
                func=ast.Name() | ast.Attribute() as how,
                args=[ast.Call(func=ast.Attribute(attr="state_dict", value=owner), args=[]), path],
            )
        ) if _is(module, how, "torch.save"):
            pass
        case ast.Expr(
            value=ast.Call(
                func=ast.Attribute(attr="load_state_dict", value=owner),
                args=[ast.Call(func=ast.Name() | ast.Attribute() as how, args=[path])],
            )
        ) if _is(module, how, "torch.load"):
            pass
        case _:
            return None
    text = module.source(path)
    words = _OPTIMIZER.findall("".join(_file_name(path)))
    named = len(words) == 1 and len(_OPTIMIZER.findall(text)) == 1 and "\n" not in module.source(node)
    return path if named and ast.unparse(owner) == optimizer else None


def _file_name(path: ast.expr) -> list[str]:
    """What is written of a file's own name: a folder that is called by another name may not be there."""
    match path:
        case ast.Call(func=ast.Name(id="join") | ast.Attribute(attr="join"), args=[*_, last]):
            path = last
        case ast.BinOp(op=ast.Div(), right=last):
            path = last
    parts = (one for one in ast.walk(path) if isinstance(one, ast.Constant) and isinstance(one.value, str))
    written = [str(one.value) for one in sorted(parts, key=lambda one: (one.lineno, one.col_offset))]
    found: list[str] = []
    for one in written:
        _, slash, name = one.rpartition("/")
        found = [name] if slash else [*found, one]
    return found


def _is(module: Module, how: ast.expr, name: str) -> bool:
    return name in module.dotted(how) or ast.unparse(how) == name  # torch may come from another file's `import *`
