"""The casts that autocast makes, as nodes of the graph.

`cast_graph` copies a captured graph and puts a node in front of each argument that autocast would cast. The rules are
those of policy.py's kernels; the tests hold the two equal, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from amplint.graph import policy
from amplint.graph.capture.captured import Captured, Precision, dtype_of

aten = torch.ops.aten
_PLAIN = frozenset({aten.to.dtype, aten.to.device, aten.to.other, aten.to.dtype_layout, aten._to_copy.default})
Make = Callable[[fx.Graph, fx.Node, torch.dtype], fx.Node]  # a node that casts


@dataclass(frozen=True, eq=False)
class Cast:
    """A tensor that autocast casts for some operations. Nodes are those of the captured graph."""

    source: fx.Node
    users: tuple[fx.Node, ...]
    dtype: torch.dtype
    weight: bool = False  # of a parameter: one cast a forward, for autocast keeps it
    fused: bool = False  # the operation itself reads half and gives float32: softmax

    @property
    def bytes(self) -> int:
        """What is read and written, in bytes."""
        held = self.source.meta["val"]
        return 0 if self.fused else held.numel() * (held.element_size() + self.dtype.itemsize)


@dataclass
class CastGraph:
    graph: fx.GraphModule
    copies: dict[fx.Node, fx.Node]  # node of the captured graph → the one that gives its value
    casts: dict[Cast, fx.Node | None]  # → its node; None where it is fused


def kind_of(node: fx.Node, precision: Precision) -> str:
    """The list of CUDA's autocast that decides a node's dtype: lower, fp32 or promote; "" where the inputs do."""
    if node.op != "call_function" or precision.mode != "amp" or not node.meta.get("autocast"):
        return ""
    kind = _listed(node)
    if not kind and (inside := _inside(node, precision)):
        return "fp32" if torch.float32 in inside else "lower"
    return "fp32" if kind.startswith("fp32") else "lower" if kind == "rnn" else kind


def to_copy(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    return graph.call_function(aten._to_copy.default, (node,), {"dtype": dtype})


def alias(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """No cast, but a node at which the gradient of the cast value can be seen."""
    return graph.call_function(aten.alias.default, (node,))


def cast_graph(captured: Captured, make: Make = to_copy, whole: bool = True) -> CastGraph:
    """The graph with a node, by `make`, for each cast. `whole`: with all else that autocast does, so that it runs
    without: dtypes that it sets, and the casts inside of operations that consist of others (cross_entropy_loss)."""
    writer = _Writer(captured, make, whole)
    with policy.cuda_policy():
        return writer.write()


class _Writer:
    def __init__(self, captured: Captured, make: Make, whole: bool) -> None:
        self.captured, self.make, self.whole, self.lower = captured, make, whole, captured.precision.dtype
        self.graph = fx.Graph()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.weights: dict[fx.Node, fx.Node] = {}  # their casts, kept
        self.users: dict[tuple[fx.Node, torch.dtype, fx.Node | None], list[fx.Node]] = {}

    def write(self) -> CastGraph:
        for node in self.captured.graph.graph.nodes:
            cast = node.op == "call_function" and self.captured.precision.mode == "amp" and node.meta.get("autocast")
            copy = self._call(node) if cast else self.graph.node_copy(node, self.copies.__getitem__)
            copy.meta = dict(node.meta) | ({"autocast": False} if self.whole and cast else {})
            self.copies[node] = copy
        module = fx.GraphModule(self.captured.graph, self.graph)
        module.graph.lint()
        casts = {
            Cast(source, tuple(dict.fromkeys(users)), dtype, self._kept(source, dtype), made is None): made
            for (source, dtype, made), users in self.users.items()
        }
        return CastGraph(module, self.copies, casts)

    def _call(self, node: fx.Node) -> fx.Node:
        """A call under autocast as one without it."""
        kind = _listed(node)
        target: Any = node.target
        dtype = _wanted(kind, node, self.lower)
        args, kwargs = self._given(node, node.args, dtype), self._given(node, node.kwargs, dtype)
        if kind.startswith("fp32_"):
            target, args, kwargs = self._with_dtype(kind, node, args, kwargs)
        if not self.whole:
            return self.graph.call_function(target, args, kwargs)
        if kind == "rnn":
            return self.graph.call_function(without_mkldnn, (target, *args), kwargs)
        if not kind and _inside(node, self.captured.precision):
            return self._inline(node)
        return self.graph.call_function(target, args, kwargs)

    def _given(self, user: fx.Node, value: Any, dtype: torch.dtype | None) -> Any:
        return fx.map_arg(value, lambda node: self._cast(user, node, dtype))

    def _cast(self, user: fx.Node, node: fx.Node, dtype: torch.dtype | None) -> fx.Node:
        if dtype is None or not _eligible(node) or dtype_of(node) == dtype:
            return self.copies[node]
        made = self.weights.get(node) if self._kept(node, dtype) else None
        if made is None:
            made = self.make(self.graph, self.copies[node], dtype)
            made.meta = {"val": node.meta["val"].to(dtype), "autocast": False, "place": user.meta.get("place")}
            made.meta["module"] = user.meta.get("module", ())
        if self._kept(node, dtype):
            self.weights[node] = made
        self.users.setdefault((node, dtype, made), []).append(user)
        return made

    def _kept(self, node: fx.Node, dtype: torch.dtype) -> bool:
        """Whether autocast keeps a cast until the region ends: those of float32 parameters."""
        return self.captured.kinds.get(node.name) == "parameter" and dtype == self.lower

    def _with_dtype(self, kind: str, node: fx.Node, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """A call of softmax, sum … that is told to give float32."""
        first: Any = node.args[0]
        target: Any = node.target
        if kind == "fp32_append_dtype":
            target = getattr(aten.norm, f"{target._overloadname.removesuffix('Scalar')}_dtype")
            kwargs = {**kwargs, "dtype": torch.float32 if _eligible(first) else dtype_of(first)}
        elif _eligible(first):
            at = [argument.name for argument in target._schema.arguments].index("dtype")
            if (args[at] if at < len(args) else kwargs.get("dtype")) is not None:
                return target, args, kwargs
            args = (*args[:at], torch.float32, *args[at + 1 :]) if at < len(args) else args
            kwargs = kwargs if at < len(args) else {**kwargs, "dtype": torch.float32}
        if _eligible(first) and dtype_of(first) != torch.float32:
            self.users.setdefault((first, torch.float32, None), []).append(node)
        return target, args, kwargs

    def _inline(self, node: fx.Node) -> fx.Node:
        """An operation that consists of others, some of which autocast casts, as what runs then."""
        outer = [one for one in torch.utils._pytree.tree_leaves((node.args, node.kwargs)) if isinstance(one, fx.Node)]
        outer = list(dict.fromkeys(outer))

        def call(*values: Any) -> Any:
            held = dict(zip(outer, values, strict=True))
            given, named = fx.map_arg((node.args, node.kwargs), held.__getitem__)
            with torch.autocast("cpu", dtype=self.lower):
                return node.target(*given, **named)  # type: ignore[operator]

        inner = make_fx(call)(*(one.meta["val"] for one in outer)).graph
        copies: dict[fx.Node, fx.Node] = {}
        given = iter(outer)
        for one in inner.nodes:
            if one.op == "output":
                return _returned(self.graph, fx.map_arg(one.args[0], copies.__getitem__))
            if one.op == "placeholder":
                copies[one] = self.copies[next(given)]
                continue
            copies[one] = self.graph.node_copy(one, copies.__getitem__)
            copies[one].meta |= {"autocast": False} | {
                key: node.meta[key] for key in ("place", "module") if key in node.meta
            }
            source = next((held for held in outer if one.args and self.copies[held] is copies.get(one.args[0])), None)
            if one.target is aten._to_copy.default and source is not None and one.kwargs["dtype"] != dtype_of(source):
                self.users.setdefault((source, one.kwargs["dtype"], copies[one]), []).append(node)
        raise AssertionError("a graph without an output")


def _returned(graph: fx.Graph, value: Any) -> fx.Node:
    return value if isinstance(value, fx.Node) else graph.call_function(tuple_of, tuple(value))


def tuple_of(*values: Any) -> tuple[Any, ...]:
    return values


def without_mkldnn(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """A recurrent layer in half on the CPU: oneDNN has none."""
    with torch.backends.mkldnn.flags(enabled=False):
        return operator(*args, **kwargs)


def _listed(node: fx.Node) -> str:
    return policy.kinds().get(name_of(node), "")


def name_of(node: fx.Node) -> str:
    """The operation's name, as in policy.kinds(): "aten::softmax.int"; "" where it is none of torch's."""
    return str(node.target.name()) if isinstance(node.target, torch._ops.OpOverload) else ""  # type: ignore[no-untyped-call]


def _wanted(kind: str, node: fx.Node, lower: torch.dtype) -> torch.dtype | None:
    """What all arguments are cast to."""
    match kind:
        case "lower":
            return lower
        case "rnn":
            return torch.float16  # whatever the region's dtype is: see policy.RNN
        case "fp32":
            return torch.float32
        case "promote":
            wide = any(dtype_of(one) == torch.float32 for one in node.all_input_nodes)
            return torch.float32 if wide else lower
    return None


def _eligible(node: Any) -> bool:
    dtype = dtype_of(node) if isinstance(node, fx.Node) else None
    return dtype is not None and dtype.is_floating_point and dtype != torch.float64


_found: dict[tuple[Any, ...], tuple[torch.dtype, ...]] = {}


def _inside(node: fx.Node, precision: Precision) -> tuple[torch.dtype, ...]:
    """For an operation that is on no list, but consists of some that are: the dtypes of what autocast changes in it."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable or target in _PLAIN:
        return ()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(name_of(node), "CompositeImplicitAutograd"):
        return ()
    given = fx.map_arg((node.args, node.kwargs), lambda one: str(dtype_of(one)))
    key = (target, precision.dtype, str(given))
    if key not in _found:
        _found[key] = _changed(node, precision)
    return _found[key]


def _changed(node: fx.Node, precision: Precision) -> tuple[torch.dtype, ...]:
    """The dtypes of what runs under autocast and not without, on fake tensors."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    ran = []
    for enabled in (True, False):
        with policy.cuda_policy(), torch.autocast("cpu", dtype=precision.dtype, enabled=enabled), _Ran() as here:
            try:
                node.target(*args, **kwargs)  # type: ignore[operator]
            except Exception:  # whatever torch raises: on fake tensors, or where dtypes do not fit without autocast
                if enabled:
                    return ()
        ran.append(here.counter)
    return tuple({dtype for _, dtype in ran[0] - ran[1] if dtype is not None})


class _Ran(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs: operations, and the dtypes of their results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter: Counter[tuple[Any, torch.dtype | None]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        value = func(*args, **(kwargs or {}))
        for one in torch.utils._pytree.tree_leaves(value):
            self.counter[func, getattr(one, "dtype", None)] += 1
        return value
