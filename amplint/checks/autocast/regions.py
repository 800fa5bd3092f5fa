"""What an autocast region must not hold: steps of the weights, backward passes."""

from __future__ import annotations

from collections.abc import Iterator

from amplint.checks.autocast.common import entered, real_region
from amplint.checks.registry import Script, found, rule
from amplint.findings import Finding
from amplint.rewrite.fixes import autocast as fixes
from amplint.source import events
from amplint.source.interpret.tensors import provenance
from amplint.source.values import Region

FIXED_IN = (2, 11)  # the torch version whose autocast casts anew for a forward with gradients


@rule("AMP201")
def weights_change_in_region(script: Script) -> Iterator[Finding]:
    """Weights change inside an autocast region and the same region runs the model again: it uses its old copies."""
    for forward in script.events(events.Forward):
        changed = forward.stale
        if changed is None:
            continue
        outer = next(context for context in forward.contexts if isinstance(context, Region))
        yield found(
            "AMP201",
            changed,
            "the weights change, but until this autocast region ends the model keeps using half-precision copies made "
            "before: training stands still",
            evidence=[
                (entered(script, outer), "the region is entered, and casts each weight once"),
                (changed, "the weights change"),
                (forward, "the model runs on the old copies"),
            ],
            help="enter autocast in every iteration, around the forward and the loss only",
            fix=fixes.region_into_loop(changed.module, outer.node),
        )


@rule("AMP203")
def first_forward_without_graph(script: Script) -> Iterator[Finding]:
    """A region's first forward of a model records no gradients: the cast weights that it leaves have none."""
    if script.settings.target_torch >= FIXED_IN:
        return
    losses = [backward.loss for backward in script.events(events.Backward)]
    for forward in script.events(events.Forward):
        first = forward.graphless
        if first is None:
            continue
        outer = next(context for context in forward.contexts if isinstance(context, Region))
        comes_from = [(of, region) for of, region, _ in (provenance((loss,)) for loss in losses)]
        if not any(forward.model in of and region and region.node is outer.node for of, region in comes_from):
            continue  # what another region computes is trained: this one evaluates
        yield found(
            "AMP203",
            forward,
            "this region has cast the model's weights without gradients, and uses those copies here: the weights of "
            "its linear and convolution layers get no gradient (torch 2.10 and older)",
            evidence=[
                (entered(script, outer), "the region is entered"),
                (first, "the first forward casts the weights, without gradients"),
                (forward, "this forward uses the same copies"),
            ],
            help="drop the copies in between: torch.clear_autocast_cache()",
            fix=fixes.clear_cache(first.module, outer.node, first.node),
        )


@rule("AMP202")
def backward_in_region(script: Script) -> Iterator[Finding]:
    """backward() inside an autocast region."""
    for backward in script.events(events.Backward):
        region = real_region(backward)
        if region is None:
            continue
        yield found(
            "AMP202",
            backward,
            "backward runs inside the autocast region: its own operations are cast again, some to another dtype than "
            "their forward's",
            evidence=[(entered(script, region), "the region"), (backward, "backward inside it")],
            help="end the region after the loss",
            fix=fixes.leave_after_loss(backward.module, region.node, backward.node),
        )
