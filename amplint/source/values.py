"""What a name can stand for while amplint runs a script in its head. Values are immutable; what changes (variables,
fields, the state of gradients) lives in the World. A value says what a thing *does*, not what it is called: a Scaler is
whatever came from a GradScaler constructor or is used as one."""

from __future__ import annotations

import ast
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amplint.source.interpret.frames import Frame
    from amplint.source.module import FunctionNode, Module


class Value:
    """Base of all abstract values."""

    __slots__ = ()


class Const(Value):
    """A known Python constant. `True` and `1` are different constants here."""

    __slots__ = ("node", "value")

    def __init__(self, value: object, node: ast.AST | None = None):
        self.value = value
        self.node = node  # the literal

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Const) and type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))

    def __repr__(self) -> str:
        return f"Const({self.value!r})"


NONE = Const(None)
FALSE = Const(False)
TRUE = Const(True)


class Sym(Value):
    """Something unknown, named by how it came to be: `args.amp` is ("attr", args, "amp").

    Interned: the same origin gives the same object, so `if args.amp:` early and late ask about one thing.
    """

    __slots__ = ("kind", "parts")

    def __init__(self, kind: str, parts: tuple[Hashable, ...]):
        self.kind = kind
        self.parts = parts

    def __repr__(self) -> str:
        if self.kind == "attr":
            return f"{self.parts[0]!r}.{self.parts[1]}"
        return f"<{self.kind} {', '.join(str(part) for part in self.parts)}>"


class Question:
    """A condition that is not decided: an atom such as ("none", x), or "not", "and", "or" of others (conditions.py).

    Interned, like Sym: equal questions are one object."""

    __slots__ = ("depends", "kind", "others", "parts", "weight")

    def __init__(self, kind: str, parts: tuple[Any, ...]):
        self.kind = kind
        self.parts = parts
        self.depends: frozenset[Any] = frozenset()  # conditions.py finds out what on
        self.others: tuple[Any, Question, Question] | None = None  # … and what else is asked of the same thing
        self.weight = 1  # how many atoms it asks
        if kind in ("and", "or", "not"):
            self.weight = sum(part.weight for part in parts)

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(map(repr, self.parts))})"


Formula = Question | bool


@dataclass(frozen=True, slots=True)
class Lib(Value):
    """A name of an installed library: `torch.cuda.amp.autocast`."""

    name: str


@dataclass(frozen=True, slots=True)
class Imported(Value):
    """A name imported from a file of the project; the file is read when the name is used (imports.resolve)."""

    module: str
    name: str  # "" for the module itself
    level: int
    importer: Module


@dataclass(frozen=True, slots=True)
class Deferred(Value):
    """A function or class of an imported file: what it is, is found out when its name is used (imports.define)."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    frame: Frame


@dataclass(frozen=True, slots=True)
class Namespace(Value):
    """A module of the project itself."""

    module: Module


@dataclass(frozen=True, slots=True)
class Function(Value):
    """A function or lambda of the project, with the frame it closes over; `owner` is the object a method is bound
    to."""

    node: FunctionNode
    frame: Frame
    defaults: tuple[tuple[str, Value], ...] = ()
    decorators: tuple[Value, ...] = ()
    owner: Value | None = None
    cls: Class | None = None

    @property
    def name(self) -> str:
        return getattr(self.node, "name", "<lambda>")


@dataclass(frozen=True, slots=True)
class Class(Value):
    """A class of the project."""

    node: ast.ClassDef
    frame: Frame
    bases: tuple[Value, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Class) and self.node is other.node

    def __hash__(self) -> int:
        return hash(self.node)


@dataclass(frozen=True, slots=True, eq=False)
class Instance(Value):
    """An object of a project class, named by where it was made. Interned, like Sym: it is looked up with its fields."""

    cls: Class
    site: Hashable


@dataclass(frozen=True, slots=True)
class Object(Value):
    """An object of a library class that amplint knows nothing special about, or an engine that owns precision
    itself."""

    name: str
    site: Hashable
    kind: str = ""  # what rules/apis says the call returns: "managed", "scheduler", …


@dataclass(frozen=True, slots=True)
class Bound(Value):
    """A method that was taken but not called: `step = optimizer.step`."""

    receiver: Value
    name: str


@dataclass(frozen=True, slots=True)
class Partial(Value):
    """functools.partial."""

    function: Value
    args: tuple[Value, ...]
    kwargs: tuple[tuple[str, Value], ...]


@dataclass(frozen=True, slots=True)
class Items(Value):
    """A tuple, list or set whose elements are known."""

    items: tuple[Value, ...]
    kind: str = "tuple"
    _hash: list[int] = field(default_factory=list, init=False, compare=False, repr=False)  # once known: tables are long

    def __hash__(self) -> int:
        if not self._hash:
            self._hash.append(hash((self.items, self.kind)))
        return self._hash[0]


@dataclass(frozen=True, slots=True)
class Many(Value):
    """A collection of unknown length; `item` stands for each element."""

    item: Value


@dataclass(frozen=True, slots=True)
class Mapping(Value):
    """A dict whose constant keys are known; `open` if it may hold others."""

    items: tuple[tuple[Value, Value], ...]
    open: bool = False
    node: ast.AST | None = field(default=None, compare=False)
    _hash: list[int] = field(default_factory=list, init=False, compare=False, repr=False)

    def __hash__(self) -> int:
        if not self._hash:
            self._hash.append(hash((self.items, self.open)))
        return self._hash[0]

    def get(self, key: Value) -> Value | None:
        return next((value for known, value in self.items if known == key), None)


@dataclass(frozen=True, slots=True)
class Choice(Value):
    """One of two values, decided by a condition: what a variable holds after `if`/`else` assigned it in both arms."""

    formula: Formula
    yes: Value
    no: Value


@dataclass(frozen=True, slots=True)
class Test(Value):
    """A boolean that is known as a condition: `x is not None`."""

    formula: Formula


KNOWN, ASSUMED, GIVEN = 2, 1, 0

# -- what training is made of ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model(Value):
    """A library nn.Module: `torch.nn.Linear(…)`. The project's own modules are Instances, unknown ones Syms."""

    name: str
    site: Hashable
    args: tuple[Value, ...] = ()
    kwargs: tuple[tuple[str, Value], ...] = ()


