"""Counts what comes out of operations in half precision, by the user's line: inf, nan, flushed to zero, subnormal.

A dispatch mode sees each operation after autocast and autograd. Matrix products go to the kernel that counts
(verify/kernels); on a CPU convolutions and what it has no half kernel for are emulated. Values are read at once, which
on a GPU waits for the device: a run that counts is not timed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from amplint.graph.child.answer import internal
from amplint.verify.child import emulate, products
from amplint.verify.child.emulate import HALVES
from amplint.verify.child.lines import NOWHERE, Line, innermost
from amplint.verify.child.records import number
from amplint.verify.kernels.ops import Counts

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_MANY = 400_000  # lines of forward operations that are remembered for their backward
_SHAPES = 3
_DIFFERENCES = ("sub", "add", "rsub")
_ALL = 24.0  # bits, of any number
_CAST = torch.ops.aten._to_copy.default
_SKIPPED = (  # they compute nothing
    *(
        "empty",
        "new_empty",
        "resize",
        "set_",
        "detach",
        "lift",
        "clone",
        "_unsafe_view",
        "unsafe_split",
        "unsafe_chunk",
    ),
    *("zero", "new_zeros", "one", "new_ones", "_foreach_zero", "scalar_tensor", "_reshape_alias"),
)


@dataclass
class Tally:
    """What came out of one operation on one line."""

    calls: int = 0
    counts: Counts = field(default_factory=Counts)
    origin: int = 0  # calls in which something not finite came out of finite operands
    shapes: list[list[int]] = field(default_factory=list)
    by: str = "statistics"


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The mode; entered once in each thread."""

    def __init__(self, accumulate: str = "float32", on_gpu: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.accumulate = accumulate
        self.paused = False
        self.how = products.load(on_gpu)
        self.clear()

    def clear(self) -> None:
        self.tallies: dict[tuple[Line, str, str], Tally] = {}
        self.differences: dict[Line, tuple[int, float]] = {}  # calls, and bits lost at most
        self.layers: dict[str, tuple[list[int], dict[str, int]]] = {}
        self.half_matmuls = self.half_ops = 0
        self.mistake = ""
        self._lines: dict[int, Line] = {}  # of forward operations, by the numbers that autograd gives them
        self._backward: FrameType | None = None  # of the user's, that called the backward that is running
        self._depth = self._backwards = 0  # half operations in backward

    # -- the probe's ------------------------------------------------------------------------------------------------

    def begin_backward(self, frame: FrameType | None) -> tuple[FrameType | None, int]:
        outer = self._backward
        self._backward = frame
        self._depth += 1
        return outer, self._backwards

    def end_backward(self, before: tuple[FrameType | None, int] | None) -> bool:
        """Whether anything was computed in float16 meanwhile."""
        outer, count = before or (None, 0)
        self._backward = outer
        self._depth -= 1
        return self._backwards > count

    # -- operations -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(kind not in _PLAIN for kind in types):
            return NotImplemented  # a subclass goes on with what is inside it
        if self.paused:
            return func(*args, **kwargs)
        at = products.of(func)
        if at is not None and args[at].dtype in HALVES and args[at + 1].dtype == args[at].dtype and _is_dense(args[at]):
            out, counts = products.run(func, at, args, kwargs, self.accumulate)
            self._note(func, args, kwargs, [out], [counts], products.by(func, args, self.how))
            return out
        return self._other(func, args, kwargs)

    def _other(self, func: Any, args: Any, kwargs: Any) -> Any:
        counts: list[Counts] = []
        by = "statistics"
        half = None
        if func in emulate.SLOW and (half := _emulated(args)) is not None:
            out, counts = emulate.full(func, args, kwargs, half)
            by = "emulation"
        else:
            try:
                out = func(*args, **kwargs)
            except (RuntimeError, NotImplementedError) as error:
                half = _emulated((args, kwargs)) if emulate.is_lacking(func, error) else None
                if half is None:
                    raise
                out, counts = emulate.full(func, args, kwargs, half)
                by = "emulation"
        halves = _halves(out)
        if not halves and torch.is_grad_enabled() and _halves(args):
            self._where()  # the gradient of what comes out may be half
        if func.__name__.split(".")[0] in _DIFFERENCES and torch.is_grad_enabled():
            self._difference(args, out)
        if halves and not func.is_view and func.namespace == "aten" and not func.__name__.startswith(_SKIPPED):
            if len(counts) != len(halves):
                counts = [_counted(func, args, one) for one in halves]
            self._note(func, args, kwargs, halves, counts, by)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, outs: list[torch.Tensor], counts: list[Counts], by: str) -> None:
        """Add what came out to its line. A mistake in this must not end the user's run."""
        try:
            backward, line = self._where()
            shape = products.shape(func, args)
            self.half_ops += 1
            self.half_matmuls += shape is not None
            if backward and outs[0].dtype == torch.float16:
                self._backwards += 1
            key = (line, str(func), "backward" if backward else "forward")
            tally = self.tallies.get(key)
            if tally is None:
                tally = self.tallies[key] = Tally()
            tally.calls += 1
            tally.by = by
            if shape is not None and shape not in tally.shapes and len(tally.shapes) < _SHAPES:
                tally.shapes.append(shape)
            for one in counts:
                tally.counts += one
            if any(one.inf or one.nan for one in counts) and _finite((args, kwargs), outs):
                tally.origin += 1
        except Exception as error:
            self.mistake = self.mistake or internal(error)

    def _difference(self, args: Any, out: Any) -> None:
        """Note what a sum or difference of floating-point numbers in a forward has lost of its operands."""
        try:
            backward, line = self._where()
            if not backward:
                calls, most = self.differences.get(line, (0, 0.0))
                self.differences[line] = calls + 1, max(most, _cancelled(args, out))
        except Exception as error:
            self.mistake = self.mistake or internal(error)

    def _where(self) -> tuple[bool, Line]:
        """The phase and the line of the operation that runs now. Autograd's own operations run where their forward did:
        both have the number that autograd gave to the forward's node."""
        node = torch._C._current_autograd_node() if self._depth else None
        frame, line = innermost(4)
        if node is None:
            if torch.is_grad_enabled():
                number = _number()
                if number not in self._lines:
                    self._remember(number, line)
            return False, line
        if frame is None or frame is self._backward:
            return True, self._lines.get(node._sequence_nr(), NOWHERE)
        if torch.is_grad_enabled():  # a checkpoint computes its forward again
            self._remember(_number(), line)
            return False, line
        return True, line  # the user's own backward

    def _remember(self, number: int, line: Line) -> None:
        if len(self._lines) > _MANY:
            for old in list(self._lines)[: _MANY // 2]:
                del self._lines[old]
        self._lines[number] = line

    # -- layers -----------------------------------------------------------------------------------------------------

    def layer(self, module: torch.nn.Module, output: Any) -> None:
        """A module was called; those that hold no others are counted."""
        if module._modules:
            return
        leaf = next((one for one in pytree.tree_leaves(output) if isinstance(one, torch.Tensor)), None)
        if leaf is None or not leaf.is_floating_point():
            return
        calls, dtypes = self.layers.setdefault(type(module).__name__, ([0], {}))
        calls[0] += 1
        name = str(leaf.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + 1

    def told(self) -> dict[str, Any]:
        """As the answer has it."""
        lines = [
            {"path": line[0], "line": line[1], "op": op, "phase": phase, "calls": tally.calls}
            | (asdict(tally.counts) | {"absmax": number(tally.counts.absmax)})
            | {"origin": tally.origin, "shapes": tally.shapes, "counted_by": tally.by}
            for (line, op, phase), tally in self.tallies.items()
        ]
        layers = [{"class": name, "calls": calls[0], "dtypes": dtypes} for name, (calls, dtypes) in self.layers.items()]
        told = {"layers": layers, "half_matmuls": self.half_matmuls, "half_ops": self.half_ops, "lines": lines}
        differences = [
            {"path": line[0], "line": line[1], "calls": calls, "cancelled": most}
            for line, (calls, most) in self.differences.items()
        ]
        return told | {"differences": differences, "kernel": self.how}


def _number() -> int:
    """What autograd gave to the operation that runs now."""
    return int(torch._C._autograd._get_sequence_nr()) - 1


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.device.type in ("cpu", "cuda")


def _emulated(tree: Any) -> torch.dtype | None:
    """The half dtype of what is to be computed on a CPU."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.dtype in HALVES and leaf.device.type == "cpu":
            return leaf.dtype
    return None


def _halves(out: Any) -> list[torch.Tensor]:
    if type(out) in _PLAIN:
        return [out] if out.dtype in HALVES and _is_dense(out) else []
    if isinstance(out, list | tuple):
        return [one for one in out if type(one) in _PLAIN and one.dtype in HALVES and _is_dense(one)]
    return []


def _counted(func: Any, args: Any, out: torch.Tensor) -> Counts:
    """What is in a result; of a cast also what it flushed to zero."""
    if func is _CAST and args[0].dtype == torch.float32 and args[0].device == out.device:
        return Counts.of(torch.ops.amplint.narrow(args[0], str(out.dtype).removeprefix("torch."))[1])
    return Counts.of(torch.ops.amplint.statistics(out))


def _cancelled(args: Any, out: torch.Tensor) -> float:
    """How many bits a sum or difference is smaller than the larger of its operands, by their mean squares."""
    if not out.is_floating_point():
        return 0.0
    sizes = [float(one.float().square().mean()) for one in args[:2] if isinstance(one, torch.Tensor) and one.numel()]
    left = float(out.float().square().mean()) if out.numel() else 0.0
    if len(sizes) < 2 or not 0 < max(sizes) < math.inf:
        return 0.0
    return min(math.log2(max(sizes) / left) / 2, _ALL) if left else _ALL


def _finite(tree: Any, outs: list[torch.Tensor]) -> bool:
    """Whether all operands are finite; one that was written into cannot be asked any more."""
    for leaf in pytree.tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.layout == torch.strided:
            if any(leaf is out for out in outs) or not bool(torch.isfinite(leaf).all()):
                return False
        elif isinstance(leaf, float) and not math.isfinite(leaf):
            return False
    return True
