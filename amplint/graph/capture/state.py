"""The model as it was: a front end that runs it leaves no trace in its buffers, its gradients or the random numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """What the model writes to its buffers inside, and the random numbers it draws, are taken back."""
    held = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    numpy = sys.modules.get("numpy")
    drawn = random.getstate(), numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(drawn[0])
            if numpy:
                numpy.random.set_state(drawn[1])
            with torch.no_grad():
                for buffer, before in held:
                    if buffer.dtype == before.dtype and buffer.shape == before.shape:
                        buffer.copy_(before)


def is_half(model: torch.nn.Module) -> bool:
    """Whether it holds halves: its maker has chosen what is half, and what stays in FP32."""
    return any(one.dtype in (torch.float16, torch.bfloat16) for one in model.parameters())


@contextmanager
def halved(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """The model as `model.half()` makes it; in FP32 again afterwards, its parameters the same objects."""
    data = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        model.half() if dtype == torch.float16 else model.to(dtype)
        yield
    finally:
        for parameter, full in data:
            parameter.data = full
        for module, name, buffer in buffers:
            module._buffers[name] = buffer


def cast(value: Any, dtype: torch.dtype) -> Any:
    """FP32 tensors in half precision, anywhere in a tree."""
    return torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda one: one.to(dtype) if one.dtype == torch.float32 else one, value
    )


@contextmanager
def imagined(model: torch.nn.Module) -> Iterator[Callable[[Any], Any]]:
    """A model of meta tensors with fake ones of the CPU in their place: autocast casts nothing that is on no device.
    Gives what does the same with inputs."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, torch.Tensor] = {}

    def fake(value: torch.Tensor) -> torch.Tensor:
        if id(value) not in made:
            with fakes:
                new = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="cpu")
            if isinstance(value, torch.nn.Parameter):
                new = torch.nn.Parameter(new, value.requires_grad)
            made[id(value)] = new
        return made[id(value)]

    held: list[tuple[dict[str, Any], str, torch.Tensor]] = [
        (table, name, value)
        for module in model.modules()
        for table in (module._parameters, module._buffers)
        for name, value in table.items()
        if value is not None
    ]
    try:
        for table, name, value in held:
            table[name] = fake(value)
        yield lambda tree: torch.utils._pytree.tree_map_only(torch.Tensor, fake, tree)
    finally:
        for table, name, value in held:
            table[name] = value


def is_meta(model: torch.nn.Module) -> bool:
    return any(one.is_meta for one in model.parameters())
