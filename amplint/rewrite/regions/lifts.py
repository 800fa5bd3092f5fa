"""Where events show in the text: an event stands at its node, and at every call that leads to it.

A call of a helper that runs the model is a forward where it stands; one that leads to a backward or a step ends a
region as they do.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from amplint.source import events
from amplint.source.interpret.entries import Reading
from amplint.source.interpret.frames import Code, Frame
from amplint.source.interpret.functions import abstract
from amplint.source.module import Module
from amplint.source.tree import last_name, passed
from amplint.source.values import Model, Sym, Value

BOOKKEEPING = frozenset(
    (
        "train eval to cuda cpu half float double parameters named_parameters buffers named_buffers modules children "
        "named_modules named_children zero_grad state_dict load_state_dict requires_grad_ apply append extend items "
        "keys values init_hidden init_weights size share_memory register_buffer add_module no_sync"
    ).split()
)


_AUGMENTS = ("torchvision.transforms.", "kornia.augmentation.", "kornia.enhance.", "torchaudio.transforms.")


@dataclass(eq=False, slots=True)
class Through(events.Forward):
    """A forward that a call leads to, as it shows where that call stands."""


@dataclass
class Lifts:
    """Nodes of a file: those that run a model (with the forwards they lead to), that lead to a backward or a step, that
    lead to a step; what models are called; and the fields that a call sets, as its caller writes them."""

    forwards: dict[ast.AST, list[events.Forward]] = field(default_factory=lambda: defaultdict(list))
    barriers: set[ast.AST] = field(default_factory=set)
    steps: set[ast.AST] = field(default_factory=set)
    models: set[str] = field(default_factory=set)
    wrappers: set[str] = field(default_factory=set)  # objects that were given a model: `decoder = Decoder(net)`
    taken: set[str] = field(default_factory=set)  # `net = nets[0]`, others of which are called; `head = model.head`
    own: set[str] = field(default_factory=set)  # functions of the file, which were looked into
    running: set[str] = field(default_factory=set)  # those of them that run a method of a model: `model.encode(x)`
    templates: set[str] = field(default_factory=set)  # methods that subclasses define: `self.compute_loss(batch)`
    fields: dict[ast.AST, set[str]] = field(default_factory=lambda: defaultdict(set))


@lru_cache(maxsize=2)
def lifts_of(reading: Reading) -> Lifts:
    found, containers = Lifts(), set[str]()
    module = reading.module
    for event in reading.events:
        if isinstance(event, events.Forward):
            if _prepares(event.model):
                continue
            for node in standing(event):
                found.forwards[node].append(event)
            called = getattr(event.node, "func", None)
            if event.module is module and isinstance(called, ast.Name | ast.Attribute):
                found.models.add(ast.unparse(called))
            if event.module is module and isinstance(called, ast.Subscript):
                containers.add(ast.unparse(called.value))
            _note_fields(event.frame, found.fields)
        elif isinstance(event, events.Create) and event.module is module:
            match event.node:
                case ast.Call(args=[ast.Attribute(value=ast.Name() | ast.Attribute() as owner), *_]) if (
                    ast.unparse(owner) != "self"
                ):
                    found.models.add(ast.unparse(owner))  # Adam(model.slow_weights)
        elif isinstance(event, events.Backward | events.Step):
            found.barriers |= set(standing(event))
            if isinstance(event, events.Step):
                found.steps |= set(standing(event))
    for node in ast.walk(module.tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript(value=container)) if (
                ast.unparse(container) in containers
            ):
                found.taken.add(name)
            case ast.ClassDef(body=body):
                found.templates |= {one.name for one in body if isinstance(one, ast.FunctionDef) and abstract(one)}
            case ast.Call(func=ast.Attribute(attr="parameters", value=ast.Name() | ast.Attribute() as model)):
                found.models.add(ast.unparse(model))
            case ast.Call(func=ast.Attribute(attr="train" | "eval", value=ast.Attribute() as model)):
                found.models.add(ast.unparse(model))
    for node in module.nodes(ast.Assign):
        match node.targets, node.value:
            case [ast.Name(id=name)], ast.Attribute(value=whole, attr=part) if (
                part not in BOOKKEEPING and ast.unparse(whole) in found.models
            ):
                found.taken.add(name)
        match node.targets, _moved(node.value):
            case [ast.Name(id=name)], ast.Call(func=made, args=[given, *_]) if (
                last_name(made)[:1].isupper() and ast.unparse(given) in found.models | found.wrappers
            ):
                found.wrappers.add(name)
    functions = module.nodes(ast.FunctionDef)
    found.own = {one.name for one in functions}
    found.running = {one.name for one in functions if any(method_of(node, found.models) for node in ast.walk(one))}
    return found


def _prepares(model: Value) -> bool:
    """Whether what is called as a model only changes what others are given: a Sequential of augmentations, which has
    nothing to train, and whose geometry is better off in float32."""
    return (
        isinstance(model, Model)
        and bool(model.args)
        and all(isinstance(one, Sym) and one.parts and str(one.parts[0]).startswith(_AUGMENTS) for one in model.args)
    )


def method_of(node: ast.AST, models: set[str]) -> bool:
    """Whether a method of a model is called that computes something."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name() | ast.Attribute() as owner, attr=name), args=[_, *_]):
            return name not in BOOKKEEPING and not name.startswith("set_") and ast.unparse(owner) in models
    return False


