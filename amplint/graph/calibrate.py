"""One FP32 run of a captured graph, forward and backward, on the real batch: the values and gradients at each node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from amplint.graph import stats, updates
from amplint.graph.capture.captured import Captured
from amplint.graph.casting import Cast, alias, cast_graph
from amplint.graph.policy import HALVES
from amplint.graph.run import run
from amplint.graph.stats import Stats
from amplint.graph.updates import Swamped

Loss = Callable[[Any], torch.Tensor]  # the model's output → a scalar


class CalibrationError(Exception):
    """The graph could not be run on its values. The message is one line."""


@dataclass
class Calibration:
    """What a run in FP32 measured. Nodes are those of `captured.graph`; a parameter's is its placeholder."""

    forward: dict[fx.Node, Stats]  # of each call that gives a floating-point tensor, and of each placeholder
    gradient: dict[fx.Node, Stats]  # of the gradient that arrives there, summed over its uses; a parameter's too
    casts: list[tuple[Cast, Stats]]  # of the gradient of what autocast casts, as the operations behind give it
    loss: str  # "the script's", "the model's own", "surrogate: …"; "" where nothing could be differentiated
    value: float | None = None  # of the loss
    signal: bool = False  # gradients other than zero arrive at half of the nodes or more
    silent: int = 0  # the nodes at which all of the gradient is zero
    swamped: Swamped | None = None  # the optimizer's first update, beside the weights
    notes: list[str] = field(default_factory=list)


def measure(captured: Captured, loss: Loss | None = None, optimizer: dict[str, Any] | None = None) -> Calibration:
    """Run the graph in FP32 and differentiate `loss` of the model's output. Without one it is the output's own `loss`,
    else the mean of the squares of the first floating-point output. The captured values stay as they are.

    `optimizer`: its class (by name) and hyperparameters: {"class": "AdamW", "lr": 1e-3, "betas": (0.9, 0.999), …}.
    """
    if missing := next((name for name, value in captured.values.items() if _is_meta(value)), None):
        raise CalibrationError(f"nothing to run on: {missing} is on the meta device, without data")
    built = cast_graph(captured, alias, whole=False)  # the casts are identities, whose gradients are those of the casts
    nodes = {copy: node for node, copy in built.copies.items()}
    casts = {node: cast for cast, node in built.casts.items() if node is not None}
    held = replace(captured, graph=built.graph, values=_values(captured))
    calibration = Calibration({}, {}, [], "")

    def seen(node: fx.Node, value: Any) -> Any:
        if cast := casts.get(node):
            _on_gradient(value, lambda found: calibration.casts.append((cast, found)))
        elif node in nodes:
            _watch(calibration, nodes[node], value)
        return value

    for node in captured.graph.graph.nodes:
        if node.op == "placeholder":
            _watch(calibration, node, held.values[node.name])
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            scalar, calibration.loss = _loss(held.output(run(held, seen)), loss)
            if scalar is not None:
                calibration.value = float(scalar.detach())
                scalar.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise CalibrationError(f"the run in FP32 failed: {str(error).strip().splitlines()[0]}") from error
    parameters = {node: held.values[node.name] for node in nodes.values() if _is_parameter(captured, node.name)}
    calibration.gradient |= {node: stats.of(one.grad) for node, one in parameters.items() if one.grad is not None}
    _judge(calibration)
    if optimizer and calibration.signal:
        calibration.swamped = updates.swamped(parameters, optimizer, captured.precision.dtype)
    return calibration


def _values(captured: Captured) -> dict[str, Any]:
    """The values, with parameters that are FP32 leaves of the graph's own (the run copies all others). They require
    gradients as in the model; all of them where none does."""
    parameters = {name: value for name, value in captured.values.items() if _is_parameter(captured, name)}
    trained = {name for name, value in parameters.items() if value.requires_grad} or set(parameters)
    written = {one.name for node in captured.nodes() for one in node.meta.get("mutates", ())}
    values = dict(captured.values)
    for name, value in parameters.items():
        leaf = value.detach()
        leaf = leaf.float() if leaf.dtype in HALVES else leaf  # float64 stays: the model's inputs are so, too
        values[name] = (leaf.clone() if name in written else leaf).requires_grad_(name in trained)
    return values


def _is_parameter(captured: Captured, name: str) -> bool:
    return captured.kinds.get(name) == "parameter"


def _is_meta(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


def _watch(calibration: Calibration, node: fx.Node, value: Any) -> None:
    """Measure a node's value, and its gradient when it comes. Sparse tensors are not looked into."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return
    if value.is_floating_point() or value.is_complex():
        calibration.forward[node] = stats.of(value)
        _on_gradient(value, lambda found: calibration.gradient.update({node: found}))


def _on_gradient(value: torch.Tensor, act: Callable[[Stats], None]) -> None:
    """Act on the gradient when it arrives. A hook on the value is right for what is changed in place later on: it is
    given the gradient of the value as it was."""
    if value.requires_grad and not value.is_leaf:

        def arrived(gradient: torch.Tensor) -> None:
            act(stats.of(gradient))

        value.register_hook(arrived)  # type: ignore[no-untyped-call]


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
