"""Regions that export keeps as graphs of their own (autocast, no_grad) become part of the one graph."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from amplint.graph import places

_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_SKIPPED = frozenset({torch.ops.aten._assert_tensor_metadata.default})


def flatten(root: fx.GraphModule, autocast: bool) -> fx.GraphModule:
    """The same computation in one graph, each node with what Captured asks for. `autocast`: whether it is on outside of
    the model's own regions."""
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    placeholders = [node for node in root.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    graph.output(_copy(root, graph, copies, autocast))
    flat = fx.GraphModule(root, graph)
    flat.graph.eliminate_dead_code()
    flat.recompile()
    return flat


def _copy(module: fx.GraphModule, graph: fx.Graph, copies: dict[fx.Node, Any], autocast: bool) -> Any:
    """Copy the nodes of a graph; what it returns."""
    for node in module.graph.nodes:
        match node.op:
            case "output":
                return fx.map_arg(node.args[0], lambda one: copies[one])
            case "get_attr":
                held = _attribute(module, node.target)
                copies[node] = held if isinstance(held, fx.GraphModule) else graph.get_attr(node.target)
            case "call_function" if node.target is _AUTOCAST or node.target is _GRAD:
                inner, rest = _region(node)
                inside = copies[inner] if isinstance(inner, fx.Node) else inner
                given = fx.map_arg(rest, lambda one: copies[one])
                names = [one for one in inside.graph.nodes if one.op == "placeholder"]
                enabled = bool(node.args[2]) if node.target is _AUTOCAST else autocast
                copies[node] = _copy(inside, graph, dict(zip(names, given, strict=True)), enabled)
            case "call_function" if node.target is operator.getitem and not isinstance(copies[node.args[0]], fx.Node):
                copies[node] = copies[node.args[0]][node.args[1]]
            case "call_function" if node.target in _SKIPPED:
                continue
            case "call_function":
                copies[node] = graph.node_copy(node, lambda one: copies[one])
                copies[node].meta |= _described(node) | {"autocast": autocast}
    return None


def _region(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """The graph of a region, and what it is given. wrap_with_autocast(device, dtype, enabled, cache, graph, *given)."""
    at = 4 if node.target is _AUTOCAST else 1
    return node.args[at], node.args[at + 1 :]


def _attribute(module: fx.GraphModule, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _described(node: fx.Node) -> dict[str, Any]:
    stack = node.meta.get("nn_module_stack") or {}
    module = tuple((_path(path), str(kind).rpartition(".")[2]) for path, kind in stack.values())
    place = node.meta.get("place") or places.of_stack_trace(node.meta.get("stack_trace"))
    return {"place": place, "module": module}


def _path(text: str) -> str:
    return text.removeprefix("L['self']").lstrip(".")
