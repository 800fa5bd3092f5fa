"""Who uses a class, and who uses those: whether any of them says a word of half precision.

A project may train one model in half precision, and have others that it only runs in float32. Names are compared, not
what they stand for, so that more files count as users than are: what nothing of them says, nothing does.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from amplint.checks.registry import Script
from amplint.rewrite import said
from amplint.rewrite.said import WORD
from amplint.source.module import Module

_HOPS = 5
_MANY = 40  # files that use one name: it is too common to say whose it is
_RUNS = re.compile(rb"__main__|\.backward\(|no_grad|inference_mode|\.eval\(\)")
_BLOCK = re.compile(rb"^(?:class|def)[ \t]+(\w+)[^\n]*\n(?:[ \t)][^\n]*\n|[ \t]*\n)*", re.MULTILINE)


def used_in_half(script: Script, node: ast.AST, half: re.Pattern[bytes]) -> bool:
    """Whether a file that uses the class (or function) around a node says a word of half precision, itself or by its
    own users; True where that cannot be told, or nobody is seen to run it."""
    files = said.words(script.module)
    outermost = _outermost(script.module, node)
    if files is None or outermost is None or _is_registered(outermost):
        return True
    here = str(Path(script.module.path).resolve())
    seen = [one for one in files if one.path == here]
    names, modules = {outermost.name.encode()}, {_module_name(here)}
    new = names | {name for one in seen for name in _users_in(one, names)}
    for _ in range(_HOPS):
        if any(half.search(one.text) for one in seen):
            script.looked_at.update(one.path for one in seen)
            return True
        users = [
            one for one in files if one not in seen and not (modules.isdisjoint(one.modules) and _has_own(one, new))
        ]
        if not users:
            break
        if len(users) > _MANY:
            return True
        names |= new
        new = {name for one in users for name in _users_in(one, names)} - names
        modules = {_module_name(one.path) for one in users}
        seen += users
    script.looked_at.update(one.path for one in files)
    return any(half.search(one.text) for one in seen) or not any(_RUNS.search(one.text) for one in seen)


def _outermost(module: Module, node: ast.AST) -> ast.ClassDef | ast.FunctionDef | None:
    """The class or function of the file's top level that a node is in."""
    above = [one for one in module.ancestors(node) if isinstance(one, ast.ClassDef | ast.FunctionDef)]
    return above[-1] if above else None


def _is_registered(owner: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether a decorator may hand it to whoever asks for it by a name that a setting gives."""
    return any(not re.match(r"torch|staticmethod|dataclass", ast.unparse(one)) for one in owner.decorator_list)


def _module_name(path: str) -> bytes:
    """What a file is imported by: its name, or its folder's."""
    one = Path(path)
    return (one.parent.name if one.name == "__init__.py" else one.stem).encode()


def _has_own(file: said.Words, names: set[bytes]) -> bool:
    """Whether a file names none of these but what it defines itself: a copy of a script has classes of its own."""
    shared = names & file.all
    return not shared or shared <= {block.group(1) for block in _BLOCK.finditer(file.text)}


def _users_in(file: said.Words, names: set[bytes]) -> Iterator[bytes]:
    """The classes and functions of a file that use one of the names."""
    for block in _BLOCK.finditer(file.text):
        if not names.isdisjoint(WORD.findall(file.text, block.end(1), block.end())):
            yield block.group(1)
