"""Anomaly mode, which raises where a backward makes a nan: an overflow does, and a GradScaler means to skip it."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.source.module import Module
from amplint.source.tree import called_name


def anomaly_mode(module: Module) -> Iterator[ast.Call]:
    """Where a file turns it on, under no condition of its own: `torch.autograd.set_detect_anomaly(True)`."""
    for node in module.nodes(ast.Call) if "detect_anomaly" in module.text else ():
        name = called_name(node)
        if name not in ("set_detect_anomaly", "detect_anomaly"):
            continue
        given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg in ("mode", None))]
        on = name == "detect_anomaly" if not given else isinstance(given[0], ast.Constant) and given[0].value
        if on and not any(isinstance(above, ast.If) and not _is_main(above) for above in module.ancestors(node)):
            yield node


def _is_main(branch: ast.If) -> bool:
    return isinstance(branch.test, ast.Compare) and getattr(branch.test.left, "id", "") == "__name__"
