"""What a loss is derived from: the statements of a block that compute it, followed back by what they store."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Collection, Iterator

from amplint.rewrite.regions.lifts import BOOKKEEPING, Lifts, method_of
from amplint.source import events
from amplint.source.module import Module
from amplint.source.tree import called_name
from amplint.source.values import Value

Region = tuple[ast.stmt, ...]
_CPU = ("torch.device('cpu')", "'cpu'")
_SHAPES = frozenset(("size", "dim", "numel", "ndimension", "nelement"))
_GROWS = frozenset(("append", "extend", "insert", "update", "add", "setdefault", "appendleft"))


class Trail:
    """The way back from a backward: the names and fields that it still needs, those that a forward has made, and the
    models that it trains (empty where that is not known)."""

    def __init__(self, module: Module, lifts: Lifts, of: Collection[Value], needed: set[str], made: set[str]):
        self.module = module
        self.lifts = lifts
        self.of = of
        self.needed = needed
        self.made = made

    def forwards(self, node: ast.AST) -> list[events.Forward]:
        """The forwards in a statement, called helpers included."""
        found = (event for inner in ast.walk(node) for event in self.lifts.forwards.get(inner, ()))
        return [event for event in found if not self.of or event.model in self.of]

    def runs(self, statement: ast.stmt) -> bool:
        """Whether a statement runs a model, or a method of one that amplint has not looked into."""
        return bool(self.forwards(statement)) or any(of_model(node, self.lifts) for node in ast.walk(statement))

    def derive(self, block: list[ast.stmt]) -> list[Region]:
        """The regions of a block (of what stands before the backward): from a forward to the last statement that
        computes something needed. `needed` grows by what these read, and shrinks by what they replace."""
        wanted: dict[int, set[str]] = {}
        deriving = self.deriving(block, wanted)
        found: list[Region] = []
        for run in _runs(block, self.lifts.barriers):
            inside = [index for index in run if index in deriving]
            starts = [index for index in inside if self._starts(block[index])]
            while starts and self._only_samples(block[starts[0]], wanted[starts[0]]):
                starts = starts[1:]
            if not starts:
                continue
            self.made |= {name for i in inside if i >= starts[0] for name in self.stored(block[i])}
            starts = [index for index in inside if index >= starts[0] and self._starts(block[index])]
            found += self._regions(block, starts, inside[-1])
        return found

    def deriving(self, block: list[ast.stmt], wanted: dict[int, set[str]] | None = None) -> set[int]:
        """Which statements of a block compute something needed; `wanted` is told what of each."""
        deriving = set()
        for index in range(len(block) - 1, -1, -1):
            self.needed -= left(block[index])
            if stored := self.stored(block[index]) & self.needed:
                deriving.add(index)
                if wanted is not None:
                    wanted[index] = stored
                self.needed -= replaced(block[index])
                self.needed |= read(block[index])
        return deriving

    def _starts(self, statement: ast.stmt) -> bool:
        return self.runs(statement) or bool(self.made & _computed_from(statement))

    def _only_samples(self, statement: ast.stmt, wanted: set[str]) -> bool:
        """Whether a loop plays with a model (`action = dist.sample()`), and nothing that is wanted of it is computed
        by that: no gradient goes through a sample."""
        if not isinstance(statement, ast.For | ast.While) or not any(map(_is_sample, ast.walk(statement))):
            return False
        inner = Trail(self.module, self.lifts, self.of, set(wanted), set())
        for _ in range(2):  # the second time for what the round before has left
            if any(inner.runs(statement.body[index]) for index in inner.deriving(statement.body)):
                return False
            inner.needed |= wanted
        return True

    def stored(self, statement: ast.stmt) -> set[str]:
        """What a statement stores, called methods included; what it defines stores nothing yet."""
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return set()
        calls = (node for node in ast.walk(statement) if node in self.lifts.fields)
        return stored(statement).union(*(self.lifts.fields[node] for node in calls))

    def _regions(self, block: list[ast.stmt], starts: list[int], last: int) -> list[Region]:
        """One region, as a rule. A model that runs without gradients first and with them later gets two: the cast
        copies of its weights, which a region keeps, would have none."""
        found: list[Region] = []
        while starts:
            first = block[starts[0]]
            if isinstance(first, ast.With) and (
                starts[0] == last or self._without_gradients(first, block, starts, last)
            ):
                found += self.derive(first.body)
                starts = starts[1:]
                continue
            found.append(tuple(block[starts[0] : last + 1]))
            break
        return found

    def _without_gradients(self, first: ast.With, block: list[ast.stmt], starts: list[int], last: int) -> bool:
        before = self.forwards(first)
        models = {event.model for one in block[starts[0] + 1 : last + 1] for event in self.forwards(one) if event.grad}
        return any(not event.grad and event.model in models for event in before)


def _runs(block: list[ast.stmt], barriers: Collection[ast.AST]) -> list[range]:
    """The stretches of a block between statements that hold a backward or a step."""
    cuts = [index for index, one in enumerate(block) if any(node in barriers for node in ast.walk(one))]
    return [range(first + 1, last) for first, last in zip([-1, *cuts], [*cuts, len(block)], strict=True)]


def of_model(node: ast.AST, lifts: Lifts) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name), args=[_, *_]) if name in lifts.wrappers | lifts.taken:
            return True
        case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name), args=[_, *_]) if (
            name in lifts.templates | lifts.running
        ):
            return True
        case ast.Call(func=ast.Name(id=name), args=[_, *_]) if name in lifts.running:
            return True
    return method_of(node, lifts.models) or _is_given_model(node, lifts)


def _is_given_model(node: ast.AST, lifts: Lifts) -> bool:
    """Whether a function that amplint has not looked into is given a model: `diffusion.p_loss(model, x)`."""
    if not isinstance(node, ast.Call):
        return False
    name = called_name(node)
    if not name[:1].islower() or name in BOOKKEEPING | lifts.own or hasattr(builtins, name):
        return False
    given = (*node.args, *(one.value for one in node.keywords))
    return any(isinstance(one, ast.Name | ast.Attribute) and ast.unparse(one) in lifts.models for one in given)


def _computed_from(statement: ast.stmt) -> set[str]:
    """What a statement that calls something reads, but for what it asks the shape of: `x.size(0)`."""
    asked: set[ast.AST] = set()
    calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    for call in calls:
        match call:
            case ast.Call(func=ast.Attribute(attr=name)) if name in _SHAPES:
                asked |= set(ast.walk(call))
            case ast.Call(func=ast.Name(id="len")):
                asked |= set(ast.walk(call))
    if all(call in asked for call in calls):
        return set()
    plain = (node for node in ast.walk(statement) if isinstance(node, ast.Name | ast.Attribute) and node not in asked)
    return {name for node in plain if isinstance(node.ctx, ast.Load) and (name := path(node))} - {"self"}


# -- what statements read and store -----------------------------------------------------------------------------------


def path(node: ast.AST) -> str:
    """`self.losses` for itself and for `self.losses["g"]`; "" for what is no plain path."""
    while isinstance(node, ast.Subscript | ast.Starred):
        node = node.value
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := path(node.value)):
        return f"{base}.{node.attr}"
    return ""


def stored(statement: ast.AST) -> set[str]:
    """The names and fields that a statement assigns, or adds something to."""
    found, inner = set(), _of_comprehensions(statement)
    for node in ast.walk(statement):
        if node in inner:
            continue
        match node:
            case ast.Name(ctx=ast.Store()) | ast.Attribute(ctx=ast.Store()) | ast.Subscript(ctx=ast.Store()):
                found.add(path(node))
            case ast.Call(func=ast.Attribute(value=owner, attr=name)) if name in _GROWS:
                found.add(path(owner))
    return found - {"", "self"}


def left(statement: ast.stmt) -> set[str]:
    """The names that a statement takes out of torch: `actions = scores.argmax(1).numpy()`. No gradient goes through."""
    assigned = (node for node in ast.walk(statement) if isinstance(node, ast.Assign) and len(node.targets) == 1)
    return {path(node.targets[0]) for node in assigned if _is_array(node.value) or _is_sample(node.value)} - {""}


def _is_sample(value: ast.AST) -> bool:
    """`dist.sample()`, of a distribution; a model's own is given something."""
    match value:
        case ast.Call(func=ast.Attribute(attr="sample", value=ast.Name()), args=[], keywords=[]):
            return True
    return False


