"""Fixes of family 3, low-precision state."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt, conditions_above
from amplint.source.module import Module

SAFE, UNSAFE = Applicability.SAFE, Applicability.UNSAFE


def drop_half(module: Module, cast: ast.AST) -> Fix | None:
    """`model.half()` → `model`: the weights stay in float32. Not where inputs are cast, too: they would not fit. Nor
    for a part of a module, or under an option: other parts may give it half."""
    if any(node is not cast and _casts(node) for node in module.all_nodes):
        return None
    if any(isinstance(branch, ast.If) for branch, _ in conditions_above(module, cast)):
        return None
    around = module.class_of(cast)
    if around is not None and any(isinstance(one, ast.FunctionDef) and one.name == "forward" for one in around.body):
        return None
    match cast:
        case ast.Call(func=ast.Attribute(attr="half", value=model), args=[], keywords=[]):
            statement = module.statement(cast)
            if isinstance(statement, ast.Expr) and statement.value is cast:
                return attempt("remove the cast", UNSAFE, lambda: edits.delete(module, statement))
            return attempt(
                "keep the weights in float32", UNSAFE, lambda: edits.replace(module, cast, module.source(model))
            )
    return None


def _casts(node: ast.AST) -> bool:
    """Whether this is a cast to half precision."""
    match node:
        case ast.Call(func=ast.Attribute(attr="half"), args=[]):
            return True
        case ast.Call(func=ast.Attribute(attr="to" | "type"), args=args, keywords=keywords):
            given = [*args, *(keyword.value for keyword in keywords)]
            return any(isinstance(one, ast.Attribute) and one.attr in ("float16", "half") for one in given)
    return False


def _name_of(module: Module, cast: ast.AST) -> str | None:
    """The name that holds the model after the statement of the cast."""
    statement = module.statement(cast)
    match statement:
        case ast.Assign(targets=[ast.Name() | ast.Attribute() as target]):
            return module.source(target)
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name() | ast.Attribute() as model))):
            return module.source(model)
    return None


def batchnorm_to_float(module: Module, cast: ast.AST) -> Fix | None:
    """Cast the BatchNorm modules back after the cast of the model."""
    name = _name_of(module, cast)
    nn = edits.binding_of(module, "torch.nn", at=module.statement(cast))
    if nn is None and (torch := edits.binding_of(module, "torch", at=module.statement(cast))):
        nn = f"{torch}.nn"
    if name is None or nn is None:
        return None
    lines = [
        f"for module in {name}.modules():",
        f"    if isinstance(module, {nn}.modules.batchnorm._BatchNorm):",
        "        module.float()",
    ]
    statement = module.statement(cast)
    return attempt("keep batch normalisation in float32", SAFE, lambda: edits.insert_after(module, statement, lines))


def parameters_to_float(module: Module, cast: ast.AST) -> Fix | None:
    """Cast the trained parameters back after the cast of the model."""
    name = _name_of(module, cast)
    if name is None:
        return None
    lines = [
        f"for p in {name}.parameters():",
        "    if p.requires_grad:",
        "        p.data = p.data.float()",
    ]
    statement = module.statement(cast)
    return attempt("train float32 parameters", SAFE, lambda: edits.insert_after(module, statement, lines))


def copy_first(module: Module, cast: ast.Call, model: ast.expr) -> Fix | None:
    """`model.half()` → `copy.deepcopy(model).half()`, where the file has copy already."""
    copy = edits.binding_of(module, "copy.deepcopy", at=module.statement(cast))
    if copy is None and (package := edits.binding_of(module, "copy", at=module.statement(cast))):
        copy = f"{package}.deepcopy"
    if copy is None:
        return None
    return attempt("cast a copy", UNSAFE, lambda: edits.replace(module, model, f"{copy}({module.source(model)})"))


def drop_dtype(module: Module, call: ast.Call) -> Fix | None:
    """`pipeline.to(device, dtype=…)` → `pipeline.to(device)`."""
    if not call.args:
        return None
    return attempt("move it, and keep its dtypes", UNSAFE, lambda: edits.change_call(module, call, remove=["dtype"]))
