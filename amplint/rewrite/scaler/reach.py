"""How the scaler gets from its home to where it is needed: new parameters, and the calls that fill them."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from amplint.findings import Edit
from amplint.rewrite import edits
from amplint.rewrite.refusals.refused import BY_HAND, Refused, command
from amplint.rewrite.scaler.definitions import (
    definition,
    other_users,
    places_binding,
    ran_elsewhere,
    uses_in,
)
from amplint.rewrite.scaler.files import own_file
from amplint.rewrite.scaler.home import Home
from amplint.source import events
from amplint.source.interpret.frames import Frame
from amplint.source.module import FunctionNode, Module
from amplint.source.tree import positional


@dataclass(frozen=True)
class Files:
    """The files that may be changed, where imports are looked for, and the calls that the readings followed, each with
    what it called."""

    named: tuple[Module, ...]
    roots: tuple[str, ...] = ()
    seen: Mapping[ast.AST, ast.AST] = field(default_factory=dict)


@dataclass
class Reach:
    """A scaler, where it is made, for which optimizers, and the functions that are handed it: each with the parameter
    that is the optimizer there, where only that is known."""

    name: str
    home: Home
    optimizers: tuple[str, ...]
    handed: dict[ast.FunctionDef, Module] = field(default_factory=dict)
    stepping: dict[ast.FunctionDef, Module] = field(default_factory=dict)  # those on the way to the step

    @property
    def outside(self) -> tuple[str, ...]:
        """What the optimizers are called where the object is at hand that has them as fields."""
        return tuple(map(self.home.outside, self.optimizers))

    def at_hand(self, module: Module, node: ast.AST) -> bool:
        """Whether the scaler's name has its value at a node: behind its home, in a function it is handed to, or
        anywhere for a field or a global."""
        home = self.home
        around = [node, *module.ancestors(node)]
        if home.in_class:
            inside = any(cls in around for _, cls in home.classes) or home.around in around
            return inside or any(above in self.handed for above in around)
        if any(above in self.handed for above in around):
            return True
        if module is not home.module:
            return False
        function = module.function(node)
        if function is home.code or (function is None and isinstance(home.code, ast.Module)):
            return module.offset(module.range(node).start) > module.offset(module.range(home.statement).end)
        return isinstance(home.code, ast.Module) or home.code in around

    def within(self, module: Module, code: ast.AST) -> Iterator[ast.AST]:
        """What is in some code, but for other functions that make optimizers of their own by the same names."""
        names = {one.partition(".")[0] for one in self.optimizers} - {"self"}
        own = self.home.module.function(self.home.statement)
        apart = {
            inner
            for function in ast.walk(code)
            if isinstance(function, FunctionNode) and function is not own and module is self.home.module
            if any(place for name in names for place in places_binding(function, name))
            for inner in ast.walk(function)
        }
        return (node for node in ast.walk(code) if node not in apart)

    def text(self, module: Module, node: ast.AST) -> str:
        """The scaler's name at a node where it is at hand."""
        around = list(module.ancestors(node))
        if any(above in self.handed for above in around):
            return self.name.removeprefix("self.")
        return self.name if any(cls in around for _, cls in self.home.classes) else self.home.outside(self.name)

    def lead_to(self, event: events.Event) -> None:
        """Hand the scaler to the functions on the way to an event, from where it is at hand."""
        node, frame = event.node, event.frame
        while not self.at_hand(frame.module, node):
            if frame.entry or frame.caller is None or frame.call is None or isinstance(frame.code, ast.Module):
                raise Refused("the loss is scaled where the scaler is not at hand", BY_HAND)
            self.add((frame,))
            node, frame = frame.call, frame.caller

    def add(self, frames: Sequence[Frame]) -> None:
        """The functions on the way to a step."""
        for frame in frames:
            if not isinstance(frame.code, ast.FunctionDef):
                raise Refused("the step is in an unusual kind of function", BY_HAND)
            self.handed[frame.code] = self.stepping[frame.code] = frame.module


