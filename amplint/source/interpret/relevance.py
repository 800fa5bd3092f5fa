"""Relevance: which functions can matter to precision, so that the others need not be run.

A function matters if it (or a function or class of the same file that it names) uses a word of training or of half-
precision numerics. This is the same judgement as triage's, one level down: it decides nothing, it only saves work, so
it looks at words in the text, comments and all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

from amplint.source.module import Module

# Words that no training step does without, and those that only matter once a training step is being run.
_STEP = frozenset(
    (
        "backward step zero_grad unscale_ autocast GradScaler amp scale_loss get_scale clip_grad_norm_ "
        "clip_grad_value_ "
        "clip_grad_norm dispatch_clip_grad add_recoverable"
    ).split()
)
_AROUND = frozenset(
    (
        "update scale no_grad inference_mode enable_grad parameters state_dict load_state_dict save grad optim "
        "optimizer create_graph "
        "contextmanager nullcontext param_groups half bfloat16 float16 "
        "model forward criterion loss"
    ).split()
)
_NUMERICS = frozenset(
    (
        "matmul bmm baddbmm einsum masked_fill masked_fill_ full_like new_full binary_cross_entropy BCELoss rsqrt eps"
    ).split()
)
D = TypeVar("D", bound=ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
_BARE = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_SELF = re.compile(r"\b(?:self|cls)\.(\w+)")
_WORD = re.compile(r"[A-Za-z_]\w*")
# A matrix product, or a constant that half precision may not hold.
_SIGN = re.compile(r"[\w)\]] @ [\w(]|\d[eE][+-]?\d|\d{6}|0\.0000")
_SMALL_LINES = 5  # running so little costs no more than asking


class Relevance:
    """The functions and classes of a module that matter."""

    def __init__(self, module: Module):
        self._lines: dict[ast.AST, int] = {}
        self._words: dict[ast.AST, frozenset[str]] = {}
        self._signs: set[ast.AST] = set()
        self._module = module
        for code in _definitions(module.tree):
            text = "".join(
                module.rows(part) for part in (*code.decorator_list, code)
            )  # @torch.no_grad() is a word, too
            self._lines[code] = (code.end_lineno or code.lineno) - code.lineno + 1
            self._words[code] = frozenset(_WORD.findall(text))
            if _SIGN.search(text):
                self._signs.add(code)
        self._steps = self._closure({code for code, words in self._words.items() if _steps(words)})
        self._numeric = {code for code, words in self._words.items() if words & _NUMERICS} | self._signs

    @cached_property
    def _matters(self) -> set[ast.AST]:
        around = {code for code, words in self._words.items() if words & _AROUND}
        return self._closure(self._steps | self._numeric | around)

    def _closure(self, relevant: set[ast.AST]) -> set[ast.AST]:
        """These, and what names one of them."""
        while relevant:
            names = {code.name for code in relevant if isinstance(code, ast.FunctionDef | ast.ClassDef)}
            grown = relevant | {code for code, words in self._words.items() if words & names}
            if len(grown) == len(relevant):
                break
            relevant = grown
        return relevant

    def matters(self, code: ast.AST, alone: bool = False) -> bool:
        """Whether to run a function (or the methods of a class) that a call reaches; `alone`: for its numerics only."""
        if self._lines.get(code, 0) <= _SMALL_LINES:
            return True
        return code in (self._numeric if alone else self._matters)

    def begins(self, code: ast.AST) -> bool:
        """Whether to run a function (or class) that nothing calls."""
        return code in self._steps or code in self._numeric

    def steps(self, code: ast.AST) -> bool:
        """Whether it can be part of a training step."""
        return code in self._steps

    def callers_first(self, found: Sequence[D], methods: bool = False) -> list[D]:
        """Those of these definitions that begin, callers before what they name: that is judged as they call it."""
        left = [code for code in found if self.begins(code)]
        names = {code.name for code in left}
        pattern = _SELF if methods else _BARE
        mentions = {code: names & set(pattern.findall(self._module.rows(code))) - {code.name} for code in left}
        ordered = []
        while left:
            called = set().union(*(mentions[code] for code in left))
            first = next((code for code in left if code.name not in called), left[0])
            ordered.append(first)
            left.remove(first)
        return ordered


def _definitions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """All functions and classes, nested ones too; expressions are not looked into."""
    found: list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef] = []
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append(node)
        for name in ("body", "orelse", "handlers", "finalbody", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                pending += inner
    return found


def _steps(words: frozenset[str]) -> bool:
    saves = bool(words & {"save", "load_state_dict"}) and any("optim" in word or "scaler" in word for word in words)
    return bool(words & _STEP) or saves
