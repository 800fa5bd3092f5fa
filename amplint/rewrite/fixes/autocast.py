"""Fixes of family 2, autocast regions."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence

from amplint.findings import Applicability, Edit, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt, suite_of
from amplint.rewrite.syntax.text import edit
from amplint.source.module import Module
from amplint.source.tree import called_name
from amplint.source.walk import walk

SAFE, UNSAFE = Applicability.SAFE, Applicability.UNSAFE
_MOVABLE = ast.Assign | ast.Expr | ast.AnnAssign | ast.AugAssign | ast.Return  # what can go under a `with`


def leave_after_loss(module: Module, region: ast.AST, backward: ast.AST) -> Fix | None:
    """Move the backward, and all that follows it, out of the `with`: everything after the loss runs outside."""
    if not isinstance(region, ast.With) or len(region.items) != 1:
        return None
    statement = module.statement(backward)
    if statement not in region.body or statement is region.body[0]:
        return None
    first = region.body.index(statement)
    if _computes(region.body[first:]):
        return None
    return attempt("end the region after the loss", SAFE, lambda: edits.dedent_tail(module, region, first))


_KEEPS = frozenset(
    "scale mean squeeze view reshape float to item get_scale backward".split()
)  # what autocast leaves alone


def _is_ready(backward: ast.Call) -> bool:
    """Whether a loss is there before its backward. What the same statement computes, `criterion(y, t).backward()`,
    would be computed in half precision outside of the region."""
    parts = [backward.func, *backward.args]
    calls = (node for part in parts for node in walk(part) if isinstance(node, ast.Call))
    return all(isinstance(call.func, ast.Attribute) and call.func.attr in _KEEPS for call in calls)


def _computes(statements: list[ast.stmt]) -> bool:
    """Whether statements call a model or compute a loss again, which would then run in float32: assignments from calls
    other than of a gradient's norm."""
    for statement in statements:
        for node in walk(statement):
            if isinstance(node, ast.Attribute) and node.attr in ("matmul", "softmax", "cross_entropy", "mse_loss"):
                return True
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                return True
            match node:
                case ast.Call(func=ast.Attribute(attr="backward")) if not _is_ready(node):
                    return True
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call):
            name = ast.unparse(statement.value.func)
            if not any(
                word in name for word in ("clip", "item", "detach", "norm", "get_", "step", "time", "float", "len")
            ):
                return True
    return False


def into_region(module: Module, region: ast.AST, loss: ast.AST, operands: int) -> Fix | None:
    """Move the statement of a loss to the end of the region that it follows; elsewhere, cast its operands."""
    statement = module.statement(loss)
    block = suite_of(module, region) if isinstance(region, ast.With) and region in module.parents else []
    behind = statement in block and block.index(statement) == block.index(region) + 1  # type: ignore[arg-type]
    if isinstance(region, ast.With) and behind and isinstance(statement, ast.Assign | ast.AnnAssign):
        moved = attempt(
            "move the loss into the region", SAFE, lambda: edits.move_after(module, [statement], region.body[-1])
        )
        if moved is not None:
            return moved
    if not isinstance(loss, ast.Call) or len(loss.args) < operands:
        return None
    cast = loss.args[:operands]
    if any(isinstance(operand, ast.Starred) for operand in cast):
        return None
    return attempt(
        "compute it in float32",
        SAFE,
        lambda: [one for operand in cast for one in edits.replace(module, operand, _float(module, operand))],
    )


def without_cast(module: Module, cast: ast.Call, forward: ast.AST) -> Fix | None:
    """Take the cast of an input away, where only the forward can see it: in its arguments, or by way of a name that
    nothing else reads."""
    if not isinstance(cast.func, ast.Attribute) or len(cast.args) + len(cast.keywords) > (cast.func.attr == "to"):
        return None
    statement = module.statement(cast)
    if forward not in module.ancestors(cast):
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]):
                function = module.scope(cast)
                reads = [
                    node
                    for node in walk(function)
                    if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
                ]
                inside = {*walk(forward), *walk(statement)}
                if any(node not in inside and node.lineno > statement.lineno for node in reads):
                    return None
            case _:
                return None
    value = cast.func.value
    if isinstance(statement, ast.Assign) and statement.value is cast:
        target = statement.targets[0]
        if isinstance(target, ast.Name) and isinstance(value, ast.Name) and target.id == value.id:
            if len(suite_of(module, statement)) == 1:
                return None
            return attempt("leave the input as it is", SAFE, lambda: edits.delete(module, statement))
    return attempt("leave the input as it is", SAFE, lambda: edits.replace(module, cast, module.source(value)))


