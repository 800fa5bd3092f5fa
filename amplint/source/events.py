"""Events: what a script does that matters to precision, in the order in which it does it.

An event knows where it stands (`node`, `frame`), what was active (`contexts`, `loops`), under which answers
(`facts`), and the state of the gradients it met. It does not know whether that is good: checks/ does.
"""

from __future__ import annotations

import ast
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from amplint.source.values import Formula, GradMode, Optimizer, Owners, Region, Scaler, Tensor, Value

if TYPE_CHECKING:
    from amplint.source.interpret.frames import Frame
    from amplint.source.module import Module


@dataclass(frozen=True, slots=True)
class Gradients:
    """The state of one optimizer's gradients.

    kind: "none" (nothing accumulated), "plain" (from an unscaled backward), "scaled" (by `scaler`), "unscaled" (were
    scaled, unscale_ ran), "mixed" (scaled and unscaled parts were added), "entry" (whatever the caller left),
    "managed" (an engine owns them), "unknown" (with `scaler`: it scaled all that there may be).
    """

    kind: str = "none"
    scaler: Value | None = None
    region: Region | None = None  # the enabled autocast region that the loss was computed under
    stepped: bool = False  # the optimizer has already used them
    stale: bool = False  # scaler.update() ran since they were computed: the scale they carry may not be its scale now
    lost: bool = False  # zero_grad threw away gradients that no step had used
    origins: tuple[Event, ...] = field(default=(), compare=False)  # the backward calls
    by: tuple[Event, ...] = field(default=(), compare=False)  # the unscale_, zero_grad … that made this state


@dataclass(frozen=True, slots=True)
class Stale:
    """Weights changed inside an autocast region (by `event`, at `node`): its cast copies of them are out of date."""

    node: ast.AST
    event: Event = field(compare=False)


@dataclass(eq=False, slots=True)
class Event:
    """Base of all events."""

    node: ast.AST
    frame: Frame
    contexts: tuple[Value, ...]
    loops: tuple[Loop, ...]
    facts: dict[Any, Any]

    @property
    def module(self) -> Module:
        return self.frame.module

    @property
    def region(self) -> Region | None:
        """The innermost autocast region, enabled or not."""
        return next((context for context in reversed(self.contexts) if isinstance(context, Region)), None)

    @property
    def grad(self) -> bool:
        """Whether gradients are recorded here."""
        return next((context.enabled for context in reversed(self.contexts) if isinstance(context, GradMode)), True)


@dataclass(eq=False, slots=True)
class Loop:
    """A loop that is being run: its statement, the frame it is in, and which round this is (from 1)."""

    node: ast.AST
    frame: Frame
    round: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loop) and self.node is other.node and self.round == other.round

    def __hash__(self) -> int:
        return hash((self.node, self.round))


@dataclass(eq=False, slots=True)
class Forward(Event):
    """A model is called. `stale` is what changed its weights since the outermost autocast region was entered,
    `graphless` its first forward in that region, if that recorded no gradients and this one does."""

    model: Value
    stale: Event | None = None
    graphless: Event | None = None
    given: tuple[Value, ...] = ()  # the arguments


@dataclass(eq=False, slots=True)
class Loss(Event):
    """A loss is computed by a loss function or module of the library (its op's name)."""

    name: str


@dataclass(eq=False, slots=True)
class Backward(Event):
    """Gradients of a loss are added to those of the optimizers in `touched` (each with its state before)."""

    loss: Value
    scaler: Value | None  # what scaled the loss
    managed: bool = False
    touched: tuple[tuple[Optimizer, Gradients], ...] = ()


@dataclass(eq=False, slots=True)
class Unscale(Event):
    """scaler.unscale_(optimizer). `state` is the pair's before: "ready", "unscaled", "stepped" or "unknown"."""

    scaler: Scaler
    optimizer: Optimizer
    before: Gradients
    state: str
    clips: tuple[Clip, ...] = ()  # clips of gradients that the function was entered with
    clipped_by_methods: tuple[Clip, ...] = ()  # calls of methods that are not to be seen and say that they clip


@dataclass(eq=False, slots=True)
class Clip(Event):
    """Gradients are clipped (how: "norm", "value", "hand"), with the state of each optimizer that owns some of them.
    `of` says whose gradients, `halves` which of these models surely have float16 parameters. Where no owner is sure,
    `perhaps` has those that may be."""

    of: Owners
    how: str
    touched: tuple[tuple[Optimizer, Gradients], ...]
    halves: tuple[Value, ...] = ()
    perhaps: tuple[tuple[Optimizer, Gradients], ...] = ()


