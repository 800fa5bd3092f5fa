"""Scripts that choose their precision by a setting, which a region in one dtype would overrule."""

from __future__ import annotations

import ast

from amplint.rewrite.refusals.refused import Refused
from amplint.source.module import Module

_HALF = frozenset(("torch.float16", "torch.half", "torch.bfloat16"))


def check_chosen(module: Module) -> None:
    """Raise Refused where a setting is compared with a dtype: `1e-4 if args.train_dtype == torch.float16 else 1e-8`.
    What asks a tensor for its dtype chooses nothing."""
    if not any(word in module.text for word in ("float16", "torch.half")):
        return
    for node in ast.walk(module.tree):
        match node:
            case ast.Compare(left=ast.Attribute(value=ast.Attribute() | ast.Name(), attr=name), comparators=[other]):
                if name.endswith("_dtype") and _HALF & set(module.dotted(other)):
                    asked = module.source(node.left)
                    raise Refused(
                        f"{asked} chooses the precision (line {module.range(node).start.row})",
                        f"torch.autocast(device_type, dtype={asked}) around forward and loss, and the scaler for "
                        "float16 alone",
                    )
