"""The second front end: torch.compile with a backend that keeps the graphs. It takes control flow on data.

The model is run twice on the real batch: once for dynamo to find its graphs, once more under the recorder, with an
interpreter for each graph that knows the user's line of each call. So several graphs join where what one gives is what
the next is given, and what runs between them is recorded too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from amplint.graph import places
from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.recorder import UNSEEN, Recorder
from amplint.graph.capture.state import undisturbed


def compiled(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], precision: Precision) -> Captured:
    """Capture by torch.compile. `cuda_policy` must be open, and the model half where `precision` says so."""
    recorder = Recorder(model)
    players: list[Player] = []

    def backend(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        players.append(Player(graph, recorder))
        return players[-1].run

    torch._dynamo.reset()
    run = torch.compile(model, backend=backend, dynamic=False)
    autocast = functools.partial(torch.autocast, "cpu", dtype=precision.dtype, enabled=precision.mode == "amp")
    try:
        with torch._dynamo.config.patch(suppress_errors=False, allow_rnn=True):
            with undisturbed(model), autocast():
                given = recorder.inputs(args, kwargs)
                run(*given[0], **given[1])
            recorder.forget()
            with undisturbed(model), recorder.modules(), autocast():
                given = recorder.inputs(args, kwargs)
                found = len(players)
                with torch.compiler.set_stance("eager_on_recompile"), recorder.recording():
                    output = run(*given[0], **given[1])
    finally:
        torch._dynamo.reset()
    if not players:
        raise ValueError("torch.compile found no graph")
    if UNSEEN in recorder.notes:
        raise ValueError("some calls of the model were not seen")
    if found > 1:
        recorder.notes.append(f"{found - 1} graph break{'s' if found > 2 else ''}")
    return recorder.finish(output, precision, "compile")


class Player(fx.Interpreter):
    """Runs a graph of dynamo's, and tells the recorder where in the user's source each call stands."""

    def __init__(self, graph: fx.GraphModule, recorder: Recorder) -> None:
        super().__init__(graph)
        self.recorder = recorder

    def run(self, *args: Any, **kwargs: Any) -> Any:
        try:
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
