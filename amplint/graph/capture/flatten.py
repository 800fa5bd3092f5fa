"""Regions that export keeps as graphs of their own (autocast, no_grad) become part of the one graph."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.wrap import wrap_with_autocast, wrap_with_set_grad_enabled

from amplint.graph import places
from amplint.graph.capture import aliases

_OPERATORS = (torch._ops.OpOverload, torch._ops.HigherOrderOperator)
_SKIPPED = frozenset({torch.ops.aten._assert_tensor_metadata.default})


def flatten(root: fx.GraphModule, autocast: bool, dtype: torch.dtype, notes: list[str]) -> fx.GraphModule:
    """The same computation in one graph, each node with what Captured asks for. `autocast`: whether it is on outside of
    the model's own regions, and in which `dtype`. `notes` are given what stays a region of its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    placeholders = [node for node in root.graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    held = torch.nn.Module()
    graph.output(_copy(root, graph, copies, _State(held, notes, autocast, dtype, True)))
    flat = fx.GraphModule(held, graph)
    flat.graph.eliminate_dead_code()
    aliases.link(flat.graph)
    flat.recompile()
    return flat


@dataclass(frozen=True)
class _State:
    """Where the copying is: what the graph's get_attr nodes get, and what is on here."""

    held: torch.nn.Module
    notes: list[str]
    autocast: bool
    dtype: torch.dtype
    grad: bool


def _copy(module: fx.GraphModule, graph: fx.Graph, copies: dict[fx.Node, Any], state: _State) -> Any:
    """Copy the nodes of a graph; what it returns."""
    for node in module.graph.nodes:
        match node.op:
            case "output":
                return fx.map_arg(node.args[0], lambda one: copies[one])
            case "get_attr":
                copies[node] = _Held(attrgetter(node.target)(module))
            case "call_function" if node.target in (wrap_with_autocast, wrap_with_set_grad_enabled):
                inner, rest = _region(node)
                inside = copies[inner].value
                given = fx.map_arg(rest, lambda one: _spelled(copies[one], graph, state))
                names = [one for one in inside.graph.nodes if one.op == "placeholder"]
                if node.target is wrap_with_autocast:
                    on = replace(state, autocast=bool(node.args[2]), dtype=node.args[1] or state.dtype)
                else:
                    on = replace(state, grad=bool(node.args[0]))
                copies[node] = _copy(inside, graph, copies | dict(zip(names, given, strict=True)), on)
            case "call_function" if node.target is operator.getitem and not isinstance(copies[node.args[0]], fx.Node):
                copies[node] = copies[node.args[0]][node.args[1]]
            case "call_function" if node.target in _SKIPPED:
                continue
            case "call_function" if not isinstance(node.target, _OPERATORS) and node.target is not operator.getitem:
                raise ValueError(f"a call of {getattr(node.target, '__name__', node.target)} in the graph")  # vmap
            case "call_function":
                copies[node] = graph.node_copy(node, lambda one: _spelled(copies[one], graph, state))
                here = {"autocast": state.autocast, "autocast_dtype": state.dtype, "grad": state.grad}
                copies[node].meta |= _described(node) | here
                if isinstance(node.target, torch._ops.HigherOrderOperator):
                    state.notes.append(f"{node.target} is taken as one call: what is in it is not looked at")
    return None


@dataclass(frozen=True)
class _Held:
    """What a get_attr node holds: the graph of a region, or a tensor."""

    value: Any


def _spelled(copy: Any, graph: fx.Graph, state: _State) -> Any:
    """A copy as an argument. What is held becomes a get_attr node where it is used: in a call that is no region."""
    if not isinstance(copy, _Held):
        return copy
    name = f"held{len(state.held._modules) + len(state.held.__dict__)}"
    setattr(state.held, name, copy.value)
    return graph.get_attr(name)


def _region(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """The graph of a region, and what it is given. wrap_with_autocast(device, dtype, enabled, cache, graph, *given)."""
    at = 4 if node.target is wrap_with_autocast else 1
    return node.args[at], node.args[at + 1 :]


def _described(node: fx.Node) -> dict[str, Any]:
    place = node.meta.get("place") or places.of_stack_trace(node.meta.get("stack_trace"))
    return {"place": place, "module": places.modules(node.meta.get("nn_module_stack"))}
