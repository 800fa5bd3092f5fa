"""Where the scaler lives: beside the optimizer, and on the way from there to the step.

The optimizer is followed by its name, from the step outwards: a local of the function, a parameter (then the caller's
argument), a name of the function or module around, or a field of the class. Where it is a field of another object
(`trainer.optimizer`, `self.gan.d_opt`), the scaler is one, too: both are made by the class of that object.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace

from amplint.rewrite.fixes import suite_of
from amplint.rewrite.gates import device
from amplint.rewrite.refusals.refused import BY_HAND, Elsewhere, Refused
from amplint.rewrite.scaler.binding import UNSEEN, bound_at
from amplint.rewrite.scaler.collected import alias, filled, looped
from amplint.rewrite.scaler.definitions import classes_of, places_binding
from amplint.source import events
from amplint.source.interpret.frames import Frame
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import called_name, parameters, passed

MOST_NAMES = 12
ONE_LINE = "give it one line of its own"


@dataclass(frozen=True)
class Home:
    """The statement behind which the scaler is made, what the optimizer is called there, the code it is in, and the
    calls that must hand the scaler on to reach the step, innermost first."""

    module: Module
    statement: ast.stmt
    optimizer: str
    code: ast.AST
    path: tuple[Frame, ...] = ()
    loop: ast.For | None = None  # that goes over a collection of optimizers, which `optimizer` then is
    classes: tuple[tuple[Module, ast.ClassDef], ...] = ()  # whose methods have it as a field
    through: str = ""  # the object that has it as a field, as that is called in the class or function `around`
    around: ast.AST | None = None

    @property
    def in_class(self) -> bool:
        return self.optimizer.startswith("self.")

    @property
    def of_object(self) -> bool:
        """Whether it is a field of another object."""
        return bool(self.through) or "." in self.optimizer.removeprefix("self.")

    def same(self, other: Home) -> bool:
        """Whether the other one is the same place, from which the same functions lead to the step."""
        mine, its = [frame.code for frame in self.path], [frame.code for frame in other.path]
        alike = self.optimizer == other.optimizer and self.through == other.through
        return self.statement is other.statement and alike and mine == its

    def outside(self, name: str) -> str:
        """What a field of the class is called where the object is at hand."""
        return f"{self.through}.{name.removeprefix('self.')}" if self.through else name


def home_of(step: events.Step) -> Home:
    """Raises Refused where the optimizer cannot be followed, or is bound more than once."""
    match step.node:
        case ast.Call(func=ast.Attribute(value=ast.Name() | ast.Attribute() as owner)):
            text = ast.unparse(owner)
        case ast.Call(
            func=ast.Attribute(value=ast.Subscript(value=ast.Name() | ast.Attribute() as owner, slice=ast.Constant()))
        ):
            text = ast.unparse(owner)  # optimizers[0]
        case _:
            raise Refused("the optimizer that steps has no plain name", BY_HAND)
    if (over := looped(step.module, step.node, text)) is not None:
        loop, texts = over
        homes = [replace(_follow(step, loop, one), loop=loop) for one in texts]
        if any(home.code is not homes[0].code or home.in_class != homes[0].in_class for home in homes):
            raise Refused("the optimizers are made in different functions", BY_HAND)
        return max(homes, key=lambda home: home.statement.lineno)
    return _follow(step, step.node, text)


def _follow(step: events.Step, use: ast.AST, text: str) -> Home:
    frame, path = step.frame, list[Frame]()
    for _ in range(MOST_NAMES):
        if looped(frame.module, use, text) is not None and isinstance(use, ast.Call):
            raise Refused("the optimizer is taken from a collection in an unusual way", BY_HAND)
        root, _, rest = text.partition(".")
        if root == "self" and rest and "." not in rest:
            return _in_class(frame, text, use, tuple(path))
        if rest and (home := _in_object(step, frame, text, use, tuple(path))) is not None:
            return home
        if rest and root == "self":
            return _beside(frame, text, use, tuple(path))
        frame = _scope(frame, root)
        if rest:
            inside = frame.code if isinstance(frame.code, FunctionNode) else None
            stores = [one for one in _fields(frame.code, text) if frame.module.function(one) is inside]
            if stores:  # state.optimizer = …
                statement = bound_at(frame.module, text, [frame.module.statement(one) for one in stores], use)
                return Home(frame.module, statement, text, frame.code, tuple(path))
        if root not in parameters(frame.code):
            if rest and not any(places_binding(frame.code, root)):
                raise Refused(f"the optimizer is kept in {text}", BY_HAND)
            statement = _bound(frame.module, frame.code, root, use)
            if other := alias(statement, root):
                text, use = ".".join(filter(None, (other, rest))), statement
                continue
            if "." in rest:
                raise Refused(f"the optimizer is kept in {text}", BY_HAND)
            statement = statement if rest else filled(frame.module, statement, text)
            return Home(frame.module, statement, text, frame.code, tuple(path))
        text = ".".join(filter(None, (_argument(frame, root), rest)))
        path.append(frame)
        assert frame.call is not None and frame.caller is not None
        use, frame = frame.call, frame.caller
    raise Refused("the optimizer has too many names", BY_HAND)


def _scope(frame: Frame, name: str) -> Frame:
    """The frame whose variable a name is."""
    above: Frame | None = frame
    while above is not None:
        code = above.code
        if isinstance(code, ast.Module) or (
            isinstance(code, FunctionNode)
            and name not in above.outer
            and (name in parameters(code) or any(places_binding(code, name)))
        ):
            return above
        above = above.parent
    raise Refused("the optimizer's name cannot be found", BY_HAND)


def _bound(module: Module, code: ast.AST, name: str, use: ast.AST) -> ast.stmt:
    """The statement after which a local or global name has its optimizer."""
    found = [module.statement(node) for node in places_binding(code, name)]
    telling = [n for n in ast.walk(module.tree) if isinstance(n, ast.Global | ast.Nonlocal) and name in n.names]
    functions = {module.function(one) for one in telling}
    if not found and telling:
        binding = [(one, list(places_binding(one, name))) for one in functions if one is not None]
        binding = [(one, places) for one, places in binding if places]
        if len(binding) != 1 or not all(isinstance(one, ast.Global) for one in telling):
            raise Refused("several functions bind the optimizer's name as a global", BY_HAND)
        found = [module.statement(node) for node in binding[0][1]]
    return bound_at(module, name, found, use)


def _in_class(frame: Frame, text: str, use: ast.AST, path: tuple[Frame, ...]) -> Home:
    module = frame.module
    around = module.class_of(use)
    if around is None:
        raise Refused("the optimizer is a field of something that is not in this file", BY_HAND)
    classes: list[tuple[Module, ast.ClassDef]] = []
    for owner, cls in classes_of(module, around):
        classes.append((owner, cls))
        if found := [owner.statement(node) for node in _fields(cls, text)]:
            statement = filled(owner, bound_at(owner, text, found, use), text)
            return Home(owner, statement, text, owner.function(statement) or cls, path, None, tuple(classes))
    raise Refused(UNSEEN, BY_HAND)


def _in_object(step: events.Step, frame: Frame, text: str, use: ast.AST, path: tuple[Frame, ...]) -> Home | None:
    """The home of what is a field of another object: where a method of that object's class makes it, in this file."""
    module, made = frame.module, getattr(step.optimizer, "node", None)
    through, _, name = text.rpartition(".")
    above = list(module.ancestors(made)) if made in module.parents else []
    cls = next((one for one in above if isinstance(one, ast.ClassDef)), None)
    found = [] if cls is None else [module.statement(one) for one in _fields(cls, f"self.{name}")]
    if cls is None or not any(one in found for one in above) or cls in module.ancestors(use):
        return None
    statement = filled(module, bound_at(module, f"self.{name}", found, use), f"self.{name}")
    around: ast.AST | None = _scope(frame, text.partition(".")[0]).code
    if text.startswith("self."):
        around = module.class_of(use)
    code = module.function(statement) or cls
    last = suite_of(module, statement)[-1]
    if not device.known_at(module, last):
        return None  # who makes the object moves it, too
    return Home(module, statement, f"self.{name}", code, path, None, ((module, cls),), through, around)


