"""Scripts that move to the GPU under a condition of their own: `if use_cuda: model.cuda()`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name

SAYS_GPU = re.compile(r"cuda|[gc]pu|device", re.IGNORECASE)
_TESTS = ("is_available", "device_count", "len")


def guards(module: Module) -> list[ast.expr]:
    """The condition under which the script moves everything that it moves to the GPU, in each spelling that it has
    (`args.cuda`, `self.args.cuda`); none where there is no such thing, or more than one."""
    found: set[str] | None = None
    spelled: dict[str, dict[str, ast.expr]] = {}
    for node in ast.walk(module.tree):
        if not _moves(node):
            continue
        asked = set()
        for test in _tests_above(module, node):
            text = ast.unparse(test)
            asked.add(text.replace("self.", ""))
            spelled.setdefault(text.replace("self.", ""), {})[text] = test
        found = asked if found is None else found & asked
    wanted = [text for text in sorted(found or ()) if SAYS_GPU.search(text) and all(map(_pure, spelled[text].values()))]
    return list(spelled[wanted[0]].values()) if len(wanted) == 1 else []


def _moves(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="cuda")):
            return True
        case ast.Call(func=ast.Attribute(attr="to"), args=[ast.Constant(value=str() as text), *_]):
            return text.startswith("cuda")
    return False


def _tests_above(module: Module, node: ast.AST) -> Iterator[ast.expr]:
    """The conditions that hold where a node stands, in its function."""
    inner = node
    for above in module.ancestors(node):
        if isinstance(above, FunctionNode):
            return
        if isinstance(above, ast.If | ast.IfExp):
            body = above.body if isinstance(above.body, list) else [above.body]
            other = above.orelse if isinstance(above.orelse, list) else [above.orelse]
            match above.test:
                case ast.UnaryOp(op=ast.Not(), operand=test) if inner in other:
                    yield test
                case test if inner in body:
                    yield test
        inner = above


def _pure(test: ast.expr) -> bool:
    """Whether asking twice gives the same answer: names and fields, compared and combined, and what torch says."""
    for node in ast.walk(test):
        if isinstance(node, ast.Call) and called_name(node) not in _TESTS:
            return False
        if isinstance(node, ast.NamedExpr | ast.Await | ast.Lambda | ast.Subscript | ast.comprehension):
            return False
    return True


def is_truth(module: Module, test: ast.expr, depth: int = 4) -> bool:
    """Whether a condition is True or False, not merely true or false: `enabled=` takes nothing else."""
    match test:
        case ast.Constant(value=value):
            return isinstance(value, bool)
        case ast.Compare() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.BoolOp(values=values):
            return all(is_truth(module, value, depth) for value in values)
        case ast.IfExp(body=body, orelse=orelse):
            return is_truth(module, body, depth) and is_truth(module, orelse, depth)
        case ast.Call(func=ast.Attribute(attr="is_available") | ast.Name(id="bool")):
            return True
        case ast.Name() | ast.Attribute() if depth:
            values = list(_assigned(module, ast.unparse(test)))
            flag = isinstance(test, ast.Attribute) and _flag(module, test.attr)
            return (bool(values) or flag) and all(is_truth(module, value, depth - 1) for value in values)
    return False


def _assigned(module: Module, text: str) -> Iterator[ast.expr]:
    """What is assigned to a name or field anywhere; a parameter of that name could be anything."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Assign(targets=targets, value=value) if text in map(ast.unparse, targets):
                yield value
            case ast.arg(arg=name) if name == text:
                yield ast.Name("?")


def _flag(module: Module, name: str) -> bool:
    """Whether the command line has a flag of this name that is True or False."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=args, keywords=keywords):
                told = {keyword.arg: keyword.value for keyword in keywords}
                names = [getattr(arg, "value", "") for arg in (*args, *([told["dest"]] if "dest" in told else []))]
                if name in (str(text).lstrip("-").replace("-", "_") for text in names):
                    action, kind = getattr(told.get("action"), "value", ""), getattr(told.get("type"), "id", "")
                    default = getattr(told.get("default"), "value", False)
                    return (action in ("store_true", "store_false") or kind == "bool") and isinstance(default, bool)
    return False
