"""Fixes of family 7, frameworks."""

from __future__ import annotations

import ast

from amplint.findings import Applicability, Edit, Fix
from amplint.rewrite import edits
from amplint.rewrite.fixes import attempt
from amplint.source.module import Module
from amplint.source.tree import names_in


def without_emulation(module: Module, call: ast.Call) -> Fix | None:
    """`is_bf16_supported()` → `is_bf16_supported(including_emulation=False)`."""
    return attempt(
        "pass including_emulation=False",
        Applicability.SAFE,
        lambda: edits.change_call(module, call, add_keywords={"including_emulation": "False"}),
    )


def clip_by_accelerator(module: Module, call: ast.Call, accelerator: str, name: str) -> Fix | None:
    """`torch.nn.utils.clip_grad_norm_(parameters, limit)` → `accelerator.clip_grad_norm_(parameters, limit)`."""

    def build() -> list[Edit]:
        roots = names_in(call.func)
        made = edits.change_call(module, call, func=f"{accelerator}.{name}")
        return made + edits.remove_import_name(module, *roots, gone=[call.func])

    return attempt(f"call {accelerator}.{name}", Applicability.SAFE, build)
