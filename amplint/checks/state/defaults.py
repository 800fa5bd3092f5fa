"""Half precision for whatever is made (AMP308)."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.registry import Script, found_at, rule
from amplint.checks.state.casts import half_dtype
from amplint.checks.state.live import trains
from amplint.findings import Finding
from amplint.source.interpret.tensors import DTYPES
from amplint.source.module import Module


@rule("AMP308")
def half_default_dtype(script: Script) -> Iterator[Finding]:
    """The default dtype is half where training follows."""
    module = script.module
    if not trains(module):
        return
    calls = [
        call
        for call in module.all_nodes
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in ("set_default_dtype", "set_default_tensor_type")
        and call.args
    ]
    for call in calls:
        dtype = _half(module, call.args[0])
        function = module.function(call)
        if not dtype or any(other is not call and module.function(other) is function for other in calls):
            continue  # set for a while, and then what it was
        lost = "below 3e-8 are 0, above 65504 inf" if dtype == "float16" else "keep two to three digits"
        yield found_at(
            "AMP308",
            module,
            call,
            f"everything that is made from here on is {dtype}: weights, the statistics of BatchNorm, constants "
            f"({lost})",
            help="keep the default, and run the forward under torch.autocast",
        )


def _half(module: Module, node: ast.expr) -> str:
    """The half dtype, or the dtype of the half tensor type, that a default is set to."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        name = node.value.rpartition(".")[2]
    elif isinstance(node, ast.Attribute) and node.attr.endswith("Tensor"):
        name = node.attr
    else:
        return half_dtype(module, node)
    dtype = DTYPES.get(name, "")
    return dtype if dtype in ("float16", "bfloat16") else ""
