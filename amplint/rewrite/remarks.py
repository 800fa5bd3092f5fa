"""What a person should know of a converted script that no edit shows."""

from __future__ import annotations

import ast
import re

from amplint.source.interpret.entries import Reading

# What half precision makes faster: layers and products; a model of a library may hold any of them.
_HEAVY = re.compile(r"linear|conv|lstm|gru|rnn|attention|transformer|matmul|einsum|^b?mm$|baddbmm|pretrained")
_LIBRARIES = {"torchvision", "timm", "transformers", "monai", "segmentation_models_pytorch", "torch_geometric", "dgl"}
_LIGHT = ("Embedding", "EmbeddingBag")


def remarks(reading: Reading) -> list[str]:
    """Words for the summary."""
    if _only_looks_up(reading):
        return ["little to gain: the model looks up embeddings, and multiplies no matrices"]
    return []


def _only_looks_up(reading: Reading) -> bool:
    nodes = list(ast.walk(reading.module.tree))
    names = {getattr(node, "id", getattr(node, "attr", "")) for node in nodes}
    imported = {name.partition(".")[0] for found in reading.module.imports.values() for name in found}
    if not names & set(_LIGHT) or imported & _LIBRARIES or any(_HEAVY.search(name.lower()) for name in names):
        return False
    return not any(isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) for node in nodes)
