"""What of apex.amp is for a person: parts that torch.amp does not have, and code that does what apex does."""

from __future__ import annotations

import ast

from amplint.rewrite.apex.group import Group
from amplint.rewrite.apex.scaled import ScaledLoss
from amplint.rewrite.refusals.refused import BY_HAND, Refused

_OTHERS = {
    "promote_function": "autocast promotes what torch knows; cast the others by hand",
    "init": "the old handle API: make a GradScaler and scale the losses by hand",
}
_UNSCALED_BY_HAND = "read the scale with scaler.get_scale(), or let scaler.unscale_(optimizer) do it"
_INNER = frozenset("_amp_stash _lazy_init_maybe_master_weights _master_params_to_model_params".split())


def refuse_part(name: str) -> None:
    """Refuse a part of apex.amp, by its name ("" for all of it)."""
    if not name:
        raise Refused("amp itself is passed on, compared or asked for", BY_HAND)
    first = name.split(".")[0]
    if first.startswith("_") or "." in name:
        raise Refused(f"it reaches into amp.{first}, which torch.amp does not have", _UNSCALED_BY_HAND)
    raise Refused(f"torch.amp has no amp.{name}", _OTHERS.get(name, BY_HAND))


def refuse_by_hand(group: Group, losses: list[ScaledLoss]) -> None:
    """Refuse what a person has to look at: an optimizer or a loss that is treated as apex has it."""
    for module in group.uses:
        nodes = list(ast.walk(module.tree))
        inner = next((one.attr for one in nodes if isinstance(one, ast.Attribute) and one.attr in _INNER), "")
        if inner:
            raise Refused(f"it uses what apex puts into optimizers ({inner})", "drop that, then run amplint again")
    for loss in losses:
        above = loss.module.parents[loss.statement]
        for one in above.body if isinstance(above, ast.If) else ():
            match one:
                case ast.AugAssign(op=ast.Mult(), target=target) if loss.module.source(target) == loss.module.source(
                    loss.loss
                ):
                    raise Refused(
                        "the loss is scaled by hand before amp.scale_loss does",
                        "drop that, and what undoes it, then run amplint again",
                    )
