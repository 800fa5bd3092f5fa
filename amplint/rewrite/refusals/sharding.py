"""Sharded parameters: FSDP has a scaler of its own; fully_shard and DTensor have mixed precision of their own."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from amplint.rewrite.refusals.refused import BY_HAND, Refused
from amplint.source.module import Module
from amplint.source.tree import called_name, last_name

SCALER = "from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler"
_WRAPS = {"FSDP", "FullyShardedDataParallel"}
_TENSORS = {"parallelize_module", "DTensor", "distribute_tensor", "distribute_module"}


def check_sharding(modules: Sequence[Module]) -> None:
    """Raise Refused where parameters are sharded by what sets its own precision."""
    for module in modules:
        names = _names(module)
        if "fully_shard" in names:
            policy = "mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)"
            raise Refused("its parameters are sharded by fully_shard()", f"pass {policy} to that instead")
        if names & _TENSORS:
            raise Refused("its parameters are distributed tensors", BY_HAND)
        for call in _wrapping(module):
            if any(keyword.arg in ("mixed_precision", None) for keyword in call.keywords):
                raise Refused("its FSDP has a mixed precision of its own", "set its MixedPrecision policy")


def sharded(module: Module) -> bool:
    """Whether a file wraps a model in FSDP: its gradients are in shards, and so is what must be finite."""
    return bool(_names(module) & _WRAPS)


def _names(module: Module) -> set[str]:
    return {last_name(node) for node in ast.walk(module.tree)}


def _wrapping(module: Module) -> list[ast.Call]:
    calls = (node for node in ast.walk(module.tree) if isinstance(node, ast.Call))
    return [call for call in calls if called_name(call) in _WRAPS]
