"""Roles: what an unknown thing is, judged by how the code uses it, never by its name.

`x.unscale_(y)` makes x a scaler and y an optimizer, wherever they came from. Evidence is collected once per module, per
piece of code (module, class, function), for names, attribute paths (`self.scaler`) and subscripts (`optimizers["g"]`).
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING

from amplint.source.module import Module
from amplint.source.walk import walk

if TYPE_CHECKING:
    from amplint.source.interpret.frames import Frame

Uses = dict[str, set[str]]  # path → how it is used
_TELLING = re.compile(r"unscale_|zero_grad|\.step\(|get_scale|param_groups|parameters\(|\.train\(|\.eval\(|modules\(")
_MODEL_METHODS = {"parameters", "named_parameters", "train", "eval", "modules", "named_modules", "children"}


def path_of(node: ast.AST) -> str | None:
    """`self.opts["g"]` as text, or None for what is not a plain path."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            base = path_of(node.value)
            return None if base is None else f"{base}.{node.attr}"
        case ast.Subscript(slice=ast.Constant() | ast.Name() as key):
            base = path_of(node.value)
            return None if base is None else f"{base}[{key.id if isinstance(key, ast.Name) else repr(key.value)}]"
    return None


def becomes_model(node: ast.AST, frame: Frame) -> bool:
    """Whether a call makes what is used as a model, or is part of the chain of methods that does: the cast in `net =
    build().cuda().half()`."""
    statement = frame.module.statement(node) if "model" in frame.roles.values() else None
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    chain: ast.expr = statement.value
    while chain is not node and isinstance(chain, ast.Call) and isinstance(chain.func, ast.Attribute):
        chain = chain.func.value
    return chain is node and frame.roles.get(path_of(statement.targets[0]) or "") == "model"


class Roles:
    """The roles in each piece of code of a module, found out when they are asked for."""

    def __init__(self, module: Module):
        self._module = module
        self._roles: dict[ast.AST, dict[str, str]] = {}

    def of(self, code: ast.AST) -> dict[str, str]:
        """Path → "scaler", "optimizer" or "model", with "?" after it if the code asks whether the thing exists."""
        if code not in self._roles:
            module = self._module
            text = module.text if isinstance(code, ast.Module) else module.rows(code)
            self._roles[code] = _infer(code) if _TELLING.search(text) else {}
        return self._roles[code]


def _infer(code: ast.AST) -> dict[str, str]:
    uses: Uses = defaultdict(set)
    backward = False
    for node in walk(code):
        match node:
            case ast.Call(func=ast.Attribute() as function):
                _note_call(node, function, uses)
                backward |= function.attr == "backward"
            case ast.If() | ast.IfExp() | ast.While():
                for tested in _tested(node.test):
                    _note(tested, "tested", uses)
            case ast.Attribute(attr="param_groups"):
                _note(node.value, "param_groups", uses)
            case ast.Assign(
                targets=[target], value=ast.Call(args=[ast.Call(func=ast.Attribute(attr="parameters")), *_])
            ):
                _note(target, "given parameters", uses)
    roles: dict[str, str] = {}
    for path, seen in uses.items():
        role = _role(seen, uses)
        if role:
            roles[path] = role + "?" if "tested" in seen else role
    parts = [path for path, role in roles.items() if role == "model" and "." in path]
    if parts:  # net.encoder.parameters(), and net(x)
        called = {path_of(node.func) or "" for node in walk(code) if isinstance(node, ast.Call)} - {"self"}
        roles |= {path: "model" for path in called if any(one.startswith(f"{path}.") for one in parts)}
    if backward and not any(role.startswith("optimizer") for role in roles.values()):
        # model.zero_grad() … optimizer.step(): the only thing that steps is the optimizer
        stepping = [path for path, seen in uses.items() if "step()" in seen and path not in roles]
        if len(stepping) > 1:  # optimizer.step() … scheduler.step(): the one that was given the parameters
            stepping = [path for path in stepping if "given parameters" in uses[path] and _bound_once(code, path)]
        if len(stepping) == 1 and not _steps_beside(code, stepping[0], uses) and not _counts_steps(code, stepping[0]):
            roles[stepping[0]] = "optimizer"
    return roles


