"""Relevance: which functions can matter to precision, so that the others need not be run.

This is the same judgement as triage's, one level down: it decides nothing, it only saves work, so it looks at words in
the text, comments and all. A reading *begins* at the functions that hold a word of training, or a word of a rule whose
words the file has (`at` on the rule's page). A function that a call reaches *matters* if it (or a function or class of
the same file that it names) uses a word of training or of half-precision numerics, whatever the rules.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache
from typing import TypeVar

from amplint import knowledge
from amplint.source import triage
from amplint.source.module import Module
from amplint.source.tree import parameters
from amplint.source.walk import walk

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
_HALF = frozenset(("half", "float16", "bfloat16"))
Code = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
D = TypeVar("D", bound=ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
_BARE = re.compile(r"(?<![.\w])[A-Za-z_]\w*")
_SELF = re.compile(r"\b(?:self|cls)\.(\w+)")
_WORD = re.compile(r"[A-Za-z_]\w*")
_STEPPED = re.compile(r"(?:caler\w*\.step|unscale_)\(\s*(?:\w+\.)*+(?!self\b)(\w+)")
# A matrix product, or a constant that half precision may not hold.
# (Two patterns that begin with what is rare: together they would be tried at every letter.)
_PRODUCT = re.compile(r" @ (?<=[\w)\]] @ )[A-Za-z_(]")
_CONSTANT = re.compile(r"[0-9](?:[eE][+-]?[0-9]|[0-9]{5}|(?<=0)\.0000)")
_OF_DICTS = frozenset(dir(dict))
_SMALL_LINES = 5  # running so little costs no more than asking


class Facts:
    """What the words of a module's functions and classes say, whoever asks; kept with the module."""

    def __init__(self, module: Module):
        self.lines: dict[ast.AST, int] = {}
        self.words: dict[ast.AST, frozenset[str]] = {}
        # What a scaler is handed to step it: an optimizer, whatever it is called.
        self._stepped = frozenset(_STEPPED.findall(module.text)) if "caler" in module.text else frozenset[str]()
        self._signs: set[ast.AST] = set()
        inner: dict[ast.AST, list[Code]] = {}
        for code, around in reversed(_definitions(module.tree)):  # what is inside comes first
            self.lines[code] = (code.end_lineno or code.lineno) - code.lineno + 1
            nested = inner.pop(code, [])
            texts = _own_rows(module, code, nested)
            self.words[code] = frozenset().union(*map(_WORD.findall, texts), *(self.words[one] for one in nested))
            if not self._signs.isdisjoint(nested) or any(_PRODUCT.search(t) or _CONSTANT.search(t) for t in texts):
                self._signs.add(code)
            if around is not None:
                inner.setdefault(around, []).append(code)

    @cached_property
    def steps(self) -> set[ast.AST]:
        """What can be part of a training step."""
        stepped = self._stepped
        return self._closure({code for code, words in self.words.items() if _steps(words, stepped)})

    @cached_property
    def numeric(self) -> set[ast.AST]:
        """What computes something that half precision may not hold."""
        numerics = _numerics()
        return {code for code, words in self.words.items() if words & numerics} | self._signs

    @cached_property
    def matters(self) -> set[ast.AST]:
        """What to run when a call reaches it."""
        around = {code for code, words in self.words.items() if words & _AROUND}
        # what the methods of a trainer find in its fields
        made = {one for code in self.steps if isinstance(code, ast.ClassDef) for one in code.body if _makes(one)}
        return self._closure(self.steps | self.numeric | around | made)

    @cached_property
    def makers(self) -> set[ast.AST]:
        """The functions that make a model and hand it to their caller. What its forward does they do not run."""
        steps = {code.name: code for code in self.steps if isinstance(code, Code)}
        makers: set[ast.AST] = set()
        left = [code for code in self.steps if isinstance(code, ast.FunctionDef) and not self.words[code] & _STEP]
        while left:
            harmless = {name for name, code in steps.items() if code in makers or _is_model(code)}
            names = frozenset(steps.keys() - harmless)
            grown = [code for code in left if not self.words[code] & names - {code.name} and _only_returns(code)]
            if not grown:
                break
            makers.update(grown)
            left = [code for code in left if code not in makers]
        return makers

    def _closure(self, relevant: set[ast.AST]) -> set[ast.AST]:
        """These, and what names one of them."""
        while relevant:
            names = {code.name for code in relevant if isinstance(code, ast.FunctionDef | ast.ClassDef)}
            grown = relevant | {code for code, words in self.words.items() if words & names}
            if len(grown) == len(relevant):
                break
            relevant = grown
        return relevant


