"""Roles: what an unknown thing is, judged by how the code uses it, never by its name.

`x.unscale_(y)` makes x a scaler and y an optimizer, wherever they came from. Evidence is collected once per module, per
piece of code (module, class, function), for names, attribute paths (`self.scaler`) and subscripts (`optimizers["g"]`).
"""

from __future__ import annotations

import ast
from collections import defaultdict

from amplint.source.module import FunctionNode, Module

_CODE = (ast.ClassDef, *FunctionNode.__args__)
_MODEL_METHODS = {"parameters", "named_parameters", "train", "eval", "modules", "named_modules", "children"}


def path_of(node: ast.AST) -> str | None:
    """`self.opts["g"]` as text, or None for what is not a plain path."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            base = path_of(node.value)
            return None if base is None else f"{base}.{node.attr}"
        case ast.Subscript(slice=ast.Constant() | ast.Name()):
            base = path_of(node.value)
            return None if base is None else f"{base}[{ast.unparse(node.slice)}]"
    return None


class Roles:
    """Evidence per piece of code, and the roles that follow from it."""

    def __init__(self, module: Module):
        self._uses: dict[ast.AST, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._backward: set[ast.AST] = set()
        self._roles: dict[ast.AST, dict[str, str]] = {}
        self._scan(module.tree, (module.tree,))

    def _scan(self, node: ast.AST, enclosing: tuple[ast.AST, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Call(func=ast.Attribute()):
                    self._call(child, child.func, enclosing)
                case ast.If() | ast.IfExp() | ast.While():
                    for tested in _tested(child.test):
                        self._note(tested, "tested", enclosing)
                case ast.Attribute(attr="param_groups"):
                    self._note(child.value, "param_groups", enclosing)
            self._scan(child, (*enclosing, child) if isinstance(child, _CODE) else enclosing)

    def _call(self, call: ast.Call, function: ast.Attribute, enclosing: tuple[ast.AST, ...]) -> None:
        method, receiver = function.attr, function.value
        if method in ("zero_grad", "unscale_", "get_scale") or method in _MODEL_METHODS:
            self._note(receiver, method, enclosing)
        if method == "unscale_" and call.args:
            self._note(call.args[0], "unscaled", enclosing)
        if method == "update" and not call.args and not call.keywords:
            self._note(receiver, "update", enclosing)
        if method == "step":
            self._note(receiver, "step(x)" if call.args else "step()", enclosing)
            if call.args:
                path = path_of(call.args[0])
                if path is not None:
                    self._note(receiver, f"steps {path}", enclosing)
                    self._note(call.args[0], f"stepped by {path_of(receiver)}", enclosing)
        if method == "backward":
            self._backward.update(enclosing)
        if method == "backward" and isinstance(receiver, ast.Call) and isinstance(receiver.func, ast.Attribute):
            if receiver.func.attr == "scale" and len(receiver.args) == 1:
                self._note(receiver.func.value, "scale().backward()", enclosing)

    def _note(self, node: ast.AST, use: str, enclosing: tuple[ast.AST, ...]) -> None:
        path = path_of(node)
        if path is not None:
            for code in enclosing:
                self._uses[code][path].add(use)

    def of(self, code: ast.AST) -> dict[str, str]:
        """Path → "scaler", "optimizer" or "model", with "?" after it if the code asks whether the thing exists."""
        if code not in self._roles:
            self._roles[code] = self._infer(code)
        return self._roles[code]

    def _infer(self, code: ast.AST) -> dict[str, str]:
        uses = self._uses.get(code)
        if uses is None:
            return {}
        roles: dict[str, str] = {}
        for path, seen in uses.items():
            role = _role(seen, uses)
            if role:
                roles[path] = role + "?" if "tested" in seen else role
        if code in self._backward and not any(role.startswith("optimizer") for role in roles.values()):
            # model.zero_grad() … optimizer.step(): the only thing that steps is the optimizer
            stepping = [path for path, seen in uses.items() if "step()" in seen and path not in roles]
            if len(stepping) == 1:
                roles[stepping[0]] = "optimizer"
        return roles


def _role(seen: set[str], uses: dict[str, set[str]]) -> str:
    if seen & {"unscale_", "scale().backward()"} or ("get_scale" in seen and seen & {"step(x)", "update"}):
        return "scaler"
    if "step(x)" in seen and "update" in seen and not seen & {"zero_grad", "step()"}:
        return "scaler"
    if "unscaled" in seen or "param_groups" in seen or ("zero_grad" in seen and seen & {"step()", "step(x)"}):
        return "optimizer"
    for use in seen:
        if use.startswith("stepped by "):
            by = uses.get(use.removeprefix("stepped by "), set())
            if "zero_grad" in seen or _role(by - {"step(x)"}, {}) == "scaler" or {"step(x)", "update"} <= by:
                return "optimizer"
        if use.startswith("steps ") and "zero_grad" in uses.get(use.removeprefix("steps "), set()):
            return "scaler"
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
