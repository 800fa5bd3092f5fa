"""AMP213: autograd functions of one's own, whose backward runs without the autocast of their forward."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule
from amplint.findings import Finding, Severity
from amplint.source.interpret.tensors import VIEWS
from amplint.source.module import Module
from amplint.source.tree import names_in
from amplint.source.walk import walk

_PRODUCTS = frozenset("matmul mm bmm addmm baddbmm einsum linear conv1d conv2d conv3d mv tensordot".split())
_FUNCTIONS = frozenset(("torch.autograd.Function", "torch.autograd.function.Function"))
_DECORATORS = ("custom_fwd", "custom_bwd")
_STORES = frozenset("index_add_ index_copy_ scatter_ scatter_add_".split())  # take one dtype only
_CASTS = frozenset("to float half bfloat16 double type type_as".split())
# What compiled kernels are imported as: they take the dtypes that they were built for, and check nothing else.
_KERNELS = re.compile(r"^_C$|_C$|^_?ext\b|_ext$|^ext_|_backend$|^_backend|cuda|_cpp$|_kernels?$", re.IGNORECASE)
_LOADERS = frozenset(f"torch.utils.cpp_extension.load{how}" for how in ("", "_inline"))
_INDEX = re.compile(r"(^|_)(idx|ind|inds|index|indexes|indices|ids)$")  # what no dtype of autocast can reach: integers
_NUMBERS = frozenset("int float bool str".split())
# What is float32 whatever the function was given.
_FLOAT32 = re.compile(r"torch(\.cuda)?\.FloatTensor|torch\.(zeros|empty|ones|full|rand|randn)")
SPEAKS_OF_AUTOCAST = re.compile(r"autocast|\bamp\b|GradScaler|custom_fwd", re.IGNORECASE)


def functions_in(module: Module) -> Iterator[ast.ClassDef]:
    """The classes of a file that are autograd functions."""
    for node in module.all_nodes:
        if isinstance(node, ast.ClassDef) and any(module.dotted(base) & _FUNCTIONS for base in node.bases):
            yield node


@rule("AMP213")
def function_without_custom_fwd(script: Script) -> Iterator[Finding]:
    """An autograd function multiplies, or calls a kernel, in whatever dtypes autocast hands it."""
    module = script.module
    for cls in functions_in(module):
        methods = {one.name: one for one in cls.body if isinstance(one, ast.FunctionDef)}
        forward, backward = methods.get("forward"), methods.get("backward")
        if forward is None or backward is None or "setup_context" in methods or "autocast" in module.rows(forward):
            continue
        if any(decorated(module, method) for method in (forward, backward)) or _in_islands(module, cls):
            continue
        product = _mixed_product(module, forward, backward)
        if product is not None:
            node, what = product
            yield found_at(
                "AMP213",
                module,
                forward,
                f"under autocast the forward of {cls.name} multiplies in half precision and saves what it was given: "
                f"its backward then {what}, which raises",
                severity=Severity.WARNING if SPEAKS_OF_AUTOCAST.search(module.text) else Severity.NOTE,
                evidence=[(module, node, "the gradient meets a saved tensor, or what is made like it")],
                help="decorate forward with torch.amp.custom_fwd and backward with torch.amp.custom_bwd",
            )
            continue
        kernel = _kernel(module, forward, backward) if "autocast" not in module.rows(cls) else None
        if kernel is not None:
            what, why = "kernel", "does not know it, and casts nothing"
            if _product(kernel):
                what, why = "product", "casts nothing where out= is given"
            yield found_at(
                "AMP213",
                module,
                kernel,
                f"under autocast this {what} of {cls.name} may be handed half and float32 tensors together: autocast "
                f"{why}",
                severity=Severity.NOTE,
                evidence=[(module, forward, "the forward has no custom_fwd")],
                help="decorate forward with torch.amp.custom_fwd(cast_inputs=…) and backward with custom_bwd",
            )


def _in_islands(module: Module, cls: ast.ClassDef) -> bool:
    """Whether a function is applied only where autocast is off: its callers cast by hand."""
    applied = [
        node
        for node in module.nodes(ast.Attribute)
        if node.attr == "apply" and isinstance(node.value, ast.Name) and node.value.id == cls.name
    ]
    return bool(applied) and all(any(_turns_off(module, above) for above in module.ancestors(node)) for node in applied)


def _turns_off(module: Module, node: ast.AST) -> bool:
    """Whether a `with` turns autocast off."""
    if not isinstance(node, ast.With):
        return False
    written = [module.source(item.context_expr) for item in node.items]
    return any("autocast" in one and "False" in one for one in written)


def decorated(module: Module, method: ast.FunctionDef) -> bool:
    return any(
        word in module.source(decorator) for decorator in method.decorator_list for word in (*_DECORATORS, "amp")
    )


def _mixed_product(module: Module, forward: ast.FunctionDef, backward: ast.FunctionDef) -> tuple[ast.AST, str] | None:
    """A product, in the backward, of the gradient with a tensor that the forward was given and saved, where the forward
    returns a product itself; or the gradient stored in place into what is like such a tensor. Nothing casts either."""
    if not any(_product(node) for node in walk(forward)) or _casts_results(forward):
        return None
    given = {parameter.arg for parameter in forward.args.args[1:]}
    given -= {name for name, _ in _assigned(forward)}  # these may be cast by now
    saved = _saved(forward)
    names = _unpacked(backward)
    kept = {name for name, position in names.items() if position < len(saved) and saved[position] in given}
    left = _left_on_ctx(forward, given)
    kept |= {name for name, value in _assigned(backward) if _field(value) in left}
    handed = {parameter.arg for parameter in backward.args.args[1:]}
    if backward.args.vararg is not None:
        handed.add(backward.args.vararg.arg)
    gradients = handed | _derived(backward, handed)
    cast = _cast_names(backward)
    for node in walk(backward):
        if _product(node) and not any(map(_is_cast, _inside(_operands(node)))) and not _in_region(module, node):
            operands = names_in(*_operands(node))
            if operands & cast:
                continue
            fields = {_field(operand) for operand in _operands(node)}
            if (operands & kept or fields & left) and operands & gradients:
                return node, "multiplies a half gradient with a float32 tensor"
    like = _like(backward, kept) if "autocast" not in module.rows(backward) and not _casts(backward) else set()
    for node in walk(backward):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=how), args=[*_, source]) if (
                name in like and how in _STORES and names_in(source) & handed and not names_in(source) & (kept | like)
            ):
                return node, "stores a half gradient into a float32 tensor"
    return None


def _in_region(module: Module, node: ast.AST) -> bool:
    """Whether a `with` that has to do with autocast stands around a node."""
    return any(
        isinstance(above, ast.With) and any("autocast" in module.source(item.context_expr) for item in above.items)
        for above in module.ancestors(node)
    )


def _inside(nodes: list[ast.expr]) -> Iterator[ast.AST]:
    for node in nodes:
        yield from walk(node)


def _cast_names(function: ast.FunctionDef) -> set[str]:
    """What is cast, or made of what is: `grad = grad.to(weight.dtype)`, `x, w = [one.float() for one in saved]`."""
    bound = [(names_in(*node.targets), node.value) for node in walk(function) if isinstance(node, ast.Assign)]
    found: set[str] = set()
    for _ in range(3):
        found |= {
            name
            for names, value in bound
            if names_in(value) & found or any(map(_is_cast, walk(value)))
            for name in names
        }
    return found


def _field(operand: ast.expr) -> str:
    """The field that an operand is, or is a view of: "w" of `ctx.w.t()`."""
    match operand:
        case ast.Call(func=ast.Attribute(value=inner)) | ast.Subscript(value=inner):
            return _field(inner)
        case ast.Attribute(value=ast.Name(), attr=name):
            return name
        case ast.Attribute(value=inner):  # x.T
            return _field(inner)
    return ""


def _like(backward: ast.FunctionDef, kept: set[str]) -> set[str]:
    """The names of what is made in the dtype of a saved tensor: `torch.zeros_like(weight)`."""
    return {
        name
        for name, value in _assigned(backward)
        if isinstance(value, ast.Call)
        and not value.keywords
        and getattr(value.func, "attr", "") in ("zeros_like", "empty_like", "ones_like")
        and names_in(*value.args) & kept
    }


def _assigned(function: ast.FunctionDef) -> Iterator[tuple[str, ast.expr]]:
    """The names that a function binds, with what they are bound to."""
    for node in walk(function):
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))


def _product(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PRODUCTS


def _operands(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.Call):
        return [*node.args, node.func.value] if isinstance(node.func, ast.Attribute) else node.args
    return []


def _casts(function: ast.FunctionDef) -> bool:
    return any(_is_cast(node) for node in walk(function))


def _casts_results(function: ast.FunctionDef) -> bool:
    """Whether anything is cast other than an operand, where it is multiplied: autocast casts that again."""
    cast: set[ast.AST] = {node for node in walk(function) if _is_cast(node)}
    for node in walk(function):
        if _product(node):
            cast -= {inner for operand in _operands(node) for inner in walk(operand)}
    return bool(cast)


def _is_cast(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CASTS


def _saved(forward: ast.FunctionDef) -> list[str]:
    """The names in `ctx.save_for_backward(…)`."""
    for node in walk(forward):
        match node:
            case ast.Call(func=ast.Attribute(attr="save_for_backward"), args=args):
                return [arg.id if isinstance(arg, ast.Name) else "" for arg in args]
    return []


def _unpacked(backward: ast.FunctionDef) -> dict[str, int]:
    """The names that `ctx.saved_tensors` is unpacked to, with their positions: all at once, or one by one."""
    found: dict[str, int] = {}
    whole = {name for name, value in _assigned(backward) if _is_saved(value, set())}
    for node in walk(backward):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=value) if _is_saved(value, whole):
                found |= {name.id: at for at, name in enumerate(names) if isinstance(name, ast.Name)}
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Subscript(value=value, slice=ast.Constant(value=int() as at)),
            ) if _is_saved(value, whole) and at >= 0:
                found[name] = at
    return found


def _is_saved(value: ast.expr, names: set[str]) -> bool:
    return (isinstance(value, ast.Attribute) and value.attr == "saved_tensors") or (
        isinstance(value, ast.Name) and value.id in names
    )


def _left_on_ctx(forward: ast.FunctionDef, given: set[str]) -> set[str]:
    """The fields of ctx in which the forward left what it was given and multiplies: tensors."""
    multiplied = {name for node in walk(forward) if _product(node) for name in names_in(*_operands(node)[:2])}
    return {
        target.attr
        for node in walk(forward)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in given & multiplied
        for target in node.targets
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
    }


def _derived(backward: ast.FunctionDef, names: set[str]) -> set[str]:
    """What the gradient is called after views of it: `g = grad_output.contiguous()`."""
    return {
        name
        for name, value in _assigned(backward)
        if names_in(value) & names
        and not any(isinstance(part, ast.Attribute) and part.attr == "saved_tensors" for part in walk(value))
    }


def _kernel(module: Module, forward: ast.FunctionDef, backward: ast.FunctionDef) -> ast.Call | None:
    """A call of a compiled extension that is handed tensors of several dtypes: as the forward was given them, or one of
    these and what is float32 in any case."""
    if _casts(forward):
        return None
    given = _floating(forward)
    given |= {name for name, value in _assigned(forward) if _view_of(value) in given}
    made = _in_float32(module, forward)
    for node in walk(forward):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name) as library, attr=function), args=args):
                handed = names_in(*args)
                if name == "torch" and _writes_to(node) and len(handed & given) > 1:
                    return node
                if name in given or name == "torch" or not handed & given or len(handed & (given | made)) < 2:
                    continue
                if _is_compiled(module, library) or _has_backward(backward, name, function):
                    return node
    return None


def _writes_to(call: ast.Call) -> bool:
    """Whether a product is told where to write: `torch.mm(a, b, out=buffer)`, of which autocast casts nothing."""
    return _product(call) and any(keyword.arg == "out" for keyword in call.keywords)


def _view_of(value: ast.expr) -> str:
    """The variable that a value is a view of: `x` of `x.contiguous().view(-1)`."""
    match value:
        case ast.Subscript(value=inner, slice=ast.Slice()):
            return _view_of(inner)
        case ast.Call(func=ast.Attribute(value=inner, attr=name)) if name in VIEWS:
            return _view_of(inner)
        case ast.Name(id=name):
            return name
    return ""


def _is_compiled(module: Module, library: ast.Name) -> bool:
    """Whether a library is compiled as the file is run, or called what compiled kernels are called: here, or where it
    comes from."""
    return any(_KERNELS.search(name.rpartition(".")[2]) for name in (library.id, *module.dotted(library))) or any(
        isinstance(node.value, ast.Call)
        and module.dotted(node.value.func) & _LOADERS
        and any(isinstance(target, ast.Name) and target.id == library.id for target in node.targets)
        for node in module.nodes(ast.Assign)
    )


def _has_backward(backward: ast.FunctionDef, library: str, function: str) -> bool:
    """Whether the backward calls the same library's other half: `ops.pool_backward` of `ops.pool_forward`."""
    return function.endswith("forward") and any(
        isinstance(node, ast.Attribute)
        and node.attr == f"{function.removesuffix('forward')}backward"
        and isinstance(node.value, ast.Name)
        and node.value.id == library
        for node in walk(backward)
    )


