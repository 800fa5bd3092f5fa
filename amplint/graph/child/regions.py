"""The autocast regions that a script asks for, while it runs in FP32: half is 10 to 70 times slower on a CPU, and what
is measured is measured in FP32."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch


class Regions(threading.local):
    """The regions that this thread is in: the dtype that each asks for, None where autocast is off."""

    def __init__(self) -> None:
        self.open: list[torch.dtype | None] = []
        self.entered: list[torch.dtype] = []  # those that are on, since somebody cleared it

    @property
    def now(self) -> torch.dtype | None:
        return self.open[-1] if self.open else None


@contextmanager
def unopened(regions: Regions) -> Iterator[None]:
    """While this is open a region that is entered is noted, and changes nothing. One that is made now works later, for
    the CPU's tensors: a decorator's, or one that a model keeps."""
    with ExitStack() as stack:
        for name, wrap in (("__init__", _made), ("__enter__", _entered), ("__exit__", _left)):
            original = getattr(torch.autocast, name)
            stack.enter_context(mock.patch.object(torch.autocast, name, wrap(original, regions)))
        yield


def _made(original: Callable[..., None], _: Regions) -> Callable[..., None]:
    @wraps(original)
    def __init__(self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda":
            device_type, dtype = "cpu", dtype or torch.get_autocast_dtype("cuda")
        original(self, device_type, dtype, *args, **kwargs)

    return __init__


def _entered(original: Callable[..., Any], regions: Regions) -> Callable[..., Any]:
    @wraps(original)
    def __enter__(self: Any) -> Any:
        regions.open.append(self.fast_dtype if self._enabled else None)
        regions.entered += filter(None, regions.open[-1:])
        return self

    return __enter__


def _left(original: Callable[..., Any], regions: Regions) -> Callable[..., Any]:
    @wraps(original)
    def __exit__(self: Any, *_: Any) -> None:
        if regions.open:
            regions.open.pop()

    return __exit__