def _makes(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__post_init__")


def _is_model(code: Code) -> bool:
    return isinstance(code, ast.ClassDef) and any(getattr(one, "name", "") == "forward" for one in code.body)


def _only_returns(code: ast.FunctionDef) -> bool:
    """Whether a function does nothing but to name values and return one: it calls none of them."""
    if not isinstance(code.body[-1], ast.Return):
        return False
    bound = set(parameters(code))
    calls = []
    for node in walk(code):
        match node:
            case (
                ast.Assign() | ast.AnnAssign() | ast.Return() | ast.Raise() | ast.If() | ast.Import() | ast.ImportFrom()
            ):
                pass
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.Name(id=name, ctx=ast.Store()):
                bound.add(name)
            case ast.Call(func=called):
                calls.append(called)
            case ast.stmt() if node is not code:
                return False
    for called in calls:
        if isinstance(called, ast.Attribute) and called.attr in _OF_DICTS:
            continue
        while isinstance(called, ast.Attribute):
            called = called.value
        if not isinstance(called, ast.Name) or called.id in bound:
            return False
    return True


class Relevance:
    """The functions and classes of a module that matter. `at`: words of which a function needs one to be run though
    nothing calls it; None: any word of numerics."""

    def __init__(self, module: Module, at: frozenset[str] | None = None):
        facts = module.memo.get("relevance")
        if not isinstance(facts, Facts):
            facts = module.memo["relevance"] = Facts(module)
        self._facts = facts
        self._module = module
        self._numerics = at is None or "{numerics}" in at
        self._names, self._texts = _split(at or frozenset())

    def matters(self, code: ast.AST, alone: bool = False) -> bool:
        """Whether to run a function (or the methods of a class) that a call reaches; `alone`: for its numerics only."""
        if self._facts.lines.get(code, 0) <= _SMALL_LINES:
            return True
        return code in (self._facts.numeric if alone else self._facts.matters)

    def begins(self, code: Code) -> bool:
        """Whether to run a function (or class) that nothing calls."""
        facts = self._facts
        if (code in facts.steps and code not in facts.makers) or (self._numerics and code in facts.numeric):
            return True
        words = facts.words[code]
        if self._names & words or ((words & _HALF or "forward" in words) and words & self._beginning):
            return True
        if not self._texts:
            return False
        text = triage.code_only("".join(_own_rows(self._module, code, ())).encode(errors="replace"))
        return any(triage.holds(text, word) for word in self._texts)

    @cached_property
    def _beginning(self) -> set[str]:
        """The functions that begin by a rule's word: who calls them, with a half dtype or in a model's forward, decides
        what they find."""
        words = self._facts.words.items()
        return {code.name for code, held in words if held & self._names and isinstance(code, Code)}

    def steps(self, code: ast.AST) -> bool:
        """Whether it can be part of a training step."""
        return code in self._facts.steps

    def callers_first(self, found: Sequence[D], methods: bool = False) -> list[D]:
        """Those of these definitions that begin, callers before what they name: that is judged as they call it."""
        left = [code for code in found if self.begins(code)]
        if len(left) < 2:
            return left
        names = {code.name for code in left}
        pattern = _SELF if methods else _BARE
        mentions = {}
        for code in left:
            named = names & self._facts.words[code] - {code.name}
            mentions[code] = named and named.intersection(pattern.findall(self._module.rows(code)))
        ordered = []
        while left:
            called = set().union(*(mentions[code] for code in left))
            first = next((code for code in left if code.name not in called), left[0])
            ordered.append(first)
            left.remove(first)
        return ordered


@cache
def _numerics() -> frozenset[str]:
    """The words of numerics, those of all rules among them."""
    return _NUMERICS.union(*(_split(frozenset(rule.at))[0] for rule in knowledge.rules().values()))


@lru_cache(maxsize=256)
def _split(at: frozenset[str]) -> tuple[frozenset[str], list[str]]:
    """Whole names, which are looked up among a function's words, and the rest, which is looked for in its text."""
    names = frozenset(word for word in at if word.isidentifier())
    return names, sorted(at - names - {"{numerics}"}, key=triage.PATTERNS.__contains__)


def _own_rows(module: Module, code: Code, nested: Sequence[Code]) -> list[str]:
    """The text of a definition with its decorators (`@torch.no_grad()` is a word, too), without what is nested."""
    starts, end = module.starts, code.end_lineno or code.lineno
    row = _first_row(code)
    texts = []
    for one in sorted(nested, key=_first_row):
        texts.append(module.text[starts[row - 1] : starts[max(row, _first_row(one)) - 1]])
        row = (one.end_lineno or one.lineno) + 1
    if row <= end:
        texts.append(module.text[starts[row - 1] : starts[end] if end < len(starts) else len(module.text)])
    return texts


def _first_row(code: Code) -> int:
    return min([code.lineno, *(one.lineno for one in code.decorator_list)])


def _definitions(tree: ast.Module) -> list[tuple[Code, Code | None]]:
    """All functions and classes, each with the one that it is nested in, which comes first; expressions are not looked
    into."""
    found: list[tuple[Code, Code | None]] = []
    pending: list[tuple[ast.AST, Code | None]] = [(tree, None)]
    while pending:
        node, around = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.append((node, around))
            around = node
        for name in ("body", "orelse", "handlers", "finalbody", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                pending += [(one, around) for one in inner]
    return found


def _steps(words: frozenset[str], stepped: frozenset[str]) -> bool:
    if words & {"save", "load_state_dict"} and (
        words & stepped or any("optim" in word or "scaler" in word for word in words)
    ):
        return True
    return bool(words & _STEP)
