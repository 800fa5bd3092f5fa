"""Where what a region made is used outside: which expression gets `.float()`, if any."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Sequence

from amplint.rewrite.fixes import suite_of
from amplint.rewrite.islands.sigmoids import VIEWS, unviewed
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.tensors import BOOLEAN, INTEGER, NUMBERS
from amplint.source.module import Module
from amplint.source.tree import called_name, names_in, place_of

OUTPUT, DERIVED, UNKNOWN = "output", "derived", "unknown"
SAME = VIEWS | {"detach", "cpu", "cuda", "contiguous", "clone", "expand", "expand_as", "repeat"}
_ABOUT = NUMBERS | {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "grad", "type_as", "get_device"}
_LOWERS = frozenset("mm bmm matmul linear einsum conv1d conv2d conv3d addmm baddbmm conv_transpose2d".split())
_PARTS = frozenset(("chunk", "split", "unbind", "tensor_split"))
_LISTS = frozenset("list tuple dict set map zip filter sorted reversed enumerate".split())
_TALKS = frozenset(("print", "len", "isinstance", "str", "repr", "float", "int", "id", "type"))


def tensors_made(reading: Reading, run: Iterable[ast.stmt]) -> dict[str, str]:
    """The names that a stretch under autocast binds to what may be in half precision: what a model returned, what was
    computed from that, or unknown."""
    module = reading.module
    runs: set[ast.AST] = set()
    for event in reading.events:
        if isinstance(event, events.Forward):
            runs.add(event.node)
            runs |= {frame.call for frame in event.frame.stack() if frame.call is not None}
    found: dict[str, str] = {}
    for statement in run:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                kind = _kind(module, node, runs, found)
                known = found.get(node.id, kind)
                if known or kind:
                    found[node.id] = kind if known == kind else UNKNOWN if "" in (known, kind) else DERIVED
    return {name: kind for name, kind in found.items() if kind}


def _kind(module: Module, name: ast.Name, runs: Collection[ast.AST], known: dict[str, str]) -> str:
    statement = module.statement(name)
    if isinstance(statement, ast.AugAssign):
        return known.get(name.id, "") or _made(statement.value, known)
    if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
        return UNKNOWN
    value = statement.value
    if isinstance(value, ast.Tuple) and isinstance(above := module.parents[name], ast.Tuple):
        value = value.elts[above.elts.index(name)] if len(value.elts) == len(above.elts) else value
    root = value
    while isinstance(root, ast.Call | ast.Attribute):
        if root in runs:
            return OUTPUT
        if isinstance(root, ast.Call):
            if not isinstance(root.func, ast.Attribute) or root.func.attr not in SAME:
                break
            root = root.func.value
        elif root.attr == "data":
            root = root.value
        else:
            break
    unpacked = isinstance(module.parents[name], ast.Tuple | ast.List)
    if any(node in runs for node in ast.walk(value)):
        return "" if _is_number(value) else DERIVED if _is_one(value, unpacked) else UNKNOWN
    return _made(value, known, unpacked)


def _made(value: ast.expr, known: dict[str, str], unpacked: bool = True) -> str:
    """Whether an expression computes a tensor from what is in half precision."""
    names = names_in(value)
    lowers = any(isinstance(one, ast.BinOp) and isinstance(one.op, ast.MatMult) for one in ast.walk(value))
    lowers |= any(isinstance(one, ast.Attribute) and one.attr in _LOWERS for one in ast.walk(value))
    if not (names & known.keys() or lowers) or _is_number(value):
        return ""
    several = getattr(getattr(value, "func", None), "attr", "") in ("max", "min", "topk", "sort")
    return DERIVED if _is_one(value, unpacked) and not several else UNKNOWN


def _is_one(value: ast.expr, unpacked: bool) -> bool:
    """Whether an expression has the shape of a tensor, not of a list of several."""
    if not isinstance(value, ast.BinOp | ast.UnaryOp | ast.Call | ast.Subscript | ast.Name | ast.Attribute):
        return False
    function = getattr(value, "func", None)
    return getattr(function, "id", "") not in _LISTS and (unpacked or getattr(function, "attr", "") not in _PARTS)


def _is_number(value: ast.expr) -> bool:
    """Whether an expression says something about a tensor: its shape, a comparison, an index."""
    match value:
        case ast.Compare() | ast.Constant():
            return True
        case ast.Attribute(attr=name):
            return name in _ABOUT
        case ast.Subscript(value=inner):
            return _is_number(inner)
        case ast.Call(func=ast.Name(id=name)):
            return name in _TALKS
        case ast.Call(func=ast.Attribute(attr=name, value=inner)):
            return name in _ABOUT | BOOLEAN | INTEGER or _is_number(inner)
        case ast.BinOp(left=left, right=right):
            return _is_number(left) and _is_number(right)
    return False


class Bindings:
    """Where the names of a function are bound, in the order of the text, and which of these places are in stretches
    under autocast."""

    def __init__(self, module: Module, code: ast.AST, runs: Iterable[Iterable[ast.stmt]]):
        self.module = module
        self.low = {node for run in runs for statement in run for node in ast.walk(statement)}
        self.stores: dict[str, list[ast.Name]] = {}
        for node in (one for one in ast.walk(code) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)):
            if module.scope(node) is code:
                self.stores.setdefault(node.id, []).append(node)
        for bound in self.stores.values():
            bound.sort(key=place_of)

    def float32(self, load: ast.Name) -> bool:
        """Whether the name was bound last outside of these stretches, whatever way the script took to this place."""
        last = self._last(load)
        if last is None or last in self.low:
            return False
        statement = self.module.statement(last)
        while isinstance(outer := self.module.parents[statement], ast.With):
            statement = outer  # whose body always runs
        block = suite_of(self.module, statement)
        return any(above in block for above in self.module.ancestors(load))

    def values(self, load: ast.Name) -> list[ast.expr]:
        """What the name was bound to last, under autocast."""
        above = self.module.parents[last] if (last := self._last(load)) is not None else None
        if not isinstance(above, ast.Assign):
            raise Uncast(load)
        return [above.value]

    def _last(self, load: ast.Name) -> ast.Name | None:
        here = self.module.statement(load)
        before = [one for one in self.stores.get(load.id, ()) if one.lineno < here.lineno]
        return before[-1] if before else None


def read_outside(
    reading: Reading, low: Sequence[Sequence[ast.stmt]], outside: Sequence[ast.stmt], after: dict[ast.AST, int | None]
) -> Iterator[tuple[ast.Name, str, Bindings]]:
    """Where code outside of these stretches reads what may be in half precision there, and how that was made."""
    module = reading.module
    for code in dict.fromkeys(map(module.scope, outside)):
        names: dict[str, str] = {}
        for run in (one for one in low if module.scope(one[0]) is code):
            names |= tensors_made(reading, run)
            for name in _names_in_float32(module, run, after):
                names.pop(name, None)
        bindings = Bindings(module, code, low)
        for node in (node for one in outside if module.scope(one) is code for node in ast.walk(one)):
            if not isinstance(node, ast.Name) or node.id not in names or not isinstance(node.ctx, ast.Load):
                continue
            if not bindings.float32(node):
                yield node, names[node.id], bindings


def _names_in_float32(module: Module, region: Sequence[ast.stmt], after: dict[ast.AST, int | None]) -> set[str]:
    """The names that hold nothing but float32 results of these forwards."""
    found: dict[str, bool] = {}
    for node in (node for statement in region for node in ast.walk(statement)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            above = module.parents[node]
            index = above.elts.index(node) if isinstance(above, ast.Tuple) else None
            above = module.parents[above] if isinstance(above, ast.Tuple) else above
            value = unviewed(above.value) if isinstance(above, ast.Assign) else None
            sure = value in after and after[value] == index
            found[node.id] = found.get(node.id, True) and sure
    return {name for name, sure in found.items() if sure}


def operand(module: Module, name: ast.Name, kind: str) -> ast.expr | None:
    """The expression around a name that needs `.float()`: the tensor with the methods that view it; None where only
    its shape is asked for, or where it is a term of a sum, as it would be under autocast. A shape in which it might be
    no tensor is refused."""
    node: ast.expr = name
    while True:
        above = module.parents[node]
        match above:
            case ast.Attribute(attr=attribute):
                call = module.parents[above]
                if attribute in _ABOUT:
                    return None
                if isinstance(call, ast.Call) and call.func is above:
                    if attribute in ("float", "double"):
                        return None
                    if attribute not in SAME:
                        return _sure(module, name, node, kind, None)
                    node = call
                elif attribute in ("data", "T", "mT"):
                    node = above
                else:
                    raise Uncast(name)
            case ast.Subscript(value=value, slice=ast.Slice() | ast.Tuple()) if value is node:
                node = above
            case ast.Call(func=ast.Name(id=talks)) if talks in _TALKS:
                return None
            case ast.Call() if node in above.args:
                return _sure(module, name, node, kind, above)
            case ast.keyword():
                return _sure(module, name, node, kind, module.parents[above])
            case ast.List() | ast.Tuple() if isinstance(module.parents[above], ast.Call):
                return _sure(module, name, node, kind, None)
            case ast.BinOp() | ast.UnaryOp() | ast.AugAssign() if kind != OUTPUT:
                return None
            case ast.BinOp() | ast.UnaryOp() | ast.AugAssign() | ast.Assign():
                return _sure(module, name, node, kind, None)
            case ast.Compare() | ast.FormattedValue():
                return None
            case _:
                raise Uncast(name)


class Uncast(Refused):
    """What is computed in float32 uses something that cannot be cast there."""

    def __init__(self, name: ast.Name):
        what = f"what is computed in float32 uses {name.id}, which is made under autocast"
        super().__init__(f"{what}, in a way amplint cannot cast", BY_HAND)
        self.name = name


def _sure(module: Module, name: ast.Name, node: ast.expr, kind: str, call: ast.AST | None) -> ast.expr:
    if kind == UNKNOWN or (kind == OUTPUT and not _is_tensor(module, name, call)):
        raise Uncast(name)
    return node


def _parameters(module: Module, call: ast.AST | None) -> list[str]:
    """The parameters of the function of this file that is called."""
    name = called_name(call) if isinstance(call, ast.Call) else ""
    for function in ast.walk(module.tree):
        if isinstance(function, ast.FunctionDef) and function.name == name:
            return [one.arg for one in (*function.args.posonlyargs, *function.args.args) if one.arg != "self"]
    return []


def _is_tensor(module: Module, name: ast.Name, call: ast.AST | None) -> bool:
    """Whether nothing treats the value as a tuple or a dict: here, or in the function of this file that is called."""
    scope = module.scope(name)
    if not whole(module, scope, name.id):
        return False
    names = set(_parameters(module, call))
    functions = (f for f in ast.walk(module.tree) if isinstance(f, ast.FunctionDef))
    return all(
        whole(module, function, one)
        for function in functions
        if names and names <= {argument.arg for argument in function.args.args}
        for one in names
    )


def whole(module: Module, scope: ast.AST, name: str) -> bool:
    """Whether a name is nowhere taken apart: unpacked, iterated, or indexed by a number or a key."""
    for node in ast.walk(scope):
        if not isinstance(node, ast.Name) or node.id != name or not isinstance(node.ctx, ast.Load):
            continue
        above = module.parents[node]
        match above:
            case ast.Subscript(value=value, slice=ast.Constant()) if value is node:
                return False
            case ast.Assign(targets=[ast.Tuple() | ast.List()], value=value) if value is node:
                return False
            case ast.For(iter=value) | ast.comprehension(iter=value) | ast.Starred(value=value) if value is node:
                return False
            case ast.Call(func=ast.Name(id="len" | "zip" | "enumerate" | "isinstance" | "list" | "tuple")):
                return False
    return True