def must_change(known: Sequence[Module], others: Sequence[str]) -> str:
    """The command that names all files that change together."""
    paths = dict.fromkeys(
        os.path.relpath(one) if os.path.isabs(one) else one for one in (*(m.path for m in known), *others)
    )
    return f"{command(paths)} changes them together"


# -- calls ------------------------------------------------------------------------------------------------------------


def calls_of(
    module: Module, function: ast.FunctionDef, seen: Mapping[ast.AST, ast.AST], home: Module | None = None
) -> list[ast.Call]:
    """Every call of a function in a file (of the file `home`, where that is another one); any other use of its name
    could be a call that amplint cannot follow. `seen` are the calls of it that the reading followed: the sure ones of a
    method."""
    alone, home = home is None, home or module
    method = isinstance(home.parents[function], ast.ClassDef)
    followed = (call for call, code in seen.items() if method and code is function and call in module.parents)
    found = [one for one in followed if isinstance(one, ast.Call) and getattr(one.func, "attr", "") == function.name]
    for node in uses_in(module, function, home):
        parent = module.parents[node]
        if isinstance(parent, ast.Call) and parent.func is node:
            if not method or parent in seen:
                found += [parent] if parent not in found else []
                continue
            if not parent.args and not parent.keywords:
                continue  # model.train(), where the class has a train(loader), too
        raise Refused(f"{function.name} is passed around, not only called", BY_HAND)
    if alone and not found:
        raise Refused(f"no call of {function.name}() is in this file", BY_HAND)
    return found


def _calls(function: ast.FunctionDef, home: Module, files: Files) -> list[tuple[Module, ast.Call]]:
    """Every call of a function in the files that may change; raises Refused where others have some, too."""
    found = [
        (one, call)
        for one in (home, *(m for m in files.named if m is not home))
        for call in calls_of(one, function, files.seen, home)
    ]
    others = other_users(function, home, files.named, files.roots)
    if isinstance(home.parents[function], ast.ClassDef):
        others = others or ran_elsewhere(function, home, files.named, files.roots)
    if others:
        using = dict.fromkeys([home, *(module for module, _ in found)])
        raise Refused(f"{function.name}() is called in {', '.join(others)}, too", must_change(list(using), others))
    if not found:
        raise Refused(f"no call of {function.name}() is in this file", BY_HAND)
    return found


def hand_down(reaches: Sequence[Reach], files: Files) -> list[Edit]:
    """Give the scaler to every function that needs it. `reaches` are the scalers of one name: each script that calls a
    shared function makes its own."""
    made: list[Edit] = []
    handed: dict[tuple[Module, ast.Call], tuple[str, bool]] = {}
    for function, home in {key: value for one in reaches for key, value in one.handed.items()}.items():
        if home not in files.named:
            raise Refused(
                f"{function.name}() needs the scaler, in {home.path}", must_change(_homes(reaches), [home.path])
            )
        stepping = any(function in one.stepping for one in reaches)
        keyword = edits.takes_keyword_only(function)
        bare = reaches[0].name.removeprefix("self.")
        optional = not stepping and is_optional(function, home, files)
        made += edits.add_parameter(home, function, f"{bare}=None" if optional else bare)
        for module, call in _calls(function, home, files):
            owner = next((one for one in reaches if one.at_hand(module, call)), None)
            if owner is None and optional and _given(function, call, home) is None:
                continue  # it passes no optimizer either
            if owner is None:
                where = "" if module is home else f" in {module.path}"
                raise Refused(f"{function.name}() is also called{where} where the scaler is not at hand", BY_HAND)
            text = owner.text(module, call)
            named = keyword or not _fills(function, call, home)
            handed[module, call] = text, named or handed.get((module, call), ("", False))[1]
    bare = reaches[0].name.removeprefix("self.")
    for (module, call), (text, named) in handed.items():  # a name may be one of several functions
        made += edits.add_argument(module, call, f"{bare}={text}" if named else text)
    return list(dict.fromkeys(made))


