"""What a job changes from outside of the script: where it imports from, full precision, larger batches, who is not
watched, and what says that it is on the GPU where there is none."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
import torch.utils.data
from torch.utils.data._utils import worker
from torch.utils.weak import WeakIdKeyDictionary

from amplint.graph.child import device
from amplint.graph.places import is_own
from amplint.verify.child.probe import Probe


def patches(job: dict[str, Any], probe: Probe) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, replacement) of each."""
    yield worker, "_worker_loop", _unwatched(worker._worker_loop, probe)
    if probe.counting is not None:
        yield threading.Thread, "_bootstrap_inner", _counted(threading.Thread._bootstrap_inner, probe)  # type: ignore[attr-defined]
    if not probe.meters.on_gpu:
        yield from _placed()
    if job.get("full_precision"):
        yield torch.autocast, "__init__", _disabled(torch.autocast.__init__, 2)
        yield torch.amp.GradScaler, "__init__", _disabled(torch.amp.GradScaler.__init__, 5)
    if job.get("batch_factor", 1) != 1:
        loader = torch.utils.data.DataLoader
        yield loader, "__init__", _larger(loader.__init__, job["batch_factor"])


def move(trees: Sequence[Sequence[str]]) -> None:
    """What would be imported from these folders of the user's is imported from their copies: search paths, and what
    `pip install --editable` has put beside them."""

    def moved(path: str) -> str:
        for theirs, ours in trees:
            if path == theirs or path.startswith(os.path.join(theirs, "")):
                return ours + path[len(theirs) :]
        return path

    sys.path[:] = [path if "site-packages" in path else moved(path) for path in sys.path]
    for name, module in list(sys.modules.items()):
        mapping = getattr(module, "MAPPING", None) if name.startswith("__editable__") else None
        if isinstance(mapping, dict):
            mapping.update({key: moved(path) for key, path in mapping.items()})


def _placed() -> Iterator[tuple[Any, str, Any]]:
    """Parameters of a module that was sent to the GPU say so to a script that asks `next(net.parameters()).is_cuda`. To
    torch they are what they are."""
    sent: Any = WeakIdKeyDictionary()
    real: Any = torch.Tensor.is_cuda

    def is_cuda(self: torch.Tensor) -> bool:
        return bool(real.__get__(self)) or (self in sent and is_own(sys._getframe(1).f_code.co_filename))

    def sends(original: Any, always: str = "") -> Any:
        @wraps(original)
        def send(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            place = always or kwargs.get("device", args[0] if args else None)
            if _is_cuda(place):
                for parameter in self.parameters():
                    sent[parameter] = True
            elif isinstance(place, str | torch.device) and device.mapped(place) == place:
                for parameter in self.parameters():
                    sent.pop(parameter, None)
            return original(self, *args, **kwargs)

        return send

    yield torch.Tensor, "is_cuda", property(is_cuda)
    yield torch.nn.Module, "cuda", sends(torch.nn.Module.cuda, "cuda")
    yield torch.nn.Module, "cpu", sends(torch.nn.Module.cpu, "cpu")
    yield torch.nn.Module, "to", sends(torch.nn.Module.to)


def _is_cuda(place: Any) -> bool:
    if isinstance(place, int):
        return not isinstance(place, bool)
    return isinstance(place, str | torch.device) and device.mapped(place) != place


def _unwatched(original: Callable[..., Any], probe: Probe) -> Any:
    """Workers that load data compute nothing that counts."""

    @wraps(original)
    def _worker_loop(*args: Any, **kwargs: Any) -> Any:
        probe.off = True
        if probe.counting is not None:
            probe.counting.paused = True
        return original(*args, **kwargs)

    return _worker_loop


def _counted(original: Any, probe: Probe) -> Any:
    """Dispatch modes belong to a thread."""

    @wraps(original)
    def _bootstrap_inner(self: threading.Thread) -> None:
        assert probe.counting is not None
        with probe.counting:
            original(self)

    return _bootstrap_inner


def _disabled(original: Any, at: int) -> Any:
    """`at`: the place of `enabled` among the arguments."""

    @wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if len(args) > at:
            args = (*args[:at], False, *args[at + 1 :])
        else:
            kwargs["enabled"] = False
        original(self, *args, **kwargs)

    return __init__


def _larger(original: Any, factor: float) -> Any:
    @wraps(original)
    def __init__(self: Any, dataset: Any, batch_size: int | None = 1, *args: Any, **kwargs: Any) -> None:
        if batch_size is not None and kwargs.get("batch_sampler") is None:
            batch_size = max(1, round(batch_size * factor))
        original(self, dataset, batch_size, *args, **kwargs)

    return __init__