def _is_array(value: ast.AST) -> bool:
    """Whether an expression is what `.numpy()`, `.item()` or `.tolist()` gives, or a method or part of that."""
    while isinstance(value, ast.Call | ast.Attribute | ast.Subscript):
        if isinstance(value, ast.Attribute) and value.attr in ("numpy", "item", "tolist"):
            return True
        value = value.func if isinstance(value, ast.Call) else value.value
    return False


def on_the_cpu(module: Module, region: Region) -> bool:
    """Whether a loss is derived from what is moved to the CPU on the way."""
    needed: set[str] = set()
    for statement in reversed(region):
        if statement is region[-1] or stored(statement) & needed:
            if any(_to_cpu(module, node) for node in ast.walk(statement)):
                return True
            needed |= read(statement)
    return False


def _to_cpu(module: Module, node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="cpu"), args=[]):
            return getattr(module.parents[node], "attr", "") not in ("numpy", "tolist")
        case ast.Call(func=ast.Attribute(attr="to"), args=[ast.Constant(value="cpu")]):
            return True
        case ast.Call(func=ast.Attribute(attr="to"), args=[ast.Name(id=name)]):
            scope = module.scope(node)
            found = [one for one in ast.walk(scope) if isinstance(one, ast.Assign) and name in map(path, one.targets)]
            return bool(found) and all(ast.unparse(one.value) in _CPU for one in found)
    return False


def replaced(statement: ast.stmt) -> set[str]:
    """The names and fields whose value a statement replaces, whatever it was."""
    if not isinstance(statement, ast.Assign):
        return set()
    targets = [part for one in statement.targets for part in (one.elts if isinstance(one, ast.Tuple) else [one])]
    return {path(target) for target in targets if isinstance(target, ast.Name | ast.Attribute)}


def read(node: ast.AST) -> set[str]:
    """The names and fields that some code reads."""
    return set(_read(node)) - {"self"}


def _read(node: ast.AST) -> Iterator[str]:
    own = _of_comprehensions(node)
    for inner in ast.walk(node):
        if inner in own or not isinstance(inner, ast.Name | ast.Attribute) or not isinstance(inner.ctx, ast.Load):
            continue
        if found := path(inner):
            yield found


def _of_comprehensions(code: ast.AST) -> set[ast.AST]:
    """The variables of the comprehensions in some code, which nothing outside of them sees."""
    found: set[ast.AST] = set()
    for node in ast.walk(code):
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            names = {one.id for made in node.generators for one in ast.walk(made.target) if isinstance(one, ast.Name)}
            first = set(ast.walk(node.generators[0].iter))  # is evaluated outside
            inside = (one for one in ast.walk(node) if isinstance(one, ast.Name) and one.id in names)
            found |= {one for one in inside if one not in first}
    return found
