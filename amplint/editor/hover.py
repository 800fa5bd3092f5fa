"""What an editor shows under the pointer: the rule's page, or what autocast does with an operation."""

from __future__ import annotations

import ast
import re

from amplint import knowledge
from amplint.findings import Finding, Location
from amplint.source.interpret.tensors import op_of, policy
from amplint.source.module import Module, Unreadable

_CODE = re.compile(r"AMP\d{3}")
_SAID = {
    "lower": "runs in {dtype} under {device} autocast",
    "fp32": "runs in FP32 under {device} autocast",
    "promote": "runs in the widest dtype of its operands under {device} autocast",
    "banned": "raises under {device} autocast",
}


def hover(path: str, text: str, at: Location, found: tuple[Finding, ...], device: str, dtype: str) -> str:
    """Markdown, or nothing. `device`, `dtype`: what the project trains on and in."""
    here = [finding for finding in found if finding.range.start <= at <= finding.range.end]
    if here:
        return "\n\n---\n\n".join(dict.fromkeys(_page(finding.code) for finding in here))
    return _of_code(text, at) or _of_operation(path, text, at, device, dtype)


def _page(code: str) -> str:
    rule = knowledge.rules().get(code)
    return f"**{code} {rule.name}**\n\n{rule.text}" if rule else ""


def _of_code(text: str, at: Location) -> str:
    """The page of a rule that a comment names."""
    lines = text.splitlines()
    line = lines[at.row - 1] if at.row <= len(lines) else ""
    for match in _CODE.finditer(line):
        if match.start() < at.column <= match.end() + 1 and "#" in line[: match.start()]:
            return _page(match[0])
    return ""


def _of_operation(path: str, text: str, at: Location, device: str, dtype: str) -> str:
    """What autocast does with the operation whose name, or operator, stands here."""
    try:
        module = Module.read(path, text.encode("utf-8", "replace"))
    except Unreadable:
        return ""
    for node in module.nodes(ast.Attribute, ast.Name, ast.BinOp):
        place = module.range(node)
        if not place.start <= at <= place.end:
            continue
        if isinstance(node, ast.BinOp):
            right = module.range(node.left).end <= at <= module.range(node.right).start
            if right and isinstance(node.op, ast.MatMult):
                return _said("matmul", "`@`", device, dtype)
            continue
        if isinstance(node, ast.Attribute) and at < module.range(node.value).end:
            continue  # the pointer is on what stands before the dot
        name = node.attr if isinstance(node, ast.Attribute) else module.source(node)
        for full in (*sorted(module.dotted(node)), *_methods(module, node)):
            if op := op_of(full):
                return _said(op, f"`{name}`", device, dtype)
    return ""


def _methods(module: Module, node: ast.AST) -> tuple[str, ...]:
    """A method that is called on something that no import names may be a tensor's."""
    if isinstance(node, ast.Attribute) and isinstance(module.parents.get(node), ast.Call) and not module.dotted(node):
        return (f"torch.Tensor.{node.attr}",)
    return ()


def _said(op: str, name: str, device: str, dtype: str) -> str:
    kind = policy(device if device in ("cuda", "cpu") else "cuda").get(op, "")
    shown = device.upper() if device in ("cuda", "cpu") else "CUDA"
    if kind:
        return f"{name} {_SAID[kind].format(device=shown, dtype=dtype)}."
    hurts = knowledge.ops()["stays_half"].get(op, "")
    said = f"{name} is on no list of {shown} autocast: it runs in the dtype of its operands, half stays half."
    return f"{said}\n\nIn float16: {hurts}." if hurts else said
