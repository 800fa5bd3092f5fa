"""The second door: `pkg.mod:factory` gives a model, the command line its inputs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils import _pytree as pytree

from amplint.graph.capture.state import undisturbed
from amplint.graph.child import analyse, device
from amplint.graph.child.answer import describe, finish, say
from amplint.graph.child.script import show
from amplint.graph.child.seen import Refused, Seen

_SEED = 0


def factory(folder: str, job: dict[str, Any]) -> None:
    """Make the model and its inputs, analyse them, answer; ends the process."""
    say(folder, "factory")
    try:
        with ExitStack() as stack:
            stack.enter_context(device.cuda_on_cpu())
            with device.open_gate():
                seen = _seen(job)
            say(folder, "analysis")
            finish(folder, analyse.answer(seen, job))
    except Refused as error:
        finish(folder, {"error": str(error)})


def _seen(job: dict[str, Any]) -> Seen:
    sys.path.insert(0, os.getcwd())
    torch.manual_seed(_SEED)
    place = torch.device("meta") if job["meta"] else torch.device("cpu")
    made = _named(job["target"])
    if not isinstance(made, torch.nn.Module):
        with place:
            made = _called(job["target"], made)
    if not isinstance(made, torch.nn.Module):
        raise Refused(f"{job['target']} gives {_article(made)}, not a torch.nn.Module")
    made.train(job["train"])
    last: BaseException | None = None
    for count in _counts(made) if job["inputs"] else (0,):
        args, kwargs = _given(job, place, count)
        rng = torch.get_rng_state()
        last = _tried(made, args, kwargs)
        if not isinstance(last, IndexError):  # an index that is too large for one of the embeddings
            break
    if last is not None:
        show(last)
        shapes = ", ".join(analyse.shape(leaf) for leaf in pytree.tree_leaves((args, kwargs)) if _is_tensor(leaf))
        raise Refused(f"{type(made).__name__} does not take these inputs ({shapes or 'none'}): {describe(last)}")
    tensors = [*args, *kwargs.values()]
    told = [one for one in job["inputs"] if not one["name"]] + [one for one in job["inputs"] if one["name"]]
    declared = [_ends(tensor, one) for tensor, one in zip(tensors, told, strict=False) if one["low"] is not None]
    return Seen(made, args, kwargs, rng, declared=declared)


def _ends(tensor: torch.Tensor, told: dict[str, Any]) -> tuple[torch.Tensor, float, float]:
    """An input with the lowest and the highest of its values: an integer's range ends before its end."""
    return tensor, told["low"], told["high"] - (not tensor.is_floating_point())


# -- the model ----------------------------------------------------------------------------------------------------


def _named(name: str) -> Any:
    """What `pkg.mod:attribute` or `file.py:attribute` stands for."""
    module_name, _, attributes = name.rpartition(":")
    value: Any = _module(module_name)
    for attribute in attributes.split("."):
        try:
            value = getattr(value, attribute)
        except AttributeError:
            raise Refused(f"{module_name} has no {attributes}{_nearest(attribute, value)}") from None
    return value


def _nearest(name: str, owner: Any) -> str:
    import difflib

    near = difflib.get_close_matches(name, [one for one in vars(owner) if not one.startswith("_")], 1)
    return f'; did you mean "{near[0]}"?' if near else ""


def _module(name: str) -> Any:
    try:
        if name.endswith(".py") or os.sep in name:
            sys.path.insert(0, os.path.dirname(os.path.abspath(name)))
            name = os.path.splitext(os.path.basename(name))[0]
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise Refused(f"there is no module {error.name} in {os.getcwd()} or on Python's path") from None
        show(error)
        raise Refused(f"{name} cannot be imported: {describe(error)}") from None
    except (Exception, SystemExit) as error:
        show(error)
        raise Refused(f"{name} cannot be imported: {describe(error)}") from None


def _called(name: str, made: Any) -> Any:
    if not callable(made):
        raise Refused(f"{name} is {_article(made)}: it is neither a torch.nn.Module nor can it be called to make one")
    try:
        return made()
    except (Exception, SystemExit) as error:
        show(error)
        raise Refused(f"{name}() failed: {describe(error)}") from None


def _article(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


# -- its inputs ---------------------------------------------------------------------------------------------------


def _given(job: dict[str, Any], place: torch.device, count: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs that the command line asks for. `count`: how many values an integer without a range may have."""
    generator = torch.Generator().manual_seed(_SEED)
    args = tuple(_tensor(one, generator, place, count) for one in job["inputs"] if not one["name"])
    kwargs = {one["name"]: _tensor(one, generator, place, count) for one in job["inputs"] if one["name"]}
    if not job["inputs_from"]:
        return args, kwargs
    given = _called(job["inputs_from"], _named(job["inputs_from"]))
    if isinstance(given, dict):
        return (), given
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], tuple) and isinstance(given[1], dict):
        return given[0], given[1]
    return (given if isinstance(given, tuple) else (given,)), {}


def _tensor(one: dict[str, Any], generator: torch.Generator, place: torch.device, count: int) -> torch.Tensor:
    shape = one["shape"]
    dtype: torch.dtype = getattr(torch, one["dtype"])
    low, high = one["low"], one["high"]
    if place.type == "meta":
        return torch.empty(shape, dtype=dtype, device=place)
    if not dtype.is_floating_point:
        ends = (0, 2 if dtype is torch.bool else count) if low is None else (int(low), int(high))
        made = torch.randint(*ends, shape, generator=generator)
    elif low is None:
        made = torch.randn(shape, generator=generator)
    else:
        made = low + (high - low) * torch.rand(shape, generator=generator)
    return made.to(dtype)


def _counts(model: torch.nn.Module) -> Iterator[int]:
    """How many values to try for integers whose range nobody named: as many as the model's embeddings have."""
    embeddings = [one for one in model.modules() if isinstance(one, torch.nn.Embedding | torch.nn.EmbeddingBag)]
    sizes = {one.num_embeddings for one in embeddings}
    yield from sorted(sizes, reverse=True) or [2]


def _tried(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> BaseException | None:
    """What a forward on these inputs raises."""
    try:
        with undisturbed(model), torch.no_grad():
            model(*args, **kwargs)
    except (Exception, SystemExit) as error:
        return error
    return None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