Owners = frozenset[Value]  # the models whose parameters something is about; empty: not known


@dataclass(frozen=True, slots=True)
class Parameters(Value):
    """The parameters of some models."""

    of: Owners


@dataclass(frozen=True, slots=True)
class Parameter(Value):
    """One parameter, met while iterating over Parameters; `dtype` if it was cast."""

    of: Owners
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class Gradient(Value):
    """The `.grad` of parameters."""

    of: Owners


@dataclass(frozen=True, slots=True)
class Optimizer(Value):
    """An optimizer, named by where it was made (or by the unknown thing that is used as one)."""

    site: Hashable
    of: Owners = frozenset()
    name: str = ""
    node: ast.AST | None = field(default=None, compare=False)
    closure: bool = False  # LBFGS: step() calls the forward and backward itself
    holds: str = ""  # what it is given in place of weights: float32 "copies" of them, or "tensors" of no model


@dataclass(frozen=True, slots=True)
class Scaler(Value):
    """A GradScaler. `enabled` is the value given for it; unknown things that are used as scalers count as enabled."""

    site: Hashable
    enabled: Value = TRUE
    node: ast.AST | None = field(default=None, compare=False)
    device: Value | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Autocast(Value):
    """A torch.autocast object (not entered yet). Missing arguments are None. `device` is the torch.device that its
    device_type names; `given` is what the code passes for that."""

    site: Hashable
    device: Value | None = None
    dtype: Value | None = None
    enabled: Value = TRUE
    cache: Value = TRUE
    node: ast.AST | None = field(default=None, compare=False)
    given: Value | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class NullContext(Value):
    """contextlib.nullcontext(), suppress(), and other contexts without an effect on precision."""


@dataclass(frozen=True, slots=True)
class GradMode(Value):
    """torch.no_grad(), inference_mode() (`enabled` false) or enable_grad()."""

    enabled: bool


@dataclass(frozen=True, slots=True)
class Scaled(Value):
    """apex's amp.scale_loss(loss, optimizer): gradients are unscaled when it is left, unless that is `delayed`."""

    loss: Value
    delayed: bool = False


@dataclass(frozen=True, slots=True)
class Managing(Value):
    """A call of a @contextmanager function: what its body holds open at the yield, and what it yields."""

    contexts: tuple[Value, ...]
    bound: Value


@dataclass(frozen=True, slots=True)
class Region(Value):
    """An entered autocast: the `with` (or decorated function) and how many loops were open when it was entered.

    `assumed` marks the region that a model's forward is judged in when nothing in the project calls it.
    """

    autocast: Autocast
    node: ast.AST
    loops: int
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class Tensor(Value):
    """A tensor: its dtype as far as known, and what it was computed from and under.

    dtype: "float32", "float16", "bfloat16", "float64", "low" (autocast's dtype, not known which), "integer", "bool",
    "complex" or "" (unknown). `trust` says what that rests on: KNOWN (seen), ASSUMED (a model judged in an assumed
    autocast region) or GIVEN (an argument of such a model, taken to be an activation).
    `made` is the op that produced it (views keep it), `parents` what it was made of.
    """

    dtype: str = ""
    trust: int = 2
    of: Owners = frozenset()
    region: Region | None = None
    scaler: Scaler | None = None
    made: str = ""
    node: ast.AST | None = field(default=None, compare=False)
    parents: tuple[Value, ...] = field(default=(), compare=False)
    identity: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Device(Value):
    """A torch.device; `type` is "cuda", "cpu", … where that is a constant, else ""."""

    type: str
    text: Value


@dataclass(frozen=True, slots=True)
class StateDict(Value):
    """`x.state_dict()`."""

    of: Value


@dataclass(frozen=True, slots=True)
class Checkpoint(Value):
    """What torch.load returned, or an entry of it (`path` of keys)."""

    site: Hashable
    path: tuple[Value, ...] = ()