def _floating(forward: ast.FunctionDef) -> set[str]:
    """The parameters of a forward that may be floating tensors: not indices, by name or by what it tells autograd, nor
    numbers."""
    given = {
        parameter.arg
        for parameter in forward.args.args[1:]
        if not _INDEX.search(parameter.arg)
        and not (isinstance(parameter.annotation, ast.Name) and parameter.annotation.id in _NUMBERS)
    }
    for node in walk(forward):
        match node:
            case ast.Call(func=ast.Attribute(attr="mark_non_differentiable"), args=args):
                given -= {arg.id for arg in args if isinstance(arg, ast.Name)}
    return given


def _in_float32(module: Module, forward: ast.FunctionDef) -> set[str]:
    """The names of the tensors that a forward makes without a dtype, and perhaps fills."""
    made: set[str] = set()
    for node in walk(forward):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                while (inner := _inner(value)) is not None:
                    value = inner
                typed = any(keyword.arg in ("dtype", None) for keyword in getattr(value, "keywords", ()))
                if isinstance(value, ast.Call) and not typed and _FLOAT32.fullmatch(module.source(value.func)):
                    made.add(name)
    return made


def _inner(node: ast.expr) -> ast.expr | None:
    """The tensor that is changed in place and stays what it is: `x` of `x.zero_()`."""
    match node:
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name.endswith("_"):
            return value
    return None
