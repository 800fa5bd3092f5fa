"""What half precision computes, but not well enough: a bound that it rounds to 1 keeps no logarithm of 1 - p finite,
that of a sigmoid is not, nor that of an overlap of boxes larger than 256 pixels, whose areas overflow, a variance that
is a difference of averages (SSIM) is less than what is rounded off these, a buffer that averages products over a batch
(the codebook of a VQ-VAE) keeps for ever what overflowed once, pixels that a camera's matrix makes are off by half of
one, angles that are products of positions by a tenth of a radian and more, and a parameter that becomes a product is
half from then on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.rewrite.islands.areas import overlap
from amplint.rewrite.islands.sigmoids import sigmoid_of
from amplint.source.module import Module
from amplint.source.tree import called_name, defaults, last_name

BOUND, BUFFER, PIXELS, PARAMETER, ANGLES = "a bound", "a buffer", "pixels", "a parameter", "angles"
LOGARITHM, VARIANCE, AREA = "a logarithm", "a variance", "an area"
COVARIANCE = "a covariance"
WORDS = (
    r"sin|cos|clamp_?|clip_?|register_buffer|inv_K|K_inv|pix(?:el)?_coords|cam_(?:points|coords)|data *= *"
    r"|log|mul|conv[123]d|\w*[Pp]ool\w*"
)
_CAMERA = re.compile(r"inv_K|K_inv|pix(el)?_coords|cam_(points|coords)")
_NEAR = 1 - 2.0**-9  # what bfloat16 rounds to 1; float16 does from 1 - 2**-12 on
_CLAMPS = frozenset(("clamp", "clamp_", "clip", "clip_"))
_LOGARITHMS = frozenset(("log", "log2", "log10"))
_ZERO = 2.0**-25  # what float16 rounds to 0
_BOUNDS = frozenset(("clamp", "clamp_", "clip", "softmax", "exp", "float", "sum", "mean", "norm", "size", "var", "std"))
_FLOAT32 = frozenset(("softmax", "float", "double", "exp"))
_PRODUCTS = frozenset(("matmul", "mm", "bmm", "mv", "einsum"))


def imprecise(module: Module, call: ast.Call) -> str | None:
    """Which of these a call is."""
    if _near_one(module, call):
        return BOUND
    if _averages(module, call) or _gathers(module, call):
        return BUFFER
    if _of_sigmoid(module, logarithm(call)):
        return LOGARITHM
    if _differs(module, call):
        return VARIANCE
    if overlap(module, call):
        return AREA
    if _squares_products(module, call):
        return COVARIANCE
    if _multiplies(call):
        if any(_CAMERA.fullmatch(last_name(node)) for node in ast.walk(call)):
            return PIXELS
        if _turned(module, call) and any(_counts(module, one) for one in call.args) and not _at_start(module, call):
            return ANGLES
        statement = module.statement(call)
        normal = any(getattr(node, "attr", "") == "normalize" for node in ast.walk(statement))  # float32 under autocast
        targets = () if normal else getattr(statement, "targets", ())
        if any(isinstance(one, ast.Attribute) and one.attr == "data" for one in targets):
            return PARAMETER
    return None


def _multiplies(call: ast.Call) -> bool:
    """Whether a call is a product of matrices, of what nothing made float32."""
    if getattr(call.func, "attr", "") not in _PRODUCTS:
        return False
    return not any(getattr(node, "attr", "") in _FLOAT32 for node in ast.walk(call))


def _turned(module: Module, product: ast.Call) -> bool:
    """Whether the sine or cosine of a product is taken, on the spot or by the name that it gets."""
    names = {_text(one) for one in getattr(module.statement(product), "targets", ())}
    for node in ast.walk(module.scope(product)):
        match node:
            case ast.Call(func=ast.Attribute(attr="sin" | "cos", value=owner), args=given):
                parts = [part for one in given or [owner] for part in ast.walk(one)]
                if product in parts or any(_text(part) in names - {""} for part in parts):
                    return True
    return False


def _at_start(module: Module, node: ast.AST) -> bool:
    """Whether a function is called where objects are made only, outside autocast: tables of sines."""
    name = getattr(module.function(node), "name", "")
    calls = [one for one in module.nodes(ast.Call) if called_name(one) == name]
    return bool(calls) and all(getattr(module.function(one), "name", "__init__") == "__init__" for one in calls)


def _counts(module: Module, value: ast.expr, depth: int = 0) -> bool:
    """Whether a value is made from a range of positions."""
    for node in ast.walk(value):
        match node:
            case ast.Call(func=ast.Attribute(attr="arange" | "linspace")):
                return True
            case ast.Name() | ast.Attribute() if depth < 3:
                if any(_counts(module, one, depth + 1) for one in _assigned(module, node)):
                    return True
    return False


def _near_one(module: Module, call: ast.Call) -> bool:
    """`p.clamp(1e-4, 1 - 1e-4)`, where the function goes on with the logarithm of `1 - p`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in _CLAMPS:
        return False
    function = "torch" in {name.partition(".")[0] for name in module.dotted(call.func)}
    given = call.args if function else [call.func.value, *call.args]
    bounds = [one.value for one in call.keywords if one.arg == "max"] or given[2:3]
    if not given or not bounds or not _NEAR <= (_number(module, bounds[0]) or 0) < 1:
        return False
    values = [given[0], *_assigned(module, given[0])]
    if any(getattr(node, "attr", "") in _FLOAT32 for one in values for node in ast.walk(one)):
        return False
    statement = module.statement(call)
    names = {ast.unparse(one) for one in getattr(statement, "targets", ())}
    if call.func.attr.endswith("_"):
        names.add(ast.unparse(given[0]))
    scope = module.scope(call)

    def rest(node: ast.AST) -> bool:
        match node:
            case ast.BinOp(op=ast.Sub(), left=ast.Constant(value=1), right=right):
                return any(one is call or _text(one) in names for one in ast.walk(right))
        return False

    rests = {
        ast.unparse(target)
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and any(map(rest, ast.walk(node.value)))
        for target in node.targets
        if not any(_text(target) == name for name in names)
    }
    for node in ast.walk(scope):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr not in _LOGARITHMS:
            continue
        operand = node.args[0] if node.args else node.func.value
        if any(rest(one) for one in ast.walk(operand)) or _text(operand) in rests:
            return True
    return False


