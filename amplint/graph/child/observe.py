"""Watches a script until the output of a model reaches a backward.

Each outermost call of a module with trainable parameters is remembered, with its inputs as they were, on the nodes of
the autograd graph that its output hangs on: it lives as long as that graph does. At a backward the graph is walked from
the loss, and the calls that it reaches are what the step trains.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import FunctionType
from typing import Any, NoReturn
from unittest import mock

import torch
from torch.utils import _pytree as pytree

from amplint.graph.child.regions import Regions, unopened
from amplint.graph.child.seen import Loss, Seen
from amplint.graph.places import is_own

_KEY, _SCALE = "amplint.calls", "amplint.scale"
_RATES = ("lr", "initial_lr", "max_lr")  # a warm-up starts at 0
Found = Callable[[Seen], NoReturn]


@dataclass
class _Call:
    """An outermost call of a module, as it was before it ran. No tensor of its output is held: that would keep the
    autograd graph, which holds the call, for ever."""

    order: int
    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng: torch.Tensor
    buffers: dict[str, torch.Tensor]
    dtype: torch.dtype | None = None  # of the autocast region around it, else of the first one inside
    leaves: int = 0  # of its output


@dataclass
class Watch:
    """What happened so far: how many models were called, and the optimizers that there are."""

    calls: int = 0
    names: set[str] = field(default_factory=set)
    optimizers: list[weakref.ref[torch.optim.Optimizer]] = field(default_factory=list)
    inside: threading.local = field(default_factory=threading.local)
    regions: Regions = field(default_factory=Regions)


@contextmanager
def watching(found: Found) -> Iterator[Watch]:
    """While it is open, the first backward that a model's output reaches calls `found`, which does not return."""
    watch = Watch()
    with ExitStack() as stack:

        def patch(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))

        patch(torch.nn.Module, "__call__", lambda original: _call(original, watch))
        stack.enter_context(_direct_calls(watch))
        patch(torch.autograd, "backward", lambda original: _backward(original, watch, found))
        patch(torch.autograd, "grad", lambda original: _grad(original, watch, found))
        patch(torch.optim.Optimizer, "__init__", lambda original: _optimizer(original, watch))
        patch(torch.amp.GradScaler, "scale", _scale)
        stack.enter_context(unopened(watch.regions))
        patch(torch, "compile", eager)
        yield watch


# -- calls --------------------------------------------------------------------------------------------------------


def _call(original: Any, watch: Watch) -> Any:
    @wraps(original)
    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        inside = watch.inside
        if getattr(inside, "depth", 0) or _is_wrapper(self) or not _trains(self):
            return original(self, *args, **kwargs)
        watch.calls += 1
        watch.names.add(type(self).__name__)
        held, named = copy(args), copy(kwargs)
        buffers = {name: buffer.detach().clone() for name, buffer in self.named_buffers()}
        seen = _Call(watch.calls, self, held, named, torch.get_rng_state(), buffers)
        inside.depth = 1
        watch.regions.entered.clear()
        try:
            output = original(self, *args, **kwargs)
        finally:
            inside.depth = 0
        seen.dtype = watch.regions.now or next(iter(watch.regions.entered), None)
        leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        seen.leaves = len(leaves)
        for index, leaf in enumerate(leaves):
            if leaf.grad_fn is not None:
                _metadata(leaf.grad_fn).setdefault(_KEY, []).append((seen, index, leaf.output_nr))
        return output

    return call


@contextmanager
def _direct_calls(watch: Watch) -> Iterator[None]:
    """The user's `net.forward(x)` counts as a call, too: for classes that are defined while this is open."""
    wrapped: list[tuple[Any, FunctionType]] = []

    def __init_subclass__(cls: Any, /, **kwargs: Any) -> None:
        super(torch.nn.Module, cls).__init_subclass__(**kwargs)
        forward = cls.__dict__.get("forward")
        if isinstance(forward, FunctionType) and _is_users(forward.__code__.co_filename):
            wrapped.append((cls, forward))
            cls.forward = _call(forward, watch)

    try:
        with mock.patch.object(torch.nn.Module, "__init_subclass__", classmethod(__init_subclass__)):
            yield
    finally:
        for cls, forward in wrapped:
            cls.forward = forward


