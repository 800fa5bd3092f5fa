"""What helps FP16_Optimizer: network_to_half and its like, FusedAdam's max_grad_norm, and their imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.rewrite.syntax.layout import end, margin_of, start, unit
from amplint.rewrite.syntax.text import edit
from amplint.source.module import Module
from amplint.source.tree import called_name, named_argument

NAME = "FP16_Optimizer"
TO_HALF = frozenset("network_to_half FP16Model FP16_Module".split())
_TO_FLOAT = frozenset("BN_convert_float batchnorm_to_float".split())
_KNOWN = frozenset((NAME, "to_python_float", *TO_HALF, *_TO_FLOAT))
_OTHERS = frozenset(
    "prep_param_lists model_grads_to_master_grads master_params_to_model_params tofp16 convert_module convert_network "
    "LossScaler DynamicLossScaler clip_grad_norm".split()
)
_SOURCE = re.compile(r"apex\.(fp16_utils|optimizers|contrib\.optimizers)\b|(\w+\.)*fp16(_?utils?|_optimizer)?\.")
CLIPPED = "max_grad_norm of FusedAdam, which FP16_Optimizer applied, is clip_grad_norm_ before the step"


def from_apex(module: Module, func: ast.expr) -> bool:
    """Whether a name comes from apex, also by `import *`, or from a project's copy of that part of apex."""
    if any(_SOURCE.match(name) for name in module.dotted(func)):
        return True
    here = {node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return isinstance(func, ast.Name) and func.id not in {*module.imports, *here} and bool(_stars(module))


def _stars(module: Module) -> list[ast.ImportFrom]:
    return [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and node.module == "apex.fp16_utils" and node.names[0].name == "*"
    ]


def target_of(module: Module, call: ast.Call) -> str:
    """The name that the result of a call is bound to; raises Refused."""
    match module.parents[call]:
        case ast.Assign(targets=[ast.Name() | ast.Attribute() as target], value=value) if value is call:
            return module.source(target)
    raise Refused(f"what {called_name(call)} returns is not bound to a name", "bind it to one first")


# -- casts ------------------------------------------------------------------------------------------------------------


def cast_edits(module: Module) -> tuple[list[Edit], set[ast.AST]]:
    """`network_to_half(model)` → `model.half()`, which goes with the other casts; and the names that go."""
    made: list[Edit] = []
    gone: set[ast.AST] = set()
    taken: set[ast.AST] = set()
    for node in ast.walk(module.tree):
        match node:
            case ast.Call(func=ast.Name(id=name) as func) if name in _KNOWN - {NAME} and node not in taken:
                own = any(isinstance(one, ast.FunctionDef) and one.name == name for one in module.ancestors(node))
                if own or (not from_apex(module, func) and name not in _TO_FLOAT):
                    continue
                if len(node.args) != 1 or node.keywords:
                    raise Refused(f"{name}() is given more than one thing", BY_HAND)
                gone |= {part for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in _KNOWN}
                taken |= set(ast.walk(node))
                made += edits.replace(module, node, _plainly(module, node))
    return made, gone


def _plainly(module: Module, node: ast.expr) -> str:
    """What a helper is given, cast where it casts: `BN_convert_float(network_to_half(net))` → `net.half()`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in _KNOWN:
        return module.source(node)
    inner = _plainly(module, node.args[0])
    if isinstance(node.args[0], ast.BinOp | ast.UnaryOp | ast.BoolOp | ast.IfExp | ast.Lambda | ast.Compare):
        inner = f"({inner})"
    if node.func.id in _TO_FLOAT:
        return inner
    if node.func.id == "to_python_float":
        return f"{inner}.item()"
    return inner if inner.endswith(".half()") else f"{inner}.half()"


def casts_in(value: ast.expr) -> bool:
    """Whether a value is computed by a cast to half of what may be a model."""
    calls = [node for node in ast.walk(value) if isinstance(node, ast.Call)]
    return any(called_name(one) in ({"half"} | TO_HALF) and (one.args or called_name(one) == "half") for one in calls)


def is_module(module: Module, name: str) -> bool:
    """Whether the file asks something for its parameters, or sets it to train."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("parameters", "named_parameters", "train")
        and module.source(node.value) == name
        for node in ast.walk(module.tree)
    )