def region_into_loop(module: Module, region: ast.AST) -> Fix | None:
    """`with autocast: for …` → `for …: … with autocast:` around the forward and the loss only."""
    if not isinstance(region, ast.With) or len(region.items) != 1 or len(region.body) != 1:
        return None
    loop = region.body[0]
    if not isinstance(loop, ast.For) or loop.orelse or region.items[0].optional_vars is not None:
        return None
    backwards = [one for one in loop.body if _calls(one, "backward")]
    if len(backwards) != 1:
        return None
    stop = loop.body.index(backwards[0])
    first = next((i for i, one in enumerate(loop.body[:stop]) if not _calls(one, "zero_grad")), None)
    if first is None or _computes(loop.body[stop:]):
        return None
    return attempt(
        "enter autocast in every iteration, around the forward and the loss",
        SAFE,
        lambda: edits.sink_header(module, region, loop, first, stop),
    )


def _calls(statement: ast.stmt, method: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == method for node in walk(statement))


def clear_cache(module: Module, region: ast.AST, forward: ast.AST) -> Fix | None:
    """Drop autocast's copies of the weights behind the `with torch.no_grad():` that made them."""
    torch = torch_at(module, forward)
    block: ast.stmt | None = None
    for above in module.ancestors(forward):
        if above is region:
            break
        if isinstance(above, ast.With) and ("no_grad" in ast.unparse(above.items[0]) or "inference" in module.text):
            block = above
    else:
        return None
    if torch is None or block is None:
        return None
    behind = block
    return attempt(
        "drop the copies that were cast without gradients",
        SAFE,
        lambda: edits.insert_after(module, behind, [f"{torch}.clear_autocast_cache()"]),
    )


def split_contexts(module: Module, item: ast.BoolOp) -> Fix | None:
    """`with a and b:` → `with a, b:`."""
    made = []
    for left, right in zip(item.values, item.values[1:], strict=False):
        start, end = module.offset(module.range(left).end), module.offset(module.range(right).start)
        gap = module.text[start:end]
        if gap.strip() not in ("and", "or"):
            return None
        text = ", " if gap.isascii() and not {"\n", "\r"} & set(gap) else gap.replace(" " + gap.strip(), ",", 1)
        made.append(edit(module, start, end, text))
    return attempt("enter both", SAFE, lambda: made)


def add_parentheses(module: Module, node: ast.expr, device: str) -> Fix | None:
    """`@autocast` → `@autocast("cuda")`, or `()` where the old API fixes the device."""
    names = module.dotted(node)
    fixed = ("torch.cuda.", "torch.cpu.", "contextlib.")  # they know their device
    arguments = "" if any(name.startswith(fixed) for name in names) else f'"{device}"'
    return attempt("call it", SAFE, lambda: edits.replace(module, node, f"{module.source(node)}({arguments})"))


def add_device(module: Module, call: ast.Call, device: str) -> Fix | None:
    given = next((one for one in call.keywords if one.arg == "device"), None)
    first = f'"{device}"' if given is None else module.source(given.value)
    return attempt(
        f"pass device_type {first}" if given is None else "pass it as device_type",
        SAFE,
        lambda: edits.change_call(
            module, call, add_positional_first=[first], remove=[] if given is None else ["device"]
        ),
    )


def float32_island(
    module: Module,
    node: ast.AST,
    device: str,
    cast: Sequence[ast.expr] = (),
    also: Collection[ast.stmt] = (),
    safe: bool = True,
) -> Fix | None:
    """Put the statement under `with torch.autocast(device_type=…, enabled=False):`, casting the given operands, and
    with it those of `also` that stand right before and behind it; the device type comes as code."""
    statement = module.statement(node)
    torch = edits.binding_of(module, "torch", at=statement)
    if torch is None or not isinstance(statement, _MOVABLE):
        return None
    header = f"with {torch}.autocast(device_type={_own_device(module, device)}, enabled=False):"
    suite = suite_of(module, statement)
    first = last = suite.index(statement)
    while first and suite[first - 1] in also and isinstance(suite[first - 1], _MOVABLE):
        first -= 1
    while last + 1 < len(suite) and suite[last + 1] in also and isinstance(suite[last + 1], _MOVABLE):
        last += 1

    def build() -> list[Edit]:
        made = edits.indent_under(module, suite[first : last + 1], header)
        for operand in cast:
            made += edits.replace(module, operand, _float(module, operand))
        return made

    return attempt("compute it in float32", SAFE if safe else UNSAFE, build)


