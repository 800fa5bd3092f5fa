"""What a job changes from outside of the script: full precision, larger batches, and who is not watched."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
import torch.utils.data
from torch.utils.data._utils import worker

from amplint.verify.child.probe import Probe


def patches(job: dict[str, Any], probe: Probe) -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, replacement) of each."""
    yield worker, "_worker_loop", _unwatched(worker._worker_loop, probe)
    if probe.counting is not None:
        yield threading.Thread, "_bootstrap_inner", _counted(threading.Thread._bootstrap_inner, probe)  # type: ignore[attr-defined]
    if job.get("full_precision"):
        yield torch.autocast, "__init__", _disabled(torch.autocast.__init__, 2)
        yield torch.amp.GradScaler, "__init__", _disabled(torch.amp.GradScaler.__init__, 5)
    if job.get("batch_factor", 1) != 1:
        loader = torch.utils.data.DataLoader
        yield loader, "__init__", _larger(loader.__init__, job["batch_factor"])


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