def stored_in(module: Module, name: str, home: ast.AST | None) -> bool:
    """Whether a function has a variable or parameter of a name."""
    for node in ast.walk(home or module.tree):
        if isinstance(node, ast.arg) and node.arg == name:
            return True
        stored = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store)
        if stored and module.source(node) == name:
            return True
    return False


# -- FusedAdam --------------------------------------------------------------------------------------------------------


def fused_edits(module: Module, owners: Collection[str]) -> list[Edit]:
    """`FusedAdam(…, max_grad_norm=1.0)`: FP16_Optimizer passed the norm of each group on, which was clipped."""
    made: list[Edit] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and called_name(node) == "FusedAdam":
            limit = named_argument(node, "max_grad_norm")
            if limit is not None:
                made += edits.change_call(module, node, remove=("max_grad_norm",))
                made += _clip_before_step(module, node, limit, owners)
    return made


def _clip_before_step(module: Module, call: ast.Call, limit: ast.expr, owners: Collection[str]) -> list[Edit]:
    match limit:
        case ast.Constant(value=int() | float() as number):
            pass
        case _:
            raise Refused("max_grad_norm of FusedAdam is no number", "clip_grad_norm_ by hand")
    if number <= 0:
        return []
    target = target_of(module, call)
    nodes = (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))
    steps = [node for node in nodes if module.source(node.func) == f"{target}.step"]
    torch = edits.binding_of(module, "torch", at=steps[0]) if len(steps) == 1 else None
    if torch is None or target not in owners or module.function(steps[0]) is not module.function(call):
        raise Refused("max_grad_norm of FusedAdam clips where FP16_Optimizer steps", "clip_grad_norm_ by hand")
    statement = module.statement(steps[0])
    deeper = unit(module, margin_of(module, statement))
    lines = [
        f"for group in {target}.param_groups:",
        f'{deeper}{torch}.nn.utils.clip_grad_norm_(group["params"], {module.source(limit)})',
    ]
    test = _condition(module, call, statement)
    return edits.insert_before(module, statement, [f"if {test}:", *(deeper + one for one in lines)] if test else lines)


def _condition(module: Module, call: ast.Call, step: ast.stmt) -> str:
    """The condition under which FusedAdam is made, where another optimizer is without it; raises Refused."""
    around = {*module.ancestors(step)}
    own = [one for one in module.ancestors(call) if isinstance(one, ast.If) and one not in around]
    if len(own) > 1 or any(
        not isinstance(one.test, ast.Name | ast.Attribute)
        or module.statement(call) not in [part for stmt in one.body for part in ast.walk(stmt)]
        for one in own
    ):
        raise Refused("max_grad_norm of FusedAdam clips under several conditions", "clip_grad_norm_ by hand")
    return module.source(own[0].test) if own else ""


# -- imports ----------------------------------------------------------------------------------------------------------


def import_edits(module: Module, gone: set[ast.AST]) -> list[Edit]:
    """The imports of FP16_Optimizer and its helpers become one of apex.amp, which then goes as it does."""
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Name) or node.id not in _KNOWN | _OTHERS or node in gone:
            continue
        if isinstance(node.ctx, ast.Load) and from_apex(module, node):
            raise Refused(f"it uses {node.id} beside FP16_Optimizer", BY_HAND)
    made: list[Edit] = []
    whole, partial = False, set[str]()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and _SOURCE.match(f"{node.module}."):
            names = {one.name for one in node.names}
            if names <= _KNOWN | _OTHERS or node in _stars(module):
                made.append(edit(module, start(module, node), end(module, node), "from apex import amp"))
                whole = True
            elif names & _KNOWN:
                partial |= {one.asname or one.name for one in node.names if one.name in _KNOWN}
    made += edits.remove_import_name(module, *partial, gone=list(gone)) if partial else []
    return made if whole else [*made, *edits.add_import(module, "from apex import amp")]