def _beside(frame: Frame, text: str, use: ast.AST, path: tuple[Frame, ...]) -> Home:
    """The home of what is a field of a field: behind the statement that binds the object."""
    through = text.rpartition(".")[0]
    cls = frame.module.class_of(use)
    if cls is None or through.count(".") > 1 or not _fields(cls, through):
        raise Refused(f"the optimizer is kept in {text}", BY_HAND)
    home = _in_class(frame, through, use, path)
    return replace(home, optimizer=text)


def owners(home: Home, optimizers: Sequence[str]) -> dict[tuple[ast.AST, str], None]:
    """The names of the object that has the optimizers as fields where their state is asked for or set, each with the
    class or function that it is known in. Objects of other classes with such fields have scalers of their own."""
    module, fields = home.module, [one.removeprefix("self.") for one in optimizers]
    found: dict[tuple[ast.AST, str], None] = {}
    classes = [one for one in ast.walk(module.tree) if isinstance(one, ast.ClassDef)]
    several = sum(any(_fields(one, text) for text in optimizers) for one in classes) > 1
    for node in ast.walk(module.tree) if home.through else ():
        match node:
            case ast.Attribute(attr="state_dict" | "load_state_dict", value=ast.Attribute(value=owner, attr=name)) if (
                name in fields and isinstance(owner, ast.Name | ast.Attribute) and ast.unparse(owner) != "self"
            ):
                text = ast.unparse(owner)
                scope = ast.ClassDef if text.startswith("self.") else FunctionNode
                code = next((one for one in module.ancestors(node) if isinstance(one, scope)), module.tree)
                if not several or (code, text) == (home.around, home.through):
                    found[code, text] = None
    return found


