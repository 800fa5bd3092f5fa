"""Where the probe is told of what a script does: functions of torch that it wraps, each to do what it did."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch
from torch.nn.utils import clip_grad

from amplint.verify.child import protocol, tensors
from amplint.verify.child.probe import Probe

_CLIPS = ("clip_grad_norm_", "clip_grad_value_", "clip_grads_with_norm_")
_UNHOOKED = "amplint_unhooked"
_Scaler = torch.amp.GradScaler


@contextmanager
def watched(probe: Probe) -> Iterator[None]:
    """While it is open, the probe sees this process's training steps."""
    patched = [mock.patch.object(owner, name, new) for owner, name, new in _patches(probe)]
    with ExitStack() as stack:
        for one in patched:
            stack.enter_context(one)
        _modules(probe, stack)
        _unhook("__wrapped__")
        stack.callback(_unhook, _UNHOOKED)
        yield


def _patches(probe: Probe) -> Iterator[tuple[Any, str, Any]]:
    yield torch.autograd, "backward", _backward(torch.autograd.backward, probe)
    yield torch.autograd, "grad", _grad(torch.autograd.grad, probe)
    optimizer = torch.optim.Optimizer
    yield optimizer, "add_param_group", _add_param_group(optimizer.add_param_group, probe)
    yield optimizer, "profile_hook_step", staticmethod(_hooked(optimizer.profile_hook_step, probe))
    yield optimizer, "zero_grad", _zero_grad(optimizer.zero_grad, probe, _held)
    yield torch.nn.Module, "zero_grad", _zero_grad(torch.nn.Module.zero_grad, probe, torch.nn.Module.parameters)
    yield _Scaler, "__init__", _scaler(_Scaler.__init__, probe)
    for name, wrap in _METHODS.items():
        yield _Scaler, name, wrap(getattr(_Scaler, name), probe)
    for name in _CLIPS:
        original = getattr(clip_grad, name, None)
        if original is not None:
            new = _clip(original, probe)
            yield clip_grad, name, new
            if hasattr(torch.nn.utils, name):
                yield torch.nn.utils, name, new


def _backward(original: Any, probe: Probe) -> Any:
    @wraps(original)
    def backward(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
        return probe.backward(tensors, grad_tensors, lambda: original(tensors, grad_tensors, *args, **kwargs))

    return backward


def _grad(original: Any, probe: Probe) -> Any:
    """torch.autograd.grad trains where it is asked for gradients of parameters; penalties ask for those of inputs."""

    @wraps(original)
    def grad(outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return original(outputs, inputs, grad_outputs, *args, **kwargs)

        inputs = tensors.listed(inputs) if not isinstance(inputs, torch.Tensor) else inputs
        leaves = [one for one in tensors.listed(inputs) if isinstance(one, torch.nn.Parameter)]
        return probe.backward(outputs, grad_outputs, run, leaves) if leaves else run()

    return grad


# -- modules ------------------------------------------------------------------------------------------------------


def _modules(probe: Probe, stack: ExitStack) -> None:
    """The first model that trains is asked for its samples from then on, through its class: what is set on the module
    itself would be copied and saved with it. Other modules only where counting has made all of it slow anyway."""
    kinds = torch.nn.modules.module

    def first(module: torch.nn.Module, args: Any) -> None:
        if probe.off or not (module.training and torch.is_grad_enabled()):
            return
        if isinstance(module, torch.jit.ScriptModule) or not any(one.requires_grad for one in module.parameters()):
            return
        handle.remove()
        probe.named(module)
        probe.called(args, {})
        kind, model, own = type(module), weakref.ref(module), "__call__" in type(module).__dict__
        original = kind.__call__

        @wraps(original)
        def __call__(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self is model():
                probe.called(args, kwargs)
            return original(self, *args, **kwargs)

        kind.__call__ = __call__  # type: ignore[method-assign]
        stack.callback((lambda: setattr(kind, "__call__", original)) if own else (lambda: delattr(kind, "__call__")))

    handle = kinds.register_module_forward_pre_hook(first)
    stack.callback(handle.remove)
    if probe.counting is not None:
        stack.callback(kinds.register_module_forward_hook(probe.layer).remove)


# -- optimizers ---------------------------------------------------------------------------------------------------


def _add_param_group(original: Any, probe: Probe) -> Any:
    @wraps(original)
    def add_param_group(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        with probe.own():
            probe.pools.add(self)
        return result

    return add_param_group


def _hooked(original: Any, probe: Probe) -> Any:
    """What every class of optimizers puts around its `step` when its first object is made."""

    @wraps(original)
    def profile_hook_step(function: Any) -> Any:
        hooked = original(function)

        @wraps(hooked)
        def step(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
            closure = next((one for one in (*args, *kwargs.values()) if callable(one)), None)
            return probe.step(self, closure, lambda: hooked(self, *args, **kwargs))

        step.__dict__[_UNHOOKED] = function
        return step

    return profile_hook_step


def _unhook(name: str) -> None:
    """Give all classes of optimizers the steps that they had: the next object of each is hooked again."""
    todo = [torch.optim.Optimizer]
    for kind in todo:
        todo += kind.__subclasses__()
        step = kind.__dict__.get("step")
        if getattr(step, "hooked", False) and hasattr(step, name):
            kind.step = getattr(step, name)  # type: ignore[method-assign]


def _held(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _zero_grad(original: Any, probe: Probe, parameters: Callable[[Any], Any]) -> Any:
    @wraps(original)
    def zero_grad(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        probe.zeroed(parameters(self))
        return result

    return zero_grad


def _clip(original: Any, probe: Probe) -> Any:
    @wraps(original)
    def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(parameters, torch.Tensor):
            parameters = list(parameters)
        listed = tensors.listed(parameters)
        return probe.clip(listed, lambda: original(parameters, *args, **kwargs))

    return clip


# -- scalers ------------------------------------------------------------------------------------------------------


def _scaler(original: Any, probe: Probe) -> Any:
    """Classes made of GradScaler (FSDP's, a user's) may have methods of their own: those are wrapped, too."""
    done: set[type] = set()

    @wraps(original)
    def __init__(self: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        for kind in type(self).__mro__:
            if kind in done or kind is _Scaler or not issubclass(kind, _Scaler):
                continue
            done.add(kind)
            for name, wrap in _METHODS.items():
                if name in kind.__dict__:
                    setattr(kind, name, wrap(kind.__dict__[name], probe))

    return __init__


def _scale(original: Any, probe: Probe) -> Any:
    @wraps(original)
    def scale(self: torch.amp.GradScaler, outputs: Any) -> Any:
        scaled = original(self, outputs)
        if self.is_enabled() and not probe.off:
            probe.scaled(self, scaled)
        return scaled

    return scale


def _unscale(original: Any, probe: Probe) -> Any:
    @wraps(original)
    def unscale_(self: torch.amp.GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return original(self, optimizer, *args, **kwargs)

        return probe.unscale(self, optimizer, run) if self.is_enabled() and not probe.off else run()

    return unscale_


def _step(original: Any, probe: Probe) -> Any:
    @wraps(original)
    def step(self: torch.amp.GradScaler, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        def run() -> Any:
            return original(self, optimizer, *args, **kwargs)

        return probe.scaler_step(self, optimizer, run) if self.is_enabled() and not probe.off else run()

    return step


def _update(original: Any, probe: Probe) -> Any:
    """Also `load_state_dict`: the next scale may be another."""

    @wraps(original)
    def update(self: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        protocol.updated(self)
        return result

    return update


_METHODS = {"scale": _scale, "unscale_": _unscale, "step": _step, "update": _update, "load_state_dict": _update}