@dataclass(eq=False, slots=True)
class ReadGradient(Event):
    """Gradients are read or changed by hand in a way that depends on their size; `touched`, `perhaps`: as of a Clip."""

    of: Owners
    how: str
    touched: tuple[tuple[Optimizer, Gradients], ...]
    perhaps: tuple[tuple[Optimizer, Gradients], ...] = ()


@dataclass(eq=False, slots=True)
class Step(Event):
    """optimizer.step() (`scaler` None) or scaler.step(optimizer)."""

    optimizer: Optimizer
    scaler: Value | None
    before: Gradients
    state: str = ""
    closure: bool = False
    halves: tuple[Value, ...] = ()  # models of the optimizer whose parameters were cast to float16
    bfloats: tuple[Value, ...] = ()  # … to bfloat16
    clips: tuple[Clip, ...] = ()  # clips of gradients that the function was entered with, since nothing unscaled them


@dataclass(eq=False, slots=True)
class Update(Event):
    """scaler.update(), with the state of each of its optimizers before, and the optimizers whose scaled gradients
    wait for a step."""

    scaler: Scaler
    pairs: tuple[tuple[Optimizer, str], ...]
    waiting: tuple[tuple[Optimizer, Gradients], ...] = ()


@dataclass(eq=False, slots=True)
class ZeroGradient(Event):
    """Gradients are set to zero or None."""

    touched: tuple[tuple[Optimizer, Gradients], ...]


@dataclass(eq=False, slots=True)
class Create(Event):
    """An optimizer, a scaler or an autocast object is made."""

    value: Value


@dataclass(eq=False, slots=True)
class Enter(Event):
    """An autocast region is entered."""

    entered: Region


@dataclass(eq=False, slots=True)
class Discard(Event):
    """An expression statement drops a value that has an effect only if used: an autocast object, a scaled loss."""

    value: Value


@dataclass(eq=False, slots=True)
class CannotEnter(Event):
    """A `with` raises: it enters a class of contexts, or (`called`) what calling an autocast object gives."""

    value: Value
    called: bool


@dataclass(eq=False, slots=True)
class Save(Event):
    """A checkpoint is written, or objects are registered to be part of one. `parts` are the things whose state it
    holds; `complete` if it holds no others. `mapping` is the dict that names them."""

    parts: tuple[Value, ...]
    complete: bool
    registers: bool = False
    mapping: ast.AST | None = None


@dataclass(eq=False, slots=True)
class Load(Event):
    """x.load_state_dict(source)."""

    target: Value
    source: Value


@dataclass(eq=False, slots=True)
class Cast(Event):
    """The parameters of a model, and those of its `parts`, are cast to another dtype in place; `node` is the call."""

    model: Value
    dtype: str
    parts: Owners = frozenset()


@dataclass(eq=False, slots=True)
class ChangeWeights(Event):
    """Weights change other than by an optimizer: load_state_dict, copy_, EMA."""

    of: Owners
    how: str


@dataclass(eq=False, slots=True)
class Operation(Event):
    """An operation on tensors that a numerics rule watches: its name in rules/ops.toml, operands and result."""

    name: str
    args: tuple[Value, ...]
    kwargs: tuple[tuple[str, Value], ...]
    result: Tensor
    layer: str = ""  # the dtype of the weights of the layer that runs it, if that is known


@dataclass(eq=False, slots=True)
class Call(Event):
    """A library name is called with an argument list that a rule may judge."""

    name: str
    args: tuple[Value, ...]
    kwargs: tuple[tuple[str, Value], ...]
    result: Value


@dataclass(eq=False, slots=True)
class HandOver(Event):
    """A scaler is passed to a function that is not seen, with these other arguments."""

    scaler: Scaler
    values: tuple[Value, ...]


@dataclass(eq=False, slots=True)
class Misused(Event):
    """A GradScaler is called as if it were a function (`name` empty), or its method is given what is no optimizer."""

    scaler: Scaler
    name: str
    given: tuple[Value, ...]


@dataclass(eq=False, slots=True)
class NoneUsed(Event):
    """A method is called of what holds a scaler only where a formula holds, and None elsewhere; `name`: what it is
    called there."""

    name: str
    scaler: Value
    bound: Formula


@dataclass(eq=False, slots=True)
class Unbound(Event):
    """A variable of `home`, or a field of the object `owner` (home None), that holds something of AMP is used where it
    may have no value: it is bound only where a formula holds."""

    name: str
    value: Value
    owner: Hashable
    bound: Formula
    home: Frame | None
