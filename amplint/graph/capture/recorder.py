"""The last front end: runs the model once, on its real batch, and records every ATen call. It takes whatever runs:
custom ops, control flow on data, mixtures of experts. The graph is of that run: a branch not taken is not in it."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from amplint.graph import places
from amplint.graph.capture import aliases
from amplint.graph.capture.captured import Captured, Precision
from amplint.graph.capture.shape import leaves, taken_apart
from amplint.graph.capture.state import undisturbed

_PLAIN = (int, float, bool, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))
UNSEEN = "the result of calls that were not seen is taken for a constant"
_TRANSPARENT = frozenset({"tag_activation_checkpoint", "wrap_activation_checkpoint", "wrap"})
_NAMESPACES = frozenset({"prim", "profiler"})  # questions about a tensor, not computations


def record(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], precision: Precision) -> Captured:
    """Capture by a run. `cuda_policy` must be open, and the model half where `precision` says so."""
    recorder = Recorder(model)
    with undisturbed(model), recorder.modules():
        given = recorder.inputs(args, kwargs)
        with torch.autocast("cpu", dtype=precision.dtype, enabled=precision.mode == "amp"), recorder.recording():
            output = model(*given[0], **given[1])
    return recorder.finish(output, precision, "recorder")


class Recorder(SchemaCheckMode):  # type: ignore[no-untyped-call]
    """A dispatch mode in front of autocast and autograd, so that a call is recorded as it was made: linear, softmax,
    and not what they consist of. Of torch's own modes, only SchemaCheckMode may stand there with real tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self.notes: list[str] = []
        self.fakes = FakeTensorMode()
        self.here: Callable[[], dict[str, Any]] | None = None  # replaces what the stack says of place and module
        self._storages: list[StorageWeakRef] = []  # a weak reference keeps an address from being used again
        self._path: list[tuple[str, str]] = []
        self.model, self.root = model, ("", type(model).__name__)
        self._names = {module: path for path, module in model.named_modules()}
        self._state = {id(value): ("buffer", name) for name, value in model.named_buffers()}
        self._state |= {id(value): ("parameter", name) for name, value in model.named_parameters()}

        self.forget()

    def forget(self) -> None:
        """Start again."""
        self.graph = fx.Graph()
        self.attributes = torch.nn.Module()  # what a call was given that a graph cannot spell
        self.values: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        self._nodes: Any = WeakTensorKeyDictionary()

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """What torch.compile has compiled may run under it."""
        return True

    @contextmanager
    def recording(self) -> Iterator[None]:
        for one in torch._ops._higher_order_ops.values():
            one.python_key_table[Recorder] = functools.partial(Recorder._region, operator=one)
        with enable_python_dispatcher(), self:
            yield

    @contextmanager
    def modules(self) -> Iterator[None]:
        """Know which module runs."""

        def enter(module: torch.nn.Module, _: Any) -> None:
            self._path.append((self._names.get(module, "?"), type(module).__name__))

        def leave(*_: Any) -> None:
            self._path.pop()

        handles = (
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Placeholders for the model's inputs; gives copies to run on, for a model may write to what it is given."""
        names = iter(_argument_names(self.model.forward, args, kwargs))

        def one(value: Any) -> Any:
            name = next(names)
            if not isinstance(value, torch.Tensor):
                return value
            copy = value.detach().clone().requires_grad_(value.requires_grad)
            self._nodes[copy] = self._placeholder(name, "input", value, name)
            return copy

        given: tuple[tuple[Any, ...], dict[str, Any]] = torch.utils._pytree.tree_map(one, (args, kwargs))
        return given

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = self._given(args), self._given(kwargs)
        with torch._C._DisablePythonDispatcher():  # whose decompositions pass autocast by
            value = func(*args, **kwargs)
        self._record(func, *given, value)
        return value

    def _region(self, *args: Any, operator: Any, **kwargs: Any) -> Any:
        """A call that is given functions: a checkpoint is looked into, any other taken as one call."""
        name = str(operator)
        if name in _TRANSPARENT:
            with self:
                return args[0](*args[1:])
        given = self._given(args), self._given(kwargs)
        with torch._C._DisablePythonDispatcher():
            value = operator(*args, **kwargs)
        self._record(operator, *given, value)
        self.notes.append(f"{name} is taken as one call: what is in it is not looked at")
        return value

    def _record(self, func: Any, args: Any, kwargs: Any, value: Any) -> None:
        mutable = getattr(getattr(func, "_schema", None), "is_mutable", False)
        tensors = [one for one in leaves(value) if isinstance(one, torch.Tensor)]
        if not (tensors or mutable) or getattr(func, "namespace", "") in _NAMESPACES:
            return
        name = getattr(func, "__name__", str(func)).partition(".")[0]
        node = self.graph.create_node("call_function", func, args, kwargs, name)
        node.meta = self._described()
        self._track(node, value)

    def _track(self, node: fx.Node, value: Any) -> None:
        """`node` is where `value` comes from: a tensor, or a list or tuple that holds some."""
        node.meta["val"] = self._fake(value)
        if isinstance(value, torch.Tensor):
            self._nodes[value] = node
            node.meta["storage"] = self._storage(value)
        elif isinstance(value, list | tuple):
            for index, one in enumerate(value):
                if isinstance(one, torch.Tensor | list | tuple):
                    item = self.graph.call_function(operator.getitem, (node, index))
                    item.meta = dict(node.meta)
                    self._track(item, one)

    def _described(self) -> dict[str, Any]:
        at = {"place": places.innermost(), "module": tuple(self._path)} if self.here is None else self.here()
        return at | {
            "autocast": torch.is_autocast_enabled("cpu"),
            "autocast_dtype": torch.get_autocast_dtype("cpu"),
            "grad": torch.is_grad_enabled(),
        }

    def _fake(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided:
                return torch.empty(value.shape, dtype=value.dtype, device="meta")
            with self.fakes:
                return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        return tuple(map(self._fake, value)) if isinstance(value, list | tuple) else value

    def _storage(self, value: torch.Tensor) -> int | None:
        try:
            reference = StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]
        except (NotImplementedError, RuntimeError):  # a sparse tensor has none
            return None
        self._storages.append(reference)
        return int(reference.cdata)

    def _given(self, value: Any) -> Any:
        """An argument as the graph spells it."""
        if isinstance(value, torch.Tensor):
            return self._node(value)
        if isinstance(value, list | tuple):
            return [self._given(one) for one in value] if isinstance(value, list) else tuple(map(self._given, value))
        if isinstance(value, dict):
            return {key: self._given(one) for key, one in value.items()}
        if isinstance(value, torch.Generator):
            return None
        if isinstance(value, _PLAIN):
            return value
        name = f"held{len(self.attributes.__dict__)}"
        setattr(self.attributes, name, value)
        return self.graph.get_attr(name)

    def _node(self, value: torch.Tensor) -> fx.Node:
        known: fx.Node | None = self._nodes.get(value)
        if known is None:
            known = self._nodes[value] = self._unknown(value)
        return known

    def _unknown(self, value: torch.Tensor) -> fx.Node:
        """The node of a tensor that no recorded call made: state of the model, `x.data` of a known x, or a constant."""
        if found := self._state.get(id(value)):
            kind, name = found
            return self._placeholder(f"{kind[0]}_{name}", kind, value, name)
        storage = self._storage(value)
        for other, node in list(self._nodes.items()):
            if storage and node.meta.get("storage") == storage and other.shape == value.shape:
                alias = self.graph.call_function(torch.ops.aten.detach.default, (node,))
                alias.meta = self._described() | {"val": self._fake(value), "storage": storage}
                return alias
        if value.grad_fn is not None:
            self.notes.append(UNSEEN)
        return self._placeholder("constant", "constant", value.detach().clone(), "", storage)

    def _placeholder(self, name: str, kind: str, value: Any, target: str, storage: int | None = None) -> fx.Node:
        last = next((node for node in reversed(self.graph.nodes) if node.op == "placeholder"), self.graph._root)
        name = name.replace(".", "_")
        while name in self.values:
            name += "_"
        with self.graph.inserting_after(last):
            node = self.graph.create_node("placeholder", name, name=name)
        node.meta |= {"val": self._fake(value), "storage": storage or self._storage(value), "target": target}
        self.values[node.name], self.kinds[node.name] = value, kind
        return node

    def finish(self, output: Any, precision: Precision, frontend: str) -> Captured:
        """The graph of what was recorded, which returns the tensors of `output`."""
        tensors, shape = taken_apart(output)
        self.graph.output(tuple(map(self._node, tensors)))
        graph = fx.GraphModule(self.attributes, self.graph)
        graph.graph.eliminate_dead_code()
        aliases.link(graph.graph)
        graph.graph.lint()
        graph.recompile()
        return Captured(graph, self.values, self.kinds, precision, frontend, self.notes, shape)


def _argument_names(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[str]:
    """A name for each leaf of the inputs: that of the parameter, and of the key where it is nested: x, batch_image."""
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    rest = next((one.name for one in parameters if one.kind is one.VAR_POSITIONAL), "args")
    more = (f"{rest}_{index}" for index in itertools.count())
    names = [positional[at].name if at < len(positional) else next(more) for at in range(len(args))]
    found = []
    for name, value in (*zip(names, args, strict=True), *kwargs.items()):
        for path, _ in torch.utils._pytree.tree_flatten_with_path(value)[0]:
            keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
            found.append("_".join([name, *keys]))
    return found
