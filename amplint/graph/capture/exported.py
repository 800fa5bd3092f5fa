"""The first front end: torch.export, non-strict. It takes 80 of 80 timm families and 42 of 44 transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import fx

from amplint.graph import places
from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.flatten import flatten
from amplint.graph.capture.shape import Shape, taken_apart
from amplint.graph.capture.state import undisturbed


def export(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], precision: Precision) -> Captured:
    """Capture by torch.export. `cuda_policy` must be open, and the model half where `precision` says so."""
    enabled = precision.mode == "amp"
    with (
        undisturbed(model),
        placed(),
        _tensors(model) as shapes,
        torch.autocast("cpu", dtype=precision.dtype, enabled=enabled),
    ):
        program = torch.export.export(model, args, kwargs, strict=False)
    notes: list[str] = []
    graph = flatten(program.graph_module, enabled, precision.dtype, notes)
    placeholders = [node for node in graph.graph.nodes if node.op == "placeholder"]
    inputs = iter(torch.utils._pytree.tree_leaves((args, kwargs)))
    values: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    tied: dict[int, fx.Node] = {}
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        name, target = node.name, spec.target or ""
        match spec.kind.name:
            case "PARAMETER" | "BUFFER":
                kinds[name] = spec.kind.name.lower()
                state = program.state_dict if spec.kind.name == "PARAMETER" or spec.persistent else program.constants
                values[name] = state[target]
            case "CONSTANT_TENSOR":
                kinds[name], values[name], target = "constant", program.constants[target], ""
            case "USER_INPUT":
                kinds[name], values[name], target = "input", next(inputs), getattr(spec.arg, "name", "")
            case _:
                raise ValueError(f"an input of kind {spec.kind.name}")
        node.meta["target"] = target
        if kinds[name] == "parameter" and tied.setdefault(id(values[name]), node) is not node:
            node.replace_all_uses_with(tied[id(values[name])])
    for node in placeholders:
        if not node.users and not (kinds[node.name] == "input" and isinstance(values[node.name], torch.Tensor)):
            graph.graph.erase_node(node)  # None, or a number that is baked in
            del values[node.name], kinds[node.name]
    graph.recompile()
    return Captured(graph, values, kinds, precision, "export", notes, shapes[-1])


@contextmanager
def _tensors(model: torch.nn.Module) -> Iterator[list[Shape]]:
    """The model gives its tensors alone: export takes no output that holds a cache. Gives how the output was made."""
    shapes = []

    def strip(_model: Any, _args: Any, output: Any) -> Any:
        tensors, shape = taken_apart(output)
        shapes.append(shape)
        return tuple(tensors)

    handle = model.register_forward_hook(strip)
    try:
        yield shapes
    finally:
        handle.remove()


@contextmanager
def placed() -> Iterator[None]:
    """Each node is given the user's innermost line as it is made: export itself keeps frames of forward() only."""
    create = fx.Graph.create_node

    def create_node(self: fx.Graph, *args: Any, **kwargs: Any) -> fx.Node:
        node = create(self, *args, **kwargs)
        if "place" not in node.meta and node.op.startswith("call_"):
            node.meta["place"] = places.innermost()
        return node

    with mock.patch.object(fx.Graph, "create_node", create_node):
        yield
