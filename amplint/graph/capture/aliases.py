"""Which values a call changes besides its own: `x[:, 0] = 1` writes to a view, and a later use of x sees it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import fx


def link(graph: fx.Graph) -> None:
    """Each call that writes to a tensor gets meta "mutates": the earlier nodes whose memory it writes to."""
    sharing: defaultdict[int, list[fx.Node]] = defaultdict(list)
    for node in graph.nodes:
        written = {_storage(one) for one in _written(node)} - {None}
        if written:
            node.meta["mutates"] = tuple(one for storage in written if storage for one in sharing[storage])
        if storage := _storage(node):
            sharing[storage].append(node)


def _written(node: fx.Node) -> list[Any]:
    """The arguments that a call writes to, by its schema."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    found = []
    for index, argument in enumerate(schema.arguments):
        if argument.is_write:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            found += [
                one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, fx.Node)
            ]
    return found


def _storage(node: fx.Node) -> int | None:
    if "storage" in node.meta:
        storage: int | None = node.meta["storage"]
        return storage
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return int(value.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None
