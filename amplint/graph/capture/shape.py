"""A model's output taken apart to its tensors, and put together again."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Shape:
    """How an output is made of its tensors; what else is in it (a cache, None) is None."""

    spec: Any
    kept: tuple[Any, ...]  # for each leaf: whether it is a tensor

    def whole(self, tensors: Any) -> Any:
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if tensor else None for tensor in self.kept], self.spec)


def taken_apart(output: Any) -> tuple[list[torch.Tensor], Shape]:
    """The tensors of an output, in order."""
    flat, spec = pytree.tree_flatten(output)
    unknown = {type(leaf) for leaf in flat if dataclasses.is_dataclass(leaf)}
    if unknown:
        for kind in unknown:  # a dataclass that torch has not been told of
            with contextlib.suppress(ValueError):
                torch.export.register_dataclass(kind)
        again, spec = pytree.tree_flatten(output)
        if len(again) > len(flat):
            return taken_apart(output)
    return [one for one in flat if isinstance(one, torch.Tensor)], Shape(
        spec, tuple(isinstance(one, torch.Tensor) for one in flat)
    )


def leaves(value: Any) -> list[Any]:
    return pytree.tree_leaves(value)
