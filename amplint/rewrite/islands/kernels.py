"""What a training step runs that half precision cannot: linear algebra and Fourier transforms have no kernels for it,
and binary cross entropy on probabilities is refused by autocast.

The readings do not enter the losses and layers of other files, so this follows names: from the loss to what is assigned
to it, to the functions and classes that this calls, and to the names that these use.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from amplint.rewrite.islands.chosen import PROBABILITIES, check_chosen
from amplint.rewrite.islands.fields import calls_field, calls_of, field_of, is_run
from amplint.rewrite.islands.hits import AWAY, BANDS, BCE, COARSE, COMPILED, IN_PLACE, SPARSE, Hit, Place, refusal
from amplint.rewrite.islands.numbers import BOUND, WORDS, imprecise
from amplint.rewrite.islands.spectra import WORDS as BAND_WORDS
from amplint.rewrite.islands.spectra import sums_bands
from amplint.rewrite.islands.unreached import MAKING, unreached
from amplint.rewrite.models.used import places_from, used_by
from amplint.rewrite.regions.derivation import path
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.frames import Frame
from amplint.source.interpret.machine import Machine
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name, parameters, positional, uses_of

_LINEAR = frozenset(
    "svd svd_lowrank pca_lowrank qr cholesky cholesky_inverse cholesky_solve inverse pinverse det logdet slogdet lstsq "
    "triangular_solve lu matrix_power matrix_exp symeig eig".split()
)
_COMPILED = frozenset("warpctc_pytorch torch_baidu_ctc warprnnt_pytorch warp_rnnt".split())  # losses for float32 only
_RNNT = "k2.rnnt_loss"  # rnnt_loss_smoothed, rnnt_loss_pruned …
_CALLED = "|".join((*_LINEAR, *_COMPILED, r"rnnt_loss\w*"))
_WORDS = re.compile(
    rf"\b(binary_cross_entropy|BCELoss|linalg|fft|spmm|sparse|add\w+_|cpu|{WORDS}|{BAND_WORDS}|{_CALLED})\b"
)
_METHODS = frozenset("svd pinverse logdet slogdet cholesky symeig".split())
_NO_MATRIX = frozenset("norm vector_norm matrix_norm cross diagonal multi_dot vecdot matmul".split())
_SPARSE_PRODUCTS = frozenset(("torch.spmm", "torch.hspmm", "torch.sparse.mm", "torch.sparse.addmm"))
_WIDE = frozenset(("float", "double"))
_FRESH = frozenset(f"torch.{name}" for name in ("randn", "rand", "eye", "zeros", "ones"))
_MOVES = frozenset(("cpu", "cuda", "t", "transpose", "contiguous", "unsqueeze", "clone"))


def check_kernels(reading: Reading, used: Sequence[Module]) -> None:
    """Refuse a script whose losses or models need float32 where no statement of a training step can give it; `used` are
    the other files that it may run."""
    module = reading.module
    files = {Path(one.path).resolve(): one for one in (module, *used)}
    search = Search(module, files, reading.machine.project.roots)
    if not search.says_one:
        return
    kept = search_of(reading).kept
    names: set[tuple[Module, str]] = set()
    for event in reading.events:
        if isinstance(event, events.Backward):
            names |= {(search.here(event.module), name) for name in named_in(event.node)}
            for frame in event.frame.stack():
                search.call(frame)
    steps = {module, *(source for source, _ in names)}
    for hit in search.behind(names):
        if hit.what in (BCE, SPARSE) and hit.module in steps:
            continue  # what is in the script itself is seen more closely
        if hit.what in COARSE:
            continue  # in a model it may be no loss
        if hit.place not in kept:
            raise refusal(hit)
    check_chosen(reading, search.leading(names))


class Search:
    """Follows the names of a module through the files that it uses. `kept` are the places of what needs float32 and
    gets it, because a statement of a training step that leads there stays in float32."""

    def __init__(self, module: Module, files: dict[Path, Module], roots: Sequence[Path]):
        self.module, self.files, self.roots = module, files, roots
        self.says_one = any(_WORDS.search(one.text) for one in files.values())
        self.says_sigmoid = any("igmoid" in one.text for one in files.values())
        self.kept: set[Place] = set()
        self._given: dict[tuple[Module, str], set[tuple[Module, str]]] = {}
        self._known: dict[Module, Names] = {}
        self._found: dict[ast.AST, list[Hit]] = {}

    def names(self, module: Module) -> Names:
        if module not in self._known:
            self._known[module] = Names(module)
        return self._known[module]

    def hits(self, names: Collection[str]) -> list[Hit]:
        """The calls behind some names of the script that need float32, those of the script first."""
        return self.behind((self.module, name) for name in names) if self.says_one else []

    def behind(self, names: Iterable[tuple[Module, str]]) -> list[Hit]:
        found = {hit.call: hit for one in self.leading(names) for hit in self._in(*one) if self._may_run(hit)}
        return sorted(found.values(), key=lambda hit: (hit.module is not self.module, hit.module.path, hit.call.lineno))

    def _may_run(self, hit: Hit) -> bool:
        """Whether the script comes by a call; by the calls of a loss that is made to be called later."""
        made = field_of(hit.module, hit.call) is not None
        nodes = calls_of(hit.module, hit.call) if made else [hit.call]
        if made and not nodes:
            return True  # another file calls it
        return any(not unreached(hit.module, one, self.module, self.files.values()) for one in nodes)

    def _in(self, source: Module, code: ast.AST) -> list[Hit]:
        if code not in self._found:
            calls = (node for node in ast.walk(code) if isinstance(node, ast.Call))
            what = ((call, self.needs(source, call)) for call in calls)
            whole = isinstance(code, ast.FunctionDef | ast.ClassDef)  # and not a value, whose name may be anyone's
            found = [Hit(source, call, needs) for call, needs in what if needs is not None]
            self._found[code] = [hit for hit in found if whole or hit.what != AWAY]
        return self._found[code]

    def needs(self, module: Module, call: ast.Call) -> str | None:
        what = needs_float32(module, call)
        if what is None and (field := field_of(module, call)):  # a model's loss, which the script calls
            others = (one for one in self.files.values() if one is not module)
            what = BCE if any(calls_field(one, field) for one in others) else None
        return what if what != BOUND or self.says_sigmoid else None  # a softmax is float32 under autocast

    def reached(self, names: Collection[str]) -> Iterator[tuple[Module, ast.AST]]:
        """The values and definitions that some names of the script lead to, in all files."""
        return self.leading((self.module, name) for name in names)

    def here(self, module: Module) -> Module:
        return self.files.get(Path(module.path).resolve(), module)

    def call(self, frame: Frame) -> None:
        """Note what a function of another file is given where the script calls it."""
        code, caller = frame.code, frame.caller
        if not isinstance(code, ast.FunctionDef) or not isinstance(frame.call, ast.Call) or caller is None:
            return
        source, parameters = self.here(frame.module), positional(code)
        if source is self.here(caller.module):
            return
        parameters = parameters[1:] if parameters[:1] == ["self"] else parameters
        given = [
            *zip(parameters, frame.call.args, strict=False),
            *((one.arg, one.value) for one in frame.call.keywords),
        ]
        for parameter, value in given:
            if parameter:
                found = {(self.here(caller.module), name) for name in named_in(value)}
                self._given.setdefault((source, parameter), set()).update(found)

    def leading(self, names: Iterable[tuple[Module, str]]) -> Iterator[tuple[Module, ast.AST]]:
        done: set[tuple[Module, str]] = set()
        pending = list(names)
        while pending:
            source, name = pending.pop()
            if (source, name) in done:
                continue
            done.add((source, name))
            pending += self._given.get((source, name), ())
            known = self.names(source)
            if name == "*":
                pending += [(source, one) for one in {*known.definitions, *known.imports} - {"*"}]
            for code in (*known.values.get(name, ()), *known.definitions.get(name, ())):
                if not _trains(code):
                    yield source, code
                    pending += [(source, one) for one in named_in(code) - _local(code)]
            pending += self.imported(source, name)
            if name in known.fields and not (name in known.values or name in known.definitions):  # a base class sets it
                pending += [(one, name) for one in self.files.values() if name in self.names(one).values]

    def imported(self, source: Module, name: str) -> list[tuple[Module, str]]:
        """Where a name of a module may come from, and what it is called there."""
        names = self.names(source)
        base, dot, last = name.rpartition(".")
        found: list[tuple[Module, str]] = []
        imports = names.imports.get(base or name, [])
        if not imports and not dot and name not in names.definitions and name not in names.values:
            imports = names.imports.get("*", [])  # any of these may bring it
        for statement, alias in imports:
            for one in _files_of(source, statement, alias, self.files, self.roots):
                if last == "*":
                    found += [(one, defined) for defined in self.names(one).definitions]
                elif dot or isinstance(statement, ast.ImportFrom):
                    found.append((one, last if dot else alias.name if alias.name != "*" else name))
        return found


_searches: WeakKeyDictionary[Reading, Search] = WeakKeyDictionary()
_kept: WeakKeyDictionary[Machine, set[Place]] = WeakKeyDictionary()


def search_of(reading: Reading) -> Search:
    """One for each reading: planning says what it keeps in float32, and the check that follows reads it."""
    if reading not in _searches:
        project = reading.machine.project
        files = {Path(one.path).resolve(): one for one in (reading.module, *used_by(reading.module, project))}
        _searches[reading] = Search(reading.module, files, project.roots)
        _searches[reading].kept = _kept.setdefault(reading.machine, set())  # the steps may be in other files
    return _searches[reading]


class Names:
    """What the names of a file stand for: definitions, values assigned, imports, and what its functions are given."""

    def __init__(self, module: Module):
        self.definitions: dict[str, list[ast.AST]] = {}
        self.values: dict[str, list[ast.expr]] = {}
        self.imports: dict[str, list[tuple[ast.Import | ast.ImportFrom, ast.alias]]] = {}
        self.fields = {one.attr for one in module.nodes(ast.Attribute) if getattr(one.value, "id", "") == "self"}
        functions = {one.name: one for one in module.tree.body if isinstance(one, ast.FunctionDef)}
        for node in ast.walk(module.tree):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    self.definitions.setdefault(name, []).append(node)
                case ast.Assign(targets=targets, value=value):
                    for name in set().union(*map(_bound, targets)):
                        self.values.setdefault(name, []).append(value)
                case ast.AugAssign(target=target, value=value):
                    for name in _bound(target):
                        self.values.setdefault(name, []).append(value)
                case ast.Call(
                    func=ast.Attribute(attr="append" | "insert" | "extend" | "add_module", value=items),
                    args=[*_, value],
                ):
                    for name in _bound(items):
                        self.values.setdefault(name, []).append(value)
                case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                    for alias in aliases:
                        self.imports.setdefault(alias.asname or alias.name, []).append((node, alias))
                case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in functions:
                    arguments = functions[name].args
                    parameters = [one.arg for one in (*arguments.posonlyargs, *arguments.args)]
                    given = [*zip(parameters, args, strict=False), *((one.arg, one.value) for one in keywords)]
                    for parameter, value in given:
                        self.values.setdefault(parameter or "", []).append(value)


def _bound(target: ast.expr) -> set[str]:
    """The names, and the fields of `self`, that an assignment binds, or puts something into."""
    parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return {path(part).removeprefix("self.") for part in parts} - {""}


def _trains(node: ast.AST) -> bool:
    """Whether a function runs training steps of its own: what it is called from is no part of them."""
    return isinstance(node, FunctionNode) and any(
        isinstance(one, ast.Attribute) and one.attr in ("backward", "zero_grad") for one in ast.walk(node)
    )


def _local(code: ast.AST) -> set[str]:
    """The variables of a definition: what is assigned to them is in it, and other functions' are not they."""
    nodes = list(ast.walk(code)) if isinstance(code, FunctionNode | ast.ClassDef) else []
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored - {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def named_in(code: ast.AST) -> set[str]:
    """The names, the fields of `self` and what is taken from other names that some code reads: `losses.Dice`, and
    `losses.*` where the name is computed, `*` where it may be any of the file."""
    found = set()
    for node in ast.walk(code):
        match node:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
                found.add(name)
            case ast.Attribute(value=ast.Name() | ast.Attribute() as base, attr=name):
                found.add(f"{path(base)}.{name if name != '__dict__' else '*'}")
            case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id=base), _, *_]):
                found.add(f"{base}.*")
            case ast.Call(func=ast.Name(id="eval")) | ast.Subscript(value=ast.Call(func=ast.Name(id="globals"))):
                found.add("*")
    return found


