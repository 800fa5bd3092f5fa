"""Frames: where code runs. A frame is a function call (or a module, or a class body) with its scope and its caller."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from amplint.source.interpret.world import World
from amplint.source.module import FunctionNode, Module
from amplint.source.values import Value

Results = list[tuple[Value, World]]  # of evaluating something: a value for each world that it led to
NEVER = object()  # what a call that does not return is said to return
Code = ast.Module | ast.ClassDef | FunctionNode


@dataclass(eq=False, slots=True)
class Frame:
    """One activation of `code`. Variables live in the World under `scope`, because worlds differ in them.

    `roles` says what each name or attribute path in the code is used as (roles.py).
    """

    scope: object = field(repr=False)
    code: Code
    module: Module
    parent: Frame | None = field(default=None, repr=False)  # the frame that encloses it in the source
    caller: Frame | None = field(default=None, repr=False)
    call: ast.AST | None = None  # where the caller called
    owner: Value | None = field(default=None, repr=False)  # what `self` is
    cls: Value | None = field(default=None, repr=False)  # the class that the method was found in, for super()
    roles: dict[str, str] = field(default_factory=dict, repr=False)
    outer: frozenset[str] = frozenset()  # names declared global or nonlocal
    in_model: bool = False  # inside a model's forward
    entry: bool = False  # nothing in the project calls it: what it is given is unknown
    round: int = 1  # … and how often it has been run, to see what a call leaves behind

    @property
    def name(self) -> str:
        return getattr(self.code, "name", "<module>" if isinstance(self.code, ast.Module) else "<lambda>")

    def stack(self) -> Iterator[Frame]:
        """This frame and its callers, innermost first."""
        frame: Frame | None = self
        while frame is not None:
            yield frame
            frame = frame.caller

    def depth(self) -> int:
        return sum(1 for _ in self.stack())


def scopes(frame: Frame) -> Iterator[Frame]:
    """The frames in which a name is looked up: this one, then what encloses it; class bodies are invisible inside."""
    yield frame
    above = frame.parent
    while above is not None:
        if not isinstance(above.code, ast.ClassDef):
            yield above
        above = above.parent


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a call passes; `open` if there may be more (an unknown *args or **kwargs)."""

    args: tuple[Value, ...] = ()
    kwargs: dict[str, Value] = field(default_factory=dict)
    open: bool = False

    def values(self) -> tuple[Value, ...]:
        return (*self.args, *self.kwargs.values())


@dataclass(slots=True)
class Flow:
    """Where worlds go when they leave a block other than at its end."""

    returns: list[tuple[Value, World]] = field(default_factory=list)
    breaks: list[World] = field(default_factory=list)
    continues: list[World] = field(default_factory=list)
    yields: list[tuple[Value, World]] = field(default_factory=list)  # of a context manager, at its yield

    def stop(self, other: Flow) -> None:
        """Let what left an inner block by return or yield leave this one, too."""
        self.returns += other.returns
        self.yields += other.yields
