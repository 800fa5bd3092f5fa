"""torch.fx's own symbolic trace, on request (`--frontend symbolic`): it needs no inputs, but takes no control flow on
values. With inputs, the trace is run once under the recorder, so that it is flat and knows shapes and dtypes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import fx

from amplint.graph import places
from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.compiled import Player
from amplint.graph.capture.exported import placed
from amplint.graph.capture.recorder import Recorder
from amplint.graph.capture.state import undisturbed


class _Tracer(fx.Tracer):
    record_stack_traces = True


def symbolic(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], precision: Precision) -> Captured:
    """Capture by torch.fx.Tracer. Without inputs the graph keeps calls of modules and functions as they are written."""
    signature = inspect.signature(model.forward)
    given = bool(args or kwargs)
    concrete = {
        name: one.default
        for name, one in signature.parameters.items()
        if one.default is not one.empty and not (given and name in signature.bind(*args, **kwargs).arguments)
    }
    with placed():
        graph = fx.GraphModule(model, _Tracer().trace(model, concrete_args=concrete))
    for node in graph.graph.nodes:
        node.meta["module"] = places.modules(node.meta.get("nn_module_stack"))
    if not given:
        kinds = {node.name: "input" for node in graph.graph.nodes if node.op == "placeholder"}
        note = "captured without inputs: shapes, dtypes and ranges are not known"
        return Captured(graph, {}, kinds, precision, "symbolic", [note])
    recorder = Recorder(model)
    with undisturbed(model):
        bound = signature.bind(*(copies := recorder.inputs(args, kwargs))[0], **copies[1]).arguments
        inputs = [bound.get(str(node.target).lstrip("*")) for node in graph.graph.nodes if node.op == "placeholder"]
        with torch.autocast("cpu", dtype=precision.dtype, enabled=precision.mode == "amp"), recorder.recording():
            output = Player(graph, recorder).run(*inputs)
    return recorder.finish(output, precision, "symbolic")