def _files_of(
    source: Module,
    statement: ast.Import | ast.ImportFrom,
    alias: ast.alias,
    files: dict[Path, Module],
    roots: Sequence[Path],
) -> list[Module]:
    """The files that an import may take a name from: the module, or its submodule of that name."""
    folder = Path(source.path).resolve().parent
    if isinstance(statement, ast.Import):
        named, bases = [alias.name.split(".")], places_from(source, roots)
    else:
        above = [folder, *folder.parents][statement.level - 1 : statement.level]
        bases = above if statement.level else places_from(source, roots)
        parts = statement.module.split(".") if statement.module else []
        named = [some for some in (parts, [*parts, alias.name]) if some or statement.level]
    places = [base.joinpath(*some) for base in bases for some in named]
    paths = [one.resolve() for place in places for one in (place.with_name(place.name + ".py"), place / "__init__.py")]
    return [files[one] for one in paths if one in files]


def needs_float32(module: Module, call: ast.Call) -> str | None:
    """What a call computes that half precision cannot, where its operand is not made float32 on the spot."""
    names = module.dotted(call.func)
    if names & PROBABILITIES:
        return BCE if is_run(module, call) else None
    if getattr(module.function(call), "name", "") in MAKING:
        return None
    if _leaves(module, call):
        return AWAY
    if names & _SPARSE_PRODUCTS:
        return SPARSE
    if sums_bands(module, call) and not _is_wide(module, call):
        return BANDS
    if any(name.partition(".")[0] in _COMPILED or name.startswith(_RNNT) for name in names):
        return COMPILED
    if (what := imprecise(module, call)) is not None:
        return None if _is_wide(module, call) else what
    last = called_name(call)
    operands: list[ast.expr] = list(call.args)
    if last in IN_PLACE and isinstance(call.func, ast.Attribute):
        return None if any(_is_cast(one) for one in operands) or _is_wide(module, call) else last
    for name in names:
        package, _, word = name.rpartition(".")
        if package in ("torch", "torch._C._linalg") and word in _LINEAR:
            break
        if package == "torch.linalg" and word not in _NO_MATRIX:
            break
        if package == "torch.fft" and not word.endswith(("shift", "freq")):
            break
    else:
        if last not in _METHODS or names or not isinstance(call.func, ast.Attribute):
            return None
        root = ast.unparse(call.func).partition(".")[0]
        if root in module.imports:
            return None  # np.linalg.svd
        operands = [call.func.value]
    if not operands or _is_cast(operands[0]) or _is_fresh(module, call, operands[0]) or _is_wide(module, call):
        return None
    return last