def _moved(value: ast.expr) -> ast.expr:
    """What an object is before it is moved: `Trainer(net).to(device)`."""
    match value:
        case ast.Call(func=ast.Attribute(value=inner, attr="to" | "cuda")):
            return inner
    return value


def standing(event: events.Event) -> Iterator[ast.AST]:
    """The event's node, and the calls that lead to it, innermost first."""
    yield event.node
    for frame in event.frame.stack():
        if frame.call is not None and not frame.entry:
            yield frame.call


def without_gradients_first(reading: Reading, region: Sequence[ast.stmt]) -> bool:
    """Whether a model runs without gradients in a region before it runs with them: the cast copies of its weights that
    the region keeps (until PyTorch 2.10) would have none."""
    inside = {node for one in region for node in ast.walk(one)}
    first: dict[Value, bool] = {}
    for event in reading.events:
        if isinstance(event, events.Forward) and any(node in inside for node in standing(event)):
            if event.grad and first.setdefault(event.model, True) is False:
                return True
            first.setdefault(event.model, event.grad)
    return False


def node_in(event: events.Event, code: Code) -> ast.AST | None:
    """Where an event stands in some code: its node, or the call that leads to it."""
    node: ast.AST | None = event.node
    for frame in event.frame.stack():
        if frame.code is code:
            return node
        node = None if frame.entry else frame.call
    return None


def shown(event: events.Forward, node: ast.AST) -> events.Forward:
    """A forward as it shows at its node, or at a call that leads to it."""
    if event.node is node:
        return event
    frame = next(one for one in event.frame.stack() if one.call is node)
    assert frame.caller is not None
    return Through(node, frame.caller, event.contexts, event.loops, event.facts, event.model, event.stale)


def common(one: events.Event, other: events.Event) -> Frame | None:
    """The innermost call that both events happen in."""
    codes = {frame.code for frame in other.frame.stack()}
    return next((frame for frame in one.frame.stack() if frame.code in codes), None)


# -- fields -----------------------------------------------------------------------------------------------------------


def _note_fields(frame: Frame, found: dict[ast.AST, set[str]]) -> None:
    """For each call on the way to a frame, the fields that are set behind it."""
    fields: set[str] = set()
    for one in frame.stack():
        fields |= _own_fields(one.code)
        if one.call is None or one.entry:
            break
        fields = {path for name in fields if (path := outside(one, name))}
        found[one.call] |= fields


@lru_cache(maxsize=512)
def _own_fields(code: Code) -> frozenset[str]:
    from amplint.rewrite.regions.derivation import stored

    if not isinstance(code, ast.FunctionDef):
        return frozenset()
    return frozenset(name for one in code.body for name in stored(one) if "." in name)


def outside(frame: Frame, path: str) -> str:
    """What a field of `self` is called where a method was called: `self.loss` of `model.forward()` is `model.loss`."""
    root, _, rest = path.partition(".")
    own = own_name(frame)
    if not own or root != own or not isinstance(frame.call, ast.Call) or not isinstance(frame.call.func, ast.Attribute):
        return ""
    return f"{ast.unparse(frame.call.func.value)}.{rest}"


def inside(frame: Frame, path: str) -> str:
    """The other way round."""
    own = own_name(frame)
    if own and isinstance(frame.call, ast.Call) and isinstance(frame.call.func, ast.Attribute):
        receiver = ast.unparse(frame.call.func.value)
        if path.startswith(receiver + "."):
            return own + path[len(receiver) :]
    return ""


def own_name(frame: Frame) -> str:
    """What a method calls its object."""
    code = frame.code
    if frame.owner is None or not isinstance(code, ast.FunctionDef) or not code.args.args:
        return ""
    return code.args.args[0].arg


def argument(frame: Frame, name: str) -> ast.expr | None:
    """What the caller passes for a parameter."""
    call, code = frame.call, frame.code
    if not isinstance(call, ast.Call) or not isinstance(code, ast.FunctionDef):
        return None
    return passed(code, call, name, frame.owner is not None)


def nodes_of(event: events.Event) -> list[ast.AST]:
    """Where an event stands: its node, and every call that leads to it."""
    return [event.node, *(frame.call for frame in event.frame.stack() if frame.call is not None)]


def place_in(module: Module, block: list[ast.stmt], event: events.Event) -> int | None:
    """Which statement of a block makes an event happen, itself or by a call."""
    for node in nodes_of(event):
        if node in module.parents:
            around = {node, *module.ancestors(node)}
            found = next((index for index, one in enumerate(block) if one in around), None)
            if found is not None:
                return found
    return None