def _is_users(path: str) -> bool:
    return is_own(path) and f"{os.sep}site-packages{os.sep}" not in path


def _metadata(node: Any) -> dict[str, Any]:
    """What can be noted on a node of the autograd graph, and lives as long as the node."""
    noted: dict[str, Any] = node.metadata
    return noted


def _is_wrapper(module: torch.nn.Module) -> bool:
    """Whether it only hands its inputs on to the model inside: DataParallel, DistributedDataParallel, torch.compile."""
    return any(
        kind.__module__.startswith(("torch.nn.parallel.", "torch._dynamo.", "torch.distributed."))
        for kind in type(module).__mro__[:-1]
        if kind is not torch.nn.Module
    )


def _trains(module: torch.nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())


def copy(value: Any) -> Any:
    """The same tree with copies of its tensors, cut off from any graph; what is no tensor is kept."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, torch.nn.utils.rnn.PackedSequence):
            return type(leaf)(*(one(part) for part in leaf))
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, torch.nn.Parameter):
            return leaf.detach().clone().requires_grad_(leaf.requires_grad)
        return leaf

    return pytree.tree_map(one, value)


# -- backward -----------------------------------------------------------------------------------------------------


def _backward(original: Any, watch: Watch, found: Found) -> Any:
    @wraps(original)
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
        _look(_listed(tensors), _listed(grad_tensors), watch, found)
        return original(tensors, grad_tensors, *args, **kwargs)

    return backward


def _grad(original: Any, watch: Watch, found: Found) -> Any:
    """torch.autograd.grad trains where it is asked for gradients of parameters; penalties ask for those of inputs."""

    @wraps(original)
    def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(one, torch.nn.Parameter) for one in _listed(inputs)):
            _look(_listed(outputs), _listed(grad_outputs), watch, found)
        return original(outputs, inputs, grad_outputs, *args, **kwargs)

    return grad


def _listed(value: Any) -> list[Any]:
    if value is None or isinstance(value, torch.Tensor) or not isinstance(value, list | tuple):
        return [] if value is None else [value]
    return list(value)


def _look(roots: list[Any], weights: list[Any], watch: Watch, found: Found) -> None:
    roots = [root for root in roots if isinstance(root, torch.Tensor) and root.grad_fn is not None]
    reached = _reached(roots)
    if not reached:
        return
    calls = {id(call): call for call, _, _, _ in reached}
    sizes = {key: _size(call.model) for key, call in calls.items()}
    chosen = min(calls.values(), key=lambda call: (-sizes[id(call)], call.order))
    seen = Seen(chosen.model, chosen.args, chosen.kwargs, chosen.rng)
    _restore(chosen)
    seen.scale = next((_metadata(root.grad_fn)[_SCALE] for root in roots if _SCALE in _metadata(root.grad_fn)), None)
    with torch.no_grad():
        seen.value = sum(float(root.detach().double().sum()) for root in roots) / (seen.scale or 1.0)
    seen.dtype = chosen.dtype
    held = {chosen.dtype, *(parameter.dtype for parameter in chosen.model.parameters())}
    if seen.scale is None and torch.float16 in held:
        seen.scale = 1.0
    edges = {index: torch.autograd.graph.GradientEdge(node, nr) for call, index, node, nr in reached if call is chosen}
    seen.loss, why = _loss(roots, weights, edges, chosen.leaves, seen.scale or 1.0)
    seen.optimizer = _optimizer_of(chosen.model, watch)
    seen.notes += [*_others(chosen, calls), *why]
    found(seen)


def _reached(roots: list[torch.Tensor]) -> list[tuple[_Call, int, Any, int]]:
    """The calls whose outputs the graph of these tensors reaches: call, index of the output, autograd node and its
    output's number there."""
    found: list[tuple[_Call, int, Any, int]] = []
    todo: list[Any] = [root.grad_fn for root in roots]
    done = set(todo)
    while todo:
        node = todo.pop()
        found += [(call, index, node, nr) for call, index, nr in _metadata(node).get(_KEY, ())]
        for inner, _ in node.next_functions:
            if inner is not None and inner not in done:
                done.add(inner)
                todo.append(inner)
    return found