def _leaves(module: Module, call: ast.Call) -> bool:
    """Whether a function goes on computing on the CPU with what it is given: `x = x.cpu()`, not `x.cpu().numpy()`."""
    match call:
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="cpu"), args=[]):
            pass
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="to"), args=[ast.Constant(value="cpu")]):
            pass
        case _:
            return False
    above = module.parents[call]
    return name in parameters(module.function(call)) and not isinstance(above, ast.Attribute | ast.Return)


def _is_cast(value: ast.expr) -> bool:
    """Whether a value is made float32 on the spot, perhaps viewed after that: x.float().t()."""
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        if value.func.attr in _WIDE:
            return True
        value = value.func.value
    return False


def _is_fresh(module: Module, call: ast.AST, value: ast.expr) -> bool:
    """Whether a value was made in the same function, in torch's default dtype: random numbers, an identity; or is a
    parameter, which autocast leaves in float32."""
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr in _MOVES:
        value = value.func.value
    if isinstance(value, ast.Name):
        code = module.scope(call)
        bound = uses_of(code, value.id)
        stores = [node for node in bound if not isinstance(node.ctx, ast.Load)]
        made = module.parents[stores[0]] if len(stores) == 1 else None
        value = made.value if isinstance(made, ast.Assign) and made.targets == stores else value
    if isinstance(value, ast.Attribute) and ast.unparse(value.value) == "self":
        around = module.class_of(call)
        assigned = (one for one in ast.walk(around) if isinstance(one, ast.Assign)) if around is not None else ()
        made_of = [one.value for one in assigned if ast.unparse(value) in map(ast.unparse, one.targets)]
        return bool(made_of) and all(
            isinstance(one, ast.Call) and "torch.nn.Parameter" in module.dotted(one.func) for one in made_of
        )
    return (
        isinstance(value, ast.Call)
        and bool(_FRESH & set(module.dotted(value.func)))
        and not any(keyword.arg in ("dtype", "out", None) for keyword in value.keywords)
    )


def _is_wide(module: Module, call: ast.Call) -> bool:
    """Whether autocast is switched off around a call."""
    return any(
        isinstance(above, ast.With | ast.FunctionDef) and "autocast" in module.rows(above).split("\n")[0]
        for above in module.ancestors(call)
    )