def _fills(function: ast.FunctionDef, call: ast.Call, home: Module) -> bool:
    """Whether a call gives all parameters of a function by their place: then one more goes the same way."""
    method = isinstance(home.parents[function], ast.ClassDef)
    count = len(function.args.posonlyargs) + len(function.args.args) - method
    return len(call.args) == count and not any(isinstance(one, ast.Starred) for one in call.args)


def _homes(reaches: Sequence[Reach]) -> list[Module]:
    found = [one.home.module for one in reaches]
    return list(dict.fromkeys([*found, *(home for one in reaches for home in one.stepping.values())]))


# -- checkpoints in functions of their own ----------------------------------------------------------------------------


def parameter_for(function: ast.FunctionDef, call: ast.Call, texts: Sequence[str], method: bool) -> str | None:
    """The parameter of a function that a call gives one of some expressions to."""
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args)][method:]
    for keyword in call.keywords:
        if keyword.arg and ast.unparse(keyword.value) in texts:
            return keyword.arg
    for name, value in zip(names, call.args, strict=False):
        if isinstance(value, ast.Starred):
            return None
        if ast.unparse(value) in texts:
            return name
    return None


def is_optional(function: ast.FunctionDef, home: Module, files: Files) -> bool:
    """Whether a function that saves or restores works without an optimizer, and so without a scaler."""
    return bool(function.args.defaults or any(function.args.kw_defaults)) and any(
        _given(function, call, home) is None for _, call in _calls(function, home, files)
    )


def _given(function: ast.FunctionDef, call: ast.Call, home: Module) -> str | None:
    """What a call gives as the optimizer to a function that is handed the scaler for its state."""
    names = positional(function)
    method = isinstance(home.parents[function], ast.ClassDef)
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="state_dict" | "load_state_dict")) if (
                name in names and "opt" in name.lower()
            ):
                given = dict(zip(names[method:], call.args, strict=False)) | {k.arg: k.value for k in call.keywords}
                value = given.get(name)
                return None if value is None or getattr(value, "value", "") is None else ast.unparse(value)
    return None


def savers(reach: Reach, files: Files) -> dict[ast.FunctionDef, tuple[Module, str]]:
    """The functions that are given the optimizer and save or restore its state: each with its file and parameter."""
    found: dict[ast.FunctionDef, tuple[Module, str]] = {}
    pending: list[tuple[Module, ast.AST, Sequence[str]]] = [(reach.home.module, reach.home.code, reach.optimizers)]
    if reach.home.in_class:
        pending = [(module, cls, reach.optimizers) for module, cls in reach.home.classes]
        if reach.home.around is not None:
            pending.append((reach.home.module, reach.home.around, reach.outside))
    visited: set[ast.AST] = set()
    while pending:
        module, code, texts = pending.pop()
        if code in visited:
            continue
        visited.add(code)
        for call in (node for node in ast.walk(code) if isinstance(node, ast.Call)):
            if not any(ast.unparse(one) in texts for one in (*call.args, *(k.value for k in call.keywords))):
                continue
            match definition(module, call.func, files.roots):
                case (where, ast.FunctionDef() as function):
                    method = isinstance(where.parents[function], ast.ClassDef)
                    name = parameter_for(function, call, texts, method)
                    if name is not None and function not in found:
                        own = any(own_file(where, node, name) for node in ast.walk(function))
                        if own or _handles_state(function, name):
                            found[function] = where, name
                        pending.append((where, function, (name,)))
    return found


def _handles_state(function: ast.FunctionDef, name: str) -> bool:
    """Whether a function saves or restores the state of a parameter by its key in a checkpoint."""
    for node in ast.walk(function):
        match node:
            case ast.Dict(values=values):
                for value in values:
                    match value:
                        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="state_dict")) if owner == name:
                            return True
            case ast.Assign(
                targets=[ast.Subscript()],
                value=ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="state_dict")),
            ) if owner == name:
                return True
            case ast.keyword(value=ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr="state_dict"))) if (
                owner == name
            ):
                return True
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=owner), attr="load_state_dict"), args=[ast.Subscript(), *_]
            ) if owner == name:
                return True
    return False