def sharing(home: Home, optimizers: Sequence[str]) -> list[ast.stmt]:
    """What of the file may know the optimizers as fields: not the other classes that make such fields of their own."""
    mine = [cls for _, cls in home.classes]
    return [
        one
        for one in home.module.tree.body
        if one in mine or not isinstance(one, ast.ClassDef) or not any(_fields(one, text) for text in optimizers)
    ]


def unknowing(home: Home, optimizers: Sequence[str]) -> list[str]:
    """The methods of an object that save the state of its optimizers, where the scaler is beside the object."""
    if home.through or not home.of_object:
        return []
    fields = [f"self.{one.rpartition('.')[2]}" for one in optimizers]
    return [
        f"{getattr(home.module.function(node), 'name', 'the file')}()"
        for node in ast.walk(home.module.tree)
        if isinstance(node, ast.Attribute) and node.attr == "state_dict" and ast.unparse(node.value) in fields
    ]


def _fields(code: ast.AST, text: str) -> list[ast.Attribute]:
    """The places in some code that bind a field."""
    return [
        node
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node) == text
    ]


def _argument(frame: Frame, name: str) -> str:
    """What the caller passes for a parameter, as a name or field."""
    call, function = frame.call, frame.code
    if frame.entry or frame.caller is None or not isinstance(call, ast.Call):
        raise Elsewhere(frame)
    if not isinstance(function, ast.FunctionDef):
        raise Refused("the step is in an unusual kind of function", BY_HAND)
    called = called_name(call)
    imported = frame.caller.module.imports.get(called, set())
    if called != function.name and not any(one.rpartition(".")[2] == function.name for one in imported):
        raise Refused(f"{function.name}() is not called by its name", BY_HAND)
    given = passed(function, call, name, frame.owner is not None)
    if given is None:
        raise Refused(f"it cannot be seen what {function.name}() is given as {name}", BY_HAND)
    if not isinstance(given, ast.Name | ast.Attribute):
        raise Refused(f"the optimizer is made inside a call of {function.name}()", ONE_LINE)
    return ast.unparse(given)
