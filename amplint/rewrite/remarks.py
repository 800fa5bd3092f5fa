"""What a person should know of a converted script that no edit shows."""

from __future__ import annotations

import ast
import re

from amplint.source.interpret.entries import Reading
from amplint.source.module import Module
from amplint.source.tree import last_name

# What half precision makes faster: layers and products; a model of a library may hold any of them.
_HEAVY = re.compile(r"linear|conv|lstm|gru|rnn|attention|transformer|matmul|einsum|^b?mm$|baddbmm|pretrained")
_LIBRARIES = {"torchvision", "timm", "transformers", "monai", "segmentation_models_pytorch", "torch_geometric", "dgl"}
_LIGHT = ("Embedding", "EmbeddingBag")


def remarks(reading: Reading) -> list[str]:
    """Words for the summary."""
    if (row := _by_name(reading.module)) is not None:
        return [f"which model runs is chosen by a name when the script runs (line {row}): its code was not looked at"]
    if _only_looks_up(reading):
        return ["little to gain: the model looks up embeddings, and multiplies no matrices"]
    return []


def _by_name(module: Module) -> int | None:
    """Where a module is imported by a name that is not in the text, and something of it is called: as a rule the model
    is."""
    for node in module.nodes(ast.Assign):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=function, args=[ast.Name() | ast.Attribute() | ast.JoinedStr() | ast.BinOp(), *_]),
            ) if "importlib.import_module" in module.dotted(function):
                called = (one.func for one in module.nodes(ast.Call) if isinstance(one.func, ast.Attribute))
                if any(getattr(one.value, "id", "") == name for one in called):
                    return node.lineno
    return None


def _only_looks_up(reading: Reading) -> bool:
    nodes = list(ast.walk(reading.module.tree))
    names = {last_name(node) for node in nodes}
    imported = {name.partition(".")[0] for found in reading.module.imports.values() for name in found}
    if not names & set(_LIGHT) or imported & _LIBRARIES or any(_HEAVY.search(name.lower()) for name in names):
        return False
    return not any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) for node in nodes)