def _bound_once(code: ast.AST, path: str) -> bool:
    stored = [node for node in walk(code) if isinstance(getattr(node, "ctx", None), ast.Store)]
    return sum(path_of(node) == path for node in stored) == 1


def _steps_beside(code: ast.AST, path: str, uses: Uses) -> bool:
    """Whether something else is the optimizer: its gradients are dropped here, and nobody calls it, as one does with a
    model. What steps is a schedule."""
    called = {path_of(node.func) for node in walk(code) if isinstance(node, ast.Call)}
    return any(
        "zero_grad" in seen and not seen & _MODEL_METHODS and other not in called and not other.startswith(f"{path}.")
        for other, seen in uses.items()
        if other != path
    )


def _counts_steps(code: ast.AST, path: str) -> bool:
    """Whether `x.step()` follows `x.optimizer.zero_grad()`, with no backward in between: it counts steps."""
    calls = [
        (node.lineno, node.func.attr, path_of(node.func.value) or "")
        for node in walk(code)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    ours = [
        (method, owner)
        for _, method, owner in sorted(calls)
        if method in ("backward", "zero_grad") or (method, owner) == ("step", path)
    ]
    return any(
        before[0] == "zero_grad" and before[1].startswith(f"{path}.") and after[0] == "step"
        for before, after in pairwise(ours)
    )


def _note_call(call: ast.Call, function: ast.Attribute, uses: Uses) -> None:
    method, receiver = function.attr, function.value
    if method in ("zero_grad", "unscale_", "get_scale") or method in _MODEL_METHODS:
        _note(receiver, method, uses)
    if method == "unscale_" and call.args:
        _note(call.args[0], "unscaled", uses)
    if method == "update" and not call.args and not call.keywords:
        _note(receiver, "update", uses)
    if method == "step":
        given = call.args or any(keyword.arg and "scaler" in keyword.arg for keyword in call.keywords)
        _note(receiver, "step(x)" if given else "step()", uses)
        path = path_of(call.args[0]) if call.args else None
        if path is not None:
            _note(receiver, f"steps {path}", uses)
            _note(call.args[0], f"stepped by {path_of(receiver)}", uses)
    if method == "autocast" or (method == "backward" and call.args):  # amp.backward(loss): it does what no scaler does
        _note(receiver, "does more", uses)
    if method == "backward":
        match receiver:
            case ast.Call(func=ast.Attribute(attr="scale", value=scaler), args=[_]):
                _note(scaler, "scale().backward()", uses)


def _note(node: ast.AST, use: str, uses: Uses) -> None:
    path = path_of(node)
    if path is not None:
        uses[path].add(use)


def _role(seen: set[str], uses: Uses) -> str:
    if seen & {"unscale_", "scale().backward()"} or ("get_scale" in seen and seen & {"step(x)", "update"}):
        return "scaler"
    if "step(x)" in seen and "update" in seen and not seen & {"zero_grad", "step()"}:
        return "scaler"
    if "unscaled" in seen or (seen & {"zero_grad", "param_groups"} and seen & {"step()", "step(x)"}):
        return "optimizer"
    for use in seen:
        if use.startswith("stepped by "):
            by = uses.get(use.removeprefix("stepped by "), set())
            if "zero_grad" in seen or _role(by - {"step(x)"}, {}) == "scaler" or {"step(x)", "update"} <= by:
                return "optimizer"
        if use.startswith("steps ") and "zero_grad" in uses.get(use.removeprefix("steps "), set()):
            return "" if "does more" in seen else "scaler"
    if seen & _MODEL_METHODS:
        return "model"
    return "model" if "zero_grad" in seen and not seen & {"step()", "step(x)"} else ""


def _tested(test: ast.AST) -> list[ast.AST]:
    """The paths whose existence a condition asks for."""
    match test:
        case ast.BoolOp():
            return [path for value in test.values for path in _tested(value)]
        case ast.UnaryOp(op=ast.Not()):
            return _tested(test.operand)
        case ast.Compare(ops=[ast.Is() | ast.IsNot()]):
            return [test.left]
        case ast.Name() | ast.Attribute():
            return [test]
    return []
