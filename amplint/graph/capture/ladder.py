"""A model and its inputs as a graph, by the first front end that takes them."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.compiled import compiled
from amplint.graph.capture.exported import export
from amplint.graph.capture.recorder import record
from amplint.graph.capture.shape import leaves
from amplint.graph.capture.state import cast, halved, imagined, is_half, is_meta
from amplint.graph.capture.symbolic import symbolic
from amplint.graph.policy import cuda_policy

FRONTENDS: dict[str, Callable[..., Captured]] = {
    "export": export,
    "compile": compiled,
    "recorder": record,
    "symbolic": symbolic,
}
LADDER = ("export", "compile", "recorder")


class CaptureError(Exception):
    """No front end took the model. The message is one line."""


def capture(
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None,
    precision: Precision,
    frontend: str = "auto",
) -> Captured:
    """The model's forward on these inputs as a graph. The model, its buffers and the inputs stay as they are.

    `frontend`: auto (export, else compile, else recorder), or one of export, compile, recorder, symbolic.
    """
    kwargs = kwargs or {}
    model = _bare(model)
    if device := next((one.device for one in model.parameters() if one.device.type not in ("cpu", "meta")), None):
        raise CaptureError(f"the model is on {device}: trace reads it on the CPU; move it there")
    failed = []
    for name in LADDER if frontend == "auto" else (frontend,):
        try:
            captured = _by(name, model, args, kwargs, precision)
        except Exception as error:  # whatever torch or the model raises: the next one may take it
            failed.append(f"{name}: {_line(error)}")
        else:
            captured.notes[:0] = [f"not captured by {one}" for one in failed]
            return captured
    raise CaptureError(f"{type(model).__name__} could not be captured: " + "; ".join(failed))


def _by(
    name: str, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], precision: Precision
) -> Captured:
    """Capture by one front end. The values are those of the model and the inputs as they are, whatever `precision`."""
    halve = precision.mode == "half" and not is_half(model)
    given = cast((args, kwargs), precision.dtype) if halve else (args, kwargs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(cuda_policy())
        stack.enter_context(torch.enable_grad())
        if name != "compile":  # a part that the user compiles is captured like the rest
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if halve:
            stack.enter_context(halved(model, precision.dtype))
        if is_meta(model):
            given = stack.enter_context(imagined(model))(given)
        captured = FRONTENDS[name](model, *given, precision)
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    originals = {id(new): old for new, old in zip(leaves(given), leaves((args, kwargs)), strict=True)}
    for node in captured.graph.graph.nodes:
        if node.op == "placeholder" and node.name in captured.values:
            value = captured.values[node.name]
            captured.values[node.name] = state.get(node.meta.get("target"), originals.get(id(value), value))
    return captured


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch says of a model that it does not take is for its makers: it logs, and prints the graph so far."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _bare(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside of torch.compile, DataParallel and DistributedDataParallel."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), torch.nn.Module):
            model = inner
        else:
            return model


def _line(error: Exception) -> str:
    """The first line of what an error says that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
