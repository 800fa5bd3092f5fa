"""One FP32 run of a captured graph, forward and backward, on the real batch: the values and gradients at each node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from amplint.graph import stats
from amplint.graph.capture.captured import Captured
from amplint.graph.run import run
from amplint.graph.stats import Stats

Loss = Callable[[Any], torch.Tensor]  # the model's output → a scalar


class CalibrationError(Exception):
    """The graph could not be run on its values. The message is one line."""


@dataclass
class Calibration:
    """What a run in FP32 measured. Nodes are those of `captured.graph`; a parameter's is its placeholder."""

    forward: dict[fx.Node, Stats]  # of each call that gives a floating-point tensor, and of each placeholder
    gradient: dict[fx.Node, Stats]  # of the gradient that arrives there, summed over its uses; a parameter's too
    loss: str  # "the script's", "surrogate: …", or "" where nothing could be differentiated
    value: float | None = None  # of the loss
    signal: bool = False  # gradients other than zero arrive at half of the nodes or more
    silent: int = 0  # the nodes at which all of the gradient is zero
    notes: list[str] = field(default_factory=list)


def measure(captured: Captured, loss: Loss | None = None) -> Calibration:
    """Run the graph in FP32 and differentiate `loss` of the model's output. Without one it is the output's own `loss`,
    else the mean of the squares of the first floating-point output. The captured values stay as they are."""
    if missing := next((name for name, value in captured.values.items() if _is_meta(value)), None):
        raise CalibrationError(f"nothing to run on: {missing} is on the meta device, without data")
    held = replace(captured, values=_values(captured))
    calibration = Calibration({}, {}, "")
    for node in captured.graph.graph.nodes:
        if node.op == "placeholder":
            _watch(calibration, node, held.values[node.name])
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            output = held.output(run(held, lambda node, value: _watch(calibration, node, value)))
            scalar, calibration.loss = _loss(output, loss)
            if scalar is not None:
                calibration.value = float(scalar.detach())
                scalar.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise CalibrationError(f"the run in FP32 failed: {str(error).strip().splitlines()[0]}") from error
    for node in captured.graph.graph.nodes:
        if node.op == "placeholder" and (gradient := getattr(held.values[node.name], "grad", None)) is not None:
            calibration.gradient[node] = stats.of(gradient)
    _judge(calibration)
    return calibration


def _values(captured: Captured) -> dict[str, Any]:
    """FP32 leaves of the graph's own: a run may write to buffers, inputs and constants. Parameters require gradients as
    in the model; all of them where none does."""
    trained = {name for name, value in captured.values.items() if _kind(captured, name) and value.requires_grad}
    trained = trained or {name for name in captured.values if _kind(captured, name)}
    written = {one for node in captured.nodes() for one in node.meta.get("mutates", ())}
    kept = {node.name for node in captured.graph.graph.nodes if node.op == "placeholder" and node not in written}
    values = {}
    for name, value in captured.values.items():
        if isinstance(value, torch.Tensor):
            copy = value.detach()
            copy = copy.float() if copy.dtype in stats.LIMITS else copy
            if not (name in kept and _kind(captured, name)) and copy.data_ptr() == value.data_ptr():
                copy = copy.clone()
            if name in trained and copy.is_floating_point():
                copy.requires_grad_()
            value = copy
        values[name] = value
    return values


def _kind(captured: Captured, name: str) -> bool:
    return captured.kinds.get(name) == "parameter"


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


def _watch(calibration: Calibration, node: fx.Node, value: Any) -> Any:
    """Measure a node's value, and its gradient when it comes. A hook on the value is right for what is changed in place
    later on: it is given the gradient of the value as it was."""
    if not isinstance(value, torch.Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    calibration.forward[node] = stats.of(value)
    if value.requires_grad and not value.is_leaf:

        def arrived(gradient: torch.Tensor) -> None:
            calibration.gradient[node] = stats.of(gradient)

        value.register_hook(arrived)  # type: ignore[no-untyped-call]
    return value


def _loss(output: Any, loss: Loss | None) -> tuple[torch.Tensor | None, str]:
    """A scalar to differentiate, and what it is."""
    if loss is not None:
        return loss(output), "the script's"
    field = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if isinstance(field, torch.Tensor) and field.requires_grad:
        return field.mean(), "the model's own"
    for one in torch.utils._pytree.tree_leaves(output):
        if isinstance(one, torch.Tensor) and one.is_floating_point() and one.requires_grad:
            if one.dim() == 0:
                return one, "the model's own"
            return one.float().square().mean(), "surrogate: the mean of the squares of the first output"
    return None, ""


def _judge(calibration: Calibration) -> None:
    found = calibration.gradient.values()
    calibration.silent = sum(not one.absmax for one in found)
    calibration.signal = bool(found) and 2 * calibration.silent < len(found)
    if not calibration.loss:
        calibration.notes.append("no output depends on a parameter: no gradients")
    elif not calibration.signal:
        calibration.notes.append(f"no gradient signal: it is 0 at {calibration.silent} of {len(found)} nodes")