def logarithm(node: ast.AST) -> ast.expr | None:
    """The operand of `torch.log(p)`, `(1 - p).log()`, where nothing keeps it from 0."""
    match node:
        case ast.Call(func=ast.Attribute(attr="log" | "log2" | "log10", value=ast.Name(id="torch")), args=[operand]):
            pass
        case ast.Call(func=ast.Attribute(attr="log" | "log2" | "log10", value=operand), args=[], keywords=[]):
            pass
        case _:
            return None
    for inner in ast.walk(operand):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, float) and 0 < inner.value <= _ZERO:
            return operand
    for inner in ast.walk(operand):
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add):
            return None  # an eps
        if isinstance(inner, ast.Attribute) and inner.attr in _BOUNDS:
            return None
    return operand


def _of_sigmoid(module: Module, value: ast.expr | None, depth: int = 0) -> bool:
    """Whether a value is made from a sigmoid of this function that nothing keeps from 0 and 1."""
    nodes = list(ast.walk(value)) if value is not None else []
    if any(getattr(node, "attr", "") in _BOUNDS for node in nodes):
        return False
    if any(sigmoid_of(module, node) is not None for node in nodes):
        return True
    names = (node for node in nodes if isinstance(node, ast.Name) and module.function(node) and depth < 3)
    return any(_of_sigmoid(module, one, depth + 1) for name in names for one in _assigned(module, name))


def _differs(module: Module, call: ast.Call) -> bool:
    """`conv2d(x * x, window) - mean**2`: a variance, as small as what half precision rounds off its terms."""
    match module.parents[call]:
        case ast.BinOp(op=ast.Sub(), left=left, right=mean) if left is call and call.args:
            squares = [mean, *_assigned(module, mean)]
            return _squared(call.args[0]) and any(map(_squared, squares))
    return False


def _squares_products(module: Module, call: ast.Call) -> bool:
    """`torch.mul(a - b, a - b)`, a and b being products of matrices: covariances, whose distance is a mean over all of
    their entries. The gradient of one entry is less than half precision holds."""
    match call:
        case ast.Call(func=ast.Attribute(attr="mul"), args=[left, right]):
            pass
        case ast.Call(func=ast.Attribute(attr="mean" | "sum"), args=[ast.BinOp(op=ast.Mult(), left=left, right=right)]):
            pass
        case _:
            return False
    if ast.unparse(left) != ast.unparse(right):
        return False
    for value in (left, *_assigned(module, left)):
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Sub):
            sides = ([side, *_assigned(module, side)] for side in (value.left, value.right))
            if all(any(_product(module, node) for one in side for node in ast.walk(one)) for side in sides):
                return True
    return False


def _squared(value: ast.expr) -> bool:
    match value:
        case ast.BinOp(op=ast.Mult(), left=left, right=right):
            return ast.unparse(left) == ast.unparse(right)
        case ast.BinOp(op=ast.Pow(), right=ast.Constant(value=2)):
            return True
        case ast.Call(func=ast.Attribute(attr="pow"), args=[*_, ast.Constant(value=2)]):
            return True
    return isinstance(value, ast.Call) and getattr(value.func, "attr", "") == "square"


