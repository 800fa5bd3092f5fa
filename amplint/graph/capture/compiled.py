"""The second front end: torch.compile with a backend that keeps the graphs. It takes control flow on data.

Each graph that dynamo hands over is run on the real batch, by an interpreter under the recorder, so that several graphs
join where what one gives is what the next is given. What runs between them is not seen: its results are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from amplint.graph import places
from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.recorder import Recorder
from amplint.graph.capture.state import undisturbed


def compiled(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], precision: Precision) -> Captured:
    """Capture by torch.compile. `cuda_policy` must be open, and the model half where `precision` says so."""
    recorder = Recorder(model)
    graphs: list[fx.GraphModule] = []

    def backend(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return Player(graph, recorder).run

    torch._dynamo.reset()
    try:
        with undisturbed(model), torch._dynamo.config.patch(suppress_errors=False):
            given = recorder.inputs(args, kwargs)
            run = torch.compile(model, backend=backend, dynamic=False)
            with torch.autocast("cpu", dtype=precision.dtype, enabled=precision.mode == "amp"):
                output = run(*given[0], **given[1])
    finally:
        torch._dynamo.reset()
    if not graphs:
        raise ValueError("torch.compile found no graph")
    if len(graphs) > 1:
        recorder.notes.append(f"{len(graphs) - 1} graph break{'s' if len(graphs) > 2 else ''}")
    return recorder.finish(output, precision, "compile")


class Player(fx.Interpreter):
    """Runs a graph of dynamo's, and tells the recorder where in the user's source each call stands."""

    def __init__(self, graph: fx.GraphModule, recorder: Recorder) -> None:
        super().__init__(graph)
        self.recorder = recorder

    def run(self, *args: Any, **kwargs: Any) -> Any:
        try:
            with self.recorder.recording():
                return super().run(*args, **kwargs)
        finally:
            self.recorder.here = None

    def run_node(self, n: fx.Node) -> Any:
        place = n.meta.get("place") or places.of_stack_trace(n.meta.get("stack_trace"))
        module = n.meta.get("module") or places.modules(n.meta.get("nn_module_stack"))
        if not module or module[0][0]:  # dynamo leaves the model itself out
            module = (self.recorder.root, *module)
        self.recorder.here = lambda: {"place": place, "module": module}
        return super().run_node(n)
