"""Seeds: what a run draws at random, and how a script that fixes its seeds still runs with others."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch

STRIDE = (
    1_000_003  # a prime, so that the seeds of a script that counts on (seed + rank, seed + epoch) do not meet again
)
_LARGEST = 2**32  # numpy takes no larger one


def patches(seed: int) -> Iterator[tuple[Any, str, Any]]:
    """What gives a script's own seeds another value: (owner, name, replacement). The first run keeps them."""
    if not seed:
        return
    for owner, name in _seeders():
        yield owner, name, _moved(getattr(owner, name), seed)


def begin(seed: int) -> None:
    """Seed everything, for scripts that seed nothing."""
    random.seed(seed)
    torch.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:  # torch imports it where there is one
        numpy.random.seed(seed)


def _seeders() -> Iterator[tuple[Any, str]]:
    yield random, "seed"
    yield torch, "manual_seed"
    yield torch.random, "manual_seed"
    for name in ("manual_seed", "manual_seed_all"):
        yield torch.cuda, name
        yield torch.cuda.random, name
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        yield numpy.random, "seed"


def _moved(original: Callable[..., Any], by: int) -> Callable[..., Any]:
    @wraps(original)
    def seed(*args: Any, **kwargs: Any) -> Any:
        args = tuple(map(other, args))
        return original(*args, **{key: other(value) for key, value in kwargs.items()})

    def other(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        return (value + STRIDE * by) % _LARGEST

    return seed
