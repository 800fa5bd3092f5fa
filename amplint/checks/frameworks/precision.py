"""Family 7, the precision that Accelerate runs in: what is set past it, and what its DeepSpeed config says."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from amplint.checks.frameworks.calls import ACCELERATORS, calls_of, targets
from amplint.checks.registry import Script, found_at, rule, text
from amplint.findings import Finding, Severity
from amplint.source.tree import named_argument
from amplint.source.walk import walk

_BF16 = frozenset(("bf16", "bfloat16"))
_FLOAT16 = frozenset(("torch.float16", "torch.half"))


@rule("AMP703")
def native_amp_set(script: Script) -> Iterator[Finding]:
    """What Accelerate found out of its mixed_precision is set from another flag: it decides half of what that does."""
    module = script.module
    if "native_amp" not in module.text:
        return
    made = list(calls_of(module, *ACCELERATORS))
    if len(made) != 1:
        return
    accelerators, precision = targets(module, made[0]), named_argument(made[0], "mixed_precision")
    for node in module.nodes(ast.Assign):
        for target in node.targets:
            if not isinstance(target, ast.Attribute) or target.attr != "native_amp":
                continue
            if module.source(target.value) not in accelerators or _agree(node.value, precision):
                continue
            yield found_at(
                "AMP703",
                module,
                node,
                "this switches Accelerate's autocast, mixed_precision its scaler: with only the first on, float16 is "
                "not scaled; with only the second, float32 is, and clips are of scaled gradients",
                severity=Severity.WARNING,
                evidence=[(module, made[0], "made here"), (module, node, "set here, by another flag")],
                help="leave it out: it follows from mixed_precision",
            )


def _agree(flag: ast.expr, precision: ast.expr | None) -> bool:
    """Whether the flag says what mixed_precision says: a name that both ask, or off (as where MPS has no autocast)."""
    if isinstance(flag, ast.Constant):
        known = isinstance(precision, ast.Constant) and precision.value in ("fp16", "bf16", "fp8")
        return not flag.value or known
    asked = {ast.unparse(one) for one in walk(flag) if isinstance(one, ast.Name | ast.Attribute)}
    return precision is not None and any(
        ast.unparse(one) in asked for one in walk(precision) if isinstance(one, ast.Name | ast.Attribute)
    )


@rule("AMP703")
def bf16_of_deepspeed(script: Script) -> Iterator[Finding]:
    """Where DeepSpeed's config turns bf16 on, float16 is chosen."""
    module = script.module
    if "deepspeed_config" not in module.text or "bf16" not in module.text:
        return
    for branch in module.nodes(ast.If):
        if not _asks_for_bf16(branch.test):
            continue
        for statement in branch.body:
            match statement:
                case ast.Assign(targets=[target], value=ast.Attribute() as value) if module.dotted(value) & _FLOAT16:
                    yield found_at(
                        "AMP703",
                        module,
                        statement,
                        f"bf16 is on where this runs, and {text(module, target)} becomes float16: its range ends at "
                        "65504, and the models that DeepSpeed holds are bfloat16",
                        evidence=[(module, branch.test, "asked here"), (module, statement, "chosen here")],
                        help="write torch.bfloat16",
                    )


def _asks_for_bf16(test: ast.expr) -> bool:
    """Whether a condition holds where a config has bf16 on: `config["bf16"]["enabled"]`, perhaps after `"bf16" in
    config`."""
    for part in test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) else [test]:
        match part:
            case ast.Subscript(
                value=ast.Subscript(slice=ast.Constant(value=str() as name)), slice=ast.Constant(value="enabled")
            ):
                return name in _BF16
    return False
