"""FP32 islands for what `amplint trace` marked: the marked expression in float32, and nothing else.

An elementwise operation or a reduction only needs a float32 operand. A product or a layer, whose operands autocast
casts, needs autocast to be off around its statement, too; it gets it where nothing else in the statement would notice.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.findings import Applicability, Edit, Finding, Fix, Range
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt
from amplint.rewrite.fixes.autocast import _float
from amplint.source.module import Module
from amplint.source.tree import called_name

CODES = ("AMP451", "AMP452", "AMP453")
VERDICTS = ("certain", "likely", "calibrated", "verified")  # refuted is none
UNSAFE = Applicability.UNSAFE

_PRODUCTS = frozenset("matmul mm bmm einsum baddbmm addmm linear dot mv".split())
_SHAPES = frozenset(
    "transpose t view reshape flatten unflatten permute unsqueeze squeeze contiguous expand expand_as float size dim "
    "chunk split unbind movedim detach clone to type_as".split()
)
_PLAIN = frozenset(  # may be given the island's result
    "softmax log_softmax mean sum relu sigmoid tanh exp log sqrt rsqrt clamp abs pow square var std dropout".split()
) | (_SHAPES - {"to", "type_as"})
_FILLS = frozenset(("masked_fill", "masked_fill_"))
_TENSORS = ast.Name | ast.Attribute | ast.Subscript | ast.Call | ast.BinOp | ast.UnaryOp
_SIMPLE = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.Return


# What a mark's help begins with where an island would meet half weights.
HALF_LAYER = "give the layer float32 weights"


class CannotFix(Exception):
    """Why a mark is left to a person, in a few words."""


def island(module: Module, finding: Finding, device: str) -> Fix:
    """The fix of a mark. `device`: of the target, where no tensor says it. Raises CannotFix."""
    if finding.code not in CODES or finding.verdict not in VERDICTS:
        raise CannotFix("a mark of this kind has no island")
    node = _marked(module, finding.range)
    if node is None:
        raise CannotFix("the marked expression is not there any more: trace again")
    fix = _fill(module, node) or _island(module, node, finding, device)
    if fix is None:
        raise CannotFix("the statement cannot be edited")
    return fix


def _marked(module: Module, place: Range) -> ast.expr | None:
    """The expression at a place; where only the line is known, the one value of its only statement."""
    found = [node for node in ast.walk(module.tree) if isinstance(node, ast.expr) and hasattr(node, "lineno")]
    exact = [node for node in found if module.range(node) == place]
    if exact:
        return exact[0]
    if place.end.column > place.start.column:
        return None
    lines = [one for one in ast.walk(module.tree) if isinstance(one, _SIMPLE) and one.lineno == place.start.row]
    value = lines[0].value if len(lines) == 1 else None
    return value if isinstance(value, ast.BinOp | ast.Call) else None


def _fill(module: Module, node: ast.expr) -> Fix | None:
    """`scores.masked_fill(mask, -1e9)` → `scores.masked_fill(mask, torch.finfo(scores.dtype).min)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr not in _FILLS:
        return None
    owner, value = node.func.value, node.args[1] if len(node.args) == 2 else None
    torch = edits.binding_of(module, "torch", at=module.statement(node))
    negative = isinstance(value, ast.UnaryOp) and isinstance(value.op, ast.USub)
    if torch is None or not isinstance(owner, ast.Name) or value is None or not negative:
        raise CannotFix("fill with torch.finfo(x.dtype).min, x being the tensor that is filled")
    made = f"{torch}.finfo({owner.id}.dtype).min"
    return attempt("fill with the dtype's own minimum", UNSAFE, lambda: edits.replace(module, value, made))


def _island(module: Module, node: ast.expr, finding: Finding, device: str) -> Fix | None:
    statement = module.statement(node)
    name, operands = _operation(module, node)
    if any(_is_float(one) for one in operands):
        raise CannotFix("it is in float32 already")
    if not all(isinstance(one, _TENSORS) for one in operands):
        raise CannotFix("not all of its operands can be cast where they stand")
    lowered = isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)
    if finding.help.startswith(HALF_LAYER):
        raise CannotFix(finding.help)
    lowered = lowered or name in _PRODUCTS or (isinstance(node, ast.Call) and _is_layer(node))
    if not lowered:
        if finding.code == "AMP453":
            raise CannotFix("what its operands are computed from must be in float32, not they")
        if not operands:
            raise CannotFix("it has no tensor that could be cast")
        first = _leaf(operands[0])
        return attempt("compute it in float32", UNSAFE, lambda: edits.replace(module, first, _float(module, first)))
    torch = edits.binding_of(module, "torch", at=statement)
    if torch is None or not isinstance(statement, _SIMPLE):
        raise CannotFix("it stands in no simple statement" if torch else "torch has no name here")
    _alone(statement, node, operands)
    header = f"with {torch}.autocast(device_type={_device(module, operands, device)}, enabled=False):"

    def build() -> list[Edit]:
        made = edits.indent_under(module, [statement], header)
        for one in operands:
            made += edits.replace(module, one, _float(module, one))
        return made

    return attempt("compute it in float32", UNSAFE, build)


def _operation(module: Module, node: ast.expr) -> tuple[str, list[ast.expr]]:
    """What an expression is called, and the operands that may be tensors."""
    match node:
        case ast.BinOp(left=left, right=right):
            return "", [one for one in (left, right) if not _is_number(one)]
        case ast.UnaryOp(operand=operand):
            return "", [operand]
        case ast.Call(func=ast.Attribute(attr=name, value=owner) as function) if not _is_function(module, function):
            if _is_layer(node):
                return name, [one for one in node.args if not _is_number(one)]
            return name, [owner, *(one for one in node.args if name in _PRODUCTS and not _is_number(one))]
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            given = [one for one in node.args if not _is_number(one) and not isinstance(one, ast.Constant)]
            if name == "where":  # the condition is none, and neither is the number that it writes
                given = [one for one in given[1:] if not isinstance(one, ast.Call)]
            return name, given if name in _PRODUCTS or _is_layer(node) else given[:1]
        case ast.Call():
            return "", list(node.args)
    return "", []


def _leaf(node: ast.expr) -> ast.expr:
    """h of h * h: the first factor, from which on all of a product is in float32."""
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        first = node.right if _is_number(node.left) else node.left
        if not isinstance(first, _TENSORS) or (first is node.right and isinstance(node.op, ast.Div)):
            break
        node = first
    return node


def _is_number(node: ast.expr) -> bool:
    """Whether a node is made of numbers alone."""
    return all(
        isinstance(one, ast.Constant | ast.operator | ast.unaryop | ast.BinOp | ast.UnaryOp) for one in ast.walk(node)
    )


def _is_function(module: Module, function: ast.Attribute) -> bool:
    """torch.matmul, F.linear, torch.nn.functional.linear: what is an imported module's function, and no method."""
    root: ast.expr = function.value
    while isinstance(root, ast.Attribute):
        root = root.value
    return isinstance(root, ast.Name) and root.id in module.imports


def _is_layer(node: ast.Call) -> bool:
    """self.proj(x), self.layers[0](x): a submodule that is called."""
    root: ast.expr = node.func
    depth = 0
    while isinstance(root, ast.Attribute | ast.Subscript):
        root, depth = root.value, depth + 1
    return depth == 1 + isinstance(node.func, ast.Subscript) and isinstance(root, ast.Name) and root.id == "self"


def _is_float(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "float"


def _alone(statement: ast.stmt, node: ast.expr, operands: list[ast.expr]) -> None:
    """Raise CannotFix where something else in the statement would run without autocast, and may mind."""
    inside = {one for operand in operands for one in ast.walk(operand)}
    above = set(_above(statement, node))
    for one in ast.walk(statement):
        if one is node:
            continue
        if isinstance(one, ast.BinOp) and isinstance(one.op, ast.MatMult):
            raise CannotFix("the statement has another product, which would run without autocast, too: split it")
        if isinstance(one, ast.Call):
            name = called_name(one)
            if name in _SHAPES or (one in above and one not in inside and name in _PLAIN and not _is_layer(one)):
                continue
            raise CannotFix("the statement calls more, which would run without autocast, too: split it")


def _above(statement: ast.stmt, node: ast.expr) -> Iterator[ast.AST]:
    """The nodes of a statement that hold a node."""
    for one in ast.walk(statement):
        if one is not node and any(inner is node for inner in ast.walk(one)):
            yield one


def _device(module: Module, operands: list[ast.expr], device: str) -> str:
    """The device type, as code: a tensor's own, or the target's."""
    for node in operands:
        root: ast.expr = node
        while True:
            if isinstance(root, ast.Subscript):
                root = root.value
            elif isinstance(root, ast.Call) and isinstance(root.func, ast.Attribute) and root.func.attr in _SHAPES:
                root = root.func.value
            else:
                break
        if isinstance(root, ast.Name) and root.id != "self" and root.id not in module.imports:
            return f"{root.id}.device.type"
    return f'"{device}"'