def _size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _restore(call: _Call) -> None:
    """The buffers as they were before the call: running statistics, spectral norms."""
    with torch.no_grad():
        for name, buffer in call.model.named_buffers():
            before = call.buffers.get(name)
            if before is not None and before.shape == buffer.shape:
                buffer.copy_(before)


def _loss(
    roots: list[torch.Tensor], weights: list[Any], edges: dict[int, Any], leaves: int, scale: float
) -> tuple[Loss | None, list[str]]:
    """The script's loss as a function of the model's output: linear, with the gradient that the loss has there."""
    given = [weight if isinstance(weight, torch.Tensor) else None for weight in weights] or None
    try:
        gradients = torch.autograd.grad(
            roots, list(edges.values()), given, retain_graph=True, allow_unused=True, materialize_grads=False
        )
    except Exception as error:
        return None, [f"the script's loss could not be followed back to the model's output: {_line(error)}"]
    slopes = {
        index: (gradient / scale).detach()
        for index, gradient in zip(edges, gradients, strict=True)
        if gradient is not None
    }

    def loss(output: Any) -> torch.Tensor:
        found = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)][-leaves:]
        terms = [(found[index] * slope.to(found[index].dtype)).sum() for index, slope in slopes.items()]
        return torch.stack([term.float() for term in terms]).sum()

    return loss, []


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _others(chosen: _Call, calls: dict[int, _Call]) -> list[str]:
    """What else the step trains, that is not traced."""
    again = sum(call.model is chosen.model for call in calls.values())
    notes = [f"the step calls the model {again} times; its first call is traced"] if again > 1 else []
    names = sorted({type(call.model).__name__ for call in calls.values() if call.model is not chosen.model})
    if names:
        notes.append(f"the same loss also trains {', '.join(names)}, which is not traced: the largest model is")
    return notes


# -- optimizers, scalers, and what is out of the way until then ---------------------------------------------------


def _optimizer(original: Any, watch: Watch) -> Any:
    @wraps(original)
    def __init__(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        watch.optimizers.append(weakref.ref(self))

    return __init__


def _optimizer_of(model: torch.nn.Module, watch: Watch) -> dict[str, Any] | None:
    """The first optimizer that holds parameters of the model: its class, and the hyperparameters of that group."""
    own = {id(parameter) for parameter in model.parameters()}
    for reference in watch.optimizers:
        optimizer = reference()
        for group in optimizer.param_groups if optimizer is not None else ():
            if any(id(parameter) in own for parameter in group["params"]):
                facts = {key: _plain(value) for key, value in group.items() if key not in ("params", *_RATES)}
                rates = [float(group[key]) for key in _RATES if group.get(key) is not None]
                named = {"class": type(optimizer).__name__, **({"lr": max(rates)} if rates else {})}
                return named | {key: value for key, value in facts.items() if value is not None}
    return None


def _plain(value: Any) -> Any:
    """A number, a flag or a pair of numbers as JSON has it; None for all else."""
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    if isinstance(value, bool | int | float | str):
        return value
    plain = [_plain(one) for one in value] if isinstance(value, list | tuple) else [None]
    return None if None in plain else plain


def _scale(original: Any) -> Any:
    @wraps(original)
    def scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if self.is_enabled():
            for leaf in pytree.tree_leaves(scaled):
                if isinstance(leaf, torch.Tensor) and leaf.grad_fn is not None:
                    _metadata(leaf.grad_fn)[_SCALE] = self.get_scale()
        return scaled

    return scale


def eager(original: Any) -> Any:
    """torch.compile gives what it always gives, but it runs uncompiled."""

    @wraps(original)
    def compile(*args: Any, **kwargs: Any) -> Any:
        torch.compiler.set_stance("force_eager")
        return original(*args, **kwargs)

    return compile
