"""Relevance: which functions can matter to precision, so that the others need not be run.

A function matters if it (or a function or class of the same file that it names) uses a word of training or of half-
precision numerics. This is the same judgement as triage's, one level down: it decides nothing, it only saves work.
"""

from __future__ import annotations

import ast

from amplint.source.module import FunctionNode, Module

# Words that no training step does without, and those that only matter once a training step is being run.
_STEP = frozenset(
    (
        "backward step zero_grad unscale_ autocast GradScaler amp half bfloat16 float16 scale_loss get_scale "
        "clip_grad_norm_ clip_grad_value_ clip_grad_norm dispatch_clip_grad add_recoverable"
    ).split()
)
_AROUND = frozenset(
    (
        "update scale no_grad inference_mode enable_grad parameters state_dict load_state_dict save grad optim optimizer "
        "contextmanager nullcontext param_groups"
    ).split()
)
_NUMERICS = frozenset(
    (
        "matmul bmm baddbmm einsum softmax log_softmax masked_fill masked_fill_ full_like new_full binary_cross_entropy "
        "BCELoss rsqrt clamp clamp_ log eps"
    ).split()
)
_SMALL = 40  # nodes: running so little costs no more than asking
_LARGEST, _SMALLEST = 65504, 6.2e-5


class Relevance:
    """The functions and classes of a module that matter."""

    def __init__(self, module: Module):
        self._words: dict[ast.AST, set[str]] = {}
        self._size: dict[ast.AST, int] = {}
        self._scan(module.tree, ())
        self._begins = self._closure({code for code, words in self._words.items() if _begins(words)})
        around = {code for code, words in self._words.items() if words & _AROUND}
        self._matters = self._closure(self._begins | around)

    def _closure(self, relevant: set[ast.AST]) -> set[ast.AST]:
        """These, and what names one of them."""
        while True:
            names = {code.name for code in relevant if isinstance(code, ast.FunctionDef | ast.ClassDef)}
            grown = relevant | {code for code, words in self._words.items() if words & names}
            if len(grown) == len(relevant):
                return grown
            relevant = grown

    def _scan(self, node: ast.AST, enclosing: tuple[ast.AST, ...]) -> None:
        word = None
        match node:
            case ast.Name():
                word = node.id
            case ast.Attribute():
                word = node.attr
            case ast.BinOp(op=ast.MatMult()):
                word = ""  # a word of its own for what matters without a name
            case ast.Constant(value=float() | int() as number) if not isinstance(number, bool):
                word = "" if abs(number) > _LARGEST or 0 < abs(number) < _SMALLEST else None
        for code in enclosing:
            self._size[code] += 1
            if word is not None:
                self._words[code].add(word)
        inner = enclosing
        if isinstance(node, ast.ClassDef | FunctionNode):
            inner = (*enclosing, node)
            self._words[node], self._size[node] = set(), 0
        for child in ast.iter_child_nodes(node):
            self._scan(child, inner)

    def matters(self, code: ast.AST) -> bool:
        """Whether to run a function (or the methods of a class) that a call reaches."""
        return code in self._matters or self._size.get(code, 0) < _SMALL

    def begins(self, code: ast.AST) -> bool:
        """Whether to run a function (or class) that nothing calls."""
        return code in self._begins


def _begins(words: set[str]) -> bool:
    saves = bool(words & {"save", "load_state_dict"}) and any("optim" in word or "scaler" in word for word in words)
    return bool(words & _STEP or words & _NUMERICS or "" in words) or saves