def _averages(module: Module, call: ast.Call) -> bool:
    """`self.sums.mul_(decay).add_(total)`, `self.sums.lerp_(total, …)`, `ema(self.sums, total, …)` and
    `self.sums = nn.Parameter(self.sums * decay + …)`, where a product of matrices gave `total`."""
    cls = module.class_of(call)
    if cls is None or not isinstance(call.func, ast.Name | ast.Attribute):
        return False
    values: list[ast.expr]
    match call:
        case ast.Call(
            func=ast.Attribute(attr="add_", value=ast.Call(func=ast.Attribute(attr="mul_", value=kept))), args=[*values]
        ):
            pass
        case ast.Call(func=ast.Attribute(attr="lerp_", value=kept), args=[*values]):
            pass
        case ast.Call(func=ast.Name(), args=[kept, *values]):
            pass
        case ast.Call(func=ast.Attribute(attr="Parameter"), args=[ast.BinOp() as kept]):
            fields = {_text(one) for one in getattr(module.statement(call), "targets", ())}
            decays = any(_text(node) in fields for node in ast.walk(kept))
            return decays and any(_product(module, node) for node in ast.walk(kept))
        case _:
            return False
    field = ast.unparse(kept).removesuffix(".data").removeprefix("self.")
    return any(_product(module, one) for one in values) and field in _buffers(cls)


def _gathers(module: Module, call: ast.Call) -> bool:
    """`total = codes.t() @ x`, `torch.matmul(…)`, where the method goes on with `self.sums = decay * self.sums +
    (1 - decay) * total`."""
    above, statement = module.parents[call], module.statement(call)
    product = isinstance(above, ast.BinOp) and isinstance(above.op, ast.MatMult)
    cls = module.class_of(call)
    if not (product or _product(module, call)) or cls is None or not isinstance(statement, ast.Assign):
        return False
    names = {_text(one) for one in statement.targets} - {""}
    fields = {f"self.{one}" for one in _buffers(cls)}
    for node in ast.walk(module.function(call) or cls):
        if isinstance(node, ast.Assign) and (kept := fields & {_text(one) for one in node.targets}):
            read = {_text(one) for one in ast.walk(node.value)}
            if kept <= read and (node is statement or names & read):
                return True
    return False


def _buffers(cls: ast.ClassDef) -> set[str]:
    return {
        node.args[0].value
        for node in ast.walk(cls)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "register_buffer" and node.args
        if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }


def _product(module: Module, value: ast.AST, depth: int = 0) -> bool:
    match value:
        case ast.BinOp(op=ast.MatMult()):
            return True
        case ast.Call(func=ast.Attribute(attr=attr) | ast.Name(id=attr)) if attr in _PRODUCTS:
            given = [*value.args, getattr(value.func, "value", value.func)]
            return not any(getattr(node, "attr", "") in _FLOAT32 for one in given for node in ast.walk(one))
        case ast.Name() if depth < 3:
            return any(_product(module, one, depth + 1) for one in _assigned(module, value))
    return False


def _number(module: Module, value: ast.expr, depth: int = 0) -> float | None:
    match value:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.BinOp(op=ast.Sub(), left=left, right=right):
            first, second = _number(module, left, depth), _number(module, right, depth)
            return None if first is None or second is None else first - second
        case ast.Name() | ast.Attribute() if depth < 3:
            found = [_number(module, one, depth + 1) for one in (*_assigned(module, value), *_default(module, value))]
            return found[0] if len(found) == 1 else None
    return None


def _assigned(module: Module, value: ast.expr) -> Iterator[ast.expr]:
    """What the function around a name assigns to it, the file if the function does not; for a field, the file."""
    if not isinstance(value, ast.Name | ast.Attribute):
        return
    text = ast.unparse(value)
    scopes = [module.function(value), module.tree] if isinstance(value, ast.Name) else [module.tree]
    for scope in (one for one in scopes if one is not None):
        nodes = ast.walk(scope) if isinstance(value, ast.Attribute) or scope is not module.tree else module.tree.body
        found = [
            node.value
            for node in nodes
            if isinstance(node, ast.Assign) and any(_text(target) == text for target in node.targets)
        ]
        if found:
            yield from found
            return


def _default(module: Module, value: ast.expr) -> Iterator[ast.expr]:
    """The default of the parameter that a name is."""
    function = module.function(value)
    if not isinstance(value, ast.Name) or not isinstance(function, ast.FunctionDef):
        return
    yield from (default for one, default in defaults(function.args) if one == value.id)


def _text(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
