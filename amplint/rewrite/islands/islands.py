"""Losses that half precision cannot compute, wherever they are defined: the statement that calls one is in float32."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from amplint.rewrite.islands.casts import OUTPUT, tensors_made, whole
from amplint.rewrite.islands.hits import BCE, COARSE, COMPILED, SPARSE, Hit, refusal
from amplint.rewrite.islands.kernels import Search, named_in, search_of
from amplint.rewrite.islands.numbers import BOUND
from amplint.rewrite.islands.sigmoids import ADVICE, REASON
from amplint.rewrite.refusals.refused import Refused
from amplint.rewrite.regions.derivation import read, stored
from amplint.rewrite.regions.lifts import BOOKKEEPING, Through
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import calls_in, last_name, names_in, positional
from amplint.source.values import Instance

_SIGMOID = ("sigmoid", "Sigmoid", "sigmoid_")
_CLASSES = ("forward", "__call__")
_MOVES = ("to", "cuda", "train", "eval")
_LAYERS = re.compile(r"^(torch\.)?nn\.(?!\w*Loss$|functional)|^[A-Z]\w*$")
_SIMPLE = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr


def islands(
    reading: Reading, region: Sequence[ast.stmt], forwards: Mapping[ast.AST, events.Forward]
) -> dict[ast.stmt, list[ast.Call]]:
    """The statements of a region whose calls lead to what half precision cannot compute, with these calls. Raises
    Refused where such a call is no loss: it is given nothing that a model returned, or is a part of a model."""
    search = search_of(reading)
    found: dict[ast.stmt, list[ast.Call]] = {}
    if not search.says_one:
        return found
    made: set[str] = set()
    before: list[ast.stmt] = []
    models = {node for node, event in forwards.items() if not _is_loss(event)}
    for statement in region:
        leading = {call: hits for call in calls_in(statement) if (hits := _hits(search, call, made, models))}
        for call in [one for one in leading if not _inside(search.module, one, leading)]:
            found.setdefault(statement, []).append(call)
            _check(reading, search, statement, call, leading[call], before, made, forwards)
        if statement not in found:
            before.append(statement)
        made |= stored(statement)
    return found


def _is_loss(forward: events.Forward) -> bool:
    """Whether a module that is called has no layers."""
    model = forward.model
    if not isinstance(model, Instance) or isinstance(forward, Through):
        return False
    fields = (node for node in ast.walk(model.cls.node) if isinstance(node, ast.Assign))
    made = (one.value for one in fields if isinstance(one.targets[0], ast.Attribute))
    return not any(isinstance(one, ast.Call) and _LAYERS.search(ast.unparse(one.func)) for one in made)


def words(module: Module, calls: Sequence[ast.Call]) -> list[str]:
    return [f"{module.source(call.func)}() in float32" for call in calls]


def _inside(module: Module, call: ast.Call, others: Collection[ast.Call]) -> bool:
    return any(above in others for above in module.ancestors(call))


def _hits(search: Search, call: ast.Call, made: Collection[str], models: Collection[ast.AST] = ()) -> list[Hit]:
    """What a call leads to; `made` are the names of results, whose methods are those of tensors, and `models` are the
    calls that run one."""
    module = search.module
    own = search.needs(module, call)
    if own is not None and own not in (BCE, SPARSE, COMPILED, *COARSE):
        return [Hit(module, call, own)]
    function = call.func
    if isinstance(function, ast.Attribute) and read(function.value) & set(made):
        return []
    if isinstance(function, ast.Attribute) and function.attr in BOOKKEEPING:
        return []
    names = {name for one in named_in(function) for name in (_items(module, call, one) or {one})}
    found = search.hits(names)
    found = [hit for hit in found if hit.what not in COARSE or call not in models]
    return [hit for hit in found if hit.module is not module or hit.what not in (BCE, SPARSE)]


def _items(module: Module, call: ast.Call, name: str) -> set[str]:
    """What a loop or a comprehension takes a called name from: `sum(loss(x) for loss in losses)`."""
    for above in module.ancestors(call):
        match above:
            case ast.For(target=target, iter=items):
                pairs = [(target, items)]
            case ast.GeneratorExp() | ast.ListComp():
                pairs = [(one.target, one.iter) for one in above.generators]
            case _:
                continue
        for target, items in pairs:
            if name in names_in(target):
                return named_in(items)
    return set()


def _check(
    reading: Reading,
    search: Search,
    statement: ast.stmt,
    call: ast.Call,
    hits: list[Hit],
    before: Sequence[ast.stmt],
    made: set[str],
    forwards: Collection[ast.AST],
) -> None:
    """Raise Refused unless all that a call needs in float32 is what its arguments say."""
    given = [*call.args, *(one.value for one in call.keywords)]
    given += [call.func.value] if isinstance(call.func, ast.Attribute) else []
    takes = {name for one in given for name in read(one)} & made
    runs = any(node in forwards for one in given for node in ast.walk(one))
    fields = {name for one in before for name in stored(one) if "." in name}
    if any(hit.what == SPARSE for hit in hits) or not isinstance(statement, _SIMPLE) or not (takes or runs):
        raise refusal(hits[0])
    own = _own_functions(search, call)
    if (own and call in forwards) or fields & takes.union(*map(read, own)):
        raise refusal(hits[0])
    low = [node for one in before for node in ast.walk(one)]
    low += [node for one in given for node in ast.walk(one)]
    if any(hit.what in (BCE, BOUND) for hit in hits) and not _says_sigmoid(search, named_in(call.func)):
        called = {name for node in low if isinstance(node, ast.Call) for name in named_in(node.func)}
        if _says_sigmoid(search, called) or any(getattr(node, "attr", "") in _SIGMOID for node in low):
            raise Refused(REASON, ADVICE)  # it is 0 or 1 too soon in half precision
    kinds = tensors_made(reading, before)
    passed = dict(_passed(search, call))
    outputs = [one for one in passed if one in forwards or kinds.get(getattr(one, "id", "")) == OUTPUT]
    inner = [node for node in ast.walk(statement) if node in forwards and node is not call]
    tensors = all(hit.what == COMPILED for hit in hits)  # whatever is given to such a loss
    if not (tensors or all(passed[one] for one in outputs)) or not all(node in passed for node in inner):
        raise refusal(hits[0])  # it may be a tuple, which has no float()


def keep(reading: Reading, calls: Sequence[ast.Call]) -> None:
    """Note that these calls are in float32."""
    search = search_of(reading)
    search.kept |= {hit.place for call in calls for hit in _hits(search, call, ())}


def _own_functions(search: Search, call: ast.Call) -> list[ast.AST]:
    """The functions of this file that a call may run."""
    definitions = search.names(search.module).definitions
    found = (one for name in named_in(call.func) for one in definitions.get(name, ()))
    return [one for one in found if isinstance(one, ast.FunctionDef)]


def _says_sigmoid(search: Search, names: Collection[str]) -> bool:
    return any(last_name(node) in _SIGMOID for _, code in search.reached(names) for node in ast.walk(code))


def _passed(search: Search, call: ast.Call) -> Iterator[tuple[ast.expr, bool]]:
    """The arguments of a call, each with whether the called function surely takes it for a tensor."""
    function = _called(search, call)
    for index, value in enumerate([*call.args, *(one.value for one in call.keywords)]):
        if function is None:
            yield value, False
            continue
        source, code, skip = function
        parameters = positional(code)[skip:]
        keyword = call.keywords[index - len(call.args)].arg if index >= len(call.args) else None
        name = keyword or (parameters[index] if index < len(parameters) else "")
        known = name in parameters + [one.arg for one in code.args.kwonlyargs]
        yield value, known and whole(source, code, name)


def _called(search: Search, call: ast.Call) -> tuple[Module, ast.FunctionDef, int] | None:
    """The function that a call runs, its file, and how many of its parameters are bound: a function, or the forward of
    the class that the called object is made of."""
    module = search.module
    if not isinstance(call.func, ast.Name | ast.Attribute):
        return None
    name = ast.unparse(call.func).removeprefix("self.")
    found = _defined(search, module, name)
    if found is None:
        made = set(_made(search, module, name))
        found = _defined(search, module, made.pop()) if len(made) == 1 else None
        if found is None or not isinstance(found[1], ast.ClassDef):
            return None
        methods = {one.name: one for one in found[1].body if isinstance(one, ast.FunctionDef)}
        method = next((methods[one] for one in _CLASSES if one in methods), None)
        return None if method is None else (found[0], method, 1)
    return (found[0], found[1], 0) if isinstance(found[1], ast.FunctionDef) else None


def _made(search: Search, module: Module, name: str, depth: int = 0) -> Iterator[str]:
    """The class in `Loss(...).to(device)` that a name stands for, perhaps by another name."""
    for value in search.names(module).values.get(name, ()) if depth < 4 else ():
        while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _MOVES:
            value = value.func.value
        match value:
            case ast.Call(func=ast.Name() | ast.Attribute() as made):
                yield ast.unparse(made)
            case ast.Name(id=other) | ast.Attribute(value=ast.Name(id="self"), attr=other):
                if other != name:
                    yield from _made(search, module, other, depth + 1)
            case _:
                yield ""


def _defined(search: Search, module: Module, name: str, depth: int = 0) -> tuple[Module, ast.AST] | None:
    """Where a name is defined, through the files that only pass it on."""
    here = search.names(module).definitions.get(name, [])
    if here:
        return (module, here[0]) if len(here) == 1 else None
    for source, other in search.imported(module, name) if depth < 4 else ():
        if (found := _defined(search, source, other, depth + 1)) is not None:
            return found
    return None