def _own_device(module: Module, device: str) -> str:
    """The device of the file's own regions, where that is another one than CUDA: what is written for an HPU stays."""
    named = {
        str(one.value.value)
        for call in module.nodes(ast.Call)
        if called_name(call) == "autocast"
        for one in call.keywords
        if one.arg == "device_type" and isinstance(one.value, ast.Constant)
    }
    return f'"{named.pop()}"' if device == '"cuda"' and len(named) == 1 else device


def _float(module: Module, operand: ast.expr) -> str:
    text = module.source(operand)
    match operand:
        case ast.Call(func=ast.Attribute(attr="float"), args=[], keywords=[]):
            return text
    simple = isinstance(operand, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
    return f"{text}.float()" if simple else f"({text}).float()"


def with_logits(module: Module, call: ast.Call, sigmoid: ast.Call) -> Fix | None:
    """`F.binary_cross_entropy(torch.sigmoid(z), t)` → `F.binary_cross_entropy_with_logits(z, t)`."""
    logits = sigmoid.args[0] if sigmoid.args else getattr(sigmoid.func, "value", None)
    if not isinstance(logits, ast.expr) or not isinstance(call.func, ast.Attribute | ast.Name):
        return None
    name = module.source(call.func)
    if not name.endswith("binary_cross_entropy"):
        return None
    text = module.source(logits)

    def build() -> list[Edit]:
        return [
            *edits.replace(module, call.func, name + "_with_logits"),
            *edits.replace(module, call.args[0], text),
        ]

    return attempt("use logits", SAFE, build)


# -- device types -----------------------------------------------------------------------------------------------------


def enclosed(module: Module, node: ast.expr) -> str:
    """An expression's text, ready for an attribute behind it."""
    source = module.source(node)
    return source if isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript) else f"({source})"


def torch_at(module: Module, node: ast.AST) -> str | None:
    """What torch is called where a node stands."""
    return edits.binding_of(module, "torch", at=module.statement(node))


def device_type(module: Module, argument: ast.expr, code: str) -> Fix | None:
    return attempt(f"pass {code}", SAFE, lambda: edits.replace(module, argument, code))


def type_of_string(module: Module, argument: ast.expr, device: ast.expr) -> Fix | None:
    """The type of a device that may be a string or a torch.device."""
    torch = torch_at(module, argument)
    return device_type(module, argument, f"{torch}.device({module.source(device)}).type") if torch else None


def flag_to_enabled(module: Module, call: ast.Call, device: str) -> Fix | None:
    """`torch.autocast(use_amp)` → `torch.autocast("cuda", enabled=use_amp)`, and so on in torch.cuda.amp's order."""
    names = dict(enumerate(("enabled", "dtype", "cache_enabled")[: len(call.args)]))
    return attempt(
        f'pass the device type "{device}"',
        SAFE,
        lambda: edits.change_call(module, call, keywords_for_positional=names, add_positional_first=[f'"{device}"']),
    )


# -- how long a region lasts ------------------------------------------------------------------------------------------


def construct_again(module: Module, entered: ast.expr, made: ast.AST) -> Fix | None:
    """`with ctx:` → `with torch.autocast(…):`, as the object was made."""
    if not isinstance(made, ast.Call) or made not in module.parents:
        return None
    names = [node.id for node in walk(made) if isinstance(node, ast.Name)]
    if module.function(made) is not module.function(entered) and not all(name in module.imports for name in names):
        return None
    code = " ".join(module.source(made).split())
    return attempt("make another autocast object", SAFE, lambda: edits.replace(module, entered, code))


def region_of_body(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef, decorator: ast.expr) -> Fix | None:
    """`@autocast(…)` goes, and the body below the docstring runs under `with autocast(…):`."""
    body = function.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    row = module.line(decorator.lineno)
    if not body or row.strip() != "@" + module.source(decorator) or decorator.end_lineno != decorator.lineno:
        return None
    header = f"with {module.source(decorator)}:"

    def build() -> list[Edit]:
        first, last = module.starts[decorator.lineno - 1], module.starts[decorator.lineno]
        return [edit(module, first, last, ""), *edits.indent_under(module, body, header)]

    return attempt("enter autocast in the body", SAFE, build)


def without_cache(module: Module, region: ast.Call) -> Fix | None:
    return attempt(
        "do not cache cast weights",
        SAFE,
        lambda: edits.change_call(module, region, add_keywords={"cache_enabled": "False"}),
    )
